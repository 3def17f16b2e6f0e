//! The features of reservations (NVMe Base 2.2, 5.1.25.1.29 and 5.1.25.1.30). Each namespace has a value of
//! its own; a host can set those of all namespaces at once.

use std::sync::Arc;
use std::time::Duration;

use futures_channel::oneshot;
use pollux_device::IoError;
use pollux_reactor::{spawn, timeout};

use super::super::controller::Controller;
use super::super::namespace::Namespace;
use super::super::queue::{Command, Execution, Outcome};
use super::super::refusal::{Refusal, field};
use crate::wire::features::{ReservationNotificationMask, SWITCH};
use crate::wire::identify::NAMESPACE_ALL;
use crate::wire::status::Status;

/// The bits of the mask that mean something.
const MASK: ReservationNotificationMask = ReservationNotificationMask::REGISTRATION_PREEMPTED
    .union(ReservationNotificationMask::RESERVATION_RELEASED)
    .union(ReservationNotificationMask::RESERVATION_PREEMPTED);

/// The namespace of a command that has to name one.
pub(super) fn namespace_of(controller: &Controller, command: &Command) -> Result<Arc<Namespace>, Refusal> {
    let id = command.entry.namespace_id.get();
    if !controller.subsystem.is_valid_id(id) {
        return Err(Refusal::at(Status::INVALID_NAMESPACE_OR_FORMAT, field::NAMESPACE));
    }
    let found = controller.subsystem.namespace(id);
    found.ok_or(Refusal::invalid_field(field::NAMESPACE))
}

/// The namespaces of a command: the one it names, or all.
fn namespaces_of(controller: &Controller, command: &Command) -> Result<Vec<Arc<Namespace>>, Refusal> {
    if command.entry.namespace_id.get() == NAMESPACE_ALL {
        return Ok(controller.subsystem.namespaces().1);
    }
    Ok(vec![namespace_of(controller, command)?])
}

/// Sets which notifications a host does not want.
pub(super) fn set_mask(controller: &Controller, command: &Command, value: u32) -> Result<(), Refusal> {
    let mask = ReservationNotificationMask::from_bits_retain(value) & MASK;
    let namespaces = namespaces_of(controller, command)?;
    controller.with(|state| {
        let masks = &mut state.features.reservation_masks;
        for namespace in namespaces {
            masks.insert(namespace.id, mask);
        }
    });
    Ok(())
}

/// Has reservations persist through a loss of power, or not.
pub(super) fn set_persistence(
    controller: &Arc<Controller>,
    command: &Command,
    value: u32,
) -> Result<Execution, Refusal> {
    let persist = value & SWITCH != 0;
    let namespaces = namespaces_of(controller, command)?;
    if persist
        && !namespaces
            .iter()
            .all(|namespace| namespace.reservations.can_persist())
    {
        return Err(Refusal::invalid_field(field::DWORD_11));
    }
    let wait_max = Duration::from_millis(controller.config.resource_wait_ms.into());
    let (done, ended) = oneshot::channel();
    // What was kept is also published when the connection is lost meanwhile.
    spawn(async move {
        let mut result = Ok(());
        for namespace in namespaces {
            result = result.and(persist_one(&namespace, persist, wait_max).await);
        }
        // The one who asked may have gone away.
        let _ = done.send(result);
    })
    .detach();
    let (controller, entry) = (controller.clone(), command.entry);
    Ok(Execution::from_future(async move {
        let command_id = entry.command_id.get();
        match ended.await.unwrap_or(Err(IoError::Aborted)) {
            Ok(()) => Outcome::done(command_id),
            Err(error) => {
                let refusal = Refusal::from(error);
                controller.record_failure(0, &entry, &refusal, 0);
                Outcome::failed(command_id, refusal.status)
            }
        }
    }))
}

async fn persist_one(namespace: &Namespace, persist: bool, wait_max: Duration) -> Result<(), IoError> {
    let reservations = &namespace.reservations;
    let turn = timeout(wait_max, reservations.turn()).await;
    let turn = turn.unwrap_or(Err(IoError::ResourceShortage))?;
    let mut table = (*reservations.table()).clone();
    table.persist = persist;
    reservations.keep(&table).await?;
    reservations.publish(table, &[]);
    drop(turn);
    Ok(())
}
