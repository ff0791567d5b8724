//! Trees of files as they are: read, compared, made and changed.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, FileTimes, Permissions};
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, mknodat, utimensat};
use sha2::{Digest as _, Sha256};

use super::content::Random;

/// Where a replica keeps what it knows; never carried.
pub const STATE: &str = ".synclave";

/// Whatever is carried of an entry.
#[derive(Clone, PartialEq, Eq)]
pub enum Entry {
    File { mode: u32, modified: (i64, i64), size: u64, digest: [u8; 32] },
    Directory { mode: u32 },
    Symlink { target: Vec<u8> },
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { mode, modified, size, digest } => {
                let [a, b, c, ..] = digest;
                write!(f, "file {mode:o} {}.{:09} {size} bytes {a:02x}{b:02x}{c:02x}…", modified.0, modified.1)
            }
            Self::Directory { mode } => write!(f, "directory {mode:o}"),
            Self::Symlink { target } => write!(f, "symlink to {}", target.escape_ascii()),
        }
    }
}

/// Entries by their path relative to the root; what is never carried is left out.
pub type Tree = BTreeMap<Vec<u8>, Entry>;

pub fn digest(content: &[u8]) -> [u8; 32] {
    Sha256::digest(content).into()
}

/// Reads a tree at rest.
pub fn read(root: &Path) -> Tree {
    let mut tree = Tree::new();
    read_into(root, Path::new(""), &mut tree).expect("the tree can be read");
    tree
}

fn read_into(root: &Path, directory: &Path, tree: &mut Tree) -> io::Result<()> {
    for entry in fs::read_dir(root.join(directory))? {
        let entry = entry?;
        let path = directory.join(entry.file_name());
        if path == Path::new(STATE) {
            continue;
        }
        let metadata = entry.metadata()?;
        let mode = metadata.mode() & 0o7777;
        let id = path.clone().into_os_string().into_vec();
        let kind = metadata.file_type();
        if kind.is_dir() {
            tree.insert(id, Entry::Directory { mode });
            read_into(root, &path, tree)?;
        } else if kind.is_symlink() {
            let target = fs::read_link(entry.path())?.into_os_string().into_vec();
            tree.insert(id, Entry::Symlink { target });
        } else if kind.is_file() {
            let digest = digest(&fs::read(entry.path())?);
            let modified = (metadata.mtime(), metadata.mtime_nsec());
            tree.insert(id, Entry::File { mode, modified, size: metadata.len(), digest });
        } else {
            assert!(kind.is_fifo() || kind.is_socket(), "made by no test: {}", entry.path().display());
        }
    }
    Ok(())
}

/// What is different, line by line; empty when nothing is.
pub fn differences(expected: &Tree, found: &Tree) -> Vec<String> {
    let mut lines = Vec::new();
    for (path, entry) in expected {
        match found.get(path) {
            Some(other) if other == entry => {}
            Some(other) => lines.push(format!("{}: {entry:?} is expected, not {other:?}", path.escape_ascii())),
            None => lines.push(format!("{}: {entry:?} is missing", path.escape_ascii())),
        }
    }
    for (path, entry) in found.iter().filter(|(path, _)| !expected.contains_key(*path)) {
        lines.push(format!("{}: {entry:?} should not be there", path.escape_ascii()));
    }
    lines
}

#[track_caller]
pub fn assert_same(expected: &Tree, found: &Tree, what: &str) {
    let lines = differences(expected, found);
    assert!(lines.is_empty(), "{what}: {} differences:\n{}", lines.len(), lines[..lines.len().min(30)].join("\n"));
}

#[track_caller]
pub fn assert_equal(a: &Path, b: &Path) {
    assert_same(&read(a), &read(b), &format!("{} and {}", a.display(), b.display()));
}

/// Paths whose name says that they are copies of a conflict.
pub fn conflict_copies(tree: &Tree) -> Vec<String> {
    let name = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
    tree.keys().map(|path| name(path)).filter(|path| path.contains(".conflict-")).collect()
}

/// The path of an entry.
pub fn path(root: &Path, id: &[u8]) -> PathBuf {
    root.join(OsStr::from_bytes(id))
}

/// Sets a file's modification time; before 1970 too.
pub fn set_modified(path: &Path, seconds: i64, nanoseconds: u32) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path, &times, AtFlags::empty()).expect("the time can be set");
}

/// Writes content with a modification time of so many seconds since 1970.
pub fn write_at(path: &Path, content: &[u8], seconds: u64) {
    fs::write(path, content).expect("written");
    let file = fs::File::options().write(true).open(path).expect("opens");
    let modified = UNIX_EPOCH + Duration::from_secs(seconds);
    file.set_times(FileTimes::new().set_modified(modified)).expect("the time can be set");
}

pub fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("the mode can be set");
}

/// `cp -a`.
pub fn copy(from: &Path, to: &Path) {
    let copied = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status().expect("cp runs");
    assert!(copied.success(), "cp -a {} {}", from.display(), to.display());
}

/// Removes whatever is there.
pub fn remove(path: &Path) {
    let directory = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
    if directory { fs::remove_dir_all(path) } else { fs::remove_file(path) }.expect("it is there");
}

/// Directories with files in them, `files` in all, under the top directories `left` and `right`.
pub fn generate(root: &Path, random: &mut Random, files: usize, max_size: u64) {
    let mut directories = vec![root.join("left"), root.join("right")];
    for top in &directories {
        fs::create_dir_all(top).expect("made");
    }
    for index in 0..files {
        let parent = directories[random.below(directories.len() as u64) as usize].clone();
        if random.chance(12) && parent.components().count() < root.components().count() + 8 {
            let directory = parent.join(format!("directory {index}"));
            fs::create_dir(&directory).expect("its name is new");
            directories.push(directory);
        }
        let file = parent.join(format!("file-{index}.{}", ["txt", "jpeg", "tar.gz", "rs"][index % 4]));
        let size = random.size(max_size);
        random.write(&file, size);
        if random.chance(4) {
            set_mode(&file, [0o600, 0o755, 0o444, 0o640][random.below(4) as usize]);
        }
        if random.chance(3) {
            set_modified(&file, random.below(2_000_000_000) as i64, random.below(1_000_000_000) as u32);
        }
    }
}

/// The entries that tools stumble over, in the directory `odd`.
pub fn add_oddities(root: &Path) {
    let odd = root.join("odd");
    fs::create_dir_all(odd.join("empty/empty/empty")).expect("made");
    fs::write(odd.join("target"), "inside").expect("written");
    for (name, target) in [
        ("link in", "target"),
        ("link to a directory", "empty"),
        ("link out", "../../outside"),
        ("absolute link", "/etc/hostname"),
        ("dangling", "nowhere/at/all"),
        ("loop", "loop"),
        ("link to the state", "../.synclave"),
    ] {
        symlink(target, odd.join(name)).expect("made");
    }
    symlink(OsStr::from_bytes(b"not \xFF utf-8"), odd.join("link to non-utf-8")).expect("made");
    let names: &[&[u8]] = &[
        b" leading and trailing ",
        b"-rf",
        b"--",
        b"*?[a-z]{x,y}",
        b"\"quoted\" 'twice' `thrice` $HOME",
        b"back\\slash",
        b"colon:semicolon;pipe|",
        b"line\nfeed",
        b"tab\tand\x01\x7F",
        b"CON",
        b"trailing dot.",
        b"...",
        b"..strange",
        b".hidden",
        b"#recycle",
        b"not \xFF\xFE utf-8 \x80",
        b"Case",
        b"case",
        "composed \u{e9}".as_bytes(),
        "decomposed e\u{301}".as_bytes(),
        "e\u{301}".as_bytes(),
        "\u{e9}".as_bytes(),
        "\u{1F30A} \u{202E}txt.exe".as_bytes(),
        b"half.conflict-",
        b".synclave-not",
        &[b'n'; 255],
        &[0xFE; 255],
    ];
    for (index, name) in names.iter().enumerate() {
        fs::write(odd.join(OsStr::from_bytes(name)), format!("content {index}")).expect("written");
    }
    fs::create_dir(odd.join(OsStr::from_bytes(b"directory \xC3"))).expect("made");
    fs::write(odd.join(OsStr::from_bytes(b"directory \xC3/\xA9")), "in it").expect("written");
    for (name, content, mode) in
        [("read-only", "r", 0o444), ("executable", "x", 0o755), ("nobody else", "m", 0o600), ("zero bytes", "", 0o644)]
    {
        fs::write(odd.join(name), content).expect("written");
        set_mode(&odd.join(name), mode);
    }
    fs::write(odd.join("zero bytes, too"), "").expect("written");
    fs::create_dir(odd.join("private")).expect("made");
    set_mode(&odd.join("private"), 0o700);
    for (name, seconds, nanoseconds) in
        [("old", 0, 1), ("before 1970", -86_400, 999_999_999), ("far away", 4_102_444_800, 123_456_789)]
    {
        fs::write(odd.join(name), name).expect("written");
        set_modified(&odd.join(name), seconds, nanoseconds);
    }
    let deep = (0..30).fold(odd.join("deep"), |path, level| path.join(format!("level {level}")));
    fs::create_dir_all(&deep).expect("made");
    fs::write(deep.join("bottom"), "deep down").expect("written");
    fs::hard_link(odd.join("target"), odd.join("hard link")).expect("made");
    let mode = Mode::RUSR | Mode::WUSR;
    mknodat(CWD, odd.join("fifo"), FileType::Fifo, mode, 0).expect("a FIFO can be made");
}
