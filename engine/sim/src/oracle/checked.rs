//! A block device whose every request is checked against an oracle.

use std::cell::RefCell;
use std::rc::Rc;

use pollux_device::{BlockDevice, BlockDeviceExt, IoError, ZeroOptions};
use pollux_hugepages::Buffer;

use super::{BadPattern, Oracle, Pattern, Violation, WriteOutcome, WriteTicket};

/// The oracle of a volume, shared by its clients.
pub type SharedOracle = Rc<RefCell<Oracle>>;

/// A request that failed, or returned what it must not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckError {
    /// The device said so.
    #[error("the request failed: {0}")]
    Io(#[from] IoError),
    /// A read returned what it must not.
    #[error(transparent)]
    Violation(#[from] Violation),
    /// A read returned what nobody wrote.
    #[error(transparent)]
    BadPattern(#[from] BadPattern),
}

impl CheckError {
    /// What the device said, for errors that are not the device's word against the oracle's.
    ///
    /// # Errors
    ///
    /// The error itself, when the device is wrong.
    pub fn io(self) -> Result<IoError, Self> {
        match self {
            Self::Io(error) => Ok(error),
            wrong => Err(wrong),
        }
    }
}

/// A device and its oracle. Cheap to clone; clones are clients side by side.
#[derive(Clone)]
pub struct CheckedDevice {
    device: Rc<dyn BlockDevice>,
    oracle: SharedOracle,
    pattern: Pattern,
    /// Errors leave writes that may still happen.
    errors_are_final: bool,
}

impl CheckedDevice {
    /// A device whose failed writes have happened, or not, and will not happen later: a local one.
    pub fn new(device: Rc<dyn BlockDevice>, oracle: SharedOracle) -> Self {
        let block_bytes = device.geometry().block_bytes as usize;
        Self {
            device,
            oracle,
            pattern: Pattern { block_bytes },
            errors_are_final: true,
        }
    }

    /// A device whose failed writes may still happen at any time: one behind a network.
    pub fn remote(device: Rc<dyn BlockDevice>, oracle: SharedOracle) -> Self {
        Self {
            errors_are_final: false,
            ..Self::new(device, oracle)
        }
    }

    /// The device itself.
    pub fn device(&self) -> &Rc<dyn BlockDevice> {
        &self.device
    }

    /// The oracle.
    pub fn oracle(&self) -> &SharedOracle {
        &self.oracle
    }

    /// Writes a new value to some blocks.
    ///
    /// # Errors
    ///
    /// [`CheckError::Io`].
    pub async fn write(&self, block: u64, blocks: u64, force_unit_access: bool) -> Result<(), CheckError> {
        let ticket = self.oracle.borrow_mut().start_write(block, blocks);
        let mut data = Buffer::from_heap(blocks as usize * self.pattern.block_bytes);
        self.pattern.fill(&mut data, block, ticket.value());
        let result = self.device.write(block, data, force_unit_access).await;
        self.end_write(ticket, result, force_unit_access)
    }

    /// Makes some blocks zeros.
    ///
    /// # Errors
    ///
    /// [`CheckError::Io`].
    pub async fn write_zeroes(
        &self,
        block: u64,
        blocks: u64,
        options: ZeroOptions,
    ) -> Result<(), CheckError> {
        let ticket = self.oracle.borrow_mut().start_zeroes(block, blocks);
        let result = self.device.write_zeroes(block, blocks, options).await;
        self.end_write(ticket, result, options.force_unit_access)
    }

    /// Deallocates some blocks.
    ///
    /// # Errors
    ///
    /// [`CheckError::Io`].
    pub async fn deallocate(&self, block: u64, blocks: u64) -> Result<(), CheckError> {
        let ticket = self.oracle.borrow_mut().start_zeroes(block, blocks);
        let result = self.device.deallocate(block, blocks).await;
        self.end_write(ticket, result, false)
    }

    fn end_write(
        &self,
        ticket: WriteTicket,
        result: Result<(), IoError>,
        force_unit_access: bool,
    ) -> Result<(), CheckError> {
        let durable = force_unit_access || !self.device.geometry().volatile_write_cache;
        let outcome = match result {
            Ok(()) => WriteOutcome::Acknowledged { durable },
            // It was not begun.
            Err(IoError::NotReady) => WriteOutcome::Failed,
            Err(_) if self.errors_are_final => WriteOutcome::Failed,
            Err(_) => WriteOutcome::Unknown,
        };
        self.oracle.borrow_mut().end_write(ticket, outcome);
        Ok(result?)
    }

    /// Flushes.
    ///
    /// # Errors
    ///
    /// [`CheckError::Io`].
    pub async fn flush(&self) -> Result<(), CheckError> {
        let ticket = self.oracle.borrow_mut().start_flush();
        self.device.flush().await?;
        self.oracle.borrow_mut().end_flush(ticket);
        Ok(())
    }

    /// Reads some blocks and checks what they hold.
    ///
    /// # Errors
    ///
    /// [`CheckError`].
    pub async fn read(&self, block: u64, blocks: u64) -> Result<(), CheckError> {
        let ticket = self.oracle.borrow_mut().start_read(block, blocks);
        let into = Buffer::from_heap(blocks as usize * self.pattern.block_bytes);
        let data = match self.device.read(block, into).await {
            Ok(data) => data,
            Err(error) => {
                self.oracle.borrow_mut().abandon_read(ticket);
                return Err(error.into());
            }
        };
        let values = self.pattern.values(&data, block)?;
        Ok(self.oracle.borrow_mut().end_read(ticket, &values)?)
    }

    /// Reads every block that was ever written, and checks it; but for those behind the end of the device,
    /// which would be zeros if it grew.
    ///
    /// # Errors
    ///
    /// [`CheckError`].
    pub async fn read_all(&self) -> Result<(), CheckError> {
        let end = self.device.geometry().blocks;
        let touched: Vec<u64> = self
            .oracle
            .borrow()
            .touched()
            .filter(|block| *block < end)
            .collect();
        for block in touched {
            self.read(block, 1).await?;
        }
        Ok(())
    }
}
