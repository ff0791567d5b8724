//! Features that a provider may leave out: then it says so with UNIMPLEMENTED, or names no such capability.

use crate::check::bench::Bench;
use crate::check::book::{Held, Stop};
use crate::check::partner::Written;
use crate::check::rule::Rule;
use crate::check::session::{Ask, encoded, judge_shape};
use crate::check::wire::{Fault, decoded};
use crate::grpc::convert::{Path, batch as batch_codec};
use crate::knowledge::{GroupKind, ItemId};
use crate::pb;
use crate::provider::RefusalCode;
use crate::types::ProviderRole;

/// Every item from a lower bound on, also what the destination knows.
pub(super) async fn full_enumeration(bench: &Bench) -> Held {
    let (rule, rpc) = (Rule::FullEnumeration, "GetFullEnumerationChangeBatch");
    let partner = bench.partner(0)?;
    let items: Vec<Written> = bench.create(&partner, &["full 1", "full 2", "full 3"]).await?;
    let known = bench.knowledge().await?;
    let session = bench.begin(ProviderRole::Source).await?;
    let mut lower = items[1].item.clone();
    let mut listed: Vec<ItemId> = Vec::new();
    loop {
        let ask = Ask { size: 2, ..Ask::default() };
        let request = pb::GetFullEnumerationChangeBatchRequest {
            sync_guid: session.key.sync_guid.to_string(),
            epoch: session.key.epoch,
            requested_batch_size: ask.size,
            max_bytes: ask.max_bytes,
            destination_knowledge: Some(encoded(&known)?),
            max_inline_bytes: 0,
            lower_bound: bytes::Bytes::copy_from_slice(lower.as_bytes()),
        };
        let result = bench.wire.get_full_enumeration_change_batch(request).await;
        if let Err(Fault::Refused(refusal)) = &result
            && refusal.code == RefusalCode::Unimplemented
        {
            return Err(Stop::NotOffered(refusal.message.clone()));
        }
        let response = bench.answered(rule, rpc, result)?;
        let schema = bench.schema()?;
        let (batch, _) = decoded(rpc, |violations| {
            let at = Path::ROOT.field("batch");
            batch_codec::batch(violations.required(response.batch, at)?, &schema, at, violations)
        })?;
        judge_shape(bench, &batch)?;
        let [group] = &batch.groups[..] else {
            let message = format!("a full-enumeration batch has {} groups, and is to have one", batch.groups.len());
            return Err(Stop::Broken { rule, message });
        };
        let GroupKind::Ordered { upper_bound, .. } = &group.kind else {
            return Err(Stop::Broken {
                rule,
                message: "the group of a full-enumeration batch is not ordered".to_owned(),
            });
        };
        listed.extend(group.changes.iter().map(|change| change.item_id.clone()));
        if batch.is_last_batch {
            break;
        }
        let next = upper_bound.as_ref().and_then(|upper| schema.item_id.after(upper));
        let next = next.filter(|next| *next > lower).ok_or_else(|| Stop::Broken {
            rule,
            message: "a full-enumeration batch that is not the last does not say how far it goes".to_owned(),
        })?;
        lower = next;
    }
    session.end().await?;
    for item in &items[1..] {
        bench.require(rule, listed.contains(&item.item), || {
            format!(
                "item {} is missing in the full enumeration; that the destination knows it does not matter",
                item.item
            )
        })?;
    }
    Ok(())
}
