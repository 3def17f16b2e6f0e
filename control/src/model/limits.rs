//! Whether limits of volumes can be kept: the bounds are those of engines, so that nothing is taken here that
//! an engine refuses later.

use pollux_api::control::v1::{Qos, QosRate};
use pollux_api::qos::{Counted, Limit, WEIGHT_MAX};

use super::validate::Checker;

/// Operations in a second, at most.
const OPERATIONS_MAX: u64 = 1_000_000_000;

/// Bytes in a second, at most: 1 PiB.
const BYTES_MAX: u64 = 1 << 50;

/// The longest burst, in seconds: a day.
const BURST_SECONDS_MAX: u32 = 86_400;

/// The most that a limit can be, in a second.
fn most(limit: Limit) -> u64 {
    match limit.counted {
        Counted::Operations => OPERATIONS_MAX,
        Counted::Bytes => BYTES_MAX,
    }
}

/// Checks all limits of a volume, and its weight.
pub(super) fn limits(qos: &Qos, checker: &mut Checker<'_>) {
    if let Some(weight) = qos.weight {
        checker.at("weight").require(
            (1..=WEIGHT_MAX).contains(&weight),
            format!("is {weight}; leave it out for 100, or give 1 to {WEIGHT_MAX}"),
        );
    }
    for limit in Limit::ALL {
        let most = most(limit);
        if let (Some(field), Some(given)) = (limit.short_field(), qos.short(limit)) {
            checker.at(field).require(
                (1..=most).contains(&given),
                format!("is {given}; leave it out for no limit, or give 1 to {most}"),
            );
        }
        let Some(given) = qos.long(limit) else { continue };
        let mut checker = checker.at(limit.field());
        if let (Some(field), Some(_)) = (limit.short_field(), qos.short(limit)) {
            checker.wrong(format!(
                "is given beside {field}, which is short for it: give one of them"
            ));
        }
        rate(&given, most, &mut checker);
    }
}

fn rate(rate: &QosRate, most: u64, checker: &mut Checker<'_>) {
    let QosRate {
        per_second,
        per_second_per_gib,
        burst,
    } = rate;
    checker.require(
        *per_second > 0 || *per_second_per_gib > 0,
        "is 0; leave it out for no limit, or give per_second, per_second_per_gib or both",
    );
    for (field, given) in [
        ("per_second", per_second),
        ("per_second_per_gib", per_second_per_gib),
    ] {
        checker
            .at(field)
            .require(*given <= most, format!("is {given}; give {most} at most"));
    }
    if let Some(burst) = burst {
        let mut checker = checker.at("burst");
        checker.at("per_second").require(
            burst.per_second > *per_second && burst.per_second <= most,
            format!(
                "is {}; give more than the rate itself, and {most} at most",
                burst.per_second
            ),
        );
        checker.at("seconds").require(
            (1..=BURST_SECONDS_MAX).contains(&burst.seconds),
            format!("is {}; give 1 to {BURST_SECONDS_MAX}", burst.seconds),
        );
    }
}
