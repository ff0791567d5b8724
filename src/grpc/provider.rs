//! Both ends of a provider on the wire: [`DialOut`] calls one, [`ProviderServer`] serves one.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use super::convert::knowledge::ReplicaKeys;
use crate::knowledge::{IdParameters, ReplicaId};
use crate::provider::{MAX_MESSAGE_BYTES, ProviderInfo};
use crate::types::SyncGuid;

mod client;
mod connections;
mod server;
#[cfg(test)]
mod tests;

pub use client::DialOut;
pub use connections::{Connections, DialOptions};
pub use server::ProviderServer;

/// Sessions whose latest keys are kept. A source is in a handful at once; beyond the bound, which only sessions that never end
/// can reach, the oldest is forgotten and a load of it is refused.
const MAX_SESSIONS: usize = 256;

/// Room that is left in a message for what is not the batch.
const MESSAGE_SLACK: u64 = 64 * 1024;

/// A limit of a batch's bytes (0: none), lowered to what a message holds.
fn within_message(max_bytes: u64) -> u64 {
    let most = MAX_MESSAGE_BYTES as u64 - MESSAGE_SLACK;
    if max_bytes == 0 { most } else { max_bytes.min(most) }
}

/// Who a provider is, as far as the codec needs it: ids are checked against the schema, and its own knowledge has it as owner.
#[derive(Clone, Debug)]
struct Identity {
    schema: IdParameters,
    replica_id: ReplicaId,
}

/// The identity that a provider last told.
#[derive(Debug, Default)]
struct LastIdentity(Mutex<Option<Arc<Identity>>>);

impl LastIdentity {
    fn get(&self) -> Option<Arc<Identity>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, info: &ProviderInfo) -> Arc<Identity> {
        let identity = Arc::new(Identity { schema: info.id_parameters, replica_id: info.replica_id.clone() });
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(identity.clone());
        identity
    }
}

/// For each session the keys of its source's latest batch: LoadChangeData names versions by them.
#[derive(Debug, Default)]
struct LatestKeys(Mutex<VecDeque<(SyncGuid, Arc<ReplicaKeys>)>>);

impl LatestKeys {
    fn get(&self, session: SyncGuid) -> Arc<ReplicaKeys> {
        let sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.iter().find(|(id, _)| *id == session).map(|(_, keys)| keys.clone()).unwrap_or_default()
    }

    fn set(&self, session: SyncGuid, keys: ReplicaKeys) {
        let mut sessions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.retain(|(id, _)| *id != session);
        if sessions.len() == MAX_SESSIONS {
            sessions.pop_front();
        }
        sessions.push_back((session, Arc::new(keys)));
    }

    fn remove(&self, session: SyncGuid) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|(id, _)| *id != session);
    }
}
