//! What a provider calls at SessionStateService while its sessions last, and after them (`windows-sync.md` R5; proto).

use crate::check::bench::Bench;
use crate::check::book::{Held, Stop};
use crate::check::rule::Rule;

/// Whatever it called, at any time.
pub(super) async fn well_formed(bench: &Bench) -> Held {
    judge(bench, Rule::StateCalls)
}

/// A token that was used when it was dead.
pub(super) async fn after_end(bench: &Bench) -> Held {
    judge(bench, Rule::TokenDead)
}

fn judge(bench: &Bench, rule: Rule) -> Held {
    let states = &bench.states;
    let Some(address) = states.address() else {
        let message = "it is not on this machine, and was told no address of SessionStateService: see --advertise";
        return Err(Stop::NotOffered(message.to_owned()));
    };
    if states.calls() == 0 {
        return Err(Stop::NotOffered(format!("it called nothing at SessionStateService, which was at {address}")));
    }
    let Some(misuse) = states.misuse(rule) else {
        bench.book.held(rule);
        return Ok(());
    };
    // The calls of its session, which may be long over.
    misuse.calls.into_iter().for_each(|call| bench.wire.transcript().note(call));
    Err(Stop::Broken { rule, message: misuse.message })
}
