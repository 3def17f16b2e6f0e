//! Volumes and snapshots of the control plane, as orchestrators are told of them.

use std::collections::HashMap;

use pbjson_types::Timestamp;
use pollux_api::control::v1::{self as control, Metadata, SnapshotState, VolumeState};
use pollux_api::csi::v1::volume_content_source::{SnapshotSource, Type as SourceType, VolumeSource};
use pollux_api::csi::v1::volume_health::VolumeHealthEntry;
use pollux_api::csi::v1::{
    Snapshot, Topology, Volume, VolumeCondition, VolumeContentSource, VolumeHealth, VolumeHealthErrorType,
};

use crate::error::CallError;
use crate::names::label;

/// The key in a volume's context of the file system that is made if none is asked for.
pub const CONTEXT_FS_TYPE: &str = "fsType";

/// Bytes as messages have them.
pub fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// A label of something.
pub fn label_of<'a>(metadata: Option<&'a Metadata>, key: &str) -> Option<&'a str> {
    metadata?.labels.get(key).map(String::as_str)
}

/// The bytes of a volume that was asked for.
pub fn size_of(volume: &control::Volume) -> u64 {
    volume.spec.as_ref().map_or(0, |spec| spec.size_bytes)
}

/// Whether something is being deleted.
pub fn is_deleting(metadata: Option<&Metadata>) -> bool {
    metadata.is_some_and(|metadata| metadata.deleted_unix_us.is_some())
}

/// Refuses a volume that will never be made: nobody waits for it, and nothing can be done with it.
///
/// # Errors
///
/// [`CallError::NeverMade`].
pub fn require_makeable(volume: &control::Volume) -> Result<(), CallError> {
    let status = volume.status.as_ref();
    match status.filter(|status| status.state() == VolumeState::Failed) {
        Some(status) => Err(never_made(name_of(volume.metadata.as_ref()), &status.message)),
        None => Ok(()),
    }
}

/// A volume will never be made, for what the control plane says.
pub fn never_made(id: &str, why: &str) -> CallError {
    CallError::NeverMade {
        id: id.to_owned(),
        why: why.to_owned(),
    }
}

/// The name of something.
pub fn name_of(metadata: Option<&Metadata>) -> &str {
    metadata.map_or("", |metadata| metadata.name.as_str())
}

/// What a volume began as, in the words of its label.
pub fn source_label(source: Option<&VolumeContentSource>) -> Option<String> {
    match source?.r#type.as_ref()? {
        SourceType::Snapshot(source) => Some(format!("snapshot/{}", source.snapshot_id)),
        SourceType::Volume(source) => Some(format!("volume/{}", source.volume_id)),
    }
}

fn source(metadata: Option<&Metadata>) -> Option<VolumeContentSource> {
    let (kind, id) = label_of(metadata, label::SOURCE)?.split_once('/')?;
    let kind = match kind {
        "snapshot" => SourceType::Snapshot(SnapshotSource {
            snapshot_id: id.to_owned(),
        }),
        "volume" => SourceType::Volume(VolumeSource {
            volume_id: id.to_owned(),
        }),
        _ => return None,
    };
    Some(VolumeContentSource { r#type: Some(kind) })
}

/// A volume, and from where it can be reached.
pub fn volume(volume: &control::Volume, accessible_topology: Vec<Topology>) -> Volume {
    let metadata = volume.metadata.as_ref();
    let fs_type = label_of(metadata, label::FS_TYPE);
    let context = fs_type.map(|name| (CONTEXT_FS_TYPE.to_owned(), name.to_owned()));
    Volume {
        capacity_bytes: signed(size_of(volume)),
        volume_id: name_of(metadata).to_owned(),
        volume_context: HashMap::from_iter(context),
        content_source: source(metadata),
        accessible_topology,
    }
}

/// What is wrong with a volume: how bad it is, one word for it, and the same for people.
struct Trouble {
    status: VolumeHealthErrorType,
    reason: &'static str,
    state: &'static str,
}

/// What is wrong with a volume in this state; or, of one that is well, how it is.
fn trouble(state: VolumeState) -> Result<&'static str, Trouble> {
    let (status, reason, state) = match state {
        VolumeState::Healthy => return Ok("all copies are in sync"),
        VolumeState::Creating => return Ok("its copies are being made"),
        VolumeState::Pending => (
            VolumeHealthErrorType::Inaccessible,
            "NoPlace",
            "there is no place for it yet",
        ),
        VolumeState::Degraded => (
            VolumeHealthErrorType::Degraded,
            "CopiesMissing",
            "it has fewer copies than it should have",
        ),
        VolumeState::Unavailable => (
            VolumeHealthErrorType::Inaccessible,
            "CopiesUnreachable",
            "too few of its copies can be reached",
        ),
        VolumeState::Failed => (
            VolumeHealthErrorType::Inaccessible,
            "SourceLost",
            "it will never be made",
        ),
        VolumeState::Deleting => (
            VolumeHealthErrorType::Inaccessible,
            "Deleting",
            "it is being deleted",
        ),
        VolumeState::Unspecified => (
            VolumeHealthErrorType::Degraded,
            "StateUnknown",
            "its state is not known",
        ),
    };
    Err(Trouble {
        status,
        reason,
        state,
    })
}

/// A state, and what the control plane says of it.
fn with_message(state: &str, message: &str) -> String {
    match message {
        "" => state.to_owned(),
        message => format!("{state}: {message}"),
    }
}

/// How a volume is, in the words of CSI 1.12.
pub fn condition(volume: &control::Volume) -> VolumeCondition {
    let status = volume.status.clone().unwrap_or_default();
    let trouble = trouble(status.state());
    let abnormal = trouble.is_err();
    let state = trouble.unwrap_or_else(|trouble| trouble.state);
    VolumeCondition {
        abnormal,
        message: with_message(state, &status.message),
    }
}

/// How a volume is, in the words of CSI 1.13: what is wrong with it, if anything is.
pub fn health(volume: &control::Volume) -> VolumeHealth {
    let status = volume.status.clone().unwrap_or_default();
    let trouble = trouble(status.state()).err();
    let entry = trouble.map(|trouble| VolumeHealthEntry {
        status: trouble.status.into(),
        reason: trouble.reason.to_owned(),
        message: with_message(trouble.state, &status.message),
    });
    VolumeHealth {
        volume_id: name_of(volume.metadata.as_ref()).to_owned(),
        health_statuses: entry.into_iter().collect(),
    }
}

/// The nodes that may use a volume.
pub fn published_node_ids(volume: &control::Volume, is_node: impl Fn(&str) -> bool) -> Vec<String> {
    let hosts = volume.spec.as_ref().map_or(&[][..], |spec| &spec.hosts);
    let nodes = hosts.iter().filter(|host| is_node(&host.host_nqn));
    nodes.map(|host| host.host_nqn.clone()).collect()
}

/// Whether a snapshot is there only to make a volume of it.
pub fn is_internal(snapshot: &control::Snapshot) -> bool {
    label_of(snapshot.metadata.as_ref(), label::CLONE).is_some()
}

/// Whether nothing is left of a snapshot.
pub fn is_lost(snapshot: &control::Snapshot) -> bool {
    let status = snapshot.status.as_ref();
    status.is_some_and(|status| status.state() == SnapshotState::Lost)
}

/// A time.
pub fn timestamp(unix_us: u64) -> Timestamp {
    Timestamp {
        seconds: signed(unix_us / 1_000_000),
        nanos: i32::try_from(unix_us % 1_000_000 * 1_000).unwrap_or(0),
    }
}

/// A snapshot.
pub fn snapshot(snapshot: &control::Snapshot) -> Snapshot {
    let metadata = snapshot.metadata.clone().unwrap_or_default();
    let spec = snapshot.spec.clone().unwrap_or_default();
    let status = snapshot.status.clone().unwrap_or_default();
    let taken = status.taken_unix_us.unwrap_or(metadata.created_unix_us);
    Snapshot {
        size_bytes: signed(status.size_bytes),
        snapshot_id: metadata.name,
        source_volume_id: spec.volume,
        creation_time: Some(timestamp(taken)),
        ready_to_use: status.state() == SnapshotState::Ready,
        group_snapshot_id: spec.group_snapshot,
    }
}
