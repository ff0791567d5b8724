//! The coordinator: store, hub, sessions and operations, wired together.
//!
//! `serve` puts the gRPC edge in front of it; `sync` drives it in its own process. Neither has a loop of its own.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::MissedTickBehavior;
use tracing::{info, warn};

use crate::grpc::address::AddressError;
use crate::grpc::provider::{DialOptions, DialOut};
use crate::grpc::simple_provider::{Either, Members, StoreOptions};
use crate::operation::Operations;
use crate::provider::{CallError, Provider, Refusal, RefusalCode};
use crate::session::token::Tokens;
use crate::session::{Dial, Sessions, Timing};
use crate::store::{Opened, Recovered, Retention, Store};
use crate::sync_info::Hub;
use crate::types::{Endpoint, Hresult};

/// Operations have so long to notice that their sessions are over.
const OPERATIONS_GRACE: Duration = Duration::from_secs(1);

/// History that is beyond its retention is looked for so often.
const FORGET_INTERVAL: Duration = Duration::from_secs(60);

/// Sessions that are forgotten in one transaction: bounds what a commit waits for behind it.
const FORGET_BITE: usize = 64;

/// Directory below the coordinator's, or a user's, with what is known of simple stores.
pub const SIMPLE_STORES: &str = "simple";

/// What a coordinator needs to know.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Spans.
    pub timing: Timing,
    /// Where providers find SessionStateService; `None` when it is not told to them.
    pub advertise: Option<String>,
    /// Operations that a former process left running are ended instead of going on: for a command that runs one of its own.
    pub abandon_operations: bool,
    /// How much history is kept.
    pub retention: Retention,
}

/// Why a coordinator did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store could not be opened or written.
    #[error(transparent)]
    Store(#[from] crate::store::Error),
    /// Former sessions could not be ended.
    #[error("the former run could not be recovered: {0}")]
    Sessions(#[from] crate::session::registry::Error),
    /// Former operations could not go on.
    #[error("the former run could not be recovered: {0}")]
    Operations(#[from] crate::operation::Error),
}

/// A store that is locked and read, before anything runs on it.
#[derive(Debug)]
pub struct OpenedStore {
    opened: Opened,
    recovered: Recovered,
}

/// A coordinator that runs. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Coordinator {
    /// What lasts.
    pub store: Arc<Store>,
    /// What is watched.
    pub hub: Arc<Hub>,
    /// Sessions that run.
    pub sessions: Sessions,
    /// Operations that run.
    pub operations: Operations,
}

impl Coordinator {
    /// Opens and locks the store. Nothing runs yet.
    ///
    /// # Errors
    /// When the store is in use, broken or newer: nothing was changed then.
    pub fn open(data_dir: &Path) -> Result<OpenedStore, Error> {
        let (opened, recovered) = Store::open(data_dir)?;
        info!(data_dir = %data_dir.display(), sessions = recovered.sessions.len(), "store opened");
        Ok(OpenedStore { opened, recovered })
    }

    /// Ends what a former run left behind, and goes on with its operations.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub async fn start(store: OpenedStore, options: Options, dial: Dial) -> Result<Self, Error> {
        let OpenedStore { opened, mut recovered } = store;
        // What has ended and owes nothing is of no more use than to be looked at.
        let owing: HashSet<_> = recovered.owed.iter().map(|owed| owed.sync_guid).collect();
        let unsettled = recovered
            .sessions
            .iter()
            .filter(|session| !session.record.state.is_final() || owing.contains(&session.record.sync_guid));
        let unsettled = unsettled.cloned().collect();
        let sessions = std::mem::replace(&mut recovered.sessions, unsettled);
        let forgotten = std::mem::take(&mut recovered.forgotten);
        let hub = Hub::new(recovered.epoch, sessions).with_forgotten(recovered.forgotten_floor, forgotten);
        let hub = Arc::new(hub);
        let publish = hub.clone();
        let store = Arc::new(opened.start(move |published| publish.publish(published))?);
        let sessions =
            Sessions::new(store.clone(), Tokens::new(recovered.secret), dial, options.timing, options.advertise);
        sessions.recover(&recovered).await?;
        let operations = Operations::new(store.clone(), sessions.clone());
        operations.recover(&recovered, options.abandon_operations).await?;
        tokio::spawn(forget_in_background(Arc::downgrade(&store), options.retention));
        Ok(Self { store, hub, sessions, operations })
    }

    /// Ends all sessions, each provider with its EndSession, within `grace`. Operations go on after the next start.
    pub async fn stop(&self, grace: Duration) {
        self.operations.close();
        self.sessions.shutdown(grace).await;
        // Operations end with their sessions; one whose session did not end in time is left to the next start.
        let _ = tokio::time::timeout(OPERATIONS_GRACE, self.operations.closed()).await;
        self.store.close();
    }
}

/// Forgets what is beyond `retention` at once and then every [`FORGET_INTERVAL`], in bites, until the store is closed or gone.
async fn forget_in_background(store: Weak<Store>, retention: Retention) {
    let mut rounds = tokio::time::interval(FORGET_INTERVAL);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        rounds.tick().await;
        let mut forgotten = 0;
        loop {
            // Held for a bite only: nobody waits for this task to close the store.
            let Some(store) = store.upgrade() else { return };
            match store.forget(retention, Timestamp::now(), FORGET_BITE).await {
                Ok(found) => {
                    forgotten += found;
                    if found < FORGET_BITE {
                        break;
                    }
                }
                Err(crate::store::Error::Closed) => return,
                Err(failure) => {
                    warn!(%failure, "history is kept for longer than asked for; it is tried again");
                    break;
                }
            }
        }
        if forgotten > 0 {
            info!(sessions = forgotten, "history forgotten");
        }
    }
}

/// The providers that this process can reach: some of them are in it, the others are dialled.
#[derive(Default)]
pub struct Providers {
    local: HashMap<Endpoint, LocalProvider>,
    options: DialOptions,
    /// One connection per address, shared by all sessions that use it at the time.
    dialled: Mutex<HashMap<String, Weak<dyn Provider>>>,
    /// What is known of simple stores; `None`: they are not spoken for.
    members: Option<Arc<Members>>,
}

impl std::fmt::Debug for Providers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Providers").field("local", &self.local).field("members", &self.members).finish_non_exhaustive()
    }
}

struct LocalProvider(Arc<dyn Provider>);

impl std::fmt::Debug for LocalProvider {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LocalProvider")
    }
}

impl Providers {
    /// Only what can be dialled.
    pub fn new(options: DialOptions) -> Self {
        Self { options, ..Self::default() }
    }

    /// Speaks also for simple stores, and keeps what is known of each in a directory of its own below `data_dir`.
    pub fn speaking_for_simple_stores(mut self, data_dir: &Path) -> Self {
        self.members = Some(Arc::new(Members::new(data_dir.join(SIMPLE_STORES), StoreOptions::default())));
        self
    }

    /// Adds a provider of this process.
    pub fn add(&mut self, endpoint: Endpoint, provider: Arc<dyn Provider>) {
        self.local.insert(endpoint, LocalProvider(provider));
    }

    /// As the function that sessions find their providers with.
    pub fn into_dial(self) -> Dial {
        Arc::new(move |endpoint| self.find(endpoint))
    }

    fn find(&self, endpoint: &Endpoint) -> Result<Arc<dyn Provider>, CallError> {
        if let Some(LocalProvider(provider)) = self.local.get(endpoint) {
            return Ok(provider.clone());
        }
        let address = match endpoint {
            Endpoint::Address(address) => address,
            Endpoint::MemberName(name) => {
                let message =
                    format!("no member is named {name}: members are not offered yet; give the provider's address");
                return Err(CallError::Refused(Refusal::own(
                    RefusalCode::Unimplemented,
                    "MEMBERS",
                    Hresult::E_NOTIMPL,
                    message,
                )));
            }
        };
        let mut dialled = self.dialled.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(provider) = dialled.get(address).and_then(Weak::upgrade) {
            return Ok(provider);
        }
        let provider: Arc<dyn Provider> = match &self.members {
            Some(members) => Arc::new(Either::new(address, self.options, members.clone()).map_err(cannot_dial)?),
            None => Arc::new(DialOut::new(address, self.options).map_err(cannot_dial)?),
        };
        dialled.retain(|_, provider| provider.strong_count() > 0);
        dialled.insert(address.clone(), Arc::downgrade(&provider));
        Ok(provider)
    }
}

fn cannot_dial(error: AddressError) -> CallError {
    let refusal = Refusal::winsync(RefusalCode::InvalidArgument, Hresult::E_INVALIDARG, error.to_string());
    CallError::Refused(refusal)
}
