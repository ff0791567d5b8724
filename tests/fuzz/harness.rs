//! Runs a target on inputs that are changed again and again, and watches what becomes of them.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Mutex, Once, PoisonError};
use std::time::{Duration, Instant};

use prost_reflect::MessageDescriptor;

use crate::corpus::{self, Dictionary, Kept};
use crate::mutation::{Tree, mutate_bytes};
use crate::random::Random;

/// Longest input that mutation makes; a kept one may be longer.
const MAX_INPUT_BYTES: usize = 64 * 1024;

/// What an input may take. Far more than the slowest honest one does: the machine has other things to do.
const MAX_TIME: Duration = Duration::from_secs(1);

/// Memory that an input of so few bytes may take at most.
const MAX_MEMORY: u64 = 128 << 20;

/// Inputs between two looks at the memory.
const LOOK_EVERY: usize = 256;

/// Inputs that mutation begins from.
const MAX_POOL: usize = 2_000;

/// What became of an input. Texts tell kinds apart: an input of a kind that was not seen joins the pool.
pub(crate) enum Verdict {
    /// It does not even parse.
    Garbage,
    /// It was refused, for these reasons.
    Refused(String),
    /// It was understood.
    Accepted(String),
}

type Run = dyn Fn(&[u8]) -> Verdict;

/// Something that decodes what a peer sent.
pub(crate) struct Target {
    /// Also the name of its directory in the corpus.
    pub(crate) name: &'static str,
    /// The message that it takes; `None`: bytes or a text.
    pub(crate) message: Option<&'static str>,
    run: Box<Run>,
}

impl Target {
    pub(crate) fn of_message(
        name: &'static str,
        message: &'static str,
        run: impl Fn(&[u8]) -> Verdict + 'static,
    ) -> Self {
        Self { name, message: Some(message), run: Box::new(run) }
    }

    pub(crate) fn of_bytes(name: &'static str, run: impl Fn(&[u8]) -> Verdict + 'static) -> Self {
        Self { name, message: None, run: Box::new(run) }
    }

    fn descriptor(&self) -> Option<MessageDescriptor> {
        self.message.map(corpus::descriptor)
    }
}

/// An input that was not to be.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) input: Vec<u8>,
    pub(crate) message: String,
}

impl Failure {
    /// Writes the input down and fails the test.
    pub(crate) fn tell(self, target: &Target) -> ! {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fuzz").join(target.name);
        fs::create_dir_all(&directory).expect("a directory for what was found");
        let hash = self
            .input
            .iter()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
        let path = directory.join(format!("{hash:016x}.bin"));
        fs::write(&path, &self.input).expect("what was found is written down");
        panic!(
            "{}: {}\nthe input has {} bytes: {}\nit is {}; name it by what it is and keep it in tests/corpus/{}/",
            target.name,
            self.message,
            self.input.len(),
            self.input.escape_ascii(),
            path.display(),
            target.name
        );
    }
}

/// What a run did.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) inputs: usize,
    pub(crate) accepted: usize,
    pub(crate) kinds: usize,
}

/// Panics of other threads since they were last asked for: a provider's threads turn them into answers.
static ELSEWHERE: Mutex<Vec<String>> = Mutex::new(Vec::new());

thread_local! {
    /// The last panic of this thread, while it is caught here.
    static HERE: RefCell<Option<Option<String>>> = const { RefCell::new(None) };
}

fn listen_to_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let caught = HERE.with(|here| {
                let mut here = here.borrow_mut();
                here.is_some().then(|| *here = Some(Some(panic.to_string())))
            });
            if caught.is_some() {
                return;
            }
            usual(panic);
            // A test's own thread has a name; those of a runtime and of the library have other ones.
            ELSEWHERE.lock().unwrap_or_else(PoisonError::into_inner).push(panic.to_string());
        }));
    });
}

/// The most physical memory that this process has held; `None` where the system does not tell.
fn peak_memory() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? << 10)
}

/// Lets the peak begin anew at what is held now.
fn reset_peak() {
    // Without it growth is still seen, only not whose it was.
    let _ = fs::write("/proc/self/clear_refs", "5");
}

/// One target with its pool.
pub(crate) struct Fuzzer<'a> {
    target: &'a Target,
    descriptor: Option<MessageDescriptor>,
    dictionary: &'a Dictionary,
    random: Random,
    pool: Vec<Vec<u8>>,
    kinds: HashSet<String>,
    accepted: usize,
    inputs: usize,
    /// Those since the last look at the memory.
    unlooked: Vec<Vec<u8>>,
    memory: Option<u64>,
}

impl<'a> Fuzzer<'a> {
    pub(crate) fn new(target: &'a Target, dictionary: &'a Dictionary, random: Random) -> Self {
        listen_to_panics();
        reset_peak();
        Self {
            target,
            descriptor: target.descriptor(),
            dictionary,
            random,
            pool: vec![Vec::new()],
            kinds: HashSet::new(),
            accepted: 0,
            inputs: 0,
            unlooked: Vec::new(),
            memory: peak_memory(),
        }
    }

    /// Runs what is kept. A `.json` file is an honest message: it must be accepted.
    pub(crate) fn kept(&mut self) -> Result<(), Failure> {
        for Kept { name, input } in corpus::inputs(self.target.name, self.target.message) {
            let before = self.accepted;
            self.take(input.clone())
                .map_err(|failure| Failure { message: format!("{name}: {}", failure.message), ..failure })?;
            if name.ends_with(".json") && self.accepted == before {
                return Err(Failure { message: format!("{name}: an honest message is not accepted"), input });
            }
            self.pool.push(input);
        }
        self.look_at_memory()
    }

    /// Mutates until the time is over.
    pub(crate) fn run(&mut self, until: Instant) -> Result<Report, Failure> {
        loop {
            let input = self.mutated();
            self.take(input)?;
            // Each target gets a few, however slow the machine is.
            if self.inputs.is_multiple_of(16) && Instant::now() >= until {
                self.look_at_memory()?;
                return Ok(Report { inputs: self.inputs, accepted: self.accepted, kinds: self.kinds.len() });
            }
        }
    }

    fn mutated(&mut self) -> Vec<u8> {
        let random = &mut self.random;
        let mut input = self.pool[random.index(self.pool.len())].clone();
        let tree = self.descriptor.as_ref().and_then(|descriptor| Tree::parse(&input, descriptor));
        match tree {
            Some(mut tree) if random.below(8) > 0 => {
                for _ in 0..1 + random.index(4) {
                    tree.mutate(self.dictionary, random);
                }
                input = tree.encode();
            }
            _ => {
                for _ in 0..1 + random.index(4) {
                    mutate_bytes(&mut input, random);
                }
            }
        }
        input.truncate(MAX_INPUT_BYTES);
        input
    }

    fn take(&mut self, input: Vec<u8>) -> Result<(), Failure> {
        self.inputs += 1;
        let kind = match run(self.target, &input) {
            Ok(Verdict::Garbage) => None,
            Ok(Verdict::Refused(why)) => Some(format!("refused {why}")),
            Ok(Verdict::Accepted(what)) => {
                self.accepted += 1;
                Some(format!("accepted {what}"))
            }
            Err(message) => return Err(self.smallest(input, message)),
        };
        if kind.is_some_and(|kind| self.kinds.insert(kind)) {
            match self.pool.len() {
                MAX_POOL => {
                    let at = self.random.index(MAX_POOL);
                    self.pool[at] = input.clone();
                }
                _ => self.pool.push(input.clone()),
            }
        }
        self.unlooked.push(input);
        if self.unlooked.len() >= LOOK_EVERY { self.look_at_memory() } else { Ok(()) }
    }

    /// Looks whether the inputs since the last look took too much; if so, which.
    fn look_at_memory(&mut self) -> Result<(), Failure> {
        let unlooked = std::mem::take(&mut self.unlooked);
        let (Some(before), Some(now)) = (self.memory, peak_memory()) else { return Ok(()) };
        if now.saturating_sub(before) <= MAX_MEMORY {
            return Ok(());
        }
        for input in unlooked {
            reset_peak();
            let before = peak_memory().unwrap_or(now);
            // It has passed before.
            let _ = run(self.target, &input);
            let taken = peak_memory().unwrap_or(now).saturating_sub(before);
            if taken > MAX_MEMORY / 2 {
                let message = format!("took {} MiB of memory for {} bytes", taken >> 20, input.len());
                return Err(Failure { message, input });
            }
        }
        // Grown over many inputs: the pool, and what the target keeps.
        self.memory = Some(now);
        Ok(())
    }

    /// The least of the input that fails in the same way.
    fn smallest(&self, mut input: Vec<u8>, message: String) -> Failure {
        let place = place_of(&message);
        let fails = |input: &[u8]| run(self.target, input).is_err_and(|other| place_of(&other) == place);
        let until = Instant::now() + Duration::from_secs(20);
        let mut progress = true;
        while progress && Instant::now() < until {
            progress = false;
            if let Some(tree) = self.descriptor.as_ref().and_then(|descriptor| Tree::parse(&input, descriptor)) {
                let mut tree = tree;
                // What goes shifts the rest, so the same place is tried again.
                let mut at = 0;
                while let Some(smaller) = tree.without(at) {
                    if Instant::now() < until && fails(&smaller.encode()) {
                        (tree, progress) = (smaller, true);
                    } else {
                        at += 1;
                    }
                }
                input = tree.encode();
                if progress {
                    continue;
                }
            }
            let mut length = input.len() / 2;
            while length > 0 {
                let mut at = 0;
                while at + length <= input.len() && Instant::now() < until {
                    let smaller = [&input[..at], &input[at + length..]].concat();
                    if fails(&smaller) {
                        (input, progress) = (smaller, true);
                    } else {
                        at += length;
                    }
                }
                length /= 2;
            }
        }
        Failure { input, message }
    }
}

/// Where a panic was, without what it said of the values.
fn place_of(message: &str) -> String {
    message.lines().next().unwrap_or_default().to_owned()
}

/// What became of one input, or what was wrong with that.
fn run(target: &Target, input: &[u8]) -> Result<Verdict, String> {
    let once = || {
        HERE.with(|here| *here.borrow_mut() = Some(None));
        let start = Instant::now();
        let verdict = catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
        let spent = start.elapsed();
        let message = HERE.with(|here| here.borrow_mut().take()).flatten();
        match verdict {
            Ok(verdict) => Ok((verdict, spent)),
            Err(_) => Err(message.unwrap_or_else(|| "panicked".to_owned())),
        }
    };
    let (verdict, mut spent) = once()?;
    // A slow machine is not slow three times.
    for _ in 0..2 {
        if spent > MAX_TIME {
            spent = spent.min(once()?.1);
        }
    }
    if spent > MAX_TIME {
        return Err(format!("took {spent:?} for {} bytes", input.len()));
    }
    let elsewhere = std::mem::take(&mut *ELSEWHERE.lock().unwrap_or_else(PoisonError::into_inner));
    match elsewhere.first() {
        Some(message) => Err(message.clone()),
        None => Ok(verdict),
    }
}
