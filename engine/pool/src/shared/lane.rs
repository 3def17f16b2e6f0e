//! The way of requests from one reactor to the owner of a volume, and of their replies back.
//!
//! Two queues without locks, one each way. A request has a *place* at its sender, of which there are as many
//! as either queue has room for: a queue is never full, and the bound on requests under way is the number of
//! places.
//!
//! Invariants:
//! - A place is in one of: free at the sender, in `requests`, executed at the owner, in `replies`.
//! - Whoever waits registers its waker and looks again after that; whoever changes something wakes after it.
//! - `ended` and `hung_up` are set once, by the owner and by the sender, when they will not look again.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use atomic_waker::AtomicWaker;
use crossbeam::queue::ArrayQueue;
use pollux_device::{BlockDevice, Completion, IoError, Reply, Request};
use pollux_reactor::{InFlight, Started};

/// Requests that one reactor may have under way at a volume of another one; one more fails with
/// [`IoError::ResourceShortage`].
pub const LANE_REQUESTS_MAX: u16 = 1024;

/// What a request returned.
pub(super) type Outcome = Result<Reply, IoError>;

/// See the module.
pub(super) struct Lane {
    requests: ArrayQueue<(u16, Request)>,
    replies: ArrayQueue<(u16, Outcome)>,
    owner: AtomicWaker,
    sender: AtomicWaker,
    /// The owner executes nothing any more.
    ended: AtomicBool,
    /// The sender takes no replies any more.
    hung_up: AtomicBool,
}

impl Lane {
    pub(super) fn new() -> Arc<Self> {
        let places = usize::from(LANE_REQUESTS_MAX);
        Arc::new(Self {
            requests: ArrayQueue::new(places),
            replies: ArrayQueue::new(places),
            owner: AtomicWaker::new(),
            sender: AtomicWaker::new(),
            ended: AtomicBool::new(false),
            hung_up: AtomicBool::new(false),
        })
    }

    /// Sends a request of a place.
    ///
    /// # Errors
    ///
    /// The queue was full, which the number of places makes impossible.
    pub(super) fn send(&self, place: u16, request: Request) -> Result<(), IoError> {
        self.requests
            .push((place, request))
            .map_err(|_| IoError::Internal)?;
        self.owner.wake();
        Ok(())
    }

    /// The next reply; `None` when the owner has ended and there is none.
    pub(super) fn poll_reply(&self, context: &mut Context<'_>) -> Poll<Option<(u16, Outcome)>> {
        if let Some(reply) = self.replies.pop() {
            return Poll::Ready(Some(reply));
        }
        self.sender.register(context.waker());
        // Before the last look at the queue: whatever was sent before the end is found then.
        let ended = self.ended.load(Ordering::Acquire);
        match self.replies.pop() {
            Some(reply) => Poll::Ready(Some(reply)),
            None if ended => Poll::Ready(None),
            None => Poll::Pending,
        }
    }

    /// Has the sender look, as if a reply had come.
    pub(super) fn wake_sender(&self) {
        self.sender.wake();
    }

    /// The sender takes no replies any more.
    pub(super) fn hang_up(&self) {
        self.hung_up.store(true, Ordering::Release);
        self.owner.wake();
    }
}

/// The end of a lane at the owner: executes requests until the sender hangs up.
pub(super) struct LaneEnd {
    lane: Arc<Lane>,
    device: Rc<dyn BlockDevice>,
    executing: InFlight<Completion>,
    /// The place of the request in each slot of `executing`.
    places: Box<[u16]>,
}

impl LaneEnd {
    pub(super) fn new(lane: Arc<Lane>, device: Rc<dyn BlockDevice>) -> Self {
        Self {
            lane,
            device,
            executing: InFlight::new(LANE_REQUESTS_MAX),
            places: vec![0; usize::from(LANE_REQUESTS_MAX)].into(),
        }
    }

    /// Executes until the sender has hung up and nothing is under way. What is under way when this is dropped
    /// is abandoned, as its reactor has stopped then.
    pub(super) async fn run(mut self) {
        std::future::poll_fn(|context| self.poll(context)).await;
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.lane.owner.register(context.waker());
        let hung_up = self.lane.hung_up.load(Ordering::Acquire);
        let mut replied = false;
        // No more at a time than have places, so that others run in between.
        for _ in 0..LANE_REQUESTS_MAX {
            let Some((place, request)) = self.lane.requests.pop() else {
                break;
            };
            match self.executing.start(self.device.submit(request)) {
                Ok(Started::Ready(outcome)) => {
                    self.reply(place, outcome);
                    replied = true;
                }
                Ok(Started::Pending(slot)) => {
                    if let Some(of_slot) = self.places.get_mut(usize::from(slot)) {
                        *of_slot = place;
                    }
                }
                // There are as many slots as places.
                Err(_) => self.reply(place, Err(IoError::Internal)),
            }
        }
        while let Poll::Ready((slot, outcome)) = self.executing.poll_next(context) {
            let place = self.places.get(usize::from(slot)).copied();
            if let Some(place) = place {
                self.reply(place, outcome);
                replied = true;
            }
        }
        if replied {
            self.lane.sender.wake();
        }
        if hung_up && self.executing.is_empty() && self.lane.requests.is_empty() {
            return Poll::Ready(());
        }
        if !self.lane.requests.is_empty() {
            context.waker().wake_by_ref();
        }
        Poll::Pending
    }

    fn reply(&self, place: u16, outcome: Outcome) {
        // There is room: a place is in one queue at a time.
        let _ = self.lane.replies.push((place, outcome));
    }
}

impl Drop for LaneEnd {
    fn drop(&mut self) {
        self.lane.ended.store(true, Ordering::Release);
        self.lane.sender.wake();
    }
}
