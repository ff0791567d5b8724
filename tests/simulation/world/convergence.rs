//! Whether all replicas hold the same in the end.

use std::collections::BTreeMap;

use synclave::knowledge::ItemId;
use synclave::provider::sdk::ItemState;

use super::{World, name};
use crate::provider::Provider;
use crate::replica::Replica;
use crate::units::{self, UNITS};

impl World {
    pub(super) fn has_converged(&self) -> bool {
        let first = &self.providers[0].replica;
        // Of an item with change units the values are versioned, and nothing else.
        let versioned = |state: ItemState| match self.scenario.units {
            0 => state,
            _ => ItemState { properties: Default::default(), modification_time: None, ..state },
        };
        let held = |replica: &Replica| -> BTreeMap<ItemId, ItemState> {
            replica.store.contents().into_iter().map(|(id, state)| (id, versioned(state))).collect()
        };
        self.providers[1..].iter().all(|other| {
            let other = &other.replica;
            held(other) == held(first)
                && other.versions() == first.versions()
                && other.agrees_about_winners(first)
                && other.knowledge.contains(&first.knowledge)
                && first.knowledge.contains(&other.knowledge)
        })
    }

    pub(super) fn differences(&self) -> String {
        let held = |provider: &Provider| {
            let items: Vec<String> = provider
                .replica
                .rows
                .iter()
                .map(|(id, row)| {
                    let content = provider
                        .replica
                        .store
                        .content(id)
                        .map(|content| String::from_utf8_lossy(&content).into_owned());
                    let winner = row.merged_into().map_or_else(String::new, |winner| format!(" in {winner}"));
                    format!("{id}={content:?}@{:?}{winner}", UNITS.map(|unit| units::version(row, unit)))
                })
                .collect();
            let replica = &provider.replica;
            format!(
                "{}: {} (knows {:?}, forgot {:?})",
                name(provider.index),
                items.join(" "),
                replica.knowledge,
                replica.forgotten
            )
        };
        let all: Vec<String> = self.providers.iter().map(held).collect();
        all.join("\n    ")
    }
}
