//! An I/O queue of a target without a connection: a host that calls the seam.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use pollux_device::{Attaching, BlockDevice, Completion, Device, Geometry, IoError, Reply, Request, events};
use pollux_hugepages::Slice;
use pollux_nvme::target::queue::{Admission, Command, ConnectRequest, Execution, Outcome, Queue};
use pollux_nvme::target::{NamespaceConfig, SubsystemConfig, Target, TargetConfig};
use pollux_nvme::wire::command::{
    BlockCommand, BlockFlags, Connect, ConnectAttributes, ConnectData, ConnectResult, DYNAMIC_CONTROLLER,
    IoOpcode, PropertySet, PropertySize, SglDescriptor,
};
use pollux_nvme::wire::nqn::Nqn;
use pollux_reactor::net::Address;
use pollux_reactor::{InFlight, Started, current};
use uuid::Uuid;
use zerocopy::IntoBytes;

/// Bytes of a block.
pub const BLOCK_BYTES: usize = 4096;

/// A host with one controller and one I/O queue on the current reactor.
pub struct Host {
    _target: Arc<Target>,
    _admin: Rc<dyn Queue>,
    /// The I/O queue.
    pub queue: Rc<dyn Queue>,
    in_flight: InFlight<Execution>,
}

impl Host {
    /// Serves a device and connects to it.
    pub async fn new(device: Arc<dyn Device>, depth: u16) -> Self {
        let target = Target::new(TargetConfig::default(), vec![current().handle()]).unwrap();
        let name = "nqn.2026-11.io.pollux:test";
        let subsystem = target.add_subsystem(&SubsystemConfig::new(name)).unwrap();
        subsystem
            .add_namespace(device, &NamespaceConfig::default())
            .unwrap();
        let (admin, id) = connect(&target, name, 0, DYNAMIC_CONTROLLER, 32);
        let enable = PropertySet {
            size: PropertySize::Four,
            offset: 0x14,
            value: 0x0046_0001,
        };
        let enabled = admin.submit(Command {
            entry: enable.to_entry(1),
            data: pollux_device::Gather::new(),
            transfer_bytes_max: 0,
        });
        assert!(enabled.await.entry.status().is_success());
        let (queue, _) = connect(&target, name, 1, id, depth);
        Self {
            _target: target,
            _admin: admin,
            queue,
            in_flight: InFlight::new(depth),
        }
    }

    /// Runs a full queue of reads, or of writes of `data`, to its end.
    pub async fn round(&mut self, blocks: impl Iterator<Item = u64>, data: Option<&Slice>) {
        for block in blocks {
            let (opcode, bytes) = match data {
                Some(_) => (IoOpcode::Write, 0),
                None => (IoOpcode::Read, BLOCK_BYTES as u32),
            };
            let command = BlockCommand {
                starting_block: block,
                blocks: 1,
                flags: BlockFlags::empty(),
            };
            let entry = command.to_entry(opcode, 1, 1, SglDescriptor::transport(bytes));
            let data = data.cloned().map(Into::into).unwrap_or_default();
            let mut execution = self.queue.submit(Command {
                entry,
                data,
                transfer_bytes_max: bytes,
            });
            if let Execution::Ready(outcome) = &mut execution {
                check(outcome.take());
                continue;
            }
            match self.in_flight.start(execution) {
                Ok(Started::Ready(outcome)) => check(Some(outcome)),
                Ok(Started::Pending(_)) => {}
                Err(_) => panic!("more than the queue is deep"),
            }
        }
        while !self.in_flight.is_empty() {
            let (_, outcome) = std::future::poll_fn(|context| self.in_flight.poll_next(context)).await;
            check(Some(outcome));
        }
    }
}

fn check(outcome: Option<Outcome>) {
    assert!(outcome.is_some_and(|outcome| outcome.entry.status().is_success()));
}

fn connect(target: &Target, subsystem: &str, id: u16, controller: u16, depth: u16) -> (Rc<dyn Queue>, u16) {
    let host: Nqn = "nqn.2026-11.io.pollux:host".parse().unwrap();
    let connect = Connect {
        record_format: 0,
        queue_id: id,
        queue_size_minus_one: depth - 1,
        attributes: ConnectAttributes::empty(),
        keep_alive_ms: 0,
    };
    let data = ConnectData::new(Uuid::from_u128(1), &host, &subsystem.parse().unwrap(), controller);
    let nowhere: Address = "127.0.0.1:1".parse().unwrap();
    let admitted = target.connect(ConnectRequest {
        entry: connect.to_entry(1),
        data: Slice::copy_from(data.as_bytes()),
        peer: nowhere.clone(),
        local: nowhere,
    });
    let admitted = admitted.map_err(|entry| entry.status()).unwrap();
    let (queue, response) = (admitted.make_queue)();
    (
        queue,
        ConnectResult::from_result(response.result_low()).controller_id,
    )
}

/// A device that answers at the second look, as one does that has to ask a drive.
pub struct Later(pub Arc<dyn Device>);

struct LaterQueue(Rc<dyn BlockDevice>);

impl Device for Later {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }

    fn attach(self: Arc<Self>) -> Attaching {
        Box::pin(async move {
            let queue: Rc<dyn BlockDevice> = Rc::new(LaterQueue(self.0.clone().attach().await?));
            Ok(queue)
        })
    }

    fn subscribe(&self) -> events::Subscription {
        self.0.subscribe()
    }
}

impl BlockDevice for LaterQueue {
    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }

    fn submit(&self, request: Request) -> Completion {
        Completion::from_future(SecondLook {
            inner: self.0.submit(request),
            looked: false,
        })
    }
}

struct SecondLook {
    inner: Completion,
    looked: bool,
}

impl Future for SecondLook {
    type Output = Result<Reply, IoError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if !std::mem::replace(&mut self.looked, true) {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        Pin::new(&mut self.inner).poll(context)
    }
}
