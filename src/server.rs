//! Serving: a listener, the services behind it, health and reflection, and an end that does not wait for ever.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::{Connected, TcpIncoming};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tracing::{info, warn};

use crate::coordinator::Coordinator;
use crate::grpc::operation_service::OperationServer;
use crate::grpc::provider::ProviderServer;
use crate::grpc::session_service::SessionServer;
use crate::grpc::session_state_service::SessionStateServer;
use crate::grpc::sync_info_service::SyncInfoServer;
use crate::grpc::unoffered::{GatewayServer, ReplicationServer};
use crate::pb;
use crate::provider::Provider;

/// Connections that are still open so long after the stop are cut. Streams watch the stop and end well before.
const CLOSE_GRACE: Duration = Duration::from_secs(5);

/// Flow-control windows: a stream may have this much on its way, so that item data is not slowed by round trips.
const STREAM_WINDOW: u32 = 2 * 1024 * 1024;

/// Of all streams of one connection.
const CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;

/// Calls under way on one connection; more wait at the client.
const MAX_STREAMS: u32 = 16 * 1024;

/// A ping goes out on a silent connection this often; one that does not answer is dead.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// A connection that HTTP/2 can be spoken on: TCP, or a pipe within this process.
pub trait Connection:
    AsyncRead + AsyncWrite + Connected<ConnectInfo: Clone + Send + Sync> + Unpin + Send + 'static
{
}

impl<IO> Connection for IO where
    IO: AsyncRead + AsyncWrite + Connected<ConnectInfo: Clone + Send + Sync> + Unpin + Send + 'static
{
}

/// The connections of a listener. Small frames go out at once: with Nagle's algorithm on, each exchange on a stream would
/// wait for the peer's delayed acknowledgement, some 40 ms.
pub fn incoming(listener: TcpListener) -> TcpIncoming {
    TcpIncoming::from(listener).with_nodelay(Some(true))
}

/// Serves a coordinator until `stop`, then says NOT_SERVING, ends the sessions within `grace`, and closes.
///
/// # Errors
/// When the listener fails.
pub async fn serve_coordinator<IO: Connection>(
    incoming: impl Stream<Item = io::Result<IO>>,
    coordinator: &Coordinator,
    grace: Duration,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let (health, health_service) = tonic_health::server::health_reporter();
    let mut routes = Routes::new(health_service);
    let streams = CancellationToken::new();
    routes = routes
        .add_service(SessionServer::new(coordinator.clone()).into_service())
        .add_service(OperationServer::new(coordinator.clone(), streams.clone()).into_service())
        .add_service(SyncInfoServer::new(coordinator.hub.clone(), streams.clone()).into_service())
        .add_service(SessionStateServer::new(coordinator.sessions.clone()).into_service())
        .add_service(ReplicationServer)
        .add_service(GatewayServer);
    set_serving(&health, true, &COORDINATOR_SERVICES).await;
    let closing = CancellationToken::new();
    let serving = run(incoming, with_reflection(routes), closing.clone());
    let stopping = async {
        stop.cancelled().await;
        info!("stopping: sessions end, then connections close");
        set_serving(&health, false, &COORDINATOR_SERVICES).await;
        coordinator.stop(grace).await;
        streams.cancel();
        closing.cancel();
    };
    let (served, ()) = tokio::join!(serving, stopping);
    served
}

const COORDINATOR_SERVICES: [&str; 5] = [
    "",
    "synclave.v1.SessionService",
    "synclave.v1.OperationService",
    "synclave.v1.SyncInfoService",
    "synclave.v1.SessionStateService",
];

const PROVIDER_SERVICES: [&str; 2] = ["", "synclave.v1.KnowledgeSyncProviderService"];

/// Serves a provider until `stop`.
///
/// # Errors
/// When the listener fails.
pub async fn serve_provider<IO: Connection>(
    incoming: impl Stream<Item = io::Result<IO>>,
    provider: Arc<dyn Provider>,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let (health, health_service) = tonic_health::server::health_reporter();
    let routes = Routes::new(health_service).add_service(ProviderServer::new(provider, stop.clone()).into_service());
    set_serving(&health, true, &PROVIDER_SERVICES).await;
    run(incoming, with_reflection(routes), stop).await
}

async fn set_serving(health: &HealthReporter, serving: bool, services: &[&str]) {
    let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
    for service in services {
        health.set_service_status(*service, status).await;
    }
}

fn with_reflection(routes: Routes) -> Routes {
    let built = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(pb::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1();
    match built {
        Ok(reflection) => routes.add_service(reflection),
        Err(failure) => {
            // The set is compiled in, so this cannot depend on anything but the build.
            warn!(%failure, "reflection is off");
            routes
        }
    }
}

async fn run<IO: Connection>(
    incoming: impl Stream<Item = io::Result<IO>>,
    routes: Routes,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let stopped = stop.clone();
    let serving = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_STREAMS)
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, async move { stopped.cancelled().await });
    tokio::pin!(serving);
    tokio::select! {
        served = &mut serving => return served,
        () = stop.cancelled() => {}
    }
    match timeout(CLOSE_GRACE, serving).await {
        Ok(served) => served,
        Err(_) => {
            warn!("connections were still open after the grace; they are cut");
            Ok(())
        }
    }
}
