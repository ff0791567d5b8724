//! Options that several commands share.

use std::time::Duration;

use clap::ValueEnum;

use crate::pb;
use crate::provider::sdk::DEFAULT_TOMBSTONE_AGE;

/// How conflicts are settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Conflict {
    /// The destination's item stays
    DestinationWins,
    /// The source's item replaces it
    SourceWins,
    /// The later modification time wins
    LastWriterWins,
    /// The later modification time wins, and the other stays beside it under a name of its own
    KeepBoth,
    /// Conflicts are deferred: both sides stay as they are, and are not in sync
    None,
}

impl From<Conflict> for pb::ConflictResolutionPolicy {
    fn from(conflict: Conflict) -> Self {
        match conflict {
            Conflict::DestinationWins => Self::DestinationProviderWins,
            Conflict::SourceWins => Self::SourceProviderWins,
            Conflict::LastWriterWins => Self::LastWriterWins,
            Conflict::KeepBoth => Self::KeepBoth,
            Conflict::None => Self::None,
        }
    }
}

/// How collisions are settled: two items of which a store can only have one, such as a file and a directory of one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Collision {
    /// The destination's item stays, and the source's is deleted everywhere
    DestinationWins,
    /// The destination's item is deleted everywhere, and the source's takes its place
    SourceWins,
    /// The two become one, where the stores can merge them
    Merge,
    /// The source's item gets a name of its own
    RenameSource,
    /// The destination's item gets a name of its own
    RenameDestination,
    /// Collisions are deferred: both sides stay as they are, and are not in sync
    None,
}

impl From<Collision> for pb::CollisionConflictResolutionPolicy {
    fn from(collision: Collision) -> Self {
        match collision {
            Collision::DestinationWins => Self::DestinationProviderWins,
            Collision::SourceWins => Self::SourceProviderWins,
            Collision::Merge => Self::Merge,
            Collision::RenameSource => Self::RenameSource,
            Collision::RenameDestination => Self::RenameDestination,
            Collision::None => Self::None,
        }
    }
}

/// What to do with a destination that is out of date: one that has not seen deletions which the source has forgotten since.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum FullEnumeration {
    /// Compare all items; what the source has deleted goes
    #[value(name = "full", alias = "full-enumeration")]
    Full,
    /// Apply what was sent, and learn it item by item; the destination stays out of date
    #[value(name = "partial", alias = "partial-sync")]
    PartialSync,
    /// End the session
    Abort,
}

impl From<FullEnumeration> for pb::FullEnumerationAction {
    fn from(action: FullEnumeration) -> Self {
        match action {
            FullEnumeration::Full => Self::FullEnumeration,
            FullEnumeration::PartialSync => Self::PartialSync,
            FullEnumeration::Abort => Self::Abort,
        }
    }
}

/// Which directions, in which order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Direction {
    /// Source to destination only
    Upload,
    /// Destination to source only
    Download,
    /// Upload, then download
    UploadAndDownload,
    /// Download, then upload
    DownloadAndUpload,
}

impl From<Direction> for pb::SyncDirectionOrder {
    fn from(direction: Direction) -> Self {
        match direction {
            Direction::Upload => Self::Upload,
            Direction::Download => Self::Download,
            Direction::UploadAndDownload => Self::UploadAndDownload,
            Direction::DownloadAndUpload => Self::DownloadAndUpload,
        }
    }
}

/// A session's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum State {
    /// Waits for admission
    Initialized,
    /// Dialling, enlisting, or reconnecting
    Connecting,
    /// Moving changes
    InProgress,
    /// Ended in good order, not known in sync
    Completed,
    /// Nothing was left out
    InSync,
    /// Cancelled, replaced, or its coordinator restarted
    Interrupted,
    /// A provider or the coordinator failed
    InError,
}

impl From<State> for pb::SyncState {
    fn from(state: State) -> Self {
        match state {
            State::Initialized => Self::Initialized,
            State::Connecting => Self::Connecting,
            State::InProgress => Self::InProgress,
            State::Completed => Self::Completed,
            State::InSync => Self::InSync,
            State::Interrupted => Self::Interrupted,
            State::InError => Self::InError,
        }
    }
}

/// The states as they go over the wire.
pub(super) fn states(states: &[State]) -> Vec<i32> {
    states.iter().map(|state| pb::SyncState::from(*state).into()).collect()
}

/// Parses `500ms`, `2s`, `1m30s`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let span: jiff::SignedDuration =
        text.parse().map_err(|_| "is no span of time; write it as 500ms, 2s or 1m".to_owned())?;
    Duration::try_from(span).map_err(|_| "is negative".to_owned())
}

/// How old a tombstone is when it is cleaned up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TombstoneAge(pub(super) Option<Duration>);

impl Default for TombstoneAge {
    fn default() -> Self {
        Self(Some(DEFAULT_TOMBSTONE_AGE))
    }
}

impl std::str::FromStr for TombstoneAge {
    type Err = String;

    /// Parses `never`, a number of days as `60d`, or a span as [`duration`] does.
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "never" {
            return Ok(Self(None));
        }
        let days = text.strip_suffix('d').and_then(|days| days.trim().parse::<u32>().ok());
        match days {
            Some(days) => Ok(Self(Some(Duration::from_secs(u64::from(days) * 24 * 60 * 60)))),
            None => duration(text)
                .map(|span| Self(Some(span)))
                .map_err(|_| "is no span of time; write it as 60d, 12h or never".to_owned()),
        }
    }
}

/// A span as it goes over the wire.
pub(super) fn to_pb(span: Duration) -> prost_types::Duration {
    // More than 292 billion years is as good as that.
    let seconds = i64::try_from(span.as_secs()).unwrap_or(i64::MAX);
    prost_types::Duration { seconds, nanos: i32::try_from(span.subsec_nanos()).unwrap_or(0) }
}

/// Which page of a list.
#[derive(Debug, clap::Args)]
pub(super) struct Page {
    /// Entries at most; more than 1000 means 1000
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(i32).range(1..))]
    pub(super) page_size: i32,
    /// Go on where a page ended: the next page token that it came with
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TOKEN")]
    pub(super) page_token: String,
}

impl Page {
    /// Says on stderr how to get the next page, so that stdout stays a table.
    pub(super) fn point_to(next_page_token: &str) {
        if !next_page_token.is_empty() {
            super::exit::report(&format!("there is more: --page-token {next_page_token}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_of_time_are_read_as_people_write_them() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2s"), Ok(Duration::from_secs(2)));
        assert_eq!(duration("1m30s"), Ok(Duration::from_secs(90)));
        assert!(duration("-1s").is_err());
        assert!(duration("soon").is_err());
    }

    #[test]
    fn an_age_is_days_a_span_or_never() {
        assert_eq!("60d".parse(), Ok(TombstoneAge::default()));
        assert_eq!("0s".parse(), Ok(TombstoneAge(Some(Duration::ZERO))));
        assert_eq!("never".parse(), Ok(TombstoneAge(None)));
        assert!("old".parse::<TombstoneAge>().is_err());
    }
}
