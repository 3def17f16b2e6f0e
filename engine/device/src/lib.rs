//! The BlockDevice trait and the devices that implement it.
