//! An I/O queue pair: it belongs to the thread that made it, for life.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::Arc;

use pollux_spdk_sys as sys;

use super::commands::{self, Commands};
use super::controller::Controller;
use super::{Errno, check};

/// What a command does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Verb {
    Read,
    Write,
    Compare,
    Flush,
    WriteZeroes,
}

/// A command but for its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Order {
    pub(in super::super) verb: Verb,
    /// First block.
    pub(in super::super) block: u64,
    /// How many; none for a flush.
    pub(in super::super) blocks: u32,
    /// On stable media before it completes.
    pub(in super::super) force_unit_access: bool,
    /// The drive may free the blocks that become zeros.
    pub(in super::super) deallocate: bool,
}

impl Order {
    /// Whether it may change what the drive holds.
    pub(in super::super) fn changes_data(&self) -> bool {
        match self.verb {
            Verb::Write | Verb::WriteZeroes => true,
            Verb::Read | Verb::Compare | Verb::Flush => false,
        }
    }
}

/// Deallocate, in dword 12 of a Write Zeroes command (NVMe NVM Command Set, Write Zeroes, DEAC).
const FLAG_DEALLOCATE: u32 = 1 << 25;

/// Bytes that guard a block, if they are all the metadata that it has: then the drive makes them for a write,
/// and checks and strips them for a read, and they are never transferred (NVM Command Set, Protection
/// Information and PRACT).
const GUARD_BYTES: u32 = 8;

/// What guards the blocks of a namespace end to end (NVM Command Set, End-to-end Data Protection).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protection {
    /// Nothing, or something that the drive cannot make by itself.
    None,
    /// Type 3: a guard, and no reference to the block.
    Guard,
    /// Types 1 and 2: a guard, and the low half of the block's number.
    GuardAndReference,
}

impl Protection {
    /// Of a namespace.
    ///
    /// # Safety
    ///
    /// The namespace is one of a controller that stays attached.
    pub(super) unsafe fn of(namespace: *mut sys::spdk_nvme_ns) -> Self {
        use sys::spdk_nvme_pi_format::SPDK_NVME_16B_GUARD_PI;
        use sys::spdk_nvme_pi_type::{
            SPDK_NVME_FMT_NVM_PROTECTION_TYPE1, SPDK_NVME_FMT_NVM_PROTECTION_TYPE2,
            SPDK_NVME_FMT_NVM_PROTECTION_TYPE3,
        };
        // SAFETY: the caller's promise; what is known of a namespace may be asked for on any thread.
        let (metadata_bytes, format, kind) = unsafe {
            (
                sys::spdk_nvme_ns_get_md_size(namespace),
                sys::spdk_nvme_ns_get_pi_format(namespace),
                sys::spdk_nvme_ns_get_pi_type(namespace),
            )
        };
        if metadata_bytes != GUARD_BYTES || format != SPDK_NVME_16B_GUARD_PI {
            return Self::None;
        }
        match kind {
            SPDK_NVME_FMT_NVM_PROTECTION_TYPE1 | SPDK_NVME_FMT_NVM_PROTECTION_TYPE2 => {
                Self::GuardAndReference
            }
            SPDK_NVME_FMT_NVM_PROTECTION_TYPE3 => Self::Guard,
            _ => Self::None,
        }
    }

    /// The flags that commands of a kind need.
    fn flags(self, verb: Verb) -> u32 {
        let checks = match self {
            Self::None => return 0,
            Self::Guard => sys::SPDK_NVME_IO_FLAGS_PRCHK_GUARD,
            Self::GuardAndReference => {
                sys::SPDK_NVME_IO_FLAGS_PRCHK_GUARD | sys::SPDK_NVME_IO_FLAGS_PRCHK_REFTAG
            }
        };
        match verb {
            Verb::Read => sys::SPDK_NVME_IO_FLAGS_PRACT | checks,
            Verb::Write | Verb::WriteZeroes => sys::SPDK_NVME_IO_FLAGS_PRACT,
            // Such a namespace says that it has no compare.
            Verb::Compare | Verb::Flush => 0,
        }
    }
}

/// How large a queue is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct QueueSize {
    /// Entries of the submission queue.
    pub(in super::super) entries: u32,
    /// Commands that SPDK may split requests into, under way at a time.
    pub(in super::super) requests: u32,
}

/// An I/O queue pair to one namespace.
pub(in super::super) struct QueuePair {
    pair: NonNull<sys::spdk_nvme_qpair>,
    namespace: NonNull<sys::spdk_nvme_ns>,
    block_bytes: u32,
    protection: Protection,
    /// What the contexts of commands under way point into.
    commands: Rc<Commands>,
    /// Keeps the controller attached.
    controller: Arc<Controller>,
    /// One thread's own.
    local: PhantomData<*mut ()>,
}

impl QueuePair {
    /// Makes a queue pair and begins to connect it; poll it until [`QueuePair::is_connected`].
    ///
    /// # Errors
    ///
    /// `EMFILE` if the controller works and has no queue left, or cannot be reached for one more; `ENODEV` if
    /// the namespace is gone; and SPDK's own.
    pub(in super::super) fn connect(
        controller: &Arc<Controller>,
        namespace_id: u32,
        size: QueueSize,
        commands: &Rc<Commands>,
    ) -> Result<Self, Errno> {
        let namespace = controller
            .active_namespace(namespace_id)
            .ok_or(Errno(libc::ENODEV))?;
        let options_bytes = size_of::<sys::spdk_nvme_io_qpair_opts>();
        // SAFETY: all zeros is a value of these options; SPDK fills in what their size leaves room for.
        let mut options: sys::spdk_nvme_io_qpair_opts = unsafe { std::mem::zeroed() };
        // SAFETY: the controller is attached while it is borrowed, and the options are ours.
        unsafe {
            sys::spdk_nvme_ctrlr_get_default_io_qpair_opts(controller.as_ptr(), &mut options, options_bytes);
        }
        options.io_queue_size = options.io_queue_size.min(size.entries);
        options.io_queue_requests = size.requests;
        // One doorbell for all commands of a turn: rung when completions are looked for.
        options.__bindgen_anon_1.delay_cmd_submit = true;
        options.create_only = true;
        options.async_mode = true;
        // SAFETY: as above; the pair is ours from then on.
        let pair =
            unsafe { sys::spdk_nvme_ctrlr_alloc_io_qpair(controller.as_ptr(), &options, options_bytes) };
        let Some(pair) = NonNull::new(pair) else {
            // SPDK does not tell a controller that has no queue left from one that it has lost.
            return Err(controller.poll_admin().err().unwrap_or(Errno(libc::EMFILE)));
        };
        // SAFETY: the namespace is there until the controller is reset.
        let block_bytes = unsafe { sys::spdk_nvme_ns_get_sector_size(namespace.as_ptr()) };
        // SAFETY: as above.
        let protection = unsafe { Protection::of(namespace.as_ptr()) };
        let made = Self {
            pair,
            namespace,
            block_bytes,
            protection,
            commands: Rc::clone(commands),
            controller: Arc::clone(controller),
            local: PhantomData,
        };
        // SAFETY: the pair was just made for this controller, on this thread.
        check(unsafe { sys::spdk_nvme_ctrlr_connect_io_qpair(controller.as_ptr(), made.pair.as_ptr()) })?;
        Ok(made)
    }

    /// Whether it is one of this controller.
    pub(in super::super) fn is_of(&self, controller: &Arc<Controller>) -> bool {
        Arc::ptr_eq(&self.controller, controller)
    }

    /// Whether commands can be sent.
    pub(in super::super) fn is_connected(&self) -> bool {
        // SAFETY: the pair lives while `self` does, on its thread.
        unsafe { sys::spdk_nvme_qpair_is_connected(self.pair.as_ptr()) }
    }

    /// Rings doorbells, and notes the completions that are there in the table of commands. Returns their
    /// number.
    ///
    /// # Errors
    ///
    /// The queue has lost its controller.
    #[inline]
    pub(in super::super) fn poll(&self) -> Result<i32, Errno> {
        // SAFETY: as in `is_connected`; the contexts of commands under way are in the table that `self`
        // keeps, no entry of which is borrowed now.
        check(unsafe { sys::spdk_nvme_qpair_process_completions(self.pair.as_ptr(), 0) })
    }

    /// Gives a command to SPDK, with the data in its entry, which stays there until it is finished.
    ///
    /// # Errors
    ///
    /// `ENOMEM` when SPDK has no request left; it took nothing then, nor with any other error.
    #[inline]
    pub(in super::super) fn submit(&self, index: u16, order: &Order) -> Result<(), Errno> {
        let entry = self.commands.entry(index).ok_or(Errno(libc::EINVAL))?;
        let (namespace, pair) = (self.namespace.as_ptr(), self.pair.as_ptr());
        let (block, blocks, context) = (order.block, order.blocks, entry.context());
        let complete: sys::spdk_nvme_cmd_cb = Some(commands::complete);
        let mut flags = self.protection.flags(order.verb);
        if order.force_unit_access {
            flags |= sys::SPDK_NVME_IO_FLAGS_FORCE_UNIT_ACCESS;
        }
        if order.deallocate {
            flags |= FLAG_DEALLOCATE;
        }
        let data: Option<*mut c_void> = entry.one_piece();
        let carries_data = matches!(order.verb, Verb::Read | Verb::Write | Verb::Compare);
        let len_bytes = u64::from(blocks) * u64::from(self.block_bytes);
        if carries_data && entry.len_bytes() as u64 != len_bytes {
            return Err(Errno(libc::EINVAL));
        }
        // SAFETY: the namespace is that of an attached controller, and is there until the controller is
        // reset, before which this pair is given up. The pair lives, on its thread. The context is an entry
        // of the table that `self` keeps; the data is owned by that entry until the command is finished, and
        // is `blocks` long.
        let code = unsafe {
            match (order.verb, data) {
                (Verb::Read, Some(into)) => {
                    sys::spdk_nvme_ns_cmd_read(namespace, pair, into, block, blocks, complete, context, flags)
                }
                (Verb::Write, Some(from)) => sys::spdk_nvme_ns_cmd_write(
                    namespace, pair, from, block, blocks, complete, context, flags,
                ),
                (Verb::Compare, Some(with)) => sys::spdk_nvme_ns_cmd_compare(
                    namespace, pair, with, block, blocks, complete, context, flags,
                ),
                (Verb::Write, None) => sys::spdk_nvme_ns_cmd_writev(
                    namespace,
                    pair,
                    block,
                    blocks,
                    complete,
                    context,
                    flags,
                    Some(commands::seek),
                    Some(commands::next),
                ),
                (Verb::Compare, None) => sys::spdk_nvme_ns_cmd_comparev(
                    namespace,
                    pair,
                    block,
                    blocks,
                    complete,
                    context,
                    flags,
                    Some(commands::seek),
                    Some(commands::next),
                ),
                (Verb::Flush, _) => sys::spdk_nvme_ns_cmd_flush(namespace, pair, complete, context),
                (Verb::WriteZeroes, _) => sys::spdk_nvme_ns_cmd_write_zeroes(
                    namespace, pair, block, blocks, complete, context, flags,
                ),
                (Verb::Read, None) => -libc::EINVAL,
            }
        };
        check(code).map(drop)
    }

    /// Has the drive give up a command, which then completes, sooner or not.
    ///
    /// # Errors
    ///
    /// `ENOENT` if the command is not under way, and when the admin queue cannot take it.
    pub(in super::super) fn abort(&self, index: u16) -> Result<(), Errno> {
        let entry = self.commands.entry(index).ok_or(Errno(libc::EINVAL))?;
        // SAFETY: the controller is attached, the pair is this thread's own, and the context is only
        // compared. The answer's callback uses no context.
        check(unsafe {
            sys::spdk_nvme_ctrlr_cmd_abort_ext(
                self.controller.as_ptr(),
                self.pair.as_ptr(),
                entry.context(),
                Some(commands::ignore),
                std::ptr::null_mut(),
            )
        })
        .map(drop)
    }
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        // Every command under way is finished by this call, and the drive is done with its memory: the
        // submission queue is deleted first, or the controller is disabled or gone.
        // SAFETY: the pair is freed once, on its thread, and not inside one of its callbacks, which hold
        // none. The table of commands is dropped after this.
        let code = unsafe { sys::spdk_nvme_ctrlr_free_io_qpair(self.pair.as_ptr()) };
        if let Err(error) = check(code) {
            tracing::error!(%error, "a queue pair could not be freed");
        }
    }
}
