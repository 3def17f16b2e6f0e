//! A machine in memory: its NVMe host reaches simulated engines, its devices hold what was made on them,
//! its mounts are a list.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

use pollux_api::control::v1::HostSecrets;
use pollux_csi::capability::FileSystem;
use pollux_csi::host::{
    Connection, Content, Controller, Device, DeviceNumber, DiscoveryLog, Host, HostError, Mount, Usage,
};
use pollux_csi::names;
use pollux_csi::node::context::SUBSYSTEM_PREFIX;
use uuid::Uuid;

use super::fleet::Fleet;

/// The first part of the numbers of all devices.
const MAJOR: u32 = 259;

/// What is on a volume, wherever it is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    pub content: Content,
    /// Bytes that the file system knows of.
    pub grown_to: u64,
}

#[derive(Debug, Default)]
pub struct State {
    pub controllers: Vec<(String, Controller)>,
    /// What the kernel has of secrets, by the names of controllers.
    pub secrets: BTreeMap<String, HostSecrets>,
    pub disks: BTreeMap<Uuid, Disk>,
    pub mounts: Vec<Mount>,
    minors: BTreeMap<Uuid, u32>,
    counter: u32,
    /// Operations that fail, each as often as it is in here.
    pub failing: Vec<&'static str>,
    /// Devices that somebody else uses.
    pub busy: BTreeSet<Uuid>,
    /// Without multipath, each path is a device.
    pub without_multipath: bool,
    /// What targets tell of where volumes are, by the addresses of the targets; others do not answer.
    pub told: BTreeMap<SocketAddr, DiscoveryLog>,
    /// What was done, in order.
    pub done: Vec<String>,
}

/// Where the machine stands still.
#[derive(Debug, Default)]
struct Hold {
    operation: Option<&'static str>,
    is_held: bool,
}

/// A machine in memory.
#[derive(Debug)]
pub struct Machine {
    fleet: Fleet,
    state: Mutex<State>,
    hold: Mutex<Hold>,
    goes_on: Condvar,
}

fn uid(subsystem_nqn: &str) -> Uuid {
    let uid = subsystem_nqn
        .strip_prefix(SUBSYSTEM_PREFIX)
        .expect("a subsystem of a volume");
    Uuid::parse_str(uid).expect("a UUID")
}

impl Machine {
    pub fn new(fleet: Fleet) -> Self {
        Self {
            fleet,
            state: Mutex::default(),
            hold: Mutex::default(),
            goes_on: Condvar::new(),
        }
    }

    /// From now on who comes to this operation, with what follows it if that is named too, waits there.
    pub fn hold_at(&self, operation: &'static str) {
        *self.hold.lock().expect("no test panics with it") = Hold {
            operation: Some(operation),
            is_held: false,
        };
    }

    /// Waits until somebody does.
    pub async fn is_held(&self) {
        while !self.hold.lock().expect("no test panics with it").is_held {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Nobody waits any more.
    pub fn let_go_on(&self) {
        self.hold.lock().expect("no test panics with it").operation = None;
        self.goes_on.notify_all();
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics with it")
    }

    /// The bytes of a volume, and whether the host may write it; nothing if no target admits the host.
    fn admitted(&self, uid: Uuid, host_nqn: Option<&str>) -> Option<(u64, bool)> {
        let engines = self.fleet.lock();
        let up = engines.engines.values().filter(|engine| engine.up);
        let mut targets = up.filter_map(|engine| Some(&engine.targets.get(&uid.to_string())?.config));
        let target = targets.find(|target| !target.standby)?;
        let host = match host_nqn {
            Some(nqn) => target.hosts.iter().find(|host| host.host_nqn == nqn)?,
            None => target.hosts.first()?,
        };
        Some((target.size_bytes, host.read_only))
    }

    /// Whether no engine finds the secrets of a host missing or wrong.
    fn authenticates(&self, connection: &Connection<'_>) -> bool {
        let uid = uid(connection.subsystem_nqn).to_string();
        let engines = self.fleet.lock();
        let targets = engines
            .engines
            .values()
            .filter_map(|engine| engine.targets.get(&uid));
        let mut wanted = targets.flat_map(|target| {
            let hosts = target.config.hosts.iter();
            let own = hosts.filter(|host| host.host_nqn == connection.host.nqn);
            own.filter(|host| !host.secret_uid.is_empty())
                .map(|host| target.secrets.get(&host.secret_uid))
        });
        wanted.all(|wanted| wanted.is_some() && wanted == connection.secrets)
    }

    fn begin(&self, operation: &'static str, subject: &str) -> Result<MutexGuard<'_, State>, HostError> {
        let mut hold = self.hold.lock().expect("no test panics with it");
        let name = format!("{operation} {subject}");
        while hold.operation.is_some_and(|held| name.starts_with(held)) {
            hold.is_held = true;
            hold = self.goes_on.wait(hold).expect("no test panics with it");
        }
        drop(hold);
        let mut state = self.state();
        state.done.push(name);
        if let Some(index) = state.failing.iter().position(|failing| *failing == operation) {
            state.failing.remove(index);
            return Err(HostError::kernel(operation, subject, "the test wants it so"));
        }
        Ok(state)
    }

    /// Whether nothing is left of any volume.
    pub fn is_clean(&self) -> bool {
        let state = self.state();
        state.controllers.is_empty() && state.mounts.is_empty()
    }
}

impl State {
    fn uuid_of(&self, number: DeviceNumber) -> Option<Uuid> {
        let mut minors = self.minors.iter();
        minors
            .find(|(_, minor)| {
                number
                    == DeviceNumber {
                        major: MAJOR,
                        minor: **minor,
                    }
            })
            .map(|(uuid, _)| *uuid)
    }
}

impl Host for Machine {
    fn connect(&self, connection: &Connection<'_>) -> Result<(), HostError> {
        let mut state = self.begin("connect", &connection.address.to_string())?;
        let refused = || HostError::kernel("connect to", connection.address, "connection refused");
        self.admitted(uid(connection.subsystem_nqn), Some(&connection.host.nqn))
            .ok_or_else(refused)?;
        if !self.authenticates(connection) {
            return Err(refused());
        }
        // As the kernel has it: a path is there once.
        let is_there = |(nqn, controller): &(String, Controller)| {
            nqn == connection.subsystem_nqn && controller.address == Some(connection.address)
        };
        if state.controllers.iter().any(is_there) {
            return Ok(());
        }
        state.counter += 1;
        if let Some(secrets) = connection.secrets {
            let name = format!("nvme{}", state.counter);
            state.secrets.insert(name, secrets.clone());
        }
        let controller = Controller {
            name: format!("nvme{}", state.counter),
            address: Some(connection.address),
            state: "live".to_owned(),
            access: Some("optimized".to_owned()),
        };
        state
            .controllers
            .push((connection.subsystem_nqn.to_owned(), controller));
        Ok(())
    }

    fn controllers(&self, subsystem_nqn: &str) -> Result<Vec<Controller>, HostError> {
        let state = self.state();
        let own = state.controllers.iter().filter(|(nqn, _)| nqn == subsystem_nqn);
        Ok(own.map(|(_, controller)| controller.clone()).collect())
    }

    fn discover(
        &self,
        address: SocketAddr,
        _: &names::Host,
        known: Option<u64>,
    ) -> Result<Option<DiscoveryLog>, HostError> {
        let state = self.begin("discover", &address.to_string())?;
        let told = state.told.get(&address).cloned();
        let told = told.ok_or_else(|| HostError::kernel("ask for paths", address, "it does not answer"))?;
        Ok(Some(told).filter(|told| known != Some(told.generation)))
    }

    fn secrets(&self, controller: &Controller) -> Result<Option<HostSecrets>, HostError> {
        Ok(self.state().secrets.get(&controller.name).cloned())
    }

    fn disconnect(&self, controller: &Controller) -> Result<(), HostError> {
        let mut state = self.begin("disconnect", &controller.name)?;
        state
            .controllers
            .retain(|(_, other)| other.name != controller.name);
        Ok(())
    }

    fn rescan(&self, controller: &Controller) -> Result<(), HostError> {
        self.begin("rescan", &controller.name).map(drop)
    }

    fn flush(&self, device: &Device) -> Result<(), HostError> {
        self.begin("flush", &device.name).map(drop)
    }

    fn devices(&self, subsystem_nqn: &str, namespace_uuid: Uuid) -> Result<Vec<Device>, HostError> {
        let mut state = self.state();
        let paths = state
            .controllers
            .iter()
            .filter(|(nqn, _)| nqn == subsystem_nqn)
            .count();
        let uid = uid(subsystem_nqn);
        let Some((size_bytes, read_only)) = self.admitted(uid, None) else {
            return Ok(Vec::new());
        };
        if paths == 0 || uid != namespace_uuid {
            return Ok(Vec::new());
        }
        let next = u32::try_from(state.minors.len()).unwrap_or(0) + 1;
        let minor = *state.minors.entry(uid).or_insert(next);
        let device = Device {
            name: format!("nvme{minor}n1"),
            path: PathBuf::from(format!("/dev/nvme{minor}n1")),
            number: DeviceNumber { major: MAJOR, minor },
            size_bytes,
            read_only,
        };
        Ok(vec![device; if state.without_multipath { paths } else { 1 }])
    }

    fn subsystem_of(&self, number: DeviceNumber) -> Result<Option<String>, HostError> {
        let uuid = self.state().uuid_of(number);
        Ok(uuid.map(|uuid| format!("{SUBSYSTEM_PREFIX}{uuid}")))
    }

    fn require_unused(&self, device: &Device) -> Result<(), HostError> {
        let state = self.state();
        let is_busy = state
            .uuid_of(device.number)
            .is_some_and(|uuid| state.busy.contains(&uuid));
        if is_busy || state.mounts.iter().any(|mount| mount.number == device.number) {
            return Err(HostError::Busy {
                device: device.name.clone(),
                by: "somebody".to_owned(),
            });
        }
        Ok(())
    }

    fn hold(&self, _: &Device) -> Result<Box<dyn Send>, HostError> {
        Ok(Box::new(()))
    }

    fn content(&self, device: &Device) -> Result<Content, HostError> {
        let state = self.begin("content", &device.name)?;
        let uuid = state.uuid_of(device.number).expect("it was found");
        Ok(state
            .disks
            .get(&uuid)
            .map_or(Content::Nothing, |disk| disk.content.clone()))
    }

    fn format(&self, device: &Device, file_system: FileSystem) -> Result<(), HostError> {
        let mut state = self.begin("format", &device.name)?;
        let uuid = state.uuid_of(device.number).expect("it was found");
        let disk = Disk {
            content: Content::FileSystem {
                kind: file_system.name().to_owned(),
                uuid: uuid.to_string(),
            },
            grown_to: device.size_bytes,
        };
        let before = state.disks.insert(uuid, disk);
        let before = before.map_or(Content::Nothing, |before| before.content);
        assert_eq!(before, Content::Nothing, "data was formatted");
        Ok(())
    }

    fn check(&self, device: &Device, _: FileSystem) -> Result<(), HostError> {
        self.begin("check", &device.name).map(drop)
    }

    fn grow(&self, device: &Device, _: FileSystem, point: &Path) -> Result<(), HostError> {
        let mut state = self.begin("grow", &device.name)?;
        let uuid = state.uuid_of(device.number).expect("it was found");
        let is_mounted = state
            .mounts
            .iter()
            .any(|mount| mount.point == point && !mount.read_only);
        assert!(is_mounted, "{} grows where it cannot be written", point.display());
        state.disks.get_mut(&uuid).expect("it is mounted").grown_to = device.size_bytes;
        Ok(())
    }

    fn mounts(&self) -> Result<Vec<Mount>, HostError> {
        Ok(self.state().mounts.clone())
    }

    fn mount(
        &self,
        device: &Device,
        file_system: FileSystem,
        point: &Path,
        read_only: bool,
        _: &[String],
    ) -> Result<(), HostError> {
        let mut state = self.begin("mount", &point.display().to_string())?;
        state.mounts.push(Mount {
            number: device.number,
            root: "/".to_owned(),
            point: std::fs::canonicalize(point).expect("it was made"),
            kind: file_system.name().to_owned(),
            source: device.path.display().to_string(),
            read_only,
            read_only_everywhere: read_only,
        });
        Ok(())
    }

    fn bind(&self, from: &Path, to: &Path, read_only: bool) -> Result<(), HostError> {
        let mut state = self.begin("bind", &to.display().to_string())?;
        let to = std::fs::canonicalize(to).expect("it was made");
        let mount = match from.strip_prefix("/dev") {
            Ok(name) => Mount {
                number: DeviceNumber { major: 0, minor: 5 },
                root: format!("/{}", name.display()),
                point: to,
                kind: "devtmpfs".to_owned(),
                source: "udev".to_owned(),
                read_only,
                read_only_everywhere: false,
            },
            Err(_) => {
                let from = std::fs::canonicalize(from).expect("it is there");
                let mounts = state.mounts.iter().rev();
                let below = mounts.into_iter().find(|mount| mount.point == from);
                let below = below.expect("a volume is mounted there").clone();
                Mount {
                    point: to,
                    read_only: read_only || below.read_only,
                    ..below
                }
            }
        };
        state.mounts.push(mount);
        Ok(())
    }

    fn unmount(&self, point: &Path) -> Result<(), HostError> {
        let mut state = self.begin("unmount", &point.display().to_string())?;
        let point = std::fs::canonicalize(point).expect("it is there");
        let index = state.mounts.iter().rposition(|mount| mount.point == point);
        state.mounts.remove(index.expect("something is mounted there"));
        Ok(())
    }

    fn usage(&self, point: &Path) -> Result<Usage, HostError> {
        drop(self.begin("usage", &point.display().to_string())?);
        Ok(Usage {
            bytes: 1000,
            bytes_free: 700,
            bytes_available: 600,
            inodes: 100,
            inodes_free: 90,
        })
    }

    fn freeze(&self, point: &Path, still: bool) -> Result<(), HostError> {
        self.begin(
            if still { "freeze" } else { "thaw" },
            &point.display().to_string(),
        )
        .map(drop)
    }
}
