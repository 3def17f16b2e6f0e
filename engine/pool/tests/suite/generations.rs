//! The power is cut during imports, exports, creations and destructions too: whatever was found by an import
//! is found by one that was cut and begun again, through several lives of one pool.

use crate::common::{Bench, DRIVE_BYTES, Drives, drive_options, options};
use crate::history::{
    Recorded, check_state, contents, import_contents, model_at, record, record_more, verify_pool,
};
use crate::model::PoolModel;
use pollux_pool::{CreateOptions, Pool, PoolError, VolumeOptions};
use pollux_sim::{CrashState, CutPoints, PowerLoss, Random, Recorder, SimDrive};

const LOSSES: [PowerLoss; 4] = [
    PowerLoss::LoseAll,
    PowerLoss::KeepAll,
    PowerLoss::Reordered,
    PowerLoss::Torn,
];

fn drives_of(state: CrashState) -> Drives {
    let drives = state.images.into_iter().map(|image| image.into_drive("after", 1));
    Drives(drives.collect())
}

/// A crash at a random place of a run.
fn crash_somewhere(recorded: &Recorded, random: &mut Random) -> CrashState {
    let mut cursor = recorded.recorder.cursor();
    let place = random.within(recorded.created as u64..=cursor.len() as u64);
    cursor.advance_to(place as usize);
    let loss = *random.pick(&LOSSES).unwrap();
    cursor.state(loss, random.u64(), 0)
}

/// Drives as they are now, twice.
fn copies(bench: &Bench, drives: &Drives) -> (Drives, Drives) {
    let copy = || {
        Drives(
            drives
                .0
                .iter()
                .map(|drive| drive.image().into_drive("copy", 1))
                .collect(),
        )
    };
    let _ = bench;
    (copy(), copy())
}

/// A pool lives several lives, each begun by an import of what a crash left: each is cut at every write,
/// those of the import first.
fn check_lives(seed: u64, lives: u64) -> u64 {
    let drives = 1 + seed as usize % 3;
    let bench = Bench::new(seed, drives);
    let mut random = bench.world.random("lives", 0);
    let mut recorded = record(&bench, 40);
    let mut states = 0;
    for life in 0..lives {
        let state = crash_somewhere(&recorded, &mut random);
        let context = format!("seed {seed}, {drives} drives, life {life}");
        let crashed = drives_of(state);
        let (looked_at, lived_on) = copies(&bench, &crashed);
        // What an import finds is what all that are cut and begun again have to find.
        let base = import_contents(&bench, &looked_at);
        recorded = record_more(&bench, &lived_on, &recorded, base, 4, life % 2 == 0);
        let losses = [
            LOSSES[(seed + life) as usize % 4],
            LOSSES[(seed + life + 1) as usize % 4],
        ];
        for state in recorded.recorder.crash_states(seed, CutPoints::Writes, &losses) {
            states += 1;
            check_state(&bench, &recorded, state, &context);
        }
    }
    states
}

fn check_seeds(seeds: std::ops::Range<u64>) {
    let states: u64 = seeds.map(|seed| check_lives(seed, 4)).sum();
    assert!(states >= 1_000, "{states}");
}

#[test]
fn an_import_that_is_cut_finds_the_same_when_it_is_begun_again_1() {
    check_seeds(0..4);
}

#[test]
fn an_import_that_is_cut_finds_the_same_when_it_is_begun_again_2() {
    check_seeds(4..8);
}

/// Cuts an import, then the import of that, then the import of that.
#[test]
fn imports_may_be_cut_one_after_the_other() {
    for seed in 20..32 {
        let bench = Bench::new(seed, 1 + seed as usize % 2);
        let mut random = bench.world.random("cuts", 0);
        let recorded = record(&bench, 40);
        let mut crashed = drives_of(crash_somewhere(&recorded, &mut random));
        let (looked_at, _) = copies(&bench, &crashed);
        let base = import_contents(&bench, &looked_at);
        for depth in 0..6 {
            let again = record_more(&bench, &crashed, &recorded, base.clone(), 0, false);
            let state = crash_somewhere(&again, &mut random);
            let context = format!("seed {seed}, import {depth}");
            let (looked_at, left) = {
                let drives = drives_of(state);
                copies(&bench, &drives)
            };
            let found = import_contents(&bench, &looked_at);
            assert_eq!(values(&found), values(&base), "{context}");
            crashed = left;
        }
    }
}

fn values(model: &PoolModel) -> Vec<(String, Vec<u64>)> {
    let volumes = model.volumes.iter();
    volumes
        .map(|(name, volume)| (name.clone(), volume.values()))
        .collect()
}

/// What was exported says so, and has no journal to replay; what was cut on the way says that it was not.
#[test]
fn an_export_is_whole_or_did_not_happen() {
    for seed in 40..44 {
        let bench = Bench::new(seed, 1 + seed as usize % 2);
        let recorded = record(&bench, 30);
        let drives = drives_of(
            recorded
                .recorder
                .crash_states(seed, CutPoints::Writes, &LOSSES[1..2])
                .last()
                .unwrap(),
        );
        let (looked_at, drives) = copies(&bench, &drives);
        let base = import_contents(&bench, &looked_at);
        let recorded = record_more(&bench, &drives, &recorded, base, 5, true);
        let exported = recorded.exported.unwrap();
        for state in recorded
            .recorder
            .crash_states(seed, CutPoints::Everywhere, &LOSSES)
        {
            let position = state.position;
            let drives = drives_of(state);
            let model = model_at(&recorded, position);
            bench.world.block_on(bench.reactor, async move {
                let (pool, report) = Pool::import(drives.attach().await, options()).await.unwrap();
                if position >= exported {
                    assert!(report.was_exported);
                    assert_eq!(report.records, 0);
                }
                verify_pool(&pool, &model).await.unwrap();
                assert!(pool.check().await.unwrap().is_sound());
            });
        }
    }
}

/// Drives of which each can be recorded anew.
fn fresh(drives: usize) -> Drives {
    let drive = |number| SimDrive::new("drive", drive_options(DRIVE_BYTES), number);
    Drives((0..drives as u64).map(drive).collect())
}

fn recorder_of(drives: &Drives) -> std::sync::Arc<Recorder> {
    let recorder = Recorder::new();
    for drive in &drives.0 {
        drive.record(&recorder);
    }
    recorder
}

/// A power cut while a pool is made over another one: then there is one of the two, or none, and never half
/// of one.
#[test]
fn a_creation_over_another_pool_is_whole_or_leaves_none() {
    let bench = Bench::new(50, 0);
    for count in 1..=3 {
        let drives = fresh(count);
        let recorder = {
            let drives = drives.clone();
            bench.world.block_on(bench.reactor, async move {
                for _ in 0..2 {
                    let create = CreateOptions {
                        overwrite: true,
                        ..CreateOptions::default()
                    };
                    let pool = Pool::create("old", drives.attach().await, &create, options())
                        .await
                        .unwrap();
                    pool.create_volume("a", &VolumeOptions::new(100)).await.unwrap();
                    pool.export().await.unwrap();
                }
                let refused =
                    Pool::create("new", drives.attach().await, &CreateOptions::default(), options()).await;
                assert!(matches!(refused.err(), Some(PoolError::InUse { device: 0, .. })));
                let recorder = recorder_of(&drives);
                let create = CreateOptions {
                    overwrite: true,
                    ..CreateOptions::default()
                };
                Pool::create("new", drives.attach().await, &create, options())
                    .await
                    .unwrap();
                recorder
            })
        };
        let mut found = [0, 0, 0];
        for state in recorder.crash_states(1, CutPoints::Everywhere, &LOSSES) {
            let context = format!("{count} drives, cut at {}, {:?}", state.position, state.loss);
            let drives = drives_of(state);
            let kind = bench.world.block_on(bench.reactor, async move {
                let kind = match Pool::import(drives.attach().await, options()).await {
                    Ok((pool, _)) if pool.name() == "old" => {
                        assert_eq!(pool.volumes().len(), 1, "{context}");
                        assert_eq!(contents(&pool).await.unwrap().volumes.len(), 1, "{context}");
                        assert!(pool.check().await.unwrap().is_sound(), "{context}");
                        0
                    }
                    Ok((pool, _)) => {
                        assert!(
                            pool.volumes().is_empty() && pool.check().await.unwrap().is_sound(),
                            "{context}"
                        );
                        1
                    }
                    Err(PoolError::NoPool { .. } | PoolError::OtherPool { .. }) => 2,
                    Err(error) => panic!("{context}: {error}"),
                };
                let create = CreateOptions {
                    overwrite: true,
                    ..CreateOptions::default()
                };
                let again = Pool::create("again", drives.attach().await, &create, options())
                    .await
                    .unwrap();
                again.create_volume("b", &VolumeOptions::new(100)).await.unwrap();
                let (again, _) = Pool::import(drives.attach().await, options()).await.unwrap();
                assert_eq!(again.volumes().len(), 1, "{context}");
                kind
            });
            found[kind] += 1;
        }
        assert!(found.iter().all(|count| *count > 0), "{found:?}");
    }
}

/// A power cut while a pool is destroyed: it is there as a whole, or none is; and then it can be destroyed.
#[test]
fn a_destruction_that_is_cut_can_be_done_again() {
    let bench = Bench::new(51, 0);
    for count in 1..=3 {
        let drives = fresh(count);
        let recorder = {
            let drives = drives.clone();
            bench.world.block_on(bench.reactor, async move {
                let pool = Pool::create(
                    "tank",
                    drives.attach().await,
                    &CreateOptions::default(),
                    options(),
                )
                .await
                .unwrap();
                pool.create_volume("a", &VolumeOptions::new(100)).await.unwrap();
                pool.export().await.unwrap();
                let recorder = recorder_of(&drives);
                Pool::destroy(drives.attach().await).await.unwrap();
                recorder
            })
        };
        let mut found = [0, 0];
        for state in recorder.crash_states(1, CutPoints::Everywhere, &LOSSES) {
            let context = format!("{count} drives, cut at {}, {:?}", state.position, state.loss);
            let is_last = state.position == recorder.position();
            let drives = drives_of(state);
            let kind = bench.world.block_on(bench.reactor, async move {
                let imported = Pool::import(drives.attach().await, options()).await;
                let kind = match imported {
                    Ok((pool, _)) => {
                        assert!(!is_last, "{context}");
                        assert_eq!(pool.volumes().len(), 1, "{context}");
                        0
                    }
                    Err(PoolError::NoPool { .. }) => 1,
                    Err(error) => panic!("{context}: {error}"),
                };
                match Pool::destroy(drives.attach().await).await {
                    // Nothing was left.
                    Ok(()) | Err(PoolError::NoPool { .. }) => {}
                    Err(error) => panic!("{context}: {error}"),
                }
                let create = CreateOptions::default();
                Pool::create("again", drives.attach().await, &create, options())
                    .await
                    .unwrap();
                kind
            });
            found[kind] += 1;
        }
        assert!(found.iter().all(|count| *count > 0), "{found:?}");
    }
}
