//! The atomics of [`sleep_flag`](super::sleep_flag): a model checker compiles that file with its own.

pub(super) use std::sync::atomic::{AtomicU8, Ordering, fence};
