//! The relay of item data through the coordinator, beside a bare two-hop relay of tonic with the same calls.
//!
//! `cargo bench --bench relay` prints bytes per second for items of 64 KiB, 1 MiB and 1 GiB, and the peak memory of the two
//! relays; `-- --short` is quick. Three processes: this one is both providers, the relays are one each: `synclave serve`, and
//! this program again, which passes on what the source sends without looking at it. Time runs at the destination, from the
//! batch to its result. Budget (design section 12): at least 0.8 of the bare relay, and memory flat in the size of the items.

mod support;

use std::io::BufRead as _;

use support::mode::Mode;
use support::null_provider::{Items, NullProvider};
use support::process::{Process, role};
use support::rounds::Rounds;
use support::table::{Table, bytes};
use synclave::pb;
use synclave::pb::knowledge_sync_provider_service_client::KnowledgeSyncProviderServiceClient;
use synclave::pb::operation_service_client::OperationServiceClient;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

type Client = KnowledgeSyncProviderServiceClient<Channel>;

/// Loads that are opened at the source ahead of their turn, as the coordinator does.
const LOADS_AHEAD: usize = 4;

/// Chunks that may wait between the two hops, as in the coordinator.
const CHUNKS_WAITING: usize = 8;

async fn dial(address: &str) -> Client {
    // The windows that the coordinator dials with.
    let endpoint = Channel::from_shared(address.to_owned()).expect("an address");
    let endpoint = endpoint.initial_stream_window_size(1 << 20).initial_connection_window_size(4 << 20);
    Client::new(endpoint.tcp_nodelay(true).connect().await.expect("it listens"))
        .max_decoding_message_size(synclave::grpc::MESSAGE_LIMIT)
        .max_encoding_message_size(synclave::grpc::MESSAGE_LIMIT)
}

/// One batch from the source to the destination.
async fn relay(mut source: Client, mut destination: Client) {
    use pb::load_change_data_response::Part as From;
    use pb::process_change_batch_request::Frame;
    use pb::process_change_batch_response::Frame as Answer;
    use pb::process_data::Part;

    let batch = source.get_change_batch(pb::GetChangeBatchRequest::default()).await.expect("answered");
    let (inputs, requests) = mpsc::channel(CHUNKS_WAITING);
    let (asked, loads) = mpsc::channel::<pb::ProcessLoad>(64);
    let request = |frame| pb::ProcessChangeBatchRequest { frame: Some(frame) };
    inputs.send(request(Frame::Start(pb::ProcessStart::default()))).await.expect("open");
    inputs.send(request(Frame::Batch(batch.into_inner().batch.expect("a batch")))).await.expect("open");
    let mut answers =
        destination.process_change_batch(ReceiverStream::new(requests)).await.expect("answered").into_inner();
    let feeding = async move {
        let open = |load: pb::ProcessLoad| {
            let mut source = source.clone();
            tokio::spawn(async move {
                let request = pb::LoadChangeDataRequest {
                    item_id: load.item_id,
                    version: load.version,
                    ..pb::LoadChangeDataRequest::default()
                };
                (load.load_id, source.load_change_data(request).await.expect("answered").into_inner())
            })
        };
        let mut opened = std::collections::VecDeque::new();
        let mut loads = ReceiverStream::new(loads);
        loop {
            while opened.len() < LOADS_AHEAD {
                let load = match opened.is_empty() {
                    true => loads.next().await,
                    // Only what has been asked for already.
                    false => {
                        std::future::poll_fn(|context| match loads.as_mut().poll_recv(context) {
                            std::task::Poll::Ready(load) => std::task::Poll::Ready(load),
                            std::task::Poll::Pending => std::task::Poll::Ready(None),
                        })
                        .await
                    }
                };
                match load {
                    Some(load) => opened.push_back(open(load)),
                    None if opened.is_empty() => return,
                    None => break,
                }
            }
            let Some(opening) = opened.pop_front() else { return };
            let (load_id, mut parts) = opening.await.expect("opened");
            while let Some(part) = parts.message().await.expect("the source goes on") {
                let part = part.part.map(|part| match part {
                    From::Header(header) => Part::Header(header),
                    From::Chunk(chunk) => Part::Chunk(chunk),
                    From::End(end) => Part::End(end),
                    From::RecoverableError(error) => Part::RecoverableError(error),
                });
                let data = Frame::Data(pb::ProcessData { load_id, part });
                inputs.send(request(data)).await.expect("the destination goes on");
            }
        }
    };
    let answering = async move {
        while let Some(answer) = answers.message().await.expect("the destination goes on") {
            match answer.frame {
                Some(Answer::Load(load)) => asked.send(load).await.expect("the relay goes on"),
                Some(Answer::Result(_)) => return,
                _ => {}
            }
        }
    };
    // The feeder ends when nobody can ask any more.
    tokio::join!(feeding, answering);
}

/// The process of the bare relay: for each line that it reads, a batch.
async fn serve_relay(addresses: &[String]) {
    let (source, destination) = (dial(&addresses[0]).await, dial(&addresses[1]).await);
    println!("ready");
    let (commands, mut lines) = mpsc::channel(1);
    std::thread::spawn(move || {
        for _ in std::io::stdin().lock().lines() {
            commands.blocking_send(()).expect("it runs as long as this does");
        }
    });
    while lines.recv().await.is_some() {
        relay(source.clone(), destination.clone()).await;
        println!("done");
    }
}

/// One session of the coordinator.
async fn session(client: &mut OperationServiceClient<Channel>, [source, destination]: &[String; 2]) {
    let endpoint = |address: &String| {
        let target = Some(pb::endpoint::Target::Address(address.clone()));
        Some(pb::Endpoint { target })
    };
    let request = pb::StartOperationRequest {
        source: endpoint(source),
        destination: endpoint(destination),
        direction: pb::SyncDirectionOrder::Upload.into(),
        ..pb::StartOperationRequest::default()
    };
    let request = pb::SynchronizeRequest { operation: Some(request) };
    let mut events = client.synchronize(request).await.expect("accepted").into_inner();
    let mut last = None;
    while let Some(event) = events.message().await.expect("it goes on") {
        if let Some(pb::synchronize_response::Event::Operation(operation)) = event.event {
            last = Some(operation);
        }
    }
    let last = last.expect("an operation");
    assert_eq!(last.state(), pb::OperationState::InSync, "{:?}", last.last_error);
}

async fn measure(mode: Mode) {
    let (source, destination) = (NullProvider::new(1), NullProvider::new(2));
    let addresses = [source.clone().serve().await, destination.clone().serve().await];
    let title = format!("relay of item data, bytes per second and peak memory (budget: 0.80){}", mode.note());
    let head = ["item", "a turn", "coordinator", "bare relay", "ratio (half of all rounds)", "its peak", "bare peak"];
    let mut table = Table::new(title, &head);
    let full = [(64 << 10, 4096, 14), (1 << 20, 256, 14), (1 << 30, 1, 8)];
    for (size, count, rounds) in mode.pick(full, [(64 << 10, 64, 2), (1 << 20, 16, 2), (64 << 20, 1, 2)]) {
        source.set_items(Items { count, size });
        let dir = tempfile::tempdir().expect("a directory");
        // New processes for each size: their peaks are of this size alone.
        let (coordinator, address) = Process::coordinator(dir.path());
        let mut client = OperationServiceClient::connect(address).await.expect("it listens");
        let mut bare = Process::of_role("relay", &addresses.each_ref().map(String::as_str));
        assert_eq!(bare.line(), "ready");
        let total = count as u64 * size;
        let rate = || total as f64 / destination.took().as_secs_f64();
        let mut figures = Rounds::default();
        for _ in 0..rounds {
            session(&mut client, &addresses).await;
            let ours = rate();
            // Blocks this thread alone: the providers have others.
            assert_eq!(bare.ask("batch"), "done");
            figures.add([ours, rate()]);
        }
        let rate = |rate: f64| format!("{:.0} MB/s", rate / 1e6);
        table.row([
            bytes(size),
            bytes(total),
            rate(figures.median(0)),
            rate(figures.median(1)),
            figures.ratio(0, 1),
            bytes(coordinator.peak_memory()),
            bytes(bare.peak_memory()),
        ]);
    }
    table.print();
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    match role() {
        Some((_, addresses)) => runtime.block_on(serve_relay(&addresses)),
        None => runtime.block_on(measure(Mode::from_arguments())),
    }
}
