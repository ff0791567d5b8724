//! Comparison of two replicas by digests of ranges of items: what is equal is not listed, on the wire or anywhere else.
//!
//! Both providers are taken into one session, as sources, so that no other session changes them meanwhile; it moves nothing. From
//! all items on, the side that has more in a range divides it, the other one answers for the same parts, and only parts that
//! differ are looked at further. With n items and d differences that is about d·log n digests, in log n rounds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use crate::knowledge::ItemId;
use crate::provider::{
    BeginSession, CallError, ContentCheck, EndSession, ItemDigest, ItemRange, Provider, ProviderInfo, RANGE_DIGESTS,
    RangeDigest, RangeDigestsRequest, RepairItems, SessionKey, SessionRef,
};
use crate::types::{Hresult, ProviderRole, SyncGuid, SyncState};

/// Parts that a range is divided into: more parts make fewer rounds and more digests for each difference.
const PARTS: u32 = 16;

/// Parts that content is read in, so that a call need not last for the whole of a replica.
const CHECKED_PARTS: u32 = 32;

/// Ranges with no more items than this are listed.
const LISTED: u32 = 4;

/// Rounds after which a comparison is given up: far more than replicas of any size take.
const MAX_ROUNDS: u32 = 64;

/// Ranges in one request: with the longest ids they fit into a message.
const RANGES_AT_ONCE: usize = 128;

/// The providers are kept for so long after the last call.
const LEASE: Duration = Duration::from_secs(60);

/// Calls but those that read content are answered in so long.
const DEADLINE: Duration = Duration::from_secs(60);

/// Why replicas could not be compared.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Both are the same one.
    #[error("both are replica {0}: give two different ones")]
    SameReplica(String),
    /// Ids of the one do not fit the other.
    #[error("their ids do not have the same form: they cannot be compared")]
    IdFormat,
    /// It is not among a provider's capabilities.
    #[error("{side}: the provider does not offer {RANGE_DIGESTS}: it cannot be compared")]
    NotOffered {
        /// A or B.
        side: Side,
    },
    /// A call failed.
    #[error("{side}: {call}: {error}; put that right and try again")]
    Call {
        /// A or B.
        side: Side,
        /// The call's name.
        call: &'static str,
        /// Why.
        error: CallError,
    },
    /// It was stopped.
    #[error("stopped")]
    Canceled,
    /// An answer is not what was asked for.
    #[error("{side}: GetRangeDigests: {what}")]
    Answer {
        /// A or B.
        side: Side,
        /// One line.
        what: &'static str,
    },
}

/// One of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The first.
    A,
    /// The second.
    B,
}

impl Side {
    /// The other one.
    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::A => "A",
            Self::B => "B",
        })
    }
}

/// An item that is not the same on both sides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Which.
    pub item_id: ItemId,
    /// What A has of it.
    pub a: Option<ItemDigest>,
    /// What B has of it.
    pub b: Option<ItemDigest>,
}

/// What the difference is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A sync carries it: the item is missing on one side, or has another version there.
    NotSynced,
    /// The content of one side is not what was recorded, and that of the other is: the other one's can take its place.
    Damaged(Side),
    /// Both sides say that they have the same version, or both are damaged, or a content cannot be read: for a person to decide.
    Undecided,
}

impl Difference {
    /// True when both have the same. Where one side has change units of an item, its digest is of the content alone, and that of the
    /// other side, which has it as a whole, of the properties, too: then the content decides. So it does for an item that waits to be
    /// brought anew.
    fn is_none(&self) -> bool {
        let (Some(a), Some(b)) = (&self.a, &self.b) else { return false };
        let is_sound = |item: &ItemDigest| matches!(item.content, ContentCheck::Unread | ContentCheck::AsRecorded);
        let content = |item: &ItemDigest| (item.content_size, item.content_digest);
        a.digest == b.digest
            || (a.version.is_some() != b.version.is_some() && is_sound(a) && is_sound(b) && content(a) == content(b))
    }

    /// What it is.
    pub fn kind(&self) -> Kind {
        let (Some(a), Some(b)) = (&self.a, &self.b) else { return Kind::NotSynced };
        let same_version = a.version.is_some() && a.version == b.version;
        match (&a.content, &b.content) {
            (ContentCheck::Damaged(_), ContentCheck::AsRecorded) if same_version => Kind::Damaged(Side::A),
            (ContentCheck::AsRecorded, ContentCheck::Damaged(_)) if same_version => Kind::Damaged(Side::B),
            (ContentCheck::Damaged(_) | ContentCheck::Unreadable(_), _)
            | (_, ContentCheck::Damaged(_) | ContentCheck::Unreadable(_)) => Kind::Undecided,
            _ if same_version => Kind::Undecided,
            _ => Kind::NotSynced,
        }
    }
}

/// What a comparison found, and what it took.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// In ascending order of the item id.
    pub differences: Vec<Difference>,
    /// Items of A and of B.
    pub items: [u64; 2],
    /// Digests of ranges that were exchanged.
    pub digests: u64,
    /// Items that were listed, on both sides together.
    pub listed: u64,
    /// Items that a session was prepared for, damaged at A and damaged at B.
    pub prepared: [Vec<ItemId>; 2],
}

/// What is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Content is read, and not taken as it was recorded.
    pub checksum: bool,
    /// Damaged items are prepared for a session that brings them anew.
    pub repair: bool,
}

/// Compares two replicas until it is done or `stop` is cancelled. A session of its own is begun on both and ended, whatever comes
/// in between.
///
/// # Errors
/// When they cannot be compared, a call fails, or it was stopped.
pub async fn verify(
    a: Arc<dyn Provider>,
    b: Arc<dyn Provider>,
    options: Options,
    stop: &CancellationToken,
) -> Result<Report, Error> {
    let session = Session { key: SessionKey { sync_guid: SyncGuid::generate(), epoch: 1 }, providers: [a, b] };
    session.meet().await?;
    let compared = async {
        session.begin().await?;
        let _leases = session.keep();
        session.compare(options).await
    };
    let outcome = tokio::select! {
        outcome = compared => outcome,
        () = stop.cancelled() => Err(Error::Canceled),
    };
    session.end(outcome.as_ref().err()).await;
    outcome
}

struct Session {
    key: SessionKey,
    /// A, then B.
    providers: [Arc<dyn Provider>; 2],
}

/// What is known of a range: A's and B's digest.
struct Compared {
    range: ItemRange,
    counts: [u64; 2],
}

impl Session {
    fn at(&self, side: Side) -> &Arc<dyn Provider> {
        match side {
            Side::A => &self.providers[0],
            Side::B => &self.providers[1],
        }
    }

    /// A call that is answered soon.
    async fn call<T>(
        side: Side,
        call: &'static str,
        answer: impl Future<Output = Result<T, CallError>>,
    ) -> Result<T, Error> {
        let answered = tokio::time::timeout(DEADLINE, answer).await;
        answered.unwrap_or(Err(CallError::Deadline(DEADLINE))).map_err(|error| Error::Call { side, call, error })
    }

    async fn meet(&self) -> Result<(), Error> {
        let ask = async |side| Self::call(side, "GetIdParameters", self.at(side).get_id_parameters()).await;
        let (a, b): (ProviderInfo, ProviderInfo) = tokio::try_join!(ask(Side::A), ask(Side::B))?;
        if a.replica_id == b.replica_id {
            return Err(Error::SameReplica(a.replica_id.to_string()));
        }
        if a.id_parameters != b.id_parameters {
            return Err(Error::IdFormat);
        }
        for (side, info) in [(Side::A, a), (Side::B, b)] {
            if !info.offers(RANGE_DIGESTS) {
                return Err(Error::NotOffered { side });
            }
        }
        Ok(())
    }

    /// Takes both; local changes are looked for meanwhile, which may take its time.
    async fn begin(&self) -> Result<(), Error> {
        let begin = async |side| {
            let request = BeginSession {
                role: ProviderRole::Source,
                session: SessionRef {
                    key: self.key,
                    token: Uuid::new_v4().to_string(),
                    lease: LEASE,
                    coordinator_address: None,
                },
                allow_mass_delete: false,
                operation_age: None,
                partner: None,
            };
            let begun = self.at(side).begin_session(request).await;
            begun.map_err(|error| Error::Call { side, call: "BeginSession", error })
        };
        let (a, b) = tokio::join!(begin(Side::A), begin(Side::B));
        a.and(b)
    }

    /// Renews the leases until it is dropped.
    fn keep(&self) -> AbortOnDropHandle<()> {
        let (key, providers) = (self.key, self.providers.clone());
        AbortOnDropHandle::new(tokio::spawn(async move {
            let mut rounds = tokio::time::interval(LEASE / 3);
            loop {
                rounds.tick().await;
                for provider in &providers {
                    // One that is gone fails in the call that waits for it.
                    drop(provider.renew_session(key, LEASE, false).await);
                }
            }
        }))
    }

    async fn end(&self, error: Option<&Error>) {
        let (hresult, message) = match error {
            None => (Hresult::S_OK, String::new()),
            Some(Error::Call { error, .. }) => (error.hresult(), error.to_string()),
            Some(error @ Error::Canceled) => (Hresult::E_ABORT, error.to_string()),
            Some(error) => (Hresult::E_FAIL, error.to_string()),
        };
        let state = match error {
            None => SyncState::Completed,
            Some(Error::Canceled) => SyncState::Interrupted,
            Some(_) => SyncState::InError,
        };
        let end = async |side| {
            let request =
                EndSession { key: self.key, state, hresult, message: message.clone(), provider_with_error: None };
            // One that is not in the session, or gone, needs no end; its lease ends the session else.
            drop(Self::call(side, "EndSession", self.at(side).end_session(request)).await);
        };
        tokio::join!(end(Side::A), end(Side::B));
    }

    async fn compare(&self, options: Options) -> Result<Report, Error> {
        let mut report = Report::default();
        let mut ranges = vec![ItemRange::all()];
        if options.checksum {
            let request =
                |ranges| RangeDigestsRequest { ranges, parts: CHECKED_PARTS, max_listed_items: 0, checksum: false };
            let parts = self.ask(Side::A, request, ranges, &mut report).await?;
            ranges = parts.into_iter().map(|part| part.range).collect();
        }
        let mut differing = self.differing(&ranges, options.checksum, &mut report).await?;
        report.items = differing.all;
        let mut listed = Vec::new();
        for round in 0.. {
            if differing.ranges.is_empty() {
                break;
            }
            if round == MAX_ROUNDS {
                return Err(Error::Answer {
                    side: Side::A,
                    what: "the counts of items do not fall when ranges are divided",
                });
            }
            let (small, large): (Vec<_>, Vec<_>) = differing
                .ranges
                .into_iter()
                .partition(|compared| compared.counts.iter().all(|count| *count <= u64::from(LISTED)));
            listed.extend(small.into_iter().map(|compared| compared.range));
            let [by_a, by_b]: [Vec<_>; 2] = [true, false].map(|a| {
                let divides = |compared: &&Compared| (compared.counts[0] >= compared.counts[1]) == a;
                large.iter().filter(divides).map(|compared| compared.range.clone()).collect()
            });
            let request =
                |ranges| RangeDigestsRequest { ranges, parts: PARTS, max_listed_items: 0, checksum: options.checksum };
            let mut parts = self.divided(Side::A, request, by_a, &mut report).await?;
            parts.extend(self.divided(Side::B, request, by_b, &mut report).await?);
            parts.sort_by(|a, b| a.range.lower_bound.cmp(&b.range.lower_bound));
            let ranges: Vec<_> = parts.into_iter().map(|part| part.range).collect();
            differing = self.differing(&ranges, options.checksum, &mut report).await?;
        }
        listed.sort_by(|a, b| a.lower_bound.cmp(&b.lower_bound));
        self.list(listed, options.checksum, &mut report).await?;
        if options.repair {
            self.repair(&mut report).await?;
        }
        Ok(report)
    }

    /// The parts of some ranges that hold more items than are listed.
    async fn divided(
        &self,
        side: Side,
        request: impl Fn(Vec<ItemRange>) -> RangeDigestsRequest,
        ranges: Vec<ItemRange>,
        report: &mut Report,
    ) -> Result<Vec<RangeDigest>, Error> {
        let parts = self.ask(side, request, ranges.clone(), report).await?;
        let is_whole = |part: &RangeDigest| {
            ranges
                .binary_search_by(|range| range.lower_bound.cmp(&part.range.lower_bound))
                .is_ok_and(|at| ranges[at] == part.range)
        };
        match parts.iter().any(is_whole) {
            true => Err(Error::Answer { side, what: "a range of several items is not divided" }),
            false => Ok(parts),
        }
    }

    /// Both sides' digests of the same ranges; those that differ.
    async fn differing(&self, ranges: &[ItemRange], checksum: bool, report: &mut Report) -> Result<Differing, Error> {
        let request = |ranges| RangeDigestsRequest { ranges, parts: 1, max_listed_items: 0, checksum };
        let (mut of_a, mut of_b) = (Report::default(), Report::default());
        let (a, b) = tokio::try_join!(
            self.ask(Side::A, request, ranges.to_vec(), &mut of_a),
            self.ask(Side::B, request, ranges.to_vec(), &mut of_b),
        )?;
        report.digests += of_a.digests + of_b.digests;
        let mut differing = Differing::default();
        for ((range, a), b) in ranges.iter().zip(a).zip(b) {
            differing.all[0] += a.count;
            differing.all[1] += b.count;
            if (a.count, a.digest) != (b.count, b.digest) {
                differing.ranges.push(Compared { range: range.clone(), counts: [a.count, b.count] });
            }
        }
        Ok(differing)
    }

    /// Lists the items of some small ranges, and finds those that differ.
    async fn list(&self, ranges: Vec<ItemRange>, checksum: bool, report: &mut Report) -> Result<(), Error> {
        let request = |ranges| RangeDigestsRequest { ranges, parts: 1, max_listed_items: LISTED, checksum };
        let a = self.ask(Side::A, request, ranges.clone(), report).await?;
        let b = self.ask(Side::B, request, ranges, report).await?;
        let mut items: BTreeMap<ItemId, Difference> = BTreeMap::new();
        for (side, parts) in [(Side::A, a), (Side::B, b)] {
            for item in parts.into_iter().flat_map(|part| part.items) {
                report.listed += 1;
                let empty = Difference { item_id: item.item_id.clone(), a: None, b: None };
                let difference = items.entry(item.item_id.clone()).or_insert(empty);
                match side {
                    Side::A => difference.a = Some(item),
                    Side::B => difference.b = Some(item),
                }
            }
        }
        report.differences.extend(items.into_values().filter(|it| !it.is_none()));
        Ok(())
    }

    /// First what is sound is given a version that will be sent, and only then what is damaged is given up.
    async fn repair(&self, report: &mut Report) -> Result<(), Error> {
        for (index, damaged) in [Side::A, Side::B].into_iter().enumerate() {
            let of_side = report.differences.iter().filter(|it| it.kind() == Kind::Damaged(damaged));
            let items: Vec<_> = of_side.map(|difference| difference.item_id.clone()).collect();
            for some in items.chunks(RANGES_AT_ONCE) {
                let at = async |side: Side, items: RepairItems| {
                    let repaired = self.at(side).repair_items(self.key, items).await;
                    repaired.map_err(|error| Error::Call { side, call: "RepairItems", error })
                };
                let sound = RepairItems { damaged: Vec::new(), sound: some.to_vec() };
                let sound = at(damaged.other(), sound).await?.sound;
                let given_up = at(damaged, RepairItems { damaged: sound, sound: Vec::new() }).await?.damaged;
                report.prepared[index].extend(given_up);
            }
        }
        Ok(())
    }

    /// Asks for all of the ranges, in as many calls as it takes. Every range is answered as a whole, by parts without a gap.
    async fn ask(
        &self,
        side: Side,
        request: impl Fn(Vec<ItemRange>) -> RangeDigestsRequest,
        ranges: Vec<ItemRange>,
        report: &mut Report,
    ) -> Result<Vec<RangeDigest>, Error> {
        let mut answered = Vec::new();
        let mut rest = &ranges[..];
        while !rest.is_empty() {
            let some = &rest[..rest.len().min(RANGES_AT_ONCE)];
            let request = request(some.to_vec());
            let name = "GetRangeDigests";
            let checksum = request.checksum;
            let answer = self.at(side).get_range_digests(self.key, request);
            let answer = match checksum {
                // Reading takes as long as it takes: the connection is what is watched meanwhile.
                true => answer.await.map_err(|error| Error::Call { side, call: name, error })?,
                false => Self::call(side, name, answer).await?,
            };
            let wrong = |what| Error::Answer { side, what };
            let count = answer.answered_ranges as usize;
            if count == 0 || count > some.len() {
                return Err(wrong("as many ranges are to be answered as were asked for, and at least one"));
            }
            let mut parts = answer.parts.iter();
            for range in &some[..count] {
                let mut lower = &range.lower_bound;
                loop {
                    let part = parts.next().ok_or_else(|| wrong("a range is not answered to its end"))?;
                    if part.range.lower_bound != *lower || !range.covers(&part.range) {
                        return Err(wrong("a part does not begin where the one before it ends"));
                    }
                    match &part.range.upper_bound {
                        upper if *upper == range.upper_bound => break,
                        Some(upper) => lower = upper,
                        None => return Err(wrong("a part goes beyond its range")),
                    }
                }
            }
            if parts.next().is_some() {
                return Err(wrong("there are parts of no range"));
            }
            report.digests += answer.parts.len() as u64;
            answered.extend(answer.parts);
            rest = &rest[count..];
        }
        Ok(answered)
    }
}

#[derive(Default)]
struct Differing {
    ranges: Vec<Compared>,
    /// Items of A and of B in all the ranges.
    all: [u64; 2],
}
