//! Errors as calls return them: a code of gRPC, a text for people, a reason for machines.

use std::collections::HashMap;

use pollux_api::ERROR_DOMAIN;
use pollux_api::engine::v1::Reason;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// The code that gRPC has for a reason.
fn code_of(reason: Reason) -> Code {
    match reason {
        Reason::UriInvalid | Reason::NamespaceIdInvalid | Reason::SizeInvalid | Reason::FieldInvalid => {
            Code::InvalidArgument
        }
        Reason::DeviceUnavailable
        | Reason::ResizeUnsupported
        | Reason::PoolUnavailable
        | Reason::PoolInUse
        | Reason::PoolStopped
        | Reason::PoolReadOnly
        | Reason::DeviceHoldsData
        | Reason::VolumeInUse
        | Reason::VolumeKind
        | Reason::ReplicaUnusable
        | Reason::ShrinkRefused => Code::FailedPrecondition,
        Reason::NamespaceIdInUse
        | Reason::DeviceInUse
        | Reason::PoolExists
        | Reason::VolumeExists
        | Reason::ReplicaExists => Code::AlreadyExists,
        Reason::NamespaceNotFound
        | Reason::PoolNotFound
        | Reason::VolumeNotFound
        | Reason::ReplicaNotFound => Code::NotFound,
        Reason::NamespacesExhausted | Reason::NoSpace => Code::ResourceExhausted,
        Reason::Draining => Code::Unavailable,
        Reason::FlushFailed => Code::DataLoss,
        Reason::Internal | Reason::Unspecified => Code::Internal,
    }
}

/// The status of an error.
pub(super) fn status(reason: Reason, message: impl Into<String>) -> Status {
    let details = details(reason);
    Status::with_error_details(code_of(reason), message, details)
}

/// The status of a field that cannot be what it is.
pub(super) fn field(name: &str, problem: &str) -> Status {
    let mut details = details(Reason::FieldInvalid);
    details.add_bad_request_violation(name, problem);
    let code = code_of(Reason::FieldInvalid);
    Status::with_error_details(code, format!("{name}: {problem}"), details)
}

/// The status of a task that did not come to its end.
pub(super) fn lost(error: &tokio::task::JoinError) -> Status {
    status(Reason::Internal, error.to_string())
}

fn details(reason: Reason) -> ErrorDetails {
    let name = reason.as_str_name();
    let name = name.strip_prefix("REASON_").unwrap_or(name);
    ErrorDetails::with_error_info(name, ERROR_DOMAIN, HashMap::new())
}
