//! Servers that leave receiving, or sending, or both to io_uring.

use std::io::{self, IoSlice};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags};

use io_uring::types::{BufRingEntry, Fd};
use io_uring::{IoUring, cqueue, opcode, squeue};

use crate::session::{PIECES_MAX, Pattern, Session};

/// How a server receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Receive {
    /// One operation for each receive, into the session's own buffer.
    Single,
    /// One operation for all, into buffers that the kernel picks.
    Multishot,
    /// A plain call in every turn.
    Own,
}

/// How a server sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Send {
    Message,
    ZeroCopy,
    /// A plain call in every turn.
    Own,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    receive: Receive,
    send: Send,
}

impl Options {
    pub const SINGLE: Self = Self {
        receive: Receive::Single,
        send: Send::Message,
    };
    pub const MULTISHOT: Self = Self {
        receive: Receive::Multishot,
        send: Send::Message,
    };
    pub const ZERO_COPY: Self = Self {
        receive: Receive::Multishot,
        send: Send::ZeroCopy,
    };
    pub const MIXED: Self = Self {
        receive: Receive::Multishot,
        send: Send::Own,
    };
    pub const SEND_ONLY: Self = Self {
        receive: Receive::Own,
        send: Send::Message,
    };
}

const TOKEN_RECEIVE: u64 = 1;
const TOKEN_SEND: u64 = 2;
const TOKEN_CANCEL: u64 = 3;

/// Buffers for multishot receives, and their size.
const BUFFERS: u16 = 64;
const BUFFER_BYTES: usize = 32 << 10;
const BUFFER_GROUP: u16 = 0;

/// A page of ring entries shared with the kernel.
#[repr(C, align(4096))]
struct BufferRing([BufRingEntry; BUFFERS as usize]);

struct Buffers {
    ring: Box<BufferRing>,
    memory: Box<[u8]>,
    tail: u16,
}

impl Buffers {
    fn new(uring: &IoUring) -> io::Result<Self> {
        // SAFETY: the entries are plain numbers, for which zeros are valid.
        let ring: Box<BufferRing> = unsafe { Box::new(std::mem::zeroed()) };
        let address = std::ptr::from_ref(&*ring) as u64;
        let mut buffers = Self {
            ring,
            memory: vec![0; usize::from(BUFFERS) * BUFFER_BYTES].into_boxed_slice(),
            tail: 0,
        };
        // SAFETY: the ring of buffers and their memory are dropped after the io_uring, by `serve`.
        unsafe {
            uring
                .submitter()
                .register_buf_ring_with_flags(address, BUFFERS, BUFFER_GROUP, 0)
        }?;
        for buffer in 0..BUFFERS {
            buffers.provide(buffer);
        }
        Ok(buffers)
    }

    /// Gives a buffer to the kernel.
    fn provide(&mut self, buffer: u16) {
        let index = usize::from(self.tail % BUFFERS);
        let start = self.memory[usize::from(buffer) * BUFFER_BYTES..].as_mut_ptr();
        let entry = &mut self.ring.0[index];
        entry.set_addr(start as u64);
        entry.set_len(BUFFER_BYTES as u32);
        entry.set_bid(buffer);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the tail is inside the first entry, aligned for 16 bits, and written by this thread alone.
        let tail = unsafe { &*BufRingEntry::tail(self.ring.0.as_ptr()).cast::<AtomicU16>() };
        tail.store(self.tail, Ordering::Release);
    }
}

struct Server {
    stream: TcpStream,
    options: Options,
    session: Session,
    buffers: Option<Buffers>,
    pieces: Vec<libc::iovec>,
    slices: Vec<IoSlice<'static>>,
    message: Box<libc::msghdr>,
    receiving: bool,
    sending: bool,
    is_open: bool,
}

pub fn serve(
    listener: &TcpListener,
    pattern: Pattern,
    options: Options,
    stop: &AtomicBool,
) -> io::Result<()> {
    let mut builder = IoUring::builder();
    builder
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag();
    let mut uring: IoUring = builder.build(64)?;
    let (stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    let buffers = match options.receive {
        Receive::Multishot => Some(Buffers::new(&uring)?),
        Receive::Single | Receive::Own => None,
    };
    let mut server = Server {
        stream,
        options,
        session: Session::new(pattern),
        buffers,
        pieces: Vec::with_capacity(PIECES_MAX),
        slices: Vec::with_capacity(PIECES_MAX),
        // SAFETY: a message header is numbers and pointers, for which zeros are valid.
        message: unsafe { Box::new(std::mem::zeroed()) },
        receiving: false,
        sending: false,
        is_open: true,
    };
    while server.is_open && !stop.load(Ordering::Relaxed) {
        server.receive(&mut uring)?;
        server.send(&mut uring)?;
        server.turn(&mut uring)?;
    }
    // The kernel is to be done with the session's memory before it goes.
    let _ = server.stream.shutdown(std::net::Shutdown::Both);
    let cancel = opcode::AsyncCancel::new(TOKEN_RECEIVE)
        .build()
        .user_data(TOKEN_CANCEL);
    push(&mut uring, &cancel);
    while server.receiving || server.sending {
        uring.submit_and_wait(1)?;
        server.turn(&mut uring)?;
    }
    drop(uring);
    drop(server);
    Ok(())
}

fn push(uring: &mut IoUring, entry: &squeue::Entry) {
    // SAFETY: the server is dropped after all its operations have completed, and does not touch the input
    // while a receive is under way into it, nor the pieces and the message while a send is.
    let pushed = unsafe { uring.submission().push(entry) };
    assert!(pushed.is_ok(), "there are never more than three entries");
}

impl Server {
    fn receive(&mut self, uring: &mut IoUring) -> io::Result<()> {
        let descriptor = Fd(self.stream.as_raw_fd());
        match self.options.receive {
            Receive::Own => {
                let room = self.session.room();
                if !room.is_empty() {
                    // Not a non-blocking socket: operations of the ring would not wait on it either.
                    match rustix::net::recv(&self.stream, room, RecvFlags::DONTWAIT) {
                        Ok((0, _)) => self.is_open = false,
                        Ok((received, _)) => self.session.received(received),
                        Err(Errno::WOULDBLOCK) => {}
                        // The client has all it wanted.
                        Err(_) => self.is_open = false,
                    }
                }
            }
            Receive::Single if !self.receiving => {
                let room = self.session.room();
                if !room.is_empty() {
                    let entry = opcode::Recv::new(descriptor, room.as_mut_ptr(), room.len() as u32).build();
                    push(uring, &entry.user_data(TOKEN_RECEIVE));
                    self.receiving = true;
                }
            }
            Receive::Multishot if !self.receiving => {
                let entry = opcode::RecvMulti::new(descriptor, BUFFER_GROUP).build();
                push(uring, &entry.user_data(TOKEN_RECEIVE));
                self.receiving = true;
            }
            Receive::Single | Receive::Multishot => {}
        }
        Ok(())
    }

    fn send(&mut self, uring: &mut IoUring) -> io::Result<()> {
        if self.sending || !self.session.has_output() {
            return Ok(());
        }
        if self.options.send == Send::Own {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            let mut control = SendAncillaryBuffer::default();
            let slices = self.session.slices(&mut self.slices);
            match rustix::net::sendmsg(&self.stream, slices, &mut control, flags) {
                Ok(sent) => self.session.sent(sent),
                Err(Errno::WOULDBLOCK) => {}
                Err(_) => self.is_open = false,
            }
            return Ok(());
        }
        self.pieces.clear();
        self.pieces.extend(self.session.pieces().map(|piece| libc::iovec {
            iov_base: piece.as_ptr().cast_mut().cast(),
            iov_len: piece.len(),
        }));
        self.message.msg_iov = self.pieces.as_mut_ptr();
        self.message.msg_iovlen = self.pieces.len() as _;
        let descriptor = Fd(self.stream.as_raw_fd());
        let flags = libc::MSG_NOSIGNAL as u32;
        let entry = match self.options.send {
            Send::ZeroCopy => opcode::SendMsgZc::new(descriptor, &raw const *self.message)
                .flags(flags)
                .build(),
            Send::Message | Send::Own => opcode::SendMsg::new(descriptor, &raw const *self.message)
                .flags(flags)
                .build(),
        };
        push(uring, &entry.user_data(TOKEN_SEND));
        self.sending = true;
        Ok(())
    }

    fn turn(&mut self, uring: &mut IoUring) -> io::Result<()> {
        let submission = uring.submission();
        let quiet = submission.is_empty() && !submission.taskrun();
        drop(submission);
        if !quiet {
            uring.submit()?;
        }
        loop {
            let Some(entry) = uring.completion().next() else {
                return Ok(());
            };
            let is_last = !cqueue::more(entry.flags());
            match entry.user_data() {
                TOKEN_RECEIVE => self.received(&entry, is_last),
                TOKEN_SEND => {
                    // Zero copy says twice that it is done: when it is sent, and when the memory is free
                    // again.
                    if !cqueue::notif(entry.flags()) {
                        match usize::try_from(entry.result()) {
                            Ok(sent) => self.session.sent(sent),
                            Err(_) => self.is_open = false,
                        }
                    }
                    // The pieces are static; the message was copied when the send began.
                    self.sending = false;
                }
                _ => {}
            }
        }
    }

    fn received(&mut self, entry: &cqueue::Entry, is_last: bool) {
        if is_last {
            self.receiving = false;
        }
        let Ok(received) = usize::try_from(entry.result()) else {
            // Out of buffers: the receive is started again in the next turn.
            self.is_open &= entry.result() == -libc::ENOBUFS;
            return;
        };
        self.is_open &= received > 0;
        match (&mut self.buffers, cqueue::buffer_select(entry.flags())) {
            (Some(buffers), Some(buffer)) => {
                let bytes = &buffers.memory[usize::from(buffer) * BUFFER_BYTES..][..received];
                self.session.take(bytes);
                buffers.provide(buffer);
            }
            _ => self.session.received(received),
        }
    }
}
