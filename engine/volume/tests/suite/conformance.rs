//! A mirror does what every device does.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use pollux_device::conformance::{self, Expectations};
use pollux_device::events::{Publisher, Subscription};
use pollux_device::{Attaching, BlockDevice, Device, Geometry, IoError};
use pollux_sim::{SimDriveOptions, World, WorldOptions};
use pollux_volume::membership::{
    Epoch, Membership, MembershipStore, MemoryStore, ReplicaEntry, ReplicaState,
};
use pollux_volume::metadata::{Area, FormatOptions};
use pollux_volume::mirror::{Mirror, MirrorOptions};
use pollux_volume::replica::{PlainMedium, ReplicaHost, ReplicaPort};
use uuid::Uuid;

const VOLUME: Uuid = Uuid::from_u128(0x77);
const VOLUME_BYTES: u64 = 24 << 20;

thread_local! {
    /// A mirror belongs to one reactor, and a device to all: here there is one.
    static MIRROR: RefCell<Option<Rc<dyn BlockDevice>>> = const { RefCell::new(None) };
}

struct Served(Publisher, Geometry);

impl Device for Served {
    fn name(&self) -> &str {
        "mirror"
    }

    fn geometry(&self) -> Geometry {
        self.1
    }

    fn attach(self: Arc<Self>) -> Attaching {
        Box::pin(async { MIRROR.with_borrow(|mirror| mirror.clone()).ok_or(IoError::Gone) })
    }

    fn subscribe(&self) -> Subscription {
        self.0.subscribe()
    }
}

#[test]
fn a_mirror_passes_the_suite_of_devices() {
    for (seed, block_bytes) in [(1, 512), (2, 4096)] {
        let options = WorldOptions {
            buffer_bytes: 128 << 20,
            ..WorldOptions::default()
        };
        let world = World::with_options(seed, options);
        let machine = world.add_machine("one");
        let reactor = world.add_reactor(machine);
        let drive = || SimDriveOptions::new(VOLUME_BYTES + (1 << 20), block_bytes).unwrap();
        let drives: Vec<_> = (0..2)
            .map(|_| world.add_drive(machine, "drive", drive()))
            .collect();
        world.block_on(reactor, async move {
            let store = MemoryStore::default();
            let mut replicas = [None; 5];
            let mut ports: Vec<(Uuid, Rc<dyn ReplicaPort>)> = Vec::new();
            for (index, drive) in drives.into_iter().enumerate() {
                let (id, state) = (Uuid::from_u128(index as u128 + 1), ReplicaState::InSync);
                replicas[index] = Some(ReplicaEntry { id, state });
                let device = drive.clone().attach().await.unwrap();
                drop(
                    Area::format(device.clone(), &FormatOptions::new(VOLUME, id))
                        .await
                        .unwrap(),
                );
                let medium = Rc::new(PlainMedium::new(drive));
                ports.push((id, Rc::new(ReplicaHost::open(device, medium).await.unwrap())));
            }
            let record = Membership {
                volume: VOLUME,
                epoch: Epoch(1),
                version: 1,
                size_blocks: VOLUME_BYTES / u64::from(block_bytes),
                block_bytes,
                min_in_sync: 2,
                replicas,
                snapshots: Vec::new(),
                roll_back: None,
                caches_lost: None,
            };
            store.swap(record).unwrap();
            let store: Rc<dyn MembershipStore> = Rc::new(store);
            let mirror = Mirror::open(MirrorOptions::default(), store, VOLUME, &ports)
                .await
                .unwrap();
            let device = mirror.device();
            let served = Arc::new(Served(Publisher::default(), device.geometry()));
            MIRROR.set(Some(device));
            let expectations = Expectations {
                fresh: true,
                stores: true,
            };
            conformance::check(served, expectations).await;
            assert_eq!(mirror.membership().in_sync().len(), 2);
            MIRROR.set(None);
        });
    }
}
