//! Submission and completion entries, and typed views of the commands Pollux speaks.
//!
//! A submission entry is 64 bytes (Base 2.0, 3.3.3.1), a completion entry 16 (Base 2.0, 3.3.3.2):
//!
//! ```text
//! submission   0 OPC   1 FUSE(1:0) PSDT(7:6)   2 CID   4 NSID   8 CDW2   12 CDW3   16 MPTR   24 SGL1
//!              40 CDW10 .. 60 CDW15
//! completion   0 DW0   4 DW1   8 SQHD   10 SQID   12 CID   14 status and phase tag
//! ```
//!
//! Over fabrics, byte 4 of a submission with opcode 7Fh is the fabrics command type (Base 2.0, 6), there are
//! no PRPs, and SQID and phase tag are reserved.

mod admin;
mod entry;
mod fabrics;
mod lba_status;
mod nvm;
mod opcode;
mod reservation;
mod sgl;

pub use admin::{Abort, FormatNvm, GetFeatures, GetLogPage, Identify, SecureErase, SetFeatures};
pub use entry::{CompletionEntry, Fuse, SubmissionEntry};
pub use fabrics::{
    CONNECT_DATA_BYTES, Connect, ConnectAttributes, ConnectData, ConnectRefusal, ConnectResult,
    DYNAMIC_CONTROLLER, PropertyGet, PropertySet, PropertySize,
};
pub use lba_status::{GetLbaStatus, LbaStatusAction};
pub use nvm::{BlockCommand, BlockFlags, DatasetAttributes, DatasetManagement, DatasetRange};
pub use opcode::{AdminOpcode, FabricsCommandType, IoOpcode, OPCODE_FABRICS};
pub use reservation::{
    AcquireAction, AcquireKeys, PersistChange, RegisterAction, RegisterKeys, ReleaseAction, ReleaseKey,
    ReservationChange, ReservationRegister, ReservationReport,
};
pub use sgl::{DataPointer, SGL_DESCRIPTOR_BYTES, SglDescriptor};
