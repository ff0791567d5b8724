//! The changes since an anchor.

use std::collections::BTreeSet;

use bytes::Bytes;
use tonic::Code;

use crate::check::book::Held;
use crate::check::rule::Rule;
use crate::check::simple::bench::{Bench, shown};

/// Insertions, updates and deletions since the last anchor, and since earlier ones.
pub(super) async fn changes(bench: &Bench) -> Held {
    bench.has_anchors()?;
    let (kept, updated, deleted) =
        (bench.create("kept").await?, bench.create("to be updated").await?, bench.create("to be deleted").await?);
    let first = bench.anchor(&bench.list().await?)?;
    bench.changes(&first, &[]).await?;
    let inserted = bench.create("inserted").await?;
    bench.update(&updated, bench.data("updated")?).await?;
    let second = bench.anchor(&bench.changes(&first, &[&inserted, &updated]).await?)?;
    bench.delete(&deleted).await?;
    bench.update(&updated, bench.data("updated again")?).await?;
    let third = bench.anchor(&bench.changes(&second, &[&updated, &deleted]).await?)?;
    // An earlier anchor still tells all that came after it, and each item once, as it is now.
    bench.changes(&first, &[&inserted, &updated, &deleted]).await?;
    bench.insert(&deleted, bench.data("there again")?).await?;
    bench.changes(&third, &[&deleted]).await?;
    bench.changes(&second, &[&updated, &deleted]).await?;
    for id in [&kept, &updated, &inserted, &deleted] {
        bench.delete(id).await?;
    }
    bench.changes(&third, &[&kept, &updated, &inserted, &deleted]).await?;
    Ok(())
}

/// Rounds, and items that are inserted in each while lists are made.
const ROUNDS: usize = 4;
const INSERTED: usize = 4;

/// What is written while a list is made may be in it or not, and is then in the next.
pub(super) async fn changes_during_a_list(bench: &Bench) -> Held {
    bench.has_anchors()?;
    let rule = Rule::StoreChangesDuring;
    let mut anchor = bench.anchor(&bench.list().await?)?;
    let mut written = Vec::new();
    let mut seen: BTreeSet<Bytes> = BTreeSet::new();
    for round in 0..ROUNDS {
        let insert = async {
            let mut ids = Vec::new();
            for number in 0..INSERTED {
                ids.push(bench.create(&format!("of round {round}, {number}")).await?);
            }
            Held::Ok(ids)
        };
        let (listed, inserted) = tokio::join!(bench.listed(&bench.other, Some(&anchor)), insert);
        let listed = listed?;
        written.extend(inserted?);
        anchor = bench.anchor(&listed)?;
        seen.extend(listed.items.into_keys());
    }
    seen.extend(bench.listed(&bench.store, Some(&anchor)).await?.items.into_keys());
    let lost = written.iter().find(|id| !seen.contains(*id));
    bench.require(rule, lost.is_none(), || {
        let id = lost.map(shown).unwrap_or_default();
        format!(
            "item {id} was inserted while a list was made, and is neither in it nor in the changes since its anchor"
        )
    })?;
    for id in &written {
        bench.delete(id).await?;
    }
    Ok(())
}

/// An anchor that no list ended with.
pub(super) async fn unknown(bench: &Bench) -> Held {
    bench.has_anchors()?;
    let rule = Rule::StoreUnknownAnchor;
    for anchor in [&b"synclave-check: no anchor of this store"[..], &[0xff; 24]] {
        let result = bench.store.list(Some(Bytes::copy_from_slice(anchor))).await;
        bench.refused(rule, "EnumerateItems since an anchor of nobody", result, &[Code::FailedPrecondition])?;
    }
    bench.list().await?;
    Ok(())
}
