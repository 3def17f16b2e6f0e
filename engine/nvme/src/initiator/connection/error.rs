//! Why a connection, or one command on it, came to its end.

use std::io;
use std::time::Duration;

use pollux_reactor::net::Address;

use crate::wire::pdu::{FatalErrorStatus, PduType, Violation};

/// Why a connection ended, or could not be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectionError {
    /// The name of the target could not be looked up.
    #[error("could not look {endpoint} up: {kind}; check the name, or give an address")]
    Unresolved {
        /// The name and port.
        endpoint: String,
        /// What the operating system said.
        kind: io::ErrorKind,
    },
    /// The target could not be reached.
    #[error("could not connect to {address}: {kind}; check that the target listens there")]
    Unreachable {
        /// Where it should be.
        address: Address,
        /// What the operating system said.
        kind: io::ErrorKind,
    },
    /// The target did not answer in time.
    #[error("no answer to {what} within {} ms", .limit.as_millis())]
    TimedOut {
        /// What was asked.
        what: &'static str,
        /// How long it had.
        limit: Duration,
    },
    /// The target closed the connection.
    #[error("the target closed the connection")]
    Closed,
    /// The connection failed.
    #[error("the connection failed: {kind}")]
    Failed {
        /// What the operating system said.
        kind: io::ErrorKind,
    },
    /// The target ended the connection and said why (NVMe/TCP Transport, C2HTermReq).
    #[error(
        "the target terminated the connection: {}, information {information:#x}",
        status_text(*.status_field)
    )]
    Terminated {
        /// Fatal error status (FES).
        status_field: u16,
        /// Fatal error information (FEI).
        information: u32,
    },
    /// The target broke the protocol.
    #[error("the target broke the protocol: {0}")]
    Violation(#[from] Violation),
    /// The target answered, or sent data for, a command that is not outstanding: one answered twice, or never
    /// sent.
    #[error("the target sent a {pdu_type:?} PDU for command {command_id:#06x}, which is not outstanding")]
    UnknownCommand {
        /// What it sent.
        pdu_type: PduType,
        /// The command identifier in it.
        command_id: u16,
    },
    /// The target reported the success of a command before it had all of its data, or before it had the
    /// command.
    #[error("the target answered command {command_id:#06x} before it had all of it")]
    Premature {
        /// The command.
        command_id: u16,
    },
    /// The target reported the success of a command without sending all of its data.
    #[error(
        "the target sent {received_bytes} of {expected_bytes} bytes of command {command_id:#06x}, a success"
    )]
    ShortData {
        /// The command.
        command_id: u16,
        /// What arrived.
        received_bytes: u32,
        /// What was asked for.
        expected_bytes: u32,
    },
    /// The target agreed to something else than it was asked for.
    #[error("the target {what}; change the target or the parameters {parameters}")]
    Negotiation {
        /// What it did.
        what: &'static str,
        /// The parameters to change.
        parameters: &'static str,
    },
    /// This side ended the connection.
    #[error("the connection was closed here: {reason}")]
    ClosedHere {
        /// Why.
        reason: &'static str,
    },
}

fn status_text(status_field: u16) -> String {
    FatalErrorStatus::from_wire(status_field).map_or_else(
        || format!("fatal error status {status_field:#06x}"),
        |status| format!("{status:?}"),
    )
}

impl ConnectionError {
    pub(crate) fn from_io(error: &io::Error) -> Self {
        Self::Failed { kind: error.kind() }
    }

    /// What to tell the target about it in a termination request; `None` when it is not the target's fault,
    /// or must not be answered.
    pub(super) fn to_tell(&self) -> Option<Violation> {
        match self {
            Self::Violation(violation) => violation.deserves_answer().then_some(*violation),
            Self::UnknownCommand { pdu_type, .. } => Some(Violation::Field {
                pdu_type: *pdu_type,
                offset: match pdu_type {
                    // The command identifier is in the completion queue entry there.
                    PduType::Response => 20,
                    _ => 8,
                },
            }),
            Self::Premature { .. } | Self::ShortData { .. } => Some(Violation::OutOfSequence {
                pdu_type: PduType::Response,
            }),
            Self::Negotiation { .. } => Some(Violation::OutOfSequence {
                pdu_type: PduType::InitializeResponse,
            }),
            Self::Unresolved { .. }
            | Self::Unreachable { .. }
            | Self::TimedOut { .. }
            | Self::Closed
            | Self::Failed { .. }
            | Self::Terminated { .. }
            | Self::ClosedHere { .. } => None,
        }
    }
}

/// Why a command ended without a completion of the target that can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// The connection ended first. Whether the target executes, has executed or will execute the command is
    /// unknown, unless no part of it was sent.
    #[error("the connection ended before the command was answered")]
    ConnectionLost {
        /// Whether a part of the command may have reached the target.
        sent: bool,
    },
    /// The data that arrived does not match its digest. The command may be sent again.
    #[error("the data received does not match its digest")]
    DataDigest,
}
