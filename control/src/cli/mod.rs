//! `pollux`: what people ask of the control plane.

mod apply;
mod certificates;
mod connection;
mod limits;
mod output;
mod rebalance;
mod recover;
mod redact;
mod replicas;
mod resource;
mod roll_back;
mod run;
mod secrets;
mod support;
mod tokens;
mod top;
mod up;
mod wait;

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use crate::size::Size;
pub use connection::CommandError;
pub use output::Output;

/// Nodes, pools, volumes and what is made of them.
#[derive(Debug, Parser)]
#[command(name = "pollux", version, arg_required_else_help = true, max_term_width = 110)]
pub struct Cli {
    /// Where the control plane is.
    #[arg(
        long,
        global = true,
        value_name = "HOST:PORT",
        default_value = "127.0.0.1:4440"
    )]
    control: String,

    /// A directory with own.pem, own.key and authority.pem, as `pollux cert issue` makes it; with a token,
    /// the last is enough.
    #[arg(long, global = true, value_name = "DIRECTORY")]
    certificates: Option<PathBuf>,

    /// The file of a token, as `pollux token create` prints it.
    #[arg(long, global = true, value_name = "FILE")]
    token_file: Option<PathBuf>,

    /// How answers are told.
    #[arg(short, long, global = true, value_enum, default_value_t)]
    output: Output,

    /// What to do.
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a whole cluster on this machine, until Ctrl-C: a control plane, and engines with pools in files.
    Up(up::UpArguments),
    /// Show on this machine what a cluster does: a volume with three replicas is written to while an engine
    /// is killed and comes back.
    Demo(up::demo::DemoArguments),
    /// Become a program that ends with the process that has started it.
    #[command(hide = true)]
    Under(up::UnderArguments),
    /// Machines with an engine.
    Node {
        #[command(subcommand)]
        verb: NodeVerb,
    },
    /// The drives of a node that hold replicas.
    Pool {
        #[command(subcommand)]
        verb: PoolVerb,
    },
    /// What hosts use.
    Volume {
        #[command(subcommand)]
        verb: VolumeVerb,
    },
    /// What volumes were at one instant.
    Snapshot {
        #[command(subcommand)]
        verb: SnapshotVerb,
    },
    /// Volumes that belong together, and when their snapshots are taken.
    Group {
        #[command(subcommand)]
        verb: GroupVerb,
    },
    /// How volumes keep their data.
    Template {
        #[command(subcommand)]
        verb: TemplateVerb,
    },
    /// What happened, and why.
    Event {
        #[command(subcommand)]
        verb: ListVerb,
    },
    /// Tell where a volume would go, and why not elsewhere.
    Plan(VolumeArguments),
    /// Create or change nodes, pools, groups and templates from a file; tells the difference first.
    Apply(apply::ApplyArguments),
    /// Make certificates of a private authority.
    Cert {
        #[command(subcommand)]
        command: certificates::CertificateCommand,
    },
    /// Tell live what is asked of volumes, how long it takes, what is healed, and how full pools are.
    Top(top::TopArguments),
    /// Spread data over pools and targets over nodes: plan, look, commit.
    Rebalance {
        #[command(subcommand)]
        command: rebalance::RebalanceCommand,
    },
    /// Put on record what is on engines and not on record, as after the store was lost: look, then commit.
    Recover(recover::RecoverArguments),
    /// Collect what those need who help into one file, without secrets.
    Support(support::SupportArguments),
    /// Rights to call for those who have no certificate.
    Token {
        #[command(subcommand)]
        command: tokens::TokenCommand,
    },
    /// Print the completion for a shell.
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write manual pages into a directory.
    Man {
        /// The directory; made if it is not there.
        directory: PathBuf,
    },
}

#[derive(Debug, Args)]
struct ListArguments {
    /// Go on and tell changes as they happen.
    #[arg(short, long)]
    watch: bool,
}

#[derive(Debug, Args)]
struct NameArguments {
    /// Its name.
    name: String,
}

#[derive(Debug, Args)]
struct AwaitedArguments {
    /// Its name.
    name: String,
    #[command(flatten)]
    wait: WaitArguments,
}

#[derive(Debug, Args)]
struct DeleteArguments {
    /// Its name.
    name: String,
    /// It is no error if there is none of this name.
    #[arg(long)]
    if_exists: bool,
}

#[derive(Debug, Args)]
struct RemovalArguments {
    #[command(flatten)]
    what: DeleteArguments,
    #[command(flatten)]
    wait: WaitArguments,
}

#[derive(Debug, Args)]
struct ScheduleArguments {
    /// Take snapshots every so many seconds.
    #[arg(long, value_name = "SECONDS", requires = "keep")]
    every: Option<u64>,
    /// Keep so many of them.
    #[arg(long, value_name = "N", requires = "every")]
    keep: Option<u32>,
}

#[derive(Debug, Subcommand)]
enum ListVerb {
    /// List all.
    List(ListArguments),
}

#[derive(Debug, Subcommand)]
enum NodeVerb {
    /// List all.
    List(ListArguments),
    /// Tell all about one.
    Get(NameArguments),
    /// Add a machine.
    Create {
        /// Its name.
        name: String,
        /// Where its engine is called, as HOST:PORT or unix:/PATH.
        #[arg(long)]
        address: String,
        /// The zone it stands in.
        #[arg(long, default_value = "")]
        zone: String,
        /// The rack it stands in.
        #[arg(long, default_value = "")]
        rack: String,
        /// Labels, as KEY=VALUE.
        #[arg(long, value_name = "KEY=VALUE", value_parser = run::label)]
        label: Vec<(String, String)>,
    },
    /// Let nothing new go there.
    Cordon(NameArguments),
    /// Let new things go there again.
    Uncordon(NameArguments),
    /// Let all that is there go elsewhere.
    Drain(AwaitedArguments),
    /// Let things stay again.
    Undrain(NameArguments),
    /// Forget it.
    Delete(DeleteArguments),
}

#[derive(Debug, Subcommand)]
enum PoolVerb {
    /// List all.
    List(ListArguments),
    /// Tell all about one.
    Get(NameArguments),
    /// Make a pool of drives. What is on them is lost, unless it is known: a drive that holds a file system,
    /// a partition table or another pool is refused.
    Create {
        /// Its name.
        name: String,
        /// The node it is on.
        #[arg(long)]
        node: String,
        /// The URIs of its devices.
        #[arg(long = "device", value_name = "URI", required = true)]
        devices: Vec<String>,
        /// What its data is on.
        #[arg(long, value_enum)]
        media: Option<Media>,
        /// Labels, as KEY=VALUE.
        #[arg(long, value_name = "KEY=VALUE", value_parser = run::label)]
        label: Vec<(String, String)>,
        #[command(flatten)]
        wait: WaitArguments,
    },
    /// Let nothing new go there.
    Cordon(NameArguments),
    /// Let new things go there again.
    Uncordon(NameArguments),
    /// Let all that is there go elsewhere.
    Drain(AwaitedArguments),
    /// Let things stay again.
    Undrain(NameArguments),
    /// Take it apart, once nothing is on it.
    Delete(RemovalArguments),
}

/// What data is on.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Media {
    Nvme,
    Ssd,
    Hdd,
    Scratch,
}

#[derive(Debug, Args)]
struct VolumeArguments {
    /// Its name.
    name: String,
    /// Its size, such as 10GiB.
    #[arg(long)]
    size: Size,
    /// Copies of the data.
    #[arg(long, value_name = "N")]
    replicas: Option<u32>,
    /// The template that it follows.
    #[arg(long, default_value = "")]
    template: String,
    /// The group that it is in.
    #[arg(long, default_value = "")]
    group: String,
    /// The snapshot that it begins as a copy of.
    #[arg(long, value_name = "SNAPSHOT", default_value = "")]
    source: String,
    #[command(flatten)]
    limits: limits::LimitArguments,
    /// Labels, as KEY=VALUE.
    #[arg(long, value_name = "KEY=VALUE", value_parser = run::label)]
    label: Vec<(String, String)>,
}

#[derive(Debug, Args)]
struct WaitArguments {
    /// Wait until it is done.
    #[arg(long)]
    wait: bool,
    /// How long to wait, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    timeout: u64,
}

#[derive(Debug, Subcommand)]
enum VolumeVerb {
    /// List all.
    List(ListArguments),
    /// Tell all about one.
    Get(NameArguments),
    /// Tell where its copies are, whether they are slow, and what they still miss.
    Replicas(NameArguments),
    /// Make one.
    #[command(after_help = limits::HELP)]
    Create {
        #[command(flatten)]
        volume: VolumeArguments,
        #[command(flatten)]
        wait: WaitArguments,
    },
    /// Change what it follows, its group and labels, and what hosts may ask of it.
    #[command(after_help = limits::HELP)]
    Set {
        /// Its name.
        name: String,
        /// The template that it is to follow; empty for none.
        #[arg(long)]
        template: Option<String>,
        /// The group that it is to be in; empty for none.
        #[arg(long)]
        group: Option<String>,
        /// Labels that it is to have too, as KEY=VALUE.
        #[arg(long, value_name = "KEY=VALUE", value_parser = run::label)]
        label: Vec<(String, String)>,
        /// A label that it is not to have any more.
        #[arg(long, value_name = "KEY")]
        no_label: Vec<String>,
        #[command(flatten)]
        limits: limits::LimitArguments,
        /// Take limits from the template again.
        #[arg(long, conflicts_with_all = ["qos", "qos_read", "qos_write", "qos_weight"])]
        qos_of_template: bool,
    },
    /// Let it grow.
    Resize {
        /// Its name.
        name: String,
        /// The new size, such as 20GiB.
        #[arg(long)]
        size: Size,
        #[command(flatten)]
        wait: WaitArguments,
    },
    /// Let a host use it, and tell how to reach it.
    Publish {
        /// Its name.
        name: String,
        /// The NVMe qualified name of the host.
        #[arg(long, value_name = "NQN")]
        host: String,
        /// Let the host read only.
        #[arg(long)]
        read_only: bool,
        #[command(flatten)]
        secrets: secrets::SecretArguments,
        #[command(flatten)]
        wait: WaitArguments,
    },
    /// Let a host use it no more; without --host, any.
    Unpublish {
        /// Its name.
        name: String,
        /// The NVMe qualified name of the host.
        #[arg(long, value_name = "NQN")]
        host: Option<String>,
        #[command(flatten)]
        wait: WaitArguments,
    },
    /// Make it what it was when a snapshot was taken; what was written since is lost. Unpublish it first.
    Rollback(roll_back::RollBackArguments),
    /// Delete it and its data.
    Delete(RemovalArguments),
}

#[derive(Debug, Subcommand)]
enum SnapshotVerb {
    /// List all.
    List(ListArguments),
    /// Tell all about one.
    Get(NameArguments),
    /// Take one.
    Create {
        /// Its name.
        name: String,
        /// The volume.
        #[arg(long)]
        volume: String,
        /// Labels, as KEY=VALUE.
        #[arg(long, value_name = "KEY=VALUE", value_parser = run::label)]
        label: Vec<(String, String)>,
        #[command(flatten)]
        wait: WaitArguments,
    },
    /// Delete it.
    Delete(RemovalArguments),
}

#[derive(Debug, Subcommand)]
enum GroupVerb {
    /// List all.
    List(ListArguments),
    /// Tell all about one.
    Get(NameArguments),
    /// Make one.
    Create {
        /// Its name.
        name: String,
        #[command(flatten)]
        schedule: ScheduleArguments,
    },
    /// Change when snapshots are taken.
    Set {
        /// Its name.
        name: String,
        #[command(flatten)]
        schedule: ScheduleArguments,
        /// Take none any more. Those that were taken stay.
        #[arg(long = "no-schedule", conflicts_with_all = ["every", "keep"])]
        ends: bool,
    },
    /// Snapshots of several volumes, each of one instant.
    Snapshot {
        #[command(subcommand)]
        verb: GroupSnapshotVerb,
    },
    /// Delete it.
    Delete(DeleteArguments),
}

#[derive(Debug, Subcommand)]
enum GroupSnapshotVerb {
    /// List all.
    List(ListArguments),
    /// Tell all about one.
    Get(NameArguments),
    /// Take snapshots of the volumes of a group, or of some volumes, all at one instant.
    Create {
        /// Its name. Snapshots are called NAME.VOLUME.
        name: String,
        /// The group.
        #[arg(long, required_unless_present = "volume", conflicts_with = "volume")]
        group: Option<String>,
        /// A volume; to be given several times.
        #[arg(long)]
        volume: Vec<String>,
        #[command(flatten)]
        wait: WaitArguments,
    },
    /// Delete all its snapshots.
    Delete(RemovalArguments),
}

#[derive(Debug, Subcommand)]
enum TemplateVerb {
    /// List all.
    List(ListArguments),
    /// Tell all about one.
    Get(NameArguments),
    /// Make one; with rules for placement, use `pollux apply`.
    #[command(after_help = limits::HELP)]
    Create {
        /// Its name.
        name: String,
        #[command(flatten)]
        policy: PolicyArguments,
    },
    /// Change it, and with it the volumes that follow it.
    #[command(after_help = limits::HELP)]
    Set {
        /// Its name.
        name: String,
        #[command(flatten)]
        policy: PolicyArguments,
        /// Only tell what would move, and which limits would change.
        #[arg(long)]
        preview: bool,
    },
    /// Delete it.
    Delete(DeleteArguments),
}

#[derive(Debug, Args)]
struct PolicyArguments {
    /// Copies of the data.
    #[arg(long, value_name = "N")]
    replicas: Option<u32>,
    /// With fewer in-sync copies no write is acknowledged.
    #[arg(long, value_name = "N")]
    min_in_sync: Option<u32>,
    /// Operations in a second, reads and writes together; all other limits stay as they are.
    #[arg(long, value_name = "N", conflicts_with = "qos")]
    iops: Option<u64>,
    #[command(flatten)]
    limits: limits::LimitArguments,
}

impl PolicyArguments {
    /// Whether nothing is said.
    fn is_empty(&self) -> bool {
        self.replicas.is_none() && self.min_in_sync.is_none() && self.iops.is_none() && self.limits.is_empty()
    }
}

/// Does what the command line says.
pub fn run(cli: Cli) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = match runtime {
        Ok(runtime) => runtime.block_on(run::run(cli, &mut io::stdout())),
        Err(error) => Err(error.into()),
    };
    match done {
        Ok(()) | Err(CommandError::Unread) => ExitCode::SUCCESS,
        Err(error) => {
            let (red, plain) = match io::stderr().is_terminal() {
                true => ("\x1b[1;31m", "\x1b[0m"),
                false => ("", ""),
            };
            // There is nobody to tell that nobody can be told.
            let _ = writeln!(io::stderr(), "{red}error:{plain} {error}");
            ExitCode::FAILURE
        }
    }
}
