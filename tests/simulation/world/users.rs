//! What a scenario does, and what users do to items.

use synclave::knowledge::ItemId;

use super::{Happening, World};
use crate::filters::Wish;
use crate::provider::Reach;
use crate::replica::containers;
use crate::scenario::{NESTED, Step};
use crate::units;

impl World {
    pub(super) fn step(&mut self, step: Step) {
        self.history.add(self.now, || format!("* {step:?}"));
        let seconds = 1_000 + self.now.as_secs().cast_signed();
        match step {
            Step::Write { replica, item, same } => {
                self.edits += 1;
                let content = if same { b"the same".to_vec() } else { format!("edit {}", self.edits).into_bytes() };
                let item = self.item(replica, item);
                if self.scenario.nested {
                    self.make_way(replica, &item);
                }
                // What the store refuses its user, a name that another item has, is a change of that one.
                let item = self.providers[replica].replica.store.in_the_way(&item).unwrap_or(item);
                let content = match self.scenario.units {
                    0 => content,
                    _ => {
                        let before = self.providers[replica].replica.store.content(&item);
                        // Of one unit, equal values are rare enough.
                        let content = if self.random.below(3) == 0 { b"the same".to_vec() } else { content };
                        let is_row = self.scenario.names != 0;
                        units::edited(before.as_deref(), &String::from_utf8_lossy(&content), is_row, &mut self.random)
                    }
                };
                self.supersede(replica, &item, Some(&content));
                // What is equal is so with its time, or it would be told apart by that.
                let modified = if same && !self.scenario.ring.is_empty() { 1_000 } else { seconds };
                self.providers[replica].replica.store.write(&item, content, modified);
            }
            Step::SetMode { replica, item } => {
                self.edits += 1;
                let (item, mode) = (self.item(replica, item), format!("mode {}", self.edits));
                self.providers[replica].replica.store.set_mode(&item, mode, seconds);
            }
            Step::Delete { replica, item } => {
                let item = self.item(replica, item);
                self.delete_within(replica, &item);
                self.supersede(replica, &item, None);
                self.providers[replica].replica.store.delete_by_user(&item);
            }
            Step::Decide { index, action } => self.decide(index, action),
            Step::Unwritable { replica, item } => {
                let item = self.item(replica, item);
                self.providers[replica].replica.store.shelf().unwritable.insert(item);
            }
            Step::Writable { replica } => self.providers[replica].replica.store.shelf().unwritable.clear(),
            Step::Operate { a, b, direction, policy, collisions, action, max_attempts } => {
                self.operate([a, b], direction, (policy, collisions), action, max_attempts)
            }
            Step::WantUnits { replica, units } => self.providers[replica].wants = Wish::of_units(units),
            Step::Forget { replica, at_once } => self.forget(replica, at_once),
            Step::Cancel { index } => self.cancel_operation(index),
            Step::CrashProvider { replica, down } => {
                if self.providers[replica].up {
                    self.crash_provider(replica);
                    self.queue_in(down, Happening::ProviderUp { provider: replica });
                }
            }
            Step::CrashCoordinator { down } => {
                if self.coordinator.is_some() {
                    self.crash_coordinator();
                    self.queue_in(down, Happening::CoordinatorUp);
                }
            }
            Step::TakeOver { late } => self.take_over(late),
            Step::BusyElsewhere { replica, span } => {
                let elsewhere = self.id();
                let provider = &mut self.providers[replica];
                if provider.up && provider.sessions.is_empty() && provider.elsewhere.is_none() {
                    provider.elsewhere = Some(elsewhere);
                    self.queue_in(span, Happening::Free { provider: replica, elsewhere });
                }
            }
            Step::Partition { replica, silent, span } => {
                let provider = &mut self.providers[replica];
                provider.reach = if silent { Reach::Silent } else { Reach::Refused };
                provider.cut += 1;
                let cut = provider.cut;
                self.queue_in(span, Happening::Reachable { provider: replica, cut });
            }
            Step::Slow { replica, by, span } => {
                self.providers[replica].slow = by;
                self.queue_in(span, Happening::Quick { provider: replica });
            }
            Step::Watch { watcher, reconnect } => self.watch(watcher, reconnect),
        }
    }

    /// A user who needs a place for an item deletes what is in its way, and makes what it is within.
    fn make_way(&mut self, replica: usize, item: &ItemId) {
        for holder in containers(item).into_iter().rev() {
            if !self.providers[replica].replica.store.holds_items(&holder) {
                self.supersede(replica, &holder, None);
                self.providers[replica].replica.store.make_holder(&holder);
            }
        }
        self.delete_within(replica, item);
    }

    fn delete_within(&mut self, replica: usize, item: &ItemId) {
        for inner in self.providers[replica].replica.store.within(item) {
            self.supersede(replica, &inner, None);
            self.providers[replica].replica.store.delete_by_user(&inner);
        }
    }

    /// Now and then a user touches a conflict copy.
    fn item(&mut self, replica: usize, item: u8) -> ItemId {
        let item = match self.scenario.nested {
            true => ItemId::from(NESTED[usize::from(item) % NESTED.len()]),
            false => ItemId::from(&*format!("f{item}")),
        };
        if self.random.below(6) != 0 {
            return item;
        }
        let copy = ItemId::from(&*format!("{item}~1"));
        if self.providers[replica].replica.store.content(&copy).is_some() || self.random.below(4) == 0 {
            copy
        } else {
            item
        }
    }

    fn supersede(&mut self, replica: usize, item: &ItemId, after: Option<&[u8]>) {
        if self.scenario.units != 0 {
            return self.supersede_values(replica, item, after);
        }
        if let Some(content) = self.providers[replica].replica.store.own_content(item) {
            self.ghost.superseded.insert((replica, content));
        }
    }
}
