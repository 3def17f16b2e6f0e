//! Exactly which blocks devices say are allocated, where that is known.

mod common;

use std::sync::Arc;

use common::{on_reactor, open};
use pollux_device::{
    AllocationQuery, Attaching, BlockDevice, BlockDeviceExt, Completion, Device, Gather, Geometry, Request,
    ZeroOptions, conformance, events,
};
use pollux_hugepages::{Buffer, Slice};

/// Blocks of each run, and whether it is allocated.
async fn runs(queue: &dyn BlockDevice, block: u64, blocks: u64) -> Vec<(u64, bool)> {
    let runs = queue.allocation(block, blocks, 100).await.expect("in range");
    runs.into_iter().map(|run| (run.blocks, run.allocated)).collect()
}

async fn write(queue: &dyn BlockDevice, block: u64, bytes: usize) {
    let mut data = Buffer::from_heap(bytes);
    data.fill(7);
    queue.write(block, data, false).await.expect("in range");
}

#[test]
fn null_is_a_hole() {
    on_reactor(|| async {
        let device = open("null:///nothing?size=1GiB").await.expect("null");
        let queue = device.attach().await.expect("a queue");
        write(&*queue, 0, 4096).await;
        assert_eq!(runs(&*queue, 0, 1 << 18).await, [(1 << 18, false)]);
    });
}

#[test]
fn memory_is_allocated_as_it_is_written() {
    on_reactor(|| async {
        let device = open("malloc:///memory?size=1GiB").await.expect("memory");
        let queue = device.clone().attach().await.expect("a queue");
        let all = 1 << 18;
        assert_eq!(runs(&*queue, 0, all).await, [(all, false)]);
        write(&*queue, 10, 8192).await;
        write(&*queue, all - 1, 4096).await;
        let expected = [(10, false), (2, true), (all - 13, false), (1, true)];
        assert_eq!(runs(&*queue, 0, all).await, expected);
        assert_eq!(runs(&*queue, 11, 2).await, [(1, true), (1, false)]);
        queue.deallocate(10, 1).await.expect("in range");
        let keep = ZeroOptions::default();
        queue.write_zeroes(20, 1, keep).await.expect("in range");
        assert_eq!(
            runs(&*queue, 0, 30).await,
            [(11, false), (1, true), (8, false), (1, true), (9, false)]
        );
        // What was added is empty, whatever the rest is.
        device.grow_to((1 << 30) + (1 << 20)).await.expect("memory");
        assert_eq!(runs(&*queue, all - 1, 257).await, [(1, true), (256, false)]);
    });
}

/// Blocks smaller than what is kept account of are allocated together.
#[test]
fn small_blocks_in_memory() {
    on_reactor(|| async {
        let device = open("malloc:///memory?size=1MiB&block=512")
            .await
            .expect("memory");
        let queue = device.clone().attach().await.expect("a queue");
        write(&*queue, 9, 512).await;
        assert_eq!(runs(&*queue, 0, 64).await, [(8, false), (8, true), (48, false)]);
        queue.deallocate(9, 1).await.expect("in range");
        assert_eq!(runs(&*queue, 8, 8).await, [(8, true)]);
        queue.deallocate(8, 8).await.expect("in range");
        assert_eq!(runs(&*queue, 0, 64).await, [(64, false)]);
        // A second arena that begins in the middle of a page of the device.
        device.grow_to((1 << 20) + 512).await.expect("memory");
        let device = open("malloc:///odd?size=512&block=512").await.expect("memory");
        let queue = device.clone().attach().await.expect("a queue");
        device.grow_to(65_536).await.expect("memory");
        write(&*queue, 1, 4096).await;
        assert_eq!(runs(&*queue, 0, 128).await, [(1, false), (8, true), (119, false)]);
    });
}

#[test]
fn files_tell_their_holes() {
    let directory = tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")))
        .expect("a directory");
    for parameters in ["", "&direct=false"] {
        let path = directory.path().join("disk");
        let uri = format!("uring://{}?size=64MiB{parameters}", path.display());
        on_reactor(move || async move {
            let device = open(&uri).await.expect("a file");
            let queue = device.attach().await.expect("a queue");
            assert_eq!(runs(&*queue, 0, 16_384).await, [(16_384, false)]);
            write(&*queue, 1024, 1 << 20).await;
            let expected = [(1024, false), (256, true), (15_104, false)];
            assert_eq!(runs(&*queue, 0, 16_384).await, expected);
            assert_eq!(runs(&*queue, 1200, 200).await, [(80, true), (120, false)]);
            assert_eq!(queue.allocation(0, 16_384, 1).await.expect("in range").len(), 1);
            queue.deallocate(1024, 128).await.expect("in range");
            assert_eq!(
                runs(&*queue, 1000, 400).await,
                [(152, false), (128, true), (120, false)]
            );
        });
        std::fs::remove_file(&path).expect("the file is there");
    }
}

#[test]
fn a_faulty_device_tells_the_holes_of_the_other() {
    on_reactor(|| async {
        let uri = "faulty:///malloc:///memory?inner.size=1MiB&read.error=media-read";
        let queue = open(uri).await.expect("memory").attach().await.expect("a queue");
        write(&*queue, 1, 4096).await;
        assert_eq!(runs(&*queue, 0, 256).await, [(1, false), (1, true), (254, false)]);
    });
}

/// A device that knows better than the one below it.
struct Liar(Arc<dyn Device>);

struct LiarQueue(std::rc::Rc<dyn BlockDevice>);

impl Device for Liar {
    fn name(&self) -> &str {
        "liar"
    }
    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }
    fn attach(self: Arc<Self>) -> Attaching {
        Box::pin(async move {
            let inner = self.0.clone().attach().await?;
            Ok(std::rc::Rc::new(LiarQueue(inner)) as std::rc::Rc<dyn BlockDevice>)
        })
    }
    fn subscribe(&self) -> events::Subscription {
        self.0.subscribe()
    }
}

impl BlockDevice for LiarQueue {
    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }
    fn submit(&self, request: Request) -> Completion {
        self.0.submit(request)
    }
    fn allocation(&self, block: u64, blocks: u64, _: usize) -> AllocationQuery {
        pollux_device::allocation::all(&self.geometry(), block, blocks, false)
    }
}

/// The suite finds data in a hole.
#[test]
fn the_suite_finds_a_liar() {
    let found = std::panic::catch_unwind(|| {
        on_reactor(|| async {
            let inner = open("malloc:///memory?size=16MiB").await.expect("memory");
            let expectations = conformance::Expectations::default();
            conformance::check_with_seed(Arc::new(Liar(inner)), expectations, 1).await;
        });
    });
    assert!(found.is_err());
}

/// Who does not say otherwise has everything allocated.
#[test]
fn everything_is_allocated_where_nothing_is_known() {
    struct Plain(Geometry);
    impl BlockDevice for Plain {
        fn geometry(&self) -> Geometry {
            self.0
        }
        fn submit(&self, _: Request) -> Completion {
            Completion::done()
        }
    }
    let plain = Plain(Geometry::new(1 << 20, 4096).expect("a geometry"));
    assert_eq!(common::block_on(runs(&plain, 0, 256)), [(256, true)]);
    assert!(common::block_on(runs(&plain, 0, 0)).is_empty());
    let data = Gather::from(Slice::copy_from(&[0; 4096]));
    assert_eq!(common::block_on(plain.write(0, data, false)), Ok(()));
}
