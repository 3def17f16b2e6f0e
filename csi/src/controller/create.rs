//! CreateVolume.
//!
//! A copy of a volume is made of a snapshot that is taken for it, whose name follows from the copy's. The
//! snapshot is deleted once the copy is there, by this call or by the same one again; if the copy is never
//! asked for again, with the copy or with its source, whichever is deleted first.

use std::collections::BTreeMap;

use pollux_api::control::v1::{
    self as control, CreateSnapshotRequest, CreateVolumeRequest as NewVolume, DeleteSnapshotRequest,
    DeleteVolumeRequest as OldVolume, Metadata, PlanVolumeRequest, Reason, SnapshotSpec, SnapshotState,
    VolumeState,
};
use pollux_api::csi::v1::volume_content_source::Type as SourceType;
use pollux_api::csi::v1::{
    CapacityRange, CreateVolumeRequest, CreateVolumeResponse, Topology, VolumeContentSource,
};

use tonic::Status;

use crate::capability::Capability;
use crate::control::{WAIT_US, Waiting, reason};
use crate::error::CallError;
use crate::names::{clone_snapshot, fingerprint, label, resource_name};
use crate::parameters::Parameters;
use crate::topology::{Mode, Place, Places};

use super::ControllerService;
use super::answer::{self, is_deleting, label_of, name_of, require_makeable, size_of, source_label};

/// Volumes are whole multiples of this.
const GRAIN_BYTES: u64 = 1 << 20;

/// Largest volume.
pub const VOLUME_BYTES_MAX: u64 = 256 << 40;

/// Smallest volume.
pub const VOLUME_BYTES_MIN: u64 = GRAIN_BYTES;

/// The size of volumes whose size nobody cares about.
const SIZE_UNSAID_BYTES: u64 = 1 << 30;

/// How often a volume is looked for that others make and delete at the same time.
const ATTEMPTS_MAX: u32 = 3;

/// A size range that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    required: u64,
    limit: Option<u64>,
}

impl Range {
    /// From a message.
    ///
    /// # Errors
    ///
    /// [`CallError::Argument`] for sizes below zero, [`CallError::OutOfRange`] if there is none between.
    pub fn read(range: Option<&CapacityRange>) -> Result<Self, CallError> {
        let CapacityRange {
            required_bytes,
            limit_bytes,
        } = range.copied().unwrap_or_default();
        let negative = |_| CallError::argument("capacity_range", "is less than nothing");
        let required = u64::try_from(required_bytes).map_err(negative)?;
        let limit = u64::try_from(limit_bytes).map_err(negative)?;
        let range = Self {
            required,
            limit: Some(limit).filter(|limit| *limit > 0),
        };
        if required > VOLUME_BYTES_MAX {
            let problem = format!("{required} bytes are required, and {VOLUME_BYTES_MAX} are the most");
            return Err(CallError::OutOfRange(problem));
        }
        match range.limit {
            Some(limit) if limit < required => Err(CallError::OutOfRange(format!(
                "{required} bytes are required, and {limit} are the limit"
            ))),
            _ => Ok(range),
        }
    }

    /// The smallest size that is not less than `least`.
    ///
    /// # Errors
    ///
    /// [`CallError::OutOfRange`] if that is more than the limit.
    pub fn choose(self, least: u64) -> Result<u64, CallError> {
        let unsaid = match self.limit {
            _ if self.required > 0 => self.required,
            Some(limit) => SIZE_UNSAID_BYTES.min(limit / GRAIN_BYTES * GRAIN_BYTES),
            None => SIZE_UNSAID_BYTES,
        };
        let wanted = match least {
            0 => unsaid,
            least => self.required.max(least),
        };
        let size = wanted.max(VOLUME_BYTES_MIN).next_multiple_of(GRAIN_BYTES);
        match self.limit {
            Some(limit) if size > limit => Err(CallError::OutOfRange(format!(
                "the smallest size that would do has {size} bytes, and {limit} are the limit"
            ))),
            _ if size > VOLUME_BYTES_MAX => Err(CallError::OutOfRange(format!(
                "{size} bytes are needed, and {VOLUME_BYTES_MAX} are the most"
            ))),
            _ => Ok(size),
        }
    }

    /// Whether a size would do.
    pub fn holds(self, size: u64) -> bool {
        size >= self.required && self.limit.is_none_or(|limit| size <= limit)
    }

    /// Bytes that are needed.
    pub fn required(self) -> u64 {
        self.required
    }
}

/// A volume that was asked for.
struct Wanted {
    /// Its name in the control plane.
    name: String,
    range: Range,
    parameters: Parameters,
    places: Places,
    source: Option<VolumeContentSource>,
    labels: BTreeMap<String, String>,
}

impl Wanted {
    fn read(request: &CreateVolumeRequest, cluster: &str) -> Result<Self, CallError> {
        let name = resource_name(&request.name)?;
        Capability::read_all("volume_capabilities", &request.volume_capabilities)?;
        let range = Range::read(request.capacity_range.as_ref())?;
        let parameters = Parameters::read(&request.parameters, &request.mutable_parameters)?;
        let places = Places::read(request.accessibility_requirements.as_ref())?;
        let source = request.volume_content_source.clone();
        let source_label = match &source {
            None => None,
            Some(source) => match source_label(Some(source)) {
                Some(label) if !label.ends_with('/') => Some(label),
                _ => return Err(CallError::argument("volume_content_source", "names no source")),
            },
        };
        let mut labels = parameters.tags.clone();
        let request_label = fingerprint(&[
            &request.name,
            &parameters.fingerprint,
            source_label.as_deref().unwrap_or(""),
        ]);
        labels.insert(label::NAME.to_owned(), request.name.clone());
        labels.insert(label::CLUSTER.to_owned(), cluster.to_owned());
        labels.insert(label::REQUEST.to_owned(), request_label);
        if let Some(file_system) = parameters.file_system {
            labels.insert(label::FS_TYPE.to_owned(), file_system.to_string());
        }
        labels.extend(source_label.map(|source| (label::SOURCE.to_owned(), source)));
        Ok(Self {
            name,
            range,
            parameters,
            places,
            source,
            labels,
        })
    }

    /// Whether a volume that is there is the one that is wanted.
    fn require_same(&self, volume: &control::Volume) -> Result<(), CallError> {
        let metadata = volume.metadata.as_ref();
        let same = |key: &str| label_of(metadata, key) == self.labels.get(key).map(String::as_str);
        let difference = if label_of(metadata, label::REQUEST).is_none() {
            "it was not made by this driver".to_owned()
        } else if !same(label::CLUSTER) {
            "it is of another cluster".to_owned()
        } else if !same(label::REQUEST) {
            "its parameters or its source are others".to_owned()
        } else if !self.range.holds(size_of(volume)) {
            format!("it has {} bytes", size_of(volume))
        } else {
            return Ok(());
        };
        Err(CallError::Exists {
            kind: "volume",
            id: self.name.clone(),
            difference,
        })
    }

    /// The volume that it is the copy of, if it is one.
    fn original(&self) -> Option<&str> {
        match self.source.as_ref()?.r#type.as_ref()? {
            SourceType::Volume(source) => Some(&source.volume_id),
            SourceType::Snapshot(_) => None,
        }
    }
}

/// The snapshot that a copy was to be made of is lost, and its source is not: another one is taken.
fn lost_for_clone(copy: &str) -> CallError {
    CallError::Pending {
        kind: "volume",
        id: copy.to_owned(),
        what: "the snapshot that was taken for it is lost, and another one is taken".to_owned(),
    }
}

impl ControllerService {
    pub(super) async fn create(
        &self,
        request: CreateVolumeRequest,
    ) -> Result<CreateVolumeResponse, CallError> {
        let wanted = Wanted::read(&request, self.control.cluster().name())?;
        let mut attempts = 0;
        loop {
            attempts += 1;
            match self.control.any_volume(&wanted.name).await? {
                Some(volume) if is_deleting(volume.metadata.as_ref()) => {
                    return Err(CallError::Pending {
                        kind: "volume",
                        id: wanted.name,
                        what: "one of this name is being deleted".to_owned(),
                    });
                }
                Some(volume) => {
                    wanted.require_same(&volume)?;
                    break;
                }
                None => match self.begin(&wanted).await {
                    Err(CallError::Control { code, .. })
                        if code == tonic::Code::AlreadyExists && attempts < ATTEMPTS_MAX => {}
                    begun => break begun?,
                },
            }
        }
        let volume = self.made(&wanted).await?;
        if wanted.original().is_some() {
            self.forget_clone(&wanted.name).await?;
        }
        let topology = self.reachable(&wanted, &volume).await?;
        Ok(CreateVolumeResponse {
            volume: Some(answer::volume(&volume, topology)),
        })
    }

    /// Stores a volume that is not there.
    async fn begin(&self, wanted: &Wanted) -> Result<(), CallError> {
        let (source_snapshot, least) = self.source(wanted).await?;
        let size = wanted.range.choose(least)?;
        let mut spec = wanted.parameters.spec(size, &wanted.places);
        spec.source_snapshot = source_snapshot;
        let volume = control::Volume {
            metadata: Some(Metadata {
                name: wanted.name.clone(),
                labels: wanted.labels.clone(),
                ..Metadata::default()
            }),
            spec: Some(spec),
            status: None,
        };
        let request = PlanVolumeRequest {
            volume: Some(volume.clone()),
        };
        let refused = |status: Status| match (reason(&status), wanted.original()) {
            (Some(Reason::SnapshotLost), Some(_)) => lost_for_clone(&wanted.name),
            _ => status.into(),
        };
        let plan = self.control.volumes().plan_volume(request).await;
        let plan = plan.map_err(refused)?.into_inner();
        if !plan.fits {
            return Err(CallError::NoPlace(plan.summary));
        }
        let request = NewVolume {
            volume: Some(volume),
            wait_us: Some(WAIT_US),
        };
        let stored = self.control.volumes().create_volume(request).await;
        stored.map(drop).map_err(refused)
    }

    /// The snapshot that a volume begins as, and the bytes that it has at least; empty and 0 for an empty
    /// volume.
    async fn source(&self, wanted: &Wanted) -> Result<(String, u64), CallError> {
        let id = match wanted.source.as_ref().and_then(|source| source.r#type.as_ref()) {
            None => return Ok((String::new(), 0)),
            Some(SourceType::Volume(source)) => {
                let original = self.control.volume(&source.volume_id).await?;
                require_makeable(&original)?;
                let least = size_of(&original);
                wanted.range.choose(least)?;
                let snapshot = self.snapshot_for_clone(&original, &wanted.name).await?;
                return Ok((snapshot, least));
            }
            Some(SourceType::Snapshot(source)) => &source.snapshot_id,
        };
        let not_found = || CallError::NotFound {
            kind: "snapshot",
            id: id.clone(),
        };
        let snapshot = self.control.find_snapshot(id).await?.ok_or_else(not_found)?;
        let status = snapshot.status.clone().unwrap_or_default();
        match status.state() {
            SnapshotState::Ready => Ok((id.clone(), status.size_bytes)),
            SnapshotState::Deleting => Err(not_found()),
            SnapshotState::Lost => Err(CallError::Lost(id.clone())),
            SnapshotState::Pending | SnapshotState::Unspecified => Err(CallError::Pending {
                kind: "snapshot",
                id: id.clone(),
                what: "it is still being taken".to_owned(),
            }),
        }
    }

    /// Takes the snapshot that a copy is made of, and waits until it is taken.
    async fn snapshot_for_clone(&self, original: &control::Volume, copy: &str) -> Result<String, CallError> {
        let name = clone_snapshot(copy);
        let labels = [
            (label::CLONE, copy),
            (label::CLUSTER, self.control.cluster().name()),
        ];
        let snapshot = control::Snapshot {
            metadata: Some(Metadata {
                name: name.clone(),
                labels: labels
                    .map(|(key, value)| (key.to_owned(), value.to_owned()))
                    .into(),
                ..Metadata::default()
            }),
            spec: Some(SnapshotSpec {
                volume: name_of(original.metadata.as_ref()).to_owned(),
                group_snapshot: String::new(),
            }),
            status: None,
        };
        let request = CreateSnapshotRequest {
            snapshot: Some(snapshot),
            wait_us: Some(WAIT_US),
        };
        match self.control.snapshots().create_snapshot(request).await {
            Ok(_) => {}
            // Left over from a request for the same name and another source, which has ended.
            Err(status) if reason(&status) == Some(Reason::NameTaken) => {
                self.forget_clone(copy).await?;
                return Err(CallError::Pending {
                    kind: "volume",
                    id: copy.to_owned(),
                    what: "a snapshot for an earlier request is being deleted".to_owned(),
                });
            }
            Err(status) => return Err(status.into()),
        }
        self.taken(&name, copy).await?;
        Ok(name)
    }

    /// Waits until the snapshot for a copy is taken.
    async fn taken(&self, name: &str, copy: &str) -> Result<control::Snapshot, CallError> {
        let mut waiting = Waiting::default();
        loop {
            let snapshot = self.control.find_snapshot(name).await?;
            let snapshot = snapshot.ok_or_else(|| CallError::Pending {
                kind: "snapshot",
                id: name.to_owned(),
                what: "it was deleted meanwhile".to_owned(),
            })?;
            let state = snapshot.status.as_ref().map(control::SnapshotStatus::state);
            if state == Some(SnapshotState::Ready) {
                return Ok(snapshot);
            }
            if state == Some(SnapshotState::Lost) {
                // Nobody was promised this one: the next call takes another.
                self.forget_clone(copy).await?;
                return Err(lost_for_clone(copy));
            }
            waiting.pause("snapshot", name, "it is being taken").await?;
        }
    }

    /// Deletes the snapshot that a copy was made of, if it is there.
    pub(super) async fn forget_clone(&self, copy: &str) -> Result<(), CallError> {
        let name = clone_snapshot(copy);
        self.control
            .snapshots()
            .delete_snapshot(DeleteSnapshotRequest { name })
            .await?;
        Ok(())
    }

    /// Waits until a volume serves. One whose source is lost is deleted: it will never be there, and who is
    /// told so does not ask for its deletion.
    async fn made(&self, wanted: &Wanted) -> Result<control::Volume, CallError> {
        let name = wanted.name.as_str();
        let mut waiting = Waiting::default();
        loop {
            let gone = || CallError::Pending {
                kind: "volume",
                id: name.to_owned(),
                what: "it was deleted meanwhile".to_owned(),
            };
            let volume = self.control.any_volume(name).await?.ok_or_else(gone)?;
            if is_deleting(volume.metadata.as_ref()) {
                return Err(gone());
            }
            let status = volume.status.clone().unwrap_or_default();
            match status.state() {
                VolumeState::Healthy | VolumeState::Degraded => return Ok(volume),
                // It served before; whether it does now is no matter of this call.
                VolumeState::Unavailable if status.epoch > 0 => return Ok(volume),
                VolumeState::Failed => {
                    let old = OldVolume {
                        name: name.to_owned(),
                    };
                    self.control.volumes().delete_volume(old).await?;
                    let source = volume.spec.unwrap_or_default().source_snapshot;
                    return Err(match wanted.original() {
                        Some(_) => lost_for_clone(name),
                        None => CallError::Lost(source),
                    });
                }
                _ => {}
            }
            let condition = answer::condition(&volume);
            if let Err(late) = waiting.pause("volume", name, &condition.message).await {
                return Err(self.give_up(&volume, late).await);
            }
        }
    }

    /// A volume that got no place in all that time is deleted, so that the orchestrator may ask for another
    /// place; one that is being made goes on.
    async fn give_up(&self, volume: &control::Volume, late: CallError) -> CallError {
        let status = volume.status.clone().unwrap_or_default();
        if status.state() != VolumeState::Pending || !status.replicas.is_empty() {
            return late;
        }
        let name = name_of(volume.metadata.as_ref()).to_owned();
        match self.control.volumes().delete_volume(OldVolume { name }).await {
            Ok(_) => CallError::NoPlace(status.message),
            Err(_) => late,
        }
    }

    /// From where a volume can be reached, if that is not everywhere.
    async fn reachable(&self, wanted: &Wanted, volume: &control::Volume) -> Result<Vec<Topology>, CallError> {
        if wanted.places.is_empty() || wanted.parameters.topology_mode() != Mode::Require {
            return Ok(Vec::new());
        }
        let domains = wanted.places.domains();
        let replicas = volume.status.clone().unwrap_or_default().replicas;
        let mut places: Vec<Place> = Vec::new();
        for node in self.control.nodes().await? {
            let name = name_of(node.metadata.as_ref());
            if !replicas.iter().any(|replica| replica.node == name) {
                continue;
            }
            let spec = node.spec.clone().unwrap_or_default();
            places.push(Place::like(&domains, &spec.zone, &spec.rack, name));
        }
        places.sort();
        places.dedup();
        Ok(places.iter().filter_map(Place::message).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: i64 = 1 << 20;

    fn range(required_bytes: i64, limit_bytes: i64) -> Result<Range, CallError> {
        Range::read(Some(&CapacityRange {
            required_bytes,
            limit_bytes,
        }))
    }

    #[test]
    fn the_smallest_size_in_the_range_is_taken() {
        for (required, limit, least, size) in [
            (0, 0, 0, SIZE_UNSAID_BYTES),
            (0, 5 * MIB + 1, 0, 5 << 20),
            (1, 0, 0, 1 << 20),
            (3 * MIB - 1, 3 * MIB, 0, 3 << 20),
            (0, 0, 7 << 20, 7 << 20),
            (9 * MIB, 0, 7 << 20, 9 << 20),
            (5 * MIB, 0, 7 << 20, 7 << 20),
        ] {
            let range = range(required, limit).expect("a range");
            assert_eq!(range.choose(least).ok(), Some(size), "{range:?}");
            assert!(range.holds(size));
        }
    }

    #[test]
    fn ranges_without_a_size_are_refused() {
        for (required, limit) in [(-1, 0), (0, -1), (2, 1), (i64::MAX, 0)] {
            assert!(range(required, limit).is_err(), "{required} {limit}");
        }
        for (required, limit, least) in [(1, 2, 0), (0, 1, 0), (0, MIB, 2 << 20), (MIB + 1, MIB + 2, 0)] {
            let range = range(required, limit).expect("a range");
            assert!(range.choose(least).is_err(), "{range:?}");
        }
    }
}
