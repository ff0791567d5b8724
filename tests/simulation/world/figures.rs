//! What came to pass in the histories.

/// What came to pass, to see that the histories are not dull.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Figures {
    pub(crate) events: u64,
    pub(crate) sessions: u64,
    pub(crate) in_sync: u64,
    pub(crate) applied: u64,
    pub(crate) conflicts: u64,
    pub(crate) copies: u64,
    pub(crate) handed_over: u64,
    pub(crate) lapsed: u64,
    pub(crate) adopted: u64,
    /// Sessions that lost a provider and looked for it again, each time.
    pub(crate) reconnects: u64,
    /// Tombstones that were cleaned up.
    pub(crate) forgotten: u64,
    /// Batches of full enumerations, items that went by them, and items that they found contested.
    pub(crate) recoveries: u64,
    pub(crate) gone: u64,
    pub(crate) contested: u64,
    /// Batches of partial syncs.
    pub(crate) partial: u64,
    pub(crate) taken_over: u64,
    pub(crate) stale: u64,
    pub(crate) found_busy: u64,
    /// Batches through a filter.
    pub(crate) filtered: u64,
    /// Items that went through a list of change units.
    pub(crate) in_part: u64,
    /// Conflicts that were settled as people had decided.
    pub(crate) decided: u64,
    /// Items that could not be saved because of another one's name, and of these those that became one with it.
    pub(crate) collisions: u64,
    pub(crate) merged: u64,
    /// And those of which one got another name.
    pub(crate) renamed: u64,
}

impl std::ops::AddAssign for Figures {
    fn add_assign(&mut self, other: Self) {
        self.events += other.events;
        self.sessions += other.sessions;
        self.in_sync += other.in_sync;
        self.applied += other.applied;
        self.conflicts += other.conflicts;
        self.copies += other.copies;
        self.handed_over += other.handed_over;
        self.lapsed += other.lapsed;
        self.adopted += other.adopted;
        self.reconnects += other.reconnects;
        self.forgotten += other.forgotten;
        self.recoveries += other.recoveries;
        self.gone += other.gone;
        self.contested += other.contested;
        self.partial += other.partial;
        self.taken_over += other.taken_over;
        self.stale += other.stale;
        self.found_busy += other.found_busy;
        self.filtered += other.filtered;
        self.in_part += other.in_part;
        self.decided += other.decided;
        self.collisions += other.collisions;
        self.merged += other.merged;
        self.renamed += other.renamed;
    }
}
