//! Running a world.

use std::fmt::Write as _;
use std::future::Future;
use std::time::Duration;

use pollux_reactor::{Core, Instant, Wait};

use super::{Inner, SimReactor, SimTask, World};
use crate::timeline::Event;

/// The condition did not come true in the time given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not within {0:?} of virtual time")]
pub struct TimeLimit(pub Duration);

/// What one step of a world did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Something happened at the current instant.
    Worked,
    /// Nothing can happen before this instant.
    Waits(Instant),
    /// Nothing will ever happen again.
    Dead,
}

impl World {
    /// Runs for a span of virtual time, all of it.
    pub fn run_for(&self, span: Duration) {
        let end = self.now() + span;
        self.run_to(end, || false);
    }

    /// Runs until the condition holds, looking after every step.
    ///
    /// # Errors
    ///
    /// [`TimeLimit`] when it does not within `limit` of virtual time.
    pub fn run_until(&self, condition: impl FnMut() -> bool, limit: Duration) -> Result<(), TimeLimit> {
        let end = self.now() + limit;
        match self.run_to(end, condition) {
            true => Ok(()),
            false => Err(TimeLimit(limit)),
        }
    }

    /// Runs the whole world until a future, run on a reactor, has ended.
    ///
    /// # Panics
    ///
    /// When it cannot end, because nothing is ready, no timer is set and no event is to come; when its
    /// machine crashes; and after [`WorldOptions::block_on_limit`](super::WorldOptions::block_on_limit).
    pub fn block_on<F>(&self, reactor: SimReactor, future: F) -> F::Output
    where
        F: Future + 'static,
    {
        let task = self.spawn(reactor, future);
        self.finish(&task)
    }

    /// Runs the whole world until a task has ended.
    ///
    /// # Panics
    ///
    /// As [`World::block_on`].
    pub fn finish<T>(&self, task: &SimTask<T>) -> T {
        let _note = FailureNote(self);
        let limit = self.now() + self.inner.options.block_on_limit;
        while !task.is_ended() {
            match self.inner.step() {
                Step::Worked => {}
                Step::Waits(until) if until <= limit => self.inner.timeline.advance(until),
                Step::Waits(_) => panic!(
                    "the task has not ended after {:?}",
                    self.inner.options.block_on_limit
                ),
                Step::Dead => panic!("deadlock: no task is ready, no timer is set, no event is to come"),
            }
        }
        match task.take() {
            Some(Ok(output)) => output,
            Some(Err(lost)) => panic!("{lost}"),
            None => panic!("the result of the task was taken already"),
        }
    }

    /// Runs until the condition holds, or to the end; whether it held.
    fn run_to(&self, end: Instant, mut condition: impl FnMut() -> bool) -> bool {
        let _note = FailureNote(self);
        loop {
            if condition() {
                return true;
            }
            match self.inner.step() {
                Step::Worked => {}
                Step::Waits(until) if until <= end => self.inner.timeline.advance(until),
                Step::Waits(_) | Step::Dead => {
                    self.inner.timeline.advance(end);
                    return condition();
                }
            }
        }
    }

    /// Prints, once, how to replay what panics now.
    pub(super) fn tell_failure(&self) {
        if std::thread::panicking() && !self.inner.failure_told.replace(true) {
            print_note(&self.failure_note());
        }
    }

    /// What to tell about a failure: the seed, the time, how to run it again, and what happened last.
    pub fn failure_note(&self) -> String {
        let inner = &self.inner;
        let mut note = format!("simulation with seed {} failed at {:?}", inner.seed.0, self.now());
        if let Some(replay) = &inner.options.replay {
            let _ = write!(note, "\n  replay: {replay}");
        } else {
            let _ = write!(note, "\n  replay: run the same with seed {}", inner.seed.0);
        }
        let _ = write!(note, "\n  trace {:016x}; last:", self.trace_hash());
        for entry in self.trace_recent() {
            let _ = write!(note, "\n    {entry}");
        }
        note
    }
}

/// Prints how to replay when what runs panics.
struct FailureNote<'a>(&'a World);

impl Drop for FailureNote<'_> {
    fn drop(&mut self) {
        self.0.tell_failure();
    }
}

#[expect(
    clippy::print_stderr,
    reason = "for whoever reads the output of the failed test, captured with it"
)]
fn print_note(note: &str) {
    eprintln!("{note}");
}

impl Inner {
    /// Delivers every event that is due and gives each reactor that is ready a turn.
    fn step(&self) -> Step {
        self.network.reap_abandoned();
        let mut worked = false;
        while let Some(event) = self.timeline.take_due() {
            worked = true;
            match event {
                Event::Network(event) => self.network.handle(event),
                Event::Call(call) => call(),
            }
        }
        let now = self.timeline.now();
        let mut next = self.timeline.next_event();
        let mut ready = Vec::new();
        for (index, slot) in self.reactors.borrow().iter().enumerate() {
            match slot.runnable_at() {
                Some(at) if at <= now => ready.push(index),
                Some(at) => next = Some(next.map_or(at, |next| next.min(at))),
                None => {}
            }
        }
        if ready.len() > 1 {
            self.scheduling.borrow_mut().shuffle(&mut ready);
        }
        for &index in &ready {
            self.turn(index);
        }
        match next {
            _ if worked || !ready.is_empty() => Step::Worked,
            Some(next) => Step::Waits(next),
            None => Step::Dead,
        }
    }

    fn turn(&self, index: usize) {
        let Some((core, machine)) = self
            .reactors
            .borrow()
            .get(index)
            .and_then(|slot| Some((slot.core.clone()?, slot.machine)))
        else {
            return;
        };
        self.turns.set(self.turns.get() + 1);
        assert!(
            self.turns.get() <= self.options.turns_max,
            "gave up after {} turns: something spins",
            self.turns.get()
        );
        self.turning.set(Some(machine));
        let turn = Core::turn(&core, Wait::Never).expect("a simulated driver does not fail");
        self.turning.set(None);
        self.timeline.note("turn", index as u64, turn.work);
        if let Some(slot) = self.reactors.borrow_mut().get_mut(index) {
            let mut cost = slot.random.duration(self.options.turn_cost.clone());
            if self.options.stall_probability > 0.0 && slot.random.chance(self.options.stall_probability) {
                cost += slot.random.duration(self.options.stall.clone());
            }
            slot.busy_until = slot.busy_until.max(self.timeline.now() + cost);
            slot.poller_waiting = turn.poller_waiting;
        }
        for machine in self.crashes_due.take() {
            self.clear_machine(machine);
        }
    }
}
