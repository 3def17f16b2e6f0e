//! The real driver: an io_uring, sockets and files of this machine.

/// The io_uring of one reactor.
pub struct Ring(());
