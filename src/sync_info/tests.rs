//! The watch contract, against random histories and a client that does what the contract tells it to.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use proptest::sample::Index;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use super::hub::Limits;
use super::*;
use crate::knowledge::ReplicaId;
use crate::store::tests::{creation, session, transition};
use crate::store::{ForgottenSession, Published, RecoveredSession, SessionEvent, SessionRecord};
use crate::types::{Hresult, InitiationReason, OperationId, SyncGuid, SyncState};

const EPOCH: Uuid = Uuid::from_u128(42);

/// So long that it never comes where a test waits for something else.
const NEVER: Duration = Duration::from_secs(3600);

/// Small, so that a few sessions fill frames, drop transitions and outlive their removal.
const SMALL: Limits = Limits { frame_entries: 2, looked_at: 3, transitions_kept: 4, forgotten_kept: 2 };

/// What the store does: stamps, remembers, and tells the hub.
struct Store {
    hub: Arc<Hub>,
    limits: Limits,
    revision: u64,
    sessions: Vec<RecoveredSession>,
    forgotten: Vec<SyncGuid>,
    /// What it remembers of them, as many as `limits` says, and of the others the last revision.
    remembered: Vec<ForgottenSession>,
    floor: u64,
}

impl Store {
    fn new(limits: Limits) -> Self {
        let hub = Arc::new(Hub::with_limits(EPOCH, [], limits));
        Self { hub, limits, revision: 0, sessions: Vec::new(), forgotten: Vec::new(), remembered: Vec::new(), floor: 0 }
    }

    fn create(&mut self, record: SessionRecord) -> usize {
        let event = creation(&record);
        self.sessions.push(RecoveredSession { record: Arc::new(record), events: Vec::new() });
        let place = self.sessions.len() - 1;
        self.publish(place, |_| Some(event));
        place
    }

    fn publish(&mut self, place: usize, change: impl FnOnce(&mut SessionRecord) -> Option<SessionEvent>) {
        let session = &mut self.sessions[place];
        let record = Arc::make_mut(&mut session.record);
        let event = change(record).map(Arc::new);
        self.revision += 1;
        record.revision = self.revision;
        session.events.extend(event.clone().map(|event| (self.revision, event)));
        let (revision, record) = (self.revision, Arc::clone(&session.record));
        self.hub.publish(vec![Published { revision, record, event }]);
    }

    fn enter(&mut self, place: usize, state: SyncState) {
        self.publish(place, |record| Some(transition(record, state)));
    }

    fn forget(&mut self, place: usize) {
        self.revision += 1;
        let sync_guid = self.sessions[place].record.sync_guid;
        self.hub.forget(sync_guid, self.revision);
        self.forgotten.push(sync_guid);
        let RecoveredSession { record, events } = &self.sessions[place];
        self.remembered.push(ForgottenSession {
            record: Arc::clone(record),
            transitions: events.len() as u32,
            last_transition: events.last().map_or(0, |(revision, _)| *revision),
            revision: self.revision,
            time: Timestamp::now(),
        });
        if self.remembered.len() > self.limits.forgotten_kept {
            self.floor = self.remembered.remove(0).revision;
        }
    }

    fn is_forgotten(&self, place: usize) -> bool {
        self.forgotten.contains(&self.sessions[place].record.sync_guid)
    }

    /// A restart: reports since the last transition are lost, and sessions that are not final are lifted.
    fn restart(&mut self) {
        for session in self.sessions.iter_mut().filter(|session| !session.record.state.is_final()) {
            self.revision += 1;
            let record = Arc::make_mut(&mut session.record);
            record.counters = Default::default();
            record.revision = self.revision;
        }
        let kept = self.sessions.iter().filter(|session| !self.forgotten.contains(&session.record.sync_guid)).cloned();
        let hub = Hub::with_limits(EPOCH, kept, self.limits);
        self.hub = Arc::new(hub.with_forgotten(self.floor, self.remembered.iter().cloned()));
    }

    fn event_log(&self, sync_guid: SyncGuid) -> Vec<Arc<SessionEvent>> {
        let session = self.sessions.iter().find(|session| session.record.sync_guid == sync_guid).unwrap();
        session.events.iter().map(|(_, event)| Arc::clone(event)).collect()
    }
}

/// A client: what it holds, and where it is.
struct Client {
    filter: Filter,
    cursor: Cursor,
    token: String,
    held: HashMap<SyncGuid, (Arc<SessionRecord>, View)>,
    transitions: HashMap<SyncGuid, (Vec<Arc<SessionEvent>>, u32)>,
    synced: u64,
    infos: u64,
}

impl Client {
    fn new(hub: &Arc<Hub>, filter: Filter, token: &str) -> Self {
        let cursor = hub.watch(&filter, token, NEVER);
        Self {
            filter,
            cursor,
            token: token.to_owned(),
            held: HashMap::new(),
            transitions: HashMap::new(),
            synced: 0,
            infos: 0,
        }
    }

    fn resume(&mut self, hub: &Arc<Hub>) {
        self.cursor = hub.watch(&self.filter, &self.token, NEVER);
        self.infos = 0;
    }

    /// Takes one message; false when there is none.
    async fn take(&mut self) -> bool {
        let Ok(message) = timeout(Duration::from_millis(1), self.cursor.next()).await else { return false };
        self.token = message.resume_token;
        match message.event {
            WatchEvent::Changes(frame) => {
                assert!(!frame.entries.is_empty());
                for entry in &frame.entries {
                    let sync_guid = match &entry.change {
                        Change::SyncInfo { record, view } => {
                            self.infos += 1;
                            let newer = (Arc::clone(record), *view);
                            let older = self.held.insert(record.sync_guid, newer);
                            assert!(older.is_none_or(|(older, _)| older.revision <= record.revision));
                            record.sync_guid
                        }
                        Change::Removed { sync_guid, .. } => {
                            self.held.remove(sync_guid);
                            *sync_guid
                        }
                    };
                    let (transitions, left_out) = self.transitions.entry(sync_guid).or_default();
                    transitions.extend(entry.transitions.iter().cloned());
                    *left_out += entry.transitions_left_out;
                }
            }
            WatchEvent::Synced { count } => {
                assert_eq!(count, self.infos);
                self.synced += 1;
            }
            WatchEvent::Reset { .. } => {
                self.held.clear();
                self.transitions.clear();
                self.infos = 0;
            }
            WatchEvent::Heartbeat => panic!("a heartbeat, and it is not time"),
        }
        true
    }
}

fn list(hub: &Hub, filter: &Filter, page_size: usize) -> HashMap<SyncGuid, (Arc<SessionRecord>, View)> {
    let mut token = String::new();
    let mut found = Vec::new();
    loop {
        let page = hub.list(filter, page_size, &token).expect("a token of this hub");
        assert!(page.infos.len() <= page_size);
        found.extend(page.infos);
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert!(found.is_sorted_by_key(|(record, _)| std::cmp::Reverse((record.create_time, record.sync_guid))));
    found.into_iter().map(|(record, view)| (record.sync_guid, (record, view))).collect()
}

#[derive(Clone, Debug)]
enum Step {
    Create(usize, usize),
    Enter(Index, SyncState),
    Progress(Index),
    Identify(Index),
    Forget(Index),
    Restart,
    Take(Index, usize),
    Resume(Index),
    StartFromList(Index),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let state = prop::sample::select(&SyncState::ALL[..]);
    let step = prop_oneof![
        4 => (0..4usize, 0..4usize).prop_map(|(source, destination)| Step::Create(source, destination)),
        12 => (any::<Index>(), state).prop_map(|(place, state)| Step::Enter(place, state)),
        8 => any::<Index>().prop_map(Step::Progress),
        2 => any::<Index>().prop_map(Step::Identify),
        2 => any::<Index>().prop_map(Step::Forget),
        1 => Just(Step::Restart),
        8 => (any::<Index>(), 1..4usize).prop_map(|(client, count)| Step::Take(client, count)),
        3 => any::<Index>().prop_map(Step::Resume),
        2 => any::<Index>().prop_map(Step::StartFromList),
    ];
    prop::collection::vec(step, 1..150)
}

fn endpoint(number: usize) -> String {
    format!("http://{number}")
}

fn filters() -> impl Strategy<Value = Filter> {
    let member = (0..4usize, 0..4usize).prop_map(|(number, kind)| match kind {
        0 => endpoint(number),
        1 => format!("name-{number}"),
        2 => Uuid::from_u128(number as u128 + 1).to_string().to_uppercase(),
        _ => format!("{{{}}}", Uuid::from_u128(number as u128 + 1)),
    });
    let members = prop_oneof![3 => Just(Vec::new()), 2 => prop::collection::vec(member, 1..3)];
    let states = prop::sample::subsequence(&SyncState::ALL[..], 1..5);
    let states = prop_oneof![Just(Vec::new()), states];
    (members.clone(), members, states, any::<Option<bool>>()).prop_map(|(members, partners, states, inbound)| Filter {
        members,
        partners,
        states,
        inbound,
        ..Filter::default()
    })
}

async fn run(steps: Vec<Step>, filters: Vec<Filter>) {
    let mut store = Store::new(SMALL);
    let mut clients: Vec<_> = filters.into_iter().map(|filter| Client::new(&store.hub, filter, "")).collect();
    // Those that began with a list know no transitions before it.
    let mut complete = vec![true; clients.len()];
    for step in steps {
        let pick = |index: Index| (!store.sessions.is_empty()).then(|| index.index(store.sessions.len()));
        let live = |place: &usize| !store.sessions[*place].record.state.is_final();
        match step {
            Step::Create(source, destination) => {
                let mut record = session(&endpoint(source), &endpoint(destination));
                record.create_time = Timestamp::UNIX_EPOCH + SignedDuration::from_secs(store.sessions.len() as i64 / 2);
                store.create(record);
            }
            Step::Enter(index, state) => {
                if let Some(place) = pick(index).filter(live)
                    && store.sessions[place].record.state != state
                {
                    store.enter(place, state);
                }
            }
            Step::Progress(index) => {
                if let Some(place) = pick(index).filter(live) {
                    store.publish(place, |record| {
                        record.counters.updates_transferred += 1;
                        None
                    });
                }
            }
            Step::Identify(index) => {
                if let Some(place) = pick(index).filter(live) {
                    store.publish(place, |record| {
                        for member in [&mut record.source, &mut record.destination] {
                            let number: u128 =
                                member.endpoint.to_string().trim_start_matches("http://").parse().unwrap();
                            member.name = format!("name-{number}");
                            member.replica_id = Some(ReplicaId::from(Uuid::from_u128(number + 1)));
                        }
                        None
                    });
                }
            }
            Step::Forget(index) => {
                if let Some(place) = pick(index).filter(|place| !live(place) && !store.is_forgotten(*place)) {
                    store.forget(place);
                }
            }
            Step::Restart => {
                store.restart();
                clients.iter_mut().for_each(|client| client.resume(&store.hub));
            }
            Step::Take(index, count) => {
                let client = index.get_mut(&mut clients);
                for _ in 0..count {
                    client.take().await;
                }
            }
            Step::Resume(index) => index.get_mut(&mut clients).resume(&store.hub),
            Step::StartFromList(index) => {
                // Begins with the pages of a list, between which the world goes on.
                let place = index.index(clients.len());
                let filter = clients[place].filter.clone();
                let mut page = store.hub.list(&filter, 1, "").unwrap();
                let mut client = Client::new(&store.hub, filter.clone(), &page.resume_token);
                loop {
                    let infos = page.infos.into_iter().map(|(record, view)| (record.sync_guid, (record, view)));
                    client.held.extend(infos);
                    if page.next_page_token.is_empty() {
                        break;
                    }
                    let states = [SyncState::Connecting, SyncState::InProgress, SyncState::InError];
                    let next = (0..store.sessions.len()).find(|place| {
                        let state = store.sessions[*place].record.state;
                        !state.is_final() && state != states[store.revision as usize % 3]
                    });
                    if let Some(next) = next {
                        store.enter(next, states[store.revision as usize % 3]);
                    }
                    page = store.hub.list(&filter, 1, &page.next_page_token).unwrap();
                }
                clients[place] = client;
                complete[place] = false;
            }
        }
    }

    for (client, complete) in clients.iter_mut().zip(complete) {
        while client.take().await {}
        assert!(client.synced > 0);
        let listed = list(&store.hub, &client.filter, 3);
        assert_eq!(client.held, listed, "{:?}", client.filter);
        for (sync_guid, (record, view)) in &listed {
            assert_eq!(store.hub.get(*sync_guid).as_ref(), Some(record));
            assert!(fits(&client.filter, record, *view), "{:?} {record:?} {view:?}", client.filter);
        }
        for session in &store.sessions {
            let sync_guid = session.record.sync_guid;
            let views = [View::Inbound, View::Outbound];
            if !store.forgotten.contains(&sync_guid) && !listed.contains_key(&sync_guid) {
                let views = views.iter().filter(|view| fits(&client.filter, &session.record, **view));
                assert_eq!(views.count(), 0, "{:?} {:?}", client.filter, session.record);
            }
        }
        if complete
            && client.filter.states.is_empty()
            && client.filter.members.is_empty()
            && client.filter.partners.is_empty()
        {
            for sync_guid in listed.keys() {
                assert_transitions(&client.transitions[sync_guid], &store.event_log(*sync_guid));
            }
        }
    }
}

/// The filter, told in the plainest way.
fn fits(filter: &Filter, record: &SessionRecord, view: View) -> bool {
    let is = |texts: &[String], member: &crate::store::Member| {
        let mut names = vec![member.name.clone(), member.endpoint.to_string()];
        names.extend(member.replica_id.as_ref().map(|id| id.guid().to_string()));
        let plain = |text: &String| {
            let bare = text.trim_matches(['{', '}']).to_lowercase();
            names.contains(text) || names.contains(&bare)
        };
        texts.is_empty() || texts.iter().any(plain)
    };
    let (member, partner) = match view {
        View::Inbound => (&record.destination, &record.source),
        View::Outbound => (&record.source, &record.destination),
    };
    let viewpoint = match filter.inbound {
        Some(inbound) => inbound == view.is_inbound(),
        None => view.is_inbound() || !filter.members.is_empty(),
    };
    viewpoint
        && is(&filter.members, member)
        && is(&filter.partners, partner)
        && (filter.states.is_empty() || filter.states.contains(&record.state))
}

/// The transitions are all, once and in order, but for as many as were said to be left out.
fn assert_transitions((seen, left_out): &(Vec<Arc<SessionEvent>>, u32), log: &[Arc<SessionEvent>]) {
    let mut rest = log.iter();
    assert!(seen.iter().all(|event| rest.any(|logged| Arc::ptr_eq(logged, event))), "{seen:?} {log:?}");
    assert_eq!(seen.len() + *left_out as usize, log.len(), "{seen:?} {log:?}");
}

proptest! {
    #[test]
    fn watchers_end_with_what_list_says(steps in steps(), filters in prop::collection::vec(filters(), 1..6)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(run(steps, filters));
    }

    #[test]
    fn tokens_come_back_from_their_text(epoch: u128, filter: u128, revision: u64) {
        let token = token::Token { epoch: Uuid::from_u128(epoch), filter: Uuid::from_u128(filter), revision };
        prop_assert_eq!(token::Token::parse(&token.to_string()), Some(token));
    }

    #[test]
    fn no_text_breaks_a_watch(text in ".*", page in ".*\\..*\\..*") {
        let hub = Arc::new(Hub::new(EPOCH, []));
        hub.watch(&Filter::default(), &text, NEVER);
        prop_assert!(hub.list(&Filter::default(), 1, &page).is_err());
    }
}

fn store_of(count: usize) -> Store {
    let mut store = Store::new(Limits::default());
    for _ in 0..count {
        store.create(session("http://a", "http://b"));
    }
    store
}

async fn reset_of(hub: &Arc<Hub>, token: &str) -> Option<ResetReason> {
    let message = hub.watch(&Filter::default(), token, NEVER).next().await;
    match message.event {
        WatchEvent::Reset { reason } => Some(reason),
        _ => None,
    }
}

#[tokio::test(start_paused = true)]
async fn an_empty_hub_says_so_at_once_and_then_beats() {
    let hub = Arc::new(Hub::new(EPOCH, []));
    let mut cursor = hub.watch(&Filter::default(), "", Duration::from_secs(10));
    let start = Instant::now();
    assert!(matches!(cursor.next().await.event, WatchEvent::Synced { count: 0 }));
    assert_eq!(start.elapsed(), Duration::ZERO);
    for beat in 1..4 {
        assert!(matches!(cursor.next().await.event, WatchEvent::Heartbeat));
        assert_eq!(start.elapsed().as_secs(), 10 * beat);
    }
}

#[tokio::test(start_paused = true)]
async fn heartbeats_carry_the_token_over_what_is_filtered() {
    let mut store = store_of(1);
    let filter = Filter { states: vec![SyncState::InError], ..Filter::default() };
    let mut cursor = store.hub.watch(&filter, "", Duration::from_secs(10));
    let synced = cursor.next().await;
    assert!(matches!(synced.event, WatchEvent::Synced { count: 0 }));
    store.publish(0, |_| None);
    let beat = cursor.next().await;
    assert!(matches!(beat.event, WatchEvent::Heartbeat));
    assert_ne!(beat.resume_token, synced.resume_token);
    store.enter(0, SyncState::InError);
    assert!(matches!(cursor.next().await.event, WatchEvent::Changes(_)));
}

#[tokio::test(start_paused = true)]
async fn changes_are_conflated_for_the_minimal_interval() {
    let mut store = store_of(1);
    let mut cursor = store.hub.watch(&Filter::default(), "", NEVER).with_min_interval(Duration::from_secs(5));
    cursor.next().await;
    assert!(matches!(cursor.next().await.event, WatchEvent::Synced { count: 1 }));
    let start = Instant::now();
    store.enter(0, SyncState::Connecting);
    store.enter(0, SyncState::InProgress);
    let WatchEvent::Changes(frame) = cursor.next().await.event else { panic!("changes") };
    assert_eq!(start.elapsed().as_secs(), 5);
    assert_eq!((frame.entries.len(), frame.entries[0].transitions.len()), (1, 2));
    assert!(timeout(Duration::from_secs(60), cursor.next()).await.is_err(), "nothing more");
}

#[tokio::test(start_paused = true)]
async fn a_token_that_cannot_be_used_is_a_reset_and_never_an_error() {
    let mut store = store_of(3);
    let good = store.hub.list(&Filter::default(), 10, "").unwrap().resume_token;
    assert_eq!(reset_of(&store.hub, &good).await, None);
    assert_eq!(reset_of(&store.hub, "").await, None);
    assert_eq!(reset_of(&store.hub, "not ours").await, Some(ResetReason::MalformedToken));
    let filter = Filter { inbound: Some(true), ..Filter::default() };
    let other = store.hub.list(&filter, 10, "").unwrap().resume_token;
    assert_eq!(reset_of(&store.hub, &other).await, Some(ResetReason::OtherFilter));
    let elsewhere = Arc::new(Hub::new(Uuid::from_u128(43), []));
    assert_eq!(reset_of(&elsewhere, &good).await, Some(ResetReason::OtherHistory));
    let earlier = Arc::new(Hub::new(EPOCH, []));
    assert_eq!(reset_of(&earlier, &good).await, Some(ResetReason::FutureToken));

    store.forget(0);
    let mut behind = store.hub.watch(&Filter::default(), &good, NEVER);
    tokio::time::advance(Duration::from_hours(25)).await;
    store.publish(1, |_| None);
    assert_eq!(reset_of(&store.hub, &good).await, Some(ResetReason::TokenTooOld));
    assert!(matches!(behind.next().await.event, WatchEvent::Reset { reason: ResetReason::TokenTooOld }));
    assert!(matches!(behind.next().await.event, WatchEvent::Changes(frame) if frame.entries.len() == 2));
    assert!(matches!(behind.next().await.event, WatchEvent::Synced { count: 2 }));
}

#[tokio::test(start_paused = true)]
async fn what_is_forgotten_is_removed_with_the_reason() {
    let mut store = store_of(2);
    let mut client = Client::new(&store.hub, Filter::default(), "");
    while client.take().await {}
    store.forget(1);
    let sync_guid = store.sessions[1].record.sync_guid;
    let WatchEvent::Changes(frame) = client.cursor.next().await.event else { panic!("changes") };
    let [Entry { change: Change::Removed { sync_guid: removed, view: View::Inbound, reason }, .. }] =
        &frame.entries[..]
    else {
        panic!("one removal")
    };
    assert_eq!((*removed, *reason), (sync_guid, RemovedReason::Forgotten));
    assert_eq!(store.hub.get(sync_guid), None);
    let only = Filter { sync_guids: vec![store.sessions[0].record.sync_guid], ..Filter::default() };
    let mut cursor = store.hub.watch(&only, "", NEVER);
    assert!(matches!(cursor.next().await.event, WatchEvent::Changes(frame) if frame.entries.len() == 1));
}

/// After a restart its past is gone: a watcher that may hold it is told, and how many transitions it missed.
#[tokio::test(start_paused = true)]
async fn what_was_forgotten_before_a_restart_is_still_removed() {
    let mut store = store_of(2);
    let filter = Filter { states: vec![SyncState::Connecting, SyncState::Initialized], ..Filter::default() };
    let mut client = Client::new(&store.hub, filter, "");
    while client.take().await {}
    let sync_guid = store.sessions[0].record.sync_guid;
    assert!(client.held.contains_key(&sync_guid));
    store.enter(0, SyncState::Interrupted);
    store.forget(0);
    let forgotten_at = store.revision;
    store.restart();
    assert_eq!(store.hub.get(sync_guid), None);
    assert_eq!(store.hub.lock().revision(), store.revision.max(forgotten_at));

    client.resume(&store.hub);
    let WatchEvent::Changes(frame) = client.cursor.next().await.event else { panic!("changes") };
    let entry = frame.entries.iter().find(|entry| matches!(entry.change, Change::Removed { .. })).expect("a removal");
    let Change::Removed { sync_guid: removed, reason, .. } = entry.change else { unreachable!() };
    assert_eq!((removed, reason), (sync_guid, RemovedReason::Forgotten));
    assert_eq!((entry.transitions.len(), entry.transitions_left_out), (0, 2));
    // Who begins now is told nothing of it.
    let mut cursor = store.hub.watch(&Filter::default(), "", NEVER);
    assert!(matches!(cursor.next().await.event, WatchEvent::Changes(frame) if frame.entries.len() == 1));
}

/// Tokens from before the floor are too old, those from after it are not.
#[tokio::test(start_paused = true)]
async fn tokens_from_before_what_is_remembered_are_too_old_after_a_restart() {
    let mut store = Store::new(SMALL);
    for _ in 0..4 {
        let place = store.create(session("http://a", "http://b"));
        store.enter(place, SyncState::Interrupted);
    }
    let mut tokens = Vec::new();
    for place in 0..4 {
        tokens.push(store.hub.list(&Filter::default(), 10, "").unwrap().resume_token);
        store.forget(place);
    }
    store.restart();
    let old = Some(ResetReason::TokenTooOld);
    for (token, reset) in tokens.iter().zip([old, old, None, None]) {
        assert_eq!(reset_of(&store.hub, token).await, reset);
    }
}

#[tokio::test(start_paused = true)]
async fn streams_at_one_place_with_one_filter_share_frames_and_tokens() {
    let mut store = store_of(5);
    let filter = Filter { states: vec![SyncState::Connecting, SyncState::Initialized], ..Filter::default() };
    let alike = Filter { states: vec![SyncState::Initialized, SyncState::Connecting], ..Filter::default() };
    let (mut one, mut two) = (store.hub.watch(&filter, "", NEVER), store.hub.watch(&alike, "", NEVER));
    for _ in 0..3 {
        let (first, second) = (one.next().await, two.next().await);
        assert_eq!(first.resume_token, second.resume_token);
        if let (WatchEvent::Changes(first), WatchEvent::Changes(second)) = (first.event, second.event) {
            assert!(Arc::ptr_eq(&first, &second));
            let encoded = first.encoded(|_| bytes::Bytes::from_static(b"once"));
            assert_eq!(second.encoded(|_| unreachable!("made once")), encoded);
        }
        store.enter(0, SyncState::Connecting);
    }
}

/// What came to match between two pages is not listed: a watch from the list's token could not take it away again.
#[tokio::test(start_paused = true)]
async fn a_watch_goes_on_where_the_pages_of_a_list_began() {
    let mut store = store_of(3);
    store.enter(1, SyncState::Connecting);
    store.enter(2, SyncState::Connecting);
    let filter = Filter { states: vec![SyncState::Connecting], ..Filter::default() };
    let first = store.hub.list(&filter, 1, "").unwrap();
    store.enter(0, SyncState::Connecting);
    let second = store.hub.list(&filter, 5, &first.next_page_token).unwrap();
    assert_eq!((first.infos.len(), second.infos.len(), &*second.next_page_token), (1, 1, ""));
    store.enter(0, SyncState::InProgress);
    store.enter(2, SyncState::InProgress);

    let mut client = Client::new(&store.hub, filter.clone(), &second.resume_token);
    let infos = first.infos.into_iter().chain(second.infos);
    client.held.extend(infos.map(|(record, view)| (record.sync_guid, (record, view))));
    while client.take().await {}
    assert_eq!(client.held, list(&store.hub, &filter, 5));
    assert_eq!(client.held.len(), 1);
}

/// A session whose state changes faster than its watcher looks, beyond what is kept.
#[tokio::test(start_paused = true)]
async fn transitions_that_are_no_longer_kept_are_counted() {
    let mut store = store_of(1);
    let mut client = Client::new(&store.hub, Filter::default(), "");
    while client.take().await {}
    for round in 0..96 {
        store.enter(0, if round % 2 == 0 { SyncState::Connecting } else { SyncState::InProgress });
    }
    while client.take().await {}
    let sync_guid = store.sessions[0].record.sync_guid;
    let (seen, left_out) = &client.transitions[&sync_guid];
    assert_eq!((seen.len(), *left_out), (1 + 32, 96 - 32));
}

/// A watcher that is as slow as can be still gets its marker, and what it is sent per change does not grow.
#[tokio::test(start_paused = true)]
async fn a_slow_watcher_of_a_busy_hub_is_synced() {
    let mut store = Store::new(SMALL);
    for _ in 0..20 {
        let place = store.create(session("http://a", "http://b"));
        store.enter(place, SyncState::Connecting);
    }
    let mut client = Client::new(&store.hub, Filter::default(), "");
    let mut messages = 0;
    while client.synced == 0 {
        assert!(client.take().await);
        messages += 1;
        assert!(messages < 200);
        for place in 0..20 {
            store.publish(place, |record| {
                record.counters.bytes_transferred += 1;
                None
            });
        }
    }
    while client.take().await {}
    assert_eq!(client.held, list(&store.hub, &Filter::default(), 7));
}

#[test]
fn two_members_see_one_session() {
    let mut record = session("http://a", "http://b");
    record.source.name = "alpha".to_owned();
    record.destination.name = "beta".to_owned();
    record.destination.replica_id = Some(ReplicaId::from(vec![5; 16]));
    record.hresult = Hresult::E_UNREACHABLE;
    record.counters.updates_transferred = u64::MAX;
    record.counters.updates_to_be_transferred = 3;
    record.counters.updates_not_transferred = 2;
    record.estimated_seconds_left = Some(9);

    let inbound = SyncInfo::render(&record, View::Inbound);
    let outbound = SyncInfo::render(&record, View::Outbound);
    assert_eq!((&*inbound.member_name, &*inbound.partner_name, inbound.inbound), ("beta", "alpha", true));
    assert_eq!((&*outbound.member_name, &*outbound.partner_name, outbound.inbound), ("alpha", "beta", false));
    assert_eq!(inbound.member_guid, Uuid::from_bytes([5; 16]));
    assert_eq!((inbound.member_guid, inbound.partner_guid), (outbound.partner_guid, outbound.member_guid));
    assert_ne!(inbound.partner_guid, Uuid::nil());
    assert_eq!(inbound.connection_guid, outbound.connection_guid);
    assert_eq!(inbound.connection_guid, Uuid::new_v5(&inbound.partner_guid, inbound.member_guid.as_bytes()));
    assert_eq!((inbound.last_error_code, inbound.last_error_message_id), (0x8007_06BA, 5008));
    assert_eq!((inbound.updates_transferred, outbound.updates_transferred), (u32::MAX, u32::MAX));
    assert_eq!((inbound.updates_to_be_transferred, outbound.updates_to_be_transferred), (Some(3), None));
    assert_eq!((inbound.initiation_reason, outbound.initiation_reason), (Some(InitiationReason::Forced), None));
    assert_eq!((outbound.conflicts_generated, outbound.tombstones_generated), (None, None));
    assert_eq!(inbound.details.estimated_time_left, Some(Duration::from_secs(9)));

    record.state = SyncState::InSync;
    let inbound = SyncInfo::render(&record, View::Inbound);
    assert_eq!((inbound.updates_not_transferred, inbound.updates_to_be_transferred), (0, Some(0)));
}

#[test]
fn connections_operations_and_groups_are_filtered() {
    let store = store_of(3);
    let record = &store.sessions[1].record;
    let connection = SyncInfo::render(record, View::Outbound).connection_guid.to_string().to_uppercase();
    let found = |filter: Filter| list(&store.hub, &filter, 10).len();
    assert_eq!(found(Filter { connections: vec![format!("{{{connection}}}")], ..Filter::default() }), 3);
    assert_eq!(found(Filter { connections: vec!["a connection".to_owned()], ..Filter::default() }), 0);
    assert_eq!(found(Filter { operation_ids: vec![record.operation_id], ..Filter::default() }), 1);
    assert_eq!(found(Filter { operation_ids: vec![OperationId::generate()], ..Filter::default() }), 0);
    assert_eq!(found(Filter { replication_groups: vec![Uuid::nil().to_string()], ..Filter::default() }), 3);
    assert_eq!(found(Filter { replication_groups: vec!["a group".to_owned()], ..Filter::default() }), 0);
}
