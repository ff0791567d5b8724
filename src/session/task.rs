//! The task of one session: it drives the pure [`Machine`] with real calls, timers and commits.
//!
//! The task owns everything of its session. Others hold a [`SessionHandle`](super::SessionHandle), which only sends. A call
//! has its own deadline and comes back as an event; what must outlive `AbortWork` (EndSession) has a set of its own. Only the
//! relay of a batch has a task of its own: it can have work for a core.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{error, info, warn};

use super::admission::{Admission, Permit, Seat};
use super::blame::Retry;
use super::calls::{Calls, Panicked};
use super::handle::{AtEnd, CallerCall, Finished, Inbox, Message, SessionStatus, StateAnswer, StateCall};
use super::machine::{Answer, Commit, Effect, Event, Machine, Now, Relayed, Timer};
use super::outbox::Outbox;
use super::registry::StateError;
use super::relay::{Relay, within};
use super::timing::Timing;
use super::unwritten::{TRANSITION_DELAY, Unwritten};
use crate::provider::{BeginSession, EndSession, Partner, ProcessStart, Provider, SessionKey, SessionRef};
use crate::store::conflicts::{End, Findings};
use crate::store::{EndNotice, OwedEnd, SessionFindings, SessionRecord, Standing, Store, Submitted, Write};
use crate::types::{Hresult, ProviderRole, ProviderWithError, SessionKind, SyncState};

/// What a session's task works with.
#[derive(Clone)]
pub(super) struct Parts {
    pub store: Arc<Store>,
    pub admission: Admission,
    pub outbox: Outbox,
    pub timing: Timing,
    pub coordinator_address: Option<String>,
}

/// The ends of a session.
pub(super) struct Links {
    /// `None` for an end that is not dialled.
    pub providers: [Option<Arc<dyn Provider>>; 2],
    pub tokens: [String; 2],
    pub operation_began: Instant,
    pub at_end: AtEnd,
}

/// What a call comes back with.
enum Returned {
    Event(Event),
    Admitted(Permit, Box<Standing>),
}

/// What is to be done at its time.
#[derive(Clone, Copy)]
enum Due {
    Timer(Timer),
    /// The transitions that wait go to the store.
    Visible,
    /// Progress is published.
    Publish,
}

pub(super) struct SessionTask {
    machine: Machine,
    parts: Parts,
    links: Links,
    inbox: Inbox,
    /// Cut by `AbortWork`.
    work: Calls<Returned>,
    /// EndSessions, and the question whether it is still the same process.
    ends: Calls<Returned>,
    timers: HashMap<Timer, Instant>,
    permit: Option<Permit>,
    cancel_work: CancellationToken,
    relayed: watch::Receiver<Relayed>,
    publish_at: Option<Instant>,
    waiting: watch::Sender<&'static str>,
    unwritten: Unwritten,
    /// When the transitions that wait go to the store, unless a commit takes them along before.
    visible_at: Option<Instant>,
    /// Transitions that are on their way to the store.
    publishing: Option<Submitted>,
    owed: Vec<OwedEnd>,
    heard: [Instant; 2],
    /// What a destination's change applier keeps in the session; opaque.
    change_application: Bytes,
    over: bool,
}

impl SessionTask {
    pub(super) fn new(record: SessionRecord, parts: Parts, links: Links, inbox: Inbox) -> Self {
        Self {
            machine: Machine::new(record, parts.timing),
            parts,
            links,
            inbox,
            work: Calls::new(),
            ends: Calls::new(),
            timers: HashMap::new(),
            permit: None,
            cancel_work: CancellationToken::new(),
            relayed: watch::channel(Relayed::default()).1,
            publish_at: None,
            waiting: watch::channel("").0,
            unwritten: Unwritten::default(),
            visible_at: None,
            publishing: None,
            owed: Vec::new(),
            heard: [Instant::now(); 2],
            change_application: Bytes::new(),
            over: false,
        }
    }

    /// Runs until the session is over and its final state is visible.
    pub(super) async fn run(mut self) {
        let mut waiting = self.waiting.subscribe();
        // One timer for all that is due: to arm one anew takes a lock that all sessions share.
        let mut alarm = pin!(sleep_until(Instant::now()));
        self.handle(Event::Started).await;
        while !self.over {
            let due = self.next_due();
            if let Some((at, _)) = due
                && alarm.deadline() != at
            {
                alarm.as_mut().reset(at);
            }
            tokio::select! {
                Some(message) = self.inbox.receiver.recv() => self.message(message).await,
                Some(event) = self.work.next() => self.returned(event).await,
                Some(event) = self.ends.next() => self.returned(event).await,
                Ok(()) = waiting.changed() => {
                    let reason = (*waiting.borrow_and_update()).to_owned();
                    self.handle(Event::Waiting(reason)).await;
                }
                () = &mut alarm, if due.is_some() => {
                    if let Some((_, due)) = due {
                        self.due(due).await;
                    }
                }
            }
        }
        let finished = self.finished();
        self.inbox.done.send_replace(Some(Arc::new(finished)));
    }

    fn next_due(&self) -> Option<(Instant, Due)> {
        let timers = self.timers.iter().map(|(timer, at)| (*at, Due::Timer(*timer)));
        let visible = self.visible_at.map(|at| (at, Due::Visible));
        let publish = self.publish_at.map(|at| (at, Due::Publish));
        timers.chain(visible).chain(publish).min_by_key(|(at, _)| *at)
    }

    async fn due(&mut self, due: Due) {
        match due {
            Due::Timer(timer) => {
                self.timers.remove(&timer);
                self.handle(Event::Timer(timer)).await;
            }
            Due::Visible => self.make_visible().await,
            Due::Publish => {
                // The sender goes with the batch; `Processed` brings the final totals.
                let changed = self.relayed.has_changed();
                self.publish_at = changed.is_ok().then(|| Instant::now() + self.parts.timing.progress_interval);
                if changed.unwrap_or(false) {
                    let relayed = *self.relayed.borrow_and_update();
                    self.handle(Event::Relayed(relayed)).await;
                }
            }
        }
    }

    fn finished(&self) -> Finished {
        Finished {
            record: self.machine.record().clone(),
            ticks: self.machine.ticks(),
            cause: self.unwritten.last_cause().to_owned(),
            retry: self.machine.failure().map_or(Retry::Never, |failure| failure.retry),
        }
    }

    async fn message(&mut self, message: Message) {
        match message {
            Message::Cancel { cause, reason } => self.handle(Event::Cancel { cause, reason }).await,
            Message::Fault { by, fault } => self.handle(Event::Fault { by, fault }).await,
            Message::Progress(report) => self.handle(Event::Progress(report)).await,
            Message::Caller { call, reply } => {
                let taken = if self.machine.record().kind != SessionKind::External {
                    Err(StateError::NotExternal)
                } else if self.machine.is_concluded() {
                    Err(StateError::Concluded)
                } else {
                    Ok(())
                };
                if taken.is_ok() {
                    self.handle(match call {
                        CallerCall::Renew => Event::CallerRenewed,
                        CallerCall::End { in_sync } => Event::CallerEnded { in_sync },
                    })
                    .await;
                }
                // The caller may have gone.
                let _ = reply.send(taken);
            }
            Message::State { call, reply } => {
                let answer = self.state(call);
                // The caller may have gone.
                let _ = reply.send(answer);
            }
            Message::Status { role, reply } => {
                let status = SessionStatus {
                    is_canceled: self.machine.is_canceled(),
                    hresult: self.machine.record().hresult,
                    concluded: self.machine.is_concluded(),
                    lease_remaining: self.lease_remaining(role),
                };
                // The caller may have gone.
                let _ = reply.send(status);
            }
        }
    }

    fn state(&mut self, call: StateCall) -> Result<StateAnswer, StateError> {
        let sets = matches!(call, StateCall::SetRecoveryRange(..) | StateCall::LoadInfo(_));
        if sets && self.machine.is_concluded() {
            return Err(StateError::Concluded);
        }
        match call {
            StateCall::SetRecoveryRange(lower, upper) => {
                self.machine.set_recovery_range(lower, upper)?;
                Ok(StateAnswer::Kept)
            }
            StateCall::GetRecoveryRange => {
                let (lower, upper) = self.machine.recovery_range().cloned().ok_or(StateError::NoRecovery)?;
                Ok(StateAnswer::RecoveryRange(lower, upper))
            }
            StateCall::LoadInfo(info) => {
                self.change_application = info;
                Ok(StateAnswer::Kept)
            }
            StateCall::GetInfo => Ok(StateAnswer::Info(self.change_application.clone())),
        }
    }

    fn lease_remaining(&self, role: ProviderRole) -> Duration {
        if self.machine.record().is_dialled(role) {
            return self.parts.timing.lease.saturating_sub(self.heard[role as usize].elapsed());
        }
        let ends = self.timers.get(&Timer::CallerLease);
        ends.map_or_else(Default::default, |at| at.saturating_duration_since(Instant::now()))
    }

    async fn returned(&mut self, returned: Result<Returned, Panicked>) {
        match returned {
            Ok(Returned::Event(event)) => {
                if let Event::Answered { role, sent, .. } = &event {
                    self.heard[*role as usize] = Instant::from_std(*sent).max(self.heard[*role as usize]);
                }
                self.handle(event).await;
            }
            Ok(Returned::Admitted(permit, standing)) => {
                self.permit = Some(permit);
                self.handle(Event::Admitted(Some(standing))).await;
            }
            Err(Panicked) => {
                error!("a call panicked");
                self.handle(Event::CoordinatorFailed(
                    "the coordinator failed in a call; its log says where".to_owned(),
                ))
                .await;
            }
        }
    }

    async fn handle(&mut self, event: Event) {
        let mut events = vec![event];
        events.extend(self.uncounted(&events[0]));
        while let Some(event) = events.pop() {
            let effects = self.machine.handle(event, now());
            for effect in effects {
                if let Some(next) = self.carry_out(effect).await {
                    events.push(next);
                }
            }
        }
    }

    /// What the batch in hand has come to and was not counted yet: whatever cuts the batch, what was applied was applied. A batch
    /// that comes to its end brings its own totals.
    fn uncounted(&mut self, event: &Event) -> Option<Event> {
        let has_changed = match event {
            Event::Relayed(_) | Event::Processed { result: Ok(_), .. } => false,
            // The sender has gone with the batch.
            Event::Processed { result: Err(_), .. } => true,
            _ => self.relayed.has_changed().unwrap_or(false),
        };
        has_changed.then(|| Event::Relayed(*self.relayed.borrow_and_update()))
    }

    /// Carries out one effect; a commit's answer is the next event.
    async fn carry_out(&mut self, effect: Effect) -> Option<Event> {
        let deadline = self.parts.timing.call_deadline;
        match effect {
            Effect::Identify(role) => {
                let provider = self.provider(role);
                let set = if self.machine.is_concluded() { &mut self.ends } else { &mut self.work };
                set.add(answered(role, async move {
                    Answer::Identified(within(deadline, provider.get_id_parameters()).await)
                }));
            }
            Effect::Admit => {
                if self.permit.as_ref().is_some_and(Permit::is_clear) {
                    return Some(Event::Admitted(None));
                }
                self.permit = None;
                self.admit();
            }
            Effect::Release => self.permit = None,
            Effect::Begin(role) => {
                let provider = self.provider(role);
                let begin = BeginSession {
                    role,
                    session: SessionRef {
                        key: self.key(),
                        token: self.links.tokens[role as usize].clone(),
                        lease: self.parts.timing.lease,
                        coordinator_address: self.parts.coordinator_address.clone(),
                    },
                    allow_mass_delete: self.machine.record().allow_mass_delete,
                    operation_age: Some(self.links.operation_began.elapsed()),
                    partner: self.partner_of(role),
                };
                let deadline = self.parts.timing.begin_deadline;
                self.work.add(answered(role, async move {
                    Answer::Begun(within(deadline, provider.begin_session(begin)).await)
                }));
            }
            Effect::Renew { role, canceled } => {
                let (provider, key, lease) = (self.provider(role), self.key(), self.parts.timing.lease);
                self.work.add(answered(role, async move {
                    Answer::Renewed(within(deadline, provider.renew_session(key, lease, canceled)).await)
                }));
            }
            Effect::SpecifyFilter => {
                let (provider, key) = (self.provider(ProviderRole::Destination), self.key());
                self.work.add(answered(ProviderRole::Destination, async move {
                    Answer::FilterSpecified(within(deadline, provider.specify_filter(key)).await)
                }));
            }
            Effect::AddFilter(request) => {
                let (provider, key) = (self.provider(ProviderRole::Source), self.key());
                self.work.add(answered(ProviderRole::Source, async move {
                    Answer::FilterAdded(within(deadline, provider.add_filter(key, request)).await)
                }));
            }
            Effect::GetParameters => {
                let (provider, key) = (self.provider(ProviderRole::Destination), self.key());
                self.work.add(answered(ProviderRole::Destination, async move {
                    Answer::Parameters(within(deadline, provider.get_sync_batch_parameters(key)).await)
                }));
            }
            Effect::GetBatch(request) => {
                let (provider, key) = (self.provider(ProviderRole::Source), self.key());
                self.work.add(answered(ProviderRole::Source, async move {
                    Answer::Batch(within(deadline, provider.get_change_batch(key, request)).await)
                }));
            }
            Effect::GetFullEnumerationBatch(request, lower_bound) => {
                let (provider, key) = (self.provider(ProviderRole::Source), self.key());
                self.work.add(answered(ProviderRole::Source, async move {
                    let call = provider.get_full_enumeration_change_batch(key, request, lower_bound);
                    Answer::Batch(within(deadline, call).await)
                }));
            }
            Effect::Process { batch, full_enumeration, referee, resolutions } => {
                self.process(batch, full_enumeration, referee, resolutions);
            }
            Effect::Record(findings) => {
                let item_retry = self.parts.timing.item_retry;
                self.unwritten.found(found(self.machine.record(), *findings, item_retry, jiff::Timestamp::now()));
            }
            Effect::CancelWork => self.cancel_work.cancel(),
            Effect::AbortWork => {
                self.work.abort_all();
                self.timers.retain(|timer, _| matches!(timer, Timer::EndGrace | Timer::RetryEnd(_)));
                self.publish_at = None;
            }
            Effect::End(role, notice) => {
                let provider = self.provider(role);
                let end = EndSession {
                    key: self.key(),
                    state: notice.state,
                    hresult: notice.hresult,
                    message: notice.message,
                    provider_with_error: notice.provider_with_error,
                };
                self.ends.add(answered(role, async move {
                    Answer::Ended(within(deadline, provider.end_session(end)).await)
                }));
            }
            Effect::HandOver { role, since } => {
                if let Some(owed) = self.owed.iter().find(|owed| owed.role == role) {
                    warn!(%role, provider = %owed.endpoint, "EndSession was not answered in time; it goes on being delivered");
                    self.parts.outbox.deliver(owed.clone(), self.provider(role), Instant::from_std(since));
                }
            }
            Effect::Settle(role) => {
                self.unwritten.settle(self.machine.record().sync_guid, role);
            }
            Effect::Commit(commit, owed) => return Some(self.commit(commit, owed).await),
            Effect::Publish => self.publish(),
            Effect::SetTimer(timer, after) => {
                self.timers.insert(timer, Instant::now() + after);
            }
            Effect::Finish => {
                self.permit = None;
                self.over = true;
            }
        }
        None
    }

    fn admit(&mut self) {
        let seats = ProviderRole::BOTH.map(|role| {
            let info = self.machine.info(role);
            Seat {
                replica_id: info.map(|info| info.replica_id.clone()).unwrap_or_default(),
                role,
                max_source_sessions: info.map_or(0, |info| info.limits.max_source_sessions),
            }
        });
        let (admission, waiting) = (self.parts.admission.clone(), self.waiting.clone());
        let sync_guid = self.machine.record().sync_guid;
        let coordinated = self.machine.record().kind == SessionKind::Coordinated;
        let replicas = ProviderRole::BOTH
            .map(|role| self.machine.info(role).filter(|_| coordinated).map(|info| info.replica_id.clone()));
        let store = self.parts.store.clone();
        self.work.add(async move {
            let permit = admission.admit(sync_guid, seats, |reason| {
                waiting.send_replace(reason);
            });
            let permit = permit.await;
            // Read when both replicas are held: no other session adds to it meanwhile.
            let standing = match replicas {
                [Some(source), Some(destination)] => store.standing(source, destination).await,
                _ => Ok(Standing::default()),
            };
            let standing = standing.unwrap_or_else(|failure| {
                warn!(%failure, "former conflicts and errors are not looked at in this session");
                Standing::default()
            });
            Returned::Admitted(permit, Box::new(standing))
        });
    }

    fn process(
        &mut self,
        batch: crate::knowledge::ChangeBatch,
        full_enumeration: bool,
        referee: Box<crate::referee::Referee>,
        resolutions: Vec<crate::knowledge::Resolution>,
    ) {
        let record = self.machine.record();
        let (relayed, receiver) = watch::channel(Relayed::default());
        self.relayed = receiver;
        self.publish_at = Some(Instant::now() + self.parts.timing.progress_interval);
        self.cancel_work = CancellationToken::new();
        let relay = Relay {
            source: self.provider(ProviderRole::Source),
            destination: self.provider(ProviderRole::Destination),
            key: self.key(),
            start: ProcessStart {
                conflict_resolution_policy: record.conflict_resolution_policy,
                full_enumeration_action: record.full_enumeration_action,
                collision_conflict_resolution_policy: record.collision_conflict_resolution_policy,
                resolutions,
            },
            full_enumeration,
            timing: self.parts.timing,
            cancel: self.cancel_work.clone(),
            relayed,
        };
        let relaying = AbortOnDropHandle::new(tokio::spawn(relay.run(batch, referee)));
        self.work.add(async move {
            match relaying.await {
                Ok((referee, result)) => Returned::Event(Event::Processed { referee, result }),
                Err(failure) if failure.is_panic() => std::panic::resume_unwind(failure.into_panic()),
                // The runtime goes, and this task with it.
                Err(_) => std::future::pending().await,
            }
        });
    }

    async fn commit(&mut self, commit: Commit, owed: Vec<OwedEnd>) -> Event {
        self.published().await;
        let mut writes = self.take_writes();
        writes.extend(owed.iter().map(|owed| Write::Owe(Box::new(owed.clone()))));
        // What is left between the replicas decides how the operation goes on; it is looked up once it is stored.
        let has_left = self.parts.store.has_standing() || writes.iter().any(|write| matches!(write, Write::Found(_)));
        if commit == Commit::Final && !has_left {
            writes.extend((self.links.at_end)(&self.finished()));
        }
        if !owed.is_empty() {
            self.owed = owed;
        }
        match self.parts.store.commit(writes).await {
            Ok(()) => {
                self.unwritten.written();
                Event::Committed(commit)
            }
            Err(failure) => {
                error!(%failure, "the store did not take a session's state");
                Event::NotCommitted(commit, format!("the store did not take the session's state: {failure}"))
            }
        }
    }

    /// A transition becomes visible soon; progress goes behind it, and is durable with the next commit.
    fn publish(&mut self) {
        if self.unwritten.note(&mut self.machine) {
            self.visible_at.get_or_insert_with(|| Instant::now() + TRANSITION_DELAY);
        } else {
            self.visible_at = None;
            self.parts.store.progress(self.machine.record().clone());
        }
    }

    /// Transitions are committed as they become visible, and nothing waits for that but what is written next. Those that were
    /// on their way already are durable now: then it is only progress.
    async fn make_visible(&mut self) {
        self.published().await;
        if !self.unwritten.note(&mut self.machine) {
            return self.publish();
        }
        let writes = self.take_writes();
        match self.parts.store.submit(writes).await {
            Ok(submitted) => self.publishing = Some(submitted),
            Err(failure) => warn!(%failure, "a transition is not stored yet; the next commit carries it"),
        }
    }

    /// Waits for the transition that is on its way to the store: what comes next must not overtake it, and carries it again
    /// where it failed.
    async fn published(&mut self) {
        let Some(publishing) = self.publishing.take() else { return };
        match publishing.durable().await {
            Ok(()) => self.unwritten.written(),
            Err(failure) => warn!(%failure, "a transition is not stored yet; the next commit carries it"),
        }
    }

    fn take_writes(&mut self) -> Vec<Write> {
        self.visible_at = None;
        let writes = self.unwritten.take(&mut self.machine);
        for write in &writes {
            if let Write::Session(_, Some(event)) = write {
                info!(from = ?event.from_state, to = ?event.to_state, cause = %event.cause, message = %event.message, "transition");
            }
        }
        writes
    }

    fn provider(&self, role: ProviderRole) -> Arc<dyn Provider> {
        self.links.providers[role as usize].clone().expect("the machine calls nobody who is not dialled")
    }

    /// The other provider, as it told of itself; `None` when it is not dialled.
    fn partner_of(&self, role: ProviderRole) -> Option<Partner> {
        let info = self.machine.info(role.other()).filter(|_| self.machine.record().is_dialled(role.other()))?;
        Some(Partner { replica_id: info.replica_id.clone(), incarnation_id: info.incarnation_id.clone() })
    }

    fn key(&self) -> SessionKey {
        let record = self.machine.record();
        SessionKey { sync_guid: record.sync_guid, epoch: record.epoch }
    }
}

impl Drop for SessionTask {
    /// A task that panicked does not end its session: the providers are told so all the same, and no session begins at them before
    /// they were. A runtime that goes away drops tasks too; what is owed is then delivered by the next start.
    fn drop(&mut self) {
        if self.over || !std::thread::panicking() {
            return;
        }
        for owed in std::mem::take(&mut self.owed) {
            let provider = self.links.providers[owed.role as usize].clone();
            let Some(provider) = provider.filter(|_| self.machine.is_owed(owed.role)) else { continue };
            let notice = owed.notice.clone().unwrap_or_else(|| EndNotice {
                state: SyncState::Interrupted,
                hresult: Hresult::E_UNEXPECTED,
                message: "the coordinator failed; its log says where".to_owned(),
                provider_with_error: Some(ProviderWithError::Coordinator),
            });
            let owed = OwedEnd { notice: Some(notice), ..owed };
            self.parts.outbox.deliver(owed, provider, Instant::now());
        }
    }
}

/// What a session found, as it is written down.
pub fn found(
    record: &SessionRecord,
    findings: Findings,
    item_retry: Duration,
    time: jiff::Timestamp,
) -> SessionFindings {
    let end = |role| {
        let member = record.member(role);
        End { endpoint: member.endpoint.clone(), replica_id: member.replica_id.clone().unwrap_or_default() }
    };
    SessionFindings {
        sync_guid: record.sync_guid,
        operation_id: record.operation_id,
        source: end(ProviderRole::Source),
        destination: end(ProviderRole::Destination),
        time,
        item_retry,
        findings,
    }
}

fn now() -> Now {
    Now { instant: Instant::now().into_std(), wall: jiff::Timestamp::now() }
}

async fn answered(role: ProviderRole, call: impl Future<Output = Answer>) -> Returned {
    let sent = Instant::now().into_std();
    Returned::Event(Event::Answered { role, sent, answer: call.await })
}
