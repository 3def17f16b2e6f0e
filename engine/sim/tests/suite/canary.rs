//! Devices with one deliberate bug each, which the checks must find: a simulator that finds nothing is
//! broken.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use pollux_device::{BlockDevice, BlockDeviceExt, Completion, Geometry, Reply, Request, ZeroOptions};
use pollux_hugepages::Slice;
use pollux_sim::Run;
use pollux_sim::scenarios::exercise_drive;

/// Seeds that each bug is looked for with.
const SEEDS: u64 = 40;

/// A device with a bug: what it makes of each request.
struct Buggy<F> {
    device: Rc<dyn BlockDevice>,
    submit: F,
}

impl<F: Fn(&Rc<dyn BlockDevice>, Request) -> Completion> BlockDevice for Buggy<F> {
    fn geometry(&self) -> Geometry {
        self.device.geometry()
    }

    fn submit(&self, request: Request) -> Completion {
        (self.submit)(&self.device, request)
    }
}

/// How many of the seeds find a bug; and the first thing that was said.
fn found<F>(make: impl Fn() -> F + 'static) -> u64
where
    F: Fn(&Rc<dyn BlockDevice>, Request) -> Completion + 'static,
{
    let make = Rc::new(make);
    let fails = |seed: &u64| {
        let make = make.clone();
        let wrap = move |device| {
            Rc::new(Buggy {
                device,
                submit: make(),
            }) as Rc<dyn BlockDevice>
        };
        exercise_drive(&Run::of_seed(*seed), Rc::new(wrap)).is_err()
    };
    (0..SEEDS).filter(fails).count() as u64
}

#[test]
fn a_device_without_a_bug_passes() {
    assert_eq!(
        found(|| |device: &Rc<dyn BlockDevice>, request| device.submit(request)),
        0
    );
}

#[test]
fn a_flush_that_does_not_flush_is_found() {
    let bug = |device: &Rc<dyn BlockDevice>, request| match request {
        Request::Flush => Completion::done(),
        request => device.submit(request),
    };
    let found = found(move || bug);
    assert!(found > SEEDS / 2, "{found}");
}

#[test]
fn a_forced_write_that_is_not_forced_is_found() {
    let bug = |device: &Rc<dyn BlockDevice>, request| match request {
        Request::Write { block, from, .. } => device.submit(Request::Write {
            block,
            from,
            force_unit_access: false,
        }),
        Request::WriteZeroes {
            block,
            blocks,
            options,
        } => device.submit(Request::WriteZeroes {
            block,
            blocks,
            options: ZeroOptions {
                force_unit_access: false,
                ..options
            },
        }),
        request => device.submit(request),
    };
    let found = found(move || bug);
    assert!(found > SEEDS / 4, "{found}");
}

#[test]
fn a_write_that_is_lost_is_found() {
    let found = found(|| {
        let writes = Cell::new(0);
        move |device: &Rc<dyn BlockDevice>, request| {
            if let Request::Write { .. } = request {
                writes.set(writes.get() + 1);
                if writes.get() % 20 == 0 {
                    return Completion::done();
                }
            }
            device.submit(request)
        }
    });
    assert!(found > SEEDS / 2, "{found}");
}

#[test]
fn a_write_that_is_acknowledged_early_is_found() {
    let bug = |device: &Rc<dyn BlockDevice>, request| match request {
        Request::Write { .. } => {
            pollux_reactor::spawn(device.submit(request)).detach();
            Completion::done()
        }
        request => device.submit(request),
    };
    let found = found(move || bug);
    assert!(found > SEEDS / 2, "{found}");
}

#[test]
fn a_cache_that_is_not_updated_is_found() {
    let found = found(|| {
        // Remembers what was read first, for ever.
        let cache: Rc<RefCell<BTreeMap<u64, Slice>>> = Rc::default();
        move |device: &Rc<dyn BlockDevice>, request| {
            let Request::Read { block, mut into } = request else {
                return device.submit(request);
            };
            if let Some(known) = cache
                .borrow()
                .get(&block)
                .filter(|known| known.len() == into.len())
            {
                into.copy_from_slice(known);
                return Completion::ready(Ok(Reply::Data(into)));
            }
            let (device, cache) = (device.clone(), cache.clone());
            Completion::from_future(async move {
                let data = device.read(block, into).await?;
                cache.borrow_mut().insert(block, Slice::copy_from(&data));
                Ok(Reply::Data(data))
            })
        }
    });
    assert!(found > SEEDS / 2, "{found}");
}

#[test]
fn a_deallocation_that_goes_too_far_is_found() {
    let bug = |device: &Rc<dyn BlockDevice>, request| match request {
        Request::Deallocate { block, blocks } if block + blocks < device.geometry().blocks => {
            device.submit(Request::Deallocate {
                block,
                blocks: blocks + 1,
            })
        }
        request => device.submit(request),
    };
    let found = found(move || bug);
    assert!(found > SEEDS / 2, "{found}");
}
