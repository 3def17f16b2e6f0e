//! Huge pages: discovery, reservation, arenas and lock-free per-reactor buffer pools.
