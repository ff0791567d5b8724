//! The destination's side: a batch is applied section by section, each step an event of its own, so that anything may come between.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use synclave::knowledge::{ChangeBatch, ChangeGroup, ChangeUnitChange, ItemChange, ItemId, Knowledge, Selection};
use synclave::provider::sdk::decision::{
    Action, Commit, Decisions, Ground, Incoming, Learning, Obtained, Row, Step, Verdict, change_item, conclusion,
    intents, learned, learns_forgotten, leave_out, order, outcome,
};
use synclave::provider::sdk::{ItemError, ItemStore, Replaces, Staged};
use synclave::provider::{CallError, Load, ProcessOutput, ProcessResult, ProcessStart, Refusal, RefusalCode};
use synclave::types::{ConflictResolutionPolicy as Policy, FullEnumerationAction, Hresult, ProviderRole, SyncGuid};

use super::source::parts_of;
use super::{Live, Phase, Provider, canceled};
use crate::checks::Check;
use crate::collisions::Collision;
use crate::filters::Wish;
use crate::mutants::Fault;
use crate::replica::Replica;
use crate::scenario::Time;
use crate::units::Want;
use crate::world::{Frame, Happening, TIMING, World, name};

#[path = "applying/absence.rs"]
mod absence;
#[path = "applying/obtaining.rs"]
mod obtaining;

use obtaining::{need, take_inline, take_parts};

/// Changes that are applied together at most. Small, so that a batch has several sections.
const SECTION_CHANGES: usize = 3;

/// A batch that is being applied.
#[derive(Debug)]
pub(super) struct Apply {
    pub(super) coordinator: u64,
    pub(super) stream: u64,
    start: ProcessStart,
    decisions: Decisions,
    batch: Box<ChangeBatch>,
    known: Knowledge,
    /// What it was filtered by.
    filter: Option<Wish>,
    forgotten: Arc<Knowledge>,
    has_prerequisite: bool,
    learning: Learning,
    learns_forgotten: bool,
    /// Of a full enumeration: what it does not list comes first.
    absent: bool,
    group: usize,
    begin: usize,
    end: usize,
    left_out: Selection,
    obtained: Vec<Obtained>,
    /// Which load is of which change.
    loads: BTreeMap<u64, (usize, Want)>,
    next_load: u64,
    pub(super) carrying: Option<Carrying>,
    applied: u32,
    failed: u32,
    /// Nobody listens any more.
    closed: bool,
}

/// A section on its way into the store.
#[derive(Debug)]
pub(super) struct Carrying {
    verdicts: Vec<Verdict>,
    actions: BTreeMap<ItemId, Action>,
    order: VecDeque<ItemId>,
    intended: Vec<ItemId>,
    failures: BTreeMap<usize, (ItemId, ItemError)>,
    /// What has gone because it became a part of another item, with its content, by the change that it is of.
    merged: Vec<(usize, ItemId, Staged)>,
    /// Collisions that this settles.
    collisions: Vec<Collision>,
    tick: u64,
    /// Of what a full enumeration does not list: what is learned of it.
    absence: Option<Knowledge>,
}

impl Apply {
    fn group(&self) -> &ChangeGroup {
        &self.batch.groups[self.group]
    }

    /// How a conflict of a change with what was here is settled.
    fn policy(&self, change: &ItemChange, row: Option<&Row>) -> Policy {
        let (known, made_with) = self.knowledge();
        self.decisions.whole(change, row, (made_with, known), self.start.conflict_resolution_policy)
    }

    fn changes(&self) -> &[ItemChange] {
        &self.group().changes[self.begin..self.end]
    }

    /// The destination's before the batch, and the source's.
    fn knowledge(&self) -> (&Knowledge, &Knowledge) {
        (&self.known, &self.group().made_with_knowledge)
    }
}

impl World {
    pub(crate) fn provider_takes(&mut self, to: usize, coordinator: u64, stream: u64, frame: Frame) {
        let (sync_guid, epoch, start, full_enumeration, batch) = match frame {
            Frame::Start { sync_guid, epoch, start, full_enumeration, batch } => {
                (sync_guid, epoch, start, full_enumeration, batch)
            }
            frame => return self.frame(to, stream, frame),
        };
        self.ghost.is_stale =
            self.ghost.heard.get(&(to, self.providers[to].life, sync_guid)).is_some_and(|heard| coordinator < *heard);
        let entered = self.enter(to, (sync_guid, epoch), ProviderRole::Destination);
        let result = entered.and_then(|()| match self.providers[to].sessions.get(&sync_guid) {
            Some(live) if live.apply.is_some() => {
                Err(CallError::Refused(Refusal::invalid_operation("a batch is being processed already")))
            }
            _ => Ok(()),
        });
        if let Err(error) = result {
            return self.send_output(to, coordinator, stream, Err(error));
        }
        for knowledge in
            batch.groups.iter().map(|group| &group.made_with_knowledge).chain([&batch.prerequisite_knowledge])
        {
            self.ticks_are_known(to, knowledge);
        }
        let known = (*self.providers[to].replica.knowledge).clone();
        let learning = match start.full_enumeration_action {
            _ if full_enumeration => Learning::Recovery,
            _ if !known.is_out_of_date(&batch) => Learning::All,
            FullEnumerationAction::PartialSync => Learning::ItemsOnly,
            FullEnumerationAction::Abort | FullEnumerationAction::FullEnumeration => {
                let code = Hresult::SYNC_E_FORGOTTEN_KNOWLEDGE_NOT_CONTAINED;
                let refusal = Refusal::winsync(RefusalCode::FailedPrecondition, code, "out of date");
                return self.send_output(to, coordinator, stream, Err(CallError::Refused(refusal)));
            }
        };
        self.figures.partial += u64::from(learning == Learning::ItemsOnly);
        let decisions = Decisions::new(start.resolutions.clone());
        let apply = Apply {
            forgotten: self.providers[to].replica.forgotten.clone(),
            filter: self.ghost.filters.get(&sync_guid).cloned().flatten(),
            learning,
            learns_forgotten: learns_forgotten(learning, &known, &batch),
            absent: full_enumeration,
            coordinator,
            stream,
            start,
            decisions,
            has_prerequisite: known.contains(&batch.prerequisite_knowledge),
            known,
            batch,
            group: 0,
            begin: 0,
            end: 0,
            left_out: Selection::default(),
            obtained: Vec::new(),
            loads: BTreeMap::new(),
            next_load: 1,
            carrying: None,
            applied: 0,
            failed: 0,
            closed: false,
        };
        self.section(to, sync_guid, Box::new(apply));
    }

    fn frame(&mut self, to: usize, stream: u64, frame: Frame) {
        let now = self.now;
        let of_stream = |live: &Live| live.apply.as_ref().is_some_and(|apply| apply.stream == stream);
        let found = self.providers[to].sessions.iter_mut().find(|(_, live)| of_stream(live));
        let Some((guid, live)) = found else { return };
        let guid = *guid;
        let Some(apply) = &mut live.apply else { return };
        match frame {
            Frame::Start { .. } => return,
            Frame::Cancel => live.canceled = true,
            Frame::Closed => apply.closed = true,
            Frame::Data { load_id, parts } => {
                live.deadline = now + TIMING.lease;
                let Some((index, want)) = apply.loads.remove(&load_id) else { return };
                let id = apply.changes()[index].item_id.clone();
                let mut apply = live.apply.take().expect("it was just there");
                let store = &self.providers[to].replica.store;
                take_parts(store, &id, want, &mut apply.obtained[index], parts);
                if let Some(live) = self.providers[to].sessions.get_mut(&guid) {
                    live.apply = Some(apply);
                }
            }
        }
        self.look_up(to, guid);
    }

    /// Begins the next section: says what it needs. Without a further group the batch is done.
    fn section(&mut self, index: usize, guid: SyncGuid, mut apply: Box<Apply>) {
        let life = self.providers[index].life;
        if apply.group >= apply.batch.groups.len() {
            self.providers[index].replica.empty_holders();
            let learned_knowledge = (*self.providers[index].replica.knowledge).clone();
            self.told(index, &learned_knowledge);
            let result = ProcessResult {
                learned_knowledge,
                changes_applied: apply.applied,
                changes_failed: apply.failed,
                provider_with_error: None,
            };
            return self.stop(index, guid, &apply, Ok(ProcessOutput::Result(result)));
        }
        apply.end = apply.group().changes.len().min(apply.begin + SECTION_CHANGES);
        apply.obtained.clear();
        apply.loads.clear();
        let replica = &self.providers[index].replica;
        let mut outputs = Vec::new();
        for at in 0..apply.end - apply.begin {
            let change = &apply.changes()[at];
            let mut obtained = Obtained { incoming: Incoming::of(change), staged: None, fetched: None, error: None };
            match need(replica, &apply, change, &obtained.incoming) {
                Ok(None) => {}
                Ok(Some(want)) if !take_inline(&replica.store, change, apply.knowledge(), &want, &mut obtained) => {
                    let change_unit_ids = match &want {
                        Want::Content => Vec::new(),
                        Want::Units(units) => units.clone(),
                    };
                    let named = |unit: &&ChangeUnitChange| {
                        change_unit_ids.is_empty() || change_unit_ids.contains(&unit.change_unit_id)
                    };
                    let of_unit = change.change_units.iter().find(named).map(|unit| &unit.version);
                    let version = change.change_version.as_ref().or(of_unit).expect("one of the two").clone();
                    let load = Load {
                        load_id: apply.next_load,
                        item_id: change.item_id.clone(),
                        change_unit_ids,
                        version,
                        offset: 0,
                    };
                    apply.loads.insert(load.load_id, (at, want));
                    apply.next_load += 1;
                    outputs.push(load);
                }
                Ok(Some(_)) => {}
                Err(error) => obtained.error = Some(error),
            }
            apply.obtained.push(obtained);
        }
        let (coordinator, stream) = (apply.coordinator, apply.stream);
        if let Some(live) = self.providers[index].sessions.get_mut(&guid) {
            live.apply = Some(apply);
        }
        for load in outputs {
            self.send_output(index, coordinator, stream, Ok(ProcessOutput::Load(load)));
        }
        let pause = Duration::from_micros(self.random.between(100, 2_000));
        self.queue_in(pause, Happening::Apply { provider: index, life, sync_guid: guid });
    }

    /// One step of applying.
    pub(crate) fn apply(&mut self, index: usize, guid: SyncGuid) {
        let (now, life) = (self.now, self.providers[index].life);
        let slow = self.providers[index].slow;
        let gate = self.providers[index].gate;
        let Some(live) = self.providers[index].sessions.get_mut(&guid) else { return };
        let (stopping, Some(mut apply)) = (live.canceled, live.apply.take()) else { return };
        let pause = Duration::from_micros(self.random.between(100, 5_000));
        let again = Happening::Apply { provider: index, life, sync_guid: guid };
        let Some(carrying) = &mut apply.carrying else {
            if stopping || apply.closed {
                return self.stop(index, guid, &apply, Err(canceled()));
            }
            let waits = !apply.loads.is_empty();
            if !waits && !gate {
                if std::mem::take(&mut apply.absent) {
                    self.settle_absence(index, &mut apply);
                } else {
                    self.settle_section(index, &mut apply);
                }
            }
            self.put_back(index, guid, apply);
            if !waits {
                self.queue_in(pause, again);
            }
            return;
        };
        if let Some(id) = carrying.order.pop_front() {
            self.change(index, &mut apply, &id);
            // A store in which items can collide changes all of a section in one transaction.
            if self.scenario.names & 1 << index != 0 {
                while let Some(id) = apply.carrying.as_mut().and_then(|carrying| carrying.order.pop_front()) {
                    self.change(index, &mut apply, &id);
                }
                self.transaction_ends(index, &mut apply);
            }
            self.put_back(index, guid, apply);
            return self.queue_in(pause, again);
        }
        // A section is finished also when nobody listens any more.
        live_renewed(&mut self.providers[index], guid, now);
        if apply.carrying.as_ref().is_some_and(|carrying| carrying.absence.is_some()) {
            self.conclude_absence(index, &mut apply);
            self.put_back(index, guid, apply);
            return self.queue_in(pause, again);
        }
        let outcomes = self.conclude(index, guid, &mut apply);
        for output in outcomes {
            self.send_output(index, apply.coordinator, apply.stream, Ok(output));
        }
        apply.begin = apply.end;
        if apply.begin >= apply.group().changes.len() {
            apply.group += 1;
            apply.begin = 0;
            apply.left_out = Selection::default();
        }
        if stopping || apply.closed {
            return self.stop(index, guid, &apply, Err(canceled()));
        }
        if slow > Duration::ZERO {
            let alive = ProcessOutput::Progress { completed_work: 0, total_work: 0 };
            self.send_output(index, apply.coordinator, apply.stream, Ok(alive));
        }
        self.section(index, guid, apply);
    }

    fn put_back(&mut self, index: usize, guid: SyncGuid, apply: Box<Apply>) {
        if let Some(live) = self.providers[index].sessions.get_mut(&guid) {
            live.apply = Some(apply);
        }
    }

    /// No more of the batch. Who waited for that goes on.
    fn stop(&mut self, index: usize, guid: SyncGuid, apply: &Apply, last: Result<ProcessOutput, CallError>) {
        if !apply.closed {
            self.send_output(index, apply.coordinator, apply.stream, last);
        }
        let now = self.now;
        live_renewed(&mut self.providers[index], guid, now);
        if self.providers[index].sessions.get(&guid).is_some_and(|live| live.phase == Phase::Ending) {
            self.finished(index, guid);
        }
    }

    /// Settles the section against the rows as they are now, and records what is about to be done.
    fn settle_section(&mut self, index: usize, apply: &mut Apply) {
        self.providers[index].gate = true;
        let replica = &self.providers[index].replica;
        let obtained = std::mem::take(&mut apply.obtained);
        let mut collisions = Collision::decided(replica, apply.changes(), &apply.decisions, &obtained);
        let plan = match on_ground(replica, apply, |ground| ground.plan(obtained, replica.id.clone(), replica.tick)) {
            Ok(plan) => plan,
            Err(error) => return self.fail(Check::Liveness, format!("rows in memory cannot be read: {error}")),
        };
        collisions.retain(|collision| collision.is_planned(&plan.verdicts, &plan.actions));
        let mut learned = section_learned(apply);
        learned.exclude(&apply.left_out);
        let intents = intents(&plan.actions, &learned);
        let intended = intents.iter().map(|(id, _)| id.clone()).collect();
        if !intents.is_empty() {
            let tick = plan.tick;
            self.providers[index].replica.commit(Commit { intents, tick, ..Commit::default() });
        }
        let order = order(&plan.actions).into();
        // What the observer must know of the versions that this makes, even if it is never finished.
        for (id, action) in &plan.actions {
            let change = &apply.changes()[action.index];
            let theirs = change.change_version.as_ref().filter(|_| change.item_id == *id);
            let buried = self.buried(index, id, &apply.known);
            self.units_made(index, (change, apply.knowledge()), id, action, buried.as_ref());
            let ours = action.before.as_ref().map(|row| &row.version).or(buried.as_ref());
            let made = &action.after.version;
            if made.replica == self.providers[index].replica.id && Some(made) != ours && Some(made) != theirs {
                // A copy has seen nothing of what is alive under its name.
                let alive = action.before.as_ref().is_some_and(|row| !row.item.deleted);
                let ours = ours.filter(|_| !(action.keeps_loser && alive));
                let learned = self.learned_deletions(id, &apply.known);
                self.ghost.made(id, made, ours.into_iter().chain(theirs).chain(&learned));
            } else if let (Some(ours), Some(theirs)) = (ours, theirs) {
                let same = match &action.before {
                    Some(before) => {
                        before.item.deleted == action.after.item.deleted
                            && (before.item.deleted || before.item.state == action.after.item.state)
                    }
                    None => action.after.item.deleted,
                };
                if same {
                    self.ghost.same(id, ours, theirs);
                }
            }
        }
        for (change, verdict) in apply.changes().iter().zip(&plan.verdicts) {
            if !plan.actions.contains_key(&change.item_id) {
                self.units_agree(index, change, apply.knowledge(), verdict);
            }
        }
        apply.carrying = Some(Carrying {
            verdicts: plan.verdicts,
            actions: plan.actions,
            order,
            intended,
            failures: BTreeMap::new(),
            merged: Vec::new(),
            collisions,
            tick: plan.tick,
            absence: None,
        });
    }

    /// Does what is to be done to one item.
    fn change(&mut self, index: usize, apply: &mut Apply, id: &ItemId) {
        let policy = apply.start.conflict_resolution_policy;
        // Of what a full enumeration does not list there is no change.
        let action = apply.carrying.as_ref().filter(|it| it.absence.is_none()).and_then(|it| it.actions.get(id));
        let change = action.and_then(|action| Some((action, apply.changes().get(action.index)?.clone())));
        let decided = change.as_ref().map(|(action, change)| apply.policy(change, action.before.as_ref()));
        let change = change.map(|(_, change)| change);
        let Some(carrying) = &mut apply.carrying else { return };
        let Some(action) = carrying.actions.get_mut(id) else { return };
        let does_something = !matches!(action.step, Step::None);
        let before = self.providers[index].replica.store.own_content(id);
        let failed = match carrying.failures.get(&action.index) {
            Some(failure) => Some(failure.clone()),
            None => {
                action.step = match std::mem::replace(&mut action.step, Step::None) {
                    Step::MergeInto { winner, content } => {
                        carrying.merged.push((action.index, id.clone(), content));
                        carrying.order.retain(|other| *other != winner);
                        carrying.order.push_front(winner);
                        Step::Delete
                    }
                    step => step,
                };
                change_item(&self.providers[index].replica.store, id, action).err().map(|error| (id.clone(), error))
            }
        };
        if let Some((of, error)) = failed {
            self.history.add(self.now, || format!("{} cannot change {id}: {error}", name(index)));
            carrying.failures.insert(action.index, (of, error));
            carrying.actions.remove(id);
            return;
        }
        let verdict = carrying.verdicts.get(action.index);
        let conflict = matches!(verdict, Some(Verdict::Planned { conflict: true } | Verdict::Partly { .. }));
        let conflict = conflict && !action.keeps_loser;
        let (row, made) = (action.before.clone(), action.after.clone());
        self.figures.copies += u64::from(action.keeps_loser);
        if does_something {
            self.history.add(self.now, || {
                let what = if made.item.deleted { "deletes" } else { "writes" };
                let why = if conflict { ", a conflict" } else { "" };
                format!("{} {what} {id}, now {:?}{why}", name(index), made.version)
            });
        }
        // What goes by a full enumeration was looked at when that was settled.
        if change.is_none() && self.scenario.units != 0 {
            return;
        }
        // What becomes of both is seen when all of it is done.
        if let Some(collision) = carrying.collisions.iter().find(|collision| collision.index == action.index) {
            if let Some(content) = before.filter(|_| does_something && collision.renames_destination()) {
                self.goes_on_elsewhere(index, id, &content);
            }
            return;
        }
        if let Some(change) = change.filter(|_| conflict && policy == Policy::None) {
            let divided = |row: &Row| row.units.is_some();
            match &row {
                Some(row) if change.change_version.is_none() || divided(row) => {
                    let knowledge = (&apply.known, &*apply.batch.groups[apply.group].made_with_knowledge);
                    self.units_are_as_decided(index, &change, knowledge, row, &made);
                }
                _ => self.is_as_decided(index, &change, row.as_ref(), &made),
            }
        }
        self.replaced(index, id, before, row, &made, conflict, decided.unwrap_or(policy));
    }

    /// All of a section is in the store. What was to become a part of an item that could not be saved comes back.
    fn transaction_ends(&mut self, index: usize, apply: &mut Apply) {
        let Some(carrying) = &mut apply.carrying else { return };
        let store = &self.providers[index].replica.store;
        for (_, id, content) in carrying.merged.extract_if(.., |(at, ..)| carrying.failures.contains_key(at)) {
            let Some(before) = carrying.actions.remove(&id).and_then(|action| action.before) else { continue };
            if let Err(error) = store.put(&id, content, &before.item.state, &Replaces::Nothing) {
                self.fail(Check::Collision, format!("{} cannot bring {id} back: {error}", name(index)));
                return;
            }
        }
        let settled = carrying.collisions.iter().filter(|collision| !carrying.failures.contains_key(&collision.index));
        let settled: Vec<_> = settled.cloned().collect();
        let policy = apply.start.collision_conflict_resolution_policy;
        for collision in settled {
            self.collided(index, &collision, &carrying.actions, policy);
        }
    }

    /// Rows, knowledge and outcomes of a section.
    fn conclude(&mut self, index: usize, guid: SyncGuid, apply: &mut Apply) -> Vec<ProcessOutput> {
        self.providers[index].gate = false;
        let Some(Carrying { mut verdicts, actions, intended, failures, collisions, tick, .. }) = apply.carrying.take()
        else {
            return Vec::new();
        };
        let replica = &self.providers[index].replica;
        for (at, (id, error)) in failures {
            verdicts[at] = match on_ground(replica, apply, |ground| ground.failed(at, &id, error)) {
                Ok(verdict) => verdict,
                Err(error) => {
                    self.fail(Check::Liveness, format!("rows in memory cannot be read: {error}"));
                    return Vec::new();
                }
            };
        }
        if self.scenario.nested {
            let policy = apply.start.collision_conflict_resolution_policy;
            for collision in &collisions {
                if matches!(verdicts[collision.index], Verdict::Planned { conflict: true }) {
                    self.made_room(index, collision, &apply.changes()[collision.index], &actions, policy);
                }
            }
        }
        let mut learned = section_learned(apply);
        let changes: Vec<ItemChange> = apply.changes().to_vec();
        for (at, (change, verdict)) in changes.iter().zip(&verdicts).enumerate() {
            leave_out(change, verdict, &mut apply.left_out);
            self.ghost.settling.entry(guid).or_default().extend(parts_of(change));
            let collided = collisions.iter().any(|collision| collision.index == at);
            let loser_lost = !collided
                && matches!(verdict, Verdict::Planned { conflict: true })
                && actions.get(&change.item_id).is_some_and(|action| {
                    let there = |row: &Row| !row.item.deleted;
                    let before = action.before.as_ref();
                    // Where both have the same content a user may delete it in this moment: nothing had to be kept for that.
                    let differs = |row: &Row| change.content_digest != Some(row.item.state.digest);
                    apply.policy(change, before) == Policy::KeepBoth
                        && before.is_some_and(|row| there(row) && differs(row))
                        && there(&action.after)
                });
            if let Some(digest) = change.content_digest.filter(|_| loser_lost)
                && !self.holds(index, &digest)
            {
                self.fail(
                    Check::KeepBoth,
                    format!("{} keeps nothing of what {} was at its source", name(index), change.item_id),
                );
            }
        }
        if self.fault != Some(Fault::LearnFailed) {
            learned.exclude(&apply.left_out);
        }
        let replica = &mut self.providers[index].replica;
        let knowledge = replica.knowledge.clone();
        let mut commit = conclusion(actions, intended, (&replica.id.clone(), &knowledge), &learned, tick);
        commit.forgotten = apply.learns_forgotten.then(|| apply.batch.forgotten_knowledge.intersection(&learned));
        for (id, _) in &commit.rows {
            self.ghost.buried.remove(&(index, id.clone()));
        }
        replica.commit(commit);
        if let Some(filter) = &apply.filter {
            self.held_back_is_not_learned(index, filter, &apply.batch, &knowledge);
        }
        let outcomes: Vec<_> = changes.iter().zip(verdicts).map(|(change, verdict)| outcome(change, verdict)).collect();
        for outcome in &outcomes {
            apply.applied += u32::from(outcome.kind == synclave::knowledge::OutcomeKind::Applied);
            apply.failed += u32::from(outcome.kind == synclave::knowledge::OutcomeKind::RecoverableError);
            self.figures.conflicts += u64::from(outcome.conflict);
            self.figures.collisions += u64::from(outcome.constraint.is_some());
            self.figures.applied += u64::from(outcome.kind == synclave::knowledge::OutcomeKind::Applied);
        }
        outcomes.into_iter().map(ProcessOutput::Outcome).collect()
    }
}

fn live_renewed(provider: &mut Provider, guid: SyncGuid, now: Time) {
    if let Some(live) = provider.sessions.get_mut(&guid) {
        live.deadline = now + TIMING.lease;
    }
}

/// Decides with the rows as they are now.
fn on_ground<T>(replica: &Replica, apply: &Apply, work: impl FnOnce(Ground<'_>) -> T) -> T {
    work(Ground {
        store: &replica.store,
        rows: &|id| Ok(replica.rows.get(id).cloned()),
        within: &|id| Ok(replica.within(id)),
        changes: apply.changes(),
        group: apply.group(),
        known: &apply.known,
        forgotten: &apply.forgotten,
        policy: apply.start.conflict_resolution_policy,
        decisions: &apply.decisions,
    })
}

fn section_learned(apply: &Apply) -> Knowledge {
    let prerequisite = (!apply.has_prerequisite).then_some((&*apply.batch.prerequisite_knowledge, &apply.known));
    learned(apply.group(), apply.end, prerequisite, apply.learning)
}
