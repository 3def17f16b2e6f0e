//! What the machine is told of paths, by a real target.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use pollux_csi::host::Host;
use pollux_csi::host::linux::LinuxHost;
use pollux_csi::names::Cluster;
use pollux_nvme::target::connection::{TransportSettings, listen};
use pollux_nvme::target::{Hosts, PortConfig, Subsystem, SubsystemConfig, Target, TargetConfig};
use pollux_reactor::net::Address;
use pollux_reactor::real::{ReactorThread, Settings};

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

/// A subsystem that admits a host.
fn subsystem(target: &Target, nqn: &str, host: &str) -> Arc<Subsystem> {
    let config = SubsystemConfig {
        hosts: Hosts {
            allow_any: false,
            allowed: vec![host.to_owned()],
        },
        ..SubsystemConfig::new(nqn)
    };
    target.add_subsystem(&config).expect("its name is free")
}

#[test]
fn a_target_tells_where_volumes_are() {
    let thread = ReactorThread::spawn(Settings::default()).expect("a thread");
    let reactors = vec![thread.handle()];
    let target = Target::new(TargetConfig::default(), reactors).expect("a target");
    let admission = target.clone();
    let listening = thread.handle().call_blocking(move || async move {
        let settings = Arc::new(TransportSettings::default());
        let (local, accepting) =
            listen(&Address::Tcp(address("127.0.0.1:0")), admission, settings).expect("a port");
        accepting.detach();
        local
    });
    let Address::Tcp(at) = listening.expect("the reactor turns") else {
        panic!("it listens by TCP")
    };
    target
        .add_port(PortConfig { id: 1, address: at })
        .expect("it is the first");
    let host = Cluster::new("c")
        .and_then(|cluster| cluster.host("n"))
        .expect("names");
    let other = "nqn.2026-11.x:other";
    // More than is read at a time.
    let many = 100;
    let name = |number: usize| format!("nqn.2026-11.io.pollux:volume:{number}");
    let volumes: Vec<_> = (0..many)
        .map(|number| subsystem(&target, &name(number), &host.nqn))
        .collect();
    subsystem(&target, "nqn.2026-11.io.pollux:volume:foreign", other);
    volumes[7].set_elsewhere(vec![address("192.0.2.7:4420"), address("[2001:db8::7]:4421")]);
    let machine = LinuxHost::default();
    let told = machine
        .discover(at, &host, None)
        .expect("it answers")
        .expect("it is new");
    assert_eq!(told.entries.len(), many + 2);
    let of = |number: usize| -> Vec<SocketAddr> {
        let own = told.entries.iter().filter(|(nqn, _)| *nqn == name(number));
        own.map(|(_, address)| *address).collect()
    };
    assert_eq!(
        of(7),
        [at, address("192.0.2.7:4420"), address("[2001:db8::7]:4421")]
    );
    assert_eq!(of(8), [at]);
    assert!(told.entries.iter().all(|(nqn, _)| !nqn.ends_with("foreign")));
    let generation = told.generation;
    let again = machine.discover(at, &host, Some(generation)).expect("it answers");
    assert_eq!(again, None, "nothing has changed");
    volumes[7].set_elsewhere(Vec::new());
    let newer = machine.discover(at, &host, Some(generation)).expect("it answers");
    assert_eq!(newer.expect("it has changed").entries.len(), many);
}

/// Whatever answers there, it is an error and no panic, and does not last.
#[test]
fn what_is_no_target_is_an_error() {
    use std::io::{Read, Write};
    let host = Cluster::new("c")
        .and_then(|cluster| cluster.host("n"))
        .expect("names");
    let mut good = [0; 128];
    (good[0], good[2], good[4]) = (1, 128, 128);
    let long = [5, 0, 24, 0, 0xff, 0xff, 0xff, 0xff];
    let short = [5, 0, 8, 0, 8, 0, 0, 0];
    let data = [
        7, 0x0c, 24, 200, 40, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0,
    ];
    let data = [&data[..], &[0; 20]].concat();
    let answers = [
        Vec::new(),
        b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
        vec![0xff; 200],
        good.to_vec(),
        [&good[..], &long].concat(),
        [&good[..], &short].concat(),
        [&good[..], &data].concat(),
    ];
    for answer in answers {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let at = listener.local_addr().expect("it has one");
        let answering = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("somebody asks");
            let mut asked = [0; 128];
            stream.read_exact(&mut asked).expect("it asks");
            // Whoever asked may have gone.
            let _ = stream.write_all(&answer);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            std::thread::sleep(Duration::from_millis(20));
        });
        assert!(LinuxHost::default().discover(at, &host, None).is_err());
        answering.join().expect("it ends");
    }
}
