//! The namespaces of a subsystem as one reactor knows them: a table that commands look into without a lock.
//!
//! Invariant: a lookup never uses a table older than the last change of the subsystem that happened before
//! it; the subsystem's generation, one relaxed-cost load, says whether there was one.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use pollux_reactor::{Reactor, ReactorId};

use super::attached::Attached;
use crate::target::subsystem::Subsystem;

thread_local! {
    static VIEWS: RefCell<BTreeMap<(u64, ReactorId), Weak<View>>> = const { RefCell::new(BTreeMap::new()) };
}

/// What a namespace identifier stands for (NVMe Base 2.0, 3.2.1).
pub(crate) enum Lookup {
    /// A namespace.
    Active(Rc<Attached>),
    /// None now, but it could be one.
    Inactive,
    /// Never a namespace.
    Invalid,
}

/// See the module.
pub(crate) struct View {
    pub(crate) subsystem: Arc<Subsystem>,
    reactor: ReactorId,
    generation: Cell<u64>,
    /// By namespace identifier; the first entry stays empty.
    table: RefCell<Vec<Option<Rc<Attached>>>>,
}

impl View {
    /// The current reactor's own, made if need be.
    pub(crate) fn obtain(subsystem: &Arc<Subsystem>) -> Rc<Self> {
        let reactor = Reactor::current();
        if let Some(view) = Self::of(subsystem.instance, reactor.id()) {
            return view;
        }
        let view = Rc::new(Self {
            subsystem: subsystem.clone(),
            reactor: reactor.id(),
            generation: Cell::new(0),
            table: RefCell::default(),
        });
        VIEWS.with_borrow_mut(|map| map.insert((subsystem.instance, reactor.id()), Rc::downgrade(&view)));
        subsystem.watch(reactor.handle());
        view.refresh();
        view
    }

    fn of(instance: u64, reactor: ReactorId) -> Option<Rc<Self>> {
        VIEWS.with_borrow(|map| map.get(&(instance, reactor)).and_then(Weak::upgrade))
    }

    /// Brings the current reactor's view of a subsystem up to date, so that one without traffic lets go of
    /// what was removed too.
    pub(crate) fn refresh_current(instance: u64) {
        if let Some(view) = Self::of(instance, Reactor::current().id()) {
            view.refresh();
        }
    }

    /// What a namespace identifier stands for.
    #[inline]
    pub(crate) fn find(&self, id: u32) -> Lookup {
        if self.generation.get() != self.subsystem.generation() {
            self.refresh();
        }
        let found = self.table.borrow().get(id as usize).cloned().flatten();
        match found {
            Some(attached) => Lookup::Active(attached),
            None if self.subsystem.is_valid_id(id) => Lookup::Inactive,
            None => Lookup::Invalid,
        }
    }

    /// Every namespace, by ascending identifier.
    pub(crate) fn all(&self) -> Vec<Rc<Attached>> {
        if self.generation.get() != self.subsystem.generation() {
            self.refresh();
        }
        self.table.borrow().iter().flatten().cloned().collect()
    }

    fn refresh(&self) {
        let (generation, namespaces) = self.subsystem.namespaces();
        let mut table = Vec::new();
        for namespace in &namespaces {
            let attached = Attached::obtain(namespace);
            attached.refresh();
            let index = namespace.id as usize;
            if table.len() <= index {
                table.resize(index + 1, None);
            }
            if let Some(slot) = table.get_mut(index) {
                *slot = Some(attached);
            }
        }
        self.generation.set(generation);
        let before = self.table.replace(table);
        drop(before);
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.subsystem.unwatch(self.reactor);
        let _ = VIEWS.try_with(|map| {
            if let Ok(mut map) = map.try_borrow_mut() {
                map.remove(&(self.subsystem.instance, self.reactor));
            }
        });
    }
}
