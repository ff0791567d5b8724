//! Calls that the store must refuse, because the item is not as the caller believes; nothing may be done.

use bytes::Bytes;
use tonic::Code;

use crate::check::book::Held;
use crate::check::rule::Rule;
use crate::check::simple::bench::Bench;
use crate::check::simple::store::{Write, whole};

/// A version that the item never had.
pub(super) fn never(version: &Bytes) -> Bytes {
    let mut other = version.to_vec();
    other.iter_mut().for_each(|byte| *byte ^= 0x55);
    Bytes::from(other)
}

/// An item that never was, and one that was deleted.
pub(super) async fn absent(bench: &Bench) -> Held {
    let (rule, codes) = (Rule::StoreNotFound, &[Code::NotFound]);
    let gone = bench.create("to be deleted").await?;
    let version = bench.entry(&gone)?.version;
    bench.delete(&gone).await?;
    let unknown = bench.item()?;
    for id in [&gone, &unknown] {
        bench.refused(rule, "LoadItem of an absent item", bench.store.load(id, &version, 0).await, codes)?;
        let data = bench.data("of an absent item")?;
        let update = Write { id: id.clone(), expected: Some(version.clone()), data };
        let result = bench.store.write(&update, whole(update.data.parts())).await;
        bench.refused(rule, "UpdateItem of an absent item", result, codes)?;
        bench.refused(rule, "DeleteItem of an absent item", bench.store.delete(id, &version).await, codes)?;
        let listed = bench.listed(&bench.store, None).await?;
        bench.require(rule, !listed.items.contains_key(id), || {
            "UpdateItem of an absent item was refused, and the item is there all the same".to_owned()
        })?;
    }
    Ok(())
}

/// InsertItem of an item that is there.
pub(super) async fn exists(bench: &Bench) -> Held {
    let rule = Rule::StoreExists;
    let id = bench.create("there").await?;
    let data = bench.data("inserted over it")?;
    let insert = Write { id: id.clone(), expected: None, data };
    let result = bench.store.write(&insert, whole(insert.data.parts())).await;
    bench.refused(rule, "InsertItem of an item that is there", result, &[Code::AlreadyExists])?;
    bench.untouched(rule, &id).await?;
    bench.delete(&id).await
}

/// UpdateItem of a version that was replaced, or never was.
pub(super) async fn update_of_another_version(bench: &Bench) -> Held {
    let rule = Rule::StoreUpdateChanged;
    let id = bench.create("as it was").await?;
    let old = bench.entry(&id)?.version;
    bench.update(&id, bench.data("as somebody else wrote it")?).await?;
    for expected in [old, never(&bench.entry(&id)?.version)] {
        let update = Write { id: id.clone(), expected: Some(expected), data: bench.data("written over it")? };
        let result = bench.store.write(&update, whole(update.data.parts())).await;
        bench.refused(rule, "UpdateItem of another version", result, &[Code::Aborted])?;
        bench.untouched(rule, &id).await?;
    }
    bench.delete(&id).await
}

/// DeleteItem of a version that was replaced, or never was.
pub(super) async fn deletion_of_another_version(bench: &Bench) -> Held {
    let rule = Rule::StoreDeleteChanged;
    let id = bench.create("as it was").await?;
    let old = bench.entry(&id)?.version;
    bench.update(&id, bench.data("as somebody else wrote it")?).await?;
    for expected in [old, never(&bench.entry(&id)?.version)] {
        let result = bench.store.delete(&id, &expected).await;
        bench.refused(rule, "DeleteItem of another version", result, &[Code::Aborted])?;
        bench.untouched(rule, &id).await?;
    }
    bench.delete(&id).await
}
