//! What an engine costs that has nothing to do: a hundred connected queues, and nobody who reads or writes.
//!
//!     cargo bench -p pollux-engine --bench idle
//!
//! Prints the processor time of the engine as the scheduler counts it, as a share of one core, and its memory
//! from `/proc/PID/status`. The device holds no data, so that all memory is the engine's own. Hosts keep
//! their controllers alive as the kernel does, every few seconds.

#![expect(clippy::print_stdout, reason = "a measurement is printed")]

#[path = "../tests/common/mod.rs"]
mod common;

use std::time::{Duration, Instant};

use common::EngineProcess;
use common::host::block_on;
use pollux_nvme::initiator::controller::{Controller, ControllerOptions};
use pollux_reactor::net::Address;
use pollux_reactor::real::{ReactorThread, Settings};

const CONTROLLERS: u16 = 10;
const QUEUES_PER_CONTROLLER: u16 = 10;

/// What connecting leaves behind has settled by then.
const SETTLE: Duration = Duration::from_secs(2);

/// How long to measure.
const MEASURE: Duration = Duration::from_secs(10);

fn main() {
    let core = common::cores(1).first().map(u32::to_string).expect("a core");
    for (idle, queues) in [("adaptive", true), ("adaptive", false), ("poll", true)] {
        let device = "null:///idle?size=1TiB";
        let arguments = ["--cores", &core, "--idle", idle, device];
        let mut engine = EngineProcess::start(&arguments);
        let hosts = queues.then(|| Hosts::connect(Address::Tcp(engine.listener())));
        std::thread::sleep(SETTLE);

        let (before, started) = (processor_time(engine.id()), Instant::now());
        std::thread::sleep(MEASURE);
        let (after, took) = (processor_time(engine.id()), started.elapsed());
        let share = 100.0 * (after - before).as_secs_f64() / took.as_secs_f64();
        let memory = |name| memory_kib(engine.id(), name) as f64 / 1024.0;
        println!(
            "idle {idle:8} {:3} I/O queues: {share:7.3} % of a core, {:.1} MiB resident and {:.1} MiB of \
             huge pages",
            hosts.as_ref().map_or(0, Hosts::queues),
            memory("VmRSS:"),
            memory("HugetlbPages:"),
        );
        drop(hosts);
        engine.stop();
    }
}

/// Hosts with queues that they do not use.
struct Hosts {
    // Ends all that lives on it when dropped.
    _reactor: ReactorThread,
}

impl Hosts {
    fn connect(target: Address) -> Self {
        let reactor = ReactorThread::spawn(Settings::default()).expect("a reactor");
        let connecting = reactor.handle();
        let connecting = connecting.call(move || async move {
            for _ in 0..CONTROLLERS {
                let subsystem = "nqn.2026-11.io.pollux:serve".parse().expect("a name");
                let options = ControllerOptions {
                    queues: QUEUES_PER_CONTROLLER,
                    ..ControllerOptions::new(target.clone(), subsystem)
                };
                let controller = Controller::connect(options).await.expect("it connects");
                let ticket = controller.ticket();
                let mut queues = Vec::new();
                for queue in 1..=QUEUES_PER_CONTROLLER {
                    queues.push(ticket.connect(queue).await.expect("it connects"));
                }
                pollux_reactor::spawn(async move {
                    let _connected = (controller, queues);
                    std::future::pending::<()>().await;
                })
                .detach();
            }
        });
        block_on(connecting).expect("the reactor runs");
        Self { _reactor: reactor }
    }

    fn queues(&self) -> u16 {
        CONTROLLERS * QUEUES_PER_CONTROLLER
    }
}

/// Time that all threads of a process have run: the first field of each `/proc/PID/task/TID/schedstat`, in
/// nanoseconds. `/proc/PID/stat` counts in ticks of 10 ms, more than an idle engine needs in a second.
fn processor_time(process: u32) -> Duration {
    let threads = std::fs::read_dir(format!("/proc/{process}/task")).expect("it runs");
    let ran_ns = threads.flatten().map(|thread| {
        // A thread may end between the two.
        let text = std::fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
        text.split(' ')
            .next()
            .and_then(|field| field.parse::<u64>().ok())
            .unwrap_or(0)
    });
    Duration::from_nanos(ran_ns.sum())
}

fn memory_kib(process: u32, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).expect("it runs");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .unwrap_or("0 kB");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}
