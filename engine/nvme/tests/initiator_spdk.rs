//! The initiator against SPDK's `nvmf_tgt`, where there is one: on `PATH`, or named by
//! `POLLUX_TEST_NVMF_TGT`.
//!
//! The tests say so when they are skipped. They need no huge pages and no privileges.

#![allow(clippy::unwrap_used, reason = "a test may fail by a panic")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use pollux_device::conformance::{self, Expectations};
use pollux_device::events::DeviceEvent;
use pollux_device::{BlockDeviceExt, Device, DeviceUri};
use pollux_hugepages::{Buffer, PoolOptions};
use pollux_nvme::initiator::device::{NvmfDevice, NvmfOptions};
use pollux_nvme::initiator::discovery::discover;
use pollux_nvme::initiator::host::HostIdentity;
use pollux_nvme::wire::log::SubsystemType;
use pollux_reactor::ReactorHandle;
use pollux_reactor::real::{ReactorThread, Settings};

const PROGRAM: &str = "nvmf_tgt";
const SETTING: &str = "POLLUX_TEST_NVMF_TGT";
const SUBSYSTEM: &str = "nqn.2016-06.io.spdk:cnode1";

fn program() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os(SETTING) {
        return Some(path.into());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|directory| directory.join(PROGRAM))
        .find(|program| program.is_file())
}

/// A running target with a subsystem and no namespace yet.
struct Spdk {
    child: Child,
    directory: tempfile::TempDir,
    address: SocketAddr,
}

impl Spdk {
    /// Starts a target; `None`, with a word about it, where there is none to start.
    fn start(test: &str) -> Option<Self> {
        let Some(program) = program() else {
            // Past the test harness, which shows what a test prints only when it fails.
            let _ = writeln!(
                std::io::stderr(),
                "{test} SKIPPED: no `{PROGRAM}` on PATH, and {SETTING} names none"
            );
            return None;
        };
        let directory = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut spdk = Self {
            child: Self::spawn(&program, &directory),
            directory,
            address: port,
        };
        spdk.configure();
        Some(spdk)
    }

    fn spawn(program: &PathBuf, directory: &tempfile::TempDir) -> Child {
        Command::new(program)
            .args(["--no-huge", "-s", "512", "--no-pci", "-m", "[0]", "-r"])
            .arg(directory.path().join("rpc"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .stdin(Stdio::null())
            .spawn()
            .unwrap()
    }

    fn configure(&mut self) {
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        while UnixStream::connect(self.directory.path().join("rpc")).is_err() {
            assert!(std::time::Instant::now() < deadline, "{PROGRAM} does not start");
            std::thread::sleep(Duration::from_millis(50));
        }
        self.call("framework_wait_init", "{}");
        self.call("nvmf_create_transport", r#"{"trtype":"TCP"}"#);
        self.call(
            "nvmf_create_subsystem",
            &format!(
                r#"{{"nqn":"{SUBSYSTEM}","allow_any_host":true,"serial_number":"SPDK1","max_namespaces":8}}"#
            ),
        );
        let port = self.address.port();
        let listen = format!(r#"{{"trtype":"TCP","adrfam":"IPv4","traddr":"127.0.0.1","trsvcid":"{port}"}}"#);
        self.call(
            "nvmf_subsystem_add_listener",
            &format!(r#"{{"nqn":"{SUBSYSTEM}","listen_address":{listen}}}"#),
        );
    }

    /// Calls a method of the target; the answer as text.
    fn call(&self, method: &str, parameters: &str) -> String {
        let mut stream = UnixStream::connect(self.directory.path().join("rpc")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let parameters = if parameters == "{}" {
            String::new()
        } else {
            format!(r#","params":{parameters}"#)
        };
        let request = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"{method}"{parameters}}}"#);
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        let mut chunk = [0; 4096];
        // The answer is one object: it is whole when its braces are closed.
        loop {
            let length = stream.read(&mut chunk).unwrap();
            answer.extend_from_slice(&chunk[..length]);
            let text = String::from_utf8_lossy(&answer);
            if length == 0 || (text.contains('{') && text.matches('{').count() == text.matches('}').count()) {
                assert!(text.contains(r#""result""#), "{method}: {text}");
                return text.into_owned();
            }
        }
    }

    /// Serves 24 MiB of memory in blocks of this size.
    fn add_memory(&self, name: &str, block_bytes: u32, uuid: &str) {
        let blocks = (24 << 20) / block_bytes;
        self.call(
            "bdev_malloc_create",
            &format!(
                r#"{{"name":"{name}","num_blocks":{blocks},"block_size":{block_bytes},"uuid":"{uuid}"}}"#
            ),
        );
        self.add_namespace(name, uuid);
    }

    fn add_namespace(&self, name: &str, uuid: &str) {
        self.call(
            "nvmf_subsystem_add_ns",
            &format!(r#"{{"nqn":"{SUBSYSTEM}","namespace":{{"bdev_name":"{name}","uuid":"{uuid}"}}}}"#),
        );
    }

    /// Kills the target and starts it again, without namespaces.
    fn restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let _ = std::fs::remove_file(self.directory.path().join("rpc"));
        self.child = Self::spawn(&program().unwrap(), &self.directory);
        self.configure();
    }

    fn options(&self, parameters: &str) -> NvmfOptions {
        let uri = format!("nvmf://{}/{SUBSYSTEM}?{parameters}", self.address);
        NvmfOptions::from_uri(&DeviceUri::parse(&uri).unwrap()).unwrap()
    }
}

impl Drop for Spdk {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn reactor() -> ReactorThread {
    ReactorThread::spawn(Settings {
        buffers: PoolOptions {
            total_bytes: 32 << 20,
            ..PoolOptions::default()
        },
        ..Settings::default()
    })
    .unwrap()
}

/// Runs a future on a reactor and waits for it.
fn on<T: Send + 'static, F: Future<Output = T> + 'static>(
    reactor: &ReactorHandle,
    make: impl FnOnce() -> F + Send + 'static,
) -> T {
    let (sender, receiver) = std::sync::mpsc::channel();
    reactor
        .spawn(move || {
            let future = make();
            async move {
                sender.send(future.await).unwrap();
            }
        })
        .unwrap();
    receiver
        .recv_timeout(Duration::from_secs(120))
        .expect("it comes to its end")
}

const FIRST: &str = "11111111-2222-3333-4444-555555555551";
const SECOND: &str = "11111111-2222-3333-4444-555555555552";

#[test]
fn devices_of_spdk_do_what_every_device_does() {
    let Some(spdk) = Spdk::start("devices_of_spdk_do_what_every_device_does") else {
        return;
    };
    spdk.add_memory("small", 512, FIRST);
    spdk.add_memory("large", 4096, SECOND);
    let thread = reactor();
    for parameters in [
        format!("uuid={FIRST}"),
        format!("uuid={SECOND}&hdgst=true&ddgst=true"),
        format!("uuid={SECOND}&ddgst=true&depth=2"),
        format!("uuid={FIRST}&hdgst=true&deallocate=dataset"),
    ] {
        let options = spdk.options(&parameters);
        let device = on(&thread.handle(), move || async move {
            NvmfDevice::open(options).await.unwrap()
        });
        on(&thread.handle(), move || async move {
            conformance::check(device, Expectations::default()).await;
        });
    }
}

#[test]
fn spdk_tells_that_a_namespace_has_grown_and_what_there_is() {
    let Some(spdk) = Spdk::start("spdk_tells_that_a_namespace_has_grown_and_what_there_is") else {
        return;
    };
    spdk.call(
        "bdev_null_create",
        &format!(r#"{{"name":"null","num_blocks":8192,"block_size":4096,"uuid":"{FIRST}"}}"#),
    );
    spdk.add_namespace("null", FIRST);
    let thread = reactor();
    let options = spdk.options("nsid=1");
    let device: Arc<NvmfDevice> = on(&thread.handle(), move || async move {
        NvmfDevice::open(options).await.unwrap()
    });
    assert_eq!(device.geometry().blocks, 8192);
    let mut events = device.subscribe();
    spdk.call("bdev_null_resize", r#"{"name":"null","new_size":64}"#);
    let event = on(&thread.handle(), move || async move { events.recv().await });
    assert_eq!(event, Ok(DeviceEvent::Resized));
    assert_eq!(device.geometry().blocks, 16_384);

    let address = spdk.address.into();
    let host = HostIdentity::from_name("nqn.2026-11.io.pollux:host".parse().unwrap());
    let entries = on(&thread.handle(), move || async move {
        discover(&address, host).await.unwrap()
    });
    let found = entries
        .iter()
        .find(|entry| entry.subsystem_type() == Some(SubsystemType::Nvm))
        .unwrap();
    assert_eq!(found.subsystem_nqn.name().unwrap().as_str(), SUBSYSTEM);
}

#[test]
fn a_killed_spdk_is_connected_to_again() {
    let Some(mut spdk) = Spdk::start("a_killed_spdk_is_connected_to_again") else {
        return;
    };
    spdk.add_memory("memory", 4096, FIRST);
    let thread = reactor();
    let options = spdk.options("kato=1s&reconnect=200ms");
    let device = on(&thread.handle(), move || async move {
        NvmfDevice::open(options).await.unwrap()
    });
    let used = device.clone();
    let (sender, receiver) = std::sync::mpsc::channel();
    thread
        .handle()
        .spawn(move || async move {
            let queue = used.attach().await.unwrap();
            for number in 0..u64::MAX {
                queue
                    .write(number % 64, Buffer::from_heap(4096), false)
                    .await
                    .unwrap();
                if number == 1000 {
                    sender.send(()).unwrap();
                }
                if number > 1000 && sender.send(()).is_err() {
                    return;
                }
            }
        })
        .unwrap();
    receiver.recv_timeout(Duration::from_secs(20)).unwrap();
    spdk.restart();
    spdk.add_memory("memory", 4096, FIRST);
    // A write that was under way is waited for: the target has to have given this host up.
    while receiver.try_recv().is_ok() {}
    receiver.recv_timeout(Duration::from_secs(30)).unwrap();
    assert!(device.is_connected());
}
