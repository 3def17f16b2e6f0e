//! The queue pair of one reactor to a volume that may share what it is on.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use pollux_device::{AllocationQuery, BlockDevice, Completion, Geometry, Request};
use pollux_reactor::{Instant, Reactor};

use super::backend::units;
use super::port::Place;
use crate::qos::plan::Cost;
use crate::qos::throttle::Throttle;

/// Others are told so often that the volume asks.
const MARK_INTERVAL: Duration = Duration::from_millis(5);

/// See the module.
pub(in crate::qos) struct SharedQueue {
    device: Rc<dyn BlockDevice>,
    throttle: Arc<Throttle>,
    stamp: Cell<u64>,
    place: RefCell<Option<Rc<Place>>>,
    marked_at: Cell<Instant>,
}

impl SharedQueue {
    pub(in crate::qos) fn new(device: Rc<dyn BlockDevice>, throttle: Arc<Throttle>) -> Self {
        Self {
            device,
            throttle,
            stamp: Cell::new(0),
            place: RefCell::new(None),
            marked_at: Cell::new(Instant::ORIGIN),
        }
    }

    /// Its place at the backend, if it takes part.
    fn place(&self) -> Option<Rc<Place>> {
        let member = self.throttle.member();
        if member.stamp() == self.stamp.get() {
            return self.place.borrow().clone();
        }
        let (stamp, backend) = member.current();
        self.stamp.set(stamp);
        let before = self.place.borrow_mut().take();
        let place = backend.map(|backend| match before {
            Some(place) if Arc::ptr_eq(place.port().backend(), &backend) => place,
            Some(_) | None => Place::new(&backend, member.clone(), stamp),
        });
        self.place.borrow_mut().clone_from(&place);
        place
    }

    /// Has a request begin, or holds it.
    fn ask(&self, request: Request) -> Completion {
        let (Some(cost), Some(place)) = (Cost::of(&request), self.place()) else {
            return self.device.submit(request);
        };
        let now = Reactor::current().now();
        if now.saturating_since(self.marked_at.get()) >= MARK_INTERVAL {
            self.marked_at.set(now);
            self.throttle.member().mark(now);
        }
        let port = place.port();
        port.look(now);
        // Alone it has everything.
        if !port.backend().is_contended() && !place.has_held() {
            return self.device.submit(request);
        }
        place.ask(&self.device, &self.throttle, request, units(&cost), now)
    }
}

impl BlockDevice for SharedQueue {
    fn geometry(&self) -> Geometry {
        self.device.geometry()
    }

    #[inline]
    fn submit(&self, request: Request) -> Completion {
        if self.throttle.member().takes_part() {
            return self.ask(request);
        }
        self.device.submit(request)
    }

    fn allocation(&self, block: u64, blocks: u64, runs_max: usize) -> AllocationQuery {
        self.device.allocation(block, blocks, runs_max)
    }
}
