//! Durable commits of the store, beside bare SQLite: the same rows into the same tables, with the same grouping.
//!
//! `cargo bench --bench store` prints commits per second with 1, 16 and 64 writers at once; `-- --short` is quick. A commit is
//! the acceptance of a session: its record, its first transition, and its operation. What the store adds: it encodes records,
//! gives revisions, and publishes; for the bare one they were encoded before.

mod support;

use std::sync::Arc;
use std::time::Duration;

use support::bare_sqlite::{BareSqlite, Row, rows};
use support::mode::Mode;
use support::records;
use support::rounds::{Rounds, rate};
use support::table::{Table, per_second};
use synclave::store::{InitiatedBy, Store, Write};
use synclave::sync_info::Hub;
use synclave::types::SyncState;

const WRITERS: [usize; 3] = [1, 16, 64];

fn acceptance(number: usize) -> Vec<Write> {
    let mut session = records::session(number);
    let event = records::enter(&mut session, SyncState::Initialized, "ACCEPTED");
    let operation = records::operation(&session, InitiatedBy::Operation);
    vec![Write::Operation(Box::new(operation)), Write::Session(Box::new(session), Some(event))]
}

#[tokio::main]
async fn main() {
    let mode = Mode::from_arguments();
    let (turns, turn) = mode.pick((14, Duration::from_millis(500)), (2, Duration::from_millis(100)));
    let dirs = [tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory")];
    let (opened, recovered) = Store::open(dirs[0].path()).expect("a new store");
    let hub = Arc::new(Hub::new(recovered.epoch, recovered.sessions));
    let store = Arc::new(opened.start(move |published| hub.publish(published)).expect("a thread"));
    let bare = Arc::new(BareSqlite::open(dirs[1].path()));

    let title = format!("store: durable commits per second, beside bare SQLite with the same rows{}", mode.note());
    let mut table =
        Table::new(title, &["writers at once", "store", "bare SQLite", "store / bare (half of all rounds)"]);
    for writers in WRITERS {
        let mut figures = Rounds::default();
        for _ in 0..turns {
            // Made outside of the turn: more than can be used up in it.
            let made = (turn.as_secs_f64() * if writers == 1 { 12_000.0 } else { 40_000.0 }) as usize;
            let prepared: Vec<Vec<Write>> = (0..made).map(acceptance).collect();
            let encoded: Vec<Vec<Row>> = prepared.iter().map(|writes| writes.iter().flat_map(rows).collect()).collect();
            let (store, bare) = (Arc::clone(&store), Arc::clone(&bare));
            let commit = move |writes| {
                let store = Arc::clone(&store);
                async move { store.commit(writes).await.expect("written") }
            };
            let ours = rate(writers, turn, prepared, commit).await;
            let commit = move |rows| {
                let bare = Arc::clone(&bare);
                async move { bare.commit(rows).await }
            };
            figures.add([ours, rate(writers, turn, encoded, commit).await]);
        }
        table.row([
            writers.to_string(),
            per_second(figures.median(0)),
            per_second(figures.median(1)),
            figures.ratio(0, 1),
        ]);
    }
    table.print();
}
