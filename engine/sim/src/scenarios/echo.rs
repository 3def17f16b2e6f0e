//! Clients of an echo server, through everything that a network does wrong.

use std::cell::Cell;
use std::future::poll_fn;
use std::io::{self, IoSlice, IoSliceMut};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use pollux_reactor::net::{Address, Stream, accept, attach, connect, listen, receive, send_all};
use pollux_reactor::{ReactorHandle, sleep, timeout};

use crate::random::Random;
use crate::{Control, Crash, Finished, LinkRule, MachineId, MachineOptions, Run, SimTask, WorldOptions};

const PORT: u16 = 7;

/// After this long without success a client gives a session up: its peer may be gone without a word.
const SESSION_TIMEOUT: Duration = Duration::from_secs(30);

/// Within this time after the last fault every client has to have a good session.
const RECOVERY_LIMIT: Duration = Duration::from_secs(300);

pub(super) fn run(run: &Run) -> Result<Finished, String> {
    let world = run.world(WorldOptions::default());
    let mut random = world.random("scenario", 0);
    let server = world.add_machine_with("server", MachineOptions::seeded(&mut random));
    for _ in 0..random.within(1..=3) {
        world.add_reactor(server);
    }
    serve(&world, server);

    let faults_over = Rc::new(Cell::new(false));
    let mut clients = Vec::new();
    let mut machines = vec![server];
    for number in 0..random.within(1..=4) {
        let machine = world.add_machine_with("client", MachineOptions::seeded(&mut random));
        let reactor = world.add_reactor(machine);
        let client = Client {
            address: world.tcp(server, PORT),
            random: world.random("client", number),
            faults_over: faults_over.clone(),
        };
        clients.push(world.spawn(reactor, client.run()));
        machines.push(machine);
    }
    for _ in 0..random.within(5..=30) {
        world.run_for(random.duration(Duration::ZERO..=Duration::from_secs(3)));
        disturb(&world, &machines, &mut random);
    }
    world.heal();
    if !world.is_up(server) {
        start_server(&world, server);
    }
    faults_over.set(true);
    let recovered = world.run_until(|| clients.iter().all(SimTask::is_ended), RECOVERY_LIMIT);
    for client in &clients {
        match client.take() {
            Some(Ok(Err(wrong))) => return Err(wrong),
            Some(Err(lost)) => return Err(lost.to_string()),
            Some(Ok(Ok(_sessions))) => {}
            None => {
                return Err(format!(
                    "a client has no good session {recovered:?} after the faults"
                ));
            }
        }
    }
    Ok(Finished::of(&world))
}

/// Does one thing wrong, or ends it.
fn disturb(control: &Control, machines: &[MachineId], random: &mut Random) {
    let Some((&server, clients)) = machines.split_first() else {
        return;
    };
    let client = random.pick(clients).copied().unwrap_or(server);
    match random.below(10) {
        0 => control.partition(&[client], &[server]),
        1 => control.partition_one_way(&[client], &[server]),
        2 => control.partition_one_way(&[server], &[client]),
        3 => control.flap(
            &[server],
            &[client],
            random.duration(Duration::ZERO..=Duration::from_secs(1)),
            3,
        ),
        4 => control.reset_connections(client, server),
        5 => control.set_links(LinkRule {
            loss_probability: 0.01,
            reset_probability: 0.001,
            latency: random.duration(Duration::ZERO..=Duration::from_millis(20)),
            ..LinkRule::HEALTHY
        }),
        6 if control.is_up(server) => {
            let crash = if random.chance(0.5) {
                Crash::Power
            } else {
                Crash::Process
            };
            control.crash(server, crash);
        }
        _ => {
            control.heal();
            if !control.is_up(server) {
                start_server(control, server);
            }
        }
    }
}

fn start_server(control: &Control, server: MachineId) {
    control.restart(server);
    serve(control, server);
}

/// Accepts on the first reactor and echoes on all of them in turn.
fn serve(control: &Control, server: MachineId) {
    let address = control.tcp(server, PORT);
    let reactors = control.reactors(server);
    let handles: Vec<ReactorHandle> = reactors
        .iter()
        .filter_map(|&reactor| control.handle(reactor))
        .collect();
    if let Some(&first) = reactors.first() {
        drop(control.spawn(first, accept_all(address, handles)));
    }
}

async fn accept_all(address: Address, reactors: Vec<ReactorHandle>) {
    let Ok(mut listener) = listen(&address) else {
        return;
    };
    for reactor in reactors.iter().cycle() {
        if let Ok(detached) = accept(&mut *listener).await {
            // A refusal drops the stream, which is all that an overloaded server can do.
            let _ = reactor.spawn(move || async move {
                if let Ok(stream) = attach(detached) {
                    echo(stream).await;
                }
            });
        }
    }
}

async fn echo(mut stream: Box<dyn Stream>) {
    let mut buffer = vec![0; 8 << 10];
    while let Ok(len @ 1..) = receive(&mut *stream, &mut buffer).await {
        let echoed = buffer.get(..len).unwrap_or_default();
        if send_all(&mut *stream, echoed).await.is_err() {
            return;
        }
    }
}

struct Client {
    address: Address,
    random: Random,
    faults_over: Rc<Cell<bool>>,
}

impl Client {
    /// One session after the other, until one that began after the last fault was good; how many were.
    async fn run(mut self) -> Result<u64, String> {
        let mut good = 0;
        loop {
            let last = self.faults_over.get();
            match timeout(SESSION_TIMEOUT, self.session()).await {
                Ok(Ok(Verdict::Echoed)) => {
                    good += 1;
                    if last {
                        return Ok(good);
                    }
                }
                Ok(Ok(Verdict::Wrong(wrong))) => return Err(wrong),
                Ok(Err(_)) | Err(_) => {}
            }
            sleep(self.random.duration(Duration::ZERO..=Duration::from_secs(1))).await;
        }
    }

    async fn session(&mut self) -> io::Result<Verdict> {
        let mut stream = connect(&self.address).await?;
        let mut data = vec![0; self.random.within(1..=50_000) as usize];
        self.random.fill(&mut data);
        let verdict = exchange(&mut *stream, &data).await?;
        if let Verdict::Wrong(_) = verdict {
            return Ok(verdict);
        }
        stream.shutdown()?;
        match receive(&mut *stream, &mut [0; 1]).await? {
            0 => Ok(Verdict::Echoed),
            _ => Ok(Verdict::Wrong("more bytes came back than were sent".to_owned())),
        }
    }
}

enum Verdict {
    Echoed,
    Wrong(String),
}

/// Sends and receives at once, so that full windows cannot deadlock it.
async fn exchange(stream: &mut dyn Stream, data: &[u8]) -> io::Result<Verdict> {
    let (mut sent, mut checked) = (0, 0);
    let mut buffer = vec![0; 4096];
    poll_fn(|context| {
        loop {
            let mut moved = false;
            let unsent = data.get(sent..).unwrap_or_default();
            if !unsent.is_empty()
                && let Poll::Ready(count) = stream.poll_send(context, &[IoSlice::new(unsent)])?
            {
                sent += count;
                moved = true;
            }
            if let Poll::Ready(count) = stream.poll_receive(context, &mut [IoSliceMut::new(&mut buffer)])? {
                if count == 0 {
                    return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                }
                let expected = data.get(checked..checked + count);
                if expected != buffer.get(..count) || checked + count > sent {
                    let wrong = format!("{count} bytes from {checked} on differ from what was sent");
                    return Poll::Ready(Ok(Verdict::Wrong(wrong)));
                }
                checked += count;
                moved = true;
            }
            if checked == data.len() {
                return Poll::Ready(Ok(Verdict::Echoed));
            }
            if !moved {
                return Poll::Pending;
            }
        }
    })
    .await
}
