//! Replicated volumes: one target mirrors a volume to its in-sync replicas and acknowledges a write when all
//! of them have it.
//!
//! - [`membership`] is who takes part: epoch, version, the in-sync set, and the store that holds them.
//! - [`metadata`] is the reserved area at the end of each replica's device.
//! - [`mirror`] is the target: a block device over the replicas.
//! - [`qos`] is what hosts may ask of a volume.
//! - [`replica`] is the host of a replica, which serves the newest target and no other.
//!
//! The protocol, and why it keeps the promises, is in `docs/decisions/replication.md`.

#![forbid(unsafe_code)]

mod locks;
mod members;
pub mod membership;
pub mod metadata;
pub mod mirror;
pub mod qos;
mod regions;
pub mod replica;
