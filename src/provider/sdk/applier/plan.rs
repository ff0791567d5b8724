//! From settlements to actions: what is done to the store, and in which rows it results.

use std::collections::BTreeMap;

use super::arrival::{Arrival, Content, adopt};
use super::constraint::may_collide;
use super::decisions::Decisions;
use super::fetch::Obtained;
use super::merge::{Course, course, part_base, undivided};
use super::settle::{NewVersion, Settlement, Winner, kind_of, settle};
use super::{Applier, Section};
use crate::knowledge::{
    ChangeGroup, ChangeUnitChange, ChangeUnitId, ConflictingChange, ConstraintConflict, Digest, ItemChange,
    ItemDataHeader, ItemId, Knowledge, RecoverableError, ReplicaId, Version, tells_base,
};
use crate::mutant::{self, Mutant};
use crate::provider::CallError;
use crate::provider::sdk::metadata::{Row, Unit};
use crate::provider::sdk::ticks::Ticks;
use crate::provider::sdk::units;
use crate::provider::sdk::{Fingerprint, ItemError, ItemState, ItemStore, KnownItem, Staged, metadata_failed};
use crate::types::ConflictResolutionPolicy;

/// What is done to the store for one item.
#[derive(Debug)]
pub enum Step {
    /// Nothing: only the row changes.
    None,
    /// Staged content takes its place.
    Put(Staged),
    /// Its properties change.
    SetProperties,
    /// It goes.
    Delete,
    /// It goes, as what it holds becomes a part of another item, which is saved at once. It comes back when that one cannot be.
    MergeInto {
        /// The other item; where several go, the next of them, which does the same.
        winner: ItemId,
        /// What is here, to come back.
        content: Staged,
    },
}

/// One item's way from the row before to the row after.
#[derive(Debug)]
pub struct Action {
    /// Index of the change that it belongs to.
    pub index: usize,
    /// The row that it was planned against.
    pub before: Option<Row>,
    /// Its fingerprint is set once the step is done.
    pub after: Row,
    /// The way.
    pub step: Step,
    /// It keeps a conflict's loser, or brings a container back: it goes before the action of its change, which must not be
    /// carried out when it fails.
    pub comes_first: bool,
    /// It keeps a conflict's loser: people are told.
    pub keeps_loser: bool,
    /// Change units whose conflict waits: nothing of them is learned.
    pub left_out: Vec<ChangeUnitId>,
    /// Its row goes too: the source has forgotten the item's tombstone.
    pub forgets: bool,
}

impl Action {
    /// That of change number `index`: it has nothing before it, keeps no loser, and teaches all of the item.
    pub(super) fn of(index: usize, before: Option<Row>, after: Row, step: Step) -> Self {
        Self {
            index,
            before,
            after,
            step,
            comes_first: false,
            keeps_loser: false,
            left_out: Vec::new(),
            forgets: false,
        }
    }
}

/// What becomes of one change before the store is touched.
#[derive(Debug)]
pub enum Verdict {
    /// It is known already.
    Obsolete,
    /// A conflict that waits for a decision.
    Deferred(Box<Deferral>),
    /// It cannot be applied now.
    Failed(RecoverableError),
    /// An action is planned.
    Planned {
        /// It settles a conflict.
        conflict: bool,
    },
    /// Some change units are in conflicts that wait for a decision; what there is to do for the others is planned.
    Partly {
        /// Those that wait.
        left_out: Vec<ChangeUnitId>,
        /// What is here of them.
        deferral: Box<Deferral>,
    },
}

/// A conflict that is deferred, as far as the destination knows it.
#[derive(Clone, Debug)]
pub struct Deferral {
    /// What the destination has; of a constraint conflict, the item in the way, where it has a row.
    pub destination: Option<ConflictingChange>,
    /// Why the item cannot be saved, for a constraint conflict.
    pub constraint: Option<ConstraintConflict>,
}

impl Deferral {
    /// Of a concurrency conflict with what is here; of that only the change units that are in conflict, where the change is of the
    /// item as a whole. The knowledges are its group's and the destination's.
    pub fn concurrency(change: &ItemChange, row: Option<&Row>, knowledge: (&Knowledge, &Knowledge)) -> Box<Self> {
        let id = &change.item_id;
        match row.and_then(|row| Some((row, units::in_conflict(change, row, knowledge)?))) {
            Some((row, units)) => Self::of_units(id, row, &units),
            None => Box::new(Self { destination: row.map(|row| conflicting(id, row)), constraint: None }),
        }
    }

    /// Of some change units of what is here. A unit that is not here has the version of the item's base.
    pub fn of_units(id: &ItemId, row: &Row, units: &[ChangeUnitId]) -> Box<Self> {
        let here = |unit: &ChangeUnitId| {
            let here = row.units.as_ref().and_then(|here| here.get(unit));
            ChangeUnitChange {
                change_unit_id: unit.clone(),
                version: units::version_of(row, unit).clone(),
                modification_time: here.and_then(|unit| unit.modification_time),
            }
        };
        let change_units = units.iter().map(here).collect();
        let destination = ConflictingChange { change_version: None, change_units, ..conflicting(id, row) };
        Box::new(Self { destination: Some(destination), constraint: None })
    }
}

/// A row, as one side of a conflict.
pub(super) fn conflicting(id: &ItemId, row: &Row) -> ConflictingChange {
    let state = &row.item.state;
    let there = !row.item.deleted;
    let units = row.units.iter().flatten().map(|(unit, here)| ChangeUnitChange {
        change_unit_id: unit.clone(),
        version: here.version.clone(),
        modification_time: here.modification_time,
    });
    let change_units: Vec<_> = units.collect();
    ConflictingChange {
        item_id: id.clone(),
        change_version: change_units.is_empty().then(|| row.version.clone()),
        change_units,
        deleted: row.item.deleted,
        data_size: there.then_some(state.size),
        content_digest: there.then_some(state.digest),
        modification_time: state.modification_time.filter(|_| there),
    }
}

/// A section, decided.
#[derive(Debug)]
pub struct Plan {
    /// One for each change.
    pub verdicts: Vec<Verdict>,
    /// What is to be done, by item.
    pub actions: BTreeMap<ItemId, Action>,
    /// The local tick after it.
    pub tick: u64,
}

/// Items with their rows.
pub(super) type Rows = Vec<(ItemId, Row)>;

/// What the changes of a section are settled against.
pub struct Ground<'a> {
    /// The store, to stage content and to name items in.
    pub store: &'a dyn ItemStore,
    /// The row of an item as it is now.
    pub rows: &'a dyn Fn(&ItemId) -> Result<Option<Row>, CallError>,
    /// The live items within one, ascending; empty for one that holds none.
    pub within: &'a dyn Fn(&ItemId) -> Result<Rows, CallError>,
    /// The section's changes.
    pub changes: &'a [ItemChange],
    /// The group that they are a section of.
    pub group: &'a ChangeGroup,
    /// The destination's knowledge before the batch.
    pub known: &'a Knowledge,
    /// Its forgotten knowledge.
    pub forgotten: &'a Knowledge,
    /// How conflicts are settled.
    pub policy: ConflictResolutionPolicy,
    /// And those that people have decided about.
    pub decisions: &'a Decisions,
}

impl std::fmt::Debug for Ground<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ground")
            .field("changes", &self.changes.len())
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

impl Ticks {
    /// The version that was settled on.
    pub(super) fn version(&mut self, wanted: NewVersion) -> Version {
        match wanted {
            NewVersion::Given(version) => version,
            NewVersion::Local => self.give(),
        }
    }
}

impl Applier<'_> {
    /// The live items within one.
    fn within(&self, id: &ItemId) -> Result<Rows, CallError> {
        let mut items = self.shared.metadata().alive_behind(id).map_err(metadata_failed)?;
        items.retain(|(item, _)| self.shared.store.containers(item).contains(id));
        Ok(items)
    }

    pub(super) fn on_ground<T>(
        &self,
        section: &Section<'_>,
        work: impl FnOnce(Ground<'_>) -> Result<T, CallError>,
    ) -> Result<T, CallError> {
        work(Ground {
            store: &*self.shared.store,
            rows: &|id| self.shared.metadata().row(id).map_err(|error| metadata_failed(error).into()),
            within: &|id| self.within(id),
            changes: section.changes,
            group: section.group,
            known: &self.known,
            forgotten: &self.forgotten,
            policy: self.start.conflict_resolution_policy,
            decisions: &self.decisions,
        })
    }

    pub(super) fn plan(&self, section: &Section<'_>, obtained: Vec<Obtained>) -> Result<Plan, CallError> {
        let (replica, tick) = {
            let metadata = self.shared.metadata();
            (metadata.replica().clone(), metadata.tick())
        };
        self.on_ground(section, |ground| ground.plan(obtained, replica, tick))
    }
}

impl Ground<'_> {
    /// A concurrency conflict of a change with what is here, which waits for a decision.
    pub(super) fn deferred(&self, index: usize, row: Option<&Row>) -> Verdict {
        Verdict::Deferred(Deferral::concurrency(&self.changes[index], row, (self.made_with(), self.known)))
    }

    /// The source's knowledge that the changes were listed with.
    pub(super) fn made_with(&self) -> &Knowledge {
        &self.group.made_with_knowledge
    }

    /// Settles every change of the section against the rows as they are now, and stages copies of losers. `tick` is the last
    /// that `replica` has given out.
    ///
    /// # Errors
    /// Those of `rows`.
    pub fn plan(&self, obtained: Vec<Obtained>, replica: ReplicaId, tick: u64) -> Result<Plan, CallError> {
        let mut ticks = Ticks::new(replica, tick, [self.known, self.made_with()]);
        let mut plan = Plan { verdicts: Vec::with_capacity(obtained.len()), actions: BTreeMap::new(), tick: 0 };
        for (index, obtained) in obtained.into_iter().enumerate() {
            let change = &self.changes[index];
            let verdict = match obtained.error {
                Some(error) => Verdict::Failed(error),
                None => self.plan_change(change, index, obtained, &mut plan.actions, &mut ticks)?,
            };
            plan.verdicts.push(verdict);
        }
        self.revive_containers(&mut plan.actions, &mut ticks)?;
        plan.tick = ticks.last();
        Ok(plan)
    }

    /// A container that was deleted here, and into which the source has put something new, lives on with a version of its own:
    /// the source need not know of the deletion, and would never send the container again.
    fn revive_containers(&self, actions: &mut BTreeMap<ItemId, Action>, ticks: &mut Ticks) -> Result<(), CallError> {
        let arrivals: Vec<(ItemId, usize)> = actions
            .iter()
            .filter(|(_, action)| matches!(action.step, Step::Put(_)))
            .filter(|(_, action)| !action.before.as_ref().is_some_and(Row::is_there))
            .map(|(id, action)| (id.clone(), action.index))
            .collect();
        for (id, index) in arrivals {
            for container in self.store.containers(&id) {
                if actions.contains_key(&container) {
                    break;
                }
                let row = (self.rows)(&container)?;
                // Nearest first: above one that is there, all are. Of one that was never here nothing is known.
                let Some(row) = row.filter(|row| !row.is_there() && row.item.state.size == 0) else { break };
                let header = ItemDataHeader {
                    properties: row.item.state.properties.clone(),
                    content_size: 0,
                    content_digest: Some(row.item.state.digest),
                };
                let Ok(staged) = self.store.stage(&container, &header).and_then(|staging| staging.finish()) else {
                    break;
                };
                let version = ticks.version(NewVersion::Local);
                let after = row_of(row.item.state.clone(), version.clone(), version);
                let action = Action::of(index, Some(row), after, Step::Put(staged));
                actions.insert(container, Action { comes_first: true, ..action });
            }
        }
        Ok(())
    }

    fn plan_change(
        &self,
        change: &ItemChange,
        index: usize,
        obtained: Obtained,
        actions: &mut BTreeMap<ItemId, Action>,
        ticks: &mut Ticks,
    ) -> Result<Verdict, CallError> {
        let id = &change.item_id;
        let Obtained { mut incoming, staged, fetched, .. } = obtained;
        // An item that is listed twice in a section, or that a copy took for its name: the row that it will have decides.
        let row = match actions.get(id) {
            Some(_) if change.is_known_by(self.known) => return Ok(Verdict::Obsolete),
            Some(_) => return Ok(Verdict::Failed(ItemError::Changed.into_recoverable(id))),
            None => (self.rows)(id)?,
        };
        if change.change_version.is_none() {
            match (course(change, self.made_with(), self.known, row.as_ref()), row.clone()) {
                (Course::Obsolete, _) => return Ok(Verdict::Obsolete),
                (Course::Units(courses), Some(row)) => {
                    return self.merge(change, index, (row, courses), fetched, actions, ticks);
                }
                (Course::Undivided, _) => return Ok(Verdict::Failed(undivided(id))),
                (Course::Units(_) | Course::Whole, _) => {}
            }
        }
        let change_version = change.change_version.as_ref().unwrap_or(&change.creation_version);
        let tells_base = tells_base(change, self.made_with());
        // The source's item, divided, where it came so or is to be kept so here; as much of it as the source speaks of.
        let mut object = fetched.and_then(|fetched| match &fetched.units {
            None => Some(fetched.object),
            Some(_) if tells_base => None,
            Some(units) => Some(fetched.object.part(units)),
        });
        let mut content = staged.map(Content::Staged);
        let mut reformed = false;
        if let Some(object) = &object {
            let canonical = object.canonical();
            reformed = !adopt(&canonical, &mut incoming, row.as_ref());
            content = Some(Content::Bytes(canonical));
        }
        let knowledge = (self.made_with(), self.known, self.forgotten);
        let both = (self.made_with(), self.known);
        let policy = self.decisions.whole(change, row.as_ref(), both, self.policy);
        let (winner, version, conflict) =
            match settle(change, change_version, knowledge, row.as_ref(), &incoming, policy) {
                Settlement::Obsolete => return Ok(Verdict::Obsolete),
                Settlement::Deferred => return Ok(self.deferred(index, row.as_ref())),
                Settlement::Failed(error) => return Ok(Verdict::Failed(error)),
                // The row is another one than when it was decided what to ask for.
                Settlement::NeedsHeader | Settlement::NeedsContent => {
                    return Ok(Verdict::Failed(ItemError::Changed.into_recoverable(id)));
                }
                Settlement::Settled { winner, version, conflict } => (winner, version, conflict),
            };
        let version = match version {
            // Content that came in another form than it is kept in here is a change of this replica's own.
            _ if reformed && change.change_units.is_empty() => NewVersion::Local,
            version => version,
        };
        let mut base = None;
        if !tells_base && winner == Winner::Source {
            // An item of which the source has nothing to give is not made for that.
            if object.as_ref().is_some_and(|object| object.units().next().is_none()) {
                return Ok(Verdict::Obsolete);
            }
            match part_base(change, row.as_ref(), self.known, conflict) {
                Ok(version) => base = Some(version),
                Err(error) => return Ok(Verdict::Failed(error)),
            }
        }
        let mut gone = Vec::new();
        if winner == Winner::Source && !conflict && tells_base {
            gone = self.known_to_be_gone(change, row.as_ref());
        }
        if let Some(object) = object.as_mut().filter(|_| !gone.is_empty()) {
            gone.iter().for_each(|unit| object.set(unit.clone(), None));
            let canonical = object.canonical();
            adopt(&canonical, &mut incoming, None);
            content = Some(Content::Bytes(canonical));
        }
        let mut arrival = Arrival { incoming, object, content, base };
        if tells_base
            && may_collide(winner, self.decisions, id)
            && let Some(verdict) =
                self.plan_collision(change, (index, row.as_ref()), &version, &mut arrival, actions, ticks)?
        {
            return Ok(verdict);
        }
        if matches!(winner, Winner::SourceAndCopy | Winner::DestinationAndCopy) && !mutant::is(Mutant::NoLoserCopy) {
            let source_wins = winner == Winner::SourceAndCopy;
            let sides = (row.as_ref(), &mut arrival);
            if let Some(verdict) = self.keep_loser((id, index), sides, source_wins, actions, ticks)? {
                return Ok(verdict);
            }
        }
        let incoming = || arrival.incoming.state().ok_or_else(|| ItemError::Changed.into_recoverable(id));
        let own = version == NewVersion::Local;
        let version = ticks.version(version);
        let planned = match (winner, row) {
            (Winner::Source | Winner::SourceAndCopy, row) => incoming().and_then(|state| {
                let mut after = arrival.row(change, state, version, own);
                if let Some(units) = after.units.as_mut().filter(|_| !gone.is_empty()) {
                    let version = ticks.version(NewVersion::Local);
                    let without = Unit { digest: None, version, modification_time: None };
                    units.extend(gone.iter().map(|unit| (unit.clone(), without.clone())));
                }
                self.take(id, row, after, arrival.content.take())
            }),
            (Winner::Deletion, row) => Ok(delete(change, row, version)),
            (Winner::Destination | Winner::DestinationAndCopy, Some(row)) => {
                let after = match own {
                    true => units::renewed(row.clone(), version),
                    false => units::agreed(row.clone(), change, version),
                };
                Ok((Some(row), after, Step::None))
            }
            (Winner::Destination | Winner::DestinationAndCopy, None) => Err(ItemError::Changed.into_recoverable(id)),
        };
        match planned {
            Ok((before, after, step)) => {
                actions.insert(id.clone(), Action::of(index, before, after, step));
                Ok(Verdict::Planned { conflict })
            }
            Err(error) => Ok(Verdict::Failed(error)),
        }
    }
}

fn same_but_properties(before: &ItemState, after: &ItemState) -> bool {
    before.same_content(after) && kind_of(&before.properties) == kind_of(&after.properties)
}

pub(super) type Planned = (Option<Row>, Row, Step);

pub(super) fn row_of(state: ItemState, creation: Version, version: Version) -> Row {
    let item = KnownItem { state, fingerprint: Fingerprint::default(), deleted: false };
    Row { item, lingering: false, creation, version, units: None, winner: None }
}

impl Ground<'_> {
    /// The source's state is written, with as little as it takes.
    pub(super) fn take(
        &self,
        id: &ItemId,
        before: Option<Row>,
        mut after: Row,
        content: Option<Content>,
    ) -> Result<Planned, RecoverableError> {
        let there = before.as_ref().filter(|row| row.is_there());
        let step = match there {
            Some(row) if row.item.state == after.item.state => {
                after.item.fingerprint = row.item.fingerprint.clone();
                Step::None
            }
            Some(row) if same_but_properties(&row.item.state, &after.item.state) => Step::SetProperties,
            _ => {
                let content = content.ok_or_else(|| ItemError::Changed.into_recoverable(id))?;
                let staged = content.stage(self.store, id, &after.item.state);
                Step::Put(staged.map_err(|error| error.into_recoverable(id))?)
            }
        };
        Ok((before, after, step))
    }
}

/// The row of an item that goes, with this version.
pub(super) fn tombstone_of(row: &Row, version: Version) -> Row {
    Row { item: KnownItem { deleted: true, ..row.item.clone() }, version, units: None, ..row.clone() }
}

pub(super) fn delete(change: &ItemChange, before: Option<Row>, version: Version) -> Planned {
    match before {
        Some(row) => {
            let step = if row.item.deleted { Step::None } else { Step::Delete };
            let after = Row { winner: change.winner_item_id.clone(), ..tombstone_of(&row, version) };
            (Some(row), after, step)
        }
        None => {
            // Nothing is known of the item but that it was deleted.
            let state =
                ItemState { properties: Default::default(), size: 0, digest: Digest([0; 32]), modification_time: None };
            let mut after = row_of(state, change.creation_version.clone(), version);
            after.item.deleted = true;
            after.winner = change.winner_item_id.clone();
            (None, after, Step::None)
        }
    }
}
