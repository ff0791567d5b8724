//! A sync that changes nothing: the same coordinator and providers, over copies of what is known and overlays of the trees.
//!
//! The databases are copied as files, each with its write-ahead log, while their locks are held, so that nobody writes them:
//! to open one, even to read it, can create files beside it. What a copy opens it recovers, as a sync would the original.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use super::exit::Failure;
use super::local::{LocalCoordinator, directory_endpoint};
use super::options::TombstoneAge;
use super::provider::member_name;
use super::roots::{self, Root};
use super::sync::{SyncEnd, SyncPlan};
use crate::coordinator::Coordinator;
use crate::knowledge::FilterRequest;
use crate::provider::sdk::{Options, ReplicaProvider};
use crate::provider::{CallError, Provider};
use crate::providers::file::{Contents, FileStore, OverlaidChange, Overlay};
use crate::session::Dial;
use crate::store;
use crate::types::Endpoint;

/// What a dry run runs on.
#[derive(Debug)]
pub(super) struct DryRun {
    replicas: Vec<Replica>,
    tombstone_age: TombstoneAge,
    scratch: Scratch,
}

#[derive(Debug)]
struct Replica {
    endpoint: Endpoint,
    member_name: String,
    /// What it takes.
    filters: Vec<FilterRequest>,
    overlay: Arc<Overlay>,
    /// Where the copy of its metadata is.
    state_dir: PathBuf,
}

impl DryRun {
    /// Lays the overlays and makes the copies.
    pub(super) fn prepare(sync: &SyncPlan) -> Result<Self, Failure> {
        let mut ends = Vec::new();
        for end in &sync.ends {
            match end {
                SyncEnd::Directory(root) => ends.push(root),
                SyncEnd::Provider(endpoint) => {
                    return Err(Failure::usage(format!(
                        "{endpoint} would have to apply changes to say what becomes of them; --dry-run takes two directories"
                    )));
                }
            }
        }
        let scratch = Scratch::create(&ends)?;
        copy_store(&sync.data_dir, &scratch.directory("data")?)?;
        let contents = Contents::default();
        let mut replicas = Vec::new();
        for ((name, filters), root) in [("a", &[][..]), ("b", &sync.filters)].into_iter().zip(ends) {
            // A directory that is still to be made is an empty one.
            let tree =
                if root.exists() { root.path().to_owned() } else { scratch.directory(&format!("{name}-root"))? };
            let original = FileStore::default_state_dir(&tree);
            let overlay = Overlay::open(&tree, &original, contents.clone());
            let overlay = overlay.map_err(|error| Failure::failed(error.message))?;
            let state_dir = scratch.directory(name)?;
            copy_files(&original, &state_dir)?;
            replicas.push(Replica {
                endpoint: directory_endpoint(root),
                member_name: member_name(root),
                filters: filters.to_vec(),
                overlay: Arc::new(overlay),
                state_dir,
            });
        }
        Ok(Self { replicas, tombstone_age: sync.tombstone_age, scratch })
    }

    /// A coordinator that reaches these two replicas and nobody else: what it owes to others is not its to deliver.
    pub(super) async fn start(&self) -> Result<LocalCoordinator, Failure> {
        let failed = |error: &dyn std::fmt::Display| Failure::failed(error.to_string());
        let opened = Coordinator::open(&self.scratch.path.join("data")).map_err(|error| failed(&error))?;
        let mut providers: HashMap<Endpoint, Arc<dyn Provider>> = HashMap::new();
        let mut opened_replicas = Vec::new();
        for replica in &self.replicas {
            let Replica { endpoint, member_name, filters, overlay, state_dir } = replica;
            let options = Options {
                member_name: member_name.clone(),
                tombstone_age: self.tombstone_age.0,
                filters: filters.clone(),
                reported_entries: usize::MAX,
                ..Options::default()
            };
            let provider = ReplicaProvider::open(overlay.clone(), state_dir, &overlay.identity(), options);
            let provider = provider.map_err(|error| failed(&error))?;
            providers.insert(endpoint.clone(), provider.clone());
            opened_replicas.push(provider);
        }
        let dial: Dial = Arc::new(move |endpoint| {
            let provider = providers.get(endpoint).cloned();
            provider.ok_or_else(|| CallError::Unreachable("a dry run calls nobody".to_owned()))
        });
        let endpoints = self.replicas.iter().map(|replica| replica.endpoint.clone()).collect();
        LocalCoordinator::over(opened, endpoints, opened_replicas, dial).await
    }

    /// What would be different in A and in B.
    pub(super) fn changes(&self) -> Vec<Vec<OverlaidChange>> {
        self.replicas.iter().map(|replica| replica.overlay.changes()).collect()
    }
}

/// Copies the coordinator's store while no other process has it.
fn copy_store(data_dir: &Path, to: &Path) -> Result<(), Failure> {
    let lock = data_dir.join(store::LOCK_FILE_NAME);
    let locked = match File::open(&lock) {
        Ok(file) => file,
        // Nobody has ever kept state there.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(unreadable(&lock, &error)),
    };
    match locked.try_lock() {
        Ok(()) => copy_files(data_dir, to),
        Err(TryLockError::WouldBlock) => Err(Failure::failed(store::Error::InUse { path: lock }.to_string())),
        Err(TryLockError::Error(error)) => Err(unreadable(&lock, &error)),
    }
}

/// Copies the files of a directory, and none that are in directories below it.
fn copy_files(from: &Path, to: &Path) -> Result<(), Failure> {
    let entries = match fs::read_dir(from) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(unreadable(from, &error)),
    };
    for entry in entries {
        let entry = entry.map_err(|error| unreadable(from, &error))?;
        if entry.file_type().is_ok_and(|kind| kind.is_file()) {
            let copied = fs::copy(entry.path(), to.join(entry.file_name()));
            copied.map_err(|error| {
                Failure::failed(format!("{} cannot be copied for a dry run: {error}", entry.path().display()))
            })?;
        }
    }
    Ok(())
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    Failure::failed(format!("{} cannot be read: {error}; check its permissions", path.display()))
}

/// A directory for the copies, which goes with it.
#[derive(Debug)]
struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Among the system's temporary files, where that is in none of the directories.
    fn create(roots: &[&Root]) -> Result<Self, Failure> {
        let path = std::env::temp_dir().join(format!("synclave-{}", Uuid::new_v4().simple()));
        for root in roots {
            roots::check_scratch(&path, root)?;
        }
        let created = DirBuilder::new().mode(0o700).create(&path);
        created.map_err(|error| cannot_make(&path, &error))?;
        Ok(Self { path })
    }

    fn directory(&self, name: &str) -> Result<PathBuf, Failure> {
        let path = self.path.join(name);
        fs::create_dir(&path).map_err(|error| cannot_make(&path, &error))?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "temporary files of a dry run are left");
        }
    }
}

fn cannot_make(path: &Path, error: &io::Error) -> Failure {
    Failure::failed(format!("{} cannot be made: {error}; name another place with TMPDIR", path.display()))
}
