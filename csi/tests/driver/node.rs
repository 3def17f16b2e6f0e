//! Volumes on a machine: done, done again, failed half-way, and undone.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use pollux_api::csi::v1::volume_capability::AccessType;
use pollux_api::csi::v1::volume_capability::access_mode::Mode;
use pollux_api::csi::v1::volume_usage::Unit;
use pollux_api::csi::v1::*;
use pollux_csi::host::{Content, DeviceNumber, DiscoveryLog, Host, Mount};
use pollux_csi::node::{NodeService, context};
use tonic::Code;
use uuid::Uuid;

use crate::common::machine::Disk;
use crate::common::{Driver, GIB, Pollux, block, bytes, mount, new_mirror, parameters, settings};

/// A volume that is published to the node of a driver.
struct Used {
    driver: Driver,
    id: String,
    context: HashMap<String, String>,
    capability: VolumeCapability,
}

impl Used {
    async fn new(pollux: &Pollux, id: &str, capability: VolumeCapability) -> Self {
        let request = CreateVolumeRequest {
            volume_capabilities: vec![capability.clone()],
            ..new_mirror(id)
        };
        let driver = Driver::start(pollux, "n1").await;
        let stage = driver.published(pollux, request).await;
        Self {
            driver,
            id: id.to_owned(),
            context: stage.publish_context,
            capability,
        }
    }

    fn path(&self, name: &str) -> String {
        self.driver.directory.path().join(name).display().to_string()
    }

    fn uuid(&self) -> Uuid {
        Uuid::parse_str(&self.context[context::NAMESPACE_UUID]).expect("a UUID")
    }

    fn stage_request(&self) -> NodeStageVolumeRequest {
        NodeStageVolumeRequest {
            volume_id: self.id.clone(),
            publish_context: self.context.clone(),
            staging_target_path: self.path("staging"),
            volume_capability: Some(self.capability.clone()),
            ..Default::default()
        }
    }

    async fn stage(&self) -> Result<(), Code> {
        let done = self
            .driver
            .client
            .clone()
            .node_stage_volume(self.stage_request())
            .await;
        done.map(drop).map_err(|status| status.code())
    }

    async fn unstage(&self) -> Result<(), Code> {
        let request = NodeUnstageVolumeRequest {
            volume_id: self.id.clone(),
            staging_target_path: self.path("staging"),
        };
        let done = self.driver.client.clone().node_unstage_volume(request).await;
        done.map(drop).map_err(|status| status.code())
    }

    fn publish_request(&self, name: &str) -> NodePublishVolumeRequest {
        NodePublishVolumeRequest {
            volume_id: self.id.clone(),
            publish_context: self.context.clone(),
            staging_target_path: self.path("staging"),
            target_path: self.path(name),
            volume_capability: Some(self.capability.clone()),
            ..Default::default()
        }
    }

    async fn publish(&self, request: NodePublishVolumeRequest) -> Result<(), Code> {
        let done = self.driver.client.clone().node_publish_volume(request).await;
        done.map(drop).map_err(|status| status.code())
    }

    async fn unpublish(&self, name: &str) -> Result<(), Code> {
        let request = NodeUnpublishVolumeRequest {
            volume_id: self.id.clone(),
            target_path: self.path(name),
        };
        let done = self.driver.client.clone().node_unpublish_volume(request).await;
        done.map(drop).map_err(|status| status.code())
    }

    async fn stats(&self, name: &str) -> Result<NodeGetVolumeStatsResponse, Code> {
        let request = NodeGetVolumeStatsRequest {
            volume_id: self.id.clone(),
            volume_path: self.path(name),
            ..Default::default()
        };
        let done = self.driver.client.clone().node_get_volume_stats(request).await;
        done.map(tonic::Response::into_inner)
            .map_err(|status| status.code())
    }

    fn done(&self, operation: &str) -> usize {
        let state = self.driver.machine.state();
        state
            .done
            .iter()
            .filter(|done| done.starts_with(operation))
            .count()
    }

    fn fail(&self, operation: &'static str) {
        self.driver.machine.state().failing.push(operation);
    }

    fn put(&self, content: Content) {
        let disk = Disk { content, grown_to: 0 };
        self.driver.machine.state().disks.insert(self.uuid(), disk);
    }
}

/// What was lost before a volume came to a node is nothing to that node, and no reason to fail.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_hears_of_lost_caches_before_it_uses_a_volume() {
    let pollux = Pollux::start().await.ready().await;
    let used = Used::new(&pollux, "v", mount("ext4")).await;
    used.fail("flush");
    used.fail("flush");
    assert_eq!(used.stage().await, Ok(()));
    let done = used.driver.machine.state().done.clone();
    let place = |operation: &str| done.iter().position(|done| done.starts_with(operation));
    assert!(
        place("flush").is_some() && place("flush") < place("format"),
        "{done:?}"
    );
    assert_eq!(used.done("flush"), 3);
    // Somebody may use it by now, who has to hear of it himself.
    assert_eq!(used.stage().await, Ok(()));
    assert_eq!(used.done("flush"), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_system_is_made_once_and_used_by_many() {
    let pollux = Pollux::start().await.ready().await;
    let used = Used::new(&pollux, "v", mount("xfs")).await;
    let (one, two) = tokio::join!(used.stage(), used.stage());
    assert_eq!((one, two), (Ok(()), Ok(())));
    assert_eq!(used.stage().await, Ok(()));
    assert_eq!(
        (used.done("format"), used.done("mount"), used.done("connect")),
        (1, 1, 3)
    );
    assert_eq!(used.publish(used.publish_request("pod-1")).await, Ok(()));
    assert_eq!(used.publish(used.publish_request("pod-1")).await, Ok(()));
    let reading = NodePublishVolumeRequest {
        readonly: true,
        ..used.publish_request("pod-2")
    };
    assert_eq!(used.publish(reading.clone()).await, Ok(()));
    assert_eq!(
        used.publish(used.publish_request("pod-2")).await,
        Err(Code::AlreadyExists)
    );
    let stats = used.stats("pod-1").await.expect("it is there");
    assert_eq!(stats.usage[0].unit(), Unit::Bytes);
    assert_eq!(
        (
            stats.usage[0].total,
            stats.usage[0].used,
            stats.usage[0].available
        ),
        (1000, 300, 600)
    );
    assert!(!stats.volume_condition.expect("it has one").abnormal);
    used.driver.machine.state().controllers[0].1.state = "connecting".to_owned();
    let condition = used.stats("pod-2").await.expect("it is there").volume_condition;
    let condition = condition.expect("it has one");
    assert!(
        condition.abnormal && condition.message.contains("2 of 3 paths"),
        "{condition:?}"
    );
    // In use it is not unstaged, and what is not there is gone already.
    assert_eq!(used.unstage().await, Err(Code::FailedPrecondition));
    for pod in ["pod-1", "pod-2", "pod-2", "pod-3"] {
        assert_eq!(used.unpublish(pod).await, Ok(()), "{pod}");
        assert!(!PathBuf::from(used.path(pod)).exists(), "{pod}");
    }
    assert_eq!(used.stats("pod-1").await.map(drop), Err(Code::NotFound));
    assert_eq!(used.unstage().await, Ok(()));
    assert_eq!(used.unstage().await, Ok(()));
    assert!(used.driver.machine.is_clean());
    assert_eq!(
        used.publish(used.publish_request("pod-1")).await,
        Err(Code::FailedPrecondition)
    );
    // What was made is found again, checked, and not made again.
    assert_eq!(used.stage().await, Ok(()));
    assert_eq!(
        (used.done("format"), used.done("check"), used.done("grow")),
        (1, 1, 1)
    );
    assert_eq!(used.unstage().await, Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_holds_anything_else_is_left_alone() {
    let pollux = Pollux::start().await.ready().await;
    let used = Used::new(&pollux, "v", mount("ext4")).await;
    let file_system = |kind: &str| Content::FileSystem {
        kind: kind.to_owned(),
        uuid: "u".to_owned(),
    };
    for content in [
        Content::Other("data that is no file system".to_owned()),
        file_system("xfs"),
        file_system("ntfs"),
        file_system("LVM2_member"),
    ] {
        used.put(content.clone());
        assert_eq!(used.stage().await, Err(Code::FailedPrecondition), "{content:?}");
    }
    assert_eq!((used.done("format"), used.done("mount")), (0, 0));
    // Half-way it is undone like the whole.
    assert_eq!(used.unstage().await, Ok(()));
    assert!(used.driver.machine.is_clean());
    // A device that somebody has in hand is not formatted though nothing is on it.
    used.put(Content::Nothing);
    used.driver.machine.state().busy.insert(used.uuid());
    assert_eq!(used.stage().await, Err(Code::FailedPrecondition));
    assert_eq!(used.done("format"), 0);
    // Nor is it taken away from whoever has it.
    assert_eq!(used.unstage().await, Err(Code::FailedPrecondition));
    assert_eq!(used.done("disconnect"), 3, "the three of before, and no more");
    used.driver.machine.state().busy.clear();
    assert_eq!(used.stage().await, Ok(()));
    assert_eq!(used.done("format"), 1);
    assert_eq!(used.unstage().await, Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_fails_is_told_and_done_by_the_same_call_again() {
    let pollux = Pollux::start().await.ready().await;
    let used = Used::new(&pollux, "v", mount("")).await;
    for operation in ["content", "format", "mount"] {
        used.fail(operation);
        assert_eq!(used.stage().await, Err(Code::Internal), "{operation}");
    }
    assert_eq!(used.stage().await, Ok(()));
    used.fail("bind");
    assert_eq!(
        used.publish(used.publish_request("pod")).await,
        Err(Code::Internal)
    );
    assert_eq!(used.publish(used.publish_request("pod")).await, Ok(()));
    used.fail("unmount");
    assert_eq!(used.unpublish("pod").await, Err(Code::Internal));
    assert_eq!(used.unpublish("pod").await, Ok(()));
    for operation in ["unmount", "disconnect"] {
        used.fail(operation);
        assert_eq!(
            used.unstage().await,
            Err(Code::Internal),
            "a failed unstage is no success"
        );
    }
    assert_eq!(used.unstage().await, Ok(()));
    assert!(used.driver.machine.is_clean());
    // Of a volume that was there before, growing and checking can fail too.
    for operation in ["check", "grow"] {
        used.fail(operation);
        assert_eq!(used.stage().await, Err(Code::Internal), "{operation}");
        assert!(used.driver.machine.state().mounts.is_empty(), "{operation}");
    }
    assert_eq!(used.stage().await, Ok(()));
    assert_eq!(used.unstage().await, Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_driver_that_was_killed_leaves_nothing_that_the_next_one_cannot_undo() {
    let pollux = Pollux::start().await.ready().await;
    let used = Used::new(&pollux, "v", mount("")).await;
    used.fail("mount");
    assert_eq!(used.stage().await, Err(Code::Internal));
    // Connected and formatted, not mounted; another process goes on.
    let records = used.driver.directory.path().join("records");
    let again = NodeService::new(used.driver.machine.clone(), settings("n1", records.clone()));
    let again = again.expect("the records are there");
    let stage = || {
        use pollux_api::csi::v1::node_server::Node;
        again.node_stage_volume(tonic::Request::new(used.stage_request()))
    };
    stage().await.expect("it goes on");
    assert_eq!((used.done("format"), used.done("connect")), (1, 3));
    // Even without its records it finds what to undo, by what is mounted.
    std::fs::remove_dir_all(&records).expect("they are there");
    std::fs::create_dir(&records).expect("it can be made");
    assert_eq!(used.unstage().await, Ok(()));
    assert!(used.driver.machine.is_clean());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_mounted_is_left_alone() {
    let pollux = Pollux::start().await.ready().await;
    let used = Used::new(&pollux, "v", mount("")).await;
    let foreign = |name: &str| {
        std::fs::create_dir_all(used.path(name)).expect("it can be made");
        Mount {
            number: DeviceNumber { major: 8, minor: 1 },
            root: "/".to_owned(),
            point: std::fs::canonicalize(used.path(name)).expect("it is there"),
            kind: "ext4".to_owned(),
            source: "/dev/sda1".to_owned(),
            read_only: false,
            read_only_everywhere: false,
        }
    };
    let mounts = || used.driver.machine.state().mounts.clone();
    // Neither of a volume that nobody knows here, nor of one that could not be staged for it.
    let in_the_way = [foreign("pod"), foreign("staging")];
    used.driver.machine.state().mounts = in_the_way.to_vec();
    assert_eq!(used.unpublish("pod").await, Err(Code::FailedPrecondition));
    assert_eq!(used.stage().await, Err(Code::FailedPrecondition));
    assert_eq!(used.unstage().await, Err(Code::FailedPrecondition));
    assert_eq!(used.unpublish("pod").await, Err(Code::FailedPrecondition));
    assert_eq!((used.done("unmount"), used.done("thaw")), (0, 0));
    assert_eq!(mounts(), in_the_way);
    // Once it has gone, all goes on.
    used.driver.machine.state().mounts.clear();
    assert_eq!(used.stage().await, Ok(()));
    assert_eq!(used.publish(used.publish_request("pod")).await, Ok(()));
    assert_eq!(used.unpublish("staging").await, Err(Code::InvalidArgument));
    assert_eq!(used.done("unmount"), 0);
    // What is below the volume stays as well.
    used.driver.machine.state().mounts.insert(0, foreign("pod"));
    assert_eq!(used.unpublish("pod").await, Err(Code::FailedPrecondition));
    assert_eq!(used.done("unmount"), 1);
    assert_eq!(mounts().first(), Some(&foreign("pod")));
    used.driver.machine.state().mounts.remove(0);
    assert_eq!(used.unpublish("pod").await, Ok(()));
    assert_eq!(used.unstage().await, Ok(()));
    assert!(used.driver.machine.is_clean());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_mounted_of_a_device_that_has_gone_is_unmounted() {
    let pollux = Pollux::start().await.ready().await;
    let used = Used::new(&pollux, "v", mount("")).await;
    let records = used.driver.directory.path().join("records");
    for keeps_record in [true, false] {
        assert_eq!(used.stage().await, Ok(()));
        assert_eq!(used.publish(used.publish_request("pod")).await, Ok(()));
        let pod = std::fs::canonicalize(used.path("pod")).expect("it is there");
        for mount in &mut used.driver.machine.state().mounts {
            // All paths were lost, and came again: the kernel has another device since.
            if mount.point == pod {
                mount.number.minor += 1000;
                mount.source = "/dev/nvme1000n1".to_owned();
            }
        }
        if !keeps_record {
            std::fs::remove_dir_all(&records).expect("they are there");
            std::fs::create_dir(&records).expect("it can be made");
        }
        assert_eq!(used.unpublish("pod").await, Ok(()), "{keeps_record}");
        assert_eq!(used.unstage().await, Ok(()), "{keeps_record}");
        assert!(used.driver.machine.is_clean());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paths_follow_a_volume_that_moves() {
    let pollux = Pollux::start().await.ready().await;
    let used = Used::new(&pollux, "v", mount("")).await;
    assert_eq!(used.stage().await, Ok(()));
    let subsystem = used.context[context::SUBSYSTEM_NQN].clone();
    let machine = &used.driver.machine;
    let addresses = || {
        let controllers = machine.controllers(&subsystem).expect("in memory");
        let mut all: Vec<String> = controllers
            .iter()
            .map(|controller| controller.address.expect("it has one").to_string())
            .collect();
        all.sort();
        all
    };
    let (one, two, three, new) = (
        "127.0.0.1:4420",
        "127.0.0.2:4420",
        "127.0.0.3:4420",
        "127.0.0.9:4420",
    );
    assert_eq!(addresses(), [one, two, three]);
    let tell = |generation: u64, by: &str, paths: &[&str]| {
        let entries = paths
            .iter()
            .map(|path| (subsystem.clone(), path.parse().expect("an address")));
        let other = [(
            "nqn.2026-11.io.pollux:volume:other".to_owned(),
            "127.0.0.8:4420".parse().expect("one"),
        )];
        let told = DiscoveryLog {
            generation,
            entries: entries.chain(other).collect(),
        };
        machine.state().told.insert(by.parse().expect("an address"), told);
    };
    let round = || used.driver.service.connect_missing();
    // Nobody tells anything: it stays as it is.
    round().await;
    assert_eq!(addresses(), [one, two, three]);
    // A copy was made elsewhere for the third, whose path works still.
    tell(1, one, &[one, two, new]);
    round().await;
    assert_eq!(addresses(), [one, two, three, new], "what works is not let go");
    round().await;
    assert_eq!(used.done(&format!("connect {new}")), 1);
    // Then that is gone.
    let set_state = |address: &str, to: &str| {
        let mut state = machine.state();
        let all = state.controllers.iter_mut();
        for (_, controller) in all.filter(|(_, one)| one.address.is_some_and(|at| at.to_string() == address))
        {
            controller.state = to.to_owned();
        }
    };
    set_state(three, "connecting");
    round().await;
    assert_eq!(addresses(), [one, two, new]);
    // The record knows: it is the same after a restart.
    let records = used.driver.directory.path().join("records");
    let restarted = NodeService::new(machine.clone(), settings("n1", records)).expect("it can be made");
    machine.state().told.clear();
    machine.state().controllers.retain(|(_, one)| one.name == "nvme1");
    restarted.connect_missing().await;
    assert_eq!(addresses().len(), 3);
    assert!(addresses().contains(&new.to_owned()), "{:?}", addresses());
    // One that tells nonsense while no path that it tells works does no harm.
    tell(2, one, &["127.0.0.7:4420"]);
    machine.state().failing = vec!["connect"; 1];
    set_state(one, "connecting");
    set_state(two, "connecting");
    set_state(new, "connecting");
    round().await;
    assert_eq!(addresses().len(), 3);
    machine.state().told.clear();
    assert_eq!(used.unstage().await, Ok(()));
    assert!(addresses().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paths_that_were_missing_are_connected_later() {
    let pollux = Pollux::start().await.ready().await;
    let used = Used::new(&pollux, "v", mount("")).await;
    used.fail("connect");
    assert_eq!(used.stage().await, Ok(()));
    let subsystem = &used.context[context::SUBSYSTEM_NQN];
    let paths = || {
        used.driver
            .machine
            .controllers(subsystem)
            .expect("in memory")
            .len()
    };
    assert_eq!(paths(), 2);
    used.driver.service.connect_missing().await;
    assert_eq!(paths(), 3);
    used.driver.service.connect_missing().await;
    assert_eq!(paths(), 3);
    assert_eq!(used.unstage().await, Ok(()));
    used.driver.service.connect_missing().await;
    assert_eq!(paths(), 0);
    for _ in 0..3 {
        used.fail("connect");
    }
    assert_eq!(used.stage().await, Err(Code::Internal), "no path at all");
    assert_eq!(used.unstage().await, Ok(()));
    used.driver.machine.state().without_multipath = true;
    assert_eq!(
        used.stage().await,
        Err(Code::FailedPrecondition),
        "each path is a device"
    );
    assert_eq!(used.done("mount"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn block_devices_are_put_into_place_as_files() {
    let pollux = Pollux::start().await.ready().await;
    let used = Used::new(&pollux, "v", block(Mode::SingleNodeSingleWriter)).await;
    // What is on it is nobody's business.
    assert_eq!(used.stage().await, Ok(()));
    assert_eq!(used.done("content"), 0);
    let reading = NodePublishVolumeRequest {
        readonly: true,
        ..used.publish_request("pod")
    };
    assert_eq!(
        used.publish(reading).await,
        Err(Code::InvalidArgument),
        "it could be written all the same"
    );
    assert_eq!(used.publish(used.publish_request("pod")).await, Ok(()));
    assert!(PathBuf::from(used.path("pod")).is_file());
    assert_eq!(
        used.publish(used.publish_request("other")).await,
        Err(Code::FailedPrecondition)
    );
    let stats = used.stats("pod").await.expect("it is there");
    assert_eq!((stats.usage.len(), stats.usage[0].total), (1, GIB));
    let as_mount = NodePublishVolumeRequest {
        volume_capability: Some(mount("")),
        ..used.publish_request("pod")
    };
    assert_eq!(used.publish(as_mount).await, Err(Code::FailedPrecondition));
    let otherwise = NodeStageVolumeRequest {
        volume_capability: Some(mount("")),
        ..used.stage_request()
    };
    let refused = used.driver.client.clone().node_stage_volume(otherwise).await;
    assert_eq!(
        refused.expect_err("it is staged as a device").code(),
        Code::AlreadyExists
    );
    assert_eq!(used.unstage().await, Err(Code::FailedPrecondition));
    assert_eq!(used.unpublish("pod").await, Ok(()));
    assert_eq!(used.unstage().await, Ok(()));
    assert!(used.driver.machine.is_clean());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_grows_while_it_is_mounted() {
    let pollux = Pollux::start().await.ready().await;
    let used = Used::new(&pollux, "v", mount("")).await;
    assert_eq!(used.stage().await, Ok(()));
    assert_eq!(used.publish(used.publish_request("pod")).await, Ok(()));
    let mut controller = pollux.controller("default").await;
    let expand = ControllerExpandVolumeRequest {
        volume_id: "v".to_owned(),
        capacity_range: bytes(4 * GIB),
        ..Default::default()
    };
    let answer = controller
        .controller_expand_volume(expand)
        .await
        .expect("it grows");
    assert!(answer.into_inner().node_expansion_required);
    let expand = |name: &str, required| NodeExpandVolumeRequest {
        volume_id: "v".to_owned(),
        volume_path: used.path(name),
        capacity_range: bytes(required),
        ..Default::default()
    };
    let mut client = used.driver.client.clone();
    let answer = client
        .node_expand_volume(expand("pod", 4 * GIB))
        .await
        .expect("it grows");
    assert_eq!(answer.into_inner().capacity_bytes, 4 * GIB);
    let disk = used.driver.machine.state().disks[&used.uuid()].clone();
    assert_eq!(disk.grown_to, 4 << 30);
    let refused = client.node_expand_volume(expand("elsewhere", 0)).await;
    assert_eq!(refused.expect_err("it is not there").code(), Code::NotFound);
    let refused = client.node_expand_volume(expand("pod", 5 * GIB)).await;
    assert_eq!(
        refused.expect_err("it is not that large").code(),
        Code::DeadlineExceeded
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_was_cut_off_goes_on_to_its_end() {
    let pollux = Pollux::start().await.ready().await;
    let used = Arc::new(Used::new(&pollux, "v", mount("")).await);
    for round in 0..10_u64 {
        let limit = std::time::Duration::from_micros(200 * round);
        let _ = tokio::time::timeout(limit, used.stage()).await;
        let _ = tokio::time::timeout(limit, used.publish(used.publish_request("pod"))).await;
        assert_eq!(used.stage().await, Ok(()));
        assert_eq!(used.publish(used.publish_request("pod")).await, Ok(()));
        let _ = tokio::time::timeout(limit, used.unpublish("pod")).await;
        assert_eq!(used.unpublish("pod").await, Ok(()));
        let _ = tokio::time::timeout(limit, used.unstage()).await;
        assert_eq!(used.unstage().await, Ok(()));
        assert!(used.driver.machine.is_clean(), "{round}");
    }
    assert_eq!(used.done("format"), 1);
}

/// A file system with an option of mount.
fn mount_with(option: &str) -> VolumeCapability {
    let mut capability = mount("");
    if let Some(AccessType::Mount(mount)) = &mut capability.access_type {
        mount.mount_flags.push(option.to_owned());
    }
    capability
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_arguments_change_nothing() {
    let pollux = Pollux::start().await.ready().await;
    let used = Used::new(&pollux, "v", mount("")).await;
    let mut client = used.driver.client.clone();
    let right = used.stage_request();
    for (wrong, code) in [
        (
            NodeStageVolumeRequest {
                staging_target_path: "relative".to_owned(),
                ..right.clone()
            },
            Code::InvalidArgument,
        ),
        (
            NodeStageVolumeRequest {
                staging_target_path: "/a/../b".to_owned(),
                ..right.clone()
            },
            Code::InvalidArgument,
        ),
        (
            NodeStageVolumeRequest {
                volume_capability: None,
                ..right.clone()
            },
            Code::InvalidArgument,
        ),
        (
            NodeStageVolumeRequest {
                publish_context: HashMap::new(),
                ..right.clone()
            },
            Code::InvalidArgument,
        ),
        (
            NodeStageVolumeRequest {
                volume_id: "v".repeat(129),
                ..right.clone()
            },
            Code::InvalidArgument,
        ),
        (
            NodeStageVolumeRequest {
                volume_capability: Some(mount_with("remount")),
                ..right.clone()
            },
            Code::InvalidArgument,
        ),
        (
            NodeStageVolumeRequest {
                volume_context: parameters(&[("fsType", "ntfs")]),
                ..right.clone()
            },
            Code::InvalidArgument,
        ),
    ] {
        let refused = client
            .node_stage_volume(wrong.clone())
            .await
            .expect_err("it is wrong");
        assert_eq!(refused.code(), code, "{wrong:?}");
    }
    // A place that would hide the other one, or go with it.
    for target in ["", "staging", "staging/below"] {
        let wrong = used.publish(used.publish_request(target)).await;
        assert_eq!(wrong, Err(Code::InvalidArgument), "{target}");
    }
    let unstaged = NodePublishVolumeRequest {
        staging_target_path: String::new(),
        ..used.publish_request("pod")
    };
    assert_eq!(used.publish(unstaged).await, Err(Code::FailedPrecondition));
    assert!(used.driver.machine.is_clean());
    assert_eq!(used.driver.machine.state().done, Vec::<String>::new());
    // A directory with files in it is no place that this driver made.
    let full = used.driver.directory.path().join("full");
    std::fs::create_dir(&full).expect("it is new");
    std::fs::write(full.join("file"), "data").expect("it can be written");
    assert_eq!(used.unpublish("full").await, Err(Code::Internal));
    assert!(full.join("file").exists());
}
