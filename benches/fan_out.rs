//! The watch's fan-out of changes to 1, 100 and 1,000 watchers, beside bare tonic that sends the same bytes.
//!
//! `cargo bench --bench fan_out` prints entries per second, counted at the watchers; `-- --short` is quick. Changes of some 300
//! bytes come in groups of 32, as grouped commits bring them, and a turn is over when every watcher has every change of it.
//! *Ordinary codec*: a message for each change, a copy of it for each watcher, encoded for each. *Pre-framed*: the 32 entries
//! are one message that was encoded beforehand, and every watcher is sent the same bytes. Budget (design section 12): at least
//! 0.8 of pre-framed. Ten watchers share a connection; they count entries, and decode nothing else, so that it is the server
//! that is measured. Both sides are in this process, in threads of their own (`server`, `watchers`).

mod support;

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Buf as _, BufMut as _, Bytes};
use prost::Message as _;
use support::mode::Mode;
use support::records;
use support::rounds::Rounds;
use support::table::{Table, per_second};
use synclave::grpc::sync_info_service::SyncInfoServer;
use synclave::pb;
use synclave::store::{Publication, Published, SessionRecord};
use synclave::sync_info::{Hub, View};
use synclave::types::SyncState;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{Notify, broadcast};
use tokio::task::JoinSet;
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::{Stream, StreamExt as _};
use tokio_util::sync::CancellationToken;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::{Service, http};
use tonic::server::{NamedService, ServerStreamingService};
use tonic::service::Routes;
use tonic::transport::Channel;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

/// Changes that come at once.
const GROUP: usize = 32;

/// Changes that are under way at most: of sessions that differ, so that none replaces another. With 1,000 watchers a quarter.
const WINDOW: usize = 1024;

/// Watchers that share a connection.
const PER_CONNECTION: usize = 10;

const PATH: &str = "/synclave.v1.SyncInfoService/WatchSyncInfo";

/// Messages as bytes.
#[derive(Clone, Default)]
struct Raw;

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let len = buffer.remaining();
        Ok(Some(buffer.copy_to_bytes(len)))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::default()
    }
}

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

/// Entries in an encoded WatchSyncInfoResponse; `None` for the marker that all of old was sent.
fn entries(message: &[u8]) -> Option<usize> {
    let mut count = 0;
    for (field, body) in Fields(message) {
        match field {
            2 => count += Fields(body).filter(|(field, _)| *field == 1).count(),
            3 => return None,
            _ => {}
        }
    }
    Some(count)
}

/// The fields of a message that have a length; others do not come here.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = (u64, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let key = prost::encoding::decode_varint(&mut self.0).expect("a message");
        let len = prost::encoding::decode_varint(&mut self.0).expect("a message") as usize;
        let (body, rest) = self.0.split_at(len);
        self.0 = rest;
        Some((key >> 3, body))
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Bare tonic: each watcher is sent what is broadcast. Its messages are decoded ones, or bytes.
struct Bare<T>(broadcast::Sender<T>);

impl<T> Clone for Bare<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: Clone + Send + 'static> Bare<T> {
    fn stream<U: 'static>(&self, message: impl Fn(T) -> U + Send + 'static) -> Answers<U> {
        let messages = BroadcastStream::new(self.0.subscribe());
        Box::pin(messages.map(move |item| item.map(&message).map_err(|_| Status::data_loss("a watcher was too slow"))))
    }
}

type Http<B> = http::Response<B>;
type Answering = Pin<Box<dyn Future<Output = Result<Http<tonic::body::Body>, Infallible>> + Send>>;

/// The codec that generated code uses, on a message that is shared until then.
impl ServerStreamingService<pb::WatchSyncInfoRequest> for Bare<Arc<pb::WatchSyncInfoResponse>> {
    type Response = pb::WatchSyncInfoResponse;
    type ResponseStream = Answers<pb::WatchSyncInfoResponse>;
    type Future = std::future::Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, _: Request<pb::WatchSyncInfoRequest>) -> Self::Future {
        std::future::ready(Ok(Response::new(self.stream(|message| pb::WatchSyncInfoResponse::clone(&message)))))
    }
}

impl ServerStreamingService<Bytes> for Bare<Bytes> {
    type Response = Bytes;
    type ResponseStream = Answers<Bytes>;
    type Future = std::future::Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, _: Request<Bytes>) -> Self::Future {
        std::future::ready(Ok(Response::new(self.stream(|message| message))))
    }
}

impl<T> NamedService for Bare<T> {
    const NAME: &'static str = "synclave.v1.SyncInfoService";
}

macro_rules! serve_with {
    ($message:ty, $codec:expr) => {
        impl Service<http::Request<tonic::body::Body>> for Bare<$message> {
            type Response = Http<tonic::body::Body>;
            type Error = Infallible;
            type Future = Answering;

            fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
                Poll::Ready(Ok(()))
            }

            fn call(&mut self, request: http::Request<tonic::body::Body>) -> Answering {
                let service = self.clone();
                Box::pin(async move {
                    let mut grpc = tonic::server::Grpc::new($codec);
                    Ok(grpc.server_streaming(service, request).await)
                })
            }
        }
    };
}

serve_with!(
    Arc<pb::WatchSyncInfoResponse>,
    tonic_prost::ProstCodec::<pb::WatchSyncInfoResponse, pb::WatchSyncInfoRequest>::default()
);
serve_with!(Bytes, Raw);

/// Serves on a free port; the same transport for all.
async fn serve(routes: Routes) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = format!("http://{}", listener.local_addr().expect("bound"));
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let server = tonic::transport::Server::builder()
        .initial_stream_window_size(2 << 20)
        .initial_connection_window_size(8 << 20)
        .add_routes(routes);
    tokio::spawn(server.serve_with_incoming(incoming));
    address
}

/// Entries that are still to arrive at some watcher.
#[derive(Default)]
struct Missing {
    entries: AtomicUsize,
    none: Notify,
}

impl Missing {
    fn arrived(&self, entries: usize) {
        if entries > 0 && self.entries.fetch_sub(entries, Ordering::AcqRel) == entries {
            self.none.notify_one();
        }
    }
}

/// So many watchers of a server; each is there when this returns.
async fn watch(address: &str, watchers: usize, has_marker: bool) -> (Arc<Missing>, JoinSet<()>) {
    let missing = Arc::new(Missing::default());
    let mut watching = JoinSet::new();
    let (mut channel, ready) = (None, Arc::new(AtomicUsize::new(0)));
    let all_ready = Arc::new(Notify::new());
    for number in 0..watchers {
        if number % PER_CONNECTION == 0 {
            let endpoint = Channel::from_shared(address.to_owned()).expect("an address");
            channel = Some(endpoint.connect().await.expect("it listens"));
        }
        let mut client = tonic::client::Grpc::new(channel.clone().expect("just made"));
        client.ready().await.expect("connected");
        let request = Request::new(Bytes::new());
        let answer = client.server_streaming(request, PathAndQuery::from_static(PATH), Raw).await.expect("answered");
        let mut messages = answer.into_inner();
        let (missing, ready, all_ready) = (Arc::clone(&missing), Arc::clone(&ready), Arc::clone(&all_ready));
        watching.spawn(async move {
            if has_marker {
                while entries(&messages.message().await.expect("it goes on").expect("it goes on")).is_some() {}
            }
            if ready.fetch_add(1, Ordering::AcqRel) + 1 == watchers {
                all_ready.notify_one();
            }
            // It ends with the runtime, or when it is dropped.
            while let Ok(Some(message)) = messages.message().await {
                missing.arrived(entries(&message).unwrap_or(0));
            }
        });
    }
    all_ready.notified().await;
    (missing, watching)
}

/// A server and its watchers.
struct Contender {
    publish: Box<dyn FnMut(u64) + Send>,
    missing: Arc<Missing>,
    watchers: usize,
    window: usize,
    revision: u64,
    _watching: JoinSet<()>,
}

impl Contender {
    /// Entries per second, for windows until the turn is over.
    async fn turn(&mut self, turn: Duration) -> f64 {
        let (start, mut sent) = (Instant::now(), 0);
        while start.elapsed() < turn {
            self.missing.entries.store(self.window * self.watchers, Ordering::Release);
            for _ in 0..self.window / GROUP {
                (self.publish)(self.revision);
                self.revision += GROUP as u64;
            }
            self.missing.none.notified().await;
            sent += self.window * self.watchers;
        }
        sent as f64 / start.elapsed().as_secs_f64()
    }
}

fn change(record: &Arc<SessionRecord>, revision: u64) -> Publication {
    let record = Arc::new(SessionRecord { revision, ..SessionRecord::clone(record) });
    Published { revision, record, event: None }.into()
}

fn message(records: &[Arc<SessionRecord>]) -> pb::WatchSyncInfoResponse {
    use synclave::grpc::convert::sync_info::encode_record;
    let entries = records.iter().map(|record| {
        let info = encode_record(record, View::Inbound);
        pb::SyncInfoEntry { entry: Some(pb::sync_info_entry::Entry::SyncInfo(info)), ..pb::SyncInfoEntry::default() }
    });
    // By way of the wire, so that it does not matter what the message is made of.
    let changes: Vec<u8> = entries
        .flat_map(|entry| {
            let mut bytes = vec![0x0a];
            prost::encoding::encode_varint(entry.encoded_len() as u64, &mut bytes);
            entry.encode(&mut bytes).expect("a vector grows");
            bytes
        })
        .collect();
    let mut bytes = vec![0x0a, 80];
    bytes.extend([b'0'; 80]);
    bytes.push(0x12);
    prost::encoding::encode_varint(changes.len() as u64, &mut bytes);
    bytes.extend(changes);
    pb::WatchSyncInfoResponse::decode(&bytes[..]).expect("a message")
}

async fn contenders(server: &Runtime, records: &[Arc<SessionRecord>], watchers: usize) -> [Contender; 3] {
    let contender = async |routes: Routes, has_marker, publish: Box<dyn FnMut(u64) + Send>| {
        let address = server.spawn(serve(routes)).await.expect("serves");
        let (missing, watching) = watch(&address, watchers, has_marker).await;
        let window = if watchers < 1_000 { WINDOW } else { WINDOW / 4 };
        Contender { publish, missing, watchers, window, revision: WINDOW as u64 + 1, _watching: watching }
    };

    let hub = Arc::new(Hub::new(uuid::Uuid::new_v4(), []));
    hub.publish(records.iter().enumerate().map(|(index, record)| change(record, index as u64 + 1)));
    let service = SyncInfoServer::new(Arc::clone(&hub), CancellationToken::new()).into_service();
    let of_hub = records.to_vec();
    let publish = move |revision: u64| {
        hub.publish(
            (revision..revision + GROUP as u64).map(|revision| change(&of_hub[revision as usize % WINDOW], revision)),
        );
    };
    let ours = contender(Routes::new(service), true, Box::new(publish)).await;

    let sender = broadcast::Sender::new(2 * WINDOW);
    let messages: Vec<_> = records.iter().map(|record| Arc::new(message(std::slice::from_ref(record)))).collect();
    let routes = Routes::new(Bare(sender.clone()));
    let publish = move |revision: u64| {
        for revision in revision..revision + GROUP as u64 {
            drop(sender.send(Arc::clone(&messages[revision as usize % WINDOW])));
        }
    };
    let ordinary = contender(routes, false, Box::new(publish)).await;

    let sender = broadcast::Sender::new(2 * WINDOW);
    let frames: Vec<_> = records.chunks(GROUP).map(|group| Bytes::from(message(group).encode_to_vec())).collect();
    let routes = Routes::new(Bare(sender.clone()));
    let publish = move |revision: u64| drop(sender.send(frames[revision as usize / GROUP % frames.len()].clone()));
    let framed = contender(routes, false, Box::new(publish)).await;
    [ours, ordinary, framed]
}

async fn measure(server: &Runtime, mode: Mode) {
    let records: Vec<_> = (0..WINDOW)
        .map(|number| {
            let mut record = records::session(number);
            records::enter(&mut record, SyncState::InProgress, "ENLISTED");
            Arc::new(record)
        })
        .collect();
    let size = message(&records[..1]).encoded_len() - message(&[]).encoded_len();
    let title = format!(
        "fan-out: entries of {size} bytes per second at all watchers (budget: 0.80 of pre-framed){}",
        mode.note()
    );
    let head = ["watchers", "watch", "ordinary codec", "pre-framed", "/ ordinary", "/ pre-framed (half of all rounds)"];
    let mut table = Table::new(title, &head);
    let (rounds, turn) = mode.pick((12, Duration::from_millis(400)), (2, Duration::from_millis(50)));
    for watchers in [1, 100, mode.pick(1_000, 200)] {
        let mut contenders = contenders(server, &records, watchers).await;
        let mut figures = Rounds::default();
        // The first one is to warm up.
        for round in 0..=rounds {
            let mut rates = [0.0; 3];
            for (rate, contender) in rates.iter_mut().zip(&mut contenders) {
                *rate = contender.turn(turn).await;
            }
            if round > 0 {
                figures.add(rates);
            }
        }
        let rates = [0, 1, 2].map(|contender| per_second(figures.median(contender)));
        let ratios = [1, 2].map(|other| figures.ratio(0, other));
        table.row(std::iter::once(watchers.to_string()).chain(rates).chain(ratios));
    }
    table.print();
}

fn main() {
    let runtime = |name: &str| {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.thread_name(name).enable_all().build().expect("a runtime")
    };
    let (server, watchers) = (runtime("server"), runtime("watchers"));
    watchers.block_on(measure(&server, Mode::from_arguments()));
    // Streams that go on for ever go with their threads.
    watchers.shutdown_background();
    server.shutdown_background();
}
