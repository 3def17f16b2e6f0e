//! What both ends of an NVMe/TCP connection have in common: bytes in, bytes out, and a last word.

pub(crate) use pollux_reactor::net::{Input, Output, finish, flush};
