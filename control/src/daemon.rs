//! `pollux-control`: opens the store, answers calls, and plans while it leads.

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand};
use pollux_tls::{Certificates, TlsError};
use pollux_trace::{Process, TraceArguments};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::filter::LevelFilter;

use crate::controller::{Controller, Observations, Parts, SystemClock};
use crate::engines::GrpcEngines;
use crate::placement::PlacementLimits;
use crate::plan::Limits;
use crate::security::Guard;
use crate::server::{Listening, ServiceParts, Services};
use crate::store::{
    BACKUP_MAGIC, EmbeddedStore, EtcdSettings, EtcdStore, MemoryStore, Store, hold, read_backup, restore,
    write_backup,
};

/// The pause before the lead is sought again after the store failed.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// A failure that comes after so much time is another one, though it is called the same.
const FAILURE_TOLD_AGAIN: Duration = Duration::from_secs(60);

/// Decides where data lives, and keeps it there.
#[derive(Debug, Parser)]
#[command(
    name = "pollux-control",
    version,
    arg_required_else_help = true,
    max_term_width = 110
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Answer calls and plan, until SIGINT or SIGTERM.
    Serve(ServeArguments),
    /// Write all that is in the store to a file. A backup that is there already is replaced, and nothing
    /// else is.
    Backup(FileArguments),
    /// Put a backup into an empty store. Nothing is done by it before `pollux recover` has compared it with
    /// what engines have.
    Restore(FileArguments),
    /// Have nothing done by the records before `pollux recover` has compared them with what engines have: for
    /// a store that was put back by other means, while no control plane runs.
    Hold(StoreArguments),
}

#[derive(Debug, Args)]
struct ServeArguments {
    #[command(flatten)]
    store: StoreArguments,

    /// Where calls are answered. Without certificates, on this machine only.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:4440", value_parser = socket_address)]
    listen: SocketAddr,

    /// Where the interface is as REST and JSON, with metrics and health: ADDRESS:PORT, or `none` [default:
    /// the port after that of --listen].
    #[arg(long, value_name = "ADDRESS:PORT")]
    http: Option<HttpAddress>,

    /// A directory with authority.pem, own.pem and own.key, as `pollux cert issue` makes it: then calls are
    /// by mutual TLS only.
    #[arg(long, value_name = "DIRECTORY")]
    certificates: Option<PathBuf>,

    /// What the leader is called in the store [default: the process].
    #[arg(long, value_name = "NAME")]
    instance: Option<String>,

    /// Seconds without a report after which a node counts as unreachable, and its targets move.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    unreachable_after: u64,

    /// Seconds after which a node that is away counts as lost, and its replicas are replaced.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    replace_after: u64,

    /// Replicas that are made anew at a time on a node, and from a node.
    #[arg(long, value_name = "N", default_value_t = 2)]
    rebuilds_per_node: u32,

    /// Replicas that are made anew at a time altogether.
    #[arg(long, value_name = "N", default_value_t = 128)]
    rebuilds: u32,

    /// So much of a pool's capacity the sizes of its replicas may add up to, 100 or more: space is only taken
    /// when it is written.
    #[arg(long, value_name = "PERCENT", default_value_t = 200,
        value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    overcommit: u32,

    /// A pool of which so much is used takes no more replicas.
    #[arg(long, value_name = "PERCENT", default_value_t = 85,
        value_parser = clap::value_parser!(u32).range(1..=100))]
    fill: u32,

    #[command(flatten)]
    tracing: TraceArguments,
}

#[derive(Debug, Args)]
struct StoreArguments {
    /// Where records are: file:PATH, etcd://HOST:PORT,HOST:PORT or memory:, which ends with the process
    #[arg(
        long,
        value_name = "STORE",
        default_value = "file:/var/lib/pollux/control.redb"
    )]
    store: StoreAddress,

    /// A directory with authority.pem, own.pem and own.key, by which etcd is trusted and trusts: then it is
    /// called by mutual TLS only.
    #[arg(long, value_name = "DIRECTORY")]
    store_certificates: Option<PathBuf>,
}

impl StoreArguments {
    async fn open(&self) -> Result<Arc<dyn Store>, Box<dyn Error>> {
        self.store.open(self.certificates()?.as_ref()).await
    }

    fn certificates(&self) -> Result<Option<Certificates>, TlsError> {
        let directory = self.store_certificates.as_deref();
        directory.map(certificates).transpose()
    }

    /// A store that is there: a misspelt path must not become an empty one.
    async fn open_present(&self) -> Result<Arc<dyn Store>, Box<dyn Error>> {
        match &self.store {
            StoreAddress::File(path) if !path.exists() => {
                Err(format!("there is no store at {}: give --store file:PATH", path.display()).into())
            }
            _ => self.open().await,
        }
    }
}

#[derive(Debug, Args)]
struct FileArguments {
    #[command(flatten)]
    store: StoreArguments,

    /// The backup.
    file: PathBuf,
}

/// Where records are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreAddress {
    /// In a file.
    File(PathBuf),
    /// In etcd.
    Etcd(Vec<String>),
    /// Nowhere: they are gone with the process.
    Memory,
}

impl FromStr for StoreAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "memory:" {
            return Ok(Self::Memory);
        }
        if let Some(path) = text.strip_prefix("file:").filter(|path| !path.is_empty()) {
            return Ok(Self::File(path.into()));
        }
        if let Some(hosts) = text.strip_prefix("etcd://").filter(|hosts| !hosts.is_empty()) {
            return Ok(Self::Etcd(hosts.split(',').map(str::to_owned).collect()));
        }
        Err("give file:PATH, etcd://HOST:PORT,HOST:PORT or memory:".to_owned())
    }
}

impl StoreAddress {
    /// Opens it; etcd with certificates, if some are given.
    async fn open(&self, certificates: Option<&Certificates>) -> Result<Arc<dyn Store>, Box<dyn Error>> {
        match self {
            Self::Memory => Ok(Arc::new(MemoryStore::default())),
            Self::File(path) => Ok(Arc::new(EmbeddedStore::open(path)?)),
            Self::Etcd(hosts) => {
                let scheme = match certificates {
                    Some(_) => "https",
                    None => "http",
                };
                let settings = EtcdSettings {
                    endpoints: hosts.iter().map(|host| format!("{scheme}://{host}")).collect(),
                    tls: certificates.cloned(),
                    ..EtcdSettings::default()
                };
                Ok(Arc::new(EtcdStore::connect(settings).await?))
            }
        }
    }
}

fn socket_address(text: &str) -> Result<SocketAddr, String> {
    let hint = "give ADDRESS:PORT in numbers, such as 127.0.0.1:4440";
    text.parse().map_err(|_| hint.to_owned())
}

/// Where HTTP is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HttpAddress {
    /// There.
    At(SocketAddr),
    /// Nowhere.
    None,
}

impl FromStr for HttpAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self::None),
            text => text
                .parse()
                .map(Self::At)
                .map_err(|_| "give ADDRESS:PORT, or none".to_owned()),
        }
    }
}

impl HttpAddress {
    /// The port after another one; any free one if that is.
    fn after(listen: SocketAddr) -> Self {
        let port = match listen.port() {
            0 => 0,
            port => port.checked_add(1).unwrap_or(0),
        };
        Self::At(SocketAddr::new(listen.ip(), port))
    }
}

/// Reads certificates of this instance: whatever those who call or are called make of them.
fn certificates(directory: &Path) -> Result<Certificates, TlsError> {
    Certificates::open(directory, |_| Ok(()))
}

/// Does what the command line says.
pub fn run(cli: &Cli) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let done: Result<(), Box<dyn Error>> = match runtime {
        Ok(runtime) => runtime.block_on(async {
            match &cli.command {
                Command::Serve(arguments) => serve(arguments).await,
                Command::Backup(arguments) => backup(arguments).await,
                Command::Restore(arguments) => restore_file(arguments).await,
                Command::Hold(arguments) => hold_records(arguments).await,
            }
        }),
        Err(error) => Err(error.into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // There is nobody to tell that nobody can be told.
            let _ = writeln!(io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What to do before records are anything more than old.
const HELD: &str = "nothing is done by them before they were compared with what engines have: start the \
                    control plane, look with `pollux recover`, and commit that";

/// The mode of files that nobody else may read.
const OWNER_ONLY: u32 = 0o600;

async fn backup(arguments: &FileArguments) -> Result<(), Box<dyn Error>> {
    let path = &arguments.file;
    let at = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    require_replaceable(path)?;
    let store = arguments.store.open_present().await?;
    let bytes = write_backup(store.as_ref()).await?;
    let count = read_backup(&bytes)?.len();
    // Beside it first, so that a backup that was cut off is none.
    let beside = path.with_added_extension("part");
    // One that was cut off may have been anybody's to read.
    let _ = std::fs::remove_file(&beside);
    // It holds the secrets of hosts.
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(OWNER_ONLY)
        .open(&beside)
        .map_err(at)?;
    let kept = file
        .write_all(&bytes)
        .and_then(|()| file.sync_all())
        .and_then(|()| std::fs::rename(&beside, path))
        .and_then(|()| {
            // Only then is the name as durable as what it names.
            let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
        });
    if let Err(error) = kept {
        // What was there stays; what is there of the new one is of no use.
        let _ = std::fs::remove_file(&beside);
        return Err(at(error).into());
    }
    writeln!(
        io::stdout(),
        "{count} records in {} bytes are in {}",
        bytes.len(),
        path.display()
    )?;
    Ok(())
}

/// An error if something is there that is no backup: that is not replaced by one.
fn require_replaceable(path: &Path) -> Result<(), Box<dyn Error>> {
    let mut start = Vec::new();
    let read = File::open(path).and_then(|file| file.take(BACKUP_MAGIC.len() as u64).read_to_end(&mut start));
    match read {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(format!("{}: {error}", path.display()).into()),
        Ok(_) if start.is_empty() || start == BACKUP_MAGIC => Ok(()),
        Ok(_) => {
            let path = path.display();
            Err(
                format!("{path} is there and is no backup: nothing was written to it; give another file")
                    .into(),
            )
        }
    }
}

async fn restore_file(arguments: &FileArguments) -> Result<(), Box<dyn Error>> {
    let path = arguments.file.display();
    let bytes = std::fs::read(&arguments.file).map_err(|error| format!("{path}: {error}"))?;
    // Before the store is made that it goes to.
    read_backup(&bytes).map_err(|error| format!("{path}: {error}"))?;
    let store = arguments.store.open().await?;
    let count = restore(store.as_ref(), &bytes).await?;
    writeln!(io::stdout(), "{count} records are restored; {HELD}")?;
    Ok(())
}

async fn hold_records(arguments: &StoreArguments) -> Result<(), Box<dyn Error>> {
    let store = arguments.open_present().await?;
    hold(store.as_ref()).await?;
    writeln!(io::stdout(), "{HELD}")?;
    Ok(())
}

async fn serve(arguments: &ServeArguments) -> Result<(), Box<dyn Error>> {
    let log = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false);
    let process = Process {
        name: "pollux-control",
        instance: arguments.instance.as_deref().unwrap_or_default(),
    };
    let settings = arguments.tracing.settings();
    let _tracing = pollux_trace::start(log, LevelFilter::INFO, &settings, process)?;
    let own_certificates = arguments.certificates.as_deref().map(certificates).transpose()?;
    let store_certificates = arguments.store.certificates()?;
    let certificates_given = own_certificates.is_some();
    // Before the store: one that is made stays.
    let listening = Listening::bind(arguments.listen, own_certificates.clone()).await?;
    let http = match arguments.http.unwrap_or(HttpAddress::after(arguments.listen)) {
        HttpAddress::None => None,
        HttpAddress::At(address) => Some(Listening::bind_http(address, own_certificates.clone()).await?),
    };
    let store = arguments.store.store.open(store_certificates.as_ref()).await?;
    let limits = Limits {
        unreachable_after_us: arguments.unreachable_after.max(1).saturating_mul(1_000_000),
        replace_after_us: arguments.replace_after.saturating_mul(1_000_000),
        rebuilds_per_node_max: arguments.rebuilds_per_node.max(1),
        rebuilds_max: arguments.rebuilds.max(1),
        placement: PlacementLimits {
            overcommit_percent: arguments.overcommit,
            fill_percent_max: arguments.fill,
        },
        ..Limits::default()
    };
    let parts = Parts {
        store,
        engines: Arc::new(GrpcEngines::new(own_certificates.clone())),
        clock: Arc::new(SystemClock),
        limits,
        observations: Arc::new(Observations::default()),
    };
    let services = Services::new(ServiceParts {
        store: parts.store.clone(),
        observations: parts.observations.clone(),
        engines: parts.engines.clone(),
        clock: parts.clock.clone(),
        limits: parts.limits.clone(),
        guard: match certificates_given {
            true => Guard::Certificates,
            false => Guard::Local,
        },
    });
    let telemetry = services.telemetry();
    for (of, certificates) in [("calls", own_certificates), ("store", store_certificates)] {
        if let Some(certificates) = certificates {
            telemetry.certificates().add(of, certificates);
        }
    }
    let mut announced = format!("pollux-control answers at {}\n", listening.address());
    if let Some(http) = &http {
        let scheme = if certificates_given { "https" } else { "http" };
        announced += &format!("REST and metrics are at {scheme}://{}\n", http.address());
    }
    // At once: who reads it may want the first line only.
    io::stdout().write_all(announced.as_bytes())?;
    let (stop, stopped) = watch::channel(false);
    let instance = arguments
        .instance
        .clone()
        .unwrap_or_else(|| format!("process-{}", std::process::id()));
    let planner = tokio::spawn(lead(parts, instance, stopped.clone()));
    let http = http.map(|http| tokio::spawn(http.serve(services.clone().http(), stopped.clone())));
    let server = tokio::spawn(listening.serve(services, stopped));
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        ended = server => return Ok(ended??),
    }
    stop.send_replace(true);
    planner.await?;
    if let Some(http) = http {
        http.await?;
    }
    Ok(())
}

/// Seeks the lead and plans while it has it, again and again.
async fn lead(parts: Parts, instance: String, mut stopped: watch::Receiver<bool>) {
    // What failed last: told once, and again when it is something else, as it is tried every second.
    let mut failure = None;
    while !*stopped.borrow() {
        let began = Instant::now();
        let term = async {
            let leadership = parts.store.lead(&instance).await?;
            let controller = Controller::start(parts.clone(), leadership).await?;
            controller.run(stopped.clone()).await
        };
        let mut wait = stopped.clone();
        let stopping = async { drop(wait.wait_for(|stop| *stop).await) };
        let ended = tokio::select! {
            ended = term => ended,
            () = stopping => return,
        };
        parts.observations.telemetry().follows();
        match ended {
            Ok(()) => {
                failure = None;
                tracing::info!("leads no more");
            }
            Err(error) => {
                let text = error.to_string();
                if began.elapsed() > FAILURE_TOLD_AGAIN || failure.as_ref() != Some(&text) {
                    tracing::error!(%error, "planning was interrupted; it goes on once the store answers");
                }
                failure = Some(text);
            }
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY_PAUSE) => {}
            _ = stopped.changed() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_is_beside() {
        let after = |text: &str| HttpAddress::after(text.parse().expect("an address"));
        assert_eq!(Ok(after("127.0.0.1:4440")), "127.0.0.1:4441".parse());
        assert_eq!(Ok(after("[::1]:0")), "[::1]:0".parse());
        assert_eq!(Ok(after("127.0.0.1:65535")), "127.0.0.1:0".parse());
        assert_eq!("none".parse(), Ok(HttpAddress::None));
        assert!("127.0.0.1".parse::<HttpAddress>().is_err());
    }

    #[test]
    fn stores_have_addresses() {
        let etcd = StoreAddress::Etcd(vec!["a:1".to_owned(), "b:2".to_owned()]);
        for (text, address) in [
            ("memory:", StoreAddress::Memory),
            ("file:x/y", StoreAddress::File("x/y".into())),
            ("etcd://a:1,b:2", etcd),
        ] {
            assert_eq!(text.parse(), Ok(address));
        }
        for text in ["", "file:", "etcd://", "redis://x", "memory"] {
            assert!(text.parse::<StoreAddress>().is_err(), "{text}");
        }
    }
}
