//! Which faults a run has, and how fast they follow each other.
//!
//! Where every run has all of them, two rare ones seldom meet, and mending undoes most of what could add
//! up. In a swarm each run has a few kinds only, and has them often (Groce et al., Swarm Testing, ISSTA
//! 2012).

use std::time::Duration;

use crate::random::Random;

/// Something that goes wrong, or ends that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Disturbance {
    /// A machine is cut off from some others.
    Partition,
    /// Some others do not hear it.
    Unheard,
    /// It does not hear some others.
    Deaf,
    /// It is cut off, and is not, in turns.
    Flap,
    /// Its connections are reset.
    Reset,
    /// All links lose and delay.
    BadLinks,
    /// The processes of a machine end.
    Kill,
    /// The power of a machine is cut.
    PowerCut,
    /// All machines end, and start at once.
    AllEnd,
    /// A drive fails requests, is slow, or stuck.
    BadDrive,
    /// A drive has no room for a write.
    NoRoom,
    /// A write takes seconds.
    LateWrite,
    /// Another target is wanted.
    Move,
    /// The target is cut off, and another one takes over.
    TakeOver,
    /// All is well for a while, and then the power of all machines is cut.
    CalmAndPowerCut,
    /// Most of what is wrong ends.
    Mend,
}

use Disturbance::{
    AllEnd, BadDrive, BadLinks, CalmAndPowerCut, Deaf, Flap, Kill, LateWrite, Mend, Move, NoRoom, Partition,
    PowerCut, Reset, TakeOver, Unheard,
};

/// All of them, as often as they come.
const ALL: [Disturbance; 24] = [
    Partition,
    Unheard,
    Deaf,
    Flap,
    Reset,
    BadLinks,
    Kill,
    Kill,
    PowerCut,
    AllEnd,
    BadDrive,
    NoRoom,
    LateWrite,
    Move,
    Move,
    TakeOver,
    TakeOver,
    TakeOver,
    CalmAndPowerCut,
    Mend,
    Mend,
    Mend,
    Mend,
    Mend,
];

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct Temper {
    kinds: Vec<Disturbance>,
    /// Between one and the next.
    pub(super) pause_max: Duration,
    pub(super) disturbances: u64,
    /// Requests that a fault of one request is for, at most.
    pub(super) requests_max: u64,
    /// How often a target that another one follows ends in good order.
    pub(super) orderly: f64,
}

impl Temper {
    /// Everything, each in its turn.
    pub(super) fn even(random: &mut Random) -> Self {
        Self {
            kinds: ALL.to_vec(),
            pause_max: Duration::from_millis(1500),
            disturbances: random.within(5..=25),
            requests_max: 1,
            orderly: 0.0,
        }
    }

    /// A few kinds, and often.
    pub(super) fn of_swarm(random: &mut Random) -> Self {
        let mut kinds: Vec<Disturbance> = Vec::new();
        for _ in 0..random.within(1..=4) {
            kinds.extend(random.pick(&ALL).filter(|kind| **kind != Mend));
        }
        // Nothing that does not end keeps all the rest from happening.
        let mends = kinds.len().div_ceil(random.within(1..=4) as usize);
        kinds.resize(kinds.len() + mends.max(1), Mend);
        let pauses = [30, 150, 500, 1500].map(Duration::from_millis);
        let pause_max = random.pick(&pauses).copied().unwrap_or_default();
        Self {
            kinds,
            pause_max,
            disturbances: random.within(10..=60),
            requests_max: random.within(1..=6),
            orderly: if random.chance(0.5) { 0.7 } else { 0.0 },
        }
    }

    pub(super) fn draw(&self, random: &mut Random) -> Disturbance {
        random.pick(&self.kinds).copied().unwrap_or(Mend)
    }
}
