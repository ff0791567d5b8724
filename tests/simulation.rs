//! Random histories of whole systems, checked at every step (`docs/simulation.md`).
//!
//! `SYNCLAVE_SEEDS=N` says how many seeds are run, `SYNCLAVE_FIRST_SEED=F` from which one on, `SYNCLAVE_SEED=S` runs one and
//! tells its history.

#[path = "simulation/checks.rs"]
mod checks;
#[path = "simulation/collisions.rs"]
mod collisions;
#[path = "simulation/coordinator.rs"]
mod coordinator;
#[path = "simulation/database.rs"]
mod database;
#[path = "simulation/filters.rs"]
mod filters;
#[path = "simulation/history.rs"]
mod history;
#[path = "simulation/mutants.rs"]
mod mutants;
#[path = "simulation/provider.rs"]
mod provider;
#[path = "simulation/random.rs"]
mod random;
#[path = "simulation/replica.rs"]
mod replica;
#[path = "simulation/scenario.rs"]
mod scenario;
#[path = "simulation/shrink.rs"]
mod shrink;
#[path = "simulation/units.rs"]
mod units;
#[path = "simulation/watcher.rs"]
mod watcher;
#[path = "simulation/world.rs"]
mod world;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use scenario::Scenario;
use shrink::{run, shrink};
use world::Figures;

/// Seeds of a plain `cargo test`.
const DEFAULT_SEEDS: u64 = 300;

/// Seeds beyond those of most runs that have found something.
const KEPT_SEEDS: &[u64] = &[
    4838, 5586, 6312, 6641, 12519, 21352, 23897, 33632, 1_000_348, 1_021_453, 1_029_416, 1_036_588, 1_036_629,
    1_039_918, 2_002_263, 2_007_973, 3_011_883, 3_015_072, 4_000_317, 4_000_862, 4_006_705, 4_044_975, 4_047_734,
    5_004_580,
];

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is a number, not {text:?}")))
}

/// The hub and its cursors ask for the time of a runtime; there it stands still.
fn with_still_time<T>(body: impl FnOnce() -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without I/O needs nothing of the system");
    let _entered = runtime.enter();
    body()
}

/// What to print of a seed that fails.
fn report(seed: u64) -> String {
    let scenario = Scenario::new(seed);
    let Some(violation) = run(&scenario, None, false).violation else { return format!("seed {seed} holds") };
    let small = shrink(&scenario, None, violation.check);
    let told = run(&small, None, true);
    let violation = told.violation.unwrap_or(violation);
    format!(
        "seed {seed} fails: {} at {:.3?}: {}\n\nrun it again with SYNCLAVE_SEED={seed}; the least history that fails so:\n{small}\n{}",
        violation.check, violation.at, violation.message, told.history
    )
}

/// Runs seeds on all cores; the lowest that fails.
fn run_seeds(seeds: std::ops::Range<u64>) -> (Option<u64>, Figures) {
    let next = AtomicU64::new(seeds.start);
    let failed = AtomicU64::new(u64::MAX);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let figures = std::thread::scope(|scope| {
        let work = || {
            with_still_time(|| {
                let mut figures = Figures::default();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end.min(failed.load(Ordering::Relaxed)) {
                        return figures;
                    }
                    let outcome = run(&Scenario::new(seed), None, false);
                    figures += outcome.figures;
                    if outcome.violation.is_some() {
                        failed.fetch_min(seed, Ordering::Relaxed);
                    }
                }
            })
        };
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().fold(Figures::default(), |mut all, thread| {
            all += thread.join().expect("a panic of the code under test is caught");
            all
        })
    });
    let failed = failed.into_inner();
    ((failed != u64::MAX).then_some(failed), figures)
}

#[test]
fn every_history_keeps_the_rules() {
    if let Some(seed) = number("SYNCLAVE_SEED") {
        with_still_time(|| {
            let told = run(&Scenario::new(seed), None, true);
            println!("{}\n{}", Scenario::new(seed), told.history);
            assert!(told.violation.is_none(), "{}", report(seed));
        });
        return;
    }
    let seeds = number("SYNCLAVE_SEEDS").unwrap_or(DEFAULT_SEEDS);
    let begun = Instant::now();
    let first = number("SYNCLAVE_FIRST_SEED").unwrap_or(0);
    let (failed, figures) = run_seeds(first..first + seeds);
    println!("{seeds} seeds in {:.1?}: {figures:?}", begun.elapsed());
    if let Some(seed) = failed {
        with_still_time(|| panic!("{}", report(seed)));
    }
}

#[test]
fn seeds_that_have_found_something_hold() {
    for seed in KEPT_SEEDS {
        with_still_time(|| assert!(run(&Scenario::new(*seed), None, false).violation.is_none(), "{}", report(*seed)));
    }
}

/// Seeds within which a mutant must be seen.
#[cfg(feature = "mutants")]
const MUTANT_SEEDS: u64 = 1_500;

/// Every deliberate fault is seen, by the check that is there for it. Prints the table of `docs/simulation.md`.
#[test]
#[cfg(feature = "mutants")]
fn every_mutant_is_caught() {
    use std::sync::Mutex;
    use synclave::mutant::{Mutant, activate};

    let of_source = Mutant::ALL.iter().map(|mutant| (Some(*mutant), None, mutants::seen_by(*mutant)));
    let of_world = mutants::FAULTS.iter().map(|(fault, check)| (None, Some(*fault), *check));
    let all: Vec<_> = of_source.chain(of_world).collect();
    let next = AtomicU64::new(0);
    let rows = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let work = || {
            with_still_time(|| {
                while let Some((at, (mutant, fault, expected))) = {
                    let at = next.fetch_add(1, Ordering::Relaxed) as usize;
                    all.get(at).map(|entry| (at, *entry))
                } {
                    activate(mutant);
                    let caught = (0..MUTANT_SEEDS).find_map(|seed| {
                        let violation = run(&Scenario::new(seed), fault, false).violation?;
                        Some((seed, violation.check))
                    });
                    activate(None);
                    let name = mutant
                        .map_or_else(|| format!("{:?}", fault.expect("one of the two")), |one| format!("{one:?}"));
                    eprintln!("{name}: {caught:?}, expected {expected:?}");
                    rows.lock().expect("no panic with it").push((at, name, expected, caught));
                }
            });
        };
        (0..threads).for_each(|_| drop(scope.spawn(work)));
    });
    let mut rows = rows.into_inner().expect("no panic with it");
    rows.sort_by_key(|(at, ..)| *at);
    for (_, name, expected, caught) in &rows {
        match caught {
            Some((seed, check)) => {
                println!("| {name} | {check} | {seed} |{}", if check == expected { "" } else { " !" })
            }
            None => println!("| {name} | - | - | !"),
        }
    }
    let missed: Vec<_> =
        rows.iter().filter(|(_, _, expected, caught)| caught.is_none_or(|(_, check)| check != *expected)).collect();
    assert!(missed.is_empty(), "not caught by the check that is there for it: {missed:?}");
}
