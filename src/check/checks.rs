//! The checks, by subject, and the run through all of them.

use std::time::Instant;

use tonic::Code;

use super::bench::Bench;
use super::book::Held;
use super::partner::{Change, Partner, batch};
use super::rule::Rule;
use super::session::Ask;
use super::suite::checks;
use super::wire::Fault;
use super::{Options, Report, SetupError};
use crate::knowledge::{GroupKind, ItemId, OutcomeKind};
use crate::types::{ConflictResolutionPolicy as Policy, ProviderRole};

mod application;
mod calling_back;
mod collisions;
mod conflicts;
mod data;
mod decisions;
mod digests;
mod enumeration;
mod filters;
mod leases;
mod life_cycle;
mod malformed;
mod optional;
mod recovery;
mod stopping;
mod tombstones;
mod units;

checks! {
    Bench:
    life_cycle::identity [Schema, Instance];
    life_cycle::outside_of_a_session [OnlyInSession, RenewUnknown, EndWithoutBegin];
    life_cycle::begin_and_end [Enlists, BeginTwice, EndForgets, LateBegin];
    life_cycle::end_of_another_session [EndOfOther];
    life_cycle::overtaken_begin [Overtaken];
    life_cycle::one_direction [OneDirection];
    life_cycle::stale_epoch [StaleEpoch];
    life_cycle::two_sessions [TwoSessions];
    leases::renewed [LeaseRenewed];
    leases::run_out [LeaseRunsOut];
    application::plain_changes [Applies, KeepsVersion, KeepsData, ConflictSeen];
    enumeration::completeness [Complete, NothingKnown, LastBatch, NoEcho];
    enumeration::batch_sizes [SizeIsAWish];
    enumeration::partial_knowledge [Exceptions, ExceptionsMore, Ranges];
    enumeration::representations [ReplicaKeys, Representation];
    enumeration::many_items [LoadLimit, MaxBytes, Inline];
    application::known_changes [Obsolete];
    application::interrupted_enumeration [Interrupted, Durable];
    application::failures [FailedNotLearned, FailedAgain];
    application::skipped [Skipped];
    application::prerequisite [NeedsPrerequisite];
    application::out_of_date [OutOfDate];
    recovery::exception [ExceptionOutOfDate] after [OutOfDate, Applies];
    application::lost_item [MustExist];
    tombstones::stored [TombstoneStored];
    tombstones::of_an_unknown_item [TombstoneStored];
    tombstones::no_return [NoReturn];
    tombstones::created_again [CreatedAgain];
    data::loads [DataParts, Offset, ExactVersion, NoDataOfTombstone];
    data::corrupt_content [DigestChecked];
    data::short_content [SizeChecked];
    data::large_item [LargeItems];
    conflicts::destination_wins [DestinationWins, Resolution, OwnTick];
    conflicts::source_wins [SourceWins, Resolution, OwnTick];
    conflicts::deferred [Deferred];
    conflicts::last_writer_wins [LastWriterWins];
    conflicts::keep_both [KeepBoth];
    conflicts::same_data [NothingDecided];
    conflicts::update_and_deletion [UpdateDelete];
    conflicts::edit_beats_deletion [EditBeatsDeletion];
    conflicts::two_deletions [DeleteDelete];
    decisions::carried_out [Decision, DeferredSide];
    decisions::moved_on [StaleDecision];
    units::versions [KeepsUnits];
    units::exceptions [UnitExceptions];
    units::loads [UnitLoads];
    units::later_unit [UnitLater];
    units::merge [UnitMerge];
    units::conflict [UnitConflict, UnitNotLearned];
    units::update_and_deletion [UpdateDelete];
    units::failed_creation [UnitCreation];
    decisions::of_a_unit [Decision] after [UnitConflict, KeepsData];
    stopping::cancel [Canceled, WorkAfterCancel];
    stopping::cancel_by_renewal [CanceledByRenewal];
    stopping::end_while_working [EndWaits];
    stopping::no_roll_back [NoRollBack];
    malformed::unknown_fields [UnknownFields];
    malformed::begin [Malformed];
    malformed::knowledge [Malformed];
    malformed::batches [Malformed, ChangeFlags, Alive];
    optional::full_enumeration [FullEnumeration];
    recovery::one_group [OneGroup];
    recovery::full_enumeration [Recovery, AbsentGoes, AbsentStays, PassesForgotten] after [Applies, Obsolete];
    recovery::partial_sync [PartialSync];
    collisions::merge_tombstone [WinnerKept];
    collisions::of_names [Constraint, CollisionSource, CollisionDestination];
    collisions::of_values [Constraint, CollisionSource, CollisionDestination];
    collisions::of_holders [Constraint, CollisionSource, CollisionDestination];
    collisions::renamed_source [RenamesSource];
    collisions::renamed_destination [RenamesDestination];
    collisions::merged [MergesItems] after [WinnerKept];
    filters::item_list [FilterOnly, FilterTeaches, FilterFlags, FilterSpan] after [LastBatch, TombstoneStored];
    filters::unit_list [FilterUnits] after [UnitExceptions];
    filters::refused [FilterRefused];
    filters::recovery [FilterRecovery] after [FilterOnly];
    filters::applied [FilterApplied];
    filters::wishes [FilterWishes];
    digests::of_items [DigestItem, DigestRange, DigestChecksum] after [KeepsData];
    digests::of_ranges [DigestParts, DigestList];
    digests::of_changes [DigestChanges];
    digests::repair [Repair, RepairLooks];
    calling_back::well_formed [StateCalls];
    calling_back::after_end [TokenDead];
    life_cycle::identity [Instance];
}

/// Runs every check, deletes what was written, and reports.
pub(super) async fn run(options: Options) -> Result<Report, SetupError> {
    let begun = Instant::now();
    let bench = Bench::new(options).await?;
    match bench.wire.get_id_parameters(crate::pb::GetIdParametersRequest {}).await {
        Err(fault @ Fault::Silent(_)) => return Err(SetupError::Unreachable(fault.words())),
        Err(Fault::Bare(status)) if status.code() == Code::Unimplemented => return Err(SetupError::NoProvider),
        Err(_) | Ok(_) => {}
    }
    for check in CHECKS {
        if check.after.iter().any(|rule| bench.book.is_broken(*rule)) {
            continue;
        }
        bench.wire.transcript().clear();
        let outcome = check.run(&bench, Rule::Answers).await;
        let stopped = outcome.is_err();
        bench.book.record(check.name, check.rules, outcome, || bench.wire.transcript().lines());
        bench.close_all().await;
        if stopped && !is_idle(&bench).await {
            // What follows would only show again what was shown: the provider is stuck, or gone.
            break;
        }
    }
    bench.wire.transcript().clear();
    let left_behind = clean(&bench).await;
    Ok(Report {
        address: bench.options.address.clone(),
        member_name: bench.info().map(|info| info.member_name.clone()).unwrap_or_default(),
        verdicts: bench.book.verdicts(Rule::KNOWLEDGE_PROVIDER),
        took: begun.elapsed(),
        left_behind,
    })
}

/// Whether the provider still takes a session.
async fn is_idle(bench: &Bench) -> bool {
    let cycle = async {
        let session = bench.begin(ProviderRole::Destination).await?;
        session.end().await
    };
    let idle: Held = cycle.await;
    idle.is_ok()
}

/// Deletes every item of the run that is alive, and teaches the provider all that the partners ever did, so that its
/// knowledge needs no exceptions for them. What could not be deleted.
async fn clean(bench: &Bench) -> Vec<String> {
    let names = |items: Vec<ItemId>| items.iter().map(ToString::to_string).collect();
    match try_clean(bench).await {
        Ok(left) => names(left),
        Err(_) => names(bench.written().into_iter().collect()),
    }
}

async fn try_clean(bench: &Bench) -> Held<Vec<ItemId>> {
    let Ok(_) = bench.sample() else { return Ok(Vec::new()) };
    let written = bench.written();
    let session = bench.begin(ProviderRole::Destination).await?;
    let known = session.parameters().await?;
    session.end().await?;
    let mut without = known.clone();
    without.exclude_items(&written);
    let session = bench.begin(ProviderRole::Source).await?;
    let listed = session.enumerate(&without, Ask::default()).await?.changes;
    session.end().await?;
    let cleaner = Partner::new(bench)?;
    let alive = listed.values().filter(|change| !change.flags.is_deleted() && written.contains(&change.item_id));
    let deletions: Vec<Change> =
        alive.map(|change| bench.deletion(&change.item_id, &change.creation_version, &cleaner.next())).collect();
    let made_with = bench.all_partners()?.union(&known).union(&cleaner.own_knowledge(known.item_format()));
    let session = bench.begin(ProviderRole::Destination).await?;
    let known = session.parameters().await?;
    let kind = GroupKind::Ordered { lower_bound: ItemId::from(""), upper_bound: None };
    let batch = batch(&known, made_with, kind, &deletions);
    let applied = session.apply(Policy::SourceProviderWins, &known, batch, &deletions).await?;
    session.end().await?;
    let left = |outcome: &&crate::knowledge::ChangeOutcome| outcome.kind != OutcomeKind::Applied;
    Ok(applied.outcomes.values().filter(left).map(|outcome| outcome.item_id.clone()).collect())
}
