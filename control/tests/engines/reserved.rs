//! Reservations of hosts, which every engine that serves a volume has to know.

use std::rc::Rc;

use pollux_api::control::v1::PublishVolumeResponse;
use pollux_device::{BlockDevice, BlockDeviceExt, Device, Gather, IoError};
use pollux_hugepages::Buffer;
use pollux_nvme::initiator::device::{NvmfDevice, Reservations};
use pollux_nvme::wire::command::PersistChange;
use pollux_nvme::wire::reservation::ReservationType as Type;
use pollux_reactor::real::ReactorThread;

use crate::cluster::{Cluster, HOST, until};
use crate::instant::{BLOCK_BYTES, Path, reactor};
use crate::scenarios::policy;

const OTHER: &str = "nqn.2026-11.io.pollux:other";

/// Hosts on one machine.
struct Hosts(ReactorThread);

/// What a host does.
#[derive(Debug, Clone, Copy)]
enum Act {
    Write,
    Register(u64),
    Acquire(u64),
    Preempt(u64, u64),
    Clear(u64),
}

async fn act(what: Act, reservations: &Reservations, device: &Rc<dyn BlockDevice>) -> Result<(), IoError> {
    match what {
        Act::Write => {
            let data = Buffer::from_heap(BLOCK_BYTES).freeze();
            device.write(0, Gather::from(data), true).await
        }
        Act::Register(key) => reservations.register(key, PersistChange::None).await,
        Act::Acquire(key) => reservations.acquire(key, Type::WriteExclusive).await,
        Act::Preempt(key, other) => {
            reservations
                .preempt(key, other, Type::ExclusiveAccess, true)
                .await
        }
        Act::Clear(key) => reservations.clear(key).await,
    }
}

impl Hosts {
    /// A host connects and does something.
    async fn does(&self, host: &'static str, path: &Path, what: Act) -> Result<(), IoError> {
        let options = path.options(host);
        let handle = self.0.handle();
        let called = handle.call(move || async move {
            let device = NvmfDevice::open(options).await.map_err(|_| IoError::PathDown)?;
            let queue = device.clone().attach().await?;
            act(what, &device.reservations().await?, &queue).await
        });
        called.await.expect("the reactor runs")
    }

    /// The same where the volume is served, however long it takes until it is; whether no reservation was in
    /// the way.
    async fn may(&self, cluster: &Cluster, host: &'static str, what: Act) -> bool {
        until("it is served", || async {
            let path = served(cluster).await;
            match self.does(host, &path, what).await {
                Ok(()) => Some(true),
                Err(IoError::ReservationConflict) => Some(false),
                Err(_) => None,
            }
        })
        .await
    }
}

/// Where a volume is served now.
async fn served(cluster: &Cluster) -> Path {
    until("it is told where it is served", || async {
        let target = cluster.status("r").await?.target_node;
        let published: PublishVolumeResponse = cluster.publish("r", OTHER, false).await;
        let path = published.paths.iter().find(|path| path.node == target)?;
        Some(Path::new(&path.address, &published.subsystem_nqn))
    })
    .await
}

/// Kills engines, and brings them back.
pub async fn reservations_outlive_their_target(cluster: &Cluster) {
    cluster.create("r", policy(3, 2)).await;
    let before = cluster.until_healthy("r").await;
    cluster.publish("r", HOST, false).await;
    let hosts = Hosts(reactor());
    assert!(hosts.may(cluster, HOST, Act::Register(11)).await);
    assert!(hosts.may(cluster, HOST, Act::Acquire(11)).await);
    assert!(!hosts.may(cluster, OTHER, Act::Write).await);

    cluster.kill(&before.target_node);
    cluster
        .until_status("r", "it is served elsewhere", |status| {
            status.target_node != before.target_node && status.epoch > before.epoch
        })
        .await;
    assert!(!hosts.may(cluster, OTHER, Act::Write).await);
    assert!(hosts.may(cluster, HOST, Act::Write).await);
    assert!(hosts.may(cluster, OTHER, Act::Register(22)).await);
    assert!(hosts.may(cluster, OTHER, Act::Preempt(22, 11)).await);
    assert!(!hosts.may(cluster, HOST, Act::Write).await);
    cluster.restart(&before.target_node);
    cluster.until_healthy("r").await;

    // Nobody could tell the next target of a change.
    let path = served(cluster).await;
    cluster.kill_control();
    assert_eq!(hosts.does(OTHER, &path, Act::Write).await, Ok(()));
    assert_eq!(
        hosts.does(OTHER, &path, Act::Clear(22)).await,
        Err(IoError::Internal)
    );
    let refused = hosts.does(HOST, &path, Act::Write).await;
    assert_eq!(refused, Err(IoError::ReservationConflict));
    cluster.start_control();

    let nodes = cluster.nodes();
    nodes.iter().for_each(|node| cluster.kill(node));
    nodes.iter().for_each(|node| cluster.restart(node));
    assert!(!hosts.may(cluster, HOST, Act::Write).await);
    assert!(hosts.may(cluster, OTHER, Act::Write).await);
    assert!(hosts.may(cluster, OTHER, Act::Clear(22)).await);
    assert!(hosts.may(cluster, HOST, Act::Write).await);
    cluster.unpublish("r", None).await;
    cluster.delete("r").await;
}
