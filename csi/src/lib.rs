//! The Pollux CSI driver.
//!
//! Two services, one program. The *controller* service turns what an orchestrator asks for into calls to the
//! control plane; it keeps nothing itself, so any number of it may run and each may end at any moment. The
//! *node* service connects volumes to the machine that it runs on by the kernel's own NVMe over Fabrics
//! host, makes file systems, and mounts them. What it did is written down before it is done, so that it can
//! be undone by a process that knows nothing.
//!
//! Every call is idempotent: repeated, run twice at once or cut off at any point, it ends in one result.

#![forbid(unsafe_code)]

pub mod call;
pub mod capability;
pub mod cli;
pub mod control;
pub mod controller;
pub mod error;
pub mod hold;
pub mod host;
pub mod identity;
pub mod metrics;
pub mod names;
pub mod node;
pub mod parameters;
pub mod pods;
pub mod secrets;
pub mod serve;
pub mod topology;
