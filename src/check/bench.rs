//! What all checks share: the connection, the marks, names for items, and what an item of this store looks like.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::book::{Book, Held, Stop};
use super::partner::Partner;
use super::rule::Rule;
use super::sample::Sample;
use super::session::Session;
use super::session_state::SessionStates;
use super::wire::{Fault, Wire, decoded};
use super::{Options, SetupError};
use crate::grpc::convert::provider;
use crate::knowledge::{Digest, IdFormat, IdParameters, ItemId, Knowledge, ReplicaId, Version};
use crate::pb;
use crate::provider::{ProviderInfo, Refusal, RefusalCode, SessionKey};
use crate::types::{Hresult, ProviderRole};

/// The lease of a session that is not about leases: longer than any check.
pub(super) const LONG_LEASE: Duration = Duration::from_secs(60);

/// Above every epoch that a check uses, so that what it left open is ended whatever epoch it came to.
const END_EPOCH: u64 = 1_000_000;

/// What all checks share.
#[derive(Debug)]
pub(super) struct Bench {
    pub(super) wire: Wire,
    pub(super) states: SessionStates,
    pub(super) book: Book,
    pub(super) options: Options,
    /// Distinguishes the items of this run from those of others.
    run: String,
    next_item: AtomicU32,
    info: OnceLock<ProviderInfo>,
    sample: OnceLock<Sample>,
    open: Mutex<Vec<SessionKey>>,
    written: Mutex<BTreeSet<ItemId>>,
    partners: Mutex<Vec<Arc<Partner>>>,
    contents: Mutex<HashMap<Version, Digest>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Bench {
    pub(super) async fn new(options: Options) -> Result<Self, SetupError> {
        let wire = Wire::new(&options.address, options.patience)?;
        let states = SessionStates::serve(&options, wire.transcript().clone()).await?;
        let run = Uuid::new_v4().simple().to_string()[..8].to_owned();
        Ok(Self {
            wire,
            states,
            book: Book::default(),
            options,
            run,
            next_item: AtomicU32::new(0),
            info: OnceLock::new(),
            sample: OnceLock::new(),
            open: Mutex::default(),
            written: Mutex::default(),
            partners: Mutex::default(),
            contents: Mutex::default(),
        })
    }

    // --- judging ---

    /// Marks the rule, or stops the check by it.
    pub(super) fn require(&self, rule: Rule, holds: bool, message: impl FnOnce() -> String) -> Held {
        self.book.require(rule, holds, message)
    }

    /// The answer of a call that is in order; a refusal of it breaks `rule`.
    pub(super) fn answered<T>(&self, rule: Rule, rpc: &str, result: Result<T, Fault>) -> Held<T> {
        match result {
            Ok(answer) => {
                self.book.held(Rule::Answers);
                Ok(answer)
            }
            Err(fault) => Err(fault.breaks(rpc, rule)),
        }
    }

    /// The refusal of a call that is not in order.
    pub(super) fn refused<T>(&self, rule: Rule, rpc: &str, result: Result<T, Fault>) -> Held<Refusal> {
        match result {
            Ok(_) => Err(Stop::Broken { rule, message: format!("{rpc} was answered, and is to be refused") }),
            Err(Fault::Refused(refusal)) => {
                self.book.held(Rule::ErrorInfo);
                self.book.held(rule);
                Ok(refusal)
            }
            Err(fault @ Fault::Bare(_)) => {
                Err(Stop::Broken { rule: Rule::ErrorInfo, message: format!("{rpc} {}", fault.words()) })
            }
            Err(fault @ Fault::Silent(_)) => Err(fault.breaks(rpc, rule)),
        }
    }

    /// The call must be refused with this HRESULT.
    pub(super) fn refused_with<T>(&self, rule: Rule, rpc: &str, result: Result<T, Fault>, hresult: Hresult) -> Held {
        let refusal = self.refused(rule, rpc, result)?;
        self.require(rule, refusal.hresult == hresult, || {
            format!("{rpc} was refused with {:?} {}, and is to be with {hresult:?}", refusal.code, refusal.reason)
        })
    }

    /// The call must be refused with SYNC_E_INVALID_OPERATION.
    pub(super) fn illegal<T>(&self, rule: Rule, rpc: &str, result: Result<T, Fault>) -> Held {
        self.refused_with(rule, rpc, result, Hresult::SYNC_E_INVALID_OPERATION)
    }

    /// The call must be refused with INVALID_ARGUMENT.
    pub(super) fn malformed<T>(&self, rpc: &str, what: &str, result: Result<T, Fault>) -> Held {
        let refusal = self.refused(Rule::Malformed, &format!("{rpc} with {what}"), result)?;
        self.require(Rule::Malformed, refusal.code == RefusalCode::InvalidArgument, || {
            format!("{rpc} with {what} was refused with {:?}, and is to be with InvalidArgument", refusal.code)
        })
    }

    // --- the provider ---

    /// Asks who the provider is.
    pub(super) async fn ask_identity(&self) -> Held<ProviderInfo> {
        let rpc = "GetIdParameters";
        let response =
            self.answered(Rule::OnlyInSession, rpc, self.wire.get_id_parameters(pb::GetIdParametersRequest {}).await)?;
        let info = decoded(rpc, |violations| provider::provider_info(response, violations))?;
        self.info.get_or_init(|| info.clone());
        Ok(info)
    }

    /// What the provider first said of itself.
    pub(super) fn info(&self) -> Held<&ProviderInfo> {
        self.info.get().ok_or(Stop::Blocked)
    }

    pub(super) fn schema(&self) -> Held<IdParameters> {
        Ok(self.info()?.id_parameters)
    }

    pub(super) fn replica(&self) -> Held<ReplicaId> {
        Ok(self.info()?.replica_id.clone())
    }

    pub(super) fn nothing_known(&self) -> Held<Knowledge> {
        Ok(Knowledge::new(self.schema()?.item_id))
    }

    // --- sessions ---

    /// Begins a session of the usual kind.
    pub(super) async fn begin(&self, role: ProviderRole) -> Held<Session<'_>> {
        let session = Session::new(self, role, LONG_LEASE);
        session.begin_as(Rule::Enlists).await?;
        Ok(session)
    }

    pub(super) fn opened(&self, key: SessionKey) {
        lock(&self.open).push(key);
    }

    /// It is over, by its EndSession or by its lease.
    pub(super) fn closed(&self, key: SessionKey) {
        lock(&self.open).retain(|open| open.sync_guid != key.sync_guid);
    }

    /// EndSession, of which the provider hears at SessionStateService too.
    pub(super) async fn end_session(
        &self,
        key: SessionKey,
    ) -> Result<pb::KnowledgeSyncProviderServiceEndSessionResponse, Fault> {
        self.states.ending(key.sync_guid, true);
        let result = self.wire.end_session(Session::end_request(key)).await;
        if result.is_ok() {
            self.states.ended(key.sync_guid);
            self.closed(key);
        } else {
            self.states.ending(key.sync_guid, false);
        }
        result
    }

    /// Ends what a check that stopped left open.
    pub(super) async fn close_all(&self) {
        let open = std::mem::take(&mut *lock(&self.open));
        for key in open {
            // What becomes of it shows when the next check begins a session.
            let key = SessionKey { epoch: END_EPOCH, ..key };
            drop(self.end_session(key).await);
        }
    }

    /// The provider's knowledge, asked for in a session of its own.
    pub(super) async fn knowledge(&self) -> Held<Knowledge> {
        let session = self.begin(ProviderRole::Destination).await?;
        let knowledge = session.parameters().await?;
        session.end().await?;
        Ok(knowledge)
    }

    // --- partners ---

    /// One of the partners that all checks share, so that a run leaves few replicas behind in the provider's knowledge.
    pub(super) fn partner(&self, index: usize) -> Held<Arc<Partner>> {
        while lock(&self.partners).len() <= index {
            self.new_partner()?;
        }
        lock(&self.partners).get(index).cloned().ok_or(Stop::Blocked)
    }

    /// A partner for a check in which it has to be sure what the provider knows of it.
    pub(super) fn new_partner(&self) -> Held<Arc<Partner>> {
        let partner = Arc::new(Partner::new(self)?);
        lock(&self.partners).push(partner.clone());
        Ok(partner)
    }

    /// All that the partners did.
    pub(super) fn all_partners(&self) -> Held<Knowledge> {
        let format = self.schema()?.item_id;
        let partners = lock(&self.partners);
        Ok(Knowledge::union_all(format, partners.iter().map(|partner| partner.own_knowledge(format))))
    }

    // --- items ---

    /// What an item of this store looks like.
    pub(super) fn sample(&self) -> Held<&Sample> {
        self.sample.get().ok_or(Stop::Blocked)
    }

    /// A sample turned out to be applied.
    pub(super) fn set_sample(&self, sample: Sample) {
        drop(self.sample.set(sample));
    }

    /// A new item of this run; items ascend in the order in which they are named.
    pub(super) fn item(&self) -> Held<ItemId> {
        let number = self.next_item.fetch_add(1, Ordering::Relaxed);
        let name = format!("synclave-check-{}-{number:04}", self.run);
        let name = match &self.options.item_template {
            Some(template) => template.replace("{}", &name),
            None => name,
        };
        let id = fit(&name, &format!("{}{number:04}", self.run), self.schema()?.item_id);
        lock(&self.written).insert(id.clone());
        Ok(id)
    }

    /// Every item that the run has named, and those that came about by it.
    pub(super) fn written(&self) -> BTreeSet<ItemId> {
        lock(&self.written).clone()
    }

    /// A partner's version has this content, for good.
    pub(super) fn has_content(&self, version: &Version, content: Digest) {
        lock(&self.contents).insert(version.clone(), content);
    }

    /// The content of a partner's version; `None` for versions of others.
    pub(super) fn content_of(&self, version: &Version) -> Option<Digest> {
        lock(&self.contents).get(version).copied()
    }

    /// An item came about by what the run did, such as a conflict's copy.
    pub(super) fn came_about(&self, item: ItemId) {
        lock(&self.written).insert(item);
    }
}

/// A name as an id of the format; where it does not fit, the short one, or as much of a digest as fits.
pub(super) fn fit(name: &str, short: &str, format: IdFormat) -> ItemId {
    let padded = |text: &str, size: u16| {
        let mut bytes = text.as_bytes().to_vec();
        bytes.resize(usize::from(size), b'0');
        ItemId::from(bytes)
    };
    let digest = Sha256::digest(name.as_bytes());
    let as_digest = |size: u16| ItemId::from(&digest[..usize::from(size).min(digest.len())]);
    match format {
        IdFormat::Variable(most) if name.len() <= usize::from(most) => ItemId::from(name),
        IdFormat::Variable(most) if short.len() <= usize::from(most) => ItemId::from(short),
        IdFormat::Fixed(size) if name.len() <= usize::from(size) => padded(name, size),
        IdFormat::Fixed(size) if short.len() <= usize::from(size) => padded(short, size),
        IdFormat::Variable(size) | IdFormat::Fixed(size) => as_digest(size),
    }
}

/// Properties from `KEY=VALUE` texts.
pub(super) fn properties(pairs: &[(String, String)]) -> BTreeMap<String, String> {
    pairs.iter().cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_every_format() {
        let (name, short) = ("synclave-check-0123abcd-0007", "0123abcd0007");
        for format in [4096, 28, 20, 12, 8, 1].map(IdFormat::Variable) {
            assert!(format.fits(fit(name, short, format).as_bytes().len()), "{format:?}");
        }
        for format in [64, 28, 24, 16, 12, 8, 1].map(IdFormat::Fixed) {
            assert!(format.fits(fit(name, short, format).as_bytes().len()), "{format:?}");
        }
    }
}
