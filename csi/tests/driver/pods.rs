//! Volumes tell which pods use them, whatever the cluster's API server does.

use std::time::Duration;

use pollux_api::control::v1::GetVolumeRequest;
use pollux_api::control::v1::volumes_client::VolumesClient;
use pollux_api::csi::v1::controller_client::ControllerClient;
use pollux_api::csi::v1::volume_capability::access_mode::Mode;
use pollux_api::csi::v1::*;
use pollux_csi::names::label;
use pollux_csi::pods::{PodLabels, PodTimes, PodsOfCluster};
use serde_json::json;
use tokio::net::TcpSocket;
use tokio::sync::watch;
use tonic::transport::Channel;

use crate::common::api_server::{ApiServer, Mood, kubeconfig};
use crate::common::{Pollux, block, new_volume, parameters};

/// Looks that have to be made often, and notes that are never given up.
const TIMES: PodTimes = PodTimes {
    pass: Duration::from_millis(20),
    first_look: Duration::from_millis(5),
    patience: Duration::from_secs(3600),
};

/// No look at all volumes but the first one.
const NOTES_ALONE: PodTimes = PodTimes {
    pass: Duration::from_secs(3600),
    ..TIMES
};

/// Notes that are forgotten at once: only looks at all volumes set things right.
const LOOKS_ALONE: PodTimes = PodTimes {
    patience: Duration::ZERO,
    ..TIMES
};

/// A control plane, an API server, and a driver between them.
struct Shop {
    pollux: Pollux,
    server: ApiServer,
    driver: ControllerClient<Channel>,
    stop: watch::Sender<bool>,
    _directory: tempfile::TempDir,
}

impl Shop {
    async fn open(times: PodTimes) -> Self {
        let server = ApiServer::default();
        let socket = ApiServer::away();
        let shop = Self::open_at(&socket, server.clone(), times).await;
        server.serve(socket.listen(64).expect("a port"));
        shop
    }

    async fn open_at(socket: &TcpSocket, server: ApiServer, times: PodTimes) -> Self {
        let pollux = Pollux::start().await.ready().await;
        let directory = tempfile::tempdir().expect("a directory");
        let port = socket.local_addr().expect("it has one").port();
        let settings = kubeconfig(directory.path(), port);
        let pods = PodsOfCluster::connect(Some(&settings)).await.expect("a port");
        let pods = pods.with_patience(Duration::from_millis(500));
        let labels = PodLabels::new(pollux.control("default"), pods, times);
        let driver = pollux.noting_controller("default", labels.notes()).await;
        let (stop, stopped) = watch::channel(false);
        tokio::spawn(labels.run(stopped));
        Self {
            pollux,
            server,
            driver,
            stop,
            _directory: directory,
        }
    }

    /// Has a volume for the claim `data` of the namespace `shop`.
    async fn make(&mut self) {
        let request = CreateVolumeRequest {
            parameters: parameters(&[
                ("csi.storage.k8s.io/pvc/name", "data"),
                ("csi.storage.k8s.io/pvc/namespace", "shop"),
            ]),
            volume_capabilities: vec![block(Mode::MultiNodeMultiWriter)],
            ..new_volume("v")
        };
        self.driver.create_volume(request).await.expect("it is new");
    }

    async fn publish(&mut self, node: &str) {
        let request = ControllerPublishVolumeRequest {
            volume_id: "v".to_owned(),
            node_id: format!("nqn.2026-11.io.pollux:node:default:{node}"),
            volume_capability: Some(block(Mode::MultiNodeMultiWriter)),
            ..Default::default()
        };
        let published = self.driver.controller_publish_volume(request).await;
        published.expect("whatever the API server does");
    }

    async fn unpublish(&mut self, node: &str) {
        let request = ControllerUnpublishVolumeRequest {
            volume_id: "v".to_owned(),
            node_id: format!("nqn.2026-11.io.pollux:node:default:{node}"),
            ..Default::default()
        };
        let unpublished = self.driver.controller_unpublish_volume(request).await;
        unpublished.expect("whatever the API server does");
    }

    /// The pods and owners that the volume tells.
    async fn told(&self) -> (String, String) {
        let name = "v".to_owned();
        let volume = VolumesClient::new(self.pollux.channel.clone())
            .get_volume(GetVolumeRequest { name })
            .await;
        let volume = volume.expect("it is there").into_inner();
        let labels = volume.metadata.unwrap_or_default().labels;
        let label = |key| labels.get(key).cloned().unwrap_or_default();
        (label(label::POD), label(label::OWNER))
    }

    /// Waits until it tells these.
    async fn tells(&self, pods: &str, owners: &str) {
        let expected = (pods.to_owned(), owners.to_owned());
        while self.told().await != expected {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until the API server was asked so often from now on.
    async fn is_asked(&self, times: u64) {
        let until = self.server.lock().asked + times;
        while self.server.lock().asked < until {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_tells_the_pod_that_it_is_published_for() {
    let mut shop = Shop::open(NOTES_ALONE).await;
    // Of these, none uses it there: another claim, another node, another namespace, and one that has ended.
    shop.server.add("other-claim", "n1", "logs", None);
    shop.server.add("other-node", "n2", "data", None);
    let volumes = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]);
    let pod = |name: &str, phase: &str| {
        json!({
            "metadata": {"name": name},
            "spec": {"containers": [], "volumes": volumes},
            "status": {"phase": phase},
        })
    };
    shop.server
        .add_as("elsewhere", "n1", pod("other-namespace", "Running"));
    shop.server.add_as("shop", "n1", pod("ended", "Succeeded"));
    shop.server.add_as("shop", "n1", pod("failed", "Failed"));
    shop.make().await;
    shop.publish("n1").await;
    // It is seen later than the volume is published.
    shop.is_asked(3).await;
    assert_eq!(shop.told().await, (String::new(), String::new()));
    shop.server
        .lock()
        .sets
        .push(("web-5f7".to_owned(), "web".to_owned()));
    shop.server
        .add("web-5f7-x", "n1", "data", Some(("ReplicaSet", "web-5f7")));
    shop.tells("web-5f7-x", "Deployment/web").await;
    shop.unpublish("n1").await;
    shop.tells("", "").await;
    // Another node has it next, by a set of replicas that belongs to nothing.
    shop.server.remove("other-node");
    shop.server
        .add("alone-0", "n2", "data", Some(("ReplicaSet", "alone")));
    shop.publish("n2").await;
    shop.tells("alone-0", "ReplicaSet/alone").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_that_come_and_go_are_told_of_a_volume_that_stays() {
    let mut shop = Shop::open(LOOKS_ALONE).await;
    shop.make().await;
    shop.server
        .add("vm-a", "n1", "data", Some(("VirtualMachineInstance", "vm")));
    shop.publish("n1").await;
    shop.tells("vm-a", "VirtualMachineInstance/vm").await;
    // It moves: both have it for a while.
    shop.server
        .add("vm-b", "n2", "data", Some(("VirtualMachineInstance", "vm")));
    shop.publish("n2").await;
    shop.tells("vm-a,vm-b", "VirtualMachineInstance/vm").await;
    shop.server.add("look", "n2", "data", None);
    shop.tells("look,vm-a,vm-b", "VirtualMachineInstance/vm").await;
    shop.server.remove("vm-a");
    shop.unpublish("n1").await;
    shop.tells("look,vm-b", "VirtualMachineInstance/vm").await;
    shop.server.remove("vm-b");
    shop.tells("look", "").await;
    shop.unpublish("n2").await;
    shop.tells("", "").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_are_used_whatever_the_api_server_does() {
    for mood in [Mood::Forbids, Mood::Silent, Mood::Nonsense] {
        let mut shop = Shop::open(TIMES).await;
        shop.server.set_mood(mood);
        shop.server
            .add("web-0", "n1", "data", Some(("StatefulSet", "web")));
        shop.make().await;
        shop.publish("n1").await;
        shop.is_asked(2).await;
        assert_eq!(shop.told().await.0, "", "{mood:?}");
        shop.server.set_mood(Mood::Well);
        shop.tells("web-0", "StatefulSet/web").await;
        // What it told stays until it tells otherwise.
        shop.server.set_mood(mood);
        shop.server.remove("web-0");
        shop.is_asked(2).await;
        shop.unpublish("n1").await;
        // That a volume is published to nobody is known without it.
        shop.tells("", "").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_forbidden_to_ask_does_not_ask_on_and_on() {
    let mut shop = Shop::open(NOTES_ALONE).await;
    shop.server.set_mood(Mood::Forbids);
    shop.make().await;
    shop.publish("n0").await;
    while shop.server.lock().asked == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for number in 1..8 {
        shop.publish(&format!("n{number}")).await;
    }
    // Once for each time that it was published, and by the look at all volumes if that came late.
    assert!(shop.server.lock().asked <= 9, "{}", shop.server.lock().asked);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_server_that_is_away_is_asked_when_it_is_back() {
    let server = ApiServer::default();
    let socket = ApiServer::away();
    let mut shop = Shop::open_at(&socket, server.clone(), TIMES).await;
    server.add("web-0", "n1", "data", Some(("StatefulSet", "web")));
    shop.make().await;
    shop.publish("n1").await;
    assert_eq!(shop.told().await.0, "");
    server.serve(socket.listen(64).expect("a port"));
    shop.tells("web-0", "StatefulSet/web").await;
}
