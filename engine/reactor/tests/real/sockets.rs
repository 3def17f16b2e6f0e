//! Sockets of both transports on reactor threads.

use std::io::{ErrorKind, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use crate::common::{SLEEPY, eventually, reactor, settings};
use pollux_reactor::net::{
    Address, Listener, Stream, accept, attach, connect, listen, receive, receive_exact, send_all,
};
use pollux_reactor::real::{IdlePolicy, Reactors};
use pollux_reactor::{Reactor, ReactorHandle, current, sleep, spawn, timeout};

fn any_port() -> Address {
    Address::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
}

/// An address of each transport; the directory lives as long as the test.
fn addresses() -> (tempfile::TempDir, [Address; 2]) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    (directory, [any_port(), Address::Unix(path)])
}

/// Sends back all it receives, until the peer is done.
async fn echo(mut stream: Box<dyn Stream>) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match receive(&mut *stream, &mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(received) => {
                if send_all(&mut *stream, &buffer[..received]).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Serves echoes on its own reactor until the reactor stops.
async fn serve(mut listener: Box<dyn Listener>) {
    loop {
        let stream = attach(accept(&mut *listener).await.unwrap()).unwrap();
        spawn(echo(stream)).detach();
    }
}

fn start_server(handle: &ReactorHandle, address: Address) -> Address {
    handle
        .call_blocking(move || async move {
            let listener = listen(&address).unwrap();
            let local = listener.local().clone();
            spawn(serve(listener)).detach();
            local
        })
        .unwrap()
}

async fn round_trip(stream: &mut dyn Stream, bytes: &[u8]) {
    send_all(stream, bytes).await.unwrap();
    let mut back = vec![0; bytes.len()];
    receive_exact(stream, &mut back).await.unwrap();
    assert_eq!(back, bytes);
}

#[test]
fn bytes_go_both_ways_and_the_end_is_seen() {
    for idle in [SLEEPY, IdlePolicy::Poll] {
        let (_directory, addresses) = addresses();
        for address in addresses {
            let reactor = reactor(0, idle);
            let server = start_server(&reactor.handle(), address);
            reactor
                .handle()
                .call_blocking(move || async move {
                    let mut stream = connect(&server).await.unwrap();
                    assert_eq!(stream.peer(), &server);
                    round_trip(&mut *stream, b"ping").await;
                    let large: Vec<u8> = (0..200_000_u32).map(|number| number as u8).collect();
                    let mut sent = 0;
                    let mut back = Vec::new();
                    // Sends and receives at once: more than the buffers between the two hold.
                    std::future::poll_fn(|context| {
                        let mut piece = [0; 10_000];
                        while back.len() < large.len() {
                            let mut moved = false;
                            if sent < large.len() {
                                let (head, tail) = large[sent..].split_at((large.len() - sent) / 2);
                                let pieces = [IoSlice::new(head), IoSlice::new(tail)];
                                if let std::task::Poll::Ready(bytes) = stream.poll_send(context, &pieces) {
                                    sent += bytes.unwrap();
                                    moved = true;
                                }
                            }
                            let (head, tail) = piece.split_at_mut(1000);
                            let mut pieces = [IoSliceMut::new(head), IoSliceMut::new(tail)];
                            if let std::task::Poll::Ready(bytes) = stream.poll_receive(context, &mut pieces) {
                                back.extend_from_slice(&piece[..bytes.unwrap()]);
                                moved = true;
                            }
                            if !moved {
                                return std::task::Poll::Pending;
                            }
                        }
                        std::task::Poll::Ready(())
                    })
                    .await;
                    assert!(back == large);
                    stream.shutdown().unwrap();
                    assert_eq!(receive(&mut *stream, &mut [0; 10]).await.unwrap(), 0);
                    assert_eq!(
                        stream
                            .poll_receive(&mut noop_context(), &mut [])
                            .map(Result::unwrap),
                        std::task::Poll::Ready(0)
                    );
                })
                .unwrap();
        }
    }
}

fn noop_context() -> std::task::Context<'static> {
    std::task::Context::from_waker(std::task::Waker::noop())
}

#[test]
fn a_full_connection_blocks_the_sender_until_the_peer_reads() {
    let (_directory, addresses) = addresses();
    for address in addresses {
        let reactor = reactor(0, SLEEPY);
        reactor
            .handle()
            .call_blocking(move || async move {
                let mut listener = listen(&address).unwrap();
                let mut sender = connect(listener.local()).await.unwrap();
                let mut receiver = attach(accept(&mut *listener).await.unwrap()).unwrap();
                let bytes = 16 << 20;
                let task = spawn(async move {
                    send_all(&mut *sender, &vec![7; bytes]).await.unwrap();
                    sender.shutdown().unwrap();
                    sender
                });
                // Long enough for the sender to fill the socket, to cool down, and for the reactor to sleep.
                sleep(Duration::from_millis(20)).await;
                assert!(!task.is_finished());
                let mut buffer = vec![0; 100_000];
                let mut total = 0;
                loop {
                    match receive(&mut *receiver, &mut buffer).await.unwrap() {
                        0 => break,
                        received => total += received,
                    }
                }
                assert_eq!(total, bytes);
                drop(task.await);
            })
            .unwrap();
    }
}

#[test]
fn a_stream_moves_from_one_reactor_to_another_and_back() {
    let (_directory, addresses) = addresses();
    for address in addresses {
        let reactors = Reactors::spawn((0..2).map(|id| settings(id, SLEEPY))).unwrap();
        let handles = reactors.handles();
        let server = start_server(&handles[0], address);
        let other = handles[1].clone();
        let first = handles[0].clone();
        handles[0]
            .call_blocking(move || async move {
                let mut stream = connect(&server).await.unwrap();
                for round in 0..50_u8 {
                    round_trip(&mut *stream, &[round; 100]).await;
                    if round % 2 == 0 {
                        // Detached while a poll for it is armed in the ring.
                        let nothing = async { receive(&mut *stream, &mut [0; 1]).await };
                        assert!(timeout(Duration::from_millis(1), nothing).await.is_err());
                    }
                    let detached = stream.detach().unwrap();
                    let first = first.clone();
                    let moved = other
                        .call(move || async move {
                            assert_ne!(current().id(), first.id());
                            let mut stream = attach(detached).unwrap();
                            round_trip(&mut *stream, b"from elsewhere").await;
                            stream.detach().unwrap()
                        })
                        .await
                        .unwrap();
                    stream = attach(moved).unwrap();
                }
            })
            .unwrap();
    }
}

#[test]
fn idle_connections_cool_and_the_reactor_sleeps_until_one_of_them_moves() {
    const CONNECTIONS: usize = 100;
    let server = reactor(0, SLEEPY);
    let client = reactor(1, SLEEPY);
    let address = start_server(&server.handle(), any_port());
    let (requests, answers) = client
        .handle()
        .call_blocking(move || async move {
            let mut streams = Vec::new();
            for _ in 0..CONNECTIONS {
                let mut stream = connect(&address).await.unwrap();
                round_trip(&mut *stream, b"hello").await;
                streams.push(stream);
            }
            let (request, mut requests) = futures_channel::mpsc::unbounded::<usize>();
            let (answer, answers) = std::sync::mpsc::channel();
            spawn(async move {
                while let Some(index) = futures_next(&mut requests).await {
                    round_trip(&mut *streams[index], &[index as u8; 72]).await;
                    answer.send(()).unwrap();
                }
            })
            .detach();
            (request, answers)
        })
        .unwrap();
    let cold = || {
        server
            .handle()
            .call_blocking(|| async { current().driver().ring().map_or(0, |ring| ring.cold_sockets()) })
            .unwrap()
    };
    // The connections and the listener.
    eventually("all connections are cold", || cold() == CONNECTIONS + 1);
    std::thread::sleep(Duration::from_millis(5));
    let before = server.handle().counters().snapshot();
    std::thread::sleep(Duration::from_millis(50));
    let after = server.handle().counters().snapshot();
    assert!(after.iterations - before.iterations <= 2, "the reactor sleeps");
    for index in [0, 99, 50, 50] {
        requests.unbounded_send(index).unwrap();
        answers.recv_timeout(crate::common::PATIENCE).unwrap();
    }
}

async fn futures_next(receiver: &mut futures_channel::mpsc::UnboundedReceiver<usize>) -> Option<usize> {
    receiver.recv().await.ok()
}

#[test]
fn a_thousand_connections_are_all_served_beside_a_busy_one() {
    const CONNECTIONS: usize = 1000;
    let server = reactor(0, SLEEPY);
    let client = reactor(1, SLEEPY);
    let address = start_server(&server.handle(), any_port());
    client
        .handle()
        .call_blocking(move || async move {
            let mut busy = connect(&address).await.unwrap();
            let flood = spawn(async move {
                let bytes = vec![1; 100_000];
                let mut back = vec![0; 100_000];
                loop {
                    send_all(&mut *busy, &bytes).await.unwrap();
                    receive_exact(&mut *busy, &mut back).await.unwrap();
                }
            });
            let mut tasks = Vec::new();
            for number in 0..CONNECTIONS {
                let mut stream = connect(&address).await.unwrap();
                tasks.push(spawn(async move {
                    for round in 0..10 {
                        round_trip(&mut *stream, &[(number + round) as u8; 100]).await;
                    }
                }));
            }
            for task in tasks {
                task.await;
            }
            drop(flood);
        })
        .unwrap();
}

#[test]
fn a_task_that_receives_for_ever_does_not_hold_its_reactor() {
    let server = reactor(0, SLEEPY);
    let client = reactor(1, SLEEPY);
    let address = server.handle().call_blocking(|| async {
        let mut listener = listen(&any_port()).unwrap();
        let local = listener.local().clone();
        let swallow = async move {
            let mut stream = attach(accept(&mut *listener).await.unwrap()).unwrap();
            let mut buffer = [0; 100];
            // Never gives way by itself, as long as there is something to receive.
            while receive(&mut *stream, &mut buffer).await.unwrap() > 0 {}
        };
        spawn(swallow).detach();
        local
    });
    let address = address.unwrap();
    let flood = move || async move {
        let mut stream = connect(&address).await.unwrap();
        let bytes = vec![1; 1 << 20];
        while send_all(&mut *stream, &bytes).await.is_ok() {}
    };
    client.handle().spawn(flood).unwrap();
    let received = || server.handle().counters().snapshot().driver_events;
    eventually("the flood comes", || received() > 1000);
    for round in 0..100 {
        assert_eq!(
            server.handle().call_blocking(move || async move { round }),
            Ok(round)
        );
    }
}

#[test]
fn a_dropped_stream_is_closed_though_a_poll_for_it_was_armed() {
    let reactor = reactor(0, SLEEPY);
    reactor
        .handle()
        .call_blocking(|| async {
            let mut listener = listen(&any_port()).unwrap();
            let mut near = connect(listener.local()).await.unwrap();
            let mut far = attach(accept(&mut *listener).await.unwrap()).unwrap();
            let waiting = async { receive(&mut *far, &mut [0; 1]).await };
            assert!(timeout(Duration::from_millis(2), waiting).await.is_err());
            drop(far);
            assert_eq!(receive(&mut *near, &mut [0; 1]).await.unwrap(), 0);
            drop(near);
            drop(listener);
            sleep(Duration::from_millis(2)).await;
            assert_eq!(current().driver().ring().unwrap().cold_sockets(), 0);
        })
        .unwrap();
}

#[test]
fn what_cannot_be_reached_or_taken_is_said_with_its_address() {
    let reactor = reactor(0, SLEEPY);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let address = Address::Unix(path.clone());
    reactor
        .handle()
        .call_blocking(move || async move {
            let error = connect(&address).await.err().unwrap();
            assert_eq!(error.kind(), ErrorKind::NotFound);
            assert!(error.to_string().contains(&address.to_string()), "{error}");

            let listener = listen(&any_port()).unwrap();
            let taken = listener.local().clone();
            let error = listen(&taken).err().unwrap();
            assert_eq!(error.kind(), ErrorKind::AddrInUse);
            assert!(error.to_string().contains(&taken.to_string()), "{error}");
            drop(listener);
            let error = connect(&taken).await.err().unwrap();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);

            // A file left over by a process that was killed is replaced, one in use is not.
            let first = listen(&address).unwrap();
            assert_eq!(listen(&address).err().unwrap().kind(), ErrorKind::AddrInUse);
            drop(first);
            drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
            assert!(path.exists());
            let second = listen(&address).unwrap();
            drop(second);
            assert!(!path.exists());
            std::fs::write(&path, "not a socket").unwrap();
            assert_eq!(listen(&address).err().unwrap().kind(), ErrorKind::AddrInUse);
        })
        .unwrap();
}

#[test]
fn a_unix_listener_with_a_full_backlog_is_waited_for() {
    let reactor = reactor(0, SLEEPY);
    let directory = tempfile::tempdir().unwrap();
    let path: PathBuf = directory.path().join("socket");
    let listener = rustix::net::socket_with(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::STREAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    rustix::net::bind(&listener, &rustix::net::SocketAddrUnix::new(&path).unwrap()).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let address = Address::Unix(path);
    let connecting = {
        let handle = reactor.handle();
        std::thread::spawn(move || {
            handle.call_blocking(move || async move {
                let first = connect(&address).await.unwrap();
                let second = timeout(Duration::from_millis(50), connect(&address)).await;
                assert!(second.is_err(), "the backlog is full");
                let third = connect(&address).await.unwrap();
                drop((first, third));
            })
        })
    };
    std::thread::sleep(Duration::from_millis(200));
    let accepted: Vec<_> = (0..2).map(|_| rustix::net::accept(&listener).unwrap()).collect();
    connecting.join().unwrap().unwrap();
    drop(accepted);
}

#[test]
fn a_stream_of_another_driver_is_refused() {
    let reactor = reactor(0, SLEEPY);
    reactor
        .handle()
        .call_blocking(|| async {
            let foreign = pollux_reactor::net::Detached::new(Rc::<str>::from("").len());
            let error = Reactor::current().driver().attach(foreign).err().unwrap();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
        })
        .unwrap();
}
