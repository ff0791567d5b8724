//! The compact form of knowledge in the metadata file: a version byte, the replica ids, the distinct vectors, then the ranges
//! that point to them. Numbers are LEB128; byte strings are preceded by their length.

use std::collections::HashMap;
use std::sync::Arc;

use super::row::{Unit, Units};
use crate::knowledge::{
    ChangeUnitId, ClockVector, Digest, Fragment, IdFormat, ItemId, Knowledge, Range, ReplicaId, Version,
};

const FORMAT: u8 = 1;

/// Encodes a whole knowledge.
pub(in crate::provider::sdk) fn encode_knowledge(knowledge: &Knowledge) -> Vec<u8> {
    let mut writer = Writer(vec![FORMAT]);
    let (fixed, length) = match knowledge.item_format() {
        IdFormat::Fixed(length) => (1, length),
        IdFormat::Variable(length) => (0, length),
    };
    writer.number(fixed);
    writer.number(length.into());
    let replicas = knowledge.replicas();
    let keys: HashMap<&ReplicaId, u64> = replicas.iter().zip(0..).collect();
    writer.number(replicas.len() as u64);
    replicas.iter().for_each(|replica| writer.bytes(replica.as_bytes()));

    // Ranges share vectors by pointer; equal ones that do not are merged here.
    let mut vectors = Vec::new();
    let mut index: HashMap<&ClockVector, u64> = HashMap::new();
    let ranges = || knowledge.fragments().iter().flat_map(|fragment| &fragment.ranges);
    for range in ranges() {
        index.entry(&range.vector).or_insert_with(|| {
            vectors.push(&range.vector);
            vectors.len() as u64 - 1
        });
    }
    writer.number(vectors.len() as u64);
    for vector in vectors {
        writer.number(vector.iter().len() as u64);
        for (replica, tick) in vector.iter() {
            writer.number(keys[replica]);
            writer.number(tick);
        }
    }
    writer.number(knowledge.fragments().len() as u64);
    for fragment in knowledge.fragments() {
        writer.number(fragment.change_unit_ids.len() as u64);
        fragment.change_unit_ids.iter().for_each(|unit| writer.bytes(unit.as_bytes()));
        writer.number(fragment.ranges.len() as u64);
        for range in &fragment.ranges {
            writer.bytes(range.lower_bound.as_bytes());
            writer.number(index[&*range.vector]);
        }
    }
    writer.0
}

/// The reverse; `None` for anything that [`encode_knowledge`] does not make.
pub(super) fn decode_knowledge(bytes: &[u8]) -> Option<Knowledge> {
    let mut reader = Reader(bytes.strip_prefix(&[FORMAT])?);
    let fixed = reader.number()? == 1;
    let length = u16::try_from(reader.number()?).ok()?;
    let format = if fixed { IdFormat::Fixed(length) } else { IdFormat::Variable(length) };
    let replicas = reader.list(|reader| reader.bytes().map(ReplicaId::from))?;
    let vectors = reader.list(|reader| {
        let elements = reader.list(|reader| {
            let replica = replicas.get(usize::try_from(reader.number()?).ok()?)?;
            Some((replica.clone(), reader.number()?))
        })?;
        Some(Arc::new(ClockVector::from_iter(elements)))
    })?;
    let fragments = reader.list(|reader| {
        let change_unit_ids = reader.list(|reader| reader.bytes().map(ChangeUnitId::from))?;
        let ranges = reader.list(|reader| {
            let lower_bound = ItemId::from(reader.bytes()?);
            let vector = vectors.get(usize::try_from(reader.number()?).ok()?)?.clone();
            Some(Range { lower_bound, vector })
        })?;
        Some(Fragment { change_unit_ids, ranges })
    })?;
    reader.0.is_empty().then_some(())?;
    Knowledge::from_fragments(format, fragments).ok()
}

/// Encodes one vector.
pub(super) fn encode_vector(vector: &ClockVector) -> Vec<u8> {
    let mut writer = Writer(vec![FORMAT]);
    writer.number(vector.iter().len() as u64);
    for (replica, tick) in vector.iter() {
        writer.bytes(replica.as_bytes());
        writer.number(tick);
    }
    writer.0
}

/// The reverse of [`encode_vector`].
pub(super) fn decode_vector(bytes: &[u8]) -> Option<ClockVector> {
    let mut reader = Reader(bytes.strip_prefix(&[FORMAT])?);
    let elements = reader.list(|reader| Some((ReplicaId::from(reader.bytes()?), reader.number()?)))?;
    reader.0.is_empty().then(|| ClockVector::from_iter(elements))
}

/// A unit has a value, and so a digest.
const HAS_DIGEST: u64 = 1;
/// A unit has a time.
const HAS_TIME: u64 = 2;

/// Encodes the change units of an item; `key` gives the number of a version's replica.
pub(super) fn encode_units<E>(units: &Units, mut key: impl FnMut(&ReplicaId) -> Result<i64, E>) -> Result<Vec<u8>, E> {
    let mut writer = Writer(vec![FORMAT]);
    writer.number(units.len() as u64);
    for (id, unit) in units {
        writer.bytes(id.as_bytes());
        let digest = if unit.digest.is_some() { HAS_DIGEST } else { 0 };
        let time = if unit.modification_time.is_some() { HAS_TIME } else { 0 };
        writer.number(digest | time);
        writer.number(key(&unit.version.replica)? as u64);
        writer.number(unit.version.tick);
        if let Some(digest) = &unit.digest {
            writer.0.extend_from_slice(&digest.0);
        }
        if let Some(time) = unit.modification_time {
            writer.0.extend_from_slice(&time.as_nanosecond().to_le_bytes());
        }
    }
    Ok(writer.0)
}

/// The reverse of [`encode_units`]; `version` makes a version of a replica's number and a tick.
pub(super) fn decode_units(bytes: &[u8], version: impl Fn(i64, u64) -> Option<Version>) -> Option<Units> {
    let mut reader = Reader(bytes.strip_prefix(&[FORMAT])?);
    let units = reader.list(|reader| {
        let id = ChangeUnitId::from(reader.bytes()?);
        let has = reader.number()?;
        let key = i64::try_from(reader.number()?).ok()?;
        let version = version(key, reader.number()?)?;
        let digest = if has & HAS_DIGEST != 0 { Some(Digest(reader.array()?)) } else { None };
        let nanoseconds = if has & HAS_TIME != 0 { Some(i128::from_le_bytes(reader.array()?)) } else { None };
        let modification_time = nanoseconds.map(jiff::Timestamp::from_nanosecond).transpose().ok()?;
        Some((id, Unit { digest, version, modification_time }))
    })?;
    reader.0.is_empty().then(|| units.into_iter().collect())
}

/// Encodes ids of change units; none are no bytes at all.
pub(super) fn encode_unit_ids(units: &[ChangeUnitId]) -> Vec<u8> {
    let mut writer = Writer(Vec::new());
    units.iter().for_each(|unit| writer.bytes(unit.as_bytes()));
    writer.0
}

/// The reverse of [`encode_unit_ids`].
pub(super) fn decode_unit_ids(bytes: &[u8]) -> Option<Vec<ChangeUnitId>> {
    let mut reader = Reader(bytes);
    let mut units = Vec::new();
    while !reader.0.is_empty() {
        units.push(ChangeUnitId::from(reader.bytes()?));
    }
    Some(units)
}

struct Writer(Vec<u8>);

impl Writer {
    fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.number()?).ok()?;
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*bytes)
    }

    /// A count and so many elements. Nothing is reserved for the count, which may be a lie.
    fn list<T>(&mut self, mut element: impl FnMut(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        (0..self.number()?).map(|_| element(self)).collect()
    }
}
