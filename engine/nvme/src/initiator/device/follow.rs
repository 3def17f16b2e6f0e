//! What goes on beside the I/O while an association is live: events, aborts, health. Tasks of the supervisor,
//! dropped with the association.

use std::sync::Arc;
use std::time::Duration;

use pollux_device::Health;
use pollux_reactor::sleep;

use super::super::admin::AdminQueue;
use super::super::controller::ControllerDescription;
use super::super::error::InitiatorError;
use super::super::namespace::{Namespace, describe_namespace};
use super::plan::Limits;
use super::shared::Shared;
use crate::wire::command::{Abort, GetLogPage};
use crate::wire::features::AsyncEvent;
use crate::wire::identify::{IDENTIFY_BYTES, NAMESPACE_ALL};
use crate::wire::log::{HealthLog, LogPageId};

/// How often the health log is read.
const HEALTH_PERIOD: Duration = Duration::from_secs(60);

/// The pause after an asynchronous event that could not be dealt with, so that a target cannot keep this task
/// busy.
const EVENT_PAUSE: Duration = Duration::from_millis(100);

/// Sends the aborts that queues ask for, one at a time.
pub(super) async fn abort_commands(shared: Arc<Shared>, admin: AdminQueue, generation: u64) {
    loop {
        let wanted = shared.wait_for(|state| state.aborts.pop()).await;
        if wanted.generation != generation {
            continue;
        }
        let abort = Abort {
            queue_id: wanted.queue_id,
            command_id: wanted.command.to_wire(),
        };
        // An aborted command says so by its own completion; one that is not is dealt with by its queue.
        if let Err(error) = admin.abort(abort).await {
            tracing::debug!(device = %shared.name, %error, "a command could not be aborted");
        }
    }
}

/// Follows what the controller tells of by itself.
pub(super) async fn follow_events(
    shared: Arc<Shared>,
    admin: AdminQueue,
    controller: ControllerDescription,
    namespace: Namespace,
) {
    loop {
        let event = match admin.next_event().await {
            Ok(event) => event,
            // It has no events, or is lost, which the supervisor sees.
            Err(_) => return,
        };
        let Some(event) = event else {
            sleep(EVENT_PAUSE).await;
            continue;
        };
        let dealt_with = if event == AsyncEvent::NAMESPACE_ATTRIBUTES_CHANGED {
            look_again(&shared, &admin, &controller, &namespace).await
        } else {
            acknowledge(&admin, event).await
        };
        if let Err(error) = dealt_with {
            tracing::debug!(device = %shared.name, %error, ?event, "an event could not be dealt with");
            sleep(EVENT_PAUSE).await;
        }
    }
}

/// Reads the log page that an event names, so that the next event of its kind can come.
async fn acknowledge(admin: &AdminQueue, event: AsyncEvent) -> Result<(), InitiatorError> {
    let page = match LogPageId::from_wire(event.log_page) {
        Some(page) => page,
        None => return Ok(()),
    };
    let command = GetLogPage::new(page, 0, HealthLog::BYTES as u64);
    let namespace_id = if page == LogPageId::Health {
        NAMESPACE_ALL
    } else {
        0
    };
    admin
        .log_page("to read the log page of an event", command, namespace_id)
        .await?;
    Ok(())
}

/// Namespaces have changed: this one may have another size, be another one, or not be there.
async fn look_again(
    shared: &Shared,
    admin: &AdminQueue,
    controller: &ControllerDescription,
    before: &Namespace,
) -> Result<(), InitiatorError> {
    let what = "to read the list of changed namespaces";
    let command = GetLogPage::new(LogPageId::ChangedNamespaces, 0, IDENTIFY_BYTES as u64);
    admin.log_page(what, command, 0).await?;
    let found = match describe_namespace(admin, controller, before.id).await {
        Ok(found) => found,
        // It has been formatted in a way that cannot be used.
        Err(InitiatorError::Format { .. }) => None,
        Err(error) => return Err(error),
    };
    let same = found.filter(|now| {
        let limits = Limits::new(controller, now, shared.options.deallocate);
        before.identity.is_still(&now.identity)
            && limits.cover(&shared.limits)
            && now.geometry.read_only == before.geometry.read_only
    });
    shared.found(same.map(|namespace| namespace.geometry.blocks));
    Ok(())
}

/// Reads the health log now and then.
pub(super) async fn follow_health(shared: Arc<Shared>, admin: AdminQueue) {
    loop {
        let command = GetLogPage::new(LogPageId::Health, 0, HealthLog::BYTES as u64);
        match admin
            .log_page("to read the health log", command, NAMESPACE_ALL)
            .await
        {
            Ok(bytes) => shared.set_health(health(&HealthLog::from_bytes(&bytes))),
            // The controller has none, or is lost, which the supervisor sees.
            Err(_) => return,
        }
        sleep(HEALTH_PERIOD).await;
    }
}

fn health(log: &HealthLog) -> Health {
    let count = |value: u128| u64::try_from(value).unwrap_or(u64::MAX);
    Health {
        temperature_kelvin: log.temperature_kelvin,
        available_spare_percent: log.available_spare_percent,
        percentage_used: log.used_percent,
        critical_warning: log.critical_warning.bits(),
        media_errors: count(log.media_errors),
        power_cycles: count(log.power_cycles),
        power_on_hours: count(log.power_on_hours),
        unsafe_shutdowns: count(log.unsafe_shutdowns),
    }
}
