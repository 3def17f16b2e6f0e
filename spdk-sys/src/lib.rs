//! Raw bindings to an installed SPDK: its NVMe driver and its environment, and nothing of its block layers.
//!
//! With the feature `spdk` the bindings are made at build time by bindgen from the headers that pkg-config
//! finds, and SPDK and DPDK are linked statically and whole: their transports register themselves in
//! constructors. Without the feature the crate is empty, and neither SPDK nor libclang is asked for.
//!
//! # Versions
//!
//! SPDK v24.09 and later. Tried:
//!
//! | SPDK | DPDK | what was run |
//! | --- | --- | --- |
//! | v24.09 | v23.11 | build, and all tests of the feature `spdk`, but for the guest with a drive |
//! | v26.05 | v26.03 | build, and all tests of the feature `spdk` |
//!
//! # To build with it
//!
//! ```text
//! apt-get install libclang-dev pkg-config
//! export PKG_CONFIG_PATH=PREFIX/lib/pkgconfig      # where SPDK was installed
//! cargo build --features spdk -p pollux-engine
//! ```
//!
//! # Safety
//!
//! Nothing here is safe to call without reading what SPDK says about it. In short: the environment is started
//! once in a process, and before anything else; an I/O queue pair belongs to one thread; callbacks run inside
//! the call that polls the queue, on the thread that makes it. `pollux_device::spdk` is the safe side.

#![no_std]

#[cfg(feature = "spdk")]
#[allow(
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unsafe_op_in_unsafe_fn,
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    reason = "generated from the headers of SPDK, which document it"
)]
mod bindings {
    include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
}

#[cfg(feature = "spdk")]
pub use bindings::*;

/// The status of a completion: status code type, status code, and whether trying again is in vain (NVMe Base,
/// Completion Queue Entry: Status Field). All zeros is success.
#[cfg(feature = "spdk")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompletionStatus {
    /// SCT.
    pub code_type: u8,
    /// SC.
    pub code: u8,
    /// DNR.
    pub do_not_retry: bool,
}

/// Reads the status of a completion, whose phase bit is no part of it.
///
/// # Safety
///
/// `completion` is what SPDK handed to a callback that has not returned yet.
#[cfg(feature = "spdk")]
pub unsafe fn completion_status(completion: *const spdk_nvme_cpl) -> CompletionStatus {
    // SAFETY: the caller's promise; every bit pattern is a status.
    let raw = unsafe { (*completion).__bindgen_anon_1.status_raw };
    CompletionStatus {
        code_type: (raw >> 9 & 7) as u8,
        code: (raw >> 1) as u8,
        do_not_retry: raw >> 15 & 1 == 1,
    }
}
