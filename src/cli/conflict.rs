//! `synclave conflict`: what was deferred, and decisions about it.

use clap::{Args, Subcommand, ValueEnum};
use tokio_util::sync::CancellationToken;

use super::client::{Server, unary};
use super::exit::{Exit, Failure};
use super::options::Page;
use super::output::Output;
use super::render;
use super::table::{Table, bytes, facts};
use crate::pb;

/// List conflicts that wait for a decision, and decide them
///
/// A conflict is deferred when both sides have changed an item and the policy is none (--conflict none), or when the
/// destination has another item in its place (a collision). Both sides stay as they are until someone decides; the decision is
/// carried out by the next session of the two replicas, while both versions are still those of the conflict. When one has
/// changed meanwhile, it is another conflict, with an id of its own.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synclave conflict list
  synclave conflict show CONFLICT_ID
  synclave conflict data CONFLICT_ID --side destination > theirs
  synclave conflict resolve CONFLICT_ID --action accept-source
  synclave operation start http://127.0.0.1:7001 http://127.0.0.1:7002 --conflict none --wait

Source and destination are those that `show` names, whichever way the next session goes.")]
pub(super) struct ConflictArgs {
    #[command(subcommand)]
    command: ConflictCommand,
}

#[derive(Debug, Subcommand)]
enum ConflictCommand {
    /// List conflicts, oldest first
    List(ListArgs),
    /// Show one, with what both sides have
    Show(IdArgs),
    /// Write what one side has to stdout
    ///
    /// Of an item whose change units are in conflict: these, as a JSON object. It is read from the side's provider, in a session that
    /// changes nothing, once no other session has the two replicas.
    Data(DataArgs),
    /// Decide one
    Resolve(ResolveArgs),
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Only those of this operation
    #[arg(long, default_value = "", hide_default_value = true, value_name = "OPERATION_ID")]
    pub(super) operation: String,
    #[command(flatten)]
    pub(super) page: Page,
}

#[derive(Debug, Args)]
struct IdArgs {
    /// The conflict
    conflict_id: String,
}

#[derive(Debug, Args)]
struct DataArgs {
    /// The conflict
    conflict_id: String,
    /// Which side, as `show` names them
    #[arg(long, value_enum, value_name = "SIDE")]
    side: Side,
}

/// A side of a conflict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Side {
    /// What the source has
    Source,
    /// What the destination has; of a collision, the item in the way
    Destination,
}

#[derive(Debug, Args)]
struct ResolveArgs {
    /// The conflict
    conflict_id: String,
    /// What to do; may be changed until it is carried out
    #[arg(long, value_enum, value_name = "ACTION")]
    action: Action,
}

/// What to do with a conflict. Which of them fit, depends on its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Action {
    /// Take a decision back: the conflict stays deferred
    Defer,
    /// What the destination has stays; of a collision, the source's item is deleted everywhere
    AcceptDestination,
    /// What the source has takes its place; of a collision, the item in the way is deleted everywhere
    AcceptSource,
    /// Of a collision of two items with change units, such as rows: both become one, that with the smaller id
    Merge,
    /// The later modification stays, the other beside it under a name of its own; not of a collision
    KeepBoth,
    /// Of a collision: the source's item gets a name of its own
    RenameSource,
    /// Of a collision: the item in the way gets a name of its own
    RenameDestination,
}

pub(super) async fn run(
    args: ConflictArgs,
    server: &str,
    output: Output,
    stop: CancellationToken,
) -> Result<Exit, Failure> {
    let server = Server::connect(server, &stop).await?;
    match args.command {
        ConflictCommand::List(ListArgs { operation, page }) => {
            let request = pb::ListConflictsRequest {
                page_size: page.page_size,
                page_token: page.page_token,
                operation_id: operation,
            };
            let response = server.answer(server.operations().list_conflicts(unary(request)), &stop).await?;
            output.print(&response, |response| list(&response.conflicts))?;
            if !output.is_json() {
                Page::point_to(&response.next_page_token);
                left_out(response.left_out, "conflicts");
            }
        }
        ConflictCommand::Show(IdArgs { conflict_id }) => {
            let request = pb::GetConflictRequest { conflict_id };
            let response = server.answer(server.operations().get_conflict(unary(request)), &stop).await?;
            output.print(&response, |response| response.conflict.as_ref().map(show).unwrap_or_default())?;
        }
        ConflictCommand::Data(DataArgs { conflict_id, side }) => {
            let side = match side {
                Side::Source => pb::SyncProviderRole::Source,
                Side::Destination => pb::SyncProviderRole::Destination,
            };
            let request = pb::LoadConflictDataRequest { conflict_id, side: Some(side.into()) };
            // No deadline: it may have to wait for a session to end.
            let mut parts = server.answer(server.operations().load_conflict_data(request), &stop).await?;
            data(&server, &mut parts, output, &stop).await?;
        }
        ConflictCommand::Resolve(ResolveArgs { conflict_id, action }) => {
            // Which enum the action is of depends on the conflict, so it is looked at first.
            let request = pb::GetConflictRequest { conflict_id: conflict_id.clone() };
            let response = server.answer(server.operations().get_conflict(unary(request)), &stop).await?;
            let conflict = response.conflict.unwrap_or_default();
            let request = match conflict.constraint_conflict_reason {
                None => pb::ResolveConflictRequest {
                    conflict_id,
                    action: Some(action.of_concurrency()?.into()),
                    constraint_action: None,
                },
                Some(_) => pb::ResolveConflictRequest {
                    conflict_id,
                    action: None,
                    constraint_action: Some(action.of_constraint()?.into()),
                },
            };
            let response = server.answer(server.operations().resolve_conflict(unary(request)), &stop).await?;
            output.print(&response, |response| response.conflict.as_ref().map(show).unwrap_or_default())?;
        }
    }
    Ok(Exit::Done)
}

/// Content to stdout as it comes; with `--output json`, the messages. What does not come to its end has failed.
async fn data(
    server: &Server,
    parts: &mut tonic::Streaming<pb::LoadConflictDataResponse>,
    output: Output,
    stop: &CancellationToken,
) -> Result<(), Failure> {
    use pb::load_conflict_data_response::Part;

    loop {
        let next = async { parts.message().await.map(tonic::Response::new) };
        let message = server.answer(next, stop).await?;
        let Some(message) = message else {
            return Err(Failure::failed("the data ended too early; ask for it again"));
        };
        if output.is_json() {
            output.print(&message, |_| String::new())?;
        }
        match message.part {
            Some(Part::Chunk(chunk)) if !output.is_json() => super::output::content(&chunk)?,
            Some(Part::End(_)) => return Ok(()),
            Some(Part::RecoverableError(error)) => return Err(Failure::failed(error.error_description)),
            Some(Part::Header(_) | Part::Chunk(_)) | None => {}
        }
    }
}

/// Says on stderr that there was no room for some.
pub(super) fn left_out(count: u64, what: &str) {
    if count > 0 {
        super::exit::report(&format!("{count} more {what} were met and not kept: settle some, and sync again"));
    }
}

impl Action {
    fn of_concurrency(self) -> Result<pb::SyncResolveAction, Failure> {
        Ok(match self {
            Self::Defer => pb::SyncResolveAction::Defer,
            Self::AcceptDestination => pb::SyncResolveAction::AcceptDestinationProvider,
            Self::AcceptSource => pb::SyncResolveAction::AcceptSourceProvider,
            Self::Merge => pb::SyncResolveAction::Merge,
            Self::KeepBoth => pb::SyncResolveAction::KeepBoth,
            Self::RenameSource | Self::RenameDestination => {
                return Err(Failure::failed(
                    "both sides changed one item, so there is nothing to rename: accept-source, accept-destination, \
                     keep-both or merge settle it",
                ));
            }
        })
    }

    fn of_constraint(self) -> Result<pb::SyncConstraintResolveAction, Failure> {
        Ok(match self {
            Self::Defer => pb::SyncConstraintResolveAction::Defer,
            Self::AcceptDestination => pb::SyncConstraintResolveAction::AcceptDestinationProvider,
            Self::AcceptSource => pb::SyncConstraintResolveAction::AcceptSourceProvider,
            Self::Merge => pb::SyncConstraintResolveAction::Merge,
            Self::RenameSource => pb::SyncConstraintResolveAction::RenameSource,
            Self::RenameDestination => pb::SyncConstraintResolveAction::RenameDestination,
            Self::KeepBoth => {
                return Err(Failure::failed(
                    "two items collide here: rename-source or rename-destination keep both of them",
                ));
            }
        })
    }
}

fn list(conflicts: &[pb::Conflict]) -> String {
    let mut table = Table::new(["CONFLICT", "ITEM", "KIND", "SOURCE HAS", "DESTINATION HAS", "FIRST MET", "DECISION"]);
    for conflict in conflicts {
        table.row([
            conflict.conflict_id.clone(),
            conflict.item_display_name.clone(),
            kind(conflict),
            side(conflict.source_change.as_ref()),
            side(conflict.destination_change.as_ref()),
            render::time(conflict.create_time.as_ref()),
            decision(conflict),
        ]);
    }
    table.render()
}

fn show(conflict: &pb::Conflict) -> String {
    facts(&[
        ("conflict", conflict.conflict_id.clone()),
        ("item", conflict.item_display_name.clone()),
        ("kind", kind(conflict)),
        (
            "in the way",
            conflict
                .conflicting_item_id
                .as_deref()
                .map(|id| String::from_utf8_lossy(id).into_owned())
                .unwrap_or_default(),
        ),
        ("source", render::endpoint(conflict.source.as_ref())),
        ("source has", side(conflict.source_change.as_ref())),
        ("destination", render::endpoint(conflict.destination.as_ref())),
        ("destination has", side(conflict.destination_change.as_ref())),
        ("first met", render::time(conflict.create_time.as_ref())),
        ("last met", render::time(conflict.last_time.as_ref())),
        ("operation", conflict.operation_id.clone()),
        ("session", conflict.sync_guid.clone()),
        ("decision", decision(conflict)),
        ("decided", render::time(conflict.resolve_time.as_ref())),
    ])
}

/// `both changed`, `changed here, deleted there`, or why an item cannot be saved.
pub(super) fn kind(conflict: &pb::Conflict) -> String {
    match conflict.constraint_conflict_reason.map(pb::ConstraintConflictReason::try_from) {
        Some(Ok(pb::ConstraintConflictReason::Collision)) => "collision",
        Some(Ok(pb::ConstraintConflictReason::NoParent)) => "no parent",
        Some(_) => "constraint",
        None => match (conflict.source_deleted, conflict.destination_deleted) {
            (true, false) => "deleted at the source, changed at the destination",
            (false, true) => "changed at the source, deleted at the destination",
            _ => "both changed",
        },
    }
    .to_owned()
}

/// `1.5 KiB of 2026-01-01T00:00:00Z, 0123456789ab…`, or `deleted`.
fn side(change: Option<&pb::ConflictingChange>) -> String {
    let Some(change) = change else { return String::new() };
    if change.deleted {
        return "deleted".to_owned();
    }
    let mut text = change.data_size.map(bytes).unwrap_or_default();
    let time = render::time(change.modification_time.as_ref());
    if !time.is_empty() {
        text.push_str(&format!(" of {time}"));
    }
    if let Some(digest) = &change.content_digest {
        let hex: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        text.push_str(&format!(", {hex}…"));
    }
    text.trim().to_owned()
}

fn decision(conflict: &pb::Conflict) -> String {
    let concurrency = conflict.action.and_then(|action| pb::SyncResolveAction::try_from(action).ok());
    let constraint =
        conflict.constraint_action.and_then(|action| pb::SyncConstraintResolveAction::try_from(action).ok());
    let name = concurrency
        .map(|action| action.as_str_name().trim_start_matches("SYNC_RESOLVE_ACTION_"))
        .or(constraint.map(|action| action.as_str_name().trim_start_matches("SYNC_CONSTRAINT_RESOLVE_ACTION_")));
    name.unwrap_or_default().to_owned()
}
