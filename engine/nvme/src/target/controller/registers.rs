//! The properties of a controller (NVMe Base 2.0, 3.1.3) and the state machine behind them.
//!
//! ```text
//!             CC.EN 0 -> 1            CC.EN 1 -> 0
//!  Disabled ----------------> Enabled -------------> Resetting ---(I/O queues gone)---> Disabled
//!                               |  CC.SHN
//!                               +--------> Enabled, shutdown occurring --(flushed)--> shutdown complete
//! ```
//!
//! Over fabrics a controller is ready as soon as it is enabled. A reset ends when the last I/O queue, and
//! with it the last command at a device, is gone: until then CSTS.RDY stays set.

use crate::wire::command::PropertySize;
use crate::wire::properties::{
    Capabilities, CommandSetSupport, Configuration, ControllerStatus, Property, ShutdownNotification,
    ShutdownStatus, Version,
};
use crate::wire::status::Status;

use crate::target::refusal::{Refusal, field};

/// The version of the specification that controllers conform to.
pub(crate) const VERSION: Version = Version::new(2, 0, 0);

/// The longest that enabling, disabling or a shutdown takes when the devices answer, in units of 500 ms
/// (CAP.TO, CRTO.CRWMT).
const READY_TIMEOUT_500MS: u8 = 30;

/// Ready modes (CAP.CRMS): ready with media.
const READY_WITH_MEDIA: u8 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Disabled,
    Enabled,
    Resetting,
}

/// What a write to a property makes the controller do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Nothing more.
    None,
    /// End the I/O queues, forget what hosts configured, and call [`Registers::reset_done`] when all queues
    /// are gone.
    Reset,
    /// Flush every namespace and call [`Registers::shutdown_done`] with this number.
    Shutdown(u64),
}

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Registers {
    capabilities: Capabilities,
    configuration: Configuration,
    phase: Phase,
    shutdown: ShutdownStatus,
    /// Shutdowns begun so far.
    shutdowns: u64,
    fatal: bool,
}

impl Registers {
    /// Those of a new controller whose I/O queues have this many entries at most.
    pub(crate) fn new(queue_depth_max: u16) -> Self {
        Self {
            capabilities: Capabilities {
                max_queue_entries_minus_one: queue_depth_max.saturating_sub(1),
                contiguous_queues: true,
                ready_timeout_500ms: READY_TIMEOUT_500MS,
                command_sets: CommandSetSupport::NVM | CommandSetSupport::IO_COMMAND_SETS,
                ready_modes: READY_WITH_MEDIA,
                ..Capabilities::default()
            },
            configuration: Configuration::default(),
            phase: Phase::Disabled,
            shutdown: ShutdownStatus::Normal,
            shutdowns: 0,
            fatal: false,
        }
    }

    /// Whether commands other than fabrics commands, and I/O queues, are accepted.
    pub(crate) fn is_enabled(&self) -> bool {
        self.phase == Phase::Enabled && !self.fatal
    }

    /// Whether a reset waits for the I/O queues to go.
    pub(crate) fn is_resetting(&self) -> bool {
        self.phase == Phase::Resetting
    }

    /// Reads a property (NVMe Base 2.0, 6.5).
    pub(crate) fn get(&self, offset: u32, size: PropertySize) -> Result<u64, Refusal> {
        let property = find(offset, size)?;
        Ok(match property {
            Property::Capabilities => self.capabilities.to_bits(),
            Property::Version => VERSION.to_bits().into(),
            Property::Configuration => self.configuration.to_bits().into(),
            Property::Status => self.status().to_bits().into(),
            Property::ReadyTimeouts => READY_TIMEOUT_500MS.into(),
            // CAP says that these are not supported.
            Property::SubsystemReset | Property::SubsystemShutdown => {
                return Err(Refusal::invalid_field(field::DWORD_11));
            }
        })
    }

    /// Writes a property (NVMe Base 2.0, 6.6). A refused write changes nothing.
    pub(crate) fn set(&mut self, offset: u32, size: PropertySize, value: u64) -> Result<Effect, Refusal> {
        match find(offset, size)? {
            // A property of four bytes: the wire type has cut the value.
            Property::Configuration => self.configure(Configuration::from_bits(value as u32)),
            Property::Capabilities
            | Property::Version
            | Property::Status
            | Property::ReadyTimeouts
            | Property::SubsystemReset
            | Property::SubsystemShutdown => Err(Refusal::invalid_field(field::DWORD_11)),
        }
    }

    fn status(&self) -> ControllerStatus {
        ControllerStatus {
            ready: self.phase != Phase::Disabled,
            fatal: self.fatal,
            shutdown: self.shutdown,
            ..ControllerStatus::default()
        }
    }

    fn configure(&mut self, new: Configuration) -> Result<Effect, Refusal> {
        let old = self.configuration;
        let refused = Err(Refusal::invalid_field(field::DWORD_12));
        if new.shutdown == ShutdownNotification::Reserved {
            return refused;
        }
        match (self.phase, new.enabled) {
            (Phase::Resetting, true) => return Err(Refusal::of(Status::COMMAND_SEQUENCE_ERROR)),
            (Phase::Disabled, true) if !is_supported(&new) => return refused,
            // These must not change while the controller is enabled (NVMe Base 2.0, 3.1.3.5).
            (Phase::Enabled, true)
                if (new.command_set, new.page_size, new.arbitration)
                    != (old.command_set, old.page_size, old.arbitration)
                    || !has_entry_sizes(&new) =>
            {
                return refused;
            }
            (Phase::Disabled | Phase::Enabled | Phase::Resetting, _) => {}
        }
        self.configuration = new;
        match (self.phase, new.enabled) {
            (Phase::Disabled, true) => {
                self.phase = Phase::Enabled;
                self.shutdown = ShutdownStatus::Normal;
                Ok(self.begin_shutdown(ShutdownNotification::None, new.shutdown))
            }
            (Phase::Enabled, true) => Ok(self.begin_shutdown(old.shutdown, new.shutdown)),
            (Phase::Enabled, false) => {
                self.phase = Phase::Resetting;
                Ok(Effect::Reset)
            }
            (Phase::Disabled, false) => {
                // Nothing was written since the last reset, so that nothing is to be flushed.
                if old.shutdown == ShutdownNotification::None && new.shutdown != ShutdownNotification::None {
                    self.shutdown = ShutdownStatus::Complete;
                }
                Ok(Effect::None)
            }
            (Phase::Resetting, _) => Ok(Effect::None),
        }
    }

    fn begin_shutdown(&mut self, old: ShutdownNotification, new: ShutdownNotification) -> Effect {
        let asked = old == ShutdownNotification::None && new != ShutdownNotification::None;
        if !asked || self.shutdown != ShutdownStatus::Normal {
            return Effect::None;
        }
        self.shutdown = ShutdownStatus::Occurring;
        self.shutdowns += 1;
        Effect::Shutdown(self.shutdowns)
    }

    /// Every I/O queue is gone.
    pub(crate) fn reset_done(&mut self) {
        if self.phase == Phase::Resetting {
            self.phase = Phase::Disabled;
            self.shutdown = ShutdownStatus::Normal;
            self.fatal = false;
        }
    }

    /// Every namespace is flushed, or not. When not, data that hosts believe safe may not be: the
    /// controller fails instead of saying that the shutdown is complete. A shutdown that a reset ended says
    /// nothing about a later one, whose flushes come after more writes.
    pub(crate) fn shutdown_done(&mut self, number: u64, flushed: bool) {
        if self.shutdown == ShutdownStatus::Occurring && number == self.shutdowns {
            if flushed {
                self.shutdown = ShutdownStatus::Complete;
            } else {
                self.fatal = true;
            }
        }
    }

    /// The controller failed for good (keep alive timeout).
    pub(crate) fn fail(&mut self) {
        self.fatal = true;
    }
}

fn find(offset: u32, size: PropertySize) -> Result<Property, Refusal> {
    let property = Property::from_wire(offset).ok_or(Refusal::invalid_field(field::DWORD_11))?;
    if property.size() != size {
        return Err(Refusal::invalid_field(field::DWORD_10));
    }
    Ok(property)
}

/// Whether a controller can be enabled so: what CAP offers, and the entry sizes that fabrics demand.
fn is_supported(configuration: &Configuration) -> bool {
    let command_set = matches!(
        configuration.command_set,
        Configuration::COMMAND_SET_NVM | Configuration::COMMAND_SET_ALL
    );
    command_set
        && configuration.page_size == 0
        && configuration.arbitration == 0
        && !configuration.ready_without_media
        && has_entry_sizes(configuration)
}

fn has_entry_sizes(configuration: &Configuration) -> bool {
    configuration.submission_entry_size == Configuration::SUBMISSION_ENTRY_SIZE
        && configuration.completion_entry_size == Configuration::COMPLETION_ENTRY_SIZE
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CC: u32 = 0x14;
    const CSTS: u32 = 0x1c;
    const ENABLE: u64 = 0x0046_0001;
    const SHUTDOWN_NORMAL: u64 = 1 << 14;
    const SHUTDOWN_ABRUPT: u64 = 2 << 14;
    const READY: u64 = 1;
    const FATAL: u64 = 1 << 1;
    const OCCURRING: u64 = 1 << 2;
    const COMPLETE: u64 = 2 << 2;

    fn set(registers: &mut Registers, value: u64) -> Result<Effect, Status> {
        registers
            .set(CC, PropertySize::Four, value)
            .map_err(|refusal| refusal.status.without_flags())
    }

    fn status(registers: &Registers) -> u64 {
        registers.get(CSTS, PropertySize::Four).unwrap()
    }

    fn enabled() -> Registers {
        let mut registers = Registers::new(128);
        assert_eq!(set(&mut registers, ENABLE), Ok(Effect::None));
        registers
    }

    #[test]
    fn tells_what_it_can() {
        let registers = Registers::new(128);
        let capabilities = registers.get(0, PropertySize::Eight).unwrap();
        // CRMS bit 59, CSS bits 37 and 43, TO 30 at 24, CQR bit 16, MQES 127.
        assert_eq!(capabilities, 0x0800_0820_1e01_007f);
        assert_eq!(registers.get(8, PropertySize::Four), Ok(0x0002_0000));
        assert_eq!(registers.get(0x68, PropertySize::Four), Ok(30));
        assert_eq!(registers.get(CC, PropertySize::Four), Ok(0));
    }

    #[test]
    fn refuses_what_is_not_there() {
        let mut registers = Registers::new(128);
        for (offset, size) in [
            (0, PropertySize::Four),
            (8, PropertySize::Eight),
            (0x0c, PropertySize::Four),
            (0x20, PropertySize::Four),
            (0x64, PropertySize::Four),
            (u32::MAX, PropertySize::Eight),
        ] {
            let refusal = registers.get(offset, size).unwrap_err();
            assert_eq!(
                refusal.status,
                Status::INVALID_FIELD.without_retry(),
                "{offset:#x}"
            );
            assert!(registers.set(offset, size, 0).is_err());
        }
        for offset in [8, CSTS, 0x68] {
            assert!(
                registers.set(offset, PropertySize::Four, 0).is_err(),
                "{offset:#x} is read only"
            );
        }
        assert!(registers.set(0, PropertySize::Eight, 0).is_err());
    }

    #[test]
    fn becomes_ready_and_resets() {
        let mut registers = enabled();
        assert_eq!(status(&registers), READY);
        assert!(registers.is_enabled());
        assert_eq!(set(&mut registers, ENABLE & !1), Ok(Effect::Reset));
        assert_eq!(status(&registers), READY);
        assert!(!registers.is_enabled() && registers.is_resetting());
        assert_eq!(set(&mut registers, ENABLE), Err(Status::COMMAND_SEQUENCE_ERROR));
        registers.reset_done();
        assert_eq!(status(&registers), 0);
        assert_eq!(set(&mut registers, ENABLE), Ok(Effect::None));
    }

    #[test]
    fn refuses_what_it_does_not_offer() {
        for value in [
            ENABLE | 1 << 4,                 // CSS 1
            ENABLE | 7 << 4,                 // CSS 7, admin commands only
            ENABLE | 1 << 7,                 // MPS 1
            ENABLE | 1 << 11,                // AMS 1
            ENABLE | 1 << 24,                // CRIME
            (ENABLE & !0xf_0000) | 7 << 16,  // IOSQES 7
            (ENABLE & !0xf0_0000) | 5 << 20, // IOCQES 5
            1,                               // both 0
            ENABLE | 3 << 14,                // SHN 3
        ] {
            let mut registers = Registers::new(128);
            assert_eq!(
                set(&mut registers, value),
                Err(Status::INVALID_FIELD),
                "{value:#x}"
            );
            assert_eq!(status(&registers), 0);
            assert_eq!(registers.get(CC, PropertySize::Four), Ok(0));
        }
        assert_eq!(set(&mut Registers::new(128), ENABLE | 6 << 4), Ok(Effect::None));
    }

    #[test]
    fn keeps_its_configuration_while_enabled() {
        let mut registers = enabled();
        for value in [ENABLE | 6 << 4, ENABLE | 1 << 7, ENABLE | 1 << 11, 1] {
            assert_eq!(
                set(&mut registers, value),
                Err(Status::INVALID_FIELD),
                "{value:#x}"
            );
        }
        assert_eq!(registers.get(CC, PropertySize::Four), Ok(ENABLE));
        assert_eq!(set(&mut registers, ENABLE), Ok(Effect::None));
    }

    #[test]
    fn shuts_down_once() {
        for notification in [SHUTDOWN_NORMAL, SHUTDOWN_ABRUPT] {
            let mut registers = enabled();
            assert_eq!(
                set(&mut registers, ENABLE | notification),
                Ok(Effect::Shutdown(1))
            );
            assert_eq!(status(&registers), READY | OCCURRING);
            assert_eq!(set(&mut registers, ENABLE | notification), Ok(Effect::None));
            assert_eq!(set(&mut registers, ENABLE), Ok(Effect::None));
            assert_eq!(set(&mut registers, ENABLE | notification), Ok(Effect::None));
            registers.shutdown_done(1, true);
            assert_eq!(status(&registers), READY | COMPLETE);
            assert_eq!(set(&mut registers, 0), Ok(Effect::Reset));
            registers.reset_done();
            assert_eq!(status(&registers), 0);
        }
    }

    #[test]
    fn never_says_complete_when_the_flush_failed() {
        let mut registers = enabled();
        assert_eq!(
            set(&mut registers, ENABLE | SHUTDOWN_NORMAL),
            Ok(Effect::Shutdown(1))
        );
        registers.shutdown_done(1, false);
        assert_eq!(status(&registers), READY | OCCURRING | FATAL);
        assert!(!registers.is_enabled());
        assert_eq!(set(&mut registers, 0), Ok(Effect::Reset));
        registers.reset_done();
        assert_eq!(status(&registers), 0);
    }

    #[test]
    fn a_disabled_controller_is_shut_down_at_once() {
        let mut registers = Registers::new(128);
        assert_eq!(set(&mut registers, SHUTDOWN_NORMAL), Ok(Effect::None));
        assert_eq!(status(&registers), COMPLETE);
    }

    proptest! {
        #[test]
        fn any_writes_leave_a_legal_state(
            values in prop::collection::vec(any::<u32>(), 1..50),
            done in any::<u64>(),
        ) {
            let mut registers = Registers::new(128);
            for (at, value) in values.into_iter().enumerate() {
                let before = registers.get(CC, PropertySize::Four).unwrap();
                if registers.set(CC, PropertySize::Four, value.into()).is_err() {
                    prop_assert_eq!(registers.get(CC, PropertySize::Four).unwrap(), before);
                }
                prop_assert!(!registers.is_enabled() || status(&registers) & READY != 0);
                prop_assert!(!(registers.is_enabled() && registers.is_resetting()));
                if done >> (at % 64) & 1 == 1 {
                    registers.reset_done();
                    registers.shutdown_done(registers.shutdowns, at % 2 == 0);
                    prop_assert!(!registers.is_resetting());
                }
            }
        }
    }
}
