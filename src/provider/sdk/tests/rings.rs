//! Sessions in one direction around a ring, and values that are equal by chance: replicas come to one version, and to rest.

use serde_json::json;

use super::harness::{PLAN, Replica, begin, end, key, settle, sync};
use super::memory::MemoryStore;
use crate::knowledge::OutcomeKind;
use crate::provider::Provider as _;
use crate::types::ProviderRole;

const IDS: [[u8; 3]; 6] = [[1, 2, 3], [1, 3, 2], [2, 1, 3], [2, 3, 1], [3, 1, 2], [3, 2, 1]];

fn replicas(ids: [u8; 3], divided: bool) -> [Replica; 3] {
    let store = || MemoryStore { divided, ..MemoryStore::default() };
    let mut names = ["a", "b", "c"].into_iter();
    ids.map(|id| Replica::identified(names.next().unwrap_or_default(), [id; 16], store()))
}

/// `i` gets this value; with units it is one of two.
fn write(replica: &Replica, divided: bool, value: &str) {
    let content = if divided { json!({"c1": 1, "c2": value}).to_string() } else { value.to_owned() };
    replica.store.write("i", &content, 1);
}

/// A look for local changes.
async fn detect(replica: &Replica) {
    let session = key();
    replica.provider.begin_session(begin(ProviderRole::Source, session, false)).await.unwrap();
    replica.provider.end_session(end(session)).await.unwrap();
}

/// All know the same, and have the same versions.
fn alike(replicas: &[Replica; 3]) {
    let [first, others @ ..] = replicas;
    for other in others {
        let (ours, theirs) = (first.row("i"), other.row("i"));
        let (ours, theirs) = (ours.expect("a row"), theirs.expect("a row"));
        assert_eq!(first.store.contents(), other.store.contents());
        assert_eq!((ours.version, ours.units), (theirs.version, theirs.units));
        assert!(first.knowledge().contains(&other.knowledge()) && other.knowledge().contains(&first.knowledge()));
    }
}

/// c changes what a wrote to another value and back, while b writes that value by itself. Were the greater of two versions any
/// that all agree on, a could keep its own, which c's follows, and c could take b's: both would know of the other's choice, and
/// stay with their own for ever.
#[tokio::test]
async fn equal_values_come_to_one_version_whatever_the_ids() {
    for (ids, divided) in IDS.into_iter().flat_map(|ids| [(ids, false), (ids, true)]) {
        let all = replicas(ids, divided);
        let [a, b, c] = &all;
        // Whose id is the greater has made the more changes.
        for (replica, id) in all.iter().zip(ids) {
            for edit in 1..=3 * i64::from(id) {
                replica.store.write(&format!("of {id}"), &json!({"c1": edit}).to_string(), edit);
                detect(replica).await;
            }
        }
        write(a, divided, "first");
        settle(&[a, b, c], PLAN).await;
        write(a, divided, "same");
        sync(a, c, PLAN).await.unwrap();
        write(c, divided, "other");
        sync(a, c, PLAN).await.unwrap();
        write(c, divided, "same");
        write(b, divided, "same");
        for destination in [c, a] {
            let report = sync(b, destination, PLAN).await.unwrap();
            assert_eq!((report.count(OutcomeKind::Applied), report.conflicts()), (1, 0), "nothing is at stake");
        }
        settle(&[a, b, c], PLAN).await;
        alike(&all);
    }
}

/// Each hears from the one behind it only after it has itself been asked: a new version for equal values would go round, and meet
/// another new one, for ever.
#[tokio::test]
async fn a_ring_in_one_direction_comes_to_rest_in_any_order() {
    const ORDERS: [[usize; 3]; 3] = [[0, 1, 2], [2, 1, 0], [1, 0, 2]];
    for ((ids, divided), values) in IDS
        .into_iter()
        .flat_map(|ids| [(ids, false), (ids, true)])
        .flat_map(|kind| [["same"; 3], ["of a", "of b", "of c"], ["same", "same", "of c"]].map(|values| (kind, values)))
    {
        for order in ORDERS {
            let all = replicas(ids, divided);
            write(&all[0], divided, "first");
            settle(&[&all[0], &all[1], &all[2]], PLAN).await;
            all.iter().zip(values).for_each(|(replica, value)| write(replica, divided, value));
            let mut rounds = 0;
            loop {
                let mut moved = 0;
                for source in order {
                    moved += sync(&all[source], &all[(source + 1) % 3], PLAN).await.unwrap().outcomes.len();
                }
                if moved == 0 {
                    break;
                }
                rounds += 1;
                assert!(rounds <= 6, "ids {ids:?}, order {order:?}, values {values:?}, units {divided}");
            }
            alike(&all);
        }
    }
}
