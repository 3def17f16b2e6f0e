//! Calls that are cut off wherever they wait, and made again: they end in one result, of which nothing is
//! left when it is undone, by calls that are cut off as well.

use std::fmt::Debug;
use std::future::poll_fn;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use pollux_api::control::v1 as control;
use pollux_api::control::v1::snapshots_client::SnapshotsClient;
use pollux_api::csi::v1::controller_server::Controller;
use pollux_api::csi::v1::group_controller_server::GroupController;
use pollux_api::csi::v1::node_server::Node;
use pollux_api::csi::v1::volume_content_source::{SnapshotSource, Type as SourceType, VolumeSource};
use pollux_api::csi::v1::*;
use pollux_csi::controller::ControllerService;
use pollux_csi::node::NodeSettings;
use tokio::task::JoinSet;
use tonic::{Request, Response, Status};

use crate::common::{Driver, GIB, Pollux, again, bytes, mount, new_mirror, new_volume, parameters};

/// Stories that go on at a time.
const AT_ONCE: usize = 8;

/// More often no call has to wait.
const WAITS_MAX: usize = 400;

/// Polls a call until it has waited so often, and drops it then; what it answered, if it was done before.
async fn cut<T>(call: impl Future<Output = T>, waits: usize) -> Option<T> {
    let mut call = Box::pin(call);
    let mut waited = 0;
    let done = poll_fn(|context| match call.as_mut().poll(context) {
        Poll::Ready(answer) => Poll::Ready(Some(answer)),
        Poll::Pending if waited == waits => Poll::Ready(None),
        Poll::Pending => {
            waited += 1;
            Poll::Pending
        }
    })
    .await;
    if waits % 2 == 1 {
        // Who was asked may be done with it, and nobody hears the answer.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    done
}

/// The calls of one volume, each of which is cut off when it has waited so often.
struct Story {
    service: ControllerService,
    waits: usize,
    was_cut: AtomicBool,
}

impl Story {
    /// Cuts a call off, and makes it again.
    async fn step<T: PartialEq + Debug, F>(&self, what: &str, call: impl Fn() -> F) -> T
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let first = cut(call(), self.waits).await;
        let answer = again(what, &call).await;
        match first {
            None => self.was_cut.store(true, Ordering::Relaxed),
            Some(Ok(first)) => assert_eq!(first.into_inner(), answer, "{what}: two results"),
            Some(Err(status)) => panic!("{what}: {status}"),
        }
        answer
    }

    fn name(&self, what: &str) -> String {
        format!("{what}-{}", self.waits)
    }

    fn new_volume(&self, what: &str, source: Option<SourceType>) -> CreateVolumeRequest {
        CreateVolumeRequest {
            parameters: parameters(&[("replicas", "2")]),
            capacity_range: bytes(2 * GIB),
            volume_content_source: source.map(|source| VolumeContentSource { r#type: Some(source) }),
            ..new_volume(&self.name(what))
        }
    }

    async fn create(&self, what: &str, source: Option<SourceType>) -> Volume {
        let request = self.new_volume(what, source);
        let made = self.step("create", || {
            self.service.create_volume(Request::new(request.clone()))
        });
        made.await.volume.expect("it has one")
    }

    async fn delete(&self, what: &str) {
        let request = DeleteVolumeRequest {
            volume_id: self.name(what),
            ..Default::default()
        };
        self.step("delete", || {
            self.service.delete_volume(Request::new(request.clone()))
        })
        .await;
    }

    /// All that can be done with a volume, to its end.
    async fn tell(&self, pollux: &Pollux) {
        let volume = self.create("v", None).await;
        assert_eq!(volume.capacity_bytes, 2 * GIB);
        self.publish().await;
        self.change().await;
        self.look().await;
        let snapshot = self.name("s");
        let request = CreateSnapshotRequest {
            source_volume_id: self.name("v"),
            name: snapshot.clone(),
            ..Default::default()
        };
        let taken = self.step("snapshot", || {
            self.service.create_snapshot(Request::new(request.clone()))
        });
        let taken = taken.await.snapshot.expect("it has one");
        assert!(taken.ready_to_use, "{taken:?}");
        let of_snapshot = SourceType::Snapshot(SnapshotSource {
            snapshot_id: snapshot.clone(),
        });
        let of_volume = SourceType::Volume(VolumeSource {
            volume_id: self.name("v"),
        });
        self.grown(self.create("copy", Some(of_snapshot)).await);
        self.grown(self.create("clone", Some(of_volume)).await);
        self.require_snapshots(pollux, &[snapshot.as_str()]).await;
        self.together().await;
        self.require_snapshots(pollux, &[snapshot.as_str()]).await;
        let request = DeleteSnapshotRequest {
            snapshot_id: snapshot,
            ..Default::default()
        };
        self.step("delete snapshot", || {
            self.service.delete_snapshot(Request::new(request.clone()))
        })
        .await;
        let request = ControllerUnpublishVolumeRequest {
            volume_id: self.name("v"),
            node_id: node().to_owned(),
            ..Default::default()
        };
        self.step("unpublish", || {
            self.service
                .controller_unpublish_volume(Request::new(request.clone()))
        })
        .await;
        for what in ["clone", "v", "copy"] {
            self.delete(what).await;
        }
    }

    fn grown(&self, volume: Volume) {
        assert_eq!(volume.capacity_bytes, 3 * GIB, "as large as its source");
    }

    async fn publish(&self) {
        let request = ControllerPublishVolumeRequest {
            volume_id: self.name("v"),
            node_id: node().to_owned(),
            volume_capability: Some(mount("")),
            ..Default::default()
        };
        let published = self.step("publish", || {
            self.service
                .controller_publish_volume(Request::new(request.clone()))
        });
        assert_eq!(published.await.publish_context["readOnly"], "false");
    }

    async fn change(&self) {
        let request = ControllerExpandVolumeRequest {
            volume_id: self.name("v"),
            capacity_range: bytes(3 * GIB),
            ..Default::default()
        };
        let grown = self.step("expand", || {
            self.service
                .controller_expand_volume(Request::new(request.clone()))
        });
        assert_eq!(grown.await.capacity_bytes, 3 * GIB);
        let request = ControllerModifyVolumeRequest {
            volume_id: self.name("v"),
            mutable_parameters: parameters(&[("qosIops", "2000")]),
            ..Default::default()
        };
        self.step("modify", || {
            self.service
                .controller_modify_volume(Request::new(request.clone()))
        })
        .await;
    }

    /// What only asks leaves nothing, and asks in vain when it is cut off.
    async fn look(&self) {
        let id = || self.name("v");
        let get = ControllerGetVolumeRequest { volume_id: id() };
        self.step("get", || {
            self.service.controller_get_volume(Request::new(get.clone()))
        })
        .await;
        let health = ControllerGetVolumeHealthRequest {
            volume_id: id(),
            ..Default::default()
        };
        self.step("health", || {
            self.service
                .controller_get_volume_health(Request::new(health.clone()))
        })
        .await;
        let validate = ValidateVolumeCapabilitiesRequest {
            volume_id: id(),
            volume_capabilities: vec![mount("")],
            ..Default::default()
        };
        self.step("validate", || {
            self.service
                .validate_volume_capabilities(Request::new(validate.clone()))
        })
        .await;
        // Others make and delete volumes: what there is altogether changes all the time.
        let _ = cut(
            self.service.list_volumes(Request::new(Default::default())),
            self.waits,
        )
        .await;
        let _ = cut(
            self.service.list_snapshots(Request::new(Default::default())),
            self.waits,
        )
        .await;
        let _ = cut(
            self.service.get_capacity(Request::new(Default::default())),
            self.waits,
        )
        .await;
    }

    async fn together(&self) {
        let group = self.name("g");
        let request = CreateVolumeGroupSnapshotRequest {
            name: group.clone(),
            source_volume_ids: vec![self.name("v"), self.name("copy")],
            ..Default::default()
        };
        let taken = self.step("group", || {
            self.service
                .create_volume_group_snapshot(Request::new(request.clone()))
        });
        let taken = taken.await.group_snapshot.expect("it has one");
        assert!(taken.ready_to_use && taken.snapshots.len() == 2, "{taken:?}");
        let request = DeleteVolumeGroupSnapshotRequest {
            group_snapshot_id: group,
            ..Default::default()
        };
        self.step("delete group", || {
            self.service
                .delete_volume_group_snapshot(Request::new(request.clone()))
        })
        .await;
    }

    /// The volume has these snapshots, and soon no other ones.
    async fn require_snapshots(&self, pollux: &Pollux, wanted: &[&str]) {
        let mut found = Vec::new();
        for _ in 0..1000 {
            let request = control::ListSnapshotsRequest {
                volume: self.name("v"),
                ..Default::default()
            };
            let mut snapshots = SnapshotsClient::new(pollux.channel.clone());
            let listed = snapshots.list_snapshots(request).await.expect("it answers");
            let listed = listed.into_inner().snapshots.into_iter();
            found = listed
                .map(|snapshot| snapshot.metadata.unwrap_or_default().name)
                .collect();
            if found == wanted {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("there are the snapshots {found:?}, and not {wanted:?}");
    }
}

fn node() -> &'static str {
    "nqn.2026-11.io.pollux:node:default:n1"
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_of_the_controller_service_are_cut_off_wherever_they_wait() {
    let pollux = std::sync::Arc::new(Pollux::start().await.ready().await);
    let mut next = 0;
    let mut running = JoinSet::new();
    let mut was_cut = true;
    // As long as any call is cut off: later there is nothing more to cut.
    while was_cut || !running.is_empty() {
        while was_cut && running.len() < AT_ONCE {
            assert!(next < WAITS_MAX, "calls wait for ever");
            let pollux = pollux.clone();
            let story = Story {
                // One that counts: it waits more often.
                service: ControllerService::new(pollux.control("default")).with_volumes_max(1000),
                waits: next,
                was_cut: AtomicBool::new(false),
            };
            next += 1;
            running.spawn(async move {
                story.tell(&pollux).await;
                story.was_cut.into_inner()
            });
        }
        if let Some(done) = running.join_next().await {
            was_cut &= done.expect("it goes well");
        }
    }
    assert!(next > AT_ONCE, "calls wait {next} times only");
    pollux.require_empty().await;
}

/// What is made on a node of one volume, and undone, each cut off while the machine does this for it.
struct Used {
    driver: Driver,
    stage: NodeStageVolumeRequest,
}

impl Used {
    fn path(&self, name: &str) -> String {
        self.driver.directory.path().join(name).display().to_string()
    }

    /// Cuts a call off while the machine is at something, and another one while it waits for its turn; then
    /// it is made again, before the machine goes on.
    async fn step<T, F>(&self, at: &'static str, call: impl Fn() -> F) -> T
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let machine = &self.driver.machine;
        machine.hold_at(at);
        {
            let mut first = Box::pin(call());
            tokio::select! {
                _ = &mut first => panic!("{at}: it does not get there"),
                () = machine.is_held() => {}
            }
        }
        let second = cut(call(), 0).await;
        assert!(second.is_none(), "{at}: it does not wait for its turn");
        let third = again(at, &call);
        let mut third = Box::pin(third);
        let early = cut(&mut third, 0).await;
        assert!(early.is_none(), "{at}: it does not wait for its turn");
        machine.let_go_on();
        third.await
    }

    async fn stage(&self, at: &'static str) {
        self.step(at, || {
            self.driver
                .service
                .node_stage_volume(Request::new(self.stage.clone()))
        })
        .await;
    }

    async fn unstage(&self, at: &'static str) {
        let request = NodeUnstageVolumeRequest {
            volume_id: "v".to_owned(),
            staging_target_path: self.path("staging"),
        };
        self.step(at, || {
            self.driver
                .service
                .node_unstage_volume(Request::new(request.clone()))
        })
        .await;
        assert!(self.driver.machine.is_clean(), "{at}");
        let records = std::fs::read_dir(self.path("records")).expect("it is there");
        assert_eq!(records.count(), 0, "{at}");
    }

    fn done(&self, operation: &str) -> usize {
        let state = self.driver.machine.state();
        let done = state.done.iter();
        done.filter(|done| done.starts_with(operation)).count()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_of_the_node_service_are_cut_off_at_each_step() {
    let pollux = Pollux::start().await.ready().await;
    let driver = Driver::start(&pollux, "n1").await;
    let stage = driver.published(&pollux, new_mirror("v")).await;
    let used = Used { driver, stage };
    let service = &used.driver.service;
    let publish = NodePublishVolumeRequest {
        volume_id: "v".to_owned(),
        publish_context: used.stage.publish_context.clone(),
        staging_target_path: used.path("staging"),
        target_path: used.path("pod"),
        volume_capability: Some(mount("")),
        ..Default::default()
    };
    let unpublish = NodeUnpublishVolumeRequest {
        volume_id: "v".to_owned(),
        target_path: used.path("pod"),
    };
    let expand = NodeExpandVolumeRequest {
        volume_id: "v".to_owned(),
        volume_path: used.path("pod"),
        ..Default::default()
    };
    let stats = NodeGetVolumeStatsRequest {
        volume_id: "v".to_owned(),
        volume_path: used.path("pod"),
        ..Default::default()
    };
    // The first of these finds a blank device, the others a file system.
    let steps = [
        ("format", "unmount"),
        ("connect", "thaw"),
        ("content", "disconnect"),
        ("check", "unmount"),
        ("mount", "disconnect"),
        ("grow", "unmount"),
    ];
    for (round, (stage_at, unstage_at)) in steps.into_iter().enumerate() {
        used.stage(stage_at).await;
        assert_eq!(used.done("format"), 1, "{stage_at}");
        assert_eq!(used.driver.machine.state().controllers.len(), 3, "{stage_at}");
        used.step("bind", || {
            service.node_publish_volume(Request::new(publish.clone()))
        })
        .await;
        assert_eq!(used.done("bind"), round + 1, "{stage_at}");
        used.step("usage", || {
            service.node_get_volume_stats(Request::new(stats.clone()))
        })
        .await;
        used.step("grow", || {
            service.node_expand_volume(Request::new(expand.clone()))
        })
        .await;
        used.step("unmount", || {
            service.node_unpublish_volume(Request::new(unpublish.clone()))
        })
        .await;
        assert!(!Path::new(&used.path("pod")).exists(), "{stage_at}");
        used.unstage(unstage_at).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_cut_off_is_undone_by_the_opposite() {
    let pollux = Pollux::start().await.ready().await;
    let driver = Driver::start(&pollux, "n1").await;
    let stage = driver.published(&pollux, new_volume("v")).await;
    let used = Used { driver, stage };
    let (service, machine) = (&used.driver.service, &used.driver.machine);
    let unstage = NodeUnstageVolumeRequest {
        volume_id: "v".to_owned(),
        staging_target_path: used.path("staging"),
    };
    for at in ["connect", "content", "format", "mount"] {
        machine.hold_at(at);
        {
            let mut staging = Box::pin(service.node_stage_volume(Request::new(used.stage.clone())));
            tokio::select! {
                _ = &mut staging => panic!("{at}: it does not get there"),
                () = machine.is_held() => {}
            }
        }
        // One that waits for its turn behind it is cut off too: it never begins.
        let publish = NodePublishVolumeRequest {
            volume_id: "v".to_owned(),
            staging_target_path: used.path("staging"),
            target_path: used.path("pod"),
            volume_capability: Some(mount("")),
            ..Default::default()
        };
        let waiting = cut(service.node_publish_volume(Request::new(publish)), 0).await;
        assert!(waiting.is_none(), "{at}: it does not wait for its turn");
        let mut undone = Box::pin(again(at, || {
            service.node_unstage_volume(Request::new(unstage.clone()))
        }));
        let early = cut(&mut undone, 0).await;
        assert!(early.is_none(), "{at}: it does not wait for its turn");
        machine.let_go_on();
        undone.await;
        assert!(machine.is_clean(), "{at}");
        assert_eq!(used.done("bind"), 0, "{at}");
        // A volume with a file system is not formatted: the next one gets a blank device again.
        machine.state().disks.clear();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_that_comes_after_its_volume_has_gone_goes_too() {
    let pollux = Pollux::start().await.ready().await;
    let impatient = |settings: &mut NodeSettings| settings.other_paths_patience = Duration::ZERO;
    let driver = Driver::start_with(&pollux, "n1", impatient).await;
    let stage = driver.published(&pollux, new_mirror("v")).await;
    let used = Used { driver, stage };
    let (service, machine) = (&used.driver.service, &used.driver.machine);
    let unstage = NodeUnstageVolumeRequest {
        volume_id: "v".to_owned(),
        staging_target_path: used.path("staging"),
    };
    machine.hold_at("connect 127.0.0.3:4420");
    let staged = service.node_stage_volume(Request::new(used.stage.clone())).await;
    staged.expect("it is there by the other paths");
    machine.is_held().await;
    let unstaged = service.node_unstage_volume(Request::new(unstage)).await;
    unstaged.expect("nobody uses it");
    machine.let_go_on();
    for _ in 0..3000 {
        if used.done("connect") == 3 && machine.is_clean() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it stays: {:?}", machine.state().controllers);
}
