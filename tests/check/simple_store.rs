//! A simple store in memory, honest or with one fault, over real gRPC.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use prost_types::Timestamp;
use sha2::{Digest as _, Sha256};
use synclave::pb::enumerate_items_response::Event;
use synclave::pb::simple_sync_provider_service_server::{SimpleSyncProviderService, SimpleSyncProviderServiceServer};
use synclave::pb::{self, load_item_response};
use tokio_stream::{Stream, StreamExt as _};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt as _};

/// What is wrong with a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    HangsAtTheEnd,
    GivesNoVersion,
    SendsHugeMessages,
    SaysAnotherReason,
    StoresWhatHasNoId,
    StoresWithoutAStart,
    LimpsAfterMalformed,
    ClaimsLongIds,
    LearnsSkillsLater,
    NewStoreIdEachTime,
    NewInstanceEachTime,
    NeverCompletes,
    GoesOnAfterComplete,
    LosesAnItem,
    ListsTwice,
    ListsWhatIsGone,
    ListsOldVersions,
    ListsDeletionsAlways,
    RenewsVersions,
    KeepsVersions,
    ListsOtherSizes,
    ListsOtherDigests,
    OmitsDigests,
    LosesTimes,
    LosesProperties,
    OmitsAnchors,
    LosesUpdates,
    LosesDeletions,
    AnchorsTooLate,
    TakesAnyAnchor,
    SendsNoHeader,
    GivesWrongDigests,
    ChangesContent,
    IgnoresOffsets,
    DigestsTheRest,
    LoadsAnyVersion,
    MixesVersions,
    LoadsWhatIsGone,
    ThrowsOnWhatIsGone,
    RefusesUpdates,
    AnswersAnotherVersion,
    InsertsOverItems,
    UpdatesAnyVersion,
    DeletesAnyVersion,
    SaysChangedAndDeletes,
    RemembersTheDead,
    ShowsTheUnended,
    StoresTheUnended,
    StoresTheBrokenOff,
    IgnoresDigests,
    KeepsWhatIsEmptied,
    RefusesLargeItems,
    KeepsClientsApart,
    ChecksAtTheStart,
    ChecksTooEarly,
    CutsLongIds,
    TakesLongIds,
    FoldsCase,
}

use Mutant as M;

/// Bytes of the longest id.
const MAX_ID: usize = 200;
const CHUNK: usize = 256 * 1024;

#[derive(Clone, Debug, PartialEq)]
struct Item {
    content: Bytes,
    properties: BTreeMap<String, String>,
    modified: Option<Timestamp>,
    version: u64,
}

#[derive(Debug, Default)]
struct State {
    items: BTreeMap<Bytes, Item>,
    /// Of items that are gone.
    graves: BTreeMap<Bytes, Item>,
    /// Which item changed at which tick of the clock, and whether it was new then.
    changes: Vec<(u64, Bytes, bool)>,
    clock: u64,
    asked: u64,
    /// Lists since an item was written.
    lists: BTreeMap<Bytes, u64>,
    /// Inserts that still fail.
    limping: u32,
    /// Writers other than the first are not seen by it at once.
    writers: BTreeMap<Bytes, SocketAddr>,
}

/// What a store can do.
#[derive(Clone, Copy, Debug)]
pub struct Skills {
    pub anchors: bool,
    pub digests: bool,
    pub properties: bool,
    /// Versions are made of the content, so that they come again with it.
    pub versions_of_content: bool,
}

pub const SKILLED: Skills = Skills { anchors: true, digests: true, properties: true, versions_of_content: false };
pub const PLAIN: Skills = Skills { anchors: false, digests: false, properties: false, versions_of_content: true };

#[derive(Clone, Debug)]
pub struct SimpleStore {
    mutant: Option<Mutant>,
    skills: Skills,
    state: Arc<Mutex<State>>,
}

/// A part of a write, whichever it is of.
enum Part {
    Start { id: Bytes, expected: Option<Bytes>, header: pb::ItemDataHeader, modified: Option<Timestamp> },
    Chunk(Bytes),
    End(Bytes),
}

type Parts = Pin<Box<dyn Stream<Item = Result<Option<Part>, Status>> + Send>>;

type Boxed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn digest(content: &[u8]) -> Bytes {
    Bytes::copy_from_slice(&Sha256::digest(content))
}

fn listed(event: Event) -> pb::EnumerateItemsResponse {
    pb::EnumerateItemsResponse { event: Some(event) }
}

fn with_reason(code: Code, message: &str, reason: &str) -> Status {
    Status::with_error_details(code, message, ErrorDetails::with_error_info(reason, "synclave", HashMap::new()))
}

impl SimpleStore {
    pub fn new(mutant: Option<Mutant>, skills: Skills) -> Self {
        Self { mutant, skills, state: Arc::default() }
    }

    /// Serves on loopback until the token is cancelled; the address.
    pub async fn serve(&self, stop: CancellationToken) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = format!("http://{}", listener.local_addr().expect("bound"));
        // A message above the limit is for the kit to see.
        let service = SimpleSyncProviderServiceServer::new(self.clone()).max_encoding_message_size(64 << 20);
        let server = tonic::transport::Server::builder().add_service(service);
        let incoming = synclave::server::incoming(listener);
        tokio::spawn(async move { server.serve_with_incoming_shutdown(incoming, stop.cancelled_owned()).await });
        address
    }

    pub fn is_empty(&self) -> bool {
        self.state().items.is_empty()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    fn id(&self, id: &Bytes) -> Bytes {
        match self.mutant {
            Some(M::FoldsCase) => Bytes::from(id.to_ascii_lowercase()),
            Some(M::CutsLongIds) => id.slice(..id.len().min(MAX_ID)),
            _ => id.clone(),
        }
    }

    fn changed(&self) -> Status {
        let reason = if self.is(M::SaysAnotherReason) { "ITEM_BUSY" } else { "ITEM_CHANGED" };
        with_reason(Code::Aborted, "it is at another version", reason)
    }

    fn gone(&self) -> Status {
        let code = if self.is(M::ThrowsOnWhatIsGone) { Code::Unknown } else { Code::NotFound };
        Status::new(code, "there is no such item")
    }

    fn version(&self, state: &State, id: &Bytes, item: &Item) -> Bytes {
        let mut version = item.version.to_string();
        let lists = state.lists.get(id).copied().unwrap_or_default();
        if self.is(M::RenewsVersions) && lists > 1 {
            version.push_str(&format!(".{lists}"));
        }
        Bytes::from(version)
    }

    fn is_at(&self, item: &Item, expected: &[u8]) -> bool {
        let expected = std::str::from_utf8(expected).unwrap_or_default();
        expected.split('.').next() == Some(&item.version.to_string())
    }

    /// Whether an item is, or is not, as a writer expects; `None` is to be new.
    fn expect(&self, state: &State, id: &Bytes, expected: Option<&Bytes>) -> Result<(), Status> {
        match (expected, state.items.get(id)) {
            (None, Some(_)) if !self.is(M::InsertsOverItems) => Err(Status::already_exists("there is such an item")),
            (None, None) if self.is(M::RemembersTheDead) && state.graves.contains_key(id) => {
                Err(Status::already_exists("there was such an item"))
            }
            (Some(_), None) => Err(self.gone()),
            (Some(expected), Some(item)) if !self.is_at(item, expected) && !self.is(M::UpdatesAnyVersion) => {
                Err(self.changed())
            }
            _ => Ok(()),
        }
    }

    fn put(&self, state: &mut State, id: &Bytes, mut item: Item) -> Bytes {
        state.clock += 1;
        let before = state.items.get(id).cloned();
        state.changes.push((state.clock, id.clone(), before.is_none()));
        item.version = match &before {
            Some(before) if self.is(M::KeepsVersions) => before.version,
            _ if self.skills.versions_of_content => digest(&item.content).get_u64(),
            _ => state.clock,
        };
        if self.is(M::LosesTimes) {
            item.modified = None;
        }
        if self.is(M::LosesProperties) && before.is_some() {
            item.properties.clear();
        }
        if let Some(before) = before.filter(|_| self.is(M::KeepsWhatIsEmptied) && item.content.is_empty()) {
            item.content = before.content;
        }
        let version = Bytes::from(item.version.to_string());
        state.items.insert(id.clone(), item);
        state.lists.insert(id.clone(), 0);
        if self.is(M::AnswersAnotherVersion) { Bytes::from_static(b"another") } else { version }
    }

    fn remove(&self, state: &mut State, id: &Bytes) {
        state.clock += 1;
        state.changes.push((state.clock, id.clone(), false));
        if let Some(item) = state.items.remove(id) {
            state.graves.insert(id.clone(), item);
        }
    }

    async fn run(self, parts: Parts, from: Option<SocketAddr>) -> Result<Bytes, Status> {
        if self.is(M::StoresTheBrokenOff) {
            // Goes on when nobody waits for it any more, and then is told so.
            let task = tokio::spawn(async move { self.write(parts, from).await });
            return task.await.expect("it does not panic");
        }
        self.write(parts, from).await
    }

    async fn write(&self, mut parts: Parts, from: Option<SocketAddr>) -> Result<Bytes, Status> {
        let first = parts.next().await.transpose()?;
        if self.is(M::LimpsAfterMalformed) && matches!(first, Some(None)) {
            // The next insert of the kit is one that no handler sees.
            self.state().limping = 2;
        }
        let Some(Part::Start { id, expected, header, modified }) = first.flatten() else {
            if self.is(M::StoresWithoutAStart) {
                let item = Item { content: Bytes::new(), properties: BTreeMap::new(), modified: None, version: 0 };
                return Ok(self.put(&mut self.state(), &Bytes::from_static(b"nameless"), item));
            }
            return Err(Status::invalid_argument("the first part is a start"));
        };
        let fits = (1..=MAX_ID).contains(&id.len());
        let takes = (id.is_empty() && self.is(M::StoresWhatHasNoId))
            || (id.len() > MAX_ID && (self.is(M::CutsLongIds) || self.is(M::TakesLongIds)));
        if !fits && !takes {
            return Err(Status::invalid_argument("an id has 1 to 200 bytes"));
        }
        let folded = self.id(&id) != id && self.is(M::FoldsCase);
        let id = if id.is_empty() { Bytes::from_static(b"nameless") } else { self.id(&id) };
        let early = self.is(M::ChecksAtTheStart) || self.is(M::ChecksTooEarly);
        if self.is(M::ChecksAtTheStart) {
            self.expect(&self.state(), &id, expected.as_ref())?;
        }
        if self.is(M::RefusesUpdates) && expected.is_some() {
            return Err(Status::permission_denied("this store is for ever"));
        }
        let mut content = Vec::new();
        let mut early_bird = false;
        let properties = if self.skills.properties { header.properties } else { BTreeMap::new() };
        let modified = modified.filter(|_| self.skills.digests);
        let item = |content: &[u8]| Item {
            content: Bytes::copy_from_slice(content),
            properties: properties.clone(),
            modified,
            version: 0,
        };
        let end = loop {
            match parts.next().await {
                Some(Ok(Some(Part::Chunk(chunk)))) => {
                    content.extend_from_slice(&chunk);
                    if self.is(M::ShowsTheUnended) && expected.is_none() {
                        let mut state = self.state();
                        if !state.items.contains_key(&id) {
                            self.put(&mut state, &id, item(&content));
                            early_bird = true;
                        }
                    }
                }
                Some(Ok(Some(Part::End(digest)))) => break digest,
                Some(Ok(_)) => return Err(Status::invalid_argument("a part is a chunk or an end")),
                Some(Err(_)) if self.is(M::StoresTheBrokenOff) => break digest(&content),
                Some(Err(error)) => return Err(error),
                None if self.is(M::StoresTheUnended) => break digest(&content),
                None => return Err(Status::invalid_argument("there is no end")),
            }
        };
        if end != digest(&content) && !self.is(M::IgnoresDigests) {
            return Err(Status::invalid_argument("the content is not what was announced"));
        }
        if content.len() > 4 << 20 && self.is(M::RefusesLargeItems) {
            return Err(Status::resource_exhausted("4 MiB are enough"));
        }
        if self.is(M::ChecksTooEarly) {
            self.expect(&self.state(), &id, expected.as_ref())?;
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        let mut state = self.state();
        if early_bird {
            return Ok(self.put(&mut state, &id, item(&content)));
        }
        if !early && !folded {
            self.expect(&state, &id, expected.as_ref())?;
        }
        if let Some(from) = from {
            state.writers.insert(id.clone(), from);
        }
        let version = self.put(&mut state, &id, item(&content));
        Ok(if self.is(M::GivesNoVersion) { Bytes::new() } else { version })
    }

    fn listed_item(&self, state: &State, id: &Bytes, item: &Item) -> pb::SimpleItem {
        let digests = self.skills.digests && !self.is(M::OmitsDigests);
        let size = item.content.len() as u64 + u64::from(self.is(M::ListsOtherSizes));
        let digest = if self.is(M::ListsOtherDigests) { digest(b"another") } else { digest(&item.content) };
        let version = match self.mutant {
            Some(M::ListsOldVersions) => {
                let changes = state.changes.iter().rev().filter(|(_, changed, _)| changed == id);
                Bytes::from(changes.map(|(tick, ..)| *tick).take(2).last().unwrap_or_default().to_string())
            }
            _ => self.version(state, id, item),
        };
        pb::SimpleItem {
            item_id: id.clone(),
            item_version: version,
            properties: item.properties.clone(),
            content_size: digests.then_some(size),
            content_digest: digests.then_some(digest),
            modification_time: item.modified,
        }
    }

    /// What a list has to say, and its anchor.
    fn events(&self, since: Option<u64>, asked_by: Option<SocketAddr>) -> (Vec<Event>, u64) {
        let mut state = self.state();
        let ids: BTreeSet<Bytes> = match since {
            None => state.items.keys().cloned().collect(),
            Some(since) => {
                let after = state.changes.iter().filter(|(tick, ..)| *tick > since);
                let there = |id: &Bytes| state.items.contains_key(id);
                let kept = after.filter(|(_, id, new)| match self.mutant {
                    Some(M::LosesUpdates) => *new || !there(id),
                    Some(M::LosesDeletions) => there(id),
                    _ => true,
                });
                kept.map(|(_, id, _)| id.clone()).collect()
            }
        };
        let mut events = Vec::new();
        let mut deletions = Vec::new();
        for id in ids {
            *state.lists.entry(id.clone()).or_default() += 1;
            let Some(item) = state.items.get(&id) else {
                deletions.push(id);
                continue;
            };
            let foreign = self.is(M::KeepsClientsApart)
                && asked_by.is_some_and(|by| state.writers.get(&id).is_some_and(|writer| *writer != by));
            if !foreign {
                events.push(Event::Items(pb::SimpleItems { items: vec![self.listed_item(&state, &id, item)] }));
            }
        }
        if since.is_none() {
            match self.mutant {
                Some(M::LosesAnItem) => drop(events.pop()),
                Some(M::ListsTwice) => events.extend(events.first().cloned()),
                Some(M::ListsWhatIsGone) => {
                    let gone = state.graves.iter().filter(|(id, _)| !state.items.contains_key(*id));
                    let items = gone.map(|(id, item)| self.listed_item(&state, id, item)).collect();
                    events.push(Event::Items(pb::SimpleItems { items }));
                }
                Some(M::ListsDeletionsAlways) => deletions.push(Bytes::from_static(b"long ago")),
                _ => {}
            }
        }
        if !deletions.is_empty() {
            events.push(Event::Deletions(pb::SimpleDeletions { item_ids: deletions }));
        }
        (events, state.clock)
    }
}

#[tonic::async_trait]
impl SimpleSyncProviderService for SimpleStore {
    type EnumerateItemsStream = Boxed<pb::EnumerateItemsResponse>;
    type LoadItemStream = Boxed<pb::LoadItemResponse>;

    async fn get_schema(&self, _: Request<pb::GetSchemaRequest>) -> Result<Response<pb::GetSchemaResponse>, Status> {
        let mut state = self.state();
        state.asked += 1;
        let each = |mutant| if self.is(mutant) { state.asked.to_string() } else { "one".to_owned() };
        Ok(Response::new(pb::GetSchemaResponse {
            store_id: Bytes::from(each(M::NewStoreIdEachTime)),
            instance_id: each(M::NewInstanceEachTime),
            member_name: "in memory".to_owned(),
            max_item_id_size: if self.is(M::ClaimsLongIds) { 5_000 } else { MAX_ID as u32 },
            supports_anchors: self.skills.anchors,
            supports_digests: self.skills.digests,
            supports_properties: self.skills.properties && (!self.is(M::LearnsSkillsLater) || state.asked > 2),
            capabilities: vec!["SOMETHING_NEW".to_owned()],
        }))
    }

    async fn enumerate_items(
        &self,
        request: Request<pb::EnumerateItemsRequest>,
    ) -> Result<Response<Self::EnumerateItemsStream>, Status> {
        let asked_by = request.remote_addr();
        let since = match request.into_inner().since_anchor.filter(|_| self.skills.anchors) {
            None => None,
            Some(anchor) => {
                let known = std::str::from_utf8(&anchor).ok().and_then(|anchor| anchor.parse().ok());
                let expired = || with_reason(Code::FailedPrecondition, "no such anchor", "ANCHOR_EXPIRED");
                let taken = if self.is(M::TakesAnyAnchor) { known.or(Some(0)) } else { known };
                Some(taken.ok_or_else(expired)?)
            }
        };
        let (mut events, mut anchor) = self.events(since, asked_by);
        if self.is(M::AnchorsTooLate) {
            tokio::time::sleep(Duration::from_millis(40)).await;
            anchor = self.state().clock;
        }
        if self.is(M::NeverCompletes) {
            events.pop();
        } else {
            let anchor = Bytes::from(anchor.to_string());
            let anchor = Some(anchor).filter(|_| self.skills.anchors && !self.is(M::OmitsAnchors));
            events.push(Event::Complete(pb::EnumerationComplete { anchor }));
        }
        if self.is(M::GoesOnAfterComplete) {
            events.push(Event::Items(pb::SimpleItems { items: Vec::new() }));
        }
        Ok(Response::new(Box::pin(tokio_stream::iter(events.into_iter().map(|event| Ok(listed(event)))))))
    }

    async fn load_item(&self, request: Request<pb::LoadItemRequest>) -> Result<Response<Self::LoadItemStream>, Status> {
        use load_item_response::Part;
        let pb::LoadItemRequest { item_id, expected_item_version, offset } = request.into_inner();
        let id = self.id(&item_id);
        let item = {
            let state = self.state();
            let dead = state.graves.get(&id).filter(|_| self.is(M::LoadsWhatIsGone));
            let found = state.items.get(&id);
            let item = found.or(dead).cloned().ok_or_else(|| self.gone())?;
            let exact = self.is_at(&item, &expected_item_version) || self.is(M::LoadsAnyVersion);
            if !exact && found.is_some() {
                return Err(self.changed());
            }
            item
        };
        if self.is(M::HangsAtTheEnd) && offset == item.content.len() as u64 && offset > 0 {
            std::future::pending::<()>().await;
        }
        let offset = if self.is(M::IgnoresOffsets) { 0 } else { offset as usize };
        let mut content = item.content;
        if self.is(M::ChangesContent) && !content.is_empty() {
            let mut other = content.to_vec();
            other[0] ^= 1;
            content = Bytes::from(other);
        }
        let header = pb::ItemDataHeader {
            properties: item.properties,
            content_size: content.len() as u64,
            content_digest: None,
        };
        let end = match self.mutant {
            Some(M::GivesWrongDigests) => digest(b"another"),
            Some(M::DigestsTheRest) => digest(&content[offset.min(content.len())..]),
            _ => digest(&content),
        };
        let chunk_bytes = if self.is(M::SendsHugeMessages) { 16 << 20 } else { CHUNK };
        let (store, mut last) = (self.clone(), end);
        let chunks = (offset..content.len()).step_by(chunk_bytes).map({
            let id = id.clone();
            move |at| {
                let range = at..(at + chunk_bytes).min(content.len());
                if store.is(M::MixesVersions)
                    && let Some(now) = store.state().items.get(&id)
                {
                    return Bytes::copy_from_slice(now.content.get(range).unwrap_or_default());
                }
                content.slice(range)
            }
        });
        let header = (!self.is(M::SendsNoHeader)).then_some(Part::Header(header));
        let end =
            std::iter::once_with(move || Part::End(pb::ItemDataEnd { content_digest: std::mem::take(&mut last) }));
        let parts = header.into_iter().chain(chunks.map(Part::Chunk)).chain(end);
        let response = |part| Ok(pb::LoadItemResponse { part: Some(part) });
        Ok(Response::new(Box::pin(tokio_stream::iter(parts.map(response)))))
    }

    async fn insert_item(
        &self,
        request: Request<Streaming<pb::InsertItemRequest>>,
    ) -> Result<Response<pb::InsertItemResponse>, Status> {
        use pb::insert_item_request::Part as P;
        let limps = {
            let mut state = self.state();
            let limps = state.limping == 1;
            state.limping = state.limping.saturating_sub(1);
            limps
        };
        if limps {
            return Err(Status::internal("what was that?"));
        }
        let from = request.remote_addr();
        let part = |request: pb::InsertItemRequest| {
            request.part.map(|part| match part {
                P::Start(start) => Part::Start {
                    id: start.item_id,
                    expected: None,
                    header: start.header.unwrap_or_default(),
                    modified: start.modification_time,
                },
                P::Chunk(chunk) => Part::Chunk(chunk),
                P::End(end) => Part::End(end.content_digest),
            })
        };
        let parts = request.into_inner().map(move |request| request.map(part));
        let item_version = self.clone().run(Box::pin(parts), from).await?;
        Ok(Response::new(pb::InsertItemResponse { item_version }))
    }

    async fn update_item(
        &self,
        request: Request<Streaming<pb::UpdateItemRequest>>,
    ) -> Result<Response<pb::UpdateItemResponse>, Status> {
        use pb::update_item_request::Part as P;
        let from = request.remote_addr();
        let part = |request: pb::UpdateItemRequest| {
            request.part.map(|part| match part {
                P::Start(start) => Part::Start {
                    id: start.item_id,
                    expected: Some(start.expected_item_version),
                    header: start.header.unwrap_or_default(),
                    modified: start.modification_time,
                },
                P::Chunk(chunk) => Part::Chunk(chunk),
                P::End(end) => Part::End(end.content_digest),
            })
        };
        let parts = request.into_inner().map(move |request| request.map(part));
        let item_version = self.clone().run(Box::pin(parts), from).await?;
        Ok(Response::new(pb::UpdateItemResponse { item_version }))
    }

    async fn delete_item(
        &self,
        request: Request<pb::DeleteItemRequest>,
    ) -> Result<Response<pb::DeleteItemResponse>, Status> {
        let pb::DeleteItemRequest { item_id, expected_item_version } = request.into_inner();
        let id = self.id(&item_id);
        let mut state = self.state();
        let item = state.items.get(&id).ok_or_else(|| self.gone())?;
        if !self.is_at(item, &expected_item_version) && !self.is(M::DeletesAnyVersion) {
            if self.is(M::SaysChangedAndDeletes) {
                self.remove(&mut state, &id);
            }
            return Err(self.changed());
        }
        self.remove(&mut state, &id);
        Ok(Response::new(pb::DeleteItemResponse {}))
    }
}
