//! Forgetting: tombstones that are old enough are cleaned up, and the forgotten knowledge says so (`windows-sync.md` 4.9).
//!
//! It is done when a session ends and no other is on, so that a partner who comes after a long time is first sent what is still
//! remembered. A partner who has not seen a deletion by then is out of date (R18).

use std::time::Duration;

use super::{Shared, lock};

/// Tombstones that one transaction cleans up at most.
const TOMBSTONES_AT_ONCE: usize = 1_000;

/// Transactions at the end of one session at most; what is left waits for the next end.
const TRANSACTIONS: usize = 20;

/// Default age of a tombstone after which it is cleaned up.
pub const DEFAULT_TOMBSTONE_AGE: Duration = Duration::from_secs(60 * 24 * 60 * 60);

/// Cleans up what is old enough; stops when a session begins.
pub(super) fn clean_up(shared: &Shared) {
    let Some(age) = shared.options.tombstone_age else { return };
    let now = jiff::Timestamp::now().as_second();
    let until = now.saturating_sub(i64::try_from(age.as_secs()).unwrap_or(i64::MAX));
    for _ in 0..TRANSACTIONS {
        if lock(&shared.registry).is_in_use() {
            return;
        }
        match shared.metadata().forget(until, TOMBSTONES_AT_ONCE) {
            Ok(TOMBSTONES_AT_ONCE) => {}
            Ok(0) => return,
            Ok(count) => return tracing::debug!(count, "tombstones cleaned up"),
            Err(error) => return tracing::warn!(%error, "cannot clean up tombstones"),
        }
    }
}
