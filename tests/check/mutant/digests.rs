//! Digests of ranges, and repair: what a mutant makes of them.

use sha2::{Digest as _, Sha256};
use synclave::knowledge::Digest;
use synclave::provider::{
    CallError, ContentCheck, Provider, RangeDigest, RangeDigests, RangeDigestsRequest, RepairItems, SessionKey,
};

use super::{Mutant as M, Mutated};

fn other(digest: Digest) -> Digest {
    Digest(digest.0.map(|byte| !byte))
}

impl Mutated {
    pub(super) async fn digests(
        &self,
        key: SessionKey,
        request: RangeDigestsRequest,
    ) -> Result<RangeDigests, CallError> {
        let RangeDigestsRequest { ranges, max_listed_items, checksum, .. } = request.clone();
        if self.mutant == M::DigestsAfterTheEnd && self.memory().ended.contains(&key.sync_guid) {
            return Ok(RangeDigests { parts: Vec::new(), answered_ranges: 0 });
        }
        let mut answer = self.inner.get_range_digests(self.key(key), request).await?;
        if self.mutant == M::LeavesAGap && answer.parts.len() > ranges.len() {
            answer.parts.remove(0);
        }
        for part in &mut answer.parts {
            self.spoil_part(part, max_listed_items, checksum);
        }
        Ok(answer)
    }

    fn spoil_part(&self, part: &mut RangeDigest, max_listed_items: u32, checksum: bool) {
        match self.mutant {
            M::DigestsOtherProperties => {
                let mut hasher = Sha256::new();
                for item in &mut part.items {
                    item.digest = other(item.digest);
                    hasher.update(item.digest.0);
                }
                if !part.items.is_empty() {
                    part.digest = Digest(hasher.finalize().into());
                }
            }
            M::DigestsRangesOtherwise => part.digest = other(part.digest),
            M::CountsTombstones if part.count == 2 && max_listed_items == 0 => part.count += 1,
            M::ListsOneLess if part.count > 1 => drop(part.items.pop()),
            M::DoesNotReadContent if checksum => {
                part.items.iter_mut().for_each(|item| item.content = ContentCheck::Unread);
            }
            M::DigestsOnce if max_listed_items == 0 => {
                part.digest = *self.memory().digests_given.entry(part.range.lower_bound.clone()).or_insert(part.digest);
            }
            _ => {}
        }
    }

    pub(super) async fn repaired(&self, key: SessionKey, request: RepairItems) -> Result<RepairItems, CallError> {
        let asked = request.clone();
        let mut forwarded = request;
        match self.mutant {
            M::RepairsNothing => forwarded = RepairItems { sound: Vec::new(), damaged: Vec::new() },
            M::RepairsMore => forwarded.sound.extend(asked.damaged.iter().cloned()),
            _ => {}
        }
        let mut answer = self.inner.repair_items(self.key(key), forwarded).await?;
        match self.mutant {
            M::RepairsNothing => answer.sound = asked.sound,
            M::RepairsMore => answer.sound.retain(|item| asked.sound.contains(item)),
            M::BelievesInDamage => answer.damaged = asked.damaged,
            _ => {}
        }
        Ok(answer)
    }
}
