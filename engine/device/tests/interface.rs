//! The types that requests are made of.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use pollux_device::events::{DeviceEvent, Publisher};
use pollux_device::{Completion, Gather, Geometry, GeometryError, IoError, Reply, Request, ZeroOptions};
use pollux_hugepages::{Buffer, Slice};
use proptest::prelude::*;

fn poll<T>(future: std::pin::Pin<&mut impl Future<Output = T>>) -> Poll<T> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

fn bytes_of(gather: &Gather) -> Vec<u8> {
    let mut bytes = vec![0; gather.len_bytes()];
    assert_eq!(gather.copy_to(&mut bytes), bytes.len());
    bytes
}

fn gather_of(bytes: &[u8], cuts: &[usize]) -> Gather {
    let mut gather = Gather::new();
    let mut rest = bytes;
    for &cut in cuts {
        let (piece, left) = rest.split_at(cut.min(rest.len()));
        gather.push(Slice::copy_from(piece));
        rest = left;
    }
    gather.push(Slice::copy_from(rest));
    gather
}

proptest! {
    /// A range of a gather list is the range of its bytes.
    #[test]
    fn ranges_of_gathers(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        cuts in prop::collection::vec(0..80_usize, 0..6),
        from in 0..400_usize,
        len in 0..400_usize,
    ) {
        let gather = gather_of(&bytes, &cuts);
        prop_assert_eq!(&bytes_of(&gather), &bytes);
        let start = from.min(bytes.len());
        let expected = &bytes[start..(start + len).min(bytes.len())];
        prop_assert_eq!(bytes_of(&gather.range(from, len)), expected);
        prop_assert!(gather.pieces().iter().all(|piece| !piece.is_empty()));
    }

    /// A range is inside exactly if a wider type says so.
    #[test]
    fn ranges_of_devices(blocks in 1..u64::MAX >> 12, block in any::<u64>(), count in any::<u64>()) {
        let geometry = Geometry::new(blocks << 12, 4096).expect("whole blocks");
        let inside = u128::from(block) + u128::from(count) <= u128::from(blocks);
        prop_assert_eq!(geometry.check_range(block, count).is_ok(), inside);
    }
}

#[test]
fn a_gather_copies_what_fits() {
    let gather = gather_of(&[1, 2, 3, 4, 5], &[2]);
    let mut short = [0; 3];
    assert_eq!(gather.copy_to(&mut short), 3);
    assert_eq!(short, [1, 2, 3]);
    let mut long = [9; 7];
    assert_eq!(gather.copy_to(&mut long), 5);
    assert_eq!(long, [1, 2, 3, 4, 5, 9, 9]);
}

#[test]
fn alignment_is_of_address_and_length() {
    let block = Slice::from(Buffer::from_heap(8192));
    assert!(Gather::from(block.clone()).is_aligned(4096));
    assert!(!Gather::from(block.slice(512..)).is_aligned(4096));
    assert!(Gather::from(block.slice(512..)).is_aligned(512));
    assert!(!Gather::from(block.slice(..100)).is_aligned(512));
}

#[test]
fn geometries_that_cannot_be() {
    assert_eq!(Geometry::new(1 << 20, 1024), Err(GeometryError::BlockSize(1024)));
    for bytes in [0, 511, 4097] {
        assert!(
            matches!(Geometry::new(bytes, 512), Err(GeometryError::Size { .. })),
            "{bytes}"
        );
    }
    let geometry = Geometry::new(1 << 20, 512).expect("whole blocks");
    assert_eq!((geometry.blocks, geometry.bytes()), (2048, 1 << 20));
    assert_eq!(
        (geometry.blocks_of(1024), geometry.blocks_of(1000)),
        (Some(2), None)
    );
}

#[test]
fn requests_are_checked_in_full() {
    let geometry = Geometry {
        transfer_blocks_max: 4,
        ..Geometry::new(64 << 10, 4096).expect("whole blocks")
    };
    let read = |block, bytes| Request::Read {
        block,
        into: Buffer::from_heap(bytes),
    };
    assert_eq!(read(12, 16 << 10).check(&geometry), Ok(()));
    assert_eq!(read(13, 16 << 10).check(&geometry), Err(IoError::OutOfRange));
    assert_eq!(read(0, 20 << 10).check(&geometry), Err(IoError::InvalidField));
    assert_eq!(read(0, 4095).check(&geometry), Err(IoError::InvalidField));
    // Without data there is no limit but the device.
    let zeroes = |blocks| Request::WriteZeroes {
        block: 0,
        blocks,
        options: ZeroOptions::default(),
    };
    assert_eq!(zeroes(16).check(&geometry), Ok(()));
    assert_eq!(zeroes(17).check(&geometry), Err(IoError::OutOfRange));

    let read_only = Geometry {
        read_only: true,
        ..geometry
    };
    assert_eq!(zeroes(1).check(&read_only), Err(IoError::ReadOnly));
    assert_eq!(zeroes(17).check(&read_only), Err(IoError::OutOfRange));
    assert_eq!(read(0, 4096).check(&read_only), Ok(()));
    assert_eq!(Request::Flush.check(&read_only), Ok(()));
}

#[test]
fn replies_give_their_data_both_ways() {
    let mut filled = Buffer::from_heap(512);
    filled.fill(3);
    assert_eq!(Reply::Data(filled).into_slice().expect("data")[..], [3; 512]);
    let shared = || Reply::Shared {
        data: Slice::copy_from(&[4; 512]),
        buffer: Buffer::from_heap(512),
    };
    assert_eq!(shared().into_buffer().expect("data")[..], [4; 512]);
    assert_eq!(shared().into_slice().expect("data")[..], [4; 512]);
    let wrong = Reply::Shared {
        data: Slice::copy_from(&[4; 512]),
        buffer: Buffer::from_heap(513),
    };
    assert_eq!(wrong.into_buffer().map(drop), Err(IoError::Internal));
    assert_eq!(Reply::Done.into_buffer().map(drop), Err(IoError::Internal));
    assert_eq!(Reply::Done.into_slice().map(drop), Err(IoError::Internal));
    // More than the process shares, too.
    for bytes in [0, 512, 2 << 20, (2 << 20) + 512] {
        let mut used = Buffer::from_heap(bytes);
        used.fill(7);
        let zeros = Reply::zeros(used).into_slice().expect("data");
        assert!(
            zeros.len() == bytes && zeros.iter().all(|&byte| byte == 0),
            "{bytes}"
        );
    }
}

#[test]
fn a_completion_is_used_up() {
    let mut ready = pin!(Completion::done());
    assert!(matches!(poll(ready.as_mut()), Poll::Ready(Ok(Reply::Done))));
    assert!(matches!(
        poll(ready.as_mut()),
        Poll::Ready(Err(IoError::Internal))
    ));

    let mut later = pin!(Completion::from_future(async {
        pollux_reactor::yield_now().await;
        Err(IoError::Aborted)
    }));
    assert!(poll(later.as_mut()).is_pending());
    assert!(matches!(poll(later.as_mut()), Poll::Ready(Err(IoError::Aborted))));
    assert!(matches!(
        poll(later.as_mut()),
        Poll::Ready(Err(IoError::Internal))
    ));

    let failed = Completion::failed(IoError::Gone).try_take();
    assert!(matches!(failed, Ok(Err(IoError::Gone))));
    let pending = Completion::from_future(std::future::pending()).try_take();
    assert!(pending.is_err());
}

#[test]
fn every_subscriber_hears_everything_up_to_a_bound() {
    let publisher = Publisher::default();
    publisher.publish(DeviceEvent::Removed);
    let (mut first, mut second) = (publisher.subscribe(), publisher.subscribe());
    publisher.publish(DeviceEvent::Resized);
    assert_eq!(first.try_recv(), Ok(DeviceEvent::Resized));
    assert_eq!(second.try_recv(), Ok(DeviceEvent::Resized));
    drop(second);
    for _ in 0..10_000 {
        publisher.publish(DeviceEvent::Returned);
    }
    let mut heard = 0;
    while first.try_recv().is_ok() {
        heard += 1;
    }
    assert!((1..=100).contains(&heard), "{heard}");
    publisher.publish(DeviceEvent::Resized);
    assert_eq!(first.try_recv(), Ok(DeviceEvent::Resized));
}
