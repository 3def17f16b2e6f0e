//! The paths to a volume, of which one is in use.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use pollux_device::{BlockDevice, BlockDeviceExt, Device, IoError};
use pollux_hugepages::Buffer;
use pollux_nvme::auth::{Credentials, Methods, Secret};
use pollux_nvme::initiator::device::{Endpoint, LossOptions, NvmfDevice, NvmfOptions, Resubmit, Unflushed};
use pollux_nvme::initiator::host::HostIdentity;
use pollux_nvme::initiator::namespace::NamespaceSelector;
use pollux_nvme::wire::nqn::Nqn;

use super::state::BLOCK_BYTES;
use super::{VerifyArguments, VerifyError};

/// The one namespace of a volume's subsystem.
const NAMESPACE_ID: u32 = 1;

/// How long each step of connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1_000);

/// How long a command may take before its path counts as lost: longer than a volume holds I/O for when a
/// replica is lost.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(15);

/// The keep alive timeout.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// The secrets of the command line.
fn credentials(arguments: &VerifyArguments) -> Result<Option<Credentials>, VerifyError> {
    let read = |path: &Option<PathBuf>| {
        let secret = path.as_deref().map(Secret::read).transpose();
        secret.map_err(|error| VerifyError::Argument(error.to_string()))
    };
    let controller = read(&arguments.controller_secret_file)?;
    Ok(read(&arguments.secret_file)?.map(|host| Credentials {
        host,
        controller,
        methods: Methods::default(),
    }))
}

/// See the module.
pub(super) struct Paths {
    addresses: Vec<SocketAddr>,
    subsystem: Nqn,
    host: HostIdentity,
    credentials: Option<Credentials>,
    /// The one in use, by its number.
    current: RefCell<Option<(u64, Rc<dyn BlockDevice>)>>,
    number: Cell<u64>,
    /// Where to look next.
    next: Cell<usize>,
    /// Somebody looks.
    looking: Cell<bool>,
    /// Whether what was answered and not flushed may be gone is asked before a path is used.
    power_loss: bool,
    /// It may, as the path in use has told.
    has_lost: Cell<bool>,
}

impl Paths {
    /// Those of the command line.
    pub(super) fn parse(arguments: &VerifyArguments) -> Result<Self, VerifyError> {
        let name = |text: &str| {
            let name: Result<Nqn, _> = text.parse();
            name.map_err(|_| VerifyError::Argument(format!("{text:?} is no NVMe qualified name")))
        };
        Ok(Self {
            addresses: arguments.paths.clone(),
            subsystem: name(&arguments.subsystem)?,
            host: match &arguments.host {
                Some(host) => HostIdentity::from_name(name(host)?),
                None => HostIdentity::of_this_machine(),
            },
            credentials: credentials(arguments)?,
            current: RefCell::new(None),
            number: Cell::new(0),
            next: Cell::new(0),
            looking: Cell::new(false),
            power_loss: arguments.power_loss,
            has_lost: Cell::new(false),
        })
    }

    /// How often another path was taken.
    pub(super) fn changes(&self) -> u64 {
        self.number.get().saturating_sub(1)
    }

    /// The path in use, found if there is none; the error is why there is none now.
    pub(super) async fn device(&self) -> Result<(u64, Rc<dyn BlockDevice>), String> {
        if let Some(current) = &*self.current.borrow() {
            return Ok(current.clone());
        }
        if self.looking.replace(true) {
            return Err("a path is being looked for".to_owned());
        }
        let found = self.connect().await;
        self.looking.set(false);
        let device = found?;
        let number = self.number.get() + 1;
        self.number.set(number);
        *self.current.borrow_mut() = Some((number, device.clone()));
        Ok((number, device))
    }

    /// Whether the path in use has told, since this was last asked, that what was answered and not flushed
    /// may be gone.
    pub(super) fn takes_loss(&self) -> bool {
        self.has_lost.take()
    }

    /// The path of this number is of no use any more.
    pub(super) fn failed(&self, number: u64) {
        let is_current = self
            .current
            .borrow()
            .as_ref()
            .is_some_and(|(current, _)| *current == number);
        if is_current {
            let lost = self.current.borrow_mut().take();
            drop(lost);
        }
    }

    /// Connects to the next address, and sees whether it reads.
    async fn connect(&self) -> Result<Rc<dyn BlockDevice>, String> {
        let at = self.next.get();
        self.next.set((at + 1) % self.addresses.len().max(1));
        let address = self.addresses.get(at).ok_or("there is none")?;
        let why = |error: &dyn std::fmt::Display| format!("{address}: {error}");
        let mut session = NvmfOptions::new(Endpoint::from(*address), self.subsystem.clone());
        session.namespace = NamespaceSelector::Id(NAMESPACE_ID);
        session.host = self.host.clone();
        session.credentials = self.credentials.clone();
        session.queues = 1;
        session.keep_alive = KEEP_ALIVE;
        session.command_timeout = COMMAND_TIMEOUT;
        session.connection.connect_timeout = CONNECT_TIMEOUT;
        session.loss = LossOptions {
            reconnect_pause_max: None,
            fail_fast: Some(Duration::ZERO),
            loss_timeout: Duration::ZERO,
            resubmit: Resubmit::None,
            unflushed: Unflushed::Fail,
        };
        let device = NvmfDevice::open(session).await.map_err(|error| why(&error))?;
        let queue = device.attach().await.map_err(|error| why(&error))?;
        let read = queue.read(0, Buffer::from_heap(BLOCK_BYTES)).await;
        read.map_err(|error| why(&error))?;
        if self.power_loss {
            match queue.flush().await {
                Ok(()) => {}
                Err(IoError::MediaWrite) => self.has_lost.set(true),
                Err(error) => return Err(why(&error)),
            }
        }
        Ok(queue)
    }
}
