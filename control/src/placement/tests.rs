//! Placement against all choices there are.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use pollux_api::control::v1::{
    AffinityRule, Domain, LabelRule, MediaClass, Metadata, Node, NodeSpec, NodeState, NodeStatus,
    PlacementPolicy, Pool, PoolSpec, PoolState, PoolStatus, SpreadRule,
};
use proptest::prelude::*;

use super::*;

const GIB: u64 = 1 << 30;

/// A pool with its node, as a person would tell it.
#[derive(Debug, Clone)]
struct Machine {
    zone: u8,
    rack: u8,
    node: u8,
    media: MediaClass,
    label: Option<u8>,
    cordoned: bool,
    online: bool,
    capacity_gib: u64,
    used_percent: u64,
    /// Replicas of other volumes: whether they are of the group.
    others: Vec<bool>,
}

impl Machine {
    fn names(&self, index: usize) -> [String; DOMAIN_KINDS] {
        let zone = format!("z{}", self.zone);
        let rack = format!("{zone}r{}", self.rack);
        let node = format!("{rack}n{}", self.node);
        [format!("{node}p{index}"), node, rack, zone]
    }
}

fn metadata(name: &str, labels: BTreeMap<String, String>) -> Option<Metadata> {
    Some(Metadata {
        name: name.to_owned(),
        labels,
        ..Metadata::default()
    })
}

fn fleet(machines: &[Machine]) -> Fleet {
    let mut nodes = BTreeMap::new();
    let mut pools = Vec::new();
    for (index, machine) in machines.iter().enumerate() {
        let [pool, node, rack, zone] = machine.names(index);
        nodes.entry(node.clone()).or_insert_with(|| Node {
            metadata: metadata(&node, BTreeMap::new()),
            spec: Some(NodeSpec {
                zone,
                rack,
                ..NodeSpec::default()
            }),
            status: Some(NodeStatus {
                state: NodeState::Online.into(),
                ..NodeStatus::default()
            }),
        });
        let labels = machine.label.map(|value| ("tier".to_owned(), value.to_string()));
        let state = match machine.online {
            true => PoolState::Online,
            false => PoolState::Failed,
        };
        let capacity_bytes = machine.capacity_gib * GIB;
        pools.push(Pool {
            metadata: metadata(&pool, labels.into_iter().collect()),
            spec: Some(PoolSpec {
                node,
                media: machine.media.into(),
                cordoned: machine.cordoned,
                ..PoolSpec::default()
            }),
            status: Some(PoolStatus {
                state: state.into(),
                capacity_bytes,
                used_bytes: capacity_bytes * machine.used_percent / 100,
                ..PoolStatus::default()
            }),
        });
    }
    let mut fleet = Fleet::new(nodes.values(), &pools, PlacementLimits::default());
    for (index, machine) in machines.iter().enumerate() {
        for in_group in &machine.others {
            let groups = if *in_group {
                vec!["g".to_owned()]
            } else {
                Vec::new()
            };
            let site = fleet.find(&machine.names(index)[0]).expect("it was added");
            fleet.occupy(site, GIB, &groups);
        }
    }
    fleet
}

/// Whether one pool can take a replica, told in another way than the planner does.
fn naive_filter(machines: &[Machine], index: usize, policy: &PlacementPolicy, own: &[usize]) -> bool {
    let machine = &machines[index];
    let names = machine.names(index);
    let size_gib = 1;
    let labels_fit = policy.require.iter().all(|rule| {
        let value = machine.label.map(|value| value.to_string());
        let has = value.is_some_and(|value| rule.values.is_empty() || rule.values.contains(&value));
        has != rule.excluded
    });
    let affinity_fits = policy.affinity.iter().filter(|rule| rule.required).all(|rule| {
        let kind = domain_index(rule.domain()).expect("a domain");
        let members: Vec<usize> = (0..machines.len())
            .filter(|other| machines[*other].others.contains(&true))
            .collect();
        let here = members
            .iter()
            .any(|other| machines[*other].names(*other)[kind] == names[kind]);
        match rule.apart {
            true => !here,
            false => here || members.is_empty(),
        }
    });
    machine.online
        && !machine.cordoned
        && !own.contains(&index)
        && (policy.media() == MediaClass::Unspecified || policy.media() == machine.media)
        && machine.used_percent < 85
        && machine.others.len() as u64 + size_gib <= machine.capacity_gib * 2
        && labels_fit
        && affinity_fits
}

fn naive_caps_kept(machines: &[Machine], set: &[usize], policy: &PlacementPolicy) -> bool {
    (0..DOMAIN_KINDS).all(|kind| {
        let rule = policy
            .spread
            .iter()
            .rev()
            .find(|rule| rule.domain() == DOMAINS[kind]);
        let cap = match (kind, rule) {
            (0, _) | (1, None) => 1,
            (_, Some(rule)) => rule.replicas_max as usize,
            (_, None) => usize::MAX,
        };
        let mut counts: HashMap<String, usize> = HashMap::new();
        for index in set {
            *counts
                .entry(machines[*index].names(*index)[kind].clone())
                .or_default() += 1;
        }
        counts.values().all(|count| *count <= cap)
    })
}

/// What the penalties of a whole set add up to.
fn naive_penalty(machines: &[Machine], set: &[usize]) -> i64 {
    (0..DOMAIN_KINDS)
        .map(|kind| {
            let mut counts: HashMap<String, i64> = HashMap::new();
            for index in set {
                *counts
                    .entry(machines[*index].names(*index)[kind].clone())
                    .or_default() += 1;
            }
            let pairs: i64 = counts.values().map(|count| count * (count - 1) / 2).sum();
            SPREAD_PENALTY[kind] * pairs
        })
        .sum()
}

fn machine() -> impl Strategy<Value = Machine> {
    (
        (0..3_u8, 0..2_u8, 0..2_u8),
        prop_oneof![4 => Just(MediaClass::Nvme), 1 => Just(MediaClass::Hdd)],
        prop_oneof![2 => Just(None), 3 => (0..3_u8).prop_map(Some)],
        (prop::bool::weighted(0.1), prop::bool::weighted(0.9)),
        (1..4_u64, prop_oneof![4 => 0..84_u64, 1 => 80..95_u64]),
        prop::collection::vec(any::<bool>(), 0..5),
    )
        .prop_map(
            |((zone, rack, node), media, label, (cordoned, online), (capacity_gib, used_percent), others)| {
                Machine {
                    zone,
                    rack,
                    node,
                    media,
                    label,
                    cordoned,
                    online,
                    capacity_gib,
                    used_percent,
                    others,
                }
            },
        )
}

fn label_rule() -> impl Strategy<Value = LabelRule> {
    (
        prop::collection::vec((0..3_u8).prop_map(|value| value.to_string()), 0..3),
        any::<bool>(),
        prop::option::of(1..100_u32),
    )
        .prop_map(|(values, excluded, weight)| LabelRule {
            key: "tier".to_owned(),
            values,
            excluded,
            weight,
        })
}

fn affinity_rule() -> impl Strategy<Value = AffinityRule> {
    (0..DOMAIN_KINDS, any::<bool>(), any::<bool>()).prop_map(|(kind, apart, required)| AffinityRule {
        group: "g".to_owned(),
        domain: DOMAINS[kind].into(),
        apart,
        required,
    })
}

fn policy() -> impl Strategy<Value = PlacementPolicy> {
    (
        prop_oneof![3 => Just(MediaClass::Unspecified), 1 => Just(MediaClass::Nvme)],
        prop::collection::vec(label_rule(), 0..2),
        prop::collection::vec(label_rule(), 0..3),
        prop::collection::btree_map(1..DOMAIN_KINDS, 1..3_u32, 0..3),
        prop::collection::vec(affinity_rule(), 0..2),
    )
        .prop_map(|(media, require, prefer, spread, affinity)| PlacementPolicy {
            media: media.into(),
            require,
            prefer,
            spread: spread
                .into_iter()
                .map(|(kind, replicas_max)| SpreadRule {
                    domain: DOMAINS[kind].into(),
                    replicas_max,
                })
                .collect(),
            affinity,
            affinity_groups: Vec::new(),
        })
}

/// All subsets of a size.
fn subsets(items: &[usize], size: usize) -> Vec<Vec<usize>> {
    match (size, items) {
        (0, _) => vec![Vec::new()],
        (_, []) => Vec::new(),
        (_, [first, rest @ ..]) => {
            let mut all = subsets(rest, size);
            for mut with in subsets(rest, size - 1) {
                with.push(*first);
                all.push(with);
            }
            all
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    /// As many replicas as any choice can have, no rule broken, and the highest score.
    #[test]
    fn no_choice_is_better(
        machines in prop::collection::vec(machine(), 1..9),
        policy in policy(),
        count in 1..5_usize,
        kept_seed in 0..20_usize,
    ) {
        let fleet = fleet(&machines);
        // Some replicas may be there already: one that stays, in whatever place.
        let kept: Vec<usize> = (0..machines.len()).filter(|index| *index == kept_seed).collect();
        let id = |index: usize| fleet.find(&machines[index].names(index)[0]).expect("it was added");
        let kept_ids: Vec<SiteId> = kept.iter().map(|index| id(*index)).collect();
        let request = PlacementRequest {
            volume_uid: "v",
            size_bytes: GIB,
            policy: &policy,
            kept: &kept_ids,
            own: &kept_ids,
            count,
            only: None,
            is_rebuild: false,
        };
        let decision = decide(&fleet, &request);
        prop_assert_eq!(decision.placed.len() + decision.missing, count);

        let chosen: Vec<usize> = decision
            .placed
            .iter()
            .map(|placed| (0..machines.len()).find(|index| id(*index) == placed.site).expect("a pool"))
            .collect();
        prop_assert_eq!(chosen.iter().collect::<BTreeSet<_>>().len(), chosen.len());
        let possible: Vec<usize> =
            (0..machines.len()).filter(|index| naive_filter(&machines, *index, &policy, &kept)).collect();
        prop_assert!(chosen.iter().all(|index| possible.contains(index)), "{:?} of {:?}", chosen, possible);

        let with_kept = |set: &[usize]| [kept.as_slice(), set].concat();
        let admitted = |set: &Vec<usize>| naive_caps_kept(&machines, &with_kept(set), &policy);
        let most = (0..=count)
            .rev()
            .find(|size| *size == 0 || subsets(&possible, *size).iter().any(&admitted))
            .unwrap_or(0);
        prop_assert_eq!(chosen.len(), most, "of {:?}", possible);

        let own = Occupied::by(&fleet, &kept_ids);
        let single = |index: usize| {
            rules::judge(&fleet, fleet.site(id(index)).expect("a pool"), &request, &own).expect("possible")
        };
        let value = |set: &[usize]| {
            let sum: i64 = set.iter().map(|index| single(*index)).sum();
            sum - naive_penalty(&machines, &with_kept(set))
        };
        if most > 0 {
            let sets = subsets(&possible, most);
            let best = sets.iter().filter(|set| admitted(set)).map(|set| value(set)).max();
            prop_assert_eq!(Some(value(&chosen)), best);
        }

        let explained = explain(&fleet, &request);
        prop_assert_eq!(explained.fits, decision.fits());
        prop_assert_eq!(explained.placed.len() + explained.rejected.len(), machines.len());
        prop_assert!(explained.placed.iter().all(|placed| !placed.reasons.is_empty()));
        prop_assert!(explained.rejected.iter().all(|rejected| !rejected.reason.is_empty()));
    }
}

fn plain(zone: u8, rack: u8, node: u8) -> Machine {
    Machine {
        zone,
        rack,
        node,
        media: MediaClass::Nvme,
        label: None,
        cordoned: false,
        online: true,
        capacity_gib: 100,
        used_percent: 0,
        others: Vec::new(),
    }
}

fn request<'a>(policy: &'a PlacementPolicy, count: usize) -> PlacementRequest<'a> {
    PlacementRequest {
        volume_uid: "v",
        size_bytes: GIB,
        policy,
        kept: &[],
        own: &[],
        count,
        only: None,
        is_rebuild: false,
    }
}

#[test]
fn zones_are_spread_over_without_being_told() {
    let machines: Vec<Machine> = (0..3)
        .flat_map(|zone| (0..4).map(move |node| plain(zone, 0, node)))
        .collect();
    let fleet = fleet(&machines);
    let policy = PlacementPolicy::default();
    let decision = decide(&fleet, &request(&policy, 3));
    let zones: BTreeSet<&str> = decision
        .placed
        .iter()
        .filter_map(|placed| fleet.site(placed.site))
        .map(|site| site.zone.as_str())
        .collect();
    assert_eq!(zones.len(), 3);
}

#[test]
fn why_nowhere_is_told() {
    let mut machines = vec![plain(0, 0, 0), plain(0, 0, 1), plain(0, 1, 0)];
    machines[1].cordoned = true;
    machines[2].media = MediaClass::Hdd;
    let fleet = fleet(&machines);
    let policy = PlacementPolicy {
        media: MediaClass::Nvme.into(),
        ..PlacementPolicy::default()
    };
    let plan = explain(&fleet, &request(&policy, 2));
    assert!(!plan.fits);
    assert_eq!(
        plan.summary,
        "only 1 of 2 replicas has a place: 1 × other media, 1 × pool cordoned"
    );
    let empty = Fleet::default();
    let plan = explain(&empty, &request(&policy, 2));
    assert_eq!(plan.summary, "no replica has a place: there are no other pools");
}

#[test]
fn equal_pools_share_the_load() {
    let machines: Vec<Machine> = (0..10).map(|node| plain(0, 0, node)).collect();
    let fleet = fleet(&machines);
    let policy = PlacementPolicy::default();
    let mut counts: HashMap<SiteId, u32> = HashMap::new();
    for volume in 0..1000 {
        let uid = format!("volume-{volume}");
        let request = PlacementRequest {
            volume_uid: &uid,
            ..request(&policy, 1)
        };
        for placed in decide(&fleet, &request).placed {
            *counts.entry(placed.site).or_default() += 1;
        }
    }
    // Expected are 100 each; 4 standard deviations are 38.
    assert_eq!(counts.len(), 10);
    assert!(
        counts.values().all(|count| (62..=138).contains(count)),
        "{counts:?}"
    );
}

#[test]
fn a_group_does_not_keep_its_member_from_its_own_place() {
    let machines = vec![plain(0, 0, 0), plain(0, 0, 1)];
    let mut fleet = fleet(&machines);
    let here = fleet.find(&machines[0].names(0)[0]).expect("it was added");
    fleet.occupy(here, GIB, &["g".to_owned()]);
    let policy = PlacementPolicy {
        affinity: vec![AffinityRule {
            group: "g".to_owned(),
            domain: Domain::Rack.into(),
            apart: true,
            required: true,
        }],
        affinity_groups: vec!["g".to_owned()],
        ..PlacementPolicy::default()
    };
    // The replica that is there is the volume's own: it may have another one in the same rack.
    let own = PlacementRequest {
        kept: &[here],
        own: &[here],
        ..request(&policy, 1)
    };
    assert!(decide(&fleet, &own).fits());
    assert!(!decide(&fleet, &request(&policy, 1)).fits());
}

#[test]
fn where_a_pool_stands_is_a_label() {
    let machines = vec![plain(0, 0, 0), plain(1, 0, 0)];
    let fleet = fleet(&machines);
    let zone = &machines[1].names(1)[3];
    let rule = LabelRule {
        key: "topology.pollux.io/zone".to_owned(),
        values: vec![zone.clone()],
        ..LabelRule::default()
    };
    let policy = PlacementPolicy {
        require: vec![rule],
        ..PlacementPolicy::default()
    };
    let decision = decide(&fleet, &request(&policy, 2));
    assert_eq!(decision.placed.len(), 1);
    let site = &fleet
        .sites()
        .find(|(id, _)| *id == decision.placed[0].site)
        .expect("it is there")
        .1;
    assert_eq!(site.zone, *zone);
}
