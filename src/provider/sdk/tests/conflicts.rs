use std::collections::BTreeSet;

use super::harness::{PLAN, Plan, Replica, settle, sync};
use crate::knowledge::OutcomeKind;
use crate::types::ConflictResolutionPolicy as Policy;

/// Two replicas that both have `f` and then change it each in its own way; `None` deletes.
async fn diverged(a_now: Option<(&str, i64)>, b_now: Option<(&str, i64)>) -> (Replica, Replica) {
    let (a, b) = (Replica::new("a"), Replica::new("b"));
    a.store.write("f", "old", 1);
    settle(&[&a, &b], PLAN).await;
    for (replica, now) in [(&a, a_now), (&b, b_now)] {
        match now {
            Some((content, modified)) => replica.store.write("f", content, modified),
            None => replica.store.remove("f"),
        }
    }
    (a, b)
}

/// One session a → b under a policy, then all the rest; what `f` is at the end.
async fn resolved(a_now: Option<(&str, i64)>, b_now: Option<(&str, i64)>, policy: Policy) -> Option<String> {
    let (a, b) = diverged(a_now, b_now).await;
    let plan = Plan { policy, ..PLAN };
    let tick = b.tick();
    let report = sync(&a, &b, plan).await.unwrap();
    assert_eq!((report.count(OutcomeKind::Applied), report.conflicts()), (1, 1));
    assert!(b.tick() >= tick + 2, "the local edit and the resolution have versions of their own");
    let report = sync(&b, &a, plan).await.unwrap();
    assert_eq!(report.conflicts(), 0, "the resolution dominates both sides");
    settle(&[&a, &b], plan).await;
    assert_eq!(a.store.contents(), b.store.contents());
    a.store.read("f")
}

#[tokio::test]
async fn each_policy_settles_each_conflict() {
    let (edit_a, edit_b) = (Some(("of a", 5)), Some(("of b", 7)));
    let cases = [
        (edit_a, edit_b, Policy::SourceProviderWins, Some("of a")),
        (edit_a, edit_b, Policy::DestinationProviderWins, Some("of b")),
        (edit_a, edit_b, Policy::LastWriterWins, Some("of b")),
        (edit_b, edit_a, Policy::LastWriterWins, Some("of b")),
        (edit_a, None, Policy::SourceProviderWins, Some("of a")),
        (edit_a, None, Policy::DestinationProviderWins, None),
        (edit_a, None, Policy::LastWriterWins, Some("of a")),
        (edit_a, None, Policy::KeepBoth, Some("of a")),
        (None, edit_b, Policy::SourceProviderWins, None),
        (None, edit_b, Policy::DestinationProviderWins, Some("of b")),
        (None, edit_b, Policy::LastWriterWins, Some("of b")),
        (None, edit_b, Policy::KeepBoth, Some("of b")),
    ];
    for (a_now, b_now, policy, expected) in cases {
        let found = resolved(a_now, b_now, policy).await;
        assert_eq!(found.as_deref(), expected, "{a_now:?} against {b_now:?} under {policy:?}");
    }
}

#[tokio::test]
async fn without_a_policy_a_conflict_is_deferred_and_not_learned() {
    let (a, b) = diverged(Some(("of a", 5)), Some(("of b", 7))).await;
    let none = Plan { policy: Policy::None, ..PLAN };
    let report = sync(&a, &b, none).await.unwrap();
    assert_eq!((report.count(OutcomeKind::Deferred), report.conflicts()), (1, 1));
    assert_eq!(b.store.read("f").as_deref(), Some("of b"));
    assert!(!b.knowledge().contains(&a.knowledge()));
    assert_eq!(
        sync(&a, &b, none).await.unwrap().count(OutcomeKind::Deferred),
        1,
        "it is sent again in a later session"
    );
    settle(&[&a, &b], PLAN).await;
    assert_eq!(a.store.read("f").as_deref(), Some("of b"));
}

#[tokio::test]
async fn equal_states_decide_nothing() {
    let (a, b) = diverged(Some(("same", 5)), Some(("same", 5))).await;
    let report = sync(&a, &b, Plan { policy: Policy::None, inline: 0, ..PLAN }).await.unwrap();
    assert_eq!((report.count(OutcomeKind::Applied), report.conflicts(), report.bytes_loaded), (1, 0, 0));
    assert_eq!(b.tick(), 2, "its own edit follows what it knew; nothing else has a version");
    settle(&[&a, &b], PLAN).await;
    assert_eq!(sync(&b, &a, PLAN).await.unwrap().outcomes, []);

    let (a, b) = diverged(None, None).await;
    assert_eq!(sync(&a, &b, Plan { policy: Policy::None, ..PLAN }).await.unwrap().conflicts(), 0);
    settle(&[&a, &b], PLAN).await;
}

#[tokio::test]
async fn other_metadata_of_the_same_content_is_settled_without_bytes_or_copies() {
    let (a, b) = diverged(Some(("the same content", 5)), Some(("the same content", 7))).await;
    let plan = Plan { policy: Policy::KeepBoth, inline: 0, ..PLAN };
    let report = sync(&a, &b, plan).await.unwrap();
    assert_eq!((report.conflicts(), report.bytes_loaded), (1, 0));
    let report = sync(&b, &a, plan).await.unwrap();
    assert_eq!((report.conflicts(), report.bytes_loaded), (0, 0));
    assert_eq!(a.store.contents(), b.store.contents());
    assert_eq!(a.store.contents().len(), 1);
}

#[tokio::test]
async fn both_are_kept_under_the_same_names_everywhere() {
    for (a_modified, b_modified) in [(5, 7), (7, 5), (6, 6)] {
        for inline in [0, 100] {
            let (a, b) = diverged(Some(("of a", a_modified)), Some(("of b", b_modified))).await;
            let plan = Plan { policy: Policy::KeepBoth, inline, ..PLAN };
            // The same conflict is met on both sides at once, each through a third replica.
            let (c, d) = (Replica::new("c"), Replica::new("d"));
            sync(&a, &c, plan).await.unwrap();
            sync(&b, &c, plan).await.unwrap();
            sync(&b, &d, plan).await.unwrap();
            sync(&a, &d, plan).await.unwrap();
            assert_eq!(c.store.contents(), d.store.contents());
            settle(&[&a, &b, &c, &d], plan).await;
            let names = a.store.contents();
            assert_eq!(names.len(), 2, "{names:?}");
            for replica in [&b, &c, &d] {
                assert_eq!(replica.store.contents(), names);
            }
            let kept: BTreeSet<_> = names.keys().filter_map(|name| a.store.read(name)).collect();
            assert_eq!(kept, BTreeSet::from(["of a".to_owned(), "of b".to_owned()]));
        }
    }
}

/// Histories that are tried.
const SEEDS: u64 = 60;

/// Random edits, deletions and sessions over three replicas: whatever came first, they converge and go quiet.
#[tokio::test]
async fn random_histories_converge() {
    for seed in 0..SEEDS {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let policy = [Policy::KeepBoth, Policy::LastWriterWins, Policy::SourceProviderWins][seed as usize % 3];
        let plan = Plan { policy, batch_size: 1 + random.below(3), inline: u64::from(random.below(2)) * 100, ..PLAN };
        let replicas = [Replica::new("a"), Replica::new("b"), Replica::new("c")];
        for step in 0..14 {
            let replica = &replicas[random.below(3) as usize].store;
            let names: Vec<_> = replica.contents().into_keys().collect();
            match random.below(5) {
                0 | 1 => {
                    let name = ["f", "g", "d/f", "d/g"][random.below(4) as usize];
                    if name.starts_with("d/") && !names.iter().any(|name| name == "d") {
                        replica.make_directory("d");
                    }
                    // Clocks go back, too.
                    replica.write(name, &format!("{seed}.{step}"), 1 + i64::from(random.below(9)));
                }
                2 if !names.is_empty() => replica.remove(&names[random.below(names.len() as u32) as usize]),
                _ => {
                    let (from, to) = (random.below(3) as usize, random.below(3) as usize);
                    if from != to {
                        sync(&replicas[from], &replicas[to], plan).await.unwrap();
                    }
                }
            }
        }
        let [a, b, c] = &replicas;
        settle(&[a, b, c], plan).await;
        assert_eq!(a.store.contents(), b.store.contents(), "seed {seed}");
        assert_eq!(a.store.contents(), c.store.contents(), "seed {seed}");
    }
}

/// Nobody overwrites or deletes anything: whatever conflicts there are, every content is somewhere at the end, everywhere.
#[tokio::test]
async fn keeping_both_loses_nothing() {
    let plan = Plan { policy: Policy::KeepBoth, batch_size: 2, ..PLAN };
    for seed in 0..SEEDS {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let replicas = [Replica::new("a"), Replica::new("b"), Replica::new("c")];
        let mut written = BTreeSet::new();
        for step in 0..12 {
            let (from, to) = (random.below(3) as usize, random.below(3) as usize);
            let name = ["f", "g"][random.below(2) as usize];
            if from != to {
                sync(&replicas[from], &replicas[to], plan).await.unwrap();
            } else if replicas[from].store.read(name).is_none() {
                let content = format!("{seed}.{step}");
                replicas[from].store.write(name, &content, 1 + i64::from(random.below(4)));
                written.insert(content);
            }
        }
        let [a, b, c] = &replicas;
        settle(&[a, b, c], plan).await;
        for replica in &replicas {
            let names = replica.store.contents();
            let kept: BTreeSet<_> = names.keys().filter_map(|name| replica.store.read(name)).collect();
            assert_eq!(kept, written, "seed {seed}");
        }
    }
}

/// xorshift64*: enough to vary histories, and the same on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u32) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32;
        high % bound
    }
}
