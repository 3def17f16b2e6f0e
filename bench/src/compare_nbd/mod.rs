//! Pollux, `qemu-nbd` and `nbdkit` serving memory over NBD on a Unix socket, in turns, with fio as the client
//! of all.
//!
//! Each server has one core, the same one. fio with one job is a single thread, which the faster servers keep
//! busy all the time: what is measured then is fio. With two jobs the servers are told apart.

mod fio;
mod servers;

use std::io;
use std::path::PathBuf;

use clap::Args;

use crate::program;
use crate::samples::{Samples, ratio};
use fio::Load;
use servers::{Peer, Server};

/// What to compare.
#[derive(Debug, Args)]
pub struct Options {
    /// The `pollux-engine` to measure; by default the one beside this program
    #[arg(long)]
    engine: Option<PathBuf>,
    /// Rounds; each measures every server once for every load
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// Size of the served memory, in MiB
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65536))]
    device_mib: u32,
    /// The core of the server
    #[arg(long, default_value_t = 1)]
    server_core: usize,
    /// The cores of fio
    #[arg(long, value_delimiter = ',', default_value = "2,3")]
    client_cores: Vec<usize>,
}

/// Why a comparison could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// fio cannot be used.
    #[error("{0}; install fio with its engine `nbd` (Debian: apt-get install fio)")]
    NoFio(String),
    /// One of the programs.
    #[error(transparent)]
    Program(#[from] program::Error),
    /// Something else of the operating system.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// One load on all servers.
struct Row {
    load: Load,
    samples: Vec<(Peer, Samples)>,
}

impl Row {
    fn iops(&self, peer: Peer) -> Option<f64> {
        let (_, samples) = self.samples.iter().find(|(other, _)| *other == peer)?;
        samples.iops()
    }

    /// The figure of the better of the others.
    fn best_other(&self) -> Option<f64> {
        let others = [Peer::QemuNbd, Peer::Nbdkit];
        others
            .into_iter()
            .filter_map(|peer| self.iops(peer))
            .max_by(f64::total_cmp)
    }
}

/// Compares, and prints a table in Markdown.
pub fn run(options: &Options) -> Result<(), Error> {
    fio::check()?;
    let mut peers = vec![Peer::Pollux];
    for peer in [Peer::QemuNbd, Peer::Nbdkit] {
        match peer.missing() {
            None => peers.push(peer),
            Some(how) => eprintln!("{} is missing, and left out: {how}", peer.name()),
        }
    }
    let mut rows: Vec<Row> = fio::loads()
        .into_iter()
        .map(|load| Row {
            load,
            samples: peers.iter().map(|&peer| (peer, Samples::default())).collect(),
        })
        .collect();
    for round in 0..options.rounds as usize {
        // Whoever comes first may find the machine in another mood: take turns at that too.
        for turn in 0..peers.len() {
            let which = (turn + round) % peers.len();
            let server = Server::start(peers[which], options)?;
            for row in &mut rows {
                let figures = fio::run(&server, &row.load, options)?;
                if let Some((_, samples)) = row.samples.get_mut(which) {
                    samples.push(figures);
                }
            }
        }
        eprintln!("round {} of {} is done", round + 1, options.rounds);
    }
    print_table(options, &peers, &rows);
    Ok(())
}

fn print_table(options: &Options, peers: &[Peer], rows: &[Row]) {
    println!(
        "{} rounds of {} s each, in turns; each server on core {}, fio on cores {:?}. Thousands of IOPS: \
         median (lowest-highest).\n",
        options.rounds, options.seconds, options.server_core, options.client_cores
    );
    let names: Vec<&str> = peers.iter().map(|peer| peer.name()).collect();
    println!("| load | {} | pollux / better of the others |", names.join(" | "));
    println!("| --- |{} --- |", " --- |".repeat(peers.len()));
    for row in rows {
        let figures: Vec<String> = row
            .samples
            .iter()
            .map(|(_, samples)| samples.iops_text())
            .collect();
        println!(
            "| {} | {} | {} |",
            row.load.name(),
            figures.join(" | "),
            ratio(row.iops(Peer::Pollux), row.best_other())
        );
    }
}
