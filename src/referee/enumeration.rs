//! Full enumeration: the rules of its batches (`windows-sync.md` R24, 4.9).

use super::rule::{Breach, Rule};
use super::{BatchVerdict, OpenBatch, Referee};
use crate::knowledge::{ChangeBatch, GroupKind, ItemId, Knowledge};

impl Referee {
    /// The source gave a batch of a full enumeration that was asked for from `lower_bound` on.
    ///
    /// # Errors
    ///
    /// As [`Referee::batch`]; or the batch is not exactly one ordered group which begins no higher than was asked and has no
    /// upper bound exactly when it is the last.
    pub fn full_enumeration_batch(
        &mut self,
        batch: &ChangeBatch,
        lower_bound: &ItemId,
    ) -> Result<BatchVerdict, Breach> {
        let examined = self.examine(batch)?;
        check_shape(batch, lower_bound)?;
        self.count_empty(&examined.verdict, batch)?;
        let verdict = examined.verdict.clone();
        let learned = if batch.is_last_batch {
            // A destination may take all of it then: every item of the source was listed.
            let made_with = batch.groups.iter().map(|group| Knowledge::clone(&group.made_with_knowledge));
            Knowledge::union_all(self.schema.item_id, made_with)
        } else {
            batch.learned_knowledge()
        };
        self.open = Some(OpenBatch::new(batch, examined, learned, false));
        Ok(verdict)
    }
}

/// What is not within the bounds, or not listed within them, is deleted at the destination: a hole would cost items.
fn check_shape(batch: &ChangeBatch, asked: &ItemId) -> Result<(), Breach> {
    let breach = |message: String| Err(Breach::source(Rule::NotFullEnumeration, message));
    let [group] = &batch.groups[..] else {
        return breach(format!("a full enumeration comes in one group, and this batch has {}", batch.groups.len()));
    };
    let GroupKind::Ordered { lower_bound, upper_bound } = &group.kind else {
        return breach("a full enumeration comes in an ordered group".to_owned());
    };
    if lower_bound > asked {
        return breach(format!("it begins at item bound '{lower_bound}', and was asked for from '{asked}' on"));
    }
    match (upper_bound, batch.is_last_batch) {
        (Some(upper_bound), true) => breach(format!("the last batch ends at item '{upper_bound}'")),
        (None, false) => breach("a batch that is not the last has no upper bound".to_owned()),
        (Some(_), false) | (None, true) => Ok(()),
    }
}
