//! A block device of another reactor: requests go to its owner.
//!
//! Invariants:
//! - A place is `Free` and in the list of free ones, or has a request under way.
//! - A completion that is dropped leaves its place `Abandoned`: the request goes on, as its buffers are at
//!   the owner, and the place is free again when the reply has come.
//! - Once the owner has ended, every request fails with [`IoError::Gone`].

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use pollux_device::{AllocationQuery, BlockDevice, Completion, Geometry, IoError, Request};
use pollux_reactor::{RemoteCallError, spawn};

use super::lane::{LANE_REQUESTS_MAX, Lane, LaneEnd, Outcome};
use super::owned::Owned;

/// What became of the request of a place.
enum Place {
    Free,
    /// Nobody has looked for its outcome yet, or somebody waits for it.
    Waiting(Option<Waker>),
    /// It has come.
    Done(Outcome),
    /// Nobody wants it any more.
    Abandoned,
}

struct Places {
    places: Box<[Place]>,
    free: Vec<u16>,
}

impl Places {
    fn new() -> Self {
        Self {
            places: (0..LANE_REQUESTS_MAX).map(|_| Place::Free).collect(),
            free: (0..LANE_REQUESTS_MAX).rev().collect(),
        }
    }

    fn under_way(&self) -> usize {
        self.places.len() - self.free.len()
    }

    fn take(&mut self) -> Option<u16> {
        let place = self.free.pop()?;
        self.set(place, Place::Waiting(None));
        Some(place)
    }

    fn set(&mut self, place: u16, state: Place) -> Place {
        match self.places.get_mut(usize::from(place)) {
            Some(before) => std::mem::replace(before, state),
            None => Place::Free,
        }
    }

    fn release(&mut self, place: u16) {
        self.set(place, Place::Free);
        self.free.push(place);
    }

    /// The outcome of a request has come; returns who is to be told.
    fn complete(&mut self, place: u16, outcome: Outcome) -> Option<Waker> {
        match self.set(place, Place::Done(outcome)) {
            Place::Waiting(waker) => waker,
            Place::Abandoned => {
                self.release(place);
                None
            }
            // No request is answered twice.
            before @ (Place::Free | Place::Done(_)) => {
                self.set(place, before);
                None
            }
        }
    }

    fn poll(&mut self, place: u16, context: &mut Context<'_>) -> Poll<Outcome> {
        match self.set(place, Place::Waiting(None)) {
            Place::Done(outcome) => {
                self.release(place);
                Poll::Ready(outcome)
            }
            Place::Waiting(waker) => {
                let waker = match waker {
                    Some(waker) if waker.will_wake(context.waker()) => waker,
                    _ => context.waker().clone(),
                };
                self.set(place, Place::Waiting(Some(waker)));
                Poll::Pending
            }
            before @ (Place::Free | Place::Abandoned) => {
                self.set(place, before);
                Poll::Ready(Err(IoError::Internal))
            }
        }
    }

    fn abandon(&mut self, place: u16) {
        match self.set(place, Place::Abandoned) {
            Place::Waiting(_) | Place::Abandoned => {}
            Place::Done(_) => self.release(place),
            Place::Free => drop(self.set(place, Place::Free)),
        }
    }
}

/// What the device, its completions and the task that takes replies share.
struct Sender {
    lane: Arc<Lane>,
    places: RefCell<Places>,
    /// The device was dropped: the task goes on until nothing is under way.
    closed: Cell<bool>,
    /// The owner answers no more.
    ended: Cell<bool>,
}

impl Sender {
    fn send(self: &Rc<Self>, request: Request) -> Completion {
        if self.ended.get() {
            return Completion::failed(IoError::Gone);
        }
        let Some(place) = self.places.borrow_mut().take() else {
            return Completion::failed(IoError::ResourceShortage);
        };
        if let Err(error) = self.lane.send(place, request) {
            self.places.borrow_mut().release(place);
            return Completion::failed(error);
        }
        Completion::from_future(Awaited {
            sender: self.clone(),
            place: Some(place),
        })
    }

    /// Takes replies until there are no more to come.
    fn poll_replies(&self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            match self.lane.poll_reply(context) {
                Poll::Ready(Some((place, outcome))) => self.complete(place, outcome),
                Poll::Ready(None) => {
                    self.ended.set(true);
                    for place in 0..LANE_REQUESTS_MAX {
                        self.fail(place);
                    }
                    return Poll::Ready(());
                }
                Poll::Pending if self.closed.get() && self.places.borrow().under_way() == 0 => {
                    return Poll::Ready(());
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn complete(&self, place: u16, outcome: Outcome) {
        // Not while the places are borrowed: whoever is woken may look.
        let waker = self.places.borrow_mut().complete(place, outcome);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn fail(&self, place: u16) {
        let is_free = matches!(
            self.places.borrow().places.get(usize::from(place)),
            Some(Place::Free) | None
        );
        if !is_free {
            self.complete(place, Err(IoError::Gone));
        }
    }
}

/// Tells the owner when no reply is taken any more, whichever way the task ended.
struct HangUp(Rc<Sender>);

impl Drop for HangUp {
    fn drop(&mut self) {
        self.0.lane.hang_up();
    }
}

/// The outcome of a request that is at the owner.
struct Awaited {
    sender: Rc<Sender>,
    /// `None` once the outcome was taken.
    place: Option<u16>,
}

impl Future for Awaited {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Outcome> {
        let Some(place) = self.place else {
            return Poll::Ready(Err(IoError::Internal));
        };
        let outcome = self.sender.places.borrow_mut().poll(place, context);
        if outcome.is_ready() {
            self.place = None;
        }
        outcome
    }
}

impl Drop for Awaited {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            self.sender.places.borrow_mut().abandon(place);
        }
    }
}

/// See the module.
pub(super) struct Forwarding<T> {
    sender: Rc<Sender>,
    device: Arc<Owned<T>>,
    /// The geometry but for the block count, which is `blocks`.
    geometry: Geometry,
    blocks: Arc<AtomicU64>,
}

impl<T: BlockDevice + 'static> Forwarding<T> {
    /// Begins a lane to the owner of a device, and returns its near end.
    ///
    /// # Errors
    ///
    /// The owner cannot be asked.
    pub(super) async fn begin(
        device: &Arc<Owned<T>>,
        geometry: Geometry,
        blocks: &Arc<AtomicU64>,
    ) -> Result<Self, IoError> {
        let lane = Lane::new();
        let far = lane.clone();
        let begun = device.call(move |device| async move {
            spawn(LaneEnd::new(far, device).run()).detach();
        });
        begun.await.map_err(|error| as_io(&error))?;
        Ok(Self::new(lane, device.clone(), geometry, blocks.clone()))
    }

    /// The near end of a lane whose far end the owner of the device has begun to look at.
    fn new(lane: Arc<Lane>, device: Arc<Owned<T>>, geometry: Geometry, blocks: Arc<AtomicU64>) -> Self {
        let sender = Rc::new(Sender {
            lane,
            places: Places::new().into(),
            closed: Cell::new(false),
            ended: Cell::new(false),
        });
        let hang_up = HangUp(sender.clone());
        spawn(async move {
            std::future::poll_fn(|context| hang_up.0.poll_replies(context)).await;
        })
        .detach();
        Self {
            sender,
            device,
            geometry,
            blocks,
        }
    }
}

impl<T: BlockDevice + 'static> BlockDevice for Forwarding<T> {
    fn geometry(&self) -> Geometry {
        Geometry {
            blocks: self.blocks.load(Ordering::Relaxed),
            ..self.geometry
        }
    }

    fn submit(&self, request: Request) -> Completion {
        match request.check(&self.geometry()) {
            Ok(()) => self.sender.send(request),
            Err(error) => Completion::failed(error),
        }
    }

    fn allocation(&self, block: u64, blocks: u64, runs_max: usize) -> AllocationQuery {
        let device = self.device.clone();
        Box::pin(async move {
            let answer = device.call(move |device| device.allocation(block, blocks, runs_max));
            answer.await.map_err(|error| as_io(&error))?
        })
    }
}

impl<T> Drop for Forwarding<T> {
    fn drop(&mut self) {
        self.sender.closed.set(true);
        self.sender.lane.wake_sender();
    }
}

/// What a request for a reactor that cannot be asked returns.
pub(super) fn as_io(error: &RemoteCallError) -> IoError {
    match error {
        RemoteCallError::MailboxFull(_) => IoError::ResourceShortage,
        RemoteCallError::Stopped(_) => IoError::Gone,
        RemoteCallError::WouldBlock(_) => IoError::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// There is a lane for each volume and reactor: what one takes is a promise to engines with many of them.
    #[test]
    fn a_lane_takes_less_than_330_kibibytes() {
        // Each with the stamp of a place in a queue, or the number of a free one.
        let near = size_of::<Place>() + size_of::<u16>();
        let queues = size_of::<(u16, Request)>() + size_of::<(u16, Outcome)>() + 2 * size_of::<usize>();
        let far = size_of::<Option<Completion>>() + 2 * size_of::<u16>();
        let bytes = usize::from(LANE_REQUESTS_MAX) * (near + queues + far);
        assert!(bytes < 330 << 10, "{bytes} bytes");
    }

    #[test]
    fn places_come_back_whichever_way_a_request_ends() {
        let mut places = Places::new();
        let mut context = Context::from_waker(Waker::noop());
        let [waited, dropped, late] = [(); 3].map(|()| places.take().unwrap());
        assert!(places.poll(waited, &mut context).is_pending());
        assert!(places.complete(waited, Ok(pollux_device::Reply::Done)).is_some());
        assert!(places.poll(waited, &mut context).is_ready());
        // Dropped before the reply, and after it.
        places.abandon(dropped);
        assert_eq!(places.under_way(), 2);
        assert!(places.complete(dropped, Err(IoError::Gone)).is_none());
        assert!(places.complete(late, Err(IoError::Gone)).is_none());
        places.abandon(late);
        assert_eq!(places.under_way(), 0);
        // A reply to nothing changes nothing.
        assert!(places.complete(late, Err(IoError::Gone)).is_none());
        assert_eq!(places.under_way(), 0);
        let all: Vec<u16> = std::iter::from_fn(|| places.take()).collect();
        assert_eq!(all.len(), usize::from(LANE_REQUESTS_MAX));
    }
}
