//! LoadItem.

use std::time::Duration;

use tonic::Code;

use super::writes::LARGE_BYTES;
use crate::check::book::{Held, Stop};
use crate::check::rule::Rule;
use crate::check::simple::bench::{Bench, shown};

/// What is left of an item from some place on, and from its end on.
pub(super) async fn offsets(bench: &Bench) -> Held {
    let rule = Rule::StoreOffset;
    let id = bench.create("loaded in parts").await?;
    let entry = bench.entry(&id)?;
    let data = entry.data.ok_or(Stop::Blocked)?;
    let length = data.content.len();
    for offset in [1, length / 2, length - 1, length] {
        let loaded = bench.load(rule, &id, &entry.version, offset as u64).await?;
        bench.require(rule, loaded.size == length as u64, || {
            format!("from offset {offset} on the header says {} bytes, and the whole has {length}", loaded.size)
        })?;
        bench.require(rule, loaded.content == data.content[offset..], || {
            format!("from offset {offset} on {} bytes came that are not those of the item", loaded.content.len())
        })?;
        bench.require(rule, loaded.digest == data.digest(), || {
            format!("from offset {offset} on the digest is not that of the whole content")
        })?;
    }
    bench.delete(&id).await
}

/// The version that is wanted was replaced, or never was.
pub(super) async fn another_version(bench: &Bench) -> Held {
    let rule = Rule::StoreLoadChanged;
    let id = bench.create("loaded too late").await?;
    let old = bench.entry(&id)?.version;
    bench.update(&id, bench.data("replaced before it was loaded")?).await?;
    let current = bench.entry(&id)?;
    let length = current.data.map(|data| data.content.len()).unwrap_or_default();
    for offset in [0, length as u64] {
        let result = bench.store.load(&id, &old, offset).await;
        bench.refused(rule, "LoadItem of a version that was replaced", result, &[Code::Aborted])?;
    }
    let never = super::refusals::never(&current.version);
    let result = bench.store.load(&id, &never, 0).await;
    bench.refused(rule, "LoadItem of a version that never was", result, &[Code::Aborted])?;
    bench.read(&id).await?;
    bench.delete(&id).await
}

/// How long an update may wait for a load that is under way, before the load is read on.
const MEANWHILE: Duration = Duration::from_secs(2);

/// While an item's data comes, the item is replaced.
pub(super) async fn replaced_meanwhile(bench: &Bench) -> Held {
    let rule = Rule::StoreLoadWhole;
    let id = bench.item()?;
    let old = bench.with_content(bench.sample()?.large("old", LARGE_BYTES))?;
    bench.insert_as(Rule::StoreLarge, &id, old.clone()).await?;
    let version = bench.entry(&id)?.version;
    let new = bench.with_content(bench.sample()?.large("new", LARGE_BYTES))?;
    let rpc = "LoadItem";
    let mut frames = bench.answered(Rule::StoreData, rpc, bench.store.begin_load(&id, &version, 0).await)?;
    let mut parts = Vec::new();
    parts.extend(bench.answered(Rule::StoreData, rpc, bench.store.next(&mut frames).await)?);
    let update = bench.update_as(Rule::StoreWrites, &bench.other, &id, new);
    tokio::pin!(update);
    // A store may let it wait until the load is over.
    let early = tokio::time::timeout(MEANWHILE, &mut update).await;
    let rest = bench.store.rest(&mut frames).await;
    match early {
        Ok(updated) => updated?,
        Err(_) => update.await?,
    }
    match rest {
        Err(fault) if matches!(fault.code(), Some(Code::Aborted | Code::NotFound)) => bench.book.held(rule),
        rest => {
            parts.extend(bench.answered(rule, rpc, rest)?);
            let mixed = |stop| match stop {
                Stop::Broken { rule: Rule::StoreData, message } => Stop::Broken { rule, message },
                stop => stop,
            };
            let loaded = bench.judge_parts(parts, 0).map_err(mixed)?;
            bench.require(rule, loaded.content == old.content, || {
                format!("item {} was replaced while it was loaded, and what came is not what it was before", shown(&id))
            })?;
        }
    }
    bench.read(&id).await?;
    bench.delete(&id).await
}
