//! Random histories of three replicas, two with change units and one that only keeps them, against a model that is obviously
//! right: each edit writes a value that is nowhere else, and a value goes only by a user's hand or in a conflict that is told.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::harness::{PLAN, Plan, Replica, settle, sync};
use super::memory::MemoryStore;
use crate::types::ConflictResolutionPolicy as Policy;

/// Histories of a plain `cargo test`; `SYNCLAVE_UNIT_HISTORIES` says another number, `SYNCLAVE_UNIT_HISTORY` runs one.
const HISTORIES: u64 = 60;

struct Random(u64);

impl Random {
    /// Below `limit`; xorshift is random enough here.
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}

fn object(replica: &Replica, item: &str) -> Option<Map<String, Value>> {
    replica.store.read(item).map(|text| serde_json::from_str(&text).expect("an object"))
}

/// Every value that a replica holds, with its item.
fn values(replica: &Replica) -> BTreeMap<u64, String> {
    let items = replica.store.contents();
    let values = |item: &String| {
        let object = object(replica, item).unwrap_or_default();
        object.values().filter_map(Value::as_u64).map(|value| (value, item.clone())).collect::<Vec<_>>()
    };
    items.keys().flat_map(values).collect()
}

#[derive(Default)]
struct Model {
    last: u64,
    written: BTreeSet<u64>,
    /// Gone by a user's hand, or in a conflict that was told.
    excused: BTreeSet<u64>,
    /// Held by any replica, where filters hold back what the others have.
    elsewhere: BTreeSet<u64>,
}

impl Model {
    fn edit(&mut self, random: &mut Random, replica: &Replica) {
        let item = ["i", "j"][random.below(2)];
        let before = object(replica, item);
        let mut after = before.clone().unwrap_or_default();
        let unit = ["c1", "c2", "c3", "c4"][random.below(4)];
        let mut deleted = false;
        match (random.below(10), &before) {
            (0, Some(_)) => deleted = true,
            (1, Some(_)) if after.len() > 1 => drop(after.remove(unit)),
            (2, _) | (_, None) => {
                after.clear();
                for unit in ["c1", "c2", "c3"] {
                    after.insert(unit.to_owned(), json!(self.value()));
                }
            }
            _ => drop(after.insert(unit.to_owned(), json!(self.value()))),
        }
        let kept: BTreeSet<u64> = after.values().filter(|_| !deleted).filter_map(Value::as_u64).collect();
        let gone = before.iter().flat_map(Map::values).filter_map(Value::as_u64).filter(|value| !kept.contains(value));
        self.excused.extend(gone);
        match deleted {
            true => replica.store.remove(item),
            false => replica.store.write(item, &Value::Object(after).to_string(), 1 + self.last as i64),
        }
    }

    fn value(&mut self) -> u64 {
        self.last += 1;
        self.written.insert(self.last);
        self.last
    }

    async fn sync(&mut self, source: &Replica, destination: &Replica, plan: Plan) {
        let (theirs, ours) = (values(source), values(destination));
        let report = sync(source, destination, plan).await.unwrap();
        let after = values(destination);
        let told: BTreeSet<String> = report
            .outcomes
            .iter()
            .filter(|outcome| outcome.conflict)
            .map(|outcome| outcome.item_id.to_string())
            .collect();
        for (value, item) in theirs.iter().chain(&ours).filter(|(value, _)| !after.contains_key(value)) {
            if told.contains(item) {
                self.excused.insert(*value);
            }
        }
        // What was kept beside an item may be held back.
        let is_kept = |value: &u64| self.elsewhere.contains(value);
        let is_lost = |value: &&u64| !after.contains_key(value) && !self.excused.contains(value) && !is_kept(value);
        let lost = ours.keys().find(is_lost);
        assert_eq!(lost, None, "a value went without a word: {report:?}");
    }
}

/// The versions of an item's units, whichever a row names.
fn versions(replica: &Replica, item: &str) -> Vec<crate::knowledge::Version> {
    let Some(row) = replica.row(item) else { return Vec::new() };
    let unit = |name: &str| row.units.as_ref().and_then(|units| units.get(&name.into()));
    ["c1", "c2", "c3", "c4"].map(|name| unit(name).map_or(&row.version, |unit| &unit.version).clone()).to_vec()
}

async fn history(seed: u64, filtered: bool) {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    // What goes by the ids, such as the greater of two versions, must not differ from run to run.
    let mut ids = vec![[1; 16], [2; 16], [3; 16]];
    let mut replica = |name: &str, divided| {
        let id = ids.remove(random.below(ids.len()));
        Replica::identified(name, id, MemoryStore { divided, ..MemoryStore::default() })
    };
    let replicas = [replica("a", true), replica("b", true), replica("c", false)];
    let mut model = Model::default();
    for _ in 0..40 {
        let one = random.below(3);
        if random.below(5) < 3 {
            model.edit(&mut random, &replicas[one]);
            continue;
        }
        let other = (one + 1 + random.below(2)) % 3;
        let policies = [
            Policy::None,
            Policy::LastWriterWins,
            Policy::KeepBoth,
            Policy::SourceProviderWins,
            Policy::DestinationProviderWins,
        ];
        let plan = Plan {
            policy: policies[random.below(5)],
            batch_size: [1, 100][random.below(2)],
            inline: [0, 1_000][random.below(2)],
            units: if filtered { [&[][..], &["c1"], &["c2", "c3"]][random.below(3)] } else { &[] },
            ..PLAN
        };
        if filtered {
            model.elsewhere = replicas.iter().flat_map(|replica| values(replica).into_keys()).collect();
        }
        model.sync(&replicas[one], &replicas[other], plan).await;
    }
    let [a, b, c] = &replicas;
    for _ in 0..3 {
        for (source, destination) in [(a, b), (b, c), (c, a), (a, c), (c, b), (b, a)] {
            model.sync(source, destination, PLAN).await;
        }
    }
    settle(&[a, b, c], PLAN).await;
    let held: BTreeSet<u64> = values(a).into_keys().collect();
    let lost: Vec<_> = model.written.difference(&held).filter(|value| !model.excused.contains(value)).collect();
    assert_eq!(lost, Vec::<&u64>::new(), "lost");
    for other in [b, c] {
        let items: Vec<String> = a.store.contents().into_keys().collect();
        assert_eq!(other.store.contents().into_keys().collect::<Vec<_>>(), items);
        for item in &items {
            assert_eq!(object(a, item), object(other, item), "{item}");
            assert_eq!(versions(a, item), versions(other, item), "{item}");
        }
        assert!(a.knowledge().contains(&other.knowledge()) && other.knowledge().contains(&a.knowledge()));
    }
    for (source, destination) in [(a, b), (b, c), (c, a), (b, a)] {
        assert_eq!(sync(source, destination, PLAN).await.unwrap().outcomes, [], "quiet");
    }
}

async fn histories(filtered: bool) {
    let number = |variable| std::env::var(variable).ok().and_then(|text| text.parse::<u64>().ok());
    let histories = 0..number("SYNCLAVE_UNIT_HISTORIES").unwrap_or(HISTORIES);
    for seed in number("SYNCLAVE_UNIT_HISTORY").map_or(histories, |seed| seed..seed + 1) {
        eprintln!("history {seed}");
        history(seed, filtered).await;
    }
}

#[tokio::test]
async fn replicas_converge_and_lose_no_edit_of_a_unit() {
    histories(false).await;
}

/// In two of three sessions the destination takes some units only.
#[tokio::test]
async fn replicas_that_take_some_units_converge_and_lose_no_edit_of_any() {
    histories(true).await;
}
