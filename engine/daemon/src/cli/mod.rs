//! The command line.

pub mod pools;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::builder::styling::{AnsiColor, Styles};
use clap::{Args, Parser, Subcommand, ValueEnum};
use pollux_device::ByteSize;
use pollux_trace::TraceArguments;
use pollux_volume::qos::WEIGHT_MAX;

use pools::{PoolArguments, VolumeArguments};

use crate::settings::{
    ControlAddress, CoreList, DeviceList, IdleSettings, LimitsSettings, ListenAddress, LogFormat,
    NamespaceSettings, PoolSettings, ReplicaSettings, Settings, SettingsError,
};
use crate::verify::VerifyArguments;

/// Where `namespace` looks for an engine unless told otherwise.
pub const CONTROL_SOCKET: &str = "unix:/run/pollux/engine.sock";

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().bold())
    .usage(AnsiColor::Green.on_default().bold())
    .literal(AnsiColor::Cyan.on_default().bold())
    .placeholder(AnsiColor::Cyan.on_default());

/// Serves block devices over NVMe/TCP, on polled reactors.
#[derive(Debug, Parser)]
#[command(name = "pollux-engine", version, styles = STYLES)]
#[command(arg_required_else_help = true, max_term_width = 110)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the program does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve devices over NVMe/TCP until SIGINT or SIGTERM.
    Serve(Box<ServeArguments>),
    /// Tell what this machine offers to an engine, and the command that mends each problem.
    Doctor(DoctorArguments),
    /// List the NVMe drives of this machine, and move them between the kernel and the engine.
    Drives(DrivesArguments),
    /// List and change the namespaces of a running engine.
    Namespace(NamespaceArguments),
    /// Make pools of devices, look at them, check and destroy them.
    Pool(PoolArguments),
    /// Make and change volumes of pools, their snapshots and clones.
    Volume(VolumeArguments),
    /// Write to a volume as a host does and read everything back, by whichever of its paths works.
    Verify(VerifyArguments),
    /// Print the version.
    Version,
}

/// `serve`.
#[derive(Debug, Default, Args)]
#[command(after_help = "\
Devices:
  null:///NAME?size=1TiB            swallows writes, reads zeros
  malloc:///NAME?size=1GiB          memory
  uring:///PATH?size=10GiB          file or block device
  pcie:///0000:5e:00.0/1            namespace of an NVMe drive, by SPDK (see `drives`)
  nvmf://HOST:4420/NQN              namespace of another NVMe/TCP target
  pool://POOL/VOLUME                volume or snapshot of a pool (see --pool)
  faulty:///URI?...                 another device, with faults

Examples:
  pollux-engine serve malloc:///demo?size=1GiB --nvmf 0.0.0.0:4420 --cores 2,3
  pollux-engine serve --pool 'uring:///data/disk.img?block=4096' pool://tank/db")]
pub struct ServeArguments {
    /// Devices to serve: each becomes the next namespace.
    #[arg(value_name = "URI")]
    pub uris: Vec<String>,

    /// The devices of a pool, all of them, separated by commas: opens it. May be given more than once, for
    /// more pools.
    #[arg(long, value_name = "DEVICE_URI,...")]
    pub pool: Vec<DeviceList>,

    /// A device that is a replica of a volume, besides those in pools, which are found there. May be given
    /// more than once.
    #[arg(long, value_name = "DEVICE_URI")]
    pub replica: Vec<String>,

    /// Settings in TOML; what is given here overrides them.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Keep here what is to be known after a restart: pools that calls made or opened, and the devices of
    /// pools that calls changed [default: it is forgotten].
    #[arg(long, value_name = "FILE")]
    pub state_file: Option<PathBuf>,

    /// One reactor pinned to each of these cores, as 0,2-5 [default: one reactor, not pinned].
    #[arg(long, value_name = "LIST")]
    pub cores: Option<CoreList>,

    /// Where NVMe/TCP hosts connect; may be given more than once, port 0 takes a free one
    /// [default: 127.0.0.1:4420].
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = socket_address)]
    pub nvmf: Vec<SocketAddr>,

    /// Keep reservations that hosts want to persist through a loss of power in this directory [default: none
    /// persists].
    #[arg(long, value_name = "DIRECTORY")]
    pub reservations: Option<PathBuf>,

    /// Serve NBD clients too, at unix:PATH or ADDRESS:PORT; may be given more than once [default: off].
    #[arg(long, value_name = "ADDRESS")]
    pub nbd: Vec<ListenAddress>,

    /// Serve the control interface (gRPC) at unix:PATH or 127.0.0.1:PORT [default: off].
    #[arg(long, value_name = "ADDRESS")]
    pub grpc: Option<ControlAddress>,

    /// Serve metrics (Prometheus) and health over HTTP at ADDRESS:PORT; port 0 takes a free one
    /// [default: off].
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = socket_address)]
    pub http: Option<SocketAddr>,

    /// What an idle reactor does: `poll` for the lowest latency, `adaptive` to leave the core alone
    /// [default: adaptive].
    #[arg(long, value_name = "POLICY")]
    pub idle: Option<IdleSettings>,

    /// How long an adaptive reactor looks for work before it sleeps, in microseconds; ten times as long while
    /// work takes an eighth of its time or more [default: 50].
    #[arg(long, value_name = "N")]
    pub spin_us: Option<u64>,

    /// Buffers of each reactor [default: 64MiB].
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<ByteSize>,

    /// How long stopping may take, in milliseconds [default: 30000].
    #[arg(long, value_name = "MS")]
    pub drain_timeout_ms: Option<u64>,

    /// Text for people, or JSON for machines [default: text].
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,

    /// The least that is logged: error, warn, info, debug, trace, or TARGET=LEVEL,... [default: info].
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,

    /// Traces.
    #[command(flatten)]
    pub tracing: TraceArguments,
}

impl ServeArguments {
    /// The settings of the file, if one is given, overridden by the arguments, and checked.
    ///
    /// # Errors
    ///
    /// [`SettingsError`].
    pub fn settings(&self) -> Result<Settings, SettingsError> {
        let mut settings = match &self.config {
            Some(path) => Settings::from_file(path)?,
            None => Settings::default(),
        };
        if self.state_file.is_some() {
            settings.state_file.clone_from(&self.state_file);
        }
        let reactors = &mut settings.reactors;
        replace(&mut reactors.cores, &self.cores);
        replace(&mut reactors.idle, &self.idle);
        replace(&mut reactors.spin_us, &self.spin_us);
        replace(&mut reactors.memory, &self.memory);
        if !self.nvmf.is_empty() {
            settings.nvmf.listen.clone_from(&self.nvmf);
        }
        if self.reservations.is_some() {
            settings.nvmf.reservations.clone_from(&self.reservations);
        }
        if !self.nbd.is_empty() {
            settings.nbd.listen.clone_from(&self.nbd);
        }
        if self.grpc.is_some() {
            settings.grpc.listen.clone_from(&self.grpc);
        }
        if self.http.is_some() {
            settings.http.listen = self.http;
        }
        replace(&mut settings.shutdown.drain_timeout_ms, &self.drain_timeout_ms);
        replace(&mut settings.log.format, &self.log_format);
        replace(&mut settings.log.level, &self.log_level);
        self.tracing.apply(&mut settings.tracing);
        let pools = self
            .pool
            .iter()
            .map(|devices| PoolSettings::new(devices.0.clone()));
        settings.pools.extend(pools);
        let replicas = self.replica.iter().cloned().map(|uri| ReplicaSettings { uri });
        settings.replicas.extend(replicas);
        let added = self.uris.iter().map(|uri| NamespaceSettings::new(uri));
        settings.namespaces.extend(added);
        settings.check()?;
        Ok(settings)
    }
}

/// An address of the machine and a port.
///
/// # Errors
///
/// How it is written.
pub fn socket_address(text: &str) -> Result<SocketAddr, String> {
    let hint = "give ADDRESS:PORT in numbers, such as 192.0.2.7:4420, [2001:db8::7]:4420 or 0.0.0.0:4420";
    text.parse().map_err(|_| hint.to_owned())
}

fn replace<T: Clone>(setting: &mut T, given: &Option<T>) {
    if let Some(given) = given {
        setting.clone_from(given);
    }
}

/// `doctor`.
#[derive(Debug, Args)]
pub struct DoctorArguments {
    /// How to print it.
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub output: Output,
}

/// `drives`.
#[derive(Debug, Args)]
pub struct DrivesArguments {
    /// What to do.
    #[command(subcommand)]
    pub command: DrivesCommand,
}

/// What to do with drives.
#[derive(Debug, Subcommand)]
pub enum DrivesCommand {
    /// List the drives, whose they are, what they hold, and what to do next.
    List {
        /// How to print it.
        #[arg(short, long, value_name = "FORMAT", default_value = "table")]
        output: Output,
    },
    /// Give a drive to the engine, for pcie:///ADDRESS/1.
    Bind {
        /// Its PCI address, such as 0000:5e:00.0.
        #[arg(value_name = "ADDRESS")]
        address: String,
        /// A block device of the drive whose content may be lost, such as nvme0n1; may be given more than
        /// once.
        #[arg(long, value_name = "NAME")]
        give_up: Vec<String>,
    },
    /// Give a drive back to the kernel.
    Unbind {
        /// Its PCI address, such as 0000:5e:00.0.
        #[arg(value_name = "ADDRESS")]
        address: String,
    },
}

/// How answers are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// For machines.
    Json,
}

/// `namespace`.
#[derive(Debug, Args)]
pub struct NamespaceArguments {
    /// The control interface of the engine.
    #[arg(long, value_name = "ADDRESS", default_value = CONTROL_SOCKET, global = true)]
    pub grpc: ControlAddress,

    /// What to do.
    #[command(subcommand)]
    pub command: NamespaceCommand,
}

const QOS_HELP: &str = "\
Limits, separated by commas:
  operations=N             operations in a second
  operations_per_gib=N     for each GiB of the volume, besides
  operations_burst=N       while there is credit, which comes back when less is asked for
  bytes=SIZE               bytes in a second; bytes_per_gib and bytes_burst as above
  burst_seconds=N          how long a burst lasts at its full speed [default: 10]

Examples:
  pollux-engine namespace qos 1 --total operations=1000,bytes=100MiB
  pollux-engine namespace qos 1 --write bytes=50MiB,bytes_burst=200MiB,burst_seconds=30
  pollux-engine namespace qos 1 --weight 300
  pollux-engine namespace qos 1 --unlimited";

/// What to do with namespaces.
#[derive(Debug, Subcommand)]
pub enum NamespaceCommand {
    /// List what is served.
    List {
        /// How to print it.
        #[arg(short, long, value_name = "FORMAT", default_value = "table")]
        output: Output,
    },
    /// Open a device and serve it.
    Add {
        /// The device.
        #[arg(value_name = "URI")]
        uri: String,
        /// The identifier it is to have [default: the lowest free one].
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        id: Option<u32>,
        /// How to print it.
        #[arg(short, long, value_name = "FORMAT", default_value = "table")]
        output: Output,
    },
    /// Stop serving a namespace, flush and close its device.
    Remove {
        /// Its identifier.
        #[arg(value_name = "ID", value_parser = clap::value_parser!(u32).range(1..))]
        id: u32,
    },
    /// Change what all hosts together may ask of a namespace, and its share of its pool, while it is served;
    /// what is not given is not limited any more.
    #[command(after_help = QOS_HELP)]
    Qos {
        /// Its identifier.
        #[arg(value_name = "ID", value_parser = clap::value_parser!(u32).range(1..))]
        id: u32,
        /// Limits of reads and writes together.
        #[arg(
            long,
            value_name = "LIMITS",
            required_unless_present_any = ["read", "write", "weight", "unlimited"]
        )]
        total: Option<LimitsSettings>,
        /// Limits of reads.
        #[arg(long, value_name = "LIMITS")]
        read: Option<LimitsSettings>,
        /// Limits of writes.
        #[arg(long, value_name = "LIMITS")]
        write: Option<LimitsSettings>,
        /// Its share of the pool it is in, next to the weights of other volumes there [default: 100].
        #[arg(
            long,
            value_name = "N",
            value_parser = clap::value_parser!(u32).range(1..=i64::from(WEIGHT_MAX))
        )]
        weight: Option<u32>,
        /// No limits, and no weight.
        #[arg(long, conflicts_with_all = ["total", "read", "write", "weight"])]
        unlimited: bool,
        /// How to print it.
        #[arg(short, long, value_name = "FORMAT", default_value = "table")]
        output: Output,
    },
    /// Change the size of a device while it is served.
    Resize {
        /// Its identifier.
        #[arg(value_name = "ID", value_parser = clap::value_parser!(u32).range(1..))]
        id: u32,
        /// Its new size, such as 2GiB.
        #[arg(value_name = "SIZE")]
        size: ByteSize,
        /// How to print it.
        #[arg(short, long, value_name = "FORMAT", default_value = "table")]
        output: Output,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn serve(arguments: &[&str]) -> ServeArguments {
        let all = ["pollux-engine", "serve"].iter().chain(arguments);
        match Cli::try_parse_from(all).expect("valid arguments").command {
            Command::Serve(arguments) => *arguments,
            other => unreachable!("parsed {other:?}"),
        }
    }

    #[test]
    fn the_definition_makes_sense() {
        Cli::command().debug_assert();
    }

    #[test]
    fn arguments_override_the_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("engine.toml");
        let text = "[reactors]\nspin_us = 7\nidle = \"poll\"\n[[namespaces]]\nuri = \"null:///a\"\n";
        std::fs::write(&path, text).expect("written");
        let path = path.to_str().expect("UTF-8");
        let settings = serve(&[
            "--config",
            path,
            "--spin-us",
            "9",
            "--nvmf",
            "[::1]:0",
            "null:///b",
        ])
        .settings()
        .expect("valid settings");
        assert_eq!(settings.reactors.spin_us, 9);
        assert_eq!(settings.reactors.idle, IdleSettings::Poll);
        assert_eq!(settings.nvmf.listen.len(), 1);
        let uris: Vec<&str> = settings
            .namespaces
            .iter()
            .map(|namespace| namespace.uri.as_str())
            .collect();
        assert_eq!(uris, ["null:///a", "null:///b"]);
    }

    #[test]
    fn addresses_are_numbers() {
        assert!(socket_address("[::1]:4420").is_ok());
        for text in ["localhost:4420", "127.0.0.1", ":4420", "127.0.0.1:99999"] {
            let refused = socket_address(text).expect_err(text);
            assert!(refused.contains("0.0.0.0:4420"), "{refused}");
        }
    }

    #[test]
    fn grpc_is_off_unless_given() {
        assert_eq!(serve(&["null:///a"]).grpc, None);
        let given = serve(&["--grpc", CONTROL_SOCKET, "null:///a"]).grpc;
        assert_eq!(given, CONTROL_SOCKET.parse().ok());
    }

    #[test]
    fn defaults_told_in_the_help_are_the_defaults() {
        let mut command = Cli::command();
        let serve = command.find_subcommand_mut("serve").expect("there is one");
        let help = serve.render_long_help().to_string();
        let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
        let defaults = Settings::default();
        for told in [
            defaults.nvmf.listen[0].to_string(),
            defaults.reactors.spin_us.to_string(),
            "64MiB".to_owned(),
            defaults.shutdown.drain_timeout_ms.to_string(),
        ] {
            assert!(help.contains(&format!("[default: {told}]")), "{told}\n{help}");
        }
    }
}
