//! Files on reactor threads: past and through the page cache, holes, errors, and more operations than slots.

use std::cell::Cell;
use std::future::Future;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use crate::common::{SLEEPY, reactor, settings};
use pollux_hugepages::{Buffer, Slice};
use pollux_reactor::file::{Allocate, File, FileKind, OpenOptions, SharedFile};
use pollux_reactor::real::ReactorThread;
use pollux_reactor::{buffers, current, spawn, yield_now};

const BLOCK: usize = 4096;

/// A directory on the file system of the build, which is no memory file system.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("the build directory can be written")
}

fn for_writing(direct: bool) -> OpenOptions {
    OpenOptions {
        write: true,
        create: true,
        direct,
        ..OpenOptions::default()
    }
}

/// Runs a test on a reactor, with a file of its own.
fn with_file<F: Future<Output = ()> + 'static>(
    direct: bool,
    test: impl FnOnce(File, PathBuf) -> F + Send + 'static,
) {
    let directory = directory();
    let path = directory.path().join("file");
    let reactor = reactor(0, SLEEPY);
    let ran = reactor.handle().call_blocking(move || async move {
        let file = File::open(&path, &for_writing(direct))
            .await
            .expect("the file opens");
        test(file, path).await;
    });
    stop(reactor);
    ran.expect("the test ran to its end");
}

fn stop(reactor: ReactorThread) {
    reactor.stop();
    reactor.join().expect("no panic");
}

fn block_of(byte: u8) -> Buffer {
    let mut buffer = buffers().allocate(BLOCK).expect("there is memory");
    buffer.fill(byte);
    buffer
}

async fn read_blocks(file: &File, block: usize, count: usize) -> Vec<u8> {
    let buffer = buffers().allocate(count * BLOCK).expect("there is memory");
    let (read, buffer) = file.read_at((block * BLOCK) as u64, buffer).await;
    assert_eq!(read.expect("the read succeeds"), count * BLOCK);
    buffer.to_vec()
}

fn allocated_bytes(path: &Path) -> u64 {
    std::fs::metadata(path).expect("the file is there").blocks() * 512
}

#[test]
fn what_was_written_is_read_with_and_without_the_page_cache() {
    for direct in [false, true] {
        with_file(direct, |file, path| async move {
            assert_eq!(file.shared().kind(), FileKind::Regular);
            let one = file.write_at(0, [block_of(1).freeze()], false).await;
            assert_eq!(one.expect("one piece"), BLOCK);
            let pieces = [block_of(2), block_of(3), block_of(4)].map(Buffer::freeze);
            let several = file.write_at(2 * BLOCK as u64, pieces, true).await;
            assert_eq!(several.expect("three pieces"), 3 * BLOCK);
            assert_eq!(file.write_at(0, [], true).await.expect("no piece"), 0);
            file.fsync(true).await.expect("data is synced");
            file.fsync(false).await.expect("all is synced");
            let expected: Vec<u8> = [1, 0, 2, 3, 4]
                .into_iter()
                .flat_map(|byte| [byte; BLOCK])
                .collect();
            assert!(read_blocks(&file, 0, 5).await == expected);
            assert!(std::fs::read(&path).expect("the file is there") == expected);
            assert_eq!(file.len_bytes().expect("it has a length"), 5 * BLOCK as u64);

            // At the end of the file a read is short.
            let (read, _) = file.read_at(4 * BLOCK as u64, Buffer::from_heap(2 * BLOCK)).await;
            assert_eq!(read.expect("the last block"), BLOCK);
            let (read, _) = file.read_at(100 * BLOCK as u64, Buffer::from_heap(BLOCK)).await;
            assert_eq!(read.expect("past the end"), 0);
        });
    }
}

#[test]
fn a_write_of_very_many_pieces_is_short_and_says_so() {
    with_file(false, |file, path| async move {
        let piece = Slice::copy_from(&[9; 10]);
        let pieces = std::iter::repeat_n(piece, 3000);
        let written = file.write_at(0, pieces, false).await.expect("some are written");
        assert_eq!(written, pollux_reactor::file::WRITE_PIECES_MAX * 10);
        assert_eq!(std::fs::read(path).expect("the file is there"), vec![9; written]);
    });
}

#[test]
fn holes_are_punched_zeroed_and_reserved() {
    with_file(true, |file, path| async move {
        let data = Slice::from(Buffer::from_heap(64 * BLOCK)).to_vec();
        let mut buffer = Buffer::from_heap(data.len());
        buffer.fill(7);
        file.write_at(0, [buffer.freeze()], true)
            .await
            .expect("it is written");
        let full = allocated_bytes(&path);
        assert!(full >= 64 * BLOCK as u64);

        let hole = (16 * BLOCK) as u64;
        file.allocate(Allocate::PunchHole, hole, hole)
            .await
            .expect("a hole is punched");
        assert!(allocated_bytes(&path) <= full - hole);
        assert!(read_blocks(&file, 16, 16).await.iter().all(|&byte| byte == 0));
        assert!(read_blocks(&file, 15, 1).await.iter().all(|&byte| byte == 7));
        assert!(read_blocks(&file, 32, 1).await.iter().all(|&byte| byte == 7));

        file.allocate(Allocate::Zero, 3 * hole, hole)
            .await
            .expect("a range is zeroed");
        assert!(read_blocks(&file, 48, 16).await.iter().all(|&byte| byte == 0));
        assert_eq!(file.len_bytes().expect("it has a length"), 4 * hole);

        file.allocate(Allocate::Reserve, 0, 8 * hole)
            .await
            .expect("space is reserved");
        assert_eq!(file.len_bytes().expect("it has a length"), 8 * hole);
        assert!(allocated_bytes(&path) >= 8 * hole);
        file.allocate(Allocate::PunchHole, 0, 0)
            .await
            .expect("nothing is done to nothing");
        file.set_len(hole).await.expect("it is cut");
        assert_eq!(file.len_bytes().expect("it has a length"), hole);
        let error = file
            .discard(0, BLOCK as u64)
            .await
            .expect_err("it is no block device");
        assert_eq!(error.raw_os_error(), Some(libc::ENOTTY));
    });
}

#[test]
fn errors_say_what_is_wrong_and_give_the_buffer_back() {
    with_file(true, |file, path| async move {
        let (read, buffer) = file.read_at(u64::MAX, Buffer::from_heap(BLOCK)).await;
        assert_eq!(
            read.expect_err("no file is that long").kind(),
            ErrorKind::InvalidInput
        );
        assert_eq!(buffer.len(), BLOCK);
        let error = file.write_at(u64::MAX, [block_of(0).freeze()], false).await;
        assert_eq!(
            error.expect_err("no file is that long").kind(),
            ErrorKind::InvalidInput
        );

        file.write_at(0, [block_of(1).freeze()], false)
            .await
            .expect("it is written");
        let mut odd = Buffer::from_heap(BLOCK);
        odd.advance(1);
        let (read, buffer) = file.read_at(0, odd).await;
        assert_eq!(
            read.expect_err("the memory is not aligned").kind(),
            ErrorKind::InvalidInput
        );
        assert_eq!(buffer.len(), BLOCK - 1);

        let read_only = File::open(&path, &OpenOptions::default())
            .await
            .expect("it opens");
        let error = read_only.write_at(0, [block_of(0).freeze()], false).await;
        assert_eq!(
            error.expect_err("it is for reading").raw_os_error(),
            Some(libc::EBADF)
        );

        let missing = path.with_extension("missing");
        let error = File::open(&missing, &OpenOptions::default())
            .await
            .expect_err("nothing is there");
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(
            error.to_string().contains(&missing.display().to_string()),
            "{error}"
        );
        for other in ["/dev/null", "/"] {
            let error = File::open(Path::new(other), &OpenOptions::default()).await;
            assert_eq!(
                error.expect_err("it is of another kind").kind(),
                ErrorKind::InvalidInput
            );
        }
    });
}

#[test]
fn an_exclusive_file_is_not_opened_twice() {
    with_file(false, |file, path| async move {
        let options = OpenOptions {
            exclusive: true,
            ..for_writing(false)
        };
        drop(file);
        let first = File::open(&path, &options).await.expect("it is free");
        let error = File::open(&path, &options).await.expect_err("it is taken");
        assert_eq!(error.kind(), ErrorKind::ResourceBusy);
        drop(first);
        File::open(&path, &options).await.expect("it is free again");
    });
}

#[test]
fn operations_wait_for_a_slot_in_their_order() {
    let directory = directory();
    let path = directory.path().join("file");
    std::fs::write(&path, vec![5; 200 * BLOCK]).expect("the file is written");
    let mut settings = settings(0, SLEEPY);
    settings.driver.file_operations = 3;
    settings.driver.ring_entries = 4;
    let reactor = ReactorThread::spawn(settings).expect("a reactor starts");
    let ran = reactor.handle().call_blocking(move || async move {
        let file = File::open(&path, &OpenOptions::default())
            .await
            .expect("it opens");
        let done = Rc::new(Cell::new(0));
        let tasks: Vec<_> = (0..200_u64)
            .map(|block| {
                let (file, done) = (file.clone(), done.clone());
                spawn(async move {
                    let (read, buffer) = file.read_at(block * BLOCK as u64, Buffer::from_heap(BLOCK)).await;
                    assert_eq!(read.expect("it is read"), BLOCK);
                    assert!(buffer.iter().all(|&byte| byte == 5));
                    let reactor = current();
                    let in_flight = reactor.driver().ring().expect("a real driver").file_operations();
                    assert!(in_flight <= 3);
                    done.set(done.get() + 1);
                })
            })
            .collect();
        yield_now().await;
        // Every third is given up, whether it waits, has been granted a slot, or is with the kernel.
        let mut kept = 0;
        for (number, task) in tasks.into_iter().enumerate() {
            if number % 3 == 0 {
                drop(task);
                yield_now().await;
            } else {
                task.await;
                kept += 1;
            }
        }
        assert!(done.get() >= kept);
        assert_eq!(kept, 133);
    });
    stop(reactor);
    ran.expect("the test ran to its end");
}

#[test]
fn reads_that_are_given_up_at_any_moment_keep_their_buffers_until_they_are_done() {
    let directory = directory();
    let path = directory.path().join("file");
    std::fs::write(&path, vec![5; 1 << 20]).expect("the file is written");
    let reactor = reactor(0, SLEEPY);
    let ran = reactor.handle().call_blocking(move || async move {
        let options = OpenOptions {
            direct: true,
            ..OpenOptions::default()
        };
        let file = File::open(&path, &options).await.expect("it opens");
        for round in 0..300_u64 {
            let buffer = buffers().allocate(64 << 10).expect("buffers come back");
            let offset = (round % 16) * (64 << 10);
            let task = spawn({
                let file = file.clone();
                async move { file.read_at(offset, buffer).await }
            });
            for _ in 0..round % 4 {
                yield_now().await;
            }
            drop(task);
            // Memory that is free now can be written by anybody: no read may be on its way to it.
            let mut fresh = buffers().allocate(64 << 10).expect("buffers come back");
            fresh.fill(1);
            yield_now().await;
            assert!(fresh.iter().all(|&byte| byte == 1));
        }
        let ring = || current().driver().ring().map_or(0, |ring| ring.file_operations());
        while ring() > 0 {
            yield_now().await;
        }
        assert_eq!(buffers().statistics().in_use_bytes(), 0);
    });
    stop(reactor);
    ran.expect("the test ran to its end");
}

#[test]
fn a_file_is_used_by_several_reactors() {
    let directory = directory();
    let path = directory.path().join("file");
    let shared = Arc::new(SharedFile::open(&path, &for_writing(true)).expect("it opens"));
    let reactors: Vec<_> = (0..2).map(|id| reactor(id, SLEEPY)).collect();
    for (number, reactor) in reactors.iter().enumerate() {
        let shared = shared.clone();
        let write = move || async move {
            let file = File::attach(shared).expect("it can be attached");
            let block = block_of(number as u8 + 1).freeze();
            file.write_at((number * BLOCK) as u64, [block], true)
                .await
                .expect("it is written");
        };
        reactor.handle().call_blocking(write).expect("it ran");
    }
    let expected: Vec<u8> = [1, 2].into_iter().flat_map(|byte| [byte; BLOCK]).collect();
    assert!(std::fs::read(path).expect("the file is there") == expected);
    let error = File::attach(shared).expect_err("this is no reactor");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

#[test]
fn stopping_a_reactor_waits_for_its_operations() {
    let directory = directory();
    let path = directory.path().join("file");
    let reactor = reactor(0, SLEEPY);
    let started = reactor.handle().call_blocking(move || async move {
        let file = File::open(&path, &for_writing(true)).await.expect("it opens");
        for block in 0..64_u64 {
            let file = file.clone();
            spawn(async move {
                file.write_at(block * BLOCK as u64, [block_of(1).freeze()], true)
                    .await
            })
            .detach();
        }
        yield_now().await;
    });
    started.expect("the writes are under way");
    stop(reactor);
}
