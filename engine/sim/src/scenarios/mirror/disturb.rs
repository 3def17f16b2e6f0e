//! What goes wrong.

use std::time::Duration;

use super::cluster::{BAD_LATENCY_MAX, Cluster, Node};
use super::temper::{Disturbance, Temper};
use crate::random::Random;
use crate::{Crash, Fault, Faults, LinkRule, MachineId, Operation};

impl Cluster {
    /// Does one thing wrong, or ends it.
    pub(super) fn disturb(&self, temper: &Temper, random: &mut Random) {
        let machines: Vec<MachineId> = self.nodes.iter().map(|node| node.machine).collect();
        let Some(node) = self.nodes.get(random.index(self.nodes.len())) else {
            return;
        };
        let mut others = machines;
        others.push(self.store_machine);
        others.retain(|other| *other != node.machine);
        random.shuffle(&mut others);
        others.truncate(random.within(1..=3) as usize);
        let one = [node.machine];
        match temper.draw(random) {
            Disturbance::Partition => self.world.partition(&one, &others),
            Disturbance::Unheard => self.world.partition_one_way(&one, &others),
            Disturbance::Deaf => self.world.partition_one_way(&others, &one),
            Disturbance::Flap => {
                let period = random.duration(Duration::ZERO..=Duration::from_secs(1));
                self.world.flap(&one, &others, period, 3);
            }
            Disturbance::Reset => others
                .iter()
                .for_each(|other| self.world.reset_connections(node.machine, *other)),
            Disturbance::BadLinks => self.world.set_links(LinkRule {
                loss_probability: 0.01,
                reset_probability: 0.001,
                latency: random.duration(Duration::ZERO..=BAD_LATENCY_MAX),
                ..LinkRule::HEALTHY
            }),
            Disturbance::Kill => self.crash(node, Crash::Process),
            Disturbance::PowerCut => self.crash(node, Crash::Power),
            Disturbance::AllEnd => {
                let crash = if random.chance(0.7) {
                    Crash::Power
                } else {
                    Crash::Process
                };
                self.nodes.iter().for_each(|node| self.crash(node, crash));
                self.nodes.iter().for_each(|node| self.restart(node));
                self.start_target(random);
            }
            Disturbance::BadDrive => node.drive.set_faults(faults(random)),
            // A drive never says so, and a pool takes it for a broken one: it is a pool that has no room.
            Disturbance::NoRoom if self.on_pools() => self.mend(random),
            // It stays full, or nearly, until that is mended.
            Disturbance::NoRoom if temper.requests_max > 1 && random.chance(0.5) => {
                node.drive.set_faults(Faults {
                    no_room_probability: 0.05 * random.within(1..=10) as f64,
                    slowdown: random.within(1..=50) as u32,
                    ..Faults::default()
                });
            }
            Disturbance::NoRoom => {
                let full = Fault::Error(pollux_device::IoError::CapacityExceeded);
                for _ in 0..random.within(1..=temper.requests_max) {
                    node.drive.fail_nth(Operation::Write, random.within(1..=20), full);
                }
            }
            Disturbance::LateWrite => {
                for _ in 0..random.within(1..=temper.requests_max) {
                    let late = Fault::Delay(random.duration(Duration::ZERO..=Duration::from_secs(5)));
                    node.drive.fail_nth(Operation::Write, random.within(1..=20), late);
                }
            }
            Disturbance::Move => self.start_target(random),
            Disturbance::TakeOver => self.take_over_unheard(random),
            Disturbance::CalmAndPowerCut => self.cut_power_after_a_calm(random),
            Disturbance::Mend => self.mend(random),
        }
    }

    /// The machine that serves is cut off, or does not hear or is not heard, and another one takes over. Its
    /// clients go on with it.
    fn take_over_unheard(&self, random: &mut Random) {
        let old = self.serving();
        let Some(node) = self.nodes.get(old) else {
            return;
        };
        let mut others: Vec<MachineId> = self.nodes.iter().map(|node| node.machine).collect();
        others.push(self.store_machine);
        others.retain(|other| *other != node.machine);
        match random.below(4) {
            0 => self.world.partition_one_way(&[node.machine], &others),
            1 => self.world.partition_one_way(&others, &[node.machine]),
            _ => self.world.partition(&[node.machine], &others),
        }
        let is_fit = |index: &usize| {
            let candidate = self.nodes.get(*index);
            *index != old && candidate.is_some_and(|candidate| self.world.is_up(candidate.machine))
        };
        let fit: Vec<usize> = (0..self.nodes.len()).filter(is_fit).collect();
        if let Some(&index) = random.pick(&fit) {
            self.start_target_on(index, random);
        }
        let span = random.duration(Duration::from_millis(500)..=Duration::from_secs(4));
        self.world.run_for(span);
    }

    /// All is well for a while, in which clients write and flush; then the power of all machines is cut.
    fn cut_power_after_a_calm(&self, random: &mut Random) {
        self.world.heal();
        for node in &self.nodes {
            node.drive.set_faults(Faults::default());
            if !self.world.is_up(node.machine) {
                self.restart(node);
            }
        }
        self.start_target(random);
        self.world
            .run_for(random.duration(Duration::from_millis(300)..=Duration::from_secs(2)));
        self.nodes.iter().for_each(|node| self.crash(node, Crash::Power));
        self.nodes.iter().for_each(|node| self.restart(node));
        self.start_target(random);
    }

    fn mend(&self, random: &mut Random) {
        if random.chance(0.7) {
            self.world.heal();
        }
        let down = |node: &&Node| !self.world.is_up(node.machine);
        for node in self.nodes.iter().filter(down).collect::<Vec<_>>() {
            if random.chance(0.8) {
                self.restart(node);
            }
        }
        for node in &self.nodes {
            if random.chance(0.7) {
                node.drive.set_faults(Faults::default());
            }
        }
        if random.chance(0.5) {
            self.start_target(random);
        }
    }
}

fn faults(random: &mut Random) -> Faults {
    let mut faults = Faults::default();
    match random.below(6) {
        0 => faults.read_error_probability = 0.05,
        1 => faults.write_error_probability = 0.02,
        2 => faults.flush_error_probability = 0.2,
        3 => faults.shortage_probability = 0.3,
        4 => faults.slowdown = random.within(2..=200) as u32,
        _ => faults.stuck = true,
    }
    faults
}
