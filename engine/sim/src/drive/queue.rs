//! The queue pair of one reactor: requests on their way through a drive.

use std::future::poll_fn;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use pollux_device::{
    AllocationQuery, AllocationRun, AllocationRuns, BlockDevice, Completion, Gather, Geometry, IoError,
    Reply, Request,
};
use pollux_hugepages::Buffer;

use super::faults::{Fault, Operation, next_scripted};
use super::store::{Effect, SECTOR_BYTES, cut_out};
use super::{SimDrive, State};
use crate::random::hash_bytes;
use crate::world::SimTask;

struct Queue {
    drive: Arc<SimDrive>,
    /// The drive's generation when this was attached.
    generation: u64,
}

pub(super) fn attach(drive: Arc<SimDrive>) -> Rc<dyn BlockDevice> {
    let generation = drive.state().generation;
    Rc::new(Queue { drive, generation })
}

/// What is left of a request once it was submitted.
enum Work {
    Read {
        block: u64,
        into: Buffer,
    },
    Compare {
        block: u64,
        with: Gather,
    },
    Write {
        write: u64,
        effect: Arc<Effect>,
        durable: bool,
    },
    /// What the cache held when it was submitted.
    Flush {
        covers: u64,
    },
}

/// A request under way.
struct Ticket {
    work: Work,
    fault: Option<Fault>,
    latency: Duration,
}

impl BlockDevice for Queue {
    fn geometry(&self) -> Geometry {
        self.drive.state().options.geometry
    }

    fn submit(&self, request: Request) -> Completion {
        let ticket = match self.drive.state().begin(self.generation, request) {
            Ok(ticket) => ticket,
            Err(error) => return Completion::failed(error),
        };
        let (drive, generation) = (self.drive.clone(), self.generation);
        if ticket.latency.is_zero() && !drive.state().faults.stuck {
            return Completion::ready(drive.state().finish(generation, ticket));
        }
        // A task of its own: the drive goes on whether or not anyone still waits for the completion.
        let (task, tracked) = SimTask::track(async move {
            pollux_reactor::sleep(ticket.latency).await;
            drive.wait_while_stuck(generation).await;
            drive.state().finish(generation, ticket)
        });
        pollux_reactor::spawn(tracked).detach();
        Completion::from_future(async move { task.await.unwrap_or(Err(IoError::Gone)) })
    }

    fn allocation(&self, block: u64, blocks: u64, runs_max: usize) -> AllocationQuery {
        let (drive, generation) = (self.drive.clone(), self.generation);
        Box::pin(async move {
            let latency = drive.state().begin_question(generation, block, blocks)?;
            if !latency.is_zero() {
                pollux_reactor::sleep(latency).await;
            }
            drive.wait_while_stuck(generation).await;
            drive.state().allocation(generation, block, blocks, runs_max)
        })
    }
}

impl SimDrive {
    async fn wait_while_stuck(&self, generation: u64) {
        poll_fn(|context| {
            let mut state = self.state();
            if !state.faults.stuck || state.generation != generation {
                return Poll::Ready(());
            }
            state.stuck.push_back(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

impl State {
    /// Takes a request in: checks it, counts it, and draws what happens to it.
    fn begin(&mut self, generation: u64, request: Request) -> Result<Ticket, IoError> {
        if generation != self.generation || !self.present {
            return Err(IoError::Gone);
        }
        let geometry = self.options.geometry;
        request.check(&geometry)?;
        check_limits(&request, &geometry)?;
        let operation = Operation::of(&request);
        let drawn = self.faults.draw(operation, &mut self.fault_random);
        let fault = next_scripted(&mut self.script, operation).or(drawn);
        self.counters.faults += u64::from(fault.is_some());
        let (block, blocks) = request.range(&geometry).unwrap_or_default();
        self.note(operation as u64 + 1, block);
        self.note(fault.is_some().into(), blocks);
        if fault == Some(Fault::Error(IoError::ResourceShortage)) {
            return Err(IoError::ResourceShortage);
        }
        let latency = self.draw_latency(&request, fault);
        self.count(&request, geometry);
        let work = self.begin_work(request, geometry);
        Ok(Ticket { work, fault, latency })
    }

    /// Takes in the question which blocks are allocated: it takes as long as a read.
    fn begin_question(&mut self, generation: u64, block: u64, blocks: u64) -> Result<Duration, IoError> {
        if generation != self.generation || !self.present {
            return Err(IoError::Gone);
        }
        self.options.geometry.check_range(block, blocks)?;
        let latency = self.options.read_latency.draw(&mut self.random);
        Ok(latency.saturating_mul(self.faults.slowdown.max(1)))
    }

    /// What reads see decides: a hole is where no page is. Those that cannot be read are none.
    fn allocation(
        &self,
        generation: u64,
        block: u64,
        blocks: u64,
        runs_max: usize,
    ) -> Result<Vec<AllocationRun>, IoError> {
        if generation != self.generation {
            return Err(IoError::Gone);
        }
        let mut runs = AllocationRuns::new(blocks, runs_max);
        if !self.options.tells_holes {
            runs.push(blocks, true);
            return Ok(runs.into_runs());
        }
        let bytes = u64::from(self.options.geometry.block_bytes);
        let is_hole = |block: u64| {
            let is_unreadable = self.unreadable.iter().any(|range| range.contains(&block));
            !is_unreadable && self.view.is_empty_at(block * bytes)
        };
        for block in block..block + blocks {
            if !runs.push(1, !is_hole(block)) {
                break;
            }
        }
        Ok(runs.into_runs())
    }

    fn draw_latency(&mut self, request: &Request, fault: Option<Fault>) -> Duration {
        let options = &self.options;
        let mut latency = match Operation::of(request) {
            Operation::Read => options.read_latency.draw(&mut self.random),
            Operation::Write => options.write_latency.draw(&mut self.random),
            Operation::Flush => options.flush_latency.draw(&mut self.random),
        };
        if forces_unit_access(request) && options.geometry.volatile_write_cache {
            latency += options.flush_latency.draw(&mut self.random);
        }
        latency = latency.saturating_mul(self.faults.slowdown.max(1));
        if let Some(Fault::Delay(span)) = fault {
            latency += span;
        }
        latency
    }

    fn count(&mut self, request: &Request, geometry: Geometry) {
        let bytes = request
            .range(&geometry)
            .map_or(0, |(_, blocks)| blocks * u64::from(geometry.block_bytes));
        let counters = &mut self.counters;
        match request {
            Request::Read { .. } | Request::Compare { .. } => {
                counters.reads += 1;
                counters.read_bytes += bytes;
            }
            Request::Write { .. } => {
                counters.writes += 1;
                counters.written_bytes += bytes;
            }
            Request::WriteZeroes { .. } => counters.write_zeroes += 1,
            Request::Deallocate { .. } => counters.deallocates += 1,
            Request::Flush => counters.flushes += 1,
        }
        counters.fua_writes += u64::from(forces_unit_access(request));
    }

    fn begin_work(&mut self, request: Request, geometry: Geometry) -> Work {
        let durable = forces_unit_access(&request);
        let range = request.range(&geometry).unwrap_or_default();
        match request {
            Request::Read { block, into } => Work::Read { block, into },
            Request::Compare { block, with } => Work::Compare { block, with },
            Request::Flush => Work::Flush {
                covers: self.store.sequence(),
            },
            Request::Write { from, .. } => {
                // Copied, as by DMA: the caller's memory must not be held for as long as the cache holds the
                // data.
                let mut data = vec![0; from.len_bytes()].into_boxed_slice();
                from.copy_to(&mut data);
                self.note(hash_bytes(0, &data), 0);
                self.begin_write(range, Some(data), durable)
            }
            Request::Deallocate { .. } | Request::WriteZeroes { .. } => {
                self.begin_write(range, None, durable)
            }
        }
    }

    fn begin_write(&mut self, (block, blocks): (u64, u64), data: Option<Box<[u8]>>, durable: bool) -> Work {
        let geometry = self.options.geometry;
        let sectors_per_block = u64::from(geometry.block_bytes) / SECTOR_BYTES;
        let atomic_sectors = match self.options.tears_within_blocks {
            true => 1,
            false => u64::from(geometry.atomic_write_blocks) * sectors_per_block,
        };
        let effect = Arc::new(Effect {
            sector: block * sectors_per_block,
            sectors: blocks * sectors_per_block,
            data,
            atomic_sectors,
        });
        let write = self.next_request;
        self.next_request += 1;
        if let Some((recorder, drive)) = &self.recorder {
            recorder.submitted(*drive, write, effect.clone());
        }
        self.store.begin(write, effect.clone());
        Work::Write {
            write,
            effect,
            durable,
        }
    }

    /// Does what a request asked for, or what its fault makes of it.
    fn finish(&mut self, generation: u64, ticket: Ticket) -> Result<Reply, IoError> {
        if generation != self.generation {
            return Err(IoError::Gone);
        }
        match ticket.work {
            Work::Read { block, mut into } => {
                self.read(block, &mut into, ticket.fault)?;
                Ok(Reply::Data(into))
            }
            Work::Compare { block, with } => {
                let mut data = vec![0; with.len_bytes()];
                self.read(block, &mut data, ticket.fault)?;
                let mut expected = vec![0; with.len_bytes()];
                with.copy_to(&mut expected);
                if data == expected {
                    Ok(Reply::Done)
                } else {
                    Err(IoError::CompareFailed)
                }
            }
            Work::Write {
                write,
                effect,
                durable,
            } => self.finish_write(write, effect, durable, ticket.fault),
            Work::Flush { covers } => self.finish_flush(covers, ticket.fault),
        }
    }

    fn read(&mut self, block: u64, into: &mut [u8], fault: Option<Fault>) -> Result<(), IoError> {
        let geometry = self.options.geometry;
        let blocks = geometry.blocks_of(into.len()).unwrap_or_default();
        if let Some(Fault::Error(error)) = fault {
            self.health.media_errors += u64::from(error == IoError::MediaRead);
            return Err(error);
        }
        let overlaps = |range: &Range<u64>| range.start < block + blocks && block < range.end;
        if self.unreadable.iter().any(overlaps) {
            self.health.media_errors += 1;
            return Err(IoError::MediaRead);
        }
        let from = match fault {
            Some(Fault::Misdirected) => self.elsewhere(block, blocks),
            _ => block,
        };
        self.view.read(from * u64::from(geometry.block_bytes), into);
        if fault == Some(Fault::BitFlip) {
            self.flip_any(into);
        }
        Ok(())
    }

    fn finish_write(
        &mut self,
        write: u64,
        effect: Arc<Effect>,
        durable: bool,
        fault: Option<Fault>,
    ) -> Result<Reply, IoError> {
        let sectors_per_block = u64::from(self.options.geometry.block_bytes) / SECTOR_BYTES;
        let (block, blocks) = (
            effect.sector / sectors_per_block,
            effect.sectors / sectors_per_block,
        );
        match fault {
            None | Some(Fault::Delay(_)) => self.complete_write(write, Some(effect), durable),
            Some(Fault::Lie) => self.complete_write(write, None, durable),
            Some(Fault::Misdirected) => {
                let sector = self.elsewhere(block, blocks) * sectors_per_block;
                let elsewhere = Effect {
                    sector,
                    sectors: effect.sectors,
                    data: effect.data.clone(),
                    atomic_sectors: effect.atomic_sectors,
                };
                self.complete_write(write, Some(Arc::new(elsewhere)), durable);
            }
            Some(Fault::BitFlip) => {
                let mut data = effect.data.clone();
                if let Some(data) = &mut data {
                    self.flip_any(data);
                }
                let flipped = Effect { data, ..*effect };
                self.complete_write(write, Some(Arc::new(flipped)), durable);
            }
            Some(Fault::Error(error)) => {
                // Done, not done, or done in part; and in the cache, whatever was asked.
                let done = match self.fault_random.below(3) {
                    0 => None,
                    1 => Some(effect),
                    _ => self.part_of(&effect),
                };
                self.complete_write(write, done, false);
                return Err(error);
            }
        }
        // Writing heals what could not be read.
        cut_out(&mut self.unreadable, &(block..block + blocks));
        Ok(Reply::Done)
    }

    fn finish_flush(&mut self, covers: u64, fault: Option<Fault>) -> Result<Reply, IoError> {
        match fault {
            Some(Fault::Error(error)) => {
                if self.faults.failed_flush_forgets {
                    self.store.forget_cached();
                    if let Some((recorder, drive)) = &self.recorder {
                        recorder.forgot(*drive);
                    }
                }
                Err(error)
            }
            Some(Fault::Lie) => Ok(Reply::Done),
            None | Some(Fault::Delay(_) | Fault::Misdirected | Fault::BitFlip) => {
                self.store.flush(covers);
                if let Some((recorder, drive)) = &self.recorder {
                    recorder.flushed(*drive, covers);
                }
                Ok(Reply::Done)
            }
        }
    }

    /// Another place of the drive, for as many blocks.
    fn elsewhere(&mut self, block: u64, blocks: u64) -> u64 {
        let places = (self.options.geometry.blocks - blocks) + 1;
        let chosen = self.fault_random.below(places);
        if chosen == block {
            (chosen + 1) % places
        } else {
            chosen
        }
    }

    fn flip_any(&mut self, bytes: &mut [u8]) {
        let index = self.fault_random.index(bytes.len());
        let bit = self.fault_random.below(8);
        if let Some(byte) = bytes.get_mut(index) {
            *byte ^= 1 << bit;
        }
    }

    /// The first sectors of an effect, some of them.
    fn part_of(&mut self, effect: &Effect) -> Option<Arc<Effect>> {
        let unit = effect.atomic_sectors.max(1);
        let sectors = self.fault_random.below(effect.sectors + 1) / unit * unit;
        let data = effect.data.as_ref().map(|data| {
            let bytes = (sectors * SECTOR_BYTES) as usize;
            data.get(..bytes).unwrap_or_default().into()
        });
        (sectors > 0).then(|| {
            Arc::new(Effect {
                sectors,
                data,
                ..*effect
            })
        })
    }
}

fn forces_unit_access(request: &Request) -> bool {
    match request {
        Request::Write {
            force_unit_access, ..
        } => *force_unit_access,
        Request::WriteZeroes { options, .. } => options.force_unit_access,
        Request::Read { .. } | Request::Flush | Request::Deallocate { .. } | Request::Compare { .. } => false,
    }
}

/// What a strict drive refuses, though the range is good.
fn check_limits(request: &Request, geometry: &Geometry) -> Result<(), IoError> {
    if geometry.read_only && request.is_mutation() {
        return Err(IoError::ReadOnly);
    }
    let align = geometry.memory_align_bytes.max(1) as usize;
    let (transfers, aligned) = match request {
        Request::Read { into, .. } => (true, (into.as_ptr() as usize).is_multiple_of(align)),
        Request::Write { from, .. } | Request::Compare { with: from, .. } => (true, from.is_aligned(align)),
        Request::Flush | Request::Deallocate { .. } | Request::WriteZeroes { .. } => (false, true),
    };
    let blocks = request.range(geometry).map_or(0, |(_, blocks)| blocks);
    if !aligned || (transfers && blocks > u64::from(geometry.transfer_blocks_max)) {
        return Err(IoError::InvalidField);
    }
    Ok(())
}
