//! Messages as bytes, to send what the messages of this version cannot say.

use bytes::{Buf as _, BufMut, Bytes, BytesMut};
use prost::Message;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

/// A field that no message has: number 2047, a string.
const UNKNOWN_FIELD: &[u8] = b"\xfa\x7f\x05extra";

/// Messages as bytes, so that more can be sent than the messages of this version hold.
#[derive(Debug)]
pub(super) struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let length = from.remaining();
        Ok(Some(from.copy_to_bytes(length)))
    }
}

/// The message with a field of a later version.
pub(super) fn with_extra(message: &impl Message) -> Bytes {
    let mut bytes = BytesMut::from(&message.encode_to_vec()[..]);
    bytes.put_slice(UNKNOWN_FIELD);
    bytes.freeze()
}

/// Calls whose requests come as bytes and break off at a `None`: the stream is reset, and not ended.
#[derive(Debug)]
pub(super) struct Breaking;

impl Codec for Breaking {
    type Encode = Option<Bytes>;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Raw;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Breaking {
    type Item = Option<Bytes>;
    type Error = Status;

    fn encode(&mut self, item: Option<Bytes>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item.ok_or_else(|| Status::cancelled("broken off"))?);
        Ok(())
    }
}
