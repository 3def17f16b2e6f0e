//! Loads, and `spdk_nvme_perf` as the initiator that all targets have in common.

use std::net::SocketAddr;
use std::process::Command;

use super::Error;
use super::spdk::Spdk;
use crate::program;
use crate::samples::Figures;

/// Where targets run; the first one alone with one reactor.
pub const TARGET_CORES: [usize; 2] = [1, 0];

/// Where initiators run.
pub const CLIENT_CORES: [usize; 2] = [2, 3];

/// Which way the data goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pattern {
    /// Random reads.
    Read,
    /// Random writes.
    Write,
}

/// One load.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Which way the data goes.
    pub pattern: Pattern,
    /// Bytes of a request.
    pub block_bytes: u32,
    /// Requests outstanding on each connection.
    pub depth: u32,
    /// Reactors of the target.
    pub reactors: usize,
    /// Connections that carry the load.
    pub connections: usize,
}

impl Load {
    /// The cores of the target, as programs take them.
    pub fn target_cores(&self) -> String {
        let cores = TARGET_CORES.iter().take(self.reactors);
        cores.map(usize::to_string).collect::<Vec<_>>().join(",")
    }

    /// What it is called in the table and on the command line.
    pub fn name(&self) -> String {
        let pattern = match self.pattern {
            Pattern::Read => "read",
            Pattern::Write => "write",
        };
        let size = self.block_bytes / 1024;
        format!(
            "{pattern} {size} KiB depth {} reactors {} connections {}",
            self.depth, self.reactors, self.connections
        )
    }
}

/// Where a target is.
#[derive(Debug, Clone)]
pub struct TargetAddress {
    /// Where it listens.
    pub socket: SocketAddr,
    /// Its subsystem.
    pub subsystem: &'static str,
}

/// Runs the load once on a target.
pub fn run(spdk: &Spdk, target: &TargetAddress, load: &Load, seconds: u32) -> Result<Figures, Error> {
    let clients = if load.connections == 1 {
        1
    } else {
        CLIENT_CORES.len()
    };
    let transport = format!(
        "trtype:TCP adrfam:IPv4 traddr:{} trsvcid:{} subnqn:{}",
        target.socket.ip(),
        target.socket.port(),
        target.subsystem
    );
    run_on(
        spdk,
        &transport,
        CLIENT_CORES.get(..clients).unwrap_or(&[]),
        load,
        seconds,
    )
}

/// Runs the load once on what `transport` names in SPDK's words, from these cores.
pub fn run_on(
    spdk: &Spdk,
    transport: &str,
    cores: &[usize],
    load: &Load,
    seconds: u32,
) -> Result<Figures, Error> {
    let mask: u32 = cores.iter().map(|core| 1u32 << core).sum();
    let queue_pairs = load.connections / cores.len().max(1);
    let workload = match load.pattern {
        Pattern::Read => "randread",
        Pattern::Write => "randwrite",
    };
    let program = spdk.program("spdk_nvme_perf");
    let mut command = Command::new(&program);
    command
        .args(["-s", "256", "--iova-mode", "va", "-a", "1", "-w", workload])
        .args(["-c", &format!("{mask:#x}"), "-P", &queue_pairs.to_string()])
        // The depth option counts for all queue pairs of a core together.
        .args([
            "-q",
            &(load.depth * queue_pairs as u32).to_string(),
            "-o",
            &load.block_bytes.to_string(),
        ])
        .args(["-t", &seconds.to_string(), "-r", transport]);
    Ok(program::read_output(command, &program, parse)?)
}

/// Finds the line `Total : IOPS MiB/s average min max`.
fn parse(text: &str) -> Option<Figures> {
    let total = text
        .lines()
        .rev()
        .find(|line| line.trim_start().starts_with("Total"))?;
    let mut numbers = total.split(':').nth(1)?.split_whitespace();
    let iops = numbers.next()?.parse().ok()?;
    let mean_us = numbers.nth(1)?.parse().ok()?;
    Some(Figures { iops, mean_us })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_totals() {
        let text = "TCP (addr:127.0.0.1) NSID 1 from core  2:  183697.66  717.57  699.78  191.70  12382.20\n\
                    ====\nTotal        :  183697.66     717.57     699.78     191.70   12382.20\n\n";
        let figures = parse(text).unwrap();
        assert_eq!((figures.iops, figures.mean_us), (183_697.66, 699.78));
        assert!(parse("no totals").is_none());
    }
}
