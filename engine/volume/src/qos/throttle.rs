//! What all reactors share of the limits of a volume, and the device that keeps them.

use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pollux_device::events::Subscription;
use pollux_device::{Attaching, BlockDevice, Device, Geometry, Growing, Health};
use uuid::Uuid;

use super::limits::{Qos, QosError};
use super::plan::Plan;
use super::queue::ThrottledQueue;
use super::share::{Backend, Member, SharedQueue};

/// How often the limits were changed, and in the lowest bit whether there are any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp(u64);

impl Stamp {
    pub(super) const NONE: Self = Self(0);

    #[inline]
    pub(super) fn is_limited(self) -> bool {
        self.0 & 1 == 1
    }
}

#[derive(Debug, Default)]
struct State {
    qos: Qos,
    /// Nothing is held any more, whatever is set.
    is_lifted: bool,
    size_bytes: u64,
    plan: Arc<Plan>,
}

/// What was held so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Throttled {
    /// Requests that were held, also those that are.
    pub requests: u64,
    /// The time for which those were held that are not any more, altogether.
    pub held: Duration,
    /// Requests that are held now.
    pub waiting: u64,
}

/// The limits and the weight of a volume, which can be changed at any time.
#[derive(Debug, Default)]
pub struct Throttle {
    stamp: AtomicU64,
    member: Arc<Member>,
    state: Mutex<State>,
    requests: AtomicU64,
    held_ns: AtomicU64,
    waiting: AtomicU64,
}

impl Throttle {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change is complete when the lock is given back.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets limits and the weight, from now on; the same as before change nothing. Requests that are held are
    /// judged anew within 50 ms. Credit for bursts begins anew with other limits.
    ///
    /// # Errors
    ///
    /// [`QosError`]: nothing has changed then.
    pub fn set(&self, qos: &Qos) -> Result<(), QosError> {
        qos.check()?;
        let mut state = self.lock();
        let is_limit_new = state.qos.limits() != qos.limits() || state.is_lifted;
        state.qos = *qos;
        state.is_lifted = false;
        if is_limit_new {
            self.renew(&mut state);
        }
        self.member.set_weight(qos.weight);
        self.member.set_lifted(false);
        Ok(())
    }

    /// The volume has its data on this backend from now on, and shares it by weight; `None` if it shares
    /// nothing.
    pub fn join(&self, backend: Option<&Arc<Backend>>) {
        self.member.join(backend);
    }

    pub(super) fn member(&self) -> &Arc<Member> {
        &self.member
    }

    /// What is set.
    pub fn qos(&self) -> Qos {
        self.lock().qos
    }

    /// Lets everything pass from now on, until limits are set again: what is held begins within 50 ms. For
    /// a volume that is to be served no more.
    pub fn lift(&self) {
        let mut state = self.lock();
        if !std::mem::replace(&mut state.is_lifted, true) {
            self.renew(&mut state);
        }
        self.member.set_lifted(true);
    }

    /// What was held so far.
    pub fn read(&self) -> Throttled {
        Throttled {
            requests: self.requests.load(Ordering::Relaxed),
            held: Duration::from_nanos(self.held_ns.load(Ordering::Relaxed)),
            waiting: self.waiting.load(Ordering::Relaxed),
        }
    }

    /// The volume has this size.
    pub(super) fn resize(&self, size_bytes: u64) {
        let mut state = self.lock();
        if std::mem::replace(&mut state.size_bytes, size_bytes) != size_bytes && state.qos.is_scaled() {
            self.renew(&mut state);
        }
    }

    fn renew(&self, state: &mut State) {
        let is_limited = !state.is_lifted && !state.qos.is_unlimited();
        state.plan = match is_limited {
            true => Arc::new(Plan::new(&state.qos, state.size_bytes)),
            false => Arc::default(),
        };
        let changes = self.stamp.load(Ordering::Relaxed) >> 1;
        let stamp = ((changes + 1) << 1) | u64::from(is_limited);
        self.stamp.store(stamp, Ordering::Release);
    }

    #[inline]
    pub(super) fn stamp(&self) -> Stamp {
        Stamp(self.stamp.load(Ordering::Acquire))
    }

    /// The buckets, their stamp, and whether the size of the volume counts.
    pub(super) fn current(&self) -> (Stamp, Arc<Plan>, bool) {
        let state = self.lock();
        (self.stamp(), state.plan.clone(), state.qos.is_scaled())
    }

    pub(super) fn began_to_wait(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.waiting.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn waited(&self, span: Duration) {
        let span_ns = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        self.held_ns.fetch_add(span_ns, Ordering::Relaxed);
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A device around another one that keeps the limits of a volume, and its share.
pub struct ThrottledDevice {
    inner: Arc<dyn Device>,
    throttle: Arc<Throttle>,
}

impl ThrottledDevice {
    /// A device around `inner`, which goes by the same name, without limits at first.
    pub fn new(inner: Arc<dyn Device>) -> Arc<Self> {
        let throttle = Throttle::default();
        throttle.resize(inner.geometry().bytes());
        Arc::new(Self {
            inner,
            throttle: Arc::new(throttle),
        })
    }

    /// Its limits.
    pub fn throttle(&self) -> &Arc<Throttle> {
        &self.throttle
    }
}

impl Device for ThrottledDevice {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn uuid(&self) -> Option<Uuid> {
        self.inner.uuid()
    }

    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn attach(self: Arc<Self>) -> Attaching {
        Box::pin(async move {
            let queue = self.inner.clone().attach().await?;
            let shared = Rc::new(SharedQueue::new(queue, self.throttle.clone()));
            let throttled = ThrottledQueue::new(shared, self.throttle.clone());
            Ok(Rc::new(throttled) as Rc<dyn BlockDevice>)
        })
    }

    fn subscribe(&self) -> Subscription {
        self.inner.subscribe()
    }

    fn grow_to(self: Arc<Self>, bytes: u64) -> Growing {
        self.inner.clone().grow_to(bytes)
    }

    fn has_lost_caches(&self) -> bool {
        self.inner.has_lost_caches()
    }

    fn health(&self) -> Health {
        self.inner.health()
    }
}
