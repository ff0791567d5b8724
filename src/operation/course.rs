//! What comes after a session: the next one, a pause, or the end. Pure.
//!
//! In sync is when the newest session of each direction is IN_SYNC and none of them began before its source's replica made
//! the changes that were last seen of it. Changes are seen by the replicas' own ticks: a conflict that was resolved, a conflict
//! copy, or a user's edit that came to light raises the tick of the replica that made it, and the direction in which that
//! replica is the source must run once more.

use std::time::Duration;

use crate::mutant::{self, Mutant};
use crate::session::blame::Retry;
use crate::session::machine::Ticks;
use crate::store::{OperationState, SyncDirection};
use crate::types::SyncState;

/// One direction of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Flow {
    /// From the operation's source to its destination.
    Upload,
    /// The other way.
    Download,
}

/// How a session ended, as far as its operation cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its final state.
    pub state: SyncState,
    /// The replicas' own ticks, as last seen.
    pub ticks: Ticks,
    /// Changes that were applied.
    pub updates_transferred: u64,
    /// Whether a further session may fare better, where it failed.
    pub retry: Retry,
    /// It was cancelled by a person.
    pub canceled: bool,
    /// Items failed and are not set aside: when the first of them is due again.
    pub items_due: Option<Duration>,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Begin a session.
    Begin(Flow),
    /// Begin a session after a pause.
    Retry(Flow, Duration),
    /// The operation is over.
    End(OperationState),
}

/// The course of one operation.
#[derive(Clone, Debug)]
pub struct Course {
    flows: Vec<Flow>,
    max_attempts: u32,
    max_sessions: u32,
    sessions: u32,
    attempt: u32,
    /// Sessions that met a provider in another coordinator's session, since the last one in good order.
    found_busy: u32,
    newest: [Option<Newest>; 2],
    /// The highest own tick that was seen of the operation's source and destination.
    seen: [u64; 2],
}

#[derive(Clone, Copy, Debug)]
struct Newest {
    in_sync: bool,
    source_tick: u64,
    fruitless: bool,
    items_due: Option<Duration>,
}

impl Course {
    /// A course that goes on until in sync, for at most `max_sessions` sessions and `max_attempts` failures in a row (0: no limit).
    pub fn new(direction: SyncDirection, max_attempts: u32, max_sessions: u32) -> Self {
        let flows = match direction {
            SyncDirection::Upload => vec![Flow::Upload],
            SyncDirection::Download => vec![Flow::Download],
            SyncDirection::UploadAndDownload => vec![Flow::Upload, Flow::Download],
            SyncDirection::DownloadAndUpload => vec![Flow::Download, Flow::Upload],
        };
        Self {
            flows,
            max_attempts,
            max_sessions,
            sessions: 0,
            attempt: 0,
            found_busy: 0,
            newest: [None; 2],
            seen: [0; 2],
        }
    }

    /// The course of an operation that a former process left after so many failures in a row.
    pub fn resumed(self, attempt: u32) -> Self {
        Self { attempt, ..self }
    }

    /// Failures in a row so far.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// The first session.
    pub fn first(&self) -> Next {
        Next::Begin(self.flows[0])
    }

    /// What comes after a session that ran in `flow`.
    pub fn after(&mut self, flow: Flow, ended: Ended) -> Next {
        if ended.canceled {
            return Next::End(OperationState::Canceled);
        }
        match ended.state {
            SyncState::InSync | SyncState::Completed => self.after_good_order(flow, ended),
            SyncState::InError
            | SyncState::Interrupted
            | SyncState::Initialized
            | SyncState::Connecting
            | SyncState::InProgress => self.after_failure(flow, ended.retry),
        }
    }

    fn after_good_order(&mut self, flow: Flow, ended: Ended) -> Next {
        self.attempt = 0;
        self.found_busy = 0;
        self.sessions += 1;
        let (source, destination) = ends(flow);
        self.seen[source] = self.seen[source].max(ended.ticks.source);
        self.seen[destination] = self.seen[destination].max(ended.ticks.destination);
        self.newest[flow as usize] = Some(Newest {
            in_sync: ended.state == SyncState::InSync,
            source_tick: ended.ticks.source,
            fruitless: ended.updates_transferred == 0,
            items_due: ended.items_due,
        });
        let Some(next) = self.first_unsatisfied_after(flow) else {
            return Next::End(OperationState::InSync);
        };
        if self.sessions >= self.max_sessions {
            return Next::End(OperationState::Ended);
        }
        if self.is_stuck() {
            // What failed is tried again, later and later, until it passes or is set aside.
            let due = |flow: &Flow| self.newest[*flow as usize].and_then(|newest| newest.items_due);
            let first = self.flows.iter().filter_map(|flow| Some((due(flow)?, *flow))).min_by_key(|(due, _)| *due);
            return first.map_or(Next::End(OperationState::Ended), |(due, flow)| Next::Retry(flow, due));
        }
        Next::Begin(next)
    }

    fn after_failure(&mut self, flow: Flow, retry: Retry) -> Next {
        match retry {
            Retry::Never => {
                self.attempt += 1;
                Next::End(OperationState::Failed)
            }
            Retry::Counted => {
                self.attempt += 1;
                match self.max_attempts != 0 && self.attempt >= self.max_attempts {
                    true => Next::End(OperationState::Failed),
                    false => Next::Retry(flow, backoff(self.attempt)),
                }
            }
            Retry::Uncounted => {
                self.found_busy += 1;
                Next::Retry(flow, backoff(self.found_busy))
            }
        }
    }

    fn is_satisfied(&self, flow: Flow) -> bool {
        self.newest[flow as usize].is_some_and(|newest| {
            newest.in_sync && (newest.source_tick >= self.seen[ends(flow).0] || mutant::is(Mutant::CourseStopsEarly))
        })
    }

    fn first_unsatisfied_after(&self, flow: Flow) -> Option<Flow> {
        let at = self.flows.iter().position(|other| *other == flow).unwrap_or(0);
        let (before, from) = self.flows.split_at(at + 1);
        from.iter().chain(before).copied().find(|flow| !self.is_satisfied(*flow))
    }

    /// Items are left out, and neither direction moves anything any more: a further session would do the same again.
    fn is_stuck(&self) -> bool {
        self.flows.iter().all(|flow| self.newest[*flow as usize].is_some_and(|newest| newest.fruitless))
            && self.flows.iter().any(|flow| self.newest[*flow as usize].is_some_and(|newest| !newest.in_sync))
    }
}

/// Which end of the operation is the source of a session, and which the destination.
fn ends(flow: Flow) -> (usize, usize) {
    match flow {
        Flow::Upload => (0, 1),
        Flow::Download => (1, 0),
    }
}

/// 1, 2, 4 … 300 s.
fn backoff(attempt: u32) -> Duration {
    Duration::from_secs((1_u64 << (attempt - 1).min(9)).min(300))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(state: SyncState, source: u64, destination: u64, updates_transferred: u64) -> Ended {
        Ended {
            state,
            ticks: Ticks { source, destination },
            updates_transferred,
            retry: Retry::Counted,
            canceled: false,
            items_due: None,
        }
    }

    #[test]
    fn both_directions_once_when_nothing_changes_on_the_way() {
        let mut course = Course::new(SyncDirection::UploadAndDownload, 5, 8);
        assert_eq!(course.first(), Next::Begin(Flow::Upload));
        assert_eq!(course.after(Flow::Upload, ended(SyncState::InSync, 10, 3, 7)), Next::Begin(Flow::Download));
        assert_eq!(course.after(Flow::Download, ended(SyncState::InSync, 3, 10, 0)), Next::End(OperationState::InSync));
    }

    #[test]
    fn a_destination_that_resolved_conflicts_is_asked_as_source_again() {
        let mut course = Course::new(SyncDirection::DownloadAndUpload, 5, 8);
        assert_eq!(course.after(Flow::Download, ended(SyncState::InSync, 3, 10, 7)), Next::Begin(Flow::Upload));
        // The upload's destination, the operation's second end, has made version 4 itself: download once more.
        assert_eq!(course.after(Flow::Upload, ended(SyncState::InSync, 10, 4, 7)), Next::Begin(Flow::Download));
        assert_eq!(course.after(Flow::Download, ended(SyncState::InSync, 4, 10, 1)), Next::End(OperationState::InSync));
    }

    #[test]
    fn items_left_out_get_a_further_session_until_nothing_moves() {
        let mut course = Course::new(SyncDirection::Upload, 5, 8);
        assert_eq!(course.after(Flow::Upload, ended(SyncState::Completed, 9, 0, 5)), Next::Begin(Flow::Upload));
        assert_eq!(course.after(Flow::Upload, ended(SyncState::Completed, 9, 0, 0)), Next::End(OperationState::Ended));
    }

    #[test]
    fn items_that_fail_are_tried_again_when_they_are_due_and_not_once_they_are_set_aside() {
        let mut course = Course::new(SyncDirection::UploadAndDownload, 5, 8);
        let due = Duration::from_secs(2);
        let fails = Ended { items_due: Some(due), ..ended(SyncState::Completed, 9, 0, 0) };
        assert_eq!(course.after(Flow::Upload, fails), Next::Begin(Flow::Download));
        assert_eq!(course.after(Flow::Download, ended(SyncState::InSync, 0, 9, 0)), Next::Retry(Flow::Upload, due));
        assert_eq!(course.attempt(), 0, "it is no failure of a session");
        let aside = ended(SyncState::Completed, 9, 0, 0);
        assert_eq!(course.after(Flow::Upload, aside), Next::End(OperationState::Ended));
    }

    #[test]
    fn a_replica_that_is_written_all_the_time_ends_after_max_sessions() {
        let mut course = Course::new(SyncDirection::UploadAndDownload, 5, 8);
        let mut next = course.first();
        for tick in 1..=8 {
            let Next::Begin(flow) = next else { panic!("{next:?} before session {tick}") };
            next = course.after(flow, ended(SyncState::InSync, tick, tick, 1));
        }
        assert_eq!(next, Next::End(OperationState::Ended));
    }

    #[test]
    fn failures_in_a_row_wait_longer_and_longer_and_end_at_the_limit() {
        let mut course = Course::new(SyncDirection::Upload, 4, 8);
        let failed = ended(SyncState::InError, 0, 0, 0);
        for seconds in [1, 2, 4] {
            assert_eq!(course.after(Flow::Upload, failed), Next::Retry(Flow::Upload, Duration::from_secs(seconds)));
        }
        assert_eq!(course.after(Flow::Upload, failed), Next::End(OperationState::Failed));

        let mut endless = Course::new(SyncDirection::Upload, 0, 8);
        let pauses: Vec<Next> = (0..20).map(|_| endless.after(Flow::Upload, failed)).collect();
        assert_eq!(pauses[19], Next::Retry(Flow::Upload, Duration::from_secs(300)));
        // A session in good order ends the row.
        endless.after(Flow::Upload, ended(SyncState::Completed, 9, 0, 5));
        assert_eq!(endless.after(Flow::Upload, failed), Next::Retry(Flow::Upload, Duration::from_secs(1)));
    }

    #[test]
    fn a_provider_that_is_busy_elsewhere_is_nobodys_failure() {
        let mut course = Course::new(SyncDirection::Upload, 1, 1);
        let busy = Ended { retry: Retry::Uncounted, ..ended(SyncState::InError, 0, 0, 0) };
        for seconds in [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300] {
            assert_eq!(course.after(Flow::Upload, busy), Next::Retry(Flow::Upload, Duration::from_secs(seconds)));
            assert_eq!(course.attempt(), 0);
        }
        assert_eq!(course.after(Flow::Upload, ended(SyncState::InSync, 1, 1, 1)), Next::End(OperationState::InSync));
    }

    #[test]
    fn what_cannot_get_better_is_not_retried() {
        let mut course = Course::new(SyncDirection::Upload, 0, 8);
        let breach = Ended { retry: Retry::Never, ..ended(SyncState::InError, 0, 0, 0) };
        assert_eq!(course.after(Flow::Upload, breach), Next::End(OperationState::Failed));
        let canceled = Ended { canceled: true, ..ended(SyncState::Interrupted, 0, 0, 0) };
        assert_eq!(course.after(Flow::Upload, canceled), Next::End(OperationState::Canceled));
    }
}
