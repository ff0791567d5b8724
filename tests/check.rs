//! The conformance kit itself: honest providers pass, and each mutant is blamed for its own rule and for no other.

#![allow(missing_docs, unreachable_pub)]

mod check {
    pub mod blame;
    pub mod mutant;
    pub mod store;
}

use std::sync::Arc;
use std::time::Duration;

use check::blame;
use check::mutant::{Mutant as M, Mutated, wish};
use check::store;
use synclave::check::{Options, Report, Rule, Verdict, knowledge_provider};
use synclave::provider::Provider;
use synclave::provider::sdk::{self, ItemStore, ReplicaProvider};
use synclave::providers::memory::MemoryStore;
use synclave::server::{incoming, serve_provider};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Serves a provider on loopback until the token is cancelled; its address.
async fn serve(provider: Arc<dyn Provider>, stop: CancellationToken) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = format!("http://{}", listener.local_addr().expect("bound"));
    tokio::spawn(serve_provider(incoming(listener), provider, stop));
    address
}

async fn checked(provider: Arc<dyn Provider>, patience: Duration) -> Report {
    let stop = CancellationToken::new();
    let address = serve(provider, stop.clone()).await;
    let options = Options { patience, ..Options::new(address) };
    let report = knowledge_provider(options).await.expect("it is there");
    stop.cancel();
    report
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_honest_provider_passes() {
    for max_source_sessions in [1, 3] {
        let filters = vec![wish()];
        let options = sdk::Options { max_source_sessions, filters, ..sdk::Options::default() };
        let (provider, _directory) = store::provider(options);
        let report = checked(provider, Duration::from_secs(20)).await;
        let text = report.to_text();
        assert!(report.is_pass(), "{text}");
        let reached = |(_, verdict): &&(Rule, Verdict)| *verdict == Verdict::NotReached;
        assert_eq!(report.verdicts.iter().find(reached), None, "{text}");
        assert_eq!(report.left_behind, Vec::<String>::new(), "{text}");
    }
}

/// One that calls SessionStateService in every session, and no more when it is over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_honest_provider_that_calls_back_passes() {
    let (honest, _directory) = store::provider(sdk::Options::default());
    let report = checked(Arc::new(Mutated::new(M::CallsBack, honest)), Duration::from_secs(20)).await;
    let text = report.to_text();
    assert!(report.is_pass(), "{text}");
    for rule in [Rule::TokenDead, Rule::StateCalls] {
        assert!(report.verdicts.contains(&(rule, Verdict::Pass)), "{text}");
    }
}

/// The stores that are part of the project: a directory, a table, and one in memory whose items have change units.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_built_in_providers_pass() {
    let directory = tempfile::tempdir().expect("a directory");
    let open = |name: &str, store: Arc<dyn ItemStore>, identity: &str| {
        let metadata = directory.path().join(name);
        ReplicaProvider::open(store, &metadata, identity, sdk::Options::default()).expect("opens")
    };
    let (table, _database) = store::table();
    let (files, _root) = store::directory();
    let providers = [table, files, open("memory", Arc::new(MemoryStore::default()), "in memory")];
    // At the same time: much of a check is waiting.
    let running: tokio::task::JoinSet<Report> =
        providers.into_iter().map(|provider| checked(provider, Duration::from_secs(20))).collect();
    for report in running.join_all().await {
        let text = report.to_text();
        assert!(report.is_pass(), "{text}");
        assert_eq!(report.left_behind, Vec::<String>::new(), "{text}");
        eprintln!("{}", report.summary());
    }
}

/// What each mutant is blamed for.
const MUTANTS: &[(M, Rule)] = &[
    (M::NewInstanceEachTime, Rule::Instance),
    (M::NewSchemaEachTime, Rule::Schema),
    (M::NeverASource, Rule::Enlists),
    (M::AnswersOutsideOfSessions, Rule::OnlyInSession),
    (M::RenewsUnknownSessions, Rule::RenewUnknown),
    (M::BeginsTwice, Rule::BeginTwice),
    (M::EndsWhatNeverBegan, Rule::EndWithoutBegin),
    (M::RenewsAfterTheEnd, Rule::EndForgets),
    (M::EndsTheWrongSession, Rule::EndOfOther),
    (M::BeginsAfterTheEnd, Rule::LateBegin),
    (M::BeginsWhatWasOvertaken, Rule::Overtaken),
    (M::AnswersAsTheOtherRole, Rule::OneDirection),
    (M::TakesStaleEpochs, Rule::StaleEpoch),
    (M::ClaimsMoreSessions, Rule::TwoSessions),
    (M::CutsRenewedLeases, Rule::LeaseRenewed),
    (M::IgnoresLeases, Rule::LeaseRunsOut),
    (M::EndsWhileWorking, Rule::EndWaits),
    (M::IgnoresCancel, Rule::Canceled),
    (M::IgnoresCancelInRenewal, Rule::CanceledByRenewal),
    (M::WorksAfterCancel, Rule::WorkAfterCancel),
    (M::ForgetsWhatACancelLeft, Rule::NoRollBack),
    (M::HangsOnOddSizes, Rule::Answers),
    (M::RefusesLargeWishes, Rule::SizeIsAWish),
    (M::CallsEveryBatchTheLast, Rule::LastBatch),
    (M::CallsNoBatchTheLast, Rule::LastBatch),
    (M::LosesAnItem, Rule::Complete),
    (M::SendsEverything, Rule::NothingKnown),
    (M::SendsInDescendingOrder, Rule::Order),
    (M::SendsTwice, Rule::Duplicates),
    (M::ForgetsMadeWith, Rule::InKnowledge),
    (M::ForgetsPrerequisite, Rule::Prerequisite),
    (M::IgnoresMaxBytes, Rule::MaxBytes),
    (M::IgnoresMaxInline, Rule::Inline),
    (M::TombstonesWithData, Rule::TombstoneShape),
    (M::HidesTombstones, Rule::TombstoneStored),
    (M::RenewsCreationVersions, Rule::KeepsVersion),
    (M::ChangesContent, Rule::KeepsData),
    (M::GivesWrongDigests, Rule::DataParts),
    (M::IgnoresOffsets, Rule::Offset),
    (M::GivesAnyVersion, Rule::ExactVersion),
    (M::GivesDataOfTombstones, Rule::NoDataOfTombstone),
    (M::ClaimsForgottenVersions, Rule::ForgottenInBatch),
    (M::FailsUpdates, Rule::Applies),
    (M::ReappliesKnownChanges, Rule::Obsolete),
    (M::CreatesWhatIsLost, Rule::MustExist),
    (M::DropsAnOutcome, Rule::Outcomes),
    (M::RepeatsAnOutcome, Rule::Outcomes),
    (M::MiscountsApplied, Rule::Statistics),
    (M::LoadsAnotherVersion, Rule::LoadExact),
    (M::LoadsAllAtOnce, Rule::LoadLimit),
    (M::LearnsNothing, Rule::Learned),
    (M::LearnsTooMuch, Rule::Learned),
    (M::ForgetsWhatItKnew, Rule::NeverShrinks),
    (M::LearnsWhatFailed, Rule::FailedNotLearned),
    (M::IgnoresThePrerequisite, Rule::NeedsPrerequisite),
    (M::IgnoresForgottenKnowledge, Rule::OutOfDate),
    (M::IgnoresDigests, Rule::DigestChecked),
    (M::IgnoresSizes, Rule::SizeChecked),
    (M::RefusesLargeItems, Rule::LargeItems),
    (M::SeesNoConflicts, Rule::ConflictSeen),
    (M::SeesConflictsEverywhere, Rule::ConflictSeen),
    (M::LetsTheSourceWin, Rule::DestinationWins),
    (M::LetsTheDestinationWin, Rule::SourceWins),
    (M::SettlesWhatItShouldDefer, Rule::Deferred),
    (M::IgnoresModificationTimes, Rule::LastWriterWins),
    (M::KeepsOnlyOne, Rule::KeepBoth),
    (M::LetsTheSourceDelete, Rule::UpdateDelete),
    (M::LetsADeletionWin, Rule::EditBeatsDeletion),
    (M::KeepsTheWinnersVersion, Rule::Resolution),
    (M::HidesItsOwnTick, Rule::OwnTick),
    (M::DecidesWhereNothingIs, Rule::NothingDecided),
    (M::CallsTwoDeletionsAConflict, Rule::DeleteDelete),
    (M::RevivesDeletedItems, Rule::NoReturn),
    (M::ForgetsSecondCreations, Rule::CreatedAgain),
    (M::EnumeratesWhatIsMissing, Rule::FullEnumeration),
    (M::SendsAllUnits, Rule::UnitExceptions),
    (M::ForgetsUnitVersions, Rule::KeepsUnits),
    (M::LoadsWholeItems, Rule::UnitLoads),
    (M::CallsLaterUnitsConflicts, Rule::UnitLater),
    (M::SeesConflictsOfItems, Rule::UnitMerge),
    (M::DefersWholeItems, Rule::UnitConflict),
    (M::DefersUnitsOfDeletions, Rule::UpdateDelete),
    (M::LearnsDeferredUnits, Rule::UnitNotLearned),
    (M::FailsCreationsInPart, Rule::UnitCreation),
    (M::IgnoresDecisions, Rule::Decision),
    (M::DecidesOnlyAboutItems, Rule::Decision),
    (M::CarriesOutOldDecisions, Rule::StaleDecision),
    (M::TellsAnotherVersion, Rule::DeferredSide),
    (M::OverlooksExceptions, Rule::ExceptionOutOfDate),
    (M::RefusesFullEnumerations, Rule::Recovery),
    (M::TakesManyGroups, Rule::OneGroup),
    (M::KeepsWhatIsAbsent, Rule::AbsentGoes),
    (M::KeepsTombstonesOfTheAbsent, Rule::AbsentGoes),
    (M::RemovesWhatIsUnknown, Rule::AbsentStays),
    (M::RemovesBeyondTheRange, Rule::AbsentStays),
    (M::HidesForgottenKnowledge, Rule::PassesForgotten),
    (M::LearnsInPartialSyncs, Rule::PartialSync),
    (M::SendsMoreThanListed, Rule::FilterOnly),
    (M::TeachesWhatIsHeldBack, Rule::FilterTeaches),
    (M::HidesFilters, Rule::FilterFlags),
    (M::KeepsTheFirstFilter, Rule::FilterSpan),
    (M::KeepsFilters, Rule::FilterSpan),
    (M::TakesUnknownFilters, Rule::FilterRefused),
    (M::ListsThroughFilters, Rule::FilterRecovery),
    (M::RefusesFilteredBatches, Rule::FilterApplied),
    (M::ChangesItsWishes, Rule::FilterWishes),
    (M::SendsUnlistedUnits, Rule::FilterUnits),
    (M::DigestsOtherProperties, Rule::DigestItem),
    (M::DigestsRangesOtherwise, Rule::DigestRange),
    (M::CountsTombstones, Rule::DigestRange),
    (M::LeavesAGap, Rule::DigestParts),
    (M::ListsOneLess, Rule::DigestList),
    (M::DoesNotReadContent, Rule::DigestChecksum),
    (M::DigestsOnce, Rule::DigestChanges),
    (M::RepairsNothing, Rule::Repair),
    (M::RepairsMore, Rule::Repair),
    (M::BelievesInDamage, Rule::RepairLooks),
    (M::ForgetsWinners, Rule::WinnerKept),
    (M::TellsAnotherItemInTheWay, Rule::Constraint),
    (M::SettlesCollisionsForTheDestination, Rule::CollisionSource),
    (M::SettlesCollisionsForTheSource, Rule::CollisionDestination),
    (M::MergesByDeleting, Rule::MergesItems),
    (M::RenewsLaterEpochs, Rule::EndForgets),
    (M::DigestsAfterTheEnd, Rule::EndForgets),
    (M::DropsWhatItShouldRename, Rule::RenamesSource),
    (M::DeletesWhatItShouldRename, Rule::RenamesDestination),
    (M::UsesDeadTokens, Rule::TokenDead),
    (M::ReportsAsNobody, Rule::StateCalls),
];

/// Those of them that every `cargo test` runs: one of each subject.
const SOME: &[M] = &[
    M::BeginsTwice,
    M::LosesAnItem,
    M::RenewsCreationVersions,
    M::MiscountsApplied,
    M::LearnsTooMuch,
    M::LetsTheDestinationWin,
    M::EnumeratesWhatIsMissing,
];

/// Those that are of a table, as the store of the others has no items that collide.
const OF_A_TABLE: &[M] = &[
    M::TellsAnotherItemInTheWay,
    M::SettlesCollisionsForTheDestination,
    M::SettlesCollisionsForTheSource,
    M::MergesByDeleting,
];

/// Those that are of a directory, as of the stores only it gives what collides another name.
const OF_A_DIRECTORY: &[M] = &[M::DropsWhatItShouldRename, M::DeletesWhatItShouldRename];

/// Mutants that are checked at the same time: much of a check is waiting for leases and for what must not come.
const AT_ONCE: usize = 8;

/// Runs the kit against the mutants that are asked for.
async fn run_mutants(asked: impl Fn(M) -> bool) {
    let mutants = MUTANTS.iter().copied().filter(|(mutant, _)| asked(*mutant));
    blame::each_for_its_own_rule(mutants, AT_ONCE, |mutant| async move {
        let (honest, _directory) = match mutant {
            _ if OF_A_TABLE.contains(&mutant) => store::table(),
            _ if OF_A_DIRECTORY.contains(&mutant) => store::directory(),
            _ => store::provider(sdk::Options { filters: vec![wish()], ..sdk::Options::default() }),
        };
        checked(Arc::new(Mutated::new(mutant, honest)), Duration::from_secs(8)).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn some_mutants_are_blamed_for_their_own_rules() {
    run_mutants(|mutant| SOME.contains(&mutant)).await;
}

/// `SYNCLAVE_MUTANT=LosesAnItem,SendsTwice` takes these of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "one whole run of the kit for each mutant: .ci/run has it"]
async fn every_mutant_is_blamed_for_its_own_rule() {
    run_mutants(blame::is_asked_for).await;
}
