//! A drive that works on so many requests at a time, in the order in which they came.

use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pollux_device::events::{Publisher, Subscription};
use pollux_device::{Attaching, BlockDevice, Completion, Device, Geometry, Reply, Request};
use pollux_reactor::{Instant, now, sleep, sleep_until};

/// How long a byte takes, with a channel of its own: 4 KiB take 50 us.
const BYTE_NS: u64 = 12;

struct State {
    /// When each channel is free.
    free: Vec<Instant>,
    operation: Duration,
    is_stuck: bool,
}

/// See the module.
pub struct Channels {
    publisher: Publisher,
    state: Mutex<State>,
}

impl Channels {
    pub fn new(channels: usize, operation: Duration) -> Arc<Self> {
        let state = State {
            free: vec![Instant::ORIGIN; channels],
            operation,
            is_stuck: false,
        };
        Arc::new(Self {
            publisher: Publisher::default(),
            state: Mutex::new(state),
        })
    }

    /// Does so many at a time from now on, of at least so long.
    pub fn set(&self, channels: usize, operation: Duration) {
        let mut state = self.state.lock().unwrap();
        state.free.resize(channels, Instant::ORIGIN);
        state.operation = operation;
    }

    /// What comes from now on is not done as long as it is stuck.
    pub fn set_stuck(&self, is_stuck: bool) {
        self.state.lock().unwrap().is_stuck = is_stuck;
    }

    fn is_stuck(&self) -> bool {
        self.state.lock().unwrap().is_stuck
    }

    /// When a request is done that comes now.
    fn take(&self, bytes: usize) -> Instant {
        let mut state = self.state.lock().unwrap();
        // What 4 KiB take is in the time of an operation.
        let more = (bytes as u64).saturating_sub(4096) * BYTE_NS;
        let span = state.operation + Duration::from_nanos(more);
        let first = state.free.iter_mut().min().unwrap();
        *first = (*first).max(now()) + span;
        *first
    }
}

struct Queue(Arc<Channels>);

impl BlockDevice for Queue {
    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }

    fn submit(&self, request: Request) -> Completion {
        let drive = self.0.clone();
        let bytes = match &request {
            Request::Flush => return Completion::done(),
            Request::Read { into, .. } => into.len(),
            Request::Write { from, .. } => from.len_bytes(),
            _ => 0,
        };
        let done = drive.take(bytes);
        Completion::from_future(async move {
            sleep_until(done).await;
            while drive.is_stuck() {
                sleep(Duration::from_millis(1)).await;
            }
            Ok(match request {
                Request::Read { into, .. } => Reply::Data(into),
                _ => Reply::Done,
            })
        })
    }
}

impl Device for Channels {
    fn name(&self) -> &str {
        "channels"
    }

    fn geometry(&self) -> Geometry {
        Geometry::new(1 << 30, 4096).unwrap()
    }

    fn attach(self: Arc<Self>) -> Attaching {
        Box::pin(async move { Ok(Rc::new(Queue(self)) as Rc<dyn BlockDevice>) })
    }

    fn subscribe(&self) -> Subscription {
        self.publisher.subscribe()
    }
}
