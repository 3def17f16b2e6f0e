//! A controller and its admin queue.
//!
//! SPDK guards a controller by a lock of its own, so that its functions may be called from any thread. What
//! is not guarded is read only: the pages that identify the controller and its namespaces, which change when
//! it is reset, and then no queue is there to read them.

use std::ffi::{CString, c_void};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use pollux_spdk_sys as sys;

use super::environment::clock;
use super::memory::DmaBuffer;
use super::{Errno, check};

/// Bytes of a page that identifies something (NVMe Base, Identify Data Structure).
pub(in super::super) const IDENTIFY_BYTES: usize = 4096;

/// Bytes of the SMART / Health log (NVMe Base, Get Log Page 02h).
pub(in super::super) const HEALTH_BYTES: usize = 512;

/// Pause between two looks at the admin queue while a thread waits for something.
const LOOK_PERIOD: Duration = Duration::from_millis(1);

/// Held while a controller is attached or detached: one at a time.
static ATTACHING: Mutex<()> = Mutex::new(());

/// How a controller is to be connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Connect {
    /// SPDK's text for where it is: `trtype:PCIe traddr:0000:5e:00.0`.
    pub(in super::super) transport_id: String,
    /// This host's qualified name, for fabrics; SPDK makes one up without it.
    pub(in super::super) host_nqn: Option<String>,
    /// This host's identifier, for fabrics.
    pub(in super::super) host_id: Option<[u8; 16]>,
    /// Entries of I/O queues.
    pub(in super::super) queue_entries: u32,
    /// Keep alive timeout, in milliseconds.
    pub(in super::super) keep_alive_ms: u32,
    /// Time for an admin command, in milliseconds.
    pub(in super::super) admin_timeout_ms: u32,
}

/// What SPDK knows about a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct NamespaceFacts {
    /// The page that identifies it.
    pub(in super::super) page: Vec<u8>,
    pub(in super::super) block_bytes: u32,
    pub(in super::super) blocks: u64,
    /// Bytes of metadata of a block.
    pub(in super::super) metadata_bytes: u32,
    /// The drive makes, checks and strips what guards a block, when it is told to.
    pub(in super::super) is_guarded: bool,
    /// Bytes of the largest command.
    pub(in super::super) transfer_bytes_max: u32,
    pub(in super::super) supports_compare: bool,
    pub(in super::super) supports_write_zeroes: bool,
}

/// An attached controller; detached when dropped, which may take seconds: not to be dropped on a reactor.
pub(in super::super) struct Controller(NonNull<sys::spdk_nvme_ctrlr>);

// SAFETY: a controller belongs to the process; SPDK locks what several threads reach (see the module).
unsafe impl Send for Controller {}
// SAFETY: as above.
unsafe impl Sync for Controller {}

impl Controller {
    /// Attaches a controller; blocks until it is ready.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a text that is none, `ENODEV` when no controller answers there; SPDK's log tells why.
    pub(in super::super) fn connect(connect: &Connect) -> Result<Self, Errno> {
        let text = CString::new(connect.transport_id.as_str()).map_err(|_| Errno(libc::EINVAL))?;
        // SAFETY: all zeros is an empty transport identifier.
        let mut identifier: sys::spdk_nvme_transport_id = unsafe { std::mem::zeroed() };
        // SAFETY: both live until the call returns.
        check(unsafe { sys::spdk_nvme_transport_id_parse(&mut identifier, text.as_ptr()) })?;
        let options_bytes = size_of::<sys::spdk_nvme_ctrlr_opts>();
        // SAFETY: all zeros is a value of these options; SPDK fills in what their size leaves room for.
        let mut options: sys::spdk_nvme_ctrlr_opts = unsafe { std::mem::zeroed() };
        // SAFETY: the options are ours.
        unsafe { sys::spdk_nvme_ctrlr_get_default_ctrlr_opts(&mut options, options_bytes) };
        options.io_queue_size = connect.queue_entries;
        options.keep_alive_timeout_ms = connect.keep_alive_ms;
        options.admin_timeout_ms = connect.admin_timeout_ms;
        // Errors of commands go to whoever sent them.
        options.disable_error_logging = true;
        if let Some(name) = &connect.host_nqn {
            // The last byte stays zero.
            let room = options.hostnqn.len().saturating_sub(1);
            options.hostnqn.fill(0);
            for (into, byte) in options.hostnqn.iter_mut().take(room).zip(name.bytes()) {
                *into = byte.cast_signed() as _;
            }
        }
        if let Some(id) = connect.host_id {
            options.extended_host_id = id;
        }
        let _attaching = ATTACHING.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the identifier and the options live until the call returns, and SPDK copies them.
        let controller = unsafe { sys::spdk_nvme_connect(&identifier, &options, options_bytes) };
        NonNull::new(controller).map(Self).ok_or(Errno(libc::ENODEV))
    }

    pub(super) fn as_ptr(&self) -> *mut sys::spdk_nvme_ctrlr {
        self.0.as_ptr()
    }

    /// Takes the completions of admin commands, and sends a keep alive when it is time.
    ///
    /// # Errors
    ///
    /// The controller is lost, or disabled.
    pub(in super::super) fn poll_admin(&self) -> Result<(), Errno> {
        // SAFETY: the controller is attached while `self` lives.
        check(unsafe { sys::spdk_nvme_ctrlr_process_admin_completions(self.as_ptr()) }).map(drop)
    }

    /// Whether the drive was pulled, or somebody asked for it back.
    pub(in super::super) fn is_removed(&self) -> bool {
        // SAFETY: the controller is attached while `self` lives; only those on PCI have a device.
        unsafe {
            let device = sys::spdk_nvme_ctrlr_get_pci_device(self.as_ptr());
            !device.is_null() && sys::spdk_pci_device_is_removed(device)
        }
    }

    /// Whether it has failed for good.
    pub(in super::super) fn is_failed(&self) -> bool {
        // SAFETY: as in `poll_admin`.
        unsafe { sys::spdk_nvme_ctrlr_is_failed(self.as_ptr()) }
    }

    /// Makes everything on it fail from now on.
    pub(in super::super) fn fail(&self) {
        // SAFETY: as in `poll_admin`.
        unsafe { sys::spdk_nvme_ctrlr_fail(self.as_ptr()) };
    }

    /// Disables the controller: from then on it reaches no memory. No queue may be polled or given commands
    /// meanwhile. Blocks, `time` at most.
    ///
    /// # Errors
    ///
    /// It is gone, or does not become disabled in time.
    pub(in super::super) fn disable(&self, time: Duration) -> Result<(), Errno> {
        // SAFETY: as in `poll_admin`.
        check(unsafe { sys::spdk_nvme_ctrlr_disconnect(self.as_ptr()) })?;
        let deadline = clock() + time;
        loop {
            match self.poll_admin() {
                Err(Errno(libc::ENXIO)) => return Ok(()),
                _ if clock() >= deadline => return Err(Errno(libc::ETIMEDOUT)),
                _ => pause(),
            }
        }
    }

    /// Enables a disabled controller. Every queue pair must have been freed. Blocks, for as long as the
    /// controller says that it may take.
    ///
    /// # Errors
    ///
    /// It did not become ready, and has failed.
    pub(in super::super) fn enable(&self) -> Result<(), Errno> {
        // SAFETY: as in `poll_admin`. SPDK keeps its lock from the first call to the last of these, which all
        // are on this thread; its own timeouts end the loop.
        let code = unsafe {
            sys::spdk_nvme_ctrlr_reconnect_async(self.as_ptr());
            loop {
                let code = sys::spdk_nvme_ctrlr_reconnect_poll_async(self.as_ptr());
                if code != -libc::EAGAIN {
                    break code;
                }
                pause();
            }
        };
        if code == 0 { Ok(()) } else { Err(Errno(libc::EIO)) }
    }

    /// The page that identifies it.
    pub(in super::super) fn page(&self) -> Vec<u8> {
        // SAFETY: as in `poll_admin`; the page is a part of the controller.
        unsafe { copy_page(sys::spdk_nvme_ctrlr_get_data(self.as_ptr()).cast()) }
    }

    /// The most pieces of memory that one command may have.
    pub(in super::super) fn pieces_max(&self) -> u16 {
        // SAFETY: as in `poll_admin`.
        unsafe { sys::spdk_nvme_ctrlr_get_max_sges(self.as_ptr()) }
    }

    /// The numbers of its active namespaces, `most` at most.
    pub(in super::super) fn namespaces(&self, most: usize) -> Vec<u32> {
        let mut found = Vec::new();
        // SAFETY: as in `poll_admin`.
        let mut id = unsafe { sys::spdk_nvme_ctrlr_get_first_active_ns(self.as_ptr()) };
        while id != 0 && found.len() < most {
            found.push(id);
            // SAFETY: as above.
            id = unsafe { sys::spdk_nvme_ctrlr_get_next_active_ns(self.as_ptr(), id) };
        }
        found
    }

    pub(super) fn active_namespace(&self, id: u32) -> Option<NonNull<sys::spdk_nvme_ns>> {
        // SAFETY: as in `poll_admin`; a namespace is there until the controller is reset.
        unsafe {
            if !sys::spdk_nvme_ctrlr_is_active_ns(self.as_ptr(), id) {
                return None;
            }
            NonNull::new(sys::spdk_nvme_ctrlr_get_ns(self.as_ptr(), id))
        }
    }

    /// How many blocks a namespace has now; `None` if there is no such namespace any more.
    pub(in super::super) fn namespace_blocks(&self, id: u32) -> Option<u64> {
        let namespace = self.active_namespace(id)?;
        // SAFETY: as in `active_namespace`, on the thread that resets.
        Some(unsafe { sys::spdk_nvme_ns_get_num_sectors(namespace.as_ptr()) })
    }

    /// What is known about a namespace; `None` if there is none of this number.
    pub(in super::super) fn namespace(&self, id: u32) -> Option<NamespaceFacts> {
        use sys::spdk_nvme_ns_flags::{SPDK_NVME_NS_COMPARE_SUPPORTED, SPDK_NVME_NS_WRITE_ZEROES_SUPPORTED};
        let namespace = self.active_namespace(id)?.as_ptr();
        // SAFETY: as in `active_namespace`; the page is a part of the namespace.
        unsafe {
            let flags = sys::spdk_nvme_ns_get_flags(namespace);
            Some(NamespaceFacts {
                page: copy_page(sys::spdk_nvme_ns_get_data(namespace).cast()),
                block_bytes: sys::spdk_nvme_ns_get_sector_size(namespace),
                blocks: sys::spdk_nvme_ns_get_num_sectors(namespace),
                metadata_bytes: sys::spdk_nvme_ns_get_md_size(namespace),
                is_guarded: super::queue::Protection::of(namespace) != super::queue::Protection::None,
                transfer_bytes_max: sys::spdk_nvme_ns_get_max_io_xfer_size(namespace),
                supports_compare: flags & SPDK_NVME_NS_COMPARE_SUPPORTED != 0,
                supports_write_zeroes: flags & SPDK_NVME_NS_WRITE_ZEROES_SUPPORTED != 0,
            })
        }
    }

    /// Begins to read the SMART / Health log of the whole controller; the answer comes with
    /// [`Controller::poll_admin`].
    ///
    /// # Errors
    ///
    /// `ENOMEM`, and SPDK's own.
    pub(in super::super) fn read_health(&self) -> Result<HealthRead, Errno> {
        let read = HealthRead {
            page: Some(DmaBuffer::new(HEALTH_BYTES).ok_or(Errno(libc::ENOMEM))?),
            answer: Some(Box::new(AtomicU8::new(OPEN))),
        };
        let (Some(page), Some(answer)) = (&read.page, &read.answer) else {
            return Err(Errno(libc::EINVAL));
        };
        // SAFETY: the page and the answer live until the command is answered, or are leaked.
        let code = unsafe {
            sys::spdk_nvme_ctrlr_cmd_get_log_page(
                self.as_ptr(),
                HEALTH_LOG,
                ALL_NAMESPACES,
                page.as_ptr(),
                HEALTH_BYTES as u32,
                0,
                Some(answered),
                std::ptr::from_ref(&**answer).cast_mut().cast(),
            )
        };
        if code != 0 {
            // It was not taken, and nobody will answer.
            answer.store(BAD, Ordering::Release);
        }
        check(code)?;
        Ok(read)
    }
}

/// Not answered; answered well; answered otherwise.
const OPEN: u8 = 0;
const GOOD: u8 = 1;
const BAD: u8 = 2;

/// A health log on its way. Dropped before it is there, its memory is leaked: the drive may still write to
/// it.
pub(in super::super) struct HealthRead {
    page: Option<DmaBuffer>,
    answer: Option<Box<AtomicU8>>,
}

impl HealthRead {
    /// The log, once there is an answer; `EIO` if the controller refused.
    pub(in super::super) fn result(&self) -> Option<Result<Vec<u8>, Errno>> {
        match self.answer.as_ref()?.load(Ordering::Acquire) {
            GOOD => Some(Ok(self.page.as_ref()?.to_vec())),
            BAD => Some(Err(Errno(libc::EIO))),
            _ => None,
        }
    }
}

impl Drop for HealthRead {
    fn drop(&mut self) {
        let is_open = |answer: &AtomicU8| answer.load(Ordering::Acquire) == OPEN;
        if self.answer.as_deref().is_some_and(is_open) {
            if let Some(page) = self.page.take() {
                page.leak();
            }
            if let Some(answer) = self.answer.take() {
                Box::leak(answer);
            }
        }
    }
}

/// The health log is there, or not.
unsafe extern "C" fn answered(context: *mut c_void, completion: *const sys::spdk_nvme_cpl) {
    // SAFETY: the context is the answer in a `HealthRead`, or has leaked, and is atomic: whatever thread
    // polls the admin queue calls this. The completion lives until this returns.
    let (answer, status) = unsafe { (&*context.cast::<AtomicU8>(), sys::completion_status(completion)) };
    let good = (status.code_type, status.code) == (0, 0);
    answer.store(if good { GOOD } else { BAD }, Ordering::Release);
}

/// The controller as a whole (NVMe Base, Namespace Identifier).
const ALL_NAMESPACES: u32 = u32::MAX;

/// SMART / Health Information (NVMe Base, Get Log Page: Log Page Identifiers).
const HEALTH_LOG: u8 = 0x02;

impl Drop for Controller {
    fn drop(&mut self) {
        let _attaching = ATTACHING.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: whoever uses the controller shares it, so nobody does any more: every queue pair is freed.
        // Detached once.
        let code = unsafe { sys::spdk_nvme_detach(self.as_ptr()) };
        if let Err(error) = check(code) {
            tracing::error!(%error, "a controller could not be detached");
        }
    }
}

/// # Safety
///
/// `page` begins a page that identifies something, and nobody writes to it.
unsafe fn copy_page(page: *const u8) -> Vec<u8> {
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(page, IDENTIFY_BYTES) }.to_vec()
}

/// Leaves the processor to others for a moment. For threads that may wait.
fn pause() {
    std::thread::park_timeout(LOOK_PERIOD);
}
