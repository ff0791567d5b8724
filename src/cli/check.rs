//! `synclave provider check`: the conformance kit.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use tokio_util::sync::CancellationToken;

use super::exit::{Exit, Failure};
use super::output::{self, Output};
use super::serve::check_reach;
use crate::check::{self, Report, SetupError};
use crate::grpc::address;

/// Check that a provider keeps the rules
///
/// Plays coordinator and partner against a live provider: begins sessions with it as source and as destination, brings it
/// changes of replicas that exist in the kit alone, and looks what becomes of them. For every rule that a provider's side can
/// be held to it prints the verdict: pass, FAIL, not offered (an optional feature), or not reached (because of another rule
/// that was broken). Each failure comes with the calls that show it. docs/conformance.md says what each rule means.
///
/// Use it on a TEST replica that no session is using, and throw that away afterwards. It writes only items with names of its
/// own, synclave-check-…, and deletes them again. What is left are their tombstones, a few replica ids in the provider's
/// knowledge, and what those have forgotten: earlier partners of the replica are out of date then.
///
/// With --simple the address is that of a store that implements SimpleSyncProviderService, and the kit plays what `synclave
/// provider simple` is to it: lists, loads, inserts, updates and deletes, alone and with a second client at the same time.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  synclave provider check http://127.0.0.1:7001
  synclave provider check http://127.0.0.1:7001 --junit report.xml --output json
  synclave provider check http://127.0.0.1:7001 --template kind=file --template mode=0644
  synclave provider check http://127.0.0.1:7001 --item-template 'notes/{}.json'
  synclave provider check http://127.0.0.1:7001 --simple
  synclave provider check http://oslo.example:7001 --listen 0.0.0.0:7999 --insecure --advertise http://ci.example:7999

What it writes is made after an item that the provider has: its properties, and, where its content is a JSON object, \
that object with one text member changed. On an empty replica it tries items without properties, then kind=file. Say \
with --template what else items need.

Exit codes: 0 no rule was broken, 1 one was, or the provider cannot be reached, 2 the command line is wrong.")]
pub(super) struct CheckArgs {
    /// The provider, or with --simple the store: http://HOST:PORT
    address: String,
    /// Check a store that implements SimpleSyncProviderService
    #[arg(long)]
    simple: bool,
    /// Also write the report as JUnit XML
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// A property of the items that the kit writes; may be repeated [default: those of an item that is there]
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    template: Vec<(String, String)>,
    /// What the ids of these items look like; {} stands for a name of the kit's own
    #[arg(long, value_name = "TEXT", value_parser = item_template)]
    item_template: Option<String>,
    /// Where SessionStateService is served to the provider meanwhile; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:0", value_name = "HOST:PORT", conflicts_with = "simple")]
    listen: SocketAddr,
    /// Where the provider reaches it, for those that call back [default: the address of --listen, if it can be reached there]
    #[arg(long, value_name = "URL", conflicts_with = "simple")]
    advertise: Option<String>,
    /// Listen on an address that others can reach, without TLS
    #[arg(long)]
    insecure: bool,
    /// Seconds that an answer may take
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(2..=600))]
    timeout: u64,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| "write KEY=VALUE".to_owned())?;
    if key.is_empty() {
        return Err("write KEY=VALUE".to_owned());
    }
    Ok((key.to_owned(), value.to_owned()))
}

fn item_template(text: &str) -> Result<String, String> {
    if text.contains("{}") { Ok(text.to_owned()) } else { Err("it needs a {}, or all items are one".to_owned()) }
}

pub(super) async fn run(args: CheckArgs, output: Output, stop: CancellationToken) -> Result<Exit, Failure> {
    check_reach(args.listen, args.insecure)?;
    for address in args.advertise.iter().chain([&args.address]) {
        address::parse(address).map_err(|error| Failure::usage(error.to_string()))?;
    }
    let options = check::Options {
        patience: Duration::from_secs(args.timeout),
        properties: args.template,
        item_template: args.item_template,
        listen: args.listen,
        advertise: args.advertise,
        ..check::Options::new(args.address.clone())
    };
    let checked = async {
        if args.simple { check::simple_provider(options).await } else { check::knowledge_provider(options).await }
    };
    let left = if args.simple {
        "stopped; items of the check, synclave-check-…, may be left at"
    } else {
        "stopped; sessions of the check end when their lease runs out, and items synclave-check-… may be left at"
    };
    let report = tokio::select! {
        report = checked => report,
        () = stop.cancelled() => return Err(Failure::Interrupted(format!("{left} {}", args.address))),
    };
    let report = report.map_err(|error| match error {
        SetupError::Address(error) => Failure::usage(error.to_string()),
        SetupError::Unreachable(_) | SetupError::NoProvider => Failure::failed(format!("{}: {error}", args.address)),
        SetupError::Listen(..) => Failure::failed(error.to_string()),
    })?;
    if let Some(file) = &args.junit {
        write_junit(file, &report)?;
    }
    if output.is_json() {
        output::line(&report.to_json().to_string())?;
    } else {
        output::text(&report.to_text())?;
    }
    Ok(if report.is_pass() { Exit::Done } else { Exit::Failed })
}

fn write_junit(file: &Path, report: &Report) -> Result<(), Failure> {
    std::fs::write(file, report.to_junit()).map_err(|error| {
        Failure::failed(format!(
            "{} cannot be written: {error}; give a file in a directory that is there",
            file.display()
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_checked() {
        assert_eq!(pair("kind=a=b"), Ok(("kind".to_owned(), "a=b".to_owned())));
        assert!(pair("kind").is_err() && pair("=x").is_err());
        assert!(item_template("a/{}.json").is_ok() && item_template("a.json").is_err());
    }
}
