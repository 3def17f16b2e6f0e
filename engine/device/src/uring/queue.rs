//! One reactor's requests to a file.
//!
//! Invariants:
//! - What is told to the kernel with `O_DIRECT` has aligned memory: other memory goes through a buffer that
//!   is.
//! - A transfer is whole before its request is: short ones are continued, and the end of the file, where the
//!   geometry says there are blocks, is an error.
//! - An error that may have cost data that was acknowledged and not flushed makes all flushes fail (see
//!   `flush`).

use std::cell::Cell;
use std::future::{Future, ready};
use std::io;
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::Duration;

use pollux_hugepages::{Buffer, Slice};
use pollux_reactor::file::{Allocate, File};

use super::errors::{Direction, io_error, is_refused, is_transient};
use super::{RETRIES_MAX, UringDevice, Way};
use crate::allocation::{AllocationQuery, AllocationRun, AllocationRuns};
use crate::completion::Completion;
use crate::error::IoError;
use crate::geometry::Geometry;
use crate::request::{Gather, Reply, Request};
use crate::{Attaching, BlockDevice};

/// Bytes that are moved at a time through aligned memory, and compared at a time.
const BOUNCE_BYTES: usize = 256 << 10;

/// Bytes that the kernel is asked to free or zero at a time: one operation must not keep the device for long.
const ALLOCATE_BYTES_MAX: u64 = 1 << 30;

/// Zeros written at a time, in bytes, where the kernel cannot do it.
const ZEROS_BYTES: u64 = 1 << 20;

/// How often it is looked whether the file has grown.
const GROWTH_INTERVAL: Duration = Duration::from_secs(2);

/// The queue of a reactor.
pub(super) struct Queue {
    device: Arc<UringDevice>,
    file: File,
    keeper: Cell<Option<Waker>>,
}

/// Attaches the calling reactor to the file.
pub(super) fn attach(device: Arc<UringDevice>) -> Attaching {
    Box::pin(async move {
        let file = File::attach(device.file.clone()).map_err(|_| IoError::Unsupported)?;
        let queue = Rc::new(Queue {
            device,
            file,
            keeper: Cell::new(None),
        });
        pollux_reactor::spawn(keep(Rc::downgrade(&queue))).detach();
        Ok(Rc::new(UringQueue(queue)) as Rc<dyn BlockDevice>)
    })
}

/// Runs syncs when they are wanted, and looks at the size of the file now and then, as long as the queue
/// lives. A sync outlives the requests that wait for it, and keeps the queue alive.
async fn keep(queue: Weak<Queue>) {
    let mut growth = pollux_reactor::sleep(GROWTH_INTERVAL);
    loop {
        let wanted = std::future::poll_fn(|context| {
            let Some(queue) = queue.upgrade() else {
                return Poll::Ready(None);
            };
            if queue.device.flushes.poll_turn(context) {
                return Poll::Ready(Some(queue));
            }
            queue.keeper.set(Some(context.waker().clone()));
            while pin!(&mut growth).poll(context).is_ready() {
                queue.device.refresh();
                growth.reset(pollux_reactor::now() + GROWTH_INTERVAL);
            }
            Poll::Pending
        });
        let Some(queue) = wanted.await else {
            return;
        };
        queue
            .device
            .flushes
            .serve(|| queue.device.sync(&queue.file))
            .await;
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.wake_keeper();
    }
}

impl Queue {
    fn wake_keeper(&self) {
        if let Some(waker) = self.keeper.take() {
            waker.wake();
        }
    }

    /// Waits for a sync that begins after now.
    async fn flush(&self) -> Result<(), IoError> {
        let number = self.device.flushes.want()?;
        self.wake_keeper();
        self.device.flushes.done(number).await
    }

    fn media_error(&self, error: &io::Error, direction: Direction) -> IoError {
        let error = io_error(error, direction);
        if matches!(
            error,
            IoError::MediaRead | IoError::MediaWrite | IoError::ChecksumMismatch
        ) {
            self.device.count_media_error();
        }
        error
    }

    fn is_aligned(&self, start: *const u8, len: usize) -> bool {
        let align = self.device.direct_align_bytes;
        start.addr().is_multiple_of(align) && len.is_multiple_of(align)
    }

    /// Memory that the kernel takes as it is. Of the heap if the pool is short: a request that has memory
    /// already must not wait for others of its kind to give theirs back.
    fn aligned_buffer(len: usize) -> Buffer {
        let pooled = pollux_reactor::buffers().allocate(len);
        pooled.unwrap_or_else(|| Buffer::from_heap(len))
    }

    /// Fills the buffer, whose memory is aligned.
    async fn read_whole(&self, offset: u64, into: Buffer) -> Result<Buffer, IoError> {
        let len = into.len();
        if len == 0 {
            return Ok(into);
        }
        let (result, mut buffer) = self.file.read_at(offset, into).await;
        let mut done = match result {
            Ok(done) if done >= len => return Ok(buffer),
            Ok(done) => done,
            Err(error) if is_transient(&error) => 0,
            Err(error) => return Err(self.media_error(&error, Direction::Read)),
        };
        let mut retries = 0;
        while done < len {
            let rest = buffer.split_off(done);
            if !self.is_aligned(rest.as_ptr(), rest.len()) {
                // Only the end of the file is not at a whole block.
                return Err(self.end_of_file());
            }
            let (result, rest) = self.file.read_at(offset + done as u64, rest).await;
            buffer.try_unsplit(rest).map_err(|_| IoError::Internal)?;
            match result {
                Ok(0) => return Err(self.end_of_file()),
                Ok(more) => done += more,
                Err(error) if is_transient(&error) && retries < RETRIES_MAX => retries += 1,
                Err(error) => return Err(self.media_error(&error, Direction::Read)),
            }
        }
        Ok(buffer)
    }

    /// There should be blocks, and there is nothing: somebody has cut the file.
    fn end_of_file(&self) -> IoError {
        self.device.refresh();
        self.device.count_media_error();
        IoError::MediaRead
    }

    async fn read(&self, offset: u64, into: Buffer) -> Result<Reply, IoError> {
        if self.is_aligned(into.as_ptr(), into.len()) {
            return self.read_whole(offset, into).await.map(Reply::Data);
        }
        let mut into = into;
        let mut done = 0;
        while let Some(rest) = into.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let len = rest.len().min(BOUNCE_BYTES);
            let read = self
                .read_whole(offset + done as u64, Self::aligned_buffer(len))
                .await?;
            rest.get_mut(..len)
                .ok_or(IoError::Internal)?
                .copy_from_slice(&read);
            done += len;
        }
        Ok(Reply::Data(into))
    }

    /// Writes all pieces, whose memory is aligned.
    async fn write_whole(&self, offset: u64, from: &Gather, dsync: bool) -> Result<(), IoError> {
        let len = from.len_bytes();
        let (mut done, mut retries) = (0, 0);
        while done < len {
            let at = offset + done as u64;
            let result = if done == 0 {
                self.file.write_at(at, from.pieces().iter().cloned(), dsync).await
            } else {
                let rest = from.range(done, len - done);
                self.file.write_at(at, rest.pieces().iter().cloned(), dsync).await
            };
            match result {
                Ok(0) if retries >= RETRIES_MAX => return Err(IoError::MediaWrite),
                Ok(0) => retries += 1,
                Ok(more) => done += more,
                Err(error) if is_transient(&error) && retries < RETRIES_MAX => retries += 1,
                Err(error) => return Err(self.media_error(&error, Direction::Write)),
            }
        }
        Ok(())
    }

    async fn write(&self, offset: u64, from: Gather, force_unit_access: bool) -> Result<Reply, IoError> {
        // Past the page cache an error is this write's own. The page cache tells of any lost write, and only
        // once: none but the one sync of all flushes may hear of it.
        let dsync = force_unit_access && self.device.direct;
        if force_unit_access && let Some(error) = self.device.flushes.failure() {
            return Err(error);
        }
        let pieces = from.pieces();
        if pieces
            .iter()
            .all(|piece| self.is_aligned(piece.as_ptr(), piece.len()))
        {
            self.write_whole(offset, &from, dsync).await?;
        } else {
            let mut done = 0;
            while done < from.len_bytes() {
                let len = (from.len_bytes() - done).min(BOUNCE_BYTES);
                let mut aligned = Self::aligned_buffer(len);
                from.range(done, len).copy_to(&mut aligned);
                self.write_whole(offset + done as u64, &aligned.into(), dsync)
                    .await?;
                done += len;
            }
        }
        if force_unit_access && !dsync {
            self.flush().await?;
        }
        Ok(Reply::Done)
    }

    async fn compare(&self, offset: u64, with: Gather) -> Result<Reply, IoError> {
        let mut done = 0;
        while done < with.len_bytes() {
            let len = (with.len_bytes() - done).min(BOUNCE_BYTES);
            let read = self
                .read_whole(offset + done as u64, Self::aligned_buffer(len))
                .await?;
            let mut rest = &read[..];
            for piece in with.range(done, len).pieces() {
                let (found, after) = rest.split_at_checked(piece.len()).ok_or(IoError::Internal)?;
                if *found != piece[..] {
                    return Err(IoError::CompareFailed);
                }
                rest = after;
            }
            done += len;
        }
        Ok(Reply::Done)
    }

    /// Makes a range read as zeros; `free` gives its space back where that is possible.
    async fn zero(&self, offset: u64, len: u64, free: bool, durable: bool) -> Result<Reply, IoError> {
        let mut done = 0;
        while done < len {
            let piece = (len - done).min(ALLOCATE_BYTES_MAX);
            self.zero_piece(offset + done, piece, free).await?;
            done += piece;
        }
        if durable {
            self.flush().await?;
        }
        Ok(Reply::Done)
    }

    async fn zero_piece(&self, offset: u64, len: u64, free: bool) -> Result<(), IoError> {
        let ways: &[Way] = if free {
            &[Way::Punch, Way::Zero]
        } else {
            &[Way::Zero]
        };
        for &way in ways {
            if self.device.refuses(way) {
                continue;
            }
            let what = match way {
                Way::Punch => Allocate::PunchHole,
                Way::Zero => Allocate::Zero,
            };
            let mut retries = 0;
            loop {
                match self.file.allocate(what, offset, len).await {
                    Ok(()) => return Ok(()),
                    Err(error) if is_transient(&error) && retries < RETRIES_MAX => retries += 1,
                    Err(error) if is_refused(&error) => {
                        self.device.note_refusal(way);
                        break;
                    }
                    Err(error) => return Err(self.media_error(&error, Direction::Write)),
                }
            }
        }
        let mut done = 0;
        while done < len {
            let piece = (len - done).min(ZEROS_BYTES);
            let zeros = Gather::from(Slice::zeroes(piece as usize));
            self.write_whole(offset + done, &zeros, false).await?;
            done += piece;
        }
        Ok(())
    }
}

impl Queue {
    /// What the file system says is data, widened to whole blocks.
    async fn allocation(
        &self,
        block: u64,
        blocks: u64,
        runs_max: usize,
    ) -> Result<Vec<AllocationRun>, IoError> {
        let block_bytes = u64::from(self.device.geometry.block_bytes);
        let range = block * block_bytes..(block + blocks) * block_bytes;
        let found = self.file.data_ranges(range, runs_max.max(1)).await;
        let (data, until) = match found {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                return Err(IoError::ResourceShortage);
            }
            Err(error) => return Err(self.media_error(&error, Direction::Read)),
        };
        let mut runs = AllocationRuns::new(blocks, runs_max);
        let mut at = block;
        for piece in data {
            let (start, end) = (piece.start / block_bytes, piece.end.div_ceil(block_bytes));
            runs.push(start.saturating_sub(at), false);
            runs.push(end.saturating_sub(start.max(at)), true);
            at = end.max(at);
        }
        runs.push((until / block_bytes).saturating_sub(at), false);
        Ok(runs.into_runs())
    }
}

/// What a reactor is given. The queue lives on while requests do.
struct UringQueue(Rc<Queue>);

impl UringQueue {
    /// Checks a request; what is out of range may not be if the file has grown.
    fn check(&self, request: &Request) -> Result<Geometry, IoError> {
        let device = &self.0.device;
        let geometry = device.current_geometry();
        match request.check(&geometry) {
            Ok(()) => Ok(geometry),
            Err(IoError::OutOfRange) => {
                device.refresh();
                let geometry = device.current_geometry();
                request.check(&geometry).map(|()| geometry)
            }
            Err(error) => Err(error),
        }
    }
}

impl BlockDevice for UringQueue {
    fn geometry(&self) -> Geometry {
        self.0.device.current_geometry()
    }

    fn submit(&self, request: Request) -> Completion {
        let geometry = match self.check(&request) {
            Ok(geometry) => geometry,
            Err(error) => return Completion::failed(error),
        };
        let block_bytes = u64::from(geometry.block_bytes);
        let (block, blocks) = request.range(&geometry).unwrap_or_default();
        let (offset, len) = (block * block_bytes, blocks * block_bytes);
        let queue = self.0.clone();
        match request {
            Request::Read { into, .. } => {
                Completion::from_future(async move { queue.read(offset, into).await })
            }
            Request::Write {
                from,
                force_unit_access,
                ..
            } => Completion::from_future(async move { queue.write(offset, from, force_unit_access).await }),
            Request::Compare { with, .. } => {
                Completion::from_future(async move { queue.compare(offset, with).await })
            }
            Request::Flush => {
                if geometry.read_only {
                    return Completion::done();
                }
                Completion::from_future(async move { queue.flush().await.map(|()| Reply::Done) })
            }
            Request::Deallocate { .. } => {
                Completion::from_future(async move { queue.zero(offset, len, true, false).await })
            }
            Request::WriteZeroes { options, .. } => Completion::from_future(async move {
                let (free, durable) = (options.may_deallocate, options.force_unit_access);
                queue.zero(offset, len, free, durable).await
            }),
        }
    }

    fn allocation(&self, block: u64, blocks: u64, runs_max: usize) -> AllocationQuery {
        let geometry = self.geometry();
        if let Err(error) = geometry.check_range(block, blocks) {
            return Box::pin(ready(Err(error)));
        }
        if blocks == 0 {
            return Box::pin(ready(Ok(Vec::new())));
        }
        let queue = self.0.clone();
        Box::pin(async move { queue.allocation(block, blocks, runs_max).await })
    }
}
