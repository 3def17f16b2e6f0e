//! The NVMe/TCP target: connections that move bytes, and queues that execute commands.

pub mod connection;
pub mod queue;
