//! `synclave session`: sessions, one by one.

use std::ffi::OsString;
use std::time::Duration;

use clap::{Args, Subcommand};
use tokio_util::sync::CancellationToken;

use super::client::{Server, unary};
use super::endpoint;
use super::exit::{Exit, Failure};
use super::options::{self, Collision, Conflict, FullEnumeration, Page, State};
use super::output::Output;
use super::summary::End;
use super::{render, wait};
use crate::pb;

/// Begin, end, cancel and look at sessions
///
/// A session has one source, one destination and one direction. One that is begun here is not retried; for that, and for
/// both directions, see `synclave operation`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synclave session begin http://127.0.0.1:7001 http://127.0.0.1:7002 --wait
  synclave session list --state in-progress
  synclave session events 0192f0c1-7c1e-7b7e-9d3a-5f3c1f0e8a11

  synclave session begin member:oslo member:rome --external --lease 30s

A SOURCE or DESTINATION is the address of a provider (http://HOST:PORT). An external session may also have member:NAME, which
is not dialled: who began the session speaks for it, with the token that is printed.")]
pub(super) struct SessionArgs {
    #[command(subcommand)]
    command: SessionCommand,
}

#[derive(Debug, Subcommand)]
enum SessionCommand {
    /// Begin a session
    Begin(BeginArgs),
    /// End an external session in good order
    End(EndArgs),
    /// Renew the lease of an external session: its caller is still there
    Renew(RenewArgs),
    /// Cancel a session; what is applied stays
    Cancel(CancelArgs),
    /// Show a session
    Get(GetArgs),
    /// Show every transition of a session
    Events(EventsArgs),
    /// List sessions, newest first
    List(ListArgs),
}

#[derive(Debug, Args)]
struct BeginArgs {
    /// The provider that changes come from: http://HOST:PORT; of an external session also member:NAME
    source: OsString,
    /// The provider that they go to
    destination: OsString,
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
    /// The stores move the data themselves; the coordinator keeps order and status
    #[arg(long)]
    external: bool,
    /// Of an external session: how long its caller may be silent, such as 30s
    #[arg(long, value_parser = options::duration, value_name = "SPAN", requires = "external")]
    lease: Option<Duration>,
    /// A GUID of your choice: the same request again gets the same session
    #[arg(long, default_value = "", hide_default_value = true, value_name = "GUID")]
    request_id: String,
    #[command(flatten)]
    wait: WaitArgs,
}

#[derive(Debug, Args)]
struct WaitArgs {
    /// Wait until it has ended, and exit as `sync` does: 0 in sync, 1 failed, 3 ended otherwise
    #[arg(long)]
    wait: bool,
}

#[derive(Debug, Args)]
struct EndArgs {
    /// The session
    sync_guid: String,
    /// Of an external session: the replicas are in sync
    #[arg(long)]
    in_sync: bool,
    #[command(flatten)]
    wait: WaitArgs,
}

#[derive(Debug, Args)]
struct RenewArgs {
    /// The session
    sync_guid: String,
}

#[derive(Debug, Args)]
struct CancelArgs {
    /// The session
    sync_guid: String,
    /// Why, for whoever looks at it later
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    reason: String,
    #[command(flatten)]
    wait: WaitArgs,
}

#[derive(Debug, Args)]
struct GetArgs {
    /// The session
    sync_guid: String,
    #[command(flatten)]
    wait: WaitArgs,
}

#[derive(Debug, Args)]
struct EventsArgs {
    /// The session
    sync_guid: String,
    #[command(flatten)]
    page: Page,
}

#[derive(Debug, Args)]
struct ListArgs {
    /// Only sessions in this state; may be given several times
    #[arg(long, value_enum, value_name = "STATE", value_delimiter = ',')]
    state: Vec<State>,
    /// Only sessions of this operation
    #[arg(long, default_value = "", hide_default_value = true, value_name = "ID")]
    operation: String,
    #[command(flatten)]
    page: Page,
}

pub(super) async fn run(
    args: SessionArgs,
    server: &str,
    output: Output,
    stop: CancellationToken,
) -> Result<Exit, Failure> {
    // An argument that makes no sense is said before a server that is not there.
    let request = match &args.command {
        SessionCommand::Begin(args) => args.request()?,
        _ => pb::BeginSessionRequest::default(),
    };
    let call = Call { server: Server::connect(server, &stop).await?, output, stop: &stop };
    match args.command {
        SessionCommand::Begin(args) => call.begin(request, args.wait.wait).await,
        SessionCommand::End(args) => call.end(args).await,
        SessionCommand::Renew(args) => call.renew(args).await,
        SessionCommand::Cancel(args) => call.cancel(args).await,
        SessionCommand::Get(args) => call.get(args).await,
        SessionCommand::Events(args) => call.events(args).await,
        SessionCommand::List(args) => call.list(args).await,
    }
}

impl BeginArgs {
    fn request(&self) -> Result<pb::BeginSessionRequest, Failure> {
        let kind = if self.external { pb::SessionKind::External } else { pb::SessionKind::Coordinated };
        Ok(pb::BeginSessionRequest {
            request_id: self.request_id.clone(),
            kind: kind.into(),
            source: Some(endpoint::provider(&self.source)?),
            destination: Some(endpoint::provider(&self.destination)?),
            conflict_resolution_policy: self.conflict.map(|policy| pb::ConflictResolutionPolicy::from(policy).into()),
            collision_conflict_resolution_policy: self
                .collision
                .map(|policy| pb::CollisionConflictResolutionPolicy::from(policy).into()),
            full_enumeration_action: self.full_enumeration.map(|action| pb::FullEnumerationAction::from(action).into()),
            allow_mass_delete: self.allow_mass_delete,
            lease: self.lease.map(options::to_pb),
        })
    }
}

/// One command's way to the server and back.
struct Call<'a> {
    server: Server,
    output: Output,
    stop: &'a CancellationToken,
}

impl Call<'_> {
    async fn begin(&self, request: pb::BeginSessionRequest, wait: bool) -> Result<Exit, Failure> {
        let mut response = self.answer(self.server.sessions().begin_session(unary(request))).await?;
        let end = self.ended(&mut response.session, wait).await?;
        self.output.print(&response, |response| {
            let mut text = show(response.session.as_ref());
            for (end, token) in [("source", &response.source_token), ("destination", &response.destination_token)] {
                if !token.is_empty() {
                    text.push_str(&format!("{end} token (a secret)  {token}\n"));
                }
            }
            text
        })?;
        end
    }

    async fn end(&self, args: EndArgs) -> Result<Exit, Failure> {
        let request = pb::EndSessionRequest { sync_guid: args.sync_guid, in_sync: args.in_sync };
        let mut response = self.answer(self.server.sessions().end_session(unary(request))).await?;
        let end = self.ended(&mut response.session, args.wait.wait).await?;
        self.output.print(&response, |response| show(response.session.as_ref()))?;
        end
    }

    async fn renew(&self, args: RenewArgs) -> Result<Exit, Failure> {
        let request = pb::RenewSessionRequest { sync_guid: args.sync_guid };
        let response = self.answer(self.server.sessions().renew_session(unary(request))).await?;
        self.output.print(&response, |response| show(response.session.as_ref()))?;
        Ok(Exit::Done)
    }

    async fn cancel(&self, args: CancelArgs) -> Result<Exit, Failure> {
        let request = pb::CancelSessionRequest { sync_guid: args.sync_guid, reason: args.reason };
        let mut response = self.answer(self.server.sessions().cancel_session(unary(request))).await?;
        let end = self.ended(&mut response.session, args.wait.wait).await?;
        self.output.print(&response, |response| show(response.session.as_ref()))?;
        end
    }

    async fn get(&self, args: GetArgs) -> Result<Exit, Failure> {
        let request = pb::GetSessionRequest { sync_guid: args.sync_guid };
        let mut response = self.answer(self.server.sessions().get_session(unary(request))).await?;
        let end = self.ended(&mut response.session, args.wait.wait).await?;
        self.output.print(&response, |response| show(response.session.as_ref()))?;
        end
    }

    async fn events(&self, args: EventsArgs) -> Result<Exit, Failure> {
        let request = pb::ListSessionEventsRequest {
            sync_guid: args.sync_guid,
            page_size: args.page.page_size,
            page_token: args.page.page_token,
        };
        let response = self.answer(self.server.sessions().list_session_events(unary(request))).await?;
        self.output.print(&response, |response| render::session_events(&response.events))?;
        if !self.output.is_json() {
            Page::point_to(&response.next_page_token);
        }
        Ok(Exit::Done)
    }

    async fn list(&self, args: ListArgs) -> Result<Exit, Failure> {
        let request = pb::ListSessionsRequest {
            page_size: args.page.page_size,
            page_token: args.page.page_token,
            states: options::states(&args.state),
            operation_id: args.operation,
        };
        let response = self.answer(self.server.sessions().list_sessions(unary(request))).await?;
        self.output.print(&response, |response| render::sessions(&response.sessions))?;
        if !self.output.is_json() {
            Page::point_to(&response.next_page_token);
        }
        Ok(Exit::Done)
    }

    /// With `wait`, puts the session as it ended in place of the session as it was answered. The inner result is how the
    /// command ends, after the session has been shown.
    async fn ended(&self, session: &mut Option<pb::Session>, wait: bool) -> Result<Result<Exit, Failure>, Failure> {
        let Some(begun) = session.as_ref().filter(|_| wait) else { return Ok(Ok(Exit::Done)) };
        let ended = wait::session(&self.server, &begun.sync_guid, self.stop).await?;
        let end = match End::of_session(&ended) {
            Some(End::Failed) => Err(Failure::failed(format!(
                "session {} failed: {}; begin another one when that is put right",
                ended.sync_guid,
                render::session_fault(&ended)
            ))),
            Some(end) => Ok(end.into()),
            None => Ok(Exit::NotInSync),
        };
        *session = Some(ended);
        Ok(end)
    }

    async fn answer<T>(
        &self,
        call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T, Failure> {
        self.server.answer(call, self.stop).await
    }
}

fn show(session: Option<&pb::Session>) -> String {
    session.map(render::session).unwrap_or_default()
}
