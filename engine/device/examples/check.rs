//! Runs the suite that every device passes against any device, such as a drive in a guest:
//!
//! ```text
//! cargo run -p pollux-device --features conformance,spdk --example check -- pcie:///0000:01:00.0/1
//! ```
//!
//! It writes over the first 16 MiB of the device, and its last blocks. `--ordinary` puts the buffers on
//! ordinary pages, which drives do not reach, so that all data is copied.

use std::future::Future;
use std::io::Write;
use std::pin::pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

use pollux_device::conformance::{self, Expectations};
use pollux_device::{Device, DeviceUri, Registry};
use pollux_hugepages::{ArenaOptions, PagePreference, PoolOptions};
use pollux_reactor::ReactorId;
use pollux_reactor::real::{Reactors, Settings};

/// Reactors that share the device.
const REACTORS: u32 = 2;

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

fn check(uri: &str, page: PagePreference) -> Result<(), Box<dyn std::error::Error>> {
    let uri = DeviceUri::parse(uri)?;
    let reactors = Reactors::spawn((0..REACTORS).map(|number| Settings {
        id: ReactorId(number),
        buffers: PoolOptions {
            arena: ArenaOptions {
                page,
                ..ArenaOptions::default()
            },
            ..PoolOptions::default()
        },
        ..Settings::default()
    }))?;
    let handles = reactors.handles();
    let first = handles.first().ok_or("there are no reactors")?;
    let opened = first.call(move || async move { Registry::standard().open(&uri).await });
    let device: Arc<dyn Device> = block_on(opened)??;
    let mut output = std::io::stdout();
    writeln!(output, "{}: {:?}", device.name(), device.geometry())?;
    let checked = device.clone();
    block_on(first.call(move || conformance::check(checked, Expectations::default())))?;
    writeln!(output, "one reactor: passed")?;
    block_on(conformance::check_shared(device.clone(), &handles));
    writeln!(output, "{REACTORS} reactors: passed")?;
    writeln!(output, "{:?}", device.health())?;
    drop(device);
    reactors.stop();
    Ok(reactors.join()?)
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let page = match arguments.iter().any(|argument| argument == "--ordinary") {
        true => PagePreference::Ordinary,
        false => PagePreference::Auto,
    };
    let Some(uri) = arguments.iter().find(|argument| !argument.starts_with("--")) else {
        let _ = writeln!(std::io::stderr(), "give the URI of a device");
        return ExitCode::FAILURE;
    };
    match check(uri, page) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}
