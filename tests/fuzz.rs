//! Whatever a peer sends is refused or understood: it makes nothing panic, hang or take much memory, and what was understood
//! reads the same when it is sent on.
//!
//! Inputs begin with those kept in `tests/corpus/TARGET/`, one file each, named by what it is: `.json` is a message in proto3
//! JSON, `.txt` a text, `.bin` bytes as they are. They are mutated as bytes and as messages, field by field. What is refused or
//! accepted in a way that was not seen before joins the pool, so that later mutations begin from there. A failure is made as
//! small as it gets, written below the target directory and told with its name; kept in the corpus it is tried first ever after.
//!
//! | variable | meaning |
//! | --- | --- |
//! | `SYNCLAVE_FUZZ_SECONDS` | how long in all; 3 where it is not set |
//! | `SYNCLAVE_FUZZ_SEED` | the seed; with a time of its own a run has a seed from the clock, and else always the same |
//! | `SYNCLAVE_FUZZ_TARGET` | only targets whose names contain this |

#[path = "fuzz/corpus.rs"]
mod corpus;
#[path = "fuzz/harness.rs"]
mod harness;
#[path = "fuzz/mutation.rs"]
mod mutation;
// The numbers of the simulation, which also needs others than these.
#[path = "simulation/random.rs"]
#[allow(dead_code)]
mod random;
#[path = "fuzz/targets.rs"]
mod targets;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use corpus::Dictionary;
use harness::{Fuzzer, Report, Target, Verdict};
use random::Random;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is {text:?}, but must be a whole number")))
}

#[test]
fn whatever_a_peer_sends_is_refused_or_understood() {
    let seconds = number("SYNCLAVE_FUZZ_SECONDS");
    let clock = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    let seed = number("SYNCLAVE_FUZZ_SEED").unwrap_or_else(|| if seconds.is_some() { clock() } else { 1 });
    println!("SYNCLAVE_FUZZ_SEED={seed}");
    let wanted = std::env::var("SYNCLAVE_FUZZ_TARGET").unwrap_or_default();
    let targets: Vec<Target> = targets::all().into_iter().filter(|target| target.name.contains(&wanted)).collect();
    assert!(!targets.is_empty(), "no target has {wanted:?} in its name");
    let dictionary = Dictionary::of_corpus();
    let budget = Duration::from_millis(seconds.unwrap_or(3) * 1_000) / targets.len() as u32;
    for target in &targets {
        let mut fuzzer = Fuzzer::new(target, &dictionary, Random::new(seed));
        let report = fuzzer.kept().and_then(|()| fuzzer.run(Instant::now() + budget));
        let Report { inputs, accepted, kinds } = report.unwrap_or_else(|failure| failure.tell(target));
        println!("{:<32} {inputs:>9} inputs, {accepted:>8} accepted, {kinds:>5} kinds", target.name);
    }
}

/// The harness itself: a fault behind a rare branch is found from honest inputs, and made small.
#[test]
fn a_fault_behind_a_rare_branch_is_found() {
    let target = Target::of_message("knowledge", "synclave.v1.Knowledge", |input| {
        let verdict = targets::knowledge(input);
        let message = <synclave::pb::Knowledge as prost::Message>::decode(input);
        if let (Verdict::Accepted(_), Ok(message)) = (&verdict, message) {
            let high =
                message.clock_vectors.iter().flat_map(|vector| &vector.elements).any(|it| it.tick_count > 1 << 40);
            assert!(!high || message.fragments.len() < 2, "planted");
        }
        verdict
    });
    let dictionary = Dictionary::of_corpus();
    let mut fuzzer = Fuzzer::new(&target, &dictionary, Random::new(7));
    let failure = fuzzer
        .kept()
        .and_then(|()| fuzzer.run(Instant::now() + Duration::from_secs(60)))
        .expect_err("the planted fault is found");
    assert!(failure.message.contains("planted"), "{}", failure.message);
    assert!(failure.input.len() < 120, "it was not made small: {:?}", failure.input);
}
