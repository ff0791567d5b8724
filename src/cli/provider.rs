//! `synclave provider`: the built-in providers.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::exit::{Exit, Failure};
use super::roots::{self, Root};
use super::serve::{cannot_listen, check_reach, span};
use super::{output, replica};
use crate::coordinator::SIMPLE_STORES;
use crate::grpc::simple_provider::{self, Calls, StoreOptions};
use crate::provider::sdk::{self, ReplicaProvider};
use crate::server;

/// Run a provider
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
}

impl FileArgs {
    fn plan(self) -> Result<FilePlan, Failure> {
        check_reach(self.listen, self.insecure)?;
        let root = Root::existing(&self.dir)?;
        let name = self.name.unwrap_or_else(|| member_name(&root));
        Ok(FilePlan { root, listen: self.listen, name, state_dir: self.state_dir })
    }
}

/// What a directory is called unless told otherwise: its own name, or its path where it has none.
pub(super) fn member_name(root: &Root) -> String {
    root.path().file_name().unwrap_or(root.path().as_os_str()).to_string_lossy().into_owned()
}

pub(super) async fn run(args: ProviderArgs, stop: CancellationToken) -> Result<Exit, Failure> {
    match args.command {
        ProviderCommand::File(args) => run_file(args, stop).await,
        ProviderCommand::Simple(args) => run_simple(args, stop).await,
    }
}

async fn bind(listen: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(listen).await.map_err(|error| cannot_listen(listen, &error))
}

async fn run_simple(args: SimpleArgs, stop: CancellationToken) -> Result<Exit, Failure> {
    check_reach(args.listen, args.insecure)?;
    let options = StoreOptions { deadline: args.deadline, ..StoreOptions::default() };
    let calls = Calls::new(&args.address, options).map_err(|error| Failure::usage(error.to_string()))?;
    let listener = bind(args.listen).await?;
    let schema = calls.get_schema().await.map_err(|error| {
        Failure::failed(format!("{}: the store {error}; see that it runs, and that this is its address", args.address))
    })?;
    let state_dir = match args.state_dir {
        Some(dir) => dir,
        None => roots::data_dir(None)?.join(SIMPLE_STORES).join(schema.directory_name()),
    };
    let named = [args.name, Some(schema.member_name.clone()), Some(args.address.clone())];
    let member_name = named.into_iter().flatten().find(|name| !name.is_empty()).unwrap_or_default();
    let options = sdk::Options { member_name, ..sdk::Options::default() };
    let (_, provider) = tokio::task::spawn_blocking(move || simple_provider::open(calls, schema, &state_dir, options))
        .await
        .map_err(|error| Failure::failed(format!("{} could not be opened: {error}", args.address)))?
        .map_err(|error| Failure::failed(error.to_string()))?;
    serve(listener, provider, stop).await
}

async fn run_file(args: FileArgs, stop: CancellationToken) -> Result<Exit, Failure> {
    let plan = args.plan()?;
    let listener = bind(plan.listen).await?;
    let (root, state_dir, name) = (plan.root.clone(), plan.state_dir, plan.name);
    let provider = tokio::task::spawn_blocking(move || replica::open(&root, state_dir, name))
        .await
        .map_err(|error| Failure::failed(format!("{} could not be opened: {error}", plan.root.path().display())))??;
    serve(listener, provider, stop).await
}

async fn serve(
    listener: TcpListener,
    provider: Arc<ReplicaProvider>,
    stop: CancellationToken,
) -> Result<Exit, Failure> {
    let address = listener.local_addr().map_err(|error| Failure::failed(format!("cannot listen: {error}")))?;
    output::announce(address)?;
    server::serve_provider(server::incoming(listener), provider, stop)
        .await
        .map_err(|error| Failure::failed(format!("serving on {address} failed: {error}; start it again")))?;
    Ok(Exit::Done)
}
