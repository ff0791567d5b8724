//! Local changes become versions (R14): a look at the store (`recorded` is what it compares with), guards against looks that show too
//! little, and one transaction of what was seen and of what a crash left half-done (`fold`).

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::{Duration, Instant};

use super::metadata::{Commit, Intent, Row, Snapshot};
use super::{Detection, Observation, Shared, Skipped, lock, metadata_failed, store_failed};
use crate::knowledge::{Digest, ItemId};
use crate::provider::{Refusal, RefusalCode};
use crate::types::Hresult;

mod fold;
mod recorded;

pub use fold::{Book, Folded, fold};
use recorded::Recorded;

/// A store with more live items than this is guarded against the deletion of more than half of them.
const MASS_DELETE_FROM: u64 = 100;

/// A replica with more items than this that is found empty is taken for one that cannot be seen.
const EMPTIED_FROM: u64 = 10;

/// Names of items that cannot be read which a line of the log has at most.
const NAMES_LOGGED: usize = 5;

/// However young an operation says that it is old, a look is not taken for a new one for longer: what users change while a
/// long first direction runs goes with the second.
const MAX_LOOK_AGE: Duration = Duration::from_secs(30);

/// True when so many deletions of `alive` items look like an accident (design section 6).
pub(super) fn is_mass_delete(deletions: u64, alive: u64) -> bool {
    alive > MASS_DELETE_FROM && deletions > alive / 2
}

/// The safety stop.
pub(super) fn mass_delete(message: String) -> Refusal {
    Refusal::own(RefusalCode::FailedPrecondition, "MASS_DELETE", Hresult::E_ABORT, message)
}

/// What this replica knows went from under it.
fn state_lost(path: &Path) -> Refusal {
    let message = format!(
        "{} was deleted or replaced while it is in use: stop the provider, put it back, and start it anew; without it the replica \
         begins as a new one. Nothing was done",
        path.display()
    );
    Refusal::own(RefusalCode::FailedPrecondition, "STATE_LOST", Hresult::E_ABORT, message)
}

/// The number of live items, when the last look for local changes began within `operation_age` and is as good as a new one:
/// nothing has shown since that there are more, and no crash or failure has left anything half-done.
pub(super) fn recent(shared: &Shared, operation_age: Option<Duration>) -> Result<Option<u64>, Refusal> {
    let Some(age) = operation_age.filter(|age| *age <= MAX_LOOK_AGE) else { return Ok(None) };
    // Taken: a look serves two sessions, one for each direction. What makes an operation begin a third may be seen by a new one.
    if lock(&shared.looked).take().is_none_or(|began| began.elapsed() > age) {
        return Ok(None);
    }
    let metadata = shared.metadata();
    let (alive, intents) = (metadata.alive(), metadata.intents().map_err(metadata_failed)?);
    Ok(intents.is_empty().then_some(alive))
}

/// Folds local changes into the metadata; the number of live items after it. Refused, nothing is changed.
///
/// The rows of a replica's first look, and the generation that they become, are shown to `first` before one thread commits them, so
/// that other work can begin meanwhile.
pub(super) fn detect(
    shared: &Shared,
    allow_mass_delete: bool,
    first: impl FnOnce(&[(ItemId, Row)], u64),
) -> Result<u64, Refusal> {
    let _gate = lock(&shared.gate);
    shared.look_again();
    let began = Instant::now();
    let (intents, anchor, alive, lingers) = {
        let metadata = shared.metadata();
        if let Some(path) = metadata.moved_away() {
            return Err(state_lost(path));
        }
        let intents: BTreeMap<_, _> = metadata.intents().map_err(metadata_failed)?.into_iter().collect();
        let lingers = !metadata.lingering().map_err(metadata_failed)?.is_empty();
        (intents, metadata.anchor().map_err(metadata_failed)?, metadata.alive(), lingers)
    };
    let recorded = Recorded::new(shared, &intents, anchor.as_deref(), alive);
    let mut detection = shared.store.detect(&recorded).map_err(store_failed)?;
    one_each(&mut detection.observations);
    let items = detection.observations.iter().map(Observation::id).chain(intents.keys());
    let snapshot = recorded.rows(items, lingers).map_err(metadata_failed)?;
    for skipped in &detection.skipped {
        tracing::debug!(item = %skipped.display_name, reason = %skipped.reason, "not carried");
    }
    warn_of_unreadable(&detection.unreadable);
    lock(&shared.report).looked(&detection);
    if !allow_mass_delete {
        let missing = |observation: &&Observation| matches!(observation, Observation::Missing { .. });
        let gone = detection.observations.iter().filter(missing).count() as u64;
        if alive > EMPTIED_FROM && gone == alive && detection.observations.len() as u64 == alive {
            return Err(Refusal::own(
                RefusalCode::FailedPrecondition,
                "ROOT_MISSING",
                Hresult::E_ABORT,
                format!(
                    "the replica is empty, where {alive} items are known; mount or restore it, or, if that is meant, say \
                     --allow-mass-delete (allow_mass_delete in a request); nothing was taken as deleted"
                ),
            ));
        }
        let deletions = vanished(&snapshot, &intents, &detection);
        if is_mass_delete(deletions, alive) {
            return Err(mass_delete(format!(
                "{deletions} of {alive} items are gone since the last look; nothing was done; \
                 if that is meant, say --allow-mass-delete (allow_mass_delete in a request)"
            )));
        }
    }
    let mut metadata = shared.metadata();
    let book = Book {
        replica: metadata.replica(),
        knowledge: metadata.knowledge(),
        tick: metadata.tick(),
        snapshot: &snapshot,
    };
    let tick = book.tick;
    let Folded { commit, gained, unread } = fold(&*shared.store, book, intents, detection.observations);
    // What could not be read is looked for again.
    let moved = detection.anchor.filter(|new| !unread && anchor.as_ref() != Some(new));
    let commit = commit.or_else(|| moved.is_some().then(|| Commit { tick, ..Commit::default() }));
    if let Some(commit) = commit {
        let commit = Commit { anchor: moved, ..commit };
        if tick == 0 && alive == 0 && !commit.rows.is_empty() {
            first(&commit.rows, metadata.generation() + 1);
        }
        metadata.commit(commit).map_err(metadata_failed)?;
    }
    *lock(&shared.looked) = Some(began);
    Ok(alive.saturating_add_signed(gained))
}

/// In ascending order of the id, one of each item: a directory that changes while it is listed may show a name twice. What was seen
/// is there.
fn one_each(observations: &mut Vec<Observation>) {
    let is_missing = |observation: &Observation| matches!(observation, Observation::Missing { .. });
    observations.sort_unstable_by(|a, b| a.id().cmp(b.id()).then_with(|| is_missing(a).cmp(&is_missing(b))));
    observations.dedup_by(|next, kept| next.id() == kept.id());
}

/// One line a look, however much it is: nothing of it is carried until somebody mends that.
fn warn_of_unreadable(unreadable: &[Skipped]) {
    if unreadable.is_empty() {
        return;
    }
    let first: Vec<_> =
        unreadable.iter().take(NAMES_LOGGED).map(|it| format!("{}: {}", it.display_name, it.reason)).collect();
    tracing::warn!(count = unreadable.len(), first = ?first, "items cannot be read, and are not carried");
}

/// Live items that are gone, without those whose content appears under a new name: a rename deletes nothing.
fn vanished(snapshot: &Snapshot, intents: &BTreeMap<ItemId, Intent>, detection: &Detection) -> u64 {
    let mut gone: HashMap<Digest, u64> = HashMap::new();
    for observation in &detection.observations {
        let Observation::Missing { id } = observation else { continue };
        let Some(row) = snapshot.row(id).filter(|row| !row.item.deleted) else { continue };
        if !intents.get(id).is_some_and(|intent| intent.row.item.deleted) {
            *gone.entry(row.item.state.digest).or_default() += 1;
        }
    }
    for observation in &detection.observations {
        let Observation::Present { id, state, .. } = observation else { continue };
        if let Some(left) = gone.get_mut(&state.digest)
            && snapshot.row(id).is_none_or(|row| row.item.deleted)
        {
            *left = left.saturating_sub(1);
        }
    }
    gone.values().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provider::sdk::{Fingerprint, ItemState};

    #[test]
    fn of_what_is_told_twice_one_counts() {
        let present = |id: &str, size: u64| {
            let state =
                ItemState { properties: Default::default(), size, digest: Digest([0; 32]), modification_time: None };
            Observation::Present { id: id.into(), state, fingerprint: Fingerprint::default() }
        };
        let missing = |id: &str| Observation::Missing { id: id.into() };
        let mut told =
            vec![missing("c"), present("b", 1), missing("a"), present("a", 2), present("b", 1), missing("c")];
        one_each(&mut told);
        assert_eq!(told, [present("a", 2), present("b", 1), missing("c")]);
    }
}
