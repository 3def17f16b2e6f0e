//! Commands that ask a running engine by its control interface, or do without one.

mod devices;
mod local;
mod pools;
mod print;
mod progress;

use std::error::Error as _;
use std::io::{self, Write};
use std::time::Duration;

use pollux_api::engine::v1::engine_client::EngineClient;
use pollux_api::engine::v1::{
    AddNamespaceRequest, ListNamespacesRequest, Namespace, Qos, RemoveNamespaceRequest,
    ResizeNamespaceRequest, SetQosRequest,
};
use pollux_device::ByteSize;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::cli::{NamespaceArguments, NamespaceCommand, Output};
use crate::settings::{ControlAddress, LimitsSettings, QosSettings};
use crate::table::Table;
pub use pools::{pool, volume};

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an answer may take: removing a namespace flushes its device.
const CALL_TIMEOUT: Duration = Duration::from_secs(120);

/// How often an engine is asked whether it is still there, and how long it may take to say so.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why an engine could not be asked, or refused.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers.
    #[error(
        "no engine answers at {address}: {reason}; start one with `pollux-engine serve --grpc {address} \
         ...`, or tell where it is with --grpc"
    )]
    Connect {
        /// Where one was looked for.
        address: ControlAddress,
        /// What went wrong.
        reason: String,
    },
    /// No answer came, or none that is of an engine.
    #[error(
        "the connection to {address} was lost: {reason}; if it is each time, another program listens there: \
         tell where the engine is with --grpc"
    )]
    Lost {
        /// Where an engine was looked for.
        address: ControlAddress,
        /// What went wrong.
        reason: String,
    },
    /// The engine said no.
    #[error("{0}")]
    Refused(String),
    /// The answer makes no sense.
    #[error("the engine at {address} gave an empty answer: is it of another version?")]
    Empty {
        /// Where it is.
        address: ControlAddress,
    },
    /// There is no reactor for pools that no engine has.
    #[error("cannot start a reactor: {0}; `pollux-engine doctor` tells what this machine offers")]
    Reactor(#[source] io::Error),
    /// The answer could not be printed.
    #[error("cannot print the answer: {0}")]
    Print(#[from] io::Error),
}

/// Does what was asked for and prints the answer.
///
/// # Errors
///
/// [`ClientError`].
pub async fn namespace(arguments: &NamespaceArguments, into: &mut impl Write) -> Result<(), ClientError> {
    let address = &arguments.grpc;
    let mut client = connect(address).await?;
    let refused = |status| refused(address, &status);
    let empty = || ClientError::Empty {
        address: address.clone(),
    };
    match &arguments.command {
        NamespaceCommand::List { output } => {
            let answer = client
                .list_namespaces(ListNamespacesRequest {})
                .await
                .map_err(refused)?;
            print(&answer.into_inner().namespaces, *output, into)?;
        }
        NamespaceCommand::Add { uri, id, output } => {
            let request = AddNamespaceRequest {
                uri: uri.clone(),
                namespace_id: *id,
                qos: None,
            };
            let answer = client.add_namespace(request).await.map_err(refused)?;
            print(&[answer.into_inner().namespace.ok_or_else(empty)?], *output, into)?;
        }
        NamespaceCommand::Remove { id } => {
            let request = RemoveNamespaceRequest { namespace_id: *id };
            client.remove_namespace(request).await.map_err(refused)?;
            writeln!(into, "namespace {id} is removed")?;
        }
        NamespaceCommand::Qos {
            id,
            total,
            read,
            write,
            weight,
            unlimited: _,
            output,
        } => {
            let limits = |given: &Option<LimitsSettings>| given.clone().unwrap_or_default();
            let settings = QosSettings {
                total: limits(total),
                read: limits(read),
                write: limits(write),
                weight: weight.unwrap_or_default(),
            };
            let qos = settings
                .qos()
                .map_err(|error| ClientError::Refused(error.to_string()))?;
            let request = SetQosRequest {
                namespace_id: *id,
                qos: crate::grpc::qos::to_api(&qos),
            };
            let answer = client.set_qos(request).await.map_err(refused)?;
            print(&[answer.into_inner().namespace.ok_or_else(empty)?], *output, into)?;
        }
        NamespaceCommand::Resize { id, size, output } => {
            let request = ResizeNamespaceRequest {
                namespace_id: *id,
                size_bytes: size.0,
            };
            let answer = client.resize_namespace(request).await.map_err(refused)?;
            print(&[answer.into_inner().namespace.ok_or_else(empty)?], *output, into)?;
        }
    }
    Ok(())
}

/// Connects to the control interface of an engine.
///
/// # Errors
///
/// [`ClientError::Connect`].
pub async fn connect(address: &ControlAddress) -> Result<EngineClient<Channel>, ClientError> {
    let channel = reach(address, |endpoint| endpoint.timeout(CALL_TIMEOUT)).await?;
    Ok(EngineClient::new(channel))
}

/// A connection for the services of an engine whose calls may take as long as they do, as long as the engine
/// is there.
///
/// # Errors
///
/// [`ClientError::Connect`].
pub async fn channel(address: &ControlAddress) -> Result<Channel, ClientError> {
    reach(address, |endpoint| endpoint).await
}

async fn reach(
    address: &ControlAddress,
    limit: impl FnOnce(Endpoint) -> Endpoint,
) -> Result<Channel, ClientError> {
    let failed = |error: tonic::transport::Error| ClientError::Connect {
        address: address.clone(),
        reason: innermost(&error),
    };
    let endpoint = limit(
        endpoint(address)
            .map_err(failed)?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT),
    );
    endpoint.connect().await.map_err(failed)
}

/// Where the control interface of an engine is, for connections of any kind.
///
/// # Errors
///
/// The path of a socket that is no part of a URI.
pub(crate) fn endpoint(address: &ControlAddress) -> Result<Endpoint, tonic::transport::Error> {
    Endpoint::from_shared(match address {
        ControlAddress::Unix(path) => format!("unix://{}", path.display()),
        ControlAddress::Tcp(address) => format!("http://{address}"),
    })
}

/// What lies at the bottom of an error: the layers above say no more than that there was one.
pub(crate) fn innermost(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

fn refused(address: &ControlAddress, status: &Status) -> ClientError {
    match (status.code(), status.source()) {
        (Code::Unavailable, None) if status.message().is_empty() => ClientError::Connect {
            address: address.clone(),
            reason: "the connection was lost".to_owned(),
        },
        (Code::Cancelled | Code::DeadlineExceeded, _) | (_, None) => {
            ClientError::Refused(status.message().to_owned())
        }
        // It is not the engine that says so.
        (_, Some(source)) => ClientError::Lost {
            address: address.clone(),
            reason: innermost(source),
        },
    }
}

fn print(namespaces: &[Namespace], output: Output, into: &mut impl Write) -> io::Result<()> {
    match output {
        Output::Json => {
            serde_json::to_writer_pretty(&mut *into, namespaces)?;
            writeln!(into)
        }
        Output::Table if namespaces.is_empty() => writeln!(into, "no namespaces are served"),
        Output::Table => namespace_table(namespaces).write(0, into),
    }
}

/// Namespaces for people.
pub fn namespace_table(namespaces: &[Namespace]) -> Table<6> {
    let mut table = Table::new(["ID", "SIZE", "BLOCK", "WRITES", "LIMITS", "DEVICE"]);
    for namespace in namespaces {
        let writes = match (namespace.read_only, namespace.volatile_write_cache) {
            (true, _) => "none",
            (false, true) => "cached",
            (false, false) => "through",
        };
        table.push([
            namespace.namespace_id.to_string(),
            ByteSize(namespace.size_bytes).to_string(),
            namespace.block_bytes.to_string(),
            writes.to_owned(),
            limits(namespace.qos.as_ref()),
            namespace.uri.clone(),
        ]);
    }
    table
}

/// Limits for people: the most that is allowed for long.
fn limits(qos: Option<&Qos>) -> String {
    let Some(qos) = qos else {
        return "none".to_owned();
    };
    let mut parts = Vec::new();
    for (of, limits) in [("", &qos.total), ("read ", &qos.read), ("write ", &qos.write)] {
        let Some(limits) = limits else { continue };
        let mut add = |rate: &Option<pollux_api::control::v1::QosRate>, text: &dyn Fn(u64) -> String| {
            let Some(rate) = rate else { return };
            let mut part = format!("{of}{}/s", text(rate.per_second));
            if rate.per_second_per_gib > 0 {
                part += &format!("+{}/s/GiB", text(rate.per_second_per_gib));
            }
            if let Some(burst) = &rate.burst {
                part += &format!(" (burst {}/s, {} s)", text(burst.per_second), burst.seconds);
            }
            parts.push(part);
        };
        add(&limits.operations, &|number| number.to_string());
        add(&limits.bytes, &|bytes| ByteSize(bytes).to_string());
    }
    if let Some(weight) = qos.weight {
        parts.push(format!("weight {weight}"));
    }
    parts.join(", ")
}
