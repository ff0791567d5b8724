//! Item data on its way through the session: which loads wait, and what has come of each.

use std::collections::{HashSet, VecDeque};

use super::rule::{Breach, Rule};
use crate::knowledge::{Digest, ItemDataHeader, ItemId};
use crate::provider::{DataPart, MAX_OUTSTANDING_LOADS};

/// What a batch said of an item's content.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Announced {
    pub(super) size: Option<u64>,
    pub(super) digest: Option<Digest>,
}

impl Announced {
    /// Checks what the data itself says of its content.
    pub(super) fn check(&self, item: &ItemId, header: &ItemDataHeader) -> Result<(), Breach> {
        if let Some(size) = self.size.filter(|size| *size != header.content_size) {
            let message = format!("item {item} was announced with {size} bytes and comes with {}", header.content_size);
            return Err(Breach::source(Rule::DataNotAsAnnounced, message));
        }
        header.content_digest.map_or(Ok(()), |digest| self.check_digest(item, digest))
    }

    fn check_digest(&self, item: &ItemId, digest: Digest) -> Result<(), Breach> {
        match self.digest {
            Some(announced) if announced != digest => {
                let message = format!("item {item} was announced with digest {announced:?} and comes with {digest:?}");
                Err(Breach::source(Rule::DataNotAsAnnounced, message))
            }
            _ => Ok(()),
        }
    }
}

/// One load that waits for its end.
#[derive(Debug)]
struct Transfer {
    load_id: u64,
    item: ItemId,
    offset: u64,
    announced: Announced,
    /// Bytes still to come; `None` before the header.
    remaining: Option<u64>,
}

/// The loads of one batch.
#[derive(Debug, Default)]
pub(super) struct Transfers {
    waiting: VecDeque<Transfer>,
    ids: HashSet<u64>,
    /// Bytes of content that came.
    pub(super) bytes: u64,
}

impl Transfers {
    /// The destination asks for data.
    pub(super) fn load(
        &mut self,
        load_id: u64,
        item: &ItemId,
        offset: u64,
        announced: Announced,
    ) -> Result<(), Breach> {
        if !self.ids.insert(load_id) {
            return Err(Breach::destination(Rule::DuplicateLoad, format!("load {load_id} was asked for before")));
        }
        if self.waiting.len() >= MAX_OUTSTANDING_LOADS {
            let message = format!("load {load_id} is one more than the {MAX_OUTSTANDING_LOADS} that may wait");
            return Err(Breach::destination(Rule::TooManyLoads, message));
        }
        self.waiting.push_back(Transfer { load_id, item: item.clone(), offset, announced, remaining: None });
        Ok(())
    }

    /// The item of the load whose turn it is, if that is this one.
    pub(super) fn item_of(&self, load_id: u64) -> Option<&ItemId> {
        self.waiting.front().filter(|transfer| transfer.load_id == load_id).map(|transfer| &transfer.item)
    }

    /// The source answers a load.
    pub(super) fn data(&mut self, load_id: u64, part: &DataPart) -> Result<(), Breach> {
        let Some(transfer) = self.waiting.front_mut().filter(|transfer| transfer.load_id == load_id) else {
            let message = format!("load {load_id} is answered out of turn");
            return Err(Breach::source(Rule::DataOutOfTurn, message));
        };
        let item = &transfer.item;
        match (part, &mut transfer.remaining) {
            (DataPart::Header(header), remaining @ None) => {
                transfer.announced.check(item, header)?;
                transfer.announced.digest = transfer.announced.digest.or(header.content_digest);
                *remaining = Some(header.content_size.saturating_sub(transfer.offset));
            }
            (DataPart::Chunk(chunk), Some(remaining)) => {
                let size = chunk.len() as u64;
                self.bytes += size;
                *remaining = remaining.checked_sub(size).ok_or_else(|| {
                    let message = format!("item {item} comes with more bytes than its header says");
                    Breach::source(Rule::DataNotAsAnnounced, message)
                })?;
            }
            (DataPart::End { .. }, Some(remaining)) if *remaining > 0 => {
                let message = format!("item {item} ends {remaining} bytes before the size in its header");
                return Err(Breach::source(Rule::DataNotAsAnnounced, message));
            }
            (DataPart::End { content_digest }, Some(_)) => {
                transfer.announced.check_digest(item, *content_digest)?;
                self.waiting.pop_front();
            }
            (DataPart::Failed(_), _) => drop(self.waiting.pop_front()),
            (DataPart::Header(_), Some(_)) | (DataPart::Chunk(_) | DataPart::End { .. }, None) => {
                let message = format!("the data of item {item} is not one header, chunks and an end");
                return Err(Breach::source(Rule::DataMalformed, message));
            }
        }
        Ok(())
    }
}
