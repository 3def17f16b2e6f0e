//! Which blocks are allocated, asked over the network.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use pollux_device::conformance::{self, Expectations};
use pollux_device::events::Subscription;
use pollux_device::{
    AllocationQuery, AllocationRun, Attaching, BlockDevice, BlockDeviceExt, Completion, Device, Geometry,
    IoError, MallocDevice, MallocOptions, Request,
};
use pollux_nvme::target::NamespaceConfig;
use pollux_sim::Crash;

use super::lab::{BLOCK, Lab, SUBSYSTEM, buffer, pattern};

/// Blocks of the device: more than one question goes over.
const BLOCKS: u64 = 200_000;

/// A device in memory that counts questions, and may refuse them.
struct Asked {
    device: Arc<MallocDevice>,
    asked: AtomicU32,
    fenced: AtomicBool,
}

struct Queue(Rc<dyn BlockDevice>, Arc<Asked>);

impl Asked {
    fn new() -> Arc<Self> {
        let options = MallocOptions::new(BLOCKS * BLOCK as u64);
        Arc::new(Self {
            device: MallocDevice::new("memory", &options).unwrap(),
            asked: AtomicU32::new(0),
            fenced: AtomicBool::new(false),
        })
    }
}

impl Device for Asked {
    fn name(&self) -> &str {
        self.device.name()
    }

    fn geometry(&self) -> Geometry {
        self.device.geometry()
    }

    fn attach(self: Arc<Self>) -> Attaching {
        Box::pin(async move {
            let queue = self.device.clone().attach().await?;
            Ok(Rc::new(Queue(queue, self)) as Rc<dyn BlockDevice>)
        })
    }

    fn subscribe(&self) -> Subscription {
        self.device.subscribe()
    }
}

impl BlockDevice for Queue {
    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }

    fn submit(&self, request: Request) -> Completion {
        self.0.submit(request)
    }

    fn allocation(&self, block: u64, blocks: u64, runs_max: usize) -> AllocationQuery {
        self.1.asked.fetch_add(1, Ordering::Relaxed);
        match self.1.fenced.load(Ordering::Relaxed) {
            true => Box::pin(async { Err(IoError::Fenced) }),
            false => self.0.allocation(block, blocks, runs_max),
        }
    }
}

/// A lab whose second namespace tells of holes.
fn lab(seed: u64) -> (Lab, Arc<Asked>) {
    let (lab, device) = (Lab::new(seed), Asked::new());
    serve(&lab, &device);
    (lab, device)
}

fn serve(lab: &Lab, device: &Arc<Asked>) {
    let subsystem = lab.served().subsystem(SUBSYSTEM).unwrap();
    subsystem
        .add_namespace(device.clone(), &NamespaceConfig::default())
        .unwrap();
}

fn runs(told: &[(u64, bool)]) -> Vec<AllocationRun> {
    let told = told.iter();
    told.map(|&(blocks, allocated)| AllocationRun { blocks, allocated })
        .collect()
}

#[test]
fn holes_are_known_on_the_other_side() {
    let (lab, device) = lab(1);
    lab.run("&nsid=2", move |_, queue| async move {
        let ask = |block, blocks, runs_max| queue.allocation(block, blocks, runs_max);
        // One question for each 65,535 blocks.
        assert_eq!(ask(0, BLOCKS, 1).await, Ok(runs(&[(BLOCKS, false)])));
        assert_eq!(device.asked.load(Ordering::Relaxed), 4);
        for block in [7, 8, 100, 150_000] {
            queue
                .write(block, buffer(&pattern(1, BLOCK)), false)
                .await
                .unwrap();
        }
        let all = [
            (7, false),
            (2, true),
            (91, false),
            (1, true),
            (149_899, false),
            (1, true),
            (49_999, false),
        ];
        assert_eq!(ask(0, BLOCKS, 100).await, Ok(runs(&all)));
        for runs_max in 1..all.len() {
            let told = ask(0, BLOCKS, runs_max).await;
            assert_eq!(told, Ok(runs(&all[..runs_max])), "{runs_max} at most");
        }
        assert_eq!(ask(0, BLOCKS, 0).await, Ok(runs(&all[..1])));
        assert_eq!(
            ask(8, 93, 9).await,
            Ok(runs(&[(1, true), (91, false), (1, true)]))
        );
        assert_eq!(ask(9, 0, 9).await, Ok(vec![]));
        assert_eq!(ask(1, BLOCKS, 1).await, Err(IoError::OutOfRange));
        queue.deallocate(0, BLOCKS).await.unwrap();
        assert_eq!(ask(0, BLOCKS, 9).await, Ok(runs(&[(BLOCKS, false)])));
    });
}

#[test]
fn the_device_does_what_every_device_does() {
    let (lab, _) = lab(2);
    lab.run("&nsid=2", |device, _| async move {
        let expectations = Expectations {
            fresh: true,
            ..Expectations::default()
        };
        conformance::check(device, expectations).await;
    });
}

/// What a superseded target asks is refused as what it reads is, and is no reason not to ask again.
#[test]
fn a_refusal_is_passed_on() {
    let (lab, device) = lab(3);
    lab.run("&nsid=2", move |_, queue| async move {
        device.fenced.store(true, Ordering::Relaxed);
        assert_eq!(queue.allocation(0, 10, 1).await, Err(IoError::Fenced));
        device.fenced.store(false, Ordering::Relaxed);
        assert_eq!(queue.allocation(0, 10, 1).await, Ok(runs(&[(10, false)])));
    });
}

#[test]
fn a_device_that_does_not_know_says_that_all_is_allocated() {
    Lab::new(4).run("", |_, queue| async move {
        assert_eq!(queue.allocation(5, 20, 9).await, Ok(runs(&[(20, true)])));
    });
}

/// A question that is lost with the target is asked again once it is back.
#[test]
fn questions_outlive_the_loss_of_the_target() {
    let (lab, device) = lab(5);
    let open = lab.open("&nsid=2").unwrap();
    let attached = open.clone();
    let host = lab.host_reactors[0];
    let queue = lab
        .world
        .block_on(host, async move { attached.attach().await.unwrap() });
    lab.world.crash(lab.target, Crash::Process);
    let asked = queue.clone();
    let answer = lab
        .world
        .spawn(host, async move { asked.allocation(0, 10, 1).await });
    lab.world.run_for(super::lab::ms(50));
    lab.world.restart(lab.target);
    lab.serve();
    serve(&lab, &device);
    let told = lab.world.block_on(host, answer);
    assert_eq!(told.ok(), Some(Ok(runs(&[(10, false)]))));
    lab.world.block_on(host, async move { drop((queue, open)) });
}
