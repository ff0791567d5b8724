//! `synclave provider`: the built-in providers.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use tokio_util::sync::CancellationToken;

use super::exit::{Exit, Failure};
use super::options::TombstoneAge;
use super::roots::Root;
use super::serve::{cannot_listen, check_reach};
use super::{output, replica};
use crate::server;

/// Run a provider
///
/// A provider speaks for one replica. The one that is built in speaks for a directory; others are written against
/// proto/synclave/v1/knowledge_sync_provider_service.proto, in any language.
#[derive(Debug, Args)]
pub(super) struct ProviderArgs {
    #[command(subcommand)]
    command: ProviderCommand,
}

#[derive(Debug, Subcommand)]
enum ProviderCommand {
    File(FileArgs),
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
    /// When deletions are forgotten.
    pub(super) tombstone_age: TombstoneAge,
}

impl FileArgs {
    fn plan(self) -> Result<FilePlan, Failure> {
        check_reach(self.listen, self.insecure)?;
        let root = Root::existing(&self.dir)?;
        let name = self.name.unwrap_or_else(|| member_name(&root));
        Ok(FilePlan { root, listen: self.listen, name, state_dir: self.state_dir, tombstone_age: self.tombstone_age })
    }
}

/// What a directory is called unless told otherwise: its own name, or its path where it has none.
pub(super) fn member_name(root: &Root) -> String {
    root.path().file_name().unwrap_or(root.path().as_os_str()).to_string_lossy().into_owned()
}

pub(super) async fn run(args: ProviderArgs, stop: CancellationToken) -> Result<Exit, Failure> {
    let ProviderCommand::File(args) = args.command;
    let plan = args.plan()?;
    let listener =
        tokio::net::TcpListener::bind(plan.listen).await.map_err(|error| cannot_listen(plan.listen, &error))?;
    let address = listener.local_addr().map_err(|error| cannot_listen(plan.listen, &error))?;
    let (root, state_dir, name) = (plan.root.clone(), plan.state_dir, plan.name);
    let provider = tokio::task::spawn_blocking(move || replica::open(&root, state_dir, name, plan.tombstone_age))
        .await
        .map_err(|error| Failure::failed(format!("{} could not be opened: {error}", plan.root.path().display())))??;
    output::announce(address)?;
    server::serve_provider(server::incoming(listener), provider, stop)
        .await
        .map_err(|error| Failure::failed(format!("serving on {address} failed: {error}; start it again")))?;
    Ok(Exit::Done)
}
