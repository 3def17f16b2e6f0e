//! The reservations of a remote namespace, as this host takes and gives them back (NVMe Base 2.2, 8.1.22).
//!
//! Nothing is sent twice: a change whose connection was lost may have happened or not, which
//! [`Reservations::report`] tells.

use std::rc::Rc;
use std::sync::Arc;

use pollux_device::IoError;
use pollux_hugepages::{Buffer, Slice};

use super::super::connection::{CommandError, RefusedReason, Transfer};
use super::NvmfDevice;
use super::queue::Inner;
use crate::status_map::error_of;
use crate::wire::command::{
    AcquireAction, AcquireKeys, PersistChange, RegisterAction, RegisterKeys, ReleaseAction, ReleaseKey,
    ReservationChange, ReservationRegister, ReservationReport, SglDescriptor, SubmissionEntry,
};
use crate::wire::reservation::{ReservationStatus, ReservationType};

/// Registrants that a report has room for.
const REPORT_REGISTRANTS_MAX: usize = 256;

/// See the module. It lives on one reactor, and takes a queue as an attached reactor does.
pub struct Reservations(Rc<Inner>);

impl NvmfDevice {
    /// The reservations of the namespace, from the current reactor.
    ///
    /// # Errors
    ///
    /// As for [`Device::attach`](pollux_device::Device::attach).
    pub async fn reservations(self: Arc<Self>) -> Result<Reservations, IoError> {
        Ok(Reservations(Inner::attach(self).await?))
    }
}

impl Reservations {
    /// Registers this host with a key.
    ///
    /// # Errors
    ///
    /// [`IoError::ReservationConflict`] if it is registered with another one, [`IoError::InvalidField`] if
    /// nothing can persist there.
    pub async fn register(&self, key: u64, persist: PersistChange) -> Result<(), IoError> {
        let keys = RegisterKeys { current: 0, new: key };
        self.change_registration(RegisterAction::Register, keys, false, persist)
            .await
    }

    /// Takes the registration back; without a key, whatever it is.
    ///
    /// # Errors
    ///
    /// [`IoError::ReservationConflict`] if this host is not registered with this key.
    pub async fn unregister(&self, key: Option<u64>) -> Result<(), IoError> {
        let keys = RegisterKeys {
            current: key.unwrap_or_default(),
            new: 0,
        };
        self.change_registration(
            RegisterAction::Unregister,
            keys,
            key.is_none(),
            PersistChange::None,
        )
        .await
    }

    /// Replaces the key; without the current one, whatever it is, and even if there is none.
    ///
    /// # Errors
    ///
    /// [`IoError::ReservationConflict`] if this host is not registered with the current key.
    pub async fn replace(&self, current: Option<u64>, new: u64) -> Result<(), IoError> {
        let keys = RegisterKeys {
            current: current.unwrap_or_default(),
            new,
        };
        self.change_registration(
            RegisterAction::Replace,
            keys,
            current.is_none(),
            PersistChange::None,
        )
        .await
    }

    async fn change_registration(
        &self,
        action: RegisterAction,
        keys: RegisterKeys,
        ignore_existing_key: bool,
        persist: PersistChange,
    ) -> Result<(), IoError> {
        let command = ReservationRegister {
            action_field: action.to_wire(),
            ignore_existing_key,
            persist_field: persist.to_wire(),
        };
        self.send(|id| command.to_entry(0, id, no_data()), &keys.to_bytes())
            .await
    }

    /// Takes a reservation.
    ///
    /// # Errors
    ///
    /// [`IoError::ReservationConflict`] if another host holds one, or this one is not registered.
    pub async fn acquire(&self, key: u64, kind: ReservationType) -> Result<(), IoError> {
        self.take(AcquireAction::Acquire, key, 0, kind).await
    }

    /// Takes the registrations with a key, and the reservation if one of them holds it. With `abort` nothing
    /// of their hosts is at the device any more when it is done.
    ///
    /// # Errors
    ///
    /// [`IoError::ReservationConflict`] if nobody has that key, or this host is not registered.
    pub async fn preempt(
        &self,
        key: u64,
        preempted: u64,
        kind: ReservationType,
        abort: bool,
    ) -> Result<(), IoError> {
        let action = if abort {
            AcquireAction::PreemptAndAbort
        } else {
            AcquireAction::Preempt
        };
        self.take(action, key, preempted, kind).await
    }

    async fn take(
        &self,
        action: AcquireAction,
        key: u64,
        preempted: u64,
        kind: ReservationType,
    ) -> Result<(), IoError> {
        let command = ReservationChange::acquire(action, kind);
        let keys = AcquireKeys {
            current: key,
            preempted,
        };
        self.send(|id| command.to_acquire(0, id, no_data()), &keys.to_bytes())
            .await
    }

    /// Gives the reservation back; nothing happens if another host holds it, or nobody.
    ///
    /// # Errors
    ///
    /// [`IoError::ReservationConflict`] if this host is not registered, [`IoError::InvalidField`] if it holds
    /// one of another type.
    pub async fn release(&self, key: u64, kind: ReservationType) -> Result<(), IoError> {
        self.give(ReleaseAction::Release, key, Some(kind)).await
    }

    /// Takes the reservation and every registration back.
    ///
    /// # Errors
    ///
    /// [`IoError::ReservationConflict`] if this host is not registered.
    pub async fn clear(&self, key: u64) -> Result<(), IoError> {
        self.give(ReleaseAction::Clear, key, None).await
    }

    async fn give(
        &self,
        action: ReleaseAction,
        key: u64,
        kind: Option<ReservationType>,
    ) -> Result<(), IoError> {
        let command = ReservationChange::release(action, kind);
        let key = ReleaseKey { current: key };
        self.send(|id| command.to_release(0, id, no_data()), &key.to_bytes())
            .await
    }

    /// Who is registered, and which reservation is held.
    ///
    /// # Errors
    ///
    /// [`IoError::Internal`] for an answer that makes no sense.
    pub async fn report(&self) -> Result<ReservationStatus, IoError> {
        let bytes = ReservationStatus::bytes_of(REPORT_REGISTRANTS_MAX);
        let command = ReservationReport::new(u32::try_from(bytes).unwrap_or(u32::MAX));
        let buffer = Buffer::from_heap(bytes);
        let answer = self
            .execute(|id| command.to_entry(0, id), Transfer::Receive(buffer))
            .await?;
        ReservationStatus::parse(&answer.into_buffer()).ok_or(IoError::Internal)
    }

    async fn send(&self, entry: impl Fn(u32) -> SubmissionEntry, data: &[u8]) -> Result<(), IoError> {
        let data = Slice::copy_from(data);
        self.execute(entry, Transfer::Send(data.into())).await.map(drop)
    }

    /// Sends a command once, as soon as there is room and a connection.
    async fn execute(
        &self,
        entry: impl Fn(u32) -> SubmissionEntry,
        mut transfer: Transfer,
    ) -> Result<Transfer, IoError> {
        let _waiting = self.0.begin_waiting()?;
        let submission = loop {
            let live = self.0.connected().await?;
            live.queue.ready().await;
            match live.queue.submit(&entry(live.association.namespace_id), transfer) {
                Ok(submission) => break submission,
                Err(refused) => match refused.reason {
                    RefusedReason::TooLong => return Err(IoError::InvalidField),
                    RefusedReason::Ended => {
                        transfer = refused.transfer;
                        pollux_reactor::yield_now().await;
                    }
                    RefusedReason::Full => transfer = refused.transfer,
                },
            }
        };
        let finished = submission.await;
        match finished.outcome {
            Ok(completion) => match error_of(completion.status()) {
                None => Ok(finished.transfer),
                Some(error) => Err(error),
            },
            Err(CommandError::DataDigest | CommandError::ConnectionLost { .. }) => Err(IoError::PathDown),
        }
    }
}

/// Where the data goes is up to the connection.
fn no_data() -> SglDescriptor {
    SglDescriptor::transport(0)
}
