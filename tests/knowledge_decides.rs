//! What a replica knows decides what moves, not with whom it has synced before.

mod processes;

use std::fs;
use std::path::PathBuf;

use processes::Scratch;
use processes::content::Random;
use processes::tree::{self, assert_equal};

struct Ring {
    scratch: Scratch,
    names: [&'static str; 3],
}

impl Ring {
    /// A with a tree, and B and C that have it from A and from B.
    fn new(seed: &str) -> Self {
        let ring = Self { scratch: Scratch::new(), names: ["A", "B", "C"] };
        for name in ring.names {
            ring.scratch.directory(name);
        }
        tree::generate(&ring.path("A"), &mut Random::announced(seed), 12, 2_000);
        fs::write(ring.path("A").join("shared.txt"), "as it was").expect("written");
        ring.scratch.sync(&ring.path("A"), &ring.path("B"), &[]);
        ring.scratch.sync(&ring.path("B"), &ring.path("C"), &[]);
        ring
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path(name)
    }

    /// Updates and conflicts of one sync.
    fn sync(&self, pair: (&str, &str)) -> (u64, u64) {
        let synced = self.scratch.sync(&self.path(pair.0), &self.path(pair.1), &[]);
        (synced.updates(), synced.conflicts())
    }

    fn assert_all_equal(&self) {
        assert_equal(&self.path("A"), &self.path("B"));
        assert_equal(&self.path("A"), &self.path("C"));
    }
}

#[test]
fn what_came_by_another_way_is_known() {
    let ring = Ring::new("ring");
    assert_eq!(ring.sync(("A", "C")), (0, 0), "C has everything of A's already, from B");
    ring.assert_all_equal();
}

#[test]
fn each_edit_arrives_once() {
    let ring = Ring::new("edits around the ring");
    fs::write(ring.path("A").join("from A"), "1").expect("written");
    fs::write(ring.path("C").join("from C"), "2").expect("written");
    assert_eq!(ring.sync(("A", "B")), (1, 0), "A's edit to B");
    assert_eq!(ring.sync(("B", "C")), (2, 0), "A's edit to C, and C's to B");
    assert_eq!(ring.sync(("C", "A")), (1, 0), "C's edit to A; A's own does not come back");
    ring.assert_all_equal();
    for pair in [("A", "B"), ("B", "C"), ("C", "A")] {
        assert_eq!(ring.sync(pair), (0, 0), "{pair:?}");
    }
}

/// One file edited in all three, then sessions in this order, round after round.
fn settles(order: [(&str, &str); 3]) {
    let ring = Ring::new(&format!("{order:?}"));
    let edits = [("A", "the edit of A", 30), ("B", "the edit of B!", 10), ("C", "the edit of C!!", 20)];
    for (name, content, second) in edits {
        tree::write_at(&ring.path(name).join("shared.txt"), content.as_bytes(), 1_700_000_000 + second);
    }
    let mut rounds = 0;
    while order.map(|pair| ring.sync(pair).0).iter().sum::<u64>() > 0 {
        rounds += 1;
        assert!(rounds < 5, "{order:?}: does not go quiet");
    }
    ring.assert_all_equal();
    let a = ring.path("A");
    let is_of_it = |name: &String| name == "shared.txt" || name.starts_with("shared.conflict-");
    let names = tree::read(&a).into_keys().filter_map(|name| String::from_utf8(name).ok()).filter(is_of_it);
    let mut contents: Vec<_> = names.map(|name| fs::read_to_string(a.join(name)).expect("text")).collect();
    contents.sort();
    assert_eq!(contents, edits.map(|(_, content, _)| content), "{order:?}: every edit is somewhere, and once");
    assert_eq!(fs::read_to_string(a.join("shared.txt")).expect("there"), "the edit of A", "{order:?}: the latest");
}

/// All orders of the three pairs, and some with the roles the other way round.
#[test]
fn one_file_edited_in_three_places_settles_in_any_order() {
    let orders = [
        [("A", "B"), ("B", "C"), ("A", "C")],
        [("A", "B"), ("A", "C"), ("B", "C")],
        [("B", "C"), ("A", "B"), ("A", "C")],
        [("B", "C"), ("A", "C"), ("A", "B")],
        [("A", "C"), ("A", "B"), ("B", "C")],
        [("A", "C"), ("B", "C"), ("A", "B")],
        [("B", "A"), ("C", "B"), ("C", "A")],
        [("C", "A"), ("A", "B"), ("C", "B")],
    ];
    let (one, other) = orders.split_at(orders.len() / 2);
    std::thread::scope(|scope| {
        for half in [one, other] {
            scope.spawn(move || half.iter().copied().for_each(settles));
        }
    });
}

#[test]
fn a_deletion_is_known_everywhere_and_nothing_comes_back() {
    let ring = Ring::new("deletion");
    tree::remove(&ring.path("B").join("shared.txt"));
    assert_eq!(ring.sync(("B", "C")), (1, 0));
    assert_eq!(ring.sync(("C", "A")), (1, 0));
    assert_eq!(ring.sync(("A", "B")), (0, 0));
    ring.assert_all_equal();
    assert!(!ring.path("A").join("shared.txt").exists());
}
