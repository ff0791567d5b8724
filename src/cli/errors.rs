//! `synclave errors`: items that could not be carried over.

use std::collections::BTreeSet;

use clap::{Args, Subcommand};
use tokio_util::sync::CancellationToken;

use super::client::{Server, unary};
use super::conflict::{ListArgs, left_out};
use super::exit::{Exit, Failure};
use super::options::Page;
use super::output::Output;
use super::render;
use super::table::{Table, count};
use crate::pb;

/// List items that could not be carried over, and have them tried again
///
/// An item that cannot be read at the source, or saved at the destination, holds up no other. Its operation tries it again,
/// later and later; after five failures it is set aside, and left out of all sessions until it changes at the source or until
/// someone says retry.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synclave errors list
  synclave errors retry
  synclave errors retry ITEM_ERROR_ID")]
pub(super) struct ErrorsArgs {
    #[command(subcommand)]
    command: ErrorsCommand,
}

#[derive(Debug, Subcommand)]
enum ErrorsCommand {
    /// List items that fail, oldest first
    List(ListArgs),
    /// Have items tried again by the next session of their replicas
    Retry(RetryArgs),
}

#[derive(Debug, Args)]
struct RetryArgs {
    /// Which; none: all of them
    item_error_ids: Vec<String>,
    /// Only those of this operation
    #[arg(long, default_value = "", hide_default_value = true, value_name = "OPERATION_ID")]
    operation: String,
}

pub(super) async fn run(
    args: ErrorsArgs,
    server: &str,
    output: Output,
    stop: CancellationToken,
) -> Result<Exit, Failure> {
    let server = Server::connect(server, &stop).await?;
    match args.command {
        ErrorsCommand::List(ListArgs { operation, page }) => {
            let request = pb::ListItemErrorsRequest {
                page_size: page.page_size,
                page_token: page.page_token,
                operation_id: operation,
            };
            let response = server.answer(server.operations().list_item_errors(unary(request)), &stop).await?;
            output.print(&response, |response| list(&response.item_errors))?;
            if !output.is_json() {
                Page::point_to(&response.next_page_token);
                left_out(response.left_out, "items");
            }
        }
        ErrorsCommand::Retry(RetryArgs { item_error_ids, operation }) => {
            let asked: BTreeSet<_> = item_error_ids.iter().cloned().collect();
            let request = pb::RetryItemErrorsRequest { item_error_ids, operation_id: operation };
            let response = server.answer(server.operations().retry_item_errors(unary(request)), &stop).await?;
            output.print(&response, |response| format!("tried again with the next session: {}\n", response.retried))?;
            let unknown = (asked.len() as u64).saturating_sub(response.retried);
            if unknown > 0 {
                return Err(Failure::failed(format!(
                    "{} of no item that fails: see synclave errors list",
                    count(unknown, "id")
                )));
            }
        }
    }
    Ok(Exit::Done)
}

fn list(errors: &[pb::ItemError]) -> String {
    let mut table = Table::new(["ERROR", "ITEM", "AT", "FAILURES", "LAST", "NEXT ATTEMPT", "WHY"]);
    for error in errors {
        let said = error.recoverable_error.clone().unwrap_or_default();
        let next =
            if error.set_aside { "set aside".to_owned() } else { render::time(error.next_attempt_time.as_ref()) };
        table.row([
            error.item_error_id.clone(),
            said.item_display_name.clone(),
            render::endpoint(render::side(error)),
            error.attempts.to_string(),
            render::time(error.last_time.as_ref()),
            next,
            render::fault(0, said.hresult, &said.error_description),
        ]);
    }
    table.render()
}
