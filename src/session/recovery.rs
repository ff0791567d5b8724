//! What a start does with the sessions of the process before it (design section 8).
//!
//! A session without a committed outcome becomes INTERRUPTED; one whose outcome was committed enters it. EndSessions that are
//! owed are handed to the outbox, under the next epoch: what the former process sent, and is still on its way, is then refused.
//! Operations go on with new sessions; that is `operation`'s part.

use jiff::Timestamp;

use crate::mutant::{self, Mutant};
use crate::store::{EndNotice, OwedEnd, SessionEvent, SessionRecord, Write};
use crate::types::{Epoch, Hresult, SyncState};

/// The rows that end one session that was left behind; nothing for one that had ended.
pub fn end_left_behind(record: &SessionRecord, now: Timestamp) -> Vec<Write> {
    if record.state.is_final() {
        return Vec::new();
    }
    let mut writes = Vec::new();
    let mut record = record.clone();
    record.epoch = next_epoch(record.epoch);
    if record.outcome.is_none() {
        record.outcome = Some(SyncState::Interrupted);
        record.hresult = Hresult::E_ABORT;
        record.error_message = "the coordinator restarted while the session ran".to_owned();
    }
    let target = record.outcome.unwrap_or(SyncState::Interrupted);
    // A session that failed before it was admitted passes through CONNECTING, as it would have.
    let steps: &[SyncState] = match (record.state, target) {
        (SyncState::Initialized, SyncState::InError | SyncState::InSync) => {
            &[SyncState::Connecting, SyncState::InError]
        }
        (SyncState::Connecting, SyncState::InSync) => &[SyncState::InProgress, SyncState::InSync],
        (_, SyncState::InSync) => &[SyncState::InSync],
        (_, SyncState::Completed) => &[SyncState::Completed],
        (_, SyncState::InError) => &[SyncState::InError],
        (_, SyncState::Initialized | SyncState::Connecting | SyncState::InProgress | SyncState::Interrupted) => {
            &[SyncState::Interrupted]
        }
    };
    for to in steps {
        let from = record.state;
        record.state = *to;
        if to.is_final() {
            record.end_time = Some(now.max(record.create_time));
            record.phase = "ENDED".to_owned();
            record.waiting_reason.clear();
            record.bytes_per_second = 0;
            record.estimated_seconds_left = None;
        }
        let event = SessionEvent {
            sync_guid: record.sync_guid,
            time: now,
            from_state: Some(from),
            to_state: *to,
            cause: "COORDINATOR_RESTARTED".to_owned(),
            message: record.error_message.clone(),
        };
        writes.push(Write::Session(Box::new(record.clone()), Some(event)));
    }
    writes
}

/// Of a session that this process has taken over.
fn next_epoch(epoch: Epoch) -> Epoch {
    if mutant::is(Mutant::KeepEpoch) { epoch } else { epoch.saturating_add(1) }
}

/// The row with what EndSession will say, for a session that ended with this restart.
pub fn notice_left_behind(owed: &OwedEnd, record: Option<&SessionRecord>) -> OwedEnd {
    let mut owed = owed.clone();
    owed.epoch = next_epoch(owed.epoch);
    let decided = record.filter(|record| record.outcome.is_some());
    owed.notice.get_or_insert_with(|| EndNotice {
        state: decided.and_then(|record| record.outcome).unwrap_or(SyncState::Interrupted),
        // Without an outcome the restart is what ended it.
        hresult: decided.map_or(Hresult::E_ABORT, |record| record.hresult),
        message: decided.map_or_else(
            || "the coordinator restarted while the session ran".to_owned(),
            |record| record.error_message.clone(),
        ),
        provider_with_error: decided.and_then(|record| record.provider_with_error),
    });
    owed
}
