//! Reservations of the hosts of a volume, kept by the control plane, so that the next engine that serves it
//! knows them.
//!
//! A change replaces what is known to be kept. If an answer is lost that may be either of two records; the
//! next change finds out which. One that is late finds neither, and changes nothing.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pollux_api::control::v1 as api;
use pollux_nvme::target::{ReservationStore, Saving, StoreError};
use tokio::runtime::Handle;
use tonic::{Code, Status};
use uuid::Uuid;

use super::registry::Registry;

/// How often a change is tried against what was kept without being known here.
const ATTEMPTS_MAX: usize = 3;

/// A volume, and whom to ask about it.
#[derive(Clone)]
pub(super) struct Volume {
    /// Who keeps the records.
    pub(super) registry: Registry,
    /// Where calls are made.
    pub(super) runtime: Handle,
    /// This node.
    pub(super) node: String,
    /// Its name.
    pub(super) name: String,
    /// Its UUID.
    pub(super) uuid: Uuid,
}

/// What is known of what is kept.
#[derive(Default)]
struct Known {
    /// The epoch in which the volume is served from here; 0 before it ever was.
    epoch: u64,
    record: Vec<u8>,
}

/// See the module.
pub(super) struct Reservations {
    volume: Volume,
    known: Arc<Mutex<Known>>,
}

impl std::fmt::Debug for Reservations {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = &self.volume.name;
        formatter
            .debug_struct("Reservations")
            .field("volume", name)
            .finish_non_exhaustive()
    }
}

fn lock(known: &Mutex<Known>) -> MutexGuard<'_, Known> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Reservations {
    /// Those of a volume that is not served from here yet.
    pub(super) fn new(volume: Volume) -> Arc<Self> {
        Arc::new(Self {
            volume,
            known: Arc::default(),
        })
    }

    /// The volume is served from here from now on: what is kept of its reservations.
    ///
    /// # Errors
    ///
    /// The status of the control plane.
    pub(super) async fn begin(&self, epoch: u64) -> Result<Option<Vec<u8>>, Status> {
        let request = api::GetReservationsRequest {
            volume: self.volume.name.clone(),
            volume_uid: self.volume.uuid.to_string(),
            node: self.volume.node.clone(),
            epoch,
        };
        let record = match self.volume.registry.reservations(&request).await {
            Ok(kept) => kept.record,
            // A control plane that is older than reservations: there are none, and none can be made.
            Err(status) if status.code() == Code::Unimplemented => Vec::new(),
            Err(status) => return Err(status),
        };
        *lock(&self.known) = Known {
            epoch,
            record: record.clone(),
        };
        Ok((!record.is_empty()).then_some(record))
    }
}

impl Volume {
    async fn keep(self, known: Arc<Mutex<Known>>, next: Vec<u8>) -> Result<(), StoreError> {
        let superseded = StoreError::Superseded { namespace: self.uuid };
        let failed = |error: &str| StoreError::Io {
            what: "could not keep",
            place: format!("the reservations of volume {}", self.name),
            error: error.to_owned(),
        };
        for _ in 0..ATTEMPTS_MAX {
            let (epoch, before) = {
                let known = lock(&known);
                (known.epoch, known.record.clone())
            };
            let request = api::SwapReservationsRequest {
                volume: self.name.clone(),
                volume_uid: self.uuid.to_string(),
                node: self.node.clone(),
                epoch,
                before,
                next: next.clone(),
            };
            let answer = match self.registry.swap_reservations(&request).await {
                Ok(answer) => answer,
                Err(status) => {
                    return Err(match status.code() {
                        Code::NotFound | Code::FailedPrecondition | Code::PermissionDenied => superseded,
                        _ => failed(status.message()),
                    });
                }
            };
            let mut known = lock(&known);
            if known.epoch != epoch {
                return Err(superseded);
            }
            if answer.swapped {
                known.record = next;
                return Ok(());
            }
            known.record = answer.current;
        }
        Err(failed("somebody else changes them"))
    }
}

impl ReservationStore for Reservations {
    fn is_shared(&self) -> bool {
        true
    }

    /// Nothing: it is adopted when the volume is opened.
    fn load(&self, _namespace: Uuid) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(None)
    }

    fn save(&self, namespace: Uuid, record: Option<Vec<u8>>) -> Saving {
        let volume = self.volume.clone();
        let keeping = volume.keep(self.known.clone(), record.unwrap_or_default());
        let kept = self.volume.runtime.spawn(keeping);
        Box::pin(async move { kept.await.unwrap_or(Err(StoreError::Superseded { namespace })) })
    }
}
