//! Who looks after a controller: a thread of its own, which mostly sleeps.
//!
//! It takes the completions of the admin queue, sends keep alives, reads the SMART log, sees namespaces grow
//! and go and drives being pulled, and leads the queues on the reactors through a reset, a removal and a
//! return (see [`super::shared`]).
//!
//! | what happens | what it does |
//! | --- | --- |
//! | a queue is lost, a request is stuck, the admin queue fails | resets the controller; requests wait |
//! | a reset does not help | the device is down: [`IoError::Gone`], with the reason in the log |
//! | the drive is pulled, or somebody asks for it | the device is down, the controller is detached |
//! | the same drive comes back | the device lives again; a cache that may be lost fails the next flush |

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use super::bus::{self, Holder};
use super::identify::{Description, health};
use super::options::{SpdkOptions, Transport};
use super::raw::controller::{Connect, Controller, HealthRead};
use super::raw::environment::clock;
use super::shared::{Namespace, Notice, Shared, Stage};
use crate::error::IoError;
use crate::events::DeviceEvent;

/// How often the admin queue is looked at.
const LOOK_PERIOD: Duration = Duration::from_millis(100);

/// How often the SMART log is read.
const HEALTH_PERIOD: Duration = Duration::from_secs(60);

/// How often a drive that is away is looked for.
const RETURN_PERIOD: Duration = Duration::from_secs(1);

/// How long a controller may take to become disabled; it says itself how long, up to two minutes.
const DISABLE_TIME_MAX: Duration = Duration::from_secs(130);

/// Attempts to attach a drive on PCI again after a reset that failed.
const CONNECTS_MAX: u32 = 3;

/// Resets in a row that brought no minute of peace, after which a drive is given up.
const RELAPSES_MAX: u32 = 5;

/// Peace after which a reset is forgotten.
const PEACE: Duration = Duration::from_secs(60);

/// The first pause between attempts to connect to a controller again.
const PAUSE_MIN: Duration = Duration::from_millis(100);

/// The longest such pause.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Keep alive periods after which a remote controller that hears nothing has ended its commands: two, and one
/// more where any command keeps it alive (NVMe Base 2.1, Communication Loss Handling).
const KEEP_ALIVES_UNTIL_DEAD: u32 = 3;

/// Time for an admin command.
const ADMIN_TIME_MAX_MS: u32 = 30_000;

/// What to connect for these options.
pub(super) fn connect_settings(options: &SpdkOptions) -> Connect {
    let fabrics = options.transport.fabrics();
    Connect {
        transport_id: options.transport.identifier(),
        host_nqn: fabrics.and_then(|address| address.host_nqn.clone()),
        host_id: fabrics.and_then(|address| address.host_id),
        queue_entries: super::queue::queue_entries(u32::from(options.depth)),
        keep_alive_ms: options.keep_alive.as_millis().min(u128::from(u32::MAX)) as u32,
        admin_timeout_ms: ADMIN_TIME_MAX_MS,
    }
}

/// Why a controller is no longer attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Away {
    /// It was pulled or asked for: it may come back at any time.
    Removed,
    /// It failed: only another drive, or this one put in again, is taken.
    Failed,
}

/// What a look at the controller found.
enum Found {
    Fine,
    /// Namespaces that were gone are there again.
    Returned,
    Removed,
    Trouble(String),
}

/// Where the controller is.
enum State {
    Attached(Arc<Controller>),
    Away(Away),
}

pub(super) struct Supervisor {
    shared: Arc<Shared>,
    notices: Receiver<Notice>,
    state: State,
    /// A SMART log on its way.
    health: Option<HealthRead>,
    health_at: Duration,
    return_at: Duration,
    /// Resets that brought no peace, and when the last one was.
    relapses: u32,
    reset_at: Duration,
}

impl Supervisor {
    pub(super) fn new(shared: Arc<Shared>, controller: Arc<Controller>, notices: Receiver<Notice>) -> Self {
        Self {
            shared,
            notices,
            state: State::Attached(controller),
            health: None,
            health_at: Duration::ZERO,
            return_at: Duration::ZERO,
            relapses: 0,
            reset_at: Duration::ZERO,
        }
    }

    /// Looks after the controller until nobody uses it any more, and detaches it.
    pub(super) fn run(mut self) {
        loop {
            match self.notices.recv_timeout(LOOK_PERIOD) {
                Ok(Notice::Close) | Err(RecvTimeoutError::Disconnected) => break,
                Ok(Notice::Trouble { era, what }) if era == self.shared.era() => {
                    self.recover(&what.to_string());
                }
                Ok(Notice::Trouble { .. }) | Err(RecvTimeoutError::Timeout) => {}
            }
            self.look();
        }
        // Nobody is there to follow, or the process exits and nobody may: the controller is detached here if
        // no queue pair is left.
        if matches!(self.shared.stage(), (_, Stage::Live(_))) {
            self.shared.begin(Stage::Down(IoError::Gone));
        }
        self.state = State::Away(Away::Removed);
    }

    fn place(&self) -> &Transport {
        &self.shared.options.transport
    }

    fn look(&mut self) {
        match &self.state {
            State::Attached(controller) => match self.look_after(controller) {
                Found::Fine => {
                    let controller = Arc::clone(controller);
                    self.follow_health(&controller);
                }
                Found::Returned => {
                    let controller = Arc::clone(controller);
                    self.take_back(controller);
                }
                Found::Removed => self.remove(),
                Found::Trouble(what) => self.recover(&what),
            },
            State::Away(away) => {
                let (away, now) = (*away, clock());
                if self.place().is_pcie() && now >= self.return_at {
                    self.return_at = now + RETURN_PERIOD;
                    self.look_for_return(away);
                }
            }
        }
    }

    fn look_after(&self, controller: &Controller) -> Found {
        if controller.is_removed() || self.has_vanished() {
            return Found::Removed;
        }
        if let Err(error) = controller.poll_admin() {
            return Found::Trouble(format!("the admin queue failed: {error}"));
        }
        if controller.is_failed() {
            return Found::Trouble("the controller says that it has failed".to_owned());
        }
        let mut returned = false;
        for namespace in self.shared.namespaces() {
            returned |= follow_namespace(controller, &namespace);
        }
        if returned { Found::Returned } else { Found::Fine }
    }

    /// Begins to read the SMART log when it is time, and takes it over when it is there.
    fn follow_health(&mut self, controller: &Controller) {
        if let Some(read) = &self.health {
            match read.result() {
                Some(Ok(page)) => self.shared.set_health(health(&page)),
                Some(Err(error)) => {
                    tracing::debug!(controller = %self.place(), %error, "the SMART log cannot be read");
                }
                None => return,
            }
            self.health = None;
        }
        let now = clock();
        if now >= self.health_at {
            self.health_at = now + HEALTH_PERIOD;
            match controller.read_health() {
                Ok(read) => self.health = Some(read),
                Err(error) => {
                    tracing::debug!(controller = %self.place(), %error, "the SMART log cannot be read");
                }
            }
        }
    }

    /// Whether a drive on PCI is gone without anybody having been asked.
    fn has_vanished(&self) -> bool {
        match self.place() {
            Transport::Pcie(address) => !bus::is_present(Path::new(bus::SYSFS), *address),
            Transport::Rdma(_) | Transport::Tcp(_) => false,
        }
    }

    /// Uses namespaces again that were gone for a while. Queues that were made meanwhile get queue pairs now;
    /// others have kept theirs.
    fn take_back(&self, controller: Arc<Controller>) {
        let returned = |namespace: &Arc<Namespace>| {
            check_namespace(&controller, namespace).is_ok() && namespace.set_present(true)
        };
        let namespaces = self.shared.namespaces();
        let back: Vec<_> = namespaces.into_iter().filter(returned).collect();
        self.shared.begin(Stage::Live(Arc::clone(&controller)));
        for namespace in back {
            namespace.publisher.publish(DeviceEvent::Returned);
        }
    }

    /// The drive is gone, or has to be given away.
    fn remove(&mut self) {
        let controller = self.place();
        tracing::warn!(%controller, "the drive was removed: its requests fail until it is back");
        if let State::Attached(controller) = &self.state {
            controller.fail();
        }
        self.shared.begin_and_wait(Stage::Held);
        self.shared.begin_and_wait(Stage::Released);
        self.detach(Away::Removed);
    }

    /// Detaches the controller, which no queue uses any more; the device is down from then on.
    fn detach(&mut self, away: Away) {
        // Nobody else knows the controller in the stages before, so this is where it is detached: before
        // memory that it may still have used is given back.
        self.state = State::Away(away);
        self.shared.begin_and_wait(Stage::Down(IoError::Gone));
        for namespace in self.shared.namespaces() {
            namespace.publisher.publish(DeviceEvent::Removed);
        }
    }

    /// Resets the controller, or gives it up.
    fn recover(&mut self, reason: &str) {
        let State::Attached(controller) = &self.state else {
            return;
        };
        if controller.is_removed() || self.has_vanished() {
            return self.remove();
        }
        let controller = Arc::clone(controller);
        let started = clock();
        if started.saturating_sub(self.reset_at) > PEACE {
            self.relapses = 0;
        }
        self.relapses += 1;
        tracing::warn!(controller = %self.place(), reason, "resetting the controller");
        self.shared.begin_and_wait(Stage::Held);
        let disabled = controller.disable(DISABLE_TIME_MAX);
        self.shared.begin_and_wait(Stage::Released);
        let settled = self.settle(clock());
        let reset = settled.map(|()| disabled.and_then(|()| controller.enable()));
        let outcome = match reset {
            Err(why) => Err(why),
            Ok(Ok(())) => self.check_identity(&controller).map(|()| controller),
            Ok(Err(error)) => {
                tracing::warn!(controller = %self.place(), %error, "the reset failed: connecting anew");
                // A controller that was lost half-way through a reset is of no use to SPDK any more.
                controller.fail();
                drop(controller);
                self.state = State::Away(Away::Failed);
                self.connect_anew(started)
            }
        };
        let is_pcie = self.place().is_pcie();
        let outcome = match outcome {
            Ok(_) if is_pcie && self.relapses > RELAPSES_MAX => {
                Err(format!("{RELAPSES_MAX} resets in a row brought no peace"))
            }
            outcome => outcome,
        };
        self.reset_at = clock();
        match outcome {
            Ok(controller) => {
                tracing::info!(controller = %self.place(), "the controller works again");
                if !is_pcie {
                    // Whoever was connected to anew may have been away.
                    self.count_losses();
                }
                self.state = State::Attached(Arc::clone(&controller));
                self.shared.begin(Stage::Live(controller));
            }
            Err(why) => {
                tracing::error!(
                    controller = %self.place(),
                    reason,
                    why,
                    "the controller has failed: its requests fail from now on"
                );
                if let State::Attached(controller) = &self.state {
                    controller.fail();
                }
                self.detach(Away::Failed);
            }
        }
    }

    /// Waits until no change of data that a remote target never answered can happen any more. A drive on PCI
    /// was reset, and has nothing at hand.
    fn settle(&mut self, closed_at: Duration) -> Result<(), String> {
        let mut is_unanswered = false;
        for namespace in self.shared.namespaces() {
            is_unanswered |= namespace.ledger.take_unanswered();
        }
        if self.place().is_pcie() || !is_unanswered {
            return Ok(());
        }
        let dead_at = closed_at + self.shared.options.keep_alive * KEEP_ALIVES_UNTIL_DEAD;
        tracing::info!(
            controller = %self.place(),
            seconds = dead_at.saturating_sub(clock()).as_secs(),
            "changes were under way: waiting until the target has given them up"
        );
        loop {
            let left = dead_at.saturating_sub(clock());
            if left.is_zero() {
                return Ok(());
            }
            match self.notices.recv_timeout(left) {
                Ok(Notice::Close) | Err(RecvTimeoutError::Disconnected) => {
                    // Also for the loop that this returns to.
                    self.shared.notify(Notice::Close);
                    return Err("nobody uses it any more".to_owned());
                }
                Ok(Notice::Trouble { .. }) | Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Attaches a controller that was detached: a drive on PCI in a few attempts, a remote one for as long as
    /// it may be lost.
    fn connect_anew(&self, started: Duration) -> Result<Arc<Controller>, String> {
        let is_pcie = self.place().is_pcie();
        let settings = connect_settings(&self.shared.options);
        let mut pause = PAUSE_MIN;
        for attempt in 1.. {
            match Controller::connect(&settings) {
                Ok(controller) => {
                    let controller = Arc::new(controller);
                    return self.check_identity(&controller).map(|()| controller);
                }
                Err(error) => {
                    let is_over = match is_pcie {
                        true => attempt >= CONNECTS_MAX || self.has_vanished(),
                        false => clock().saturating_sub(started) >= self.shared.options.loss_timeout,
                    };
                    if is_over {
                        return Err(format!("it cannot be connected to: {error}"));
                    }
                }
            }
            match self.notices.recv_timeout(pause) {
                Ok(Notice::Close) | Err(RecvTimeoutError::Disconnected) => {
                    // Also for the loop that this returns to.
                    self.shared.notify(Notice::Close);
                    break;
                }
                Ok(Notice::Trouble { .. }) | Err(RecvTimeoutError::Timeout) => {}
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
        Err("nobody uses it any more".to_owned())
    }

    fn count_losses(&self) {
        for namespace in self.shared.namespaces() {
            if namespace.description.geometry.volatile_write_cache {
                namespace.ledger.lost();
            }
        }
    }

    /// Whether all namespaces in use are what they were.
    fn check_identity(&self, controller: &Controller) -> Result<(), String> {
        for namespace in self.shared.namespaces() {
            check_namespace(controller, &namespace)?;
        }
        Ok(())
    }

    /// Attaches a drive that is there again.
    fn look_for_return(&mut self, away: Away) {
        let Transport::Pcie(address) = *self.place() else {
            return;
        };
        let root = Path::new(bus::SYSFS);
        if !bus::is_present(root, address) {
            // Whatever is there next was put in since.
            self.state = State::Away(Away::Removed);
            return;
        }
        if away == Away::Failed || !matches!(bus::holder(root, address), Holder::Program) {
            return;
        }
        let controller = match Controller::connect(&connect_settings(&self.shared.options)) {
            Ok(controller) => Arc::new(controller),
            Err(error) => {
                tracing::debug!(controller = %address, %error, "the drive is not ready yet");
                return;
            }
        };
        if let Err(why) = self.check_identity(&controller) {
            tracing::error!(
                controller = %address,
                why,
                "this is another drive than before: it is left alone, add it as a device of its own"
            );
            self.state = State::Away(Away::Failed);
            return;
        }
        tracing::info!(controller = %address, "the drive is back");
        self.count_losses();
        self.relapses = 0;
        self.health_at = Duration::ZERO;
        self.state = State::Attached(Arc::clone(&controller));
        self.shared.begin(Stage::Live(controller));
        for namespace in self.shared.namespaces() {
            namespace.set_present(true);
            namespace.publisher.publish(DeviceEvent::Returned);
        }
    }
}

fn check_namespace(controller: &Controller, namespace: &Namespace) -> Result<(), String> {
    let id = namespace.id;
    let before = &namespace.description;
    let facts = controller
        .namespace(id)
        .ok_or_else(|| format!("namespace {id} is missing"))?;
    let now = Description::read(&controller.page(), &facts, controller.pieces_max())
        .map_err(|error| error.to_string())?;
    if now.identity != before.identity {
        let (found, expected) = (&now.identity, &before.identity);
        return Err(format!(
            "it is {} {}, and was {} {}",
            found.model, found.serial, expected.model, expected.serial
        ));
    }
    if now.geometry.block_bytes != before.geometry.block_bytes
        || now.geometry.blocks < namespace.geometry().blocks
        || (now.geometry.volatile_write_cache && !before.geometry.volatile_write_cache)
    {
        return Err(format!("namespace {id} has another format"));
    }
    if namespace.grow(now.geometry.blocks) {
        namespace.publisher.publish(DeviceEvent::Resized);
    }
    Ok(())
}

/// Sees a namespace grow and go; whether one that was gone is there again.
fn follow_namespace(controller: &Controller, namespace: &Namespace) -> bool {
    match controller.namespace_blocks(namespace.id) {
        Some(_) if !namespace.is_present() => {
            // Another one of the same number is left alone.
            let is_same = check_namespace(controller, namespace).is_ok();
            if is_same && namespace.description.geometry.volatile_write_cache {
                namespace.ledger.lost();
            }
            is_same
        }
        Some(blocks) => {
            if namespace.grow(blocks) {
                namespace.publisher.publish(DeviceEvent::Resized);
            }
            false
        }
        None => {
            if namespace.set_present(false) {
                tracing::warn!(namespace = namespace.id, "the namespace is gone");
                namespace.publisher.publish(DeviceEvent::Removed);
            }
            false
        }
    }
}
