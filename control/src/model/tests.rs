//! Every field of every resource, wrong in every way.

use pollux_api::control::v1::{
    AffinityRule, Domain, GroupSpec, HostAccess, LabelRule, NodeSpec, PlacementPolicy, PoolSpec, Qos,
    QosBurst, QosLimits, QosRate, SnapshotSchedule, SnapshotSpec, SpreadRule, TemplateSpec, VolumePolicy,
};
use pollux_api::qos::{Counted, Direction, Limit};

use super::*;

fn metadata() -> Option<Metadata> {
    Some(Metadata {
        name: "one".to_owned(),
        ..Metadata::default()
    })
}

fn node() -> Node {
    Node {
        metadata: metadata(),
        spec: Some(NodeSpec {
            address: "storage-1:4430".to_owned(),
            ..NodeSpec::default()
        }),
        status: None,
    }
}

fn pool() -> Pool {
    Pool {
        metadata: metadata(),
        spec: Some(PoolSpec {
            node: "one".to_owned(),
            devices: vec!["uring:///data/one?size=1GiB".to_owned()],
            ..PoolSpec::default()
        }),
        status: None,
    }
}

fn volume() -> Volume {
    Volume {
        metadata: metadata(),
        spec: Some(VolumeSpec {
            size_bytes: 1 << 30,
            ..VolumeSpec::default()
        }),
        status: None,
    }
}

fn template(policy: VolumePolicy) -> Template {
    Template {
        metadata: metadata(),
        spec: Some(TemplateSpec { policy: Some(policy) }),
    }
}

fn placed(placement: PlacementPolicy) -> Template {
    template(VolumePolicy {
        placement: Some(placement),
        ..VolumePolicy::default()
    })
}

/// The only wrong field is the one that is named.
#[track_caller]
fn wrong<R: Validate>(mut record: R, change: impl FnOnce(&mut R), field: &str) {
    change(&mut record);
    let errors = record.field_errors();
    assert!(!errors.is_empty(), "{field}: nothing was found");
    assert!(
        errors.iter().all(|error| error.field == field),
        "{field}: {errors:?}"
    );
    assert!(errors.iter().all(|error| !error.description.is_empty()));
}

fn spec<T>(spec: &mut Option<T>) -> &mut T {
    spec.as_mut().expect("it has one")
}

#[test]
fn what_is_right_is_right() {
    assert_eq!(node().field_errors(), []);
    assert_eq!(pool().field_errors(), []);
    assert_eq!(volume().field_errors(), []);
    assert_eq!(template(VolumePolicy::default()).field_errors(), []);
    for address in ["10.0.0.1:1", "[::1]:4430", "unix:/run/pollux/engine.sock"] {
        let mut node = node();
        spec(&mut node.spec).address = address.to_owned();
        assert_eq!(node.field_errors(), [], "{address}");
    }
}

#[test]
fn metadata_is_checked() {
    wrong(node(), |node| node.metadata = None, "node.metadata");
    for name in [
        "",
        "Upper",
        "-a",
        "a-",
        ".",
        "a_b",
        "a/b",
        "ä",
        "a b",
        &"x".repeat(129),
    ] {
        wrong(
            volume(),
            |volume| volume.meta_mut().name = name.to_owned(),
            "volume.metadata.name",
        );
    }
    for (key, value) in [
        ("", "v"),
        ("k\n", "v"),
        ("k", "\0"),
        (&"k".repeat(129), "v"),
        ("k", &"v".repeat(257)),
    ] {
        let add = |pool: &mut Pool| {
            pool.meta_mut().labels.insert(key.to_owned(), value.to_owned());
        };
        wrong(pool(), add, "pool.metadata.labels");
    }
    let many = |pool: &mut Pool| {
        pool.meta_mut().labels = (0..65)
            .map(|number| (number.to_string(), String::new()))
            .collect();
    };
    wrong(pool(), many, "pool.metadata.labels");
}

#[test]
fn nodes_and_pools_are_checked() {
    wrong(node(), |node| node.spec = None, "node.spec");
    for address in [
        "",
        "host",
        "host:",
        "host:0",
        "host:65536",
        ":1",
        "unix:",
        "unix:x",
        "a b:1",
        "http://h:1/",
    ] {
        wrong(
            node(),
            |node| spec(&mut node.spec).address = address.to_owned(),
            "node.spec.address",
        );
    }
    wrong(
        node(),
        |node| spec(&mut node.spec).zone = "z".repeat(129),
        "node.spec.zone",
    );
    wrong(
        node(),
        |node| spec(&mut node.spec).rack = "r\t".to_owned(),
        "node.spec.rack",
    );

    wrong(pool(), |pool| pool.spec = None, "pool.spec");
    wrong(
        pool(),
        |pool| spec(&mut pool.spec).node = String::new(),
        "pool.spec.node",
    );
    wrong(pool(), |pool| spec(&mut pool.spec).media = 99, "pool.spec.media");
    wrong(
        pool(),
        |pool| spec(&mut pool.spec).devices.clear(),
        "pool.spec.devices",
    );
    let many = |pool: &mut Pool| {
        spec(&mut pool.spec).devices = (0..65).map(|number| format!("null:///{number}")).collect();
    };
    wrong(pool(), many, "pool.spec.devices");
    for device in ["", "x", &format!("null:///{}", "x".repeat(4096))] {
        let change = |pool: &mut Pool| spec(&mut pool.spec).devices = vec![device.to_owned()];
        wrong(pool(), change, "pool.spec.devices[0]");
    }
    let twice = |pool: &mut Pool| {
        let first = spec(&mut pool.spec).devices[0].clone();
        spec(&mut pool.spec).devices.push(first);
    };
    wrong(pool(), twice, "pool.spec.devices[1]");
}

#[test]
fn volumes_are_checked() {
    wrong(volume(), |volume| volume.spec = None, "volume.spec");
    for size in [0, 1, (1 << 20) + 512, (256 << 40) + (1 << 20), u64::MAX] {
        wrong(
            volume(),
            |volume| spec(&mut volume.spec).size_bytes = size,
            "volume.spec.size_bytes",
        );
    }
    wrong(
        volume(),
        |volume| spec(&mut volume.spec).template = "T".to_owned(),
        "volume.spec.template",
    );
    wrong(
        volume(),
        |volume| spec(&mut volume.spec).group = "/".to_owned(),
        "volume.spec.group",
    );
    let source = |volume: &mut Volume| spec(&mut volume.spec).source_snapshot = "S!".to_owned();
    wrong(volume(), source, "volume.spec.source_snapshot");
    let host = |nqn: &str| HostAccess {
        host_nqn: nqn.to_owned(),
        read_only: false,
        ..HostAccess::default()
    };
    for nqn in [
        "",
        "host",
        "nqn.x",
        "nqn.2026-11.x: y",
        "nqn.2026-13.x:y",
        "nqn.2014-08.org.nvmexpress:uuid:1",
        &format!("nqn.2026-11.x:{}", "y".repeat(223)),
    ] {
        let change = |volume: &mut Volume| spec(&mut volume.spec).hosts = vec![host(nqn)];
        wrong(volume(), change, "volume.spec.hosts[0].host_nqn");
    }
    let twice = |volume: &mut Volume| spec(&mut volume.spec).hosts = vec![host("nqn.2026-11.x:y"); 2];
    wrong(volume(), twice, "volume.spec.hosts[1]");
    let nobody = |volume: &mut Volume| {
        spec(&mut volume.spec).sharing = [("nqn.2026-11.x:y".to_owned(), 1)].into();
    };
    wrong(volume(), nobody, "volume.spec.sharing");
    let many = |volume: &mut Volume| {
        spec(&mut volume.spec).hosts = (0..65).map(|n| host(&format!("nqn.2026-11.x:{n}"))).collect();
    };
    wrong(volume(), many, "volume.spec.hosts");
}

#[test]
fn policies_are_checked() {
    let plain = || template(VolumePolicy::default());
    wrong(plain(), |template| template.spec = None, "template.spec");
    wrong(
        plain(),
        |template| spec(&mut template.spec).policy = None,
        "template.spec.policy",
    );
    for replicas in [0, 9, u32::MAX] {
        let policy = VolumePolicy {
            replicas: Some(replicas),
            ..VolumePolicy::default()
        };
        wrong(template(policy), |_| {}, "template.spec.policy.replicas");
    }
    for (replicas, least) in [(Some(2), 3), (Some(2), 0), (None, 9)] {
        let policy = VolumePolicy {
            replicas,
            min_in_sync: Some(least),
            ..VolumePolicy::default()
        };
        wrong(template(policy), |_| {}, "template.spec.policy.min_in_sync");
    }
}

#[test]
fn limits_are_checked() {
    const PATH: &str = "template.spec.policy.qos";
    let limited = |qos| {
        template(VolumePolicy {
            qos: Some(qos),
            ..VolumePolicy::default()
        })
    };
    let rate = |per_second, per_second_per_gib| QosRate {
        per_second,
        per_second_per_gib,
        burst: None,
    };
    let bursting = |per_second, seconds| QosRate {
        burst: Some(QosBurst { per_second, seconds }),
        ..rate(100, 5)
    };
    for limit in Limit::ALL {
        let most = match limit.counted {
            Counted::Operations => 1_000_000_000,
            Counted::Bytes => 1 << 50,
        };
        for (given, field) in [
            (rate(0, 0), ""),
            (rate(most + 1, 0), ".per_second"),
            (rate(0, u64::MAX), ".per_second_per_gib"),
            (bursting(100, 1), ".burst.per_second"),
            (bursting(most + 1, 1), ".burst.per_second"),
            (bursting(101, 0), ".burst.seconds"),
            (bursting(101, 86_401), ".burst.seconds"),
        ] {
            // In the long form, also where a short one could say it.
            let mut qos = Qos::default();
            let limits = match limit.direction {
                Direction::Total => &mut qos.total,
                Direction::Read => &mut qos.read,
                Direction::Write => &mut qos.write,
            };
            let limits = limits.get_or_insert_default();
            match limit.counted {
                Counted::Operations => limits.operations = Some(given),
                Counted::Bytes => limits.bytes = Some(given),
            }
            wrong(limited(qos), |_| {}, &format!("{PATH}.{}{field}", limit.field()));
        }
        for given in [rate(1, 0), rate(most, most), rate(0, 1), bursting(most, 86_400)] {
            let mut qos = Qos::default();
            qos.set_rate(limit, Some(given));
            assert_eq!(limited(qos).field_errors(), [], "{limit:?}");
        }
        let Some(short) = limit.short_field() else {
            continue;
        };
        for given in [0, most + 1] {
            let qos = match limit.counted {
                Counted::Operations => Qos {
                    iops_max: Some(given),
                    ..Qos::default()
                },
                Counted::Bytes => Qos {
                    bandwidth_bytes_max: Some(given),
                    ..Qos::default()
                },
            };
            wrong(limited(qos), |_| {}, &format!("{PATH}.{short}"));
        }
    }
    let both = Qos {
        iops_max: Some(1),
        total: Some(QosLimits {
            operations: Some(rate(1, 0)),
            bytes: None,
        }),
        ..Qos::default()
    };
    wrong(limited(both), |_| {}, &format!("{PATH}.total.operations"));
    // One of the other kind is no contradiction.
    for (weight, is_right) in [(0, false), (1, true), (10_000, true), (10_001, false)] {
        let weighted = Qos {
            weight: Some(weight),
            ..Qos::default()
        };
        match is_right {
            true => assert_eq!(limited(weighted).field_errors(), []),
            false => wrong(limited(weighted), |_| {}, &format!("{PATH}.weight")),
        }
    }
    let apart = Qos {
        iops_max: Some(1),
        total: Some(QosLimits {
            operations: None,
            bytes: Some(rate(1, 0)),
        }),
        ..Qos::default()
    };
    assert_eq!(limited(apart).field_errors(), []);
}

#[test]
fn placement_is_checked() {
    const PATH: &str = "template.spec.policy.placement";
    let media = PlacementPolicy {
        media: -1,
        ..PlacementPolicy::default()
    };
    wrong(placed(media), |_| {}, &format!("{PATH}.media"));

    let rule = |key: &str, values: &[&str], weight| LabelRule {
        key: key.to_owned(),
        values: values.iter().map(ToString::to_string).collect(),
        weight,
        excluded: false,
    };
    let require = |rule| PlacementPolicy {
        require: vec![rule],
        ..PlacementPolicy::default()
    };
    let prefer = |rule| PlacementPolicy {
        prefer: vec![rule],
        ..PlacementPolicy::default()
    };
    wrong(
        placed(require(rule("", &[], None))),
        |_| {},
        &format!("{PATH}.require[0].key"),
    );
    let long = "v".repeat(257);
    wrong(
        placed(require(rule("k", &["a", &long], None))),
        |_| {},
        &format!("{PATH}.require[0].values[1]"),
    );
    wrong(
        placed(require(rule("k", &[], Some(5)))),
        |_| {},
        &format!("{PATH}.require[0].weight"),
    );
    wrong(
        placed(prefer(rule("k", &[], Some(0)))),
        |_| {},
        &format!("{PATH}.prefer[0].weight"),
    );
    wrong(
        placed(prefer(rule("k", &[], Some(101)))),
        |_| {},
        &format!("{PATH}.prefer[0].weight"),
    );
    let many = PlacementPolicy {
        require: vec![rule("k", &[], None); 33],
        ..PlacementPolicy::default()
    };
    wrong(placed(many), |_| {}, &format!("{PATH}.require"));

    let spread = |rules: &[(i32, u32)]| {
        placed(PlacementPolicy {
            spread: rules
                .iter()
                .map(|(domain, replicas_max)| SpreadRule {
                    domain: *domain,
                    replicas_max: *replicas_max,
                })
                .collect(),
            ..PlacementPolicy::default()
        })
    };
    let rack = i32::from(Domain::Rack);
    wrong(spread(&[(0, 1)]), |_| {}, &format!("{PATH}.spread[0].domain"));
    wrong(spread(&[(77, 1)]), |_| {}, &format!("{PATH}.spread[0].domain"));
    wrong(
        spread(&[(Domain::Drive.into(), 1)]),
        |_| {},
        &format!("{PATH}.spread[0].domain"),
    );
    wrong(
        spread(&[(rack, 0)]),
        |_| {},
        &format!("{PATH}.spread[0].replicas_max"),
    );
    wrong(
        spread(&[(rack, 1), (rack, 2)]),
        |_| {},
        &format!("{PATH}.spread[1]"),
    );

    let affinity = |group: &str, domain| {
        placed(PlacementPolicy {
            affinity: vec![AffinityRule {
                group: group.to_owned(),
                domain,
                apart: true,
                required: true,
            }],
            ..PlacementPolicy::default()
        })
    };
    wrong(affinity("", rack), |_| {}, &format!("{PATH}.affinity[0].group"));
    wrong(affinity("g", 0), |_| {}, &format!("{PATH}.affinity[0].domain"));
    let member = PlacementPolicy {
        affinity_groups: vec!["G".to_owned()],
        ..PlacementPolicy::default()
    };
    wrong(placed(member), |_| {}, &format!("{PATH}.affinity_groups[0]"));
}

#[test]
fn snapshots_and_groups_are_checked() {
    let snapshot = Snapshot {
        metadata: metadata(),
        spec: Some(SnapshotSpec {
            volume: "v".to_owned(),
            ..SnapshotSpec::default()
        }),
        status: None,
    };
    assert_eq!(snapshot.field_errors(), []);
    wrong(snapshot.clone(), |snapshot| snapshot.spec = None, "snapshot.spec");
    let volume = |snapshot: &mut Snapshot| spec(&mut snapshot.spec).volume = String::new();
    wrong(snapshot.clone(), volume, "snapshot.spec.volume");
    let part = |snapshot: &mut Snapshot| spec(&mut snapshot.spec).group_snapshot = "g".to_owned();
    wrong(snapshot, part, "snapshot.spec.group_snapshot");
    let group = |interval_us, kept_max| Group {
        metadata: metadata(),
        spec: Some(GroupSpec {
            schedule: Some(SnapshotSchedule {
                interval_us,
                kept_max,
            }),
        }),
        status: None,
    };
    assert_eq!(group(60_000_000, 1).field_errors(), []);
    for interval in [0, 59_999_999, u64::MAX] {
        wrong(group(interval, 1), |_| {}, "group.spec.schedule.interval_us");
    }
    for kept in [0, 1001] {
        wrong(group(60_000_000, kept), |_| {}, "group.spec.schedule.kept_max");
    }
}

#[test]
fn keys_name_kind_and_name() {
    for kind in Kind::ALL {
        assert_eq!(Kind::parse(&kind.key("a.b-c")), Some((kind, "a.b-c")));
    }
    for key in ["", "/", "volume/x", "/leader", "/unknown/x"] {
        assert_eq!(Kind::parse(key), None, "{key}");
    }
}
