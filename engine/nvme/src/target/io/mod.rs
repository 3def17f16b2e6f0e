//! I/O queues: the NVM command set on block devices.
//!
//! The path of a read or write whose device answers at once: [`queue`] checks the command ([`decode`]),
//! looks the namespace up in the reactor's own table ([`view`], [`attached`]), asks the [`gate`], and
//! submits to the device ([`transfer`]). No lock, no heap memory, nothing awaited. Whatever has to wait
//! goes through [`slow`].

mod attached;
mod decode;
mod fused;
mod gate;
mod guard;
mod in_device;
mod loss;
mod queue;
mod ranges;
mod reservations;
mod slow;
mod transfer;
mod view;

pub(crate) use attached::Attached;
pub(crate) use gate::BlockRange;
pub(crate) use guard::{Exclusive, FusedGuard};
pub(crate) use queue::IoQueue;
pub(crate) use ranges::flush_all;
pub(crate) use view::View;

/// The largest fused compare and write, in blocks (ACWU + 1).
pub(crate) const FUSED_BLOCKS_MAX: u32 = fused::BLOCKS_MAX;
