//! What happens to a device as a whole, told to whoever serves it.

use std::sync::{Arc, Mutex, PoisonError};

use futures_channel::mpsc;

/// Events that may wait for one subscriber; beyond that the newest are dropped for it, and it reads the state
/// instead.
const EVENTS_MAX: usize = 64;

/// Something that happened to a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceEvent {
    /// The block count changed.
    Resized,
    /// The device went away; requests fail with [`IoError::Gone`](crate::IoError::Gone) from now on.
    Removed,
    /// A removed device came back.
    Returned,
}

/// Receives events; `next().await` of `futures`' `StreamExt`, on any executor.
pub type Subscription = mpsc::Receiver<DeviceEvent>;

/// The subscribers of one device.
#[derive(Debug, Clone, Default)]
pub struct Publisher {
    subscribers: Arc<Mutex<Vec<mpsc::Sender<DeviceEvent>>>>,
}

impl Publisher {
    /// One more subscriber.
    pub fn subscribe(&self) -> Subscription {
        let (sender, receiver) = mpsc::channel(EVENTS_MAX);
        self.subscribers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(sender);
        receiver
    }

    /// Tells every subscriber.
    pub fn publish(&self, event: DeviceEvent) {
        let mut subscribers = self.subscribers.lock().unwrap_or_else(PoisonError::into_inner);
        subscribers.retain_mut(|sender| match sender.try_send(event) {
            Ok(()) => true,
            Err(error) => !error.is_disconnected(),
        });
    }
}
