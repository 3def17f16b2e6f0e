//! Reactors on threads, with the sockets and files of this machine.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails it by panicking")]

mod common;
mod files;
mod sockets;
mod threads;
