//! `synclave sync --dry-run`: the plan is what the run then does, and making it leaves no trace.

mod processes;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use processes::content::Random;
use processes::services::FileProvider;
use processes::tree::{self, digest};
use processes::{Ended, Process, Scratch, Synced, number, synclave};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::Value;

/// Every entry with all that could betray a write, the state directory and the times of directories included.
fn traces(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    if fs::symlink_metadata(root).is_ok() {
        trace(root, &mut found);
    }
    found
}

fn trace(path: &Path, found: &mut BTreeMap<PathBuf, String>) {
    let metadata = fs::symlink_metadata(path).expect("at rest");
    let kind = metadata.file_type();
    let content = match () {
        () if kind.is_file() => format!("{:02x?}", digest(&fs::read(path).expect("readable"))),
        () if kind.is_symlink() => format!("{:?}", fs::read_link(path).expect("readable")),
        () => String::new(),
    };
    let (mtime, ctime) = (metadata.mtime_nsec(), metadata.ctime_nsec());
    let facts = format!(
        "{:o} {} {}.{mtime} {}.{ctime} {} {content}",
        metadata.mode(),
        metadata.ino(),
        metadata.mtime(),
        metadata.ctime(),
        metadata.len()
    );
    found.insert(path.to_owned(), facts);
    if kind.is_dir() {
        for entry in fs::read_dir(path).expect("readable") {
            trace(&entry.expect("readable").path(), found);
        }
    }
}

/// What is carried of each entry, the time of a symlink included.
fn carried(root: &Path) -> BTreeMap<Vec<u8>, String> {
    if !root.exists() {
        return BTreeMap::new();
    }
    let entry = |(path, entry): (Vec<u8>, tree::Entry)| {
        let metadata = fs::symlink_metadata(tree::path(root, &path)).expect("at rest");
        let time = metadata.is_symlink().then(|| (metadata.mtime(), metadata.mtime_nsec()));
        (path, format!("{entry:?} {time:?}"))
    };
    tree::read(root).into_iter().map(entry).collect()
}

/// What became of entries: by path, CREATED, CHANGED or DELETED.
fn effects(before: &BTreeMap<Vec<u8>, String>, after: &BTreeMap<Vec<u8>, String>) -> BTreeMap<String, &'static str> {
    let name = |path: &[u8]| STANDARD.encode(path);
    let mut effects = BTreeMap::new();
    for (path, entry) in after {
        match before.get(path) {
            None => drop(effects.insert(name(path), "CREATED")),
            Some(old) if old != entry => drop(effects.insert(name(path), "CHANGED")),
            Some(_) => {}
        }
    }
    for path in before.keys().filter(|path| !after.contains_key(*path)) {
        effects.insert(name(path), "DELETED");
    }
    effects
}

/// A plan, as it is printed.
#[derive(Debug)]
struct Plan {
    ended: Ended,
    lines: Vec<Value>,
}

impl Plan {
    fn of<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Value> + 'a {
        self.lines.iter().filter_map(move |line| line.get(kind))
    }

    /// The changes that a destination would see.
    fn effects(&self, destination: &Path) -> BTreeMap<String, String> {
        let text = |value: &Value| value.as_str().expect("a string").to_owned();
        self.of("change")
            .filter(|change| change["destination"] == destination.to_str().expect("UTF-8"))
            .filter(|change| change["effect"] != "UNCHANGED")
            .map(|change| (text(&change["itemId"]), text(&change["effect"])))
            .collect()
    }

    fn totals(&self, destination: &Path) -> &Value {
        let to = |totals: &&Value| totals["destination"] == destination.to_str().expect("UTF-8");
        self.of("totals").find(to).expect("one for each direction")
    }

    fn names(&self, kind: &str, field: &str) -> BTreeSet<String> {
        let named = self.of(kind).map(|value| value[field].as_str().expect("a string").to_owned());
        named.filter(|name| !name.is_empty()).collect()
    }

    /// The end that it foresees, as an operation's state.
    fn end(&self) -> &str {
        self.of("end").next().and_then(|end| end["state"].as_str()).expect("the last line")
    }
}

/// Plans, and looks for traces.
#[track_caller]
fn plan(scratch: &Scratch, a: &Path, b: &Path, options: &[&str]) -> Plan {
    let temporary = scratch.path("temporary");
    fs::create_dir_all(&temporary).expect("made");
    let places = [a.to_owned(), b.to_owned(), scratch.path("data"), temporary.clone()];
    // Creating an entry, even for a moment, moves the time of its directory.
    let before = places.each_ref().map(|place| traces(place));
    let mut command = scratch.sync_command(a, b, options);
    command.arg("--dry-run").env("TMPDIR", &temporary);
    let ended = Process::start(command).end();
    for (place, before) in places.iter().zip(before).take(3) {
        let after = traces(place);
        for (path, facts) in before.iter().chain(&after) {
            assert_eq!((before.get(path), after.get(path)), (Some(facts), Some(facts)), "{}", path.display());
        }
    }
    assert_eq!(fs::read_dir(&temporary).expect("there").count(), 0, "temporary files are left");
    let lines = ended.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON lines")).collect();
    Plan { ended, lines }
}

/// How the numbers of updates of a plan compare with those of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Updates {
    Equal,
    /// Two new replicas that have the same items: which of two versions stays goes by ids that are yet to be drawn.
    Undrawn,
}

/// Plans, runs, and compares.
#[track_caller]
fn plan_and_run(scratch: &Scratch, a: &Path, b: &Path, options: &[&str], updates: Updates) -> (Plan, Synced) {
    let plan = plan(scratch, a, b, options);
    let before = [a, b].map(carried);
    let run = scratch.try_sync(a, b, options);
    let context = format!("{options:?}\n{}\n{}", plan.ended.stdout, run.ended.stdout);
    for (place, before) in [a, b].into_iter().zip(&before) {
        let done: BTreeMap<String, String> =
            effects(before, &carried(place)).into_iter().map(|(id, effect)| (id, effect.to_owned())).collect();
        assert_eq!(plan.effects(place), done, "{}: {context}", place.display());
        let member = place.file_name().expect("has one").to_str().expect("UTF-8");
        let to_member = |info: &&Value| info["dfsrSyncInfo"]["memberName"] == member;
        let sum = |counter: &str| -> u64 {
            run.infos().iter().filter(to_member).map(|info| number(&info["dfsrSyncInfo"][counter])).sum()
        };
        let totals = plan.totals(place);
        let to = |change: &&Value| change["destination"] == place.to_str().expect("UTF-8");
        let planned = || plan.of("change").filter(to);
        assert_eq!(number(&totals["bytes"]), planned().map(|change| number(&change["bytes"])).sum::<u64>());
        assert_eq!(number(&totals["conflicts"]), planned().filter(|it| it["conflict"] == true).count() as u64);
        // What is left for a further session is tried again, as the clock has it, and counted each time.
        let mut counters = Vec::new();
        if run.infos().iter().filter(to_member).count() <= 1 {
            counters.extend(["tombstonesGenerated", "bytesTransferred", "conflictsGenerated"]);
            if updates == Updates::Equal {
                counters.push("updatesTransferred");
            }
        }
        // Some of what comes is in vain: content that is there already, and what was tried once before.
        assert!(number(&totals["bytes"]) <= sum("bytesTransferred"), "bytes of {member}: {context}");
        assert!(number(&totals["conflicts"]) <= sum("conflictsGenerated"), "conflicts of {member}: {context}");
        for counter in counters {
            assert_eq!(number(&totals[counter]), sum(counter), "{counter} of {member}: {context}");
        }
    }
    assert_eq!(plan.end(), run.operation()["state"], "{context}");
    let idle = plan.effects(a).is_empty() && plan.effects(b).is_empty();
    let expected = match run.ended.code() {
        Some(0) if !idle => Some(3),
        code => code,
    };
    assert_eq!(plan.ended.code(), expected, "{context}");
    // Whatever is not left out is the same on both sides then, and the other way round.
    let whole = !options.iter().any(|option| ["--one-way", "--filter"].contains(option));
    if plan.of("leftOut").next().is_none() && whole && plan.ended.code() != Some(1) {
        // A directory whose deletion was to be carried over stays while it holds what is not carried.
        let skipped = plan.names("skipped", "item");
        let holds =
            |path: &[u8]| skipped.iter().any(|item| Path::new(item).starts_with(Path::new(OsStr::from_bytes(path))));
        let compared = |root: &Path| {
            let mut tree = tree::read(root);
            tree.retain(|path, _| !holds(path));
            tree
        };
        tree::assert_same(&compared(a), &compared(b), &format!("{} and {}", a.display(), b.display()));
    }
    (plan, run)
}

fn fifo(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a FIFO can be made");
    assert!(fs::symlink_metadata(path).expect("there").file_type().is_fifo());
}

/// Edits of all sorts on both sides, many of them in conflict.
fn edit_both(a: &Path, b: &Path, random: &mut Random, round: u64) {
    let common: Vec<Vec<u8>> = tree::read(a).into_keys().filter(|path| !path.starts_with(b"odd")).collect();
    for (index, path) in common.iter().enumerate() {
        for root in [a, b] {
            let file = tree::path(root, path);
            let Ok(metadata) = fs::symlink_metadata(&file) else { continue };
            let beside = |name: &str| file.with_file_name(format!("{name}-{round}-{index}"));
            let size = random.size(30_000) + 1;
            if metadata.is_symlink() && random.below(3) > 0 {
                tree::remove(&file);
                fs::write(&file, "no symlink any more").expect("written");
            } else if metadata.is_symlink() {
                continue;
            }
            match (metadata.is_dir(), random.below(if metadata.is_dir() { 60 } else { 16 })) {
                (false, 0..3) => {
                    tree::set_mode(&file, 0o644);
                    random.write(&file, size);
                    // Whose is later must not hang on how fast this test is.
                    tree::set_modified(&file, 1_000_000_000 + random.below(900_000_000) as i64, 5);
                }
                (false, 3 | 4) => tree::remove(&file),
                (false, 5) => fs::rename(&file, beside("renamed")).expect("renamed"),
                (false, 6) => tree::set_mode(&file, [0o640, 0o755][index % 2]),
                (false, 7) => {
                    tree::remove(&file);
                    fs::create_dir(&file).expect("made");
                    random.write(&file.join("inside"), size);
                }
                (false, 8) => drop(fs::copy(&file, beside("copied")).expect("copied")),
                (false, 9) if index % 3 == 0 => {
                    tree::remove(&file);
                    std::os::unix::fs::symlink("elsewhere", &file).expect("made");
                }
                (true, 0..3) => tree::remove(&file),
                (true, 3..6) => fs::rename(&file, beside("moved")).expect("renamed"),
                (true, 6) => tree::set_mode(&file, 0o750),
                (true, 7..9) => {
                    tree::remove(&file);
                    random.write(&file, size);
                }
                (true, 9) => fifo(&file.join(format!("fifo-{round}-{index}"))),
                _ => {}
            }
        }
    }
    // The same names on both sides: equal, different, and of two kinds.
    for root in [a, b] {
        tree::write_at(&root.join(format!("equal-{round}")), b"the same", 1_700_000_000 + round);
        random.write(&root.join(format!("different-{round}.txt")), 3_000);
        random.write(&root.join(format!("empty here-{round}")), usize::from(root == a) * 100);
    }
    random.write(&a.join(format!("collision-{round}")), 200);
    random.write(&b.join(format!("collision-{round}/below/it")), 300);
    random.write(&b.join(format!("collision-{round}-2")), 200);
    fs::create_dir(a.join(format!("collision-{round}-2"))).expect("made");
    fifo(&b.join(format!("fifo-{round}")));
}

#[test]
fn the_plan_is_what_the_run_does() {
    let mut random = Random::announced("dry run");
    let policies: &[&[&str]] = &[
        &[],
        &["--conflict", "last-writer-wins"],
        &["--conflict", "source-wins", "--collision", "rename-destination"],
        &["--one-way"],
        &["--conflict", "destination-wins", "--collision", "source-wins"],
        &["--collision", "rename-source"],
    ];
    for (round, options) in policies.iter().enumerate() {
        let options: Vec<&str> = options.iter().copied().chain(["--allow-mass-delete"]).collect();
        let scratch = Scratch::new();
        let (a, b) = (scratch.directory("A"), scratch.path("B"));
        tree::generate(&a, &mut random, 60, 40_000);
        tree::add_oddities(&a);
        plan_and_run(&scratch, &a, &b, &options, Updates::Equal);
        for round in [2 * round as u64, 2 * round as u64 + 1] {
            edit_both(&a, &b, &mut random, round);
            let (plan, _) = plan_and_run(&scratch, &a, &b, &options, Updates::Equal);
            assert!(plan.of("change").count() > 5, "there was something to plan");
            assert!(plan.of("skipped").any(|it| it["item"] == format!("fifo-{round}")), "{}", plan.ended.stdout);
        }
        let copies = |root: &Path| tree::conflict_copies(&tree::read(root)).len();
        assert!(copies(&b) > 0 || !options[0].starts_with("--allow"), "keep both is the default");
    }
}

#[test]
fn a_first_sync_is_planned_too() {
    let mut random = Random::announced("first dry run");
    let scratch = Scratch::new();
    let (a, b) = (scratch.directory("A"), scratch.directory("B"));
    tree::generate(&a, &mut random, 40, 20_000);
    tree::copy(&a.join("left"), &b.join("left"));
    random.write(&b.join("of B"), 900);
    for root in [&a, &b] {
        random.write(&root.join("of both"), 700);
    }
    let (plan, _) = plan_and_run(&scratch, &a, &b, &[], Updates::Undrawn);
    let copies = plan.names("change", "conflictCopy");
    assert_eq!(copies.len(), 1, "{:?}", plan.ended);
    let kept: BTreeSet<_> = tree::conflict_copies(&tree::read(&a)).into_iter().collect();
    assert_eq!(copies, kept);

    // And now that there is nothing to do.
    let (quiet, _) = plan_and_run(&scratch, &a, &b, &[], Updates::Equal);
    assert_eq!(quiet.ended.code(), Some(0), "{:?}", quiet.ended);
    quiet.ended.expect_code(0);
}

#[test]
fn what_is_left_out_and_what_is_kept_is_said_as_the_run_says_it() {
    let mut random = Random::announced("dry run in words");
    let scratch = Scratch::new();
    let (a, b) = (scratch.directory("A"), scratch.directory("B"));
    for root in [&a, &b] {
        random.write(&root.join("both.txt"), 700);
    }
    random.write(&a.join("name"), 10);
    random.write(&b.join("name/below"), 10);
    fifo(&a.join("pipe"));
    let plan = plan(&scratch, &a, &b, &[]);
    let mut command = synclave(["sync"]);
    command.args([&a, &b]).arg("--data-dir").arg(scratch.path("data"));
    let run = Process::start(command).end();
    assert_eq!((plan.ended.code(), run.code()), (Some(3), Some(3)), "{plan:?}\n{run:?}");
    let below = |heading: &str| -> BTreeSet<String> {
        let lines = run.stdout.lines().skip_while(|line| !line.starts_with(heading)).skip(1);
        lines.map_while(|line| line.strip_prefix("  ")).map(str::to_owned).collect()
    };
    let kept = plan.of("change").filter(|change| change["conflictCopy"] != "");
    let kept = kept.map(|it| format!("{}, the other as {}", text(&it["item"]), text(&it["conflictCopy"])));
    assert_eq!(kept.collect::<BTreeSet<_>>(), below("Kept both of"), "{run:?}");
    let left_out = plan.of("leftOut").map(|it| format!("{}: {}", text(&it["item"]), text(&it["reason"])));
    assert_eq!(left_out.collect::<BTreeSet<_>>(), below("Left out"), "{run:?}");
    assert!(!below("Left out").is_empty(), "{run:?}");
    let skipped = plan.of("skipped").map(|it| format!("{}: {}", text(&it["item"]), text(&it["reason"])));
    assert_eq!(skipped.collect::<BTreeSet<_>>(), below("Never carried"), "{run:?}");
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a string")
}

#[test]
fn the_guard_against_mass_deletion_says_the_same() {
    let mut random = Random::announced("mass delete");
    let scratch = Scratch::new();
    let (a, b) = scratch.mass_deleted(&mut random);
    let (plan, run) = plan_and_run(&scratch, &a, &b, &[], Updates::Equal);
    assert_eq!(plan.ended.code(), Some(1), "{plan:?}");
    let reason = |line: &str| line.split(" fail").nth(1).map(|rest| rest.split(';').next().unwrap_or(rest).to_owned());
    let (planned, failed) = (plan.ended.expect_error("100 of 150"), run.ended.expect_error("100 of 150"));
    assert_eq!(reason(planned).map(|it| it.replacen(':', "ed:", 1)), reason(failed), "{planned}\n{failed}");
    let (plan, _) = plan_and_run(&scratch, &a, &b, &["--allow-mass-delete"], Updates::Equal);
    assert_eq!(number(&plan.totals(&b)["deleted"]), 100);
}

#[test]
fn what_a_killed_process_had_not_put_into_its_database_counts() {
    let mut random = Random::announced("dry run after kill");
    let scratch = Scratch::new();
    let (a, b) = (scratch.directory("A"), scratch.directory("B"));
    for index in 0..50 {
        random.write(&a.join(format!("{index}")), 500);
    }
    let provider = FileProvider::start(&b);
    scratch.sync(&a, Path::new(&provider.address), &[]);
    provider.process.kill();
    let log = fs::metadata(b.join(".synclave/metadata.db-wal")).expect("a killed process leaves its log");
    assert!(log.len() > 0, "the log holds what the session did");
    let plan = plan(&scratch, &a, &b, &[]);
    assert_eq!(plan.of("change").count(), 0, "{plan:?}");
    assert_eq!(plan.of("totals").map(|totals| number(&totals["updatesTransferred"])).sum::<u64>(), 0, "{plan:?}");
    plan.ended.expect_code(0);
}

#[test]
fn a_replica_in_use_a_provider_elsewhere_and_a_place_inside_are_refused() {
    let scratch = Scratch::new();
    let (a, b) = (scratch.directory("A"), scratch.path("B"));
    fs::write(a.join("file"), "1").expect("written");
    scratch.sync(&a, &b, &[]);
    let provider = FileProvider::start(&b);
    plan(&scratch, &a, &b, &[]).ended.expect_code(1).expect_line("in use");
    plan(&scratch, &a, Path::new(&provider.address), &[]).ended.expect_code(2).expect_line("two directories");
    let mut inside = synclave(["sync", "--dry-run"]);
    inside.args([&a, &scratch.path("new")]).arg("--data-dir").arg(scratch.path("data")).env("TMPDIR", &a);
    Process::start(inside).end().expect_code(2).expect_line("TMPDIR");
}

#[test]
fn what_a_filter_holds_back_is_not_planned() {
    let mut random = Random::announced("dry run with a filter");
    let scratch = Scratch::new();
    let (a, b) = (scratch.directory("A"), scratch.directory("B"));
    for name in ["kept", "left.tmp", "folder/kept", "folder/left.tmp", "ignored/below"] {
        random.write(&a.join(name), 100);
    }
    random.write(&b.join("of B.tmp"), 100);
    let patterns = scratch.path("patterns");
    fs::write(&patterns, "*.tmp\n/ignored/\n").expect("written");
    let options = ["--filter", patterns.to_str().expect("UTF-8")];
    let (plan, _) = plan_and_run(&scratch, &a, &b, &options, Updates::Equal);
    assert_eq!(plan.names("change", "item"), ["folder", "folder/kept", "kept", "of B.tmp"].map(str::to_owned).into());
    random.write(&a.join("folder/left.tmp"), 50);
    random.write(&a.join("folder/kept"), 50);
    let (plan, _) = plan_and_run(&scratch, &a, &b, &options, Updates::Equal);
    assert_eq!(plan.names("change", "item"), ["folder/kept"].map(str::to_owned).into());
}
