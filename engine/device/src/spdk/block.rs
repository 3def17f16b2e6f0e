//! Requests of a block device, made to commands.

use std::rc::Rc;

use pollux_hugepages::Buffer;

use super::queue::{Queue, Request as Started};
use super::raw::commands::Data;
use super::raw::queue::{Order, Verb};
use crate::BlockDevice;
use crate::completion::Completion;
use crate::error::IoError;
use crate::geometry::Geometry;
use crate::request::{Gather, Reply, Request, ZeroOptions};

/// What a reactor is given. The queue lives on while requests do.
pub(super) struct SpdkQueue(pub(super) Rc<Queue>);

impl BlockDevice for SpdkQueue {
    fn geometry(&self) -> Geometry {
        self.0.namespace().geometry()
    }

    fn submit(&self, request: Request) -> Completion {
        let queue = &self.0;
        let geometry = queue.namespace().geometry();
        if let Err(error) = request.check(&geometry) {
            return Completion::failed(error);
        }
        if let Some(error) = queue.failure() {
            return Completion::failed(error);
        }
        let (block, blocks) = request.range(&geometry).unwrap_or_default();
        if blocks == 0 && !matches!(request, Request::Flush) {
            return Completion::ready(Ok(match request {
                Request::Read { into, .. } => Reply::Data(into),
                _ => Reply::Done,
            }));
        }
        match request {
            Request::Read { into, .. } => self.read(block, blocks as u32, into),
            Request::Write {
                from,
                force_unit_access,
                ..
            } => self.write(block, blocks as u32, from, force_unit_access),
            Request::Compare { with, .. } => self.compare(block, blocks as u32, with),
            Request::Flush if geometry.read_only => Completion::done(),
            Request::Flush => Completion::from_future(flush(Rc::clone(queue))),
            Request::Deallocate { .. } => {
                let options = ZeroOptions {
                    force_unit_access: false,
                    may_deallocate: true,
                };
                Completion::from_future(zero(Rc::clone(queue), block, blocks, options))
            }
            Request::WriteZeroes { options, .. } => {
                Completion::from_future(zero(Rc::clone(queue), block, blocks, options))
            }
        }
    }
}

impl SpdkQueue {
    fn read(&self, block: u64, blocks: u32, into: Buffer) -> Completion {
        let order = order(Verb::Read, block, blocks);
        if !self.0.reach.has_buffer(&into) {
            return Completion::from_future(read_through(Rc::clone(&self.0), order, into));
        }
        match self.0.start(order, Data::Into(into)) {
            Ok(started) => Completion::from_future(async move { reply(started).await }),
            Err(data) => {
                let queue = Rc::clone(&self.0);
                Completion::from_future(async move { reply(queue.start_later(order, data).await?).await })
            }
        }
    }

    fn write(&self, block: u64, blocks: u32, from: Gather, force_unit_access: bool) -> Completion {
        let order = Order {
            force_unit_access,
            ..order(Verb::Write, block, blocks)
        };
        if !self.has_gather(&from) {
            let queue = Rc::clone(&self.0);
            return Completion::from_future(async move {
                let copy = copy_of(&queue, &from).await?;
                write_now(queue.start_later(order, copy).await?, queue, force_unit_access).await
            });
        }
        let queue = Rc::clone(&self.0);
        match self.0.start(order, Data::From(from)) {
            Ok(started) => {
                Completion::from_future(async move { write_now(started, queue, force_unit_access).await })
            }
            Err(data) => Completion::from_future(async move {
                write_now(queue.start_later(order, data).await?, queue, force_unit_access).await
            }),
        }
    }

    fn compare(&self, block: u64, blocks: u32, with: Gather) -> Completion {
        let queue = Rc::clone(&self.0);
        if !queue.namespace().description.supports_compare {
            let order = order(Verb::Read, block, blocks);
            return Completion::from_future(compare_here(queue, order, with));
        }
        let order = order(Verb::Compare, block, blocks);
        let fits = self.has_gather(&with);
        Completion::from_future(async move {
            let data = if fits {
                Data::From(with)
            } else {
                copy_of(&queue, &with).await?
            };
            let (result, _) = queue.start_later(order, data).await?.end().await;
            result.map(|()| Reply::Done)
        })
    }

    fn has_gather(&self, gather: &Gather) -> bool {
        let description = &self.0.namespace().description;
        let block_bytes = description.geometry.block_bytes;
        self.0
            .reach
            .has_gather(gather, block_bytes, description.pieces_max)
    }
}

fn order(verb: Verb, block: u64, blocks: u32) -> Order {
    Order {
        verb,
        block,
        blocks,
        force_unit_access: false,
        deallocate: false,
    }
}

/// The end of a read.
async fn reply(started: Started) -> Result<Reply, IoError> {
    match started.end().await {
        (Ok(()), Data::Into(buffer)) => Ok(Reply::Data(buffer)),
        (Ok(()), Data::From(_) | Data::None) => Err(IoError::Internal),
        (Err(error), _) => Err(error),
    }
}

/// A read into memory that the controller does not reach.
async fn read_through(queue: Rc<Queue>, order: Order, mut into: Buffer) -> Result<Reply, IoError> {
    let bounce = queue.reach.buffer(into.len()).await?;
    let started = queue.start_later(order, Data::Into(bounce)).await?;
    let read = reply(started).await?.into_buffer()?;
    into.copy_from_slice(&read);
    Ok(Reply::Data(into))
}

/// The data in memory that the controller reaches, in one piece.
async fn copy_of(queue: &Queue, gather: &Gather) -> Result<Data, IoError> {
    let mut bounce = queue.reach.buffer(gather.len_bytes()).await?;
    gather.copy_to(&mut bounce);
    Ok(Data::From(bounce.into()))
}

/// The end of a write.
async fn write_now(started: Started, queue: Rc<Queue>, is_stable: bool) -> Result<Reply, IoError> {
    let (result, _) = started.end().await;
    result?;
    note_write(&queue, is_stable);
    Ok(Reply::Done)
}

/// A write has completed.
fn note_write(queue: &Queue, is_stable: bool) {
    let namespace = queue.namespace();
    if !is_stable && namespace.description.geometry.volatile_write_cache {
        namespace.ledger.wrote();
    }
}

/// A compare for a drive that has no such command.
async fn compare_here(queue: Rc<Queue>, order: Order, with: Gather) -> Result<Reply, IoError> {
    let buffer = queue.reach.buffer(with.len_bytes()).await?;
    let started = queue.start_later(order, Data::Into(buffer)).await?;
    let read = reply(started).await?.into_buffer()?;
    let mut rest = &read[..];
    for piece in with.pieces() {
        let (found, after) = rest.split_at_checked(piece.len()).ok_or(IoError::Internal)?;
        if *found != piece[..] {
            return Err(IoError::CompareFailed);
        }
        rest = after;
    }
    Ok(Reply::Done)
}

async fn flush(queue: Rc<Queue>) -> Result<Reply, IoError> {
    let namespace = Rc::clone(&queue);
    let ledger = &namespace.namespace().ledger;
    let flush = ledger.begin_flush();
    let order = order(Verb::Flush, 0, 0);
    let (result, _) = queue.start_later(order, Data::None).await?.end().await;
    result?;
    // Also of a loss while it was under way.
    if queue.tell_losses() {
        let device = queue.device.name_text();
        tracing::error!(
            device,
            "the drive was away and may have lost its cache: writes since the last flush may be gone"
        );
        return Err(IoError::MediaWrite);
    }
    flush.succeeded();
    Ok(Reply::Done)
}

/// Makes a range read as zeros.
async fn zero(queue: Rc<Queue>, block: u64, blocks: u64, options: ZeroOptions) -> Result<Reply, IoError> {
    let description = &queue.namespace().description;
    let Some(at_once_max) = description.zeroes_blocks_max else {
        return write_zeros(&queue, block, blocks, options.force_unit_access).await;
    };
    let mut done = 0;
    while done < blocks {
        let at_once = (blocks - done).min(u64::from(at_once_max));
        let order = Order {
            force_unit_access: options.force_unit_access,
            deallocate: options.may_deallocate && description.geometry.deallocates,
            ..order(Verb::WriteZeroes, block + done, at_once as u32)
        };
        let (result, _) = queue.start_later(order, Data::None).await?.end().await;
        match result {
            Ok(()) => note_write(&queue, options.force_unit_access),
            // Larger than the drive takes, though it does not say how much that is.
            Err(IoError::InvalidField | IoError::Unsupported) => {
                write_zeros(&queue, block + done, at_once, options.force_unit_access).await?;
            }
            Err(error) => return Err(error),
        }
        done += at_once;
    }
    Ok(Reply::Done)
}

/// Zeros, for a drive that has no command for them.
async fn write_zeros(
    queue: &Rc<Queue>,
    block: u64,
    blocks: u64,
    force_unit_access: bool,
) -> Result<Reply, IoError> {
    let geometry = queue.namespace().geometry();
    let mut done = 0;
    while done < blocks {
        let at_once = (blocks - done).min(u64::from(geometry.transfer_blocks_max));
        let mut zeros = queue
            .reach
            .buffer((at_once * u64::from(geometry.block_bytes)) as usize)
            .await?;
        zeros.fill(0);
        let order = Order {
            force_unit_access,
            ..order(Verb::Write, block + done, at_once as u32)
        };
        let (result, _) = queue
            .start_later(order, Data::From(zeros.into()))
            .await?
            .end()
            .await;
        result?;
        note_write(queue, force_unit_access);
        done += at_once;
    }
    Ok(Reply::Done)
}
