//! A SimpleSyncProviderService, held to its rules: the kit plays what `synclave provider simple` is to a store.
//!
//! ```text
//! checks     the scenarios, by subject
//! bench      what they share; writes, and what is judged of them
//! listing    lists, and what is judged of them
//! loading    an item's data, and what is judged of it
//! model      what the items of a check must be like now
//! store      the gRPC client
//! ```
//!
//! Every check makes items of its own, and the model has those of the check that runs: what a broken check leaves is deleted at
//! the end, and confuses none that follows.

use std::time::Instant;

mod bench;
mod checks;
mod listing;
mod loading;
mod model;
mod store;

use super::rule::Rule;
use super::{Options, Report, SetupError};
use bench::Bench;
use store::Fault;

/// Runs every check, deletes what was written, and reports.
pub(super) async fn run(options: Options) -> Result<Report, SetupError> {
    let begun = Instant::now();
    let bench = Bench::new(options)?;
    let member_name = match bench.store.schema().await {
        Ok(schema) => schema.member_name,
        Err(Fault::Silent(message)) => return Err(SetupError::Unreachable(format!("cannot be reached: {message}"))),
        // It is there; what is wrong with its answer is for the checks to say.
        Err(Fault::Status(_)) => String::new(),
    };
    for check in checks::CHECKS {
        let builds_on = [check.after, checks::PLAIN_USE];
        if builds_on.concat().iter().any(|rule| bench.book.is_broken(*rule)) {
            continue;
        }
        bench.begin_check();
        let outcome = check.run(&bench, Rule::StoreAnswers).await;
        bench.book.record(check.name, check.rules, outcome, || bench.store.transcript().lines());
    }
    bench.begin_check();
    let left_behind = bench.clean().await;
    Ok(Report {
        address: bench.options.address.clone(),
        member_name,
        verdicts: bench.book.verdicts(Rule::SIMPLE_PROVIDER),
        took: begun.elapsed(),
        left_behind,
    })
}
