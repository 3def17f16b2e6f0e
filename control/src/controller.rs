//! Runs plans: reads the store, gathers reports, plans, does the steps, again and again.
//!
//! All that is remembered between two passes can be had again: the records from the store, the reports from
//! the engines. So a controller may end after any step; the next one goes on from there.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use pollux_api::control::v1::{EngineReport, Node, engine_command::Command};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinSet;

use crate::engines::{EngineAddress, EngineClient, EngineError};
use crate::model::Record;
use crate::plan::{Limits, Step, plan};
use crate::store::{Leadership, Store, StoreError, Transaction, Watcher};
use crate::telemetry::Telemetry;
use crate::world::{Observation, World};

/// Transactions under way at a time.
const COMMITS_AT_ONCE: usize = 32;

/// Engines that are asked at a time.
const ENGINES_AT_ONCE: usize = 64;

/// Commands of one kind that an engine is told at a time.
const COMMANDS_AT_ONCE: usize = 32;
/// Engines that are told at a time. More than are asked: some may take their time.
const ENGINES_TOLD_AT_ONCE: usize = 256;

/// How long a pass waits for engines to do what it tells them. Who takes longer is told nothing new until it
/// is done or its time is over, and nobody else waits for it.
const TELL_PATIENCE: Duration = Duration::from_millis(500);

/// How long an engine may take for one command.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);

/// How long an engine may take for a report.
const REPORT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long the own changes may take to come back from the store.
const ECHO_TIMEOUT: Duration = Duration::from_secs(10);

/// The pause between two reports of an engine of which nothing is wanted.
const REPORT_INTERVAL: Duration = Duration::from_secs(2);

/// The longest pause between two passes: time passes too.
const PASS_INTERVAL: Duration = Duration::from_secs(1);

/// The shortest one, so that a busy cluster is planned for in larger pieces.
const PASS_PAUSE: Duration = Duration::from_millis(2);

/// The pause after a pass that could only say once more what engines were told before: they refuse, or take
/// their time.
const REPEAT_PAUSE: Duration = Duration::from_millis(250);

/// What time it is.
pub trait Clock: Send + Sync + fmt::Debug + 'static {
    /// Microseconds since 1970, in UTC.
    fn now_unix_us(&self) -> u64;
}

/// The clock of the machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now_unix_us(&self) -> u64 {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        since.map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
    }
}

/// What engines told last: shared with those who answer calls.
#[derive(Debug, Default)]
pub struct Observations {
    newest: Mutex<BTreeMap<String, Observation>>,
    changed: Notify,
    telemetry: Telemetry,
}

impl Observations {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Observation>> {
        // Nothing that is done with the lock held can leave it half done.
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An engine has reported.
    pub fn put(&self, report: Arc<EngineReport>, at_unix_us: u64) {
        let node = report.node.clone();
        let observation = Observation { report, at_unix_us };
        let before = self.lock().insert(node, observation.clone());
        // Time alone is no reason for a pass: there is one every second anyway.
        if before.is_none_or(|before| before.report != observation.report) {
            self.changed.notify_one();
        }
    }

    /// What is counted of the work of this instance.
    pub fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }

    /// What an engine told last.
    pub fn get(&self, node: &str) -> Option<Observation> {
        self.lock().get(node).cloned()
    }

    /// What all engines told last.
    pub(crate) fn all(&self) -> BTreeMap<String, Observation> {
        self.lock().clone()
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
    watcher: Box<dyn Watcher>,
    /// Engines that are being told. Each gives its node, and the pools in which a replica could not be made.
    telling: JoinSet<(String, Vec<String>)>,
    /// The nodes of these.
    told_nodes: BTreeSet<String>,
    permits: Arc<Semaphore>,
    /// How many commands the last pass had, if nothing was committed in it.
    commands_before: Option<usize>,
    /// Whether the last pass was like the one before.
    is_repeated: bool,
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
        let listing = parts.store.list_all("/").await?;
        let world = World::load(&listing, parts.clock.now_unix_us())?;
        let watcher = parts.store.watch("/", listing.revision).await?;
        Ok(Self {
            parts,
            leadership,
            world,
            watcher,
            telling: JoinSet::new(),
            told_nodes: BTreeSet::new(),
            permits: Arc::new(Semaphore::new(ENGINES_TOLD_AT_ONCE)),
            commands_before: None,
            is_repeated: false,
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
            let steps = self.pass().await?;
            if steps > 0 {
                let pause = match self.is_repeated {
                    true => REPEAT_PAUSE,
                    false => PASS_PAUSE,
                };
                tokio::time::sleep(pause).await;
                if !*stop.borrow() && !*lost.borrow() {
                    continue;
                }
            }
            tokio::select! {
                () = turns_true(&mut stop) => return Ok(()),
                () = turns_true(&mut lost) => return Ok(()),
                () = self.parts.observations.changed.notified() => {}
                changes = self.watcher.next() => self.take(changes).await?,
                _ = reports_due.tick() => {
                    // Those of the last time that are still under way go on: they end by themselves.
                    while pollers.try_join_next().is_some() {}
                    if pollers.is_empty() {
                        let parts = self.parts.clone();
                        let engines = self.engines();
                        pollers.spawn(async move { pull(&parts, engines).await });
                    }
                }
                () = tokio::time::sleep(PASS_INTERVAL) => {}
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

    /// Plans once and does what is planned. Returns how many steps that were.
    ///
    /// # Errors
    ///
    /// Those of the store; what a single step runs into is left to the next pass.
    pub async fn pass(&mut self) -> Result<usize, StoreError> {
        let began = Instant::now();
        self.catch_up().await?;
        self.world.reports = self.parts.observations.all();
        let world = &mut self.world;
        world.reports.retain(|node, _| world.nodes.contains_key(node));
        // Strictly growing, so that events of two passes have different names.
        world.now_unix_us = self.parts.clock.now_unix_us().max(world.now_unix_us + 1);
        let cool_down_us = self.parts.limits.cool_down_us;
        let now = world.now_unix_us;
        world
            .failures
            .retain(|_, at| now < at.saturating_add(cool_down_us));
        let steps = plan(world, &self.parts.limits);
        let count = steps.len();
        let mut commits = Vec::new();
        let mut commands: BTreeMap<String, Vec<Command>> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Commit(transaction) => commits.push(transaction),
                Step::Command { node, command } => commands.entry(node).or_default().push(command),
            }
        }
        let told = commands.values().map(Vec::len).sum();
        self.parts.observations.telemetry.planned(commits.len(), told);
        let revision = self.commit(commits).await?;
        let commands_now = (revision == 0).then_some(count);
        self.is_repeated = commands_now.is_some() && commands_now == self.commands_before;
        self.commands_before = commands_now;
        self.tell(commands).await;
        self.wait_for(revision).await?;
        self.parts.observations.telemetry.passed(began.elapsed());
        Ok(count)
    }

    /// Does transactions, and returns the highest revision. Those of which a condition does not hold are
    /// left out: somebody was quicker, and the next plan is made of what is so then.
    async fn commit(&self, commits: Vec<Transaction>) -> Result<u64, StoreError> {
        let mut tasks = JoinSet::new();
        let mut revision = 0;
        let mut failure = None;
        let mut done = |result: Result<u64, StoreError>| match result {
            Ok(done) => revision = revision.max(done),
            Err(StoreError::Conflict { key }) => tracing::debug!(%key, "changed meanwhile"),
            Err(error) => failure = Some(error),
        };
        for mut transaction in commits {
            transaction.conditions.push(self.leadership.condition.clone());
            if tasks.len() >= COMMITS_AT_ONCE
                && let Some(result) = tasks.join_next().await
            {
                done(flatten(result));
            }
            let store = self.parts.store.clone();
            tasks.spawn(async move { store.commit(transaction).await });
        }
        while let Some(result) = tasks.join_next().await {
            done(flatten(result));
        }
        match failure {
            Some(error) => Err(error),
            None => Ok(revision),
        }
    }

    /// Tells engines, each its commands in order, and asks them for reports. Waits for those that are quick.
    async fn tell(&mut self, commands: BTreeMap<String, Vec<Command>>) {
        while let Some(told) = self.telling.try_join_next() {
            self.note_told(told);
        }
        for (node, commands) in commands {
            let Some(engine) = self.world.nodes.get(&node).map(address) else {
                continue;
            };
            // What was told before is not done yet. What is left out here is planned again.
            if !self.told_nodes.insert(node.clone()) {
                continue;
            }
            let parts = self.parts.clone();
            let term = self.leadership.term;
            let permits = self.permits.clone();
            self.telling.spawn(async move {
                // The semaphore is never closed.
                let _permit = permits.acquire().await;
                let refused = tell_engine(&parts, &engine, term, commands).await;
                pull_one(&parts, &engine).await;
                (node, refused)
            });
        }
        let until = tokio::time::Instant::now() + TELL_PATIENCE;
        while let Ok(Some(told)) = tokio::time::timeout_at(until, self.telling.join_next()).await {
            self.note_told(told);
        }
    }

    /// An engine was told.
    fn note_told(&mut self, told: Result<(String, Vec<String>), tokio::task::JoinError>) {
        let Ok((node, refused)) = told else {
            // It cannot be said which one it was: so all may be told again, which does no harm.
            self.told_nodes.clear();
            return;
        };
        self.told_nodes.remove(&node);
        for pool_uid in refused {
            let pool = self.world.pools.values().find(|pool| pool.meta().uid == pool_uid);
            if let Some(name) = pool.map(|pool| pool.name().to_owned()) {
                self.world.failures.insert(name, self.world.now_unix_us);
            }
        }
    }

    /// Applies the changes that are there already.
    async fn catch_up(&mut self) -> Result<(), StoreError> {
        loop {
            let next = {
                let mut next = pin!(self.watcher.next());
                poll_fn(|task| Poll::Ready(next.as_mut().poll(task))).await
            };
            match next {
                Poll::Ready(changes) => self.take(changes).await?,
                Poll::Pending => return Ok(()),
            }
        }
    }

    /// Applies changes until those of the own transactions are there.
    async fn wait_for(&mut self, revision: u64) -> Result<(), StoreError> {
        while self.world.revision < revision {
            match tokio::time::timeout(ECHO_TIMEOUT, self.watcher.next()).await {
                Ok(changes) => self.take(changes).await?,
                Err(_) => self.reload().await?,
            }
        }
        Ok(())
    }

    async fn take(
        &mut self,
        changes: Result<Vec<crate::store::Change>, StoreError>,
    ) -> Result<(), StoreError> {
        match changes {
            Ok(changes) => changes.iter().try_for_each(|change| self.world.apply(change)),
            Err(StoreError::HistoryGone { .. }) => self.reload().await,
            Err(error) => Err(error),
        }
    }

    /// Reads all records anew.
    async fn reload(&mut self) -> Result<(), StoreError> {
        let listing = self.parts.store.list_all("/").await?;
        let mut world = World::load(&listing, self.world.now_unix_us)?;
        world.observing_since_unix_us = self.world.observing_since_unix_us;
        world.failures = std::mem::take(&mut self.world.failures);
        self.world = world;
        self.watcher = self.parts.store.watch("/", listing.revision).await?;
        Ok(())
    }
}

/// Returns when it is true, or nobody can set it any more.
async fn turns_true(receiver: &mut watch::Receiver<bool>) {
    // The guard in the answer must not be kept.
    drop(receiver.wait_for(|value| *value).await);
}

fn flatten(result: Result<Result<u64, StoreError>, tokio::task::JoinError>) -> Result<u64, StoreError> {
    result.unwrap_or_else(|error| Err(StoreError::Unavailable(error.to_string())))
}

fn address(node: &Node) -> EngineAddress {
    EngineAddress {
        node: node.name().to_owned(),
        address: node
            .spec
            .as_ref()
            .map_or_else(String::new, |spec| spec.address.clone()),
    }
}

/// Tells one engine. Commands of one kind are about different things, and are told side by side; what comes
/// before other kinds is done before them. Returns the pools in which a replica could not be made.
async fn tell_engine(
    parts: &Parts,
    engine: &EngineAddress,
    term: u64,
    commands: Vec<Command>,
) -> Vec<String> {
    let mut failed_pools = Vec::new();
    let mut commands = commands.into_iter().peekable();
    while let Some(first) = commands.next() {
        let kind = std::mem::discriminant(&first);
        let mut alike = vec![first];
        while let Some(next) = commands.next_if(|next| std::mem::discriminant(next) == kind) {
            alike.push(next);
        }
        let mut told = JoinSet::new();
        let mut outcomes = Vec::new();
        for command in alike {
            if told.len() >= COMMANDS_AT_ONCE {
                outcomes.extend(told.join_next().await);
            }
            let (parts, engine) = (parts.clone(), engine.clone());
            told.spawn(async move { tell_one(&parts, &engine, term, command).await });
        }
        while let Some(outcome) = told.join_next().await {
            outcomes.push(outcome);
        }
        for outcome in outcomes {
            match outcome.unwrap_or(Told::Unheard) {
                Told::Done => {}
                Told::Refused(pool_uid) => {
                    parts.observations.telemetry.command_refused();
                    failed_pools.extend(pool_uid);
                }
                Told::Unheard => {
                    parts.observations.telemetry.command_unanswered();
                    return failed_pools;
                }
            }
        }
    }
    failed_pools
}

/// What became of a command.
enum Told {
    /// It is so.
    Done,
    /// The engine said no; the pool, if a replica could not be made.
    Refused(Option<String>),
    /// The engine does not answer, or follows another leader.
    Unheard,
}

async fn tell_one(parts: &Parts, engine: &EngineAddress, term: u64, command: Command) -> Told {
    let pool_uid = match &command {
        Command::EnsureReplica(config) => Some(config.pool_uid.clone()),
        _ => None,
    };
    let told = parts.engines.execute(engine, term, command);
    match tokio::time::timeout(COMMAND_TIMEOUT, told).await {
        Ok(Ok(())) => Told::Done,
        Ok(Err(error @ EngineError::Refused { .. })) => {
            tracing::warn!(node = %engine.node, %error, "a command was refused");
            Told::Refused(pool_uid)
        }
        Ok(Err(error @ (EngineError::Unreachable { .. } | EngineError::TermStale { .. }))) => {
            tracing::warn!(node = %engine.node, %error, "an engine could not be told");
            Told::Unheard
        }
        Err(_) => {
            tracing::warn!(node = %engine.node, "an engine takes too long");
            Told::Unheard
        }
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

async fn pull_one(parts: &Parts, engine: &EngineAddress) {
    let report = tokio::time::timeout(REPORT_TIMEOUT, parts.engines.report(engine));
    match report.await {
        Ok(Ok(report)) if report.node == engine.node => {
            parts.observations.put(report, parts.clock.now_unix_us());
        }
        Ok(Ok(report)) => {
            tracing::warn!(node = %engine.node, other = %report.node, "another node answers at this address");
        }
        Ok(Err(error)) => tracing::debug!(node = %engine.node, %error, "no report"),
        Err(_) => tracing::debug!(node = %engine.node, "no report in time"),
    }
}
