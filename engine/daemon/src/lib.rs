//! The `pollux-engine` daemon: settings, services, wiring and shutdown.
//!
//! Two kinds of threads meet here and nowhere else: reactors, which never wait, and the few threads of tokio that
//! serve the control interface. The latter ask the former by messages.

#![forbid(unsafe_code)]

pub mod cli;
pub mod doctor;
pub mod logging;
pub mod settings;
pub mod table;
