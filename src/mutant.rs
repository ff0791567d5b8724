//! Deliberate faults, to prove that `tests/simulation` would see them (`docs/simulation.md`).
//!
//! Without the cargo feature `mutants`, which no release has, `is` is the constant `false` and every fault is compiled away.

macro_rules! mutants {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// A fault that can be switched on.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Mutant {
            $($(#[$doc])* $name,)*
        }

        impl Mutant {
            /// Every fault.
            pub const ALL: &[Self] = &[$(Self::$name,)*];
        }
    };
}

mutants! {
    /// What failed in a session is asked for again with every batch.
    ForgetSkipped,
    /// A resolved conflict keeps the winner's version instead of getting a new one.
    KeepWinnersVersion,
    /// Ticks count a replica's own changes alone, whatever it knows.
    CountOwnChanges,
    /// Of equal states neither version stays: they get a new one.
    RenewEqual,
    /// A conflict's loser is kept under a name that has other content.
    CopyOverOther,
    /// A conflict's loser is not kept.
    NoLoserCopy,
    /// A reconnected provider is sent BeginSession again.
    BeginTwice,
    /// The EndSession that will be owed is not recorded before BeginSession.
    ForgetOwedRow,
    /// A replica that is owed an EndSession is admitted to the next session.
    BeginWhileOwed,
    /// A provider that has restarted is blamed for not knowing its session.
    BlameAfterRestart,
    /// A provider that has said that it is in another coordinator's session is sent BeginSession.
    BeginWhileBusy,
    /// A provider is blamed for being in another coordinator's session.
    BlameBusy,
    /// A session that is taken over keeps its epoch.
    KeepEpoch,
    /// EndSession goes out before the outcome is committed.
    EndBeforeOutcome,
    /// A tombstone is no trace of an item.
    ForgetTombstones,
    /// A deletion beats an edit.
    DeletionBeatsEdit,
    /// What the applier wrote before a crash is taken for a user's edit.
    IgnoreIntents,
    /// An owed EndSession lapses counted from long before the last call that may have renewed the lease.
    LapseTooEarly,
    /// The outbox takes silence for an answer.
    OutboxGivesUp,
    /// The row of an answered EndSession stays.
    KeepSettledRow,
    /// An operation ends after one session in each direction, whatever they resolved.
    CourseStopsEarly,
    /// A change without a transition is not put into the order that watchers follow.
    HubForgetsProgress,
    /// Tombstones are cleaned up without a word in the forgotten knowledge.
    ForgetSilently,
    /// A full enumeration leaves what it does not list.
    KeepAbsent,
    /// A full enumeration deletes what it does not list, also what the source never saw.
    DeleteUnknown,
    /// The first batch of a full enumeration teaches all that the source knows.
    LearnRecoveryTooEarly,
    /// An item without metadata is taken for one that never was, also when its tombstone was forgotten.
    ForgetForgotten,
    /// What is left out of an item with change units is left out of the whole item.
    LeaveWholeItemOut,
    /// A deletion meets the base of an item only, and none of its change units (R28).
    DeletionIgnoresUnits,
    /// A resolved conflict of a change unit keeps the loser's version.
    KeepLosersUnitVersion,
    /// Units that the source's new item does not have stay.
    KeepUnlistedUnits,
    /// A decision about a conflict is carried out whatever the versions are by now.
    StaleDecision,
    /// A decision is told to the other direction's destination as it was taken, with the sides of the first.
    UnturnedDecision,
    /// Of two items that become one the larger id stays.
    LargerIdWins,
    /// What a merged item had goes with it.
    MergeNothing,
    /// The tombstone of a merged item does not name the winner.
    ForgetMergeWinner,
    /// What moves out of the way of another item is deleted before its copy is there.
    DeleteBeforeCopy,
    /// Of what moves out of the way of another item only that goes on which holds the rest.
    MoveHolderAlone,
    /// What the source does not list of an item is gone, also where a filter holds the rest back.
    TakeUnlistedForGone,
    /// A unit that a filter held back counts as one that the item does not have.
    ForgetHeldBack,
    /// What is found after a crash teaches the base of an item of which only some units came.
    IntentTeachesBase,
    /// Of a run of items that a custom filter holds back only the first is held back from what is taught.
    ShortSpans,
    /// A session that fails before it was admitted goes straight to its final state.
    SkipConnecting,
}

#[cfg(feature = "mutants")]
thread_local! {
    static ACTIVE: std::cell::Cell<Option<Mutant>> = const { std::cell::Cell::new(None) };
}

/// Switches a fault on for this thread, and every other off.
#[cfg(feature = "mutants")]
pub fn activate(mutant: Option<Mutant>) {
    ACTIVE.set(mutant);
}

/// True when the fault is switched on.
#[cfg(feature = "mutants")]
pub(crate) fn is(mutant: Mutant) -> bool {
    ACTIVE.get() == Some(mutant)
}

/// Never.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
pub(crate) const fn is(_: Mutant) -> bool {
    false
}
