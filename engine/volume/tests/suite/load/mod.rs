//! Connections that keep a device busy, and what they did.

use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;

use pollux_device::{Completion, Device, Request};
use pollux_hugepages::Buffer;
use pollux_reactor::{InFlight, Started};

pub const BLOCK: usize = 4096;

/// What a connection did.
#[derive(Default)]
pub struct Done {
    pub is_stopped: Cell<bool>,
    pub operations: Cell<u64>,
    pub bytes: Cell<u64>,
}

#[derive(Clone, Copy)]
pub struct Load {
    pub depth: u16,
    pub blocks: usize,
    pub writes: bool,
}

pub const READS: Load = Load {
    depth: 32,
    blocks: 1,
    writes: false,
};

pub fn request(load: Load) -> Request {
    let buffer = Buffer::from_heap(load.blocks * BLOCK);
    match load.writes {
        true => Request::Write {
            block: 0,
            from: buffer.into(),
            force_unit_access: false,
        },
        false => Request::Read {
            block: 0,
            into: buffer,
        },
    }
}

/// A connection: one task, which keeps so many requests under way until it is stopped. Those that are held
/// then are not done.
pub async fn connection(device: Arc<dyn Device>, load: Load, done: Rc<Done>) {
    let queue = device.attach().await.unwrap();
    let mut under_way: InFlight<Completion> = InFlight::new(load.depth);
    while !done.is_stopped.get() {
        while !under_way.is_full() {
            match under_way.start(queue.submit(request(load))) {
                Ok(Started::Pending(_)) => {}
                Ok(Started::Ready(_)) | Err(_) => unreachable!("drives take time"),
            }
        }
        let (_, result) = poll_fn(|context| under_way.poll_next(context)).await;
        result.unwrap();
        done.operations.set(done.operations.get() + 1);
        done.bytes.set(done.bytes.get() + (load.blocks * BLOCK) as u64);
    }
}
