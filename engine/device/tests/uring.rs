//! Files and block devices: opening, growing, freeing, and what happens when the medium is short or broken.

mod common;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use common::{LoopDevice, Mount, let_go, on_reactor, open};
use pollux_device::events::DeviceEvent;
use pollux_device::{
    BlockDevice, BlockDeviceExt, Device, GrowError, IoError, UringDevice, UringError, UringOptions,
    ZeroOptions,
};
use pollux_hugepages::{Buffer, Slice};

const BLOCK_BYTES: usize = 4096;

fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory")
}

async fn open_file(options: &UringOptions) -> Result<Arc<UringDevice>, UringError> {
    let_go();
    UringDevice::open("disk", options).await
}

/// Opens a block device that was closed just now: the kernel may take a moment to let go of it.
async fn open_again(options: &UringOptions) -> Arc<UringDevice> {
    for _ in 0..1000 {
        match open_file(options).await {
            Err(UringError::InUse { .. }) => pollux_reactor::sleep(Duration::from_millis(10)).await,
            result => return result.expect("a block device"),
        }
    }
    panic!("it is in use for ever");
}

async fn attach(device: &Arc<UringDevice>) -> Rc<dyn BlockDevice> {
    device.clone().attach().await.expect("a reactor with files")
}

async fn write(queue: &Rc<dyn BlockDevice>, block: u64, byte: u8, blocks: usize) -> Result<(), IoError> {
    let data = Slice::copy_from(&vec![byte; blocks * BLOCK_BYTES]);
    queue.write(block, data, false).await
}

async fn read(queue: &Rc<dyn BlockDevice>, block: u64) -> Result<Vec<u8>, IoError> {
    let read = queue.read(block, Buffer::from_heap(BLOCK_BYTES)).await;
    read.map(|buffer| buffer.to_vec())
}

fn new_file(path: &Path, size_bytes: u64) -> UringOptions {
    UringOptions {
        size_bytes: Some(size_bytes),
        ..UringOptions::new(path)
    }
}

/// What opening fails with, in one line.
async fn error(options: &UringOptions) -> String {
    let error = open_file(options).await.expect_err("an error").to_string();
    assert!(!error.contains('\n'), "{error}");
    error
}

#[test]
fn a_file_is_made_with_its_size_and_kept() {
    on_reactor(|| async {
        let directory = directory();
        let path = directory.path().join("disk");
        let device = open_file(&new_file(&path, 32 << 20)).await.expect("a new file");
        let metadata = std::fs::metadata(&path).expect("a file");
        assert_eq!(metadata.len(), 32 << 20);
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
        assert!(metadata.blocks() * 512 < 1 << 20, "with holes");
        let geometry = device.geometry();
        assert_eq!((geometry.block_bytes, geometry.blocks), (4096, 8192));
        assert!(
            geometry.volatile_write_cache,
            "a file is not durable before a flush"
        );

        let queue = attach(&device).await;
        write(&queue, 7, 7, 1).await.expect("written");
        queue.flush().await.expect("durable");
        drop((queue, device));
        // The lock went with it.
        let device = open_file(&new_file(&path, 32 << 20))
            .await
            .expect("the same size is fine");
        let queue = attach(&device).await;
        assert_eq!(read(&queue, 7).await, Ok(vec![7; BLOCK_BYTES]));
        assert_eq!(read(&queue, 8).await, Ok(vec![0; BLOCK_BYTES]));
    });
}

#[test]
fn what_cannot_be_opened_says_why() {
    on_reactor(|| async {
        let directory = directory();
        let path = directory.path().join("disk");
        let missing = error(&UringOptions::new(&path)).await;
        assert!(missing.contains("does not exist; give a size"), "{missing}");
        let read_only = UringOptions {
            read_only: true,
            ..new_file(&path, 1 << 20)
        };
        assert!(error(&read_only).await.contains("readonly"), "cannot be made");
        assert!(
            error(&new_file(&path, 1000)).await.contains("multiple"),
            "not whole blocks"
        );
        assert!(!path.exists(), "nothing was made");
        assert!(
            error(&new_file(&path.join("below"), 1 << 20))
                .await
                .contains("cannot"),
            "no directory"
        );
        assert!(
            error(&UringOptions::new(directory.path()))
                .await
                .contains("neither a file"),
            "a directory"
        );

        std::fs::write(&path, vec![1; 10_000]).expect("a file");
        let size = error(&new_file(&path, 1 << 20)).await;
        assert!(
            size.contains("has 10000 bytes") && size.contains("1048576"),
            "{size}"
        );
        let block = UringOptions {
            block_bytes: Some(1024),
            ..UringOptions::new(&path)
        };
        assert!(error(&block).await.contains("use 512 or 4096"), "block size");
        std::fs::write(&path, [1; 100]).expect("a file");
        assert!(
            error(&UringOptions::new(&path))
                .await
                .contains("less than a block"),
            "too small"
        );
        assert_eq!(std::fs::read(&path).expect("a file"), [1; 100], "untouched");
    });
}

#[test]
fn a_file_that_is_not_whole_blocks_loses_nothing() {
    on_reactor(|| async {
        let directory = directory();
        let path = directory.path().join("disk");
        std::fs::write(&path, vec![1; 10_000]).expect("a file");
        let device = open_file(&UringOptions::new(&path)).await.expect("two blocks");
        assert_eq!(device.geometry().blocks, 2);
        let queue = attach(&device).await;
        queue.deallocate(0, 2).await.expect("in range");
        assert_eq!(write(&queue, 2, 9, 1).await, Err(IoError::OutOfRange));
        drop((queue, device));
        let content = std::fs::read(&path).expect("a file");
        assert_eq!(content.len(), 10_000);
        assert!(content[8192..].iter().all(|&byte| byte == 1));
    });
}

#[test]
fn an_empty_file_is_a_new_one() {
    on_reactor(|| async {
        let directory = directory();
        let path = directory.path().join("disk");
        std::fs::write(&path, []).expect("a file");
        assert!(open_file(&UringOptions::new(&path)).await.is_err());
        let device = open_file(&new_file(&path, 1 << 20))
            .await
            .expect("nothing is in it");
        assert_eq!(device.geometry().bytes(), 1 << 20);
    });
}

#[test]
fn only_one_may_have_it() {
    on_reactor(|| async {
        let directory = directory();
        let path = directory.path().join("disk");
        let device = open_file(&new_file(&path, 1 << 20)).await.expect("a new file");
        let second = error(&UringOptions::new(&path)).await;
        assert!(second.contains("is in use"), "{second}");
        // Its queue has it too.
        let queue = attach(&device).await;
        drop(device);
        assert!(open_file(&UringOptions::new(&path)).await.is_err());
        drop(queue);
        assert!(open_file(&UringOptions::new(&path)).await.is_ok());
    });
}

#[test]
fn by_uri() {
    on_reactor(|| async {
        let directory = directory();
        let path = directory.path().join("my disk");
        let encoded = path.display().to_string().replace(' ', "%20");
        let uri = format!("uring://{encoded}?size=8MiB&block=512");
        let device = open(&uri).await.expect("a new file");
        assert_eq!(device.name(), "my disk");
        assert_eq!(
            (device.geometry().block_bytes, device.geometry().bytes()),
            (512, 8 << 20)
        );
        assert!(path.exists());
        drop(device);
        for (uri, told) in [
            (
                format!("uring://{encoded}?create=true"),
                "allowed are size, block, direct, readonly",
            ),
            (format!("uring://{encoded}?direct=maybe"), "true or false"),
            (format!("uring://{encoded}?size=9MiB"), "8 MiB"),
            ("uring:///nowhere/disk".to_owned(), "does not exist"),
            ("uring://nowhere?size=1MiB".to_owned(), "write uring:///nowhere"),
        ] {
            let error = open(&uri).await.err().expect(&uri).to_string();
            assert!(error.starts_with("uring://") && error.contains(told), "{error}");
        }
    });
}

#[test]
fn freed_space_goes_back_and_zeroed_space_stays() {
    on_reactor(|| async {
        let directory = directory();
        let path = directory.path().join("disk");
        let device = open_file(&new_file(&path, 16 << 20)).await.expect("a new file");
        let queue = attach(&device).await;
        let used = || std::fs::metadata(&path).expect("a file").blocks() * 512;
        for mebibyte in 0..8 {
            write(&queue, mebibyte * 256, 1, 256).await.expect("written");
        }
        queue.flush().await.expect("durable");
        let full = used();
        assert!(full >= 8 << 20);
        let keep = ZeroOptions::default();
        queue.write_zeroes(0, 1024, keep).await.expect("in range");
        queue.flush().await.expect("durable");
        assert!(used() >= 8 << 20, "zeros keep their space");
        if device.geometry().deallocates {
            queue.deallocate(0, 1024).await.expect("in range");
            queue.flush().await.expect("durable");
            assert!(used() <= full - (3 << 20), "freed space is freed");
        }
        assert_eq!(read(&queue, 1023).await, Ok(vec![0; BLOCK_BYTES]));
        assert_eq!(read(&queue, 1024).await, Ok(vec![1; BLOCK_BYTES]));
    });
}

#[test]
fn a_file_that_grows_makes_the_device_grow() {
    on_reactor(|| async {
        let directory = directory();
        let path = directory.path().join("disk");
        let device = open_file(&new_file(&path, 1 << 20)).await.expect("a new file");
        let queue = attach(&device).await;
        let mut events = device.subscribe();
        assert_eq!(write(&queue, 256, 1, 1).await, Err(IoError::OutOfRange));
        let file = std::fs::File::options().write(true).open(&path).expect("a file");
        file.set_len(2 << 20).expect("room");
        // Found by the first request that needs it, and by a look now and then.
        assert_eq!(write(&queue, 256, 1, 1).await, Ok(()));
        assert_eq!(events.try_recv(), Ok(DeviceEvent::Resized));
        assert_eq!(queue.geometry().blocks, 512);
        file.set_len(3 << 20).expect("room");
        while device.geometry().blocks != 768 {
            pollux_reactor::sleep(std::time::Duration::from_millis(20)).await;
        }
        assert_eq!(events.try_recv(), Ok(DeviceEvent::Resized));
    });
}

#[test]
fn a_device_makes_its_file_grow() {
    on_reactor(|| async {
        let directory = directory();
        let path = directory.path().join("disk");
        let device = open_file(&new_file(&path, 1 << 20)).await.expect("a new file");
        let queue = attach(&device).await;
        let mut events = device.subscribe();
        write(&queue, 255, 1, 1).await.expect("the last block");
        device.clone().grow_to(1 << 20).await.expect("no change");
        assert!(events.try_recv().is_err());
        let shrink = device.clone().grow_to(1 << 19).await;
        assert!(matches!(shrink, Err(GrowError::Shrink { .. })), "{shrink:?}");
        assert!(device.clone().grow_to((1 << 20) + 1).await.is_err());

        // Whoever asks and goes away has asked all the same, and another has to wait.
        let mut first = device.clone().grow_to(4 << 20);
        let polled =
            std::future::poll_fn(|context| std::task::Poll::Ready(first.as_mut().poll(context))).await;
        assert!(polled.is_pending());
        drop(first);
        let second = device.clone().grow_to(2 << 20).await.expect_err("one at a time");
        assert!(second.to_string().contains("already"), "{second}");
        while device.geometry().bytes() != 4 << 20 {
            pollux_reactor::yield_now().await;
        }
        assert_eq!(std::fs::metadata(&path).expect("a file").len(), 4 << 20);
        assert_eq!(events.try_recv(), Ok(DeviceEvent::Resized));
        assert_eq!(read(&queue, 255).await, Ok(vec![1; BLOCK_BYTES]));
        assert_eq!(read(&queue, 1023).await, Ok(vec![0; BLOCK_BYTES]));
    });
}

#[test]
fn a_file_that_was_cut_gives_errors_and_no_zeros() {
    on_reactor(|| async {
        for direct in [true, false] {
            let directory = directory();
            let path = directory.path().join("disk");
            let options = UringOptions {
                direct: Some(direct),
                ..new_file(&path, 1 << 20)
            };
            let device = open_file(&options).await.expect("a new file");
            let queue = attach(&device).await;
            write(&queue, 0, 1, 256).await.expect("written");
            let file = std::fs::File::options().write(true).open(&path).expect("a file");
            file.set_len((128 << 12) + 100).expect("cut");
            assert_eq!(read(&queue, 127).await, Ok(vec![1; BLOCK_BYTES]));
            for block in [128, 129, 255] {
                assert_eq!(
                    read(&queue, block).await,
                    Err(IoError::MediaRead),
                    "block {block}"
                );
            }
            let across = queue.read(120, Buffer::from_heap(16 * BLOCK_BYTES)).await;
            assert_eq!(across.map(drop), Err(IoError::MediaRead));
            assert_eq!(device.geometry().blocks, 256);
            assert_eq!(device.health().media_errors, 4);
        }
    });
}

/// A file system of `kibibytes` in memory, with a directory to mount it on.
fn small_file_system(kibibytes: u32) -> Option<(Mount, tempfile::TempDir)> {
    let directory = directory();
    let mount = Mount::new(directory.path(), "tmpfs", &format!("size={kibibytes}k"))?;
    Some((mount, directory))
}

#[test]
fn a_full_file_system_heals_when_space_is_freed() {
    let Some((_mount, directory)) = small_file_system(4096) else {
        return;
    };
    let path = directory.path().join("disk");
    on_reactor(move || async move {
        for direct in [None, Some(false)] {
            let options = UringOptions {
                direct,
                ..new_file(&path, 64 << 20)
            };
            let device = open_file(&options).await.expect("a new file, with holes");
            let queue = attach(&device).await;
            let mut failed_at = None;
            for block in (0..8192).step_by(64) {
                match write(&queue, block, 1, 64).await {
                    Ok(()) => {}
                    Err(error) => {
                        assert_eq!(error, IoError::CapacityExceeded);
                        failed_at = Some(block);
                        break;
                    }
                }
            }
            let full = failed_at.expect("4 MiB are full after 4 MiB");
            let forced = Slice::copy_from(&[1; BLOCK_BYTES]);
            let forced = queue.write(full + 63, forced, true).await;
            assert_eq!(forced, Err(IoError::CapacityExceeded));
            // What is there can be read, flushed and overwritten; the rest can be written after some is
            // freed.
            assert_eq!(queue.flush().await, Ok(()));
            assert_eq!(write(&queue, 0, 2, 64).await, Ok(()));
            assert_eq!(read(&queue, 63).await, Ok(vec![2; BLOCK_BYTES]));
            assert_eq!(queue.deallocate(64, 256).await, Ok(()));
            assert_eq!(write(&queue, full, 3, 64).await, Ok(()));
            assert_eq!(queue.flush().await, Ok(()));
            drop((queue, device));
            std::fs::remove_file(&path).expect("a file");
        }
    });
}

/// A drive that has no room behind it: what the page cache took cannot be written.
#[test]
fn a_flush_that_failed_is_not_forgotten() {
    let Some((_mount, directory)) = small_file_system(4096) else {
        return;
    };
    let Some(drive) = LoopDevice::attach(&directory.path().join("backing"), 4096) else {
        return;
    };
    let path = PathBuf::from(drive.path());
    on_reactor(move || async move {
        let options = UringOptions {
            direct: Some(false),
            ..UringOptions::new(&path)
        };
        let device = open_file(&options).await.expect("a block device");
        let queue = attach(&device).await;
        write(&queue, 0, 1, 16).await.expect("written");
        assert_eq!(queue.flush().await, Ok(()));
        for block in (0..4096).step_by(256) {
            write(&queue, block, 2, 256)
                .await
                .expect("the page cache takes it");
        }
        let first = queue.flush().await;
        assert!(first.is_err(), "8 MiB are not in 4 MiB");
        // Nothing is left to write now, so a sync would succeed: it must not be believed.
        assert_eq!(queue.flush().await, first);
        queue.deallocate(0, 4096).await.expect("room again");
        write(&queue, 0, 3, 1).await.expect("the page cache takes it");
        assert_eq!(queue.flush().await, first);
        let forced = queue.write(0, Slice::copy_from(&[1; BLOCK_BYTES]), true).await;
        assert_eq!(forced, first);
        let second = attach(&device).await;
        assert_eq!(second.flush().await, first, "from any queue");
        assert!(device.health().media_errors > 0);

        // Opened anew it starts afresh, with what is on the medium.
        drop((queue, second, device));
        let device = open_again(&options).await;
        let queue = attach(&device).await;
        write(&queue, 0, 4, 1).await.expect("written");
        assert_eq!(queue.flush().await, Ok(()));
    });
}

#[test]
fn errors_of_a_drive_are_those_of_requests() {
    let Some((_mount, directory)) = small_file_system(2048) else {
        return;
    };
    let Some(drive) = LoopDevice::attach(&directory.path().join("backing"), 4096) else {
        return;
    };
    let path = PathBuf::from(drive.path());
    on_reactor(move || async move {
        let too_small = UringOptions {
            block_bytes: Some(512),
            ..UringOptions::new(&path)
        };
        assert!(
            error(&too_small).await.contains("use block=4096"),
            "sectors of 4096"
        );
        let device = open_file(&UringOptions::new(&path))
            .await
            .expect("a block device");
        assert!(device.is_direct());
        assert_eq!(device.geometry().block_bytes, 4096);
        let grown = device.clone().grow_to(1 << 30).await;
        assert!(matches!(grown, Err(GrowError::Unsupported)), "{grown:?}");
        let queue = attach(&device).await;
        let mut errors = Vec::new();
        for block in (0..1024).step_by(64) {
            errors.extend(write(&queue, block, 2, 64).await.err());
        }
        // What one write met concerns no other, and no flush of those that went well.
        let forced = queue.write(1023, Slice::copy_from(&[1; BLOCK_BYTES]), true).await;
        errors.extend(forced.err());
        assert_eq!(queue.flush().await, Ok(()));
        let expected = [IoError::MediaWrite, IoError::CapacityExceeded];
        assert!(
            !errors.is_empty() && errors.iter().all(|error| expected.contains(error)),
            "{errors:?}"
        );
    });
}

#[test]
fn without_direct_io_the_page_cache_serves() {
    let directory = directory();
    let Some(_mount) = Mount::new(directory.path(), "ramfs", "mode=700") else {
        return;
    };
    let path = directory.path().join("disk");
    on_reactor(move || async move {
        let options = UringOptions {
            direct: Some(true),
            ..new_file(&path, 1 << 20)
        };
        let refused = error(&options).await;
        assert!(refused.contains("no direct I/O"), "{refused}");
        let device = open_file(&new_file(&path, 1 << 20))
            .await
            .expect("through the page cache");
        assert!(!device.is_direct());
        // It cannot free parts of a file either: zeros are written.
        assert!(!device.geometry().deallocates);
        let queue = attach(&device).await;
        write(&queue, 0, 1, 256).await.expect("written");
        queue.deallocate(1, 254).await.expect("zeros");
        queue
            .write_zeroes(0, 1, ZeroOptions::default())
            .await
            .expect("zeros");
        assert_eq!(read(&queue, 0).await, Ok(vec![0; BLOCK_BYTES]));
        assert_eq!(read(&queue, 254).await, Ok(vec![0; BLOCK_BYTES]));
        assert_eq!(read(&queue, 255).await, Ok(vec![1; BLOCK_BYTES]));
    });
}

#[test]
fn a_reactor_that_is_gone_does_not_stop_the_others() {
    let directory = directory();
    let path = directory.path().join("disk");
    let device = on_reactor({
        let path = path.clone();
        move || async move {
            let device = open_file(&new_file(&path, 1 << 20)).await.expect("a new file");
            let queue = attach(&device).await;
            write(&queue, 0, 1, 1).await.expect("written");
            queue.flush().await.expect("durable");
            device
        }
    });
    on_reactor(move || async move {
        let queue = attach(&device).await;
        assert_eq!(read(&queue, 0).await, Ok(vec![1; BLOCK_BYTES]));
        assert_eq!(queue.flush().await, Ok(()));
    });
}
