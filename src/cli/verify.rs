//! `synclave verify`: are two replicas the same, and what of them is not.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::client::Server;
use super::endpoint::{self, Target};
use super::exit::{Exit, Failure, one_line};
use super::local::LocalCoordinator;
use super::options::TombstoneAge;
use super::output::{self, Output};
use super::render;
use super::roots::Root;
use super::summary::End;
use super::sync::{SyncEnd, SyncPlan, operate};
use super::table::{bytes, count};
use crate::knowledge::ItemId;
use crate::pb;
use crate::provider::{ContentCheck, ItemDigest, Provider};
use crate::verify::{self, Difference, Kind, Options, Report, Side};

/// Compare two replicas, and repair what is damaged
///
/// Compares digests of ranges of items, so that of what is equal nothing is listed, and lists what differs. Changes since the
/// last sync are looked for first, and differ. Content counts as it was recorded; with --checksum it is read, and content that
/// was changed behind everyone's back, with its size and times as they were, is found too.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synclave verify ~/photos /mnt/backup/photos --checksum
  synclave verify http://127.0.0.1:7001 http://127.0.0.1:7002 --checksum --repair

A and B are directories or addresses of providers, as for sync. What is neither damaged nor undecided, a sync carries. With \
--output json it prints one object a line: difference, totals.

Exit codes: 0 they are the same, 1 failed, 2 wrong command line, 3 they differ, or Ctrl-C.")]
pub(super) struct VerifyArgs {
    /// First directory or provider
    a: OsString,
    /// Second directory or provider
    b: OsString,
    /// Read the content of all items
    #[arg(long)]
    checksum: bool,
    /// Have damaged content replaced by that of the other side, where that one is sound and of the same version; implies
    /// --checksum. Changes that were not synced yet go with it in the same direction
    #[arg(long)]
    repair: bool,
    /// Where state is kept; one process at a time [default: below $XDG_STATE_HOME/synclave or ~/.local/state/synclave, a place
    /// of its own for each two]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

impl VerifyArgs {
    fn plan(&self) -> Result<SyncPlan, Failure> {
        let end = |argument: &OsString| match Target::parse(argument)? {
            Target::Directory(path) => Root::existing(&path).map(SyncEnd::Directory),
            Target::Provider(endpoint) => Ok(SyncEnd::Provider(endpoint)),
        };
        // What deletions a replica still knows is none of a comparison's business.
        SyncPlan::check([end(&self.a)?, end(&self.b)?], self.data_dir.clone(), TombstoneAge(None))
    }
}

pub(super) async fn run(args: VerifyArgs, output: Output, stop: CancellationToken) -> Result<Exit, Failure> {
    let plan = args.plan()?;
    let local = LocalCoordinator::start(&plan).await?;
    let verified = verified(&args, &local, &stop).await;
    // Whatever became of it, locks are given back and providers told.
    let stopped = local.stop().await;
    let (report, left) = verified?;
    stopped?;
    let ends = [&args.a, &args.b].map(|end| end.to_string_lossy().into_owned());
    let result = Verified { ends, report, left };
    if output.is_json() {
        result.lines().iter().try_for_each(|line| output::line(&line.to_string()))?;
    } else {
        output::text(&result.words())?;
    }
    Ok(if result.left.is_empty() { Exit::Done } else { Exit::NotInSync })
}

/// Compares, repairs and compares once more; what was found, and which items differ in the end.
async fn verified(
    args: &VerifyArgs,
    local: &LocalCoordinator,
    stop: &CancellationToken,
) -> Result<(Report, Vec<ItemId>), Failure> {
    let options = Options { checksum: args.checksum || args.repair, repair: args.repair };
    let report = compare(local, options, stop).await?;
    let ids = |report: &Report| report.differences.iter().map(|it| it.item_id.clone()).collect();
    let direction = match &report.prepared {
        [a, b] if a.is_empty() && b.is_empty() => {
            let left = ids(&report);
            return Ok((report, left));
        }
        [a, _] if a.is_empty() => pb::SyncDirectionOrder::Upload,
        [_, b] if b.is_empty() => pb::SyncDirectionOrder::Download,
        _ => pb::SyncDirectionOrder::UploadAndDownload,
    };
    let [source, destination] = &local.endpoints;
    let request = pb::StartOperationRequest {
        source: Some(endpoint::to_pb(source)),
        destination: Some(endpoint::to_pb(destination)),
        direction: direction.into(),
        conflict_resolution_policy: Some(pb::ConflictResolutionPolicy::KeepBoth.into()),
        ..Default::default()
    };
    let server = Server::over(local.channel.clone(), "this process");
    let ended = operate(&server, request, stop).await?;
    if End::of_operation(&ended.operation) == Some(End::Failed) {
        let why = render::operation_fault(&ended.operation);
        return Err(Failure::failed(format!(
            "the session that repairs failed: {why}; what it was to bring comes with the next sync"
        )));
    }
    let after = compare(local, Options { repair: false, ..options }, stop).await?;
    let left = ids(&after);
    Ok((report, left))
}

async fn compare(local: &LocalCoordinator, options: Options, stop: &CancellationToken) -> Result<Report, Failure> {
    let [a, b] = &local.endpoints;
    let find = |endpoint| -> Result<Arc<dyn Provider>, Failure> {
        (local.dial)(endpoint).map_err(|error| Failure::failed(format!("{endpoint}: {error}")))
    };
    verify::verify(find(a)?, find(b)?, options, stop).await.map_err(|error| match error {
        verify::Error::Canceled => {
            Failure::Interrupted("stopped; what was prepared for repair comes with the next sync".to_owned())
        }
        error => Failure::failed(format!("{a} and {b} cannot be compared: {error}")),
    })
}

/// What is told.
struct Verified {
    ends: [String; 2],
    report: Report,
    /// What differs in the end.
    left: Vec<ItemId>,
}

impl Verified {
    fn kind(&self, difference: &Difference) -> &'static str {
        match difference.kind() {
            Kind::NotSynced => "NOT_SYNCED",
            Kind::Damaged(Side::A) => "DAMAGED_AT_A",
            Kind::Damaged(Side::B) => "DAMAGED_AT_B",
            Kind::Undecided => "UNDECIDED",
        }
    }

    fn is_repaired(&self, difference: &Difference) -> bool {
        self.report.prepared.iter().flatten().any(|id| *id == difference.item_id)
            && self.left.binary_search(&difference.item_id).is_err()
    }

    fn lines(&self) -> Vec<Value> {
        let side = |item: &Option<ItemDigest>| match item {
            None => Value::Null,
            Some(item) => json!({
                "version": item.version.as_ref().map(|version| json!({
                    "replicaId": STANDARD.encode(version.replica.as_bytes()),
                    "tickCount": version.tick.to_string(),
                })),
                "contentSize": item.content_size.to_string(),
                "contentDigest": STANDARD.encode(item.content_digest.0),
                "readDigest": match &item.content {
                    ContentCheck::Damaged(digest) => STANDARD.encode(digest.0),
                    _ => String::new(),
                },
                "errorDescription": match &item.content {
                    ContentCheck::Unreadable(why) => why.as_str(),
                    _ => "",
                },
            }),
        };
        let mut lines: Vec<_> = self
            .report
            .differences
            .iter()
            .map(|difference| {
                json!({ "difference": {
                    "item": difference.item_id.to_string(),
                    "itemId": STANDARD.encode(difference.item_id.as_bytes()),
                    "kind": self.kind(difference),
                    "repaired": self.is_repaired(difference),
                    "a": side(&difference.a),
                    "b": side(&difference.b),
                } })
            })
            .collect();
        let [a, b] = self.report.items;
        lines.push(json!({ "totals": {
            "itemsA": a.to_string(),
            "itemsB": b.to_string(),
            "differences": self.report.differences.len().to_string(),
            "repaired": self.repaired().to_string(),
            "left": self.left.len().to_string(),
            "digestsExchanged": self.report.digests.to_string(),
            "itemsListed": self.report.listed.to_string(),
        } }));
        lines
    }

    fn repaired(&self) -> usize {
        self.report.differences.iter().filter(|it| self.is_repaired(it)).count()
    }

    fn words(&self) -> String {
        let [a, b] = &self.ends;
        let Report { differences, items, .. } = &self.report;
        let mut text = String::new();
        let verdict = match (differences.len() as u64, self.repaired() as u64, self.left.len() as u64) {
            (0, ..) => format!("{a} and {b} are the same: {}.", count(items[0], "item")),
            (found, repaired, 0) if repaired == found => {
                format!("{a} and {b} are the same again: {} repaired.", count(repaired, "item"))
            }
            (found, 0, _) => format!("{a} and {b} differ in {} of {}.", found, count(items[0].max(items[1]), "item")),
            (found, repaired, left) => {
                format!("{a} and {b} differed in {}: {repaired} repaired, {left} left.", count(found, "item"))
            }
        };
        let _ = writeln!(text, "{verdict}");
        for difference in differences {
            let what = match difference.kind() {
                _ if self.is_repaired(difference) => "repaired",
                Kind::NotSynced => "not synced",
                Kind::Damaged(Side::A) => "damaged at A",
                Kind::Damaged(Side::B) => "damaged at B",
                Kind::Undecided => "undecided",
            };
            let sides = [&difference.a, &difference.b].map(side_words);
            let line = format!("{what}  {}  A: {}  B: {}", difference.item_id, sides[0], sides[1]);
            let _ = writeln!(text, "  {}", one_line(&line));
        }
        if !self.left.is_empty() && differences.iter().any(|it| it.kind() == Kind::NotSynced) {
            let _ = writeln!(text, "What is not synced, synclave sync carries, unless a filter holds it back.");
        }
        if self.left.iter().any(|id| differences.iter().any(|it| it.item_id == *id && it.kind() == Kind::Undecided)) {
            let _ = writeln!(
                text,
                "What is undecided, nobody can decide but you: delete or replace it on the side that is wrong."
            );
        }
        text
    }
}

fn side_words(item: &Option<ItemDigest>) -> String {
    let Some(item) = item else { return "missing".to_owned() };
    let short = |digest: &crate::knowledge::Digest| {
        let [a, b, c, d, ..] = digest.0;
        format!("{a:02x}{b:02x}{c:02x}{d:02x}")
    };
    let version = item
        .version
        .as_ref()
        .map(|version| format!(", version {} of {}", version.tick, version.replica))
        .unwrap_or_default();
    let found = match &item.content {
        ContentCheck::Unread | ContentCheck::AsRecorded => String::new(),
        ContentCheck::Damaged(digest) => format!(", but is {}", short(digest)),
        ContentCheck::Unreadable(why) => format!(", but: {why}"),
    };
    format!("{} {}{version}{found}", bytes(item.content_size), short(&item.content_digest))
}
