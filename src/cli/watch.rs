//! `synclave watch`: the state of sessions, live.

use std::time::Duration;

use clap::Args;
use tokio_util::sync::CancellationToken;

use super::client::Server;
use super::exit::{Exit, Failure, report};
use super::follow::{Follower, News};
use super::options::{self, State};
use super::output::{self, Output};
use super::render;
use super::table::duration;
use crate::pb;
use crate::pb::sync_info_entry::Entry;
use crate::pb::watch_sync_info_response::Event;

/// Watch sessions, live
///
/// Shows the state of all sessions that match, then each change. Conditions of different kinds must all hold; of one kind
/// that is given several times, any. When the connection breaks, the watch resumes where it was by itself; what changed
/// meanwhile follows. Ctrl-C ends it with exit code 0.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synclave watch
  synclave watch --member oslo --state in-progress --state in-error
  synclave watch --operation 0192f0c1-7c1e-7b7e-9d3a-5f3c1f0e8a11 --output json | \\
      jq -r '.changes.entries[]?.syncInfo.dfsrSyncInfo // empty | \"\\(.state) \\(.updatesTransferred)\"'

With --output json each line is one WatchSyncInfoResponse. Keep the resumeToken of the last line \
that you have dealt with: --resume-token goes on from there, after a second or a night, with what \
changed.")]
pub(super) struct WatchArgs {
    /// Only this session; may be given several times, as the other conditions
    #[arg(long, value_name = "SYNC_GUID", value_delimiter = ',')]
    session: Vec<String>,
    /// Only sessions of this operation
    #[arg(long, value_name = "ID", value_delimiter = ',')]
    operation: Vec<String>,
    /// Only sessions of this member, by GUID or name, from its viewpoint
    #[arg(long, value_name = "MEMBER")]
    member: Vec<String>,
    /// Only sessions with this partner, by GUID or name
    #[arg(long, value_name = "PARTNER")]
    partner: Vec<String>,
    /// Only sessions in this state
    #[arg(long, value_enum, value_name = "STATE", value_delimiter = ',')]
    state: Vec<State>,
    /// Only this viewpoint: true, the destination's; false, the source's [default: each session once]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    inbound: Option<bool>,
    /// Go on after the message that this token came with
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TOKEN")]
    resume_token: String,
    /// Changes of one session that follow faster than this come as one, such as 500ms
    #[arg(long, value_parser = options::duration, value_name = "SPAN")]
    min_interval: Option<Duration>,
    /// A sign of life when nothing else was sent for so long [default: the server's]
    #[arg(long, value_parser = options::duration, value_name = "SPAN")]
    heartbeat_interval: Option<Duration>,
    /// End once the state has been shown, instead of waiting for changes
    #[arg(long)]
    once: bool,
}

pub(super) async fn run(
    args: WatchArgs,
    server: &str,
    output: Output,
    stop: CancellationToken,
) -> Result<Exit, Failure> {
    let watched = stop.run_until_cancelled(watch(args, server, output, &stop)).await;
    // Ctrl-C is how a watch ends.
    watched.unwrap_or(Ok(Exit::Done))
}

async fn watch(args: WatchArgs, server: &str, output: Output, stop: &CancellationToken) -> Result<Exit, Failure> {
    let once = args.once;
    let server = Server::connect(server, stop).await?;
    let mut follower = Follower::open(&server, args.request()).await?;
    loop {
        match follower.next().await? {
            News::Message(message) => {
                show(&message, once, output)?;
                if once && matches!(message.event, Some(Event::Synced(_))) {
                    return Ok(Exit::Done);
                }
            }
            News::Lost { why, retry_in } => {
                report(&format!("connection lost ({why}); resuming in {}", duration(retry_in)));
            }
            News::Resumed => report("connected again; what changed meanwhile follows"),
        }
    }
}

impl WatchArgs {
    fn request(self) -> pb::WatchSyncInfoRequest {
        let filter = pb::SyncInfoFilter {
            members: self.member,
            partners: self.partner,
            operation_ids: self.operation,
            sync_guids: self.session,
            states: options::states(&self.state),
            inbound: self.inbound,
            ..Default::default()
        };
        pb::WatchSyncInfoRequest {
            filter: Some(filter),
            resume_token: self.resume_token,
            min_interval: self.min_interval.map(options::to_pb),
            heartbeat_interval: self.heartbeat_interval.map(options::to_pb),
        }
    }
}

fn show(message: &pb::WatchSyncInfoResponse, once: bool, output: Output) -> Result<(), Failure> {
    if output.is_json() {
        return output.print(message, |_| String::new());
    }
    match &message.event {
        Some(Event::Changes(changes)) => output::text(&changes.entries.iter().map(entry).collect::<String>()),
        Some(Event::Reset(reset)) => output::line(&format!("forget what was shown so far: {}", reset.reason)),
        Some(Event::Synced(synced)) => {
            let shown = super::table::count(synced.count.into(), "session");
            report(&if once { format!("{shown} shown") } else { format!("{shown} shown; changes follow") });
            Ok(())
        }
        Some(Event::Heartbeat(_)) | None => Ok(()),
    }
}

/// The transitions that led here, when there are several, and the sync info.
fn entry(entry: &pb::SyncInfoEntry) -> String {
    let mut text = match &entry.entry {
        Some(Entry::SyncInfo(info)) => render::sync_info(info),
        Some(Entry::Removed(removed)) => format!("{}  removed: {}", removed.sync_guid, removed.reason),
        None => return String::new(),
    };
    if entry.transitions.len() > 1 || entry.transitions_left_out > 0 {
        let mut path: Vec<_> = entry.transitions.iter().map(|step| render::sync_state(step.to_state)).collect();
        if entry.transitions_left_out > 0 {
            path.insert(0, format!("({} more)", entry.transitions_left_out));
        }
        text.push_str(&format!("  (by way of {})", path.join(", ")));
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        watch: WatchArgs,
    }

    fn request(words: &[&str]) -> pb::WatchSyncInfoRequest {
        Line::try_parse_from(std::iter::once(&"watch").chain(words)).unwrap().watch.request()
    }

    #[test]
    fn inbound_stands_alone_or_has_a_value() {
        let inbound = |words: &[&str]| request(words).filter.unwrap().inbound;
        assert_eq!(inbound(&[]), None);
        assert_eq!(inbound(&["--inbound"]), Some(true));
        assert_eq!(inbound(&["--inbound=false"]), Some(false));
    }

    #[test]
    fn conditions_may_be_given_several_times() {
        let filter = request(&["--state", "in-sync", "--state=in-error", "--session", "a,b"]).filter.unwrap();
        assert_eq!(filter.states, [4, 6]);
        assert_eq!(filter.sync_guids, ["a", "b"]);
    }

    #[test]
    fn the_min_interval_goes_over_the_wire() {
        let span = request(&["--min-interval", "1500ms"]).min_interval.unwrap();
        assert_eq!((span.seconds, span.nanos), (1, 500_000_000));
    }
}
