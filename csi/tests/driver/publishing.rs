//! Which nodes may use a volume.

use std::collections::BTreeMap;

use pollux_api::csi::v1::volume_capability::access_mode::Mode;
use pollux_api::csi::v1::*;
use tonic::Code;

use crate::common::{GIB, Pollux, VOLUMES_MAX, block, bytes, mount, new_volume};

fn node(number: u32) -> String {
    format!("nqn.2026-11.io.pollux:node:default:n{number}")
}

fn publish(node_id: &str, capability: VolumeCapability) -> ControllerPublishVolumeRequest {
    ControllerPublishVolumeRequest {
        volume_id: "v".to_owned(),
        node_id: node_id.to_owned(),
        volume_capability: Some(capability),
        ..Default::default()
    }
}

fn unpublish(node_id: &str) -> ControllerUnpublishVolumeRequest {
    ControllerUnpublishVolumeRequest {
        volume_id: "v".to_owned(),
        node_id: node_id.to_owned(),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_at_a_time_writes_a_file_system() {
    let pollux = Pollux::start().await.ready().await;
    let mut driver = pollux.controller("default").await;
    driver.create_volume(new_volume("v")).await.expect("it is new");
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..8 {
        let mut driver = driver.clone();
        tasks.spawn(async move {
            driver
                .controller_publish_volume(publish(&node(number), mount("")))
                .await
        });
    }
    let mut contexts = Vec::new();
    while let Some(done) = tasks.join_next().await {
        match done.expect("no panic") {
            Ok(answer) => contexts.push(answer.into_inner().publish_context),
            Err(status) => assert_eq!(status.code(), Code::FailedPrecondition, "{status}"),
        }
    }
    assert_eq!(contexts.len(), 1, "one node only");
    assert_eq!(contexts[0]["readOnly"], "false");
    let list = driver
        .list_volumes(ListVolumesRequest::default())
        .await
        .expect("it answers");
    let nodes = &list.into_inner().entries[0]
        .status
        .clone()
        .expect("it has one")
        .published_node_ids;
    assert_eq!(nodes.len(), 1);
    let again = driver
        .controller_publish_volume(publish(&nodes[0], mount("")))
        .await;
    assert_eq!(again.expect("it is so").into_inner().publish_context, contexts[0]);
    let reading = ControllerPublishVolumeRequest {
        readonly: true,
        ..publish(&nodes[0], mount(""))
    };
    let refused = driver
        .controller_publish_volume(reading)
        .await
        .expect_err("it may write");
    assert_eq!(refused.code(), Code::AlreadyExists);
    let delete = DeleteVolumeRequest {
        volume_id: "v".to_owned(),
        ..Default::default()
    };
    let refused = driver
        .delete_volume(delete.clone())
        .await
        .expect_err("it is in use");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    // No node of ours, and one that has it not: neither has it afterwards.
    for other in ["fake", "nqn.2026-11.io.pollux:node:west:n1", &node(99)] {
        driver
            .controller_unpublish_volume(unpublish(other))
            .await
            .expect("it has it not");
    }
    driver
        .controller_unpublish_volume(unpublish(&nodes[0]))
        .await
        .expect("it has it");
    driver
        .controller_unpublish_volume(unpublish(&nodes[0]))
        .await
        .expect("it has it no more");
    driver.delete_volume(delete).await.expect("nobody uses it");
    driver
        .controller_unpublish_volume(unpublish(&nodes[0]))
        .await
        .expect("it is not there");
    let refused = driver
        .controller_publish_volume(publish(&node(1), mount("")))
        .await;
    assert_eq!(refused.expect_err("it is not there").code(), Code::NotFound);
    pollux.require_empty().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn block_devices_are_shared_and_readers_do_not_meet_writers() {
    let pollux = Pollux::start().await.ready().await;
    let mut driver = pollux.controller("default").await;
    let request = CreateVolumeRequest {
        volume_capabilities: vec![block(Mode::MultiNodeMultiWriter)],
        capacity_range: bytes(GIB),
        ..new_volume("v")
    };
    driver.create_volume(request).await.expect("it is new");
    for number in 1..=2 {
        let both = publish(&node(number), block(Mode::MultiNodeMultiWriter));
        driver
            .controller_publish_volume(both)
            .await
            .expect("both may write");
    }
    let alone = publish(&node(3), block(Mode::SingleNodeWriter));
    let refused = driver
        .controller_publish_volume(alone)
        .await
        .expect_err("others have it");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let reader = publish(&node(3), mount_readers());
    let refused = driver.controller_publish_volume(reader.clone()).await;
    assert_eq!(
        refused.expect_err("others write").code(),
        Code::FailedPrecondition
    );
    // All nodes of this cluster at once.
    driver
        .controller_unpublish_volume(unpublish(""))
        .await
        .expect("they have it");
    let read = driver
        .controller_publish_volume(reader)
        .await
        .expect("nobody writes");
    assert_eq!(read.into_inner().publish_context["readOnly"], "true");
    let second = publish(&node(4), mount_readers());
    driver
        .controller_publish_volume(second)
        .await
        .expect("nobody writes");
    let writer = publish(&node(5), block(Mode::MultiNodeSingleWriter));
    let refused = driver
        .controller_publish_volume(writer.clone())
        .await
        .expect_err("readers asked for no writer");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    driver
        .controller_unpublish_volume(unpublish(""))
        .await
        .expect("they have it");
    driver
        .controller_publish_volume(writer)
        .await
        .expect("no other writes");
    let another = publish(&node(6), block(Mode::MultiNodeSingleWriter));
    let refused = driver
        .controller_publish_volume(another)
        .await
        .expect_err("another writes");
    assert_eq!(refused.code(), Code::FailedPrecondition);
}

fn mount_readers() -> VolumeCapability {
    let mut capability = mount("");
    let mode = capability.access_mode.as_mut().expect("it has one");
    mode.mode = Mode::MultiNodeReaderOnly.into();
    capability
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_a_volume_alone_stays_alone() {
    let pollux = Pollux::start().await.ready().await;
    let mut driver = pollux.controller("default").await;
    driver.create_volume(new_volume("v")).await.expect("it is new");
    driver
        .controller_publish_volume(publish(&node(1), mount("")))
        .await
        .expect("nobody has it");
    for mode in [Mode::MultiNodeMultiWriter, Mode::MultiNodeSingleWriter] {
        let refused = driver
            .controller_publish_volume(publish(&node(2), block(mode)))
            .await;
        assert_eq!(
            refused.expect_err("another has it alone").code(),
            Code::FailedPrecondition
        );
    }
    driver
        .controller_unpublish_volume(unpublish(&node(1)))
        .await
        .expect("it has it");
    let both = publish(&node(2), block(Mode::MultiNodeMultiWriter));
    driver
        .controller_publish_volume(both)
        .await
        .expect("nobody has it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_that_was_made_without_the_driver_is_used_by_its_name() {
    let pollux = Pollux::start().await.ready().await;
    pollux.by_hand("by-hand", BTreeMap::new(), None).await;
    let mut driver = pollux.controller("default").await;
    let validate = ValidateVolumeCapabilitiesRequest {
        volume_id: "by-hand".to_owned(),
        volume_capabilities: vec![mount("")],
        ..Default::default()
    };
    let valid = driver
        .validate_volume_capabilities(validate)
        .await
        .expect("it is there");
    assert!(valid.into_inner().confirmed.is_some());
    let publish = |id: &str| ControllerPublishVolumeRequest {
        volume_id: id.to_owned(),
        ..publish(&node(1), mount(""))
    };
    driver
        .controller_publish_volume(publish("by-hand"))
        .await
        .expect("nobody uses it");
    let unpublish = ControllerUnpublishVolumeRequest {
        volume_id: "by-hand".to_owned(),
        ..unpublish(&node(1))
    };
    driver
        .controller_unpublish_volume(unpublish)
        .await
        .expect("it is published");
    let refused = driver.controller_publish_volume(publish("nobody-made-it")).await;
    assert_eq!(refused.expect_err("there is none").code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_gets_no_more_volumes_than_it_can_use() {
    let pollux = Pollux::start().await.ready().await;
    let mut driver = pollux.counting_controller("default").await;
    let of = |number: u32, node_number: u32| ControllerPublishVolumeRequest {
        volume_id: format!("v{number}"),
        ..publish(&node(node_number), mount(""))
    };
    for number in 0..=VOLUMES_MAX {
        let volume = new_volume(&format!("v{number}"));
        driver.create_volume(volume).await.expect("it is new");
    }
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..=VOLUMES_MAX {
        let mut driver = driver.clone();
        tasks.spawn(async move { (number, driver.controller_publish_volume(of(number, 1)).await) });
    }
    let (mut given, mut refused) = (Vec::new(), Vec::new());
    while let Some(done) = tasks.join_next().await {
        match done.expect("no panic") {
            (number, Ok(_)) => given.push(number),
            (number, Err(status)) => {
                assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
                refused.push(number);
            }
        }
    }
    let &[refused] = &refused[..] else {
        panic!("one is too many: {refused:?}")
    };
    // Those that it has it has when it is asked again, and other nodes have room.
    let again = driver.controller_publish_volume(of(given[0], 1)).await;
    again.expect("it has it");
    let elsewhere = driver.controller_publish_volume(of(refused, 2)).await;
    elsewhere.expect("it is the first one there");
    let full = driver.controller_publish_volume(of(refused, 1)).await;
    assert_eq!(full.expect_err("it has enough").code(), Code::ResourceExhausted);
    for (number, node_number) in [(given[0], 1), (refused, 2)] {
        let request = ControllerUnpublishVolumeRequest {
            volume_id: format!("v{number}"),
            ..unpublish(&node(node_number))
        };
        driver
            .controller_unpublish_volume(request)
            .await
            .expect("it has it");
    }
    let room = driver.controller_publish_volume(of(refused, 1)).await;
    room.expect("there is room again");
}
