//! Limits and weights of namespaces, and of volumes of the cluster, as the interfaces have them.

use pollux_api::control::v1 as control;
use pollux_api::engine::v1 as api;
use pollux_api::qos::{Counted, Direction, Limit};
use pollux_volume::qos::{Burst, Limits, Qos, Rate};

fn rate_to_api(rate: &Rate) -> control::QosRate {
    control::QosRate {
        per_second: rate.per_second,
        per_second_per_gib: rate.per_second_per_gib,
        burst: rate.burst.map(|burst| control::QosBurst {
            per_second: burst.per_second,
            seconds: burst.seconds,
        }),
    }
}

fn rate_from_api(rate: &control::QosRate) -> Rate {
    Rate {
        per_second: rate.per_second,
        per_second_per_gib: rate.per_second_per_gib,
        burst: rate.burst.as_ref().map(|burst| Burst {
            per_second: burst.per_second,
            seconds: burst.seconds,
        }),
    }
}

fn limits_to_api(limits: &Limits) -> Option<control::QosLimits> {
    (*limits != Limits::default()).then(|| control::QosLimits {
        operations: limits.operations.as_ref().map(rate_to_api),
        bytes: limits.bytes.as_ref().map(rate_to_api),
    })
}

fn limits_from_api(limits: Option<&control::QosLimits>) -> Limits {
    limits.map_or_else(Limits::default, |limits| Limits {
        operations: limits.operations.as_ref().map(rate_from_api),
        bytes: limits.bytes.as_ref().map(rate_from_api),
    })
}

/// What is told of limits and weight; `None` if there are none.
pub(crate) fn to_api(qos: &Qos) -> Option<api::Qos> {
    (*qos != Qos::default()).then(|| api::Qos {
        total: limits_to_api(&qos.total),
        read: limits_to_api(&qos.read),
        write: limits_to_api(&qos.write),
        weight: qos.weight,
    })
}

/// The limits that somebody wants, not checked.
pub(crate) fn from_api(qos: Option<&api::Qos>) -> Qos {
    qos.map_or_else(Qos::default, |qos| Qos {
        total: limits_from_api(qos.total.as_ref()),
        read: limits_from_api(qos.read.as_ref()),
        write: limits_from_api(qos.write.as_ref()),
        weight: qos.weight,
    })
}

/// All weights that the control plane takes can be kept.
const _: () = assert!(pollux_api::qos::WEIGHT_MAX == pollux_volume::qos::WEIGHT_MAX);

/// The limits of a volume, not checked.
pub(crate) fn of_volume(qos: &control::Qos) -> Qos {
    let rate = |direction, counted| {
        let rate = qos.rate(Limit::new(direction, counted));
        rate.as_ref().map(rate_from_api)
    };
    let limits = |direction| Limits {
        operations: rate(direction, Counted::Operations),
        bytes: rate(direction, Counted::Bytes),
    };
    Qos {
        total: limits(Direction::Total),
        read: limits(Direction::Read),
        write: limits(Direction::Write),
        weight: qos.weight,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_come_back_as_they_went() {
        let rate = |per_second, per_second_per_gib| Rate {
            per_second,
            per_second_per_gib,
            burst: Some(Burst {
                per_second: 9000,
                seconds: 7,
            }),
        };
        let qos = Qos {
            total: Limits {
                operations: Some(rate(1, 2)),
                bytes: Some(Rate::new(3)),
            },
            read: Limits {
                operations: None,
                bytes: Some(rate(4, 5)),
            },
            write: Limits::default(),
            weight: Some(300),
        };
        let weight = Qos {
            weight: Some(7),
            ..Qos::default()
        };
        assert_eq!(from_api(to_api(&weight).as_ref()), weight);
        assert_eq!(from_api(to_api(&qos).as_ref()), qos);
        assert_eq!(to_api(&Qos::default()), None);
        assert_eq!(from_api(None), Qos::default());
    }

    #[test]
    fn volumes_have_all_limits_that_namespaces_have() {
        let told = |per_second| {
            Some(control::QosRate {
                per_second,
                ..control::QosRate::default()
            })
        };
        let qos = control::Qos {
            iops_max: Some(1),
            bandwidth_bytes_max: None,
            total: Some(control::QosLimits {
                operations: None,
                bytes: Some(control::QosRate {
                    per_second_per_gib: 2,
                    burst: Some(control::QosBurst {
                        per_second: 30,
                        seconds: 4,
                    }),
                    ..control::QosRate::default()
                }),
            }),
            read: Some(control::QosLimits {
                operations: told(5),
                bytes: told(6),
            }),
            write: Some(control::QosLimits {
                operations: told(7),
                bytes: told(8),
            }),
            weight: Some(9),
        };
        let limits = |operations, bytes| Limits {
            operations: Some(Rate::new(operations)),
            bytes: Some(Rate::new(bytes)),
        };
        let scaled = Rate {
            per_second: 0,
            per_second_per_gib: 2,
            burst: Some(Burst {
                per_second: 30,
                seconds: 4,
            }),
        };
        let wanted = Qos {
            total: Limits {
                operations: Some(Rate::new(1)),
                bytes: Some(scaled),
            },
            read: limits(5, 6),
            write: limits(7, 8),
            weight: Some(9),
        };
        assert_eq!(of_volume(&qos), wanted);
        assert_eq!(of_volume(&control::Qos::default()), Qos::default());
    }
}
