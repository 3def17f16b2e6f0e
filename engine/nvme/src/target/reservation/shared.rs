//! The reservations of a namespace as all reactors see them.
//!
//! Invariants:
//! - A change is made by whoever has the turn: it is made of the table that is there, kept if it has to be,
//!   and published, in this order.
//! - Each table has a stamp: bit 0 says that a reservation is held, which is all that a read or write looks
//!   at when none is, bit 1 that caches were lost, which is all that a flush looks at when none were, and the
//!   rest counts the tables.
//! - A command that was checked under one stamp goes to the device only if its host was not purged, by a
//!   preemption that ends commands, with any later table.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use pollux_device::{IoError, NvmeStatus};
use uuid::Uuid;

use super::losses::{CacheLoss, TOLD_MAX};
use super::record::{decode, encode};
use super::store::{ReservationStore, StoreError};
use super::table::{Held, HostId, Table};
use crate::target::sync::lock;
use crate::target::turn::{Taken, Turn};
use crate::wire::status::Status;

/// Hosts whose last purge is remembered. When there are more the oldest is forgotten, and counts as a purge
/// of every host.
const PURGED_MAX: usize = 256;

/// Controllers of a host by which it is sent a failure for it to hear of a loss, if it leaves each of them
/// at once: after any error some do.
const SENT_MAX: u8 = 4;

/// Bit of a stamp: a reservation is held.
const HELD: u64 = 1;

/// Bit of a stamp: caches were lost.
const LOST: u64 = 2;

/// What a stamp counts by.
const NEXT: u64 = 4;

struct State {
    table: Arc<Table>,
    /// Hosts whose commands were ended, with the stamp of the table; the oldest first.
    purged: VecDeque<(HostId, u64)>,
    /// The stamp up to which single hosts are not remembered.
    purged_all: u64,
    /// Hosts that were sent a failure for a loss that they have not heard of for sure, by how many
    /// controllers; the oldest first.
    sent: VecDeque<(HostId, u64, u8)>,
}

struct Keeper {
    store: Arc<dyn ReservationStore>,
    namespace: Uuid,
}

/// See the module.
pub(crate) struct Reservations {
    supported: bool,
    stamp: AtomicU64,
    state: Mutex<State>,
    turn: Turn,
    keeper: Option<Keeper>,
}

impl Reservations {
    /// Those of a namespace that has none, now or ever.
    pub(crate) fn unsupported() -> Self {
        Self {
            supported: false,
            ..Self::new(Table::default(), None)
        }
    }

    /// Those of a namespace, with what was kept of them, unless others keep them too: what they have kept
    /// is adopted later.
    pub(crate) fn load(
        namespace: Uuid,
        store: Option<Arc<dyn ReservationStore>>,
    ) -> Result<Self, StoreError> {
        let table = match &store {
            Some(store) if !store.is_shared() => table_of(namespace, store.load(namespace)?.as_deref())?,
            Some(_) | None => Table::default(),
        };
        Ok(Self::new(table, store.map(|store| Keeper { store, namespace })))
    }

    fn new(table: Table, keeper: Option<Keeper>) -> Self {
        let reservations = Self {
            supported: true,
            stamp: AtomicU64::new(0),
            state: Mutex::new(State {
                table: Arc::default(),
                purged: VecDeque::new(),
                purged_all: 0,
                sent: VecDeque::new(),
            }),
            turn: Turn::default(),
            keeper,
        };
        reservations.publish(table, &[]);
        reservations
    }

    /// Whether the namespace has reservations at all.
    pub(crate) fn are_supported(&self) -> bool {
        self.supported
    }

    /// Whether they can persist through a loss of power.
    pub(crate) fn can_persist(&self) -> bool {
        self.keeper.is_some()
    }

    /// The stamp of the table.
    #[inline]
    pub(crate) fn stamp(&self) -> u64 {
        self.stamp.load(Ordering::Acquire)
    }

    /// Whether the table of this stamp holds a reservation.
    #[inline]
    pub(crate) fn is_held(stamp: u64) -> bool {
        stamp & HELD != 0
    }

    /// The table, with its stamp.
    pub(crate) fn current(&self) -> (u64, Arc<Table>) {
        let state = lock(&self.state);
        // Published under the lock, so that the two belong together.
        (self.stamp.load(Ordering::Relaxed), state.table.clone())
    }

    /// The table.
    pub(crate) fn table(&self) -> Arc<Table> {
        self.current().1
    }

    /// Whether caches were lost: then whoever flushes is asked whether it has heard of it.
    #[inline]
    pub(crate) fn has_lost_caches(&self) -> bool {
        self.stamp() & LOST != 0
    }

    /// The loss that a host has not heard of.
    pub(crate) fn unheard_loss(&self, host: &HostId) -> Option<u64> {
        let table = self.table();
        table.loss.concerns(host).then_some(table.loss.number)
    }

    /// A host is about to be sent a failure for it to hear of a loss, by another controller than before:
    /// whether it was sent so many that it has heard, whatever became of its connections.
    pub(crate) fn is_sent_often(&self, host: &HostId, loss: u64) -> bool {
        let mut state = lock(&self.state);
        if let Some(sent) = state
            .sent
            .iter_mut()
            .find(|sent| (sent.0, sent.1) == (*host, loss))
        {
            sent.2 = sent.2.saturating_add(1);
            return sent.2 > SENT_MAX;
        }
        if state.sent.len() >= TOLD_MAX {
            state.sent.pop_front();
        }
        state.sent.push_back((*host, loss, 1));
        false
    }

    /// A host has heard of a loss. Whoever calls has the turn.
    ///
    /// # Errors
    ///
    /// Those of [`Reservations::keep`]: it counts as one that has not.
    pub(crate) async fn heard(&self, host: &HostId, loss: u64) -> Result<(), IoError> {
        let mut table = Table::clone(&self.table());
        if table.loss.number == loss {
            table.loss.tell(*host);
            self.keep(&table).await?;
            self.publish(table, &[]);
        }
        Ok(())
    }

    /// Caches were lost when the device was opened, which nobody has heard of.
    pub(crate) fn lose_caches(&self, loss: u64) {
        let table = Table {
            loss: CacheLoss::new(loss),
            ..Table::clone(&self.table())
        };
        self.publish(table, &[]);
    }

    /// Takes over what others have kept, and who has heard of this loss of caches, 0 for none. Nothing may be
    /// at the device, nor come to it.
    ///
    /// # Errors
    ///
    /// [`StoreError`]: all is as it was.
    pub(crate) async fn adopt(
        &self,
        namespace: Uuid,
        record: Option<&[u8]>,
        loss: u64,
    ) -> Result<(), StoreError> {
        let mut table = table_of(namespace, record)?;
        if table.loss.number != loss {
            table.loss = CacheLoss::new(loss);
        }
        // A change that was under way when access ended may not be published yet.
        let turn = self.turn().await.map_err(|error| StoreError::Io {
            what: "wait for",
            place: "changes of reservations".to_owned(),
            error: error.to_string(),
        })?;
        self.publish(table, &[]);
        drop(turn);
        Ok(())
    }

    /// Waits for the turn to change the table.
    pub(crate) async fn turn(&self) -> Result<Taken, IoError> {
        self.turn.take().await
    }

    /// Makes a table outlive a loss of power, if it is to, or one that is no longer to be forgotten. Whoever
    /// calls has the turn.
    ///
    /// # Errors
    ///
    /// [`IoError::Fenced`] if another engine serves the namespace now. [`IoError::Internal`], logged: either
    /// table may be there after a loss of power.
    pub(crate) async fn keep(&self, table: &Table) -> Result<(), IoError> {
        let Some(Keeper { store, namespace }) = &self.keeper else {
            return Ok(());
        };
        let before = self.table();
        let is_shared = store.is_shared();
        if (!is_shared && !table.persist && !before.persist) || *before == *table {
            return Ok(());
        }
        // Of a namespace that nobody shares each process has losses of its own.
        let record = match (is_shared, table.persist) {
            (true, _) => Some(encode(table)),
            (false, true) => Some(encode(&Table {
                loss: CacheLoss::default(),
                ..table.clone()
            })),
            (false, false) => None,
        };
        store.save(*namespace, record).await.map_err(|error| match error {
            StoreError::Superseded { .. } => IoError::Fenced,
            error => {
                tracing::error!(%namespace, %error, "could not keep reservations");
                IoError::Internal
            }
        })
    }

    /// Replaces the table. Commands of the hosts in `purge` that have not gone to the device yet never will.
    pub(crate) fn publish(&self, table: Table, purge: &[HostId]) {
        let mut state = lock(&self.state);
        let held = if table.held == Held::Nothing { 0 } else { HELD };
        let lost = if table.loss.is_any() { LOST } else { 0 };
        let stamp = ((self.stamp.load(Ordering::Relaxed) & !(HELD | LOST)) + NEXT) | held | lost;
        state.table = Arc::new(table);
        state.purged.retain(|(host, _)| !purge.contains(host));
        state.purged.extend(purge.iter().map(|host| (*host, stamp)));
        while state.purged.len() > PURGED_MAX {
            if let Some((_, stamp)) = state.purged.pop_front() {
                state.purged_all = stamp;
            }
        }
        self.stamp.store(stamp, Ordering::Release);
    }

    /// Says whether a command that was checked under `stamp` may still go to the device.
    ///
    /// # Errors
    ///
    /// The status that tells its host that it was ended by a preemption.
    pub(crate) fn check_purge(&self, host: &HostId, stamp: u64) -> Result<(), IoError> {
        if self.stamp() == stamp {
            return Ok(());
        }
        let state = lock(&self.state);
        let purged = state
            .purged
            .iter()
            .any(|(other, at)| other == host && *at > stamp);
        if purged || state.purged_all > stamp {
            Err(aborted_by_preempt())
        } else {
            Ok(())
        }
    }
}

fn table_of(namespace: Uuid, record: Option<&[u8]>) -> Result<Table, StoreError> {
    record.map_or_else(|| Ok(Table::default()), |record| decode(namespace, record))
}

fn aborted_by_preempt() -> IoError {
    let status = Status::ABORTED_BY_PREEMPT;
    IoError::Nvme(NvmeStatus {
        code_type: status.status_type().to_wire(),
        code: status.code(),
        do_not_retry: true,
    })
}
