//! What a dry run found: item by item, and in sum.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::exit::{Exit, Failure, one_line};
use super::render;
use super::summary::{End, LeftOut, Moved, moved};
use super::table::{bytes, count};
use crate::knowledge::ItemId;
use crate::pb;
use crate::provider::sdk::{Report, Skipped};
use crate::providers::file::{Effect, OverlaidChange};

/// What a sync would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// How it would end.
    end: End,
    /// The state of the operation, by its name.
    state: &'static str,
    /// Who would fail and why; empty when nobody would.
    error: String,
    /// A and B, as the user named them.
    ends: [String; 2],
    /// From A to B, then back.
    directions: Vec<Direction>,
    /// What A, then B, never carries.
    skipped: [Vec<LeftOut>; 2],
    /// What cannot be read at A, then at B.
    unreadable: [Vec<LeftOut>; 2],
}

/// What would become of the items of one end.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Direction {
    items: Vec<PlannedItem>,
    left_out: Vec<LeftOut>,
    /// As the sessions count.
    moved: Moved,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct PlannedItem {
    id: ItemId,
    /// `None`: it stays as it is, and wins a conflict.
    effect: Option<Effect>,
    bytes: u64,
    conflict: bool,
    /// Where what loses the conflict is kept.
    copy: Option<ItemId>,
}

impl Plan {
    /// `changes` and `reports` are those of A, then of B.
    pub(super) fn new(
        operation: &pb::Operation,
        sync_infos: &[pb::SyncInfo],
        ends: [String; 2],
        changes: &[Vec<OverlaidChange>],
        reports: &[Report],
    ) -> Self {
        let end = End::of_operation(operation).unwrap_or(End::NotInSync);
        let error = if end == End::InSync { String::new() } else { render::operation_fault(operation) };
        let mut sums = moved(operation, sync_infos, &ends);
        let [a, b] = &ends;
        let directions = [(a, b, 1), (b, a, 0)].into_iter().map(|(from, to, destination)| {
            let empty = || Moved { from: from.clone(), to: to.clone(), ..Moved::default() };
            let sum = sums.iter().position(|sum| (&sum.from, &sum.to) == (from, to));
            let moved = sum.map_or_else(empty, |at| sums.swap_remove(at));
            let changes = changes.get(destination).map(Vec::as_slice).unwrap_or_default();
            direction(changes, reports.get(destination), moved)
        });
        let directions = directions.collect();
        let state = operation.state().as_str_name();
        let skipped = [0, 1].map(|end| reports.get(end).map_or_else(Vec::new, |report| left_out(&report.skipped)));
        let unreadable =
            [0, 1].map(|end| reports.get(end).map_or_else(Vec::new, |report| left_out(&report.unreadable)));
        Self { end, state, error, ends, directions, skipped, unreadable }
    }

    /// True when nothing would change.
    fn is_quiet(&self) -> bool {
        let quiet = |direction: &Direction| direction.items.iter().all(|item| item.effect.is_none());
        self.directions.iter().all(quiet)
    }

    fn unreadable(&self) -> u64 {
        self.unreadable.iter().map(|items| items.len() as u64).sum()
    }

    /// 0: nothing to do. 3: something, or what cannot be read, of which nobody knows. (Of one that would fail there is
    /// [`failure`](Self::failure).)
    pub(super) fn exit(&self) -> Exit {
        match self.end {
            End::InSync if self.is_quiet() && self.unreadable() == 0 => Exit::Done,
            end @ End::Failed => end.into(),
            End::InSync | End::NotInSync | End::Canceled => Exit::NotInSync,
        }
    }

    /// The line for stderr when the sync would fail.
    pub(super) fn failure(&self) -> Option<Failure> {
        let [a, b] = &self.ends;
        let why = if self.error.is_empty() { "no reason was given" } else { &self.error };
        (self.end == End::Failed)
            .then(|| Failure::failed(format!("a sync of {a} and {b} would fail: {why}; nothing was changed")))
    }

    /// One JSON object for each item, for what is left out, for each direction, and for the end.
    pub(super) fn lines(&self) -> Vec<Value> {
        let mut lines = Vec::new();
        for direction in &self.directions {
            let Moved { from, to, .. } = &direction.moved;
            lines.extend(direction.items.iter().map(|item| {
                json!({ "change": {
                    "source": from,
                    "destination": to,
                    "item": item.id.to_string(),
                    "itemId": STANDARD.encode(item.id.as_bytes()),
                    "effect": effect_name(item.effect),
                    "bytes": item.bytes.to_string(),
                    "conflict": item.conflict,
                    "conflictCopy": item.copy.as_ref().map(ToString::to_string).unwrap_or_default(),
                } })
            }));
            lines.extend(direction.left_out.iter().map(|LeftOut { name, reason }| {
                json!({ "leftOut": { "source": from, "destination": to, "item": name, "reason": reason } })
            }));
        }
        for (kind, items) in [("skipped", &self.skipped), ("unreadable", &self.unreadable)] {
            for (end, items) in self.ends.iter().zip(items) {
                lines.extend(items.iter().map(
                    |LeftOut { name, reason }| json!({ kind: { "replica": end, "item": name, "reason": reason } }),
                ));
            }
        }
        lines.extend(self.directions.iter().map(|direction| {
            let Moved { from, to, updates, bytes, deleted, conflicts } = &direction.moved;
            let number = |number: &u64| number.to_string();
            json!({ "totals": {
                "source": from,
                "destination": to,
                "created": number(&direction.count(Effect::Created)),
                "changed": number(&direction.count(Effect::Changed)),
                "deleted": number(&direction.count(Effect::Deleted)),
                "conflicts": number(&direction.conflicts()),
                "bytes": number(&direction.bytes()),
                "leftOut": number(&(direction.left_out.len() as u64)),
                "updatesTransferred": number(updates),
                "bytesTransferred": number(bytes),
                "tombstonesGenerated": number(deleted),
                "conflictsGenerated": number(conflicts),
            } })
        }));
        lines.push(json!({ "end": { "state": self.state, "error": self.error } }));
        lines
    }

    /// The same for people.
    pub(super) fn words(&self) -> String {
        let [a, b] = &self.ends;
        let mut text = String::new();
        let verdict = match self.end {
            End::InSync if self.exit() == Exit::Done => format!("{a} and {b} are in sync: there is nothing to do."),
            End::InSync if self.is_quiet() => {
                let unreadable = count(self.unreadable(), "item");
                format!("{a} and {b} are in sync but for {unreadable} that cannot be read.")
            }
            End::InSync => format!("A sync of {a} and {b} would do this. Nothing was changed."),
            End::NotInSync => {
                format!("A sync of {a} and {b} would do this, and leave something out. Nothing was changed.")
            }
            End::Failed => format!("A sync of {a} and {b} would do this before it fails. Nothing was changed."),
            End::Canceled => format!("Cancelled. A sync of {a} and {b} would do this at least. Nothing was changed."),
        };
        let _ = writeln!(text, "{verdict}");
        for direction in &self.directions {
            let _ = writeln!(text, "{} → {}: {}.", direction.moved.from, direction.moved.to, direction.words(self.end));
            for item in &direction.items {
                let _ = writeln!(text, "  {}", one_line(&item.words()));
            }
            for LeftOut { name, reason } in &direction.left_out {
                let _ = writeln!(text, "  leave out  {}", one_line(&format!("{name}: {reason}")));
            }
        }
        for (heading, items) in [("Cannot be read at", &self.unreadable), ("Never carried from", &self.skipped)] {
            for (end, items) in self.ends.iter().zip(items).filter(|(_, items)| !items.is_empty()) {
                let _ = writeln!(text, "{heading} {end}:");
                for LeftOut { name, reason } in items {
                    let _ = writeln!(text, "  {}", one_line(&format!("{name}: {reason}")));
                }
            }
        }
        if !self.error.is_empty() {
            let _ = writeln!(text, "Failure: {}", one_line(&self.error));
        }
        text
    }
}

fn direction(changes: &[OverlaidChange], report: Option<&Report>, moved: Moved) -> Direction {
    let mut items = BTreeMap::new();
    let item = |id: &ItemId| PlannedItem { id: id.clone(), effect: None, bytes: 0, conflict: false, copy: None };
    for OverlaidChange { id, effect, bytes } in changes {
        items.insert(id.clone(), PlannedItem { effect: Some(*effect), bytes: *bytes, ..item(id) });
    }
    let settled = report.map(|report| &report.settled).into_iter().flatten();
    let copies = report.map(|report| &report.conflict_copies).into_iter().flatten();
    for id in settled.collect::<BTreeSet<_>>() {
        items.entry(id.clone()).or_insert_with(|| item(id)).conflict = true;
    }
    for copy in copies {
        let item = items.entry(copy.item.clone()).or_insert_with(|| item(&copy.item));
        item.conflict = true;
        item.copy = Some(copy.copy.clone());
    }
    let left_out = report.map(|report| &report.left_out).into_iter().flatten();
    let left_out = left_out.map(|(name, reason)| LeftOut { name: name.clone(), reason: reason.clone() });
    Direction { items: items.into_values().collect(), left_out: left_out.collect(), moved }
}

fn left_out(skipped: &[Skipped]) -> Vec<LeftOut> {
    skipped.iter().map(|it| LeftOut { name: it.display_name.clone(), reason: it.reason.clone() }).collect()
}

impl Direction {
    fn count(&self, effect: Effect) -> u64 {
        self.items.iter().filter(|item| item.effect == Some(effect)).count() as u64
    }

    /// Conflicts that are settled. Sessions count one each time that they meet it.
    fn conflicts(&self) -> u64 {
        self.items.iter().filter(|item| item.conflict).count() as u64
    }

    /// Bytes of content that items come with. Sessions count also what comes in vain.
    fn bytes(&self) -> u64 {
        self.items.iter().map(|item| item.bytes).sum()
    }

    fn words(&self, end: End) -> String {
        let counted =
            |verb: &str, number: u64, noun: &str| (number > 0).then(|| format!("{verb} {}", count(number, noun)));
        let mut parts: Vec<String> =
            [(Effect::Created, "create"), (Effect::Changed, "change"), (Effect::Deleted, "delete")]
                .into_iter()
                .filter_map(|(effect, verb)| counted(verb, self.count(effect), "item"))
                .collect();
        parts.extend(counted("settle", self.conflicts(), "conflict"));
        parts.extend(counted("leave out", self.left_out.len() as u64, "item"));
        if self.bytes() > 0 {
            parts.push(format!("move {}", bytes(self.bytes())));
        }
        if parts.is_empty() { end.of_nothing().to_owned() } else { parts.join(", ") }
    }
}

impl PlannedItem {
    fn words(&self) -> String {
        let verb = match self.effect {
            Some(Effect::Created) => "create",
            Some(Effect::Changed) => "change",
            Some(Effect::Deleted) => "delete",
            None => "keep  ",
        };
        let mut words = format!("{verb}  {}", self.id);
        if self.bytes > 0 {
            let _ = write!(words, " ({})", bytes(self.bytes));
        }
        match &self.copy {
            Some(copy) => {
                let _ = write!(words, ", in conflict: the other is kept as {copy}");
            }
            None if self.conflict => words.push_str(", in conflict"),
            None => {}
        }
        words
    }
}

fn effect_name(effect: Option<Effect>) -> &'static str {
    match effect {
        Some(Effect::Created) => "CREATED",
        Some(Effect::Changed) => "CHANGED",
        Some(Effect::Deleted) => "DELETED",
        None => "UNCHANGED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(end: End, items: Vec<PlannedItem>) -> Plan {
        let moved = |from: &str, to: &str| Moved { from: from.into(), to: to.into(), ..Moved::default() };
        Plan {
            end,
            state: "OPERATION_STATE_IN_SYNC",
            error: String::new(),
            ends: ["a".to_owned(), "b".to_owned()],
            directions: vec![
                Direction {
                    items,
                    left_out: Vec::new(),
                    moved: Moved { bytes: 2048, conflicts: 1, ..moved("a", "b") },
                },
                Direction { items: Vec::new(), left_out: Vec::new(), moved: moved("b", "a") },
            ],
            skipped: [Vec::new(), vec![LeftOut { name: "pipe".into(), reason: "is a FIFO".into() }]],
            unreadable: [vec![LeftOut { name: "secret".into(), reason: "cannot be read".into() }], Vec::new()],
        }
    }

    fn item(name: &str, effect: Option<Effect>) -> PlannedItem {
        PlannedItem { id: ItemId::from(name), effect, bytes: 2048, conflict: false, copy: None }
    }

    #[test]
    fn everything_that_would_happen_is_said() {
        let copy = Some(ItemId::from("n.conflict-1"));
        let items = vec![
            PlannedItem { conflict: true, copy, ..item("n", Some(Effect::Changed)) },
            PlannedItem { bytes: 0, ..item("old", Some(Effect::Deleted)) },
        ];
        let plan = plan(End::InSync, items);
        assert_eq!(
            plan.words(),
            "A sync of a and b would do this. Nothing was changed.\n\
             a → b: change 1 item, delete 1 item, settle 1 conflict, move 2.0 KiB.\n  \
             change  n (2.0 KiB), in conflict: the other is kept as n.conflict-1\n  \
             delete  old\n\
             b → a: nothing to do.\n\
             Cannot be read at a:\n  secret: cannot be read\n\
             Never carried from b:\n  pipe: is a FIFO\n"
        );
        let lines = plan.lines();
        assert_eq!(lines[0]["change"]["effect"], "CHANGED");
        assert_eq!(lines[0]["change"]["itemId"], "bg==");
        assert_eq!(lines[2]["skipped"]["replica"], "b");
        assert_eq!(lines[3]["unreadable"]["item"], "secret");
        assert_eq!(lines[4]["totals"]["deleted"], "1");
        assert_eq!(lines[6]["end"]["state"], "OPERATION_STATE_IN_SYNC");
    }

    #[test]
    fn only_what_changes_an_item_is_something_to_do() {
        let unreadable = plan(End::InSync, Vec::new());
        assert_eq!(unreadable.exit(), Exit::NotInSync, "nobody knows what it would be");
        assert!(unreadable.words().starts_with("a and b are in sync but for 1 item that cannot be read.\n"));
        let plan = |end, items| Plan { unreadable: Default::default(), ..plan(end, items) };
        assert_eq!(plan(End::InSync, Vec::new()).exit(), Exit::Done);
        assert_eq!(plan(End::InSync, vec![item("n", None)]).exit(), Exit::Done);
        assert_eq!(plan(End::InSync, vec![item("n", Some(Effect::Created))]).exit(), Exit::NotInSync);
        assert_eq!(plan(End::NotInSync, Vec::new()).exit(), Exit::NotInSync);
        assert_eq!(plan(End::Failed, Vec::new()).exit(), Exit::Failed);
        assert!(plan(End::Failed, Vec::new()).failure().is_some());
    }
}
