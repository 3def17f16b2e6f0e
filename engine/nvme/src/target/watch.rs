//! Follows what happens to the device of a namespace.

use std::sync::{Arc, Weak};

use futures_channel::oneshot;
use pollux_device::events::{DeviceEvent, Subscription};
use pollux_reactor::{MailboxFull, ReactorHandle};

use super::namespace::Namespace;
use super::subsystem::Subsystem;
use super::sync::either;

/// Ends a watch when dropped.
pub(crate) struct Cancel {
    _sender: oneshot::Sender<()>,
}

/// Watches a device on a reactor; on none, without reactors.
pub(crate) fn start(
    reactor: Option<&ReactorHandle>,
    subsystem: &Arc<Subsystem>,
    namespace: &Arc<Namespace>,
    events: Subscription,
) -> Result<Cancel, MailboxFull> {
    let (cancel, cancelled) = oneshot::channel();
    if let Some(reactor) = reactor {
        let (subsystem, namespace) = (Arc::downgrade(subsystem), Arc::downgrade(namespace));
        reactor.spawn(move || async move {
            either(follow(events, subsystem, namespace), cancelled).await;
        })?;
    }
    Ok(Cancel { _sender: cancel })
}

async fn follow(mut events: Subscription, subsystem: Weak<Subsystem>, namespace: Weak<Namespace>) {
    // The size may have changed between the subscription and now.
    let mut event = Ok(DeviceEvent::Resized);
    while let (Ok(happened), Some(subsystem), Some(namespace)) =
        (event, subsystem.upgrade(), namespace.upgrade())
    {
        apply(happened, &subsystem, &namespace);
        drop((subsystem, namespace));
        event = events.recv().await;
    }
}

fn apply(event: DeviceEvent, subsystem: &Subsystem, namespace: &Namespace) {
    let device = namespace.device.name();
    // Whatever happened, the newest size counts: a slow subscriber may have lost an event.
    if namespace.refresh_size() {
        tracing::info!(
            device,
            namespace = namespace.id,
            blocks = namespace.blocks(),
            "namespace resized"
        );
        subsystem.namespaces_changed(namespace.id);
    }
    match event {
        DeviceEvent::Resized => {}
        DeviceEvent::Removed => tracing::warn!(device, namespace = namespace.id, "the device is gone"),
        DeviceEvent::Returned => {
            tracing::info!(device, namespace = namespace.id, "the device came back");
            namespace.returned();
            subsystem.device_returned();
        }
    }
}
