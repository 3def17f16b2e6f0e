//! `pollux-csi call`: calls from a shell, for those who look into what happens, and for tests.

mod controller;
mod node;

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use hyper_util::rt::TokioIo;
use pollux_api::csi::v1::VolumeCapability;
use pollux_api::csi::v1::volume_capability::access_mode::Mode;
use pollux_api::csi::v1::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use tokio::net::UnixStream;
use tonic::Status;
use tonic::transport::{Endpoint, Uri};

use crate::secrets;

pub use controller::ControllerCall;
pub use node::NodeCall;

/// What is asked of a service.
#[derive(Debug, Subcommand)]
pub enum Call {
    /// The node service.
    #[command(flatten)]
    Node(NodeCall),
    /// Call the controller service.
    Controller {
        /// What is asked of it.
        #[command(subcommand)]
        call: ControllerCall,
    },
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("give KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

/// Secrets, which are in files: arguments can be seen by others.
#[derive(Debug, Args)]
pub struct SecretArguments {
    /// The file of the secret that the node authenticates by, DHHC-1:xx:BASE64:.
    #[arg(long, value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// The file of the secret by which the volume authenticates to the node.
    #[arg(long, value_name = "FILE")]
    controller_secret_file: Option<PathBuf>,
}

impl SecretArguments {
    fn read(&self) -> Result<HashMap<String, String>, Status> {
        let files = [
            (secrets::HOST, &self.secret_file),
            (secrets::CONTROLLER, &self.controller_secret_file),
        ];
        let mut read = HashMap::new();
        for (key, file) in files {
            if let Some(file) = file {
                let text = std::fs::read_to_string(file);
                let text =
                    text.map_err(|error| Status::invalid_argument(format!("{}: {error}", file.display())))?;
                read.insert(key.to_owned(), text);
            }
        }
        Ok(read)
    }
}

/// As what a volume is used.
#[derive(Debug, Args)]
pub struct FormArguments {
    /// As a block device.
    #[arg(long)]
    block: bool,
    /// As one that several nodes write.
    #[arg(long, requires = "block")]
    shared: bool,
}

impl FormArguments {
    /// A file system, of a kind or the usual one, or a block device.
    fn capability(&self, fs_type: &str, options: &[String]) -> VolumeCapability {
        let access = match self.block {
            true => AccessType::Block(BlockVolume {}),
            false => AccessType::Mount(MountVolume {
                fs_type: fs_type.to_owned(),
                mount_flags: options.to_vec(),
                volume_mount_group: String::new(),
            }),
        };
        let mode = match self.shared {
            true => Mode::MultiNodeMultiWriter,
            false => Mode::SingleNodeWriter,
        };
        VolumeCapability {
            access_mode: Some(AccessMode { mode: mode.into() }),
            access_type: Some(access),
        }
    }
}

/// What was answered, for people.
struct Lines(Vec<String>);

impl fmt::Display for Lines {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|line| writeln!(formatter, "{line}"))
    }
}

/// Calls the service at a socket, and returns what it answered.
///
/// # Errors
///
/// Why it refused, with its code.
pub async fn call(socket: PathBuf, call: &Call) -> Result<impl fmt::Display, String> {
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://socket")
        .connect_with_connector(connector)
        .await;
    let channel = channel.map_err(|error| format!("nobody answers there: {error}"))?;
    let lines = match call {
        Call::Node(call) => node::answer(channel, call).await,
        Call::Controller { call } => controller::answer(channel, call).await,
    };
    lines
        .map(Lines)
        .map_err(|status| format!("{:?}: {}", status.code(), status.message()))
}
