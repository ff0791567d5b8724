//! Checks of directories and of where state is kept, before anything is begun.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::exit::Failure;

/// A directory to sync, checked: its path has no symlinks, `.` or `..` in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Root {
    path: PathBuf,
    exists: bool,
}

impl Root {
    /// A directory that must be there.
    pub(super) fn existing(path: &Path) -> Result<Self, Failure> {
        let metadata = fs::metadata(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Failure::usage(format!(
                "{}: there is no such directory; check the name, or make it first",
                path.display()
            )),
            _ => unusable(path, &error),
        })?;
        if !metadata.is_dir() {
            return Err(Failure::usage(format!(
                "{}: is not a directory; give the directory that it is in",
                path.display()
            )));
        }
        let path = fs::canonicalize(path).map_err(|error| unusable(path, &error))?;
        Ok(Self { path, exists: true })
    }

    /// A directory that is there, or whose parent is.
    pub(super) fn existing_or_new(path: &Path) -> Result<Self, Failure> {
        // A dangling symlink is there, and nothing can be made in its place.
        if fs::symlink_metadata(path).is_ok() {
            return Self::existing(path);
        }
        let parent = match path.parent() {
            Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
            Some(parent) => parent,
            None => return Self::existing(path),
        };
        let Some(name) = path.file_name() else { return Self::existing(path) };
        let parent = fs::canonicalize(parent).ok().filter(|parent| parent.is_dir()).ok_or_else(|| {
            Failure::usage(format!(
                "{}: neither it nor the directory that it would be in is there; check the name, or make {} first",
                path.display(),
                parent.display()
            ))
        })?;
        Ok(Self { path: parent.join(name), exists: false })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// False for one that is still to be made.
    pub(super) fn exists(&self) -> bool {
        self.exists
    }

    /// Makes the directory where it is new. Called after every check, so that a refused sync changes nothing.
    pub(super) fn create(&self) -> Result<(), Failure> {
        if self.exists {
            return Ok(());
        }
        match fs::create_dir(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                Err(Failure::failed(format!("{}: cannot be made: {error}", self.path.display())))
            }
            _ => Ok(()),
        }
    }
}

/// Refuses two roots that are one, or of which one holds the other: a sync would carry its own result along for ever.
/// Compared by path and by device and inode, which a bind mount does not hide.
pub(super) fn check_apart(a: &Root, b: &Root) -> Result<(), Failure> {
    let (a_path, b_path) = (a.path.display(), b.path.display());
    if a.path == b.path || (b.exists && identity(&a.path)? == identity(&b.path)?) {
        return Err(Failure::usage(format!("{a_path} and {b_path} are the same directory; give two different ones")));
    }
    for (inner, outer) in [(a, b), (b, a)] {
        if outer.exists && is_within(inner, outer)? {
            return Err(Failure::usage(format!(
                "{} is inside {}; give directories of which neither holds the other",
                inner.path.display(),
                outer.path.display()
            )));
        }
    }
    Ok(())
}

/// Refuses a state directory inside a root: each sync would find its own state changed.
pub(super) fn check_outside(data_dir: &Path, root: &Root) -> Result<(), Failure> {
    if !holds(root, data_dir)? {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "state would be kept in {}, which is inside {} and would be synced with it; name another place with --data-dir",
        data_dir.display(),
        root.path.display()
    )))
}

/// Refuses a place for temporary files inside a root that nothing is to be written in.
pub(super) fn check_scratch(scratch: &Path, root: &Root) -> Result<(), Failure> {
    if !holds(root, scratch)? {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "a dry run would write to {}, which is inside {}; name another place with TMPDIR",
        scratch.display(),
        root.path.display()
    )))
}

/// Whether a path, which need not be there, is in a root, or is it.
fn holds(root: &Root, path: &Path) -> Result<bool, Failure> {
    if !root.exists {
        return Ok(false);
    }
    let root_identity = identity(&root.path)?;
    let absolute = std::path::absolute(path).map_err(|error| unusable(path, &error))?;
    let mut there = absolute.ancestors().filter(|path| path.exists());
    Ok(there.any(|path| identity(path).is_ok_and(|it| it == root_identity)))
}

fn is_within(inner: &Root, outer: &Root) -> Result<bool, Failure> {
    let outer = identity(&outer.path)?;
    for ancestor in inner.path.ancestors().skip(1) {
        if identity(ancestor)? == outer {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Device and inode.
fn identity(path: &Path) -> Result<(u64, u64), Failure> {
    let metadata = fs::metadata(path).map_err(|error| unusable(path, &error))?;
    Ok((metadata.dev(), metadata.ino()))
}

fn unusable(path: &Path, error: &io::Error) -> Failure {
    Failure::usage(format!("{}: cannot be used: {error}; check its permissions", path.display()))
}

/// Where state is kept unless told otherwise: `$XDG_STATE_HOME/synclave`, else `~/.local/state/synclave`.
pub(super) fn data_dir(chosen: Option<PathBuf>) -> Result<PathBuf, Failure> {
    if let Some(chosen) = chosen {
        return Ok(chosen);
    }
    // The XDG specification has relative paths ignored.
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
        .map(|state| state.join("synclave"))
        .ok_or_else(|| Failure::usage("there is no home directory to keep state in; name a place with --data-dir"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(result: Result<impl std::fmt::Debug, Failure>, word: &str) {
        let failure = result.unwrap_err();
        assert!(failure.line().unwrap().contains(word), "{failure:?}");
        assert_eq!(failure.exit(), super::super::Exit::Usage);
    }

    #[test]
    fn a_root_must_be_a_directory_that_is_there() {
        let dir = tempfile::tempdir().unwrap();
        refused(Root::existing(&dir.path().join("gone")), "no such directory");
        fs::write(dir.path().join("file"), "").unwrap();
        refused(Root::existing(&dir.path().join("file")), "not a directory");
        refused(Root::existing_or_new(&dir.path().join("file")), "not a directory");
    }

    #[test]
    fn the_second_root_is_made_only_when_asked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new");
        let root = Root::existing_or_new(&path).unwrap();
        assert!(!path.exists());
        root.create().unwrap();
        assert!(path.is_dir());
        refused(Root::existing_or_new(&dir.path().join("no/new")), "would be in");
    }

    #[test]
    fn one_directory_under_two_names_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let a = dir.path().join("a");
        fs::create_dir(&a).unwrap();
        std::os::unix::fs::symlink(&a, dir.path().join("link")).unwrap();
        let root = Root::existing(&a).unwrap();
        refused(check_apart(&root, &Root::existing(&dir.path().join("link")).unwrap()), "same directory");
        refused(check_apart(&root, &Root::existing(&dir.path().join("a/../a")).unwrap()), "same directory");
    }

    #[test]
    fn nested_roots_are_refused_also_when_the_inner_is_new() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("a/b"));
        fs::create_dir_all(&b).unwrap();
        let outer = Root::existing(&a).unwrap();
        let inner = Root::existing(&b).unwrap();
        refused(check_apart(&outer, &inner), "inside");
        refused(check_apart(&inner, &outer), "inside");
        refused(check_apart(&outer, &Root::existing_or_new(&a.join("new")).unwrap()), "inside");
        let beside = Root::existing_or_new(&dir.path().join("ab")).unwrap();
        check_apart(&outer, &beside).unwrap();
    }

    #[test]
    fn state_is_not_kept_in_what_is_synced() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        fs::create_dir(&root).unwrap();
        let root = Root::existing(&root).unwrap();
        refused(check_outside(&root.path().join("not/there/yet"), &root), "--data-dir");
        refused(check_outside(root.path(), &root), "--data-dir");
        check_outside(&directory.path().join("beside"), &root).unwrap();
    }
}
