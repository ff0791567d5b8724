//! What a sync did, in words.

use std::fmt::Write as _;

use super::exit::{Exit, Failure, one_line};
use super::render;
use super::table::{bytes, count};
use crate::pb;

/// Names of one kind that are shown; the rest is counted.
const NAMES_SHOWN: usize = 20;

/// How a sync ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The replicas are in sync in every direction asked for.
    InSync,
    /// It ended in good order, and something was left out.
    NotInSync,
    /// It failed.
    Failed,
    /// It was cancelled.
    Canceled,
}

impl From<End> for Exit {
    fn from(end: End) -> Self {
        match end {
            End::InSync => Self::Done,
            End::NotInSync | End::Canceled => Self::NotInSync,
            End::Failed => Self::Failed,
        }
    }
}

impl End {
    /// How an operation ended; `None` while it has not.
    pub(super) fn of_operation(operation: &pb::Operation) -> Option<Self> {
        match operation.state() {
            pb::OperationState::InSync => Some(Self::InSync),
            pb::OperationState::Ended => Some(Self::NotInSync),
            pb::OperationState::Failed => Some(Self::Failed),
            pb::OperationState::Canceled => Some(Self::Canceled),
            pb::OperationState::Running | pb::OperationState::Waiting | pb::OperationState::Unspecified => None,
        }
    }

    /// How a session ended; `None` while it has not.
    pub(super) fn of_session(session: &pb::Session) -> Option<Self> {
        match pb::SyncState::try_from(session.state?).ok()? {
            pb::SyncState::InSync => Some(Self::InSync),
            pb::SyncState::Completed => Some(Self::NotInSync),
            pb::SyncState::InError => Some(Self::Failed),
            pb::SyncState::Interrupted => Some(Self::Canceled),
            pb::SyncState::Initialized | pb::SyncState::Connecting | pb::SyncState::InProgress => None,
        }
    }

    /// What a direction comes to in which nothing happened: only who is in sync has nothing to do.
    pub(super) fn of_nothing(self) -> &'static str {
        if self == Self::InSync { "nothing to do" } else { "nothing" }
    }
}

/// What went in one direction, over all sessions of the sync.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Moved {
    /// From where.
    pub(super) from: String,
    /// To where.
    pub(super) to: String,
    /// Changes that the destination applied, deletions among them.
    pub(super) updates: u64,
    /// Bytes of item data delivered.
    pub(super) bytes: u64,
    /// Deletions among the changes.
    pub(super) deleted: u64,
    /// Conflicts met.
    pub(super) conflicts: u64,
}

/// A conflict that was settled by keeping both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ConflictCopy {
    /// The item, as the one that won has it.
    pub(super) item: String,
    /// The name that the other one has now.
    pub(super) copy: String,
}

/// Something that was not carried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LeftOut {
    /// The item, as a person knows it.
    pub(super) name: String,
    /// One line.
    pub(super) reason: String,
}

/// What only this very process knows about a sync: its providers, and its coordinator.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Findings {
    /// Conflicts that were settled by keeping both.
    pub(super) conflict_copies: Vec<ConflictCopy>,
    /// Items that failed or wait for a decision: while there are any, the replicas are not in sync.
    pub(super) left_out: Vec<LeftOut>,
    /// What could not be read, or not be listed, at the last look.
    pub(super) unreadable: Vec<LeftOut>,
    /// What a provider never carries, such as sockets.
    pub(super) skipped: Vec<LeftOut>,
}

impl Findings {
    /// Adds what the coordinator knows to have been left out. What a provider said of an item already, it says better.
    pub(super) fn add_left_out(&mut self, items: Vec<LeftOut>) {
        for item in items {
            if !self.left_out.iter().any(|said| said.name == item.name) {
                self.left_out.push(item);
            }
        }
    }
}

/// What a sync did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Summary {
    /// How it ended.
    pub(super) end: End,
    /// The two ends, as the user named them.
    pub(super) ends: [String; 2],
    /// Direction by direction, in the order in which they first ran.
    pub(super) moved: Vec<Moved>,
    /// What the providers know besides.
    pub(super) findings: Findings,
    /// Who failed and why; empty when nobody did.
    pub(super) error: String,
}

impl Summary {
    /// Adds up the sessions of an operation. `ends` are its source and destination.
    pub(super) fn new(
        operation: &pb::Operation,
        sync_infos: &[pb::SyncInfo],
        ends: [String; 2],
        findings: Findings,
    ) -> Self {
        let end = End::of_operation(operation).unwrap_or(End::NotInSync);
        let error = if end == End::InSync { String::new() } else { render::operation_fault(operation) };
        Self { end, moved: moved(operation, sync_infos, &ends), ends, findings, error }
    }

    /// The line for stderr when the sync failed: the summary says it too, but stdout may go elsewhere.
    pub(super) fn failure(&self) -> Option<Failure> {
        let [a, b] = &self.ends;
        let why = if self.error.is_empty() { "no reason was given" } else { &self.error };
        (self.end == End::Failed).then(|| {
            Failure::failed(format!(
                "the sync of {a} and {b} failed: {why}; what was applied stays, so put it right and try again"
            ))
        })
    }

    /// How the command ends: what cannot be read at a directory of this process is not in sync.
    pub(super) fn exit(&self) -> Exit {
        match self.end {
            End::InSync if !self.findings.unreadable.is_empty() => Exit::NotInSync,
            end => end.into(),
        }
    }

    /// The summary as a text of some lines.
    pub(super) fn words(&self) -> String {
        let [a, b] = &self.ends;
        let mut text = String::new();
        let unreadable = self.findings.unreadable.len() as u64;
        let verdict = match self.end {
            End::InSync if unreadable > 0 => {
                format!("are in sync but for {} that cannot be read", count(unreadable, "item"))
            }
            End::InSync => "are in sync".to_owned(),
            End::NotInSync => "are not in sync yet".to_owned(),
            End::Failed => "are not in sync: the sync failed".to_owned(),
            End::Canceled => "are not in sync: the sync was cancelled; what was applied stays".to_owned(),
        };
        let _ = writeln!(text, "{a} and {b} {verdict}.");
        for moved in &self.moved {
            let _ = writeln!(text, "{} → {}: {}.", moved.from, moved.to, moved.words(self.end));
        }
        let copies = &self.findings.conflict_copies;
        list(&mut text, "Kept both of", copies.iter().map(|copy| format!("{}, the other as {}", copy.item, copy.copy)));
        let reasons = |items: &[LeftOut]| {
            items.iter().map(|item| format!("{}: {}", item.name, item.reason)).collect::<Vec<_>>().into_iter()
        };
        list(&mut text, "Left out, so try again when it is resolved:", reasons(&self.findings.left_out));
        list(&mut text, "Cannot be read:", reasons(&self.findings.unreadable));
        list(&mut text, "Never carried:", reasons(&self.findings.skipped));
        if !self.error.is_empty() {
            let _ = writeln!(text, "Last failure: {}", one_line(&self.error));
        }
        text
    }
}

/// What an operation has left on its way, and where to look; nothing when nothing is left.
pub(super) fn left_behind(operation: &pb::Operation) -> String {
    let mut text = String::new();
    let (failed, set_aside) = (operation.items_failed, operation.items_set_aside);
    if failed > 0 {
        let aside = if set_aside > 0 { format!(" ({set_aside} set aside)") } else { String::new() };
        let _ = writeln!(text, "{} failed{aside}: see synclave errors list", count(failed, "item"));
    }
    match operation.conflicts_deferred {
        0 => {}
        1 => text.push_str("1 conflict is open: see synclave conflict list\n"),
        many => {
            let _ = writeln!(text, "{many} conflicts are open: see synclave conflict list");
        }
    }
    text
}

impl Moved {
    fn words(&self, end: End) -> String {
        let mut parts = Vec::new();
        let written = self.updates.saturating_sub(self.deleted);
        if written > 0 || self.bytes > 0 {
            parts.push(format!("moved {} ({})", count(written, "item"), bytes(self.bytes)));
        }
        if self.deleted > 0 {
            // The other end may never have had the items.
            parts.push(format!("passed on {}", count(self.deleted, "deletion")));
        }
        if self.conflicts > 0 {
            parts.push(format!("met {}", count(self.conflicts, "conflict")));
        }
        if parts.is_empty() { end.of_nothing().to_owned() } else { parts.join(", ") }
    }
}

/// A headed list, cut at [`NAMES_SHOWN`]; nothing for an empty one.
fn list(text: &mut String, heading: &str, mut lines: impl ExactSizeIterator<Item = String>) {
    if lines.len() == 0 {
        return;
    }
    let _ = writeln!(text, "{heading}");
    for line in lines.by_ref().take(NAMES_SHOWN) {
        let _ = writeln!(text, "  {}", one_line(&line));
    }
    if lines.len() > 0 {
        let _ = writeln!(text, "  and {} more", lines.len());
    }
}

/// Sums over the sessions of each direction. A member is told apart by its GUID, and named as the user named its end: two
/// providers may well call themselves the same.
pub(super) fn moved(operation: &pb::Operation, sync_infos: &[pb::SyncInfo], ends: &[String; 2]) -> Vec<Moved> {
    use pb::SyncDirectionOrder::{Download, DownloadAndUpload};
    let mut upload_source: Option<&str> = None;
    let mut directions: Vec<(&str, Moved)> = Vec::new();
    for info in sync_infos.iter().filter_map(|info| info.dfsr_sync_info.as_ref()).filter(|info| info.inbound) {
        // The first session runs in the operation's first direction, and so tells which member is which end.
        let source = *upload_source.get_or_insert(match operation.direction() {
            Download | DownloadAndUpload => &info.member_guid,
            _ => &info.partner_guid,
        });
        let index = directions.iter().position(|(member, _)| *member == info.member_guid).unwrap_or_else(|| {
            let [a, b] = ends.clone();
            let (from, to) = if info.partner_guid == source { (a, b) } else { (b, a) };
            directions.push((&info.member_guid, Moved { from, to, ..Moved::default() }));
            directions.len() - 1
        });
        let sum = &mut directions[index].1;
        sum.updates += u64::from(info.updates_transferred);
        sum.bytes += info.bytes_transferred;
        sum.deleted += u64::from(info.tombstones_generated());
        sum.conflicts += u64::from(info.conflicts_generated());
    }
    directions.into_iter().map(|(_, moved)| moved).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(end: End) -> Summary {
        Summary {
            end,
            ends: ["a".to_owned(), "b".to_owned()],
            moved: Vec::new(),
            findings: Findings::default(),
            error: String::new(),
        }
    }

    #[test]
    fn in_sync_and_nothing_to_do_is_short() {
        let mut summary = summary(End::InSync);
        summary.moved.push(Moved { from: "a".into(), to: "b".into(), ..Moved::default() });
        assert_eq!(summary.words(), "a and b are in sync.\na → b: nothing to do.\n");
    }

    #[test]
    fn what_did_not_come_about_was_not_nothing_to_do() {
        for end in [End::NotInSync, End::Failed, End::Canceled] {
            let mut summary = summary(end);
            summary.moved.push(Moved { from: "a".into(), to: "b".into(), ..Moved::default() });
            assert!(summary.words().ends_with("\na → b: nothing.\n"), "{}", summary.words());
        }
    }

    #[test]
    fn everything_that_happened_is_said() {
        let mut summary = summary(End::NotInSync);
        summary.moved.push(Moved {
            from: "a".into(),
            to: "b".into(),
            updates: 5,
            bytes: 2048,
            deleted: 1,
            conflicts: 1,
        });
        summary.findings = Findings {
            conflict_copies: vec![ConflictCopy { item: "n.txt".into(), copy: "n.conflict-1.txt".into() }],
            left_out: vec![LeftOut { name: "x".into(), reason: "permission denied".into() }],
            unreadable: vec![LeftOut { name: "secret".into(), reason: "cannot be read".into() }],
            skipped: vec![LeftOut { name: "pipe".into(), reason: "a FIFO".into() }],
        };
        summary.error = "destination: no space".into();
        assert_eq!(
            summary.words(),
            "a and b are not in sync yet.\n\
             a → b: moved 4 items (2.0 KiB), passed on 1 deletion, met 1 conflict.\n\
             Kept both of\n  n.txt, the other as n.conflict-1.txt\n\
             Left out, so try again when it is resolved:\n  x: permission denied\n\
             Cannot be read:\n  secret: cannot be read\n\
             Never carried:\n  pipe: a FIFO\n\
             Last failure: destination: no space\n"
        );
    }

    #[test]
    fn what_a_server_has_left_on_the_way_is_counted_and_pointed_to() {
        assert_eq!(left_behind(&pb::Operation::default()), "");
        let operation =
            pb::Operation { items_failed: 2, items_set_aside: 1, conflicts_deferred: 2, ..Default::default() };
        assert_eq!(
            left_behind(&operation),
            "2 items failed (1 set aside): see synclave errors list\n\
             2 conflicts are open: see synclave conflict list\n"
        );
        let operation = pb::Operation { items_failed: 1, conflicts_deferred: 1, ..Default::default() };
        assert_eq!(
            left_behind(&operation),
            "1 item failed: see synclave errors list\n1 conflict is open: see synclave conflict list\n"
        );
    }

    #[test]
    fn in_sync_but_for_what_cannot_be_read() {
        let mut summary = summary(End::InSync);
        summary.findings.unreadable = vec![LeftOut { name: "d".into(), reason: "cannot be listed".into() }];
        assert_eq!(
            summary.words(),
            "a and b are in sync but for 1 item that cannot be read.\nCannot be read:\n  d: cannot be listed\n"
        );
        assert_eq!(summary.exit(), Exit::NotInSync);
    }

    #[test]
    fn long_lists_are_cut_and_counted() {
        let mut summary = summary(End::NotInSync);
        summary.findings.left_out = (0..25).map(|i| LeftOut { name: format!("f{i}"), reason: "busy".into() }).collect();
        let words = summary.words();
        assert!(words.contains("f19") && !words.contains("f20") && words.ends_with("  and 5 more\n"), "{words}");
    }

    #[test]
    fn sessions_add_up_by_direction_under_the_users_names() {
        let session = |partner: &str, member: &str, updates| pb::SyncInfo {
            dfsr_sync_info: Some(pb::DfsrSyncInfo {
                partner_guid: partner.into(),
                member_guid: member.into(),
                partner_name: "same".into(),
                member_name: "same".into(),
                inbound: true,
                updates_transferred: updates,
                ..Default::default()
            }),
            ..Default::default()
        };
        let mut operation = pb::Operation::default();
        operation.set_state(pb::OperationState::InSync);
        operation.set_direction(pb::SyncDirectionOrder::UploadAndDownload);
        let infos = [session("A", "B", 1), session("B", "A", 2), session("A", "B", 4)];
        let ends = ["a".to_owned(), "b".to_owned()];
        let summary = Summary::new(&operation, &infos, ends, Findings::default());
        let moved: Vec<_> = summary.moved.iter().map(|m| (m.from.as_str(), m.to.as_str(), m.updates)).collect();
        assert_eq!(moved, [("a", "b", 5), ("b", "a", 2)]);
        assert_eq!(Exit::from(summary.end), Exit::Done);
    }
}
