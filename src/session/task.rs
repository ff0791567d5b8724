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
use tracing::error;

use super::admission::{Admission, Permit};
use super::blame::Retry;
use super::calls::{Calls, Panicked};
use super::handle::{AtEnd, CallerCall, Finished, Inbox, Message, SessionStatus, StateAnswer, StateCall};
use super::machine::{Event, Machine, Now, Relayed, Timer};
use super::outbox::Outbox;
use super::registry::StateError;
use super::timing::Timing;
use super::unwritten::Unwritten;
use crate::provider::Provider;
use crate::store::{EndNotice, OwedEnd, SessionRecord, Standing, Store, Submitted};
use crate::types::{Hresult, ProviderRole, ProviderWithError, SessionKind, SyncState};

mod effects;

pub use effects::found;

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

fn now() -> Now {
    Now { instant: Instant::now().into_std(), wall: jiff::Timestamp::now() }
}
