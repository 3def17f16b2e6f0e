//! Runs plans: reads the store, gathers reports, plans, does the steps, again and again.
//!
//! All that is remembered between two passes can be had again: the records from the store, the reports from
//! the engines. So a controller may end after any step; the next one goes on from there.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pollux_api::control::v1::{EngineReport, Event, Node, Severity, TargetConfig, engine_command::Command};
use pollux_trace::{Origin, Origins, span};
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tracing::field::Empty;
use tracing::{Instrument, Span};

use crate::engines::{EngineAddress, EngineClient};
use crate::following::Following;
use crate::model::{Kind, Record};
use crate::plan::{Limits, Step, add_event, plan};
use crate::store::{Leadership, Store, StoreError, Transaction, Write};
use crate::telemetry::Telemetry;
use crate::telling::{PoolNote, Round, Telling};
use crate::world::{Observation, World};

/// Transactions under way at a time.
const COMMITS_AT_ONCE: usize = 32;

/// Engines that are asked at a time.
const ENGINES_AT_ONCE: usize = 64;

/// How long [`Controller::pass`] waits for engines to do what it tells them.
const TELL_PATIENCE: Duration = Duration::from_millis(500);

/// A clock that is behind by so much was set back.
const CLOCK_STEP_US: u64 = 1_000_000;

/// How long an engine may take for a report.
pub(crate) const REPORT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long the own changes may take to come back from the store.
const ECHO_TIMEOUT: Duration = Duration::from_secs(10);

/// The pause between two reports of an engine of which nothing is wanted.
const REPORT_INTERVAL: Duration = Duration::from_secs(2);

/// The longest pause between two passes: time passes too.
const PASS_INTERVAL: Duration = Duration::from_secs(1);

/// The shortest one, so that a busy cluster is planned for in larger pieces.
const PASS_PAUSE: Duration = Duration::from_millis(2);

/// The pause before an engine is told the same once more: it refused, or its report does not show it done.
const REPEAT_PAUSE: Duration = Duration::from_millis(250);

/// Why nothing is done, for people.
pub(crate) const RESTORED: &str = "the records were restored from a backup, and nothing is done by them yet: \
                                   compare them with what engines have (`pollux recover`), and commit that";

/// What time it is.
pub trait Clock: Send + Sync + fmt::Debug + 'static {
    /// Microseconds since 1970, in UTC. Whoever looks after the machine may set that, back too.
    fn now_unix_us(&self) -> u64;

    /// Microseconds since some moment: nobody sets these. How long ago something was is told by them.
    fn steady_us(&self) -> u64 {
        self.now_unix_us()
    }
}

/// The clock of the machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now_unix_us(&self) -> u64 {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        since.map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
    }

    fn steady_us(&self) -> u64 {
        let since = clock_gettime(ClockId::Boottime);
        let (seconds, nanoseconds) = (since.tv_sec.unsigned_abs(), since.tv_nsec.unsigned_abs());
        seconds
            .saturating_mul(1_000_000)
            .saturating_add(nanoseconds / 1_000)
    }
}

/// What an engine told last.
#[derive(Debug, Clone, PartialEq)]
pub struct Heard {
    /// All that is on it.
    pub report: Arc<EngineReport>,
    /// When it came, by [`Clock::steady_us`].
    pub at_steady_us: u64,
}

/// What engines told last: shared with those who answer calls.
#[derive(Debug, Default)]
pub struct Observations {
    newest: Mutex<BTreeMap<String, Heard>>,
    /// Why engines could not be told something the last time, by node.
    unheard: Mutex<BTreeMap<String, String>>,
    /// Why engines that were asked gave no report the last time, by node.
    silent: Mutex<BTreeMap<String, String>>,
    changed: Notify,
    telemetry: Telemetry,
    /// Who asked for what, by the UUID of a record: what is done for it is part of that trace.
    asked: Origins,
    /// Those who wait for a volume, by its UUID: told when an engine tells something else of it.
    waiting: Mutex<HashMap<String, watch::Sender<()>>>,
}

/// Told when an engine tells something else of a volume.
#[derive(Debug)]
pub(crate) struct VolumeObservations<'a> {
    observations: &'a Observations,
    volume_uid: String,
    receiver: watch::Receiver<()>,
}

impl VolumeObservations<'_> {
    /// Returns once something else was told since the last time, or since this was made.
    pub(crate) async fn changed(&mut self) {
        // The sender stays as long as there are receivers.
        drop(self.receiver.changed().await);
    }
}

impl Drop for VolumeObservations<'_> {
    fn drop(&mut self) {
        let mut waiting = self.observations.lock_waiting();
        // This one is still counted.
        if waiting
            .get(&self.volume_uid)
            .is_some_and(|sender| sender.receiver_count() <= 1)
        {
            waiting.remove(&self.volume_uid);
        }
    }
}

impl Observations {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Heard>> {
        // Nothing that is done with the lock held can leave it half done.
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An engine has reported, at a time of [`Clock::steady_us`].
    pub fn put(&self, report: Arc<EngineReport>, at_steady_us: u64) {
        let node = report.node.clone();
        let heard = Heard { report, at_steady_us };
        let before = self.lock().insert(node, heard.clone());
        self.tell_waiting(before.as_ref().map(|before| &*before.report), &heard.report);
        // Time alone is no reason for a pass: there is one every second anyway.
        if before.is_none_or(|before| before.report != heard.report) {
            self.changed.notify_one();
        }
    }

    fn lock_unheard(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        // Nothing that is done with the lock held can leave it half done.
        self.unheard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an engine could be told something; if not, why.
    pub(crate) fn note_heard(&self, node: &str, heard: Result<(), String>) {
        let mut unheard = self.lock_unheard();
        match heard {
            Ok(()) => unheard.remove(node),
            Err(why) => unheard.insert(node.to_owned(), why),
        };
    }

    fn lock_silent(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        // Nothing that is done with the lock held can leave it half done.
        self.silent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An engine was asked for a report and gave none. Returns whether the reason is another one than before.
    fn note_silent(&self, node: &str, why: &str) -> bool {
        let before = self.lock_silent().insert(node.to_owned(), why.to_owned());
        before.is_none_or(|before| before != why)
    }

    fn lock_waiting(&self) -> MutexGuard<'_, HashMap<String, watch::Sender<()>>> {
        // Nothing that is done with the lock held can leave it half done.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For somebody who waits for something to happen to a volume.
    pub(crate) fn of_volume(&self, volume_uid: &str) -> VolumeObservations<'_> {
        let mut waiting = self.lock_waiting();
        let sender = waiting
            .entry(volume_uid.to_owned())
            .or_insert_with(|| watch::channel(()).0);
        VolumeObservations {
            observations: self,
            volume_uid: volume_uid.to_owned(),
            receiver: sender.subscribe(),
        }
    }

    /// Tells those who wait for volumes of which an engine tells something else than before. One pass over
    /// each report, whoever waits for what.
    fn tell_waiting(&self, before: Option<&EngineReport>, after: &EngineReport) {
        let waiting = self.lock_waiting();
        if waiting.is_empty() {
            return;
        }
        let of = |report: Option<&'_ EngineReport>| -> HashMap<String, TargetConfig> {
            let targets = report.into_iter().flat_map(|report| &report.targets);
            let awaited = targets.filter(|target| waiting.contains_key(&target.volume_uid));
            awaited
                .map(|target| (target.volume_uid.clone(), target.clone()))
                .collect()
        };
        let (before, after) = (of(before), of(Some(after)));
        for (volume_uid, sender) in waiting.iter() {
            if before.get(volume_uid) != after.get(volume_uid) {
                sender.send_replace(());
            }
        }
    }

    /// Who asked for what.
    pub(crate) fn asked(&self) -> &Origins {
        &self.asked
    }

    /// What is counted of the work of this instance.
    pub fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }

    /// What an engine told last.
    pub fn get(&self, node: &str) -> Option<Heard> {
        self.lock().get(node).cloned()
    }

    /// What all engines told last, each as long before `now_unix_us` as it is ago.
    pub(crate) fn all(&self, now_unix_us: u64, steady_us: u64) -> BTreeMap<String, Observation> {
        let all = self.lock();
        let observed = all.iter().map(|(node, heard)| {
            let ago_us = steady_us.saturating_sub(heard.at_steady_us);
            let observation = Observation {
                report: heard.report.clone(),
                at_unix_us: now_unix_us.saturating_sub(ago_us),
            };
            (node.clone(), observation)
        });
        observed.collect()
    }
}

/// What a controller works with.
#[derive(Debug, Clone)]
pub struct Parts {
    /// Where records are.
    pub store: Arc<dyn Store>,
    /// How engines are asked and told.
    pub engines: Arc<dyn EngineClient>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// What may be done.
    pub limits: Limits,
    /// What engines told last.
    pub observations: Arc<Observations>,
}

/// Runs plans while it leads.
pub struct Controller {
    parts: Parts,
    leadership: Leadership,
    world: World,
    following: Following,
    /// What engines are being told.
    telling: Telling,
    /// When there was a pass last, by [`Clock::steady_us`].
    passed_steady_us: u64,
    /// Whether it was told that the clock was set back, since it was right last.
    is_behind_told: bool,
}

/// What came of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Progress {
    /// Its steps.
    planned: usize,
    /// Those of them that were not begun before.
    fresh: usize,
}

impl fmt::Debug for Controller {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Controller")
            .field("parts", &self.parts)
            .field("leadership", &self.leadership)
            .finish_non_exhaustive()
    }
}

impl Controller {
    /// Takes up what is in the store, as its leader.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub async fn start(parts: Parts, leadership: Leadership) -> Result<Self, StoreError> {
        let now = parts.clock.now_unix_us();
        let (following, world) = Following::begin(parts.store.clone(), now).await?;
        let term = world.term_base.saturating_add(leadership.term);
        tracing::info!(term, "leads");
        if world.is_restored {
            tracing::warn!("{RESTORED}");
            let mut transaction = Transaction::default();
            let told = ("control".to_owned(), RESTORED.to_owned());
            add_event(&mut transaction, &world, 0, Severity::Warning, told);
            transaction.conditions.push(leadership.condition.clone());
            parts.store.commit(transaction).await?;
        }
        parts.observations.telemetry.leads(term);
        Ok(Self {
            passed_steady_us: parts.clock.steady_us(),
            parts,
            leadership,
            world,
            following,
            telling: Telling::default(),
            is_behind_told: false,
        })
    }

    /// All that is known.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// Runs passes until the lead is lost, or `stop` turns true.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) -> Result<(), StoreError> {
        let mut lost = self.leadership.lost.clone();
        let mut reports_due = tokio::time::interval(REPORT_INTERVAL);
        reports_due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut pollers = JoinSet::new();
        loop {
            let progress = self.step(REPEAT_PAUSE).await?;
            if progress.fresh > 0 {
                // What comes meanwhile is planned for together.
                tokio::time::sleep(PASS_PAUSE).await;
                if !*stop.borrow() && !*lost.borrow() {
                    continue;
                }
            }
            let pause = match progress.planned {
                0 => PASS_INTERVAL,
                _ => REPEAT_PAUSE,
            };
            tokio::select! {
                () = turns_true(&mut stop) => return Ok(()),
                () = turns_true(&mut lost) => return Ok(()),
                () = self.parts.observations.changed.notified() => {}
                changes = self.following.next() => self.following.take(&mut self.world, changes).await?,
                Some(told) = self.telling.next() => self.note_told(told),
                _ = reports_due.tick() => {
                    // Those of the last time that are still under way go on: they end by themselves.
                    while pollers.try_join_next().is_some() {}
                    if pollers.is_empty() {
                        let parts = self.parts.clone();
                        let engines = self.engines();
                        pollers.spawn(async move { pull(&parts, engines).await });
                    }
                }
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Asks all engines for reports, and waits for them.
    pub async fn pull_reports(&self) {
        pull(&self.parts, self.engines()).await;
    }

    fn engines(&self) -> Vec<EngineAddress> {
        self.world.nodes.values().map(address).collect()
    }

    /// Plans once and does what is planned; waits for engines that are quick. Returns how many steps that
    /// were.
    ///
    /// # Errors
    ///
    /// Those of the store; what a single step runs into is left to the next pass.
    pub async fn pass(&mut self) -> Result<usize, StoreError> {
        let progress = self.step(Duration::ZERO).await?;
        let until = tokio::time::Instant::now() + TELL_PATIENCE;
        while let Ok(Some(told)) = tokio::time::timeout_at(until, self.telling.next()).await {
            self.note_told(told);
        }
        Ok(progress.planned)
    }

    /// Plans once, does transactions, and begins to tell engines what they were not told within
    /// `repeat_after`.
    async fn step(&mut self, repeat_after: Duration) -> Result<Progress, StoreError> {
        let began = Instant::now();
        self.following.catch_up(&mut self.world).await?;
        while let Some(told) = self.telling.try_next() {
            self.note_told(told);
        }
        // Before the world is told the time: what comes meanwhile is of this pass.
        let steady_us = self.parts.clock.steady_us();
        self.tell_time(steady_us);
        self.world.reports = self.parts.observations.all(self.world.now_unix_us, steady_us);
        self.world
            .unheard
            .clone_from(&self.parts.observations.lock_unheard());
        self.world
            .silent
            .clone_from(&self.parts.observations.lock_silent());
        let world = &mut self.world;
        world.reports.retain(|node, _| world.nodes.contains_key(node));
        let cool_down_us = self.parts.limits.cool_down_us;
        let now = world.now_unix_us;
        world
            .failures
            .retain(|_, at| now < at.saturating_add(cool_down_us));
        let pools: HashSet<&String> = world.pools.values().map(|pool| &pool.meta().uid).collect();
        world.pool_refusals.retain(|uid, _| pools.contains(uid));
        let planning = Instant::now();
        let steps = match world.is_restored {
            false => plan(world, &self.parts.limits),
            true => Vec::new(),
        };
        let planned = steps.len();
        // A pass that finds nothing to do is none that anybody looks for.
        let pass = match planned {
            0 => Span::none(),
            _ => pass_span(planned, planning.elapsed()),
        };
        let origin = Origin::of(&pass);
        let mut commits = Vec::new();
        let mut commands: BTreeMap<String, Vec<Command>> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Commit(transaction) => match self.not_yet_removed(&transaction) {
                    Some((node, command)) => commands.entry(node).or_default().push(command),
                    None => commits.push(transaction),
                },
                Step::Command { node, command } => commands.entry(node).or_default().push(command),
            }
        }
        let mut told = 0;
        let term = self.world.term_base.saturating_add(self.leadership.term);
        for (node, commands) in commands {
            if let Some(engine) = self.world.nodes.get(&node).map(address) {
                let round = Round {
                    term,
                    repeat_after,
                    pass: origin.as_ref(),
                };
                told += self.telling.tell(&self.parts, engine, commands, round);
            }
        }
        pass.record("commits", commits.len());
        pass.record("commands", told);
        self.parts.observations.telemetry.planned(commits.len(), told);
        let fresh = commits.len() + told;
        let revision = self.commit(commits, origin.as_ref()).await?;
        let world = &mut self.world;
        self.following.reach(world, revision, ECHO_TIMEOUT).await?;
        self.parts.observations.telemetry.passed(began.elapsed());
        Ok(Progress { planned, fresh })
    }

    /// Tells the world what time it is. That is strictly growing, so that events of two passes have different
    /// names. When the clock was set back it goes on at half the pace until the clock has caught up: whoever
    /// is away is still missed in time, and what was to be done later is.
    fn tell_time(&mut self, steady_us: u64) {
        let passed_us = steady_us.saturating_sub(self.passed_steady_us);
        self.passed_steady_us = steady_us;
        let (clock_unix_us, before_unix_us) = (self.parts.clock.now_unix_us(), self.world.now_unix_us);
        let behind_us = before_unix_us
            .saturating_add(passed_us)
            .saturating_sub(clock_unix_us);
        let is_behind = behind_us >= CLOCK_STEP_US;
        if is_behind && !self.is_behind_told {
            let seconds = behind_us / 1_000_000;
            tracing::warn!(
                seconds,
                "the clock was set back: times of events are ahead until it has caught up"
            );
        }
        self.is_behind_told = is_behind;
        let slow_unix_us = before_unix_us.saturating_add((passed_us / 2).max(1));
        self.world.now_unix_us = clock_unix_us.max(slow_unix_us);
    }

    /// What is to be told again before a transaction may forget a removal. That no report shows the thing is
    /// not enough: the report may be older than what the engine was told before, and an earlier leader may
    /// have told it something that is still on its way. Once the engine has answered this leader that the
    /// thing is gone, neither can bring it back.
    fn not_yet_removed(&self, transaction: &Transaction) -> Option<(String, Command)> {
        let removal = transaction.writes.iter().find_map(|write| {
            let Write::Delete { key } = write else {
                return None;
            };
            match Kind::parse(key) {
                Some((Kind::Removal, name)) => self.world.removals.get(name),
                _ => None,
            }
        })?;
        let command = removal.command.as_ref()?.command.as_ref()?;
        let is_known = self.world.nodes.contains_key(&removal.node);
        let is_due = is_known && !self.telling.is_done(&removal.node, command);
        is_due.then(|| (removal.node.clone(), command.clone()))
    }

    /// Does transactions, and returns the highest revision. Those of which a condition does not hold are
    /// left out: somebody was quicker, and the next plan is made of what is so then.
    async fn commit(&self, commits: Vec<Transaction>, pass: Option<&Origin>) -> Result<u64, StoreError> {
        let mut tasks = JoinSet::new();
        let mut revision = 0;
        let mut failure = None;
        let mut done = |result: Result<u64, StoreError>| match result {
            Ok(done) => revision = revision.max(done),
            Err(StoreError::Conflict { key }) => tracing::debug!(%key, "changed meanwhile"),
            Err(error) => failure = Some(error),
        };
        for mut transaction in commits {
            let span = self.commit_span(&transaction, pass);
            transaction.conditions.push(self.leadership.condition.clone());
            if tasks.len() >= COMMITS_AT_ONCE
                && let Some(result) = tasks.join_next().await
            {
                done(flatten(result));
            }
            let store = self.parts.store.clone();
            tasks.spawn(async move { store.commit(transaction).await }.instrument(span));
        }
        while let Some(result) = tasks.join_next().await {
            done(flatten(result));
        }
        match failure {
            Some(error) => Err(error),
            None => Ok(revision),
        }
    }

    /// A transaction, as part of what was asked for, or of its pass. Its events say why it is done.
    fn commit_span(&self, transaction: &Transaction, pass: Option<&Origin>) -> Span {
        let span = span!(parent: None, "commit", record = Empty, volume_uid = Empty, why = Empty);
        if span.is_disabled() {
            return span;
        }
        let mut asked = None;
        let mut why = String::new();
        for write in &transaction.writes {
            match Kind::parse(write.key()) {
                Some((Kind::Event, _)) => {
                    if let Write::Put { key, value } = write
                        && let Ok(event) = Event::read_value(key, value, 0)
                    {
                        let beside = if why.is_empty() { "" } else { "; " };
                        why += &format!("{beside}{}", event.message);
                    }
                }
                Some((Kind::Volume, name)) => {
                    span.record("record", write.key());
                    if let Some(volume) = self.world.volumes.get(name) {
                        span.record("volume_uid", &volume.meta().uid);
                        asked = self.parts.observations.asked.of(&volume.meta().uid);
                    }
                }
                Some(_) if transaction.writes.len() == 1 => {
                    span.record("record", write.key());
                }
                Some(_) | None => {}
            }
        }
        span.record("why", why);
        if let Some(origin) = asked.as_ref().or(pass) {
            origin.adopt(&span);
        }
        span
    }

    /// An engine was told: pools in which a replica could not be made get no new ones for a while.
    fn note_told(&mut self, notes: Vec<PoolNote>) {
        for note in notes {
            match note {
                PoolNote::NoReplica { uid } => {
                    let pool = self.world.pools.values().find(|pool| pool.meta().uid == uid);
                    if let Some(name) = pool.map(|pool| pool.name().to_owned()) {
                        self.world.failures.insert(name, self.world.now_unix_us);
                    }
                }
                PoolNote::Open { uid } => {
                    self.world.pool_refusals.remove(&uid);
                }
                PoolNote::NotOpen { uid, reason } => {
                    self.world.pool_refusals.insert(uid, reason);
                }
            }
        }
    }
}

/// What came of a plan.
fn pass_span(steps: usize, planning: Duration) -> Span {
    let planning_us = u64::try_from(planning.as_micros()).unwrap_or(u64::MAX);
    span!(parent: None, "pass", steps, planning_us, commits = Empty, commands = Empty)
}

/// Returns when it is true, or nobody can set it any more.
async fn turns_true(receiver: &mut watch::Receiver<bool>) {
    // The guard in the answer must not be kept.
    drop(receiver.wait_for(|value| *value).await);
}

fn flatten(result: Result<Result<u64, StoreError>, tokio::task::JoinError>) -> Result<u64, StoreError> {
    result.unwrap_or_else(|error| Err(StoreError::Unavailable(error.to_string())))
}

/// Where the engine of a node is called.
pub(crate) fn address(node: &Node) -> EngineAddress {
    EngineAddress {
        node: node.name().to_owned(),
        address: node
            .spec
            .as_ref()
            .map_or_else(String::new, |spec| spec.address.clone()),
    }
}

async fn pull(parts: &Parts, engines: Vec<EngineAddress>) {
    let mut tasks = JoinSet::new();
    for engine in engines {
        if tasks.len() >= ENGINES_AT_ONCE {
            tasks.join_next().await;
        }
        let parts = parts.clone();
        tasks.spawn(async move { pull_one(&parts, &engine).await });
    }
    while tasks.join_next().await.is_some() {}
}

/// Asks one engine for a report.
pub(crate) async fn pull_one(parts: &Parts, engine: &EngineAddress) {
    // Told once, and again when it is for another reason: it is tried every second.
    let silent = |why: String| {
        if parts.observations.note_silent(&engine.node, &why) {
            tracing::warn!(node = %engine.node, %why, "no report");
        }
    };
    let report = tokio::time::timeout(REPORT_TIMEOUT, parts.engines.report(engine));
    match report.await {
        Ok(Ok(report)) if report.node == engine.node => {
            parts.observations.lock_silent().remove(&engine.node);
            parts.observations.put(report, parts.clock.steady_us());
        }
        Ok(Ok(report)) => silent(format!(
            "at {} another node answers, {}",
            engine.address, report.node
        )),
        Ok(Err(error)) => silent(error.to_string()),
        Err(_) => silent(format!("the engine on node {} takes too long", engine.node)),
    }
}
