//! Lists of checks: the scenarios of one service, run one after the other over what they share.

use std::pin::Pin;
use std::time::Duration;

use super::book::{Held, Stop};
use super::rule::Rule;

/// One scenario takes so long at most; a bound for what the bounds of its calls do not catch.
const CHECK_LIMIT: Duration = Duration::from_secs(60);

/// What a scenario does.
pub(super) type Steps<'b> = Pin<Box<dyn Future<Output = Held> + Send + 'b>>;

/// A scenario over a bench of type `B`.
pub(super) struct Check<B: 'static> {
    pub(super) name: &'static str,
    /// What it is about: these do not apply where the provider does not offer it.
    pub(super) rules: &'static [Rule],
    /// What it builds on: where one of these is broken, it would only show that again, and is not run.
    pub(super) after: &'static [Rule],
    pub(super) steps: for<'b> fn(&'b B) -> Steps<'b>,
}

impl<B> Check<B> {
    /// Takes the steps; when they do not come to an end, that breaks `overtime`.
    pub(super) async fn run(&self, bench: &B, overtime: Rule) -> Held {
        let ended = tokio::time::timeout(CHECK_LIMIT, (self.steps)(bench)).await;
        let message = || format!("the check was not over in {CHECK_LIMIT:?}");
        ended.unwrap_or_else(|_| Err(Stop::Broken { rule: overtime, message: message() }))
    }
}

/// `CHECKS`: scenarios over a bench, in the order in which they run, each with the rules that it is about.
macro_rules! checks {
    ($bench:ty: $($module:ident::$name:ident [$($rule:ident),*] $(after [$($basic:ident),*])?;)*) => {
        pub(super) const CHECKS: &[$crate::check::suite::Check<$bench>] = &[
            $($crate::check::suite::Check {
                name: stringify!($name),
                rules: &[$(Rule::$rule),*],
                after: &[$($(Rule::$basic),*)?],
                steps: |bench| Box::pin($module::$name(bench)),
            },)*
        ];
    };
}

pub(super) use checks;
