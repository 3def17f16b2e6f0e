//! Snapshots that are lost: for orchestrators they are none, and nobody is left to wait for them.

use std::sync::Arc;
use std::time::Duration;

use pollux_api::control::v1::volumes_client::VolumesClient;
use pollux_api::control::v1::{
    self as control, GetVolumeRequest, Metadata, Snapshot, SnapshotState, VolumeSpec, VolumeState,
};
use pollux_api::csi::v1::controller_client::ControllerClient;
use pollux_api::csi::v1::volume_content_source::{SnapshotSource, Type as SourceType, VolumeSource};
use pollux_api::csi::v1::*;
use pollux_control::model::{Guarded, Kind, Record};
use pollux_control::store::{MemoryStore, Store, StoreError, Transaction};
use pollux_csi::names::clone_snapshot;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::common::{GIB, Pollux, again, bytes, mount, new_volume};

const NODE: &str = "nqn.2026-11.io.pollux:node:default:n1";

/// All replicas lose a snapshot, as the control plane has seen it.
async fn lose(store: &MemoryStore, name: &str) {
    loop {
        let entry = store.get(&Kind::Snapshot.key(name)).await;
        let entry = entry.expect("the store answers").expect("it is there");
        let mut snapshot = Snapshot::read(&entry).expect("it can be read");
        snapshot.status.as_mut().expect("it has one").state = SnapshotState::Lost.into();
        let mut transaction = Transaction::default();
        transaction.put(&snapshot);
        match store.commit(transaction).await {
            Ok(_) => return,
            // The control plane was quicker.
            Err(StoreError::Conflict { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

fn take(name: &str) -> CreateSnapshotRequest {
    CreateSnapshotRequest {
        source_volume_id: "v".to_owned(),
        name: name.to_owned(),
        ..Default::default()
    }
}

fn copy(name: &str, source: SourceType) -> CreateVolumeRequest {
    CreateVolumeRequest {
        volume_content_source: Some(VolumeContentSource { r#type: Some(source) }),
        ..new_volume(name)
    }
}

fn of_snapshot(name: &str) -> CreateVolumeRequest {
    let source = SnapshotSource {
        snapshot_id: "s".to_owned(),
    };
    copy(name, SourceType::Snapshot(source))
}

fn refused(answer: Result<impl Sized, Status>, code: Code, what: &str) {
    let status = answer.err().unwrap_or_else(|| panic!("{what}: it is refused"));
    assert_eq!(status.code(), code, "{what}: {status}");
    assert!(status.message().contains("is lost"), "{what}: {status}");
}

/// Has engines hear nothing of what they are told.
fn set_deaf(pollux: &Pollux, deaf: bool) {
    for engine in pollux.fleet.lock().engines.values_mut() {
        engine.deaf = deaf;
    }
}

/// Waits until something is so.
async fn until(is_so: impl AsyncFn() -> bool) {
    while !is_so().await {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Whether there is a snapshot or volume.
async fn is_there(pollux: &Pollux, name: &str) -> bool {
    let (volumes, snapshots) = pollux.names().await;
    volumes.iter().chain(&snapshots).any(|there| there == name)
}

async fn stored(pollux: &Pollux, name: &str) -> control::Volume {
    let name = name.to_owned();
    let mut volumes = VolumesClient::new(pollux.channel.clone());
    let volume = volumes.get_volume(GetVolumeRequest { name }).await;
    volume.expect("it is there").into_inner()
}

/// Waits until the control plane knows that the copy will never be made.
async fn copy_fails(pollux: &Pollux) {
    let has_failed = async || {
        let status = stored(pollux, "copy").await.status;
        status.is_some_and(|status| status.state() == VolumeState::Failed)
    };
    until(has_failed).await;
}

/// A driver whose store can be tampered with.
struct Ground {
    store: MemoryStore,
    pollux: Pollux,
    driver: ControllerClient<Channel>,
}

impl Ground {
    /// With these volumes, and snapshots of `v`.
    async fn with(volumes: &[&str], snapshots: &[&str]) -> Self {
        let store = MemoryStore::default();
        let pollux = Pollux::start_on(Arc::new(store.clone())).await.ready().await;
        let mut driver = pollux.controller("default").await;
        for name in volumes {
            driver.create_volume(new_volume(name)).await.expect("it is new");
        }
        for name in snapshots {
            driver.create_snapshot(take(name)).await.expect("it is new");
        }
        Self {
            store,
            pollux,
            driver,
        }
    }

    async fn delete_volume(&mut self, name: &str) {
        let old = DeleteVolumeRequest {
            volume_id: name.to_owned(),
            ..Default::default()
        };
        self.driver.delete_volume(old).await.expect("nothing needs it");
    }

    async fn delete_snapshot(&mut self, name: &str) {
        let old = DeleteSnapshotRequest {
            snapshot_id: name.to_owned(),
            ..Default::default()
        };
        self.driver.delete_snapshot(old).await.expect("nothing needs it");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_lost_is_none() {
    let mut ground = Ground::with(&["v"], &["s", "t"]).await;
    lose(&ground.store, "s").await;

    refused(
        ground.driver.create_volume(of_snapshot("copy")).await,
        Code::NotFound,
        "a copy",
    );
    // Not "not ready yet", which is asked about for ever, and not one of a later instant.
    refused(
        ground.driver.create_snapshot(take("s")).await,
        Code::FailedPrecondition,
        "the same again",
    );
    let one = GetSnapshotRequest {
        snapshot_id: "s".to_owned(),
        ..Default::default()
    };
    refused(ground.driver.get_snapshot(one).await, Code::NotFound, "looked at");
    for (id, expected) in [("s", &[][..]), ("t", &["t"]), ("", &["t"])] {
        let listed = ListSnapshotsRequest {
            snapshot_id: id.to_owned(),
            ..Default::default()
        };
        let listed = ground.driver.list_snapshots(listed).await.expect("it answers");
        let entries = listed.into_inner().entries.into_iter();
        let names: Vec<String> = entries
            .filter_map(|entry| Some(entry.snapshot?.snapshot_id))
            .collect();
        assert_eq!(names, expected, "{id}");
    }
    let mut metadata = ground.pollux.metadata("default").await;
    let blocks = GetMetadataAllocatedRequest {
        snapshot_id: "s".to_owned(),
        ..Default::default()
    };
    refused(
        metadata.get_metadata_allocated(blocks).await,
        Code::NotFound,
        "its blocks",
    );

    for name in ["s", "t"] {
        ground.delete_snapshot(name).await;
    }
    // Its name is free again.
    ground.driver.create_snapshot(take("s")).await.expect("it is new");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_a_copy_of_it_is_told_and_nothing_is_left() {
    let mut ground = Ground::with(&["v"], &["s"]).await;
    set_deaf(&ground.pollux, true);
    let mut second = ground.driver.clone();
    let waiting = tokio::spawn(async move { second.create_volume(of_snapshot("copy")).await });
    until(async || is_there(&ground.pollux, "copy").await).await;
    lose(&ground.store, "s").await;
    refused(
        waiting.await.expect("no panic"),
        Code::NotFound,
        "a copy that waits",
    );
    set_deaf(&ground.pollux, false);
    // The copy is being deleted, and needs it until then.
    until(async || !is_there(&ground.pollux, "copy").await).await;
    ground.delete_snapshot("s").await;
    ground.delete_volume("v").await;
    ground.pollux.require_empty().await;
}

/// The snapshot that a copy of a volume is made of was promised to nobody: another one is taken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_a_volume_is_begun_anew() {
    let mut ground = Ground::with(&["v"], &[]).await;
    set_deaf(&ground.pollux, true);
    let of_volume = || {
        let source = VolumeSource {
            volume_id: "v".to_owned(),
        };
        copy("copy", SourceType::Volume(source))
    };
    let mut second = ground.driver.clone();
    let request = of_volume();
    let waiting = tokio::spawn(async move { second.create_volume(request).await });
    until(async || is_there(&ground.pollux, &clone_snapshot("copy")).await).await;
    lose(&ground.store, &clone_snapshot("copy")).await;
    refused(
        waiting.await.expect("no panic"),
        Code::Aborted,
        "a copy that waits",
    );
    set_deaf(&ground.pollux, false);
    let made = again("another snapshot is taken", || {
        let (mut driver, request) = (ground.driver.clone(), of_volume());
        async move { driver.create_volume(request).await }
    });
    made.await;
    for name in ["copy", "v"] {
        ground.delete_volume(name).await;
    }
    ground.pollux.require_empty().await;
}

/// Has a copy stored that nobody waits for, who would delete it.
async fn store_copy(pollux: &Pollux) {
    let volume = control::Volume {
        metadata: Some(Metadata {
            name: "copy".to_owned(),
            ..Metadata::default()
        }),
        spec: Some(VolumeSpec {
            size_bytes: 1 << 30,
            source_snapshot: "s".to_owned(),
            ..VolumeSpec::default()
        }),
        status: None,
    };
    let request = control::CreateVolumeRequest {
        volume: Some(volume),
        wait_us: None,
    };
    let stored = VolumesClient::new(pollux.channel.clone())
        .create_volume(request)
        .await;
    stored.expect("its source is there");
}

fn published() -> ControllerPublishVolumeRequest {
    ControllerPublishVolumeRequest {
        volume_id: "copy".to_owned(),
        node_id: NODE.to_owned(),
        volume_capability: Some(mount("")),
        ..Default::default()
    }
}

/// Whoever would wait for a volume that will never be made is told why at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_wants_something_of_what_will_never_be_made_is_told_why() {
    let mut ground = Ground::with(&["v"], &["s"]).await;
    set_deaf(&ground.pollux, true);
    store_copy(&ground.pollux).await;
    lose(&ground.store, "s").await;
    copy_fails(&ground.pollux).await;
    set_deaf(&ground.pollux, false);

    let told = |answer: Result<(), Status>, what: &str| {
        refused(answer, Code::NotFound, what);
    };
    let grow = ControllerExpandVolumeRequest {
        volume_id: "copy".to_owned(),
        capacity_range: bytes(2 * GIB),
        ..Default::default()
    };
    let snapshot = CreateSnapshotRequest {
        source_volume_id: "copy".to_owned(),
        ..take("t")
    };
    let source = VolumeSource {
        volume_id: "copy".to_owned(),
    };
    let second = copy("second", SourceType::Volume(source));
    let both = CreateVolumeGroupSnapshotRequest {
        name: "g".to_owned(),
        source_volume_ids: vec!["copy".to_owned(), "v".to_owned()],
        ..Default::default()
    };
    let mut groups = ground.pollux.groups("default").await;
    let publish = ground.driver.controller_publish_volume(published()).await;
    told(publish.map(drop), "published");
    told(
        ground.driver.controller_expand_volume(grow).await.map(drop),
        "grown",
    );
    told(
        ground.driver.create_snapshot(snapshot).await.map(drop),
        "a snapshot",
    );
    told(ground.driver.create_volume(second).await.map(drop), "a copy");
    told(
        groups.create_volume_group_snapshot(both).await.map(drop),
        "several",
    );

    // It was let to nobody, so that it can be deleted.
    ground.delete_volume("copy").await;
}

/// The same of who waits already: it is not published later to whoever has given up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_what_will_never_be_made_is_told_why() {
    let ground = Ground::with(&["v"], &["s"]).await;
    set_deaf(&ground.pollux, true);
    store_copy(&ground.pollux).await;
    let mut second = ground.driver.clone();
    let waiting = tokio::spawn(async move { second.controller_publish_volume(published()).await });
    let is_published = async || {
        let spec = stored(&ground.pollux, "copy").await.spec;
        spec.is_some_and(|spec| !spec.hosts.is_empty())
    };
    until(is_published).await;
    lose(&ground.store, "s").await;
    copy_fails(&ground.pollux).await;
    refused(waiting.await.expect("no panic"), Code::NotFound, "published");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_of_which_one_is_lost_are_not_all_there() {
    let mut ground = Ground::with(&["a", "b"], &[]).await;
    let mut groups = ground.pollux.groups("default").await;
    let both = CreateVolumeGroupSnapshotRequest {
        name: "g".to_owned(),
        source_volume_ids: vec!["a".to_owned(), "b".to_owned()],
        ..Default::default()
    };
    let taken = groups.create_volume_group_snapshot(both.clone()).await;
    let taken = taken.expect("it is new").into_inner().group_snapshot;
    assert!(taken.expect("it has one").ready_to_use);
    lose(&ground.store, "g.a").await;
    refused(
        groups.create_volume_group_snapshot(both).await,
        Code::FailedPrecondition,
        "the same again",
    );
    let all = GetVolumeGroupSnapshotRequest {
        group_snapshot_id: "g".to_owned(),
        ..Default::default()
    };
    refused(
        groups.get_volume_group_snapshot(all).await,
        Code::NotFound,
        "looked at",
    );
    // The other one is whole.
    let source = SnapshotSource {
        snapshot_id: "g.b".to_owned(),
    };
    let copied = ground
        .driver
        .create_volume(copy("copy", SourceType::Snapshot(source)))
        .await;
    copied.expect("nothing of it is lost");
    let old = DeleteVolumeGroupSnapshotRequest {
        group_snapshot_id: "g".to_owned(),
        ..Default::default()
    };
    let deleted = groups.delete_volume_group_snapshot(old).await;
    deleted.expect("it can be deleted");
}
