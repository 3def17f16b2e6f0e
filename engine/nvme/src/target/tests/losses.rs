//! Hosts hear that caches were lost: by flushes that fail, each once, wherever the namespace goes.

use pollux_device::Attaching;
use pollux_device::events::Subscription;

use super::reservations::Member;
use super::sharing::Engines;
use super::*;

/// Longer than flushes fail after the first one that did.
const LATER: Duration = Duration::from_millis(1_001);

/// A drive that lost what it had in a cache.
struct Lost(Arc<SimDrive>);

impl Device for Lost {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }

    fn attach(self: Arc<Self>) -> Attaching {
        self.0.clone().attach()
    }

    fn subscribe(&self) -> Subscription {
        self.0.subscribe()
    }

    fn has_lost_caches(&self) -> bool {
        true
    }
}

/// A namespace on a device that lost what it had in a cache.
fn with_loss() -> Fixture {
    let fixture = Fixture::new(1);
    let drive = SimDrive::new("disk0", Fixture::instant(BLOCK as u32), 1);
    let config = NamespaceConfig::default();
    fixture
        .subsystem
        .add_namespace(Arc::new(Lost(drive)), &config)
        .unwrap();
    fixture
}

/// A host hears by a flush that fails, and goes on.
fn hears(fixture: &Fixture, host: &Member) {
    assert_eq!(host.flush(fixture), Status::WRITE_FAULT);
    fixture.run_for(LATER);
    assert_eq!(host.flush(fixture), Status::SUCCESS);
}

#[test]
fn the_first_flush_of_each_host_fails() {
    let fixture = with_loss();
    let [one, other] = [1, 2].map(|number| Member::connect(&fixture, number));
    // All else goes on.
    assert_eq!(one.write(&fixture), Status::SUCCESS);
    assert_eq!(one.read(&fixture), Status::SUCCESS);
    assert_eq!(one.flush(&fixture), Status::WRITE_FAULT);
    // Another one may have been on its way.
    hears(&fixture, &one);
    assert_eq!(one.flush(&fixture), Status::SUCCESS);
    hears(&fixture, &other);
    assert_eq!(one.flush(&fixture), Status::SUCCESS);
}

#[test]
fn a_flush_of_all_namespaces_fails_too() {
    let fixture = with_loss();
    let host = Member::connect(&fixture, 1);
    assert_eq!(host.flush_all(&fixture), Status::WRITE_FAULT);
    fixture.run_for(LATER);
    assert_eq!(host.flush_all(&fixture), Status::SUCCESS);
    assert_eq!(host.flush(&fixture), Status::SUCCESS);
}

/// The answer may have been lost with the connection: then the host sends the flush again.
#[test]
fn a_host_that_loses_its_connection_hears_again() {
    let fixture = with_loss();
    for _ in 0..3 {
        let host = Member::connect(&fixture, 1);
        assert_eq!(host.flush(&fixture), Status::WRITE_FAULT);
        fixture.run_for(LATER);
    }
    let host = Member::connect(&fixture, 1);
    hears(&fixture, &host);
    // It has heard.
    let again = Member::connect(&fixture, 1);
    assert_eq!(again.flush(&fixture), Status::SUCCESS);
}

/// One that takes a failure for the end of its connection never flushes twice by the same controller.
#[test]
fn a_host_that_leaves_after_each_failure_hears_a_few_times() {
    let fixture = with_loss();
    let heard = (0..10).map(|_| Member::connect(&fixture, 1).flush(&fixture));
    let failures = heard.take_while(|status| *status == Status::WRITE_FAULT).count();
    assert_eq!(failures, 4);
    assert_eq!(Member::connect(&fixture, 1).flush(&fixture), Status::SUCCESS);
    assert_eq!(Member::connect(&fixture, 2).flush(&fixture), Status::WRITE_FAULT);
}

/// Two paths of a host to the same engine, used in turn.
#[test]
fn a_host_with_two_controllers_hears_by_both_and_goes_on() {
    let fixture = with_loss();
    let [one, other] = [1, 1].map(|number| Member::connect(&fixture, number));
    assert_eq!(one.flush(&fixture), Status::WRITE_FAULT);
    fixture.run_for(LATER);
    assert_eq!(other.flush(&fixture), Status::WRITE_FAULT);
    assert_eq!(one.flush(&fixture), Status::SUCCESS);
    assert_eq!(other.flush(&fixture), Status::SUCCESS);
}

#[test]
fn the_next_engine_knows_who_has_heard() {
    let engines = Engines::new();
    let [first, second] = &engines.engines;
    let [one, one_there] = engines.members(1);
    let [other, other_there] = engines.members(2);
    assert_eq!(one.flush(first), Status::SUCCESS);
    engines.common.lock().unwrap().caches_lost = Some(4);
    engines.give(1).unwrap();
    hears(second, &one_there);
    // Nothing more was lost, and the other host was not heard of before the namespace moved.
    engines.give(0).unwrap();
    assert_eq!(one.flush(first), Status::SUCCESS);
    assert_eq!(other.flush(first), Status::WRITE_FAULT);
    engines.give(1).unwrap();
    hears(second, &other_there);
    // What is lost now is heard of anew.
    engines.common.lock().unwrap().caches_lost = Some(7);
    engines.give(0).unwrap();
    for host in [&one, &other] {
        assert_eq!(host.flush(first), Status::WRITE_FAULT);
    }
}

#[test]
fn a_host_has_not_heard_unless_that_can_be_kept() {
    let engines = Engines::new();
    let second = &engines.engines[1];
    let [_, host] = engines.members(1);
    engines.common.lock().unwrap().caches_lost = Some(4);
    engines.give(1).unwrap();
    assert_eq!(host.flush(second), Status::WRITE_FAULT);
    second.run_for(LATER);
    engines.common.lock().unwrap().fails = true;
    assert_ne!(host.flush(second), Status::SUCCESS);
    engines.common.lock().unwrap().fails = false;
    assert_eq!(host.flush(second), Status::SUCCESS);
    let record = engines.common.lock().unwrap().record.clone();
    assert!(record.is_some());
}

/// Whoever takes the reservations of others keeps what hosts have heard.
#[test]
fn reservations_and_losses_are_kept_side_by_side() {
    let engines = Engines::new();
    let [first, second] = &engines.engines;
    let [one, one_there] = engines.members(1);
    let [_, other_there] = engines.members(2);
    assert_eq!(one.register(first), Status::SUCCESS);
    engines.common.lock().unwrap().caches_lost = Some(4);
    engines.give(1).unwrap();
    hears(second, &one_there);
    assert_eq!(other_there.register(second), Status::SUCCESS);
    engines.give(0).unwrap();
    assert_eq!(one.flush(first), Status::SUCCESS);
    assert_eq!(one.report(first).registrants.len(), 2);
}
