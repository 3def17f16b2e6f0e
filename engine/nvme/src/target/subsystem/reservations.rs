//! The reservations of a subsystem's namespaces: which have them, and who is told of changes.

use uuid::Uuid;

use super::{Subsystem, SubsystemError};
use crate::target::reservation::{Notice, Reservations};

impl Subsystem {
    /// Whether namespaces have reservations. Where access states are reported several engines serve each of
    /// them, and none knows of the hosts of the others.
    pub(crate) fn has_reservations(&self) -> bool {
        !self.asymmetric_access && !self.nqn.is_discovery()
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
