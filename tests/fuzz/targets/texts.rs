//! Tokens, ids, and the contents of items with change units.

use std::fs;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::Connection;
use synclave::grpc::address::{self, AddressError};
use synclave::knowledge::{Digest, IdFormat, ItemDataHeader, ItemId};
use synclave::provider::sdk::decision::Object;
use synclave::provider::sdk::{ItemState, ItemStore as _, KnownItem, Replaces};
use synclave::providers::sqlite::SqliteStore;
use synclave::store::{SessionQuery, Store};
use synclave::sync_info::{Filter, WatchEvent};
use synclave::types::SyncGuid;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::requests::HUB;
use crate::harness::{Target, Verdict};

pub(super) fn all() -> Vec<Target> {
    vec![
        Target::of_bytes("id_format", id_format),
        Target::of_bytes("watch_token", watch_token),
        Target::of_bytes("page_token", page_token),
        Target::of_bytes("address", provider_address),
        Target::of_bytes("units_of_an_item", units),
        Target::of_bytes("row_of_a_table", row),
    ]
}

fn text(input: &[u8]) -> Option<&str> {
    std::str::from_utf8(input).ok()
}

/// A format, from a byte and a size, and any bytes as an id.
fn id_format(input: &[u8]) -> Verdict {
    let Some(([kind, low, high], id)) = input.split_first_chunk() else { return Verdict::Garbage };
    let size = u16::from_le_bytes([*low, *high]).max(1);
    let format = if kind % 2 == 0 { IdFormat::Fixed(size) } else { IdFormat::Variable(size) };
    let id = ItemId::from(id);
    let (here, next) = (format.at_or_after(&id), format.after(&id));
    for bound in [&here, &next].into_iter().flatten() {
        assert!(format.fits(bound.as_bytes().len()), "{bound} does not fit");
    }
    assert!(here.as_ref().is_none_or(|here| *here >= id));
    assert!(next.as_ref().is_none_or(|next| *next > id));
    assert!(here.is_some() || next.is_none(), "all are below it, and one is above");
    let fits = format.fits(id.as_bytes().len());
    assert_eq!(fits, here.as_ref() == Some(&id));
    Verdict::Accepted(format!("{fits} {} {}", here.is_some(), next.is_some()))
}

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime"));

/// A resume token: it is used, or the watch begins anew and says why.
fn watch_token(input: &[u8]) -> Verdict {
    let Some(token) = text(input) else { return Verdict::Garbage };
    let _entered = RUNTIME.enter();
    let mut cursor = HUB.watch(&Filter::default(), token, Duration::from_secs(10));
    let message = RUNTIME.block_on(cursor.next());
    match message.event {
        WatchEvent::Reset { reason } => Verdict::Refused(reason.as_str().to_owned()),
        WatchEvent::Synced { .. } => Verdict::Accepted(String::new()),
        other => panic!("an empty history begins with {other:?}"),
    }
}

static STORE: LazyLock<(TempDir, Store)> = LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("a directory");
    let (opened, _) = Store::open(dir.path()).expect("a new store");
    (dir, opened.start(|_| {}).expect("a thread"))
});

/// A token of a page: of the hub's list and of the store's. One that is none of ours is refused as such.
fn page_token(input: &[u8]) -> Verdict {
    let Some(token) = text(input) else { return Verdict::Garbage };
    let store = &STORE.1;
    let query = SessionQuery { states: Vec::new(), operation_id: None };
    let told = RUNTIME.block_on(async {
        [
            store.sessions(query, 3, token).await.map(drop).map_err(|error| error.to_string()),
            store
                .events(SyncGuid(uuid::Uuid::from_bytes([7; 16])), 3, token)
                .await
                .map(drop)
                .map_err(|error| error.to_string()),
            store.conflicts(None, 3, token).await.map(drop).map_err(|error| error.to_string()),
            store.item_errors(None, 3, token).await.map(drop).map_err(|error| error.to_string()),
            HUB.list(&Filter::default(), 3, token).map(drop).map_err(|error| error.to_string()),
        ]
    });
    let mut kinds = String::new();
    for one in &told {
        match one {
            Ok(()) => kinds.push('1'),
            Err(error) => {
                assert!(error.contains("page"), "the store failed on a token: {error}");
                kinds.push('0');
            }
        }
    }
    if kinds.contains('1') { Verdict::Accepted(kinds) } else { Verdict::Refused(kinds) }
}

/// Where a provider is.
fn provider_address(input: &[u8]) -> Verdict {
    let Some(text) = text(input) else { return Verdict::Garbage };
    match address::parse(text) {
        Ok(uri) => {
            let again = address::parse(&uri.to_string()).expect("what is taken is taken again");
            assert_eq!(again, uri);
            Verdict::Accepted(String::new())
        }
        Err(AddressError::Malformed(_)) => Verdict::Refused("malformed".to_owned()),
        Err(AddressError::Tls(_)) => Verdict::Refused("TLS".to_owned()),
    }
}

/// An item with change units: JSON, whose canonical form is one.
fn units(input: &[u8]) -> Verdict {
    let Some(object) = Object::parse(input) else { return Verdict::Refused(String::new()) };
    let canonical = object.canonical();
    let again = Object::parse(&canonical).expect("what we write we read");
    assert_eq!(again, object, "reads the same");
    assert_eq!(again.canonical(), canonical, "there is one form");
    assert_eq!(object.part(object.units()), object, "all its parts are the whole");
    let members: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&canonical).expect("others read it, too");
    assert_eq!(members.len(), object.units().count());
    Verdict::Accepted(super::kind_of(&members.values().collect::<Vec<_>>()))
}

static TABLE: LazyLock<Mutex<(TempDir, SqliteStore)>> = LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("table.db");
    let connection = Connection::open(&path).expect("a database");
    connection
        .execute_batch("CREATE TABLE t (id TEXT PRIMARY KEY, i INTEGER, r REAL, s TEXT, b BLOB, a ANY)")
        .expect("a table");
    drop(connection);
    assert!(fs::exists(&path).expect("it is there"));
    let store = SqliteStore::open(&path, "t").expect("a table");
    Mutex::new((dir, store))
});

/// A row that a peer sends to a table: it is refused, or comes back as it is in canonical form.
fn row(input: &[u8]) -> Verdict {
    let table = TABLE.lock().unwrap_or_else(PoisonError::into_inner);
    let store = &table.1;
    let id = ItemId::from("row");
    let header = ItemDataHeader { content_size: input.len() as u64, ..ItemDataHeader::default() };
    let put = || {
        let mut staging = store.stage(&id, &header).map_err(|error| error.to_string())?;
        std::io::Write::write_all(&mut staging, input).map_err(|error| error.to_string())?;
        let staged = staging.finish().map_err(|error| error.to_string())?;
        let state = state_of(input);
        store.put(&id, staged, &state, &Replaces::Nothing).map_err(|error| error.to_string())
    };
    let verdict = match put() {
        Err(error) => {
            let words: String = error.chars().filter(|c| c.is_ascii_alphabetic() || *c == ' ').take(40).collect();
            Verdict::Refused(words)
        }
        Ok(_) => {
            let object = Object::parse(input);
            // What is there is found under the digest of its canonical form.
            let mut members: std::collections::BTreeMap<String, serde_json::Value> =
                serde_json::from_slice(input).expect("what a table takes is an object");
            for column in ["i", "r", "s", "b", "a"] {
                members.entry(column.to_owned()).or_insert(serde_json::Value::Null);
            }
            let canonical = serde_json::to_vec(&members).expect("JSON");
            let known = KnownItem { state: state_of(&canonical), fingerprint: Default::default(), deleted: false };
            let mut content = Vec::new();
            std::io::Read::read_to_end(&mut store.open(&id, &known).expect("it is there as it was sent"), &mut content)
                .expect("in memory");
            assert_eq!(content, canonical);
            Verdict::Accepted(object.map(|object| object.units().count()).unwrap_or_default().to_string())
        }
    };
    // Takes the open transaction back.
    store.end_session();
    verdict
}

fn state_of(content: &[u8]) -> ItemState {
    use sha2::Digest as _;
    let digest = Digest(sha2::Sha256::digest(content).into());
    ItemState { properties: Default::default(), size: content.len() as u64, digest, modification_time: None }
}
