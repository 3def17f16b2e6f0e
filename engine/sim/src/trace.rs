//! The trace of a simulation: a running hash of everything that happened, and the last of it for people.
//!
//! Two runs of one seed have the same hash, or something in them does not derive from the seed: the order of
//! a hash map, an address, the real clock.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt;

use pollux_reactor::Instant;

use crate::random::{hash_bytes, mix};

/// Entries kept for people.
const RECENT_MAX: usize = 24;

/// One thing that happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceEntry {
    /// When, on the world's clock.
    pub at: Instant,
    /// What.
    pub what: &'static str,
    /// To whom: a reactor, a connection, a machine.
    pub who: u64,
    /// How much, or which.
    pub detail: u64,
}

impl fmt::Display for TraceEntry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{:?} {} {} ({})",
            self.at, self.what, self.who, self.detail
        )
    }
}

/// The trace of one world.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    hash: Cell<u64>,
    entries: Cell<u64>,
    recent: RefCell<VecDeque<TraceEntry>>,
}

impl Trace {
    pub(crate) fn note(&self, at: Instant, what: &'static str, who: u64, detail: u64) {
        tracing::trace!(?at, who, detail, "{what}");
        let hash = mix(
            mix(self.hash.get(), at.as_nanos()),
            hash_bytes(who, what.as_bytes()),
        );
        self.hash.set(mix(hash, detail));
        self.entries.set(self.entries.get() + 1);
        let mut recent = self.recent.borrow_mut();
        if recent.len() == RECENT_MAX {
            recent.pop_front();
        }
        recent.push_back(TraceEntry {
            at,
            what,
            who,
            detail,
        });
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash.get()
    }

    pub(crate) fn entries(&self) -> u64 {
        self.entries.get()
    }

    pub(crate) fn recent(&self) -> Vec<TraceEntry> {
        self.recent.borrow().iter().copied().collect()
    }
}
