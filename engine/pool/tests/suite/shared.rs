//! Pools that several reactors share, on real ones.

use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

use futures_util::StreamExt;
use pollux_device::conformance::{self, Expectations};
use pollux_device::events::DeviceEvent;
use pollux_device::{
    BlockDevice, BlockDeviceExt, Device, GrowError, IoError, MallocDevice, MallocOptions, Reply, Request,
};
use pollux_hugepages::{ArenaOptions, Buffer, PagePreference, PoolOptions as BufferOptions};
use pollux_pool::shared::{LANE_REQUESTS_MAX, SharedPool, VolumeDevice};
use pollux_pool::{CreateOptions, Pool, PoolError, PoolOptions, VolumeOptions};
use pollux_reactor::real::{ReactorThread, Settings};
use pollux_reactor::{ReactorHandle, ReactorId};

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

fn ordinary() -> ArenaOptions {
    ArenaOptions {
        page: PagePreference::Ordinary,
        ..ArenaOptions::default()
    }
}

fn reactor(number: u32) -> ReactorThread {
    let settings = Settings {
        id: ReactorId(number),
        buffers: BufferOptions {
            total_bytes: 32 << 20,
            arena: ordinary(),
            ..BufferOptions::default()
        },
        ..Settings::default()
    };
    ReactorThread::spawn(settings).unwrap()
}

/// Has a reactor do something.
fn on<F, T>(reactor: &ReactorHandle, act: impl FnOnce() -> F + Send + 'static) -> T
where
    F: Future<Output = T> + 'static,
    T: Send + 'static,
{
    block_on(reactor.call(act)).unwrap()
}

/// A pool in memory with a volume `db` of so many blocks.
fn pool_on(owner: &ReactorHandle, blocks: u64) -> SharedPool {
    on(owner, move || async move {
        let mut options = MallocOptions::new(128 << 20);
        options.arena = ordinary();
        let device = MallocDevice::new("memory", &options).unwrap();
        let devices = vec![device.attach().await.unwrap()];
        let create = CreateOptions::default();
        let pool = Pool::create("tank", devices, &create, PoolOptions::default());
        let pool = pool.await.unwrap();
        pool.create_volume("db", &VolumeOptions::new(blocks))
            .await
            .unwrap();
        SharedPool::new(pool)
    })
}

fn device(pool: &SharedPool, name: &str) -> Arc<VolumeDevice> {
    block_on(pool.device(name)).unwrap()
}

#[test]
fn a_volume_is_a_device_on_its_owner_and_elsewhere() {
    let (owner, other) = (reactor(0), reactor(1));
    let pool = pool_on(&owner.handle(), 8192);
    let volume = device(&pool, "db");
    assert_eq!(volume.name(), "tank/db");
    let expectations = Expectations {
        fresh: true,
        ..Expectations::default()
    };
    let forwarded: Arc<dyn Device> = volume.clone();
    on(&other.handle(), move || {
        conformance::check(forwarded, expectations)
    });
    let direct: Arc<dyn Device> = volume.clone();
    on(&owner.handle(), move || {
        conformance::check(direct, Expectations::default())
    });
    block_on(conformance::check_shared(
        volume,
        &[owner.handle(), other.handle()],
    ));
    let report = block_on(pool.call(|pool| async move { pool.check().await })).unwrap();
    assert!(report.unwrap().is_sound());
}

#[test]
fn a_snapshot_is_a_device_that_cannot_be_written() {
    let (owner, other) = (reactor(0), reactor(1));
    let pool = pool_on(&owner.handle(), 2048);
    block_on(pool.call(|pool| async move { pool.snapshot("db", "monday", 7).await }))
        .unwrap()
        .unwrap();
    let snapshot: Arc<dyn Device> = device(&pool, "monday");
    assert!(snapshot.geometry().read_only);
    on(&other.handle(), move || {
        conformance::check(snapshot, Expectations::default())
    });
}

#[test]
fn growth_is_seen_everywhere_and_told() {
    let (owner, other) = (reactor(0), reactor(1));
    let pool = pool_on(&owner.handle(), 16);
    let volume = device(&pool, "db");
    let mut events = volume.subscribe();
    let grown = volume.clone();
    on(&other.handle(), move || async move {
        let queue = grown.clone().attach().await.unwrap();
        assert_eq!(queue.geometry().blocks, 16);
        let read = queue.read(16, Buffer::from_heap(4096)).await;
        assert_eq!(read.err(), Some(IoError::OutOfRange));
        grown.clone().grow_to(32 * 4096).await.unwrap();
        assert_eq!((queue.geometry().blocks, grown.geometry().blocks), (32, 32));
        queue.read(16, Buffer::from_heap(4096)).await.unwrap();
        let shrunk = grown.clone().grow_to(8 * 4096).await;
        assert!(matches!(shrunk, Err(GrowError::Shrink { .. })));
        let torn = grown.grow_to(32 * 4096 + 1).await;
        assert!(matches!(torn, Err(GrowError::Geometry(_))));
    });
    assert_eq!(block_on(events.next()), Some(DeviceEvent::Resized));
}

#[test]
fn a_volume_is_in_use_as_long_as_there_is_a_device_of_it() {
    let owner = reactor(0);
    let pool = pool_on(&owner.handle(), 16);
    let volume = device(&pool, "db");
    let delete = || block_on(pool.call(|pool| async move { pool.delete("db").await })).unwrap();
    assert!(matches!(delete(), Err(PoolError::Busy { .. })));
    drop(volume);
    // The owner lets go of it in a turn of its own.
    while let Err(PoolError::Busy { .. }) = delete() {}
    assert!(block_on(pool.device("db")).is_err());
}

#[test]
fn one_request_too_many_is_told_and_those_that_nobody_waits_for_are_done() {
    let (owner, other) = (reactor(0), reactor(1));
    let pool = pool_on(&owner.handle(), 4096);
    let volume = device(&pool, "db");
    on(&other.handle(), move || async move {
        let queue = volume.attach().await.unwrap();
        // In one turn of this reactor no reply is taken.
        let mut completions = Vec::new();
        for block in 0..u64::from(LANE_REQUESTS_MAX) {
            let mut data = Buffer::from_heap(4096);
            data.fill(block as u8 | 1);
            completions.push(queue.submit(Request::Write {
                block,
                from: data.into(),
                force_unit_access: false,
            }));
        }
        assert_eq!(queue.flush().await.err(), Some(IoError::ResourceShortage));
        // Half of them are waited for, in the wrong order.
        for (index, completion) in completions.into_iter().enumerate().rev() {
            if index % 2 == 0 {
                assert!(matches!(completion.await, Ok(Reply::Done)));
            }
        }
        // Once what was dropped has been done, there is room for as many again.
        while queue.flush().await == Err(IoError::ResourceShortage) {
            pollux_reactor::yield_now().await;
        }
        let reads = (0..u64::from(LANE_REQUESTS_MAX) - 1).map(|block| {
            let into = Buffer::from_heap(4096);
            queue.submit(Request::Read { block, into })
        });
        let reads: Vec<_> = reads.collect();
        for (block, read) in reads.into_iter().enumerate() {
            let data = read.await.unwrap().into_buffer().unwrap();
            let written = block as u8 | 1;
            assert!(
                data.iter()
                    .all(|byte| *byte == written || (*byte == 0 && block % 2 == 1))
            );
            assert!(data.iter().all(|byte| *byte == data[0]), "torn");
        }
    });
}

#[test]
fn an_owner_that_stops_leaves_nobody_waiting() {
    let (owner, other) = (reactor(0), reactor(1));
    let pool = pool_on(&owner.handle(), 4096);
    let volume = device(&pool, "db");
    let (attached, is_attached) = std::sync::mpsc::channel();
    let handle = other.handle();
    let forward = move || async move {
        let queue: Rc<dyn BlockDevice> = volume.attach().await.unwrap();
        attached.send(()).unwrap();
        loop {
            match queue.read(0, Buffer::from_heap(4096)).await {
                Ok(_) => {}
                Err(error) => return (error, queue.flush().await),
            }
        }
    };
    let pending = std::thread::spawn(move || block_on(handle.call(forward)));
    is_attached.recv().unwrap();
    owner.stop();
    owner.join().unwrap();
    assert_eq!(
        pending.join().unwrap().unwrap(),
        (IoError::Gone, Err(IoError::Gone))
    );
    assert!(block_on(pool.call(|pool| async move { pool.space() })).is_err());
}
