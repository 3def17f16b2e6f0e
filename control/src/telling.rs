//! Telling engines what is to be, side by side.
//!
//! Invariants:
//! - About one thing an engine is told one command at a time; about different things, side by side.
//! - Commands of one plan are told in its order where their kinds differ: what comes before other kinds is
//!   done before them.
//! - What was told, and is not seen to be done, is told again after a pause.

use std::collections::{HashMap, HashSet};
use std::mem::discriminant;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pollux_api::control::v1::engine_command::Command;
use pollux_trace::{Origin, span};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::field::Empty;
use tracing::{Instrument, Span};

use crate::controller::{Parts, pull_one};
use crate::engines::{EngineAddress, EngineError};
use crate::server::host_secrets;

/// Commands of one kind that an engine is told at a time.
const COMMANDS_AT_ONCE: usize = 64;

/// Commands that an engine has under way, or that wait for those. The next plan has the others again.
const COMMANDS_PER_NODE_MAX: usize = 256;

/// What is remembered at most of what was told, while engines are told more.
const SUBJECTS_MAX: usize = 16_384;

/// Plans that are told at a time, each to one engine. More than are asked: some may take their time.
const TOLD_AT_ONCE: usize = 256;

/// How long an engine may take for one command.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);

/// What a command is about: one thing on one node.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Subject {
    node: String,
    /// Its kind, and its UUID.
    thing: (&'static str, String),
}

impl Subject {
    /// The volume that a command is about, if it is known by it.
    fn volume_uid(command: &Command) -> &str {
        match command {
            Command::EnsureReplica(config) => &config.volume_uid,
            Command::EnsureTarget(config) => &config.volume_uid,
            Command::RemoveTarget(removal) => &removal.volume_uid,
            Command::EnsurePool(_)
            | Command::RemovePool(_)
            | Command::RemoveReplica(_)
            | Command::CutTargets(_) => "",
        }
    }

    fn of(node: &str, command: &Command) -> Self {
        let thing = match command {
            Command::EnsurePool(config) => ("pool", config.uid.clone()),
            Command::RemovePool(uid) => ("pool", uid.clone()),
            Command::EnsureReplica(config) => ("replica", config.uid.clone()),
            Command::RemoveReplica(uid) => ("replica", uid.clone()),
            Command::EnsureTarget(config) => ("target", config.volume_uid.clone()),
            Command::RemoveTarget(removal) => ("target", removal.volume_uid.clone()),
            Command::CutTargets(cut) => ("cut", cut.attempt.clone()),
        };
        Self {
            node: node.to_owned(),
            thing,
        }
    }
}

/// How far a command is.
#[derive(Debug)]
enum State {
    /// It is being told.
    UnderWay,
    /// It was told. Done: the engine answered that it is so.
    Told {
        command: Box<Command>,
        at: Instant,
        done: bool,
    },
}

/// A round of telling engines what a pass has planned.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Round<'a> {
    /// The term of the leader.
    pub(crate) term: u64,
    /// What an engine was told so long ago, and does not show, it is told again.
    pub(crate) repeat_after: Duration,
    /// The pass.
    pub(crate) pass: Option<&'a Origin>,
}

/// A command that is about to be told, for whom and why.
#[derive(Debug)]
struct Begun {
    subject: Subject,
    command: Command,
    origin: Option<Origin>,
    why: &'static str,
}

impl Begun {
    fn span(&self) -> Span {
        let (kind, thing) = &self.subject.thing;
        let is_removal = matches!(
            self.command,
            Command::RemovePool(_) | Command::RemoveReplica(_) | Command::RemoveTarget(_)
        );
        let span = span!(
            parent: None,
            "tell",
            otel.name = if is_removal { "tell to remove" } else { "tell" },
            node = self.subject.node,
            kind,
            thing,
            volume_uid = Subject::volume_uid(&self.command),
            why = self.why,
            done = Empty,
        );
        if let Some(origin) = &self.origin {
            origin.adopt(&span);
        }
        span
    }
}

/// What is learned of a pool when its engine is told something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PoolNote {
    /// A replica could not be made in it.
    NoReplica {
        /// The pool.
        uid: String,
    },
    /// It is open.
    Open {
        /// The pool.
        uid: String,
    },
    /// It could not be made or opened.
    NotOpen {
        /// The pool.
        uid: String,
        /// Why.
        reason: String,
    },
}

impl PoolNote {
    /// What follows for a pool if an engine does what it is told, or refuses it for a reason.
    fn of(command: &Command, refused: Option<String>) -> Option<Self> {
        match (command, refused) {
            (Command::EnsureReplica(config), Some(_)) => Some(Self::NoReplica {
                uid: config.pool_uid.clone(),
            }),
            (Command::EnsurePool(config), None) => Some(Self::Open {
                uid: config.uid.clone(),
            }),
            (Command::EnsurePool(config), Some(reason)) => Some(Self::NotOpen {
                uid: config.uid.clone(),
                reason,
            }),
            _ => None,
        }
    }
}

/// What an engine was told, whether it is so, and what is learned of pools.
type Outcome = (Vec<(Subject, Command, bool)>, Vec<PoolNote>);

/// See the module.
#[derive(Debug)]
pub(crate) struct Telling {
    tasks: JoinSet<Outcome>,
    subjects: HashMap<Subject, State>,
    permits: Arc<Semaphore>,
}

impl Default for Telling {
    fn default() -> Self {
        Self {
            tasks: JoinSet::new(),
            subjects: HashMap::new(),
            permits: Arc::new(Semaphore::new(TOLD_AT_ONCE)),
        }
    }
}

impl Telling {
    /// Begins to tell an engine what it is not being told, and was not told lately. Then it is
    /// asked for a report. Returns how many commands these are.
    pub(crate) fn tell(
        &mut self,
        parts: &Parts,
        engine: EngineAddress,
        commands: Vec<Command>,
        round: Round<'_>,
    ) -> usize {
        let now = Instant::now();
        let is_old = |at: Instant| now.duration_since(at) >= round.repeat_after;
        let is_under_way = |(subject, state): &(&Subject, &State)| {
            subject.node == engine.node && matches!(state, State::UnderWay)
        };
        let mut room =
            COMMANDS_PER_NODE_MAX.saturating_sub(self.subjects.iter().filter(is_under_way).count());
        let mut begun = Vec::new();
        for command in commands {
            let subject = Subject::of(&engine.node, &command);
            let why = match self.subjects.get(&subject) {
                None => Some("its report does not show it"),
                Some(State::UnderWay) => None,
                Some(State::Told { command: before, .. }) if **before != command => {
                    Some("it is to be otherwise than it was told")
                }
                Some(State::Told { at, .. }) => {
                    is_old(*at).then_some("it was told, and its report does not show it yet")
                }
            };
            if let Some(why) = why
                && room > 0
            {
                room -= 1;
                self.subjects.insert(subject.clone(), State::UnderWay);
                let asked = parts.observations.asked().of(Subject::volume_uid(&command));
                begun.push(Begun {
                    origin: asked.or_else(|| round.pass.cloned()),
                    subject,
                    command,
                    why,
                });
            }
        }
        let count = begun.len();
        // Volumes are held while cuts are told: they wait for nothing else. Nor does what somebody waits for
        // wait for what is removed, which may be in use for a while.
        let (mut cuts, mut removals, mut others) = (Vec::new(), Vec::new(), Vec::new());
        for one in begun {
            let alike = match one.command {
                Command::CutTargets(_) => &mut cuts,
                Command::RemovePool(_) | Command::RemoveReplica(_) | Command::RemoveTarget(_) => {
                    &mut removals
                }
                Command::EnsurePool(_) | Command::EnsureReplica(_) | Command::EnsureTarget(_) => &mut others,
            };
            alike.push(one);
        }
        let all = [cuts, others, removals].into_iter();
        for begun in all.filter(|begun| !begun.is_empty()) {
            let (parts, permits, engine) = (parts.clone(), self.permits.clone(), engine.clone());
            let term = round.term;
            self.tasks.spawn(async move {
                // The semaphore is never closed.
                let _permit = permits.acquire().await;
                let told = tell_engine(&parts, &engine, term, begun).await;
                pull_one(&parts, &engine).await;
                told
            });
        }
        count
    }

    /// Whether this was the last that an engine was told about the thing of a command, and it is so: what it
    /// was told before cannot come to be after that.
    pub(crate) fn is_done(&self, node: &str, command: &Command) -> bool {
        let state = self.subjects.get(&Subject::of(node, command));
        matches!(state, Some(State::Told { command: told, done: true, .. }) if **told == *command)
    }

    /// Waits until an engine was told; `None` if none is being told. What is learned of pools.
    pub(crate) async fn next(&mut self) -> Option<Vec<PoolNote>> {
        let told = self.tasks.join_next().await?;
        Some(self.note(told))
    }

    /// The same, without waiting.
    pub(crate) fn try_next(&mut self) -> Option<Vec<PoolNote>> {
        let told = self.tasks.try_join_next()?;
        Some(self.note(told))
    }

    fn note(&mut self, told: Result<Outcome, tokio::task::JoinError>) -> Vec<PoolNote> {
        let Ok((commands, notes)) = told else {
            // It cannot be said which it was: so all may be told again, which does no harm.
            self.subjects.clear();
            return Vec::new();
        };
        let at = Instant::now();
        for (subject, command, done) in commands {
            let command = Box::new(command);
            self.subjects.insert(subject, State::Told { command, at, done });
        }
        // What was told long ago is told again if it is planned again: it need not be remembered.
        if self.tasks.is_empty() || self.subjects.len() > SUBJECTS_MAX {
            self.subjects.retain(|_, state| match state {
                State::UnderWay => true,
                State::Told { at: told_at, .. } => at.duration_since(*told_at) < COMMAND_TIMEOUT,
            });
        }
        notes
    }
}

/// Tells one engine. Commands of one kind are about different things, and are told side by side; what comes
/// before other kinds is done before them. Once the engine does not answer, it is told no more.
async fn tell_engine(parts: &Parts, engine: &EngineAddress, term: u64, commands: Vec<Begun>) -> Outcome {
    let mut notes = Vec::new();
    let mut all = Vec::with_capacity(commands.len());
    let mut is_heard = true;
    for alike in commands.chunk_by(|one, other| discriminant(&one.command) == discriminant(&other.command)) {
        let mut told = JoinSet::new();
        let mut outcomes = Vec::new();
        for one in alike.iter().filter(|_| is_heard) {
            if told.len() >= COMMANDS_AT_ONCE {
                outcomes.extend(told.join_next().await);
            }
            let (parts, engine) = (parts.clone(), engine.clone());
            let (subject, command) = (one.subject.clone(), one.command.clone());
            let span = one.span();
            let telling = async move {
                let told = tell_one(&parts, &engine, term, command).await;
                Span::current().record("done", matches!(told, Told::Done(_)));
                (subject, told)
            };
            told.spawn(telling.instrument(span));
        }
        while let Some(outcome) = told.join_next().await {
            outcomes.push(outcome);
        }
        let mut done = HashSet::new();
        for outcome in outcomes {
            match outcome {
                Ok((subject, Told::Done(note))) => {
                    done.insert(subject);
                    notes.extend(note);
                }
                Ok((_, Told::Refused(note))) => {
                    parts.observations.telemetry().command_refused();
                    notes.extend(note);
                }
                Ok((_, Told::Unheard)) | Err(_) => {
                    parts.observations.telemetry().command_unanswered();
                    is_heard = false;
                }
            }
        }
        all.extend(alike.iter().map(|one| {
            let is_done = done.contains(&one.subject);
            (one.subject.clone(), one.command.clone(), is_done)
        }));
    }
    (all, notes)
}

/// What became of a command.
enum Told {
    /// It is so; what that tells of a pool.
    Done(Option<PoolNote>),
    /// The engine said no; what that tells of a pool.
    Refused(Option<PoolNote>),
    /// The engine does not answer, or follows another leader.
    Unheard,
}

async fn tell_one(parts: &Parts, engine: &EngineAddress, term: u64, mut command: Command) -> Told {
    // No plan has secrets, and none are remembered.
    if let Err(error) = host_secrets::attach(&*parts.store, &mut command).await {
        tracing::warn!(node = %engine.node, %error, "the secrets of hosts cannot be read");
        return Told::Refused(None);
    }
    let about_pool = match &command {
        Command::EnsureReplica(_) | Command::EnsurePool(_) => Some(command.clone()),
        _ => None,
    };
    let note = |refused| PoolNote::of(about_pool.as_ref()?, refused);
    let told = parts.engines.execute(engine, term, command);
    match tokio::time::timeout(COMMAND_TIMEOUT, told).await {
        Ok(Ok(())) => {
            parts.observations.note_heard(&engine.node, Ok(()));
            Told::Done(note(None))
        }
        Ok(Err(EngineError::Refused { node, reason })) => {
            parts.observations.note_heard(&engine.node, Ok(()));
            tracing::warn!(%node, reason, "a command was refused");
            Told::Refused(note(Some(reason)))
        }
        Ok(Err(error @ (EngineError::Unreachable { .. } | EngineError::TermStale { .. }))) => {
            parts
                .observations
                .note_heard(&engine.node, Err(error.to_string()));
            tracing::warn!(node = %engine.node, %error, "an engine could not be told");
            Told::Unheard
        }
        Err(_) => {
            tracing::warn!(node = %engine.node, "an engine takes too long");
            Told::Unheard
        }
    }
}
