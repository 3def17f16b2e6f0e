//! The Asymmetric Namespace Access log (Base 2.0, 5.16.1.13).
//!
//! ```text
//! 0 change count (8)   8 groups (2)   16 the groups, each:
//!     0 group (4)   4 namespaces (4)   8 change count (8)   16 state (3:0)
//!     32 namespace identifiers (4 each), ascending
//! ```

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::wire::status::Status;
use crate::wire::structure::structure;
use crate::wire::wire_enum::wire_enum;

wire_enum! {
    /// Asymmetric namespace access states (Base 2.0, 8.1.3).
    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "snake_case")]
    pub enum AnaState: u8 {
        /// Access is at its best.
        Optimized = 0x01,
        /// Access works, but another controller is better.
        NonOptimized = 0x02,
        /// No access, for now.
        Inaccessible = 0x03,
        /// No access, for good.
        PersistentLoss = 0x04,
        /// Under way to another state.
        Change = 0x0f,
    }
}

structure! {
    /// What the log starts with.
    struct Header: 16 {
        0 => change_count: u64,
        8 => groups: u16,
    }
}

structure! {
    /// What each group starts with.
    struct GroupHeader: 32 {
        0 => group_id: u32,
        4 => namespaces: u32,
        8 => change_count: u64,
        16 => state: u8,
    }
}

impl AnaState {
    /// What a command on a namespace in this state fails with, if it does (Base 2.0, 8.1.3.3 to 8.1.3.5).
    #[must_use]
    pub const fn refusal(self) -> Option<Status> {
        match self {
            Self::Optimized | Self::NonOptimized => None,
            Self::Inaccessible => Some(Status::ANA_INACCESSIBLE),
            Self::PersistentLoss => Some(Status::ANA_PERSISTENT_LOSS),
            Self::Change => Some(Status::ANA_TRANSITION),
        }
    }
}

/// A group of namespaces that change their state together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnaGroup {
    /// Its identifier, from 1.
    pub group_id: u32,
    /// Counts the changes of this group; 0 if not reported.
    pub change_count: u64,
    /// Its state on the controller that gives the log.
    pub state: AnaState,
    /// Its attached namespaces, ascending; left out if the host asks for groups only (RGO).
    pub namespaces: Vec<u32>,
}

/// The log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AnaLog {
    /// Counts the changes of the log.
    pub change_count: u64,
    /// The groups, ascending.
    pub groups: Vec<AnaGroup>,
}

/// A log that is not what the specification says.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum AnaLogError {
    /// It ends before its last group does.
    #[error("the ANA log ends after {bytes} bytes, within group {group_index}; read it with more bytes")]
    Truncated {
        /// Bytes there are.
        bytes: usize,
        /// The group that is not whole, counted from 0.
        group_index: u16,
    },
    /// A state is reserved.
    #[error("ANA group {group_id} has the reserved state {state:#x}; treat the path as unusable")]
    State {
        /// The group.
        group_id: u32,
        /// Its state.
        state: u8,
    },
}

impl AnaLog {
    /// Bit of the Log Specific Parameter of Get Log Page: return groups without their namespaces (RGO).
    pub const GROUPS_ONLY: u8 = 1 << 0;

    /// The most bytes that a log of so many groups of one namespace each has.
    #[must_use]
    pub const fn bytes_max(groups: u32) -> u64 {
        let group_bytes = GroupHeader::BYTES + Self::NAMESPACE_ID_BYTES;
        Header::BYTES as u64 + groups as u64 * group_bytes as u64
    }

    const STATE_MASK: u8 = 0x0f;
    const NAMESPACE_ID_BYTES: usize = 4;

    /// The bytes of the log; of more than 65,535 groups the first 65,535.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let groups = u16::try_from(self.groups.len()).unwrap_or(u16::MAX);
        let mut bytes = Header {
            change_count: self.change_count,
            groups,
        }
        .to_bytes()
        .to_vec();
        for group in self.groups.iter().take(groups.into()) {
            let header = GroupHeader {
                group_id: group.group_id,
                namespaces: u32::try_from(group.namespaces.len()).unwrap_or(u32::MAX),
                change_count: group.change_count,
                state: group.state.to_wire(),
            };
            bytes.extend_from_slice(&header.to_bytes());
            bytes.extend(group.namespaces.iter().flat_map(|id| id.to_le_bytes()));
        }
        bytes
    }

    /// The log in `bytes`.
    ///
    /// # Errors
    /// If it ends too early or holds a reserved state.
    pub fn parse(bytes: &[u8]) -> Result<Self, AnaLogError> {
        let truncated = |group_index| AnaLogError::Truncated {
            bytes: bytes.len(),
            group_index,
        };
        let (header, mut rest) = bytes.split_at_checked(Header::BYTES).ok_or(truncated(0))?;
        let header = Header::from_bytes(header);
        let mut groups = Vec::new();
        for group_index in 0..header.groups {
            let (group, behind) = rest
                .split_at_checked(GroupHeader::BYTES)
                .ok_or(truncated(group_index))?;
            let group = GroupHeader::from_bytes(group);
            let state = AnaState::from_wire(group.state & Self::STATE_MASK).ok_or(AnaLogError::State {
                group_id: group.group_id,
                state: group.state,
            })?;
            let (ids, behind) = (group.namespaces as usize)
                .checked_mul(Self::NAMESPACE_ID_BYTES)
                .and_then(|id_bytes| behind.split_at_checked(id_bytes))
                .ok_or(truncated(group_index))?;
            let (ids, _) = ids.as_chunks::<{ Self::NAMESPACE_ID_BYTES }>();
            groups.push(AnaGroup {
                group_id: group.group_id,
                change_count: group.change_count,
                state,
                namespaces: ids.iter().map(|id| u32::from_le_bytes(*id)).collect(),
            });
            rest = behind;
        }
        Ok(Self {
            change_count: header.change_count,
            groups,
        })
    }
}
