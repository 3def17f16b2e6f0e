//! Namespaces of a controller: which there are, what they are like, and which one is which.

use std::fmt;

use pollux_device::Geometry;
use uuid::Uuid;

use super::admin::AdminQueue;
use super::controller::ControllerDescription;
use super::error::InitiatorError;
use crate::wire::command::Identify;
use crate::wire::identify::{
    DeallocateFeatures, IdentifyNamespace, IdentifyStructure, IndependentNamespace,
    IndependentNamespaceFeatures, IoCommandSupport, NamespaceDescriptor, NamespaceFeatures,
    parse_descriptors, parse_namespace_list,
};
use crate::wire::status::Status;

/// Namespaces of a subsystem that are looked at to find one: one list.
const NAMESPACES_MAX: usize = 1024;

/// By what a namespace is known whatever its number and path: two that differ in one of these are two
/// namespaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespaceIdentity {
    /// UUID, if it has one.
    pub uuid: Option<Uuid>,
    /// NGUID, if it has one.
    pub nguid: Option<[u8; 16]>,
    /// EUI64, if it has one.
    pub eui64: Option<[u8; 8]>,
    /// For namespaces that have none of these: number in the subsystem, and the subsystem's serial number.
    pub fallback: (u32, String),
}

impl NamespaceIdentity {
    /// Whether what is there now is what was there before: everything that was known of it is as it was.
    #[must_use]
    pub fn is_still(&self, now: &Self) -> bool {
        if self.uuid.is_none() && self.nguid.is_none() && self.eui64.is_none() {
            return self == now;
        }
        let kept = |before: bool, same: bool| !before || same;
        kept(self.uuid.is_some(), self.uuid == now.uuid)
            && kept(self.nguid.is_some(), self.nguid == now.nguid)
            && kept(self.eui64.is_some(), self.eui64 == now.eui64)
    }
}

impl fmt::Display for NamespaceIdentity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(uuid) = self.uuid {
            return write!(formatter, "UUID {uuid}");
        }
        if let Some(nguid) = self.nguid {
            return write!(formatter, "NGUID {:032x}", u128::from_be_bytes(nguid));
        }
        if let Some(eui64) = self.eui64 {
            return write!(formatter, "EUI64 {:016x}", u64::from_be_bytes(eui64));
        }
        let (number, serial) = &self.fallback;
        write!(formatter, "namespace {number} of serial number {serial}")
    }
}

/// Which namespace of a subsystem is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NamespaceSelector {
    /// The only one.
    #[default]
    Only,
    /// The one with this number (NSID).
    Id(u32),
    /// The one with this UUID, or with these bytes as its NGUID.
    Uuid(Uuid),
}

/// A namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// Its number in the subsystem (NSID).
    pub id: u32,
    /// Who it is.
    pub identity: NamespaceIdentity,
    /// What it is like, as a block device whose requests may be of any size.
    pub geometry: Geometry,
    /// Write Zeroes is supported.
    pub write_zeroes: bool,
    /// Write Zeroes may free the space (DEAC).
    pub write_zeroes_deallocates: bool,
    /// Dataset Management is supported, and deallocated blocks read as zeros.
    pub dataset_deallocates: bool,
    /// Compare is supported.
    pub compare: bool,
    /// Its controller tells which blocks are allocated, and the others read as zeros.
    pub tells_holes: bool,
}

/// The active namespaces of a controller, in ascending order; at most 1024.
///
/// # Errors
///
/// [`InitiatorError`].
pub async fn list_namespaces(admin: &AdminQueue) -> Result<Vec<u32>, InitiatorError> {
    let what = "to list the namespaces";
    let identify = Identify::new(IdentifyStructure::ActiveNamespaces);
    let list = admin.identify(what, identify, 0).await?;
    Ok(parse_namespace_list(&list).take(NAMESPACES_MAX).collect())
}

/// Describes a namespace; `None` if it is not active.
///
/// # Errors
///
/// [`InitiatorError::Format`] for one that cannot be used, and the others.
pub async fn describe_namespace(
    admin: &AdminQueue,
    controller: &ControllerDescription,
    id: u32,
) -> Result<Option<Namespace>, InitiatorError> {
    let what = "to identify the namespace";
    let identify = match admin
        .identify(what, Identify::new(IdentifyStructure::Namespace), id)
        .await
    {
        Ok(bytes) => IdentifyNamespace::from_bytes(&bytes),
        Err(InitiatorError::Refused { status, .. }) if status.is(Status::INVALID_NAMESPACE_OR_FORMAT) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    // An inactive namespace is all zeros.
    if identify.size_blocks == 0 {
        return Ok(None);
    }
    let what = "to read the identifiers of the namespace";
    let descriptors = Identify::new(IdentifyStructure::NamespaceDescriptors);
    let descriptors = match admin.identify(what, descriptors, id).await {
        Ok(bytes) => bytes,
        // Controllers of before revision 1.3 do not know this list.
        Err(InitiatorError::Refused { .. }) => pollux_hugepages::Buffer::empty(),
        Err(error) => return Err(error),
    };
    let identity = identity(&identify, &descriptors, (id, controller.serial_number.clone()));
    let volatile_write_cache = controller.volatile_write_cache && !is_write_through(admin, id).await?;
    let geometry =
        geometry(&identify, controller, volatile_write_cache).map_err(|what| InitiatorError::Format {
            namespace_id: id,
            what,
        })?;
    let supports = |command| controller.io_commands.contains(command);
    let deallocate = identify.deallocate_features;
    let reads_zeros = deallocate.contains(DeallocateFeatures::READS_ZEROS)
        && !deallocate.contains(DeallocateFeatures::READS_ONES);
    let write_zeroes = supports(IoCommandSupport::WRITE_ZEROES);
    Ok(Some(Namespace {
        id,
        identity,
        geometry,
        write_zeroes,
        write_zeroes_deallocates: write_zeroes
            && deallocate.contains(DeallocateFeatures::WRITE_ZEROES_DEALLOCATES),
        dataset_deallocates: reads_zeros && supports(IoCommandSupport::DATASET_MANAGEMENT),
        compare: supports(IoCommandSupport::COMPARE),
        tells_holes: reads_zeros && controller.reports_allocated,
    }))
}

/// Finds the namespace that is meant.
///
/// # Errors
///
/// [`InitiatorError::NoNamespace`], [`InitiatorError::WhichNamespace`], and those of [`describe_namespace`].
pub async fn find_namespace(
    admin: &AdminQueue,
    controller: &ControllerDescription,
    selector: NamespaceSelector,
) -> Result<Namespace, InitiatorError> {
    let available = list_namespaces(admin).await?;
    let id = match selector {
        NamespaceSelector::Only => match available[..] {
            [only] => Some(only),
            _ => return Err(InitiatorError::WhichNamespace { available }),
        },
        NamespaceSelector::Id(id) => available.contains(&id).then_some(id),
        NamespaceSelector::Uuid(wanted) => {
            for &id in &available {
                // One that cannot be used is not in the way of the others.
                if let Ok(Some(namespace)) = describe_namespace(admin, controller, id).await
                    && (namespace.identity.uuid == Some(wanted)
                        || namespace.identity.nguid == Some(wanted.into_bytes()))
                {
                    return Ok(namespace);
                }
            }
            None
        }
    };
    let found = match id {
        Some(id) => describe_namespace(admin, controller, id).await?,
        None => None,
    };
    found.ok_or_else(|| InitiatorError::NoNamespace {
        wanted: match selector {
            NamespaceSelector::Only => "at all".to_owned(),
            NamespaceSelector::Id(id) => id.to_string(),
            NamespaceSelector::Uuid(uuid) => format!("with UUID {uuid}"),
        },
        available,
    })
}

fn identity(identify: &IdentifyNamespace, descriptors: &[u8], fallback: (u32, String)) -> NamespaceIdentity {
    let some = |given: bool| given.then_some(());
    let mut identity = NamespaceIdentity {
        uuid: None,
        nguid: some(identify.nguid != [0; 16]).map(|()| identify.nguid),
        eui64: some(identify.eui64 != [0; 8]).map(|()| identify.eui64),
        fallback,
    };
    for descriptor in parse_descriptors(descriptors) {
        match descriptor {
            NamespaceDescriptor::Uuid(uuid) if !uuid.is_nil() => identity.uuid = Some(uuid),
            NamespaceDescriptor::Nguid(nguid) if nguid != [0; 16] => identity.nguid = Some(nguid),
            NamespaceDescriptor::Eui64(eui64) if eui64 != [0; 8] => identity.eui64 = Some(eui64),
            NamespaceDescriptor::Uuid(_)
            | NamespaceDescriptor::Nguid(_)
            | NamespaceDescriptor::Eui64(_)
            | NamespaceDescriptor::CommandSet(_) => {}
        }
    }
    identity
}

/// Whether a namespace has no volatile cache although its controller has one for others.
async fn is_write_through(admin: &AdminQueue, id: u32) -> Result<bool, InitiatorError> {
    let what = "to identify the namespace for any command set";
    let identify = Identify::new(IdentifyStructure::IndependentNamespace);
    match admin.identify(what, identify, id).await {
        Ok(bytes) => Ok(IndependentNamespace::from_bytes(&bytes)
            .features
            .contains(IndependentNamespaceFeatures::NO_VOLATILE_WRITE_CACHE)),
        // Controllers of before revision 2.0 do not know this structure.
        Err(InitiatorError::Refused { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

fn geometry(
    identify: &IdentifyNamespace,
    controller: &ControllerDescription,
    volatile_write_cache: bool,
) -> Result<Geometry, String> {
    let format = identify
        .format()
        .ok_or("names a format that it does not have; format it anew")?;
    let block_bytes = format
        .block_bytes()
        .ok_or("has a block size that the specification does not allow")?;
    if format.metadata_bytes != 0 {
        let bytes = format.metadata_bytes;
        return Err(format!(
            "has {bytes} bytes of metadata a block, which is not supported; format it without"
        ));
    }
    let bytes = identify
        .size_blocks
        .checked_mul(u64::from(block_bytes))
        .ok_or("is larger than 64 bits can count")?;
    let mut geometry = Geometry::new(bytes, block_bytes)
        .map_err(|error| format!("has a geometry that is not supported: {error}"))?;
    let features = identify.features;
    if features.contains(NamespaceFeatures::OPTIMAL_PERFORMANCE) {
        geometry.optimal_blocks = u32::from(identify.preferred_write_granularity_blocks_minus_one) + 1;
    }
    let atomic = if features.contains(NamespaceFeatures::ATOMIC_WRITE_UNITS) {
        identify.atomic_write_power_fail_blocks_minus_one
    } else {
        controller.atomic_write_power_fail_blocks_minus_one
    };
    // Larger writes are split, and what is split is torn.
    geometry.atomic_write_blocks =
        (u32::from(atomic) + 1).min((controller.transfer_bytes_max / block_bytes).max(1));
    geometry.volatile_write_cache = volatile_write_cache;
    geometry.read_only = identify.attributes & IdentifyNamespace::WRITE_PROTECTED != 0;
    let deallocate = identify.deallocate_features;
    geometry.deallocates = deallocate.contains(DeallocateFeatures::WRITE_ZEROES_DEALLOCATES)
        && controller.io_commands.contains(IoCommandSupport::WRITE_ZEROES);
    Ok(geometry)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(uuid: u128, nguid: u8, eui64: u8, number: u32) -> NamespaceIdentity {
        NamespaceIdentity {
            uuid: (uuid > 0).then(|| Uuid::from_u128(uuid)),
            nguid: (nguid > 0).then_some([nguid; 16]),
            eui64: (eui64 > 0).then_some([eui64; 8]),
            fallback: (number, "serial".to_owned()),
        }
    }

    #[test]
    fn a_namespace_is_known_by_everything_it_was_known_by() {
        let before = identity(1, 2, 0, 1);
        assert!(before.is_still(&identity(1, 2, 0, 1)));
        assert!(
            before.is_still(&identity(1, 2, 3, 7)),
            "the number and what is new do not matter"
        );
        assert!(!before.is_still(&identity(9, 2, 0, 1)));
        assert!(!before.is_still(&identity(1, 9, 0, 1)));
        assert!(
            !before.is_still(&identity(0, 2, 0, 1)),
            "what it had must be there"
        );
        let nameless = identity(0, 0, 0, 1);
        assert!(nameless.is_still(&nameless));
        assert!(!nameless.is_still(&identity(0, 0, 0, 2)));
        assert!(!nameless.is_still(&identity(5, 0, 0, 1)));
    }
}
