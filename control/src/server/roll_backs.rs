//! Making volumes what they were in a snapshot.
//!
//! A request has a name that its caller draws. It is stored once under that name, and what is stored is done
//! once: so a call that is made again, by whoever did not hear the answer, loses nothing that was written
//! since.

use pollux_api::control::v1::{
    RollBackState, RollBackVolumeRequest, RollBackVolumeResponse, Snapshot, SnapshotState, Volume,
    VolumeRollBack,
};
use uuid::Uuid;

use crate::model::{
    Checker, FieldError, Kind, Record, add_roll_back, check_name, has_snapshot, is_over, roll_back,
    roll_back_under_way,
};
use crate::store::Transaction;

use super::Services;
use super::errors::CallError;
use super::records::{ATTEMPTS_MAX, require_name};
use super::snapshots::{made, require_not_lost};
use super::waiting::Wait;

fn check(request: &RollBackVolumeRequest) -> Result<(), CallError> {
    require_name(&request.name)?;
    let mut errors: Vec<FieldError> = Vec::new();
    check_name(&request.snapshot, &mut Checker::new("snapshot", &mut errors));
    let uid = request.request_uid.parse::<Uuid>();
    let is_uuid = uid.is_ok_and(|uid| !uid.is_nil() && uid.to_string() == request.request_uid);
    if !is_uuid {
        errors.push(FieldError {
            field: "request_uid".to_owned(),
            description: "is no UUID as it is usually written: draw one, and keep it for when you ask again"
                .to_owned(),
        });
    }
    match errors.is_empty() {
        true => Ok(()),
        false => Err(CallError::Fields(errors)),
    }
}

fn told<'a>(volume: &'a Volume, request_uid: &str) -> Option<&'a VolumeRollBack> {
    roll_back(volume.status.as_ref()?, request_uid)
}

impl Services {
    /// Has a volume go back to a snapshot, or tells how far that is.
    pub(super) async fn roll_back(
        &self,
        wait: Wait,
        request: RollBackVolumeRequest,
    ) -> Result<RollBackVolumeResponse, CallError> {
        check(&request)?;
        let uid = &request.request_uid;
        let volume = self.asked_to_roll_back(&request).await?;
        let is_told_over = |volume: &Volume| told(volume, uid).is_none_or(is_over);
        let volume = self.await_record(wait, volume, is_told_over).await?;
        Ok(RollBackVolumeResponse {
            roll_back: told(&volume, uid).cloned(),
        })
    }

    /// The volume with the request.
    async fn asked_to_roll_back(&self, request: &RollBackVolumeRequest) -> Result<Volume, CallError> {
        for _ in 0..ATTEMPTS_MAX {
            let present = self.find::<Volume>(&request.name).await?;
            if let Some(known) = told(&present, &request.request_uid) {
                // After a recovery the name is not known any more.
                if known.snapshot.is_empty() || known.snapshot == request.snapshot {
                    return Ok(present);
                }
                let description = format!(
                    "is that of a request for snapshot {}: draw another",
                    known.snapshot
                );
                return Err(CallError::field("request_uid", &description));
            }
            if present.is_deleting() {
                return Err(CallError::Deleting {
                    kind: Kind::Volume,
                    name: request.name.clone(),
                });
            }
            let (snapshot, condition) = self.refer::<Snapshot>("snapshot", &request.snapshot).await?;
            require_possible(&present, &snapshot)?;
            let mut changed = present.clone();
            let new = VolumeRollBack {
                request_uid: request.request_uid.clone(),
                snapshot: request.snapshot.clone(),
                snapshot_uid: snapshot.meta().uid.clone(),
                state: RollBackState::Requested.into(),
                requested_unix_us: self.parts.clock.now_unix_us(),
                ..VolumeRollBack::default()
            };
            add_roll_back(changed.status.get_or_insert_default(), new);
            let beside = Transaction {
                conditions: vec![condition],
                writes: Vec::new(),
            };
            if let Some(done) = self.replace(&present, changed, beside).await? {
                return Ok(done);
            }
        }
        Err(CallError::Contended {
            kind: Kind::Volume,
            name: request.name.clone(),
        })
    }
}

/// Refuses what makes no sense, and what would take data from under somebody.
fn require_possible(volume: &Volume, snapshot: &Snapshot) -> Result<(), CallError> {
    let not_ready = |why: String| CallError::NotReady {
        name: volume.name().to_owned(),
        why,
    };
    let in_use = |by: String| CallError::InUse {
        kind: Kind::Volume,
        name: volume.name().to_owned(),
        by,
    };
    let status = made(volume)?;
    let of = snapshot.status.clone().unwrap_or_default();
    let name = snapshot.name();
    if of.volume_uid != volume.meta().uid {
        let other = snapshot.spec.as_ref().map_or("", |spec| spec.volume.as_str());
        let description = format!("is one of volume {other}: a volume goes back to its own snapshots only");
        return Err(CallError::field("snapshot", &description));
    }
    require_not_lost(snapshot)?;
    if of.state() != SnapshotState::Ready || !has_snapshot(status, &snapshot.meta().uid) {
        return Err(not_ready(format!(
            "snapshot {name} is not taken yet, or no replica has it"
        )));
    }
    if let Some(host) = volume.spec.iter().flat_map(|spec| &spec.hosts).next() {
        let host = &host.host_nqn;
        return Err(in_use(format!("it is published to {host}: unpublish it first")));
    }
    // One that has begun and cannot go on, as nobody can read its snapshot, never ends: another snapshot is
    // the way out, and nothing of what the volume holds by then is needed.
    let is_in_the_way = |under_way: &&VolumeRollBack| {
        under_way.state() == RollBackState::Requested || under_way.snapshot_uid == snapshot.meta().uid
    };
    match roll_back_under_way(status).filter(is_in_the_way) {
        Some(under_way) => {
            let other = &under_way.snapshot;
            Err(in_use(format!(
                "it is going back to snapshot {other}: wait for that"
            )))
        }
        None => Ok(()),
    }
}
