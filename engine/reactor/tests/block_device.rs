//! A block device on a reactor: a loop device, where this process may make one. Apart from the other tests:
//! a process that is forked has the sockets and locks of all of them until it executes its program.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails it by panicking")]

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use pollux_hugepages::{Buffer, PoolOptions};
use pollux_reactor::file::{Allocate, File, FileKind, OpenOptions};
use pollux_reactor::real::{ReactorThread, Settings};

const BLOCK: usize = 4096;
const DEVICE_BLOCKS: usize = 256;

/// A loop device; taken apart when dropped.
struct LoopDevice {
    path: PathBuf,
    _backing: tempfile::NamedTempFile,
}

impl LoopDevice {
    /// `None` where loop devices are not for this process.
    fn new() -> Option<Self> {
        let backing = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        backing.as_file().set_len((DEVICE_BLOCKS * BLOCK) as u64).unwrap();
        let made = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(backing.path())
            .output()
            .ok()
            .filter(|output| output.status.success())?;
        let path = PathBuf::from(String::from_utf8(made.stdout).unwrap().trim());
        Some(Self {
            path,
            _backing: backing,
        })
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.path).status();
    }
}

async fn read_block(file: &File, block: usize) -> Vec<u8> {
    let (read, buffer) = file
        .read_at((block * BLOCK) as u64, Buffer::from_heap(BLOCK))
        .await;
    assert_eq!(read.unwrap(), BLOCK);
    buffer.to_vec()
}

async fn exercise(path: &Path) {
    let options = OpenOptions {
        write: true,
        direct: true,
        exclusive: true,
        ..OpenOptions::default()
    };
    let file = File::open(path, &options).await.unwrap();
    assert_eq!(file.shared().kind(), FileKind::BlockDevice);
    assert_eq!(file.len_bytes().unwrap(), (DEVICE_BLOCKS * BLOCK) as u64);
    assert!(file.shared().direct_offset_align_bytes() >= 512);
    let error = File::open(path, &options).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResourceBusy);

    let mut data = Buffer::from_heap(64 * BLOCK);
    data.fill(7);
    assert_eq!(file.write_at(0, [data.freeze()], true).await.unwrap(), 64 * BLOCK);
    file.fsync(true).await.unwrap();
    assert!(read_block(&file, 63).await == [7; BLOCK]);

    let quarter = (16 * BLOCK) as u64;
    file.allocate(Allocate::PunchHole, 0, quarter).await.unwrap();
    file.allocate(Allocate::Zero, quarter, quarter).await.unwrap();
    for block in [0, 15, 16, 31] {
        assert!(read_block(&file, block).await == [0; BLOCK]);
    }
    assert!(read_block(&file, 32).await == [7; BLOCK]);
    // On a loop device, which frees the range in its file, what was discarded reads as zeros.
    file.discard(2 * quarter, quarter).await.unwrap();
    assert!(read_block(&file, 32).await == [0; BLOCK]);
    assert!(read_block(&file, 47).await == [0; BLOCK]);
    assert!(read_block(&file, 48).await == [7; BLOCK]);
    let (read, _) = file.read_at(4 << 30, Buffer::from_heap(BLOCK)).await;
    assert_eq!(read.unwrap(), 0);
}

#[test]
fn a_block_device_is_read_written_zeroed_and_discarded() {
    let Some(device) = LoopDevice::new() else {
        println!("skipped: loop devices are not for this process");
        return;
    };
    let buffers = PoolOptions {
        total_bytes: 8 << 20,
        ..PoolOptions::default()
    };
    let reactor = ReactorThread::spawn(Settings {
        buffers,
        ..Settings::default()
    });
    let reactor = reactor.expect("a reactor starts");
    let path = device.path.clone();
    let ran = reactor
        .handle()
        .call_blocking(move || async move { exercise(&path).await });
    reactor.stop();
    reactor.join().unwrap();
    ran.unwrap();
}
