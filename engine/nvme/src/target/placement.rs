//! Which reactor a connection lives on.
//!
//! An admin queue goes to the reactor with the fewest connections, an I/O queue to the one with the fewest
//! I/O queues; each rule breaks the ties of the other, and what is left goes by the order of the reactors.
//!
//! Invariant: the counts of a reactor are exactly the leases for it that are alive.

use std::sync::{Arc, Mutex};

use pollux_reactor::ReactorHandle;

use super::sync::lock;

/// What a connection carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum QueueKind {
    /// The admin queue of a controller.
    Admin,
    /// An I/O queue.
    Io,
}

struct Place {
    reactor: ReactorHandle,
    load: ReactorLoad,
}

/// How many connections a reactor has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReactorLoad {
    /// All of them.
    pub connections: usize,
    /// Those that carry an I/O queue.
    pub io_queues: usize,
}

impl ReactorLoad {
    fn weight(&self, kind: QueueKind) -> (usize, usize) {
        match kind {
            QueueKind::Admin => (self.connections, self.io_queues),
            QueueKind::Io => (self.io_queues, self.connections),
        }
    }
}

/// The reactors of a target and how loaded they are.
pub(crate) struct Placement {
    places: Mutex<Vec<Place>>,
}

impl Placement {
    pub(crate) fn new(reactors: Vec<ReactorHandle>) -> Arc<Self> {
        let places = reactors
            .into_iter()
            .map(|reactor| Place {
                reactor,
                load: ReactorLoad::default(),
            })
            .collect();
        Arc::new(Self {
            places: Mutex::new(places),
        })
    }

    /// Picks a reactor and counts a connection there until the lease is dropped. `None` without any reactor.
    pub(crate) fn place(self: &Arc<Self>, kind: QueueKind) -> Option<Lease> {
        let mut places = lock(&self.places);
        let (index, place) = places
            .iter_mut()
            .enumerate()
            .min_by_key(|(index, place)| (place.load.weight(kind), *index))?;
        place.load.connections += 1;
        if kind == QueueKind::Io {
            place.load.io_queues += 1;
        }
        Some(Lease {
            placement: self.clone(),
            index,
            kind,
            reactor: place.reactor.clone(),
        })
    }

    /// The load of every reactor, in their order.
    pub(crate) fn loads(&self) -> Vec<ReactorLoad> {
        lock(&self.places).iter().map(|place| place.load).collect()
    }
}

/// A connection counted on a reactor until dropped.
pub(crate) struct Lease {
    placement: Arc<Placement>,
    index: usize,
    kind: QueueKind,
    reactor: ReactorHandle,
}

impl Lease {
    /// The reactor.
    pub(crate) fn reactor(&self) -> &ReactorHandle {
        &self.reactor
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut places = lock(&self.placement.places);
        if let Some(place) = places.get_mut(self.index) {
            place.load.connections -= 1;
            if self.kind == QueueKind::Io {
                place.load.io_queues -= 1;
            }
        }
    }
}
