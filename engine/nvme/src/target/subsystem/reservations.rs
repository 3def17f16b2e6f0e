//! The reservations of a subsystem's namespaces: which have them, and who is told of changes.

use uuid::Uuid;

use super::{Subsystem, SubsystemError};
use crate::target::reservation::{Notice, Reservations};

impl Subsystem {
    /// Whether namespaces have reservations. Where access states are reported several engines serve each of
    /// them, which have to share what they know of the hosts.
    pub(crate) fn has_reservations(&self) -> bool {
        let is_shared = self.store.as_ref().is_some_and(|store| store.is_shared());
        (is_shared || !self.asymmetric_access) && !self.nqn.is_discovery()
    }

    /// Takes over the reservations of a namespace that another engine has kept, `None` if there are none,
    /// and which hosts have heard that caches were lost, by the number of the last time that they were. To
    /// be done while the namespace cannot be accessed, before it can again.
    ///
    /// # Errors
    ///
    /// [`SubsystemError::NoNamespace`]; [`SubsystemError::Reservations`]: no access may be given then, as a
    /// host could be let in that is kept out.
    pub async fn adopt_reservations(
        &self,
        id: u32,
        record: Option<&[u8]>,
        caches_lost: Option<u64>,
    ) -> Result<(), SubsystemError> {
        let namespace = self.namespace(id).ok_or_else(|| SubsystemError::NoNamespace {
            id,
            nqn: self.nqn.clone(),
        })?;
        let adopted = namespace
            .reservations
            .adopt(namespace.identity.uuid, record, caches_lost.unwrap_or(0))
            .await;
        adopted.map_err(|error| SubsystemError::Reservations { id, error })
    }

    /// The reservations of a new namespace, with what was kept of them.
    pub(super) fn load_reservations(&self, id: u32, uuid: Uuid) -> Result<Reservations, SubsystemError> {
        if !self.has_reservations() {
            return Ok(Reservations::unsupported());
        }
        Reservations::load(uuid, self.store.clone())
            .map_err(|error| SubsystemError::Reservations { id, error })
    }

    /// Tells hosts of a change.
    pub(crate) fn notify_reservations(&self, id: u32, notices: &[Notice]) {
        if notices.is_empty() {
            return;
        }
        for controller in self.controllers() {
            let told = notices.iter().filter(|notice| notice.host == controller.host.id);
            told.for_each(|notice| controller.reservation_changed(id, notice.kind));
        }
    }
}
