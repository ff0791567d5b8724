//! The conformance kit for simple stores: honest ones pass, and each mutant is blamed for its own rule and for no other.

#![allow(missing_docs, unreachable_pub)]

#[path = "check/blame.rs"]
mod blame;
#[path = "check/simple_store.rs"]
mod simple_store;

use std::time::Duration;

use simple_store::{Mutant as M, PLAIN, SKILLED, SimpleStore, Skills};
use synclave::check::{Options, Report, Rule, Verdict, simple_provider};
use tokio_util::sync::CancellationToken;

async fn checked(store: &SimpleStore, patience: Duration) -> Report {
    let stop = CancellationToken::new();
    let address = store.serve(stop.clone()).await;
    let report = simple_provider(Options { patience, ..Options::new(address) }).await.expect("it is there");
    stop.cancel();
    report
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_honest_store_passes() {
    let anchors_only = Skills { digests: false, properties: false, ..SKILLED };
    for skills in [SKILLED, anchors_only, PLAIN] {
        let store = SimpleStore::new(None, skills);
        let report = checked(&store, Duration::from_secs(20)).await;
        let text = report.to_text();
        assert!(report.is_pass(), "{text}");
        let not_offered: Vec<Rule> = (report.verdicts.iter())
            .filter(|(_, verdict)| *verdict != Verdict::Pass)
            .map(|(rule, verdict)| {
                assert!(matches!(verdict, Verdict::NotOffered(_)), "{text}");
                *rule
            })
            .collect();
        let digests = [Rule::StoreDigests, Rule::StoreTimes];
        let anchors = [Rule::StoreChanges, Rule::StoreChangesDuring, Rule::StoreUnknownAnchor];
        let mut expected = Vec::new();
        expected.extend(digests.iter().filter(|_| !skills.digests));
        expected.extend([Rule::StoreProperties].iter().filter(|_| !skills.properties));
        expected.extend(anchors.iter().filter(|_| !skills.anchors));
        assert_eq!(not_offered, expected, "{text}");
        assert_eq!(report.left_behind, Vec::<String>::new(), "{text}");
        assert!(store.is_empty(), "it cleans up after itself");
    }
}

/// What each mutant is blamed for.
const MUTANTS: &[(M, Rule)] = &[
    (M::HangsAtTheEnd, Rule::StoreAnswers),
    (M::GivesNoVersion, Rule::StoreWire),
    (M::SendsHugeMessages, Rule::StoreMessageSize),
    (M::SaysAnotherReason, Rule::StoreErrorInfo),
    (M::StoresWhatHasNoId, Rule::StoreMalformed),
    (M::StoresWithoutAStart, Rule::StoreMalformed),
    (M::LimpsAfterMalformed, Rule::StoreAlive),
    (M::ClaimsLongIds, Rule::StoreSchema),
    (M::LearnsSkillsLater, Rule::StoreSchema),
    (M::NewStoreIdEachTime, Rule::StoreIdentity),
    (M::NewInstanceEachTime, Rule::StoreIdentity),
    (M::NeverCompletes, Rule::StoreComplete),
    (M::GoesOnAfterComplete, Rule::StoreComplete),
    (M::LosesAnItem, Rule::StoreAll),
    (M::ListsTwice, Rule::StoreOnce),
    (M::ListsWhatIsGone, Rule::StoreCurrent),
    (M::ListsOldVersions, Rule::StoreCurrent),
    (M::ListsDeletionsAlways, Rule::StoreNoDeletions),
    (M::RenewsVersions, Rule::StoreStable),
    (M::KeepsVersions, Rule::StoreVersion),
    (M::ListsOtherSizes, Rule::StoreAnnounced),
    (M::ListsOtherDigests, Rule::StoreAnnounced),
    (M::OmitsDigests, Rule::StoreDigests),
    (M::LosesTimes, Rule::StoreTimes),
    (M::LosesProperties, Rule::StoreProperties),
    (M::OmitsAnchors, Rule::StoreAnchor),
    (M::LosesUpdates, Rule::StoreChanges),
    (M::LosesDeletions, Rule::StoreChanges),
    (M::AnchorsTooLate, Rule::StoreChangesDuring),
    (M::TakesAnyAnchor, Rule::StoreUnknownAnchor),
    (M::SendsNoHeader, Rule::StoreData),
    (M::GivesWrongDigests, Rule::StoreData),
    (M::ChangesContent, Rule::StoreContent),
    (M::IgnoresOffsets, Rule::StoreOffset),
    (M::DigestsTheRest, Rule::StoreOffset),
    (M::LoadsAnyVersion, Rule::StoreLoadChanged),
    (M::MixesVersions, Rule::StoreLoadWhole),
    (M::LoadsWhatIsGone, Rule::StoreNotFound),
    (M::ThrowsOnWhatIsGone, Rule::StoreNotFound),
    (M::RefusesUpdates, Rule::StoreWrites),
    (M::AnswersAnotherVersion, Rule::StoreWrittenVersion),
    (M::InsertsOverItems, Rule::StoreExists),
    (M::UpdatesAnyVersion, Rule::StoreUpdateChanged),
    (M::DeletesAnyVersion, Rule::StoreDeleteChanged),
    (M::SaysChangedAndDeletes, Rule::StoreDeleteChanged),
    (M::RemembersTheDead, Rule::StoreAgain),
    (M::ShowsTheUnended, Rule::StoreEnd),
    (M::StoresTheUnended, Rule::StoreEnd),
    (M::StoresTheBrokenOff, Rule::StoreCancel),
    (M::IgnoresDigests, Rule::StoreDigestChecked),
    (M::KeepsWhatIsEmptied, Rule::StoreEmpty),
    (M::RefusesLargeItems, Rule::StoreLarge),
    (M::KeepsClientsApart, Rule::StoreClients),
    (M::ChecksAtTheStart, Rule::StoreAtTheEnd),
    (M::ChecksTooEarly, Rule::StoreRace),
    (M::CutsLongIds, Rule::StoreIdSize),
    (M::TakesLongIds, Rule::StoreIdSize),
    (M::FoldsCase, Rule::StoreIdBytes),
];

/// Those of them that every `cargo test` runs: some of each subject.
const SOME: &[M] = &[
    M::SendsHugeMessages,
    M::LosesAnItem,
    M::ListsOldVersions,
    M::LosesDeletions,
    M::IgnoresOffsets,
    M::UpdatesAnyVersion,
    M::StoresTheBrokenOff,
    M::IgnoresDigests,
    M::ChecksTooEarly,
    M::FoldsCase,
];

/// Mutants that are checked at the same time.
const AT_ONCE: usize = 4;

/// Runs the kit against the mutants that are asked for.
async fn run_mutants(asked: impl Fn(M) -> bool) {
    let mutants = MUTANTS.iter().copied().filter(|(mutant, _)| asked(*mutant));
    blame::each_for_its_own_rule(mutants, AT_ONCE, |mutant| async move {
        checked(&SimpleStore::new(Some(mutant), SKILLED), Duration::from_secs(5)).await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn some_mutants_are_blamed_for_their_own_rules() {
    run_mutants(|mutant| SOME.contains(&mutant)).await;
}

/// `SYNCLAVE_MUTANT=LosesAnItem,FoldsCase` takes these of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "one whole run of the kit for each mutant: .ci/run has it"]
async fn every_mutant_is_blamed_for_its_own_rule() {
    run_mutants(blame::is_asked_for).await;
}

/// `docs/conformance.md` has them too.
#[test]
fn the_mutants_are_documented() {
    let document = include_str!("../docs/conformance.md");
    let table = document.split("### Mutants of a simple store\n").nth(1).expect("the section");
    let rows = table.lines().skip_while(|line| !line.starts_with("| ---")).skip(1);
    let documented: Vec<&str> = rows.take_while(|line| line.starts_with('|')).collect();
    let mutants: Vec<String> = MUTANTS.iter().map(|(mutant, rule)| format!("| {mutant:?} | {rule} |")).collect();
    assert_eq!(documented, mutants);
}
