//! Faults in the world's own part: rules that live where the world stands in for the real store or a real provider.

#[cfg(feature = "mutants")]
use super::checks::Check;

/// A fault of the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "mutants"), allow(dead_code))]
pub(crate) enum Fault {
    /// After a restart of the coordinator revisions are given a second time.
    ReuseRevisions,
    /// A provider goes on with a session whose lease has run out.
    IgnoreLease,
    /// A provider does not remember which sessions have ended.
    ForgetEnded,
    /// A destination learns what failed.
    LearnFailed,
    /// A source teaches what it holds back.
    TeachHeldBack,
    /// A source says of a batch that it goes on to the last item when it does not.
    RangeTooWide,
}

/// The rules of the world that can be broken, and the check that sees it.
#[cfg(feature = "mutants")]
pub(crate) const FAULTS: &[(Fault, Check)] = &[
    (Fault::ReuseRevisions, Check::Watcher),
    (Fault::IgnoreLease, Check::Lease),
    (Fault::ForgetEnded, Check::Pairing),
    (Fault::LearnFailed, Check::FalseBlame),
    (Fault::TeachHeldBack, Check::FalseBlame),
    (Fault::RangeTooWide, Check::LostEdit),
];

/// The check that sees a fault of the source.
#[cfg(feature = "mutants")]
pub(crate) fn seen_by(mutant: synclave::mutant::Mutant) -> Check {
    use synclave::mutant::Mutant;
    match mutant {
        Mutant::ForgetSkipped => Check::SkippedAgain,
        Mutant::KeepWinnersVersion => Check::LostEdit,
        Mutant::CountOwnChanges => Check::Convergence,
        Mutant::RenewEqual => Check::Convergence,
        Mutant::CopyOverOther => Check::LostEdit,
        Mutant::NoLoserCopy => Check::KeepBoth,
        Mutant::BeginTwice => Check::BeginOnce,
        Mutant::ForgetOwedRow => Check::OwedFirst,
        Mutant::BeginWhileOwed => Check::NoBeginWhileOwed,
        Mutant::BeginWhileBusy => Check::NoBeginWhileBusy,
        Mutant::BlameBusy => Check::FalseBlame,
        Mutant::KeepEpoch => Check::Epoch,
        Mutant::BlameAfterRestart => Check::FalseBlame,
        Mutant::EndBeforeOutcome => Check::OutcomeFirst,
        Mutant::ForgetTombstones => Check::Resurrection,
        Mutant::DeletionBeatsEdit => Check::KeepBoth,
        Mutant::IgnoreIntents => Check::PhantomEdit,
        Mutant::LapseTooEarly => Check::Pairing,
        Mutant::OutboxGivesUp => Check::Pairing,
        Mutant::KeepSettledRow => Check::NoBeginWhileOwed,
        Mutant::CourseStopsEarly => Check::InSync,
        Mutant::HubForgetsProgress => Check::Watcher,
        Mutant::ForgetSilently => Check::Convergence,
        Mutant::KeepAbsent => Check::Convergence,
        Mutant::DeleteUnknown => Check::LostEdit,
        Mutant::LearnRecoveryTooEarly => Check::FalseBlame,
        Mutant::ForgetForgotten => Check::Convergence,
        Mutant::LeaveWholeItemOut => Check::SkippedAgain,
        Mutant::DeletionIgnoresUnits => Check::LostEdit,
        Mutant::KeepLosersUnitVersion => Check::Resurrection,
        Mutant::KeepUnlistedUnits => Check::Convergence,
        Mutant::StaleDecision => Check::Decision,
        Mutant::UnturnedDecision => Check::Decision,
        Mutant::LargerIdWins => Check::Collision,
        Mutant::MergeNothing => Check::LostEdit,
        Mutant::ForgetMergeWinner => Check::Collision,
        Mutant::DeleteBeforeCopy => Check::Collision,
        Mutant::MoveHolderAlone => Check::Collision,
        Mutant::TakeUnlistedForGone => Check::LostEdit,
        Mutant::ForgetHeldBack => Check::Convergence,
        Mutant::IntentTeachesBase => Check::Convergence,
        Mutant::ShortSpans => Check::Convergence,
        Mutant::SkipConnecting => Check::Edge,
    }
}
