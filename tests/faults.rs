//! What a session makes of every fault of a provider: its state, who is blamed, the HRESULT, and the EndSessions that each
//! provider saw. The providers are real gRPC servers on loopback; only their replicas are scripted.

mod support;

use std::time::Duration;

use support::scripted::{Call, FORMAT, Fault, Scripted, Twist, refusal};
use support::{Bench, timing};
use synclave::knowledge::{IdFormat, IdParameters};
use synclave::session::Timing;
use synclave::types::{Hresult, ProviderWithError, SyncState};

/// What is expected of one case.
struct Expected {
    state: SyncState,
    blame: Option<ProviderWithError>,
    hresult: Hresult,
    /// EndSessions seen by source and destination; `None`: any number, at least one.
    ends: [Option<usize>; 2],
}

const SOURCE: Option<ProviderWithError> = Some(ProviderWithError::Source);
const DESTINATION: Option<ProviderWithError> = Some(ProviderWithError::Destination);

fn in_error(blame: Option<ProviderWithError>, hresult: Hresult, source: usize, destination: usize) -> Expected {
    Expected { state: SyncState::InError, blame, hresult, ends: [Some(source), Some(destination)] }
}

async fn check(name: &str, twists: [Twist; 2], arrange: impl FnOnce(&Scripted, &Scripted), expected: Expected) {
    let source = Scripted::new(1, twists[0]);
    let destination = Scripted::new(2, twists[1]);
    source.write("a", b"one");
    source.write("b", b"two");
    destination.write("c", b"three");
    arrange(&source, &destination);
    check_pair(name, source, destination, expected).await;
}

async fn check_pair(name: &str, source: Scripted, destination: Scripted, expected: Expected) {
    let bench = Bench::start(timing(), &source, &destination).await;
    let record = bench.session().await;
    assert_eq!(record.state, expected.state, "{name}: state; {}", record.error_message);
    assert_eq!(record.provider_with_error, expected.blame, "{name}: blame; {}", record.error_message);
    assert_eq!(record.hresult, expected.hresult, "{name}: hresult; {}", record.error_message);
    if expected.hresult.is_failure() {
        assert!(!record.error_message.is_empty() && !record.error_message.contains('\n'), "{name}: one line");
    }
    for (provider, expected, role) in
        [(&source, expected.ends[0], "source"), (&destination, expected.ends[1], "destination")]
    {
        let seen = provider.ends().len();
        match expected {
            Some(expected) => assert_eq!(seen, expected, "{name}: EndSessions at the {role}"),
            None => assert!(seen >= 1, "{name}: the {role} saw no EndSession"),
        }
    }
    bench.stop().await;
}

macro_rules! fault_table {
    ($($name:ident: [$source:ident, $destination:ident] $arrange:expr => $expected:expr;)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                check(stringify!($name), [Twist::$source, Twist::$destination], $arrange, $expected).await;
            }
        )*
    };
}

fn hang(provider: &Scripted, call: Call) {
    provider.fault(call, Fault::Hang);
}

fault_table! {
    all_is_well: [Honest, Honest] |_, _| {} =>
        Expected { state: SyncState::InSync, blame: None, hresult: Hresult::S_OK, ends: [Some(1), Some(1)] };

    source_hangs_in_get_id_parameters: [Honest, Honest] |source, _| hang(source, Call::Identify) =>
        in_error(SOURCE, Hresult::E_DEADLINE, 0, 0);
    destination_hangs_in_begin: [Honest, Honest] |_, destination| hang(destination, Call::Begin) =>
        in_error(DESTINATION, Hresult::E_DEADLINE, 1, 1);
    destination_hangs_in_parameters: [Honest, Honest] |_, destination| hang(destination, Call::Parameters) =>
        in_error(DESTINATION, Hresult::E_DEADLINE, 1, 1);
    source_hangs_in_get_change_batch: [Honest, Honest] |source, _| hang(source, Call::Batch) =>
        in_error(SOURCE, Hresult::E_DEADLINE, 1, 1);
    destination_hangs_in_process: [Honest, Honest] |_, destination| hang(destination, Call::Process) =>
        in_error(DESTINATION, Hresult::E_DEADLINE, 1, 1);
    source_hangs_in_load_while_the_destination_waits: [Honest, Honest] |source, _| hang(source, Call::Load) =>
        in_error(SOURCE, Hresult::E_DEADLINE, 1, 1);
    destination_hangs_in_end: [Honest, Honest] |_, destination| hang(destination, Call::End) =>
        Expected { state: SyncState::InSync, blame: None, hresult: Hresult::S_OK, ends: [Some(1), None] };

    source_refuses_begin: [Honest, Honest] |source, _| source.fault(Call::Begin, Fault::Refuse(refusal())) =>
        in_error(SOURCE, Hresult::E_FAIL, 0, 1);
    destination_refuses_begin: [Honest, Honest] |_, destination| destination.fault(Call::Begin, Fault::Refuse(refusal())) =>
        in_error(DESTINATION, Hresult::E_FAIL, 1, 0);
    begin_is_answered_after_the_deadline: [Honest, Honest]
        |_, destination| destination.fault(Call::Begin, Fault::Late(Duration::from_millis(1_500))) =>
        in_error(DESTINATION, Hresult::E_DEADLINE, 1, 1);
    begin_succeeds_and_says_that_it_failed: [Honest, Honest]
        |_, destination| destination.fault(Call::Begin, Fault::DoneButFailed) =>
        in_error(DESTINATION, Hresult::E_UNEXPECTED, 1, 1);
    source_refuses_the_batch: [Honest, Honest] |source, _| source.fault(Call::Batch, Fault::Refuse(refusal())) =>
        in_error(SOURCE, Hresult::E_FAIL, 1, 1);

    source_answers_gibberish_to_get_id_parameters: [Honest, Honest] |source, _| source.fault(Call::Identify, Fault::Garbage) =>
        in_error(SOURCE, Hresult::E_UNEXPECTED, 0, 0);
    destination_answers_gibberish_to_parameters: [Honest, Honest]
        |_, destination| destination.fault(Call::Parameters, Fault::Garbage) =>
        in_error(DESTINATION, Hresult::E_UNEXPECTED, 1, 1);
    source_answers_gibberish_to_get_change_batch: [Honest, Honest] |source, _| source.fault(Call::Batch, Fault::Garbage) =>
        in_error(SOURCE, Hresult::E_UNEXPECTED, 1, 1);
    destination_answers_gibberish_to_process: [Honest, Honest]
        |_, destination| destination.fault(Call::Process, Fault::Garbage) =>
        in_error(DESTINATION, Hresult::E_UNEXPECTED, 1, 1);
    source_answers_gibberish_to_load: [Honest, Honest] |source, _| source.fault(Call::Load, Fault::Garbage) =>
        in_error(SOURCE, Hresult::E_UNEXPECTED, 1, 1);

    end_is_refused: [Honest, Honest] |_, destination| destination.fault(Call::End, Fault::Refuse(refusal())) =>
        in_error(DESTINATION, Hresult::E_FAIL, 1, 1);
    end_is_done_but_said_to_have_failed: [Honest, Honest] |source, _| source.fault(Call::End, Fault::DoneButFailed) =>
        Expected { state: SyncState::InError, blame: SOURCE, hresult: Hresult::E_UNEXPECTED, ends: [None, Some(1)] };

    source_dies_in_get_change_batch: [Honest, Honest] |source, _| source.fault(Call::Batch, Fault::Die) =>
        in_error(SOURCE, Hresult::E_UNREACHABLE, 0, 1);
    destination_dies_in_process: [Honest, Honest] |_, destination| destination.fault(Call::Process, Fault::Die) =>
        in_error(DESTINATION, Hresult::E_UNREACHABLE, 1, 0);
    source_dies_in_load: [Honest, Honest] |source, _| source.fault(Call::Load, Fault::Die) =>
        in_error(SOURCE, Hresult::E_UNREACHABLE, 0, 1);
    destination_dies_in_begin: [Honest, Honest] |_, destination| destination.fault(Call::Begin, Fault::Die) =>
        in_error(DESTINATION, Hresult::E_CONNECTION_LOST, 1, 0);
    destination_dies_in_end: [Honest, Honest] |_, destination| destination.fault(Call::End, Fault::Die) =>
        Expected { state: SyncState::InSync, blame: None, hresult: Hresult::S_OK, ends: [Some(1), Some(1)] };
}

macro_rules! referee_table {
    ($($name:ident: $source:ident, $destination:ident => $blame:expr, $hresult:ident;)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                let source = Scripted::with(1, Twist::$source, IdParameters::BUILT_IN, 2);
                let destination = Scripted::with(2, Twist::$destination, IdParameters::BUILT_IN, 2);
                for item in ["a", "b", "c", "d", "e"] {
                    source.write(item, item.as_bytes());
                }
                destination.write("z", b"own");
                check_pair(stringify!($name), source, destination, in_error($blame, Hresult::$hresult, 1, 1)).await;
            }
        )*
    };
}

referee_table! {
    knowledge_that_shrinks: Honest, ShrinksKnowledge => DESTINATION, SYNC_E_KNOWLEDGE_DECREASED;
    learning_too_much: Honest, LearnsTooMuch => DESTINATION, E_UNEXPECTED;
    learning_what_failed: Honest, LearnsWhatFailed => DESTINATION, E_UNEXPECTED;
    a_version_outside_its_knowledge: VersionOutsideKnowledge, Honest => SOURCE, SYNC_E_CHANGE_NOT_IN_KNOWLEDGE;
    ids_out_of_order: OutOfOrder, Honest => SOURCE, SYNC_E_RANGE_OUT_OF_ORDER;
    ids_out_of_bounds: OutOfBounds, Honest => SOURCE, SYNC_E_RANGE_OUT_OF_ORDER;
    an_item_twice: Duplicate, Honest => SOURCE, SYNC_E_DUPLICATE_ITEM;
    an_id_that_does_not_fit: IdTooLong, Honest => SOURCE, SYNC_E_ID_FORMAT_MISMATCH;
    a_load_outside_the_batch: Honest, LoadsOutsideBatch => DESTINATION, SYNC_E_NOT_EXPECTED_CHANGE;
    data_that_is_too_long: DataTooLong, Honest => SOURCE, SYNC_E_DATA_MODIFIED_CONCURRENTLY;
    data_that_is_too_short: DataTooShort, Honest => SOURCE, SYNC_E_DATA_MODIFIED_CONCURRENTLY;
    data_with_another_digest: OtherDigest, Honest => SOURCE, SYNC_E_DATA_MODIFIED_CONCURRENTLY;
    an_outcome_that_is_missing: Honest, OutcomeMissing => DESTINATION, SYNC_E_CHANGE_COUNT_MISMATCH;
    an_outcome_too_many: Honest, OutcomeTwice => DESTINATION, SYNC_E_CHANGE_COUNT_MISMATCH;
}

/// The honest twins: what looks like a breach and is none.
async fn honest(source: Twist, destination: Twist, state: SyncState) {
    let source = Scripted::with(1, source, IdParameters::BUILT_IN, 2);
    let destination = Scripted::with(2, destination, IdParameters::BUILT_IN, 2);
    for item in ["a", "b", "c", "d", "e"] {
        source.write(item, item.as_bytes());
    }
    destination.write("z", b"own");
    let expected = Expected { state, blame: None, hresult: Hresult::S_OK, ends: [Some(1), Some(1)] };
    check_pair("honest", source, destination, expected).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn local_writes_at_the_destination_are_no_breach() {
    honest(Twist::Honest, Twist::WritesMeanwhile, SyncState::InSync).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resolutions_are_no_breach() {
    honest(Twist::Honest, Twist::Resolves, SyncState::InSync).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sending_again_what_is_known_is_no_breach() {
    let source = Scripted::new(1, Twist::ResendsAll);
    let destination = Scripted::new(2, Twist::Honest);
    source.write("a", b"one");
    source.write("b", b"two");
    for _ in 0..2 {
        let bench = Bench::start(timing(), &source, &destination).await;
        let record = bench.session().await;
        assert_eq!((record.state, record.provider_with_error), (SyncState::InSync, None), "{}", record.error_message);
        bench.stop().await;
    }
    assert_eq!(destination.calls().iter().filter(|call| *call == "Process").count(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_sends_the_same_for_ever_is_stopped() {
    let source = Scripted::with(1, Twist::ResendsAll, IdParameters::BUILT_IN, 1);
    let destination = Scripted::with(2, Twist::Honest, IdParameters::BUILT_IN, 1);
    source.write("a", b"one");
    source.write("b", b"two");
    check_pair("same again", source, destination, in_error(SOURCE, Hresult::SYNC_E_INTERNAL_ERROR, 1, 1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_item_is_no_breach() {
    honest(Twist::Honest, Twist::FailsOne, SyncState::Completed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_went_back_is_named() {
    let source = Scripted::new(1, Twist::Honest);
    let destination = Scripted::new(2, Twist::Honest);
    source.write("a", b"one");
    // The destination has learned of a tick that the source does not know any more.
    destination.learn_of(&source.replica, 41);
    check_pair("went back", source, destination, in_error(SOURCE, Hresult::SYNC_E_KNOWLEDGE_DECREASED, 1, 1)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_providers_of_one_replica_are_refused_before_any_begin() {
    let source = Scripted::new(1, Twist::Honest);
    let destination = Scripted::new(1, Twist::Honest);
    check_pair("same", source.clone(), destination.clone(), in_error(None, Hresult::E_INVALIDARG, 0, 0)).await;
    assert!(source.calls().iter().chain(&destination.calls()).all(|call| call == "Identify"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unequal_schemas_are_refused_before_any_begin() {
    let other = IdParameters { item_id: IdFormat::Fixed(24), ..IdParameters::BUILT_IN };
    assert_ne!(FORMAT, other.item_id);
    let source = Scripted::new(1, Twist::Honest);
    let destination = Scripted::with(2, Twist::Honest, other, 10);
    check_pair(
        "schemas",
        source.clone(),
        destination.clone(),
        in_error(None, Hresult::SYNC_E_ID_FORMAT_MISMATCH, 0, 0),
    )
    .await;
    assert!(source.calls().iter().chain(&destination.calls()).all(|call| call == "Identify"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_has_restarted_is_blamed_and_gets_no_second_begin() {
    let source = Scripted::new(1, Twist::Honest);
    let destination = Scripted::new(2, Twist::Honest);
    source.write("a", b"one");
    hang(&source, Call::Batch);
    let bench = Bench::start(timing(), &source, &destination).await;
    let running = bench.begin().await;
    source.wait_for(Call::Batch).await;
    source.restart();
    source.mend(Call::Batch);
    let record = bench.finished(running).await;
    assert_eq!((record.state, record.provider_with_error), (SyncState::InError, SOURCE), "{}", record.error_message);
    assert_eq!(source.calls().iter().filter(|call| *call == "Begin").count(), 1);
    assert_eq!(destination.ends().len(), 1);
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_never_ends_is_stopped() {
    let source = Scripted::new(1, Twist::NeverLast);
    let destination = Scripted::new(2, Twist::Honest);
    source.write("a", b"one");
    check_pair("never last", source, destination, in_error(SOURCE, Hresult::SYNC_E_INTERNAL_ERROR, 1, 1)).await;
}

/// A batch that is cut, because its destination does not come back when it is told to, was applied as far as it said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_applied_before_a_batch_was_cut_is_counted() {
    let (source, destination) = (Scripted::new(1, Twist::Honest), Scripted::new(2, Twist::StopsHalfway));
    source.write("a", b"one");
    source.write("b", b"two");
    // Nothing is counted on the way.
    let timing = Timing { progress_interval: Duration::from_secs(600), ..timing() };
    let bench = Bench::start(timing, &source, &destination).await;
    let operation = bench.begin().await;
    source.wait_for_count(Call::Load, 2).await;
    assert!(bench.coordinator.operations.cancel(operation).await.is_some());
    let record = bench.finished(operation).await;
    assert_eq!((record.state, record.counters.updates_transferred), (SyncState::Interrupted, 1), "{record:?}");
    bench.stop().await;
}
