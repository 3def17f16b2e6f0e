//! A namespace: a device under a number, with identifiers that outlive every restart.
//!
//! Invariant: everything but the block count is fixed for the life of a namespace; a device that comes back
//! with another geometry is another namespace.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use pollux_device::{Device, Geometry};
use uuid::Uuid;

use super::config::NamespaceConfig;
use super::io::FusedGuard;
use super::reservation::Reservations;
use crate::wire::log::{AnaGroup, AnaState};
use crate::wire::nqn::Nqn;

/// The name space of the UUIDs that are derived here: a random UUID, frozen.
const DERIVED: Uuid = Uuid::from_u128(0x0d7a_2b1f_6f0e_4c0b_9a83_5a1c_33e7_4d52);

/// The bits of the first byte of an EUI-64 that say whether it was made up locally, and whether it names a
/// group (IEEE, universal/local and individual/group bit).
const LOCALLY_ADMINISTERED: u8 = 0x02;
const GROUP: u8 = 0x01;

/// Never used twice in a process, so that what is kept for one namespace is never taken for another.
static NEXT_INSTANCE: AtomicU64 = AtomicU64::new(1);

/// The identifiers of a namespace (NVMe Base 2.0, 4.5.1 and the Namespace Identification Descriptor list).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uuid: Uuid,
    pub(crate) nguid: [u8; 16],
    pub(crate) eui64: [u8; 8],
}

impl Identity {
    /// What is given, what the device knows of itself, and for the rest what follows from that or from the
    /// names.
    pub(crate) fn new(subsystem: &Nqn, device: &dyn Device, config: &NamespaceConfig) -> Self {
        let own = device.uuid();
        let derive = |what: &str| {
            let name = match own {
                Some(own) => format!("{what}:{own}"),
                // The lengths keep two pairs of names from running together.
                None => {
                    let (length, device) = (subsystem.as_str().len(), device.name());
                    format!("{what}:{length}:{subsystem}:{device}")
                }
            };
            Uuid::new_v5(&DERIVED, name.as_bytes())
        };
        let uuid = config.uuid.or(own).unwrap_or_else(|| derive("uuid"));
        let eui64 = config.eui64.unwrap_or_else(|| {
            let [first, rest @ ..] = derive("eui64").into_bytes();
            let mut eui64 = [0; 8];
            let first = (first | LOCALLY_ADMINISTERED) & !GROUP;
            for (slot, byte) in eui64.iter_mut().zip([first].into_iter().chain(rest)) {
                *slot = byte;
            }
            eui64
        });
        Self {
            uuid,
            nguid: config.nguid.unwrap_or(uuid.into_bytes()),
            eui64,
        }
    }

    /// Whether a host could take one for the other.
    pub(crate) fn collides(&self, other: &Self) -> bool {
        self.uuid == other.uuid || self.nguid == other.nguid || self.eui64 == other.eui64
    }
}

/// What all controllers and reactors share of a namespace.
pub(crate) struct Namespace {
    /// Unique in this process.
    pub(crate) instance: u64,
    /// The namespace identifier (NSID).
    pub(crate) id: u32,
    /// What it is made of.
    pub(crate) device: Arc<dyn Device>,
    /// Its identifiers.
    pub(crate) identity: Identity,
    /// Keeps everybody else out of the range of a fused command.
    pub(crate) fused: FusedGuard,
    /// Which hosts may access it.
    pub(crate) reservations: Reservations,
    geometry: Geometry,
    blocks: AtomicU64,
    /// An [`AnaState`] as it travels; changed under the lock of the subsystem.
    access: AtomicU8,
    access_changes: AtomicU64,
    /// Counts how often the device came back; reactors attach again when it changed.
    returns: AtomicU64,
}

impl Namespace {
    pub(crate) fn new(
        id: u32,
        device: Arc<dyn Device>,
        identity: Identity,
        access: AnaState,
        reservations: Reservations,
    ) -> Self {
        let geometry = device.geometry();
        Self {
            instance: NEXT_INSTANCE.fetch_add(1, Ordering::Relaxed),
            id,
            device,
            identity,
            fused: FusedGuard::default(),
            reservations,
            geometry,
            blocks: AtomicU64::new(geometry.blocks),
            access: AtomicU8::new(access.to_wire()),
            access_changes: AtomicU64::new(0),
            returns: AtomicU64::new(0),
        }
    }

    /// Its geometry, with the size it has now.
    pub(crate) fn geometry(&self) -> Geometry {
        Geometry {
            blocks: self.blocks(),
            ..self.geometry
        }
    }

    /// Its size now, in blocks.
    pub(crate) fn blocks(&self) -> u64 {
        self.blocks.load(Ordering::Relaxed)
    }

    /// Takes over the size of the device; says whether it changed.
    pub(crate) fn refresh_size(&self) -> bool {
        let blocks = self.device.geometry().blocks;
        self.blocks.swap(blocks, Ordering::Relaxed) != blocks
    }

    /// Whether a queue pair with this geometry is one of this namespace: only the size, and what is best
    /// for the device, may differ. Hosts have been told the rest, and would lose data to a difference.
    pub(crate) fn fits(&self, geometry: &Geometry) -> bool {
        let told = Geometry {
            blocks: geometry.blocks,
            optimal_blocks: geometry.optimal_blocks,
            ..self.geometry
        };
        told == *geometry
    }

    /// How this engine reaches it.
    #[inline]
    pub(crate) fn access(&self) -> AnaState {
        // Nothing else is ever stored.
        AnaState::from_wire(self.access.load(Ordering::Relaxed)).unwrap_or(AnaState::Inaccessible)
    }

    /// Changes how this engine reaches it; says whether it did.
    pub(crate) fn set_access(&self, access: AnaState) -> bool {
        let before = self.access.swap(access.to_wire(), Ordering::Relaxed);
        let changed = before != access.to_wire();
        if changed {
            self.access_changes.fetch_add(1, Ordering::Relaxed);
        }
        changed
    }

    /// The group of the access log that is this namespace: each has one of its own, of the same number, as
    /// each moves between engines alone.
    pub(crate) fn access_group(&self) -> AnaGroup {
        AnaGroup {
            group_id: self.id,
            change_count: self.access_changes.load(Ordering::Relaxed),
            state: self.access(),
            namespaces: vec![self.id],
        }
    }

    /// How often the device came back.
    pub(crate) fn returns(&self) -> u64 {
        self.returns.load(Ordering::Acquire)
    }

    /// The device came back.
    pub(crate) fn returned(&self) {
        self.returns.fetch_add(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use pollux_device::events::{Publisher, Subscription};
    use pollux_device::{Attaching, IoError};

    use super::*;

    /// Frozen too.
    const EUI64_OF_OWN: [u8; 8] = [174, 98, 22, 125, 253, 217, 90, 227];

    const SUBSYSTEM: &str = "nqn.2026-11.io.pollux:serve";

    /// A device of which only the name and the UUID matter.
    struct Named(&'static str, Option<Uuid>);

    impl Device for Named {
        fn name(&self) -> &str {
            self.0
        }

        fn uuid(&self) -> Option<Uuid> {
            self.1
        }

        fn geometry(&self) -> Geometry {
            Geometry::new(4096, 4096).unwrap()
        }

        fn attach(self: Arc<Self>) -> Attaching {
            Box::pin(std::future::ready(Err(IoError::Unsupported)))
        }

        fn subscribe(&self) -> Subscription {
            Publisher::default().subscribe()
        }
    }

    fn identity(subsystem: &str, device: &'static str) -> Identity {
        let config = NamespaceConfig::default();
        Identity::new(&subsystem.parse().unwrap(), &Named(device, None), &config)
    }

    /// Hosts keep these in their configuration: they must never change from one release to the next.
    #[test]
    fn derived_identifiers_are_frozen() {
        let identity = identity("nqn.2026-11.io.pollux:serve", "disk0");
        assert_eq!(identity.uuid.to_string(), "2fcad160-7818-5ea0-921f-45db3b048e96");
        assert_eq!(identity.nguid, identity.uuid.into_bytes());
        assert_eq!(identity.eui64, [242, 209, 209, 214, 56, 49, 85, 201]);
    }

    #[test]
    fn derived_identifiers_differ_by_either_name() {
        let one = identity("nqn.2026-11.io.pollux:serve", "disk0");
        assert_eq!(one, identity("nqn.2026-11.io.pollux:serve", "disk0"));
        for other in [
            identity("nqn.2026-11.io.pollux:serve", "disk1"),
            identity("nqn.2026-11.io.pollux:other", "disk0"),
            identity("nqn.2026-11.io.pollux:serve:d", "isk0"),
        ] {
            assert!(!one.collides(&other));
        }
    }

    #[test]
    fn a_device_that_knows_its_uuid_is_the_same_under_any_name_and_subsystem() {
        let own = Uuid::from_u128(0x6c1b_0a7e_7d3c_4c58_9a5e_0f1d_2c3b_4a59);
        let identity = |subsystem: &str, name: &'static str, uuid: Uuid| {
            let config = NamespaceConfig::default();
            Identity::new(&subsystem.parse().unwrap(), &Named(name, Some(uuid)), &config)
        };
        let one = identity(SUBSYSTEM, "tank/db", own);
        assert_eq!((one.uuid, one.nguid), (own, own.into_bytes()));
        assert_eq!(one.eui64, EUI64_OF_OWN);
        assert_eq!(one, identity("nqn.2026-11.io.pollux:other", "tank/other", own));
        assert!(!one.collides(&identity(SUBSYSTEM, "tank/db", Uuid::from_u128(1))));
    }

    #[test]
    fn given_identifiers_are_taken() {
        let config = NamespaceConfig {
            id: None,
            uuid: Some(Uuid::from_u128(7)),
            nguid: Some([3; 16]),
            eui64: Some([5; 8]),
            ..NamespaceConfig::default()
        };
        let device = Named("disk0", Some(Uuid::from_u128(9)));
        let identity = Identity::new(&SUBSYSTEM.parse().unwrap(), &device, &config);
        assert_eq!(
            (identity.uuid, identity.nguid, identity.eui64),
            (Uuid::from_u128(7), [3; 16], [5; 8])
        );
    }
}
