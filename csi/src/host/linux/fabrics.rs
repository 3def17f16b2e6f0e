//! Connecting by `/dev/nvme-fabrics`: options are written to it as one text, and what is read from it then
//! tells which controller came of it. The file has to stay open in between.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;

use crate::host::{Connection, HostError};

/// How long a target may take to answer at all. The kernel itself would wait for minutes.
const REACH_TIMEOUT: Duration = Duration::from_secs(3);

/// The longest answer of the kernel, such as `instance=1,cntlid=2`.
const ANSWER_BYTES_MAX: u64 = 4096;

/// The options of a connection. They may hold secrets: they are shown to nobody.
fn options(connection: &Connection<'_>) -> String {
    let times = connection.times;
    let mut text = format!(
        "transport=tcp,traddr={},trsvcid={},nqn={},hostnqn={},hostid={}",
        connection.address.ip(),
        connection.address.port(),
        connection.subsystem_nqn,
        connection.host.nqn,
        connection.host.id,
    );
    // Writing to a text cannot fail.
    let _ = write!(
        text,
        ",reconnect_delay={},ctrl_loss_tmo={},keep_alive_tmo={}",
        times.reconnect_delay_s, times.controller_loss_s, times.keep_alive_s
    );
    if let Some(seconds) = times.fast_io_fail_s {
        let _ = write!(text, ",fast_io_fail_tmo={seconds}");
    }
    if let Some(secrets) = connection.secrets {
        let _ = write!(text, ",dhchap_secret={}", secrets.host);
        if !secrets.controller.is_empty() {
            let _ = write!(text, ",dhchap_ctrl_secret={}", secrets.controller);
        }
    }
    text
}

/// Whether the kernel cannot do what it was asked for.
fn cannot(error: &std::io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(
        errno,
        Some(Errno::INVAL | Errno::PROTONOSUPPORT | Errno::OPNOTSUPP)
    )
}

/// What is wrong with secrets that a connection was refused for.
fn wrong_secrets(error: &std::io::Error) -> Option<&'static str> {
    match Errno::from_io_error(error)? {
        Errno::NOKEY => Some("it asks for a secret, and the StorageClass names none for the node"),
        Errno::KEYREJECTED => {
            Some("the secrets that the StorageClass names for the node are not those of the volume")
        }
        _ => None,
    }
}

pub(super) fn connect(dev: &Path, connection: &Connection<'_>) -> Result<(), HostError> {
    let target = || format!("{} at {}", connection.subsystem_nqn, connection.address);
    let failed = |error: std::io::Error| HostError::kernel("connect to", target(), error);
    TcpStream::connect_timeout(&connection.address, REACH_TIMEOUT).map_err(failed)?;
    let path = dev.join("nvme-fabrics");
    let opened = OpenOptions::new().read(true).write(true).open(&path);
    let mut file = opened.map_err(|error| match error.kind() {
        ErrorKind::NotFound => HostError::Missing {
            what: path.display().to_string(),
            remedy: "load the kernel module nvme-tcp (`modprobe nvme-tcp`), at each start",
        },
        _ => HostError::kernel("open", path.display(), error),
    })?;
    match file.write_all(options(connection).as_bytes()) {
        Ok(()) => {}
        // It is connected already.
        Err(error) if Errno::from_io_error(&error) == Some(Errno::ALREADY) => return Ok(()),
        // Some kernels know no such option, others cannot do what it takes.
        Err(error) if connection.secrets.is_some() && cannot(&error) => {
            let reason = format!("{error}; has the kernel CONFIG_NVME_HOST_AUTH, to authenticate?");
            return Err(HostError::kernel("connect to", target(), reason));
        }
        Err(error) => {
            return Err(match wrong_secrets(&error) {
                Some(reason) => HostError::Secrets {
                    subject: target(),
                    reason,
                },
                None => failed(error),
            });
        }
    }
    let mut answer = String::new();
    file.take(ANSWER_BYTES_MAX)
        .read_to_string(&mut answer)
        .map_err(failed)?;
    if !answer.starts_with("instance=") {
        let reason = format!("the kernel answers {answer:?}");
        return Err(HostError::kernel("connect to", target(), reason));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use pollux_api::control::v1::HostSecrets;

    use super::*;
    use crate::host::PathTimes;
    use crate::names::Cluster;

    #[test]
    fn wrong_secrets_are_told_from_other_refusals() {
        let why = |errno: Errno| wrong_secrets(&errno.into()).unwrap_or_default();
        assert!(why(Errno::NOKEY).contains("names none"));
        assert!(why(Errno::KEYREJECTED).contains("are not those"));
        assert_eq!(why(Errno::CONNREFUSED), "");
    }

    #[test]
    fn options_are_those_of_the_kernel() {
        let host = Cluster::new("c")
            .and_then(|cluster| cluster.host("n"))
            .expect("names");
        let connection = Connection {
            subsystem_nqn: "nqn.2026-11.io.pollux:volume:x",
            host: &host,
            address: "[fd00::1]:4420".parse().expect("an address"),
            secrets: None,
            times: PathTimes::default(),
        };
        let text = options(&connection);
        let id = host.id;
        assert_eq!(
            text,
            format!(
                "transport=tcp,traddr=fd00::1,trsvcid=4420,nqn=nqn.2026-11.io.pollux:volume:x,\
                 hostnqn=nqn.2026-11.io.pollux:node:c:n,hostid={id},reconnect_delay=2,ctrl_loss_tmo=1800,\
                 keep_alive_tmo=5"
            )
        );
        let impatient = Connection {
            times: PathTimes {
                fast_io_fail_s: Some(7),
                ..connection.times
            },
            ..connection.clone()
        };
        assert_eq!(options(&impatient), format!("{text},fast_io_fail_tmo=7"));
        let mut secrets = HostSecrets {
            host: "DHHC-1:00:aa:".to_owned(),
            controller: String::new(),
        };
        let with = |secrets: &HostSecrets| {
            options(&Connection {
                secrets: Some(secrets),
                ..connection.clone()
            })
        };
        assert_eq!(with(&secrets), format!("{text},dhchap_secret=DHHC-1:00:aa:"));
        secrets.controller = "DHHC-1:01:bb:".to_owned();
        let mutual = format!("{text},dhchap_secret=DHHC-1:00:aa:,dhchap_ctrl_secret=DHHC-1:01:bb:");
        assert_eq!(with(&secrets), mutual);
        assert!(
            !format!(
                "{:?}",
                Connection {
                    secrets: Some(&secrets),
                    ..connection
                }
            )
            .contains("DHHC")
        );
    }

    #[test]
    fn a_kernel_without_fabrics_is_told() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let host = Cluster::new("c")
            .and_then(|cluster| cluster.host("n"))
            .expect("names");
        let mut connection = Connection {
            subsystem_nqn: "nqn.x:y",
            host: &host,
            address: listener.local_addr().expect("it has one"),
            secrets: None,
            times: PathTimes::default(),
        };
        let directory = tempfile::tempdir().expect("a directory");
        let error = connect(directory.path(), &connection).expect_err("there is no kernel");
        assert!(matches!(error, HostError::Missing { .. }), "{error}");
        // A file that takes anything and answers nothing is no kernel either.
        std::fs::write(directory.path().join("nvme-fabrics"), "").expect("it can be written");
        let error = connect(directory.path(), &connection).expect_err("nothing is connected");
        assert!(error.to_string().contains("the kernel answers"), "{error}");
        drop(listener);
        connection.address.set_port(1);
        assert!(connect(directory.path(), &connection).is_err());
    }
}
