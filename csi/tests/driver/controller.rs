//! Volumes and snapshots, asked for once, twice, at once, and wrongly.

use pollux_api::csi::v1::volume_capability::access_mode::Mode;
use pollux_api::csi::v1::volume_content_source::{SnapshotSource, Type as SourceType};
use pollux_api::csi::v1::*;
use tonic::Code;

use crate::common::{GIB, MIB, Pollux, block, bytes, mount, new_volume, parameters};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_volume_asked_for_at_once_is_one() {
    let pollux = Pollux::start().await.ready().await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..12 {
        // Each has a driver of its own: nothing is kept in it.
        let mut driver = pollux.controller("default").await;
        tasks.spawn(async move { driver.create_volume(new_volume("pvc-1")).await });
    }
    while let Some(done) = tasks.join_next().await {
        let volume = done
            .expect("no panic")
            .expect("it is one volume")
            .into_inner()
            .volume;
        let volume = volume.expect("it has one");
        assert_eq!((volume.volume_id.as_str(), volume.capacity_bytes), ("pvc-1", GIB));
    }
    assert_eq!(pollux.names().await.0, ["pvc-1"]);
    let mut driver = pollux.controller("default").await;
    let larger = CreateVolumeRequest {
        capacity_range: bytes(2 * GIB),
        ..new_volume("pvc-1")
    };
    let other = CreateVolumeRequest {
        parameters: parameters(&[("replicas", "2")]),
        ..new_volume("pvc-1")
    };
    for different in [larger, other] {
        let refused = driver
            .create_volume(different)
            .await
            .expect_err("there is another");
        assert_eq!(refused.code(), Code::AlreadyExists, "{refused}");
    }
    let mut other_cluster = pollux.controller("west").await;
    let refused = other_cluster.create_volume(new_volume("pvc-1")).await;
    assert_eq!(refused.expect_err("it is not theirs").code(), Code::AlreadyExists);
    let delete = || DeleteVolumeRequest {
        volume_id: "pvc-1".to_owned(),
        ..Default::default()
    };
    let refused = other_cluster.delete_volume(delete()).await;
    assert_eq!(
        refused.expect_err("it is not theirs").code(),
        Code::FailedPrecondition
    );
    let listed = other_cluster.list_volumes(ListVolumesRequest::default()).await;
    assert_eq!(listed.expect("it answers").into_inner().entries, []);
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let mut driver = driver.clone();
        tasks.spawn(async move { driver.delete_volume(delete()).await });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("no panic").expect("it is deleted");
    }
    pollux.require_empty().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_gets_the_code_of_the_specification() {
    let pollux = Pollux::start().await.ready().await;
    let mut driver = pollux.controller("default").await;
    let volume = new_volume("v");
    let range = |required_bytes, limit_bytes| {
        Some(CapacityRange {
            required_bytes,
            limit_bytes,
        })
    };
    for (request, code) in [
        (
            CreateVolumeRequest {
                name: String::new(),
                ..volume.clone()
            },
            Code::InvalidArgument,
        ),
        (
            CreateVolumeRequest {
                name: "x".repeat(129),
                ..volume.clone()
            },
            Code::InvalidArgument,
        ),
        (
            CreateVolumeRequest {
                volume_capabilities: vec![],
                ..volume.clone()
            },
            Code::InvalidArgument,
        ),
        (
            CreateVolumeRequest {
                volume_capabilities: vec![mount("ntfs")],
                ..volume.clone()
            },
            Code::InvalidArgument,
        ),
        (
            CreateVolumeRequest {
                capacity_range: range(-1, 0),
                ..volume.clone()
            },
            Code::InvalidArgument,
        ),
        (
            CreateVolumeRequest {
                capacity_range: range(GIB, MIB),
                ..volume.clone()
            },
            Code::OutOfRange,
        ),
        (
            CreateVolumeRequest {
                capacity_range: range(i64::MAX, 0),
                ..volume.clone()
            },
            Code::OutOfRange,
        ),
        (
            CreateVolumeRequest {
                capacity_range: range(200 << 40, 0),
                ..volume.clone()
            },
            Code::ResourceExhausted,
        ),
        (
            CreateVolumeRequest {
                parameters: parameters(&[("replicas", "4")]),
                ..volume.clone()
            },
            Code::ResourceExhausted,
        ),
        (
            CreateVolumeRequest {
                parameters: parameters(&[("size", "7")]),
                ..volume.clone()
            },
            Code::InvalidArgument,
        ),
        (
            CreateVolumeRequest {
                parameters: parameters(&[("template", "none")]),
                ..volume.clone()
            },
            Code::InvalidArgument,
        ),
        (
            CreateVolumeRequest {
                volume_content_source: Some(VolumeContentSource::default()),
                ..volume.clone()
            },
            Code::InvalidArgument,
        ),
    ] {
        let refused = driver
            .create_volume(request.clone())
            .await
            .expect_err("it is wrong");
        assert_eq!(refused.code(), code, "{request:?}: {refused}");
    }
    // Nothing is left of what was refused.
    assert_eq!(pollux.names().await, (vec![], vec![]));
    let expand = |volume_id: &str, capacity_range| ControllerExpandVolumeRequest {
        volume_id: volume_id.to_owned(),
        capacity_range,
        ..Default::default()
    };
    let refused = driver.controller_expand_volume(expand("none", bytes(GIB))).await;
    assert_eq!(refused.expect_err("it is not there").code(), Code::NotFound);
    driver.create_volume(volume).await.expect("it is right");
    let refused = driver.controller_expand_volume(expand("v", range(0, MIB))).await;
    assert_eq!(refused.expect_err("it cannot shrink").code(), Code::OutOfRange);
    let grown = driver.controller_expand_volume(expand("v", bytes(3 * GIB))).await;
    assert_eq!(grown.expect("it grows").into_inner().capacity_bytes, 3 * GIB);
    let again = driver.controller_expand_volume(expand("v", bytes(2 * GIB))).await;
    assert_eq!(
        again.expect("it is large enough").into_inner().capacity_bytes,
        3 * GIB
    );
    let modify = ControllerModifyVolumeRequest {
        volume_id: "v".to_owned(),
        mutable_parameters: parameters(&[("template", "none")]),
        ..Default::default()
    };
    let refused = driver.controller_modify_volume(modify).await;
    assert_eq!(
        refused.expect_err("there is no such template").code(),
        Code::InvalidArgument
    );
    let asked = ValidateVolumeCapabilitiesRequest {
        volume_id: "v".to_owned(),
        volume_capabilities: vec![mount("ntfs")],
        ..Default::default()
    };
    let answer = driver
        .validate_volume_capabilities(asked)
        .await
        .expect("it is there");
    let answer = answer.into_inner();
    assert!(
        answer.confirmed.is_none() && answer.message.contains("ntfs"),
        "{answer:?}"
    );
    for token in ["nonsense", "x:y", "\u{0}"] {
        let list = ListVolumesRequest {
            starting_token: token.to_owned(),
            ..Default::default()
        };
        let refused = driver.list_volumes(list).await.expect_err("it is no token");
        assert_eq!(refused.code(), Code::Aborted);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_have_pages_that_leave_nothing_out() {
    let pollux = Pollux::start().await.ready().await;
    let mut driver = pollux.controller("default").await;
    let mut west = pollux.controller("west").await;
    for number in 0..7 {
        let tagged = CreateVolumeRequest {
            parameters: parameters(&[("csi.storage.k8s.io/pvc/name", "claim")]),
            ..new_volume(&format!("v{number}"))
        };
        driver.create_volume(tagged).await.expect("it is new");
        west.create_volume(new_volume(&format!("v{number}-west")))
            .await
            .expect("it is new");
    }
    let mut seen = Vec::new();
    let mut starting_token = String::new();
    loop {
        let page = ListVolumesRequest {
            max_entries: 3,
            starting_token,
        };
        let page = driver.list_volumes(page).await.expect("it answers").into_inner();
        assert!(page.entries.len() <= 3);
        for entry in page.entries {
            let status = entry.status.expect("it has one");
            assert!(!status.volume_condition.expect("it has one").abnormal);
            seen.push(entry.volume.expect("it has one").volume_id);
        }
        starting_token = page.next_token;
        if starting_token.is_empty() {
            break;
        }
    }
    assert_eq!(
        seen,
        (0..7).map(|number| format!("v{number}")).collect::<Vec<_>>()
    );
    let get = |id: &str| ControllerGetVolumeRequest {
        volume_id: id.to_owned(),
    };
    assert!(driver.controller_get_volume(get("v1")).await.is_ok());
    let refused = driver.controller_get_volume(get("v1-west")).await;
    assert_eq!(refused.expect_err("it is not ours").code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_come_of_snapshots_and_go_before_or_after_them() {
    let pollux = Pollux::start().await.ready().await;
    let mut driver = pollux.controller("default").await;
    driver.create_volume(new_volume("v")).await.expect("it is new");
    let snapshot = |name: &str, of: &str| CreateSnapshotRequest {
        source_volume_id: of.to_owned(),
        name: name.to_owned(),
        ..Default::default()
    };
    let refused = driver.create_snapshot(snapshot("s", "none")).await;
    assert_eq!(refused.expect_err("there is no volume").code(), Code::NotFound);
    let (mut first, mut second) = (driver.clone(), driver.clone());
    let (one, two) = tokio::join!(
        first.create_snapshot(snapshot("s", "v")),
        second.create_snapshot(snapshot("s", "v"))
    );
    let one = one
        .expect("it is one snapshot")
        .into_inner()
        .snapshot
        .expect("it has one");
    let two = two
        .expect("it is one snapshot")
        .into_inner()
        .snapshot
        .expect("it has one");
    assert!(one.ready_to_use && one.size_bytes == GIB && one.snapshot_id == two.snapshot_id);
    let copy = |name: &str, size| CreateVolumeRequest {
        capacity_range: bytes(size),
        volume_content_source: Some(VolumeContentSource {
            r#type: Some(SourceType::Snapshot(SnapshotSource {
                snapshot_id: "s".to_owned(),
            })),
        }),
        ..new_volume(name)
    };
    let grown = driver
        .create_volume(copy("copy", 5 * GIB))
        .await
        .expect("it is new");
    let grown = grown.into_inner().volume.expect("it has one");
    assert_eq!(grown.capacity_bytes, 5 * GIB);
    assert_eq!(grown.content_source, copy("", 0).volume_content_source);
    // Nobody said how large: as large as its source.
    let same = driver
        .create_volume(copy("same", 0))
        .await
        .expect("it is new")
        .into_inner();
    assert_eq!(same.volume.expect("it has one").capacity_bytes, GIB);
    let small = CreateVolumeRequest {
        capacity_range: Some(CapacityRange {
            required_bytes: 0,
            limit_bytes: 5 * MIB,
        }),
        ..copy("small", 0)
    };
    let refused = driver
        .create_volume(small)
        .await
        .expect_err("its source is larger");
    assert_eq!(refused.code(), Code::OutOfRange);
    let delete = |id: &str| DeleteVolumeRequest {
        volume_id: id.to_owned(),
        ..Default::default()
    };
    let refused = driver
        .delete_volume(delete("v"))
        .await
        .expect_err("it has a snapshot");
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    let listed = ListSnapshotsRequest {
        source_volume_id: "v".to_owned(),
        ..Default::default()
    };
    let listed = driver
        .list_snapshots(listed)
        .await
        .expect("it answers")
        .into_inner();
    assert_eq!(listed.entries.len(), 1);
    let old = || DeleteSnapshotRequest {
        snapshot_id: "s".to_owned(),
        ..Default::default()
    };
    driver.delete_snapshot(old()).await.expect("it is there");
    driver.delete_snapshot(old()).await.expect("it is gone");
    for id in ["v", "copy", "same"] {
        driver.delete_volume(delete(id)).await.expect("nothing needs it");
    }
    pollux.require_empty().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn places_and_capacity_follow_the_class() {
    let pollux = Pollux::start().await.ready().await;
    let mut driver = pollux.controller("default").await;
    let zone = |name: &str| Topology {
        segments: parameters(&[("topology.pollux.io/zone", name)]),
    };
    let required = CreateVolumeRequest {
        parameters: parameters(&[("topologyMode", "require")]),
        accessibility_requirements: Some(TopologyRequirement {
            requisite: vec![zone("zb")],
            preferred: vec![],
        }),
        ..new_volume("there")
    };
    let made = driver
        .create_volume(required.clone())
        .await
        .expect("there is a place");
    assert_eq!(
        made.into_inner().volume.expect("it has one").accessible_topology,
        [zone("zb")]
    );
    let nowhere = CreateVolumeRequest {
        name: "nowhere".to_owned(),
        accessibility_requirements: Some(TopologyRequirement {
            requisite: vec![zone("zq")],
            preferred: vec![],
        }),
        ..required
    };
    let refused = driver
        .create_volume(nowhere)
        .await
        .expect_err("there is no such zone");
    assert_eq!(refused.code(), Code::ResourceExhausted);
    for number in 0..3 {
        // Preferred, and from everywhere all the same.
        let preferred = CreateVolumeRequest {
            accessibility_requirements: Some(TopologyRequirement {
                requisite: vec![zone("za"), zone("zc")],
                preferred: vec![zone("zc")],
            }),
            ..new_volume(&format!("near-{number}"))
        };
        let made = driver.create_volume(preferred).await.expect("there is a place");
        assert_eq!(
            made.into_inner().volume.expect("it has one").accessible_topology,
            []
        );
    }
    let near = {
        let engines = pollux.fleet.lock();
        engines.engines["c"].replicas.len()
    };
    assert_eq!(near, 3);
    let capacity = |place: Option<Topology>, replicas: &str| GetCapacityRequest {
        parameters: parameters(&[("replicas", replicas), ("topologyMode", "require")]),
        accessible_topology: place,
        ..Default::default()
    };
    let mut ask = async |place, replicas| {
        let answer = driver
            .get_capacity(capacity(place, replicas))
            .await
            .expect("it answers");
        answer.into_inner()
    };
    let all = ask(None, "1").await;
    // 10 TiB in each pool, of which twice as much may be promised.
    let largest = all.maximum_volume_size.expect("it is told").value;
    assert!((19 << 40..=20 << 40).contains(&largest), "{largest}");
    assert!(all.available_capacity >= 27 << 40, "{all:?}");
    assert_eq!(
        ask(Some(zone("zq")), "1")
            .await
            .maximum_volume_size
            .expect("it is told")
            .value,
        0
    );
    assert_eq!(
        ask(None, "4")
            .await
            .maximum_volume_size
            .expect("it is told")
            .value,
        0
    );
    let refused = GetCapacityRequest {
        volume_capabilities: vec![mount("ntfs"), block(Mode::SingleNodeWriter)],
        ..Default::default()
    };
    let refused = driver
        .get_capacity(refused)
        .await
        .expect("it answers")
        .into_inner();
    assert_eq!(refused.available_capacity, 0);
}
