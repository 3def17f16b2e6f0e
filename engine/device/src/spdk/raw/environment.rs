//! Start-up of SPDK's environment, its log and its clock.

use std::ffi::{CStr, CString, c_char, c_int};
use std::time::Duration;

use pollux_spdk_sys as sys;

use super::{Errno, check};

/// How the environment is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Start {
    /// The processors that the starting thread may use, as `0,2,3`.
    pub(in super::super) processors: String,
    /// Whether drives on PCI are wanted.
    pub(in super::super) pci: bool,
    /// Whether its own memory is on huge pages; else it is `ordinary_mib`, and there is no PCI.
    pub(in super::super) huge_pages: bool,
    /// Its own memory without huge pages, in MiB.
    pub(in super::super) ordinary_mib: i32,
}

/// Starts the environment; to be called once in a process. The calling thread becomes DPDK's first, which
/// binds it to the processors given: it should be one that ends.
pub(in super::super) fn start(settings: &Start) -> Result<(), Errno> {
    let text = |text: &str| CString::new(text).map_err(|_| Errno(libc::EINVAL));
    let name = text("pollux")?;
    // DPDK's one and only logical core, on all processors of the process: it is never asked to run anything.
    let cores = text(&format!("0@({})", settings.processors))?;
    let virtual_addresses = c"va";
    // Of what DPDK says, errors only.
    let context = c"--log-level=lib.eal:4";
    // SAFETY: all zeros is a value of every field of these options, which SPDK fills in first; their size
    // tells it how many fields there are.
    let mut options: sys::spdk_env_opts = unsafe { std::mem::zeroed() };
    options.opts_size = size_of::<sys::spdk_env_opts>();
    // SAFETY: the options are initialised and ours alone.
    unsafe { sys::spdk_env_opts_init(&mut options) };
    options.name = name.as_ptr();
    options.core_mask = std::ptr::null();
    options.lcore_map = cores.as_ptr();
    options.no_pci = !settings.pci;
    options.env_context = context.as_ptr().cast_mut().cast();
    if settings.huge_pages {
        // With PCI, SPDK finds out what the IOMMU can do, and uses physical addresses where it must.
        if !settings.pci {
            options.iova_mode = virtual_addresses.as_ptr();
        }
    } else {
        options.no_huge = true;
        options.mem_size = settings.ordinary_mib;
    }
    // SAFETY: the texts that the options point to live until the call returns, and SPDK copies them. The
    // caller sees to it that this is the first and only call.
    check(unsafe { sys::spdk_env_init(&options) }).map(drop)
}

static LAST_ACT: std::sync::OnceLock<fn()> = std::sync::OnceLock::new();

/// Has the process call `act` when it exits, before SPDK and DPDK take their memory apart. To be called when
/// the environment is started.
pub(in super::super) fn at_exit(act: fn()) {
    extern "C" fn call() {
        if let Some(act) = LAST_ACT.get() {
            act();
        }
    }
    if LAST_ACT.set(act).is_ok() {
        // SAFETY: the function lives as long as the program, and does not unwind: an `extern "C"` function
        // that would ends the process. What is registered last is called first.
        let refused = unsafe { libc::atexit(call) };
        if refused != 0 {
            tracing::warn!("drives are not detached when the process exits: there is no room for it");
        }
    }
}

/// How much a line of the log matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Level {
    Error,
    Warning,
    Other,
}

/// What takes the lines of the log, from any thread.
type Sink = fn(Level, &str, &str);

static SINK: std::sync::OnceLock<Sink> = std::sync::OnceLock::new();

/// Has SPDK give each line of its log, with the function it comes from, to `sink`.
pub(in super::super) fn log_to(sink: Sink) {
    if SINK.set(sink).is_ok() {
        // SAFETY: the function lives as long as the program, and takes calls from any thread.
        unsafe { sys::pollux_spdk_log_to(Some(log_line)) };
    }
}

/// Called by SPDK on whatever thread has something to say.
extern "C" fn log_line(level: c_int, function: *const c_char, text: *const c_char) {
    let level = match level {
        sys::spdk_log_level::SPDK_LOG_ERROR => Level::Error,
        sys::spdk_log_level::SPDK_LOG_WARN => Level::Warning,
        _ => Level::Other,
    };
    if let Some(sink) = SINK.get() {
        // SAFETY: both are texts with a zero at the end that live until this function returns.
        let (function, text) = unsafe { (CStr::from_ptr(function), CStr::from_ptr(text)) };
        sink(
            level,
            &function.to_string_lossy(),
            text.to_string_lossy().trim_end(),
        );
    }
}

/// Time since some point in the past, by the processor's own counter. The environment must be started.
pub(in super::super) fn clock() -> Duration {
    // SAFETY: both only read a counter and a constant.
    let (ticks, ticks_per_second) = unsafe { (sys::spdk_get_ticks(), sys::spdk_get_ticks_hz()) };
    let ticks_per_second = ticks_per_second.max(1);
    let nanoseconds = u128::from(ticks) * 1_000_000_000 / u128::from(ticks_per_second);
    Duration::from_nanos(nanoseconds as u64)
}

/// Whether a transport of this name (`TCP`, `RDMA`) is in the SPDK that was linked.
pub(in super::super) fn has_transport(name: &CStr) -> bool {
    // SAFETY: a text with a zero at the end that lives until the call returns.
    unsafe { sys::spdk_nvme_transport_available_by_name(name.as_ptr()) }
}
