//! The calls about health of CSI 1.13: from the control plane's view, and from a node's.

use std::collections::BTreeMap;

use pollux_api::control::v1::VolumePolicy;
use pollux_api::csi::v1::*;
use pollux_csi::names::label;
use tonic::Code;

use crate::common::{Driver, Pollux, new_mirror, new_volume};

fn of(id: &str) -> ControllerGetVolumeHealthRequest {
    ControllerGetVolumeHealthRequest {
        volume_id: id.to_owned(),
        ..Default::default()
    }
}

/// A volume for which there is no place: of more copies than there are engines.
async fn stuck(pollux: &Pollux, name: &str) {
    let policy = VolumePolicy {
        replicas: Some(5),
        ..VolumePolicy::default()
    };
    let labels = BTreeMap::from([(label::CLUSTER.to_owned(), "default".to_owned())]);
    pollux.by_hand(name, labels, Some(policy)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_with_which_something_is_wrong_are_told() {
    let pollux = Pollux::start().await.ready().await;
    let mut driver = pollux.controller("default").await;
    driver.create_volume(new_volume("well")).await.expect("it is new");
    let well = driver.controller_get_volume_health(of("well")).await;
    let well = well
        .expect("it is there")
        .into_inner()
        .volume_health
        .expect("it has one");
    assert_eq!((well.volume_id.as_str(), well.health_statuses.len()), ("well", 0));
    let all = ControllerListVolumeHealthRequest::default();
    let listed = driver
        .controller_list_volume_health(all.clone())
        .await
        .expect("it answers");
    assert_eq!(listed.into_inner(), ControllerListVolumeHealthResponse::default());
    for name in ["stuck-1", "stuck-2", "stuck-3"] {
        stuck(&pollux, name).await;
    }
    let ill = driver.controller_get_volume_health(of("stuck-1")).await;
    let ill = ill
        .expect("it is there")
        .into_inner()
        .volume_health
        .expect("it has one");
    let entry = ill.health_statuses.first().expect("something is wrong");
    assert_eq!(entry.status(), VolumeHealthErrorType::Inaccessible);
    assert_eq!(entry.reason, "NoPlace");
    assert!(entry.message.contains("no place"), "{}", entry.message);
    // By pages, and without the one that is well.
    let mut seen = Vec::new();
    let mut starting_token = String::new();
    loop {
        let page = ControllerListVolumeHealthRequest {
            max_entries: 2,
            starting_token,
            ..Default::default()
        };
        let page = driver
            .controller_list_volume_health(page)
            .await
            .expect("it answers")
            .into_inner();
        assert!(page.entries.len() <= 2);
        seen.extend(page.entries.into_iter().map(|health| health.volume_id));
        starting_token = page.next_token;
        if starting_token.is_empty() {
            break;
        }
    }
    assert_eq!(seen, ["stuck-1", "stuck-2", "stuck-3"]);
    // Those of other clusters are none of ours.
    let mut west = pollux.controller("west").await;
    let listed = west
        .controller_list_volume_health(all.clone())
        .await
        .expect("it answers");
    assert!(listed.into_inner().entries.is_empty());
    for (id, code) in [("", Code::InvalidArgument), ("none", Code::NotFound)] {
        let refused = driver.controller_get_volume_health(of(id)).await;
        assert_eq!(refused.expect_err("there is none").code(), code, "{id:?}");
    }
    let wrong = ControllerListVolumeHealthRequest {
        starting_token: "nonsense".to_owned(),
        ..all
    };
    let refused = driver.controller_list_volume_health(wrong).await;
    assert_eq!(refused.expect_err("it is no token").code(), Code::Aborted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_tells_which_paths_and_targets_are_missing() {
    let pollux = Pollux::start().await.ready().await;
    let driver = Driver::start(&pollux, "n1").await;
    let stage = driver.published(&pollux, new_mirror("v")).await;
    let mut node = driver.client.clone();
    let health = NodeGetVolumeHealthRequest {
        volume_id: "v".to_owned(),
        ..Default::default()
    };
    let refused = node.node_get_volume_health(health.clone()).await;
    assert_eq!(refused.expect_err("it is not staged").code(), Code::NotFound);
    let refused = node
        .node_get_volume_health(NodeGetVolumeHealthRequest::default())
        .await;
    assert_eq!(refused.expect_err("it names none").code(), Code::InvalidArgument);
    node.node_stage_volume(stage).await.expect("it can be staged");
    let connected = driver.machine.state().controllers.len();
    assert_eq!(connected, 3);
    for (lost, volume_reasons, storage_reason) in [
        (0, &[][..], None),
        (
            1,
            &["PathsMissing"][..],
            Some((StorageHealthErrorType::StorageDegraded, "TargetsMissing")),
        ),
        (
            3,
            &["NoPathServes", "PathsMissing"][..],
            Some((StorageHealthErrorType::StorageUnreachable, "NoTargetReached")),
        ),
    ] {
        for (_, path) in driver.machine.state().controllers.iter_mut().take(lost) {
            path.state = "connecting".to_owned();
        }
        let told = node
            .node_get_volume_health(health.clone())
            .await
            .expect("it is staged")
            .into_inner();
        let told = told.volume_health.expect("it has one");
        let reasons: Vec<&str> = told
            .health_statuses
            .iter()
            .map(|entry| entry.reason.as_str())
            .collect();
        assert_eq!(
            (told.volume_id.as_str(), reasons.as_slice()),
            ("v", volume_reasons)
        );
        let told = node
            .node_get_storage_health(NodeGetStorageHealthRequest::default())
            .await;
        let told = told.expect("it answers").into_inner().backend_health;
        let found = told.first().map(|entry| (entry.status(), entry.reason.as_str()));
        assert_eq!(found, storage_reason, "{lost} lost");
    }
    // A file system that has stopped taking writes is told too.
    for mount in &mut driver.machine.state().mounts {
        mount.read_only_everywhere = true;
    }
    let told = node
        .node_get_volume_health(health)
        .await
        .expect("it is staged")
        .into_inner();
    let told = told.volume_health.expect("it has one");
    assert!(
        told.health_statuses
            .iter()
            .any(|entry| entry.reason == "ReadOnlyFileSystem")
    );
}
