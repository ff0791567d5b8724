//! What a session's next commit has to carry: its transitions, and the EndSessions that are owed no longer. Pure.
//!
//! A commit that fails loses none of it: the next one carries it again, so that the stored events are a path through the
//! states whatever the disk does.

use super::machine::Machine;
use crate::store::{SessionFindings, Write};
use crate::types::{ProviderRole, SyncGuid};

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

    /// True when a transition waits, or what a batch showed: what is only progress must not go before it.
    pub fn has_transitions(&self, machine: &Machine) -> bool {
        machine.has_events() || self.writes.iter().any(|write| matches!(write, Write::Session(..) | Write::Found(_)))
    }

    /// All that the commit at hand writes; the session's record is in it in any case.
    pub fn take(&mut self, machine: &mut Machine) -> Vec<Write> {
        let events = machine.take_events();
        let record = machine.record();
        let had_events = !events.is_empty();
        for event in events {
            self.last_cause.clone_from(&event.cause);
            self.writes.push(Write::Session(Box::new(record.clone()), Some(event)));
        }
        self.taken = self.writes.len();
        let mut writes = self.writes.clone();
        if !had_events {
            writes.push(Write::Session(Box::new(record.clone()), None));
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
