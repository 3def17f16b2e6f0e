//! Snapshots of several volumes, asked for once, twice, at once, and wrongly.

use pollux_api::csi::v1::volume_content_source::{SnapshotSource, Type as SourceType};
use pollux_api::csi::v1::*;
use tonic::Code;

use crate::common::{GIB, Pollux, new_volume};

fn take(name: &str, volumes: &[&str]) -> CreateVolumeGroupSnapshotRequest {
    CreateVolumeGroupSnapshotRequest {
        name: name.to_owned(),
        source_volume_ids: volumes.iter().map(|volume| (*volume).to_owned()).collect(),
        ..Default::default()
    }
}

fn delete(id: &str, parts: &[&str]) -> DeleteVolumeGroupSnapshotRequest {
    DeleteVolumeGroupSnapshotRequest {
        group_snapshot_id: id.to_owned(),
        snapshot_ids: parts.iter().map(|part| (*part).to_owned()).collect(),
        ..Default::default()
    }
}

fn get(id: &str, parts: &[&str]) -> GetVolumeGroupSnapshotRequest {
    GetVolumeGroupSnapshotRequest {
        group_snapshot_id: id.to_owned(),
        snapshot_ids: parts.iter().map(|part| (*part).to_owned()).collect(),
        ..Default::default()
    }
}

fn code<T>(answer: Result<T, tonic::Status>) -> Code {
    answer.map_or_else(|status| status.code(), |_| Code::Ok)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_of_several_come_and_go_together() {
    let pollux = Pollux::start().await.ready().await;
    let mut driver = pollux.controller("default").await;
    for name in ["a", "b", "c"] {
        driver.create_volume(new_volume(name)).await.expect("it is new");
    }
    let (mut first, mut second) = (pollux.groups("default").await, pollux.groups("default").await);
    let (one, two) = tokio::join!(
        first.create_volume_group_snapshot(take("g", &["a", "b"])),
        second.create_volume_group_snapshot(take("g", &["b", "a"]))
    );
    let (one, two) = (one.expect("they are one"), two.expect("they are one"));
    let taken = one.into_inner().group_snapshot.expect("it has one");
    assert_eq!(two.into_inner().group_snapshot.as_ref(), Some(&taken));
    assert!(taken.ready_to_use && taken.group_snapshot_id == "g");
    let parts: Vec<_> = taken
        .snapshots
        .iter()
        .map(|part| part.snapshot_id.as_str())
        .collect();
    assert_eq!(parts, ["g.a", "g.b"]);
    for part in &taken.snapshots {
        assert!(
            part.ready_to_use && part.size_bytes == GIB && part.group_snapshot_id == "g",
            "{part:?}"
        );
    }
    let found = first.get_volume_group_snapshot(get("g", &["g.b", "g.a"])).await;
    assert_eq!(
        found.expect("it is there").into_inner().group_snapshot,
        Some(taken)
    );

    for (why, request, expected) in [
        ("other volumes", take("g", &["a", "c"]), Code::AlreadyExists),
        (
            "a volume that is not there",
            take("h", &["a", "none"]),
            Code::NotFound,
        ),
        ("no volumes", take("h", &[]), Code::InvalidArgument),
        ("no name", take("", &["a"]), Code::InvalidArgument),
    ] {
        assert_eq!(
            code(first.create_volume_group_snapshot(request).await),
            expected,
            "{why}"
        );
    }
    for (why, request, expected) in [
        ("no id", get("", &[]), Code::InvalidArgument),
        ("none", get("none", &[]), Code::NotFound),
        ("other parts", get("g", &["g.a"]), Code::InvalidArgument),
    ] {
        assert_eq!(
            code(first.get_volume_group_snapshot(request).await),
            expected,
            "{why}"
        );
    }
    for (why, request, expected) in [
        ("no id", delete("", &[]), Code::InvalidArgument),
        (
            "other parts",
            delete("g", &["g.a", "g.b", "g.c"]),
            Code::InvalidArgument,
        ),
        ("none", delete("none", &["g.a"]), Code::Ok),
    ] {
        assert_eq!(
            code(first.delete_volume_group_snapshot(request).await),
            expected,
            "{why}"
        );
    }
    // What belongs to another cluster is not there.
    let mut other = pollux.groups("other").await;
    assert_eq!(
        code(other.get_volume_group_snapshot(get("g", &[])).await),
        Code::NotFound
    );
    assert_eq!(
        code(other.delete_volume_group_snapshot(delete("g", &[])).await),
        Code::Ok
    );
    // A part does not go alone.
    let part = DeleteSnapshotRequest {
        snapshot_id: "g.a".to_owned(),
        ..Default::default()
    };
    assert_eq!(code(driver.delete_snapshot(part).await), Code::InvalidArgument);
    let copy = CreateVolumeRequest {
        volume_content_source: Some(VolumeContentSource {
            r#type: Some(SourceType::Snapshot(SnapshotSource {
                snapshot_id: "g.b".to_owned(),
            })),
        }),
        ..new_volume("copy")
    };
    driver.create_volume(copy).await.expect("the parts are all there");

    for _ in 0..2 {
        let request = delete("g", &["g.a", "g.b"]);
        assert_eq!(code(first.delete_volume_group_snapshot(request).await), Code::Ok);
    }
    assert!(pollux.names().await.1.is_empty());
    for id in ["a", "b", "c", "copy"] {
        let request = DeleteVolumeRequest {
            volume_id: id.to_owned(),
            ..Default::default()
        };
        driver.delete_volume(request).await.expect("nothing needs it");
    }
    pollux.require_empty().await;
}
