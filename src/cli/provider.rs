//! `synclave provider`: the built-in providers.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand};
use tokio_util::sync::CancellationToken;

use super::exit::{Exit, Failure};
use super::options::TombstoneAge;
use super::output::Output;
use super::roots::{self, Root};
use super::serve::{cannot_listen, check_reach, span};
use super::{check, output, replica};
use crate::coordinator::SIMPLE_STORES;
use crate::grpc::simple_provider::{self, Calls, Schema, StoreOptions};
use crate::knowledge::FilterRequest;
use crate::provider::sdk::{MetadataError, Options, ReplicaProvider};
use crate::providers::sqlite::SqliteStore;
use crate::server;

/// Run a provider, or check one
///
/// A provider speaks for one replica. One that is built in speaks for a directory; another for a simple store, which answers six
/// calls and leaves the rest to it. Whole providers are written against
/// proto/synclave/v1/knowledge_sync_provider_service.proto, in any language.
#[derive(Debug, Args)]
pub(super) struct ProviderArgs {
    #[command(subcommand)]
    command: ProviderCommand,
}

#[derive(Debug, Subcommand)]
enum ProviderCommand {
    File(FileArgs),
    Simple(SimpleArgs),
    Sqlite(SqliteArgs),
    Check(check::CheckArgs),
}

/// Offer a directory
///
/// The first line on stdout is the provider's address, http://HOST:PORT; logs go to stderr. What it knows about the
/// directory is kept in DIR/.synclave, which is never carried.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synclave provider file ~/photos
  synclave provider file /srv/data --listen 127.0.0.1:7001 --name oslo --state-dir /var/lib/synclave/data")]
struct FileArgs {
    /// The directory
    dir: PathBuf,
    /// Where to listen; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:0", value_name = "HOST:PORT")]
    listen: SocketAddr,
    /// Name for people [default: the directory's]
    #[arg(long)]
    name: Option<String>,
    /// Keep what it knows here instead of in DIR/.synclave
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Forget a deletion after so long: 60d, 12h or never. A replica that has not seen it by then must compare all items
    #[arg(long, default_value = "60d", value_name = "AGE")]
    tombstone_age: TombstoneAge,
    /// Take only what the patterns in this file do not ignore; they are written as in a .gitignore
    #[arg(long, value_name = "FILE")]
    filter: Option<PathBuf>,
    /// Listen on an address that others can reach, without TLS
    #[arg(long)]
    insecure: bool,
}

/// Offer a store that answers SimpleSyncProviderService
///
/// The first line on stdout is the provider's address, http://HOST:PORT; logs go to stderr. The store knows nothing of versions and
/// knowledge: they are kept here, in a directory that the store's id names.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synclave provider simple http://127.0.0.1:7100
  synclave provider simple http://127.0.0.1:7100 --listen 127.0.0.1:7001 --name notes --state-dir /var/lib/synclave/notes

A coordinator takes the address of such a store as it is, and does the same in its own process. Use \
one of the two for a store: each would be a replica of its own.")]
struct SimpleArgs {
    /// The store, http://HOST:PORT
    address: String,
    /// Where to listen; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:0", value_name = "HOST:PORT")]
    listen: SocketAddr,
    /// Name for people [default: the store's]
    #[arg(long)]
    name: Option<String>,
    /// Keep what it knows here [default: $XDG_STATE_HOME/synclave/simple/… or ~/.local/state/synclave/simple/…]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// A call to the store has failed when it takes and gives nothing for so long
    #[arg(long, default_value = "30s", value_name = "SPAN", value_parser = span)]
    deadline: Duration,
    /// Listen on an address that others can reach, without TLS
    #[arg(long)]
    insecure: bool,
}

/// Offer a table of a SQLite database
///
/// Each row is an item: its id is the row's primary key, its content the other columns as a JSON object, so that rows can be
/// synced with a directory of JSON files, or with any other provider. The first line on stdout is the provider's address,
/// http://HOST:PORT; logs go to stderr.
///
/// The database gets a table synclave_feed_TABLE and three triggers on TABLE that record which rows change, whoever changes
/// them. To take them out again, drop that table and the triggers synclave_insert_TABLE, synclave_update_TABLE and
/// synclave_delete_TABLE.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synclave provider sqlite inventory.db --table parts
  synclave provider sqlite shop.db --table parts --columns name,price
  synclave provider sqlite /srv/app.db --table people --listen 127.0.0.1:7003 --name app")]
struct SqliteArgs {
    /// The database, which must be there
    db: PathBuf,
    /// The table, which must have a primary key
    #[arg(long, value_name = "NAME")]
    table: String,
    /// Where to listen; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:0", value_name = "HOST:PORT")]
    listen: SocketAddr,
    /// Name for people [default: the table's]
    #[arg(long)]
    name: Option<String>,
    /// Take only these columns of what others have, separated by commas. Of the other columns nothing comes, and what is in
    /// them here stays; columns of this table travel as ever
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    columns: Vec<String>,
    /// Keep what it knows here instead of in DB.TABLE.synclave
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Listen on an address that others can reach, without TLS
    #[arg(long)]
    insecure: bool,
}

impl SimpleArgs {
    /// Asks the store what it is.
    async fn dial(&self) -> Result<(Calls, Schema), Failure> {
        let options = StoreOptions { deadline: self.deadline, ..StoreOptions::default() };
        let calls = Calls::new(&self.address, options).map_err(|error| Failure::usage(error.to_string()))?;
        let schema = calls.get_schema().await.map_err(|error| {
            let address = &self.address;
            Failure::failed(format!("{address}: the store {error}; see that it runs, and that this is its address"))
        })?;
        Ok((calls, schema))
    }

    /// Opens what is known of the store. Blocks.
    fn open(self, calls: Calls, schema: Schema) -> Result<Arc<ReplicaProvider>, Failure> {
        let state_dir = match self.state_dir {
            Some(dir) => dir,
            None => roots::data_dir(None)?.join(SIMPLE_STORES).join(schema.directory_name()),
        };
        let names = [self.name, Some(schema.member_name.clone()), Some(self.address)];
        let member_name = names.into_iter().flatten().find(|name| !name.is_empty()).unwrap_or_default();
        let options = Options { member_name, ..Options::default() };
        let opened = simple_provider::open(calls, schema, &state_dir, options);
        opened.map(|(_, provider)| provider).map_err(|error| Failure::failed(error.to_string()))
    }
}

impl SqliteArgs {
    /// Opens the table and what is known of it. Blocks.
    fn open(self) -> Result<Arc<ReplicaProvider>, Failure> {
        let store = SqliteStore::open(&self.db, &self.table).map_err(|error| Failure::usage(error.message))?;
        if let Some(unknown) = self.columns.iter().find(|column| !store.has_column(column)) {
            let table = &self.table;
            return Err(Failure::usage(format!("--columns: beside its key, table {table} has no column {unknown}")));
        }
        let state_dir = self.state_dir.unwrap_or_else(|| {
            let mut path = self.db.into_os_string();
            path.push(format!(".{}.synclave", self.table));
            path.into()
        });
        let identity = store.identity();
        let filters = replica::unit_filters(&self.columns);
        let options = Options { member_name: self.name.unwrap_or(self.table), filters, ..Options::default() };
        ReplicaProvider::open(Arc::new(store), &state_dir, &identity, options)
            .map_err(|error: MetadataError| Failure::failed(error.to_string()))
    }
}

/// What to offer, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FilePlan {
    /// The directory.
    pub(super) root: Root,
    /// Where to listen.
    pub(super) listen: SocketAddr,
    /// Name for people.
    pub(super) name: String,
    /// Instead of `.synclave` in the root.
    pub(super) state_dir: Option<PathBuf>,
    /// When deletions are forgotten.
    pub(super) tombstone_age: TombstoneAge,
    /// What it takes.
    pub(super) filters: Vec<FilterRequest>,
}

impl FileArgs {
    fn plan(self) -> Result<FilePlan, Failure> {
        check_reach(self.listen, self.insecure)?;
        let root = Root::existing(&self.dir)?;
        let name = self.name.unwrap_or_else(|| member_name(&root));
        let filters = replica::filters(self.filter.as_deref())?;
        let (listen, state_dir, tombstone_age) = (self.listen, self.state_dir, self.tombstone_age);
        Ok(FilePlan { root, listen, name, state_dir, tombstone_age, filters })
    }
}

/// What a directory is called unless told otherwise: its own name, or its path where it has none.
pub(super) fn member_name(root: &Root) -> String {
    root.path().file_name().unwrap_or(root.path().as_os_str()).to_string_lossy().into_owned()
}

impl ProviderArgs {
    /// Whether it is a process that stays, and not a command that answers.
    pub(super) fn stays(&self) -> bool {
        !matches!(self.command, ProviderCommand::Check(_))
    }
}

pub(super) async fn run(args: ProviderArgs, output: Output, stop: CancellationToken) -> Result<Exit, Failure> {
    match args.command {
        ProviderCommand::File(args) => {
            let FilePlan { root, listen, name, state_dir, tombstone_age, filters } = args.plan()?;
            let options = Options { member_name: name, tombstone_age: tombstone_age.0, filters, ..Options::default() };
            serve(listen, move || replica::open(&root, state_dir, options), stop).await
        }
        ProviderCommand::Sqlite(args) => {
            check_reach(args.listen, args.insecure)?;
            serve(args.listen, move || args.open(), stop).await
        }
        ProviderCommand::Simple(args) => {
            check_reach(args.listen, args.insecure)?;
            let (calls, schema) = args.dial().await?;
            serve(args.listen, move || args.open(calls, schema), stop).await
        }
        ProviderCommand::Check(args) => check::run(args, output, stop).await,
    }
}

/// Binds, opens, says where, and serves until `stop`. The address is taken before the replica is opened, which may change it.
async fn serve(
    listen: SocketAddr,
    open: impl FnOnce() -> Result<Arc<ReplicaProvider>, Failure> + Send + 'static,
    stop: CancellationToken,
) -> Result<Exit, Failure> {
    let listener = tokio::net::TcpListener::bind(listen).await.map_err(|error| cannot_listen(listen, &error))?;
    let address = listener.local_addr().map_err(|error| cannot_listen(listen, &error))?;
    let provider = tokio::task::spawn_blocking(open)
        .await
        .map_err(|error| Failure::failed(format!("the replica could not be opened: {error}")))??;
    output::announce(address)?;
    server::serve_provider(server::incoming(listener), provider, stop)
        .await
        .map_err(|error| Failure::failed(format!("serving on {address} failed: {error}; start it again")))?;
    Ok(Exit::Done)
}
