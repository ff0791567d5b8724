//! Staging the contents that came with a batch, on two threads: creating small files is what takes the time.

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};

use sha2::{Digest as _, Sha256};

use super::fetch::{cannot_write, not_as_announced};
use super::{Applier, Section};
use crate::knowledge::{Digest, ItemChange, ItemData, RecoverableError};
use crate::provider::sdk::session::Session;
use crate::provider::sdk::{Shared, Staged};

/// Inline contents that one thread stages in a row. They are mostly in the same few directories, in which it creates files alone;
/// between two such rows what the source sends is looked at.
const STAGED_TOGETHER: usize = 64;

/// From so many inline contents on a second thread pays.
pub(super) const WORTH_A_THREAD: usize = 16;

/// What staging an inline content comes to.
pub(super) type StagedInline = Result<(Staged, Digest), RecoverableError>;

/// The changes of a section whose inline contents are to be staged, by whoever takes some of them.
pub(super) struct Inline<'a> {
    pub(super) section: &'a Section<'a>,
    pub(super) indices: &'a [usize],
    next: AtomicUsize,
}

impl<'a> Inline<'a> {
    pub(super) fn new(section: &'a Section<'a>, indices: &'a [usize]) -> Self {
        Self { section, indices, next: AtomicUsize::new(0) }
    }

    fn take(&self) -> Option<&'a [usize]> {
        let begin = self.next.fetch_add(STAGED_TOGETHER, Ordering::Relaxed);
        let rest = self.indices.get(begin..).filter(|rest| !rest.is_empty())?;
        Some(&rest[..rest.len().min(STAGED_TOGETHER)])
    }

    /// There is nothing more to take.
    pub(super) fn stop(&self) {
        self.next.store(self.indices.len(), Ordering::Relaxed);
    }
}

impl Applier<'_> {
    /// Stages the next few inline contents; `None` when there are no more.
    pub(super) fn stage_some(&self, inline: &Inline<'_>) -> Option<Vec<(usize, StagedInline)>> {
        let indices = inline.take()?;
        let stage = |index: &usize| {
            let change = &inline.section.changes[*index];
            let data = change.inline_data.as_ref()?;
            Some((*index, stage_inline(self.shared, self.session, change, data)))
        };
        Some(indices.iter().filter_map(stage).collect())
    }
}

/// Stages what came with one change, if it is what was announced.
pub(super) fn stage_inline(shared: &Shared, session: &Session, change: &ItemChange, data: &ItemData) -> StagedInline {
    let id = &change.item_id;
    let digest = Digest(Sha256::digest(&data.content).into());
    let announced = [change.content_digest, data.header.content_digest];
    let size = data.content.len() as u64;
    if announced.into_iter().flatten().any(|announced| announced != digest)
        || change.data_size.unwrap_or(size) != size
        || data.header.content_size != size
    {
        return Err(not_as_announced(id));
    }
    if size == 0 {
        let staged = shared.store.stage_container(id, &data.header).map_err(|error| error.into_recoverable(id))?;
        return Ok((staged, digest));
    }
    let mut staging = shared.store.stage(id, &data.header).map_err(|error| error.into_recoverable(id))?;
    staging.write_all(&data.content).map_err(|error| cannot_write(id, &error))?;
    let staged = staging.finish().map_err(|error| error.into_recoverable(id))?;
    session.counters.bytes.fetch_add(size, Ordering::Relaxed);
    Ok((staged, digest))
}
