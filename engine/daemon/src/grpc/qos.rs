//! Limits of namespaces as the interface has them.

use pollux_api::engine::v1 as api;
use pollux_volume::qos::{Burst, Limits, Qos, Rate};

fn rate_to_api(rate: &Rate) -> api::QosRate {
    api::QosRate {
        per_second: rate.per_second,
        per_second_per_gib: rate.per_second_per_gib,
        burst: rate.burst.map(|burst| api::QosBurst {
            per_second: burst.per_second,
            seconds: burst.seconds,
        }),
    }
}

fn rate_from_api(rate: &api::QosRate) -> Rate {
    Rate {
        per_second: rate.per_second,
        per_second_per_gib: rate.per_second_per_gib,
        burst: rate.burst.as_ref().map(|burst| Burst {
            per_second: burst.per_second,
            seconds: burst.seconds,
        }),
    }
}

fn limits_to_api(limits: &Limits) -> Option<api::QosLimits> {
    (*limits != Limits::default()).then(|| api::QosLimits {
        operations: limits.operations.as_ref().map(rate_to_api),
        bytes: limits.bytes.as_ref().map(rate_to_api),
    })
}

fn limits_from_api(limits: Option<&api::QosLimits>) -> Limits {
    limits.map_or_else(Limits::default, |limits| Limits {
        operations: limits.operations.as_ref().map(rate_from_api),
        bytes: limits.bytes.as_ref().map(rate_from_api),
    })
}

/// What is told of limits; `None` if there are none.
pub(crate) fn to_api(qos: &Qos) -> Option<api::Qos> {
    (!qos.is_unlimited()).then(|| api::Qos {
        total: limits_to_api(&qos.total),
        read: limits_to_api(&qos.read),
        write: limits_to_api(&qos.write),
    })
}

/// The limits that somebody wants, not checked.
pub(crate) fn from_api(qos: Option<&api::Qos>) -> Qos {
    qos.map_or_else(Qos::default, |qos| Qos {
        total: limits_from_api(qos.total.as_ref()),
        read: limits_from_api(qos.read.as_ref()),
        write: limits_from_api(qos.write.as_ref()),
    })
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
        };
        assert_eq!(from_api(to_api(&qos).as_ref()), qos);
        assert_eq!(to_api(&Qos::default()), None);
        assert_eq!(from_api(None), Qos::default());
    }
}
