//! Runs seeds, and makes the history of one that fails as short as it will go.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::checks::{Check, Violation};
use super::mutants::Fault;
use super::scenario::{Scenario, Weather};
use super::world::{Figures, World};

/// Runs of a shrinking at most.
const MAX_RUNS: u32 = 2_000;

/// What came of a history.
pub(crate) struct Outcome {
    pub(crate) violation: Option<Violation>,
    pub(crate) figures: Figures,
    pub(crate) history: String,
}

/// Runs a scenario. A panic of the code under test is a failure as well.
pub(crate) fn run(scenario: &Scenario, fault: Option<Fault>, record: bool) -> Outcome {
    let mut world = World::new(scenario.clone(), fault, record);
    let caught = catch_unwind(AssertUnwindSafe(|| world.run()));
    let violation = caught.unwrap_or_else(|panic| {
        let message = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_default();
        // The machine asserts its edges itself where assertions are on.
        let check = if message.contains('→') { Check::Edge } else { Check::Panic };
        Some(Violation { check, at: world.now, message })
    });
    Outcome { violation, figures: world.figures, history: world.history.to_string() }
}

/// The smallest scenario found that fails by the same check.
pub(crate) fn shrink(scenario: &Scenario, fault: Option<Fault>, check: Check) -> Scenario {
    let mut smallest = scenario.clone();
    let mut runs = 0;
    let mut fails = |candidate: &Scenario| {
        runs += 1;
        runs <= MAX_RUNS && run(candidate, fault, false).violation.is_some_and(|violation| violation.check == check)
    };
    for weather in [Weather::default(), Weather { slow: 0, duplicate: 0, bad_commit: 0, ..scenario.weather }] {
        let candidate = Scenario { weather, ..smallest.clone() };
        if fails(&candidate) {
            smallest = candidate;
            break;
        }
    }
    let mut size = smallest.steps.len().div_ceil(2).max(1);
    loop {
        let mut at = 0;
        let mut shorter = false;
        while at < smallest.steps.len() {
            let mut candidate = smallest.clone();
            candidate.steps.drain(at..(at + size).min(smallest.steps.len()));
            if fails(&candidate) {
                smallest = candidate;
                shorter = true;
            } else {
                at += size;
            }
        }
        if size == 1 && !shorter {
            return smallest;
        }
        size = size.div_ceil(2).max(1);
    }
}
