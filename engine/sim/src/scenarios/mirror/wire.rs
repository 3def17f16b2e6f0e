//! Replicas over the simulated network: promises and sessions as frames on a stream.
//!
//! A connection is a session. What was received before it broke is done all the same, later, as by a real
//! target: that is what promises have to drain.
//!
//! A frame: length of the rest, u32; id, u64; code, u8; two numbers, u64 each; data. Requests have an
//! operation as code, answers a status. Which blocks are allocated is told as by Get LBA Status.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::{poll_fn, ready};
use std::io::{IoSlice, IoSliceMut};
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use pollux_device::{
    AllocationQuery, BlockDevice, Completion, Geometry, IoError, Reply, Request, ZeroOptions,
};
use pollux_hugepages::{Buffer, Slice};
use pollux_nvme::initiator::device::ask_allocated;
use pollux_nvme::target::tell_allocated;
use pollux_nvme::wire::command::GetLbaStatus;
use pollux_reactor::net::{Address, Stream, accept, attach, connect, listen};
use pollux_reactor::{now, sleep, spawn};
use pollux_volume::membership::Epoch;
use pollux_volume::replica::{
    CommandError, Commanding, Granted, OpeningSnapshot, PromiseError, Promising, ReplicaAnswer,
    ReplicaCommand, ReplicaHost, ReplicaPort,
};
use uuid::Uuid;

use super::backing::Backing;
use super::coverage::{Coverage, Event};

/// The host of a machine's replica, while its process runs and has opened the drive.
pub(super) type HostSlot = Rc<RefCell<Option<ReplicaHost>>>;

const HEAD_BYTES: usize = 4 + 8 + 1 + 8 + 8;

/// Operations and statuses. An error is its place in [`ERRORS`], from 1.
const PROMISE: u8 = 0;
const READ: u8 = 1;
const WRITE: u8 = 2;
const WRITE_FORCED: u8 = 3;
const FLUSH: u8 = 4;
const DEALLOCATE: u8 = 5;
const ZEROES: u8 = 6;
/// Commands: the first number is the epoch, the second the size, the data the snapshot.
const CUT: u8 = 7;
const DELETE: u8 = 8;
const LIST: u8 = 9;
const GROW: u8 = 10;
/// The connection is to a snapshot from then on.
const OPEN: u8 = 11;
/// Which blocks are allocated: the first block; the length of the range, and how many bytes the answer may
/// have. Question and answer are made, understood and answered as those of real targets and initiators are.
const ALLOCATED: u8 = 12;
/// A command: bad blocks.
const BAD: u8 = 13;
const OK: u8 = 0;
const UNSUPPORTED: u8 = 251;
const NO_SNAPSHOT: u8 = 252;
const NO_SESSION: u8 = 253;
const SUPERSEDED: u8 = 254;
const OTHER: u8 = 255;
const ERRORS: [IoError; 9] = [
    IoError::Fenced,
    IoError::Gone,
    IoError::MediaRead,
    IoError::MediaWrite,
    IoError::ResourceShortage,
    IoError::CapacityExceeded,
    IoError::ChecksumMismatch,
    IoError::OutOfRange,
    IoError::ReadOnly,
];

fn status_of(error: IoError) -> u8 {
    let place = ERRORS.iter().position(|known| *known == error);
    place.map_or(OTHER, |place| place as u8 + 1)
}

fn error_of(status: u8) -> IoError {
    let place = usize::from(status).checked_sub(1);
    place
        .and_then(|place| ERRORS.get(place))
        .copied()
        .unwrap_or(IoError::Internal)
}

#[derive(Debug, Clone, Default)]
struct Frame {
    id: u64,
    code: u8,
    first: u64,
    second: u64,
    data: Vec<u8>,
}

impl Frame {
    fn encode(&self, into: &mut VecDeque<u8>) {
        let rest = (HEAD_BYTES - 4 + self.data.len()) as u32;
        into.extend(rest.to_le_bytes());
        into.extend(self.id.to_le_bytes());
        into.push_back(self.code);
        into.extend(self.first.to_le_bytes());
        into.extend(self.second.to_le_bytes());
        into.extend(&self.data);
    }

    /// Takes a whole frame from the front.
    fn decode(from: &mut Vec<u8>) -> Option<Self> {
        let number = |at: usize| Some(u64::from_le_bytes(*from.get(at..)?.first_chunk()?));
        let rest = u32::from_le_bytes(*from.first_chunk()?) as usize;
        let data = from.get(HEAD_BYTES..4 + rest)?.to_vec();
        let frame = Self {
            id: number(4)?,
            code: *from.get(12)?,
            first: number(13)?,
            second: number(21)?,
            data,
        };
        from.drain(..4 + rest);
        Some(frame)
    }
}

/// One end of a connection.
#[derive(Default)]
struct End {
    outgoing: RefCell<VecDeque<u8>>,
    closed: Cell<bool>,
    pump: RefCell<Option<Waker>>,
}

impl End {
    fn send(&self, frame: &Frame) {
        frame.encode(&mut self.outgoing.borrow_mut());
        self.wake();
    }

    fn close(&self) {
        self.closed.set(true);
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = self.pump.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Sends and receives until the connection is closed, here or there.
    async fn pump(&self, mut stream: Box<dyn Stream>, on_frame: impl Fn(Frame)) {
        let mut incoming = Vec::new();
        let mut buffer = vec![0; 64 << 10];
        poll_fn(|context| {
            *self.pump.borrow_mut() = Some(context.waker().clone());
            while !self.closed.get() {
                let mut moved = false;
                let mut outgoing = self.outgoing.borrow_mut();
                if !outgoing.is_empty() {
                    let (front, _) = outgoing.as_slices();
                    match stream.poll_send(context, &[IoSlice::new(front)]) {
                        Poll::Ready(Ok(sent)) => {
                            outgoing.drain(..sent);
                            moved = true;
                        }
                        Poll::Ready(Err(_)) => return Poll::Ready(()),
                        Poll::Pending => {}
                    }
                }
                drop(outgoing);
                match stream.poll_receive(context, &mut [IoSliceMut::new(&mut buffer)]) {
                    Poll::Ready(Ok(count @ 1..)) => {
                        incoming.extend_from_slice(buffer.get(..count).unwrap_or_default());
                        while let Some(frame) = Frame::decode(&mut incoming) {
                            on_frame(frame);
                        }
                        moved = true;
                    }
                    Poll::Ready(Ok(_) | Err(_)) => return Poll::Ready(()),
                    Poll::Pending => {}
                }
                if !moved {
                    return Poll::Pending;
                }
            }
            Poll::Ready(())
        })
        .await;
        self.closed.set(true);
    }
}

/// Serves the replica of a machine to whoever connects.
pub(super) async fn serve(address: Address, host: HostSlot) {
    let Ok(mut listener) = listen(&address) else {
        return;
    };
    loop {
        let stream = match accept(&mut *listener).await.map(attach) {
            Ok(Ok(stream)) => stream,
            Ok(Err(_)) | Err(_) => {
                sleep(std::time::Duration::from_millis(1)).await;
                continue;
            }
        };
        let (end, host) = (Rc::new(End::default()), host.clone());
        let session: Rc<RefCell<Option<Rc<dyn BlockDevice>>>> = Rc::default();
        spawn(async move {
            let on_frame = |frame: Frame| {
                let (end, host, session) = (end.clone(), host.clone(), session.clone());
                spawn(async move {
                    let answer = answer(frame, host, session).await;
                    end.send(&answer);
                })
                .detach();
            };
            end.pump(stream, on_frame).await;
        })
        .detach();
    }
}

async fn answer(frame: Frame, host: HostSlot, session: Rc<RefCell<Option<Rc<dyn BlockDevice>>>>) -> Frame {
    let mut answer = Frame {
        id: frame.id,
        ..Frame::default()
    };
    if frame.code == PROMISE {
        let host = host.borrow().clone();
        let wanted = Uuid::from_slice(&frame.data).unwrap_or_default();
        let promised = match host.filter(|host| host.label().replica == wanted) {
            Some(host) => host.promise(Epoch(frame.first)).await,
            None => Err(PromiseError::Unreachable),
        };
        match promised {
            Ok(granted) => {
                answer.first = granted.instance;
                answer.second = granted.settled.map_or(0, |epoch| epoch.0);
                let quiet_us = u64::try_from(granted.quiet.as_micros()).unwrap_or(u64::MAX);
                answer.data = [granted.flush_failures, quiet_us].map(u64::to_le_bytes).concat();
                *session.borrow_mut() = Some(granted.session);
            }
            Err(PromiseError::Superseded(epoch)) => {
                (answer.code, answer.first) = (SUPERSEDED, epoch.0);
            }
            Err(_) => answer.code = OTHER,
        }
        return answer;
    }
    if let CUT | DELETE | LIST | GROW | OPEN | BAD = frame.code {
        let host = host.borrow().clone();
        let done = match host {
            Some(host) => command(&host, frame, &session).await,
            None => Err(CommandError::Unreachable),
        };
        match done {
            Ok(ReplicaAnswer::Done) => {
                if let Some(opened) = &*session.borrow() {
                    answer.first = opened.geometry().blocks;
                }
            }
            Ok(ReplicaAnswer::Snapshots(cuts)) => {
                answer.data = cuts.iter().flat_map(|cut| *cut.as_bytes()).collect();
            }
            Ok(ReplicaAnswer::BadBlocks(mut blocks)) => {
                // Mostly good ones, and some that there are not: what is told is only where to look.
                let made_up = now().as_nanos();
                blocks.extend([made_up % 61, made_up % 257]);
                answer.data = blocks.iter().flat_map(|block| block.to_le_bytes()).collect();
            }
            Err(CommandError::Superseded(epoch)) => (answer.code, answer.first) = (SUPERSEDED, epoch.0),
            Err(CommandError::NoSession) => answer.code = NO_SESSION,
            Err(CommandError::NoSnapshot(_)) => answer.code = NO_SNAPSHOT,
            Err(CommandError::Unsupported) => answer.code = UNSUPPORTED,
            Err(_) => answer.code = OTHER,
        }
        return answer;
    }
    let device = session.borrow().clone();
    if let (ALLOCATED, Some(device)) = (frame.code, &device) {
        match tell_allocated(device, &question_of(&frame)).await {
            Ok(list) => answer.data = list,
            Err(error) => answer.code = status_of(error),
        }
        return answer;
    }
    let result = match device {
        Some(device) => device.submit(request_of(frame)).await,
        None => Err(IoError::Gone),
    };
    match result {
        Ok(Reply::Done) => {}
        Ok(reply) => match reply.into_slice() {
            Ok(data) => answer.data = data.to_vec(),
            Err(error) => answer.code = status_of(error),
        },
        Err(error) => answer.code = status_of(error),
    }
    answer
}

/// Has a host do something with the whole replica.
async fn command(
    host: &ReplicaHost,
    frame: Frame,
    session: &RefCell<Option<Rc<dyn BlockDevice>>>,
) -> Result<ReplicaAnswer, CommandError> {
    let epoch = Epoch(frame.first);
    let cut = Uuid::from_slice(&frame.data).unwrap_or_default();
    let command = match frame.code {
        CUT => ReplicaCommand::CutSnapshot { cut },
        DELETE => ReplicaCommand::DeleteSnapshot { cut },
        LIST => ReplicaCommand::ListSnapshots,
        BAD => ReplicaCommand::ListBadBlocks,
        GROW => ReplicaCommand::Grow {
            data_blocks: frame.second,
        },
        _ => {
            let snapshot = host.open_snapshot(epoch, cut).await?;
            *session.borrow_mut() = Some(snapshot);
            return Ok(ReplicaAnswer::Done);
        }
    };
    host.command(epoch, command).await
}

fn command_frame(epoch: Epoch, command: ReplicaCommand) -> Frame {
    let (code, second, cut) = match command {
        ReplicaCommand::CutSnapshot { cut } => (CUT, 0, Some(cut)),
        ReplicaCommand::DeleteSnapshot { cut } => (DELETE, 0, Some(cut)),
        ReplicaCommand::ListSnapshots => (LIST, 0, None),
        ReplicaCommand::ListBadBlocks => (BAD, 0, None),
        ReplicaCommand::Grow { data_blocks } => (GROW, data_blocks, None),
    };
    Frame {
        id: 0,
        code,
        first: epoch.0,
        second,
        data: cut.map(|cut| cut.as_bytes().to_vec()).unwrap_or_default(),
    }
}

/// What the answer to a command says.
fn command_answer(code: u8, answer: Frame, cut: Option<Uuid>) -> Result<ReplicaAnswer, CommandError> {
    match answer.code {
        OK if code == LIST => {
            let cuts = answer.data.chunks(16).flat_map(Uuid::from_slice);
            Ok(ReplicaAnswer::Snapshots(cuts.collect()))
        }
        OK if code == BAD => {
            let (blocks, _) = answer.data.as_chunks();
            Ok(ReplicaAnswer::BadBlocks(
                blocks.iter().map(|block| u64::from_le_bytes(*block)).collect(),
            ))
        }
        OK => Ok(ReplicaAnswer::Done),
        SUPERSEDED => Err(CommandError::Superseded(Epoch(answer.first))),
        NO_SESSION => Err(CommandError::NoSession),
        NO_SNAPSHOT => Err(CommandError::NoSnapshot(cut.unwrap_or_default())),
        UNSUPPORTED => Err(CommandError::Unsupported),
        _ => Err(CommandError::Unreachable),
    }
}

fn request_of(frame: Frame) -> Request {
    let (block, second) = (frame.first, frame.second);
    match frame.code {
        READ => Request::Read {
            block,
            into: Buffer::from_heap(second as usize),
        },
        WRITE | WRITE_FORCED => Request::Write {
            block,
            from: Slice::copy_from(&frame.data).into(),
            force_unit_access: frame.code == WRITE_FORCED,
        },
        DEALLOCATE => Request::Deallocate {
            block,
            blocks: second,
        },
        ZEROES => Request::WriteZeroes {
            block,
            blocks: second >> 2,
            options: ZeroOptions {
                force_unit_access: second & 1 != 0,
                may_deallocate: second & 2 != 0,
            },
        },
        _ => Request::Flush,
    }
}

fn question_of(frame: &Frame) -> GetLbaStatus {
    GetLbaStatus::allocated(frame.first, frame.second as u16, (frame.second >> 16) as u32)
}

fn frame_of_question(id: u64, get: &GetLbaStatus) -> Frame {
    Frame {
        id,
        code: ALLOCATED,
        first: get.starting_block,
        second: u64::from(get.range_blocks) | get.data_bytes() << 16,
        data: Vec::new(),
    }
}

fn frame_of(id: u64, request: &Request) -> Frame {
    let frame = |code, first, second| Frame {
        id,
        code,
        first,
        second,
        data: Vec::new(),
    };
    match request {
        Request::Read { block, into } => frame(READ, *block, into.len() as u64),
        Request::Write {
            block,
            from,
            force_unit_access,
        } => {
            let mut data = vec![0; from.len_bytes()];
            from.copy_to(&mut data);
            let code = if *force_unit_access { WRITE_FORCED } else { WRITE };
            Frame {
                data,
                ..frame(code, *block, 0)
            }
        }
        Request::Deallocate { block, blocks } => frame(DEALLOCATE, *block, *blocks),
        Request::WriteZeroes {
            block,
            blocks,
            options,
        } => {
            let flags = u64::from(options.force_unit_access) | u64::from(options.may_deallocate) << 1;
            frame(ZEROES, *block, blocks << 2 | flags)
        }
        // Targets do not compare on replicas.
        Request::Flush | Request::Compare { .. } => frame(FLUSH, 0, 0),
    }
}

/// The answer to a request, and who waits for it.
type Expected = (Option<Frame>, Option<Waker>);

/// The target's end.
#[derive(Default)]
struct Client {
    end: End,
    next_id: Cell<u64>,
    answers: RefCell<BTreeMap<u64, Expected>>,
}

impl Client {
    fn begin(&self) -> u64 {
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        self.answers.borrow_mut().insert(id, (None, None));
        id
    }

    fn deliver(&self, frame: Frame) {
        if let Some((answer, waker)) = self.answers.borrow_mut().get_mut(&frame.id) {
            *answer = Some(frame);
            if let Some(waker) = waker.take() {
                waker.wake();
            }
        }
    }

    fn fail_all(&self) {
        for (_, waker) in self.answers.borrow_mut().values_mut() {
            if let Some(waker) = waker.take() {
                waker.wake();
            }
        }
    }

    /// The answer; `None` when the connection is gone.
    async fn answer(&self, id: u64) -> Option<Frame> {
        let answer = poll_fn(|context| {
            let mut answers = self.answers.borrow_mut();
            let Some((answer, waker)) = answers.get_mut(&id) else {
                return Poll::Ready(None);
            };
            if answer.is_some() || self.end.closed.get() {
                return Poll::Ready(answer.take());
            }
            *waker = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
        self.answers.borrow_mut().remove(&id);
        answer
    }
}

/// A session over the network. Closed when it is dropped.
struct RemoteSession {
    client: Rc<Client>,
    backing: Backing,
    coverage: Rc<Coverage>,
    /// Blocks of a snapshot: that is as large as the replica was.
    snapshot_blocks: Option<u64>,
}

impl Drop for RemoteSession {
    fn drop(&mut self) {
        self.client.end.close();
    }
}

impl BlockDevice for RemoteSession {
    fn geometry(&self) -> Geometry {
        let geometry = self.backing.geometry();
        Geometry {
            blocks: self.snapshot_blocks.unwrap_or(geometry.blocks),
            ..geometry
        }
    }

    fn submit(&self, request: Request) -> Completion {
        if self.client.end.closed.get() {
            return Completion::failed(IoError::PathDown);
        }
        let client = self.client.clone();
        let id = client.begin();
        client.end.send(&frame_of(id, &request));
        Completion::from_future(async move {
            let answer = client.answer(id).await.ok_or(IoError::PathDown)?;
            match (answer.code, request) {
                (OK, Request::Read { mut into, .. }) => {
                    if into.len() != answer.data.len() {
                        return Err(IoError::Internal);
                    }
                    into.copy_from_slice(&answer.data);
                    Ok(Reply::Data(into))
                }
                (OK, _) => Ok(Reply::Done),
                (status, _) => Err(error_of(status)),
            }
        })
    }

    fn allocation(&self, block: u64, blocks: u64, runs_max: usize) -> AllocationQuery {
        if let Err(error) = self.geometry().check_range(block, blocks) {
            return Box::pin(ready(Err(error)));
        }
        let (client, coverage) = (self.client.clone(), self.coverage.clone());
        Box::pin(async move {
            let send = async |get: GetLbaStatus| {
                if client.end.closed.get() {
                    return Err(IoError::PathDown);
                }
                let id = client.begin();
                client.end.send(&frame_of_question(id, &get));
                let answer = client.answer(id).await.ok_or(IoError::PathDown)?;
                match answer.code {
                    OK => Ok(Some(answer.data)),
                    status => Err(error_of(status)),
                }
            };
            let runs = ask_allocated(block, blocks, runs_max, send).await?;
            if runs.iter().any(|run| !run.allocated) {
                coverage.reach(Event::HoleTold);
            }
            Ok(runs)
        })
    }
}

/// The way to the replica of another machine.
#[derive(Clone)]
pub(super) struct RemotePort {
    pub(super) replica: Uuid,
    pub(super) address: Address,
    pub(super) backing: Backing,
    pub(super) coverage: Rc<Coverage>,
}

impl RemotePort {
    /// A connection whose first request is answered; `None` when it is not.
    async fn ask(&self, first: Frame) -> Option<(RemoteSession, Frame)> {
        let stream = connect(&self.address).await.ok()?;
        let client = Rc::new(Client::default());
        let session = RemoteSession {
            client: client.clone(),
            backing: self.backing.clone(),
            coverage: self.coverage.clone(),
            snapshot_blocks: None,
        };
        let pumped = client.clone();
        spawn(async move {
            pumped.end.pump(stream, |frame| pumped.deliver(frame)).await;
            pumped.fail_all();
        })
        .detach();
        let id = client.begin();
        client.end.send(&Frame { id, ..first });
        let answer = client.answer(id).await?;
        Some((session, answer))
    }
}

impl ReplicaPort for RemotePort {
    fn promise(&self, epoch: Epoch) -> Promising {
        let port = self.clone();
        Box::pin(async move {
            let first = Frame {
                code: PROMISE,
                first: epoch.0,
                data: port.replica.as_bytes().to_vec(),
                ..Frame::default()
            };
            let (session, answer) = port.ask(first).await.ok_or(PromiseError::Unreachable)?;
            match answer.code {
                OK => Ok(Granted {
                    session: Rc::new(session),
                    instance: answer.first,
                    settled: (answer.second > 0).then_some(Epoch(answer.second)),
                    flush_failures: answer
                        .data
                        .first_chunk()
                        .map_or(u64::MAX, |bytes| u64::from_le_bytes(*bytes)),
                    quiet: answer
                        .data
                        .get(8..)
                        .and_then(<[u8]>::first_chunk)
                        .map_or(Duration::ZERO, |bytes| {
                            Duration::from_micros(u64::from_le_bytes(*bytes))
                        }),
                }),
                SUPERSEDED => Err(PromiseError::Superseded(Epoch(answer.first))),
                _ => Err(PromiseError::Unreachable),
            }
        })
    }

    fn command(&self, epoch: Epoch, command: ReplicaCommand) -> Commanding {
        let (port, frame) = (self.clone(), command_frame(epoch, command));
        let code = frame.code;
        Box::pin(async move {
            let answer = port.ask(frame).await;
            let (_, answer) = answer.ok_or(CommandError::Unreachable)?;
            command_answer(code, answer, None)
        })
    }

    fn open_snapshot(&self, epoch: Epoch, cut: Uuid) -> OpeningSnapshot {
        let port = self.clone();
        Box::pin(async move {
            let first = Frame {
                code: OPEN,
                first: epoch.0,
                data: cut.as_bytes().to_vec(),
                ..Frame::default()
            };
            let answer = port.ask(first).await;
            let (mut session, answer) = answer.ok_or(CommandError::Unreachable)?;
            session.snapshot_blocks = Some(answer.first);
            command_answer(OPEN, answer, Some(cut))?;
            Ok(Rc::new(session) as Rc<dyn BlockDevice>)
        })
    }

    fn is_local(&self) -> bool {
        false
    }
}

/// The way to the replica of the target's own machine.
#[derive(Clone)]
pub(super) struct LocalPort {
    pub(super) replica: Uuid,
    pub(super) host: HostSlot,
}

impl LocalPort {
    /// The host, if it has the replica.
    fn host(&self) -> Option<ReplicaHost> {
        let host = self.host.borrow().clone();
        host.filter(|host| host.label().replica == self.replica)
    }
}

impl ReplicaPort for LocalPort {
    fn promise(&self, epoch: Epoch) -> Promising {
        let host = self.host();
        Box::pin(async move {
            match host {
                Some(host) => host.promise(epoch).await,
                None => Err(PromiseError::Unreachable),
            }
        })
    }

    fn command(&self, epoch: Epoch, command: ReplicaCommand) -> Commanding {
        let host = self.host();
        match host {
            Some(host) => host.command(epoch, command),
            None => Box::pin(ready(Err(CommandError::Unreachable))),
        }
    }

    fn open_snapshot(&self, epoch: Epoch, cut: Uuid) -> OpeningSnapshot {
        let host = self.host();
        match host {
            Some(host) => host.open_snapshot(epoch, cut),
            None => Box::pin(ready(Err(CommandError::Unreachable))),
        }
    }

    fn is_local(&self) -> bool {
        true
    }
}
