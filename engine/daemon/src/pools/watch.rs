//! What happens to pools, told to whoever watches the engine, and in the log.
//!
//! Pools are looked at now and then: what is told is how they are, and not each step on the way.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use pollux_api::engine::v1 as api;
use pollux_api::engine::v1::PoolSpaceLevel as Level;
use pollux_api::engine::v1::event::What;
use uuid::Uuid;

use super::{OpenPool, Pools};
use crate::engine::Engine;

/// How often pools are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Percents of a pool that are free at least: below them it is low, or very low; and what has to be free more
/// than that for it to be so no longer.
const LOW_PERCENT: u64 = 20;
const VERY_LOW_PERCENT: u64 = 5;
const HYSTERESIS_PERCENT: u64 = 2;

/// A pool as it was when it was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    name: String,
    stopped: Option<String>,
    free_bytes: u64,
    total_bytes: u64,
    bad_reads: u64,
    /// When the scrub began, what it has found of bad blocks, and of lost pages.
    scrub: (u64, u64, u64),
}

/// The same, and what was told of it.
struct Known {
    seen: Seen,
    level: Level,
}

/// Looks at pools from now on, until they or the engine are gone. What is open now is known when this
/// returns.
pub(crate) async fn watch(pools: &Arc<Pools>, engine: &Arc<Engine>) {
    let (pools, engine) = (Arc::downgrade(pools), Arc::downgrade(engine));
    let mut known = BTreeMap::new();
    look(&pools, &engine, &mut known).await;
    tokio::spawn(async move {
        while look(&pools, &engine, &mut known).await {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    });
}

/// Looks once; whether there is still something to look at.
async fn look(pools: &Weak<Pools>, engine: &Weak<Engine>, known: &mut BTreeMap<Uuid, Known>) -> bool {
    let (Some(pools), Some(engine)) = (pools.upgrade(), engine.upgrade()) else {
        return false;
    };
    let mut now = BTreeMap::new();
    for pool in pools.all_and_leaving() {
        let uuid = pool.shared.uuid();
        // One whose owner does not answer is as it was.
        let seen = match see(&pool).await {
            Some(seen) => Some(seen),
            None => known.get(&uuid).map(|known| known.seen.clone()),
        };
        now.extend(seen.map(|seen| (uuid, seen)));
    }
    for what in news(known, now) {
        log(&what);
        engine.publish(what);
    }
    true
}

async fn see(pool: &OpenPool) -> Option<Seen> {
    let seen = pool.shared.call(|pool| async move {
        let (space, scrub) = (pool.space(), pool.last_scrub());
        Seen {
            name: pool.name().to_owned(),
            stopped: pool.stopped().map(|error| error.to_string()),
            free_bytes: space.free_bytes + space.freeing_bytes,
            total_bytes: space.total_bytes,
            bad_reads: pool.counters().checksum_mismatches,
            scrub: (scrub.started_seconds, scrub.bad_block_count, scrub.lost_pages),
        }
    });
    seen.await.ok()
}

/// How much space a pool has, if it had so much before.
fn level(free_bytes: u64, total_bytes: u64, before: Level) -> Level {
    let percent = |percent: u64| (u128::from(total_bytes) * u128::from(percent) / 100) as u64;
    let below = |limit: u64, level: Level| {
        let was_below = before >= level;
        free_bytes < percent(limit) + if was_below { percent(HYSTERESIS_PERCENT) } else { 0 }
    };
    match free_bytes {
        0 => Level::Full,
        _ if below(VERY_LOW_PERCENT, Level::VeryLow) => Level::VeryLow,
        _ if below(LOW_PERCENT, Level::Low) => Level::Low,
        _ => Level::Plenty,
    }
}

/// What is to be told when pools are as they are now; `known` is that afterwards.
fn news(known: &mut BTreeMap<Uuid, Known>, now: BTreeMap<Uuid, Seen>) -> Vec<What> {
    let mut news = Vec::new();
    known.retain(|uuid, known| {
        let stays = now.contains_key(uuid);
        if !stays {
            let pool = known.seen.name.clone();
            news.push(What::PoolClosed(api::PoolClosed { pool }));
        }
        stays
    });
    for (uuid, seen) in now {
        let pool = seen.name.clone();
        let before = known.remove(&uuid);
        if before.is_none() {
            let uuid = uuid.to_string();
            news.push(What::PoolOpened(api::PoolOpened {
                pool: pool.clone(),
                uuid,
            }));
        }
        let was_stopped = before
            .as_ref()
            .is_some_and(|before| before.seen.stopped.is_some());
        if let Some(reason) = seen.stopped.clone().filter(|_| !was_stopped) {
            news.push(What::PoolStopped(api::PoolStopped {
                pool: pool.clone(),
                reason,
            }));
        }
        let level_before = before.as_ref().map_or(Level::Plenty, |before| before.level);
        let level = level(seen.free_bytes, seen.total_bytes, level_before);
        if level != level_before {
            news.push(What::PoolSpaceChanged(api::PoolSpaceChanged {
                pool: pool.clone(),
                level: level.into(),
                free_bytes: seen.free_bytes,
                total_bytes: seen.total_bytes,
            }));
        }
        let (began, bad_blocks, lost_pages) = seen.scrub;
        let known_bad = before
            .as_ref()
            .map_or((0, 0, 0), |before| match before.seen.scrub {
                (same, bad_blocks, lost_pages) if same == began => {
                    (before.seen.bad_reads, bad_blocks, lost_pages)
                }
                _ => (before.seen.bad_reads, 0, 0),
            });
        if seen.bad_reads > known_bad.0 || bad_blocks > known_bad.1 || lost_pages > known_bad.2 {
            news.push(What::PoolBadBlocks(api::PoolBadBlocks {
                pool,
                bad_reads: seen.bad_reads,
                scrub_bad_blocks: bad_blocks,
                scrub_lost_pages: lost_pages,
            }));
        }
        known.insert(uuid, Known { seen, level });
    }
    news
}

fn log(what: &What) {
    match what {
        What::PoolSpaceChanged(change) => {
            let (pool, free_bytes) = (&change.pool, change.free_bytes);
            match change.level() {
                Level::Full => tracing::error!(pool, "the pool is full: what needs space fails"),
                Level::VeryLow | Level::Low => tracing::warn!(pool, free_bytes, "the pool fills up"),
                Level::Plenty | Level::Unspecified => {
                    tracing::info!(pool, free_bytes, "the pool has space again");
                }
            }
        }
        What::PoolBadBlocks(bad) => tracing::error!(
            pool = bad.pool,
            bad_reads = bad.bad_reads,
            scrub_bad_blocks = bad.scrub_bad_blocks,
            scrub_lost_pages = bad.scrub_lost_pages,
            "blocks of the pool are bad"
        ),
        // Told where it happens.
        What::PoolOpened(_) | What::PoolClosed(_) | What::PoolStopped(_) => {}
        What::Started(_)
        | What::NamespaceAdded(_)
        | What::NamespaceRemoved(_)
        | What::NamespaceResized(_)
        | What::Draining(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: Uuid = Uuid::from_u128(5);

    fn seen(free_bytes: u64) -> Seen {
        Seen {
            name: "tank".to_owned(),
            stopped: None,
            free_bytes,
            total_bytes: 1000,
            bad_reads: 0,
            scrub: (0, 0, 0),
        }
    }

    fn told(known: &mut BTreeMap<Uuid, Known>, seen: Seen) -> Vec<What> {
        news(known, BTreeMap::from([(UUID, seen)]))
    }

    fn levels(known: &mut BTreeMap<Uuid, Known>, free_bytes: u64) -> Vec<Level> {
        let news = told(known, seen(free_bytes)).into_iter();
        news.map(|what| match what {
            What::PoolSpaceChanged(change) => {
                assert_eq!((change.free_bytes, change.total_bytes), (free_bytes, 1000));
                change.level()
            }
            what => panic!("{what:?}"),
        })
        .collect()
    }

    #[test]
    fn a_pool_comes_fills_heals_and_goes() {
        let mut known = BTreeMap::new();
        let opened = What::PoolOpened(api::PoolOpened {
            pool: "tank".to_owned(),
            uuid: UUID.to_string(),
        });
        assert_eq!(told(&mut known, seen(900)), [opened]);
        for (free_bytes, expected) in [
            (200, None),
            (199, Some(Level::Low)),
            // Not again and again at the border.
            (210, None),
            (219, None),
            (220, Some(Level::Plenty)),
            (49, Some(Level::VeryLow)),
            (60, None),
            (0, Some(Level::Full)),
            (0, None),
            (10, Some(Level::VeryLow)),
            (70, Some(Level::Low)),
            (1000, Some(Level::Plenty)),
        ] {
            let expected: Vec<_> = expected.into_iter().collect();
            assert_eq!(levels(&mut known, free_bytes), expected, "{free_bytes} free");
        }
        let closed = What::PoolClosed(api::PoolClosed {
            pool: "tank".to_owned(),
        });
        assert_eq!(news(&mut known, BTreeMap::new()), [closed]);
        assert_eq!(news(&mut known, BTreeMap::new()), []);
    }

    #[test]
    fn what_is_wrong_when_a_pool_is_opened_is_told_and_later_only_what_is_new() {
        let mut known = BTreeMap::new();
        let wrong = Seen {
            stopped: Some("gone".to_owned()),
            bad_reads: 1,
            ..seen(0)
        };
        let first = told(&mut known, wrong.clone());
        assert!(
            matches!(
                first[..],
                [
                    What::PoolOpened(_),
                    What::PoolStopped(_),
                    What::PoolSpaceChanged(_),
                    What::PoolBadBlocks(_)
                ]
            ),
            "{first:?}"
        );
        assert_eq!(told(&mut known, wrong.clone()), []);
        let bad = |known: &mut BTreeMap<Uuid, Known>, scrub| {
            let news = told(
                known,
                Seen {
                    scrub,
                    ..wrong.clone()
                },
            );
            match news[..] {
                [] => None,
                [What::PoolBadBlocks(ref bad)] => Some((bad.scrub_bad_blocks, bad.scrub_lost_pages)),
                _ => panic!("{news:?}"),
            }
        };
        assert_eq!(bad(&mut known, (7, 2, 0)), Some((2, 0)));
        assert_eq!(bad(&mut known, (7, 2, 0)), None);
        assert_eq!(bad(&mut known, (7, 2, 1)), Some((2, 1)));
        // The next scrub begins with nothing, and finds the same.
        assert_eq!(bad(&mut known, (9, 0, 0)), None);
        assert_eq!(bad(&mut known, (9, 2, 0)), Some((2, 0)));
    }
}
