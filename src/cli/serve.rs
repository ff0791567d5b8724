//! `synclave serve`: the coordinator.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use tokio_util::sync::CancellationToken;

use super::exit::{Exit, Failure};
use super::{output, roots};

/// Run the coordinator
///
/// The first line on stdout is its address, http://HOST:PORT; logs go to stderr. Ctrl-C or SIGTERM ends it in good order:
/// sessions are interrupted, their providers told, and what is stored goes on with the next start.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synclave serve
  synclave serve --listen 127.0.0.1:0 --data-dir /var/lib/synclave
  synclave serve --listen 0.0.0.0:50051 --insecure --advertise http://sync.example.net:50051

There is no TLS and no authentication yet: whoever reaches the address may do everything. That is \
why anything but the loopback needs --insecure.")]
pub(super) struct ServeArgs {
    /// Where to listen; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:50051", value_name = "HOST:PORT")]
    listen: SocketAddr,
    /// Where state is kept; one coordinator at a time [default: $XDG_STATE_HOME/synclave or ~/.local/state/synclave]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Where providers reach this coordinator, for those that call back; they need not
    #[arg(long, value_name = "URL")]
    advertise: Option<String>,
    /// Listen on an address that others can reach, without TLS
    #[arg(long)]
    insecure: bool,
}

/// What to serve, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServePlan {
    /// Where to listen.
    pub(super) listen: SocketAddr,
    /// Where state is kept; made when it is not there.
    pub(super) data_dir: PathBuf,
    /// Handed to providers as the address of SessionStateService.
    pub(super) advertise: Option<String>,
}

impl ServeArgs {
    fn plan(self) -> Result<ServePlan, Failure> {
        check_reach(self.listen, self.insecure)?;
        if let Some(url) =
            self.advertise.as_deref().filter(|url| !url.starts_with("http://") && !url.starts_with("https://"))
        {
            return Err(Failure::usage(format!("--advertise {url:?} is no address; give it as http://HOST:PORT")));
        }
        Ok(ServePlan { listen: self.listen, data_dir: roots::data_dir(self.data_dir)?, advertise: self.advertise })
    }
}

/// Anything but loopback needs a word of consent while there is no TLS.
pub(super) fn check_reach(listen: SocketAddr, insecure: bool) -> Result<(), Failure> {
    if listen.ip().is_loopback() || insecure {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "--listen {listen} can be reached by others, and there is no TLS yet; listen on 127.0.0.1, or add --insecure"
    )))
}

/// The failure of a bind.
pub(super) fn cannot_listen(listen: SocketAddr, error: &std::io::Error) -> Failure {
    Failure::failed(format!(
        "cannot listen on {listen}: {error}; stop what uses it, or choose another port with --listen"
    ))
}

pub(super) async fn run(args: ServeArgs, stop: CancellationToken) -> Result<Exit, Failure> {
    let plan = args.plan()?;
    let listener =
        tokio::net::TcpListener::bind(plan.listen).await.map_err(|error| cannot_listen(plan.listen, &error))?;
    let address = listener.local_addr().map_err(|error| cannot_listen(plan.listen, &error))?;
    // wiring: open the store of `plan.data_dir`, announce when ready, serve on `listener` until `stop`.
    output::announce(address)?;
    stop.cancelled().await;
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_served_without_consent() {
        let any: SocketAddr = "0.0.0.0:1".parse().unwrap();
        assert!(check_reach(any, false).is_err());
        assert!(check_reach(any, true).is_ok());
        assert!(check_reach("[::1]:1".parse().unwrap(), false).is_ok());
        assert!(check_reach("127.3.2.1:1".parse().unwrap(), false).is_ok());
    }
}
