//! Simulated clock, drives and network for whole clusters on one thread.
