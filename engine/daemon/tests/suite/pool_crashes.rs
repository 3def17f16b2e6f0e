//! An engine that serves a pool is killed again and again while hosts write.

use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pollux_device::{BlockDevice, BlockDeviceExt, IoError};

use crate::common::EngineProcess;
use crate::common::content::{read_all, write};
use crate::common::host::{Host, block_on};
use crate::common::pool::PoolFile;

/// How often the engine is killed.
const ROUNDS: u64 = 50;

/// Blocks of the volume that are written, and hosts' writers side by side, each with blocks of its own.
const BLOCKS: u64 = 1024;
const WRITERS: u64 = 8;

/// How long a round writes, at least.
const ROUND: Duration = Duration::from_millis(120);

/// Writes of a round, at least.
const WRITES_MIN: u64 = 4 * WRITERS;

/// How long those may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is known of a block: it holds a version from `flushed` to `attempted`.
#[derive(Clone, Copy, Default)]
struct Known {
    flushed: u64,
    attempted: u64,
}

type Blocks = Arc<Mutex<Vec<Known>>>;

/// The next version of any block.
static NEXT_VERSION: AtomicU64 = AtomicU64::new(1);

/// Writes blocks in a scattered order, with a flush now and then, until an error.
async fn write_on(device: Rc<dyn BlockDevice>, blocks: Blocks, writer: u64, seed: u64) -> IoError {
    let mut random = seed | 1;
    let mut unflushed = Vec::new();
    loop {
        // Marsaglia's xorshift.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let block = random % (BLOCKS / WRITERS) * WRITERS + writer;
        let version = NEXT_VERSION.fetch_add(1, Ordering::Relaxed);
        blocks.lock().expect("no panic")[block as usize].attempted = version;
        if let Err(error) = write(&device, block, version).await {
            return error;
        }
        unflushed.push((block, version));
        if random.is_multiple_of(11) {
            if let Err(error) = device.flush().await {
                return error;
            }
            for (block, version) in unflushed.drain(..) {
                blocks.lock().expect("no panic")[block as usize].flushed = version;
            }
        }
    }
}

/// Compares the volume with what is known, and knows it from then on.
fn compare(host: &Host, blocks: &Blocks, round: u64) {
    let found = host.run(|device| async move { read_all(&device, BLOCKS).await });
    let found = found.expect("it reads");
    for (block, (found, known)) in found
        .into_iter()
        .zip(&mut *blocks.lock().expect("no panic"))
        .enumerate()
    {
        assert!(
            (known.flushed..=known.attempted).contains(&found),
            "round {round}: block {block} has version {found}, and is to have one from {} to {}",
            known.flushed,
            known.attempted
        );
        *known = Known {
            flushed: found,
            attempted: found,
        };
    }
}

#[test]
fn fifty_kills_lose_nothing_that_was_flushed() {
    let file = PoolFile::with_volume(256 << 20, "64MiB");
    let blocks: Blocks = Arc::new(Mutex::new(vec![Known::default(); BLOCKS as usize]));
    let uri = file.uri();
    let mut written = 0;
    for round in 0..ROUNDS {
        let mut engine = EngineProcess::start(&["--pool", &uri, "pool://tank/db"]);
        let host = Host::connect(engine.listener(), "?reconnect=off&timeout=5s").expect("it connects");
        compare(&host, &blocks, round);
        let before = NEXT_VERSION.load(Ordering::Relaxed);
        let all = blocks.clone();
        let writing = host.start(move |device| async move {
            let writers = (0..WRITERS).map(|writer| {
                let work = write_on(device.clone(), all.clone(), writer, round * WRITERS + writer + 1);
                pollux_reactor::spawn(work)
            });
            for writer in writers.collect::<Vec<_>>() {
                writer.await;
            }
        });
        std::thread::scope(|scope| {
            let writing = scope.spawn(|| block_on(writing));
            let began = Instant::now();
            std::thread::sleep(ROUND);
            let written = || NEXT_VERSION.load(Ordering::Relaxed) - before;
            while written() < WRITES_MIN && began.elapsed() < PATIENCE {
                std::thread::sleep(ROUND);
            }
            // Some are killed in the middle of a change of the table of volumes too.
            match round % 5 {
                1 => drop(engine.command("volume", &["snapshot", "tank/db", "before"])),
                2 => drop(engine.command("volume", &["clone", "tank/before", "other"])),
                3 => drop(engine.command("volume", &["delete", "tank/before", "--if-exists"])),
                4 => drop(engine.command("volume", &["delete", "tank/other", "--if-exists"])),
                _ => {}
            }
            engine.kill();
            writing.join().expect("the writers end with an error");
        });
        let now = NEXT_VERSION.load(Ordering::Relaxed);
        assert!(now >= before + WRITES_MIN, "round {round} wrote next to nothing");
        written += now - before;
        file.check();
    }
    assert!(written > ROUNDS * 10);
    let mut engine = EngineProcess::start(&["--pool", &uri, "pool://tank/db"]);
    let host = Host::connect(engine.listener(), "").expect("it connects");
    compare(&host, &blocks, ROUNDS);
    drop(host);
    engine.stop();
    file.check();
}
