//! What is fuzzed: each decoder of what a peer sends, and the laws that hold for what it accepts.

#[path = "targets/apply.rs"]
mod apply;
#[path = "targets/laws.rs"]
mod laws;
#[path = "targets/requests.rs"]
mod requests;
#[path = "targets/simple.rs"]
mod simple;
#[path = "targets/texts.rs"]
mod texts;

use std::fmt::Debug;
use std::sync::Arc;

use bytes::Bytes;
use prost::{Message, Name};
use synclave::grpc::convert::knowledge::ReplicaKeys;
use synclave::grpc::convert::{self, InvalidMessage, Path, Violations, batch, exchange, provider, range_digests};
use synclave::grpc::json;
use synclave::knowledge::{IdFormat, IdParameters, Knowledge};
use synclave::pb;
use synclave::provider::Refusal;

use crate::harness::{Target, Verdict};

const SCHEMA: &IdParameters = &IdParameters::BUILT_IN;

/// Schemas that other providers have: short and fixed ids, and the shortest that there are.
const SCHEMAS: [IdParameters; 3] = [
    IdParameters::BUILT_IN,
    IdParameters {
        replica_id: IdFormat::Variable(16),
        item_id: IdFormat::Fixed(4),
        change_unit_id: IdFormat::Fixed(1),
    },
    IdParameters {
        replica_id: IdFormat::Fixed(16),
        item_id: IdFormat::Variable(2),
        change_unit_id: IdFormat::Variable(1),
    },
];

pub(crate) fn all() -> Vec<Target> {
    let mut targets = vec![
        Target::of_message("knowledge", "synclave.v1.Knowledge", knowledge),
        Target::of_message("change_batch", "synclave.v1.ChangeBatch", change_batch),
        of("process_request", process_request),
        of("process_response", process_response),
        of("load_request", |input| {
            let keys = || Arc::new(some_keys());
            round_trip(
                input,
                |message, violations| exchange::load(message, SCHEMA, |_| keys(), violations),
                |(key, load)| exchange::encode_load(*key, load, &keys()),
            )
        }),
        of("load_response", |input| {
            round_trip(input, exchange::data_part, |part| Ok(exchange::encode_data_part(part.clone())))
        }),
        of("id_parameters_response", |input| {
            round_trip(input, provider::provider_info, |info| Ok(provider::encode_provider_info(info.clone())))
        }),
        of("provider_begin_session_request", |input| {
            round_trip(input, provider::begin_session, |begin| Ok(provider::encode_begin_session(begin.clone())))
        }),
        of("provider_renew_session_response", |input| {
            round_trip(input, provider::renewal, |renewal| Ok(provider::encode_renewal(renewal.clone())))
        }),
        of("sync_batch_parameters_response", |input| {
            round_trip(
                input,
                |message, violations| provider::sync_batch_parameters(message, SCHEMA, violations),
                |parameters| provider::encode_sync_batch_parameters(parameters, None),
            )
        }),
        of("change_batch_request", |input| {
            round_trip(
                input,
                |message, violations| provider::change_batch_request(message, SCHEMA, violations),
                |(key, request)| provider::encode_change_batch_request(*key, request),
            )
        }),
        of("full_enumeration_request", |input| {
            round_trip(
                input,
                |message, violations| provider::full_enumeration_request(message, SCHEMA, violations),
                |(key, request, bound)| provider::encode_full_enumeration_request(*key, request, bound),
            )
        }),
        of("provider_end_session_request", |input| {
            round_trip(input, provider::end_session, |end| Ok(provider::encode_end_session(end.clone())))
        }),
        of("range_digests_request", |input| {
            round_trip(input, range_digests::request, |(key, asked)| Ok(range_digests::encode_request(*key, asked)))
        }),
        of("range_digests_response", |input| {
            round_trip(
                input,
                |message, violations| range_digests::digests(message, SCHEMA, violations),
                |digests| Ok(range_digests::encode_digests(digests.clone())),
            )
        }),
        of("repair_items_request", |input| {
            round_trip(
                input,
                |message, violations| range_digests::repair(message, SCHEMA, violations),
                |(key, items)| Ok(range_digests::encode_repair(*key, items)),
            )
        }),
    ];
    targets.extend(requests::all());
    targets.extend(simple::all());
    targets.extend(texts::all());
    targets.extend(apply::all());
    targets
}

/// A target that takes the message which its function decodes.
fn of<M: Name + 'static>(name: &'static str, run: fn(&[u8]) -> Of<M>) -> Target {
    let message: &'static str = Box::leak(M::full_name().into_boxed_str());
    Target::of_message(name, message, move |input| run(input).verdict)
}

/// A verdict on a message of this type.
struct Of<M> {
    verdict: Verdict,
    message: std::marker::PhantomData<M>,
}

impl<M> From<Verdict> for Of<M> {
    fn from(verdict: Verdict) -> Self {
        Self { verdict, message: std::marker::PhantomData }
    }
}

fn parse<M: Message + Default>(input: &[u8]) -> Option<M> {
    M::decode(Bytes::copy_from_slice(input)).ok()
}

/// What kind of refusal it is: its words without values.
fn refused(error: &InvalidMessage) -> Verdict {
    // Told to people and in a trailer.
    assert!(error.to_string().len() < 64 * 1024, "a refusal of {} bytes", error.to_string().len());
    let words = |text: &str| text.chars().filter(|c| !c.is_ascii_digit()).take(60).collect::<String>();
    let mut kinds: Vec<String> = error
        .violations()
        .iter()
        .map(|violation| format!("{} {}", words(&violation.field), words(&violation.description)))
        .collect();
    kinds.sort();
    kinds.dedup();
    kinds.truncate(3);
    Verdict::Refused(kinds.join("; "))
}

/// What kind of value it is: which words its debug form has, and about how many.
fn kind_of(value: &impl Debug) -> String {
    let text = format!("{value:?}");
    let words = text.split(|c: char| !c.is_ascii_alphabetic()).filter(|word| word.len() > 3 && word.len() < 24);
    let mut words: Vec<&str> = words.take(400).collect();
    words.sort_unstable();
    words.dedup();
    format!("{} {}", words.join(" "), text.len().max(1).ilog2())
}

/// What is accepted is encoded, accepted again, and is the same value and the same bytes then.
fn round_trip<M: Message + Name + Default, T: Debug>(
    input: &[u8],
    decode: impl Fn(M, &mut Violations) -> Option<T>,
    encode: impl Fn(&T) -> Result<M, Refusal>,
) -> Of<M> {
    let Some(message) = parse::<M>(input) else { return Verdict::Garbage.into() };
    if input.len() < 1_024 {
        json::to_value(&message);
    }
    let value = match convert::decode(|violations| decode(message, violations)) {
        Ok(value) => value,
        Err(error) => return refused(&error).into(),
    };
    // Refused: more than a message may hold.
    if let Ok(encoded) = encode(&value) {
        let encoded = encoded.encode_to_vec();
        let message = M::decode(&encoded[..]).expect("what we encode is a message");
        let again = convert::decode(|violations| decode(message, violations))
            .unwrap_or_else(|error| panic!("we refuse what we encoded: {error}"));
        assert_eq!(format!("{again:?}"), format!("{value:?}"), "reads the same");
        let twice = encode(&again).expect("as before").encode_to_vec();
        assert!(twice == encoded, "encoded again it is something else: {again:?}");
    }
    Verdict::Accepted(kind_of(&value)).into()
}

/// Keys of a batch that a load may name.
fn some_keys() -> ReplicaKeys {
    let ids: Vec<Bytes> = (1..4).map(|number| Bytes::from(vec![number; 16])).collect();
    let mut violations = Violations::default();
    ReplicaKeys::decode(&ids, SCHEMA.replica_id, Path::ROOT, &mut violations)
}

fn decode_knowledge(input: &[u8], schema: &IdParameters) -> Option<Result<Knowledge, InvalidMessage>> {
    let message = parse::<pb::Knowledge>(input)?;
    Some(convert::decode(|violations| convert::knowledge::knowledge(message, schema, Path::ROOT, violations)))
}

/// Knowledge as the wire has it, in several schemas, with the laws of what can be done with it.
pub(crate) fn knowledge(input: &[u8]) -> Verdict {
    let mut verdict = Verdict::Garbage;
    for schema in &SCHEMAS {
        let of: Of<pb::Knowledge> = round_trip(
            input,
            |message, violations| convert::knowledge::knowledge(message, schema, Path::ROOT, violations),
            |knowledge| convert::knowledge::encode_knowledge(knowledge, None),
        );
        if let Some(Ok(value)) = decode_knowledge(input, schema) {
            laws::of_knowledge(&value, schema);
        }
        match (&verdict, of.verdict) {
            (Verdict::Accepted(_), _) => {}
            (_, other) => verdict = other,
        }
    }
    verdict
}

fn change_batch(input: &[u8]) -> Verdict {
    let mut verdict = Verdict::Garbage;
    for schema in &SCHEMAS {
        let decode = |message, violations: &mut Violations| batch::batch(message, schema, Path::ROOT, violations);
        let of: Of<pb::ChangeBatch> = round_trip(
            input,
            |message, violations| Some(decode(message, violations)?.0),
            |batch| Ok(batch::encode_batch(batch, None, None)?.0),
        );
        if let Some(message) = parse(input)
            && let Ok((batch, _)) = convert::decode(|violations| decode(message, violations))
        {
            laws::of_batch(&batch, schema);
        }
        match (&verdict, of.verdict) {
            (Verdict::Accepted(_), _) => {}
            (_, other) => verdict = other,
        }
    }
    verdict
}

/// To a destination: start, batch, then data and cancel. In full enumeration the same under another name.
fn process_request(input: &[u8]) -> Of<pb::ProcessChangeBatchRequest> {
    use pb::process_change_batch_request::Frame;
    let Some(message) = parse::<pb::ProcessChangeBatchRequest>(input) else { return Verdict::Garbage.into() };
    let full = pb::ProcessFullEnumerationChangeBatchRequest::from(message.clone());
    let full = parse::<pb::ProcessFullEnumerationChangeBatchRequest>(&full.encode_to_vec()).expect("the same frames");
    assert!(pb::ProcessChangeBatchRequest::from(full) == message);
    match message.frame {
        Some(Frame::Start(start)) => {
            let of: Of<pb::ProcessStart> = round_trip(
                &start.encode_to_vec(),
                |message, violations| exchange::process_start(message, SCHEMA, Path::ROOT, violations),
                |(key, start)| Ok(exchange::encode_process_start(*key, start.clone())),
            );
            of.verdict.into()
        }
        Some(Frame::Batch(batch)) => change_batch(&batch.encode_to_vec()).into(),
        Some(Frame::Data(_) | Frame::Cancel(_)) | None => {
            round_trip(input, exchange::process_input, |frame| Ok(exchange::encode_process_input(frame.clone())))
        }
    }
}

/// From a destination.
fn process_response(input: &[u8]) -> Of<pb::ProcessChangeBatchResponse> {
    let Some(message) = parse::<pb::ProcessChangeBatchResponse>(input) else { return Verdict::Garbage.into() };
    let full = pb::ProcessFullEnumerationChangeBatchResponse::from(message.clone());
    let full = parse::<pb::ProcessFullEnumerationChangeBatchResponse>(&full.encode_to_vec()).expect("the same frames");
    assert!(pb::ProcessChangeBatchResponse::from(full) == message);
    let keys = some_keys();
    round_trip(
        input,
        |message, violations| exchange::process_output(message, SCHEMA, &keys, violations),
        |frame| exchange::encode_process_output(frame.clone(), &keys, None),
    )
}
