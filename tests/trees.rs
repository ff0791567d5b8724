//! Real trees through `synclave sync`: what arrives, what moves, what is refused.

mod processes;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use processes::content::Random;
use processes::services::FileProvider;
use processes::tree::{self, Entry, STATE, Tree, assert_equal, assert_same, conflict_copies};
use processes::{Scratch, Synced};

/// What both sides must hold after edits below `left` in A and below `right` in B, without a conflict.
fn merged(a: &Tree, b: &Tree) -> Tree {
    let of = |tree: &Tree, right: bool| -> Tree {
        let is_right = |path: &[u8]| path.starts_with(b"right");
        tree.iter()
            .filter(|(path, _)| is_right(path) == right)
            .map(|(path, entry)| (path.clone(), entry.clone()))
            .collect()
    };
    let mut merged = of(a, false);
    merged.extend(of(b, true));
    merged
}

/// Edits, deletes, renames, new files and changes of kind below `top`.
fn change(root: &Path, top: &str, random: &mut Random) {
    let prefix = format!("{top}/").into_bytes();
    let tree = tree::read(root);
    let own = || tree.iter().filter(|(path, _)| path.starts_with(&prefix));
    let files: Vec<PathBuf> = own()
        .filter(|(_, entry)| matches!(entry, Entry::File { .. }))
        .map(|(path, _)| tree::path(root, path))
        .collect();
    for (index, file) in files.iter().enumerate() {
        // Never a name that an earlier round gave.
        let mark = random.next();
        let renamed = || file.with_file_name(format!("renamed-{mark:x}-{index}"));
        match random.below(20) {
            0 | 1 => {
                tree::set_mode(file, 0o644);
                let size = random.size(40_000) + 1;
                random.write(file, size);
            }
            2 => tree::remove(file),
            3 => fs::rename(file, renamed()).expect("renamed"),
            4 => tree::set_mode(file, 0o750),
            5 => tree::set_modified(file, 1_234_567_890, 987_654_321),
            6 => {
                tree::remove(file);
                fs::create_dir(file).expect("a directory in its place");
                random.write(&file.join("inside"), 100);
            }
            7 => {
                tree::remove(file);
                std::os::unix::fs::symlink("elsewhere", file).expect("a symlink in its place");
            }
            8 => random.write(&renamed(), 3_000),
            _ => {}
        }
    }
    let directories: Vec<PathBuf> = own()
        .filter(|(path, entry)| matches!(entry, Entry::Directory { .. }) && path.len() > prefix.len())
        .map(|(path, _)| tree::path(root, path))
        .collect();
    // From the last: a child comes before its parent.
    for (index, directory) in directories.iter().enumerate().rev() {
        match random.below(12) {
            0 => {
                let moved = format!("moved-{:x}-{index}", random.next());
                fs::rename(directory, directory.with_file_name(moved)).expect("renamed");
            }
            1 if index % 2 == 0 => tree::remove(directory),
            2 => tree::set_mode(directory, 0o700),
            3 => {
                tree::remove(directory);
                fs::write(directory, format!("a file in the place of a directory, {top} {index}")).expect("written");
            }
            _ => {}
        }
    }
}

/// The first sync of a tree, a quiet one, then rounds of changes on both sides.
fn carried_both_ways(scratch: &Scratch, a: &Path, random: &mut Random) {
    let b = scratch.path("B");
    let before = tree::read(a);
    let first = scratch.sync(a, &b, &[]);
    assert_same(&before, &tree::read(a), "A, which was only read");
    assert_equal(a, &b);
    assert!(fs::symlink_metadata(b.join("odd/fifo")).is_err(), "a FIFO is not carried");
    assert_eq!(first.updates(), before.len() as u64, "one update for each entry");
    scratch.expect_quiet(a, &b);

    for _ in 0..2 {
        for top in ["left", "right"] {
            fs::create_dir_all(a.join(top)).expect("made");
        }
        scratch.sync(a, &b, &[]);
        change(a, "left", random);
        change(&b, "right", random);
        let expected = merged(&tree::read(a), &tree::read(&b));
        let synced = scratch.sync(a, &b, &["--allow-mass-delete"]);
        assert_eq!(synced.conflicts(), 0, "nothing was changed on both sides");
        assert_same(&expected, &tree::read(a), "A");
        assert_same(&expected, &tree::read(&b), "B");
        scratch.expect_quiet(a, &b);
    }
}

#[test]
fn a_tree_with_odd_entries_is_carried_both_ways() {
    let mut random = Random::announced("trees");
    let scratch = Scratch::new();
    let a = scratch.directory("A");
    tree::generate(&a, &mut random, 1_750, 60_000);
    tree::add_oddities(&a);
    carried_both_ways(&scratch, &a, &mut random);
}

/// With `SYNCLAVE_TREE=DIR`: the same with a copy of that directory.
#[test]
fn a_given_tree_is_carried_both_ways() {
    let Some(given) = std::env::var_os("SYNCLAVE_TREE") else { return };
    let mut random = Random::announced("given tree");
    let scratch = Scratch::new();
    let a = scratch.directory("A");
    tree::copy(Path::new(&given), &a.join("left"));
    tree::copy(Path::new(&given), &a.join("right"));
    tree::add_oddities(&a);
    carried_both_ways(&scratch, &a, &mut random);
}

#[test]
fn a_file_becomes_a_directory_and_back() {
    let scratch = Scratch::new();
    let (a, b) = (scratch.directory("A"), scratch.path("B"));
    fs::write(a.join("it"), "a file").expect("written");
    scratch.sync(&a, &b, &[]);

    tree::remove(&a.join("it"));
    fs::create_dir_all(a.join("it/below/deeper")).expect("made");
    fs::write(a.join("it/below/file"), "now in a directory").expect("written");
    scratch.sync(&a, &b, &[]);
    assert_equal(&a, &b);

    tree::remove(&b.join("it"));
    fs::write(b.join("it"), "a file again").expect("written");
    scratch.sync(&a, &b, &[]);
    assert_eq!(fs::read(a.join("it")).expect("a file"), b"a file again");
    assert_equal(&a, &b);
    scratch.expect_quiet(&a, &b);
}

/// Trees that are the same already need no bytes, and are no conflict.
fn equal_before_the_first_sync(a: &Path, copy: &Path, scratch: &Scratch) {
    let before = tree::read(a);
    let synced = scratch.sync(a, copy, &[]);
    assert_eq!((synced.bytes(), synced.conflicts()), (0, 0), "{:?}", synced.json);
    assert_same(&before, &tree::read(a), "A");
    assert_same(&before, &tree::read(copy), "its copy");
    scratch.expect_quiet(a, copy);
}

#[test]
fn a_copied_tree_moves_no_bytes_and_is_no_conflict() {
    let mut random = Random::announced("copied tree");
    let scratch = Scratch::new();
    let a = scratch.directory("A");
    tree::generate(&a, &mut random, 150, 20_000);
    tree::add_oddities(&a);
    tree::copy(&a, &scratch.path("B"));
    equal_before_the_first_sync(&a, &scratch.path("B"), &scratch);

    // Now A is a replica, and the next copy is made with all that it knows: it must not take itself for A.
    tree::copy(&a, &scratch.path("C"));
    assert!(scratch.path("C").join(STATE).is_dir());
    equal_before_the_first_sync(&a, &scratch.path("C"), &scratch);

    // Each is a replica of its own from now on: an edit in the copy is an edit, and nobody's version is used twice.
    fs::write(scratch.path("C").join("from the copy"), "1").expect("written");
    fs::write(a.join("from the original"), "2").expect("written");
    for (one, other) in [("A", "C"), ("A", "B"), ("B", "C")] {
        scratch.sync(&scratch.path(one), &scratch.path(other), &[]);
    }
    assert_equal(&a, &scratch.path("B"));
    assert_equal(&a, &scratch.path("C"));
    assert!(scratch.path("B").join("from the copy").exists());
}

/// A and B in sync, with a file that was then edited on both sides: in A at second 1,700,000,000, in B a minute later.
fn edited_on_both_sides(scratch: &Scratch) -> (PathBuf, PathBuf) {
    let (a, b) = (scratch.directory("A"), scratch.path("B"));
    fs::create_dir(a.join("folder")).expect("made");
    fs::write(a.join("folder/report.tar.gz"), "the first version").expect("written");
    scratch.sync(&a, &b, &[]);
    tree::write_at(&a.join("folder/report.tar.gz"), b"as edited in A", 1_700_000_000);
    tree::write_at(&b.join("folder/report.tar.gz"), b"as edited in B, later", 1_700_000_060);
    (a, b)
}

#[test]
fn an_edit_on_both_sides_keeps_both() {
    let scratch = Scratch::new();
    let (a, b) = edited_on_both_sides(&scratch);
    let synced = scratch.sync(&a, &b, &[]);
    assert!(synced.conflicts() >= 1, "{:?}", synced.json);
    assert_equal(&a, &b);
    let [d0, d1, d2, ..] = tree::digest(b"as edited in A");
    // 1,700,000,000 is 2023-11-14 22:13:20 UTC.
    let copy = format!("folder/report.tar.conflict-20231114-221320-{d0:02x}{d1:02x}{d2:02x}.gz");
    assert_eq!(conflict_copies(&tree::read(&a)), std::slice::from_ref(&copy));
    assert_eq!(fs::read(a.join(copy)).expect("kept"), b"as edited in A");
    assert_eq!(fs::read(a.join("folder/report.tar.gz")).expect("there"), b"as edited in B, later");
    scratch.expect_quiet(&a, &b);
}

#[test]
fn a_policy_decides_who_wins() {
    for (policy, winner) in [
        ("source-wins", "as edited in A"),
        ("destination-wins", "as edited in B, later"),
        ("last-writer-wins", "as edited in B, later"),
    ] {
        let scratch = Scratch::new();
        let (a, b) = edited_on_both_sides(&scratch);
        let synced = scratch.sync(&a, &b, &["--conflict", policy]);
        assert!(synced.conflicts() >= 1, "{policy}: {:?}", synced.json);
        assert_eq!(fs::read_to_string(a.join("folder/report.tar.gz")).expect("there"), winner, "{policy}");
        assert_equal(&a, &b);
        assert!(conflict_copies(&tree::read(&a)).is_empty(), "{policy} keeps no copies");
        scratch.expect_quiet(&a, &b);
    }
}

#[test]
fn an_edit_beats_a_delete() {
    let scratch = Scratch::new();
    let (a, b) = (scratch.directory("A"), scratch.path("B"));
    for name in ["deleted in A", "deleted in B"] {
        fs::write(a.join(name), "before").expect("written");
    }
    scratch.sync(&a, &b, &[]);
    for (one, other, name) in [(&a, &b, "deleted in A"), (&b, &a, "deleted in B")] {
        tree::remove(&one.join(name));
        fs::write(other.join(name), "edited meanwhile").expect("written");
    }
    scratch.sync(&a, &b, &[]);
    assert_equal(&a, &b);
    for name in ["deleted in A", "deleted in B"] {
        assert_eq!(fs::read(a.join(name)).expect("it is back"), b"edited meanwhile");
    }
    scratch.expect_quiet(&a, &b);
}

#[test]
fn a_rename_moves_no_bytes() {
    let mut random = Random::announced("rename");
    let scratch = Scratch::new();
    let (a, b) = (scratch.directory("A"), scratch.path("B"));
    for index in 0..130 {
        random.write(&a.join(format!("folder/below/{index}")), 5_000);
    }
    random.write(&a.join("large"), 1_000_000);
    scratch.sync(&a, &b, &[]);
    fs::rename(a.join("large"), a.join("large, renamed")).expect("renamed");
    // More than half of over 100 items vanish under their old names; as they reappear, this is no mass delete.
    fs::rename(a.join("folder"), a.join("moved")).expect("renamed");
    let expected = tree::read(&a);
    let synced = scratch.sync(&a, &b, &[]);
    assert_eq!((synced.bytes(), synced.conflicts()), (0, 0), "{:?}", synced.json);
    assert_same(&expected, &tree::read(&b), "B");
    scratch.expect_quiet(&a, &b);
}

#[test]
fn one_way_is_one_way() {
    let scratch = Scratch::new();
    let (a, b) = (scratch.directory("A"), scratch.directory("B"));
    fs::write(a.join("of A"), "a").expect("written");
    fs::write(b.join("of B"), "b").expect("written");
    let synced = scratch.sync(&a, &b, &["--one-way"]);
    assert_eq!(synced.infos().len(), 1, "one session in one direction");
    assert!(!a.join("of B").exists());
    assert_eq!(fs::read(b.join("of A")).expect("carried"), b"a");
    assert_eq!(fs::read(b.join("of B")).expect("left alone"), b"b");
    assert_eq!(scratch.sync(&a, &b, &["--one-way"]).updates(), 0);
    scratch.sync(&a, &b, &[]);
    assert_equal(&a, &b);
}

/// A sync that must stop before anything is changed, and say how to go on.
#[track_caller]
fn stops(scratch: &Scratch, a: &Path, b: &Path, reason: &str) -> Synced {
    let before = (tree::read(a), tree::read(b));
    let begun = SystemTime::now();
    let stopped = scratch.try_sync(a, b, &[]);
    assert_eq!(stopped.ended.code(), Some(1), "{:?}", stopped.ended);
    assert!(begun.elapsed().is_ok_and(|took| took < Duration::from_secs(20)), "a safety stop is not retried");
    stopped.ended.expect_error(reason);
    stopped.ended.expect_error("allow-mass-delete");
    assert_same(&before.0, &tree::read(a), "A");
    assert_same(&before.1, &tree::read(b), "B");
    stopped
}

#[test]
fn a_mass_delete_stops_until_it_is_allowed() {
    let mut random = Random::announced("mass delete");
    let scratch = Scratch::new();
    let (a, b) = scratch.mass_deleted(&mut random);
    let stopped = stops(&scratch, &a, &b, "100 of 150");
    assert_eq!(stopped.operation()["lastError"]["providerWithError"], "PROVIDER_WITH_ERROR_SOURCE");
    // It was not forgotten by having been seen once.
    stops(&scratch, &a, &b, "100 of 150");
    scratch.sync(&a, &b, &["--allow-mass-delete"]);
    assert_equal(&a, &b);
    assert_eq!(tree::read(&b).len(), 50);
    scratch.expect_quiet(&a, &b);
}

#[test]
fn an_emptied_root_stops_until_it_is_allowed() {
    let mut random = Random::announced("emptied root");
    let scratch = Scratch::new();
    let (a, b) = (scratch.directory("A"), scratch.path("B"));
    for index in 0..20 {
        random.write(&a.join(format!("{index}")), 500);
    }
    scratch.sync(&a, &b, &[]);
    for index in 0..20 {
        tree::remove(&b.join(format!("{index}")));
    }
    stops(&scratch, &a, &b, "empty");
    scratch.sync(&a, &b, &["--allow-mass-delete"]);
    assert!(tree::read(&a).is_empty());

    // A root whose state is gone as well, such as the mount point of a disk that is not mounted, is a new replica.
    random.write(&a.join("file"), 500);
    scratch.sync(&a, &b, &[]);
    tree::remove(&b);
    fs::create_dir(&b).expect("made");
    scratch.sync(&a, &b, &[]);
    assert_equal(&a, &b);
    assert_eq!(tree::read(&a).len(), 1);
}

#[test]
fn what_is_left_out_at_a_provider_elsewhere_is_told_with_its_reason() {
    let scratch = Scratch::new();
    let (a, b) = (scratch.directory("A"), scratch.directory("B"));
    fs::write(a.join("both"), "of A").expect("writable");
    fs::write(b.join("both"), "of B").expect("writable");
    let provider = FileProvider::start(&b);
    // Upwards only, so that no provider of this process meets the conflict.
    let synced = scratch.try_sync(&a, Path::new(&provider.address), &["--one-way", "--conflict", "none"]);
    let answer = synced.ended.expect_code(3).json();
    let left_out = answer["leftOut"].as_array().expect("a list");
    assert_eq!(left_out.len(), 1, "{answer}");
    assert_eq!(left_out[0]["item"], "both");
    assert!(left_out[0]["reason"].as_str().is_some_and(|reason| reason.contains("--conflict")), "{answer}");
}

#[test]
fn what_cannot_be_read_is_not_in_sync() {
    if rustix::process::geteuid().is_root() {
        return; // Root reads everything.
    }
    let scratch = Scratch::new();
    let (a, b) = (scratch.directory("A"), scratch.directory("B"));
    fs::write(a.join("secret"), "x").expect("writable");
    tree::set_mode(&a.join("secret"), 0);
    let answer = scratch.try_sync(&a, &b, &[]).ended.expect_code(3).json();
    assert_eq!(answer["operation"]["state"], "OPERATION_STATE_IN_SYNC");
    assert_eq!(answer["unreadable"][0]["item"], "secret");
    tree::set_mode(&a.join("secret"), 0o600);
    scratch.sync(&a, &b, &[]);
    assert_equal(&a, &b);
}
