//! What a session leaves out, and what former ones left: conflicts, items that fail, items that are set aside.

use super::{Effect, Machine};
use crate::knowledge::{Knowledge, ReplicaId};
use crate::referee::{BatchReport, Referee};
use crate::store::conflicts::Findings;

impl Machine {
    /// Begins with what stands between the replicas. What the destination has learned meanwhile is over.
    pub(super) fn begin_with_standing(
        &mut self,
        referee: &mut Referee,
        source: &ReplicaId,
        destination: &ReplicaId,
        known: &Knowledge,
        effects: &mut Vec<Effect>,
    ) {
        if self.standing.is_empty() {
            return;
        }
        let (over, errors_over) = self.standing.take_over(destination, known);
        referee.standing(self.standing.items());
        for (item, version) in self.standing.set_aside(source) {
            referee.set_aside(item, version);
            self.set_aside.insert(item.clone());
        }
        record(Findings { over, errors_over, ..Findings::default() }, effects);
    }

    /// Takes what a batch showed out of its report, to be written down.
    pub(super) fn find(&mut self, report: BatchReport, effects: &mut Vec<Effect>) -> BatchReport {
        let BatchReport { conflicts_deferred, items_failed, passed, .. } = report;
        // A later version of what was set aside was sent: it counts as any other.
        let met = conflicts_deferred.iter().map(|deferred| &deferred.source.item_id);
        for item in met.chain(items_failed.iter().map(|failed| &failed.source.item_id)).chain(&passed) {
            self.set_aside.remove(item);
        }
        let findings = Findings { deferred: conflicts_deferred, failed: items_failed, passed, ..Findings::default() };
        record(findings, effects);
        BatchReport { conflicts_deferred: Vec::new(), items_failed: Vec::new(), passed: Vec::new(), ..report }
    }

    /// What the last batch ended with: what either side knows by now is over.
    pub(super) fn end_with_standing(&mut self, effects: &mut Vec<Effect>) {
        let (Some(referee), [_, Some(destination)]) = (&self.referee, &self.infos) else { return };
        if !self.standing.is_empty() {
            let (over, errors_over) = self.standing.take_over(&destination.replica_id, referee.known());
            record(Findings { over, errors_over, ..Findings::default() }, effects);
        }
        self.left_out += self.set_aside.len() as u64;
    }
}

fn record(findings: Findings, effects: &mut Vec<Effect>) {
    if !findings.is_empty() {
        effects.push(Effect::Record(Box::new(findings)));
    }
}
