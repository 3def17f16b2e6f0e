//! Flushes of hosts that have to hear that caches were lost.

use std::time::Duration;

use pollux_reactor::{now, timeout};

use super::attached::Attached;
use super::queue::Shared;
use crate::target::refusal::Refusal;
use crate::wire::status::Status;

/// After a flush of a host has failed for it to hear of a loss, others of the same controller fail for so
/// long: they may be on their way already, for somebody else. One that comes later, by a controller that
/// lives on, is of a host that was sent the failure and did not lose it with a connection.
const ECHO: Duration = Duration::from_secs(1);

impl Attached {
    /// Whether there was a loss that hosts have to hear of.
    #[inline]
    pub(crate) fn has_lost_caches(&self) -> bool {
        self.namespace.reservations.has_lost_caches()
    }
}

/// Lets a flush go on.
///
/// # Errors
///
/// Write Fault for a host that has not heard of a loss; the error of keeping that it has, then it has not.
#[cold]
pub(super) async fn check(queue: &Shared, attached: &Attached) -> Result<(), Refusal> {
    let (namespace, host) = (&attached.namespace, queue.host());
    let Some(loss) = namespace.reservations.unheard_loss(host) else {
        return Ok(());
    };
    let controller = queue.controller();
    let failed_at = controller.flush_failed_at((namespace.instance, loss), now());
    let has_heard = match failed_at {
        Some(at) => now() >= at + ECHO,
        None => namespace.reservations.is_sent_often(host, loss),
    };
    if has_heard {
        let turn = timeout(queue.wait_max, namespace.reservations.turn()).await;
        let turn = turn.unwrap_or(Err(pollux_device::IoError::ResourceShortage))?;
        namespace.reservations.heard(host, loss).await?;
        drop(turn);
        return Ok(());
    }
    if failed_at.is_none() {
        tracing::warn!(
            subsystem = %controller.subsystem.nqn(), namespace = namespace.id,
            host = %controller.host.nqn,
            "a flush fails, so that the host hears that caches were lost: what it was acknowledged and had \
             not flushed may be gone"
        );
    }
    Err(Refusal::of(Status::WRITE_FAULT))
}
