//! Devices of a pool change while volumes are in use, and the power is cut at every write.

use crate::changes::{Plan, Setup, check_plan};

#[test]
fn a_power_cut_while_devices_grow_leaves_one_size_or_the_other() {
    let mut states = 0;
    for seed in 0..6 {
        // One extent more, fewer than label areas take, and much more.
        let more = [1, 2, 3, 16, 100, 128][seed as usize];
        let drives = 1 + seed as usize % 2;
        let setup = Setup {
            seed,
            members: drives,
            spares: 0,
            hidden_extents: more,
        };
        states += check_plan(&setup, 30, vec![(10, Plan::Grow)]);
    }
    assert!(states > 900, "{states}");
}

#[test]
fn a_power_cut_while_a_device_is_added_leaves_it_in_or_out() {
    let mut states = 0;
    for seed in 10..14 {
        let setup = Setup {
            seed,
            members: 1 + seed as usize % 3,
            spares: 2,
            hidden_extents: 0,
        };
        let plans = vec![(8, Plan::Add(0)), (18, Plan::Add(1))];
        states += check_plan(&setup, 28, plans);
    }
    assert!(states > 900, "{states}");
}

#[test]
fn a_power_cut_while_a_device_is_drained_loses_nothing() {
    let mut states = 0;
    for seed in 20..24 {
        let members = 2 + seed as usize % 2;
        let setup = Setup {
            seed,
            members,
            spares: 0,
            hidden_extents: 0,
        };
        let plans = vec![(20, Plan::Drain((seed % members as u64) as u8))];
        states += check_plan(&setup, 30, plans);
    }
    assert!(states > 900, "{states}");
}

#[test]
fn a_power_cut_while_a_device_is_replaced_leaves_the_old_one_or_the_new_one() {
    let mut states = 0;
    for seed in 30..34 {
        let members = 1 + seed as usize % 2;
        let setup = Setup {
            seed,
            members,
            spares: 1,
            hidden_extents: 0,
        };
        let plans = vec![(12, Plan::Replace((seed / 2 % members as u64) as u8, 0))];
        states += check_plan(&setup, 24, plans);
    }
    assert!(states > 900, "{states}");
}

#[test]
fn a_power_cut_while_pages_get_copies_on_another_device_loses_nothing() {
    let mut states = 0;
    for seed in 40..42 {
        let setup = Setup {
            seed,
            members: 1,
            spares: 1,
            hidden_extents: 0,
        };
        states += check_plan(&setup, 28, vec![(8, Plan::Add(0)), (18, Plan::Spread)]);
    }
    assert!(states > 400, "{states}");
}
