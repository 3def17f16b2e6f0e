//! A controller: its admin queue, what it says about itself, and its life from Connect to shutdown.
//!
//! The order is that of NVMe Base 2.0, 3.5.2 (memory-less initialization): Connect the admin queue, read CAP,
//! set CC.EN and wait for CSTS.RDY, identify, say how many I/O queues and which events are wanted, connect
//! I/O queues. A controller is shut down by CC.SHN, and reset by clearing CC.EN; what it says then is the
//! proof that commands which were lost with a connection are not executed any more.

use std::time::Duration;

use pollux_hugepages::Slice;
use pollux_reactor::net::Address;
use pollux_reactor::{Task, now, sleep, spawn};
use uuid::Uuid;
use zerocopy::IntoBytes;

use super::admin::AdminQueue;
use super::authenticate::authenticate_as_asked;
use super::connection::{ConnectionOptions, QueuePair, Transfer};
use super::error::{CONNECT, InitiatorError};
use super::host::HostIdentity;
use crate::auth::{Credentials, Names};
use crate::wire::command::{
    Connect, ConnectAttributes, ConnectData, ConnectResult, DYNAMIC_CONTROLLER, Identify,
};
use crate::wire::features::{AsyncEventConfiguration, FeatureId, HostBehavior, QueueCounts};
use crate::wire::identify::{
    ControllerAttributes, ControllerType, IdentifyController, IdentifyStructure, IoCommandSupport,
    NvmAdminCommands, NvmController, OptionalAdminCommands, VolatileWriteCache,
};
use crate::wire::nqn::Nqn;
use crate::wire::properties::{
    Capabilities, CommandSetSupport, Configuration, ControllerStatus, Property, ShutdownNotification,
    ShutdownStatus,
};

/// Commands outstanding on an admin queue at a time: all that this host ever has under way.
const ADMIN_DEPTH: u16 = 31;

/// Entries of an admin queue; one stays empty (NVMe Base 2.0, 6.3 asks for at least 32).
const ADMIN_ENTRIES: u16 = ADMIN_DEPTH + 1;

/// The largest transfer of one command, in bytes, whatever a controller allows.
pub const TRANSFER_BYTES_MAX: u64 = 1024 * 1024;

/// The shortest and the longest pause between looks at CSTS.
const STATUS_PAUSE_MIN: Duration = Duration::from_micros(500);
const STATUS_PAUSE_MAX: Duration = Duration::from_millis(100);

/// How long a shutdown may take if the controller does not say (RTD3E is 0).
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(5);

/// The longest shutdown that is waited for, whatever the controller says.
const SHUTDOWN_LIMIT_MAX: Duration = Duration::from_secs(30);

/// The unit of CAP.TO.
const READY_TIMEOUT_UNIT: Duration = Duration::from_millis(500);

/// The unit of the retry delays of Identify Controller.
const RETRY_DELAY_UNIT: Duration = Duration::from_millis(100);

/// The events that this host acts on, or whose log page it reads so that others can come.
const EVENTS_WANTED: AsyncEventConfiguration =
    AsyncEventConfiguration::NAMESPACE_ATTRIBUTES.union(AsyncEventConfiguration::ANA_CHANGE);

/// Which controller to connect to, and as whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControllerOptions {
    /// Where it listens.
    pub address: Address,
    /// The subsystem.
    pub subsystem: Nqn,
    /// This host.
    pub host: HostIdentity,
    /// How connections are to be; the depth is that of I/O queues.
    pub connection: ConnectionOptions,
    /// I/O queues to ask for, at least 1.
    pub queues: u16,
    /// After how long without a sign of life the controller gives this host up, and this host the controller.
    /// Zero for never, which only a discovery controller may be asked for.
    pub keep_alive: Duration,
    /// How long an admin command may take.
    pub admin_timeout: Duration,
    /// The secrets that this host and the subsystem authenticate by, if they do.
    pub credentials: Option<Credentials>,
}

impl ControllerOptions {
    /// Defaults for everything but address and subsystem: this machine as the host, 16 queues of depth 128,
    /// keep alive after 5 s, admin commands within 10 s.
    #[must_use]
    pub fn new(address: Address, subsystem: Nqn) -> Self {
        Self {
            address,
            subsystem,
            host: HostIdentity::of_this_machine(),
            connection: ConnectionOptions::default(),
            queues: 16,
            keep_alive: Duration::from_secs(5),
            admin_timeout: Duration::from_secs(10),
            credentials: None,
        }
    }
}

/// What a controller says about itself, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControllerDescription {
    /// Controller identifier (CNTLID).
    pub controller_id: u16,
    /// Serial number.
    pub serial_number: String,
    /// Model.
    pub model_number: String,
    /// Most data of one command, in bytes.
    pub transfer_bytes_max: u32,
    /// Most data of Write Zeroes, in bytes, if there is a limit.
    pub write_zeroes_bytes_max: Option<u64>,
    /// Data that an I/O command capsule may carry, in bytes.
    pub in_capsule_bytes_max: u32,
    /// Most commands outstanding on an I/O queue.
    pub queue_depth_max: u16,
    /// I/O queues that may be connected.
    pub queues: u16,
    /// Optional commands.
    pub io_commands: IoCommandSupport,
    /// Get LBA Status returns which blocks are allocated.
    pub reports_allocated: bool,
    /// Completed writes may be in a volatile cache.
    pub volatile_write_cache: bool,
    /// Blocks less one that are written whole even if the power fails, if the namespace does not say.
    pub atomic_write_power_fail_blocks_minus_one: u16,
    /// How long the controller may go on with commands after it lost this host: see [`quiesce_time`].
    pub quiesce: Duration,
    /// Pauses that the controller asks for before a command is sent again, by the index in a status.
    pub retry_delays: [Duration; 3],
    /// Which run of which target this is, if the target says so: as long as it is the same, nothing that the
    /// target held in memory is lost.
    pub instance: Option<Uuid>,
}

/// A controller this host is connected to. Dropping it closes the admin queue, and with it the controller;
/// see [`Controller::shut_down`] for a clean end.
#[derive(Debug)]
pub struct Controller {
    admin: AdminQueue,
    options: ControllerOptions,
    description: ControllerDescription,
    ready_limit: Duration,
    shutdown_limit: Duration,
    configuration: Configuration,
    _keep_alive: Option<Task<()>>,
}

impl Controller {
    /// Connects to a controller, enables it and learns about it. On the current reactor, where its admin
    /// queue stays.
    ///
    /// # Errors
    ///
    /// [`InitiatorError`].
    pub async fn connect(options: ControllerOptions) -> Result<Self, InitiatorError> {
        let connection = ConnectionOptions {
            depth: ADMIN_DEPTH,
            ..options.connection.clone()
        };
        let queue = QueuePair::connect(&options.address, &connection).await?;
        let admin = AdminQueue::new(queue, options.admin_timeout);
        let keep_alive_ms = u32::try_from(options.keep_alive.as_millis()).unwrap_or(u32::MAX);
        let connect = Connect {
            record_format: Connect::RECORD_FORMAT,
            queue_id: 0,
            queue_size_minus_one: ADMIN_ENTRIES - 1,
            attributes: ConnectAttributes::DISABLE_QUEUE_FLOW_CONTROL,
            keep_alive_ms,
        };
        let data = ConnectData::new(
            options.host.id,
            &options.host.name,
            &options.subsystem,
            DYNAMIC_CONTROLLER,
        );
        let names = names(&options.host, &options.subsystem);
        let connected = fabrics_connect(&admin, &connect, &data, options.credentials.as_ref(), names).await?;
        let keep_alive =
            (!options.keep_alive.is_zero()).then(|| spawn(keep_alive(admin.clone(), options.keep_alive)));

        let capabilities = Capabilities::from_bits(admin.property(Property::Capabilities).await?);
        let ready_limit = READY_TIMEOUT_UNIT * u32::from(capabilities.ready_timeout_500ms).max(1);
        let configuration = configuration(&capabilities);
        admin
            .set_property(Property::Configuration, configuration.to_bits().into())
            .await?;
        wait_for_status(&admin, ready_limit, "become ready", |status| status.ready).await?;
        let what = "to identify the controller";
        let identify = admin
            .identify(what, Identify::new(IdentifyStructure::Controller), 0)
            .await?;
        let identify = IdentifyController::from_bytes(&identify);
        let mut description = describe(&capabilities, &identify, options.keep_alive)?;
        description.controller_id = connected.controller_id;
        let shutdown_limit = match u64::from(identify.entry_latency_us) {
            0 => SHUTDOWN_LIMIT,
            entry_latency_us => {
                Duration::from_micros(entry_latency_us).clamp(SHUTDOWN_LIMIT, SHUTDOWN_LIMIT_MAX)
            }
        };
        let mut controller = Self {
            admin,
            options,
            description,
            ready_limit,
            shutdown_limit,
            configuration,
            _keep_alive: keep_alive,
        };
        let is_discovery = identify.controller_type() == Some(ControllerType::Discovery);
        if !is_discovery && !controller.options.subsystem.is_discovery() {
            controller.set_up_io(&capabilities, &identify).await?;
        }
        Ok(controller)
    }

    /// Learns and sets what matters for I/O.
    async fn set_up_io(
        &mut self,
        capabilities: &Capabilities,
        identify: &IdentifyController,
    ) -> Result<(), InitiatorError> {
        if identify.in_capsule_data_offset_16_bytes != 0 {
            return Err(InitiatorError::Unusable {
                what: "wants in-capsule data at an offset, which NVMe/TCP does not have",
            });
        }
        // Controllers of before revision 2.0 do not know this structure, and have no limits of their own
        // then.
        let what = "to identify the NVM command set";
        let limits = Identify::new(IdentifyStructure::CommandSetController);
        match self.admin.identify(what, limits, 0).await {
            Ok(bytes) => {
                let limits = NvmController::from_bytes(&bytes);
                self.description.write_zeroes_bytes_max = (limits.write_zeroes_size > 0)
                    .then(|| power(limits.write_zeroes_size, capabilities.page_bytes_min()));
                // Controllers of before revision 1.1 of the command set know the command, and not this.
                self.description.reports_allocated = identify
                    .admin_commands
                    .contains(OptionalAdminCommands::LBA_STATUS)
                    && limits
                        .admin_commands
                        .contains(NvmAdminCommands::REPORTS_ALLOCATED);
            }
            Err(InitiatorError::Refused { .. }) => {}
            Err(error) => return Err(error),
        }
        let asked = self.options.queues.max(1) - 1;
        let asked = QueueCounts {
            submission_minus_one: asked,
            completion_minus_one: asked,
        };
        let what = "to set the number of queues";
        let granted = self
            .admin
            .set_feature(what, FeatureId::NumberOfQueues, asked.to_dword())
            .await?;
        let granted = QueueCounts::from_dword(granted);
        let granted = granted.submission_minus_one.min(granted.completion_minus_one);
        self.description.queues = granted.saturating_add(1).min(self.options.queues.max(1));

        // Controllers with retry delays tell them to hosts that say they honour them.
        if identify.retry_delays_100ms != [0; 3] {
            let behavior = HostBehavior {
                advanced_command_retry: 1,
                ..HostBehavior::default()
            };
            let what = "to set the host's behavior";
            self.admin
                .set_feature_data(what, FeatureId::HostBehavior, &behavior.to_bytes())
                .await?;
        }
        let events = EVENTS_WANTED.intersection(identify.async_events);
        if !events.is_empty() {
            let what = "to configure asynchronous events";
            let feature = FeatureId::AsyncEventConfiguration;
            self.admin.set_feature(what, feature, events.bits()).await?;
        }
        Ok(())
    }

    /// What it says about itself.
    pub fn description(&self) -> &ControllerDescription {
        &self.description
    }

    /// Its admin queue.
    pub fn admin(&self) -> &AdminQueue {
        &self.admin
    }

    /// What another reactor needs to connect an I/O queue.
    pub fn ticket(&self) -> QueueTicket {
        let mut connection = self.options.connection.clone();
        connection.depth = connection.depth.min(self.description.queue_depth_max).max(1);
        QueueTicket {
            address: self.options.address.clone(),
            subsystem: self.options.subsystem.clone(),
            host: self.options.host.clone(),
            connection,
            admin_timeout: self.options.admin_timeout,
            credentials: self.options.credentials.clone(),
            controller_id: self.description.controller_id,
            in_capsule_bytes_max: self.description.in_capsule_bytes_max,
        }
    }

    /// Resets the controller (CC.EN to 0) and waits until it is not ready any more. From then on it executes
    /// none of the commands it had (NVMe Base 2.0, 3.7.2).
    ///
    /// # Errors
    ///
    /// [`InitiatorError`]; nothing is known about the commands then.
    pub async fn reset(&self) -> Result<(), InitiatorError> {
        let disabled = Configuration {
            enabled: false,
            ..self.configuration
        };
        self.admin
            .set_property(Property::Configuration, disabled.to_bits().into())
            .await?;
        wait_for_status(&self.admin, self.ready_limit, "stop", |status| !status.ready).await
    }

    /// Shuts the controller down (CC.SHN), waits until it says that it is done, and closes the admin queue.
    ///
    /// # Errors
    ///
    /// [`InitiatorError`]; the admin queue is closed all the same.
    pub async fn shut_down(self) -> Result<(), InitiatorError> {
        let shutting_down = Configuration {
            shutdown: ShutdownNotification::Normal,
            ..self.configuration
        };
        self.admin
            .set_property(Property::Configuration, shutting_down.to_bits().into())
            .await?;
        let complete = |status: ControllerStatus| status.shutdown == ShutdownStatus::Complete;
        wait_for_status(&self.admin, self.shutdown_limit, "shut down", complete).await?;
        self.admin.queue().close("the controller is shut down");
        Ok(())
    }
}

/// What a reactor needs to connect an I/O queue to a controller that another one is connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueTicket {
    address: Address,
    subsystem: Nqn,
    host: HostIdentity,
    connection: ConnectionOptions,
    admin_timeout: Duration,
    credentials: Option<Credentials>,
    controller_id: u16,
    in_capsule_bytes_max: u32,
}

impl QueueTicket {
    /// Commands that the queue will take at a time.
    pub fn depth(&self) -> u16 {
        self.connection.depth
    }

    /// Connects I/O queue `queue_id`, from 1 on, on the current reactor.
    ///
    /// # Errors
    ///
    /// [`InitiatorError`].
    pub async fn connect(&self, queue_id: u16) -> Result<QueuePair, InitiatorError> {
        let queue = QueuePair::connect(&self.address, &self.connection).await?;
        let connect = Connect {
            record_format: Connect::RECORD_FORMAT,
            queue_id,
            // One entry stays empty, and the field is 0's based.
            queue_size_minus_one: self.connection.depth,
            attributes: ConnectAttributes::DISABLE_QUEUE_FLOW_CONTROL,
            keep_alive_ms: 0,
        };
        let data = ConnectData::new(self.host.id, &self.host.name, &self.subsystem, self.controller_id);
        fabrics_connect(
            &AdminQueue::new(queue.clone(), self.admin_timeout),
            &connect,
            &data,
            self.credentials.as_ref(),
            names(&self.host, &self.subsystem),
        )
        .await?;
        queue.set_in_capsule_bytes_max(self.in_capsule_bytes_max);
        Ok(queue)
    }
}

fn names(host: &HostIdentity, subsystem: &Nqn) -> Names {
    Names {
        host: host.name.clone(),
        subsystem: subsystem.clone(),
    }
}

/// Binds a connection to a queue (NVMe Base 2.0, 6.3), and authenticates.
async fn fabrics_connect(
    queue: &AdminQueue,
    connect: &Connect,
    data: &ConnectData,
    credentials: Option<&Credentials>,
    names: Names,
) -> Result<ConnectResult, InitiatorError> {
    let entry = connect.to_entry(0);
    let data = Slice::copy_from(data.as_bytes());
    let make = || Transfer::Send(data.clone().into());
    let (completion, _) = queue.succeed(CONNECT, &entry, make).await?;
    let result = ConnectResult::from_result(completion.result_low());
    authenticate_as_asked(queue, result, credentials, names).await?;
    Ok(result)
}

fn configuration(capabilities: &Capabilities) -> Configuration {
    let command_set = if capabilities.command_sets.contains(CommandSetSupport::NVM) {
        Configuration::COMMAND_SET_NVM
    } else if capabilities
        .command_sets
        .contains(CommandSetSupport::IO_COMMAND_SETS)
    {
        Configuration::COMMAND_SET_ALL
    } else {
        Configuration::COMMAND_SET_NONE
    };
    Configuration {
        enabled: true,
        command_set,
        page_size: capabilities.page_size_min,
        submission_entry_size: Configuration::SUBMISSION_ENTRY_SIZE,
        completion_entry_size: Configuration::COMPLETION_ENTRY_SIZE,
        ..Configuration::default()
    }
}

/// Looks at CSTS until it is as wanted.
async fn wait_for_status(
    admin: &AdminQueue,
    limit: Duration,
    what: &'static str,
    wanted: impl Fn(ControllerStatus) -> bool,
) -> Result<(), InitiatorError> {
    let deadline = now() + limit;
    let mut pause = STATUS_PAUSE_MIN;
    loop {
        // The property has 4 bytes; what stands above them is reserved.
        let bits = admin.property(Property::Status).await? & u64::from(u32::MAX);
        let status = ControllerStatus::from_bits(u32::try_from(bits).unwrap_or_default());
        if wanted(status) {
            return Ok(());
        }
        if status.fatal {
            return Err(InitiatorError::Fatal);
        }
        if now() >= deadline {
            return Err(InitiatorError::NotReady { what, limit });
        }
        sleep(pause).await;
        pause = (pause * 2).min(STATUS_PAUSE_MAX);
    }
}

fn power(exponent: u8, unit: u64) -> u64 {
    1_u64
        .checked_shl(exponent.into())
        .map_or(u64::MAX, |count| count.saturating_mul(unit))
}

fn describe(
    capabilities: &Capabilities,
    identify: &IdentifyController,
    keep_alive: Duration,
) -> Result<ControllerDescription, InitiatorError> {
    let transfer_bytes_max = identify
        .transfer_bytes_max(capabilities.page_bytes_min())
        .map_or(TRANSFER_BYTES_MAX, |limit| limit.min(TRANSFER_BYTES_MAX));
    // One entry of a queue stays empty; MAXCMD may be lower still, and 0 where it is not reported.
    let entries = capabilities.max_queue_entries_minus_one;
    let queue_depth_max = match identify.max_commands {
        0 => entries,
        commands => entries.min(commands),
    };
    if queue_depth_max == 0 {
        return Err(InitiatorError::Unusable {
            what: "has queues of one entry, which hold no command",
        });
    }
    Ok(ControllerDescription {
        controller_id: identify.controller_id,
        serial_number: identify.serial_number.text(),
        model_number: identify.model_number.text(),
        transfer_bytes_max: u32::try_from(transfer_bytes_max).unwrap_or(u32::MAX),
        write_zeroes_bytes_max: None,
        in_capsule_bytes_max: identify.in_capsule_data_bytes(),
        queue_depth_max,
        queues: 0,
        io_commands: identify.io_commands,
        reports_allocated: false,
        volatile_write_cache: identify
            .volatile_write_cache
            .contains(VolatileWriteCache::PRESENT),
        atomic_write_power_fail_blocks_minus_one: identify.atomic_write_power_fail_blocks_minus_one,
        quiesce: quiesce_time(identify, keep_alive),
        retry_delays: identify
            .retry_delays_100ms
            .map(|delay| RETRY_DELAY_UNIT * u32::from(delay)),
        instance: identify.instance(),
    })
}

/// How long after the last connection to a controller was closed it may still execute commands.
///
/// The controller notices the loss at the latest when its keep alive timer runs out; with traffic based keep
/// alive that timer may have been started anew by the last command. One more period covers controllers that
/// look at the timer only once in a period. Then the commands under way have to come to their end, for which
/// the controller states a time (CQT, NVMe Base 2.1, Communication Loss Handling).
fn quiesce_time(identify: &IdentifyController, keep_alive: Duration) -> Duration {
    let traffic_based = identify
        .attributes
        .contains(ControllerAttributes::TRAFFIC_BASED_KEEP_ALIVE);
    let periods = if traffic_based { 3 } else { 2 };
    // Controllers round the timeout up to their granularity.
    let granularity = RETRY_DELAY_UNIT * u32::from(identify.keep_alive_granularity_100ms);
    let period = keep_alive + granularity;
    period * periods + Duration::from_millis(u64::from(identify.command_quiesce_ms))
}

/// Sends keep alives twice in each period, and closes the connection when one stays unanswered for a period.
async fn keep_alive(admin: AdminQueue, period: Duration) {
    let admin = AdminQueue::new(admin.queue().clone(), period.min(admin.limit()));
    loop {
        sleep(period / 2).await;
        if let Err(error) = admin.keep_alive().await {
            tracing::debug!(%error, "a keep alive failed");
            admin.queue().close("the controller answers no keep alive");
            return;
        }
    }
}
