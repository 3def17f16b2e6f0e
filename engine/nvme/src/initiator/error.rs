//! What can go wrong between a host and a controller.

use std::sync::Arc;
use std::time::Duration;

use super::connection::ConnectionError;
use crate::wire::log::DiscoveryLogError;
use crate::wire::status::Status;

/// Why a controller could not be used, or a command to it failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InitiatorError {
    /// The connection could not be made, or ended.
    #[error(transparent)]
    Connection(#[from] Arc<ConnectionError>),
    /// The controller refused a command.
    #[error("the target refused {what}: {}", reason(.what, *.status))]
    Refused {
        /// What it was asked.
        what: &'static str,
        /// What it said.
        status: Status,
    },
    /// The controller did not answer a command in time; the connection was closed.
    #[error("the target did not answer {what} within {} ms", .limit.as_millis())]
    TimedOut {
        /// What it was asked.
        what: &'static str,
        /// How long it had.
        limit: Duration,
    },
    /// The target wants hosts to authenticate.
    #[error("the target wants this host to authenticate; give `secret_file`, or allow the host without it")]
    AuthenticationRequired,
    /// The target wants a secure channel besides.
    #[error(
        "the target wants a secure channel (TLS), which is not supported; have it ask for no more than \
             authentication"
    )]
    SecureChannelRequired,
    /// One side could not prove who it is.
    #[error("{who} is not authenticated: {why}")]
    NotAuthenticated {
        /// Who.
        who: &'static str,
        /// Why.
        why: String,
    },
    /// The controller did not become ready, or stop being ready.
    #[error("the controller did not {what} within {} ms, which is what it said it needs", .limit.as_millis())]
    NotReady {
        /// What it was to do.
        what: &'static str,
        /// How long it had.
        limit: Duration,
    },
    /// The controller reports a fatal error (CSTS.CFS).
    #[error("the controller reports a fatal error; reset the target")]
    Fatal,
    /// The controller cannot be used the way it says it works.
    #[error("the controller {what}")]
    Unusable {
        /// What it does, or does not.
        what: &'static str,
    },
    /// The controller gives no I/O queue.
    #[error(
        "the controller gives no more I/O queues than {granted}; lower `queues`, or allow more at the target"
    )]
    NoQueue {
        /// How many it gives.
        granted: u16,
    },
    /// The namespace asked for is not there.
    #[error("the subsystem has no namespace {wanted}; it has {}", list(.available))]
    NoNamespace {
        /// The one asked for.
        wanted: String,
        /// Those it has, as far as they were listed.
        available: Vec<u32>,
    },
    /// No namespace was named, and there is not exactly one.
    #[error("name a namespace with `nsid` or `uuid`: the subsystem has {}", list(.available))]
    WhichNamespace {
        /// Those it has.
        available: Vec<u32>,
    },
    /// The namespace is formatted in a way that is not supported.
    #[error("namespace {namespace_id} {what}")]
    Format {
        /// The namespace.
        namespace_id: u32,
        /// What is not supported.
        what: String,
    },
    /// What is at the address now is not what was opened.
    #[error("{what} is another one than before: {before} then, {now} now")]
    Another {
        /// What it is.
        what: &'static str,
        /// How it was identified.
        before: String,
        /// How it identifies itself now.
        now: String,
    },
    /// The discovery log makes no sense.
    #[error(transparent)]
    DiscoveryLog(#[from] DiscoveryLogError),
    /// The discovery log is longer than anyone's is.
    #[error("the discovery log has {records} records, more than the {max} that are read")]
    DiscoveryLogTooLong {
        /// How many it has.
        records: u64,
        /// How many are read.
        max: u64,
    },
    /// The discovery log changed each time it was read.
    #[error("the discovery log changed each of the {tries} times it was read; try again")]
    DiscoveryLogUnsteady {
        /// How often it was read.
        tries: u32,
    },
}

impl From<ConnectionError> for InitiatorError {
    fn from(error: ConnectionError) -> Self {
        Self::Connection(Arc::new(error))
    }
}

/// Why a command was refused; for a Connect command, what to do about it as well.
fn reason(what: &str, status: Status) -> String {
    match what == CONNECT {
        true => format!("{}{}", status.connect_text(), hint(status)),
        false => status.to_string(),
    }
}

/// What to do about a status that a Connect command was answered with.
fn hint(status: Status) -> &'static str {
    if status.is(Status::CONNECT_INVALID_HOST) {
        "; allow this host at the target, or give `hostnqn` and `hostid` of one that it allows"
    } else if status.is(Status::CONNECT_INVALID_PARAMETERS) {
        "; check the name of the subsystem, which `nvme discover` lists"
    } else if status.is(Status::CONNECT_CONTROLLER_BUSY) {
        "; try again later, or disconnect other hosts"
    } else if status.is(Status::CONNECT_RESTART_DISCOVERY) {
        "; ask for its address with `nvme discover`"
    } else if status.is(Status::AUTHENTICATION_REQUIRED) {
        "; give `secret_file`"
    } else {
        ""
    }
}

/// What a Connect command is called in errors.
pub(super) const CONNECT: &str = "the Connect command";

fn list(ids: &[u32]) -> String {
    match ids {
        [] => "none".to_owned(),
        ids => ids.iter().map(u32::to_string).collect::<Vec<_>>().join(", "),
    }
}
