//! Pinned polled reactors: tasks, timers, messages and one io_uring.
