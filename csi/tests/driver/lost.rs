//! Snapshots that are lost: for orchestrators they are none, and nobody is left to wait for them.

use std::sync::Arc;

use pollux_api::control::v1::volumes_client::VolumesClient;
use pollux_api::control::v1::{
    self as control, GetVolumeRequest, Metadata, Snapshot, SnapshotState, VolumeSpec, VolumeState,
};
use pollux_api::csi::v1::volume_content_source::{SnapshotSource, Type as SourceType, VolumeSource};
use pollux_api::csi::v1::*;
use pollux_control::model::{Guarded, Kind, Record};
use pollux_control::store::{MemoryStore, Store, StoreError, Transaction};
use pollux_csi::names::clone_snapshot;
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

/// Waits until a snapshot or volume is there.
async fn appears(pollux: &Pollux, name: &str) {
    loop {
        let (volumes, snapshots) = pollux.names().await;
        if volumes.iter().chain(&snapshots).any(|there| there == name) {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_lost_is_none() {
    let store = MemoryStore::default();
    let pollux = Pollux::start_on(Arc::new(store.clone())).await.ready().await;
    let mut driver = pollux.controller("default").await;
    driver.create_volume(new_volume("v")).await.expect("it is new");
    driver.create_snapshot(take("s")).await.expect("it is new");
    driver.create_snapshot(take("t")).await.expect("it is new");
    lose(&store, "s").await;

    refused(
        driver.create_volume(of_snapshot("copy")).await,
        Code::NotFound,
        "a copy",
    );
    // Not "not ready yet", which is asked about for ever, and not one of a later instant.
    refused(
        driver.create_snapshot(take("s")).await,
        Code::FailedPrecondition,
        "the same again",
    );
    let one = GetSnapshotRequest {
        snapshot_id: "s".to_owned(),
        ..Default::default()
    };
    refused(driver.get_snapshot(one).await, Code::NotFound, "looked at");
    for (id, expected) in [("s", &[][..]), ("t", &["t"]), ("", &["t"])] {
        let listed = ListSnapshotsRequest {
            snapshot_id: id.to_owned(),
            ..Default::default()
        };
        let listed = driver.list_snapshots(listed).await.expect("it answers");
        let entries = listed.into_inner().entries.into_iter();
        let names: Vec<String> = entries
            .filter_map(|entry| Some(entry.snapshot?.snapshot_id))
            .collect();
        assert_eq!(names, expected, "{id}");
    }
    let mut metadata = pollux.metadata("default").await;
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
        let old = DeleteSnapshotRequest {
            snapshot_id: name.to_owned(),
            ..Default::default()
        };
        driver.delete_snapshot(old).await.expect("it can be deleted");
    }
    // Its name is free again.
    driver.create_snapshot(take("s")).await.expect("it is new");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_a_copy_of_it_is_told_and_nothing_is_left() {
    let store = MemoryStore::default();
    let pollux = Pollux::start_on(Arc::new(store.clone())).await.ready().await;
    let mut driver = pollux.controller("default").await;
    driver.create_volume(new_volume("v")).await.expect("it is new");
    driver.create_snapshot(take("s")).await.expect("it is new");
    set_deaf(&pollux, true);
    let mut second = driver.clone();
    let waiting = tokio::spawn(async move { second.create_volume(of_snapshot("copy")).await });
    appears(&pollux, "copy").await;
    lose(&store, "s").await;
    refused(
        waiting.await.expect("no panic"),
        Code::NotFound,
        "a copy that waits",
    );
    set_deaf(&pollux, false);
    // The copy is being deleted, and needs it until then.
    disappears(&pollux, "copy").await;
    let old = DeleteSnapshotRequest {
        snapshot_id: "s".to_owned(),
        ..Default::default()
    };
    driver.delete_snapshot(old).await.expect("it goes after the copy");
    let old = DeleteVolumeRequest {
        volume_id: "v".to_owned(),
        ..Default::default()
    };
    driver.delete_volume(old).await.expect("nothing needs it");
    pollux.require_empty().await;
}

/// The snapshot that a copy of a volume is made of was promised to nobody: another one is taken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_a_volume_is_begun_anew() {
    let store = MemoryStore::default();
    let pollux = Pollux::start_on(Arc::new(store.clone())).await.ready().await;
    let mut driver = pollux.controller("default").await;
    driver.create_volume(new_volume("v")).await.expect("it is new");
    set_deaf(&pollux, true);
    let of_volume = || {
        let source = VolumeSource {
            volume_id: "v".to_owned(),
        };
        copy("copy", SourceType::Volume(source))
    };
    let mut second = driver.clone();
    let request = of_volume();
    let waiting = tokio::spawn(async move { second.create_volume(request).await });
    appears(&pollux, &clone_snapshot("copy")).await;
    lose(&store, &clone_snapshot("copy")).await;
    refused(
        waiting.await.expect("no panic"),
        Code::Aborted,
        "a copy that waits",
    );
    set_deaf(&pollux, false);
    let made = again("another snapshot is taken", || {
        let (mut driver, request) = (driver.clone(), of_volume());
        async move { driver.create_volume(request).await }
    });
    made.await;
    for name in ["copy", "v"] {
        let old = DeleteVolumeRequest {
            volume_id: name.to_owned(),
            ..Default::default()
        };
        driver.delete_volume(old).await.expect("nothing needs it");
    }
    pollux.require_empty().await;
}

/// Waits until the control plane knows that a volume will never be made.
async fn fails(pollux: &Pollux, name: &str) {
    let mut volumes = VolumesClient::new(pollux.channel.clone());
    loop {
        let name = name.to_owned();
        let volume = volumes.get_volume(GetVolumeRequest { name }).await;
        let status = volume.expect("it is there").into_inner().status;
        if status.is_some_and(|status| status.state() == VolumeState::Failed) {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

/// Waits until a snapshot or volume is there no more.
async fn disappears(pollux: &Pollux, name: &str) {
    loop {
        let (volumes, snapshots) = pollux.names().await;
        if volumes.iter().chain(&snapshots).all(|there| there != name) {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
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
    let store = MemoryStore::default();
    let pollux = Pollux::start_on(Arc::new(store.clone())).await.ready().await;
    let mut driver = pollux.controller("default").await;
    driver.create_volume(new_volume("v")).await.expect("it is new");
    driver.create_snapshot(take("s")).await.expect("it is new");
    set_deaf(&pollux, true);
    store_copy(&pollux).await;
    lose(&store, "s").await;
    fails(&pollux, "copy").await;
    set_deaf(&pollux, false);

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
    let mut groups = pollux.groups("default").await;
    let publish = driver.controller_publish_volume(published()).await;
    told(publish.map(drop), "published");
    told(driver.controller_expand_volume(grow).await.map(drop), "grown");
    told(driver.create_snapshot(snapshot).await.map(drop), "a snapshot");
    told(driver.create_volume(second).await.map(drop), "a copy");
    told(
        groups.create_volume_group_snapshot(both).await.map(drop),
        "several",
    );

    // It was let to nobody, so that it can be deleted.
    let gone = DeleteVolumeRequest {
        volume_id: "copy".to_owned(),
        ..Default::default()
    };
    driver.delete_volume(gone).await.expect("nobody has it");
}

/// The same of who waits already: it is not published later to whoever has given up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_what_will_never_be_made_is_told_why() {
    let store = MemoryStore::default();
    let pollux = Pollux::start_on(Arc::new(store.clone())).await.ready().await;
    let mut driver = pollux.controller("default").await;
    driver.create_volume(new_volume("v")).await.expect("it is new");
    driver.create_snapshot(take("s")).await.expect("it is new");
    set_deaf(&pollux, true);
    store_copy(&pollux).await;
    let mut second = driver.clone();
    let waiting = tokio::spawn(async move { second.controller_publish_volume(published()).await });
    let mut volumes = VolumesClient::new(pollux.channel.clone());
    loop {
        let name = "copy".to_owned();
        let volume = volumes.get_volume(GetVolumeRequest { name }).await;
        let spec = volume.expect("it is there").into_inner().spec;
        if spec.is_some_and(|spec| !spec.hosts.is_empty()) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    lose(&store, "s").await;
    fails(&pollux, "copy").await;
    refused(waiting.await.expect("no panic"), Code::NotFound, "published");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_of_which_one_is_lost_are_not_all_there() {
    let store = MemoryStore::default();
    let pollux = Pollux::start_on(Arc::new(store.clone())).await.ready().await;
    let mut driver = pollux.controller("default").await;
    for name in ["a", "b"] {
        driver.create_volume(new_volume(name)).await.expect("it is new");
    }
    let mut groups = pollux.groups("default").await;
    let both = CreateVolumeGroupSnapshotRequest {
        name: "g".to_owned(),
        source_volume_ids: vec!["a".to_owned(), "b".to_owned()],
        ..Default::default()
    };
    let taken = groups.create_volume_group_snapshot(both.clone()).await;
    let taken = taken.expect("it is new").into_inner().group_snapshot;
    assert!(taken.expect("it has one").ready_to_use);
    lose(&store, "g.a").await;
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
    let copied = driver
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
