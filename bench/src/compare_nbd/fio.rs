//! fio as the client.

use std::path::Path;
use std::process::Command;

use serde::Deserialize;

use super::servers::Server;
use super::{Error, Options};
use crate::program;
use crate::samples::Figures;

/// A load of 4 KiB requests at random places.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    write: bool,
    jobs: u32,
    /// Requests outstanding, all jobs together.
    depth: u32,
}

impl Load {
    /// What it is called in the table.
    pub fn name(&self) -> String {
        let what = if self.write { "write" } else { "read" };
        let jobs = match self.jobs {
            1 => "1 job".to_owned(),
            jobs => format!("{jobs} jobs"),
        };
        format!("{what} 4 KiB depth {}, {jobs}", self.depth)
    }
}

/// What is run.
pub fn loads() -> Vec<Load> {
    let mut loads = Vec::new();
    for jobs in [1, 2] {
        for write in [false, true] {
            loads.push(Load {
                write,
                jobs,
                depth: 64,
            });
        }
    }
    loads
}

/// Checks that there is a fio that speaks NBD.
pub fn check() -> Result<(), Error> {
    let output = Command::new("fio")
        .arg("--enghelp")
        .output()
        .map_err(|error| Error::NoFio(format!("fio cannot be run: {error}")))?;
    let engines = String::from_utf8_lossy(&output.stdout);
    if engines.split_whitespace().any(|engine| engine == "nbd") {
        Ok(())
    } else {
        Err(Error::NoFio("this fio has no engine `nbd`".to_owned()))
    }
}

#[derive(Debug, Deserialize)]
struct Report {
    jobs: Vec<Job>,
}

#[derive(Debug, Deserialize)]
struct Job {
    error: i64,
    read: Side,
    write: Side,
}

#[derive(Debug, Deserialize)]
struct Side {
    iops: f64,
    lat_ns: Latency,
}

#[derive(Debug, Deserialize)]
struct Latency {
    mean: f64,
}

/// Runs a load once.
pub fn run(server: &Server, load: &Load, options: &Options) -> Result<Figures, Error> {
    let cores: Vec<String> = options.client_cores.iter().map(usize::to_string).collect();
    let mut command = Command::new("taskset");
    command
        .args(["--cpu-list", &cores.join(","), "fio"])
        .args(["--name=compare", "--ioengine=nbd"])
        .arg(format!("--uri={}", server.uri()))
        .arg(if load.write {
            "--rw=randwrite"
        } else {
            "--rw=randread"
        })
        .args([
            "--bs=4k",
            "--time_based",
            "--group_reporting",
            "--output-format=json",
        ])
        .arg(format!("--iodepth={}", load.depth / load.jobs))
        .arg(format!("--numjobs={}", load.jobs))
        .arg(format!("--size={}M", options.device_mib))
        .arg(format!("--runtime={}", options.seconds));
    let read = |text: &str| parse(text, load.write);
    Ok(program::read_output(command, Path::new("fio"), read)?)
}

/// The figures in the JSON that fio prints behind some words of its engine.
fn parse(text: &str, write: bool) -> Option<Figures> {
    let json = text.get(text.find('{')?..)?;
    let report: Report = serde_json::from_str(json).ok()?;
    let job = report.jobs.into_iter().find(|job| job.error == 0)?;
    let side = if write { job.write } else { job.read };
    Some(Figures {
        iops: side.iops,
        mean_us: side.lat_ns.mean / 1e3,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_figures() {
        let text = "fio: connected to NBD server\n{\"jobs\":[{\"error\":0,\
                    \"read\":{\"iops\":5.0,\"lat_ns\":{\"mean\":2000.0}},\
                    \"write\":{\"iops\":7.0,\"lat_ns\":{\"mean\":3000.0}}}]}";
        let figures = parse(text, true).unwrap();
        assert_eq!((figures.iops, figures.mean_us), (7.0, 3.0));
        assert_eq!(parse(text, false).unwrap().iops, 5.0);
        assert!(parse("fio: no connection", false).is_none());
        assert!(parse(&text.replace("\"error\":0", "\"error\":5"), true).is_none());
    }
}
