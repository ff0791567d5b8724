//! What a session's next commit has to carry: its transitions, and the EndSessions that are owed no longer. Pure.
//!
//! A commit that fails loses none of it: the next one carries it again, so that the stored events are a path through the
//! states whatever the disk does.

use std::time::Duration;

use super::machine::Machine;
use crate::store::{SessionFindings, Write};
use crate::types::{ProviderRole, SyncGuid};

/// A transition that nothing waits for becomes visible after so long, with whatever came to pass meanwhile: a session with
/// little to do has its next commit by then, and pays for one transaction less.
pub const TRANSITION_DELAY: Duration = Duration::from_millis(5);

/// Writes that wait for a session's next commit.
#[derive(Debug, Default)]
pub struct Unwritten {
    writes: Vec<Write>,
    /// How many of them the commit at hand carries.
    taken: usize,
    last_cause: String,
}

impl Unwritten {
    /// An EndSession is owed no longer.
    pub fn settle(&mut self, sync_guid: SyncGuid, role: ProviderRole) {
        self.writes.push(Write::Settle { sync_guid, role });
    }

    /// What a batch showed.
    pub fn found(&mut self, found: SessionFindings) {
        self.writes.push(Write::Found(Box::new(found)));
    }

    /// Keeps the transitions that the machine has made, each with the record as it is now. True when something waits that
    /// progress must not go before: a transition, or what a batch showed.
    pub fn note(&mut self, machine: &mut Machine) -> bool {
        for event in machine.take_events() {
            self.last_cause.clone_from(&event.cause);
            self.writes.push(Write::Session(Box::new(machine.record().clone()), Some(event)));
        }
        self.writes.iter().any(|write| matches!(write, Write::Session(..) | Write::Found(_)))
    }

    /// All that the commit at hand writes; the session's record as it is now is in it in any case.
    pub fn take(&mut self, machine: &mut Machine) -> Vec<Write> {
        self.note(machine);
        self.taken = self.writes.len();
        let mut writes = self.writes.clone();
        let newest = writes.iter().rev().find_map(|write| match write {
            Write::Session(record, _) => Some(record),
            _ => None,
        });
        if newest.is_none_or(|newest| **newest != *machine.record()) {
            writes.push(Write::Session(Box::new(machine.record().clone()), None));
        }
        writes
    }

    /// What was last taken is durable; what came meanwhile waits for the next commit.
    pub fn written(&mut self) {
        self.writes.drain(..self.taken);
        self.taken = 0;
    }

    /// The cause of the last transition that was taken.
    pub fn last_cause(&self) -> &str {
        &self.last_cause
    }
}
