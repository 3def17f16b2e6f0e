//! The world's time and what is to happen in it.
//!
//! Invariant: the clock only moves forwards, and never past an event that has not happened. Events of one
//! instant happen in the order in which they were scheduled.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Duration;

use pollux_reactor::Instant;

use crate::network::NetworkEvent;
use crate::trace::Trace;

/// Something that is to happen at an instant.
pub(crate) enum Event {
    Network(NetworkEvent),
    Call(Box<dyn FnOnce()>),
}

#[derive(Default)]
pub(crate) struct Timeline {
    now: Cell<Instant>,
    events: RefCell<BTreeMap<(Instant, u64), Event>>,
    next_number: Cell<u64>,
    pub(crate) trace: Trace,
}

impl Timeline {
    pub(crate) fn now(&self) -> Instant {
        self.now.get()
    }

    pub(crate) fn schedule(&self, at: Instant, event: Event) {
        let number = self.next_number.get();
        self.next_number.set(number + 1);
        self.events
            .borrow_mut()
            .insert((at.max(self.now()), number), event);
    }

    pub(crate) fn schedule_after(&self, span: Duration, event: Event) {
        self.schedule(self.now() + span, event);
    }

    pub(crate) fn next_event(&self) -> Option<Instant> {
        self.events.borrow().first_key_value().map(|((at, _), _)| *at)
    }

    /// Takes the earliest event that is due.
    pub(crate) fn take_due(&self) -> Option<Event> {
        let mut events = self.events.borrow_mut();
        let entry = events.first_entry()?;
        (entry.key().0 <= self.now()).then(|| entry.remove())
    }

    /// Moves the clock forwards; an earlier instant changes nothing.
    pub(crate) fn advance(&self, to: Instant) {
        debug_assert!(
            self.next_event().is_none_or(|event| event >= to),
            "an event would be passed over"
        );
        self.now.set(self.now().max(to));
    }

    pub(crate) fn note(&self, what: &'static str, who: u64, detail: u64) {
        self.trace.note(self.now(), what, who, detail);
    }

    /// Takes every event, due or not.
    pub(crate) fn clear(&self) -> BTreeMap<(Instant, u64), Event> {
        self.events.take()
    }
}
