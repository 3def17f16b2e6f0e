//! The `pollux-engine` daemon: settings, services, wiring and shutdown.
//!
//! Two kinds of threads meet here and nowhere else: reactors, which never wait, and the few threads of tokio
//! that serve the control interface. The latter ask the former by messages.

#![forbid(unsafe_code)]

pub mod cli;
pub mod client;
pub mod cluster;
mod devices;
pub mod doctor;
pub mod drives;
pub mod engine;
pub mod grpc;
pub mod logging;
mod patience;
pub mod pools;
pub mod replicas;
pub mod serve;
pub mod settings;
mod table;
pub mod telemetry;
mod turns;
pub mod verify;

use std::error::Error;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use cli::pools::{PoolArguments, VolumeArguments};
use cli::{Cli, Command, DoctorArguments, DrivesCommand, NamespaceArguments, Output};
use client::ClientError;
use doctor::Verdict;

/// Does what the command line says.
pub fn run(cli: &Cli) -> ExitCode {
    match &cli.command {
        Command::Serve(arguments) => serve::run(arguments),
        Command::Doctor(arguments) => doctor(arguments),
        Command::Drives(arguments) => drives(&arguments.command),
        Command::Namespace(arguments) => namespace(arguments),
        Command::Pool(arguments) => pool(arguments),
        Command::Volume(arguments) => volume(arguments),
        Command::Verify(arguments) => match verify::run(arguments, &mut io::stdout()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error),
        },
        Command::Version => version(),
    }
}

fn version() -> ExitCode {
    // As with any other answer, a closed pipe is the caller's choice.
    let _ = writeln!(io::stdout(), "pollux-engine {}", env!("CARGO_PKG_VERSION"));
    ExitCode::SUCCESS
}

fn doctor(arguments: &DoctorArguments) -> ExitCode {
    let report = doctor::examine(&doctor::Roots::default());
    let mut output = io::stdout().lock();
    // As with any other answer, a closed pipe is the caller's choice.
    let _ = match arguments.output {
        Output::Json => doctor::write_json(&report, &mut output),
        Output::Table => doctor::table(&report, io::stdout().is_terminal(), &mut output),
    };
    match report.verdict {
        Verdict::Fine | Verdict::Warnings => ExitCode::SUCCESS,
        Verdict::CannotRun => ExitCode::FAILURE,
    }
}

fn drives(command: &DrivesCommand) -> ExitCode {
    match drives::run(command, &doctor::Roots::default(), &mut io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn namespace(arguments: &NamespaceArguments) -> ExitCode {
    ask(async || {
        client::namespace(arguments, &mut io::stdout())
            .await
            .map(|()| true)
    })
}

fn pool(arguments: &PoolArguments) -> ExitCode {
    ask(async || client::pool(arguments, &mut io::stdout()).await)
}

fn volume(arguments: &VolumeArguments) -> ExitCode {
    ask(async || client::volume(arguments, &mut io::stdout()).await.map(|()| true))
}

/// Does what a command asks for; whether all is well is the exit code.
fn ask(command: impl AsyncFnOnce() -> Result<bool, ClientError>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = match runtime {
        Ok(runtime) => runtime.block_on(command()),
        Err(error) => Err(error.into()),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => fail(&error),
    }
}

/// Tells a person why the program did not do what it was asked, in one line.
fn fail(error: &dyn Error) -> ExitCode {
    let colours = io::stderr().is_terminal();
    let (red, plain) = if colours {
        ("\x1b[1;31m", "\x1b[0m")
    } else {
        ("", "")
    };
    // There is nobody to tell that nobody can be told.
    let _ = writeln!(io::stderr(), "{red}error:{plain} {error}");
    ExitCode::FAILURE
}
