//! `synclave sync`: two replicas, in one process: the coordinator, a provider for each directory, and one operation.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use super::client::{Server, unary};
use super::dry_run::DryRun;
use super::endpoint::{self, Target};
use super::exit::{Exit, Failure};
use super::left_out;
use super::local::{self, LocalCoordinator};
use super::options::{Collision, Conflict, FullEnumeration, TombstoneAge};
use super::output::{self, Output};
use super::plan::Plan;
use super::replica;
use super::roots::{self, Root};
use super::summary::{Findings, LeftOut, Summary};
use super::wait::{self, EndedOperation, OnStop};
use crate::grpc::json::to_value;
use crate::knowledge::FilterRequest;
use crate::pb;
use crate::types::Endpoint;

/// Sync two directories, or providers that run elsewhere
///
/// Runs until both are in sync: changes of A go to B, then those of B to A. What is in conflict is settled by --conflict; by
/// default the later modification stays and the other is kept beside it, under a name of its own. Ctrl-C ends it in good
/// order and leaves what was applied; the next run goes on from there.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synclave sync ~/photos /mnt/backup/photos
  synclave sync ~/photos /mnt/backup/photos --one-way
  synclave sync ~/photos /mnt/backup/photos --dry-run
  synclave sync ~/photos http://nas.local:7001 --conflict last-writer-wins

An argument with :// is the address of a provider, anything else a directory. B is \
made if it is not there but its parent is. Neither may be, or hold, the other.

With --dry-run nothing is created, written or locked for longer than the command runs, and both ends must be \
directories. What it tells is what a sync would do as long as nobody changes them; what only an attempt shows, such as a full \
disk or a missing permission, it cannot tell. With --output json it prints one object a line: change, leftOut, skipped, unreadable, totals, end.

Exit codes: 0 in sync, 1 failed, 2 wrong command line, 3 ended but not in sync, \
or something cannot be read, or Ctrl-C. Of a dry run: 0 nothing to \
do, 1 the sync would fail, 3 there is something to do.")]
pub(super) struct SyncArgs {
    /// First directory or provider
    a: OsString,
    /// Second directory or provider
    b: OsString,
    /// Only from A to B
    #[arg(long)]
    one_way: bool,
    /// How conflicts are settled
    #[arg(long, value_enum, default_value = "keep-both", value_name = "POLICY")]
    conflict: Conflict,
    /// How collisions are settled, such as a file and a directory of one name
    #[arg(long, value_enum, default_value = "none", value_name = "POLICY")]
    collision: Collision,
    /// Turn the safety stop against mass deletion off
    #[arg(long)]
    allow_mass_delete: bool,
    /// What to do when B, or A, has not seen deletions that the other has forgotten since
    #[arg(long, value_enum, default_value = "abort", value_name = "ACTION")]
    full_enumeration: FullEnumeration,
    /// Forget a deletion after so long: 60d, 12h or never. A replica that has not seen it by then must compare all items
    #[arg(long, default_value = "60d", value_name = "AGE")]
    tombstone_age: TombstoneAge,
    /// Say what would be done, item by item, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// B, a directory, takes only what the patterns in this file do not ignore; they are written as in a .gitignore
    #[arg(long, value_name = "FILE")]
    filter: Option<PathBuf>,
    /// Where state is kept; one process at a time [default: below $XDG_STATE_HOME/synclave or ~/.local/state/synclave, a place
    /// of its own for each two]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

/// One end of the sync, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum SyncEnd {
    /// A directory, for which this process runs a provider.
    Directory(Root),
    /// A provider that runs elsewhere.
    Provider(Endpoint),
}

/// What to sync, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SyncPlan {
    /// A, then B.
    pub(super) ends: [SyncEnd; 2],
    /// Where the coordinator's state is kept; made when it is not there.
    pub(super) data_dir: PathBuf,
    /// Below it is what is known of simple stores, which is the same whoever they are synced with.
    pub(super) stores_dir: PathBuf,
    /// When the directories' providers forget deletions.
    pub(super) tombstone_age: TombstoneAge,
    /// What B takes.
    pub(super) filters: Vec<FilterRequest>,
}

impl SyncPlan {
    /// Checks both ends against each other and against the place for state.
    pub(super) fn check(
        ends: [SyncEnd; 2],
        data_dir: Option<PathBuf>,
        tombstone_age: TombstoneAge,
    ) -> Result<Self, Failure> {
        match (&ends[0], &ends[1]) {
            (SyncEnd::Directory(a), SyncEnd::Directory(b)) => roots::check_apart(a, b)?,
            (SyncEnd::Provider(a), SyncEnd::Provider(b)) if a == b => {
                return Err(Failure::usage(format!("{a} is given twice; give two different replicas")));
            }
            _ => {}
        }
        let is_chosen = data_dir.is_some();
        let stores_dir = roots::data_dir(data_dir)?;
        for end in &ends {
            if let SyncEnd::Directory(root) = end {
                roots::check_outside(&stores_dir, root)?;
            }
        }
        let data_dir = if is_chosen { stores_dir.clone() } else { stores_dir.join("sync").join(name_of(&ends)) };
        Ok(Self { ends, data_dir, stores_dir, tombstone_age, filters: Vec::new() })
    }
}

/// The place of two replicas among those of all who are synced by this command: two others can be synced meanwhile, and a coordinator
/// may serve. It is the same in whichever order they are given.
fn name_of(ends: &[SyncEnd; 2]) -> String {
    let mut names = ends.each_ref().map(|end| match end {
        SyncEnd::Directory(root) => root.path().as_os_str().as_encoded_bytes().to_vec(),
        SyncEnd::Provider(endpoint) => endpoint.to_string().into_bytes(),
    });
    names.sort_unstable();
    let mut hasher = Sha256::new();
    for name in names {
        hasher.update((name.len() as u64).to_le_bytes());
        hasher.update(name);
    }
    hasher.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

impl SyncArgs {
    fn plan(&self) -> Result<SyncPlan, Failure> {
        let a = match Target::parse(&self.a)? {
            Target::Directory(path) => SyncEnd::Directory(Root::existing(&path)?),
            Target::Provider(endpoint) => SyncEnd::Provider(endpoint),
        };
        let b = match Target::parse(&self.b)? {
            Target::Directory(path) => SyncEnd::Directory(Root::existing_or_new(&path)?),
            Target::Provider(endpoint) => SyncEnd::Provider(endpoint),
        };
        let filters = replica::filters(self.filter.as_deref())?;
        if let (SyncEnd::Provider(endpoint), false) = (&b, filters.is_empty()) {
            return Err(Failure::usage(format!(
                "{endpoint}: a provider says itself what it takes; give --filter to it, or a directory here"
            )));
        }
        let plan = SyncPlan::check([a, b], self.data_dir.clone(), self.tombstone_age)?;
        Ok(SyncPlan { filters, ..plan })
    }

    /// A and B as the user named them.
    fn ends(&self) -> [String; 2] {
        [&self.a, &self.b].map(|end| end.to_string_lossy().into_owned())
    }

    fn request(&self, endpoints: &[Endpoint; 2]) -> pb::StartOperationRequest {
        let direction =
            if self.one_way { pb::SyncDirectionOrder::Upload } else { pb::SyncDirectionOrder::UploadAndDownload };
        let [source, destination] = endpoints;
        pb::StartOperationRequest {
            source: Some(endpoint::to_pb(source)),
            destination: Some(endpoint::to_pb(destination)),
            direction: direction.into(),
            conflict_resolution_policy: Some(pb::ConflictResolutionPolicy::from(self.conflict).into()),
            full_enumeration_action: Some(pb::FullEnumerationAction::from(self.full_enumeration).into()),
            collision_conflict_resolution_policy: Some(
                pb::CollisionConflictResolutionPolicy::from(self.collision).into(),
            ),
            allow_mass_delete: self.allow_mass_delete,
            ..Default::default()
        }
    }
}

pub(super) async fn run(args: SyncArgs, output: Output, stop: CancellationToken) -> Result<Exit, Failure> {
    let plan = args.plan()?;
    if args.dry_run {
        return dry_run(&args, &plan, output, &stop).await;
    }
    let local = LocalCoordinator::start(&plan).await?;
    let server = Server::over(local.channel.clone(), "this process");
    let ended = operate(&server, args.request(&local.endpoints), &stop).await;
    let left_out = match &ended {
        Ok(ended) => left_out::of_operation(&server, &ended.operation, &stop).await,
        Err(_) => Ok(Vec::new()),
    };
    // Whatever became of the operation, locks are given back and providers told.
    let reports = local.stop().await;
    let (ended, left_out, reports) = (ended?, left_out?, reports?);
    let mut findings = local::findings(reports);
    findings.add_left_out(left_out);
    let summary = Summary::new(&ended.operation, &ended.sync_infos, args.ends(), findings);
    if output.is_json() {
        output::line(&json(&ended, &summary.findings).to_string())?;
    } else {
        output::text(&summary.words())?;
    }
    summary.failure().map_or(Ok(summary.exit()), Err)
}

/// The same over copies and overlays: what it would do.
async fn dry_run(args: &SyncArgs, sync: &SyncPlan, output: Output, stop: &CancellationToken) -> Result<Exit, Failure> {
    let dry_run = DryRun::prepare(sync)?;
    let local = dry_run.start().await?;
    let server = Server::over(local.channel.clone(), "this process");
    let ended = operate(&server, args.request(&local.endpoints), stop).await;
    let reports = local.stop().await;
    let (ended, reports) = (ended?, reports?);
    let plan = Plan::new(&ended.operation, &ended.sync_infos, args.ends(), &dry_run.changes(), &reports);
    if output.is_json() {
        plan.lines().iter().try_for_each(|line| output::line(&line.to_string()))?;
    } else {
        output::text(&plan.words())?;
    }
    plan.failure().map_or(Ok(plan.exit()), Err)
}

/// Runs one operation to its end; Ctrl-C cancels it.
pub(super) async fn operate(
    server: &Server,
    request: pb::StartOperationRequest,
    stop: &CancellationToken,
) -> Result<EndedOperation, Failure> {
    let response = server.answer(server.operations().start_operation(unary(request)), stop).await?;
    let operation = response.operation.unwrap_or_default();
    wait::operation(server, &operation.operation_id, stop, OnStop::Cancel).await
}

/// `{"operation":…,"syncInfos":[…],"leftOut":[{"item":…,"reason":…}],"unreadable":[…]}`.
fn json(ended: &EndedOperation, findings: &Findings) -> serde_json::Value {
    let sync_infos: Vec<_> = ended.sync_infos.iter().map(to_value).collect();
    let items = |items: &[LeftOut]| -> Vec<_> {
        items.iter().map(|LeftOut { name, reason }| serde_json::json!({ "item": name, "reason": reason })).collect()
    };
    serde_json::json!({
        "operation": to_value(&ended.operation),
        "syncInfos": sync_infos,
        "leftOut": items(&findings.left_out),
        "unreadable": items(&findings.unreadable),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_has_the_shape_of_the_contract() {
        let ended = EndedOperation {
            operation: pb::Operation { operation_id: "o".into(), ..Default::default() },
            sync_infos: vec![pb::SyncInfo { revision: 9, ..Default::default() }],
        };
        let left_out = vec![LeftOut { name: "x".into(), reason: "busy".into() }];
        let json = json(&ended, &Findings { left_out, ..Findings::default() });
        assert_eq!(json["leftOut"], serde_json::json!([{ "item": "x", "reason": "busy" }]));
        assert_eq!(json["operation"]["operationId"], "o");
        assert_eq!(json["operation"]["state"], "OPERATION_STATE_UNSPECIFIED");
        assert_eq!(json["syncInfos"][0]["revision"], "9");
    }
}
