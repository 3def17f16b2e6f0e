//! Nodes and volumes that authenticate to each other.

use std::collections::HashMap;

use pollux_api::csi::v1::{ControllerPublishVolumeRequest, CreateVolumeRequest, NodeStageVolumeRequest};
use pollux_csi::node::NodeService;
use pollux_csi::secrets::{CONTROLLER, HOST};
use tonic::Code;

use crate::common::{Driver, Pollux, mount, new_mirror, settings};

const SECRET: &str = "DHHC-1:00:ia6zGodOr4SEG0Zzaw398rpY0wqipUWj4jWjUh4HWUz6aQ2n:";

fn secrets(hash: &str) -> HashMap<String, String> {
    let host = SECRET.replace(":00:", &format!(":{hash}:"));
    let given = [(HOST, host), (CONTROLLER, SECRET.to_owned())];
    given.map(|(key, value)| (key.to_owned(), value)).into()
}

#[tokio::test]
async fn secrets_go_from_calls_to_engines_and_the_kernel_and_nowhere_else() {
    let pollux = Pollux::start().await.ready().await;
    let mut controller = pollux.controller("default").await;
    let capability = mount("");
    let create = CreateVolumeRequest {
        volume_capabilities: vec![capability.clone()],
        ..new_mirror("v")
    };
    controller.create_volume(create).await.expect("it is new");
    let driver = Driver::start(&pollux, "n1").await;
    let publish = |secrets| ControllerPublishVolumeRequest {
        volume_id: "v".to_owned(),
        node_id: driver.node_id.clone(),
        volume_capability: Some(capability.clone()),
        secrets,
        ..Default::default()
    };
    let misspelt = HashMap::from([("hostsecret".to_owned(), SECRET.to_owned())]);
    for wrong in [misspelt.clone(), secrets("09")] {
        let refused = controller.controller_publish_volume(publish(wrong)).await;
        let refused = refused.expect_err("it is no secret");
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains("secrets") && !refused.message().contains("ia6z"));
    }
    let published = controller.controller_publish_volume(publish(secrets("01"))).await;
    let context = published.expect("nobody uses it").into_inner().publish_context;
    assert!(!format!("{context:?}").contains("DHHC"), "{context:?}");
    // Once more without: it is as it was.
    let again = controller
        .controller_publish_volume(publish(HashMap::new()))
        .await;
    assert_eq!(
        again.expect("it is published").into_inner().publish_context,
        context
    );

    let staging = driver.directory.path().join("staging").display().to_string();
    let stage = |secrets| NodeStageVolumeRequest {
        volume_id: "v".to_owned(),
        publish_context: context.clone(),
        staging_target_path: staging.clone(),
        volume_capability: Some(capability.clone()),
        secrets,
        ..Default::default()
    };
    let mut client = driver.client.clone();
    let refused = client.node_stage_volume(stage(misspelt)).await;
    assert_eq!(refused.expect_err("a wrong key").code(), Code::InvalidArgument);
    for wrong in [HashMap::new(), secrets("02")] {
        let refused = client
            .node_stage_volume(stage(wrong))
            .await
            .expect_err("a wrong secret");
        assert!(!refused.message().contains("ia6z"), "{refused:?}");
    }
    assert!(driver.machine.state().controllers.is_empty());
    client
        .node_stage_volume(stage(secrets("01")))
        .await
        .expect("they are right");
    assert_eq!(driver.machine.state().controllers.len(), 3);

    // Nothing of them is on the node's disk.
    let records = driver.directory.path().join("records");
    let mut read = 0;
    for entry in std::fs::read_dir(&records).expect("records") {
        let text = std::fs::read_to_string(entry.expect("a record").path()).expect("a text");
        assert!(!text.contains("DHHC"), "{text}");
        read += 1;
    }
    assert_eq!(read, 1);

    // A path that is lost comes back, also after the service was started again: the kernel has them.
    let lose = |count: usize| driver.machine.state().controllers.truncate(count);
    lose(2);
    driver.service.connect_missing().await;
    assert_eq!(driver.machine.state().controllers.len(), 3);
    lose(1);
    let restarted =
        NodeService::new(driver.machine.clone(), settings("n1", records)).expect("it can be made");
    restarted.connect_missing().await;
    assert_eq!(driver.machine.state().controllers.len(), 3);
    // With no path left they are gone, until it is staged again.
    lose(0);
    let again = NodeService::new(
        driver.machine.clone(),
        settings("n1", driver.directory.path().join("records")),
    )
    .expect("it can be made");
    again.connect_missing().await;
    assert!(driver.machine.state().controllers.is_empty());
    client
        .node_stage_volume(stage(secrets("01")))
        .await
        .expect("they are right");
    assert_eq!(driver.machine.state().controllers.len(), 3);
}
