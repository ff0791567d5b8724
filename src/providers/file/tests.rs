use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fd::OwnedFd;
use rustix::fs::Mode;
use tempfile::TempDir;

use super::attributes::Attributes;
use super::facts::Time;
use super::fingerprint::{Origin, Stamp};
use super::holding::WORTH_A_REMOVER;
use super::*;
use crate::knowledge::Properties;
use crate::provider::sdk::{Fingerprint, Observation, Skipped};

/// The metadata, as far as a store sees it.
#[derive(Default)]
struct Memory(BTreeMap<ItemId, KnownItem>);

impl Known for Memory {
    fn get(&self, id: &ItemId) -> Option<KnownItem> {
        self.0.get(id).cloned()
    }

    fn for_each_alive(&self, visit: &mut dyn FnMut(&ItemId, &Fingerprint)) {
        self.0.iter().filter(|(_, item)| !item.deleted).for_each(|(id, item)| visit(id, &item.fingerprint));
    }
}

impl Memory {
    fn learn(&mut self, observations: Vec<Observation>) {
        for observation in observations {
            match observation {
                Observation::Present { id, state, fingerprint } => {
                    self.0.insert(id, KnownItem { state, fingerprint, deleted: false });
                }
                Observation::Missing { id } => {
                    self.0.remove(&id);
                }
            }
        }
    }

    fn item(&self, id: &str) -> KnownItem {
        self.0[&ItemId::from(id)].clone()
    }
}

/// A store over a temporary tree, and the metadata that goes with it.
struct Fixture {
    directory: TempDir,
    store: FileStore,
    known: Memory,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        fs::create_dir(&root).unwrap();
        let store = FileStore::open(&root, &FileStore::default_state_dir(&root)).unwrap();
        Self { directory, store, known: Memory::default() }
    }

    fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    fn write(&self, name: &str, content: &str) {
        let path = self.root().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        age(&path);
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.root().join(name)).unwrap()
    }

    /// Scans, learns, and tells the observations: `+id` and `-id`.
    fn scan(&mut self) -> Vec<String> {
        let detection = self.store.detect(&self.known).unwrap();
        let told = tell(&detection.observations);
        self.known.learn(detection.observations);
        told
    }

    fn stage(&self, id: &str, state: &ItemState, content: &str) -> Result<Staged, ItemError> {
        let header = ItemDataHeader {
            properties: state.properties.clone(),
            content_size: content.len() as u64,
            content_digest: Some(state.digest),
        };
        let mut staging = self.store.stage(&ItemId::from(id), &header)?;
        staging.write_all(content.as_bytes()).unwrap();
        staging.finish()
    }

    fn put(&mut self, id: &str, state: &ItemState, content: &str, replaces: &Replaces) -> Result<Applied, ItemError> {
        let staged = self.stage(id, state, content)?;
        self.store.sync_staged().unwrap();
        let applied = self.store.put(&ItemId::from(id), staged, state, replaces)?;
        if let Applied::Done(fingerprint) = &applied {
            let item = KnownItem { state: state.clone(), fingerprint: fingerprint.clone(), deleted: false };
            self.known.0.insert(ItemId::from(id), item);
        }
        self.store.sync_applied().unwrap();
        Ok(applied)
    }

    /// Names left in the holding area.
    fn held(&self) -> usize {
        fs::read_dir(self.root().join(".synclave/tmp")).unwrap().count()
    }
}

/// By item.
fn tell(observations: &[Observation]) -> Vec<String> {
    let tell = |observation: &Observation| match observation {
        Observation::Present { id, .. } => (id.clone(), format!("+{id}")),
        Observation::Missing { id } => (id.clone(), format!("-{id}")),
    };
    let mut told: Vec<_> = observations.iter().map(tell).collect();
    told.sort_unstable();
    told.into_iter().map(|(_, text)| text).collect()
}

/// Dates a file into the past; its ctime stays now, so that a scan still finds it racy.
fn age(path: &Path) {
    let file = fs::File::open(path).unwrap();
    file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::new(1_600_000_000, 123_456_789)).unwrap();
}

fn file(content: &str, mode: &str) -> ItemState {
    ItemState {
        properties: properties(&[("kind", "file"), ("mode", mode), ("mtime", "1500000000.000000007")]),
        size: content.len() as u64,
        digest: content::digest(content.as_bytes()),
        modification_time: Some(jiff::Timestamp::new(1_500_000_000, 7).unwrap()),
    }
}

fn directory(mode: &str) -> ItemState {
    let properties = properties(&[("kind", "directory"), ("mode", mode)]);
    ItemState { properties, size: 0, digest: content::digest(b""), modification_time: None }
}

fn link(target: &str) -> ItemState {
    let state = file(target, "");
    ItemState { properties: properties(&[("kind", "symlink")]), ..state }
}

fn properties(pairs: &[(&str, &str)]) -> Properties {
    Arc::new(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
}

fn mode_of(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn first_scan_tells_every_carried_item_with_its_state() {
    let mut f = Fixture::new();
    f.write("a/b", "one");
    f.write("a.txt", "two");
    symlink("/etc/passwd", f.root().join("link")).unwrap();
    fs::set_permissions(f.root().join("a/b"), fs::Permissions::from_mode(0o4751)).unwrap();

    assert_eq!(f.scan(), ["+a", "+a.txt", "+a/b", "+link"]);

    let state = f.known.item("a/b").state;
    assert_eq!(state.properties, properties(&[("kind", "file"), ("mode", "4751"), ("mtime", "1600000000.123456789")]));
    assert_eq!((state.size, state.digest), (3, content::digest(b"one")));
    assert_eq!(state.modification_time, Some(jiff::Timestamp::new(1_600_000_000, 123_456_789).unwrap()));
    let link = f.known.item("link").state;
    assert_eq!((link.properties.len(), link.size, link.digest), (1, 11, content::digest(b"/etc/passwd")));
    assert_eq!(f.known.item("a").state.modification_time, None);
}

#[test]
fn edits_deletions_and_changes_of_kind_are_told() {
    let mut f = Fixture::new();
    for name in ["edited", "deleted", "chmod", "dir/child", "to-dir", "to-fifo"] {
        f.write(name, "x");
    }
    f.scan();
    f.write("edited", "y");
    fs::remove_file(f.root().join("deleted")).unwrap();
    fs::set_permissions(f.root().join("chmod"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::remove_dir_all(f.root().join("dir")).unwrap();
    f.write("dir", "now a file");
    fs::remove_file(f.root().join("to-dir")).unwrap();
    fs::create_dir(f.root().join("to-dir")).unwrap();
    fs::remove_file(f.root().join("to-fifo")).unwrap();
    make_fifo(&f.root().join("to-fifo"));

    let detection = f.store.detect(&f.known).unwrap();
    assert_eq!(
        tell(&detection.observations),
        ["+chmod", "-deleted", "+dir", "-dir/child", "+edited", "+to-dir", "-to-fifo"]
    );
    assert_eq!(detection.skipped, [Skipped { display_name: "to-fifo".into(), reason: "is a FIFO".into() }]);
}

fn make_fifo(path: &Path) {
    rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
    assert!(fs::symlink_metadata(path).unwrap().file_type().is_fifo());
}

#[test]
fn scanned_content_is_read_again_until_its_times_are_two_seconds_older_than_the_scan() {
    let mut f = Fixture::new();
    f.write("a", "x");
    f.scan();
    let young = Stamp::decode(&f.known.item("a").fingerprint).unwrap();
    assert!(young.is_racy(), "its ctime is now");
    assert_eq!(f.scan(), ["+a"]);

    // As if it had been recorded later: only then do equal facts prove anything.
    let at = |seconds| Stamp { recorded: young.facts.ctime.plus_seconds(seconds), ..young };
    assert!(at(1).is_racy());
    assert!(!at(2).is_racy());
    f.known.0.get_mut(&ItemId::from("a")).unwrap().fingerprint = at(2).encode();
    assert_eq!(f.scan(), [""; 0]);
    assert_eq!(Stamp::decode(&at(2).encode()), Some(at(2)));
}

#[test]
fn mtime_in_the_future_is_not_read_by_every_scan_but_a_young_one_is() {
    let f = Fixture::new();
    f.write("a", "x");
    let mut facts = Facts::at(f.store.tree.root(), b"a").unwrap();
    let recorded = facts.ctime.plus_seconds(100);
    facts.mtime = recorded.plus_seconds(1_000_000);
    for origin in [Origin::Scanned, Origin::Own] {
        assert!(!Stamp { facts, recorded, origin }.is_racy());
        let facts = Facts { mtime: recorded.plus_seconds(-1), ..facts };
        assert!(Stamp { facts, recorded, origin }.is_racy());
    }
    assert!(Stamp { facts, recorded, origin: Origin::Doubtful }.is_racy());
}

#[test]
fn what_was_put_is_unchanged_to_the_next_scan_and_an_edit_of_it_is_seen() {
    let mut f = Fixture::new();
    f.put("d", &directory("755"), "", &Replaces::Nothing).unwrap();
    f.put("d/a", &file("hello", "640"), "hello", &Replaces::Nothing).unwrap();
    f.put("d/l", &link("../../x"), "../../x", &Replaces::Nothing).unwrap();
    assert_eq!(f.scan(), [""; 0]);
    assert_eq!(f.read("d/a"), "hello");
    let metadata = fs::metadata(f.root().join("d/a")).unwrap();
    assert_eq!((metadata.mode() & 0o7777, metadata.mtime(), metadata.mtime_nsec()), (0o640, 1_500_000_000, 7));
    assert_eq!(fs::read_link(f.root().join("d/l")).unwrap(), Path::new("../../x"));
    assert_eq!(f.held(), 0);

    fs::write(f.root().join("d/a"), "jello").unwrap();
    assert_eq!(f.scan(), ["+d/a"]);
    // What a scan would say of what was put is exactly what was asked for.
    let staged = f.known.item("d/l");
    f.known.0.remove(&ItemId::from("d/l"));
    f.scan();
    assert_eq!(f.known.item("d/l").state, staged.state);
}

#[test]
fn put_over_replaces_what_is_known_and_gives_back_what_is_not() {
    let mut f = Fixture::new();
    f.write("a", "old");
    f.scan();
    let known = Replaces::Item(f.known.item("a"));
    f.put("a", &file("new", "644"), "new", &known).unwrap();
    assert_eq!(f.read("a"), "new");

    // The metadata still says "new"; a user has written something of the same size and with the same mtime.
    let known = Replaces::Item(f.known.item("a"));
    fs::write(f.root().join("a"), "NEW").unwrap();
    let mtime = std::time::UNIX_EPOCH + std::time::Duration::new(1_500_000_000, 7);
    fs::File::open(f.root().join("a")).unwrap().set_modified(mtime).unwrap();
    assert_eq!(f.put("a", &file("x", "644"), "x", &known), Err(ItemError::Changed));
    assert_eq!(f.read("a"), "NEW");
    assert_eq!(f.store.delete(&ItemId::from("a"), &f.known.item("a")), Err(ItemError::Changed));
    assert_eq!(f.read("a"), "NEW");

    // Created by a user where nothing is known, and gone where something is.
    assert_eq!(f.put("a", &file("x", "644"), "x", &Replaces::Nothing), Err(ItemError::Changed));
    fs::remove_file(f.root().join("a")).unwrap();
    assert_eq!(f.put("a", &file("x", "644"), "x", &known), Err(ItemError::Changed));
    f.store.end_session();
    assert_eq!(f.held(), 0);
}

#[test]
fn edit_between_the_look_and_the_step_goes_back() {
    let mut f = Fixture::new();
    f.write("a", "old");
    f.scan();
    let id = ItemId::from("a");
    let known = f.known.item("a");
    let path = f.store.path_of(&id).unwrap();
    let (parent, facts) = f.store.tree.look(path).unwrap();
    let state = file("new", "644");
    let wanted = Attributes::of_state(&state).unwrap();
    let staged = f.stage("a", &state, "new").unwrap();
    let (entry, new, _) = f.store.holding.prepare(staged, &wanted).unwrap();
    let expected = change::Expected { facts, kind: Kind::File, since: Time::now(), must_read: false };

    fs::write(f.root().join("a"), "edited meanwhile").unwrap();
    let result = f.store.put_over(&parent, path, entry, &new, &expected, &known);
    assert_eq!(result.err(), Some(ItemError::Changed));
    assert_eq!(f.read("a"), "edited meanwhile");
    assert_eq!(f.held(), 0);
}

#[test]
fn hard_link_that_comes_or_goes_is_no_change() {
    let mut f = Fixture::new();
    f.write("a", "same");
    f.scan();
    fs::hard_link(f.root().join("a"), f.root().join("b")).unwrap();
    let known = Replaces::Item(f.known.item("a"));
    f.put("a", &file("new", "644"), "new", &known).unwrap();
    assert_eq!((f.read("a").as_str(), f.read("b").as_str()), ("new", "same"));
    assert_eq!(f.scan(), ["+b"]);
}

#[test]
fn file_becomes_directory_becomes_file_and_symlink() {
    let mut f = Fixture::new();
    f.put("a", &file("x", "644"), "x", &Replaces::Nothing).unwrap();
    let known = Replaces::Item(f.known.item("a"));
    f.put("a", &directory("750"), "", &known).unwrap();
    assert_eq!(mode_of(&f.root().join("a")), 0o750);

    f.write("a/child", "in the way");
    let known = Replaces::Item(f.known.item("a"));
    let refused = f.put("a", &file("y", "644"), "y", &known).unwrap_err();
    assert_eq!(refused, ItemError::InTheWay("directory a still holds something".into()));
    assert_eq!(f.read("a/child"), "in the way");
    assert_eq!(f.store.delete(&ItemId::from("a"), &f.known.item("a")), Ok(Applied::NotEmpty));

    fs::remove_file(f.root().join("a/child")).unwrap();
    f.put("a", &file("y", "600"), "y", &known).unwrap();
    let known = Replaces::Item(f.known.item("a"));
    f.put("a", &link("y"), "y", &known).unwrap();
    assert_eq!(fs::read_link(f.root().join("a")).unwrap(), Path::new("y"));
    let known = Replaces::Item(f.known.item("a"));
    f.put("a", &file("z", "600"), "z", &known).unwrap();
    assert_eq!(f.read("a"), "z");
    assert_eq!(f.scan(), [""; 0]);
}

#[test]
fn properties_change_without_content() {
    let mut f = Fixture::new();
    f.put("a", &file("x", "644"), "x", &Replaces::Nothing).unwrap();
    f.put("d", &directory("755"), "", &Replaces::Nothing).unwrap();
    let (a, d) = (ItemId::from("a"), ItemId::from("d"));
    let inode = fs::metadata(f.root().join("a")).unwrap().ino();

    let Ok(Applied::Done(fingerprint)) = f.store.set_properties(&a, &file("x", "600"), &f.known.item("a")) else {
        panic!("refused")
    };
    let stamp = Stamp::decode(&fingerprint).unwrap();
    assert!(!stamp.is_racy(), "only the mode changed");
    f.known.0.insert(a.clone(), KnownItem { state: file("x", "600"), fingerprint, deleted: false });
    f.store.set_properties(&d, &directory("700"), &f.known.item("d")).unwrap();
    assert_eq!(mode_of(&f.root().join("d")), 0o700);
    assert_eq!(fs::metadata(f.root().join("a")).unwrap().ino(), inode);

    let mut later = file("x", "600");
    Arc::make_mut(&mut later.properties).insert("mtime".into(), "-1.500000000".into());
    let Ok(Applied::Done(fingerprint)) = f.store.set_properties(&a, &later, &f.known.item("a")) else {
        panic!("refused")
    };
    assert!(Stamp::decode(&fingerprint).unwrap().is_racy(), "an edit could hide behind the new mtime");
    assert_eq!(fs::metadata(f.root().join("a")).unwrap().mtime(), -1);
    assert_eq!(f.store.set_properties(&a, &later, &f.known.item("a")), Err(ItemError::Changed));
}

#[test]
fn deleted_content_is_a_source_until_the_session_ends() {
    let mut f = Fixture::new();
    f.put("old", &file("payload", "644"), "payload", &Replaces::Nothing).unwrap();
    let known = f.known.item("old");
    let (old, new) = (ItemId::from("old"), ItemId::from("new"));

    // From the live file, then from what was deleted, also when another name was asked for.
    assert!(f.store.stage_copy(&new, &old, &known).is_ok());
    assert!(matches!(f.store.delete(&old, &known), Ok(Applied::Done(_))));
    assert!(!f.root().join("old").exists());
    f.write("unrelated", "PAYLOAD");
    assert!(f.store.stage_copy(&new, &ItemId::from("unrelated"), &known).is_ok());
    let staged = f.store.stage_copy(&new, &old, &known).unwrap();
    f.store.sync_staged().unwrap();
    f.store.put(&new, staged, &file("payload", "755"), &Replaces::Nothing).unwrap();
    assert_eq!((f.read("new").as_str(), mode_of(&f.root().join("new"))), ("payload", 0o755));

    f.store.end_session();
    assert_eq!(f.held(), 0);
    fs::remove_file(f.root().join("new")).unwrap();
    assert_eq!(f.store.stage_copy(&new, &old, &known), Err(ItemError::Changed));
    assert!(matches!(f.store.delete(&old, &known), Ok(Applied::Done(_))), "gone already");
}

/// Deletes `old`, which has `payload` in it, and puts its content at `new`; the inodes of both.
fn rename(f: &mut Fixture, meanwhile: impl FnOnce(&Fixture)) -> (u64, Result<u64, ItemError>) {
    f.store.begin_section();
    let header = ItemDataHeader { properties: directory("755").properties, content_size: 0, content_digest: None };
    let items = [("d", directory("755"), ""), ("d/new", file("payload", "640"), "payload")];
    let inode = fs::metadata(f.root().join("old")).unwrap().ino();
    let known = f.known.item("old");
    assert!(matches!(f.store.delete(&ItemId::from("old"), &known), Ok(Applied::Done(_))));
    f.known.0.remove(&ItemId::from("old"));
    let container = f.store.stage_container(&ItemId::from("d"), &header).unwrap();
    let copy = f.store.stage_copy(&ItemId::from("d/new"), &ItemId::from("old"), &known).unwrap();
    meanwhile(f);
    let result = put_section(f, &items, vec![Some(container), Some(copy)]).remove(1);
    (inode, result.map(|_| fs::metadata(f.root().join("d/new")).unwrap().ino()))
}

/// More of it than one thread removes.
#[test]
fn what_a_session_deleted_is_gone_when_it_ends() {
    const FILES: usize = 5 * WORTH_A_REMOVER / 2;
    let mut f = Fixture::new();
    let names: Vec<_> = (0..FILES).map(|number| number.to_string()).collect();
    names.iter().for_each(|name| f.write(name, name));
    f.scan();
    for name in &names {
        assert!(matches!(f.store.delete(&ItemId::from(name.as_str()), &f.known.item(name)), Ok(Applied::Done(_))));
    }
    assert_eq!(f.held(), FILES);
    f.store.end_session();
    assert_eq!(f.held(), 0);
}

#[test]
fn content_that_was_deleted_and_comes_again_is_moved() {
    let mut f = Fixture::new();
    f.put("old", &file("payload", "644"), "payload", &Replaces::Nothing).unwrap();
    let (old, new) = rename(&mut f, |_| {});
    assert_eq!(new, Ok(old));
    assert_eq!((f.read("d/new").as_str(), mode_of(&f.root().join("d/new"))), ("payload", 0o640));
    assert!(f.scan().is_empty());
    f.store.end_session();
    assert_eq!(f.held(), 0);
}

#[test]
fn content_with_another_name_or_of_a_moment_ago_is_copied() {
    for is_young in [false, true] {
        let mut f = Fixture::new();
        f.put("old", &file("payload", "644"), "payload", &Replaces::Nothing).unwrap();
        if is_young {
            fs::write(f.root().join("old"), "payload").unwrap();
        } else {
            fs::hard_link(f.root().join("old"), f.root().join("other")).unwrap();
        }
        f.scan();
        let (old, new) = rename(&mut f, |_| {});
        assert_ne!(new, Ok(old));
        assert_eq!(f.read("d/new"), "payload");
    }
}

/// Whoever has a file open when it is renamed at the other side writes to what it has become, or the rename waits.
#[test]
fn write_to_content_that_is_moved_is_seen() {
    let mut f = Fixture::new();
    f.put("old", &file("payload", "644"), "payload", &Replaces::Nothing).unwrap();
    let mut open = fs::OpenOptions::new().write(true).open(f.root().join("old")).unwrap();
    let (_, new) = rename(&mut f, |_| open.write_all(b"PAY").unwrap());
    assert!(matches!(new, Err(ItemError::Failed(_))), "{new:?}");
    assert!(!f.root().join("d/new").exists());

    let mut f = Fixture::new();
    f.put("old", &file("payload", "644"), "payload", &Replaces::Nothing).unwrap();
    let mut open = fs::OpenOptions::new().write(true).open(f.root().join("old")).unwrap();
    let (old, new) = rename(&mut f, |_| {});
    assert_eq!(new, Ok(old));
    open.write_all(b"PAY").unwrap();
    assert_eq!(f.scan(), ["+d/new"]);
    assert_eq!(f.known.item("d/new").state.digest, content::digest(b"PAYload"));
}

#[test]
fn copied_content_may_be_that_of_another_kind() {
    let mut f = Fixture::new();
    f.put("text", &file("target", "644"), "target", &Replaces::Nothing).unwrap();
    f.put("empty", &file("", "644"), "", &Replaces::Nothing).unwrap();
    let staged = f.store.stage_copy(&ItemId::from("l"), &ItemId::from("text"), &f.known.item("text")).unwrap();
    f.store.put(&ItemId::from("l"), staged, &link("target"), &Replaces::Nothing).unwrap();
    assert_eq!(fs::read_link(f.root().join("l")).unwrap(), Path::new("target"));
    let staged = f.store.stage_copy(&ItemId::from("d"), &ItemId::from("empty"), &f.known.item("empty")).unwrap();
    f.store.put(&ItemId::from("d"), staged, &directory("711"), &Replaces::Nothing).unwrap();
    assert_eq!(mode_of(&f.root().join("d")), 0o711);
}

#[test]
fn hostile_ids_and_symlinks_never_lead_out() {
    let mut f = Fixture::new();
    let outside = f.directory.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "secret").unwrap();
    symlink("../outside", f.root().join("out")).unwrap();
    symlink("../outside/secret", f.root().join("leaf")).unwrap();
    f.scan();
    let known = KnownItem { state: file("secret", "644"), fingerprint: Fingerprint::default(), deleted: false };
    let long = "x/".repeat(2048) + "x";
    let absolute = outside.join("new").to_str().unwrap().to_owned();
    let malformed = [
        "",
        ".",
        "..",
        "/",
        "//",
        "a/",
        "/a",
        "a//b",
        "a/./b",
        "../outside/new",
        "a/../../outside/new",
        "out/../x",
        ".synclave",
        "d/.synclave/metadata.db",
        ".synclave/lock",
        ".synclave/tmp/1",
        "a\0b",
        &long,
        &absolute,
    ];
    for id in malformed.into_iter().chain(["out/new", "out/secret", "leaf/x", "leaf", "out"]) {
        let item = ItemId::from(id);
        let is_malformed = malformed.contains(&id);
        let staged = f.stage(id, &file("evil", "777"), "evil");
        if is_malformed {
            assert!(matches!(staged, Err(ItemError::Failed(_))), "{id}");
        } else {
            let staged = staged.unwrap();
            for (staged, replaces) in [
                (staged, Replaces::Nothing),
                (f.stage(id, &file("evil", "777"), "evil").unwrap(), Replaces::Item(known.clone())),
            ] {
                assert!(f.store.put(&item, staged, &file("evil", "777"), &replaces).is_err(), "{id}");
            }
        }
        assert!(f.store.set_properties(&item, &file("secret", "777"), &known).is_err(), "{id}");
        // A place that cannot be reached holds nothing that could be deleted.
        assert!(!matches!(f.store.delete(&item, &known), Ok(Applied::NotEmpty)), "{id}");
        assert!(f.store.open(&item, &known).is_err(), "{id}");
        assert!(!f.store.is_unchanged(&item, &known), "{id}");
        assert!(f.store.stage_copy(&ItemId::from("copy"), &item, &known).is_err(), "{id}");
    }
    f.store.end_session();
    let names: Vec<_> = fs::read_dir(f.directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    assert_eq!(fs::read_to_string(outside.join("secret")).unwrap(), "secret");
    assert_eq!(mode_of(&outside.join("secret")) & 0o7000, 0);
    assert_eq!(f.scan().iter().filter(|told| told.starts_with('-')).count(), 0);
}

#[test]
fn without_openat2_the_same_paths_open_and_the_same_do_not() {
    let f = Fixture::new();
    f.write("a/b/c", "x");
    symlink("b", f.root().join("a/link")).unwrap();
    let tree = &f.store.tree;
    for openat2_is_missing in [false, true] {
        tree.without_openat2.store(openat2_is_missing, std::sync::atomic::Ordering::Relaxed);
        assert!(tree.open_at(b"a/b/c", OFlags::RDONLY).is_ok());
        assert!(tree.open_parent(b"").is_ok());
        assert_eq!(tree.open_at(b"a/link/c", OFlags::RDONLY).err(), Some(Errno::LOOP));
        assert_eq!(tree.open_at(b"a/link", OFlags::RDONLY).err(), Some(Errno::LOOP));
        assert_eq!(tree.open_at(b"a/x/c", OFlags::RDONLY).err(), Some(Errno::NOENT));
        assert_eq!(tree.open_at(b"a/b/c/d", OFlags::RDONLY).err(), Some(Errno::NOTDIR));
    }
}

#[test]
fn odd_names_are_carried() {
    let mut f = Fixture::new();
    let names: [&[u8]; 4] = [b"\xff\xfe not utf-8", b"new\nline", &[b'n'; 255], b"..."];
    for name in names {
        fs::write(f.root().join(std::ffi::OsStr::from_bytes(name)), "x").unwrap();
    }
    assert_eq!(f.scan().len(), 4);
    for name in names {
        let id = ItemId::from(name);
        let known = f.known.get(&id).unwrap();
        let mut content = String::new();
        f.store.open(&id, &known).unwrap().read_to_string(&mut content).unwrap();
        assert_eq!(content, "x");
        assert!(f.store.is_unchanged(&id, &known));
        assert!(matches!(f.store.delete(&id, &known), Ok(Applied::Done(_))));
    }
    let too_long = "n".repeat(256);
    assert!(matches!(f.put(&too_long, &file("x", "644"), "x", &Replaces::Nothing), Err(ItemError::Failed(_))));
}

#[test]
fn paths_too_long_to_carry_are_skipped_and_not_missing() {
    let mut f = Fixture::new();
    let name = "d".repeat(250);
    let mut current = fs::File::open(f.root()).map(OwnedFd::from).unwrap();
    for _ in 0..17 {
        rustix::fs::mkdirat(&current, name.as_str(), Mode::RWXU).unwrap();
        current = rustix::fs::openat(&current, name.as_str(), OFlags::RDONLY, Mode::empty()).unwrap();
    }
    assert_eq!(f.scan().len(), 16);
    let detection = f.store.detect(&f.known).unwrap();
    assert!(detection.observations.is_empty());
    assert_eq!(detection.skipped.len(), 1);
    assert!(detection.skipped[0].reason.contains("4095"));
}

#[test]
fn only_a_complete_listing_shows_that_something_is_missing() {
    let found = |looked: &[(&[u8], bool)]| {
        let mut found = scan::Found::default();
        found.looked_into.extend(looked.iter().map(|(path, complete)| (path.to_vec(), *complete)));
        found
    };
    let partly = found(&[(b"", true), (b"d", false), (b"e", true)]);
    assert!(!partly.shows_missing(b"d/a") && !partly.shows_missing(b"d/x/y"));
    assert!(partly.shows_missing(b"e/b") && partly.shows_missing(b"gone/x/y"));
    assert!(!found(&[(b"", false)]).shows_missing(b"e/b"));
}

#[test]
fn unreadable_directory_and_file_are_skipped() {
    if rustix::process::geteuid().is_root() {
        return; // Root reads everything.
    }
    let mut f = Fixture::new();
    f.write("d/a", "x");
    f.write("b", "x");
    f.scan();
    for name in ["d", "b"] {
        fs::set_permissions(f.root().join(name), fs::Permissions::from_mode(0o0)).unwrap();
    }
    let detection = f.store.detect(&f.known).unwrap();
    fs::set_permissions(f.root().join("d"), fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(tell(&detection.observations), ["+d"], "its mode");
    assert_eq!(detection.unreadable.len(), 2);
    assert_eq!(detection.skipped, [], "which are never carried");
}

#[test]
fn write_protected_directory_takes_items_and_keeps_its_mode() {
    let mut f = Fixture::new();
    f.put("d", &directory("555"), "", &Replaces::Nothing).unwrap();
    f.put("d/a", &file("x", "0"), "x", &Replaces::Nothing).unwrap();
    f.put("d/sub", &directory("500"), "", &Replaces::Nothing).unwrap();
    assert_eq!(mode_of(&f.root().join("d")), 0o555);
    assert_eq!(mode_of(&f.root().join("d/sub")), 0o500);
    let (a, sub) = (ItemId::from("d/a"), ItemId::from("d/sub"));
    f.store.set_properties(&a, &file("x", "400"), &f.known.item("d/a")).unwrap();
    assert!(f.store.delete(&sub, &f.known.item("d/sub")).is_ok());
    assert_eq!(mode_of(&f.root().join("d")), 0o555);
    fs::set_permissions(f.root().join("d"), fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn root_that_is_gone_or_replaced_is_no_deletion() {
    let f = Fixture::new();
    let reason = |f: &Fixture| f.store.detect(&f.known).unwrap_err().reason;
    let aside = f.directory.path().join("aside");
    fs::rename(f.root(), &aside).unwrap();
    assert_eq!(reason(&f), "ROOT_MISSING");
    fs::create_dir(f.root()).unwrap();
    assert_eq!(reason(&f), "ROOT_MISSING");
}

#[test]
fn store_is_locked_and_knows_that_it_was_copied() {
    let f = Fixture::new();
    let state_dir = FileStore::default_state_dir(&f.root());
    let in_use = FileStore::open(&f.root(), &state_dir).unwrap_err();
    assert_eq!(in_use.reason, "STORE_IN_USE");
    let copy = f.directory.path().join("copy");
    fs::create_dir_all(copy.join(".synclave")).unwrap();
    let copied = FileStore::open(&copy, &FileStore::default_state_dir(&copy)).unwrap();
    assert_ne!(copied.identity(), f.store.identity());
    let (root, identity) = (f.root(), f.store.identity());
    drop(f.store);
    assert_eq!(FileStore::open(&root, &state_dir).unwrap().identity(), identity);
}

#[test]
fn outside_state_directory_belongs_to_one_root() {
    let directory = tempfile::tempdir().unwrap();
    let [root, other, state] = ["root", "other", "state"].map(|name| directory.path().join(name));
    fs::create_dir(&root).unwrap();
    fs::create_dir(&other).unwrap();
    drop(FileStore::open(&root, &state).unwrap());
    assert!(!root.join(".synclave").exists());
    assert_eq!(FileStore::open(&other, &state).unwrap_err().reason, "ROOT_MISSING");
    assert!(FileStore::open(&root, &state).is_ok());
}

#[test]
fn state_directory_inside_is_not_part_of_the_tree() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("meta/data");
    fs::create_dir(directory.path().join(".synclave")).unwrap();
    fs::write(directory.path().join(".synclave/x"), "x").unwrap();
    let store = FileStore::open(directory.path(), &state).unwrap();
    assert_eq!(tell(&store.detect(&Memory::default()).unwrap().observations), ["+meta"]);
    let staged = store.stage(&ItemId::from("meta/data/lock"), &ItemDataHeader::default());
    assert!(matches!(staged, Err(ItemError::Failed(_))));
}

#[test]
fn opening_what_is_no_directory_is_one_clear_line() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x");
    let open = || FileStore::open(&path, &directory.path().join("state")).unwrap_err();
    assert_eq!(open().reason, "ROOT_MISSING");
    fs::write(&path, "").unwrap();
    assert_eq!(open().reason, "NOT_A_DIRECTORY");
    let blocked = FileStore::open(directory.path(), &path.join("state")).unwrap_err();
    assert!(blocked.message.contains("--state-dir"), "{blocked}");
}

#[test]
fn staging_that_is_not_finished_or_not_as_announced_leaves_nothing() {
    let f = Fixture::new();
    let header = |size| ItemDataHeader { content_size: size, ..ItemDataHeader::default() };
    let id = ItemId::from("a");
    let mut staging = f.store.stage(&id, &header(4)).unwrap();
    staging.write_all(b"abc").unwrap();
    assert_eq!(f.held(), 1);
    drop(staging);
    assert_eq!(f.held(), 0);
    let mut staging = f.store.stage(&id, &header(4)).unwrap();
    assert!(staging.write_all(b"abcde").is_err());
    assert!(matches!(staging.finish(), Err(ItemError::Failed(_))));
    assert!(matches!(f.store.stage(&id, &header(u64::MAX >> 1)), Err(ItemError::Failed(_))));
    for (name, value) in [("kind", "socket"), ("mode", "17777"), ("mode", "rwx"), ("mtime", "1.5")] {
        let header = ItemDataHeader { properties: properties(&[(name, value)]), ..ItemDataHeader::default() };
        assert!(matches!(f.store.stage(&id, &header), Err(ItemError::Failed(_))), "{value}");
    }
    assert_eq!(f.held(), 0);

    fs::write(f.root().join(".synclave/tmp/7"), "left by a crash").unwrap();
    let root = f.root();
    drop(f.store);
    drop(FileStore::open(&root, &FileStore::default_state_dir(&root)).unwrap());
    assert_eq!(fs::read_dir(root.join(".synclave/tmp")).unwrap().count(), 0);
}

#[test]
fn missing_parent_is_in_the_way() {
    let mut f = Fixture::new();
    f.write("file", "x");
    let put = |f: &mut Fixture, id| f.put(id, &file("x", "644"), "x", &Replaces::Nothing).unwrap_err();
    assert_eq!(put(&mut f, "no/a"), ItemError::InTheWay("directory no does not exist".into()));
    assert_eq!(put(&mut f, "file/a"), ItemError::InTheWay("file is not a directory".into()));
}

/// A directory stays open for a while, and may be gone or another one when its name is used again.
#[test]
fn directory_that_went_after_it_was_used_takes_nothing_more() {
    for replaced_by in ["nothing", "file", "symlink", "directory"] {
        let mut f = Fixture::new();
        f.write("d/old", "old");
        f.scan();
        let d = f.root().join("d");
        let outside = f.directory.path().join("outside");
        fs::create_dir(&outside).unwrap();
        f.put("d/first", &file("1", "644"), "1", &Replaces::Nothing).unwrap();
        fs::remove_dir_all(&d).unwrap();
        match replaced_by {
            "file" => fs::write(&d, "file").unwrap(),
            "symlink" => symlink(&outside, &d).unwrap(),
            "directory" => fs::create_dir(&d).unwrap(),
            _ => {}
        }
        let mut put = || f.put("d/next", &file("2", "644"), "2", &Replaces::Nothing);
        match (replaced_by, put()) {
            ("directory", Ok(_)) => {}
            ("directory", Err(error)) => {
                assert_eq!(error, ItemError::Changed);
                put().unwrap();
            }
            (_, put) => assert!(matches!(put, Err(ItemError::InTheWay(_))), "{replaced_by}: {put:?}"),
        }
        assert_eq!(d.join("next").exists(), replaced_by == "directory");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    }
}

#[test]
fn a_look_opens_no_directory_that_was_replaced_before_it_began() {
    let mut f = Fixture::new();
    f.write("d/f", "old");
    f.scan();
    f.put("d/g", &file("g", "644"), "g", &Replaces::Nothing).unwrap();
    fs::rename(f.root().join("d"), f.directory.path().join("elsewhere")).unwrap();
    f.write("d/f", "new");
    assert_eq!(f.scan(), ["+d/f", "-d/g"]);
    assert_eq!(f.known.item("d/f").state.digest, content::digest(b"new"));
}

#[test]
fn many_items_are_made_durable_together() {
    let mut f = Fixture::new();
    let ids: Vec<String> = (0..50).map(|number| format!("d{}/f", number)).collect();
    for id in &ids {
        f.put(id.split_once('/').unwrap().0, &directory("755"), "", &Replaces::Nothing).unwrap();
    }
    let staged: Vec<_> = ids.iter().map(|id| f.stage(id, &file(id, "644"), id).unwrap()).collect();
    f.store.sync_staged().unwrap();
    for (id, staged) in ids.iter().zip(staged) {
        f.store.put(&ItemId::from(id.as_str()), staged, &file(id, "644"), &Replaces::Nothing).unwrap();
    }
    f.store.sync_applied().unwrap();
    assert_eq!(f.scan().len(), 50);
    assert_eq!(f.held(), 0);
}

#[test]
fn conflict_copies_have_the_same_name_everywhere() {
    let f = Fixture::new();
    let mut loser = file("x", "644");
    loser.modification_time = Some("2026-11-20T23:05:09.5Z".parse().unwrap());
    loser.digest.0[..3].copy_from_slice(&[0xab, 0x01, 0xff]);
    let name = |id: &str, attempt| f.store.conflict_copy_id(&ItemId::from(id), &loser, attempt).unwrap().to_string();
    let mark = ".conflict-20261120-230509-ab01ff";
    for (id, copy) in [
        ("a.txt", format!("a{mark}.txt")),
        ("d.d/a", format!("d.d/a{mark}")),
        (".bashrc", format!(".bashrc{mark}")),
        ("x/.config.json", format!("x/.config{mark}.json")),
        ("a.tar.gz", format!("a.tar{mark}.gz")),
        ("a.conflict-20200101-000000-123abc.txt", format!("a{mark}.txt")),
        ("a.conflict-20200101-000000-123abc-12.txt", format!("a{mark}.txt")),
        ("a.conflict-20200101-000000-123abc", format!("a{mark}")),
        ("a.conflict-draft.txt", format!("a.conflict-draft{mark}.txt")),
        (".conflict-20200101-000000-123abc", format!(".conflict-20200101-000000-123abc{mark}")),
    ] {
        assert_eq!(name(id, 1), copy);
    }
    assert_eq!(name("a.txt", 3), format!("a{mark}-3.txt"));
    assert_eq!(f.store.conflict_copy_id(&ItemId::from("d"), &directory("755"), 1), None);

    let [one, two] = ["1", "2"].map(|end| name(&format!("d/{}{end}.txt", "ü".repeat(120)), 1));
    assert!(one.len() <= 257 && one.ends_with(&format!("{mark}.txt")) && one.starts_with("d/üüü"));
    assert_ne!(one, two);
    let broken = [&[0xff; 250][..], b".x"].concat();
    let copy = f.store.conflict_copy_id(&ItemId::from(broken), &loser, 1).unwrap();
    assert_eq!(copy.as_bytes().len(), 255);
}

#[test]
fn containers_go_from_the_nearest_outwards() {
    let f = Fixture::new();
    assert_eq!(f.store.containers(&ItemId::from("a/b/c")), [ItemId::from("a/b"), ItemId::from("a")]);
    assert_eq!(f.store.containers(&ItemId::from("a")), []);
}

#[test]
fn times_before_1970_keep_their_text() {
    for text in ["-1.500000000", "0.000000000", "1500000000.000000007", "-99999999999999.000000001"] {
        assert_eq!(Time::parse(text).unwrap().to_string(), text);
    }
    for text in ["", "1", "1.5", "1.-00000001", "1.0000000000", "x.000000000"] {
        assert_eq!(Time::parse(text), None, "{text}");
    }
    let time = Time::parse("-1.500000000").unwrap();
    assert_eq!(Time::from(time.timestamp().unwrap()), time);
}

/// Stages a new directory and what goes into it, as one section.
fn stage_section(f: &Fixture, items: &[(&str, ItemState, &str)]) -> Vec<Staged> {
    f.store.begin_section();
    let stage = |(id, state, content): &(&str, ItemState, &str)| {
        if !content.is_empty() {
            return f.stage(id, state, content).unwrap();
        }
        let header = ItemDataHeader {
            properties: state.properties.clone(),
            content_size: 0,
            content_digest: Some(state.digest),
        };
        f.store.stage_container(&ItemId::from(*id), &header).unwrap()
    };
    items.iter().map(stage).collect()
}

fn put_section(
    f: &mut Fixture,
    items: &[(&str, ItemState, &str)],
    staged: Vec<Option<Staged>>,
) -> Vec<Result<Applied, ItemError>> {
    let ids: Vec<_> = items.iter().map(|(id, ..)| ItemId::from(*id)).collect();
    let wanted: Vec<_> = staged.into_iter().enumerate().filter_map(|(at, staged)| Some((at, staged?))).collect();
    let at: Vec<usize> = wanted.iter().map(|(at, _)| *at).collect();
    let put =
        |(at, staged): (usize, Staged)| Put { id: &ids[at], staged, state: &items[at].1, replaces: Replaces::Nothing };
    f.store.sync_staged().unwrap();
    let results = f.store.put_all(wanted.into_iter().map(put).collect());
    f.store.sync_applied().unwrap();
    for (at, result) in at.into_iter().zip(&results) {
        if let Ok(Applied::Done(fingerprint)) = result {
            let item = KnownItem { state: items[at].1.clone(), fingerprint: fingerprint.clone(), deleted: false };
            f.known.0.insert(ids[at].clone(), item);
        }
    }
    results
}

fn section() -> [(&'static str, ItemState, &'static str); 5] {
    [
        ("d", directory("555"), ""),
        ("d/empty", file("", "600"), ""),
        ("d/e", directory("700"), ""),
        ("d/e/x", file("x", "4755"), "x"),
        ("d/y", file("y", "444"), "y"),
    ]
}

#[test]
fn new_directory_is_put_with_what_goes_into_it() {
    let mut f = Fixture::new();
    let staged = stage_section(&f, &section());
    // One name in the holding area: the rest is in it already.
    assert_eq!(f.held(), 1);
    assert!(f.scan().is_empty(), "nothing is visible yet");
    let results = put_section(&mut f, &section(), staged.into_iter().map(Some).collect());
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    assert_eq!((f.read("d/e/x"), f.read("d/y"), f.read("d/empty")), ("x".into(), "y".into(), String::new()));
    let modes = ["d", "d/e", "d/e/x", "d/y"].map(|path| mode_of(&f.root().join(path)));
    assert_eq!(modes, [0o555, 0o700, 0o4755, 0o444]);
    assert!(f.scan().is_empty(), "what was put is as recorded");
    f.store.end_session();
    assert_eq!(f.held(), 0);
}

#[test]
fn what_is_not_put_with_its_directory_does_not_become_visible() {
    let mut f = Fixture::new();
    let mut staged: Vec<_> = stage_section(&f, &section()).into_iter().map(Some).collect();
    staged[3] = None;
    let results = put_section(&mut f, &section(), staged);
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    assert!(f.root().join("d/e").exists() && !f.root().join("d/e/x").exists());
    assert!(f.scan().is_empty());

    // A directory that is left out, with something in it that is not.
    let mut f = Fixture::new();
    let mut staged: Vec<_> = stage_section(&f, &section()).into_iter().map(Some).collect();
    staged[2] = None;
    let results = put_section(&mut f, &section(), staged);
    assert_eq!(results.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, true, false, true]);
    assert!(f.root().join("d/y").exists() && !f.root().join("d/e").exists());
    assert!(f.scan().is_empty());
    f.store.end_session();
    assert_eq!(f.held(), 0);
}

#[test]
fn directory_that_a_user_made_meanwhile_takes_what_was_staged_for_it() {
    let mut f = Fixture::new();
    let staged = stage_section(&f, &section());
    f.write("d/mine", "mine");
    let results = put_section(&mut f, &section(), staged.into_iter().map(Some).collect());
    assert_eq!(results[0], Err(ItemError::Changed));
    assert!(results[1..].iter().all(Result::is_ok), "{results:?}");
    assert_eq!((f.read("d/mine"), f.read("d/e/x"), f.read("d/y")), ("mine".into(), "x".into(), "y".into()));
    f.known.0.remove(&ItemId::from("d"));
    assert_eq!(f.scan(), ["+d", "+d/mine"]);
    f.store.end_session();
    assert_eq!(f.held(), 0);
}

#[test]
fn next_section_goes_into_no_directory_of_the_one_before() {
    let mut f = Fixture::new();
    let staged = stage_section(&f, &section());
    f.store.begin_section();
    let late = f.stage("d/late", &file("late", "644"), "late").unwrap();
    put_section(&mut f, &section(), staged.into_iter().map(Some).collect());
    assert!(!f.root().join("d/late").exists());
    let id = ItemId::from("d/late");
    f.store.put(&id, late, &file("late", "644"), &Replaces::Nothing).unwrap();
    assert_eq!(f.read("d/late"), "late");
    assert_eq!(mode_of(&f.root().join("d")), 0o555);
}

#[test]
fn nest_that_a_crash_left_is_removed() {
    let f = Fixture::new();
    stage_section(&f, &section());
    let root = f.root();
    drop(f.store);
    assert!(fs::read_dir(root.join(".synclave/tmp")).unwrap().count() > 0);
    drop(FileStore::open(&root, &FileStore::default_state_dir(&root)).unwrap());
    assert_eq!(fs::read_dir(root.join(".synclave/tmp")).unwrap().count(), 0);
}

/// An item of a store that keeps no modes and times: what the file has of its own is no edit of it, and a user's edit is one.
#[test]
fn what_a_state_leaves_open_is_no_edit() {
    let mut f = Fixture::new();
    let bare = ItemState { properties: properties(&[("color", "red")]), modification_time: None, ..file("one", "644") };
    f.put("a", &bare, "one", &Replaces::Nothing).unwrap();
    let states = |f: &Fixture| -> Vec<ItemState> {
        let state = |observation| match observation {
            Observation::Present { state, .. } => state,
            Observation::Missing { id } => panic!("{id} is there"),
        };
        f.store.detect(&f.known).unwrap().observations.into_iter().map(state).collect()
    };
    // A look soon after it was written reads it once more.
    age(&f.root().join("a"));
    assert_eq!(states(&f)[..], std::slice::from_ref(&bare)[..]);
    fs::set_permissions(f.root().join("a"), fs::Permissions::from_mode(0o600)).unwrap();
    let state = &states(&f)[0];
    assert_eq!((&*state.properties["mode"], state.properties.get("color")), ("600", None));
    f.write("a", "two");
    assert_ne!(states(&f)[0].digest, bare.digest);
}

/// A replica below another one: its metadata, carried like an item, would take the place of those of its copy.
#[test]
fn the_state_of_a_replica_below_is_not_carried() {
    let mut f = Fixture::new();
    f.write("photos/a", "a");
    f.write("photos/.synclave/metadata.db", "what photos knows");
    assert_eq!(f.scan(), ["+photos", "+photos/a"]);
    let detection = f.store.detect(&f.known).unwrap();
    assert_eq!(detection.skipped.len(), 1, "{:?}", detection.skipped);
    assert_eq!(detection.skipped[0].display_name, "photos/.synclave");

    // One that was carried by an earlier release goes from the replica, and stays where it is, here and at a partner.
    let (id, was) = (ItemId::from("photos/.synclave/metadata.db"), f.known.item("photos/a"));
    f.known.0.insert(id.clone(), was.clone());
    assert!(matches!(f.store.delete(&id, &was), Ok(Applied::Done(_))));
    let told = f.scan();
    assert!(told.contains(&"-photos/.synclave/metadata.db".to_owned()), "{told:?}");
    assert_eq!(f.read("photos/.synclave/metadata.db"), "what photos knows");
}

#[test]
fn one_process_has_a_tree_wherever_its_state_is() {
    let f = Fixture::new();
    let elsewhere = f.directory.path().join("state");
    let error = FileStore::open(&f.root(), &elsewhere).unwrap_err();
    assert_eq!(error.reason, "STORE_IN_USE", "{error}");
    let root = f.root();
    drop(f.store);
    FileStore::open(&root, &elsewhere).unwrap();
}
