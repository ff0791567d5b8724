//! InsertItem and UpdateItem: their streams, and what they may hold.

use bytes::Bytes;
use tokio::sync::mpsc;
use tonic::Code;

use crate::check::book::{Held, Stop};
use crate::check::rule::Rule;
use crate::check::simple::bench::{Bench, shown};
use crate::check::simple::store::{Part, Write, whole};

/// Content of a large item.
pub(super) const LARGE_BYTES: usize = 8 * 1024 * 1024;

/// The codes that refuse one item, and say that nothing was done.
pub(super) const REFUSALS: &[Code] = &[
    Code::InvalidArgument,
    Code::FailedPrecondition,
    Code::OutOfRange,
    Code::ResourceExhausted,
    Code::PermissionDenied,
    Code::Unauthenticated,
    Code::Unimplemented,
];

/// An item that was deleted is inserted again.
pub(super) async fn again(bench: &Bench) -> Held {
    let rule = Rule::StoreAgain;
    let id = bench.create("for the first time").await?;
    bench.delete(&id).await?;
    bench.insert_as(rule, &id, bench.data("for the second time")?).await?;
    bench.list().await?;
    bench.read(&id).await?;
    bench.delete(&id).await
}

/// An insert of a new item, and an update of one that is there.
async fn insert_and_update(bench: &Bench, what: &str) -> Held<[Write; 2]> {
    let there = bench.create(&format!("there, before {what}")).await?;
    let version = bench.entry(&there)?.version;
    let insert = Write { id: bench.item()?, expected: None, data: bench.data(&format!("inserted {what}"))? };
    let update = Write { id: there, expected: Some(version), data: bench.data(&format!("updated {what}"))? };
    Ok([insert, update])
}

/// The write has had no effect, or `rule` is broken.
async fn undone(bench: &Bench, rule: Rule, write: &Write, when: &str) -> Held {
    let listed = bench.listed(&bench.store, None).await?;
    let version = listed.items.get(&write.id).map(|item| &item.item_version);
    bench.require(rule, version == write.expected.as_ref(), || {
        let (rpc, id) = (write.rpc(), shown(&write.id));
        format!("{rpc} of item {id} {when}, and the list shows {version:?} of it")
    })?;
    if write.expected.is_some() { bench.read_as(rule, &write.id).await } else { Ok(()) }
}

/// Deletes what the update was of.
async fn end(bench: &Bench, writes: &[Write; 2]) -> Held {
    bench.delete(&writes[1].id).await
}

/// All parts but the end, which is long in coming, and then does not come.
pub(super) async fn unended(bench: &Bench) -> Held {
    let rule = Rule::StoreEnd;
    let writes = insert_and_update(bench, "without an end").await?;
    for write in &writes {
        let (sender, receiver) = mpsc::channel(16);
        for part in write.data.parts() {
            if !matches!(part, Part::End(_)) {
                sender.try_send(part).map_err(|_| Stop::Blocked)?;
            }
        }
        let call = bench.store.write(write, receiver);
        let look = async {
            // Lists take longer than what was sent takes to get there.
            for _ in 0..3 {
                undone(bench, rule, write, "has not come to its end").await?;
            }
            drop(sender);
            Held::Ok(())
        };
        let (result, looked) = tokio::join!(call, look);
        looked?;
        let what = format!("{} without an end", write.rpc());
        bench.refused(rule, &what, result, &[Code::InvalidArgument])?;
        undone(bench, rule, write, "was refused").await?;
    }
    end(bench, &writes).await
}

/// The call is broken off before its end.
pub(super) async fn broken_off(bench: &Bench) -> Held {
    let rule = Rule::StoreCancel;
    let writes = insert_and_update(bench, "by a call that is broken off").await?;
    for write in &writes {
        let (sender, receiver) = mpsc::channel(16);
        for part in write.data.parts() {
            if !matches!(part, Part::End(_)) {
                sender.try_send(Some(write.encoded(part))).map_err(|_| Stop::Blocked)?;
            }
        }
        bench.store.transcript().note(format!("-> {} (start and chunks; then it is broken off)", write.rpc()));
        let call = bench.store.break_off(write, receiver);
        let look = async {
            undone(bench, rule, write, "has not come to its end").await?;
            drop(sender.send(None).await);
            Held::Ok(())
        };
        let (result, looked) = tokio::join!(call, look);
        looked?;
        bench.require(rule, result.is_err(), || format!("{} was answered before its end", write.rpc()))?;
        for _ in 0..3 {
            undone(bench, rule, write, "was broken off").await?;
        }
        // It holds nothing up.
        let result = bench.store.write(write, whole(write.data.parts())).await;
        bench.take(rule, write.clone(), result)?;
        bench.read_as(rule, &write.id).await?;
    }
    bench.delete(&writes[0].id).await?;
    end(bench, &writes).await
}

/// The parts of a write, with another digest at the end.
fn with_end(write: &Write, digest: Bytes) -> Vec<Part> {
    let mut parts = write.data.parts();
    parts.pop();
    parts.push(Part::End(digest));
    parts
}

/// The parts of a write, with chunks that each lack their last byte.
fn cut(write: &Write) -> Vec<Part> {
    let shorter = |part| match part {
        Part::Chunk(chunk) => Part::Chunk(chunk.slice(..chunk.len() - 1)),
        part => part,
    };
    write.data.parts().into_iter().map(shorter).collect()
}

/// The digest at the end is that of another content; and some of the content is missing.
pub(super) async fn corrupt(bench: &Bench) -> Held {
    let rule = Rule::StoreDigestChecked;
    let writes = insert_and_update(bench, "with the digest of something else").await?;
    for write in &writes {
        let other = bench.data("something else")?.digest();
        for parts in [with_end(write, other), cut(write)] {
            let result = bench.store.write(write, whole(parts)).await;
            let what = format!("{} with content that is not as its end says", write.rpc());
            bench.refused(rule, &what, result, &[Code::InvalidArgument])?;
            undone(bench, rule, write, "was refused").await?;
        }
    }
    end(bench, &writes).await
}

/// No content at all. A store may refuse it: a row is never empty.
pub(super) async fn empty(bench: &Bench) -> Held {
    let rule = Rule::StoreEmpty;
    let id = bench.create("to be emptied").await?;
    let data = bench.with_content(Bytes::new())?;
    let update = Write { id: id.clone(), expected: Some(bench.entry(&id)?.version), data };
    let result = bench.store.write(&update, whole(update.data.parts())).await;
    if let Err(fault) = &result
        && fault.code().is_some()
    {
        bench.refused(rule, "UpdateItem with empty content", result, REFUSALS)?;
        bench.untouched(rule, &id).await?;
    } else {
        bench.take(rule, update, result)?;
        bench.read_as(rule, &id).await?;
        bench.list().await?;
    }
    bench.delete(&id).await
}

/// 8 MiB, inserted and then replaced by others.
pub(super) async fn large(bench: &Bench) -> Held {
    let rule = Rule::StoreLarge;
    let id = bench.item()?;
    bench.insert_as(rule, &id, bench.with_content(bench.sample()?.large("large", LARGE_BYTES))?).await?;
    bench.list().await?;
    bench.read_as(rule, &id).await?;
    let data = bench.with_content(bench.sample()?.large("as large", LARGE_BYTES))?;
    bench.update_as(rule, &bench.store, &id, data).await?;
    bench.list().await?;
    bench.read_as(rule, &id).await?;
    bench.delete(&id).await
}
