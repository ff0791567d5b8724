//! Two clients, each on a connection of its own.

use bytes::Bytes;
use tokio::sync::mpsc;
use tonic::Code;

use crate::check::book::{Held, Stop};
use crate::check::rule::Rule;
use crate::check::simple::bench::{Bench, shown};
use crate::check::simple::store::{Fault, Write, whole};

/// The other client is shown the item as the model has it.
async fn is_shown(bench: &Bench, id: &Bytes, what: &str) -> Held {
    let listed = bench.listed(&bench.other, None).await?;
    let seen = listed.items.get(id).map(|item| item.item_version.clone());
    let there = bench.entry(id)?;
    bench.require(Rule::StoreClients, seen == there.data.is_some().then_some(there.version), || {
        format!("item {} was {what} by one client, and another is shown {seen:?}", shown(id))
    })
}

/// What one has written, the other sees.
pub(super) async fn two(bench: &Bench) -> Held {
    let rule = Rule::StoreClients;
    let id = bench.create("by one client").await?;
    is_shown(bench, &id, "inserted").await?;
    bench.update(&id, bench.data("by one client, again")?).await?;
    is_shown(bench, &id, "updated").await?;
    bench.update_as(rule, &bench.other, &id, bench.data("by the other client")?).await?;
    bench.list().await?;
    bench.read_as(rule, &id).await?;
    let version = bench.entry(&id)?.version;
    let result = bench.other.load(&id, &version, 0).await;
    let (mine, other) = (bench.load(rule, &id, &version, 0).await?, bench.answered(rule, "LoadItem", result)?);
    let other = bench.judge_parts(other, 0)?;
    bench.require(rule, mine.content == other.content, || {
        format!("two clients were given different contents of item {}", shown(&id))
    })?;
    // At the same time, too.
    let (mine, other) = tokio::join!(bench.listed(&bench.store, None), bench.listed(&bench.other, None));
    let same = mine?.items == other?.items;
    bench.require(rule, same, || "two clients list at the same time, and see different items".to_owned())?;
    bench.delete(&id).await?;
    is_shown(bench, &id, "deleted").await
}

/// A write begins, another comes first, and then the first comes to its end.
pub(super) async fn overtaken(bench: &Bench) -> Held {
    let rule = Rule::StoreAtTheEnd;
    let (there, new) = (bench.create("to be overtaken").await?, bench.item()?);
    let version = bench.entry(&there)?.version;
    let update = Write { id: there.clone(), expected: Some(version), data: bench.data("late")? };
    let insert = Write { id: new.clone(), expected: None, data: bench.data("late")? };
    for (late, code) in [(&update, Code::Aborted), (&insert, Code::AlreadyExists)] {
        let (sender, receiver) = mpsc::channel(16);
        let mut parts = late.data.parts();
        let end = parts.pop().ok_or(Stop::Blocked)?;
        for part in parts {
            sender.try_send(part).map_err(|_| Stop::Blocked)?;
        }
        let call = bench.store.write(late, receiver);
        let overtake = async {
            // Until what was sent has got there.
            for _ in 0..3 {
                bench.list().await?;
            }
            let data = bench.data("in time")?;
            match late.expected {
                Some(_) => bench.update(&late.id, data).await?,
                None => bench.insert(&late.id, data).await?,
            }
            // When the store has refused already, nobody takes it.
            drop(sender.send(end).await);
            drop(sender);
            Held::Ok(())
        };
        let (result, overtook) = tokio::join!(call, overtake);
        overtook?;
        let what = format!("{} that was overtaken before its end", late.rpc());
        bench.refused(rule, &what, result, &[code])?;
        bench.untouched(rule, &late.id).await?;
    }
    bench.delete(&there).await?;
    bench.delete(&new).await
}

/// Rounds of each race.
const ROUNDS: usize = 5;

/// Both write at the same time: one of them does.
pub(super) async fn races(bench: &Bench) -> Held {
    let id = bench.item()?;
    for round in 0..ROUNDS {
        race(bench, None, &id, round).await?;
        let version = bench.entry(&id)?.version;
        race(bench, Some(version), &id, round).await?;
        bench.delete(&id).await?;
    }
    Ok(())
}

async fn race(bench: &Bench, expected: Option<Bytes>, id: &Bytes, round: usize) -> Held {
    let rule = Rule::StoreRace;
    let write = |text: &str| -> Held<Write> {
        // Not what was inserted a moment ago: a store may make versions of contents, and then the same version is right.
        let kind = if expected.is_some() { "updated" } else { "inserted" };
        let data = bench.data(&format!("{kind} {text}, round {round}"))?;
        Ok(Write { id: id.clone(), expected: expected.clone(), data })
    };
    let (first, second) = (write("by one")?, write("by the other")?);
    let parts = |write: &Write| whole(write.data.parts());
    let (mine, other) =
        tokio::join!(bench.store.write(&first, parts(&first)), bench.other.write(&second, parts(&second)));
    let (done, late) = match (mine, other) {
        (Ok(version), late @ Err(Fault::Status(_))) => ((first, version), late),
        (late @ Err(Fault::Status(_)), Ok(version)) => ((second, version), late),
        (Err(fault @ Fault::Silent(_)), _) | (_, Err(fault @ Fault::Silent(_))) => {
            return bench.answered(rule, first.rpc(), Err(fault));
        }
        (Ok(_), Ok(_)) => {
            let message = format!("two calls of {} at the same time were both done, one over the other", first.rpc());
            return Err(Stop::Broken { rule, message });
        }
        (Err(one), Err(two)) => {
            let message = format!("of two calls of {} at the same time none was done: {one}; {two}", first.rpc());
            return Err(Stop::Broken { rule, message });
        }
    };
    let code = if expected.is_some() { Code::Aborted } else { Code::AlreadyExists };
    bench.refused(rule, &format!("{} that came second", done.0.rpc()), late, &[code])?;
    bench.take(rule, done.0, Ok(done.1))?;
    bench.untouched(rule, id).await
}
