//! What the store says of itself.

use crate::check::book::Held;
use crate::check::rule::Rule;
use crate::check::simple::bench::Bench;
use crate::pb;

/// The schema is within bounds, and the same whenever and whoever asks.
pub(super) async fn identity(bench: &Bench) -> Held {
    let first = bench.ask_schema(&bench.store).await?;
    let rule = Rule::StoreSchema;
    bench.require(rule, !first.instance_id.is_empty(), || "GetSchema: instance_id is empty".to_owned())?;
    for store in [&bench.store, &bench.other] {
        let again = bench.ask_schema(store).await?;
        let ids = |schema: &pb::GetSchemaResponse| (schema.store_id.clone(), schema.instance_id.clone());
        let (before, after) = (ids(&first), ids(&again));
        bench.require(Rule::StoreIdentity, before == after, || {
            format!("store_id and instance_id were {before:?}, and are {after:?} without a restart")
        })?;
        bench.require(rule, first == again, || {
            "GetSchema: what the store can do is not the same a moment later".to_owned()
        })?;
    }
    // Also of what it said when the run began.
    let (schema, said) = (bench.schema()?, &first);
    let same = schema.store_id == said.store_id && schema.supports_anchors == said.supports_anchors;
    bench.require(Rule::StoreIdentity, same, || "it is another store than when the check began".to_owned())
}
