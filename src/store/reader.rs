//! Pages of what is stored. Every page is one indexed query that begins behind the last row of the page before.

use jiff::Timestamp;
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension as _, params_from_iter};

use super::{AcceptedRequest, MAX_PAGE_SIZE, SessionEvent, SessionRecord, file};
use crate::types::{OperationId, SyncGuid, SyncState};

/// A page of a list.
#[derive(Clone, Debug, PartialEq)]
pub struct Page<T> {
    /// The rows.
    pub items: Vec<T>,
    /// Asks for the next page; empty when there is none.
    pub next_page_token: String,
}

/// Which sessions to list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionQuery {
    /// In one of these states; empty: in any.
    pub states: Vec<SyncState>,
    /// Of this operation.
    pub operation_id: Option<OperationId>,
}

/// Why a page could not be read.
#[derive(Debug)]
pub(super) enum Error {
    InvalidPageToken(String),
    Sqlite(rusqlite::Error),
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl<T> Page<T> {
    /// Cuts rows that were asked for one beyond the page.
    pub(super) fn cut(mut rows: Vec<(String, T)>, page_size: usize) -> Self {
        let more = rows.len() > page_size;
        rows.truncate(page_size);
        let next_page_token = match rows.last() {
            Some((token, _)) if more => token.clone(),
            _ => String::new(),
        };
        Self { items: rows.into_iter().map(|(_, item)| item).collect(), next_page_token }
    }
}

/// The page size that is used for the one asked for.
pub(super) fn page_size(asked: usize) -> usize {
    asked.clamp(1, MAX_PAGE_SIZE)
}

pub(super) fn request(connection: &Connection, request_id: &str) -> Result<Option<AcceptedRequest>, Error> {
    let mut statement = connection.prepare_cached(
        "SELECT digest, operation_id, sync_guid, create_time
         FROM request_ids WHERE request_id = ?1 AND create_time > ?2",
    )?;
    let found = statement.query_row((request_id, file::oldest_request(Timestamp::now())), |row| {
        let sync_guid = row.get::<_, Option<String>>(2)?.map(|text| file::parsed(2, &text)).transpose()?;
        let time: i64 = row.get(3)?;
        Ok(AcceptedRequest {
            request_id: request_id.to_owned(),
            digest: row.get(0)?,
            operation_id: file::parsed(1, &row.get::<_, String>(1)?)?,
            sync_guid,
            create_time: Timestamp::from_microsecond(time)
                .map_err(|_| rusqlite::Error::IntegralValueOutOfRange(3, time))?,
        })
    });
    Ok(found.optional()?)
}

pub(super) const EVENTS: &str = "SELECT sync_guid, time, from_state, to_state, cause, message, revision
    FROM events WHERE sync_guid = ?1 AND revision > ?2 ORDER BY revision LIMIT ?3";

pub(super) fn events(
    connection: &Connection,
    sync_guid: SyncGuid,
    asked: usize,
    token: &str,
) -> Result<Page<SessionEvent>, Error> {
    let page_size = page_size(asked);
    let after: i64 = match token {
        "" => 0,
        token => token.parse().map_err(|_| Error::InvalidPageToken(token.to_owned()))?,
    };
    let mut statement = connection.prepare_cached(EVENTS)?;
    let rows = statement.query_map((sync_guid.to_string(), after, limit(page_size)), |row| {
        Ok((row.get::<_, i64>(6)?.to_string(), file::event(row)?))
    })?;
    Ok(Page::cut(rows.collect::<rusqlite::Result<_>>()?, page_size))
}

pub(super) fn sessions(
    connection: &Connection,
    query: &SessionQuery,
    asked: usize,
    token: &str,
) -> Result<Page<SessionRecord>, Error> {
    let page_size = page_size(asked);
    let (sql, values) = sessions_query(query, page_size, token)?;
    let mut statement = connection.prepare_cached(&sql)?;
    let rows = statement.query_map(params_from_iter(values), |row| {
        let place = format!("{}.{}", row.get::<_, i64>(0)?, row.get::<_, String>(1)?);
        Ok((place, file::from_json(row, 2)?))
    })?;
    Ok(Page::cut(rows.collect::<rusqlite::Result<_>>()?, page_size))
}

/// Each state is a run of its own in an index, in the order of the list; several are merged. An operation has so few sessions
/// that their states are looked at one by one.
pub(super) fn sessions_query(
    query: &SessionQuery,
    page_size: usize,
    token: &str,
) -> Result<(String, Vec<Value>), Error> {
    let mut conditions = Vec::new();
    let mut values: Vec<Value> = vec![limit(page_size).into()];
    if !token.is_empty() {
        let (time, sync_guid): (i64, SyncGuid) =
            parse_place(token).ok_or_else(|| Error::InvalidPageToken(token.to_owned()))?;
        conditions.push("(create_time, sync_guid) < (?2, ?3)".to_owned());
        values.extend([time.into(), sync_guid.to_string().into()]);
    }
    let mut states = query.states.clone();
    states.sort();
    states.dedup();
    let mut runs = vec![String::new()];
    if let Some(operation_id) = query.operation_id {
        values.push(operation_id.to_string().into());
        conditions.push(format!("operation_id = ?{}", values.len()));
        if !states.is_empty() {
            let states: Vec<_> = states.iter().map(|state| (*state as i64).to_string()).collect();
            // The sign keeps the index on states out of it.
            conditions.push(format!("+state IN ({})", states.join(", ")));
        }
    } else if !states.is_empty() {
        runs = states.iter().map(|state| format!("state = {}", *state as i64)).collect();
    }
    let runs: Vec<_> = runs
        .into_iter()
        .map(|run| {
            let conditions: Vec<_> = conditions.iter().cloned().chain([run]).filter(|part| !part.is_empty()).collect();
            let condition = if conditions.is_empty() { "1".to_owned() } else { conditions.join(" AND ") };
            format!("SELECT create_time, sync_guid, record FROM sessions WHERE {condition}")
        })
        .collect();
    let sql = format!("{} ORDER BY create_time DESC, sync_guid DESC LIMIT ?1", runs.join(" UNION ALL "));
    Ok((sql, values))
}

/// A place in a list by time: microseconds and id.
pub(super) fn parse_place<T: std::str::FromStr>(token: &str) -> Option<(i64, T)> {
    let (time, id) = token.split_once('.')?;
    Some((time.parse().ok()?, id.parse().ok()?))
}

fn limit(page_size: usize) -> i64 {
    i64::try_from(page_size).unwrap_or(i64::MAX - 1) + 1
}
