//! What a pool must hold after a power cut at a position of the record.

use std::rc::Rc;

use pollux_device::BlockDeviceExt;
use pollux_hugepages::Buffer;
use pollux_pool::{Pool, Volume};
use pollux_sim::oracle::{Oracle, OracleHistory, Value};

use super::manager::is_legal_in_clone;
use super::{BLOCK, PATTERN, Run, Span};
use crate::common::{Drives, options};

struct Volumes {
    name: String,
    sizes: Vec<(Span, u64)>,
    history: OracleHistory,
}

struct Branches {
    name: String,
    made: Span,
    deleted: Option<Span>,
    values: Option<Vec<Value>>,
    history: Option<OracleHistory>,
}

/// What is known of a volume at the position.
#[derive(Clone)]
struct VolumeNow {
    name: String,
    sizes: Vec<u64>,
    oracle: Oracle,
}

#[derive(Clone)]
struct BranchNow {
    name: String,
    is_certain: bool,
    values: Option<Vec<Value>>,
    oracle: Option<Oracle>,
}

/// All that was done, to be looked at position by position.
pub struct Expected {
    volumes: Vec<Volumes>,
    branches: Vec<Branches>,
    now: Now,
}

/// What must be there at the position.
#[derive(Clone, Default)]
pub struct Now {
    volumes: Vec<VolumeNow>,
    branches: Vec<BranchNow>,
}

impl Expected {
    pub fn new(run: &Rc<Run>) -> Self {
        let volumes = run.live.iter().map(|live| Volumes {
            name: live.name.clone(),
            sizes: live.sizes.borrow().clone(),
            history: live.oracle.borrow().history().unwrap(),
        });
        let branches = run.branches.borrow().clone().into_iter().map(|branch| Branches {
            name: branch.name,
            made: branch.made,
            deleted: branch.deleted,
            values: branch.values,
            history: branch.oracle.map(|oracle| oracle.borrow().history().unwrap()),
        });
        Self {
            volumes: volumes.collect(),
            branches: branches.collect(),
            now: Now::default(),
        }
    }

    /// Goes on to a position.
    pub fn at(&mut self, position: usize) {
        let volumes = self.volumes.iter_mut().map(|volume| {
            let last = volume.sizes.iter().rposition(|(span, _)| span.end <= position);
            let under_way = volume.sizes.iter().skip(last.unwrap_or(0));
            VolumeNow {
                name: volume.name.clone(),
                sizes: under_way
                    .filter(|(span, _)| span.start <= position)
                    .map(|(_, size)| *size)
                    .collect(),
                oracle: volume.history.at(position).clone(),
            }
        });
        let begun = |branch: &&mut Branches| {
            let is_gone = branch.deleted.is_some_and(|deleted| deleted.end <= position);
            branch.made.start <= position && !is_gone
        };
        let branches = self.branches.iter_mut().filter(begun).map(|branch| BranchNow {
            name: branch.name.clone(),
            is_certain: branch.made.end <= position
                && branch.deleted.is_none_or(|deleted| deleted.start > position),
            values: branch.values.clone(),
            oracle: branch
                .history
                .as_mut()
                .map(|history| history.at(position).clone()),
        });
        self.now = Now {
            volumes: volumes.collect(),
            branches: branches.collect(),
        };
    }

    pub fn clone(&self) -> Now {
        self.now.clone()
    }
}

async fn values_of(pool: &Rc<Pool>, name: &str) -> Result<Vec<Value>, String> {
    let opened: Rc<Volume> = pool.open_volume(name).map_err(|error| error.to_string())?;
    let size = opened.entry().map_err(|error| error.to_string())?.size_blocks;
    let bytes = opened.read(0, Buffer::from_heap(size as usize * BLOCK)).await;
    let bytes = bytes.map_err(|error| format!("{name} cannot be read: {error}"))?;
    PATTERN
        .values(&bytes, 0)
        .map_err(|error| format!("{name}: {error}"))
}

impl Now {
    pub async fn check(self, drives: Drives) -> Result<(), String> {
        let imported = Pool::import(drives.attach().await, options()).await;
        let (pool, _) = imported.map_err(|error| format!("it cannot be imported: {error}"))?;
        self.check_volumes(&pool).await?;
        for round in 0..2 {
            let check = pool.check().await.map_err(|error| error.to_string())?;
            if !check.is_sound() {
                return Err(format!("round {round}: {check:?}"));
            }
            pool.reclaim().await.map_err(|error| error.to_string())?;
        }
        self.check_volumes(&pool).await
    }

    async fn check_volumes(&self, pool: &Rc<Pool>) -> Result<(), String> {
        for entry in pool.volumes() {
            let known = self.volumes.iter().any(|volume| volume.name == entry.name)
                || self.branches.iter().any(|branch| branch.name == entry.name);
            if !known {
                return Err(format!("{} was never made, or was deleted", entry.name));
            }
        }
        for volume in &self.volumes {
            let name = &volume.name;
            let values = values_of(pool, name).await?;
            if !volume.sizes.contains(&(values.len() as u64)) {
                return Err(format!(
                    "{name} has {} blocks, legal {:?}",
                    values.len(),
                    volume.sizes
                ));
            }
            for (block, value) in (0..).zip(values) {
                let legal = volume.oracle.check_survivor(block, value);
                legal.map_err(|error| format!("{name}: {error}"))?;
            }
        }
        for branch in &self.branches {
            let name = &branch.name;
            if pool.volume(name).is_err() {
                if branch.is_certain {
                    return Err(format!("{name} is lost"));
                }
                continue;
            }
            let values = values_of(pool, name).await?;
            let Some(begun) = &branch.values else { continue };
            if values.len() != begun.len() {
                return Err(format!(
                    "{name} has {} blocks, and not {}",
                    values.len(),
                    begun.len()
                ));
            }
            for ((block, found), begun) in (0..).zip(values).zip(begun) {
                let is_legal = match &branch.oracle {
                    None => found == *begun,
                    Some(oracle) => is_legal_in_clone(oracle, block, *begun, found),
                };
                if !is_legal {
                    return Err(format!(
                        "{name} block {block} holds {found:?}, and began as {begun:?}"
                    ));
                }
            }
        }
        Ok(())
    }
}
