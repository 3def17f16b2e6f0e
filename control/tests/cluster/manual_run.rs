//! The commands of the manuals are run, each where it stands: by a control plane of their own, with simulated
//! engines. Names that stand for something else are replaced; what cannot be run here is listed, with why.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use clap::CommandFactory;
use clap::error::ErrorKind;

use crate::common::fleet::Fleet;
use crate::manual::{commands, manual, words};
use crate::programs::{Daemon, serve, told};

/// Commands that are not run, by what they begin with, and why.
const NOT_RUN: [(&str, &str); 14] = [
    (
        "pollux up",
        "it starts engines with data: control/tests/engines has it",
    ),
    (
        "pollux demo",
        "it starts engines with data: control/tests/engines has it",
    ),
    (
        "pollux-engine verify",
        "simulated engines hold no data: ci/smoke has it",
    ),
    (
        "pollux-control serve --store file:",
        "the test starts one so, in a directory of its own",
    ),
    (
        "pollux-control serve --store etcd:",
        "there may be no etcd: control/tests/store.rs has it",
    ),
    (
        "pollux-control backup FILE",
        "the store is in use: programs.rs has it",
    ),
    (
        "pollux-control restore FILE",
        "the store is in use: programs.rs has it",
    ),
    (
        "pollux recover --pool b=pcie:///0000:5e:00.0/1 --pool c=",
        "all is on record: recover.rs has it",
    ),
    (
        "pollux recover --pool b=pcie:///0000:5e:00.0/1 --commit",
        "all is on record: recover.rs has it",
    ),
    (
        "pollux node create a --address",
        "it is there: the test makes it so",
    ),
    (
        "pollux node drain NODE",
        "a word for any node: control.md has it with one",
    ),
    (
        "pollux node undrain NODE",
        "a word for any node: control.md has it with one",
    ),
    (
        "pollux volume publish --secret-file FILE",
        "a part of a command: control.md has the whole",
    ),
    (
        "pollux --token-file ci.token --certificates DIRECTORY",
        "it leaves out what is called",
    ),
];

const HOST: &str = "nqn.2014-08.org.nvmexpress:uuid:0b6c31c1-8a2b-4e0c-b6f8-1f2a57ab3f01";
const SECRET: &str = "DHHC-1:00:ia6zGodOr4SEG0Zzaw398rpY0wqipUWj4jWjUh4HWUz6aQ2n:";

/// A secret for a file that the manual names.
fn write(directory: &Path, name: &str, text: &str) {
    std::fs::write(directory.join(name), text).expect("it can be written");
}

/// Whether a command is whole, and not only mentioned.
fn is_whole(words: &[String]) -> bool {
    let parser = match words.first().map(String::as_str) {
        Some("pollux") => pollux_control::cli::Cli::command(),
        _ => return true,
    };
    let parsed = parser.try_get_matches_from(words);
    let kind = parsed.map_err(|error| error.kind());
    words.len() > 1
        && !words.iter().any(|word| word == "...")
        && !matches!(
            kind,
            Err(ErrorKind::MissingRequiredArgument
                | ErrorKind::MissingSubcommand
                | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand)
        )
}

/// Where commands of a manual are run.
struct Shell<'a> {
    directory: &'a Path,
    address: &'a str,
    /// A control plane with certificates, once those are made.
    trusted: Option<Daemon>,
    not_run: BTreeSet<&'static str>,
    count: usize,
    /// Commands that did not work, and what they said.
    failed: Vec<String>,
}

impl Shell<'_> {
    /// Runs a command, if it is one that can be run.
    fn run(&mut self, command: &str) {
        if let Some((beginning, _)) = NOT_RUN
            .iter()
            .find(|(beginning, _)| command.starts_with(beginning))
        {
            self.not_run.insert(beginning);
            return;
        }
        let asked = words(command);
        let is_ours = asked.first().is_some_and(|word| word == "pollux");
        if !is_ours || !is_whole(&asked) {
            return;
        }
        let at = asked
            .iter()
            .any(|word| word == "--control")
            .then(|| self.trusted());
        let arguments = asked.iter().skip(1).map(|word| match word.as_str() {
            "10.0.0.1:4440" => at.clone().unwrap_or_default(),
            "10.0.0.1" => "127.0.0.1".to_owned(),
            "NQN" => "nqn.2026-11.example:other".to_owned(),
            word => word.replace("nqn.2014-08.org.nvmexpress:uuid:HOST", HOST),
        });
        let output = command.split_once(" > ").map(|(_, file)| file);
        let output = output.map_or(Stdio::piped(), |file| {
            File::create(self.directory.join(file))
                .expect("it can be made")
                .into()
        });
        let mut process = Command::new(env!("CARGO_BIN_EXE_pollux"));
        if at.is_none() {
            process.args(["--control", self.address]);
        }
        let done = process
            .args(arguments)
            .current_dir(self.directory)
            .stdin(Stdio::null())
            .stdout(output)
            .output()
            .expect("it was built");
        let errors = String::from_utf8_lossy(&done.stderr);
        if !done.status.success() {
            self.failed.push(format!("`{command}`: {errors}"));
        }
        self.count += 1;
    }

    /// Where the control plane answers that trusts who has a certificate.
    fn trusted(&mut self) -> String {
        let directory = self.directory.join("control").display().to_string();
        let daemon = self.trusted.get_or_insert_with(|| {
            Daemon::start(&[
                "--store",
                "memory:",
                "--http",
                "none",
                "--certificates",
                &directory,
            ])
        });
        daemon.address.clone()
    }

    fn run_all(&mut self, manual: &str) {
        for (command, _) in commands(manual) {
            self.run(command.trim());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_commands_of_the_manuals_work() {
    let nodes = ["a", "b", "c", "d"];
    let fleet = Fleet::new(nodes);
    let files = tempfile::tempdir().expect("a directory");
    let store = format!("file:{}", files.path().join("control.redb").display());
    let daemon = Daemon::start(&["--store", &store, "--http", "none"]);
    daemon.serve(&fleet);
    let mut address_of_a = String::new();
    for node in nodes {
        let address = serve(&fleet, node).await.to_string();
        let zone = format!("z{node}");
        told(
            &daemon,
            &["node", "create", node, "--address", &address, "--zone", &zone],
        );
        // What the manual has in its file comes by that.
        if node == "a" {
            address_of_a = address;
            continue;
        }
        let pool = format!("{node}.fast");
        let made = [
            "pool",
            "create",
            &pool,
            "--node",
            node,
            "--device",
            "malloc:///x?size=1GiB",
        ];
        told(&daemon, &made);
    }
    write(files.path(), "host.key", SECRET);
    write(files.path(), "volume.key", SECRET);
    let mut shell = Shell {
        directory: files.path(),
        address: &daemon.address,
        trusted: None,
        not_run: BTreeSet::new(),
        count: 0,
        failed: Vec::new(),
    };

    // The file that the manual describes a cluster by is one.
    let text = manual("control.md");
    let described = text
        .split("## Describe a cluster")
        .nth(1)
        .expect("it is described");
    let file: String = described
        .lines()
        .skip_while(|line| line.is_empty())
        .map_while(|line| line.strip_prefix("    "))
        .map(|line| line.replace("10.0.0.11:4430", &address_of_a) + "\n")
        .collect();
    let file = file.replace("zone: z1, rack: r1", "zone: za");
    write(files.path(), "topology.yaml", &file);
    shell.run("pollux apply -f topology.yaml");
    told(
        &daemon,
        &[
            "volume",
            "create",
            "log",
            "--size",
            "1GiB",
            "--replicas",
            "2",
            "--wait",
        ],
    );
    shell.run_all(&text);
    shell.run_all(&manual("cluster.md"));
    // It makes an authority of its own.
    let apart = files.path().join("kubernetes");
    std::fs::create_dir(&apart).expect("it can be made");
    shell.directory = &apart;
    shell.run_all(&manual("kubernetes.md"));
    assert!(shell.failed.is_empty(), "{:#?}", shell.failed);
    assert!(shell.count > 45, "{} commands were run only", shell.count);
    let forgotten: Vec<_> = NOT_RUN
        .iter()
        .filter(|(beginning, _)| !shell.not_run.contains(beginning))
        .collect();
    assert!(forgotten.is_empty(), "no manual has {forgotten:?}");
}
