//! Nests: a directory that is new to the tree is staged with what goes into it, and put in place by one rename.
//!
//! Only what is staged in one section goes into a nest, and only what is put with it stays there: whatever becomes visible has
//! its intent. A directory that cannot be put as a whole is put empty, and what was staged in its nest one by one.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, Dir, Mode, OFlags};
use rustix::io::Errno;

use super::FileStore;
use super::attributes::Attributes;
use super::displaced::adjust;
use super::facts::{Facts, Kind, Time};
use super::fingerprint::{Origin, Stamp};
use super::holding::{Content, Holding, mode, set_attributes};
use super::path::{ItemPath, MAX_PATH_BYTES};
use crate::knowledge::ItemDataHeader;
use crate::provider::sdk::{Applied, Fingerprint, ItemError, ItemState, Put, Replaces, Staged};

/// Begins the names of nests in the holding area. What a former process left under such a name never came from the tree.
pub(super) const NEST: &[u8] = b"new-";

/// Room for the number in a nest's name, which stands for the path of its directory.
const NAME_BYTES: usize = 32;

/// What is known of nests.
#[derive(Debug, Default)]
pub(super) struct Nests {
    /// Of the section in hand, by the path that the directory will have: which part of the holding area, and the name there.
    open: HashMap<Vec<u8>, (usize, Vec<u8>)>,
    /// Numbers and names of the outermost ones, also of those that have been put.
    pub(super) outermost: Vec<(u64, Vec<u8>)>,
}

impl Holding {
    /// What is staged from now on goes into no nest that there is.
    pub(super) fn close_nests(&self) {
        self.contents().nests.open.clear();
    }

    /// Where `path` is to be staged when its directory is staged, too: which part of the holding area, and the name there.
    pub(super) fn nest_of(&self, path: ItemPath<'_>) -> Option<(usize, Vec<u8>)> {
        let (parent, name) = path.split();
        let contents = self.contents();
        let (directory, nest) = contents.nests.open.get(parent)?;
        let name = [nest, name].join(&b'/');
        (name.len() < MAX_PATH_BYTES - NAME_BYTES).then_some((*directory, name))
    }

    /// Makes a nest for the directory at `path`; `None` where there can be none.
    fn make_nest(self: &Arc<Self>, path: ItemPath<'_>, permissions: u32) -> io::Result<Option<Staged>> {
        let inner = self.nest_of(path);
        let directory = inner.as_ref().map_or(0, |(directory, _)| *directory);
        let number = self.number(directory);
        let name =
            inner.as_ref().map_or_else(|| [NEST, number.to_string().as_bytes()].concat(), |(_, name)| name.clone());
        match rustix::fs::mkdirat(self.at(directory), &name, mode(permissions & 0o777 | 0o700)) {
            Ok(()) => {}
            // Another item has this name, to this file system.
            Err(Errno::EXIST) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let staged = self.staged(self.entry(number, name.clone()), Content::Nest);
        let mut contents = self.contents();
        if inner.is_none() {
            contents.nests.outermost.push((number, name.clone()));
        }
        contents.nests.open.insert(path.as_bytes().to_vec(), (directory, name));
        Ok(Some(staged))
    }

    /// Readies what is staged in a nest to be put with it, and removes what is not; the fingerprints, by number. `None` when
    /// it cannot be put as a whole; nothing for what is no nest.
    fn gather(&self, nest: u64, puts: &HashMap<u64, &ItemState>) -> Option<Vec<(u64, Fingerprint)>> {
        let mut inside: Vec<(u64, Vec<u8>)> = {
            let mut contents = self.contents();
            let Some(held) = contents.staged.get(&nest) else { return Some(Vec::new()) };
            let Content::Nest = held.content else { return Some(Vec::new()) };
            let prefix = [&held.name[..], b"/"].concat();
            let is_inside = |name: &[u8]| name.starts_with(&prefix) || name == &prefix[..prefix.len() - 1];
            contents.nests.open.retain(|_, (_, name)| !is_inside(name));
            let staged = contents.staged.iter().filter(|(_, held)| held.name.starts_with(&prefix));
            staged.map(|(number, held)| (*number, held.name.clone())).collect()
        };
        // What is in a directory comes before it: its mode may forbid changes.
        inside.sort_unstable_by(|(_, a), (_, b)| b.cmp(a));
        let mut ready = Vec::with_capacity(inside.len());
        for (number, name) in inside {
            let state = puts.get(&number);
            match state.map(|state| self.ready(number, &name, state)) {
                Some(Ok(fingerprint)) => ready.push((number, fingerprint)),
                Some(Err(_)) => return None,
                None => {
                    self.contents().staged.remove(&number);
                    self.remove(number, &name);
                    if Facts::at(self.directory(number), &name).is_ok() {
                        return None;
                    }
                }
            }
        }
        Some(ready)
    }

    /// Gives something in a nest the attributes that it is to have.
    fn ready(&self, number: u64, name: &[u8], state: &ItemState) -> Result<Fingerprint, ItemError> {
        let wanted = Attributes::of_state(state)?;
        let directory = self.directory(number);
        let failed = |error: io::Error| ItemError::Failed(error.to_string());
        let (facts, recorded) = {
            let contents = self.contents();
            match contents.staged.get(&number).map(|held| &held.content) {
                Some(Content::File { facts, moved: true, .. }) if wanted.kind == Kind::File => {
                    let (staged, recorded) = (*facts, Time::now());
                    drop(contents);
                    let (facts, origin) = adjust(directory, name, &staged, &wanted).map_err(failed)?;
                    return Ok(Stamp { facts, recorded, origin }.encode());
                }
                Some(Content::File { attributes, facts, recorded, .. }) if wanted.kind == Kind::File => {
                    ((*attributes == Some(wanted)).then_some(*facts), *recorded)
                }
                Some(Content::Nest) if wanted.kind == Kind::Directory => (None, Time::now()),
                _ => return Err(ItemError::Failed("the staged content is of another kind".to_owned())),
            }
        };
        let set = || -> rustix::io::Result<Facts> {
            let facts = Facts::at(directory, name)?;
            if wanted.kind == Kind::Directory && facts.permissions() == wanted.mode {
                return Ok(facts);
            }
            set_attributes(directory, name, wanted.mode, wanted.mtime)
        };
        let facts = match facts {
            Some(facts) => facts,
            None => set().map_err(|error| failed(error.into()))?,
        };
        Ok(Stamp { facts, recorded, origin: Origin::Own }.encode())
    }

    /// The directory is to be put without what is in its nest.
    fn empty_nest(&self, nest: u64) {
        let mut contents = self.contents();
        if let Some(held) = contents.staged.get_mut(&nest)
            && let Content::Nest = held.content
        {
            held.content = Content::Directory;
            held.name = nest.to_string().into_bytes();
        }
    }
}

impl FileStore {
    /// Stages an item without content: a directory that is new to the tree gets a nest.
    pub(super) fn stage_nest(&self, path: ItemPath<'_>, header: &ItemDataHeader) -> Result<Staged, ItemError> {
        let attributes = Attributes::parse(&header.properties, None)?;
        if attributes.kind == Kind::Directory && header.content_size == 0 {
            let (parent, name) = path.split();
            // Where its container is only on its way, in the section before, it is new as well.
            let is_new = || match self.tree.parent(parent) {
                Ok(parent) => matches!(Facts::at(&parent, name), Err(Errno::NOENT)),
                Err(error) => error == Errno::NOENT,
            };
            if self.holding.nest_of(path).is_some() || is_new() {
                let made = self.holding.make_nest(path, attributes.mode);
                let made = made.map_err(|error| ItemError::Failed(format!("cannot stage a directory: {error}")))?;
                if let Some(staged) = made {
                    return Ok(staged);
                }
            }
        }
        self.holding.stage(path, header)?.finish()
    }

    /// Puts items in place, each new directory with what was staged in it.
    pub(super) fn put_items(&self, puts: &[Put<'_>]) -> Vec<Result<Applied, ItemError>> {
        let states: HashMap<u64, &ItemState> = puts.iter().map(|put| (put.staged.0, put.state)).collect();
        let mut done: HashMap<u64, Fingerprint> = HashMap::new();
        let put = |put: &Put<'_>| {
            let number = put.staged.0;
            if let Some(fingerprint) = done.remove(&number) {
                return Ok(Applied::Done(fingerprint));
            }
            // A nest takes no part in exchanges: what is found in one never came from the tree.
            let is_new = !matches!(&put.replaces, Replaces::Item(known) if !known.deleted);
            let inside = is_new.then(|| self.holding.gather(number, &states)).flatten();
            if inside.is_none() {
                self.holding.empty_nest(number);
            }
            let applied = self.put_item(put.id, Staged(number), put.state, &put.replaces)?;
            if let Some(inside) = inside.filter(|inside| !inside.is_empty()) {
                let mut contents = self.holding.contents();
                inside.iter().for_each(|(number, _)| drop(contents.staged.remove(number)));
                done.extend(inside);
            }
            Ok(applied)
        };
        puts.iter().map(put).collect()
    }
}

/// Removes what is under `name`, with all that is in it. What cannot be removed is left.
pub(super) fn remove_all(directory: impl AsFd, name: &[u8]) {
    let Err(Errno::ISDIR | Errno::PERM) = rustix::fs::unlinkat(&directory, name, AtFlags::empty()) else { return };
    // Ours, whatever its mode says.
    let _ = rustix::fs::chmodat(&directory, name, Mode::RWXU, AtFlags::empty());
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened: rustix::io::Result<OwnedFd> = rustix::fs::openat(&directory, name, flags, Mode::empty());
    if let Ok(opened) = opened
        && let Ok(entries) = Dir::read_from(&opened)
    {
        for entry in entries.flatten().filter(|entry| !matches!(entry.file_name().to_bytes(), b"." | b"..")) {
            remove_all(&opened, entry.file_name().to_bytes());
        }
    }
    let _ = rustix::fs::unlinkat(&directory, name, AtFlags::REMOVEDIR);
}
