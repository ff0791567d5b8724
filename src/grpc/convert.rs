//! Between the wire and the domain, split by noun: ids inside, replica keys on the wire.
//!
//! A decoder records everything that is wrong with a message in [`Violations`], each with the path of its field, and returns
//! `None` when it recorded something without which no value can be made. [`decode`] turns that into a result.

use std::fmt;

use crate::types::Hresult;

pub mod batch;
pub mod conflict;
pub mod enums;
pub mod exchange;
pub mod filter;
pub mod knowledge;
pub mod operation;
pub mod provider;
pub mod range_digests;
pub mod resolution;
pub mod session;
pub mod simple;
pub mod sync_info;
pub mod time;

/// Violations that are kept one by one. They travel in a trailer, which has to stay small; the rest is only counted.
const MAX_VIOLATIONS: usize = 16;

/// Where in a message a field is. Lives on the stack and is written out only when something is wrong there.
#[derive(Clone, Copy, Debug)]
pub struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    step: Step<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Step<'a> {
    Root,
    Field(&'a str),
    Index(usize),
}

impl<'a> Path<'a> {
    /// The message itself.
    pub const ROOT: Path<'static> = Path { parent: None, step: Step::Root };

    /// A field of the message at this path.
    pub fn field(&'a self, name: &'a str) -> Path<'a> {
        Path { parent: Some(self), step: Step::Field(name) }
    }

    /// An element of the list at this path.
    pub fn index(&'a self, at: usize) -> Path<'a> {
        Path { parent: Some(self), step: Step::Index(at) }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        match self.step {
            Step::Root => Ok(()),
            Step::Index(at) => write!(f, "[{at}]"),
            Step::Field(name) if self.parent.is_some_and(|parent| matches!(parent.step, Step::Root)) => {
                f.write_str(name)
            }
            Step::Field(name) => write!(f, ".{name}"),
        }
    }
}

/// One thing that is wrong with a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The field, as `batch.groups[0].changes[3].flags`.
    pub field: String,
    /// One line: what is wrong.
    pub description: String,
    /// The code that names it; E_INVALIDARG without a better one.
    pub hresult: Hresult,
}

/// What is wrong with a message, as far as it was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Violations {
    kept: Vec<Violation>,
    left_out: usize,
}

impl Violations {
    /// Records that a field has no legal value.
    pub fn add(&mut self, at: Path<'_>, description: impl fmt::Display) {
        self.add_as(Hresult::E_INVALIDARG, at, description);
    }

    /// Records that a field has no legal value, where a decoder cannot go on.
    pub fn none<T>(&mut self, at: Path<'_>, description: impl fmt::Display) -> Option<T> {
        self.add(at, description);
        None
    }

    /// Records a violation that has a code of its own.
    pub fn add_as(&mut self, hresult: Hresult, at: Path<'_>, description: impl fmt::Display) {
        if self.kept.len() < MAX_VIOLATIONS {
            self.kept.push(Violation { field: at.to_string(), description: description.to_string(), hresult });
        } else {
            self.left_out += 1;
        }
    }

    /// True when nothing was recorded.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// The value of a required message field.
    pub fn required<T>(&mut self, value: Option<T>, at: Path<'_>) -> Option<T> {
        if value.is_none() {
            self.add(at, "is missing");
        }
        value
    }
}

/// A message that breaks the rules of its type: every violation, up to a bound.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct InvalidMessage {
    /// At least one.
    violations: Vec<Violation>,
    /// Further ones that are not listed.
    left_out: usize,
}

impl InvalidMessage {
    /// The violations, in the order of the message.
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    /// The code of the first violation that has a better one than E_INVALIDARG.
    pub fn hresult(&self) -> Hresult {
        let codes = self.violations.iter().map(|violation| violation.hresult);
        codes.into_iter().find(|code| *code != Hresult::E_INVALIDARG).unwrap_or(Hresult::E_INVALIDARG)
    }
}

impl fmt::Display for InvalidMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, violation) in self.violations.iter().enumerate() {
            let separator = if at == 0 { "" } else { "; " };
            write!(f, "{separator}{} {}", violation.field, violation.description)?;
        }
        match self.left_out {
            0 => Ok(()),
            count => write!(f, "; and {count} more"),
        }
    }
}

/// Runs a decoder on a whole message.
pub fn decode<T>(decoder: impl FnOnce(&mut Violations) -> Option<T>) -> Result<T, InvalidMessage> {
    let mut violations = Violations::default();
    let value = decoder(&mut violations);
    match value {
        Some(value) if violations.is_empty() => Ok(value),
        _ => {
            debug_assert!(!violations.is_empty(), "a decoder gave nothing and said nothing");
            Err(InvalidMessage { violations: violations.kept, left_out: violations.left_out })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_reads_like_the_message() {
        let groups = Path::ROOT.field("groups");
        let change = groups.index(0);
        let flags = change.field("flags");
        assert_eq!(flags.to_string(), "groups[0].flags");
    }

    #[test]
    fn all_violations_are_reported_up_to_the_bound() {
        let error = decode::<()>(|violations| {
            for at in 0..MAX_VIOLATIONS + 3 {
                violations.add(Path::ROOT.field("list").index(at), "is wrong");
            }
            None
        })
        .expect_err("violations make an error");
        assert_eq!(error.violations().len(), MAX_VIOLATIONS);
        assert!(error.to_string().ends_with("; and 3 more"), "{error}");
    }

    #[test]
    fn the_code_is_that_of_the_first_violation_that_has_one() {
        let error = decode::<()>(|violations| {
            violations.add(Path::ROOT.field("a"), "is wrong");
            violations.add_as(Hresult::SYNC_E_INVALID_REPLICA_KEY, Path::ROOT.field("b"), "is wrong");
            None
        })
        .expect_err("violations make an error");
        assert_eq!(error.hresult(), Hresult::SYNC_E_INVALID_REPLICA_KEY);
    }
}
