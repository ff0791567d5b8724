//! What happened, for people. Kept only of a history that is told: the same seed gives the same one again.

use std::fmt;

use super::scenario::Time;

#[derive(Debug, Default)]
pub(crate) struct History {
    lines: Option<Vec<(Time, String)>>,
}

impl History {
    pub(crate) fn new(record: bool) -> Self {
        Self { lines: record.then(Vec::new) }
    }

    pub(crate) fn add(&mut self, at: Time, line: impl FnOnce() -> String) {
        if let Some(lines) = &mut self.lines {
            lines.push((at, line()));
        }
    }
}

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines.iter().flatten().try_for_each(|(at, line)| writeln!(f, "{:>12.3}s  {line}", at.as_secs_f64()))
    }
}
