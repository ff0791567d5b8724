//! Other inputs from one that there is: bytes that change, and messages whose fields do.

use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor};

use crate::corpus::Dictionary;
use crate::random::Random;

/// Numbers at which something may begin or end.
const NUMBERS: [u64; 16] = [
    0,
    1,
    2,
    3,
    7,
    8,
    127,
    128,
    255,
    4_096,
    65_535,
    65_536,
    u32::MAX as u64,
    i64::MAX as u64,
    i64::MAX as u64 + 1,
    u64::MAX,
];

/// Lengths at which something may begin or end.
const LENGTHS: [usize; 9] = [0, 1, 15, 16, 17, 255, 256, 4_096, 4_097];

/// Messages deeper than this stay bytes.
const MAX_DEPTH: usize = 16;

/// A message as its fields come, known ones and unknown ones.
#[derive(Clone)]
pub(crate) struct Tree {
    pub(crate) descriptor: MessageDescriptor,
    fields: Vec<Field>,
}

#[derive(Clone)]
struct Field {
    number: u32,
    value: Value,
}

#[derive(Clone)]
enum Value {
    Varint(u64),
    Fixed64([u8; 8]),
    Bytes(Vec<u8>),
    Message(Tree),
    Fixed32([u8; 4]),
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn put_varint(mut value: u64, bytes: &mut Vec<u8>) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

impl Tree {
    /// `None` for bytes that are no fields.
    pub(crate) fn parse(bytes: &[u8], descriptor: &MessageDescriptor) -> Option<Self> {
        Self::parse_at(bytes, descriptor, 0)
    }

    fn parse_at(mut bytes: &[u8], descriptor: &MessageDescriptor, depth: usize) -> Option<Self> {
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let tag = take_varint(&mut bytes)?;
            let number = u32::try_from(tag >> 3).ok()?;
            let value = match tag & 7 {
                0 => Value::Varint(take_varint(&mut bytes)?),
                1 => Value::Fixed64(*bytes.split_off(..8)?.first_chunk()?),
                2 => {
                    let length = usize::try_from(take_varint(&mut bytes)?).ok()?;
                    let payload = bytes.split_off(..length)?;
                    let kind = descriptor.get_field(number).map(|field| field.kind());
                    let message = match kind {
                        Some(Kind::Message(inner)) if depth < MAX_DEPTH => Self::parse_at(payload, &inner, depth + 1),
                        _ => None,
                    };
                    message.map_or_else(|| Value::Bytes(payload.to_vec()), Value::Message)
                }
                5 => Value::Fixed32(*bytes.split_off(..4)?.first_chunk()?),
                _ => return None,
            };
            fields.push(Field { number, value });
        }
        Some(Self { descriptor: descriptor.clone(), fields })
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for Field { number, value } in &self.fields {
            let mut tag = |wire: u64| put_varint(u64::from(*number) << 3 | wire, &mut bytes);
            match value {
                Value::Varint(value) => {
                    tag(0);
                    put_varint(*value, &mut bytes);
                }
                Value::Fixed64(value) => {
                    tag(1);
                    bytes.extend(value);
                }
                Value::Fixed32(value) => {
                    tag(5);
                    bytes.extend(value);
                }
                Value::Bytes(_) | Value::Message(_) => {
                    tag(2);
                    let payload = match value {
                        Value::Message(message) => message.encode(),
                        Value::Bytes(payload) => payload.clone(),
                        _ => unreachable!("the other wire types are above"),
                    };
                    put_varint(payload.len() as u64, &mut bytes);
                    bytes.extend(payload);
                }
            }
        }
        bytes
    }

    /// Itself, and every message in it.
    pub(crate) fn visit(&self, see: &mut impl FnMut(&Self)) {
        see(self);
        for field in &self.fields {
            if let Value::Message(message) = &field.value {
                message.visit(see);
            }
        }
    }

    fn messages(&self) -> usize {
        let mut count = 0;
        self.visit(&mut |_| count += 1);
        count
    }

    /// The message that comes after so many others.
    fn nth(&mut self, left: &mut usize) -> Option<&mut Self> {
        if *left == 0 {
            return Some(self);
        }
        *left -= 1;
        self.fields.iter_mut().find_map(|field| match &mut field.value {
            Value::Message(message) => message.nth(left),
            _ => None,
        })
    }

    /// Itself without one field, which comes after so many others; `None` when there are no more.
    pub(crate) fn without(&self, at: usize) -> Option<Self> {
        let mut smaller = self.clone();
        smaller.remove(&mut { at }).then_some(smaller)
    }

    fn remove(&mut self, left: &mut usize) -> bool {
        for at in 0..self.fields.len() {
            if *left == 0 {
                self.fields.remove(at);
                return true;
            }
            *left -= 1;
            if let Value::Message(message) = &mut self.fields[at].value
                && message.remove(left)
            {
                return true;
            }
        }
        false
    }

    /// Changes one thing in it.
    pub(crate) fn mutate(&mut self, dictionary: &Dictionary, random: &mut Random) {
        let mut at = random.index(self.messages());
        if let Some(message) = self.nth(&mut at) {
            message.mutate_here(dictionary, random);
        }
    }

    fn mutate_here(&mut self, dictionary: &Dictionary, random: &mut Random) {
        let count = self.fields.len();
        match random.below(16) {
            0 | 1 if count > 0 => drop(self.fields.remove(random.index(count))),
            2 | 3 if count > 0 => {
                let field = self.fields[random.index(count)].clone();
                let times = if random.below(64) == 0 { 2_000 } else { 1 + random.index(3) };
                let at = random.index(count + 1);
                self.fields.splice(at..at, std::iter::repeat_n(field, times));
            }
            4 if count > 1 => self.fields.swap(random.index(count), random.index(count)),
            5..=7 => self.insert(dictionary, random),
            8 => {
                let others = dictionary.of_type(&self.descriptor);
                if !others.is_empty() {
                    *self = others[random.index(others.len())].clone();
                }
            }
            9 if count > 0 => {
                // A value of another field of the same message: ids that are equal, ticks that are the others' keys.
                let value = self.fields[random.index(count)].value.clone();
                self.fields[random.index(count)].value = value;
            }
            _ if count > 0 => {
                let at = random.index(count);
                match &mut self.fields[at].value {
                    Value::Varint(value) => *value = another_number(*value, random),
                    Value::Fixed64(value) => *value = random.next().to_le_bytes(),
                    Value::Fixed32(value) => *value = (random.next() as u32).to_le_bytes(),
                    Value::Bytes(payload) => mutate_bytes(payload, random),
                    Value::Message(message) => message.mutate_here(dictionary, random),
                }
            }
            _ => self.insert(dictionary, random),
        }
    }

    fn insert(&mut self, dictionary: &Dictionary, random: &mut Random) {
        let known: Vec<FieldDescriptor> = self.descriptor.fields().collect();
        if known.is_empty() {
            return;
        }
        let field = &known[random.index(known.len())];
        let value = match field.kind() {
            Kind::Message(inner) => {
                let others = dictionary.of_type(&inner);
                Value::Message(match others.len() {
                    0 => Self { descriptor: inner, fields: Vec::new() },
                    count => others[random.index(count)].clone(),
                })
            }
            Kind::String | Kind::Bytes => {
                let mut payload = Vec::new();
                mutate_bytes(&mut payload, random);
                Value::Bytes(payload)
            }
            Kind::Double | Kind::Fixed64 | Kind::Sfixed64 => Value::Fixed64(random.next().to_le_bytes()),
            Kind::Float | Kind::Fixed32 | Kind::Sfixed32 => Value::Fixed32((random.next() as u32).to_le_bytes()),
            _ => Value::Varint(another_number(0, random)),
        };
        self.fields.insert(random.index(self.fields.len() + 1), Field { number: field.number(), value });
    }
}

fn another_number(value: u64, random: &mut Random) -> u64 {
    match random.below(6) {
        0 => value.wrapping_add(1),
        1 => value.wrapping_sub(1),
        2 => random.next() >> random.below(64),
        3 => random.below(8),
        _ => random.pick(&NUMBERS),
    }
}

/// Changes a few bytes, or how many there are.
pub(crate) fn mutate_bytes(bytes: &mut Vec<u8>, random: &mut Random) {
    let count = bytes.len();
    match random.below(10) {
        0 => bytes.insert(random.index(count + 1), random.next() as u8),
        1 if count > 0 => drop(bytes.remove(random.index(count))),
        2 if count > 0 => bytes[random.index(count)] ^= 1 << random.below(8),
        3 if count > 0 => bytes[random.index(count)] = random.pick(&[0, 1, 0x7f, 0x80, 0xff, b'.', b'"', b'{']),
        4 => bytes.truncate(random.index(count + 1)),
        5 => {
            let filler = random.next() as u8;
            bytes.resize(random.pick(&LENGTHS), filler);
        }
        6 if count > 0 => {
            let from = random.index(count);
            let part = bytes[from..(from + 1 + random.index(16)).min(count)].to_vec();
            let at = random.index(count + 1);
            bytes.splice(at..at, part);
        }
        7 if count > 0 => {
            let from = random.index(count);
            bytes.drain(from..(from + 1 + random.index(16)).min(count));
        }
        8 => {
            // Digits that go on, in texts that hold numbers.
            let at = random.index(count + 1);
            bytes.splice(at..at, random.pick(&NUMBERS).to_string().into_bytes());
        }
        _ => bytes.extend((0..1 + random.index(16)).map(|_| random.next() as u8)),
    }
}
