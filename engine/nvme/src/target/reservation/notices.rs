//! What the hosts of a controller were not told yet: the queue behind the Reservation Notification log (NVMe
//! Base 2.2, 5.1.12.1.32).

use std::collections::VecDeque;

use crate::wire::log::{ReservationNotification, ReservationNotificationType};

/// Notifications kept for a host that does not read them.
const NOTICES_MAX: usize = 255;

#[derive(Debug, Clone, Copy)]
struct Entry {
    count: u64,
    kind: ReservationNotificationType,
    namespace_id: u32,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct NoticeQueue {
    /// Counts all there were, kept or not; 0 only before the first one.
    count: u64,
    entries: VecDeque<Entry>,
}

impl NoticeQueue {
    /// One more. If there are too many it is lost, which the count of the newest one tells.
    pub(crate) fn push(&mut self, namespace_id: u32, kind: ReservationNotificationType) {
        self.count = self.count.checked_add(1).unwrap_or(1);
        if self.entries.len() >= NOTICES_MAX {
            if let Some(newest) = self.entries.back_mut() {
                newest.count = self.count;
            }
            return;
        }
        self.entries.push_back(Entry {
            count: self.count,
            kind,
            namespace_id,
        });
    }

    /// The log page: the oldest one, which is taken out, or an empty page.
    pub(crate) fn take(&mut self) -> ReservationNotification {
        let Some(oldest) = self.entries.pop_front() else {
            return ReservationNotification::default();
        };
        ReservationNotification {
            log_page_count: oldest.count,
            notification_field: oldest.kind.to_wire(),
            // At most NOTICES_MAX.
            waiting: self.entries.len() as u8,
            namespace_id: oldest.namespace_id,
        }
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notices_come_in_their_order_and_are_counted() {
        let mut queue = NoticeQueue::default();
        assert_eq!(queue.take(), ReservationNotification::default());
        queue.push(3, ReservationNotificationType::RegistrationPreempted);
        queue.push(4, ReservationNotificationType::ReservationReleased);
        let first = queue.take();
        assert_eq!(
            (
                first.log_page_count,
                first.notification_field,
                first.waiting,
                first.namespace_id
            ),
            (1, 1, 1, 3)
        );
        let second = queue.take();
        assert_eq!(
            (
                second.log_page_count,
                second.notification_field,
                second.waiting,
                second.namespace_id
            ),
            (2, 2, 0, 4)
        );
        assert!(queue.is_empty());
        assert_eq!(queue.take(), ReservationNotification::default());
    }

    #[test]
    fn too_many_are_lost_and_the_newest_count_tells() {
        let mut queue = NoticeQueue::default();
        for _ in 0..NOTICES_MAX + 5 {
            queue.push(1, ReservationNotificationType::ReservationReleased);
        }
        let counts: Vec<_> =
            std::iter::from_fn(|| (!queue.is_empty()).then(|| queue.take().log_page_count)).collect();
        assert_eq!(counts.len(), NOTICES_MAX);
        assert_eq!(counts[..2], [1, 2]);
        assert_eq!(counts.last(), Some(&(NOTICES_MAX as u64 + 5)));
    }

    #[test]
    fn the_count_never_wraps_to_zero() {
        let mut queue = NoticeQueue {
            count: u64::MAX,
            ..NoticeQueue::default()
        };
        queue.push(1, ReservationNotificationType::ReservationReleased);
        assert_eq!(queue.take().log_page_count, 1);
    }
}
