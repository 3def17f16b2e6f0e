//! What a pool must hold after a power cut at any position of a recorded run.
//!
//! The run is sequential: at any position at most one operation is under way. Each block of a volume has a
//! value that is durable, and values that were written since: a power cut leaves one of them. A snapshot
//! has exactly the values of its moment.

use std::collections::BTreeMap;

/// What is done, to volumes by their names.
#[derive(Debug, Clone)]
pub enum Step {
    Create {
        name: String,
        blocks: u64,
    },
    Write {
        name: String,
        block: u64,
        blocks: u64,
        value: u64,
        forced: bool,
    },
    Flush,
    Snapshot {
        of: String,
        name: String,
    },
    Clone {
        of: String,
        name: String,
    },
    RollBack {
        name: String,
        to: String,
    },
    Delete {
        name: String,
    },
    Resize {
        name: String,
        blocks: u64,
    },
    /// Checkpoint, reclaim, and other things that change nothing that users see.
    Nothing,
}

/// A step and when it was under way, in events of the recorder.
#[derive(Debug, Clone)]
pub struct Done {
    pub start: usize,
    pub end: usize,
    pub step: Step,
}

/// A block: the value that is sure to survive, and those that may have taken its place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BlockModel {
    pub durable: u64,
    pub later: Vec<u64>,
}

impl BlockModel {
    pub fn last(&self) -> u64 {
        self.later.last().copied().unwrap_or(self.durable)
    }

    pub fn allows(&self, value: u64) -> bool {
        self.durable == value || self.later.contains(&value)
    }
}

/// A volume or snapshot.
#[derive(Debug, Clone, Default)]
pub struct VolumeModel {
    pub is_snapshot: bool,
    /// It is there, whatever was lost.
    pub certain: bool,
    pub blocks: Vec<BlockModel>,
    /// Its size may be either.
    pub other_size: Option<u64>,
}

impl VolumeModel {
    pub fn values(&self) -> Vec<u64> {
        self.blocks.iter().map(BlockModel::last).collect()
    }

    /// Exactly these values.
    pub fn of_values(values: &[u64], is_snapshot: bool, certain: bool) -> Self {
        let block = |value: &u64| BlockModel {
            durable: *value,
            later: Vec::new(),
        };
        Self {
            is_snapshot,
            certain,
            blocks: values.iter().map(block).collect(),
            other_size: None,
        }
    }
}

/// All volumes.
#[derive(Debug, Clone, Default)]
pub struct PoolModel {
    pub volumes: BTreeMap<String, VolumeModel>,
}

impl PoolModel {
    /// A step has ended, or is under way when the power is cut.
    pub fn apply(&mut self, step: &Step, ended: bool) {
        match step {
            Step::Nothing => {}
            Step::Create { name, blocks } => {
                let volume = VolumeModel::of_values(&vec![0; *blocks as usize], false, ended);
                self.volumes.insert(name.clone(), volume);
            }
            Step::Write {
                name,
                block,
                blocks,
                value,
                forced,
            } => {
                let volume = self.volumes.get_mut(name).unwrap();
                for at in *block..*block + *blocks {
                    let model = &mut volume.blocks[at as usize];
                    if *forced && ended {
                        *model = BlockModel {
                            durable: *value,
                            later: Vec::new(),
                        };
                    } else {
                        model.later.push(*value);
                    }
                }
            }
            Step::Flush => {
                if ended {
                    self.settle();
                }
            }
            Step::Snapshot { of, name } => {
                let values = self.volumes[of].values();
                let volume = VolumeModel::of_values(&values, true, ended);
                self.volumes.insert(name.clone(), volume);
            }
            Step::Clone { of, name } => {
                let values = self.volumes[of].values();
                let volume = VolumeModel::of_values(&values, false, ended);
                self.volumes.insert(name.clone(), volume);
            }
            Step::RollBack { name, to } => {
                let values = self.volumes[to].values();
                let volume = self.volumes.get_mut(name).unwrap();
                if ended {
                    *volume = VolumeModel::of_values(&values, false, true);
                } else {
                    // Which size it has tells nothing: volumes that are rolled back keep theirs here.
                    for (model, value) in volume.blocks.iter_mut().zip(values) {
                        model.later.push(value);
                    }
                }
            }
            Step::Delete { name } => {
                if ended {
                    self.volumes.remove(name);
                } else if let Some(volume) = self.volumes.get_mut(name) {
                    volume.certain = false;
                }
            }
            Step::Resize { name, blocks } => {
                let volume = self.volumes.get_mut(name).unwrap();
                if ended {
                    volume.blocks.resize_with(*blocks as usize, BlockModel::default);
                } else {
                    volume.other_size = Some(*blocks);
                    for model in volume.blocks.iter_mut().skip(*blocks as usize) {
                        model.later.push(0);
                    }
                }
            }
        }
    }

    /// Everything that was acknowledged is durable.
    fn settle(&mut self) {
        for block in self.volumes.values_mut().flat_map(|volume| &mut volume.blocks) {
            *block = BlockModel {
                durable: block.last(),
                later: Vec::new(),
            };
        }
    }
}
