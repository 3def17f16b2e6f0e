//! Asking several replicas side by side.
//!
//! Who waits for answers is looked at in intervals, all at once, and not woken by a timer of its own: nearly
//! all have their answers long before.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use arrayvec::ArrayVec;
use pollux_device::{Completion, IoError, Reply, Request};
use pollux_reactor::{Instant, Reactor, sleep};
use slab::Slab;

use super::Core;
use super::connection::{Connection, clock};
use super::slow::Timed;
use crate::membership::{REPLICAS_MAX, SlotNumber, SlotSet};

/// How often it is looked whether a replica that takes long is still one that is waited for.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// One answer.
pub(super) type Answer = (SlotNumber, Rc<Connection>, Result<(), IoError>);

/// The answers of all.
pub(super) type Answers = ArrayVec<Answer, REPLICAS_MAX>;

/// A replica that has not answered.
struct Waiting {
    slot: SlotNumber,
    connection: Rc<Connection>,
    completion: Completion,
    timed: Option<Timed>,
}

/// What some replicas were asked.
pub(super) struct Asked {
    sent_at: Instant,
    waiting: ArrayVec<Waiting, REPLICAS_MAX>,
    answers: Answers,
    look: Option<Look>,
}

impl Core {
    /// Sends a request to several replicas.
    pub(super) fn ask_all(&self, slots: SlotSet, make: impl Fn() -> Request) -> Asked {
        let mut asked = Asked {
            sent_at: clock(),
            waiting: ArrayVec::new(),
            answers: ArrayVec::new(),
            look: None,
        };
        // Only requests that several have to do say who is slow.
        let is_compared = slots.len() > 1;
        if is_compared && self.is_idle.replace(false) {
            self.sending.wake();
        }
        for slot in slots.iter() {
            let Some(connection) = self.connection(slot) else {
                continue;
            };
            let completion = connection.submit(make());
            let timed = is_compared.then(|| self.paces.send(slot, asked.sent_at));
            match completion.try_take() {
                Ok(result) => asked.answered(slot, connection, timed, result),
                Err(completion) => asked.waiting.push(Waiting {
                    slot,
                    connection,
                    completion,
                    timed,
                }),
            }
        }
        asked
    }

    /// The same, with the answers.
    pub(super) async fn send_all(&self, slots: SlotSet, make: impl Fn() -> Request) -> Answers {
        let mut asked = self.ask_all(slots, make);
        poll_fn(|context| asked.poll(self, context)).await;
        asked.answers
    }
}

impl Asked {
    fn answered(
        &mut self,
        slot: SlotNumber,
        connection: Rc<Connection>,
        timed: Option<Timed>,
        result: Result<Reply, IoError>,
    ) {
        if result.is_ok() {
            connection.confirm(self.sent_at);
        }
        if let Some(timed) = timed {
            timed.answer(&result);
        }
        self.answers.push((slot, connection, result.map(drop)));
    }

    /// Whether all have answered, and done it.
    pub(super) fn is_done(&self) -> bool {
        self.waiting.is_empty() && self.answers.iter().all(|(.., result)| result.is_ok())
    }

    /// What there is of answers.
    pub(super) fn take_answers(&mut self) -> Answers {
        std::mem::take(&mut self.answers)
    }

    /// Ready when all have answered. A replica that is not waited for any more counts as one that failed.
    pub(super) fn poll(&mut self, core: &Core, context: &mut Context<'_>) -> Poll<()> {
        let mut at = 0;
        while let Some(waiting) = self.waiting.get_mut(at) {
            let Poll::Ready(result) = Pin::new(&mut waiting.completion).poll(context) else {
                at += 1;
                continue;
            };
            let Waiting {
                slot,
                connection,
                timed,
                ..
            } = self.waiting.swap_remove(at);
            self.answered(slot, connection, timed, result);
        }
        if self.waiting.is_empty() {
            return Poll::Ready(());
        }
        let waker = context.waker();
        let look = self.look.get_or_insert_with(|| core.looks.begin(waker));
        if look.is_due(waker) {
            self.give_up(core);
        }
        match self.waiting.is_empty() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }

    /// Waits no longer for those that take too long, or were taken out.
    fn give_up(&mut self, core: &Core) {
        let is_late = clock() >= self.sent_at + core.options.request_timeout;
        let mut at = 0;
        while let Some(waiting) = self.waiting.get(at) {
            let error = match core.is_current(waiting.slot, &waiting.connection) {
                true if is_late => IoError::TimedOut,
                true => {
                    at += 1;
                    continue;
                }
                false => IoError::Gone,
            };
            let Waiting { slot, connection, .. } = self.waiting.swap_remove(at);
            self.answers.push((slot, connection, Err(error)));
        }
    }
}

struct Looked {
    waker: Waker,
    is_due: bool,
}

/// All who wait for answers.
pub(super) struct Looks {
    interval: Duration,
    all: RefCell<Slab<Looked>>,
    /// The task that has them look.
    is_running: Cell<bool>,
}

/// One of those, until it is dropped.
struct Look {
    looks: Rc<Looks>,
    key: usize,
}

impl Looks {
    /// For requests that may take so long.
    pub(super) fn new(request_timeout: Duration) -> Rc<Self> {
        Rc::new(Self {
            interval: LOOK_INTERVAL.min(request_timeout),
            all: RefCell::default(),
            is_running: Cell::new(false),
        })
    }

    fn begin(self: &Rc<Self>, waker: &Waker) -> Look {
        let key = self.all.borrow_mut().insert(Looked {
            waker: waker.clone(),
            is_due: false,
        });
        if !self.is_running.replace(true) {
            let looks = Rc::downgrade(self);
            Reactor::current().spawn(run(looks, self.interval)).detach();
        }
        Look {
            looks: self.clone(),
            key,
        }
    }

    /// Has all look. Whether there is anybody.
    fn wake(&self) -> bool {
        let mut woken = Vec::new();
        for (_, looked) in self.all.borrow_mut().iter_mut() {
            looked.is_due = true;
            woken.push(looked.waker.clone());
        }
        let is_waited_for = !woken.is_empty();
        woken.into_iter().for_each(Waker::wake);
        is_waited_for
    }
}

impl Look {
    /// Whether it is time to look; if not, the waker is woken then.
    fn is_due(&self, waker: &Waker) -> bool {
        let mut all = self.looks.all.borrow_mut();
        let Some(looked) = all.get_mut(self.key) else {
            return true;
        };
        looked.waker.clone_from(waker);
        std::mem::take(&mut looked.is_due)
    }
}

impl Drop for Look {
    fn drop(&mut self) {
        let gone = self.looks.all.borrow_mut().try_remove(self.key);
        drop(gone);
    }
}

/// Has those who wait look, as long as there are any.
async fn run(looks: Weak<Looks>, interval: Duration) {
    loop {
        sleep(interval).await;
        let Some(looks) = looks.upgrade() else { return };
        if !looks.wake() {
            looks.is_running.set(false);
            return;
        }
    }
}
