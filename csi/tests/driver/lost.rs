//! Snapshots that are lost: for orchestrators they are none, and nobody is left to wait for them.

use std::sync::Arc;

use pollux_api::control::v1::{Snapshot, SnapshotState};
use pollux_api::csi::v1::volume_content_source::{SnapshotSource, Type as SourceType, VolumeSource};
use pollux_api::csi::v1::*;
use pollux_control::model::{Guarded, Kind, Record};
use pollux_control::store::{MemoryStore, Store, StoreError, Transaction};
use pollux_csi::names::clone_snapshot;
use tonic::{Code, Status};

use crate::common::{Pollux, again, new_volume};

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
    let old = DeleteSnapshotRequest {
        snapshot_id: "s".to_owned(),
        ..Default::default()
    };
    let gone = again("it goes after the copy", || {
        let (mut driver, old) = (driver.clone(), old.clone());
        async move { driver.delete_snapshot(old).await }
    });
    gone.await;
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
