//! Targets on any machine, and their clients.

use std::rc::Rc;
use std::time::Duration;

use pollux_device::IoError;
use pollux_reactor::sleep;
use pollux_volume::membership::{Membership, MembershipStore};
use pollux_volume::mirror::{
    Mirror, MirrorCounters, MirrorOptions, OpenError, Pace, ReplicaStatus, StopReason,
};

use super::cluster::{BLOCKS, Shared, VOLUME};
use super::coverage::Event;
use crate::oracle::{CheckError, CheckedDevice, UnderWay, Workload};
use crate::random::Random;
use crate::{Control, MachineId, SimReactor};

/// Blocks that many clients use.
const HOT_BLOCKS: u64 = 4;

/// Blocks at the end of the volume that some clients write all the time, one at a time, and others read: of
/// several targets at once, if there are.
const WATCHED_BLOCKS: u64 = 4;

/// A target of the volume, and its clients.
pub(super) struct Target {
    pub(super) shared: Shared,
    pub(super) store: Rc<dyn MembershipStore>,
    pub(super) machine: MachineId,
    /// The plan of the replicas that it knows.
    pub(super) followed: u64,
    pub(super) generation: u64,
    /// What it takes the lease for.
    pub(super) lease: Duration,
    /// It stops when another one is wanted, before that finds a way to tell.
    pub(super) leaves_when_told: bool,
    pub(super) control: Control,
    pub(super) reactor: SimReactor,
    pub(super) random: Random,
}

impl Target {
    pub(super) async fn run(mut self) {
        while self.generation == self.shared.generation.get() {
            let options = MirrorOptions {
                lease: self.lease,
                ..self.shared.options.clone()
            };
            self.followed = self.shared.plan.version();
            let ports = self.shared.ports(self.machine);
            let opening = Mirror::open(options, self.store.clone(), VOLUME, &ports);
            match opening.await {
                Ok(mirror) => {
                    let mut counted = MirrorCounters::default();
                    let stopped = self.serve(&mirror, &mut counted).await;
                    self.shared.coverage.look(&mut counted, mirror.counters());
                    drop(mirror);
                    match stopped {
                        Some(StopReason::Superseded) => {
                            self.shared.coverage.reach(Event::Superseded);
                            return;
                        }
                        Some(StopReason::CacheLost) => self.shared.coverage.reach(Event::CacheLost),
                        _ => {}
                    }
                }
                Err(OpenError::Superseded) => {
                    self.shared.coverage.reach(Event::OpeningSuperseded);
                    if !self.shared.calm.get() {
                        return;
                    }
                }
                Err(_) => {}
            }
            let pause = self.random.duration(Duration::ZERO..=Duration::from_millis(500));
            sleep(pause).await;
        }
    }

    async fn serve(&mut self, mirror: &Mirror, counted: &mut MirrorCounters) -> Option<StopReason> {
        self.opened(&mirror.membership());
        self.cover_opening(&mirror.membership());
        let device = mirror.device();
        if self.shared.calm.get() {
            // It comes back from this only for the volume to be opened anew.
            self.settle(mirror).await;
            return mirror.stopped();
        }
        for _ in 0..self.random.within(1..=3) {
            let checked = CheckedDevice::remote(device.clone(), self.shared.oracle.clone());
            let mut random = self.control.random("client", self.random.u64());
            let shared = self.shared.clone();
            let size_blocks = device.geometry().blocks;
            let client = async move {
                // Few blocks and no pause make clients meet.
                let is_close = random.chance(0.4);
                let mut blocks = random.within(1..=if is_close { HOT_BLOCKS } else { BLOCKS / 2 });
                let mut start = if is_close {
                    0
                } else {
                    random.below(BLOCKS - blocks)
                };
                // What it has grown by is used as well, across where it ended.
                if size_blocks > BLOCKS && random.chance(0.4) {
                    start = BLOCKS - 4;
                    blocks = size_blocks - start;
                }
                let pause = Duration::from_millis(if is_close { 1 } else { 20 });
                let mixed = Workload {
                    flushes: random.within(1..=6),
                    pause: random.duration(Duration::ZERO..=pause),
                    ..Workload::mixed(start..start + blocks, 1)
                };
                // Some clear more than they write: whole regions are holes then, and are written again.
                let mixed = match random.chance(0.3) {
                    true => Workload {
                        blocks_max: random.within(8..=40),
                        writes: random.within(1..=6),
                        zeroes: random.within(1..=4),
                        deallocates: random.within(1..=6),
                        ..mixed
                    },
                    false => mixed,
                };
                // Some only read: no write keeps them from going on when the target is cut off.
                let workload = match random.chance(0.4) {
                    true => Workload {
                        writes: 0,
                        forced_writes: 0,
                        flushes: 0,
                        zeroes: 0,
                        deallocates: 0,
                        ..mixed
                    },
                    false => mixed,
                };
                for _ in 0..random.within(1..=if is_close { 600 } else { 400 }) {
                    match workload.run(&checked, &mut random, |error| !is_end(error)).await {
                        Ok(_) => {}
                        Err(CheckError::Io(_)) => return,
                        Err(wrong) => {
                            shared.wrong.borrow_mut().get_or_insert(wrong.to_string());
                            return;
                        }
                    }
                }
            };
            self.shared
                .clients
                .borrow_mut()
                .push(self.control.spawn(self.reactor, client));
        }
        if self.random.chance(0.7) {
            self.watch(mirror);
        }
        for _ in 0..self.random.within(0..=3) {
            self.touch(mirror);
        }
        loop {
            sleep(Duration::from_millis(20)).await;
            self.shared.coverage.look(counted, mirror.counters());
            if self.generation == self.shared.generation.get() {
                let is_resyncing = mirror.replicas().iter().any(|replica| replica.is_resyncing);
                self.shared.is_resyncing.set(is_resyncing);
            }
            if let Some(book) = self.shared.book.clone() {
                let ports = self.shared.ports(self.machine);
                book.follow(&mirror.membership(), &self.shared.oracle);
                let oracle = &self.shared.oracle;
                book.manage(mirror, &ports, oracle, &mut self.random, &self.shared.coverage)
                    .await;
            }
            // It hears of another plan some time, and is told what it knows again and again.
            let is_new = self.shared.plan.version() != self.followed;
            if self.shared.plan.version() > 0 && self.random.chance(if is_new { 0.2 } else { 0.02 }) {
                self.follow(mirror).await;
            }
            let is_wanted = self.generation == self.shared.generation.get();
            if mirror.stopped().is_none() && !is_wanted && self.leaves_when_told {
                let orderly = self.shared.orderly.get();
                if orderly > 0.0 && self.random.chance(orderly) {
                    // Whether it could, nobody asks: the next one finds out.
                    let _ = mirror.wind_down().await;
                }
                return mirror.stopped();
            }
            if mirror.stopped().is_some() {
                return mirror.stopped();
            }
        }
    }

    /// What there is to be said of a volume that was opened.
    fn cover_opening(&self, record: &Membership) {
        let coverage = &self.shared.coverage;
        coverage.reach(Event::Opened);
        if record.in_sync() != record.members() {
            coverage.reach(Event::OpenedDegraded);
        }
        if record.rolling_back().is_some() {
            coverage.reach(Event::RollBackTakenOver);
        }
    }

    /// Tells the target of the replicas as they are planned, unless whoever does so cannot reach it.
    async fn follow(&mut self, mirror: &Mirror) {
        if self.control.link(self.shared.store_machine, self.machine).blocked {
            return;
        }
        self.followed = self.shared.plan.version();
        let (ports, leaving) = (self.shared.ports(self.machine), self.shared.plan.leaving());
        mirror.follow(&ports, &leaving).await;
    }

    /// Reads what others write, until the target stops: it must not be what was there before an acknowledged
    /// write, whoever served that.
    fn watch(&mut self, mirror: &Mirror) {
        let checked = CheckedDevice::remote(mirror.device(), self.shared.oracle.clone());
        let mut random = self.control.random("watch", self.random.u64());
        let shared = self.shared.clone();
        let watcher = async move {
            loop {
                sleep(random.duration(Duration::ZERO..=Duration::from_millis(30))).await;
                let block = match random.chance(0.3) {
                    true => random.below(HOT_BLOCKS),
                    false => watched(&mut random),
                };
                if shared.calm.get() || shared.has_ended(checked.read(block, 1).await) {
                    return;
                }
            }
        };
        let task = self.control.spawn(self.reactor, watcher);
        self.shared.clients.borrow_mut().push(task);
    }

    /// Writes what others watch, one block at a time: what a target cannot write any more keeps nobody from
    /// reading the other ones.
    fn touch(&mut self, mirror: &Mirror) {
        let checked = CheckedDevice::remote(mirror.device(), self.shared.oracle.clone());
        let mut random = self.control.random("touch", self.random.u64());
        let shared = self.shared.clone();
        let writer = async move {
            // Too many writes of a block at a time are nothing to learn from.
            for _ in 0..200 {
                let pause = random.duration(Duration::ZERO..=Duration::from_millis(40));
                sleep(pause).await;
                let written = checked.write(watched(&mut random), 1, false).await;
                if shared.calm.get() || shared.has_ended(written) {
                    return;
                }
            }
        };
        let task = self.control.spawn(self.reactor, writer);
        self.shared.clients.borrow_mut().push(task);
    }

    /// The volume is open: what it means for what was before.
    fn opened(&self, record: &Membership) {
        if let Some(book) = &self.shared.book {
            // A roll-back that the last target ended was over before anything that was lost since.
            book.follow(record, &self.shared.oracle);
        }
        let mut clients = self.shared.clients.borrow_mut();
        clients.retain(|client| !client.is_ended());
        let mut oracle = self.shared.oracle.borrow_mut();
        // Whatever failed: unless clients are told so, nothing that they were acknowledged is gone, and a
        // flush means all of it.
        if self.shared.loss_heard.replace(record.caches_lost) != record.caches_lost {
            self.shared.coverage.reach(Event::CachesLost);
            oracle.power_cut(UnderWay::Remains);
        }
        if clients.is_empty() {
            // Nobody is left who could do it, and what was on its way was drained.
            oracle.clients_lost();
        }
    }

    /// A write that failed on the last replica of the set may leave a block that nobody can read, in a pool
    /// that has cut a snapshot of it since: hosts write it anew.
    async fn rewrite_unreadable(&self, mirror: &Mirror) {
        let checked = CheckedDevice::remote(mirror.device(), self.shared.oracle.clone());
        for block in 0..mirror.membership().size_blocks {
            match checked.read(block, 1).await {
                Err(CheckError::Io(IoError::ChecksumMismatch)) if self.shared.coverage.has_failed_last() => {
                    self.shared.coverage.reach(Event::UnreadableRewritten);
                    let rewritten = checked.write(block, 1, true).await;
                    if self.shared.has_ended(rewritten) {
                        return;
                    }
                }
                read => {
                    if self.shared.has_ended(read) {
                        return;
                    }
                }
            }
        }
    }

    /// Waits until all replicas are back; not so if the volume has to be opened anew for that.
    async fn is_well(&mut self, mirror: &Mirror) -> bool {
        while !self.shared.plan.is_reached(&mirror.membership()) {
            let given_up = |replica: &ReplicaStatus| replica.pace == Pace::GivenUp;
            if mirror.stopped().is_some() || mirror.replicas().iter().any(given_up) {
                // Whoever gives a replica up has it made anew elsewhere, and there is nowhere else: the
                // volume is opened anew.
                return false;
            }
            if self.shared.plan.version() > 0 {
                self.follow(mirror).await;
            }
            sleep(Duration::from_millis(10)).await;
        }
        true
    }

    /// All replicas are back, everything is there, and nothing is left to do.
    async fn settle(&mut self, mirror: &Mirror) {
        while mirror.membership().rolling_back().is_some() && mirror.stopped().is_none() {
            sleep(Duration::from_millis(10)).await;
        }
        if let Some(book) = &self.shared.book {
            book.follow(&mirror.membership(), &self.shared.oracle);
            self.rewrite_unreadable(mirror).await;
        }
        loop {
            if !self.is_well(mirror).await {
                return;
            }
            let checked = CheckedDevice::remote(mirror.device(), self.shared.oracle.clone());
            let read = checked.read_all().await;
            match read {
                // Intents are retired, and what attempts left is looked for again where nobody answered.
                Ok(()) => {
                    let options = &self.shared.options;
                    sleep(options.retire_interval * 3 + options.rejoin_pause * 3).await;
                }
                // The target stopped meanwhile: it is opened anew.
                Err(CheckError::Io(error)) if is_end(error) => return,
                Err(wrong) => {
                    self.shared.wrong.borrow_mut().get_or_insert(wrong.to_string());
                    break;
                }
            }
            // A drive may have been told to take long for one more write, and its replica was out since.
            if self.shared.plan.is_reached(&mirror.membership()) {
                self.shared.settled.set(true);
                break;
            }
        }
        // Nothing may be changed any more by those who compare the replicas.
        std::future::pending().await
    }
}

impl Shared {
    /// Whether a client has nothing more to do after this. What is wrong is told.
    fn has_ended(&self, result: Result<(), CheckError>) -> bool {
        match result {
            Ok(()) => false,
            Err(CheckError::Io(error)) => is_end(error),
            Err(wrong) => {
                self.wrong.borrow_mut().get_or_insert(wrong.to_string());
                true
            }
        }
    }
}

fn watched(random: &mut Random) -> u64 {
    BLOCKS - 1 - random.below(WATCHED_BLOCKS)
}

/// The target is of no more use to its clients.
fn is_end(error: IoError) -> bool {
    matches!(error, IoError::Fenced | IoError::Gone)
}
