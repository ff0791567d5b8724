//! `synclave operation`: sessions that go on until two replicas are in sync.

use std::ffi::OsString;

use clap::{Args, Subcommand};
use tokio_util::sync::CancellationToken;

use super::client::{Server, unary};
use super::exit::{Exit, Failure};
use super::options::{Collision, Conflict, Direction, FullEnumeration, Page};
use super::output::Output;
use super::summary::{Findings, Summary, left_behind};
use super::wait::{self, OnStop};
use super::{endpoint, render};
use crate::pb;

/// Start, cancel and look at operations
///
/// An operation is the sessions that it takes until two replicas are in sync, with retries. It runs at the server, whether
/// anyone waits for it or not.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synclave operation start http://127.0.0.1:7001 http://127.0.0.1:7002 --wait
  synclave operation start http://127.0.0.1:7001 http://127.0.0.1:7002 --direction upload
  synclave operation list

A SOURCE or DESTINATION is the address of a provider (http://HOST:PORT); `synclave provider` prints it.")]
pub(super) struct OperationArgs {
    #[command(subcommand)]
    command: OperationCommand,
}

#[derive(Debug, Subcommand)]
enum OperationCommand {
    /// Start an operation
    Start(StartArgs),
    /// Show an operation
    Get(IdArgs),
    /// Cancel an operation and its running session; what is applied stays
    Cancel(IdArgs),
    /// List operations, newest first
    List(Page),
}

#[derive(Debug, Args)]
struct StartArgs {
    /// The first provider: http://HOST:PORT
    source: OsString,
    /// The second provider
    destination: OsString,
    /// Which directions, in which order [default: upload-and-download]
    #[arg(long, value_enum, value_name = "ORDER")]
    direction: Option<Direction>,
    /// The same as --direction upload
    #[arg(long, conflicts_with = "direction")]
    one_way: bool,
    /// How conflicts are settled [default: the server's, keep-both]
    #[arg(long, value_enum, value_name = "POLICY")]
    conflict: Option<Conflict>,
    /// How collisions are settled, such as a file and a directory of one name [default: the server's, none]
    #[arg(long, value_enum, value_name = "POLICY")]
    collision: Option<Collision>,
    /// What to do with a destination that is out of date [default: abort]
    #[arg(long, value_enum, value_name = "ACTION")]
    full_enumeration: Option<FullEnumeration>,
    /// Turn the safety stop against mass deletion off
    #[arg(long)]
    allow_mass_delete: bool,
    /// Failures in a row that end it, 0: no limit [default: 5]
    #[arg(long, value_name = "N")]
    max_attempts: Option<u32>,
    /// Sessions that end it [default: 8]
    #[arg(long, value_name = "N")]
    max_sessions: Option<u32>,
    /// A GUID of your choice: the same request again gets the same operation
    #[arg(long, default_value = "", hide_default_value = true, value_name = "GUID")]
    request_id: String,
    /// Wait until it has ended, and exit as `sync` does: 0 in sync, 1 failed, 3 ended otherwise
    #[arg(long)]
    wait: bool,
}

#[derive(Debug, Args)]
struct IdArgs {
    /// The operation
    operation_id: String,
    /// Wait until it has ended, and exit as `sync` does: 0 in sync, 1 failed, 3 ended otherwise
    #[arg(long)]
    wait: bool,
}

pub(super) async fn run(
    args: OperationArgs,
    server: &str,
    output: Output,
    stop: CancellationToken,
) -> Result<Exit, Failure> {
    match args.command {
        OperationCommand::Start(args) => {
            let request = args.request()?;
            let server = Server::connect(server, &stop).await?;
            let response = server.answer(server.operations().start_operation(unary(request)), &stop).await?;
            if args.wait {
                return ended(&server, response.operation, output, &stop).await;
            }
            output.print(&response, |response| show(response.operation.as_ref()))?;
        }
        OperationCommand::Get(args) => {
            let server = Server::connect(server, &stop).await?;
            let request = pb::GetOperationRequest { operation_id: args.operation_id };
            let response = server.answer(server.operations().get_operation(unary(request)), &stop).await?;
            if args.wait {
                return ended(&server, response.operation, output, &stop).await;
            }
            output.print(&response, |response| show(response.operation.as_ref()))?;
        }
        OperationCommand::Cancel(args) => {
            let server = Server::connect(server, &stop).await?;
            let request = pb::CancelOperationRequest { operation_id: args.operation_id };
            let response = server.answer(server.operations().cancel_operation(unary(request)), &stop).await?;
            if args.wait {
                return ended(&server, response.operation, output, &stop).await;
            }
            output.print(&response, |response| show(response.operation.as_ref()))?;
        }
        OperationCommand::List(page) => {
            let server = Server::connect(server, &stop).await?;
            let request = pb::ListOperationsRequest { page_size: page.page_size, page_token: page.page_token };
            let response = server.answer(server.operations().list_operations(unary(request)), &stop).await?;
            output.print(&response, |response| render::operations(&response.operations))?;
            if !output.is_json() {
                Page::point_to(&response.next_page_token);
            }
        }
    }
    Ok(Exit::Done)
}

impl StartArgs {
    fn request(&self) -> Result<pb::StartOperationRequest, Failure> {
        let direction = match (self.direction, self.one_way) {
            (Some(direction), _) => direction.into(),
            (None, true) => pb::SyncDirectionOrder::Upload,
            (None, false) => pb::SyncDirectionOrder::UploadAndDownload,
        };
        Ok(pb::StartOperationRequest {
            request_id: self.request_id.clone(),
            source: Some(endpoint::provider(&self.source)?),
            destination: Some(endpoint::provider(&self.destination)?),
            direction: direction.into(),
            conflict_resolution_policy: self.conflict.map(|policy| pb::ConflictResolutionPolicy::from(policy).into()),
            collision_conflict_resolution_policy: self
                .collision
                .map(|policy| pb::CollisionConflictResolutionPolicy::from(policy).into()),
            full_enumeration_action: self.full_enumeration.map(|action| pb::FullEnumerationAction::from(action).into()),
            allow_mass_delete: self.allow_mass_delete,
            max_attempts: self.max_attempts,
            max_sessions: self.max_sessions,
        })
    }
}

/// Waits, and shows the end: in JSON the operation, the same shape as without waiting; else the summary.
async fn ended(
    server: &Server,
    operation: Option<pb::Operation>,
    output: Output,
    stop: &CancellationToken,
) -> Result<Exit, Failure> {
    let operation = operation
        .ok_or_else(|| Failure::failed("the server answered without an operation; is it a synclave server?"))?;
    let ended = wait::operation(server, &operation.operation_id, stop, OnStop::Leave).await?;
    let ends = [&ended.operation.source, &ended.operation.destination].map(|end| render::endpoint(end.as_ref()));
    let summary = Summary::new(&ended.operation, &ended.sync_infos, ends, Findings::default());
    let words = summary.words() + &left_behind(&ended.operation);
    let response = pb::GetOperationResponse { operation: Some(ended.operation) };
    output.print(&response, |_| words)?;
    summary.failure().map_or(Ok(summary.exit()), Err)
}

fn show(operation: Option<&pb::Operation>) -> String {
    operation.map(render::operation).unwrap_or_default()
}
