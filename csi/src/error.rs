//! Why a call failed, with the code that the CSI specification has for it (section "Error Scheme").

use tonic::{Code, Status};

use crate::host::HostError;

/// Why a call failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    /// A field is missing or wrong.
    #[error("{field} {problem}")]
    Argument {
        /// The field, as the specification calls it.
        field: &'static str,
        /// What is wrong, and what to give instead.
        problem: String,
    },
    /// There is no such volume, snapshot or node.
    #[error("there is no {kind} {id}")]
    NotFound {
        /// What was looked for.
        kind: &'static str,
        /// What it was called.
        id: String,
    },
    /// No replica has the snapshot any more. It is on record, so that people see it; nothing else is left.
    #[error("snapshot {0} is lost: no replica has it any more, and nothing can be made of it; delete it")]
    Lost(String),
    /// The volume is on record, and has nothing: what it was to be made of is lost.
    #[error("volume {id} will never be made: {why}; delete it")]
    NeverMade {
        /// What it is called.
        id: String,
        /// What is lost.
        why: String,
    },
    /// There is another one of this name, or in another way.
    #[error("{kind} {id} is there already, and not as asked for: {difference}")]
    Exists {
        /// What was asked for.
        kind: &'static str,
        /// What it is called.
        id: String,
        /// How it differs.
        difference: String,
    },
    /// No size would do.
    #[error("capacity_range cannot be satisfied: {0}")]
    OutOfRange(String),
    /// Nothing begins there.
    #[error("starting_offset {0} is before the beginning of the snapshot, or behind its end")]
    Offset(i64),
    /// There is no place for it.
    #[error("there is no place for it: {0}")]
    NoPlace(String),
    /// Something stands in the way that somebody has to change first.
    #[error("{0}")]
    Precondition(String),
    /// Something else is under way with it.
    #[error("{kind} {id}: {what}; ask again")]
    Pending {
        /// What it is.
        kind: &'static str,
        /// What it is called.
        id: String,
        /// What is under way.
        what: String,
    },
    /// It takes longer than may be waited.
    #[error("{kind} {id} is not done after {seconds} s: {state}; it goes on, ask again")]
    Patience {
        /// What it is.
        kind: &'static str,
        /// What it is called.
        id: String,
        /// How long was waited.
        seconds: u64,
        /// How far it is.
        state: String,
    },
    /// The token is not one of this list.
    #[error("starting_token is none of this list: take the one of the page before, or none")]
    Token,
    /// The control plane cannot be reached, or refused.
    #[error("{message}")]
    Control {
        /// What it answered.
        code: Code,
        /// Why.
        message: String,
    },
    /// The host could not do it.
    #[error(transparent)]
    Host(#[from] HostError),
}

impl CallError {
    /// A field is wrong.
    pub fn argument(field: &'static str, problem: impl Into<String>) -> Self {
        Self::Argument {
            field,
            problem: problem.into(),
        }
    }

    /// A field that has to be there is not.
    pub fn missing(field: &'static str) -> Self {
        Self::argument(field, "is missing")
    }

    /// There is no such volume.
    pub fn no_volume(id: &str) -> Self {
        Self::NotFound {
            kind: "volume",
            id: id.to_owned(),
        }
    }

    /// The code for orchestrators.
    pub fn code(&self) -> Code {
        match self {
            Self::Argument { .. } => Code::InvalidArgument,
            Self::NotFound { .. } | Self::Lost(_) | Self::NeverMade { .. } => Code::NotFound,
            Self::Exists { .. } => Code::AlreadyExists,
            Self::OutOfRange(_) | Self::Offset(_) => Code::OutOfRange,
            Self::NoPlace(_) => Code::ResourceExhausted,
            Self::Precondition(_) => Code::FailedPrecondition,
            Self::Pending { .. } | Self::Token => Code::Aborted,
            Self::Patience { .. } => Code::DeadlineExceeded,
            Self::Control { code, .. } => *code,
            Self::Host(error) => error.code(),
        }
    }
}

impl From<CallError> for Status {
    fn from(error: CallError) -> Self {
        Status::new(error.code(), error.to_string())
    }
}
