//! Runs of the kit against mutants, of whichever service: each must be blamed for its own rule and for no other.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::Arc;

use synclave::check::{Report, Rule};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Checks the mutants, `at_once` of them at the same time, and fails with the reports of all that are blamed otherwise.
pub async fn each_for_its_own_rule<M, F>(
    mutants: impl Iterator<Item = (M, Rule)>,
    at_once: usize,
    checked: impl Fn(M) -> F,
) where
    M: Copy + Debug + Send + 'static,
    F: Future<Output = Report> + Send + 'static,
{
    let room = Arc::new(Semaphore::new(at_once));
    let mut running = JoinSet::new();
    for (mutant, rule) in mutants {
        let (room, report) = (room.clone(), checked(mutant));
        running.spawn(async move {
            let _permit = room.acquire_owned().await.expect("never closed");
            let report = report.await;
            eprintln!("{mutant:?}: {}", report.summary());
            let blamed: BTreeSet<Rule> = report.failures().map(|(rule, _)| rule).collect();
            (blamed != BTreeSet::from([rule]))
                .then(|| format!("{mutant:?} is to be blamed for {rule}:\n{}", report.to_text()))
        });
    }
    assert!(!running.is_empty(), "there is no such mutant");
    let ran = running.len();
    let mut wrong = Vec::new();
    while let Some(outcome) = running.join_next().await {
        wrong.extend(outcome.expect("no check panics"));
    }
    assert!(wrong.is_empty(), "{} of {ran} mutants\n{}", wrong.len(), wrong.join("\n"));
    eprintln!("{ran} mutants, each blamed for its own rule and for no other");
}

/// Whether a mutant is among those of `SYNCLAVE_MUTANT=LosesAnItem,SendsTwice`; all are where it is not set.
pub fn is_asked_for(mutant: impl Debug) -> bool {
    let names = std::env::var("SYNCLAVE_MUTANT").ok();
    names.is_none_or(|names| names.split(',').any(|name| name == format!("{mutant:?}")))
}
