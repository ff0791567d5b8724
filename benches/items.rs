//! A replica of 10,000 to 1,000,000 items: memory for each, and what a look and an enumeration cost.
//!
//! `cargo bench --bench items` prints, for a table of so many rows (`synclave provider sqlite`, a store with a change feed) whose
//! replica and whose partner have 10,000 exceptions in their knowledge, the time of a step and, behind it, how much more it
//! takes than with 10,000 rows. What depends on the changes alone stays at about 1, what is linear in the items is at 10 and at
//! 100. `-- --short` stops at 4,000 rows. Each size runs in processes of its own, so that memory is theirs alone.

mod support;

use std::io::BufRead as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::{Connection, params};
use support::mode::Mode;
use support::process::{Process, role};
use support::table::{Table, span};
use synclave::knowledge::{
    ChangeBatch, ChangeFlags, ChangeGroup, ClockVector, FilterFlags, GroupKind, IdParameters, ItemChange, ItemData,
    ItemDataHeader, ItemId, Knowledge, ReplicaId, Selection, Version,
};
use synclave::provider::sdk::{Options, ReplicaProvider};
use synclave::provider::{
    BeginSession, ChangeBatchRequest, EndSession, MAX_MESSAGE_BYTES, ProcessOutput, ProcessStart, Provider, SessionKey,
    SessionRef,
};
use synclave::providers::sqlite::SqliteStore;
use synclave::types::{ConflictResolutionPolicy, Hresult, ProviderRole, SyncGuid, SyncState};
use tokio::sync::mpsc;

/// Rows that change for the figures that have nothing to do with the size.
const FEW: usize = 100;

/// Tries of what is quick; the best is told.
const TRIES: usize = 3;

/// Where a table of so many rows and its replica's metadata are.
struct Replica {
    database: std::path::PathBuf,
    provider: Arc<ReplicaProvider>,
}

fn name(number: usize) -> String {
    format!("{number:08}")
}

impl Replica {
    fn create(dir: &Path, items: usize) {
        let mut connection = Connection::open(dir.join("table.db")).expect("a database");
        connection.pragma_update(None, "journal_mode", "WAL").expect("WAL");
        connection
            .execute_batch("CREATE TABLE items (id TEXT PRIMARY KEY, number INTEGER, note TEXT) WITHOUT ROWID")
            .expect("a table");
        let transaction = connection.transaction().expect("a transaction");
        {
            let mut insert = transaction.prepare("INSERT INTO items VALUES (?1, ?2, 'a row')").expect("SQL");
            for number in 0..items {
                insert.execute(params![name(number), number as i64]).expect("a row");
            }
        }
        transaction.commit().expect("durable");
    }

    fn open(dir: &Path) -> Self {
        let database = dir.join("table.db");
        let store = Arc::new(SqliteStore::open(&database, "items").expect("a table"));
        let identity = store.identity();
        let options = Options::default();
        let provider = ReplicaProvider::open(store, &dir.join("metadata"), &identity, options).expect("metadata");
        Self { database, provider }
    }

    /// A user changes so many rows, spread over the table.
    fn edit(&self, changes: usize, items: usize) {
        let mut connection = Connection::open(&self.database).expect("a database");
        let transaction = connection.transaction().expect("a transaction");
        for number in 0..changes {
            let id = name(number * (items / changes));
            transaction.execute("UPDATE items SET number = number + 1 WHERE id = ?1", [id]).expect("a row");
        }
        transaction.commit().expect("durable");
    }

    /// BeginSession, with its look for local changes.
    async fn begin(&self, role: ProviderRole) -> SessionKey {
        let key = SessionKey { sync_guid: SyncGuid::generate(), epoch: 1 };
        let lease = Duration::from_secs(600);
        let session = SessionRef { key, token: "secret".to_owned(), lease, coordinator_address: None };
        let begin = BeginSession { role, session, allow_mass_delete: false, operation_age: None, partner: None };
        self.provider.begin_session(begin).await.expect("begun");
        key
    }

    async fn end(&self, key: SessionKey) {
        let state = SyncState::Completed;
        let end = EndSession { key, state, hresult: Hresult::S_OK, message: String::new(), provider_with_error: None };
        self.provider.end_session(end).await.expect("ended");
    }

    async fn knowledge(&self) -> Knowledge {
        let key = self.begin(ProviderRole::Destination).await;
        let parameters = self.provider.get_sync_batch_parameters(key).await.expect("parameters");
        self.end(key).await;
        parameters.knowledge
    }

    /// Learns so many items one by one from a replica that is known of no others: as many exceptions.
    async fn learn_exceptions(&self, exceptions: usize, items: usize) {
        let known = self.knowledge().await;
        let other = ReplicaId::from(vec![0xbb; 16]);
        let format = IdParameters::BUILT_IN.item_id;
        let change = |number: usize| {
            let content = bytes::Bytes::from_static(br#"{"note":"from elsewhere","number":0}"#);
            let header = ItemDataHeader { content_size: content.len() as u64, ..ItemDataHeader::default() };
            let version = Version::new(other.clone(), number as u64 + 1);
            ItemChange {
                // Between the rows of the table.
                item_id: ItemId::from(format!("{}x", name(number * items / exceptions)).into_bytes()),
                creation_version: version.clone(),
                change_version: Some(version),
                flags: ChangeFlags::NONE,
                change_units: Vec::new(),
                winner_item_id: None,
                work_estimate: 1,
                data_size: Some(content.len() as u64),
                content_digest: None,
                modification_time: None,
                inline_data: Some(ItemData { header, content }),
            }
        };
        let made_with = Knowledge::from_vector(format, ClockVector::from_iter([(other.clone(), exceptions as u64)]));
        let batch = ChangeBatch {
            groups: vec![ChangeGroup {
                kind: GroupKind::Unordered { all_changes_for_knowledge: false },
                made_with_knowledge: Arc::new(made_with),
                changes: (0..exceptions).map(change).collect(),
            }],
            prerequisite_knowledge: Arc::new(known),
            forgotten_knowledge: Arc::new(Knowledge::new(format)),
            work_estimate: 0,
            remaining_work_estimate: 0,
            remaining_updates: Some(0),
            remaining_deletions: Some(0),
            is_last_batch: true,
            filter_flags: FilterFlags::NONE,
        };
        let key = self.begin(ProviderRole::Destination).await;
        let (_inputs, receiver) = mpsc::channel(1);
        let start = ProcessStart::new(ConflictResolutionPolicy::LastWriterWins);
        let mut outputs = self.provider.process_change_batch(key, start, batch, receiver).await.expect("taken");
        loop {
            match outputs.recv().await.expect("a result").expect("applied") {
                ProcessOutput::Result(result) => break assert_eq!(result.changes_applied as usize, exceptions),
                ProcessOutput::Outcome(_) | ProcessOutput::Progress { .. } => {}
                ProcessOutput::Load(load) => panic!("all data is inline, and {load:?} is asked for"),
            }
        }
        self.end(key).await;
        assert!(self.knowledge().await.range_count() > exceptions, "each of them is an exception");
    }

    /// All batches for a destination with that knowledge: seconds that the source worked, and changes.
    async fn enumerate(&self, key: SessionKey, mut known: Knowledge) -> (f64, usize) {
        let (mut spent, mut changes) = (Duration::ZERO, 0);
        loop {
            let request = ChangeBatchRequest {
                requested_batch_size: 5_000,
                max_bytes: MAX_MESSAGE_BYTES as u64,
                destination_knowledge: known.clone(),
                max_inline_bytes: 1024,
            };
            let start = Instant::now();
            let batch = self.provider.get_change_batch(key, request).await.expect("a batch");
            spent += start.elapsed();
            changes += batch.changes().count();
            if batch.is_last_batch {
                return (spent.as_secs_f64(), changes);
            }
            for group in &batch.groups {
                let GroupKind::Ordered { lower_bound, upper_bound } = &group.kind else { panic!("{:?}", group.kind) };
                let learned = group.made_with_knowledge.project_onto_range(lower_bound, upper_bound.as_ref());
                known = known.union(&learned);
            }
        }
    }

    /// The look and the enumeration of what has changed since `known`, in seconds.
    async fn session(&self, known: Knowledge, expected: usize) -> [f64; 2] {
        let start = Instant::now();
        let key = self.begin(ProviderRole::Source).await;
        let look = start.elapsed().as_secs_f64();
        let (enumeration, changes) = self.enumerate(key, known).await;
        assert_eq!(changes, expected);
        self.end(key).await;
        [look, enumeration]
    }

    /// The best of several rounds, each after so many rows were changed.
    async fn rounds(&self, changes: usize, items: usize) -> [f64; 2] {
        let mut best = [f64::MAX; 2];
        for _ in 0..TRIES {
            let known = self.knowledge().await;
            if changes > 0 {
                self.edit(changes, items);
            }
            let figures = self.session(known, changes).await;
            best = [best[0].min(figures[0]), best[1].min(figures[1])];
        }
        best
    }
}

/// Fills a table, looks at it for the first time, and learns the exceptions. Says how long the first look took.
async fn first(dir: &Path, items: usize, exceptions: usize) {
    Replica::create(dir, items);
    let replica = Replica::open(dir);
    let start = Instant::now();
    let key = replica.begin(ProviderRole::Source).await;
    println!("{}", start.elapsed().as_secs_f64());
    replica.end(key).await;
    wait();
    replica.learn_exceptions(exceptions, items.max(exceptions)).await;
    println!("learned");
    wait();
}

/// The same replica in a new process: a word for the first look, and on demand all the figures.
async fn again(dir: &Path, items: usize, exceptions: usize) {
    let replica = Replica::open(dir);
    let key = replica.begin(ProviderRole::Source).await;
    replica.end(key).await;
    println!("looked");
    wait();
    let all = items + exceptions;
    let mut figures = Vec::new();
    figures.extend(replica.rounds(0, items).await);
    figures.extend(replica.rounds(FEW.min(items), items).await);
    figures.extend(replica.rounds(items / 100, items).await);
    // A partner that lacks one row in so many, each by itself, since they failed there.
    let mut failed = Selection::default();
    (0..exceptions).for_each(|number| failed.add_item(ItemId::from(name(number * items / exceptions).into_bytes())));
    let mut known = replica.knowledge().await;
    known.exclude(&failed);
    let mut best = f64::MAX;
    for _ in 0..TRIES {
        best = best.min(replica.session(known.clone(), exceptions.min(items)).await[1]);
    }
    figures.push(best);
    let nothing = Knowledge::new(IdParameters::BUILT_IN.item_id);
    figures.push(replica.session(nothing, all).await[1]);
    println!("{}", figures.iter().map(f64::to_string).collect::<Vec<_>>().join(" "));
    wait();
}

/// Until the parent has looked at this process.
fn wait() {
    std::io::stdin().lock().read_line(&mut String::new()).expect("a parent");
}

fn play(arguments: &[String], part: impl AsyncFnOnce(&Path, usize, usize)) {
    let [dir, items, exceptions] = arguments else { panic!("directory, items, exceptions: {arguments:?}") };
    let number = |text: &String| text.parse().expect("a number");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(part(Path::new(dir), number(items), number(exceptions)));
}

/// What is told of one size.
struct Figures {
    items: usize,
    first_look: f64,
    times: Vec<f64>,
    /// Peak memory in bytes: after the first look, after the first look of a process that was started again, after everything.
    memory: [u64; 3],
}

fn measure(items: usize, exceptions: usize) -> Figures {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().to_str().expect("a path");
    let arguments = [path, &items.to_string(), &exceptions.to_string()];
    let mut process = Process::of_role("first", &arguments);
    let first_look = process.line().parse().expect("seconds");
    let first = process.peak_memory();
    process.ask("go on");
    drop(process);
    let mut process = Process::of_role("again", &arguments);
    process.line();
    let again = process.peak_memory();
    let times = match items {
        // Without items: only what the process itself takes.
        0 => Vec::new(),
        _ => process.ask("go on").split(' ').map(|figure| figure.parse().expect("seconds")).collect(),
    };
    Figures { items, first_look, times, memory: [first, again, process.peak_memory()] }
}

fn main() {
    match role() {
        Some((part, arguments)) if part == "first" => return play(&arguments, first),
        Some((_, arguments)) => return play(&arguments, again),
        None => {}
    }
    let mode = Mode::from_arguments();
    let sizes: &[usize] = mode.pick(&[10_000, 100_000, 1_000_000], &[1_000, 4_000]);
    let exceptions = mode.pick(10_000, 500);
    let without = measure(0, exceptions);
    let figures: Vec<Figures> = sizes.iter().map(|items| measure(*items, exceptions)).collect();

    let title = format!(
        "items: time of a step, {exceptions} exceptions in knowledge (x: to that with {} items){}",
        sizes[0],
        mode.note()
    );
    let heads: Vec<String> = sizes.iter().map(|size| format!("{size} items")).collect();
    let head: Vec<&str> = std::iter::once("step").chain(heads.iter().map(String::as_str)).collect();
    let mut table = Table::new(title, &head);
    let names = [
        "look, nothing changed".to_owned(),
        "enumeration, nothing to do".to_owned(),
        format!("look, {FEW} changed"),
        format!("enumeration, {FEW} changed"),
        "look, 1 % changed".to_owned(),
        "enumeration, 1 % changed".to_owned(),
        format!("enumeration, {exceptions} failed before"),
        "enumeration of all".to_owned(),
    ];
    let row = |name: &str, of: &dyn Fn(&Figures) -> f64| {
        let cells = figures.iter().map(|figure| {
            let ratio = of(figure) / of(&figures[0]);
            format!("{} ({ratio:.1}x)", span(of(figure)))
        });
        std::iter::once(name.to_owned()).chain(cells).collect::<Vec<_>>()
    };
    table.row(row("first look of all", &|figure| figure.first_look));
    for (index, name) in names.iter().enumerate() {
        table.row(row(name, &|figure| figure.times[index]));
    }
    for (index, name) in ["first look", "started again", "everything above"].iter().enumerate() {
        let cells = figures.iter().map(|figure| {
            let more = figure.memory[index].saturating_sub(without.memory[index]);
            format!("{} B", more / figure.items as u64)
        });
        table.row(std::iter::once(format!("memory per item, {name}")).chain(cells));
    }
    table.print();
}
