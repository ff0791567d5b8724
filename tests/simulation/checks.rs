//! What must hold, and what is remembered to see whether it does. Nothing of it is known to the code under test.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

use synclave::knowledge::{ItemId, Knowledge, Version};
use synclave::types::{ProviderRole, ResolveAction, SyncGuid, SyncState};

use super::filters::Wish;
use super::scenario::Time;

macro_rules! checks {
    ($($(#[$doc:meta])* $name:ident = $word:literal,)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub(crate) enum Check {
            $($(#[$doc])* $name,)*
        }

        impl fmt::Display for Check {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$name => $word,)*
                })
            }
        }
    };
}

checks! {
    /// A session takes no edge but those of the design, and none from a final state.
    Edge = "edge",
    /// BeginSession goes out at most once for each session and provider.
    BeginOnce = "begin once",
    /// "EndSession is owed" is durable before BeginSession goes out.
    OwedFirst = "owed row first",
    /// The outcome is durable before EndSession goes out.
    OutcomeFirst = "outcome first",
    /// To a replica that is owed an EndSession no BeginSession is sent.
    NoBeginWhileOwed = "no begin while owed",
    /// Whoever joined a session is told its end, or its lease runs out: when nothing is owed any more, nobody is in.
    Pairing = "pairing",
    /// A session that is taken over gets a higher epoch, and a provider that has seen it takes no call of a lower one.
    Epoch = "epoch",
    /// Who has said that it is in another coordinator's session is sent no BeginSession.
    NoBeginWhileBusy = "no begin while busy",
    /// A provider is in no session that it heard nothing of for longer than its lease.
    Lease = "lease",
    /// The destination's knowledge never shrinks.
    KnowledgeShrinks = "knowledge shrinks",
    /// A partner never knows a tick of a replica that the replica does not know itself.
    TickReused = "tick reused",
    /// What failed in a session, or was applied, is not sent again in it.
    SkippedAgain = "skipped sent again",
    /// All providers are honest: nobody is blamed for breaking a rule.
    FalseBlame = "false blame",
    /// No state is replaced by one that does not descend from it, but in a conflict that is recorded.
    LostEdit = "lost edit",
    /// KEEP_BOTH keeps both; an edit beats a deletion unless the policy names a side.
    KeepBoth = "keep both",
    /// No deleted item comes back but by an edit that did not know of the deletion.
    Resurrection = "resurrection",
    /// A conflict that waits for a decision is settled as someone decided about these very versions.
    Decision = "decision",
    /// Of two items that become one that with the smaller id stays, and the tombstone of the other names it; otherwise that stays
    /// which was to.
    Collision = "collision",
    /// What a filter of change units holds back is not said, and not learned.
    HeldBack = "held back",
    /// Only what a user did is given a local version by detection.
    PhantomEdit = "phantom edit",
    /// A session that says IN_SYNC left its destination with all that its source had; an operation, both ends with what either
    /// made in it.
    InSync = "in sync is true",
    /// All replicas come to hold the same.
    Convergence = "convergence",
    /// A watcher holds what the hub holds.
    Watcher = "watcher",
    /// Nothing of what is over stays: rows, permits, sessions, staged content, intents.
    Leak = "leak",
    /// The code under test does not panic.
    Panic = "panic",
    /// Everything that was begun ends.
    Liveness = "liveness",
}

/// A check that failed.
#[derive(Clone, Debug)]
pub(crate) struct Violation {
    pub(crate) check: Check,
    pub(crate) at: Time,
    pub(crate) message: String,
}

/// What someone decided about a conflict.
#[derive(Clone, Debug)]
pub(crate) struct Decided {
    pub(crate) item: ItemId,
    pub(crate) source: Version,
    pub(crate) destination: Version,
    pub(crate) action: ResolveAction,
}

impl Decided {
    /// The version whose state stays; `None`: one of both, the other is kept beside it.
    pub(crate) fn winner(&self) -> Option<&Version> {
        match self.action {
            ResolveAction::AcceptSourceProvider => Some(&self.source),
            ResolveAction::AcceptDestinationProvider => Some(&self.destination),
            _ => None,
        }
    }
}

/// A deletion that was forgotten.
#[derive(Clone, Debug)]
pub(crate) struct Deletion {
    pub(crate) version: Version,
    /// Of the item that was deleted: another item may come to have its name.
    pub(crate) creation: Version,
}

/// What an all-seeing observer remembers.
#[derive(Debug, Default)]
pub(crate) struct Ghost {
    /// For each version of an item those that its maker had seen last. Copies are items of their own.
    parents: HashMap<(ItemId, Version), BTreeSet<Version>>,
    same: HashMap<(ItemId, Version), BTreeSet<Version>>,
    /// Contents that a user has seen and overwritten, or deleted, at a replica.
    pub(crate) superseded: BTreeSet<(usize, Vec<u8>)>,
    /// The deletions that a replica has forgotten, where nothing has taken their place.
    pub(crate) buried: BTreeMap<(usize, ItemId), Deletion>,
    pub(crate) decided: Vec<Decided>,
    /// Items that collide, and those in their way, about which someone has decided.
    pub(crate) decided_collisions: BTreeSet<(ItemId, ItemId)>,
    /// All deletions that were ever forgotten: others may have learned of them meanwhile.
    ever_buried: Vec<(ItemId, Deletion)>,
    /// Items that are about to go by a recovery, with the deletion that the source had forgotten.
    pub(crate) doomed: BTreeMap<(usize, ItemId), Deletion>,
    pub(crate) begins: BTreeMap<(SyncGuid, ProviderRole), u32>,
    /// The last coordinator that sent a call of a session, and the epoch in it.
    pub(crate) epochs: BTreeMap<SyncGuid, (u64, u64)>,
    /// The last coordinator that a provider's process has heard of a session, by provider and life.
    pub(crate) heard: BTreeMap<(usize, u64, SyncGuid), u64>,
    /// The call in hand is of a coordinator from which its session has been taken over, as its provider knows.
    pub(crate) is_stale: bool,
    /// Who said last that it would refuse BeginSession.
    pub(crate) said_busy: BTreeSet<(SyncGuid, ProviderRole)>,
    pub(crate) outcomes_committed: BTreeSet<SyncGuid>,
    pub(crate) states: BTreeMap<SyncGuid, SyncState>,
    /// Knowledge last told by a replica.
    pub(crate) told: BTreeMap<usize, Arc<Knowledge>>,
    /// What the source of a session was told last to let through.
    pub(crate) filters: BTreeMap<SyncGuid, Option<Wish>>,
    /// What the source of a session had when it gave its last batch.
    pub(crate) source_had: BTreeMap<SyncGuid, Arc<Knowledge>>,
    /// Versions in a session's batch in hand that were applied, or failed, of which the coordinator has not heard yet.
    pub(crate) settling: BTreeMap<SyncGuid, BTreeSet<(ItemId, Version)>>,
    /// Versions that were applied, or failed, in a session, and the coordinator knows.
    pub(crate) settled: BTreeMap<SyncGuid, BTreeSet<(ItemId, Version)>>,
}

impl Ghost {
    /// A replica has forgotten a deletion.
    pub(crate) fn bury(&mut self, index: usize, item: ItemId, deletion: Deletion) {
        self.ever_buried.push((item.clone(), deletion.clone()));
        self.buried.insert((index, item), deletion);
    }

    /// The deletions of an item that somebody has forgotten.
    pub(crate) fn ever_buried(&self, item: &ItemId) -> impl Iterator<Item = &Deletion> {
        self.ever_buried.iter().filter(move |(of, _)| of == item).map(|(_, deletion)| deletion)
    }

    /// A version that was just made, by someone who had seen `parents`.
    pub(crate) fn made<'a>(
        &mut self,
        item: &ItemId,
        version: &Version,
        parents: impl IntoIterator<Item = &'a Version>,
    ) {
        self.parents.insert((item.clone(), version.clone()), parents.into_iter().cloned().collect());
    }

    /// Whoever has taken `version` has seen `older` too, though its maker had not.
    pub(crate) fn vouch(&mut self, item: &ItemId, version: &Version, older: &Version) {
        self.parents.entry((item.clone(), version.clone())).or_default().insert(older.clone());
    }

    /// Both versions stand for the same state: whoever has seen the one need not see the other.
    pub(crate) fn same(&mut self, item: &ItemId, one: &Version, other: &Version) {
        for (one, other) in [(one, other), (other, one)] {
            self.same.entry((item.clone(), one.clone())).or_default().insert(other.clone());
        }
    }

    /// True when the maker of `version` had seen `older`, or the same state under another version.
    pub(crate) fn descends(&self, item: &ItemId, version: &Version, older: &Version) -> bool {
        let mut seen = vec![version.clone()];
        let mut at = 0;
        while let Some(version) = seen.get(at).cloned() {
            if version == *older {
                return true;
            }
            let key = (item.clone(), version);
            for next in self.parents.get(&key).into_iter().chain(self.same.get(&key)).flatten() {
                if !seen.contains(next) {
                    seen.push(next.clone());
                }
            }
            at += 1;
        }
        false
    }
}
