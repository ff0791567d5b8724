//! SessionStateService, as the kit serves it: a provider that calls back finds its sessions there, and what it says is judged.
//!
//! A session's token is given with BeginSession, and dead when EndSession is answered (`windows-sync.md` R5). Calls come at any
//! time, also between two checks; so the first misuse is kept with the calls of its session, and is looked at when all is done.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::{Message, Name};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::{Server, Uri};
use tonic::{Code, Response, Status};
use uuid::Uuid;

use super::rule::Rule;
use super::transcript::Transcript;
use super::{Options, SetupError};
use crate::grpc::{MESSAGE_LIMIT, address, status};
use crate::knowledge::ItemId;
use crate::pb;
use crate::pb::session_state_service_server::SessionStateServiceServer;
use crate::server::incoming;
use crate::session::StateError;
use crate::types::SyncGuid;

mod server;

/// The token of one session, and what the session keeps for its provider.
#[derive(Debug)]
struct State {
    token: String,
    lease: Duration,
    renewed: Instant,
    begun: bool,
    canceled: bool,
    /// EndSession was sent: from now on the token only reads.
    concluded: bool,
    /// When the token died.
    dead: Option<Instant>,
    info: Bytes,
    recovery: Option<(ItemId, Option<ItemId>)>,
    /// The calls that begin and end the session, and those of the provider in between.
    calls: Transcript,
}

/// What a provider did at SessionStateService that it is not to do.
#[derive(Clone, Debug)]
pub(super) struct Misuse {
    /// One line.
    pub(super) message: String,
    /// The calls, the last one last.
    pub(super) calls: Vec<String>,
}

#[derive(Debug, Default)]
struct States {
    of: HashMap<SyncGuid, State>,
    calls: u64,
    misuses: BTreeMap<Rule, Misuse>,
}

impl States {
    fn misused(&mut self, rule: Rule, message: String, calls: Vec<String>) {
        self.misuses.entry(rule).or_insert(Misuse { message, calls });
    }
}

/// The sessions of the kit, as their providers see them.
#[derive(Clone, Debug)]
struct Desk {
    states: Arc<Mutex<States>>,
    transcript: Arc<Transcript>,
}

/// The service, for as long as the kit runs.
#[derive(Debug)]
pub(super) struct SessionStates {
    desk: Desk,
    /// What providers are told; `None` where they could not reach it.
    address: Option<String>,
    _serving: DropGuard,
}

/// True for `http://127.0.0.1:…` and the like: what is there reaches our own loopback.
fn is_on_loopback(address: &Uri) -> bool {
    let host = address.host().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

/// What a provider is told, of a service that listens there.
fn told(options: &Options, listening: SocketAddr) -> Result<Option<String>, SetupError> {
    if let Some(advertised) = &options.advertise {
        address::parse(advertised)?;
        return Ok(Some(advertised.clone()));
    }
    let ip = listening.ip();
    let reached =
        if ip.is_loopback() { is_on_loopback(&address::parse(&options.address)?) } else { !ip.is_unspecified() };
    Ok(reached.then(|| format!("http://{listening}")))
}

impl SessionStates {
    /// Listens and serves; every call goes into `transcript`.
    pub(super) async fn serve(options: &Options, transcript: Arc<Transcript>) -> Result<Self, SetupError> {
        let cannot = |error: std::io::Error| SetupError::Listen(options.listen, error.to_string());
        let listener = TcpListener::bind(options.listen).await.map_err(cannot)?;
        let address = told(options, listener.local_addr().map_err(cannot)?)?;
        let desk = Desk { states: Arc::default(), transcript };
        let service = SessionStateServiceServer::new(desk.clone()).max_decoding_message_size(MESSAGE_LIMIT);
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let server = Server::builder().add_service(service);
        // It ends with the kit, and until then a connection that fails is the provider's loss.
        tokio::spawn(server.serve_with_incoming_shutdown(incoming(listener), stopped));
        Ok(Self { desk, address, _serving: stop.drop_guard() })
    }

    /// Where providers are told that it is.
    pub(super) fn address(&self) -> Option<&str> {
        self.address.as_deref()
    }

    fn with<T>(&self, guid: SyncGuid, change: impl FnOnce(&mut State) -> T) -> Option<T> {
        self.desk.states().of.get_mut(&guid).map(change)
    }

    /// The token of a session, which is the same whenever BeginSession of it is sent.
    pub(super) fn token(&self, guid: SyncGuid, lease: Duration) -> String {
        let new = || State {
            token: Uuid::new_v4().to_string(),
            lease,
            renewed: Instant::now(),
            begun: false,
            canceled: false,
            concluded: false,
            dead: None,
            info: Bytes::new(),
            recovery: None,
            calls: Transcript::default(),
        };
        self.desk.states().of.entry(guid).or_insert_with(new).token.clone()
    }

    /// BeginSession is on its way.
    pub(super) fn beginning(&self, guid: SyncGuid, request: &pb::KnowledgeSyncProviderServiceBeginSessionRequest) {
        self.with(guid, |state| state.calls.sent("BeginSession", request));
    }

    /// BeginSession was taken, or refused: then the token is worth nothing, unless the session had begun before.
    pub(super) fn begun(&self, guid: SyncGuid, taken: bool) {
        self.with(guid, |state| {
            state.calls.note(format!("<- BeginSession {}", if taken { "{}" } else { "refused" }));
            if !taken && !state.begun {
                state.dead.get_or_insert_with(Instant::now);
            }
            state.begun |= taken;
            state.renewed = Instant::now();
        });
    }

    /// The provider's lease was renewed; or the session was cancelled, by whichever way.
    pub(super) fn renewed(&self, guid: SyncGuid, canceled: bool) {
        self.with(guid, |state| {
            state.renewed = Instant::now();
            state.canceled |= canceled;
        });
    }

    /// A range is being recovered by full enumeration.
    pub(super) fn recovering(&self, guid: SyncGuid, lower: ItemId, upper: Option<ItemId>) {
        self.with(guid, |state| state.recovery = Some((lower, upper)));
    }

    /// EndSession is on its way, or was refused.
    pub(super) fn ending(&self, guid: SyncGuid, is_ending: bool) {
        self.with(guid, |state| {
            state.calls.note(if is_ending { "-> EndSession" } else { "<- EndSession refused" }.to_owned());
            state.concluded = is_ending;
        });
    }

    /// EndSession was answered.
    pub(super) fn ended(&self, guid: SyncGuid) {
        self.with(guid, |state| {
            state.calls.note("<- EndSession {}".to_owned());
            state.dead.get_or_insert_with(Instant::now);
        });
    }

    /// Calls so far.
    pub(super) fn calls(&self) -> u64 {
        self.desk.states().calls
    }

    /// The first misuse that breaks `rule`.
    pub(super) fn misuse(&self, rule: Rule) -> Option<Misuse> {
        self.desk.states().misuses.get(&rule).cloned()
    }
}

impl Desk {
    fn states(&self) -> MutexGuard<'_, States> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers a call of a provider by the session whose token it names, and judges it.
    fn answer<Q, A>(
        &self,
        rpc: &'static str,
        request: tonic::Request<Q>,
        token: impl FnOnce(&Q) -> &str,
        work: impl FnOnce(Q, &mut State) -> Result<A, Status>,
    ) -> Result<Response<A>, Status>
    where
        Q: Message + Name + Clone + 'static,
        A: Message + Name + Clone + 'static,
    {
        let arrived = Instant::now();
        let request = request.into_inner();
        self.transcript.called(rpc, &request);
        let dead = || status::from_state(StateError::NoSession, status::Subject::default());
        let states = &mut *self.states();
        states.calls += 1;
        let token = token(&request);
        let Some(state) = states.of.values_mut().find(|state| state.token == token) else {
            let message = format!("{rpc} names a session by {token:?}, which BeginSession gave to nobody");
            let alone = Transcript::default();
            alone.called(rpc, &request);
            states.misused(Rule::StateCalls, message, alone.lines());
            return Err(dead());
        };
        state.calls.called(rpc, &request);
        if let Some(since) = state.dead {
            let late = arrived.saturating_duration_since(since).as_millis();
            let end = if state.begun { "EndSession was answered" } else { "its BeginSession was refused" };
            let message = format!("{rpc} came with the token of a session {late} ms after {end}");
            let calls = state.calls.lines();
            states.misused(Rule::TokenDead, message, calls);
            return Err(dead());
        }
        let outcome = work(request, state);
        match &outcome {
            Ok(answer) => state.calls.answered(rpc, answer),
            Err(status) => state.calls.note(format!("provider <- {rpc} {:?}: {}", status.code(), status.message())),
        }
        if let Err(status) = &outcome
            && status.code() == Code::InvalidArgument
        {
            let (message, calls) = (format!("{rpc}: {}", status.message()), state.calls.lines());
            states.misused(Rule::StateCalls, message, calls);
        }
        outcome.map(Response::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_provider_is_told_an_address_that_it_can_reach() {
        let told = |provider: &str, listening: &str, advertise: Option<&str>| {
            let advertise = advertise.map(str::to_owned);
            let options = Options { advertise, ..Options::new(provider) };
            told(&options, listening.parse().expect("an address")).expect("addresses")
        };
        let here = Some("http://127.0.0.1:9".to_owned());
        for near in ["http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1"] {
            assert_eq!(told(near, "127.0.0.1:9", None), here);
        }
        assert_eq!(told("http://branch.example:1", "127.0.0.1:9", None), None);
        assert_eq!(told("http://branch.example:1", "192.0.2.1:9", None), Some("http://192.0.2.1:9".to_owned()));
        assert_eq!(told("http://branch.example:1", "0.0.0.0:9", None), None);
        let advertised = Some("http://kit.example:9");
        assert_eq!(told("http://branch.example:1", "0.0.0.0:9", advertised).as_deref(), advertised);
    }
}
