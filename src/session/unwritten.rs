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

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use jiff::Timestamp;

    use super::super::machine::tests::{Shape, record};
    use super::super::machine::{Answer, Event, Now};
    use super::super::timing::Timing;
    use super::*;
    use crate::provider::CallError;
    use crate::types::SyncState;

    fn cannot_reach(machine: &mut Machine, role: ProviderRole, now: Now) {
        let answer = Answer::Identified(Err(CallError::Unreachable("refused".to_owned())));
        machine.handle(Event::Answered { role, sent: now.instant, answer }, now);
    }

    /// State, whether there is a transition, and what is waited for, of each write.
    fn of<'a>(writes: &'a [Write]) -> Vec<(SyncState, bool, &'a str)> {
        let session = |write: &'a Write| match write {
            Write::Session(record, event) => (record.state, event.is_some(), record.waiting_reason.as_str()),
            other => panic!("not expected: {other:?}"),
        };
        writes.iter().map(session).collect()
    }

    #[test]
    fn a_transition_keeps_the_record_of_its_time_and_what_came_after_goes_with_it() {
        let now = Now { instant: Instant::now(), wall: Timestamp::UNIX_EPOCH };
        let mut machine = Machine::new(record(Shape::Coordinated), Timing::default());
        let mut unwritten = Unwritten::default();
        machine.handle(Event::Started, now);
        assert!(!unwritten.note(&mut machine));
        assert_eq!(of(&unwritten.take(&mut machine)), [(SyncState::Initialized, false, "")]);

        cannot_reach(&mut machine, ProviderRole::Source, now);
        assert!(unwritten.note(&mut machine));
        let connecting = (SyncState::Connecting, true, "SOURCE_UNREACHABLE");
        assert_eq!(of(&unwritten.take(&mut machine)), [connecting], "nothing else has changed");

        // The commit fails; the next one carries it again.
        cannot_reach(&mut machine, ProviderRole::Destination, now);
        assert!(unwritten.note(&mut machine));
        let newest = (SyncState::Connecting, false, "DESTINATION_UNREACHABLE");
        assert_eq!(of(&unwritten.take(&mut machine)), [connecting, newest]);

        unwritten.written();
        assert!(!unwritten.note(&mut machine), "what comes now is only progress");
        assert_eq!(of(&unwritten.take(&mut machine)), [newest]);
    }
}
