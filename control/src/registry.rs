//! Who takes part in volumes, and the reservations of their hosts: asked for and changed by their targets.
//!
//! A change is a compare-and-swap: it is made if the caller is the node that is to serve the volume, knows
//! the newest version, and the change is a legal one ([`check_follows`]). Everybody else learns what is so,
//! and has to stop acknowledging.

use pollux_api::control::v1::{
    GetMembershipRequest, GetReservationsRequest, Membership, Reservations, Severity, SwapMembershipRequest,
    SwapMembershipResponse, SwapReservationsRequest, SwapReservationsResponse, Volume,
};

use crate::controller::RESTORED;
use crate::model::{Guarded, Kind, Record, check_follows, is_ending, membership, put_membership};
use crate::plan::event;
use crate::store::{RESTORED_KEY, Store, StoreError, Transaction};

/// What became of a volume whose caches were lost, for people.
const LOST: &str = "all replicas in sync may have lost what was in their caches: what hosts were \
                    acknowledged and had not flushed may be gone, and each hears of it by its first \
                    flush, which fails";

/// How often a change is tried against others of the same volume.
const ATTEMPTS_MAX: usize = 16;

/// Bytes of the reservations of a volume; those of as many registrants as there can be have fewer.
pub const RESERVATIONS_BYTES_MAX: usize = 4096;

/// Why a record was not told or not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    /// There is no such volume, or nothing is known of its replicas yet.
    #[error("there is no volume {0} with this identity")]
    NotFound(String),
    /// Another node is to serve it.
    #[error("volume {volume} is to be served by {target:?} and not by {node}, which must not serve it")]
    NotTarget {
        /// The volume.
        volume: String,
        /// Who asked.
        node: String,
        /// Who is to serve it; empty for nobody.
        target: String,
    },
    /// The volume was opened again since.
    #[error("volume {volume} is served in epoch {current}, and {node} asks as in {epoch}: it is superseded")]
    Superseded {
        /// The volume.
        volume: String,
        /// Who asked.
        node: String,
        /// The epoch in which the node serves it.
        epoch: u64,
        /// The newest one.
        current: u64,
    },
    /// The change is none that may be made.
    #[error("the record of volume {volume} cannot become so: {reason}")]
    Illegal {
        /// The volume.
        volume: String,
        /// Why not.
        reason: String,
    },
    /// It was changed by others again and again.
    #[error("volume {0} is changed by others all the time: ask again")]
    Contended(String),
    /// The record may be older than what engines have.
    #[error("{RESTORED}")]
    Restored,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Reads a volume for the node that is to serve it.
async fn read(store: &dyn Store, name: &str, uid: &str, node: &str) -> Result<Volume, RegistryError> {
    // Before the record: it is there as long as an old one may be.
    if store.get(RESTORED_KEY).await?.is_some() {
        return Err(RegistryError::Restored);
    }
    let entry = store.get(&Kind::Volume.key(name)).await?;
    let volume = entry.as_ref().map(Volume::read).transpose()?;
    let is_made = |volume: &Volume| volume.status.as_ref().is_some_and(|status| status.epoch > 0);
    let volume = volume
        .filter(|volume| volume.meta().uid == uid && is_made(volume))
        .ok_or_else(|| RegistryError::NotFound(name.to_owned()))?;
    let target = volume.status.as_ref().map(|status| status.target_node.as_str());
    if target != Some(node) {
        return Err(RegistryError::NotTarget {
            volume: name.to_owned(),
            node: node.to_owned(),
            target: target.unwrap_or_default().to_owned(),
        });
    }
    Ok(volume)
}

fn of(volume: &Volume) -> Membership {
    membership(&volume.meta().uid, &volume.status.clone().unwrap_or_default())
}

/// Who takes part in a volume.
///
/// # Errors
///
/// [`RegistryError`].
pub async fn get_membership(
    store: &dyn Store,
    request: &GetMembershipRequest,
) -> Result<Membership, RegistryError> {
    let volume = read(store, &request.volume, &request.volume_uid, &request.node).await?;
    Ok(of(&volume))
}

/// Changes who takes part in a volume. Asked twice, it is done once and answered twice. People hear of lost
/// caches by an event of this time.
///
/// # Errors
///
/// [`RegistryError`]; nothing has changed then.
pub async fn swap_membership(
    store: &dyn Store,
    request: &SwapMembershipRequest,
    now_unix_us: u64,
) -> Result<SwapMembershipResponse, RegistryError> {
    let mut next = request.next.clone().unwrap_or_default();
    for _ in 0..ATTEMPTS_MAX {
        let mut volume = read(store, &request.volume, &next.volume_uid, &request.node).await?;
        let current = of(&volume);
        if next.caches_lost_epoch == 0 {
            // Engines that are older than this leave it out.
            next.caches_lost_epoch = current.caches_lost_epoch;
        }
        if current == next {
            return Ok(SwapMembershipResponse {
                swapped: true,
                current: None,
            });
        }
        if Some(next.version) != current.version.checked_add(1) {
            return Ok(SwapMembershipResponse {
                swapped: false,
                current: Some(current),
            });
        }
        check_change(&next, &current).map_err(|reason| RegistryError::Illegal {
            volume: request.volume.clone(),
            reason,
        })?;
        put_membership(volume.status.get_or_insert_default(), &next);
        let mut transaction = Transaction::default();
        transaction.put(&volume);
        if next.caches_lost_epoch != current.caches_lost_epoch {
            let told = (volume.subject(), LOST.to_owned());
            let lost = event(now_unix_us, &volume.meta().uid, Severity::Warning, told);
            transaction.put_always(&lost);
        }
        match store.commit(transaction).await {
            Ok(_) => {
                return Ok(SwapMembershipResponse {
                    swapped: true,
                    current: None,
                });
            }
            Err(StoreError::Conflict { key }) if key == volume.key() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(RegistryError::Contended(request.volume.clone()))
}

/// Reads a volume for the node that serves it in an epoch.
async fn read_served(
    store: &dyn Store,
    (name, uid): (&str, &str),
    (node, epoch): (&str, u64),
) -> Result<Volume, RegistryError> {
    let volume = read(store, name, uid, node).await?;
    let current = volume.status.as_ref().map_or(0, |status| status.epoch);
    match current == epoch {
        true => Ok(volume),
        false => Err(RegistryError::Superseded {
            volume: name.to_owned(),
            node: node.to_owned(),
            epoch,
            current,
        }),
    }
}

fn reservations_of(volume: &Volume) -> &[u8] {
    let status = volume.status.as_ref();
    status.map_or(&[], |status| status.reservations.as_slice())
}

/// The reservations of the hosts of a volume.
///
/// # Errors
///
/// [`RegistryError`].
pub async fn get_reservations(
    store: &dyn Store,
    request: &GetReservationsRequest,
) -> Result<Reservations, RegistryError> {
    let volume = (request.volume.as_str(), request.volume_uid.as_str());
    let volume = read_served(store, volume, (&request.node, request.epoch)).await?;
    Ok(Reservations {
        record: reservations_of(&volume).to_vec(),
    })
}

/// Keeps other reservations. Asked twice, it is done once and answered twice.
///
/// # Errors
///
/// [`RegistryError`]; nothing has changed then.
pub async fn swap_reservations(
    store: &dyn Store,
    request: &SwapReservationsRequest,
) -> Result<SwapReservationsResponse, RegistryError> {
    let swapped = SwapReservationsResponse {
        swapped: true,
        current: Vec::new(),
    };
    for _ in 0..ATTEMPTS_MAX {
        let volume = (request.volume.as_str(), request.volume_uid.as_str());
        let mut volume = read_served(store, volume, (&request.node, request.epoch)).await?;
        let current = reservations_of(&volume);
        if current == request.next {
            return Ok(swapped);
        }
        if current != request.before {
            return Ok(SwapReservationsResponse {
                swapped: false,
                current: current.to_vec(),
            });
        }
        volume
            .status
            .get_or_insert_default()
            .reservations
            .clone_from(&request.next);
        let mut transaction = Transaction::default();
        transaction.put(&volume);
        match store.commit(transaction).await {
            Ok(_) => return Ok(swapped),
            Err(StoreError::Conflict { key }) if key == volume.key() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(RegistryError::Contended(request.volume.clone()))
}

/// What targets may change: epoch, states, size and snapshots, that a roll-back is done, and that caches were
/// lost. Who is there is decided here, and what a volume goes back to.
fn check_change(next: &Membership, current: &Membership) -> Result<(), String> {
    check_follows(next, current)?;
    let mut states = current.clone();
    states.epoch = next.epoch;
    states.version = next.version;
    for member in &mut states.members {
        let same = next.members.iter().find(|other| other.uid == member.uid);
        member.state = same.map_or(member.state, |same| same.state);
    }
    states.snapshots.clone_from(&next.snapshots);
    states.size_bytes = next.size_bytes;
    states.caches_lost_epoch = next.caches_lost_epoch;
    if is_ending(next.roll_back.as_ref(), current.roll_back.as_ref()) {
        states.roll_back.clone_from(&next.roll_back);
    }
    match states == *next {
        true => Ok(()),
        false => Err("a target changes epoch, states, size and snapshots, and nothing else".to_owned()),
    }
}
