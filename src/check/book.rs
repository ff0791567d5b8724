//! What became of each rule: the marks that checks leave while they run.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::rule::Rule;

/// Why a check does not go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// A rule was broken.
    Broken {
        /// Which; often one that is more basic than what the check is about.
        rule: Rule,
        /// One line: what was wrong.
        message: String,
    },
    /// The provider says that it does not offer this; the rules that the check is about do not apply.
    NotOffered(String),
    /// What this check needs did not come about, because of a rule that was broken earlier.
    Blocked,
}

/// What a step of a check comes to.
pub(super) type Held<T = ()> = Result<T, Stop>;

/// The evidence of a broken rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The check that met it.
    pub check: &'static str,
    /// One line: what was wrong.
    pub message: String,
    /// The calls, the last one last.
    pub calls: Vec<String>,
}

/// What is known of one rule so far.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Mark {
    Held,
    NotOffered(String),
    Broken(Failure),
}

/// The marks.
#[derive(Debug, Default)]
pub(super) struct Book(Mutex<BTreeMap<Rule, Mark>>);

/// What is said of a rule in the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It held wherever it was looked at.
    Pass,
    /// It was broken.
    Fail(Failure),
    /// It is about a feature that the provider does not offer.
    NotOffered(String),
    /// It was not come to, because of another rule that was broken.
    NotReached,
}

impl Book {
    fn with<T>(&self, change: impl FnOnce(&mut BTreeMap<Rule, Mark>) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The rule held here.
    pub(super) fn held(&self, rule: Rule) {
        self.with(|marks| {
            let mark = marks.entry(rule).or_insert(Mark::Held);
            if matches!(mark, Mark::NotOffered(_)) {
                *mark = Mark::Held;
            }
        });
    }

    /// The rule was broken; the first evidence stays.
    fn broken(&self, rule: Rule, failure: Failure) {
        self.with(|marks| {
            if !matches!(marks.get(&rule), Some(Mark::Broken(_))) {
                marks.insert(rule, Mark::Broken(failure));
            }
        });
    }

    /// The rule does not apply, unless it was looked at elsewhere.
    fn not_offered(&self, rule: Rule, reason: &str) {
        self.with(|marks| {
            marks.entry(rule).or_insert_with(|| Mark::NotOffered(reason.to_owned()));
        });
    }

    /// The rule was broken, wherever.
    pub(super) fn is_broken(&self, rule: Rule) -> bool {
        self.with(|marks| matches!(marks.get(&rule), Some(Mark::Broken(_))))
    }

    /// Marks the rule, or stops the check by it.
    pub(super) fn require(&self, rule: Rule, holds: bool, message: impl FnOnce() -> String) -> Held {
        if holds {
            self.held(rule);
            return Ok(());
        }
        Err(Stop::Broken { rule, message: message() })
    }

    /// A check about these rules ended, with these calls.
    pub(super) fn record(
        &self,
        check: &'static str,
        rules: &[Rule],
        outcome: Held,
        calls: impl FnOnce() -> Vec<String>,
    ) {
        match outcome {
            Ok(()) | Err(Stop::Blocked) => {}
            Err(Stop::Broken { rule, message }) => self.broken(rule, Failure { check, message, calls: calls() }),
            Err(Stop::NotOffered(reason)) => rules.iter().for_each(|rule| self.not_offered(*rule, &reason)),
        }
    }

    /// The verdict on each rule of a list.
    pub(super) fn verdicts(&self, rules: &[Rule]) -> Vec<(Rule, Verdict)> {
        self.with(|marks| {
            let verdict = |rule: &Rule| match marks.get(rule) {
                None => Verdict::NotReached,
                Some(Mark::Held) => Verdict::Pass,
                Some(Mark::NotOffered(reason)) => Verdict::NotOffered(reason.clone()),
                Some(Mark::Broken(failure)) => Verdict::Fail(failure.clone()),
            };
            rules.iter().map(|rule| (*rule, verdict(rule))).collect()
        })
    }
}
