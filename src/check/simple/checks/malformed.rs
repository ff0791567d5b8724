//! What a store must pass over, and what it must refuse.

use bytes::Bytes;
use prost::{Message, Name};
use tonic::{Code, Request, Status};

use crate::check::book::{Held, Stop};
use crate::check::raw::{Raw, with_extra};
use crate::check::rule::Rule;
use crate::check::simple::bench::Bench;
use crate::check::simple::store::{Fault, Part, Write, path, whole};
use crate::pb;

/// Calls with messages that are given as bytes; the first answer.
async fn call_raw(bench: &Bench, rpc: &'static str, messages: Vec<Bytes>) -> Held<Result<Bytes, Fault>> {
    let connection = bench.store.connection();
    let mut client = tonic::client::Grpc::new(connection.channel());
    let call = async move {
        client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let mut stream =
            client.streaming(Request::new(tokio_stream::iter(messages)), path(rpc)?, Raw).await?.into_inner();
        stream.message().await
    };
    let answer: Result<_, Fault> = connection.bounded(rpc, call).await;
    Ok(answer.map(Option::unwrap_or_default))
}

/// Calls with messages that have one field more.
async fn call_with_extra<Q, A>(bench: &Bench, rpc: &'static str, requests: Vec<Q>) -> Held<A>
where
    Q: Message + Name + Clone + 'static,
    A: Message + Name + Clone + Default + 'static,
{
    let transcript = bench.store.transcript();
    for request in &requests {
        transcript.sent(rpc, request);
    }
    transcript.note("   (and field 2047, a string, in each)".to_owned());
    let messages = requests.iter().map(with_extra).collect();
    let answer = bench.answered(Rule::StoreUnknownFields, rpc, call_raw(bench, rpc, messages).await?)?;
    let answer = A::decode(answer)
        .map_err(|error| Stop::Broken { rule: Rule::StoreWire, message: format!("the answer to {rpc}: {error}") })?;
    transcript.received(rpc, &answer);
    Ok(answer)
}

/// Every call in messages with a field of a later version in each.
pub(super) async fn unknown_fields(bench: &Bench) -> Held {
    let rule = Rule::StoreUnknownFields;
    // Of a store that is there at all.
    bench.schema()?;
    let _: pb::GetSchemaResponse = call_with_extra(bench, "GetSchema", vec![pb::GetSchemaRequest {}]).await?;
    let _: pb::EnumerateItemsResponse =
        call_with_extra(bench, "EnumerateItems", vec![pb::EnumerateItemsRequest { since_anchor: None }]).await?;
    let id = bench.item()?;
    let insert = Write { id: id.clone(), expected: None, data: bench.data("inserted")? };
    let requests = insert.data.parts().into_iter().map(|part| insert.insert(part)).collect();
    let answer: pb::InsertItemResponse = call_with_extra(bench, "InsertItem", requests).await?;
    bench.take(rule, insert, Ok(answer.item_version.clone()))?;
    let update = Write { id: id.clone(), expected: Some(answer.item_version), data: bench.data("updated")? };
    let requests = update.data.parts().into_iter().map(|part| update.update(part)).collect();
    let answer: pb::UpdateItemResponse = call_with_extra(bench, "UpdateItem", requests).await?;
    bench.take(rule, update, Ok(answer.item_version.clone()))?;
    let version = answer.item_version;
    bench.untouched(rule, &id).await?;
    let request = pb::LoadItemRequest { item_id: id.clone(), expected_item_version: version.clone(), offset: 0 };
    let _: pb::LoadItemResponse = call_with_extra(bench, "LoadItem", vec![request]).await?;
    let request = pb::DeleteItemRequest { item_id: id.clone(), expected_item_version: version };
    let _: pb::DeleteItemResponse = call_with_extra(bench, "DeleteItem", vec![request]).await?;
    let listed = bench.listed(&bench.store, None).await?;
    bench.require(rule, !listed.items.contains_key(&id), || {
        "DeleteItem with an unknown field was answered, and the item is still there".to_owned()
    })
}

/// Requests that make no sense, each refused, with nothing done; and the store goes on.
pub(super) async fn requests(bench: &Bench) -> Held {
    let rule = Rule::StoreMalformed;
    let there = bench.create("there all the time").await?;
    let before = bench.listed(&bench.store, None).await?.items;
    let invalid = &[Code::InvalidArgument][..];
    let or_absent = &[Code::InvalidArgument, Code::NotFound][..];
    let data = bench.data("malformed")?;
    // A store that takes it has it to be deleted.
    bench.own(Bytes::new());
    let parts = data.parts();
    let insert = |id: Bytes| Write { id, expected: None, data: data.clone() };
    let update = |id: Bytes| Write { id, expected: Some(Bytes::from_static(b"1")), data: data.clone() };
    let writes = [
        ("an empty id", insert(Bytes::new()), parts.clone(), invalid),
        ("an empty id", update(Bytes::new()), parts.clone(), or_absent),
        ("no message at all", insert(bench.item()?), Vec::new(), invalid),
        ("no message at all", update(bench.item()?), Vec::new(), invalid),
        ("no start", insert(bench.item()?), parts[1..].to_vec(), invalid),
        ("no start", update(bench.item()?), parts[1..].to_vec(), or_absent),
        ("an empty message first", insert(bench.item()?), [&[Part::Nothing], &parts[1..]].concat(), invalid),
    ];
    for (what, write, parts, codes) in writes {
        let result = bench.store.write(&write, whole(parts)).await;
        bench.refused(rule, &format!("{} with {what}", write.rpc()), result, codes)?;
        let after = bench.listed(&bench.store, None).await?.items;
        bench.require(rule, before == after, || {
            format!("{} with {what} was refused, and the items are not as before", write.rpc())
        })?;
    }
    let nothing = Bytes::new();
    bench.refused(rule, "LoadItem with an empty id", bench.store.load(&nothing, &nothing, 0).await, or_absent)?;
    bench.refused(rule, "DeleteItem with an empty id", bench.store.delete(&nothing, &nothing).await, or_absent)?;
    garbage(bench).await?;

    let rule = Rule::StoreAlive;
    let id = bench.item()?;
    bench.insert_as(rule, &id, bench.data("after malformed requests")?).await?;
    bench.untouched(rule, &id).await?;
    bench.untouched(rule, &there).await?;
    bench.delete(&id).await?;
    bench.delete(&there).await
}

/// Bytes that are no message. What they are refused with is the gRPC library's affair.
async fn garbage(bench: &Bench) -> Held {
    for rpc in ["EnumerateItems", "LoadItem", "InsertItem", "UpdateItem", "DeleteItem"] {
        bench.store.transcript().note(format!("-> {rpc} (bytes that are no message)"));
        let result = call_raw(bench, rpc, vec![Bytes::from_static(b"\x0a\xff\xff")]).await?;
        let refused = matches!(result, Err(Fault::Status(_)));
        bench.require(Rule::StoreMalformed, refused, || {
            let came = result.as_ref().map_or_else(ToString::to_string, |_| "an answer".to_owned());
            format!("{rpc} with bytes that are no message came to: {came}")
        })?;
    }
    Ok(())
}
