//! A volume whose replica does not answer any more, and who is held up by that.

use pollux_device::faulty::{Fault, Release, Rule, When};
use pollux_device::{Device, DeviceUri, Faults, FaultyDevice, MallocOpener, Opener, Opening};
use pollux_reactor::real::{ReactorThread, Settings};
use pollux_volume::membership::{
    Epoch, MemoryStore, REPLICAS_MAX as SLOTS, ReplicaEntry, ReplicaState as Sync,
};

use super::*;
use crate::engine::Parts as EngineParts;
use crate::pools::{Memory, Pools};
use crate::replicas::{Calls, NewReplica, Place, Replicas, SessionOptions};

const SLOW: Uuid = Uuid::from_u128(1);
const OTHER: Uuid = Uuid::from_u128(2);
const REPLICA: Uuid = Uuid::from_u128(3);
const SIZE_BYTES: u64 = 16 << 20;

/// Opens memory whose requests get stuck when the test says so.
struct HeldOpener(Faults);

impl Opener for HeldOpener {
    fn open<'a>(&'a self, registry: &'a pollux_device::Registry, uri: &'a DeviceUri) -> Opening<'a> {
        Box::pin(async move {
            let inner = MallocOpener.open(registry, uri).await?;
            Ok(FaultyDevice::new(inner, self.0.clone()) as Arc<dyn Device>)
        })
    }
}

struct Node {
    targets: Arc<Targets>,
    replicas: Arc<Replicas>,
    faults: Faults,
    /// Dropped last.
    thread: ReactorThread,
}

impl Node {
    fn start() -> Self {
        let thread = ReactorThread::spawn(Settings::default()).expect("a thread");
        let reactors = vec![thread.handle()];
        let faults = Faults::default();
        let mut registry = pollux_device::Registry::empty();
        registry.register("malloc", Arc::new(HeldOpener(faults.clone())));
        let target = Target::new(pollux_nvme::target::TargetConfig::default(), reactors.clone());
        let target = target.expect("a target");
        let subsystem = target.add_subsystem(&SubsystemConfig::new("nqn.2026-11.io.pollux:test"));
        let engine = Engine::new(EngineParts {
            registry: registry.clone(),
            target: target.clone(),
            subsystem: subsystem.expect("it is the first"),
            exports: pollux_nbd::Exports::new(),
            reactors: reactors.clone(),
            cores: Vec::new(),
            nvmf_listeners: Vec::new(),
            nbd_listeners: Vec::new(),
            flush_timeout: Duration::from_secs(1),
        });
        let pools = Pools::of_engine(registry.clone(), reactors.clone(), Memory::default());
        let replicas = Replicas::new(registry, pools, target.clone(), reactors.clone(), Vec::new());
        let parts = Parts {
            engine,
            target,
            ports: Ports {
                replicas: replicas.clone(),
                calls: Calls::start_with(None),
                node: "n".to_owned(),
                sessions: SessionOptions::default(),
            },
            reactors,
            registry: Registry::new(&["127.0.0.1:1".to_owned()], None).expect("an address"),
            node: "n".to_owned(),
            options: MirrorOptions::default(),
        };
        Self {
            targets: Targets::new(parts, Arc::default()),
            replicas,
            faults,
            thread,
        }
    }

    /// A volume with one replica is served, and its replica stops to answer.
    async fn serve_and_hold(&self) {
        let uri = DeviceUri::parse("malloc:///slow?size=32MiB&block=4096").expect("a URI");
        let new = NewReplica {
            volume: SLOW,
            replica: REPLICA,
            place: Place::Device(uri),
        };
        self.replicas.create(&new).await.expect("the device is blank");
        let mut members = [None; SLOTS];
        members[0] = Some(ReplicaEntry {
            id: REPLICA,
            state: Sync::InSync,
        });
        let record = Membership {
            volume: SLOW,
            epoch: Epoch(1),
            version: 1,
            size_blocks: SIZE_BYTES / u64::from(BLOCK_BYTES),
            block_bytes: BLOCK_BYTES,
            min_in_sync: 1,
            replicas: members,
            snapshots: Vec::new(),
            roll_back: None,
            caches_lost: None,
        };
        let route = super::super::ports::Route::Local(self.replicas.local_port(SLOW, REPLICA));
        let reactor = self.thread.handle();
        let opened = reactor.call(move || async move {
            let store = MemoryStore::default();
            store.swap(record).expect("it is the first");
            let ports = Ports::open(&[(REPLICA, route)]);
            let options = MirrorOptions::default();
            let mirror = Mirror::open(options, Rc::new(store), SLOW, &ports).await?;
            Ok::<_, OpenError>(Serving::new(SLOW, mirror, vec![replica(REPLICA)]))
        });
        let serving = opened
            .await
            .expect("the reactor turns")
            .expect("the replica is there");
        self.targets.ensure(standby(SLOW)).await.expect("it is shown");
        let shown = self.targets.shown().get(&SLOW).cloned().expect("it was shown");
        shown
            .switch
            .connect(Some(serving.device.clone()))
            .expect("it fits");
        shown.state().role = Role::Serving(serving);
        self.faults.set([Rule {
            when: When::default(),
            fault: Fault::Stick,
        }]);
    }
}

fn replica(uid: Uuid) -> TargetReplica {
    TargetReplica {
        uid: uid.to_string(),
        node: if uid == REPLICA { "n" } else { "other" }.to_owned(),
        address: "127.0.0.1:1".to_owned(),
        in_sync: uid == REPLICA,
        slot: u32::from(uid != REPLICA),
        leaving: false,
    }
}

fn standby(volume: Uuid) -> TargetConfig {
    TargetConfig {
        volume_uid: volume.to_string(),
        volume: format!("v{volume}"),
        epoch: 9,
        size_bytes: SIZE_BYTES,
        standby: true,
        ..TargetConfig::default()
    }
}

#[tokio::test]
async fn a_volume_that_takes_long_to_end_holds_up_no_other() {
    let node = Node::start();
    node.serve_and_hold().await;
    let removing = tokio::spawn({
        let targets = node.targets.clone();
        async move { targets.remove(&SLOW.to_string(), 9).await }
    });
    // From here on it waits for its replica.
    while node.faults.counts().stuck == 0 {
        tokio::task::yield_now().await;
    }
    node.targets
        .ensure(standby(OTHER))
        .await
        .expect("it is another volume");
    node.targets
        .remove(&OTHER.to_string(), 9)
        .await
        .expect("it is there");
    let mut again = Box::pin(node.targets.ensure(standby(SLOW)));
    let is_early = futures_util::poll!(&mut again).is_ready();
    let is_ending = !removing.is_finished();
    node.faults.clear();
    node.faults.release(Release::Proceed);
    removing.await.expect("it ends").expect("it is there");
    again.await.expect("it was gone");
    assert!(is_ending, "the others waited for it");
    assert!(!is_early, "two things were done to one volume at a time");
    node.targets.close().await;
    let refused = node.targets.ensure(standby(OTHER)).await;
    assert!(matches!(refused, Err(ServeError::Stopping)), "{refused:?}");
}

#[tokio::test]
async fn nobody_is_told_what_was_told_before() {
    let node = Node::start();
    node.serve_and_hold().await;
    node.faults.clear();
    let shown = node.targets.shown().get(&SLOW).cloned().expect("it was shown");
    let serving = shown.serving().expect("it is served");
    // What was told while it was made.
    let changed = node.targets.changed.clone();
    let told = async || tokio::time::timeout(Duration::from_millis(300), changed.notified()).await;
    while told().await.is_ok() {}
    node.targets.clone().watch(shown.clone(), serving.clone());
    assert!(told().await.is_err(), "it is as it was");
    // What is not as it was told last is told.
    let newest = serving.record();
    serving.record.lock().expect("nobody fails with it").version = 0;
    let again = serving.mirror.call(|mirror| async move { mirror.close() });
    again.await.expect("the reactor turns");
    assert!(told().await.is_ok(), "its mirror has stopped");
    assert_eq!(serving.record(), newest);
    node.targets.close().await;
}

#[tokio::test]
async fn replicas_that_are_told_while_a_volume_is_opened_or_settled_are_told_again() {
    let node = Node::start();
    node.serve_and_hold().await;
    node.faults.clear();
    let shown = node.targets.shown().get(&SLOW).cloned().expect("it was shown");
    let serving = shown.serving().expect("it is served");
    let uids = || {
        let replicas = shown.report().replicas.into_iter();
        replicas.map(|replica| replica.uid).collect::<Vec<_>>()
    };
    let (one, two, three) = (REPLICA, Uuid::from_u128(4), Uuid::from_u128(5));
    let names = |uids: &[Uuid]| uids.iter().map(Uuid::to_string).collect::<Vec<_>>();
    let told = |uids: &[Uuid]| TargetConfig {
        epoch: serving.record().epoch.0,
        replicas: uids.iter().copied().map(replica).collect(),
        standby: false,
        ..standby(SLOW)
    };
    let until = async |wanted: &[Uuid]| {
        for _ in 0..3000 {
            if uids() == names(wanted) && !serving.settling.load(Ordering::Acquire) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{:?} are known, and {wanted:?} were told", uids());
    };
    // It was opened with one; the second one came meanwhile.
    shown.state().told = told(&[one, two]);
    assert_eq!(uids(), names(&[one]), "the mirror knows no other");
    let again = node.targets.ensure(told(&[one, two])).await;
    again.expect("it is served");
    until(&[one, two]).await;
    // It is being settled; the third one comes meanwhile.
    serving.settling.store(true, Ordering::Release);
    let meanwhile = node.targets.ensure(told(&[one, two, three])).await;
    meanwhile.expect("it is served");
    assert_eq!(uids(), names(&[one, two]), "the mirror knows no other");
    serving.settling.store(false, Ordering::Release);
    let again = node.targets.ensure(told(&[one, two, three])).await;
    again.expect("it is served");
    until(&[one, two, three]).await;
    node.targets.close().await;
}

/// A pool that is full of snapshots has room again once some are deleted: another one that is wanted must not
/// come first.
#[tokio::test]
async fn a_snapshot_that_cannot_be_taken_keeps_nothing_else_from_being_done() {
    let node = Node::start();
    // Its replica is on a device that has no snapshots.
    node.serve_and_hold().await;
    node.faults.clear();
    let shown = node.targets.shown().get(&SLOW).cloned().expect("it was shown");
    let serving = shown.serving().expect("it is served");
    let told = TargetConfig {
        epoch: serving.record().epoch.0,
        replicas: vec![replica(REPLICA)],
        snapshot_uids: vec![OTHER.to_string()],
        size_bytes: SIZE_BYTES + (4 << 20),
        standby: false,
        ..standby(SLOW)
    };
    let routes = node.targets.parts.ports.routes(&told).expect("it is here");
    let wanted = Wanted::read(&told).expect("it makes sense");
    let settling = serving.mirror.call(move |mirror| async move {
        let settled = wanted.settle(&mirror, &routes).await;
        (settled.is_err(), mirror.membership().size_bytes())
    });
    let (is_told, size_bytes) = settling.await.expect("the reactor turns");
    assert!(is_told, "there is no snapshot");
    assert_eq!(size_bytes, told.size_bytes);
    node.targets.close().await;
}
