//! Devices that are slow to attach, fail to, come back as something else, or fall ill.

use std::sync::Mutex;

use super::io::read;
use super::*;
use crate::target::{SubsystemError, TargetError};
use crate::wire::command::AdminOpcode;
use crate::wire::features::{AsyncEvent, HostBehavior};
use crate::wire::log::HealthLog;
use pollux_device::events::{DeviceEvent, Publisher, Subscription};
use pollux_device::{Attaching, BlockDevice, Completion, Health, IoError, Reply, Request};
use pollux_reactor::sleep;

/// What a [`Scripted`] device does from now on.
struct Script {
    geometry: Geometry,
    health: Health,
    attach: Result<Duration, IoError>,
}

struct Scripted {
    script: Mutex<Script>,
    events: Publisher,
}

struct ScriptedQueue(Geometry);

impl Scripted {
    fn new() -> Arc<Self> {
        let script = Script {
            geometry: Geometry::new(1 << 20, 4096).unwrap(),
            health: Health::default(),
            attach: Ok(Duration::ZERO),
        };
        Arc::new(Self {
            script: Mutex::new(script),
            events: Publisher::default(),
        })
    }

    fn change(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.script.lock().unwrap());
    }
}

impl Device for Scripted {
    fn name(&self) -> &str {
        "scripted"
    }

    fn geometry(&self) -> Geometry {
        self.script.lock().unwrap().geometry
    }

    fn attach(self: Arc<Self>) -> Attaching {
        Box::pin(async move {
            let (attach, geometry) = {
                let script = self.script.lock().unwrap();
                (script.attach, script.geometry)
            };
            sleep(attach?).await;
            let queue: Rc<dyn BlockDevice> = Rc::new(ScriptedQueue(geometry));
            Ok(queue)
        })
    }

    fn subscribe(&self) -> Subscription {
        self.events.subscribe()
    }

    fn health(&self) -> Health {
        self.script.lock().unwrap().health
    }
}

impl BlockDevice for ScriptedQueue {
    fn geometry(&self) -> Geometry {
        self.0
    }

    fn submit(&self, request: Request) -> Completion {
        match request {
            Request::Read { into, .. } => Completion::ready(Ok(Reply::zeros(into))),
            _ => Completion::done(),
        }
    }
}

fn serve(fixture: &Fixture) -> Arc<Scripted> {
    let device = Scripted::new();
    fixture
        .subsystem
        .add_namespace(device.clone(), &NamespaceConfig::default())
        .unwrap();
    device
}

#[test]
fn commands_wait_for_a_device_that_is_being_attached() {
    let fixture = Fixture::new(1);
    let device = serve(&fixture);
    device.change(|script| script.attach = Ok(Duration::from_secs(2)));
    let (_admin, io) = fixture.both();
    assert_eq!(fixture.run(&io, read(0, 1)).bytes(), vec![0; BLOCK]);
    assert!(fixture.world.now().as_nanos() >= 2_000_000_000);
}

#[test]
fn a_device_that_takes_too_long_to_attach_is_not_ready() {
    let fixture = Fixture::new(1);
    let device = serve(&fixture);
    device.change(|script| script.attach = Ok(Duration::from_secs(60)));
    let (_admin, io) = fixture.both();
    assert_eq!(
        fixture.run(&io, read(0, 1)).entry.status(),
        Status::NAMESPACE_NOT_READY
    );
    fixture.run_for(Duration::from_secs(60));
    assert_eq!(fixture.status(&io, read(0, 1)), Status::SUCCESS);
}

#[test]
fn a_failed_attach_is_tried_again_later() {
    let fixture = Fixture::new(1);
    let device = serve(&fixture);
    device.change(|script| script.attach = Err(IoError::PathDown));
    let (_admin, io) = fixture.both();
    assert_eq!(fixture.status(&io, read(0, 1)), Status::CONTROLLER_PATHING_ERROR);
    device.change(|script| script.attach = Ok(Duration::ZERO));
    assert_eq!(fixture.status(&io, read(0, 1)), Status::CONTROLLER_PATHING_ERROR);
    fixture.run_for(Duration::from_millis(1100));
    assert_eq!(fixture.status(&io, read(0, 1)), Status::SUCCESS);
}

/// Hosts believe what they were told of block size and cache: a device that says otherwise now is not served.
#[test]
fn a_device_that_comes_back_as_another_is_not_served() {
    let fixture = Fixture::new(1);
    let device = serve(&fixture);
    let (_admin, io) = fixture.both();
    assert_eq!(fixture.status(&io, read(0, 1)), Status::SUCCESS);
    let before = device.geometry();
    for changed in [
        Geometry {
            block_bytes: 512,
            ..before
        },
        Geometry {
            volatile_write_cache: true,
            ..before
        },
        Geometry {
            read_only: true,
            ..before
        },
    ] {
        device.change(|script| script.geometry = changed);
        device.events.publish(DeviceEvent::Returned);
        fixture.run_for(Duration::from_millis(10));
        assert_eq!(
            fixture.status(&io, read(0, 1)),
            Status::INTERNAL_PATH_ERROR,
            "{changed:?}"
        );
    }
    device.change(|script| {
        script.geometry = Geometry {
            blocks: 512,
            ..before
        }
    });
    device.events.publish(DeviceEvent::Returned);
    fixture.run_for(Duration::from_millis(10));
    assert_eq!(fixture.status(&io, read(511, 1)), Status::SUCCESS);
    assert_eq!(fixture.status(&io, read(512, 1)), Status::LBA_OUT_OF_RANGE);
}

#[test]
fn a_host_that_knows_of_delays_is_told_to_wait() {
    let fixture = Fixture::new(1);
    let device = serve(&fixture);
    device.change(|script| script.attach = Ok(Duration::from_secs(3600)));
    let (admin, io) = fixture.both();
    let set = |advanced_command_retry| {
        let behavior = HostBehavior {
            advanced_command_retry,
            ..HostBehavior::default()
        };
        let entry =
            SetFeatures::new(FeatureId::HostBehavior, 0).to_entry(1, 0, SglDescriptor::transport(512));
        assert_eq!(
            fixture.status(&admin, writing(entry, &behavior.to_bytes())),
            Status::SUCCESS
        );
    };
    set(1);
    let told = fixture.run(&io, read(0, 1)).entry.status();
    assert_eq!(told, Status::NAMESPACE_NOT_READY.with_retry_delay_index(1));
    // What is final is told as such.
    let told = fixture.run(&io, read(5000, 1)).entry.status();
    assert_eq!(told, Status::LBA_OUT_OF_RANGE.without_retry());
    set(0);
    assert_eq!(
        fixture.run(&io, read(0, 1)).entry.status(),
        Status::NAMESPACE_NOT_READY
    );
}

#[test]
fn an_attach_from_before_the_device_came_back_does_not_count() {
    let fixture = Fixture::new(1);
    let device = serve(&fixture);
    let geometry = device.geometry();
    device.change(|script| {
        script.attach = Ok(Duration::from_secs(2));
        script.geometry.memory_align_bytes *= 2;
    });
    let (_admin, io) = fixture.both();
    fixture.run_for(Duration::from_millis(1));
    device.change(|script| (script.attach, script.geometry) = (Ok(Duration::ZERO), geometry));
    device.events.publish(DeviceEvent::Returned);
    fixture.run_for(Duration::from_millis(1));
    assert_eq!(fixture.status(&io, read(0, 1)), Status::SUCCESS);
    fixture.run_for(Duration::from_secs(2));
    assert_eq!(fixture.status(&io, read(0, 1)), Status::SUCCESS);
}

#[test]
fn an_ill_device_is_told_of_once() {
    let fixture = Fixture::new(1);
    let device = serve(&fixture);
    let admin = fixture.enabled();
    assert_eq!(
        fixture.set_feature(&admin, FeatureId::AsyncEventConfiguration, 0b1111),
        Ok(0)
    );
    assert_eq!(
        fixture.set_feature(&admin, FeatureId::TemperatureThreshold, 340),
        Ok(0)
    );
    let wait = || {
        let entry = SubmissionEntry::new(AdminOpcode::AsynchronousEventRequest.to_wire(), 1, 0);
        let task = fixture.start(&admin, plain(entry));
        fixture.run_for(Duration::from_secs(31));
        admin.queue.touch();
        task.take().map(|outcome| outcome.unwrap().entry.result_low())
    };
    let critical = || HealthLog::from_bytes(&fixture.log(&admin, LogPageId::Health, 512).unwrap());
    assert_eq!(wait(), None);
    device.change(|script| script.health.temperature_kelvin = 341);
    fixture.run_for(Duration::from_secs(31));
    assert_eq!(critical().critical_warning.bits(), 0b10);
    device.change(|script| script.health.available_spare_percent = 7);
    // The request from before took the first event; the next kind takes another.
    assert_eq!(wait(), Some(AsyncEvent::SPARE.to_dword()));
    assert_eq!(critical().available_spare_percent, 7);
    // Nothing new happened.
    assert_eq!(wait(), None);
    device.change(|script| script.health.critical_warning = 0b1100);
    fixture.run_for(Duration::from_secs(31));
    let log = critical();
    assert_eq!(
        (log.critical_warning.bits(), log.temperature_kelvin),
        (0b1111, 341)
    );
}

#[test]
fn health_is_the_worst_of_all_devices() {
    let fixture = Fixture::new(1);
    let first = serve(&fixture);
    let second = Scripted::new();
    let config = NamespaceConfig {
        uuid: Some(Uuid::from_u128(9)),
        eui64: Some([9; 8]),
        ..NamespaceConfig::default()
    };
    fixture.subsystem.add_namespace(second.clone(), &config).unwrap();
    first.change(|script| {
        script.health = Health {
            percentage_used: 120,
            media_errors: 2,
            power_cycles: 3,
            ..Health::default()
        };
    });
    second.change(|script| {
        script.health = Health {
            available_spare_percent: 50,
            media_errors: 5,
            power_cycles: 9,
            ..Health::default()
        };
    });
    let admin = fixture.enabled();
    let log = HealthLog::from_bytes(&fixture.log(&admin, LogPageId::Health, 512).unwrap());
    assert_eq!((log.used_percent, log.available_spare_percent), (120, 50));
    assert_eq!((log.media_errors, log.power_cycles), (7, 9));
}

#[test]
fn settings_that_cannot_be_are_refused() {
    let fixture = Fixture::new(1);
    let refused = |config: SubsystemConfig| match fixture.target.add_subsystem(&config) {
        Err(TargetError::Subsystem(error)) => error,
        other => panic!(
            "{other:?}",
            other = other.map(|subsystem| subsystem.nqn().clone())
        ),
    };
    let good = SubsystemConfig::new("nqn.2026-11.io.pollux:other");
    assert!(matches!(
        refused(SubsystemConfig::new("nonsense")),
        SubsystemError::Name(_)
    ));
    for serial in ["", "   ", "123456789012345678901", "tab\t"] {
        let config = SubsystemConfig {
            serial: Some(serial.to_owned()),
            ..good.clone()
        };
        assert!(
            matches!(refused(config), SubsystemError::Text { what: "serial", .. }),
            "{serial:?}"
        );
    }
    let config = SubsystemConfig {
        model: Some("ü".to_owned()),
        ..good.clone()
    };
    assert!(matches!(
        refused(config),
        SubsystemError::Text { what: "model", .. }
    ));
    let mut config = good;
    config.hosts.allowed = vec!["nonsense".to_owned()];
    assert!(matches!(refused(config), SubsystemError::Name(_)));
    let device = Scripted::new();
    for block_bytes in [256, 1000, 131_072] {
        device.change(|script| script.geometry.block_bytes = block_bytes);
        let refused = fixture
            .subsystem
            .add_namespace(device.clone(), &NamespaceConfig::default());
        assert!(matches!(refused, Err(SubsystemError::BlockSize { .. })));
    }
    assert!(matches!(
        Target::new(TargetConfig::default(), Vec::new()),
        Err(TargetError::NoReactors)
    ));
    let config = TargetConfig {
        io_queues_max: 0,
        ..TargetConfig::default()
    };
    let handle = fixture.world.handle(fixture.reactor()).unwrap();
    assert!(matches!(
        Target::new(config, vec![handle]),
        Err(TargetError::Config(_))
    ));
}
