//! Snapshots, clones, deletions and sizes, while clients use the volumes.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use pollux_device::BlockDeviceExt;
use pollux_hugepages::Buffer;
use pollux_pool::PoolError;
use pollux_reactor::{Task, spawn};
use pollux_sim::Random;
use pollux_sim::oracle::{CheckedDevice, Oracle, Value, Workload, WriteOutcome};

use super::{BLOCK, Branch, MARK, PATTERN, Run, USED_BLOCKS, VOLUME_BLOCKS, VOLUMES, is_full};

/// Snapshots and clones at a time.
const BRANCHES_MAX: usize = 6;

pub struct Manager {
    run: Rc<Run>,
    number: u64,
    random: Random,
    next: u64,
    tasks: Vec<Task<Result<(), String>>>,
}

fn told(error: PoolError) -> String {
    error.to_string()
}

impl Manager {
    pub fn new(run: Rc<Run>, number: u64, random: Random) -> Self {
        Self {
            run,
            number,
            random,
            next: 0,
            tasks: Vec::new(),
        }
    }

    /// Something random; most of it is waited for. Only the first manager changes sizes.
    pub async fn step(&mut self) -> Result<(), String> {
        match self.random.below(12) {
            0..=3 => self.snapshot().await,
            4 => self.clone_one().await,
            5..=6 => self.delete().await,
            7 if self.number == 0 => self.grow().await,
            8 if self.number == 0 => self.shrink().await,
            9 => self.run.pool.checkpoint().await.map_err(told),
            10 => self.run.pool.reclaim().await.map_err(told),
            _ => {
                let pool = self.run.pool.clone();
                self.tasks
                    .push(spawn(async move { pool.reclaim().await.map_err(told) }));
                Ok(())
            }
        }
    }

    pub async fn finish(&mut self) -> Result<(), String> {
        for task in self.tasks.drain(..) {
            task.await?;
        }
        Ok(())
    }

    fn branch(&self, at: usize, change: impl FnOnce(&mut Branch)) {
        change(&mut self.run.branches.borrow_mut()[at]);
    }

    /// Branches that are there, by their place in the list.
    fn alive(&self, clones: bool) -> Vec<usize> {
        let branches = self.run.branches.borrow();
        let alive = (0..branches.len()).filter(|at| {
            let branch: &Branch = &branches[*at];
            branch.deleted.is_none() && branch.made.end != usize::MAX
        });
        alive
            .filter(|at| branches[*at].oracle.is_some() == clones)
            .collect()
    }

    pub async fn snapshot(&mut self) -> Result<(), String> {
        let run = self.run.clone();
        if self.alive(false).len() + self.alive(true).len() >= BRANCHES_MAX {
            return self.delete().await;
        }
        let live = &run.live[self.random.below(VOLUMES) as usize];
        self.next += 1;
        let name = format!("s{}-{}", self.number, self.next);
        let made = run.begin();
        let at = run.branches.borrow().len();
        run.branches.borrow_mut().push(Branch {
            name: name.clone(),
            made,
            deleted: None,
            values: None,
            oracle: None,
        });
        // To the oracle it is a read of all blocks, between now and when it is there.
        let ticket = live.oracle.borrow_mut().start_read(0, USED_BLOCKS);
        let entry = run.pool.snapshot(&live.name, &name, 0).await.map_err(told)?;
        let made = run.end(made);
        self.branch(at, |branch| branch.made = made);
        let mark = live.oracle.borrow_mut().start_write(MARK, 1);
        live.oracle.borrow_mut().end_write(mark, WriteOutcome::Failed);
        let opened = run.pool.open_volume(&name).map_err(told)?;
        let bytes = opened
            .read(0, Buffer::from_heap(entry.size_blocks as usize * BLOCK))
            .await;
        let bytes = bytes.map_err(|error| format!("{name} cannot be read: {error}"))?;
        let values = PATTERN
            .values(&bytes, 0)
            .map_err(|error| format!("{name}: {error}"))?;
        for (block, value) in values.iter().enumerate() {
            if *value > mark.value() {
                return Err(format!(
                    "{name} block {block} holds {value:?}, written after it was taken"
                ));
            }
        }
        let legal = live.oracle.borrow_mut().end_read(ticket, &values);
        legal.map_err(|error| format!("{name}: {error}"))?;
        self.branch(at, |branch| branch.values = Some(values));
        Ok(())
    }

    async fn clone_one(&mut self) -> Result<(), String> {
        let run = self.run.clone();
        let snapshots = self.alive(false);
        let Some(of) = self.random.pick(&snapshots).copied() else {
            return Ok(());
        };
        let of = run.branches.borrow()[of].clone();
        self.next += 1;
        let name = format!("c{}-{}", self.number, self.next);
        let made = run.begin();
        let at = run.branches.borrow().len();
        let oracle = Rc::new(RefCell::new(Oracle::recorded(&run.recorder)));
        run.branches.borrow_mut().push(Branch {
            name: name.clone(),
            made,
            deleted: None,
            values: of.values,
            oracle: Some(oracle.clone()),
        });
        match run.pool.clone_snapshot(&of.name, &name, 0).await {
            Ok(_) => {}
            Err(PoolError::NotFound { .. }) => {
                // Another manager was faster, so it was never made.
                let gone = run.end(made);
                self.branch(at, |branch| branch.deleted = Some(gone));
                return Ok(());
            }
            Err(error) => return Err(told(error)),
        }
        let made = run.end(made);
        self.branch(at, |branch| branch.made = made);
        let workload = Workload {
            pause: Duration::from_micros(50),
            reads: 0,
            zeroes: 0,
            deallocates: 0,
            ..Workload::mixed(0..USED_BLOCKS, 10)
        };
        let device = CheckedDevice::new(run.pool.open_volume(&name).map_err(told)?, oracle);
        let mut stream = pollux_sim::Seed(self.random.u64()).stream("clone", 0);
        self.tasks.push(spawn(async move {
            let result = workload.run(&device, &mut stream, is_full).await;
            result.map(drop).map_err(|error| error.to_string())
        }));
        Ok(())
    }

    async fn delete(&mut self) -> Result<(), String> {
        let run = self.run.clone();
        let all = [self.alive(false), self.alive(true)].concat();
        let Some(at) = self.random.pick(&all).copied() else {
            return Ok(());
        };
        let name = run.branches.borrow()[at].name.clone();
        let deleted = run.begin();
        self.branch(at, |branch| branch.deleted = Some(deleted));
        match run.pool.delete(&name).await {
            Ok(()) => {
                let deleted = run.end(deleted);
                self.branch(at, |branch| branch.deleted = Some(deleted));
                Ok(())
            }
            // Its clients are not done.
            Err(PoolError::Busy { .. }) => {
                self.branch(at, |branch| branch.deleted = None);
                Ok(())
            }
            Err(error) => Err(told(error)),
        }
    }

    /// A volume in use has more blocks.
    async fn grow(&mut self) -> Result<(), String> {
        let run = self.run.clone();
        let live = &run.live[self.random.below(VOLUMES) as usize];
        let size = VOLUME_BLOCKS + self.random.below(VOLUME_BLOCKS);
        let before = live.sizes.borrow().last().map_or(0, |(_, size)| *size);
        if size <= before {
            return Ok(());
        }
        let span = run.begin();
        live.sizes.borrow_mut().push((span, size));
        run.pool.resize(&live.name, size, false).await.map_err(told)?;
        *live.sizes.borrow_mut().last_mut().unwrap() = (run.end(span), size);
        Ok(())
    }

    /// The volume without clients is written, made smaller, and larger again: what was past its end is zeros.
    async fn shrink(&mut self) -> Result<(), String> {
        let run = self.run.clone();
        let live = &run.live[VOLUMES as usize];
        let size = live.sizes.borrow().last().map_or(0, |(_, size)| *size);
        {
            let device = CheckedDevice::new(
                run.pool.open_volume(&live.name).map_err(told)?,
                live.oracle.clone(),
            );
            for _ in 0..3 {
                let blocks = 1 + self.random.below(8).min(size - 1);
                let block = self.random.below(size - blocks + 1);
                match device
                    .write(block, blocks, false)
                    .await
                    .map_err(|error| error.io())
                {
                    Err(Ok(error)) if is_full(error) => {}
                    Ok(()) => {}
                    Err(error) => return Err(format!("{error:?}")),
                }
                device.read(0, size).await.map_err(|error| error.to_string())?;
            }
        }
        let smaller = 1 + self.random.below(VOLUME_BLOCKS * 2);
        let span = run.begin();
        live.sizes.borrow_mut().push((span, smaller));
        let zeroed = (smaller < size).then(|| live.oracle.borrow_mut().start_zeroes(smaller, size - smaller));
        let result = run.pool.resize(&live.name, smaller, true).await;
        let outcome = match result {
            Ok(()) => WriteOutcome::Acknowledged { durable: true },
            Err(PoolError::NoSpace | PoolError::Device(pollux_device::IoError::CapacityExceeded)) => {
                live.sizes.borrow_mut().pop();
                WriteOutcome::Failed
            }
            Err(error) => return Err(told(error)),
        };
        if let Some(zeroed) = zeroed {
            live.oracle.borrow_mut().end_write(zeroed, outcome);
        }
        if result.is_ok() {
            *live.sizes.borrow_mut().last_mut().unwrap() = (run.end(span), smaller);
        }
        Ok(())
    }
}

/// What a clone that began as `begun` may hold, where the model of what was written to it allows `found`.
pub fn is_legal_in_clone(oracle: &Oracle, block: u64, begun: Value, found: Value) -> bool {
    let legal = oracle.survivors(block);
    if legal.contains(&Value::ZERO) && found == begun {
        return true;
    }
    found != Value::ZERO && legal.contains(&found)
}
