use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use pollux_hugepages::PagePreference;
use pollux_hugepages::Slice;
use proptest::prelude::*;

use super::*;
use crate::request::ZeroOptions;

fn device(size_bytes: u64, block_bytes: u32) -> Arc<MallocDevice> {
    let options = MallocOptions {
        block_bytes,
        arena: ArenaOptions {
            page: PagePreference::Ordinary,
            ..ArenaOptions::default()
        },
        ..MallocOptions::new(size_bytes)
    };
    MallocDevice::new("memory", &options).expect("memory")
}

fn queue(device: &Arc<MallocDevice>) -> MallocQueue {
    MallocQueue {
        device: device.clone(),
    }
}

/// Polls until it is ready; a device in memory never waits for anybody.
fn finish(completion: Completion) -> Result<Reply, IoError> {
    let mut completion = std::pin::pin!(completion);
    loop {
        let mut context = Context::from_waker(Waker::noop());
        if let Poll::Ready(result) = completion.as_mut().poll(&mut context) {
            return result;
        }
    }
}

fn read(queue: &MallocQueue, block: u64, bytes: usize) -> Result<Buffer, IoError> {
    let mut into = Buffer::from_heap(bytes);
    into.fill(0xee);
    finish(queue.submit(Request::Read { block, into }))?.into_buffer()
}

fn write(queue: &MallocQueue, block: u64, from: impl Into<Gather>) -> Result<(), IoError> {
    let request = Request::Write {
        block,
        from: from.into(),
        force_unit_access: false,
    };
    finish(queue.submit(request)).map(drop)
}

#[test]
fn grows_live_and_keeps_what_it_held() {
    let device = device(1 << 20, 512);
    let queue = queue(&device);
    let mut events = device.subscribe();
    write(&queue, 2047, Slice::copy_from(&[7; 512])).expect("the last block");
    assert_eq!(
        write(&queue, 2048, Slice::copy_from(&[7; 512])),
        Err(IoError::OutOfRange)
    );

    // Not a multiple of the page, so that the next arena begins within a granule.
    device.resize((1 << 20) + 512 * 3).expect("memory");
    device.resize(2 << 20).expect("memory");
    assert_eq!(device.geometry().blocks, 4096);
    assert_eq!(queue.geometry().blocks, 4096);
    assert_eq!(events.try_recv(), Ok(DeviceEvent::Resized));
    assert_eq!(events.try_recv(), Ok(DeviceEvent::Resized));

    write(&queue, 2048, Slice::copy_from(&[9; 512 * 8])).expect("over the ends of two arenas");
    let all = read(&queue, 2046, 512 * 12).expect("in range");
    assert!(all[..512].iter().all(|&byte| byte == 0));
    assert!(all[512..1024].iter().all(|&byte| byte == 7));
    assert!(all[1024..1024 + 512 * 8].iter().all(|&byte| byte == 9));
    assert!(all[1024 + 512 * 8..].iter().all(|&byte| byte == 0));
}

#[test]
fn refuses_to_shrink_and_to_grow_for_ever() {
    let device = device(4096, 4096);
    assert!(matches!(device.resize(2048), Err(MallocError::Geometry(_))));
    device.resize(8192).expect("memory");
    assert!(matches!(device.resize(4096), Err(MallocError::Shrink { .. })));
    device.resize(8192).expect("no change");
    for pages in 3..=EXTENTS_MAX as u64 {
        device.resize(pages * 4096).expect("memory");
    }
    let error = device.resize(1 << 20).expect_err("too often").to_string();
    assert!(error.contains("63 times"), "{error}");
    assert_eq!(device.geometry().bytes(), EXTENTS_MAX as u64 * 4096);
}

#[test]
fn impossible_sizes_are_errors() {
    for (size_bytes, block_bytes) in [
        (0, 512),
        (1000, 512),
        (4096, 1024),
        (1 << 62, 4096),
        (u64::MAX - 511, 512),
    ] {
        let options = MallocOptions {
            block_bytes,
            ..MallocOptions::new(size_bytes)
        };
        assert!(
            MallocDevice::new("memory", &options).is_err(),
            "{size_bytes} {block_bytes}"
        );
    }
}

#[test]
fn large_ranges_of_zeros_let_others_run_in_between() {
    let device = device(16 << 20, 4096);
    let queue = queue(&device);
    for block in [0, 600, 4095] {
        write(&queue, block, Slice::copy_from(&[5; 4096])).expect("in range");
    }
    let request = Request::Deallocate {
        block: 1,
        blocks: 4095,
    };
    let mut completion = std::pin::pin!(queue.submit(request));
    let mut polls = 0;
    while completion
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()))
        .is_pending()
    {
        polls += 1;
    }
    assert_eq!(polls, 8);
    assert!(
        read(&queue, 0, 4096)
            .expect("in range")
            .iter()
            .all(|&byte| byte == 5)
    );
    assert!(
        read(&queue, 600, 4096)
            .expect("in range")
            .iter()
            .all(|&byte| byte == 0)
    );
    assert!(
        read(&queue, 4095, 4096)
            .expect("in range")
            .iter()
            .all(|&byte| byte == 0)
    );
}

/// Two threads write one block, each with a byte of its own all over, while two read and one deallocates it:
/// nobody ever sees a mix.
#[test]
fn blocks_are_whole_for_all_threads() {
    let device = device(64 << 10, 4096);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for byte in [1_u8, 2] {
            let (device, over) = (&device, &over);
            scope.spawn(move || {
                let queue = queue(device);
                let mut parts = Gather::new();
                for len in [1, 1000, 3095] {
                    parts.push(Slice::copy_from(&vec![byte; len]));
                }
                for _ in 0..20_000 {
                    write(&queue, 3, parts.clone()).expect("in range");
                }
                over.store(true, Ordering::Relaxed);
            });
        }
        scope.spawn(|| {
            let queue = queue(&device);
            while !over.load(Ordering::Relaxed) {
                let request = Request::Deallocate { block: 2, blocks: 3 };
                finish(queue.submit(request)).expect("in range");
            }
        });
        for _ in 0..2 {
            scope.spawn(|| {
                let queue = queue(&device);
                while !over.load(Ordering::Relaxed) {
                    let block = read(&queue, 3, 4096).expect("in range");
                    assert!(block.iter().all(|&byte| byte == block[0]), "a mix of two writes");
                }
            });
        }
    });
}

/// Ranges of several stripes taken in every order by three threads end, and leave every version even.
#[test]
fn holding_many_stripes_does_not_lock_up() {
    let stripes = Stripes::new();
    std::thread::scope(|scope| {
        for thread in 0..3_u64 {
            let stripes = &stripes;
            scope.spawn(move || {
                for round in 0..2_000 {
                    let start = stripes::STRIPES - 8 + (round * 7 + thread * 3) % 16;
                    stripes.write_all(start..start + 12, || ());
                }
            });
        }
    });
    for granule in 0..stripes::STRIPES {
        stripes.read(granule, || ());
    }
}

#[derive(Debug, Clone)]
enum Act {
    Write {
        block: u64,
        blocks: u64,
        byte: u8,
        cut: usize,
    },
    Zero {
        block: u64,
        blocks: u64,
        free: bool,
    },
    Read {
        block: u64,
        blocks: u64,
    },
    Compare {
        block: u64,
        blocks: u64,
        flip: Option<usize>,
    },
    Grow {
        blocks: u64,
    },
}

fn act() -> impl Strategy<Value = Act> {
    let range = || (0..40_u64, 0..24_u64);
    prop_oneof![
        4 => (range(), any::<u8>(), 0..4096_usize)
            .prop_map(|((block, blocks), byte, cut)| Act::Write { block, blocks, byte, cut }),
        2 => (range(), any::<bool>()).prop_map(|((block, blocks), free)| Act::Zero { block, blocks, free }),
        4 => range().prop_map(|(block, blocks)| Act::Read { block, blocks }),
        2 => (range(), proptest::option::of(0..4096_usize))
            .prop_map(|((block, blocks), flip)| Act::Compare { block, blocks, flip }),
        1 => (1..12_u64).prop_map(|blocks| Act::Grow { blocks }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// The device does what a vector of bytes does.
    #[test]
    fn behaves_as_a_vector(acts in prop::collection::vec(act(), 1..60)) {
        let mut model = vec![0_u8; 20 * 512];
        let device = device(model.len() as u64, 512);
        let queue = queue(&device);
        for act in acts {
            let slice = |block: u64, blocks: u64| (block * 512) as usize..((block + blocks) * 512) as usize;
            match act {
                Act::Write { block, blocks, byte, cut } => {
                    let bytes = (0..blocks * 512).map(|index| byte.wrapping_add(index as u8));
                    let data: Vec<u8> = bytes.collect();
                    let (head, tail) = data.split_at(cut.min(data.len()));
                    let mut from = Gather::from(Slice::copy_from(head));
                    from.push(Slice::copy_from(tail));
                    let result = write(&queue, block, from);
                    match model.get_mut(slice(block, blocks)) {
                        Some(into) => {
                            prop_assert_eq!(result, Ok(()));
                            into.copy_from_slice(&data);
                        }
                        None => prop_assert_eq!(result, Err(IoError::OutOfRange)),
                    }
                }
                Act::Zero { block, blocks, free } => {
                    let request = if free {
                        Request::Deallocate { block, blocks }
                    } else {
                        Request::WriteZeroes { block, blocks, options: ZeroOptions::default() }
                    };
                    let result = finish(queue.submit(request));
                    match model.get_mut(slice(block, blocks)) {
                        Some(into) => {
                            prop_assert!(result.is_ok());
                            into.fill(0);
                        }
                        None => prop_assert!(matches!(result, Err(IoError::OutOfRange))),
                    }
                }
                Act::Read { block, blocks } => {
                    let result = read(&queue, block, (blocks * 512) as usize);
                    match model.get(slice(block, blocks)) {
                        Some(expected) => prop_assert_eq!(&result.expect("in range")[..], expected),
                        None => prop_assert!(matches!(result, Err(IoError::OutOfRange))),
                    }
                }
                Act::Compare { block, blocks, flip } => {
                    let Some(expected) = model.get(slice(block, blocks)) else { continue };
                    let mut with = expected.to_vec();
                    let differs = flip.is_some_and(|at| match with.get_mut(at) {
                        Some(byte) => { *byte ^= 1; true }
                        None => false,
                    });
                    let request = Request::Compare { block, with: Slice::copy_from(&with).into() };
                    let result = finish(queue.submit(request)).map(drop);
                    prop_assert_eq!(result, if differs { Err(IoError::CompareFailed) } else { Ok(()) });
                }
                Act::Grow { blocks } => {
                    let to = model.len() + blocks as usize * 512;
                    if device.resize(to as u64).is_ok() {
                        model.resize(to, 0);
                    }
                }
            }
        }
        prop_assert_eq!(device.geometry().bytes(), model.len() as u64);
    }
}
