//! Item ids at the bounds of the schema, and alike ones.

use bytes::Bytes;
use tonic::Code;

use super::writes::REFUSALS;
use crate::check::book::{Held, Stop};
use crate::check::rule::Rule;
use crate::check::simple::bench::{Bench, shown};
use crate::check::simple::store::{Write, whole};

/// The longest id, and one that is longer.
pub(super) async fn longest(bench: &Bench) -> Held {
    let rule = Rule::StoreIdSize;
    if bench.options.item_template.is_some() {
        return Err(Stop::NotOffered("ids are as --item-template has them".to_owned()));
    }
    let most = bench.schema()?.max_item_id_size;
    let of_length = |length: usize| -> Held<Bytes> {
        let mut id = bench.item()?.to_vec();
        id.resize(length, b'x');
        Ok(bench.own(Bytes::from(id)))
    };
    let id = of_length(most)?;
    bench.insert_as(rule, &id, bench.data("of the longest id")?).await?;
    let listed = bench.listed(&bench.store, None).await?;
    bench.require(rule, listed.items.contains_key(&id), || {
        format!("an item with an id of {most} bytes was inserted, and is not listed")
    })?;
    bench.read(&id).await?;
    bench.update(&id, bench.data("of the longest id, updated")?).await?;
    bench.delete(&id).await?;
    bench.list().await?;

    let longer = of_length(most + 1)?;
    let cut = bench.own(longer.slice(..most));
    let insert = Write { id: longer, expected: None, data: bench.data("of an id that is too long")? };
    let result = bench.store.write(&insert, whole(insert.data.parts())).await;
    bench.refused(rule, &format!("InsertItem with an id of {} bytes", most + 1), result, &[Code::InvalidArgument])?;
    let listed = bench.listed(&bench.store, None).await?;
    bench.require(rule, !listed.items.contains_key(&cut), || "a long id was cut, and the item stored".to_owned())
}

/// Ids that a store may take for one: of another case, and of another form of the same letter.
pub(super) async fn bytes(bench: &Bench) -> Held {
    let rule = Rule::StoreIdBytes;
    let name = String::from_utf8(bench.item()?.to_vec()).map_err(|_| Stop::Blocked)?;
    let upper = name.replace("synclave-check", "SYNCLAVE-CHECK");
    let (composed, decomposed) = (name.replace("check", "\u{e9}"), name.replace("check", "e\u{301}"));
    for (first, second) in [(&name, &upper), (&composed, &decomposed)] {
        let id = |text: &str| bench.own(Bytes::copy_from_slice(text.as_bytes()));
        let (first, second) = (id(first), id(second));
        if first == second || second.len() > bench.schema()?.max_item_id_size {
            continue;
        }
        let insert = Write { id: first.clone(), expected: None, data: bench.data("of one id")? };
        let result = bench.store.write(&insert, whole(insert.data.parts())).await;
        if result.as_ref().is_err_and(|fault| fault.code().is_some()) {
            // No item of that store at all.
            bench.refused(rule, "InsertItem", result, REFUSALS)?;
            continue;
        }
        bench.take(rule, insert, result)?;
        let insert = Write { id: second.clone(), expected: None, data: bench.data("of another id")? };
        let result = bench.store.write(&insert, whole(insert.data.parts())).await;
        if result.as_ref().is_err_and(|fault| fault.code().is_some()) {
            let codes = [REFUSALS, &[Code::AlreadyExists]].concat();
            bench.refused(
                rule,
                &format!("InsertItem of {} beside {}", shown(&second), shown(&first)),
                result,
                &codes,
            )?;
        } else {
            bench.take(rule, insert, result)?;
            bench.untouched(rule, &second).await?;
            bench.untouched(rule, &first).await?;
            bench.delete(&second).await?;
        }
        bench.untouched(rule, &first).await?;
        bench.delete(&first).await?;
    }
    Ok(())
}
