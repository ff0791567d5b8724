//! The simple stores that a coordinator itself speaks for: one provider for each store, whatever the address, with its metadata
//! in a directory of its own that the store's id names.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use super::{Calls, OpenError, SimpleStore, StoreOptions, lock, open};
use crate::grpc::address::AddressError;
use crate::provider::sdk::{Options, ReplicaProvider};
use crate::provider::{CallError, Refusal, RefusalCode};
use crate::types::Hresult;

/// The stores that were met. They stay open until the process ends: a session's end may be owed to one at any time.
#[derive(Debug)]
pub struct Members {
    dir: PathBuf,
    options: StoreOptions,
    open: Arc<Mutex<HashMap<Vec<u8>, Member>>>,
}

#[derive(Debug)]
struct Member {
    store: Arc<SimpleStore>,
    provider: Arc<ReplicaProvider>,
}

impl Members {
    /// Metadata are kept below `dir`, which is made when it is needed.
    pub fn new(dir: PathBuf, options: StoreOptions) -> Self {
        Self { dir, options, open: Arc::default() }
    }

    /// A store's calls, at an address.
    ///
    /// # Errors
    /// When the text is no address.
    pub fn calls(&self, address: &str) -> Result<Calls, AddressError> {
        Calls::new(address, self.options)
    }

    /// The provider of the store that is behind `calls` now. A store that has moved to another address is reached there from
    /// now on.
    ///
    /// # Errors
    /// When the store does not answer, or is no simple store (E_NOTIMPL); when its metadata cannot be opened.
    pub async fn provider(&self, calls: &Calls) -> Result<Arc<ReplicaProvider>, CallError> {
        let schema = calls.get_schema().await?;
        let (members, calls, dir) = (self.open.clone(), calls.clone(), self.dir.join(schema.directory_name()));
        let opening = tokio::task::spawn_blocking(move || {
            // Held while the metadata is opened, so that nobody else opens the same.
            let mut members = lock(&members);
            if let Some(member) = members.get(&schema.store_id) {
                member.store.moved(calls);
                return Ok(member.provider.clone());
            }
            let store_id = schema.store_id.clone();
            let options = Options { member_name: schema.member_name.clone(), ..Options::default() };
            let (store, provider) = open(calls, schema, &dir, options)?;
            members.insert(store_id, Member { store, provider: provider.clone() });
            Ok(provider)
        });
        let refused = |message| {
            CallError::Refused(Refusal::own(RefusalCode::FailedPrecondition, "METADATA", Hresult::E_FAIL, message))
        };
        let opened: Result<_, OpenError> = opening.await.map_err(|error| refused(error.to_string()))?;
        opened.map_err(|error| refused(error.to_string()))
    }
}
