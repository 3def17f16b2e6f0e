//! Replicated volumes: targets on any machine, replicas on several, and everything that goes wrong with both.
//!
//! Checked all along: every read is one that a single copy of the volume could have given, by whichever
//! target, and what was flushed survives. At the end, when the faults have stopped: all replicas are in sync
//! within a limit, and byte by byte the same.
//!
//! In half of the runs replicas are added all the while, and others taken out.
//!
//! Writes that were acknowledged and not flushed may be gone once the volume is opened anew, if the record
//! says that caches were lost, which clients then hear of. Otherwise they are there, whatever failed.

mod backing;
mod cluster;
mod coverage;
mod disturb;
mod replicas;
mod snapshots;
mod store;
mod target;
mod temper;
mod wire;

use std::rc::Rc;
use std::time::Duration;

use pollux_volume::membership::MembershipStore;
use pollux_volume::replica::ReplicaPort;

use crate::random::Random;
use crate::{Finished, Run, WorldOptions};
use cluster::Cluster;
use temper::Temper;

/// What may be put in the place of parts of the product, to see whether the checks find a mistake in them.
#[derive(Clone)]
pub struct Parts {
    /// What targets reach replicas by.
    pub port: Wrap<dyn ReplicaPort>,
    /// What targets keep the record in.
    pub store: Wrap<dyn MembershipStore>,
    /// How long an answer of its replicas allows a target to read, by its number and what it should be.
    pub lease: Rc<dyn Fn(u64, Duration) -> Duration>,
}

/// Makes something of something else of the same kind.
pub type Wrap<T> = Rc<dyn Fn(Rc<T>) -> Rc<T>>;

impl Default for Parts {
    fn default() -> Self {
        Self {
            port: Rc::new(|port| port),
            store: Rc::new(|store| store),
            lease: Rc::new(|_, lease| lease),
        }
    }
}

pub(super) fn run(run: &Run) -> Result<Finished, String> {
    exercise_mirror(run, Parts::default())
}

/// The same with replicas on volumes of pools, and snapshots all the while.
pub(super) fn run_on_pools(run: &Run) -> Result<Finished, String> {
    exercise(run, Parts::default(), true, Temper::even)
}

/// The same on drives, with a few kinds of faults in each run, which come often, and targets that end in
/// good order.
pub(super) fn run_swarm(run: &Run) -> Result<Finished, String> {
    exercise(run, Parts::default(), false, Temper::of_swarm)
}

/// Has clients use a replicated volume while everything fails; checks every read.
///
/// # Errors
///
/// What was wrong.
pub fn exercise_mirror(run: &Run, parts: Parts) -> Result<Finished, String> {
    exercise(run, parts, false, Temper::even)
}

fn exercise(
    run: &Run,
    parts: Parts,
    on_pools: bool,
    temper: fn(&mut Random) -> Temper,
) -> Result<Finished, String> {
    let world = run.world(WorldOptions::default());
    let mut random = world.random("scenario", 0);
    let mut changes = world.random("changes", 0);
    let cluster = Cluster::new(world, &mut random, parts, on_pools);
    cluster.start_target(&mut random);
    let temper = temper(&mut random);
    cluster.shared.orderly.set(temper.orderly);
    for _ in 0..temper.disturbances {
        cluster
            .world
            .run_for(random.duration(Duration::ZERO..=temper.pause_max));
        cluster.disturb(&temper, &mut random);
        if cluster.is_changing {
            cluster.change_replicas(&mut changes);
        }
        cluster.verdict()?;
    }
    cluster.finish()?;
    Ok(Finished {
        reached: cluster.shared.coverage.reached(),
        ..Finished::of(&cluster.world)
    })
}
