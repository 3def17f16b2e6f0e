//! Ways to replicas that make something else of requests.

use std::rc::Rc;

use pollux_device::{AllocationQuery, BlockDevice, Completion, Geometry, Request};
use pollux_volume::membership::Epoch;
use pollux_volume::replica::{Commanding, Granted, OpeningSnapshot, Promising, ReplicaCommand, ReplicaPort};
use uuid::Uuid;

/// What becomes of each request to a replica.
pub type Act = Rc<dyn Fn(&Rc<dyn BlockDevice>, Request) -> Completion>;

/// A way to a replica, whose sessions have something else become of requests.
pub struct Port {
    pub port: Rc<dyn ReplicaPort>,
    pub act: Act,
}

impl ReplicaPort for Port {
    fn promise(&self, epoch: Epoch) -> Promising {
        let (promising, act) = (self.port.promise(epoch), self.act.clone());
        Box::pin(async move {
            let granted = promising.await?;
            let device = granted.session.clone();
            let session: Rc<dyn BlockDevice> = Rc::new(Session { device, act });
            Ok(Granted { session, ..granted })
        })
    }

    fn command(&self, epoch: Epoch, command: ReplicaCommand) -> Commanding {
        self.port.command(epoch, command)
    }

    fn open_snapshot(&self, epoch: Epoch, cut: Uuid) -> OpeningSnapshot {
        self.port.open_snapshot(epoch, cut)
    }

    fn is_local(&self) -> bool {
        self.port.is_local()
    }
}

struct Session {
    device: Rc<dyn BlockDevice>,
    act: Act,
}

impl BlockDevice for Session {
    fn geometry(&self) -> Geometry {
        self.device.geometry()
    }

    fn submit(&self, request: Request) -> Completion {
        (self.act)(&self.device, request)
    }

    fn allocation(&self, block: u64, blocks: u64, runs_max: usize) -> AllocationQuery {
        self.device.allocation(block, blocks, runs_max)
    }
}
