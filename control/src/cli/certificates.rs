//! `pollux cert`: a private authority, and certificates of it.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::Subcommand;

use crate::security::{Authority, Identity, Issued, LIFETIME_DAYS_DEFAULT, LIFETIME_DAYS_MAX, Role};

use super::connection::{CommandError, read};

/// Only their owner may read keys.
const KEY_MODE: u32 = 0o600;

/// `cert`.
#[derive(Debug, Subcommand)]
pub(super) enum CertificateCommand {
    /// Make a private authority: authority.pem for all who are to trust it, authority.key for nobody.
    Authority {
        /// The directory.
        directory: PathBuf,
    },
    /// Give a certificate: own.pem, own.key and a copy of authority.pem, in a directory of their own.
    Issue {
        /// The name: of an engine that of its node.
        name: String,
        /// What it may do.
        #[arg(long)]
        role: Role,
        /// Host names and addresses under which it is called, for engines and control planes.
        #[arg(long, value_name = "HOST")]
        host: Vec<String>,
        /// The directory of the authority.
        #[arg(long, value_name = "DIRECTORY")]
        authority: PathBuf,
        /// The directory that is made.
        #[arg(long, value_name = "DIRECTORY")]
        into: PathBuf,
        /// For how many days it is good, 1 to 3650.
        #[arg(long, value_name = "N", default_value_t = LIFETIME_DAYS_DEFAULT,
            value_parser = clap::value_parser!(u32).range(1..=LIFETIME_DAYS_MAX))]
        days: u32,
    },
}

/// Writes a new file: what is there is never replaced.
fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), CommandError> {
    let failed = |error: std::io::Error| CommandError::File {
        path: path.to_owned(),
        reason: error.to_string(),
    };
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).map_err(failed)?;
    }
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(mode).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(failed)
}

fn text(path: &Path) -> Result<String, CommandError> {
    String::from_utf8(read(path)?).map_err(|_| CommandError::File {
        path: path.to_owned(),
        reason: "is not in PEM".to_owned(),
    })
}

/// Does it.
pub(super) fn run(command: &CertificateCommand, into: &mut impl Write) -> Result<(), CommandError> {
    match command {
        CertificateCommand::Authority { directory } => {
            let Issued { certificate, key } = Authority::new("Pollux authority")?.issued();
            write_new(&directory.join("authority.key"), &key, KEY_MODE)?;
            write_new(&directory.join("authority.pem"), &certificate, 0o644)?;
            writeln!(
                into,
                "the authority is in {}: keep authority.key safe",
                directory.display()
            )?;
        }
        CertificateCommand::Issue {
            name,
            role,
            host,
            authority,
            into: directory,
            days,
        } => {
            if *role == Role::Engine && host.is_empty() {
                let hint = "the control plane and other engines call an engine: give --host with the address \
                            or name by which they do, that of its `listen`";
                return Err(CommandError::Refused(hint.to_owned()));
            }
            let certificate = text(&authority.join("authority.pem"))?;
            let issuer = Authority::load(&Issued {
                certificate: certificate.clone(),
                key: text(&authority.join("authority.key"))?,
            })?;
            let issued = issuer.issue(&Identity {
                name: name.clone(),
                role: *role,
                hosts: host.clone(),
                lifetime_days: i64::from(*days),
            })?;
            write_new(&directory.join("own.key"), &issued.key, KEY_MODE)?;
            write_new(&directory.join("own.pem"), &issued.certificate, 0o644)?;
            write_new(&directory.join("authority.pem"), &certificate, 0o644)?;
            writeln!(
                into,
                "{name} ({role}) has its certificate in {}, good for {days} days",
                directory.display()
            )?;
        }
    }
    Ok(())
}
