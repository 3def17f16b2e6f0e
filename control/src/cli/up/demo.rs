//! `pollux demo`: what a cluster is for, shown on this machine in a minute.

use std::io::Write;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use clap::Args;
use pollux_api::control::v1::snapshots_client::SnapshotsClient;
use pollux_api::control::v1::volumes_client::VolumesClient;
use pollux_api::control::v1::{
    CreateSnapshotRequest, CreateVolumeRequest, DeleteSnapshotRequest, DeleteVolumeRequest,
    GetSnapshotRequest, GetVolumeRequest, HostAccess, PublishVolumeRequest, PublishVolumeResponse, Snapshot,
    SnapshotSpec, SnapshotState, UnpublishVolumeRequest, Volume, VolumePolicy, VolumeSpec, VolumeState,
    VolumeStatus,
};
use serde::Deserialize;

use super::super::wait;
use super::children::Program;
use super::{LocalCluster, PAUSE, Signals, UpArguments, failed, metadata};
use crate::cli::connection::{Channel, CommandError};
use crate::placement::PlacementLimits;
use crate::size::Size;

/// The volume.
const VOLUME: &str = "demo";

/// What it was before it was written to once more, and a volume that begins as that.
const SNAPSHOT: &str = "demo.before";
const CLONE: &str = "demo.clone";

/// The files in which hosts keep what they wrote.
const WRITTEN: &str = "written";
const WRITTEN_BEFORE: &str = "written-before";

/// Who uses it.
const HOST: &str = "nqn.2026-11.io.pollux:demo-host";

/// Its size: small, so that all of it is written.
const VOLUME_BYTES: u64 = 256 << 20;

/// The size of each pool.
const POOL_BYTES: u64 = 2 << 30;

/// How long the control plane waits for a snapshot before it answers, in microseconds.
const WAIT_US: u64 = 5_000_000;

/// How long a step may take.
const STEP_TIMEOUT: Duration = Duration::from_secs(60);

/// How long the engine that serves is left alone.
const CALM: Duration = Duration::from_secs(3);

/// `demo`.
#[derive(Debug, Clone, Args)]
pub(in crate::cli) struct DemoArguments {
    /// Where everything is kept meanwhile; it must not be there yet, and is removed at the end.
    #[arg(long, value_name = "DIRECTORY", default_value = "pollux-demo")]
    directory: PathBuf,

    /// How long to write, in seconds: an engine is killed and comes back meanwhile.
    #[arg(long, value_name = "N", default_value_t = 15)]
    seconds: u64,

    /// Leave the directory as it is at the end.
    #[arg(long)]
    keep: bool,
}

/// What verifying tells.
#[derive(Debug, Clone, Deserialize)]
struct Verified {
    writes: u64,
    reads: u64,
    retries: u64,
    path_changes: u64,
    longest_gap_ms: u64,
}

/// Shows it.
pub(in crate::cli) async fn demo(
    arguments: &DemoArguments,
    into: &mut impl Write,
) -> Result<(), CommandError> {
    if arguments.directory.exists() {
        return Err(CommandError::Refused(format!(
            "{} is there already: remove it, or give another --directory",
            arguments.directory.display()
        )));
    }
    let up = UpArguments {
        directory: arguments.directory.clone(),
        engines: None,
        size: Size(POOL_BYTES),
        unreachable_after: 3,
        overcommit: PlacementLimits::default().overcommit_percent,
    };
    let mut signals = Signals::watch()?;
    let verified = tokio::select! {
        shown = shown(arguments, &up, into) => Some(shown?),
        // With the cluster all its processes go.
        () = signals.any() => None,
    };
    if !arguments.keep {
        std::fs::remove_dir_all(&arguments.directory).map_err(failed(&arguments.directory))?;
    }
    let Some(verified) = verified else {
        let ended = "ended before everything was shown; nothing runs any more";
        return Err(CommandError::Refused(ended.to_owned()));
    };
    writeln!(
        into,
        "\n{} writes and {} reads, every one as it had to be. One engine of three was killed; the longest \
         wait\nfor I/O was {:.1} s, most of it the time after which a silent engine counts as dead. {} \
         requests were\nsent again, over changes of path: {}.",
        verified.writes,
        verified.reads,
        Duration::from_millis(verified.longest_gap_ms).as_secs_f64(),
        verified.retries,
        verified.path_changes,
    )?;
    Ok(())
}

/// Makes a cluster, shows what it does, and ends it.
async fn shown(
    arguments: &DemoArguments,
    up: &UpArguments,
    into: &mut impl Write,
) -> Result<Verified, CommandError> {
    let began = Instant::now();
    let cluster = LocalCluster::start(up, "127.0.0.1:0").await?;
    let mut stage = Stage { cluster, began, into };
    let shown = stage.show(arguments).await;
    let stopped = stage.cluster.stop().await;
    let verified = shown.map_err(|error| {
        let directory = arguments.directory.display();
        CommandError::Refused(format!("{error}; logs of all processes are left in {directory}"))
    })?;
    stopped?;
    Ok(verified)
}

struct Stage<'a, W> {
    cluster: LocalCluster,
    began: Instant,
    into: &'a mut W,
}

impl<W: Write> Stage<'_, W> {
    fn tell(&mut self, what: &str) -> Result<(), CommandError> {
        writeln!(self.into, "{:5.1} s  {what}", self.began.elapsed().as_secs_f64())?;
        self.into.flush()?;
        Ok(())
    }

    fn volumes(&self) -> VolumesClient<Channel> {
        VolumesClient::new(self.cluster.channel.clone())
    }

    async fn show(&mut self, arguments: &DemoArguments) -> Result<Verified, CommandError> {
        self.tell("a control plane and three engines run, each with a pool in a file")?;
        self.create(VOLUME, "").await?;
        let status = self.until_healthy(VOLUME).await?;
        let target = status.target_node;
        self.tell(&format!("a volume with three replicas is served by {target}"))?;
        let published = self.publish(VOLUME).await?;
        self.tell(&format!("it is published, with {} paths", published.paths.len()))?;
        let writing = self.verify(&published, arguments.seconds, WRITTEN)?;
        self.tell("a host writes to it by NVMe/TCP, and reads back what it wrote")?;
        tokio::time::sleep(CALM).await;
        self.cluster.kill(&target).await?;
        self.tell(&format!("{target}, which serves it, is killed"))?;
        let status = self
            .until(VOLUME, "served elsewhere", |status| {
                status.target_node != target && status.state() == VolumeState::Degraded
            })
            .await?;
        self.tell(&format!(
            "{} serves it now, with two replicas in sync",
            status.target_node
        ))?;
        self.cluster.restart(&target)?;
        self.tell(&format!("{target} is started again"))?;
        self.until_healthy(VOLUME).await?;
        self.tell("its replica has what it missed: all three are in sync")?;
        let verified = finished(writing).await?;
        self.tell("the host has read everything back")?;
        self.snapshot(&published).await?;
        for name in [CLONE, VOLUME] {
            self.remove(name).await?;
        }
        self.tell("everything is unpublished and deleted")?;
        Ok(verified)
    }

    /// Takes a snapshot, goes on writing, and compares a clone of the snapshot with what was written before.
    async fn snapshot(&mut self, published: &PublishVolumeResponse) -> Result<(), CommandError> {
        let mut snapshots = SnapshotsClient::new(self.cluster.channel.clone());
        let snapshot = Snapshot {
            metadata: metadata(SNAPSHOT),
            spec: Some(SnapshotSpec {
                volume: VOLUME.to_owned(),
                ..SnapshotSpec::default()
            }),
            status: None,
        };
        let began = Instant::now();
        loop {
            let request = CreateSnapshotRequest {
                snapshot: Some(snapshot.clone()),
                wait_us: Some(WAIT_US),
            };
            let taken = snapshots.create_snapshot(request).await?;
            let status = taken.into_inner().status.unwrap_or_default();
            if status.state() == SnapshotState::Ready {
                break;
            }
            self.check_patience(began, "the snapshot is not taken")?;
        }
        let (written, before) = (
            self.cluster.directory.join(WRITTEN),
            self.cluster.directory.join(WRITTEN_BEFORE),
        );
        std::fs::copy(&written, &before).map_err(failed(&before))?;
        self.tell("a snapshot is taken of all three replicas at one instant")?;
        finished(self.verify(published, 2, WRITTEN)?).await?;
        self.create(CLONE, SNAPSHOT).await?;
        self.until_healthy(CLONE).await?;
        let clone = self.publish(CLONE).await?;
        finished(self.verify(&clone, 0, WRITTEN_BEFORE)?).await?;
        self.tell(
            "the volume was written to once more; a clone of the snapshot holds what was there before",
        )?;
        // The snapshot goes once no volume is being made of it.
        self.unpublish(CLONE).await?;
        let name = SNAPSHOT.to_owned();
        snapshots
            .delete_snapshot(DeleteSnapshotRequest { name: name.clone() })
            .await?;
        let began = Instant::now();
        while snapshots
            .get_snapshot(GetSnapshotRequest { name: name.clone() })
            .await
            .is_ok()
        {
            self.check_patience(began, "the snapshot is not deleted")?;
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    fn check_patience(&self, began: Instant, what: &str) -> Result<(), CommandError> {
        match began.elapsed() > STEP_TIMEOUT {
            true => Err(CommandError::Refused(format!("{what} after {STEP_TIMEOUT:?}"))),
            false => Ok(()),
        }
    }

    async fn create(&self, name: &str, source_snapshot: &str) -> Result<(), CommandError> {
        let volume = Volume {
            metadata: metadata(name),
            spec: Some(VolumeSpec {
                size_bytes: VOLUME_BYTES,
                source_snapshot: source_snapshot.to_owned(),
                policy: Some(VolumePolicy {
                    replicas: Some(3),
                    min_in_sync: Some(2),
                    ..VolumePolicy::default()
                }),
                ..VolumeSpec::default()
            }),
            status: None,
        };
        let request = CreateVolumeRequest {
            volume: Some(volume),
            wait_us: None,
        };
        self.volumes().create_volume(request).await?;
        Ok(())
    }

    async fn unpublish(&self, name: &str) -> Result<(), CommandError> {
        let request = UnpublishVolumeRequest {
            name: name.to_owned(),
            host_nqn: None,
            wait_us: None,
        };
        self.volumes().unpublish_volume(request).await?;
        Ok(())
    }

    async fn remove(&self, name: &str) -> Result<(), CommandError> {
        self.unpublish(name).await?;
        let name = name.to_owned();
        self.volumes().delete_volume(DeleteVolumeRequest { name }).await?;
        Ok(())
    }

    async fn until_healthy(&self, name: &str) -> Result<VolumeStatus, CommandError> {
        let is_healthy = |status: &VolumeStatus| status.state() == VolumeState::Healthy;
        self.until(name, "healthy", is_healthy).await
    }

    /// Waits until a volume is so.
    async fn until(
        &self,
        name: &str,
        what: &str,
        is_so: impl Fn(&VolumeStatus) -> bool,
    ) -> Result<VolumeStatus, CommandError> {
        let began = Instant::now();
        loop {
            let request = GetVolumeRequest {
                name: name.to_owned(),
            };
            let volume = self.volumes().get_volume(request).await?;
            let status = volume.into_inner().status.unwrap_or_default();
            if is_so(&status) {
                return Ok(status);
            }
            if began.elapsed() > STEP_TIMEOUT {
                let state = format!("{} {}", status.state().as_str_name(), status.message);
                return Err(CommandError::Patience {
                    what: format!("volume {name}, to be {what},"),
                    seconds: STEP_TIMEOUT.as_secs(),
                    state,
                    look: format!("volume get {name}"),
                });
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn publish(&self, name: &str) -> Result<PublishVolumeResponse, CommandError> {
        let request = PublishVolumeRequest {
            name: name.to_owned(),
            host: Some(HostAccess {
                host_nqn: HOST.to_owned(),
                read_only: false,
                ..HostAccess::default()
            }),
            ..PublishVolumeRequest::default()
        };
        wait::published(&self.cluster.channel, request, STEP_TIMEOUT.as_secs()).await
    }

    /// Starts a host, which writes for some seconds and reads everything back, and goes on from what a file
    /// says that it wrote before.
    fn verify(
        &self,
        published: &PublishVolumeResponse,
        seconds: u64,
        written: &str,
    ) -> Result<Host, CommandError> {
        let program = Program::Engine.path();
        let mut command = tokio::process::Command::new(&program);
        command.args(["verify", "--subsystem", &published.subsystem_nqn, "--host", HOST]);
        command.args(["--seconds", &seconds.to_string(), "--state"]);
        command.arg(self.cluster.directory.join(written));
        command.args(published.paths.iter().map(|path| path.address.as_str()));
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn();
        child.map_err(failed(&program))
    }
}

type Host = tokio::process::Child;

async fn finished(host: Host) -> Result<Verified, CommandError> {
    let output = host.wait_with_output().await?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        return Err(CommandError::Refused(format!(
            "the host failed: {}",
            errors.trim()
        )));
    }
    serde_json::from_slice(&output.stdout).map_err(|error| CommandError::Print(error.to_string()))
}
