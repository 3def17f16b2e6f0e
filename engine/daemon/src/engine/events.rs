//! What happens to an engine, told to whoever watches.
//!
//! A caller that is slow misses the oldest events and sees the gap in their numbers; nobody waits for it.

use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use pollux_api::engine::v1::event::What;
use pollux_api::engine::v1::{Event, WatchStarted};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

/// Events that wait for the slowest caller.
const EVENTS_MAX: usize = 1_024;

/// The events of an engine.
pub struct Events {
    /// How many there were; locked while one is sent, so that they are sent in order.
    sequence: Mutex<u64>,
    sender: broadcast::Sender<Event>,
}

impl Default for Events {
    fn default() -> Self {
        Self {
            sequence: Mutex::default(),
            sender: broadcast::Sender::new(EVENTS_MAX),
        }
    }
}

impl Events {
    /// Tells everyone.
    pub fn publish(&self, what: What) {
        let mut sequence = self.sequence.lock().unwrap_or_else(PoisonError::into_inner);
        *sequence += 1;
        // Nobody may be watching.
        let _ = self.sender.send(event(*sequence, what));
    }

    /// Everything from now on, beginning with [`WatchStarted`].
    pub fn watch(&self) -> Watch {
        let sequence = self.sequence.lock().unwrap_or_else(PoisonError::into_inner);
        Watch {
            first: Some(event(*sequence, What::Started(WatchStarted {}))),
            receiver: self.sender.subscribe(),
            ended: false,
        }
    }
}

/// What one caller sees.
pub struct Watch {
    first: Option<Event>,
    receiver: broadcast::Receiver<Event>,
    ended: bool,
}

impl Watch {
    /// The next event; nothing after the one that says that the engine stops.
    pub async fn next(&mut self) -> Option<Event> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        while !self.ended {
            match self.receiver.recv().await {
                Ok(event) => {
                    self.ended = matches!(event.what, Some(What::Draining(_)));
                    return Some(event);
                }
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => self.ended = true,
            }
        }
        None
    }
}

fn event(sequence: u64, what: What) -> Event {
    Event {
        sequence,
        unix_us: unix_us(),
        what: Some(what),
    }
}

/// The time now, in microseconds of Unix time.
pub(crate) fn unix_us() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_micros() as u64)
}

#[cfg(test)]
mod tests {
    use pollux_api::engine::v1::{EngineDraining, NamespaceRemoved};

    use super::*;

    fn removed(namespace_id: u32) -> What {
        What::NamespaceRemoved(NamespaceRemoved { namespace_id })
    }

    #[tokio::test]
    async fn everyone_sees_everything_in_order_until_the_end() {
        let events = Events::default();
        events.publish(removed(1));
        let mut watches = [events.watch(), events.watch()];
        events.publish(removed(2));
        events.publish(What::Draining(EngineDraining {}));
        events.publish(removed(3));
        for watch in &mut watches {
            let first = watch.next().await.expect("it begins");
            assert_eq!(first.what, Some(What::Started(WatchStarted {})));
            assert_eq!(first.sequence, 1);
            let second = watch.next().await.expect("an event");
            assert_eq!((second.sequence, second.what), (2, Some(removed(2))));
            assert_eq!(watch.next().await.expect("an event").sequence, 3);
            assert_eq!(watch.next().await, None);
        }
    }

    #[tokio::test]
    async fn a_slow_caller_sees_a_gap() {
        let events = Events::default();
        let mut watch = events.watch();
        for id in 0..EVENTS_MAX as u32 + 10 {
            events.publish(removed(id));
        }
        assert_eq!(watch.next().await.expect("it begins").sequence, 0);
        assert_eq!(watch.next().await.expect("an event").sequence, 11);
    }
}
