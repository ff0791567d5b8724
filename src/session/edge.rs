//! The edges between session states, and nothing else (design section 4; replaces C1 and C5 of `dfsr.md`).

use crate::types::SyncState;

/// True when a session may go from `from` to `to`; `None` is the moment before it is accepted.
pub fn is_edge(from: Option<SyncState>, to: SyncState) -> bool {
    use SyncState::{Completed, Connecting, InError, InProgress, InSync, Initialized, Interrupted};
    match (from, to) {
        (None, Initialized) => true,
        (Some(Initialized), Connecting | Completed | Interrupted) => true,
        (Some(Connecting), InProgress | Completed | Interrupted | InError) => true,
        (Some(InProgress), Connecting | Completed | InSync | Interrupted | InError) => true,
        (None, _) | (Some(Initialized | Connecting | InProgress | Completed | InSync | Interrupted | InError), _) => {
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_the_design_and_no_other_edge() {
        let table = [
            (None, "0"),
            (Some(SyncState::Initialized), "1 3 5"),
            (Some(SyncState::Connecting), "2 3 5 6"),
            (Some(SyncState::InProgress), "1 3 4 5 6"),
            (Some(SyncState::Completed), ""),
            (Some(SyncState::InSync), ""),
            (Some(SyncState::Interrupted), ""),
            (Some(SyncState::InError), ""),
        ];
        for (from, expected) in table {
            let to: Vec<String> =
                SyncState::ALL.into_iter().filter(|to| is_edge(from, *to)).map(|to| (to as u32).to_string()).collect();
            assert_eq!(to.join(" "), expected, "from {from:?}");
        }
    }
}
