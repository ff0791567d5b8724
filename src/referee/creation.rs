//! Items that are created in part (`windows-sync.md` R22).

use super::rule::{Breach, Rule};
use crate::knowledge::{ItemId, Knowledge, ReplicaId};

/// R22, where it can be proven: some change units of `item` were left out, and the destination had no such item.
///
/// Whoever has an item knows its version (R14). So it had none where it knew no version of it `before`, of whichever unit, and
/// knows none of its own `after`, by which a user could have made one meanwhile. Any other knowledge leaves room for one: it
/// is of ranges, and does not say which of the versions in it are this item's.
pub(super) fn check(
    item: &ItemId,
    destination: &ReplicaId,
    before: &Knowledge,
    after: &Knowledge,
) -> Result<(), Breach> {
    let had_one = before.vectors_for_item(item).any(|vector| !vector.is_empty())
        || after.vectors_for_item(item).any(|vector| vector.get(destination) > 0);
    if had_one {
        return Ok(());
    }
    let message = format!("change units of item {item} were left out, of which the destination had nothing");
    Err(Breach::destination(Rule::CreatedInPart, message))
}
