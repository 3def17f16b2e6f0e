//! A volume that goes back to a snapshot, and engines that are killed in the middle of it: what they tell of
//! how far it is shows that they were.

use std::ops::Range;

use pollux_api::control::v1::measurements_client::MeasurementsClient;
use pollux_api::control::v1::{
    GetMeasurementsRequest, PublishVolumeResponse, RollBackProgress, RollBackState, RollBackVolumeRequest,
    VolumeRollBack,
};
use pollux_device::{BlockDevice, BlockDeviceExt, Device, Gather, IoError};
use pollux_hugepages::Buffer;
use pollux_nvme::initiator::device::NvmfDevice;
use pollux_reactor::real::ReactorThread;

use crate::cluster::{Cluster, HOST, Layout, until};
use crate::instant::{BLOCK_BYTES, Path, reactor};
use crate::scenarios::{Witness, each, policy};

const VOLUME: &str = "v";
const SNAPSHOT: &str = "before";

/// No region of it is without data, so that all of it is compared, which takes some seconds. Programs that
/// are not built for tests are faster.
const VOLUME_BYTES: u64 = if cfg!(debug_assertions) { 1 << 30 } else { 8 << 30 };

/// Blocks that are written, one in each region: what was written is always left to be taken back.
const PLACES: u64 = VOLUME_BYTES / REGION_BYTES;

/// What is copied and compared together.
const REGION_BYTES: u64 = 1 << 20;

/// So many of them are written or read before anybody loses patience.
const STEP: usize = 64;

/// A block that is none of those.
const ELSEWHERE: u64 = 1;

/// So many times it is done, until an engine was killed in the middle of it: whoever asks how far it is may
/// hear of it when it is over.
const ROUNDS: u64 = 20;

/// What a place holds, by its number: in the snapshot every second one holds nothing.
fn in_snapshot(place: u64) -> u64 {
    if place.is_multiple_of(2) { place + 1 } else { 0 }
}

/// All places, a few at a time.
fn steps() -> impl Iterator<Item = Range<u64>> {
    let starts = (0..PLACES).step_by(STEP);
    starts.map(|start| start..start + STEP as u64)
}

fn block_of(place: u64) -> u64 {
    place * (VOLUME_BYTES / BLOCK_BYTES as u64 / PLACES)
}

/// A host on this machine.
struct Hosts(ReactorThread);

impl Hosts {
    /// Connects to a volume, and does something with it.
    async fn with<T: Send + 'static>(
        &self,
        path: &Path,
        act: impl AsyncFnOnce(&dyn BlockDevice) -> Result<T, IoError> + Send + 'static,
    ) -> Result<T, IoError> {
        let options = path.options(HOST);
        let handle = self.0.handle();
        let called = handle.call(move || async move {
            let device = NvmfDevice::open(options).await.map_err(|_| IoError::PathDown)?;
            act(&*device.attach().await?).await
        });
        called.await.expect("the reactor runs")
    }
}

async fn put(device: &dyn BlockDevice, block: u64, number: u64) -> Result<(), IoError> {
    let mut buffer = Buffer::from_heap(BLOCK_BYTES);
    for part in buffer.chunks_exact_mut(8) {
        part.copy_from_slice(&number.to_le_bytes());
    }
    device.write(block, Gather::from(buffer.freeze()), false).await
}

/// What a block holds; it has to be the same all over.
async fn look(device: &dyn BlockDevice, block: u64) -> Result<u64, IoError> {
    let data = device.read(block, Buffer::from_heap(BLOCK_BYTES)).await?;
    let number = u64::from_le_bytes(*data.first_chunk().expect("a block"));
    let mut parts = data.chunks_exact(8);
    assert!(parts.all(|part| part == number.to_le_bytes()), "block {block}");
    Ok(number)
}

/// Whose engine is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whom {
    Target,
    Replica,
}

/// The volume, and who uses it.
struct Volume<'a> {
    cluster: &'a Cluster,
    hosts: Hosts,
}

impl Volume<'_> {
    /// Does something where it is served, however long it takes until it is.
    async fn with<T: Send + 'static>(
        &self,
        published: &PublishVolumeResponse,
        act: impl AsyncFn(&dyn BlockDevice) -> Result<T, IoError> + Clone + Send + 'static,
    ) -> T {
        until("it is served", || async {
            let target = self.cluster.status(VOLUME).await?.target_node;
            let act = act.clone();
            let act = async move |device: &dyn BlockDevice| act(device).await;
            self.hosts.with(&path(published, &target)?, act).await.ok()
        })
        .await
    }

    /// Writes all places.
    async fn fill(&self, published: &PublishVolumeResponse, number_of: fn(u64) -> u64) {
        for places in steps() {
            let fill = async move |device: &dyn BlockDevice| {
                for place in places.clone().filter(|&place| number_of(place) > 0) {
                    put(device, block_of(place), number_of(place)).await?;
                }
                device.flush().await
            };
            self.with(published, fill).await;
        }
    }

    /// How far a request is, as an engine tells.
    async fn progress(&self, node: &str, request: &RollBackVolumeRequest) -> Option<RollBackProgress> {
        let node = node.to_owned();
        let mut measurements = MeasurementsClient::new(self.cluster.channel.clone());
        let told = measurements
            .get_measurements(GetMeasurementsRequest { node })
            .await;
        let nodes = told.ok()?.into_inner().nodes.into_iter();
        let mut mirrors = nodes
            .filter_map(|node| node.measurements)
            .flat_map(|told| told.mirrors);
        let progress = mirrors.find(|mirror| mirror.volume == VOLUME)?.roll_back?;
        (progress.request_uid == request.request_uid).then_some(progress)
    }

    /// Asks for a roll-back, again and again; what is known of it.
    async fn ask(&self, request: &RollBackVolumeRequest) -> Option<VolumeRollBack> {
        let asked = self.cluster.volumes().roll_back_volume(request.clone()).await;
        asked.ok()?.into_inner().roll_back
    }

    async fn is_done(&self, request: &RollBackVolumeRequest) -> Option<bool> {
        let known = self.ask(request).await?;
        assert_ne!(known.state(), RollBackState::Failed, "{known:?}");
        Some(known.state() == RollBackState::Done)
    }

    /// Writes all over the volume, has it go back, and kills an engine when a part is done and most is not.
    /// Whether it was in the middle of it when that was dead.
    async fn goes_back(&self, whom: Whom, round: u64) -> bool {
        let cluster = self.cluster;
        let target = cluster.until_healthy(VOLUME).await.target_node;
        let published = cluster.publish(VOLUME, HOST, false).await;
        self.fill(&published, |place| place + 1000).await;
        cluster.unpublish(VOLUME, None).await;
        let request = &RollBackVolumeRequest {
            name: VOLUME.to_owned(),
            snapshot: SNAPSHOT.to_owned(),
            request_uid: format!("6f6c6c75-7820-4261-8b0{}-{round:012}", whom as u32),
            wait_us: None,
        };
        until("it is asked for", || self.ask(request)).await;
        let seen = until("it is in the middle, or done", || async {
            let progress = self.progress(&target, request).await;
            let is_middle = |told: &RollBackProgress| {
                told.compared_bytes * 8 > told.size_bytes && told.compared_bytes * 2 < told.size_bytes
            };
            match progress.filter(is_middle) {
                Some(progress) => Some(Some(progress)),
                None => self.is_done(request).await?.then_some(None),
            }
        })
        .await;
        let Some(seen) = seen else { return false };
        assert_eq!(seen.size_bytes, VOLUME_BYTES);
        let others: Vec<String> = cluster
            .nodes()
            .into_iter()
            .filter(|node| *node != target)
            .collect();
        let (killed, witnesses) = match whom {
            Whom::Target => (target, others),
            Whom::Replica => (others[0].clone(), vec![target]),
        };
        cluster.kill(&killed);
        // Whoever goes on with it then had not done it before.
        let was_middle = until("somebody goes on with it, or it is done", || async {
            for witness in &witnesses {
                if self.progress(witness, request).await.is_some() {
                    return Some(true);
                }
            }
            self.is_done(request).await?.then_some(false)
        })
        .await;
        until("it is what it was", || async {
            self.is_done(request).await?.then_some(())
        })
        .await;
        cluster.restart(&killed);
        cluster.until_healthy(VOLUME).await;
        was_middle
    }

    /// Each replica alone has what the snapshot has.
    async fn is_back_everywhere(&self) {
        let cluster = self.cluster;
        let published = cluster.publish(VOLUME, HOST, false).await;
        for node in cluster.nodes() {
            let others: Vec<String> = cluster
                .nodes()
                .into_iter()
                .filter(|other| *other != node)
                .collect();
            others.iter().for_each(|other| cluster.kill(other));
            cluster
                .until_status(VOLUME, "it is served there", |status| status.target_node == node)
                .await;
            for places in steps() {
                let expected: Vec<u64> = places.clone().map(in_snapshot).collect();
                let look = async move |device: &dyn BlockDevice| {
                    let mut found = Vec::new();
                    for place in places.clone() {
                        found.push(look(device, block_of(place)).await?);
                    }
                    Ok(found)
                };
                assert_eq!(self.with(&published, look).await, expected, "on {node}");
            }
            // Those that are away are known to be from then on.
            let put = async |device: &dyn BlockDevice| put(device, ELSEWHERE, 1).await;
            self.with(&published, put).await;
            others.iter().for_each(|other| cluster.restart(other));
            cluster.until_healthy(VOLUME).await;
        }
        cluster.unpublish(VOLUME, None).await;
    }

    async fn is_killed_in_the_middle(&self, whom: Whom) {
        for round in 0..ROUNDS {
            if self.goes_back(whom, round).await {
                return self.is_back_everywhere().await;
            }
        }
        panic!("{whom:?}: it was never in the middle, {ROUNDS} times");
    }
}

fn path(published: &PublishVolumeResponse, node: &str) -> Option<Path> {
    let path = published.paths.iter().find(|path| path.node == node)?;
    Some(Path::new(&path.address, &published.subsystem_nqn))
}

async fn the_target_is_killed_in_the_middle(volume: &Volume<'_>) {
    volume.is_killed_in_the_middle(Whom::Target).await;
}

async fn a_replica_is_killed_in_the_middle(volume: &Volume<'_>) {
    volume.is_killed_in_the_middle(Whom::Replica).await;
}

/// Runs it on a cluster of its own, whose pools have room for a volume that takes long to go through.
pub async fn run() {
    let layout = Layout {
        pool_bytes: VOLUME_BYTES,
        ..Layout::default()
    };
    let witness = Witness(Cluster::with(layout).await);
    let cluster = &witness.0;
    cluster.create_sized(VOLUME, policy(3, 1), "", VOLUME_BYTES).await;
    cluster.until_healthy(VOLUME).await;
    let volume = &Volume {
        cluster,
        hosts: Hosts(reactor()),
    };
    let published = cluster.publish(VOLUME, HOST, false).await;
    volume.fill(&published, in_snapshot).await;
    cluster.snapshot(SNAPSHOT, VOLUME).await;
    cluster.unpublish(VOLUME, None).await;
    each!(volume:
        the_target_is_killed_in_the_middle,
        a_replica_is_killed_in_the_middle,
    );
}
