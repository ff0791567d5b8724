//! What the machine asks for, carried out: calls, commits, timers, and what becomes visible.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, error, info, warn};

use super::{Returned, SessionTask};
use crate::knowledge::{ChangeBatch, Resolution};
use crate::provider::{BeginSession, CallError, EndSession, Partner, ProcessStart, Provider, SessionKey, SessionRef};
use crate::referee::Referee;
use crate::session::admission::{Permit, Seat};
use crate::session::machine::{Answer, Commit, Effect, Event, Relayed, Timer};
use crate::session::relay::{Relay, within};
use crate::session::unwritten::TRANSITION_DELAY;
use crate::store::conflicts::{End, Findings};
use crate::store::{OwedEnd, SessionFindings, SessionRecord, Standing, Write};
use crate::types::{ProviderRole, SessionKind, SyncState};

impl SessionTask {
    /// Carries out one effect; a commit's answer is the next event.
    pub(super) async fn carry_out(&mut self, effect: Effect) -> Option<Event> {
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
        let seats = ProviderRole::BOTH.map(|role| Seat::of(role, self.machine.info(role)));
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
        batch: ChangeBatch,
        full_enumeration: bool,
        referee: Box<Referee>,
        resolutions: Vec<Resolution>,
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
        let sent = Instant::now().into_std();
        self.work.add(async move {
            match relaying.await {
                Ok((referee, result)) => {
                    // Why it failed is said when the session fails for it.
                    let outcome = if result.is_ok() { "answered" } else { "failed" };
                    debug!(role = ?ProviderRole::Destination, took = ?sent.elapsed(), "ProcessChangeBatch {outcome}");
                    Returned::Event(Event::Processed { referee, result })
                }
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
    pub(super) fn publish(&mut self) {
        if self.unwritten.note(&mut self.machine) {
            self.visible_at.get_or_insert_with(|| Instant::now() + TRANSITION_DELAY);
        } else {
            self.visible_at = None;
            self.parts.store.progress(self.machine.record().clone());
        }
    }

    /// Transitions are committed as they become visible, and nothing waits for that but what is written next. Those that were
    /// on their way already are durable now: then it is only progress.
    pub(super) async fn make_visible(&mut self) {
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
            if let Write::Session(record, Some(event)) = write {
                info!(from = ?event.from_state, to = ?event.to_state, cause = %event.cause, message = %event.message, "transition");
                if event.to_state == SyncState::InError {
                    warn!(
                        source = %record.source.endpoint,
                        destination = %record.destination.endpoint,
                        at_fault = ?record.provider_with_error,
                        hresult = ?record.hresult,
                        cause = %event.cause,
                        message = %record.error_message,
                        "the session failed"
                    );
                }
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

async fn answered(role: ProviderRole, call: impl Future<Output = Answer>) -> Returned {
    let sent = Instant::now().into_std();
    let answer = call.await;
    let (rpc, error) = answer.summary();
    log_call(role, rpc, sent, error);
    Returned::Event(Event::Answered { role, sent, answer })
}

/// What `-vv` is for.
fn log_call(role: ProviderRole, rpc: &'static str, sent: std::time::Instant, error: Option<&CallError>) {
    match error {
        None => debug!(?role, took = ?sent.elapsed(), "{rpc} answered"),
        Some(error) => debug!(?role, took = ?sent.elapsed(), %error, "{rpc} failed"),
    }
}
