//! `synclave serve`: the coordinator.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use tokio_util::sync::CancellationToken;

use super::exit::{Exit, Failure};
use super::{output, roots};
use crate::coordinator::{Coordinator, Options, Providers};
use crate::grpc::provider::DialOptions;
use crate::server;
use crate::session::Timing;
use crate::store::Retention;

/// Sessions have so long to end when the server stops; what is left is ended by the next start.
const STOP_GRACE: Duration = Duration::from_secs(20);

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
    #[command(flatten)]
    spans: Spans,
    #[command(flatten)]
    history: History,
}

/// Spans of a session, such as 30s or 500ms. The defaults are right for all but tests and very slow stores.
#[derive(Debug, Args)]
#[command(next_help_heading = "Spans")]
struct Spans {
    /// A provider that hears nothing of a session for so long ends it itself
    #[arg(long, default_value = "60s", value_name = "SPAN", value_parser = span, hide_short_help = true)]
    lease: Duration,
    /// Deadline of a unary call to a provider
    #[arg(long, default_value = "30s", value_name = "SPAN", value_parser = span, hide_short_help = true)]
    call_deadline: Duration,
    /// Deadline of BeginSession, in which a provider may look through its whole store
    #[arg(long, default_value = "10m", value_name = "SPAN", value_parser = span, hide_short_help = true)]
    begin_deadline: Duration,
    /// A stream has failed when the side that is waited for says nothing for so long
    #[arg(long, default_value = "60s", value_name = "SPAN", value_parser = span, hide_short_help = true)]
    stream_idle: Duration,
    /// A provider that cannot be reached is dialled for so long
    #[arg(long, default_value = "30s", value_name = "SPAN", value_parser = span, hide_short_help = true)]
    connect_patience: Duration,
    /// A session's final state is entered so long after its outcome at the latest
    #[arg(long, default_value = "5s", value_name = "SPAN", value_parser = span, hide_short_help = true)]
    end_grace: Duration,
    /// A provider has so long to come back from a cancelled call
    #[arg(long, default_value = "10s", value_name = "SPAN", value_parser = span, hide_short_help = true)]
    cancel_grace: Duration,
}

/// How much of what has ended is kept.
#[derive(Debug, Args)]
#[command(next_help_heading = "History")]
struct History {
    /// A session is forgotten so long after its end; d is a day
    #[arg(long, default_value = "7d", value_name = "SPAN", value_parser = days, hide_short_help = true)]
    retention: Duration,
    /// Of ended sessions so many are kept, those that ended last
    #[arg(long, default_value_t = Retention::default().sessions, value_name = "COUNT", hide_short_help = true)]
    max_sessions_kept: usize,
}

/// Parses `7d`, `36h`, `1d 12h`: a day has 24 hours.
fn days(text: &str) -> Result<Duration, String> {
    let refused = || "write a span such as 7d, 36h or 30m".to_owned();
    let span: jiff::Span = text.parse().map_err(|_| refused())?;
    let span = span.to_duration(jiff::SpanRelativeTo::days_are_24_hours()).map_err(|_| refused())?;
    Duration::try_from(span).ok().filter(|span| !span.is_zero()).ok_or_else(|| "must be more than 0".to_owned())
}

/// Parses `1m 30s`, `500ms`.
pub(super) fn span(text: &str) -> Result<Duration, String> {
    let span: jiff::SignedDuration = text.parse().map_err(|_| "write a span such as 30s, 500ms or 2m".to_owned())?;
    Duration::try_from(span).ok().filter(|span| !span.is_zero()).ok_or_else(|| "must be more than 0".to_owned())
}

impl Spans {
    fn timing(&self) -> Timing {
        Timing {
            lease: self.lease,
            call_deadline: self.call_deadline,
            begin_deadline: self.begin_deadline,
            stream_idle: self.stream_idle,
            connect_patience: self.connect_patience,
            end_grace: self.end_grace,
            cancel_grace: self.cancel_grace,
            ..Timing::default()
        }
    }
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
    /// Spans of its sessions.
    pub(super) timing: Timing,
    /// How much history it keeps.
    pub(super) retention: Retention,
}

impl ServeArgs {
    fn plan(self) -> Result<ServePlan, Failure> {
        check_reach(self.listen, self.insecure)?;
        if let Some(url) =
            self.advertise.as_deref().filter(|url| !url.starts_with("http://") && !url.starts_with("https://"))
        {
            return Err(Failure::usage(format!("--advertise {url:?} is no address; give it as http://HOST:PORT")));
        }
        let timing = self.spans.timing();
        let data_dir = roots::data_dir(self.data_dir)?;
        let retention = Retention { age: self.history.retention, sessions: self.history.max_sessions_kept };
        Ok(ServePlan { listen: self.listen, data_dir, advertise: self.advertise, timing, retention })
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
    let advice = match error.kind() {
        std::io::ErrorKind::AddrNotAvailable => "it is no address of this machine; choose another with --listen",
        std::io::ErrorKind::PermissionDenied => "a port below 1024 takes a privilege; choose another with --listen",
        _ => "stop what uses it, or choose another port with --listen",
    };
    Failure::failed(format!("cannot listen on {listen}: {error}; {advice}"))
}

pub(super) async fn run(args: ServeArgs, stop: CancellationToken) -> Result<Exit, Failure> {
    let plan = args.plan()?;
    let listener =
        tokio::net::TcpListener::bind(plan.listen).await.map_err(|error| cannot_listen(plan.listen, &error))?;
    let address = listener.local_addr().map_err(|error| cannot_listen(plan.listen, &error))?;
    let failed = |error: &dyn std::fmt::Display| Failure::failed(error.to_string());
    let opened = Coordinator::open(&plan.data_dir).map_err(|error| failed(&error))?;
    let options = Options {
        timing: plan.timing,
        advertise: plan.advertise,
        retention: plan.retention,
        abandon_operations: false,
    };
    let dial = Providers::new(DialOptions::default()).speaking_for_simple_stores(&plan.data_dir).into_dial();
    let coordinator = Coordinator::start(opened, options, dial).await.map_err(|error| failed(&error))?;
    output::announce(address)?;
    let incoming = server::incoming(listener);
    server::serve_coordinator(incoming, &coordinator, STOP_GRACE, stop)
        .await
        .map_err(|error| Failure::failed(format!("serving on {address} failed: {error}; start it again")))?;
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retention_may_be_given_in_days() {
        assert_eq!(days("7d"), Ok(Retention::default().age));
        assert_eq!(days("1d 12h"), Ok(Duration::from_hours(36)));
        assert!(days("0d").is_err());
        assert!(days("-1d").is_err());
        assert!(days("a week").is_err());
    }

    #[test]
    fn only_loopback_is_served_without_consent() {
        let any: SocketAddr = "0.0.0.0:1".parse().unwrap();
        assert!(check_reach(any, false).is_err());
        assert!(check_reach(any, true).is_ok());
        assert!(check_reach("[::1]:1".parse().unwrap(), false).is_ok());
        assert!(check_reach("127.3.2.1:1".parse().unwrap(), false).is_ok());
    }
}
