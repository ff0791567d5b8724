//! The command line: one file a command, over the public API like any other client. Nothing depends on it.
//!
//! Answers go to stdout, as a table or as JSON; everything else (logs, progress, notices, the one line of an error) goes to
//! stderr. [`Exit`] has the exit codes.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use crate::shutdown;
use crate::telemetry::{LogFormat, LogOptions};

mod check;
mod client;
mod conflict;
mod dry_run;
mod endpoint;
mod errors;
mod exit;
mod follow;
mod health;
mod left_out;
mod local;
mod operation;
mod options;
mod output;
mod plan;
mod progress;
mod provider;
mod render;
mod replica;
mod roots;
mod serve;
mod session;
mod summary;
mod sync;
mod table;
mod verify;
mod wait;
mod watch;

pub use exit::{Exit, Failure};
pub use output::OutputFormat;

const ABOUT: &str = "Keeps copies of data in sync, and shows it happening";

const LONG_ABOUT: &str = "\
Keeps copies of data in sync, and shows it happening.

A store takes part through a provider, a small gRPC service; directories have one built in. The coordinator brings two \
providers together in a session: it asks what the destination lacks, moves it, settles conflicts, and ends the session on \
both sides whatever happens in between. An operation is the sessions that it takes until both are in sync. While they run, \
anyone may watch.";

const AFTER_HELP: &str = "\
Examples:
  Two directories, in one process:
      synclave sync ~/photos /mnt/backup/photos

  The same as separate processes, on one machine or on several:
      synclave serve &
      synclave provider file ~/photos --listen 127.0.0.1:7001 &
      synclave provider file /mnt/backup/photos --listen 127.0.0.1:7002 &
      synclave operation start http://127.0.0.1:7001 http://127.0.0.1:7002 --wait
      synclave watch

Exit codes:
  0    in sync, or done
  1    failed
  2    the command line is wrong: nothing was begun
  3    ended but not in sync, cancelled, or stopped by Ctrl-C
  130  stopped by a second Ctrl-C";

/// The command line, parsed.
#[derive(Debug, Parser)]
#[command(
    name = "synclave",
    version,
    about = ABOUT,
    long_about = LONG_ABOUT,
    after_help = AFTER_HELP,
    max_term_width = 100,
    arg_required_else_help = true
)]
pub struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: Command,
}

/// Options that every command takes, before or after its name.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Global options")]
struct Globals {
    /// The coordinator that session, operation, watch and health talk to
    #[arg(long, global = true, env = "SYNCLAVE_SERVER", default_value = client::DEFAULT_SERVER, value_name = "URL")]
    server: String,
    /// How answers look: a table for people, or proto3 JSON, one message a line
    #[arg(long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    output: OutputFormat,
    /// Log more, on stderr: -v state changes, -vv calls to providers, -vvv libraries, -vvvv frames; `serve` and `provider` are at -v from the start; RUST_LOG overrides it
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    /// How log lines look
    #[arg(long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    log_format: LogFormat,
}

#[derive(Debug, Subcommand)]
enum Command {
    Sync(sync::SyncArgs),
    Verify(verify::VerifyArgs),
    Serve(serve::ServeArgs),
    Provider(provider::ProviderArgs),
    Session(session::SessionArgs),
    Operation(operation::OperationArgs),
    Conflict(conflict::ConflictArgs),
    Errors(errors::ErrorsArgs),
    Watch(watch::WatchArgs),
    Health(health::HealthArgs),
}

/// Parses a command line. On a wrong one the error is on stderr already, in one line; on `--help` the help is on stdout.
///
/// # Errors
///
/// The exit code to end with.
pub fn parse<I>(arguments: I) -> Result<Cli, ExitCode>
where
    I: IntoIterator<Item = OsString>,
{
    Cli::command().try_get_matches_from(arguments).and_then(|matches| Cli::from_arg_matches(&matches)).map_err(
        |error| {
            match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
                    // A reader that went away has seen what it wanted.
                    let _ = error.print();
                    Exit::Done.into()
                }
                // The help in place of a command: several lines, as it is there to be read.
                ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
                    let _ = error.print();
                    Exit::Usage.into()
                }
                _ => {
                    exit::report(&usage_line(&error.render().to_string()));
                    Exit::Usage.into()
                }
            }
        },
    )
}

/// clap's report of several paragraphs as one line: what is wrong, what was meant, what would be right.
fn usage_line(report: &str) -> String {
    let mut line = String::new();
    let paragraphs = report.trim().trim_start_matches("error:").split("\n\n");
    for paragraph in paragraphs.map(str::trim).filter(|text| !text.is_empty()) {
        if !line.is_empty() {
            line.push_str("; ");
        }
        let words = paragraph.replace("For more information, try", "see").replace("Usage:", "usage:");
        line.push_str(&words.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    line.trim_end_matches('.').to_owned()
}

impl Cli {
    /// What to log: processes that stay tell of state changes unless told otherwise, commands that answer do not.
    pub fn log_options(&self) -> LogOptions {
        let stays = match &self.command {
            Command::Serve(_) => true,
            Command::Provider(args) => args.stays(),
            _ => false,
        };
        LogOptions { verbosity: self.globals.verbose.saturating_add(u8::from(stays)), format: self.globals.log_format }
    }
}

/// Runs a command to its end, with the line of a failure on stderr.
pub async fn run(cli: Cli) -> ExitCode {
    let ended = dispatch(cli).await;
    match ended {
        Ok(exit) => exit.into(),
        Err(failure) => {
            if let Some(line) = failure.line() {
                exit::report(line);
            }
            failure.exit().into()
        }
    }
}

async fn dispatch(cli: Cli) -> Result<Exit, Failure> {
    let stop = shutdown::signals()
        .map_err(|error| Failure::failed(format!("cannot listen for signals: {error}; check the system's limits")))?;
    let output = output::Output::new(cli.globals.output);
    let server = cli.globals.server;
    match cli.command {
        Command::Sync(args) => sync::run(args, output, stop).await,
        Command::Verify(args) => verify::run(args, output, stop).await,
        Command::Serve(args) => serve::run(args, stop).await,
        Command::Provider(args) => provider::run(args, output, stop).await,
        Command::Session(args) => session::run(args, &server, output, stop).await,
        Command::Operation(args) => operation::run(args, &server, output, stop).await,
        Command::Conflict(args) => conflict::run(args, &server, output, stop).await,
        Command::Errors(args) => errors::run(args, &server, output, stop).await,
        Command::Watch(args) => watch::run(args, &server, output, stop).await,
        Command::Health(args) => health::run(args, &server, output, stop).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_options_are_taken_before_and_after_the_command() {
        for words in [
            ["synclave", "--server", "http://h:1", "session", "list"],
            ["synclave", "session", "--server", "http://h:1", "list"],
            ["synclave", "session", "list", "--server", "http://h:1"],
        ] {
            assert_eq!(Cli::try_parse_from(words).unwrap().globals.server, "http://h:1");
        }
    }

    #[test]
    fn a_usage_error_is_one_line() {
        let error = Cli::try_parse_from(["synclave", "sync", "a"]).unwrap_err();
        let line = usage_line(&error.render().to_string());
        assert!(!line.contains('\n'), "{line}");
        assert!(line.contains("<B>") && line.contains("--help"), "{line}");
    }
}
