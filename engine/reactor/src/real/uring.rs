//! The io_uring itself: set up with the best flags the kernel takes, filled, submitted and reaped.
//!
//! Invariants:
//! - The ring belongs to the thread that made it; it is neither `Send` nor `Sync`.
//! - Entries enter the kernel in the order in which they were pushed: first the queue shared with the kernel,
//!   then, when that is full, `backlog`. Pushing makes no system call and never fails.
//! - `backlog` is bounded by those who push: a source has at most two polls and two cancellations under way,
//!   the operation slots have a fixed number.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use arrayvec::ArrayVec;
use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{IoUring, Probe, squeue};

/// Completions taken from the ring at a time.
pub(super) const COMPLETIONS_AT_A_TIME: usize = 64;

/// One operation that the kernel is done with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Completed {
    /// What the operation was pushed with.
    pub(super) user_data: u64,
    /// Not negative, or a negated error number.
    pub(super) result: i32,
    /// Whether the same operation will complete again.
    pub(super) more: bool,
}

pub(super) struct Uring {
    ring: RefCell<IoUring>,
    backlog: RefCell<VecDeque<squeue::Entry>>,
    probe: Probe,
    entered: Cell<u64>,
}

impl Uring {
    /// A ring of the calling thread.
    ///
    /// # Errors
    ///
    /// When the kernel has no io_uring, forbids it, or has no memory for it.
    pub(super) fn new(entries: u32) -> io::Result<Self> {
        let [best @ .., last] = Mode::ALL;
        let first = best
            .into_iter()
            .find_map(|mode| Self::with_mode(entries, mode).ok());
        first.map_or_else(|| Self::with_mode(entries, last), Ok)
    }

    /// A ring of the calling thread in a mode that the kernel may not know.
    pub(super) fn with_mode(entries: u32, mode: Mode) -> io::Result<Self> {
        let ring = mode.build(entries).map_err(explain)?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe).map_err(explain)?;
        // Resource tags came with 5.13, as did multishot polls, which the bell needs and no flag tells of.
        if !ring.params().is_feature_ext_arg() || !ring.params().is_feature_resource_tagging() {
            return Err(explain(io::ErrorKind::Unsupported.into()));
        }
        Ok(Self {
            ring: RefCell::new(ring),
            backlog: RefCell::new(VecDeque::new()),
            probe,
            entered: Cell::new(0),
        })
    }

    /// Whether the kernel knows an operation.
    pub(super) fn supports(&self, opcode: u8) -> bool {
        self.probe.is_supported(opcode)
    }

    /// System calls made so far.
    pub(super) fn entered(&self) -> u64 {
        self.entered.get()
    }

    /// Queues an operation for the next submission.
    ///
    /// # Safety
    ///
    /// From now until the completion with the entry's user data has been reaped:
    /// - the descriptor in it stays open;
    /// - all memory it points to stays valid where it is, is not written by anybody, and is not read either
    ///   if the operation writes to it.
    pub(super) unsafe fn push(&self, entry: squeue::Entry) {
        let mut backlog = self.backlog.borrow_mut();
        let mut ring = self.ring.borrow_mut();
        // SAFETY: the caller keeps what the entry refers to valid until its completion.
        if !backlog.is_empty() || unsafe { ring.submission().push(&entry) }.is_err() {
            backlog.push_back(entry);
        }
    }

    /// Submits and collects without waiting; no system call when there is nothing to submit or to collect.
    pub(super) fn submit(&self) -> io::Result<()> {
        loop {
            let more = self.refill();
            {
                let mut ring = self.ring.borrow_mut();
                let submission = ring.submission();
                if submission.is_empty() && !submission.taskrun() && !submission.cq_overflow() {
                    return Ok(());
                }
            }
            let entered = self.ring.borrow().submitter().submit();
            if !self.settle(entered)? || !more {
                return Ok(());
            }
        }
    }

    /// Submits, and waits for one completion at least, or until the time is over.
    pub(super) fn submit_and_wait(&self, time: Option<Duration>) -> io::Result<()> {
        if self.refill() {
            // More than one queue full: what is left decides in the next turn.
            return self.submit();
        }
        let timespec;
        let mut arguments = SubmitArgs::new();
        if let Some(time) = time {
            timespec = Timespec::from(time);
            arguments = arguments.timespec(&timespec);
        }
        let entered = self.ring.borrow().submitter().submit_with_args(1, &arguments);
        self.settle(entered).map(drop)
    }

    /// Moves what fits from the backlog to the queue. Whether some is left.
    fn refill(&self) -> bool {
        let mut backlog = self.backlog.borrow_mut();
        if backlog.is_empty() {
            return false;
        }
        let mut ring = self.ring.borrow_mut();
        let mut submission = ring.submission();
        while let Some(entry) = backlog.front() {
            // SAFETY: whoever pushed the entry to the backlog promised what the queue asks for.
            if unsafe { submission.push(entry) }.is_err() {
                return true;
            }
            backlog.pop_front();
        }
        false
    }

    /// Judges the return of the system call. Whether submitting more makes sense now.
    fn settle(&self, entered: io::Result<usize>) -> io::Result<bool> {
        self.entered.set(self.entered.get().wrapping_add(1));
        match entered {
            Ok(_) => Ok(true),
            Err(error) => match error.raw_os_error() {
                // A signal, the end of the waiting time, short of memory, or completions to be reaped first.
                // What was not submitted stays queued for the next turn.
                Some(libc::EINTR | libc::ETIME | libc::EAGAIN | libc::ENOMEM | libc::EBUSY) => Ok(false),
                _ => Err(error),
            },
        }
    }

    /// Takes some of the completions that are there, the oldest first.
    pub(super) fn reap(&self) -> ArrayVec<Completed, COMPLETIONS_AT_A_TIME> {
        let mut ring = self.ring.borrow_mut();
        let completions = ring.completion();
        completions
            .take(COMPLETIONS_AT_A_TIME)
            .map(|completion| Completed {
                user_data: completion.user_data(),
                result: completion.result(),
                more: io_uring::cqueue::more(completion.flags()),
            })
            .collect()
    }
}

/// How completions are brought about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// In the system calls of the ring alone: since Linux 6.1.
    Deferred,
    /// In whatever system call comes next: since Linux 5.19.
    Cooperative,
    /// At any time, by interrupting the thread.
    Interrupting,
}

impl Mode {
    /// From the best to the one that every kernel knows.
    pub(super) const ALL: [Self; 3] = [Self::Deferred, Self::Cooperative, Self::Interrupting];

    fn build(self, entries: u32) -> io::Result<IoUring> {
        let mut builder = IoUring::builder();
        builder.setup_clamp();
        match self {
            Self::Deferred => {
                builder
                    .setup_submit_all()
                    .setup_single_issuer()
                    .setup_defer_taskrun()
                    .setup_taskrun_flag();
            }
            Self::Cooperative => {
                builder
                    .setup_submit_all()
                    .setup_coop_taskrun()
                    .setup_taskrun_flag();
            }
            Self::Interrupting => {}
        }
        builder.build(entries)
    }
}

fn explain(error: io::Error) -> io::Error {
    let mend = match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            "it is forbidden: set the sysctl kernel.io_uring_disabled to 0, and allow io_uring in the \
             seccomp profile of the container"
        }
        Some(libc::ENOMEM) => "there is no memory for it: raise the limit of locked memory (ulimit -l)",
        Some(libc::EMFILE | libc::ENFILE) => {
            "there is no descriptor for it: raise the limit of open files (ulimit -n)"
        }
        _ => "the kernel has to be Linux 5.13 or newer with CONFIG_IO_URING",
    };
    io::Error::new(
        error.kind(),
        format!("io_uring is not available: {error}; {mend}"),
    )
}
