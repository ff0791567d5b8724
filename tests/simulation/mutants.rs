//! Faults in the world's own part: rules that live where the world stands in for the real store or a real provider.

/// A fault of the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// After a restart of the coordinator revisions are given a second time.
    ReuseRevisions,
    /// A provider goes on with a session whose lease has run out.
    IgnoreLease,
    /// A provider does not remember which sessions have ended.
    ForgetEnded,
    /// A destination learns what failed.
    LearnFailed,
    /// A source says of a batch that it goes on to the last item when it does not.
    RangeTooWide,
}
