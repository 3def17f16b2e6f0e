//! What is told once an engine serves: what, and how to connect.

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr, UdpSocket};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use pollux_reactor::net::Address;

use super::start::Running;
use crate::client::namespace_table;
use crate::settings::{IdleSettings, Settings};

/// Writes it for people.
pub(super) fn write(settings: &Settings, running: &Running, into: &mut impl Write) -> io::Result<()> {
    let info = running.engine.info();
    let namespaces = running.engine.namespaces();
    writeln!(
        into,
        "pollux-engine {} serves {}\n",
        info.version, info.subsystem_nqn
    )?;
    if namespaces.is_empty() {
        writeln!(into, "  no namespaces yet")?;
    } else {
        namespace_table(&namespaces).write(2, into)?;
    }
    let reactors = &settings.reactors;
    let count = reactors.cores.as_slice().len().max(1);
    let plural = if count == 1 { "reactor" } else { "reactors" };
    let place = match reactors.cores.is_empty() {
        true => "not pinned".to_owned(),
        false => format!("on core {}", reactors.cores),
    };
    let idle = match reactors.idle {
        IdleSettings::Poll => "polling".to_owned(),
        IdleSettings::Adaptive => format!("asleep when idle for {} us", reactors.spin_us),
    };
    writeln!(
        into,
        "\n  {count} {plural} {place}, {idle}, with {} of buffers",
        reactors.memory
    )?;
    if let Some(control) = &running.control {
        writeln!(into, "  control interface at {}", control.address())?;
    }
    if let Some(telemetry) = &running.telemetry {
        writeln!(
            into,
            "  metrics at {}://{}/metrics",
            telemetry.scheme(),
            telemetry.address()
        )?;
    }
    writeln!(into, "\nConnect from a host with the kernel module nvme-tcp:\n")?;
    for listener in running.listeners.nvmf() {
        let Address::Tcp(listener) = listener else {
            continue;
        };
        let (address, port) = (reachable(*listener), listener.port());
        writeln!(into, "  nvme discover -t tcp -a {address} -s {port}")?;
        writeln!(
            into,
            "  nvme connect -t tcp -a {address} -s {port} -n {}",
            info.subsystem_nqn
        )?;
    }
    if let Some(listener) = running.listeners.nbd().first() {
        writeln!(into, "\nOr with any NBD client:\n")?;
        for namespace in &namespaces {
            writeln!(into, "  {}", nbd_uri(listener, &namespace.name))?;
        }
    }
    writeln!(into, "\nCtrl-C stops it.")
}

/// Tells it to the log.
pub(super) fn log(running: &Running) {
    let info = running.engine.info();
    let control = running
        .control
        .as_ref()
        .map(|control| control.address().to_string());
    let nbd = Some(info.nbd_listeners.join(",")).filter(|listeners| !listeners.is_empty());
    let http = running.telemetry.as_ref().map(|telemetry| telemetry.address());
    tracing::info!(
        subsystem = %info.subsystem_nqn,
        listeners = %info.nvmf_listeners.join(","),
        nbd = nbd.as_ref().map(tracing::field::display),
        control = control.as_ref().map(tracing::field::display),
        http = http.as_ref().map(tracing::field::display),
        pools = running.pools.all().len(),
        namespaces = running.engine.namespaces().len(),
        process = info.process_id,
        "serving"
    );
}

/// What NBD clients take as the name of an export (the NBD project's `doc/uri.md`).
fn nbd_uri(listener: &Address, export: &str) -> String {
    let export = utf8_percent_encode(export, NON_ALPHANUMERIC);
    match listener {
        Address::Tcp(listener) => {
            let address = SocketAddr::new(reachable(*listener), listener.port());
            format!("nbd://{address}/{export}")
        }
        Address::Unix(path) => format!("nbd+unix:///{export}?socket={}", path.display()),
    }
}

/// An address that hosts can be given: an unspecified one is no good to them.
fn reachable(listener: SocketAddr) -> IpAddr {
    if listener.ip().is_unspecified() {
        outward(listener).unwrap_or(listener.ip())
    } else {
        listener.ip()
    }
}

/// The address that this machine has towards others. Connecting a UDP socket sends nothing.
fn outward(listener: SocketAddr) -> Option<IpAddr> {
    // Addresses for documentation (RFC 5737, RFC 3849): routed as any other.
    let (any, other) = match listener {
        SocketAddr::V4(_) => ("0.0.0.0:0", "192.0.2.1:9"),
        SocketAddr::V6(_) => ("[::]:0", "[2001:db8::1]:9"),
    };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(other).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_exports_are_encoded() {
        let tcp = Address::Tcp("192.0.2.7:10809".parse().expect("an address"));
        assert_eq!(nbd_uri(&tcp, "my disk?"), "nbd://192.0.2.7:10809/my%20disk%3F");
        let unix = Address::Unix("/run/pollux/nbd.sock".into());
        assert_eq!(
            nbd_uri(&unix, "demo"),
            "nbd+unix:///demo?socket=/run/pollux/nbd.sock"
        );
    }

    #[test]
    fn hosts_are_given_an_address_that_they_can_reach() {
        let given: SocketAddr = "192.0.2.7:4420".parse().expect("an address");
        assert_eq!(reachable(given), given.ip());
        let any: SocketAddr = "0.0.0.0:4420".parse().expect("an address");
        // On a machine without a network there is none; then it is told as it is.
        let told = reachable(any);
        assert!(told == any.ip() || outward(any) == Some(told));
    }
}
