//! NVMe and NVMe/TCP: wire types, target and initiator.
