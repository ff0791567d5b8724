//! LoadItem: an item's content as it comes, with all that its store says of it checked.

use std::io::{Error, ErrorKind, Read};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use sha2::{Digest as _, Sha256};
use tokio::runtime::Handle;
use tonic::Streaming;

use super::calls::{Failure, within};
use crate::pb;
use crate::pb::load_item_response::Part;

/// The content of one item. Ends only where the store says that it ends, with the size and the digest that the store gave.
pub(super) struct Reader {
    runtime: Handle,
    deadline: Duration,
    stream: Streaming<pb::LoadItemResponse>,
    header: pb::ItemDataHeader,
    chunk: Bytes,
    /// Bytes that are still to come.
    left: u64,
    /// Of what was read; meaningful when reading began at the beginning.
    hasher: Option<Sha256>,
    ended: bool,
}

impl Reader {
    /// Waits for the header.
    pub(super) fn begin(
        runtime: Handle,
        deadline: Duration,
        mut stream: Streaming<pb::LoadItemResponse>,
        offset: u64,
    ) -> Result<Self, Failure> {
        let message = runtime.block_on(within(deadline, stream.message()))?;
        let Some(pb::LoadItemResponse { part: Some(Part::Header(header)) }) = message else {
            return Err(Failure::garbage("the store sent data without a header"));
        };
        let left = header.content_size.saturating_sub(offset);
        let hasher = (offset == 0).then(Sha256::new);
        Ok(Self { runtime, deadline, stream, header, chunk: Bytes::new(), left, hasher, ended: false })
    }

    /// Bytes of the whole content.
    pub(super) fn size(&self) -> u64 {
        self.header.content_size
    }

    fn next(&mut self) -> Result<(), Error> {
        let message = self.runtime.block_on(within(self.deadline, self.stream.message())).map_err(failed)?;
        match message.and_then(|message| message.part) {
            Some(Part::Chunk(chunk)) => {
                self.left = (self.left.checked_sub(chunk.len() as u64))
                    .ok_or_else(|| invalid("the store sent more than it had announced"))?;
                if let Some(hasher) = &mut self.hasher {
                    hasher.update(&chunk);
                }
                self.chunk = chunk;
                Ok(())
            }
            Some(Part::End(pb::ItemDataEnd { content_digest })) => {
                if self.left > 0 {
                    return Err(invalid("the store sent less than it had announced"));
                }
                if let Some(hasher) = self.hasher.take() {
                    let digest = hasher.finalize();
                    let announced = self.header.content_digest.as_ref();
                    if content_digest[..] != digest[..]
                        || announced.is_some_and(|announced| announced[..] != digest[..])
                    {
                        return Err(invalid("the store says another digest than its content has"));
                    }
                }
                self.ended = true;
                Ok(())
            }
            Some(Part::Header(_)) => Err(invalid("the store sent two headers")),
            None => Err(Error::new(ErrorKind::UnexpectedEof, "the store's data ended without an end")),
        }
    }
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        while self.chunk.is_empty() {
            if self.ended {
                return Ok(0);
            }
            self.next()?;
        }
        let count = self.chunk.len().min(buffer.len());
        self.chunk.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

fn invalid(what: &str) -> Error {
    Error::new(ErrorKind::InvalidData, what)
}

fn failed(failure: Failure) -> Error {
    Error::other(failure.words())
}
