//! Closing a volume so that the next target has nothing to make good.

use pollux_device::IoError;

use super::snapshot::SnapshotError;
use super::{Mirror, StopReason};

/// Why a volume was not closed in good order. It is not served any more all the same, and nothing is lost:
/// the next target compares the regions that had intents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WindDownError {
    /// Changes that were under way did not end in time.
    #[error("changes under way did not end in time: the next target compares what they were to change")]
    Busy,
    /// The replicas could not be flushed, or the target had stopped before.
    #[error("the replicas could not be flushed: {0}")]
    Io(#[from] IoError),
}

impl Mirror {
    /// Ends the service of the volume: changes that were begun are done, later ones fail, all is flushed,
    /// and no intent is left. Whoever serves it should see to it that no more requests come, for those
    /// fail.
    ///
    /// # Errors
    ///
    /// [`WindDownError`]; it is closed then too.
    pub async fn wind_down(&self) -> Result<(), WindDownError> {
        let ended = self.leave_nothing().await;
        self.core.stop(StopReason::Closed);
        ended
    }

    async fn leave_nothing(&self) -> Result<(), WindDownError> {
        let core = &self.core;
        let hold = match self.hold(core.options.hold_limit).await {
            Ok(hold) => hold,
            Err(SnapshotError::Io(error)) => return Err(error.into()),
            Err(_) => return Err(WindDownError::Busy),
        };
        core.flush().await?;
        if !hold.is_in_force() {
            return Err(WindDownError::Busy);
        }
        let stamp = core.regions.borrow_mut().retire_all();
        core.map_changed.wake();
        core.map_written
            .until(|| {
                let durable = core.regions.borrow().is_durable(stamp);
                (durable || core.stopped().is_some()).then_some(())
            })
            .await;
        core.check_serving()?;
        Ok(())
    }
}
