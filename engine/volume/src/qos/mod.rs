//! Quality of service: what all hosts together may ask of a volume, and what it gets next to others.
//!
//! [`ThrottledDevice`] stands between what serves a volume and its device. Requests that are within the
//! limits of its [`Throttle`] pass; others are held until they are. Invariants:
//!
//! - There is one [`Throttle`] for a volume. Each request is charged to it exactly once, whichever reactor
//!   asks, before it begins; so what all reactors pass together keeps the limits.
//! - A request that is held has not begun. Dropping it takes it back, and what it was charged with too.
//! - Of each connection, and of its reads and its writes apart, the requests that are held begin in the order
//!   in which they came. Connections take turns.
//! - Flushes are never held, and a request of any size passes.
//! - Without limits and weights a request costs one look each at numbers that nobody writes.
//! - What is within the limits then waits for its share, if volumes that have their data on the same share
//!   it by weight: see [`Backend`].
//!
//! `docs/decisions/qos.md` tells why it is done like this.

mod bucket;
mod limits;
mod plan;
mod queue;
mod share;
mod throttle;

pub use limits::{Burst, Limits, Qos, QosError, Rate, WEIGHT_DEFAULT, WEIGHT_MAX};
pub use share::Backend;
pub use throttle::{Throttle, Throttled, ThrottledDevice};
