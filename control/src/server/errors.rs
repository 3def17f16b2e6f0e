//! Why a call failed: for people a sentence that says what to do, for machines a code, a reason and the
//! fields.

use std::collections::HashMap;

use pollux_api::CONTROL_ERROR_DOMAIN;
use pollux_api::control::v1::Reason;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::controller::RESTORED;
use crate::model::{FieldError, Kind};
use crate::registry::RegistryError;
use crate::store::StoreError;

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// Fields are wrong.
    #[error("{}", describe(.0))]
    Fields(Vec<FieldError>),
    /// There is no such resource.
    #[error("there is no {kind} {name}: `pollux {kind} list` shows those there are")]
    NotFound {
        /// What was looked for.
        kind: Kind,
        /// Its name.
        name: String,
    },
    /// There is another one of this name.
    #[error(
        "there is another {kind} {name} already, asked for in another way: take another name, or update it"
    )]
    NameTaken {
        /// What was to be made.
        kind: Kind,
        /// Its name.
        name: String,
    },
    /// It has changed.
    #[error("{kind} {name} has changed since revision {revision}: read it again, and decide again")]
    RevisionStale {
        /// What was to be changed.
        kind: Kind,
        /// Its name.
        name: String,
        /// The revision that was given.
        revision: u64,
    },
    /// Others need it.
    #[error("{kind} {name} is in use: {by}")]
    InUse {
        /// What was to be deleted.
        kind: Kind,
        /// Its name.
        name: String,
        /// By what, and what to do.
        by: String,
    },
    /// It is being deleted.
    #[error("{kind} {name} is being deleted: wait until it is gone")]
    Deleting {
        /// What was asked for.
        kind: Kind,
        /// Its name.
        name: String,
    },
    /// It cannot serve yet.
    #[error("volume {name} cannot be used yet: {why}")]
    NotReady {
        /// The volume.
        name: String,
        /// Why not.
        why: String,
    },
    /// Nobody can be asked about a snapshot.
    #[error("snapshot {name} cannot be looked at now: {why}")]
    SnapshotAway {
        /// The snapshot.
        name: String,
        /// Why not.
        why: String,
    },
    /// No replica has the snapshot any more.
    #[error("snapshot {name} is lost: no replica has it any more, and nothing can be made of it; delete it")]
    SnapshotLost {
        /// The snapshot.
        name: String,
    },
    /// The token is not of this list.
    #[error("this is no page token of this list: take the one of the page before, or none")]
    PageToken,
    /// It is tried against others all the time.
    #[error("{kind} {name} is changed by others all the time: ask again")]
    Contended {
        /// What was to be changed.
        kind: Kind,
        /// Its name.
        name: String,
    },
    /// Nobody knows the caller.
    #[error("the caller is not known: {0}")]
    Unauthenticated(String),
    /// The caller may not do that.
    #[error("{caller} has the role {role}, which may not do that: it takes the role {needed}")]
    Role {
        /// Who asked.
        caller: String,
        /// The caller's role.
        role: String,
        /// The least role that may.
        needed: String,
    },
    /// Nothing is done by the records.
    #[error("{RESTORED}")]
    Restored,
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The record of who takes part in a volume stays as it is.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

fn describe(errors: &[FieldError]) -> String {
    let texts: Vec<String> = errors
        .iter()
        .map(|error| format!("{} {}", error.field, error.description))
        .collect();
    texts.join("; ")
}

impl CallError {
    /// One wrong field.
    pub fn field(field: &str, description: &str) -> Self {
        Self::Fields(vec![FieldError {
            field: field.to_owned(),
            description: description.to_owned(),
        }])
    }

    /// The reason for machines, and the code that gRPC has for it.
    pub fn reason(&self) -> (Reason, Code) {
        match self {
            Self::Fields(_) => (Reason::FieldInvalid, Code::InvalidArgument),
            Self::NotFound { .. } => (Reason::NotFound, Code::NotFound),
            Self::NameTaken { .. } => (Reason::NameTaken, Code::AlreadyExists),
            Self::RevisionStale { .. } => (Reason::RevisionStale, Code::Aborted),
            Self::InUse { .. } => (Reason::InUse, Code::FailedPrecondition),
            Self::Deleting { .. } => (Reason::Deleting, Code::FailedPrecondition),
            Self::NotReady { .. } | Self::SnapshotAway { .. } => (Reason::NotReady, Code::FailedPrecondition),
            Self::SnapshotLost { .. } => (Reason::SnapshotLost, Code::FailedPrecondition),
            Self::PageToken => (Reason::PageTokenInvalid, Code::InvalidArgument),
            Self::Contended { .. } => (Reason::Contended, Code::Aborted),
            Self::Unauthenticated(_) => (Reason::Unauthenticated, Code::Unauthenticated),
            Self::Role { .. } => (Reason::RoleInsufficient, Code::PermissionDenied),
            Self::Restored | Self::Registry(RegistryError::Restored) => {
                (Reason::RecordsRestored, Code::Unavailable)
            }
            Self::Store(error) | Self::Registry(RegistryError::Store(error)) => match error {
                StoreError::Conflict { .. } => (Reason::Contended, Code::Aborted),
                StoreError::HistoryGone { .. } => (Reason::HistoryGone, Code::OutOfRange),
                StoreError::Oversized(_) => (Reason::FieldInvalid, Code::InvalidArgument),
                StoreError::Unavailable(_) => (Reason::StoreUnavailable, Code::Unavailable),
                StoreError::Damaged(_) => (Reason::StoreDamaged, Code::DataLoss),
            },
            Self::Registry(error) => match error {
                RegistryError::NotFound(_) => (Reason::NotFound, Code::NotFound),
                RegistryError::NotTarget { .. } | RegistryError::Superseded { .. } => {
                    (Reason::EpochStale, Code::FailedPrecondition)
                }
                RegistryError::Illegal { .. } => (Reason::FieldInvalid, Code::InvalidArgument),
                RegistryError::Contended(_) | RegistryError::Restored | RegistryError::Store(_) => {
                    (Reason::Contended, Code::Aborted)
                }
            },
        }
    }
}

impl From<CallError> for Status {
    fn from(error: CallError) -> Self {
        let (reason, code) = error.reason();
        let name = reason.as_str_name();
        let name = name.strip_prefix("REASON_").unwrap_or(name);
        let mut details = ErrorDetails::with_error_info(name, CONTROL_ERROR_DOMAIN, HashMap::new());
        if let CallError::Fields(errors) = &error {
            for wrong in errors {
                details.add_bad_request_violation(&wrong.field, &wrong.description);
            }
        }
        Status::with_error_details(code, error.to_string(), details)
    }
}
