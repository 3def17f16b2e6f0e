//! Ports are kept, and can be listened on.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Barrier;

use pollux_ports::KeptPorts;

/// Clusters that begin at the same moment.
const CLUSTERS: usize = 8;

/// Ports of each.
const PORTS: usize = 40;

#[test]
fn no_two_draws_give_the_same() {
    let together = Barrier::new(CLUSTERS);
    for _ in 0..20 {
        let drawn: Vec<KeptPorts> = std::thread::scope(|scope| {
            let draw = || {
                scope.spawn(|| {
                    together.wait();
                    let kept = KeptPorts::draw(PORTS).expect("there are so many");
                    // As a cluster would: some processes listen, and end, while others draw.
                    for address in kept.addresses().iter().step_by(7) {
                        drop(TcpListener::bind(address).expect("it is kept for this"));
                    }
                    kept
                })
            };
            let threads: Vec<_> = (0..CLUSTERS).map(|_| draw()).collect();
            let drawn = threads
                .into_iter()
                .map(|thread| thread.join().expect("it ends well"));
            drawn.collect()
        });
        let all = drawn.iter().flat_map(|kept| kept.addresses());
        let all: BTreeSet<SocketAddr> = all.copied().collect();
        assert_eq!(all.len(), CLUSTERS * PORTS);
        // Nobody else is given one either: neither a listener, nor a connection.
        let other = TcpListener::bind("127.0.0.1:0").expect("there is one more");
        assert!(!all.contains(&other.local_addr().expect("it has one")));
        let connection = TcpStream::connect(other.local_addr().expect("it has one")).expect("it listens");
        assert!(!all.contains(&connection.local_addr().expect("it has one")));
    }
}

#[test]
fn one_process_at_a_time_listens() {
    let kept = KeptPorts::draw(1).expect("there is one");
    let address = kept.addresses()[0];
    for _ in 0..3 {
        let listener = TcpListener::bind(address).expect("it is kept for this");
        assert!(TcpListener::bind(address).is_err(), "two listen at once");
        let mut client = TcpStream::connect(address).expect("it listens");
        let (mut served, _) = listener.accept().expect("it has connected");
        served.write_all(b"here").expect("it is connected");
        drop(served);
        let mut read = String::new();
        client.read_to_string(&mut read).expect("it is connected");
        assert_eq!(read, "here");
        // The next one listens though connections of this one are on their way out still.
    }
    // Who keeps a port answers nobody.
    assert!(TcpStream::connect(address).is_err());
}

#[test]
fn ports_are_kept_again() {
    let kept = KeptPorts::draw(1).expect("there is one");
    let address = kept.addresses()[0];
    let listener = TcpListener::bind(address).expect("it is kept for this");
    let again = KeptPorts::again([address]);
    assert!(again.addresses().is_empty(), "somebody listens there");
    drop(listener);
    drop(kept);
    let again = KeptPorts::again([address]);
    assert_eq!(again.addresses(), [address]);
}
