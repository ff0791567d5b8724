//! Lists of all items.

use crate::check::book::{Held, Stop};
use crate::check::rule::Rule;
use crate::check::simple::bench::Bench;

/// Finds out what items look like here; then inserts, updates and deletes some, and looks.
pub(super) async fn all(bench: &Bench) -> Held {
    bench.find_sample().await?;
    let (a, b, c) = (bench.create("a").await?, bench.create("b").await?, bench.create("c").await?);
    bench.list().await?;
    // Again: nothing has changed, and no version may have.
    bench.list().await?;
    for id in [&a, &b, &c] {
        bench.read(id).await?;
    }
    bench.update(&a, bench.data("a, updated")?).await?;
    bench.delete(&b).await?;
    bench.list().await?;
    bench.list().await?;
    bench.read(&a).await?;
    bench.read(&c).await?;
    for id in [&a, &c] {
        bench.delete(id).await?;
    }
    let listed = bench.list().await?;
    bench.judge_anchor(&listed)
}

/// Sizes, digests and times, of a store that keeps them.
pub(super) async fn digests(bench: &Bench) -> Held {
    if !bench.schema()?.supports_digests {
        return Err(Stop::NotOffered("supports_digests is false".to_owned()));
    }
    let id = bench.create("with a digest").await?;
    bench.judge_digests(&bench.list().await?)?;
    bench.update(&id, bench.data("with another digest")?).await?;
    bench.judge_digests(&bench.list().await?)?;
    // The same content at another time.
    let mut data = bench.entry(&id)?.data.ok_or(Stop::Blocked)?;
    data.modification_time.seconds += 3_600;
    bench.update(&id, data).await?;
    bench.judge_digests(&bench.list().await?)?;
    bench.delete(&id).await
}

/// Properties, of a store that keeps them.
pub(super) async fn properties(bench: &Bench) -> Held {
    if !bench.schema()?.supports_properties {
        return Err(Stop::NotOffered("supports_properties is false".to_owned()));
    }
    let id = bench.create("with properties").await?;
    bench.judge_properties(&bench.list().await?)?;
    // The same content with other properties is a change too.
    let before = bench.entry(&id)?;
    let mut data = before.data.ok_or(Stop::Blocked)?;
    data.properties.insert("synclave-check".to_owned(), "another".to_owned());
    bench.update_as(Rule::StoreProperties, &bench.store, &id, data).await?;
    let same = bench.entry(&id)?.version == before.version;
    bench.require(Rule::StoreVersion, !same, || "other properties, and the same version as before".to_owned())?;
    bench.judge_properties(&bench.list().await?)?;
    bench.read(&id).await?;
    bench.delete(&id).await
}
