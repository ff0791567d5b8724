//! Leases (design section 4): short ones, so that the kit need not wait.

use std::time::{Duration, Instant};

use crate::check::bench::Bench;
use crate::check::book::{Held, Stop};
use crate::check::rule::Rule;
use crate::check::session::Session;
use crate::types::ProviderRole;

/// A lease that is renewed.
const RENEWED: Duration = Duration::from_millis(400);
/// Between two calls that renew it.
const STEP: Duration = Duration::from_millis(100);
/// Calls in a row, of each kind: more than one lease.
const STEPS: u32 = 5;
/// A lease that runs out.
const SHORT: Duration = Duration::from_millis(200);
/// Tries, where the kit itself was too slow to keep the lease.
const TRIES: u32 = 4;

#[derive(Clone, Copy, Debug)]
enum By {
    Renewal,
    AnyCall,
}

/// A session outlives its first lease many times while it is renewed, by RenewSession or by any other call.
pub(super) async fn renewed(bench: &Bench) -> Held {
    for attempt in 1..=TRIES {
        if kept(bench, attempt == TRIES).await? {
            return Ok(());
        }
    }
    Ok(())
}

/// False when the kit was late itself, and the provider is not to blame.
async fn kept(bench: &Bench, last_try: bool) -> Held<bool> {
    let session = Session::new(bench, ProviderRole::Destination, RENEWED);
    session.begin_as(Rule::Enlists).await?;
    let mut last = Instant::now();
    let steps = (0..STEPS).map(|_| By::Renewal).chain((0..STEPS).map(|_| By::AnyCall));
    for by in steps {
        tokio::time::sleep(STEP).await;
        let late = last.elapsed() > RENEWED / 2;
        last = Instant::now();
        let held = match by {
            By::Renewal => bench.answered(Rule::LeaseRenewed, "RenewSession", session.try_renew(false).await).map(drop),
            By::AnyCall => {
                let result = session.try_parameters().await;
                bench.answered(Rule::LeaseRenewed, "GetSyncBatchParameters", result).map(drop)
            }
        };
        match held {
            Ok(()) => {}
            Err(_) if late && !last_try => return Ok(false),
            Err(Stop::Broken { rule: Rule::LeaseRenewed, message }) => {
                let message = format!("a lease of {RENEWED:?} that is renewed every {STEP:?} ran out: {message}");
                return Err(Stop::Broken { rule: Rule::LeaseRenewed, message });
            }
            Err(stop) => return Err(stop),
        }
    }
    bench.answered(Rule::LeaseRenewed, "EndSession", session.try_end().await)?;
    bench.book.held(Rule::LeaseRenewed);
    Ok(true)
}

/// A session that nothing is heard of is over by the next BeginSession at the latest.
pub(super) async fn run_out(bench: &Bench) -> Held {
    let rule = Rule::LeaseRunsOut;
    for role in ProviderRole::BOTH {
        let session = Session::new(bench, role, SHORT);
        session.begin_as(Rule::Enlists).await?;
        tokio::time::sleep(SHORT * 2).await;
        bench.wire.transcript().note(format!("   (nothing for {:?})", SHORT * 2));
        let next = Session::new(bench, role, super::super::bench::LONG_LEASE);
        next.begin_as(rule).await?;
        bench.illegal(rule, "RenewSession of the session whose lease ran out", session.try_renew(false).await)?;
        bench.answered(rule, "RenewSession of the session after it", next.try_renew(false).await)?;
        next.end().await?;
        bench.closed(session.key);
    }
    Ok(())
}
