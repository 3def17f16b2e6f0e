//! What those who manage a pool look at.

use std::rc::Rc;

use pollux_device::BlockDevice;

use super::{Pool, PoolError, labels};
use crate::device::PoolDevice;
use crate::layout::label::Label;
use crate::layout::volume::{VolumeEntry, VolumeState};

impl Pool {
    /// The label of a device: which pool it belongs to.
    ///
    /// # Errors
    ///
    /// [`PoolError::NoPool`] if it has none.
    pub async fn label(device: Rc<dyn BlockDevice>) -> Result<Label, PoolError> {
        let device = PoolDevice::new(device)?;
        let label = labels::read_label(&device).await;
        label.map_err(|error| PoolError::NoPool { device: 0, error })
    }

    /// Volumes and snapshots in use, by name: those whose names come after `name`, `max` of them at most.
    pub fn volumes_after(&self, name: &str, max: usize) -> Vec<VolumeEntry> {
        let state = self.state.borrow();
        state.table.after(name).take(max).cloned().collect()
    }

    /// The name of a volume or snapshot, if it is in use.
    pub fn name_of(&self, id: u64) -> Option<String> {
        let state = self.state.borrow();
        let entry = state.table.get(id)?;
        (entry.state == VolumeState::InUse).then(|| entry.name.clone())
    }

    /// The names of the volumes and snapshots that are open.
    pub fn opened(&self) -> Vec<String> {
        let state = self.state.borrow();
        let open = state.heads.iter().filter(|(_, head)| head.strong_count() > 0);
        let mut names: Vec<String> = open
            .filter_map(|(id, _)| Some(state.table.get(*id)?.name.clone()))
            .collect();
        names.sort_unstable();
        names
    }
}
