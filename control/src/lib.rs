//! The Pollux control plane.

#![forbid(unsafe_code)]
