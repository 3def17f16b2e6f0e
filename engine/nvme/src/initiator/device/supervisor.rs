//! The one who looks after a device: one task on the reactor that opened it. It holds the controller, hears
//! of losses, waits until what was lost is certainly dead, and connects again.
//!
//! A loss is dealt with in this order, which `docs/decisions/0005-resubmission.md` argues for:
//!
//! 1. The phase changes; every queue is closed, and says whether a change of data was unanswered.
//! 2. If one was, it must be certain that it is not executed any more: the controller was reset and says so,
//!    or it has been without a connection for longer than it goes on by itself.
//! 3. A new controller is connected, and the namespace must be the one it was.
//! 4. Completed writes that were in a volatile cache count as lost, unless the target proves that it ran on.
//! 5. The phase changes again; queues connect, and requests go on.

use std::sync::Arc;
use std::time::Duration;

use pollux_device::events::DeviceEvent;
use pollux_reactor::{Instant, Task, now, random_u64, sleep, sleep_until, spawn, timeout};
use uuid::Uuid;

use super::super::connection::{ConnectionError, ConnectionOptions};
use super::super::controller::{Controller, ControllerDescription, ControllerOptions};
use super::super::error::InitiatorError;
use super::super::namespace::{Namespace, NamespaceSelector, find_namespace};
use super::follow::{abort_commands, follow_events, follow_health};
use super::holes::answer_questions;
use super::options::{NvmfOptions, Unflushed};
use super::plan::Limits;
use super::race::{First, race};
use super::shared::{Association, Phase, Shared};

/// The pause before the first attempt to reconnect that follows a failed one; doubles each time.
const RECONNECT_PAUSE_MIN: Duration = Duration::from_millis(100);

/// A controller and the namespace on it.
pub(super) struct Connected {
    pub(super) controller: Controller,
    pub(super) namespace: Namespace,
}

/// Connects to the controller that the options name, and finds the namespace.
pub(super) async fn connect(
    options: &NvmfOptions,
    selector: NamespaceSelector,
) -> Result<Connected, InitiatorError> {
    let addresses = options
        .endpoint
        .resolve()
        .await
        .map_err(|error| ConnectionError::Unresolved {
            endpoint: options.endpoint.to_string(),
            kind: error.kind(),
        })?;
    let mut failure = None;
    for address in addresses {
        let controller = Controller::connect(ControllerOptions {
            address,
            subsystem: options.subsystem.clone(),
            host: options.host.clone(),
            connection: ConnectionOptions {
                ..options.connection.clone()
            },
            queues: options.queues,
            keep_alive: options.keep_alive,
            admin_timeout: options.connection.connect_timeout,
            credentials: options.credentials.clone(),
        })
        .await;
        match controller {
            Ok(controller) => {
                let found = find_namespace(controller.admin(), controller.description(), selector).await;
                return match found {
                    Ok(namespace) => Ok(Connected {
                        controller,
                        namespace,
                    }),
                    Err(error) => {
                        // The error of interest is known; a controller that will not end cleanly just ends.
                        let _ = controller.shut_down().await;
                        Err(error)
                    }
                };
            }
            Err(error) => failure = Some(error),
        }
    }
    Err(failure.unwrap_or_else(|| {
        ConnectionError::Unresolved {
            endpoint: options.endpoint.to_string(),
            kind: std::io::ErrorKind::NotFound,
        }
        .into()
    }))
}

impl Connected {
    pub(super) fn association(&self, generation: u64, cache_epoch: u64) -> Association {
        let description = self.controller.description();
        Association {
            generation,
            cache_epoch,
            ticket: self.controller.ticket(),
            namespace_id: self.namespace.id,
            tells_holes: self.namespace.tells_holes,
            queues: description.queues,
            retry_delays: description.retry_delays,
        }
    }
}

/// The task.
pub(super) struct Supervisor {
    shared: Arc<Shared>,
    connected: Connected,
    generation: u64,
}

/// Why the supervision of an association ended.
enum Over {
    /// Nobody uses the device any more.
    Unused,
    Lost(String),
}

/// Leaves nobody waiting when the reactor of the supervisor stops.
struct LastWord(Arc<Shared>);

impl Drop for LastWord {
    fn drop(&mut self) {
        self.0.update(|state| state.phase = Phase::Gone);
    }
}

impl Supervisor {
    pub(super) fn new(shared: Arc<Shared>, connected: Connected) -> Self {
        Self {
            shared,
            connected,
            generation: 0,
        }
    }

    /// Runs until nobody uses the device any more, or it is gone.
    pub(super) async fn run(mut self) {
        let shared = self.shared.clone();
        let _last_word = LastWord(shared.clone());
        loop {
            match self.watch().await {
                Over::Unused => {
                    if let Err(error) = self.connected.controller.shut_down().await {
                        tracing::debug!(device = %shared.name, %error, "the controller did not shut down");
                    }
                    return;
                }
                Over::Lost(why) => {
                    tracing::warn!(device = %shared.name, %why, "the target is lost");
                    let since = now();
                    let generation = self.generation;
                    shared.update(|state| state.phase = Phase::Lost { generation });
                    let _fail_fast = self.fail_fast(since);
                    match self.recover(since).await {
                        Ok(connected) => self.go_on(connected, since),
                        Err(error) => {
                            // Who wants no new connection finds out by itself what the loss means.
                            let is_expected = shared.options.loss.reconnect_pause_max.is_none();
                            if !shared.is_closing() && !is_expected {
                                tracing::error!(device = %shared.name, %error, "the device is gone");
                            }
                            shared.update(|state| state.phase = Phase::Gone);
                            shared.publish(DeviceEvent::Removed);
                            return;
                        }
                    }
                }
            }
        }
    }

    /// Waits for the end of the association, serving it meanwhile.
    async fn watch(&self) -> Over {
        let shared = &self.shared;
        let generation = self.generation;
        let admin = self.connected.controller.admin();
        let _tasks = [
            spawn(follow_events(
                shared.clone(),
                admin.clone(),
                self.description(),
                self.connected.namespace.clone(),
            )),
            spawn(abort_commands(shared.clone(), admin.clone(), generation)),
            spawn(answer_questions(
                shared.clone(),
                admin.clone(),
                self.connected.namespace.id,
                generation,
            )),
            spawn(follow_health(shared.clone(), admin.clone())),
        ];
        let over = shared.wait_for(|state| {
            if let Some(why) = state.take_lost() {
                return Some(Over::Lost(why));
            }
            (state.closing && state.all_free()).then_some(Over::Unused)
        });
        match race(over, admin.queue().ended()).await {
            First::Left(over) => over,
            First::Right(ended) => Over::Lost(format!("admin queue: {}", ended.error)),
        }
    }

    fn description(&self) -> ControllerDescription {
        self.connected.controller.description().clone()
    }

    /// Has requests fail once the target has been lost for so long.
    fn fail_fast(&self, since: Instant) -> Option<Task<()>> {
        let shared = self.shared.clone();
        let generation = self.generation;
        let span = shared.options.loss.fail_fast?;
        Some(spawn(async move {
            sleep_until(since + span).await;
            shared.update(|state| {
                if matches!(state.phase, Phase::Lost { generation: lost, .. } if lost == generation) {
                    state.phase = Phase::Down { generation };
                }
            });
        }))
    }

    /// A new association takes the place of the one that was lost.
    fn go_on(&mut self, connected: Connected, since: Instant) {
        let shared = &self.shared;
        let ran_on = same_instance(
            self.connected.controller.description(),
            connected.controller.description(),
        );
        if !ran_on
            && shared.limits.volatile_write_cache
            && shared.options.loss.unflushed == Unflushed::Fail
            && shared.ledger.end_epoch()
        {
            tracing::error!(
                device = %shared.name,
                "completed writes were in the target's volatile cache and may be lost; the next flush fails"
            );
        }
        self.generation += 1;
        let association = connected.association(self.generation, shared.ledger.epoch());
        let blocks = connected.namespace.geometry.blocks;
        self.connected = connected;
        let was_down = shared.update(|state| {
            let was_down = matches!(state.phase, Phase::Down { .. });
            state.phase = Phase::Live(Arc::new(association));
            // What was reported of the association before is dealt with.
            drop(state.take_lost());
            state.aborts.clear();
            state.questions.clear();
            state.no_holes = None;
            was_down
        });
        let lost_for_ms = now().saturating_since(since).as_millis() as u64;
        tracing::info!(device = %shared.name, lost_for_ms, "connected to the target again");
        shared.found(Some(blocks));
        if was_down {
            shared.publish(DeviceEvent::Returned);
        }
    }

    /// Makes sure that what was lost is dead, and connects again.
    async fn recover(&mut self, since: Instant) -> Result<Connected, InitiatorError> {
        let shared = self.shared.clone();
        let unsettled = shared.wait_for(super::shared::State::all_closed).await;
        let quiet_at = self.settle(unsettled).await;
        let loss = &shared.options.loss;
        let Some(pause_max) = loss.reconnect_pause_max else {
            return Err(InitiatorError::Unusable {
                what: "is lost, and `reconnect` is off",
            });
        };
        let give_up_at = since + loss.loss_timeout;
        let limit = give_up_at.saturating_since(now());
        let reconnect = async {
            sleep_until(quiet_at).await;
            let mut pause = RECONNECT_PAUSE_MIN.min(pause_max);
            loop {
                match self.try_again().await {
                    Ok(connected) => return Ok(connected),
                    Err(error) if is_final(&error) => return Err(error),
                    Err(error) => tracing::debug!(device = %shared.name, %error, "could not reconnect"),
                }
                sleep(jittered(pause)).await;
                pause = (pause * 2).min(pause_max);
            }
        };
        let unused = shared.wait_for(|state| (state.closing && state.all_free()).then_some(()));
        match timeout(limit, race(reconnect, unused)).await {
            Ok(First::Left(result)) => result,
            Ok(First::Right(())) => Err(InitiatorError::Unusable {
                what: "was lost when the device was closed",
            }),
            Err(_) => Err(InitiatorError::NotReady {
                what: "come back",
                limit: loss.loss_timeout,
            }),
        }
    }

    /// Ends the lost controller; returns when it is certain that it executes nothing any more.
    async fn settle(&self, unsettled: bool) -> Instant {
        let controller = &self.connected.controller;
        let admin = controller.admin().queue();
        let mut settled = !unsettled;
        if admin.end().is_none() {
            match controller.reset().await {
                Ok(()) => settled = true,
                Err(error) => {
                    let device = &self.shared.name;
                    tracing::debug!(%device, %error, "the lost controller could not be reset");
                }
            }
        }
        admin.close("the controller is lost");
        if settled {
            return now();
        }
        let quiesce = controller.description().quiesce;
        tracing::info!(
            device = %self.shared.name,
            quiesce_ms = quiesce.as_millis() as u64,
            "a write was lost with the connection; waiting until the target has certainly given it up"
        );
        now() + quiesce
    }

    /// One attempt to connect to what was lost.
    async fn try_again(&self) -> Result<Connected, InitiatorError> {
        let options = &self.shared.options;
        let before = &self.connected;
        let connected = connect(options, NamespaceSelector::Id(before.namespace.id)).await?;
        let checked = check_same(options, &self.shared.limits, before, &connected);
        match checked {
            Ok(()) => Ok(connected),
            Err(error) => {
                // Whatever it is, it is not ours; how it takes the end does not matter.
                let _ = connected.controller.shut_down().await;
                Err(error)
            }
        }
    }
}

/// Whether the target says that it is the very one, and has not been restarted.
fn same_instance(before: &ControllerDescription, now: &ControllerDescription) -> bool {
    let instance: Option<Uuid> = before.instance;
    instance.is_some() && instance == now.instance
}

/// A reused address that reaches another volume must be refused, and so must a volume that is not what it
/// was.
fn check_same(
    options: &NvmfOptions,
    limits: &Limits,
    before: &Connected,
    now: &Connected,
) -> Result<(), InitiatorError> {
    let (was, is) = (&before.namespace, &now.namespace);
    if !was.identity.is_still(&is.identity) {
        return Err(InitiatorError::Another {
            what: "the namespace",
            before: was.identity.to_string(),
            now: is.identity.to_string(),
        });
    }
    let shape = |namespace: &Namespace| {
        let geometry = namespace.geometry;
        (geometry.block_bytes, geometry.metadata_bytes, geometry.read_only)
    };
    let now_limits = Limits::new(now.controller.description(), is, options.deallocate);
    if shape(was) != shape(is) || !now_limits.cover(limits) {
        return Err(InitiatorError::Another {
            what: "what the namespace is like",
            before: format!("{limits:?}"),
            now: format!("{now_limits:?}"),
        });
    }
    let (queues, granted) = (
        before.controller.description().queues,
        now.controller.description().queues,
    );
    if granted < queues {
        return Err(InitiatorError::NoQueue { granted });
    }
    Ok(())
}

/// Whether another attempt cannot end otherwise.
fn is_final(error: &InitiatorError) -> bool {
    matches!(error, InitiatorError::Another { .. })
}

/// Half to all of a pause, so that hosts that lost a target together do not come back together.
fn jittered(pause: Duration) -> Duration {
    let half_ns = (pause.as_nanos() / 2) as u64;
    Duration::from_nanos(half_ns + random_u64() % half_ns.max(1))
}
