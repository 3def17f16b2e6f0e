//! Caches that are lost: whether that is on record, so that hosts hear of it.

use std::time::Duration;

use crate::common::{Cluster, DATA_START};
use pollux_device::BlockDeviceExt;
use pollux_volume::mirror::Mirror;

/// Whether hosts have to hear that caches were lost at the last opening.
fn has_lost(mirror: &Mirror) -> bool {
    let record = mirror.membership();
    record.caches_lost == Some(record.epoch)
}

/// Nobody is left who has it: that is on record, for whoever opens the volume next too.
#[test]
fn a_loss_of_all_caches_is_on_record_if_there_was_anything_in_them() {
    let cluster = Cluster::new(44, 2);
    let mirror = cluster.open();
    cluster.write(&mirror, 9, 7);
    drop(mirror);
    cluster.power_cycle();
    let mirror = cluster.open();
    assert!(has_lost(&mirror));
    let lost = mirror.membership().caches_lost;
    drop(mirror);
    // Nothing was written since, and replicas have lived.
    let mirror = cluster.open();
    assert_eq!(mirror.membership().caches_lost, lost);
    drop(mirror);
    // Nor is anything gone that was flushed: its intents are retired before long.
    let mirror = cluster.open();
    cluster.write(&mirror, 9, 8);
    cluster.with(&mirror, async |device| device.flush().await.unwrap());
    cluster.world.run_for(Duration::from_secs(60));
    drop(mirror);
    cluster.power_cycle();
    let mirror = cluster.open();
    assert_eq!(mirror.membership().caches_lost, lost);
    assert_eq!(cluster.read(&mirror, 9), 8);
}

#[test]
fn one_replica_that_has_lived_keeps_all_and_nobody_has_to_hear() {
    for lived in [0, 1] {
        let cluster = Cluster::new(45, 2);
        let mirror = cluster.open();
        cluster.write(&mirror, 9, 7);
        drop(mirror);
        cluster.power_cycle_one(1 - lived);
        let mirror = cluster.open();
        assert!(!has_lost(&mirror), "{lived}");
        assert_eq!(cluster.read(&mirror, 9), 7);
        drop(mirror);
        // It was made good on both: now the other one will do.
        cluster.power_cycle_one(lived);
        let mirror = cluster.open();
        assert!(!has_lost(&mirror), "{lived}");
        assert_eq!(cluster.read(&mirror, 9), 7);
        cluster.assert_identical(&[0, 1]);
    }
}

/// What nobody can read stays as it is, and blocks beside it may be older.
#[test]
fn a_loss_of_all_caches_is_on_record_if_nobody_can_read_what_is_in_doubt() {
    let cluster = Cluster::new(47, 2);
    let mirror = cluster.open();
    cluster.write(&mirror, 9, 7);
    drop(mirror);
    cluster.power_cycle();
    for drive in &cluster.drives {
        drive.make_unreadable(DATA_START + 8, 1);
    }
    let mirror = cluster.open();
    assert!(has_lost(&mirror));
}

/// The one that has lived cannot read what is in doubt: what is taken from the other one may be older.
#[test]
fn a_loss_of_all_caches_is_on_record_if_the_one_that_lived_cannot_read() {
    let cluster = Cluster::new(46, 2);
    let mirror = cluster.open();
    cluster.write(&mirror, 9, 7);
    drop(mirror);
    cluster.power_cycle_one(1);
    cluster.drives[0].make_unreadable(DATA_START + 9, 1);
    let mirror = cluster.open();
    assert!(has_lost(&mirror));
}
