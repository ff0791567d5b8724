//! A simple store in memory, over real gRPC, that does on demand what stores do wrong.

#![allow(dead_code, unreachable_pub, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use prost_types::Timestamp;
use sha2::{Digest, Sha256};
use synclave::pb::simple_sync_provider_service_server::{SimpleSyncProviderService, SimpleSyncProviderServiceServer};
use synclave::pb::{self, enumerate_items_response::Event};
use tokio_stream::Iter;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::processes::PATIENCE;

/// An item.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Item {
    content: Vec<u8>,
    properties: BTreeMap<String, String>,
    modified: Option<Timestamp>,
    version: u64,
}

/// What a store can do.
#[derive(Clone, Copy, Debug)]
pub struct Skills {
    pub anchors: bool,
    pub digests: bool,
    pub properties: bool,
}

pub const SKILLED: Skills = Skills { anchors: true, digests: true, properties: true };
pub const PLAIN: Skills = Skills { anchors: false, digests: false, properties: false };

/// A call, as tests name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Call {
    Enumerate,
    Load,
    Insert,
    Update,
    Delete,
}

/// What goes wrong with the next call of a kind.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The list ends before `complete`, and without its second half.
    Cut,
    /// Never answers, and does nothing.
    Hang,
    /// Does it, and never answers.
    LoseAnswer,
    /// Does it, and says UNKNOWN.
    FailAfterwards,
    /// Says UNKNOWN, and does nothing.
    Fail,
    /// Says UNAVAILABLE, and does nothing.
    NotReady,
    /// A user writes the item in the very moment before.
    UserWrites(&'static str),
    /// Lists every item with the digest of something else.
    WrongDigests,
    /// Lists every item one byte longer than it is.
    WrongSizes,
}

#[derive(Debug, Default)]
struct State {
    items: BTreeMap<Vec<u8>, Item>,
    /// Which item changed at which tick of the clock.
    changes: Vec<(u64, Vec<u8>)>,
    clock: u64,
    /// Anchors below are expired.
    oldest_anchor: u64,
    faults: Vec<(Call, Fault, bool)>,
    /// Calls that were made, and for lists the anchor.
    calls: Vec<(Call, Option<u64>)>,
}

impl State {
    fn set(&mut self, id: &[u8], item: Option<Item>) -> u64 {
        self.clock += 1;
        self.changes.push((self.clock, id.to_vec()));
        match item {
            Some(item) => self.items.insert(id.to_vec(), Item { version: self.clock, ..item }),
            None => self.items.remove(id),
        };
        self.clock
    }

    fn user_writes(&mut self, id: &[u8], content: &[u8]) {
        let properties = self.items.get(id).map(|item| item.properties.clone()).unwrap_or_default();
        let modified = Some(SystemTime::now().into());
        self.set(id, Some(Item { content: content.to_vec(), properties, modified, version: 0 }));
    }
}

#[derive(Debug)]
struct Shared {
    store_id: Mutex<String>,
    skills: Skills,
    state: Mutex<State>,
    changed: Condvar,
}

/// The store. Goes on when its server is stopped.
#[derive(Clone, Debug)]
pub struct SimpleStore(Arc<Shared>);

/// A server of a store; gone when dropped, with every connection.
#[derive(Debug)]
pub struct Serving {
    pub address: String,
    stop: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the server's thread ends");
        }
    }
}

impl SimpleStore {
    pub fn new(name: &str, skills: Skills) -> Self {
        let shared =
            Shared { store_id: Mutex::new(name.to_owned()), skills, state: Mutex::default(), changed: Condvar::new() };
        Self(Arc::new(shared))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn serve(&self) -> Serving {
        self.serve_at("127.0.0.1:0")
    }

    /// Serves on a runtime of its own, as a process would.
    pub fn serve_at(&self, listen: &str) -> Serving {
        let listener = std::net::TcpListener::bind(listen).expect("a free port on loopback");
        listener.set_nonblocking(true).expect("a socket");
        let address = format!("http://{}", listener.local_addr().expect("bound"));
        let stop = CancellationToken::new();
        let (service, stopped) = (SimpleSyncProviderServiceServer::new(self.clone()), stop.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
                let incoming = synclave::server::incoming(listener);
                let server = tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming);
                tokio::select! {
                    served = server => served.expect("serves"),
                    () = stopped.cancelled() => {}
                }
            });
            runtime.shutdown_background();
        });
        Serving { address, stop, thread: Some(thread) }
    }

    pub fn write(&self, id: &str, content: &str) {
        self.state().user_writes(id.as_bytes(), content.as_bytes());
    }

    pub fn remove(&self, id: &str) {
        self.state().set(id.as_bytes(), None);
    }

    /// Names and contents.
    pub fn contents(&self) -> BTreeMap<String, String> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
        self.state().items.iter().map(|(id, item)| (text(id), text(&item.content))).collect()
    }

    /// The next call of this kind goes wrong; or, `always`, all of them until they are [mended](Self::mend).
    pub fn fail(&self, call: Call, fault: Fault, always: bool) {
        self.state().faults.push((call, fault, always));
    }

    pub fn mend(&self) {
        self.state().faults.clear();
    }

    /// All anchors so far are forgotten.
    pub fn expire_anchors(&self) {
        let mut state = self.state();
        state.clock += 1;
        state.oldest_anchor = state.clock;
    }

    /// Becomes another store.
    pub fn rename(&self, store_id: &str) {
        *self.0.store_id.lock().unwrap_or_else(PoisonError::into_inner) = store_id.to_owned();
    }

    /// The calls since the last time that they were taken: how many of a kind, and the anchors of lists.
    pub fn take_calls(&self) -> (BTreeMap<Call, usize>, Vec<Option<u64>>) {
        let calls = std::mem::take(&mut self.state().calls);
        let mut counts = BTreeMap::new();
        calls.iter().for_each(|(call, _)| *counts.entry(*call).or_default() += 1);
        let lists = calls.iter().filter(|(call, _)| *call == Call::Enumerate);
        (counts, lists.map(|(_, anchor)| *anchor).collect())
    }

    /// Waits until a call of this kind has come, since calls were taken.
    pub fn wait_for(&self, call: Call) {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.state();
        while !state.calls.iter().any(|(made, _)| *made == call) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no {call:?} has come");
            state = self.0.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Notes a call, and tells what is to go wrong with it. Told before the call is noted, so that who waits for the call finds
    /// the fault taken.
    fn begin(&self, call: Call, anchor: Option<u64>) -> Option<Fault> {
        let mut state = self.state();
        let at = state.faults.iter().position(|(of, _, _)| *of == call);
        let fault =
            at.map(|at| if state.faults[at].2 { state.faults[at].1.clone() } else { state.faults.remove(at).1 });
        if !matches!(fault, Some(Fault::LoseAnswer | Fault::FailAfterwards)) {
            state.calls.push((call, anchor));
            self.0.changed.notify_all();
        }
        fault
    }

    /// A write: checked, done, answered, as the fault has it.
    async fn write_item(
        &self,
        call: Call,
        id: &[u8],
        expected: Option<&[u8]>,
        item: Option<Item>,
    ) -> Result<u64, Status> {
        let fault = self.begin(call, None);
        match fault {
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::Fail) => return Err(Status::unknown("an exception")),
            _ => {}
        }
        let version = {
            let mut state = self.state();
            if let Some(Fault::UserWrites(content)) = fault {
                state.user_writes(id, content.as_bytes());
            }
            let there = state.items.get(id);
            match (expected, there) {
                (None, Some(_)) => return Err(Status::already_exists("there is such an item")),
                (Some(_), None) => return Err(Status::not_found("there is no such item")),
                (Some(expected), Some(there)) if there.version.to_string().as_bytes() != expected => {
                    return Err(Status::aborted("it is at another version"));
                }
                _ => {}
            }
            let version = state.set(id, item);
            if matches!(fault, Some(Fault::LoseAnswer | Fault::FailAfterwards)) {
                state.calls.push((call, None));
                self.0.changed.notify_all();
            }
            version
        };
        match fault {
            Some(Fault::LoseAnswer) => std::future::pending().await,
            Some(Fault::FailAfterwards) => Err(Status::unknown("an exception")),
            _ => Ok(version),
        }
    }

    fn item(
        &self,
        header: Option<pb::ItemDataHeader>,
        content: Vec<u8>,
        end: &[u8],
        modified: Option<Timestamp>,
    ) -> Item {
        let header = header.expect("a header always comes");
        assert_eq!(header.content_size, content.len() as u64);
        assert_eq!(end, &Sha256::digest(&content)[..]);
        let properties = if self.0.skills.properties { header.properties } else { BTreeMap::new() };
        Item { content, properties, modified: modified.filter(|_| self.0.skills.digests), version: 0 }
    }
}

type Parts<T> = Iter<std::vec::IntoIter<Result<T, Status>>>;

fn parts<T>(parts: Vec<Result<T, Status>>) -> Response<Parts<T>> {
    Response::new(tokio_stream::iter(parts))
}

#[tonic::async_trait]
impl SimpleSyncProviderService for SimpleStore {
    type EnumerateItemsStream = Parts<pb::EnumerateItemsResponse>;
    type LoadItemStream = Parts<pb::LoadItemResponse>;

    async fn get_schema(&self, _: Request<pb::GetSchemaRequest>) -> Result<Response<pb::GetSchemaResponse>, Status> {
        let store_id = self.0.store_id.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Skills { anchors, digests, properties } = self.0.skills;
        Ok(Response::new(pb::GetSchemaResponse {
            member_name: store_id.clone(),
            store_id: Bytes::from(store_id),
            instance_id: "test".to_owned(),
            max_item_id_size: 100,
            supports_anchors: anchors,
            supports_digests: digests,
            supports_properties: properties,
            capabilities: vec!["SOMETHING_NEW".to_owned()],
        }))
    }

    async fn enumerate_items(
        &self,
        request: Request<pb::EnumerateItemsRequest>,
    ) -> Result<Response<Self::EnumerateItemsStream>, Status> {
        let since = request.into_inner().since_anchor;
        let since = since.map(|anchor| String::from_utf8_lossy(&anchor).parse().expect("an anchor of ours"));
        let fault = self.begin(Call::Enumerate, since);
        match fault {
            Some(Fault::Hang) => std::future::pending::<()>().await,
            Some(Fault::NotReady) => return Err(Status::unavailable("notes.json is cut off")),
            _ => {}
        }
        let state = self.state();
        if since.is_some_and(|since| since < state.oldest_anchor) {
            return Err(Status::failed_precondition("the anchor is too old"));
        }
        let of_interest: BTreeSet<_> = match since {
            None => state.items.keys().cloned().collect(),
            Some(since) => state.changes.iter().filter(|(at, _)| *at > since).map(|(_, id)| id.clone()).collect(),
        };
        let mut events = Vec::new();
        let mut deletions = Vec::new();
        for id in of_interest {
            let Some(item) = state.items.get(&id) else {
                deletions.push(Bytes::from(id));
                continue;
            };
            let digest = match fault {
                Some(Fault::WrongDigests) => Sha256::digest(b"something else"),
                _ => Sha256::digest(&item.content),
            };
            let size = item.content.len() as u64 + u64::from(matches!(fault, Some(Fault::WrongSizes)));
            let keeps = self.0.skills.digests;
            let item = pb::SimpleItem {
                item_id: Bytes::from(id),
                item_version: Bytes::from(item.version.to_string()),
                properties: item.properties.clone(),
                content_size: keeps.then_some(size),
                content_digest: keeps.then(|| Bytes::copy_from_slice(&digest)),
                modification_time: item.modified.filter(|_| keeps),
            };
            events.push(Event::Items(pb::SimpleItems { items: vec![item] }));
        }
        if !deletions.is_empty() {
            events.push(Event::Deletions(pb::SimpleDeletions { item_ids: deletions }));
        }
        if matches!(fault, Some(Fault::Cut)) {
            events.truncate(events.len() / 2);
        } else {
            let anchor = self.0.skills.anchors.then(|| Bytes::from(state.clock.to_string()));
            events.push(Event::Complete(pb::EnumerationComplete { anchor }));
        }
        let response = |event| Ok(pb::EnumerateItemsResponse { event: Some(event) });
        Ok(parts(events.into_iter().map(response).collect()))
    }

    async fn load_item(&self, request: Request<pb::LoadItemRequest>) -> Result<Response<Self::LoadItemStream>, Status> {
        use pb::load_item_response::Part;
        let pb::LoadItemRequest { item_id, expected_item_version, offset } = request.into_inner();
        if matches!(self.begin(Call::Load, None), Some(Fault::Hang)) {
            std::future::pending::<()>().await;
        }
        let state = self.state();
        let item = state.items.get(&item_id[..]).ok_or_else(|| Status::not_found("there is no such item"))?;
        if item.version.to_string().as_bytes() != expected_item_version {
            return Err(Status::aborted("it is at another version"));
        }
        let digest = Bytes::copy_from_slice(&Sha256::digest(&item.content));
        let header = pb::ItemDataHeader {
            properties: item.properties.clone(),
            content_size: item.content.len() as u64,
            content_digest: None,
        };
        let mut sent = vec![Part::Header(header)];
        let rest = &item.content[usize::try_from(offset).expect("small").min(item.content.len())..];
        sent.extend(rest.chunks(1_000).map(|chunk| Part::Chunk(Bytes::copy_from_slice(chunk))));
        sent.push(Part::End(pb::ItemDataEnd { content_digest: digest }));
        Ok(parts(sent.into_iter().map(|part| Ok(pb::LoadItemResponse { part: Some(part) })).collect()))
    }

    async fn insert_item(
        &self,
        request: Request<Streaming<pb::InsertItemRequest>>,
    ) -> Result<Response<pb::InsertItemResponse>, Status> {
        use pb::insert_item_request::Part;
        let mut requests = request.into_inner();
        let (mut start, mut content) = (None, Vec::new());
        while let Some(request) = requests.message().await? {
            match (request.part, start.take()) {
                (Some(Part::Start(first)), None) => start = Some(first),
                (Some(Part::Chunk(chunk)), Some(first)) => {
                    content.extend_from_slice(&chunk);
                    start = Some(first);
                }
                (Some(Part::End(end)), Some(pb::InsertItemStart { item_id, header, modification_time })) => {
                    let item = self.item(header, content, &end.content_digest, modification_time);
                    let version = self.write_item(Call::Insert, &item_id, None, Some(item)).await?;
                    return Ok(Response::new(pb::InsertItemResponse { item_version: version.to_string().into() }));
                }
                other => panic!("out of order: {other:?}"),
            }
        }
        Err(Status::invalid_argument("no end"))
    }

    async fn update_item(
        &self,
        request: Request<Streaming<pb::UpdateItemRequest>>,
    ) -> Result<Response<pb::UpdateItemResponse>, Status> {
        use pb::update_item_request::Part;
        let mut requests = request.into_inner();
        let (mut start, mut content) = (None, Vec::new());
        while let Some(request) = requests.message().await? {
            match (request.part, start.take()) {
                (Some(Part::Start(first)), None) => start = Some(first),
                (Some(Part::Chunk(chunk)), Some(first)) => {
                    content.extend_from_slice(&chunk);
                    start = Some(first);
                }
                (Some(Part::End(end)), Some(first)) => {
                    let pb::UpdateItemStart { item_id, expected_item_version, header, modification_time } = first;
                    let item = self.item(header, content, &end.content_digest, modification_time);
                    let expected = Some(&expected_item_version[..]);
                    let version = self.write_item(Call::Update, &item_id, expected, Some(item)).await?;
                    return Ok(Response::new(pb::UpdateItemResponse { item_version: version.to_string().into() }));
                }
                other => panic!("out of order: {other:?}"),
            }
        }
        Err(Status::invalid_argument("no end"))
    }

    async fn delete_item(
        &self,
        request: Request<pb::DeleteItemRequest>,
    ) -> Result<Response<pb::DeleteItemResponse>, Status> {
        let pb::DeleteItemRequest { item_id, expected_item_version } = request.into_inner();
        self.write_item(Call::Delete, &item_id, Some(&expected_item_version), None).await?;
        Ok(Response::new(pb::DeleteItemResponse {}))
    }
}

/// Names and contents of the files at the top of a directory.
pub fn contents(directory: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("readable").path();
        if path.is_file() {
            let name = path.file_name().expect("has a name").to_string_lossy().into_owned();
            found.insert(name, std::fs::read_to_string(&path).expect("text"));
        }
    }
    found
}

/// A deadline that a hanging store reaches soon, and a working one never.
pub const DEADLINE: Duration = Duration::from_secs(1);
