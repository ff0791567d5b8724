//! The coordinator of `sync`: the same store, sessions, operations and services as `serve`, in this process and for it alone.

use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::task::JoinHandle;
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tower::service_fn;

use super::exit::Failure;
use super::provider::member_name;
use super::replica;
use super::roots::Root;
use super::summary::{ConflictCopy, Findings, LeftOut};
use super::sync::{SyncEnd, SyncPlan};
use crate::coordinator::{Coordinator, OpenedStore, Options, Providers};
use crate::grpc::provider::DialOptions;
use crate::provider::sdk::{self, ReplicaProvider, Report, Skipped};
use crate::server;
use crate::session::{Dial, Timing};
use crate::types::Endpoint;

/// Bytes on their way between the command and the services of its own process.
const PIPE_BYTES: usize = 256 * 1024;

/// Sessions have so long to end when the command does.
const STOP_GRACE: Duration = Duration::from_secs(20);

/// The coordinator of this process, with both ends within its reach.
pub(super) struct LocalCoordinator {
    /// The way to its services.
    pub(super) channel: Channel,
    /// Its names for A and B.
    pub(super) endpoints: [Endpoint; 2],
    /// How it finds the providers of the ends.
    pub(super) dial: Dial,
    replicas: Vec<Arc<ReplicaProvider>>,
    stop: CancellationToken,
    served: JoinHandle<Result<(), tonic::transport::Error>>,
}

/// An item that fails is tried again so soon for the first time: with five attempts, a sync that cannot succeed ends 1.5 s later.
const ITEM_RETRY: Duration = Duration::from_millis(100);

impl LocalCoordinator {
    /// Opens the store first, so that one that is in use changes nothing; then the replicas; then serves, in this process only.
    pub(super) async fn start(plan: &SyncPlan) -> Result<Self, Failure> {
        let opened = Coordinator::open(&plan.data_dir).map_err(|error| Failure::failed(error.to_string()))?;
        let mut replicas = Vec::new();
        let mut providers = Providers::new(DialOptions::default()).speaking_for_simple_stores(&plan.stores_dir);
        let mut endpoints = Vec::new();
        for (end, filters) in plan.ends.iter().zip([&[][..], &plan.filters]) {
            endpoints.push(match end {
                SyncEnd::Provider(endpoint) => endpoint.clone(),
                SyncEnd::Directory(root) => {
                    root.create()?;
                    let options = sdk::Options {
                        member_name: member_name(root),
                        tombstone_age: plan.tombstone_age.0,
                        filters: filters.to_vec(),
                        ..sdk::Options::default()
                    };
                    let replica = replica::open(root, None, options)?;
                    let endpoint = directory_endpoint(root);
                    providers.add(endpoint.clone(), replica.clone());
                    replicas.push(replica);
                    endpoint
                }
            });
        }
        Self::over(opened, endpoints, replicas, providers.into_dial()).await
    }

    /// Serves what is open already.
    pub(super) async fn over(
        opened: OpenedStore,
        endpoints: Vec<Endpoint>,
        replicas: Vec<Arc<ReplicaProvider>>,
        dial: Dial,
    ) -> Result<Self, Failure> {
        let failed = |error: &dyn std::fmt::Display| Failure::failed(error.to_string());
        // Someone waits for the end, and has just asked for everything once more.
        let timing = Timing { item_retry: ITEM_RETRY, ..Timing::default() };
        let options = Options { timing, abandon_operations: true, ..Options::default() };
        let coordinator = Coordinator::start(opened, options, dial.clone()).await.map_err(|error| failed(&error))?;
        coordinator.store.retry_item_errors(Vec::new(), None).await.map_err(|error| failed(&error))?;

        let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
        let stop = CancellationToken::new();
        let served = tokio::spawn({
            let stop = stop.clone();
            async move {
                // One connection, and none after it: the server ends by `stop`, not by running out of them.
                let incoming = tokio_stream::once(Ok::<_, std::io::Error>(theirs)).chain(tokio_stream::pending());
                server::serve_coordinator(incoming, &coordinator, STOP_GRACE, stop).await
            }
        });
        let mut ours = Some(ours);
        let connector = service_fn(move |_| {
            let ours = ours.take().map(TokioIo::new);
            async move { ours.ok_or_else(|| std::io::Error::other("this process has one way to its own services")) }
        });
        let channel = tonic::transport::Endpoint::from_static("http://this.process")
            .connect_with_connector(connector)
            .await
            .map_err(|error| Failure::failed(format!("the coordinator of this process does not answer: {error}")))?;
        let endpoints =
            endpoints.try_into().map_err(|_| Failure::failed("a sync has two ends; name two directories"))?;
        Ok(Self { channel, endpoints, dial, replicas, stop, served })
    }

    /// Ends in good order, and tells what only the providers of this process know, in the order of the ends.
    pub(super) async fn stop(self) -> Result<Vec<Report>, Failure> {
        self.stop.cancel();
        drop(self.channel);
        match self.served.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(Failure::failed(format!("the coordinator of this process failed: {error}"))),
            Err(error) => return Err(Failure::failed(format!("the coordinator of this process failed: {error}"))),
        }
        let reports = self.replicas.iter().map(|replica| replica.report()).collect();
        // Whoever holds a replica last moves the log of its metadata into the file: of both at once.
        drop(self.dial);
        let closing: Vec<_> =
            self.replicas.into_iter().map(|replica| tokio::task::spawn_blocking(move || drop(replica))).collect();
        for closed in closing {
            closed.await.map_err(|error| Failure::failed(format!("a replica did not close: {error}")))?;
        }
        Ok(reports)
    }
}

/// What a person is told of it.
pub(super) fn findings(reports: Vec<Report>) -> Findings {
    let mut findings = Findings::default();
    for report in reports {
        findings.conflict_copies.extend(
            report
                .conflict_copies
                .iter()
                .map(|copy| ConflictCopy { item: copy.item.to_string(), copy: copy.copy.to_string() }),
        );
        findings.left_out.extend(report.left_out.into_iter().map(|(name, reason)| LeftOut { name, reason }));
        let left_out = |it: Skipped| LeftOut { name: it.display_name, reason: it.reason };
        findings.skipped.extend(report.skipped.into_iter().map(left_out));
        findings.unreadable.extend(report.unreadable.into_iter().map(left_out));
    }
    findings
}

/// What this process calls the provider of a directory.
pub(super) fn directory_endpoint(root: &Root) -> Endpoint {
    Endpoint::Address(file_url(root))
}

/// `file:///…`, with every byte that a URL does not carry as it is written as `%XX`.
fn file_url(root: &Root) -> String {
    let path: &Path = root.path();
    let mut url = String::from("file://");
    for &byte in path.as_os_str().as_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'_' | b'.' | b'~' => url.push(char::from(byte)),
            other => url.push_str(&format!("%{other:02X}")),
        }
    }
    url
}
