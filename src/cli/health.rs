//! `synclave health`: whether the coordinator serves, for people and for container health checks.

use std::time::Duration;

use clap::Args;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::client::Server;
use super::exit::{Exit, Failure};
use super::output::{self, Output};

/// A health check must be over before the next one: bound of the connection, and of the call.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Ask whether the server serves; exit code 0 only when it does
///
/// Uses grpc.health.v1. A provider answers it too: --server takes its address as well.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synclave health
  synclave health --server http://127.0.0.1:7001
  synclave health --service synclave.v1.SessionService")]
pub(super) struct HealthArgs {
    /// A service of the server, such as synclave.v1.SessionService [default: the server as a whole]
    #[arg(long, default_value = "", hide_default_value = true, value_name = "NAME")]
    service: String,
}

pub(super) async fn run(
    args: HealthArgs,
    server: &str,
    output: Output,
    stop: CancellationToken,
) -> Result<Exit, Failure> {
    let check = async {
        let connection = Server::connect_within(server, TIMEOUT).await?;
        let mut request = Request::new(HealthCheckRequest { service: args.service.clone() });
        request.set_timeout(TIMEOUT);
        let answer = HealthClient::new(connection.channel()).check(request).await;
        answer.map(tonic::Response::into_inner).map_err(|status| match status.code() {
            Code::NotFound => Failure::failed(format!(
                "{server} has no service {:?}: give its full name, such as synclave.v1.SessionService, or none",
                args.service
            )),
            _ => connection.refused(&status),
        })
    };
    let status = match stop.run_until_cancelled(check).await {
        Some(answer) => answer?.status(),
        None => return Err(Failure::Interrupted("stopped before the server had answered".to_owned())),
    };
    let word = status.as_str_name();
    if output.is_json() {
        output::line(&serde_json::json!({ "status": word }).to_string())?;
    } else {
        output::line(word)?;
    }
    Ok(if status == ServingStatus::Serving { Exit::Done } else { Exit::Failed })
}
