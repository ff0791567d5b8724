//! What all checks share: two clients, the marks, names for items, what an item of this store looks like; and the writes.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;
use prost_types::Timestamp;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use uuid::Uuid;

use super::model::{Entry, Model};
use super::store::{Data, Fault, Store, Write, whole};
use crate::check::bench::{fit, properties};
use crate::check::book::{Book, Held, Stop};
use crate::check::rule::Rule;
use crate::check::sample::{MAX_SAMPLE_BYTES, Sample};
use crate::check::wire::decoded_by;
use crate::check::{Options, SetupError};
use crate::grpc::convert::simple::{self as codec, Schema};
use crate::knowledge::{IdFormat, ItemId};
use crate::pb;

/// The modification time of the first item: in the past, so that no clock of a store can have made it.
const FIRST_TIME: i64 = 1_500_000_000;

/// What all checks share.
#[derive(Debug)]
pub(super) struct Bench {
    pub(super) store: Store,
    /// A client on a connection of its own.
    pub(super) other: Store,
    pub(super) book: Book,
    pub(super) options: Options,
    /// Distinguishes the items of this run from those of others.
    run: String,
    next_item: AtomicU32,
    next_time: AtomicI64,
    schema: OnceLock<Schema>,
    sample: OnceLock<Sample>,
    pub(super) model: Mutex<Model>,
    written: Mutex<BTreeSet<Bytes>>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An id, for people.
pub(super) fn shown(id: &Bytes) -> String {
    ItemId::from(&id[..]).to_string()
}

impl Bench {
    pub(super) fn new(options: Options) -> Result<Self, SetupError> {
        let store = Store::new(&options.address, options.patience)?;
        let other = store.beside(&options.address)?;
        let run = Uuid::new_v4().simple().to_string()[..8].to_owned();
        Ok(Self {
            store,
            other,
            book: Book::default(),
            options,
            run,
            next_item: AtomicU32::new(0),
            next_time: AtomicI64::new(FIRST_TIME),
            schema: OnceLock::new(),
            sample: OnceLock::new(),
            model: Mutex::default(),
            written: Mutex::default(),
        })
    }

    /// The next check knows nothing of what the last one did.
    pub(super) fn begin_check(&self) {
        self.store.transcript().clear();
        lock(&self.model).clear();
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
                self.book.held(Rule::StoreAnswers);
                Ok(answer)
            }
            Err(fault) => {
                let rule = if fault.code().is_some() { rule } else { Rule::StoreAnswers };
                Err(Stop::Broken { rule, message: format!("{rpc}: {fault}") })
            }
        }
    }

    /// The call must be refused, with one of these codes.
    pub(super) fn refused<T>(&self, rule: Rule, rpc: &str, result: Result<T, Fault>, codes: &[Code]) -> Held {
        let message = match result {
            Ok(_) => format!("{rpc} was answered, and is to be refused with {codes:?}"),
            Err(Fault::Status(status)) if codes.contains(&status.code()) => {
                self.judge_error_info(rpc, &status)?;
                self.book.held(rule);
                return Ok(());
            }
            Err(Fault::Status(status)) => {
                let (code, said) = (status.code(), status.message());
                format!("{rpc} was refused with {code:?} ({said}), and is to be with {codes:?}")
            }
            Err(fault) => return self.answered(rule, rpc, Err(fault)),
        };
        Err(Stop::Broken { rule, message })
    }

    /// A code is enough; what is said beside it must fit.
    fn judge_error_info(&self, rpc: &str, status: &Status) -> Held {
        let expected = match status.code() {
            Code::Aborted => "ITEM_CHANGED",
            Code::FailedPrecondition => "ANCHOR_EXPIRED",
            _ => return Ok(()),
        };
        let info = status.get_details_error_info().filter(|info| info.domain == "synclave");
        let reason = info.map(|info| info.reason);
        self.require(Rule::StoreErrorInfo, reason.as_deref().is_none_or(|reason| reason == expected), || {
            format!("{rpc} was refused with {:?} and the reason {reason:?}, which is to be {expected}", status.code())
        })
    }

    // --- the store ---

    /// Asks what the store is.
    pub(super) async fn ask_schema(&self, store: &Store) -> Held<pb::GetSchemaResponse> {
        let result = store.schema().await;
        if result.as_ref().is_err_and(|fault| fault.code() == Some(Code::Unimplemented)) {
            let message =
                "there is no SimpleSyncProviderService; leave --simple out to check a whole provider".to_owned();
            return Err(Stop::Broken { rule: Rule::StoreSchema, message });
        }
        let response = self.answered(Rule::StoreSchema, "GetSchema", result)?;
        let decode = |violations: &mut _| codec::schema(response.clone(), violations);
        let schema = decoded_by(Rule::StoreSchema, "GetSchema", decode)?;
        self.book.held(Rule::StoreSchema);
        self.schema.get_or_init(|| schema);
        Ok(response)
    }

    /// What the store first said of itself.
    pub(super) fn schema(&self) -> Held<&Schema> {
        self.schema.get().ok_or(Stop::Blocked)
    }

    /// Stops a check that is about anchors at a store without.
    pub(super) fn has_anchors(&self) -> Held {
        let none = || Stop::NotOffered("supports_anchors is false".to_owned());
        if self.schema()?.supports_anchors { Ok(()) } else { Err(none()) }
    }

    /// The first sample by which an item can be inserted.
    pub(super) async fn find_sample(&self) -> Held {
        let mut said = String::new();
        for sample in self.samples().await? {
            let data = self.data_like(&sample, "the first of its kind");
            let write = Write { id: self.item()?, expected: None, data };
            match self.store.write(&write, whole(write.data.parts())).await {
                Ok(version) => {
                    lock(&self.model).written(&write.id, write.data, version);
                    drop(self.sample.set(sample));
                    return Ok(());
                }
                Err(Fault::Status(status)) => said = format!("{:?} ({})", status.code(), status.message()),
                Err(fault) => return self.answered(Rule::StoreWrites, "InsertItem", Err(fault)),
            }
        }
        let message = format!(
            "no new item was taken, the last with {said}; put an item of your own into the store, after whose content the \
             check makes its own, and say with --template what properties items have"
        );
        Err(Stop::Broken { rule: Rule::StoreWrites, message })
    }

    async fn samples(&self) -> Held<Vec<Sample>> {
        let given = properties(&self.options.properties);
        let items = self.listed(&self.store, None).await?.items;
        let small = |item: &&pb::SimpleItem| item.content_size.is_none_or(|size| size <= MAX_SAMPLE_BYTES as u64);
        let mut samples = Vec::new();
        if let Some(item) = items.values().find(small) {
            let loaded = self.load(Rule::StoreData, &item.item_id, &item.item_version, 0).await?;
            let like = if given.is_empty() { item.properties.clone() } else { given.clone() };
            samples.push(Sample::like(like, &loaded.content));
        }
        samples.push(Sample::plain(given.clone()));
        if given.is_empty() {
            samples.push(Sample::plain([("kind".to_owned(), "file".to_owned())].into()));
        }
        Ok(samples)
    }

    pub(super) fn sample(&self) -> Held<&Sample> {
        self.sample.get().ok_or(Stop::Blocked)
    }

    // --- items ---

    /// A name for a new item of this run.
    pub(super) fn item(&self) -> Held<Bytes> {
        let number = self.next_item.fetch_add(1, Ordering::Relaxed);
        let name = format!("synclave-check-{}-{number:04}", self.run);
        let name = match &self.options.item_template {
            Some(template) => template.replace("{}", &name),
            None => name,
        };
        let longest = u16::try_from(self.schema()?.max_item_id_size).unwrap_or(u16::MAX);
        let id = fit(&name, &format!("{}{number:04}", self.run), IdFormat::Variable(longest));
        Ok(self.own(Bytes::copy_from_slice(id.as_bytes())))
    }

    /// An id that the run may have given to an item, which is deleted at the end.
    pub(super) fn own(&self, id: Bytes) -> Bytes {
        lock(&self.written).insert(id.clone());
        id
    }

    fn data_like(&self, sample: &Sample, text: &str) -> Data {
        self.data_of(sample, sample.content(text))
    }

    fn data_of(&self, sample: &Sample, content: Bytes) -> Data {
        let seconds = self.next_time.fetch_add(60, Ordering::Relaxed);
        let modification_time = Timestamp { seconds, nanos: 0 };
        Data { properties: sample.properties.clone(), content, modification_time }
    }

    /// Data with a content that is another one for another text.
    pub(super) fn data(&self, text: &str) -> Held<Data> {
        Ok(self.data_like(self.sample()?, text))
    }

    /// Data with this content.
    pub(super) fn with_content(&self, content: Bytes) -> Held<Data> {
        Ok(self.data_of(self.sample()?, content))
    }

    /// What the item must be like now.
    pub(super) fn entry(&self, id: &Bytes) -> Held<Entry> {
        lock(&self.model).get(id).cloned().ok_or(Stop::Blocked)
    }

    // --- writes that are in order ---

    /// Inserts a new item with a content of this text.
    pub(super) async fn create(&self, text: &str) -> Held<Bytes> {
        let id = self.item()?;
        self.insert(&id, self.data(text)?).await?;
        Ok(id)
    }

    pub(super) async fn insert(&self, id: &Bytes, data: Data) -> Held {
        self.insert_as(Rule::StoreWrites, id, data).await
    }

    /// Inserts an item; a refusal breaks `rule`.
    pub(super) async fn insert_as(&self, rule: Rule, id: &Bytes, data: Data) -> Held {
        let write = Write { id: id.clone(), expected: None, data };
        let result = self.store.write(&write, whole(write.data.parts())).await;
        self.take(rule, write, result)
    }

    /// Replaces an item's data.
    pub(super) async fn update(&self, id: &Bytes, data: Data) -> Held {
        self.update_as(Rule::StoreWrites, &self.store, id, data).await
    }

    /// Replaces an item's data, as one of the clients; a refusal breaks `rule`.
    pub(super) async fn update_as(&self, rule: Rule, store: &Store, id: &Bytes, data: Data) -> Held {
        let write = Write { id: id.clone(), expected: Some(self.entry(id)?.version), data };
        let result = store.write(&write, whole(write.data.parts())).await;
        self.take(rule, write, result)
    }

    /// A write that was to be done; a refusal breaks `rule`.
    pub(super) fn take(&self, rule: Rule, write: Write, result: Result<Bytes, Fault>) -> Held {
        let Write { id, expected, data } = write;
        let rpc = if expected.is_some() { "UpdateItem" } else { "InsertItem" };
        let version = self.answered(rule, rpc, result)?;
        self.book.held(rule);
        self.require(Rule::StoreWire, (1..=255).contains(&version.len()), || {
            format!("{rpc} answered with an item_version of {} bytes, and it has 1 to 255", version.len())
        })?;
        if let Some(expected) = expected {
            let before = lock(&self.model).get(&id).and_then(|entry| entry.data.clone());
            let other = before.is_none_or(|before| before.content != data.content);
            self.require(Rule::StoreVersion, !other || version != expected, || {
                format!("item {} has another content, and the same version as before", shown(&id))
            })?;
        }
        lock(&self.model).written(&id, data, version);
        Ok(())
    }

    /// Deletes an item.
    pub(super) async fn delete(&self, id: &Bytes) -> Held {
        let version = self.entry(id)?.version;
        self.answered(Rule::StoreWrites, "DeleteItem", self.store.delete(id, &version).await)?;
        self.book.held(Rule::StoreWrites);
        lock(&self.model).deleted(id);
        Ok(())
    }

    // --- the end ---

    /// Deletes every item of the run; the names of those that could not be deleted.
    pub(super) async fn clean(&self) -> Vec<String> {
        let written = lock(&self.written).clone();
        let Ok(frames) = self.store.list(None).await else { return written.iter().map(shown).collect() };
        let mut left = Vec::new();
        for frame in frames {
            let Some(pb::enumerate_items_response::Event::Items(items)) = frame.event else { continue };
            for item in items.items.iter().filter(|item| written.contains(&item.item_id)) {
                if self.store.delete(&item.item_id, &item.item_version).await.is_err() {
                    left.push(shown(&item.item_id));
                }
            }
        }
        left
    }
}
