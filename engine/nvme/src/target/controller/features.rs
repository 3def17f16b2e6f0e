//! The features that a host set, with the defaults after a reset (NVMe Base 2.0, 5.27).

use std::collections::BTreeMap;

use crate::target::config::TargetConfig;
use crate::wire::features::ReservationNotificationMask;
use crate::wire::log::ReservationNotificationType;

/// The upper temperature threshold when none is set: none (NVMe Base 2.0, 5.27.1.3).
const TEMPERATURE_NONE_KELVIN: u16 = 0xffff;

/// What a host configured. What other parts act on is kept by them: asynchronous events, keep alive timer,
/// write cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Features {
    /// Dword of Arbitration.
    pub(crate) arbitration: u32,
    /// Upper threshold of the composite temperature in kelvin; FFFFh for none.
    pub(crate) temperature_over_kelvin: u16,
    /// Lower threshold of the composite temperature in kelvin; 0 for none.
    pub(crate) temperature_under_kelvin: u16,
    /// Dword of Error Recovery.
    pub(crate) error_recovery: u32,
    /// Dword of Write Atomicity Normal.
    pub(crate) write_atomicity: u32,
    /// I/O queues that were granted, once the host has asked.
    pub(crate) io_queues_granted: Option<u16>,
    /// The first three bytes of Host Behavior Support.
    pub(crate) host_behavior: [u8; 3],
    /// Reservation Notification Mask, by namespace.
    pub(crate) reservation_masks: BTreeMap<u32, ReservationNotificationMask>,
}

impl Default for Features {
    fn default() -> Self {
        Self {
            arbitration: ARBITRATION_DEFAULT,
            temperature_over_kelvin: TEMPERATURE_NONE_KELVIN,
            temperature_under_kelvin: 0,
            error_recovery: 0,
            write_atomicity: 0,
            io_queues_granted: None,
            host_behavior: [0; 3],
            reservation_masks: BTreeMap::new(),
        }
    }
}

/// No limit to the commands taken of one queue at a time (NVMe Base 2.0, 5.27.1.1).
const ARBITRATION_DEFAULT: u32 = 0x7;

impl Features {
    /// I/O queues that the host may connect.
    pub(crate) fn io_queues(&self, config: &TargetConfig) -> u16 {
        self.io_queues_granted.unwrap_or(config.io_queues_max)
    }

    /// Whether the host does not want to be told of something about a namespace.
    pub(crate) fn masks_reservation(&self, id: u32, kind: ReservationNotificationType) -> bool {
        let bit = match kind {
            ReservationNotificationType::Empty => return true,
            ReservationNotificationType::RegistrationPreempted => {
                ReservationNotificationMask::REGISTRATION_PREEMPTED
            }
            ReservationNotificationType::ReservationReleased => {
                ReservationNotificationMask::RESERVATION_RELEASED
            }
            ReservationNotificationType::ReservationPreempted => {
                ReservationNotificationMask::RESERVATION_PREEMPTED
            }
        };
        self.reservation_masks
            .get(&id)
            .is_some_and(|mask| mask.contains(bit))
    }
}
