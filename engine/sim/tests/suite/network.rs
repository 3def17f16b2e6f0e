//! What streams of the simulated network keep, and the ways in which they break.

use std::cell::RefCell;
use std::io::{ErrorKind, IoSliceMut};
use std::rc::Rc;
use std::time::Duration;

use pollux_reactor::net::{
    Address, Listener, Stream, accept, attach, connect, listen, receive, receive_exact, send_all,
};
use pollux_reactor::{now, sleep, spawn};
use pollux_sim::{
    Chop, Crash, LinkRule, MachineId, NetworkOptions, SimReactor, SimTask, World, WorldOptions,
};

const SECOND: Duration = Duration::from_secs(1);
const PORT: u16 = 4420;

/// A client machine and a server machine.
struct Pair {
    world: World,
    client: (MachineId, SimReactor),
    server: (MachineId, SimReactor),
    address: Address,
}

fn pair_with(seed: u64, network: NetworkOptions) -> Pair {
    let world = World::with_options(
        seed,
        WorldOptions {
            network,
            ..WorldOptions::default()
        },
    );
    let (client, server) = (world.add_machine("client"), world.add_machine("server"));
    Pair {
        client: (client, world.add_reactor(client)),
        server: (server, world.add_reactor(server)),
        address: world.tcp(server, PORT),
        world,
    }
}

fn pair(seed: u64) -> Pair {
    pair_with(seed, NetworkOptions::default())
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len as u32)
        .map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect()
}

async fn accept_one(listener: &mut dyn Listener) -> Box<dyn Stream> {
    attach(accept(listener).await.unwrap()).unwrap()
}

async fn echo(mut stream: Box<dyn Stream>) {
    let mut buffer = vec![0; 4096];
    loop {
        match receive(&mut *stream, &mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(len) => {
                if send_all(&mut *stream, &buffer[..len]).await.is_err() {
                    return;
                }
            }
        }
    }
}

impl Pair {
    fn serve_echo(&self) {
        let address = self.address.clone();
        drop(self.world.spawn(self.server.1, async move {
            let mut listener = listen(&address).unwrap();
            loop {
                spawn(echo(accept_one(&mut *listener).await)).detach();
            }
        }));
        self.world.run_for(Duration::from_millis(1));
    }

    /// A connected client and server stream, held by tasks that the test gives.
    fn connected<C, S, A, B>(&self, client: C, server: S) -> (SimTask<A>, SimTask<B>)
    where
        C: AsyncFnOnce(Box<dyn Stream>) -> A + 'static,
        S: AsyncFnOnce(Box<dyn Stream>) -> B + 'static,
        A: 'static,
        B: 'static,
    {
        let address = self.address.clone();
        let served = self.world.spawn(self.server.1, async move {
            let mut listener = listen(&address).unwrap();
            let stream = accept_one(&mut *listener).await;
            server(stream).await
        });
        let address = self.address.clone();
        let asked = self.world.spawn(self.client.1, async move {
            sleep(Duration::from_millis(1)).await;
            client(connect(&address).await.unwrap()).await
        });
        (asked, served)
    }
}

/// Sends and receives at once, so that bounded windows cannot deadlock it.
async fn exchange(mut stream: Box<dyn Stream>, data: Vec<u8>) -> Vec<u8> {
    let mut back = vec![0; data.len()];
    let (mut sent, mut filled) = (0, 0);
    std::future::poll_fn(|context| {
        use std::task::Poll;
        loop {
            let mut moved = false;
            if sent < data.len()
                && let Poll::Ready(count) = stream.poll_send(context, &[std::io::IoSlice::new(&data[sent..])])
            {
                sent += count.unwrap();
                moved = true;
            }
            if filled < back.len()
                && let Poll::Ready(count) =
                    stream.poll_receive(context, &mut [IoSliceMut::new(&mut back[filled..])])
            {
                let count = count.unwrap();
                assert!(count > 0);
                filled += count;
                moved = true;
            }
            if filled == back.len() {
                return Poll::Ready(());
            }
            if !moved {
                return Poll::Pending;
            }
        }
    })
    .await;
    back
}

/// One client and an echo server; the trace.
fn echo_run(seed: u64) -> u64 {
    let pair = pair(seed);
    pair.serve_echo();
    let address = pair.address.clone();
    let data = bytes(50_000 + seed as usize);
    let expected = data.clone();
    let back = pair.world.block_on(pair.client.1, async move {
        let stream = connect(&address).await.unwrap();
        exchange(stream, data).await
    });
    assert!(back == expected, "the echo differs");
    pair.world.run_for(SECOND);
    assert_eq!(pair.world.connections(pair.client.0), 0);
    assert_eq!(pair.world.connections(pair.server.0), 0);
    pair.world.trace_hash()
}

#[test]
fn bytes_come_back_whole_and_in_order_and_a_seed_repeats() {
    let first: Vec<u64> = (0..20).map(echo_run).collect();
    let again: Vec<u64> = (0..20).map(echo_run).collect();
    assert_eq!(first, again);
    let mut different = first;
    different.sort_unstable();
    different.dedup();
    assert_eq!(different.len(), 20);
}

#[test]
fn receives_and_sends_come_in_any_size() {
    let often = Chop {
        send_probability: 0.5,
        receive_probability: 0.5,
    };
    for (chop, whole) in [(often, false), (Chop::NEVER, true)] {
        let pair = pair_with(
            1,
            NetworkOptions {
                chop: Some(chop),
                ..NetworkOptions::default()
            },
        );
        let (asked, served) = pair.connected(
            async |mut stream| {
                for _ in 0..100 {
                    send_all(&mut *stream, &[7; 1000]).await.unwrap();
                    sleep(SECOND).await;
                }
            },
            async |mut stream| {
                let mut sizes = Vec::new();
                loop {
                    match receive(&mut *stream, &mut [0; 2000]).await.unwrap() {
                        0 => return sizes,
                        len => sizes.push(len),
                    }
                }
            },
        );
        pair.world.finish(&asked);
        let sizes = pair.world.finish(&served);
        assert_eq!(sizes.iter().sum::<usize>(), 100_000);
        assert_eq!(sizes.iter().all(|&len| len == 1000), whole);
        if !whole {
            assert!(
                sizes.contains(&1) && sizes.iter().any(|&len| len > 500),
                "{sizes:?}"
            );
        }
    }
}

#[test]
fn a_receiver_that_does_not_read_blocks_the_sender() {
    let pair = pair_with(
        2,
        NetworkOptions {
            window_bytes: 10_000..=10_000,
            ..NetworkOptions::default()
        },
    );
    let sent = Rc::new(RefCell::new(0));
    let count = sent.clone();
    let (asked, served) = pair.connected(
        async move |mut stream| {
            for _ in 0..100 {
                send_all(&mut *stream, &[1; 1000]).await.unwrap();
                *count.borrow_mut() += 1000;
            }
        },
        async |mut stream| {
            sleep(SECOND * 10).await;
            receive_exact(&mut *stream, &mut vec![0; 100_000]).await.unwrap();
        },
    );
    pair.world.run_for(SECOND * 5);
    assert_eq!(*sent.borrow(), 10_000);
    pair.world.finish(&asked);
    pair.world.finish(&served);
    assert_eq!(*sent.borrow(), 100_000);
}

#[test]
fn a_half_closed_stream_goes_on_the_other_way() {
    let pair = pair(3);
    let (asked, served) = pair.connected(
        async |mut stream| {
            send_all(&mut *stream, b"question").await.unwrap();
            stream.shutdown().unwrap();
            assert_eq!(
                send_all(&mut *stream, b"more").await.unwrap_err().kind(),
                ErrorKind::BrokenPipe
            );
            let mut answer = [0; 6];
            receive_exact(&mut *stream, &mut answer).await.unwrap();
            assert_eq!(receive(&mut *stream, &mut [0; 1]).await.unwrap(), 0);
            answer
        },
        async |mut stream| {
            let mut question = Vec::new();
            let mut buffer = [0; 3];
            loop {
                match receive(&mut *stream, &mut buffer).await.unwrap() {
                    0 => break,
                    len => question.extend_from_slice(&buffer[..len]),
                }
            }
            send_all(&mut *stream, b"answer").await.unwrap();
            question
        },
    );
    assert_eq!(pair.world.finish(&served), b"question");
    assert_eq!(&pair.world.finish(&asked), b"answer");
}

#[test]
fn connects_are_refused_or_time_out() {
    let pair = pair(4);
    let (address, nobody) = (pair.address.clone(), "10.9.9.9:1".parse().unwrap());
    let server = pair.server.0;
    let control = pair.world.control();
    pair.world.block_on(pair.client.1, async move {
        let kind = async |address: &Address| connect(address).await.err().map(|error| error.kind());
        let start = now();
        assert_eq!(kind(&address).await, Some(ErrorKind::ConnectionRefused));
        assert!(now() - start < SECOND);
        assert_eq!(kind(&nobody).await, Some(ErrorKind::TimedOut));
        assert!(now() - start >= SECOND * 10 && now() - start < SECOND * 11);
        control.crash(server, Crash::Power);
        assert_eq!(kind(&address).await, Some(ErrorKind::TimedOut));
        control.restart(server);
        assert_eq!(kind(&address).await, Some(ErrorKind::ConnectionRefused));
        let unix: Address = "unix:/run/nobody".parse().unwrap();
        assert_eq!(kind(&unix).await, Some(ErrorKind::ConnectionRefused));
    });
}

#[test]
fn a_connect_gets_through_when_the_partition_ends_in_time() {
    for seed in 0..10 {
        let pair = pair(seed);
        pair.serve_echo();
        pair.world.partition_one_way(&[pair.server.0], &[pair.client.0]);
        let address = pair.address.clone();
        let task = pair.world.spawn(pair.client.1, async move {
            let stream = connect(&address).await.unwrap();
            exchange(stream, bytes(10)).await
        });
        pair.world.run_for(SECOND * 3);
        assert!(!task.is_ended());
        pair.world.heal();
        assert_eq!(pair.world.finish(&task), bytes(10));
    }
}

#[test]
fn a_dropped_connect_leaves_nothing_behind() {
    let pair = pair(5);
    pair.serve_echo();
    let address = pair.address.clone();
    pair.world.block_on(pair.client.1, async move {
        for micros in 0..200 {
            let _ = pollux_reactor::timeout(Duration::from_micros(micros), connect(&address)).await;
        }
    });
    pair.world.run_for(SECOND * 100);
    assert_eq!(
        (
            pair.world.connections(pair.client.0),
            pair.world.connections(pair.server.0)
        ),
        (0, 0)
    );
}

#[test]
fn a_partition_stalls_a_stream_and_long_ones_break_it() {
    for (partition, breaks) in [(20, false), (100, true)] {
        let pair = pair(6);
        let (asked, served) = pair.connected(
            async |mut stream| {
                sleep(SECOND).await;
                send_all(&mut *stream, &bytes(1000)).await.unwrap();
                receive(&mut *stream, &mut [0; 1])
                    .await
                    .map_err(|error| error.kind())
            },
            async |mut stream| {
                let mut data = vec![0; 1000];
                let result = receive_exact(&mut *stream, &mut data).await;
                if result.is_ok() {
                    assert_eq!(data, bytes(1000));
                    send_all(&mut *stream, b"!").await.unwrap();
                }
                result.map_err(|error| error.kind())
            },
        );
        pair.world.run_for(Duration::from_millis(500));
        pair.world.partition(&[pair.client.0], &[pair.server.0]);
        pair.world.run_for(SECOND * partition);
        pair.world.heal();
        let answer = pair.world.finish(&asked);
        if breaks {
            assert_eq!(answer, Err(ErrorKind::TimedOut));
            // The server's end never sends, and so never learns.
            pair.world.run_for(SECOND * 1000);
            assert!(!served.is_ended());
        } else {
            assert_eq!(answer, Ok(1));
            assert_eq!(pair.world.finish(&served), Ok(()));
        }
    }
}

#[test]
fn a_one_way_partition_lets_the_other_way_pass() {
    let pair = pair(7);
    let arrived = Rc::new(RefCell::new(Vec::new()));
    let seen = arrived.clone();
    let (_asked, _served) = pair.connected(
        async |mut stream| {
            sleep(SECOND).await;
            send_all(&mut *stream, b"up").await.unwrap();
            let mut down = [0; 4];
            receive_exact(&mut *stream, &mut down).await.unwrap();
            std::future::pending::<()>().await;
        },
        async move |mut stream| {
            sleep(SECOND).await;
            send_all(&mut *stream, b"down").await.unwrap();
            let mut up = [0; 2];
            receive_exact(&mut *stream, &mut up).await.unwrap();
            seen.borrow_mut().extend(up);
            std::future::pending::<()>().await;
        },
    );
    pair.world.run_for(Duration::from_millis(500));
    pair.world.partition_one_way(&[pair.server.0], &[pair.client.0]);
    pair.world.run_for(SECOND * 5);
    assert_eq!(arrived.borrow().as_slice(), b"up");
}

#[test]
fn flapping_links_end_open() {
    let pair = pair(8);
    pair.serve_echo();
    pair.world
        .flap(&[pair.client.0], &[pair.server.0], Duration::from_millis(300), 10);
    let address = pair.address.clone();
    let back = pair.world.block_on(pair.client.1, async move {
        let stream = connect(&address).await.unwrap();
        exchange(stream, bytes(200_000)).await
    });
    assert!(back == bytes(200_000));
    pair.world.run_for(SECOND * 10);
    assert!(!pair.world.link(pair.client.0, pair.server.0).blocked);
    assert!(!pair.world.link(pair.server.0, pair.client.0).blocked);
}

#[test]
fn losses_delay_and_resets_break() {
    let lossy = LinkRule {
        loss_probability: 0.3,
        ..LinkRule::HEALTHY
    };
    let pair_lossy = pair(9);
    pair_lossy.world.set_links(lossy);
    pair_lossy.serve_echo();
    let address = pair_lossy.address.clone();
    let back = pair_lossy.world.block_on(pair_lossy.client.1, async move {
        let stream = connect(&address).await.unwrap();
        exchange(stream, bytes(100_000)).await
    });
    assert!(back == bytes(100_000));
    assert!(pair_lossy.world.now().as_nanos() > 200_000_000);

    let pair = pair(10);
    let (asked, served) = pair.connected(
        async |mut stream| {
            receive(&mut *stream, &mut [0; 1])
                .await
                .map_err(|error| error.kind())
        },
        async |mut stream| {
            let first = receive(&mut *stream, &mut [0; 1])
                .await
                .map_err(|error| error.kind());
            (
                first,
                send_all(&mut *stream, b"x").await.map_err(|error| error.kind()),
            )
        },
    );
    pair.world.run_for(SECOND);
    pair.world.reset_connections(pair.server.0, pair.client.0);
    assert_eq!(pair.world.finish(&asked), Err(ErrorKind::ConnectionReset));
    let (first, second) = pair.world.finish(&served);
    assert_eq!(
        (first, second),
        (Err(ErrorKind::ConnectionReset), Err(ErrorKind::ConnectionReset))
    );
}

#[test]
fn killed_processes_are_noticed_and_lost_power_is_not() {
    for crash in [Crash::Process, Crash::Power] {
        let pair = pair(11);
        let (asked, _served) = pair.connected(
            async |mut stream| {
                let silent = pollux_reactor::timeout(SECOND * 30, receive(&mut *stream, &mut [0; 1])).await;
                let noticed = silent.is_ok();
                // Speaking to a machine that has come back is answered by a reset.
                let _ = send_all(&mut *stream, b"hello?").await;
                let after = receive(&mut *stream, &mut [0; 1])
                    .await
                    .map_err(|error| error.kind());
                (noticed, after)
            },
            async |_stream| std::future::pending::<()>().await,
        );
        pair.world.run_for(SECOND);
        pair.world.crash(pair.server.0, crash);
        pair.world.run_for(SECOND * 5);
        pair.world.restart(pair.server.0);
        let (noticed, after) = pair.world.finish(&asked);
        assert_eq!(noticed, crash == Crash::Process);
        if crash == Crash::Power {
            assert_eq!(after, Err(ErrorKind::ConnectionReset));
        }
    }
}

#[test]
fn a_close_with_unread_bytes_resets_the_peer() {
    let pair = pair(12);
    let (asked, served) = pair.connected(
        async |mut stream| {
            send_all(&mut *stream, &[0; 100]).await.unwrap();
            receive(&mut *stream, &mut [0; 1])
                .await
                .map_err(|error| error.kind())
        },
        async |stream| {
            sleep(SECOND).await;
            drop(stream);
        },
    );
    pair.world.finish(&served);
    assert_eq!(pair.world.finish(&asked), Err(ErrorKind::ConnectionReset));
}

#[test]
fn streams_move_between_reactors_of_a_machine_only() {
    let pair = pair(13);
    let second = pair.world.add_reactor(pair.server.0);
    let other = pair.world.handle(second).unwrap();
    let foreign = pair.world.handle(pair.client.1).unwrap();
    let (asked, served) = pair.connected(
        async |stream| exchange(stream, bytes(5000)).await,
        async move |mut stream| {
            let mut first = [0; 10];
            receive_exact(&mut *stream, &mut first).await.unwrap();
            send_all(&mut *stream, &first).await.unwrap();
            let detached = stream.detach().unwrap();
            other.spawn(move || echo(attach(detached).unwrap())).unwrap();
        },
    );
    pair.world.finish(&served);
    assert_eq!(pair.world.finish(&asked), bytes(5000));

    let (asked, served) = pair.connected(
        async |mut stream| receive(&mut *stream, &mut [0; 1]).await,
        async move |stream| {
            let detached = stream.detach().unwrap();
            foreign
                .call(move || async { attach(detached).map(drop).map_err(|error| error.kind()) })
                .await
        },
    );
    assert_eq!(pair.world.finish(&served), Ok(Err(ErrorKind::InvalidInput)));
    // The stream was dropped while detached, and is closed.
    assert_eq!(pair.world.finish(&asked).unwrap(), 0);
}

#[test]
fn addresses_are_as_people_expect() {
    let pair = pair(14);
    pair.world.block_on(pair.server.1, async {
        let kind = |address: &str| listen(&address.parse().unwrap()).err().map(|error| error.kind());
        let wild = listen(&"0.0.0.0:80".parse().unwrap()).unwrap();
        assert_eq!(kind("127.0.0.1:80"), Some(ErrorKind::AddrInUse));
        assert_eq!(kind("10.0.0.1:81"), Some(ErrorKind::AddrNotAvailable));
        assert_eq!(kind("10.0.0.2:81"), None);
        drop(wild);
        let loopback = listen(&"127.0.0.1:80".parse().unwrap()).unwrap();
        assert_eq!(kind("10.0.0.2:80"), None);
        drop(loopback);
        let mut listener = listen(&"[::]:0".parse().unwrap()).unwrap();
        let Address::Tcp(local) = listener.local().clone() else {
            panic!("not a TCP address")
        };
        assert_ne!(local.port(), 0);
        let port = local.port();
        let connecting =
            spawn(async move { connect(&format!("[::1]:{port}").parse().unwrap()).await.unwrap() });
        let accepted = accept_one(&mut *listener).await;
        let connected = connecting.await;
        assert_eq!(connected.local(), accepted.peer());
        assert_eq!(connected.peer(), accepted.local());

        let path: Address = "unix:/run/pollux.sock".parse().unwrap();
        let mut listener = listen(&path).unwrap();
        assert_eq!(
            listen(&path).err().map(|error| error.kind()),
            Some(ErrorKind::AddrInUse)
        );
        let connecting = spawn(async move { exchange(connect(&path).await.unwrap(), bytes(100)).await });
        spawn(echo(accept_one(&mut *listener).await)).detach();
        assert_eq!(connecting.await, bytes(100));
    });
    // Another machine has its own names and loopback.
    let task = pair.world.spawn(pair.client.1, async {
        connect(&"unix:/run/pollux.sock".parse().unwrap())
            .await
            .err()
            .map(|error| error.kind())
    });
    assert_eq!(pair.world.finish(&task), Some(ErrorKind::ConnectionRefused));
}

#[test]
fn an_accept_that_fails_can_be_tried_again() {
    let pair = pair_with(
        15,
        NetworkOptions {
            accept_error_probability: 0.5,
            ..NetworkOptions::default()
        },
    );
    let address = pair.address.clone();
    let served = pair.world.spawn(pair.server.1, async move {
        let mut listener = listen(&address).unwrap();
        let mut failures = 0;
        for _ in 0..20 {
            let detached = loop {
                match accept(&mut *listener).await {
                    Ok(detached) => break detached,
                    Err(_) => failures += 1,
                }
            };
            spawn(echo(attach(detached).unwrap())).detach();
        }
        failures
    });
    let address = pair.address.clone();
    pair.world.block_on(pair.client.1, async move {
        sleep(Duration::from_millis(1)).await;
        for _ in 0..20 {
            let stream = connect(&address).await.unwrap();
            assert_eq!(exchange(stream, bytes(10)).await, bytes(10));
        }
    });
    assert!(pair.world.finish(&served) > 3);
}

#[test]
fn a_listener_may_refuse_and_a_link_may_reset() {
    let pair = pair(16);
    pair.serve_echo();
    let (client, server) = (pair.client.0, pair.server.0);
    pair.world
        .change_link(client, server, |rule| rule.refuse_probability = 0.5);
    let address = pair.address.clone();
    let refused = pair.world.block_on(pair.client.1, async move {
        let mut refused = 0;
        for _ in 0..100 {
            match connect(&address).await {
                Ok(_) => {}
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
                    refused += 1;
                }
            }
        }
        refused
    });
    assert!((30..70).contains(&refused), "{refused}");

    pair.world.change_link(client, server, |rule| {
        (rule.refuse_probability, rule.reset_probability) = (0.0, 1.0);
    });
    let address = pair.address.clone();
    let result = pair.world.block_on(pair.client.1, async move {
        let mut stream = connect(&address).await.unwrap();
        send_all(&mut *stream, b"to be reset").await.unwrap();
        receive(&mut *stream, &mut [0; 1])
            .await
            .map_err(|error| error.kind())
    });
    assert_eq!(result, Err(ErrorKind::ConnectionReset));
}

#[test]
fn a_sender_whose_peer_cannot_answer_gives_up() {
    let pair = pair(17);
    let (asked, _served) = pair.connected(
        async |mut stream| {
            sleep(SECOND).await;
            send_all(&mut *stream, &[1; 1000]).await.unwrap();
            let start = now();
            let result = receive(&mut *stream, &mut [0; 1]).await;
            (result.map_err(|error| error.kind()), now() - start)
        },
        async |mut stream| {
            receive_exact(&mut *stream, &mut [0; 1000]).await.unwrap();
            std::future::pending::<()>().await;
        },
    );
    pair.world.run_for(Duration::from_millis(500));
    pair.world.partition_one_way(&[pair.server.0], &[pair.client.0]);
    let (result, waited) = pair.world.finish(&asked);
    assert_eq!(result, Err(ErrorKind::TimedOut));
    assert!(waited >= SECOND * 59 && waited < SECOND * 70, "{waited:?}");
}
