//! Whether what a caller sent makes sense: everything that the types of the messages cannot say.
//!
//! All mistakes are told, not only the first, each with the path of its field.

use std::collections::{BTreeMap, BTreeSet};

use pollux_api::control::v1::{
    Domain, Group, GroupSnapshot, HostAccess, HostSharing, LabelRule, MediaClass, Metadata, Node,
    PlacementPolicy, Pool, Rebalance, Snapshot, SnapshotSchedule, Template, TokenRole, TokenSpec, Volume,
    VolumePolicy,
};

use pollux_nqn::Nqn;

use super::limits::limits;
use super::{REPLICAS_MAX, Record};

/// Longest name.
pub(crate) const NAME_CHARACTERS_MAX: usize = 128;

/// Most labels, rules of a kind, groups.
const LABELS_MAX: usize = 64;
const RULES_MAX: usize = 32;

/// Longest keys and values of labels, names of zones and racks.
const LABEL_KEY_CHARACTERS_MAX: usize = 128;
const LABEL_VALUE_CHARACTERS_MAX: usize = 256;
const DOMAIN_CHARACTERS_MAX: usize = 128;

/// Longest address of an engine, longest device URI, most devices.
const ADDRESS_CHARACTERS_MAX: usize = 256;
const DEVICE_CHARACTERS_MAX: usize = 4096;
const DEVICES_MAX: usize = 64;

/// Most hosts of a volume.
pub(crate) const HOSTS_MAX: usize = 64;

/// Most volumes of which snapshots are taken at one instant: all are told of in one transaction.
pub(crate) const GROUP_SNAPSHOT_VOLUMES_MAX: usize = 50;

/// Sizes of volumes are whole multiples of this.
pub(crate) const VOLUME_UNIT_BYTES: u64 = 1 << 20;
/// The largest volume.
const VOLUME_BYTES_MAX: u64 = 256 << 40;

/// The time between two snapshots of a schedule.
const INTERVAL_US_MIN: u64 = 60_000_000;
const INTERVAL_US_MAX: u64 = 366 * 86_400_000_000;

/// Most snapshots that a schedule keeps.
const KEPT_MAX: u32 = 1000;

/// Most moves of each kind in a plan: so many fit into a record.
const REBALANCE_MOVES_MAX: u32 = 200;

/// For how long a token is good.
const TOKEN_LIFETIME_US_MIN: u64 = 60_000_000;
const TOKEN_LIFETIME_US_MAX: u64 = 366 * 86_400_000_000;

/// A field that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// Its path, as `volume.spec.size_bytes`.
    pub field: String,
    /// What it should be, for people.
    pub description: String,
}

/// Collects what is wrong below one path.
#[derive(Debug)]
pub struct Checker<'a> {
    path: String,
    errors: &'a mut Vec<FieldError>,
}

impl<'a> Checker<'a> {
    /// At a path; errors go to the list.
    pub fn new(path: &str, errors: &'a mut Vec<FieldError>) -> Self {
        Self {
            path: path.to_owned(),
            errors,
        }
    }

    /// A field below.
    pub(super) fn at(&mut self, field: &str) -> Checker<'_> {
        Checker {
            path: format!("{}.{field}", self.path),
            errors: &mut *self.errors,
        }
    }

    /// An element of a list below.
    fn item(&mut self, field: &str, index: usize) -> Checker<'_> {
        Checker {
            path: format!("{}.{field}[{index}]", self.path),
            errors: &mut *self.errors,
        }
    }

    /// This field is wrong.
    pub(super) fn wrong(&mut self, description: impl Into<String>) {
        self.errors.push(FieldError {
            field: self.path.clone(),
            description: description.into(),
        });
    }

    pub(super) fn require(&mut self, holds: bool, description: impl Into<String>) {
        if !holds {
            self.wrong(description);
        }
    }

    fn characters(&mut self, text: &str, least: usize, most: usize) {
        let count = text.chars().count();
        self.require(
            (least..=most).contains(&count),
            format!("has {count} characters; give {least} to {most}"),
        );
        self.require(
            !text.chars().any(char::is_control),
            "has control characters; leave them out",
        );
    }

    fn at_most(&mut self, count: usize, most: usize) {
        self.require(
            count <= most,
            format!("has {count} elements; give at most {most}"),
        );
    }
}

/// Checks a name.
pub fn name(text: &str, checker: &mut Checker<'_>) {
    let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
    let is_outer =
        |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let bytes = text.as_bytes();
    let is_name = (1..=NAME_CHARACTERS_MAX).contains(&bytes.len())
        && bytes.iter().all(|byte| is_inner(*byte))
        && is_outer(bytes.first())
        && is_outer(bytes.last());
    checker.require(
        is_name,
        format!(
            "is no name: give 1 to {NAME_CHARACTERS_MAX} characters of a-z, 0-9, - and ., with a letter or \
             digit at both ends"
        ),
    );
}

/// Checks a reference to another resource that may be left out.
fn optional_name(text: &str, checker: &mut Checker<'_>) {
    if !text.is_empty() {
        name(text, checker);
    }
}

/// Checks labels.
pub fn label_map(labels: &BTreeMap<String, String>, checker: &mut Checker<'_>) {
    checker.at_most(labels.len(), LABELS_MAX);
    for (key, value) in labels {
        checker.characters(key, 1, LABEL_KEY_CHARACTERS_MAX);
        checker.characters(value, 0, LABEL_VALUE_CHARACTERS_MAX);
    }
}

/// Checks the address of an engine.
pub fn node_address(address: &str, checker: &mut Checker<'_>) {
    checker.characters(address, 1, ADDRESS_CHARACTERS_MAX);
    let is_socket = address
        .strip_prefix("unix:")
        .is_some_and(|path| path.starts_with('/'));
    let is_port = address.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && !host.contains(['/', ' ']) && port.parse::<u16>().is_ok_and(|port| port > 0)
    });
    checker.require(
        is_socket || (is_port && !address.starts_with("unix:")),
        "is no address: give HOST:PORT or unix:/PATH",
    );
}

/// Checks the NVMe qualified name of a host, by the rule of engines: what they refuse would wait for ever.
pub fn host_nqn(nqn: &str, checker: &mut Checker<'_>) {
    if let Err(error) = nqn.parse::<Nqn>() {
        checker.wrong(error.to_string());
    }
    checker.require(
        !nqn.chars().any(char::is_whitespace),
        "has white space, which the name of a host has not",
    );
}

/// Checks the size of a volume.
pub fn volume_size(size_bytes: u64, checker: &mut Checker<'_>) {
    checker.require(
        size_bytes.is_multiple_of(VOLUME_UNIT_BYTES)
            && (VOLUME_UNIT_BYTES..=VOLUME_BYTES_MAX).contains(&size_bytes),
        format!("is {size_bytes}; give whole MiB, 1 MiB to 256 TiB"),
    );
}

/// What can be checked by itself, without looking at other resources.
pub trait Validate: Record {
    /// Collects what is wrong with it.
    fn validate(&self, checker: &mut Checker<'_>) {
        match self.metadata_field() {
            Some(metadata) => metadata_fields(metadata, &mut checker.at("metadata")),
            None => checker
                .at("metadata")
                .wrong("is missing; give at least metadata.name"),
        }
        self.validate_spec(&mut checker.at("spec"));
    }

    /// Collects what is wrong with its spec.
    fn validate_spec(&self, checker: &mut Checker<'_>);

    /// All that is wrong with it, by paths that begin with the name of its kind.
    fn field_errors(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        self.validate(&mut Checker::new(Self::KIND.field(), &mut errors));
        errors
    }
}

fn metadata_fields(metadata: &Metadata, checker: &mut Checker<'_>) {
    name(&metadata.name, &mut checker.at("name"));
    label_map(&metadata.labels, &mut checker.at("labels"));
}

impl Validate for Node {
    fn validate_spec(&self, checker: &mut Checker<'_>) {
        let Some(spec) = &self.spec else {
            return checker.wrong("is missing");
        };
        node_address(&spec.address, &mut checker.at("address"));
        checker
            .at("zone")
            .characters(&spec.zone, 0, DOMAIN_CHARACTERS_MAX);
        checker
            .at("rack")
            .characters(&spec.rack, 0, DOMAIN_CHARACTERS_MAX);
    }
}

impl Validate for Pool {
    fn validate_spec(&self, checker: &mut Checker<'_>) {
        let Some(spec) = &self.spec else {
            return checker.wrong("is missing");
        };
        name(&spec.node, &mut checker.at("node"));
        media(spec.media, &mut checker.at("media"));
        let mut devices = checker.at("devices");
        devices.require(!spec.devices.is_empty(), "is empty; give the URI of a device");
        devices.at_most(spec.devices.len(), DEVICES_MAX);
        let mut seen = BTreeSet::new();
        for (index, device) in spec.devices.iter().enumerate() {
            let mut item = checker.item("devices", index);
            item.characters(device, 1, DEVICE_CHARACTERS_MAX);
            item.require(
                device.contains("://"),
                "is no device URI, such as uring:///dev/nvme0n1",
            );
            item.require(seen.insert(device), "is given twice");
        }
    }
}

impl Validate for Volume {
    fn validate_spec(&self, checker: &mut Checker<'_>) {
        let Some(spec) = &self.spec else {
            return checker.wrong("is missing");
        };
        volume_size(spec.size_bytes, &mut checker.at("size_bytes"));
        optional_name(&spec.template, &mut checker.at("template"));
        optional_name(&spec.source_snapshot, &mut checker.at("source_snapshot"));
        optional_name(&spec.group, &mut checker.at("group"));
        if let Some(given) = &spec.policy {
            policy(given, &mut checker.at("policy"));
        }
        hosts(&spec.hosts, checker);
        let mut sharing = checker.at("sharing");
        for (name, asked) in &spec.sharing {
            let is_host = spec.hosts.iter().any(|host| host.host_nqn == *name);
            sharing.require(is_host, "names what is none of the hosts");
            sharing.require(
                HostSharing::try_from(*asked).is_ok(),
                "has a value that is not known",
            );
        }
    }
}

fn hosts(hosts: &[HostAccess], checker: &mut Checker<'_>) {
    checker.at("hosts").at_most(hosts.len(), HOSTS_MAX);
    let mut seen = BTreeSet::new();
    for (index, host) in hosts.iter().enumerate() {
        let mut item = checker.item("hosts", index);
        host_nqn(&host.host_nqn, &mut item.at("host_nqn"));
        item.require(seen.insert(&host.host_nqn), "is given twice");
    }
}

impl Validate for Template {
    fn validate_spec(&self, checker: &mut Checker<'_>) {
        let Some(spec) = &self.spec else {
            return checker.wrong("is missing");
        };
        match &spec.policy {
            Some(given) => policy(given, &mut checker.at("policy")),
            None => checker.at("policy").wrong("is missing"),
        }
    }
}

impl Validate for Snapshot {
    fn validate_spec(&self, checker: &mut Checker<'_>) {
        let Some(spec) = &self.spec else {
            return checker.wrong("is missing");
        };
        name(&spec.volume, &mut checker.at("volume"));
        checker.at("group_snapshot").require(
            spec.group_snapshot.is_empty(),
            "is set by the control plane; leave it empty",
        );
    }
}

impl Validate for GroupSnapshot {
    fn validate_spec(&self, checker: &mut Checker<'_>) {
        let Some(spec) = &self.spec else {
            return checker.wrong("is missing");
        };
        checker.require(
            spec.group.is_empty() != spec.volumes.is_empty(),
            "is to name a group, or volumes, and not both",
        );
        optional_name(&spec.group, &mut checker.at("group"));
        checker
            .at("volumes")
            .at_most(spec.volumes.len(), GROUP_SNAPSHOT_VOLUMES_MAX);
        let mut seen = BTreeSet::new();
        for (index, volume) in spec.volumes.iter().enumerate() {
            let mut item = checker.item("volumes", index);
            name(volume, &mut item);
            item.require(seen.insert(volume), "is there twice; give it once");
        }
    }
}

impl Validate for Group {
    fn validate_spec(&self, checker: &mut Checker<'_>) {
        let Some(spec) = &self.spec else { return };
        if let Some(schedule) = &spec.schedule {
            let SnapshotSchedule {
                interval_us,
                kept_max,
            } = schedule;
            let mut checker = checker.at("schedule");
            checker.at("interval_us").require(
                (INTERVAL_US_MIN..=INTERVAL_US_MAX).contains(interval_us),
                format!(
                    "is {interval_us}; give {INTERVAL_US_MIN} to {INTERVAL_US_MAX} (a minute to 366 days)"
                ),
            );
            checker.at("kept_max").require(
                (1..=KEPT_MAX).contains(kept_max),
                format!("is {kept_max}; give 1 to {KEPT_MAX}"),
            );
        }
    }
}

impl Validate for Rebalance {
    fn validate_spec(&self, checker: &mut Checker<'_>) {
        let Some(spec) = &self.spec else {
            return checker.wrong("is missing");
        };
        checker.require(
            spec.replicas || spec.targets,
            "asks for nothing: give replicas, targets or both",
        );
        let limits = [
            ("moves_max", spec.moves_max, REBALANCE_MOVES_MAX),
            ("tolerance_percent", spec.tolerance_percent, 100),
        ];
        for (field, given, most) in limits {
            if let Some(given) = given {
                checker.at(field).require(
                    (1..=most).contains(&given),
                    format!("is {given}; give 1 to {most}"),
                );
            }
        }
    }
}

/// Checks what a token is to be.
pub fn token_spec(spec: Option<&TokenSpec>, now_unix_us: u64, checker: &mut Checker<'_>) {
    let Some(spec) = spec else {
        return checker.wrong("is missing");
    };
    let is_role = TokenRole::try_from(spec.role).is_ok_and(|role| role != TokenRole::Unspecified);
    checker.at("role").require(
        is_role,
        format!(
            "is {}; give TOKEN_ROLE_VIEWER, TOKEN_ROLE_CSI, TOKEN_ROLE_OPERATOR or TOKEN_ROLE_ADMIN",
            spec.role
        ),
    );
    let first = now_unix_us.saturating_add(TOKEN_LIFETIME_US_MIN);
    let last = now_unix_us.saturating_add(TOKEN_LIFETIME_US_MAX);
    checker.at("expires_unix_us").require(
        (first..=last).contains(&spec.expires_unix_us),
        format!(
            "is {}; give {first} to {last} (a minute to 366 days from now)",
            spec.expires_unix_us
        ),
    );
}

fn policy(policy: &VolumePolicy, checker: &mut Checker<'_>) {
    if let Some(replicas) = policy.replicas {
        checker.at("replicas").require(
            (1..=REPLICAS_MAX).contains(&replicas),
            format!("is {replicas}; give 1 to {REPLICAS_MAX}"),
        );
    }
    if let Some(least) = policy.min_in_sync {
        let most = policy.replicas.unwrap_or(REPLICAS_MAX);
        checker.at("min_in_sync").require(
            (1..=most).contains(&least),
            format!("is {least}; give 1 to the number of replicas"),
        );
    }
    if let Some(placement) = &policy.placement {
        placement_policy(placement, &mut checker.at("placement"));
    }
    if let Some(qos) = &policy.qos {
        limits(qos, &mut checker.at("qos"));
    }
}

fn media(media: i32, checker: &mut Checker<'_>) {
    let is_known = MediaClass::try_from(media).is_ok();
    checker.require(
        is_known,
        format!("is {media}, which is no media class of this version"),
    );
}

fn domain(number: i32, checker: &mut Checker<'_>) -> Option<Domain> {
    let domain = Domain::try_from(number)
        .ok()
        .filter(|domain| *domain != Domain::Unspecified);
    checker.require(
        domain.is_some(),
        format!("is {number}; give DOMAIN_DRIVE, DOMAIN_NODE, DOMAIN_RACK or DOMAIN_ZONE"),
    );
    domain
}

fn label_rule(rule: &LabelRule, is_preferred: bool, checker: &mut Checker<'_>) {
    checker
        .at("key")
        .characters(&rule.key, 1, LABEL_KEY_CHARACTERS_MAX);
    checker.at("values").at_most(rule.values.len(), LABELS_MAX);
    for (index, value) in rule.values.iter().enumerate() {
        checker
            .item("values", index)
            .characters(value, 0, LABEL_VALUE_CHARACTERS_MAX);
    }
    let mut weight = checker.at("weight");
    match (rule.weight, is_preferred) {
        (Some(given), true) => {
            weight.require((1..=100).contains(&given), format!("is {given}; give 1 to 100"));
        }
        (Some(_), false) => weight.wrong("is for preferred labels; leave it out"),
        (None, _) => {}
    }
}

fn placement_policy(policy: &PlacementPolicy, checker: &mut Checker<'_>) {
    media(policy.media, &mut checker.at("media"));
    for (field, rules) in [("require", &policy.require), ("prefer", &policy.prefer)] {
        checker.at(field).at_most(rules.len(), RULES_MAX);
        for (index, rule) in rules.iter().enumerate() {
            label_rule(rule, field == "prefer", &mut checker.item(field, index));
        }
    }
    checker.at("spread").at_most(policy.spread.len(), RULES_MAX);
    let mut seen = BTreeSet::new();
    for (index, rule) in policy.spread.iter().enumerate() {
        let mut item = checker.item("spread", index);
        if let Some(domain) = domain(rule.domain, &mut item.at("domain")) {
            item.at("domain").require(
                domain != Domain::Drive,
                "is DOMAIN_DRIVE, which always holds one replica at most",
            );
            item.require(seen.insert(rule.domain), "is a second rule for the same domain");
        }
        item.at("replicas_max")
            .require(rule.replicas_max >= 1, "is 0; give 1 or more");
    }
    checker.at("affinity").at_most(policy.affinity.len(), RULES_MAX);
    for (index, rule) in policy.affinity.iter().enumerate() {
        let mut item = checker.item("affinity", index);
        name(&rule.group, &mut item.at("group"));
        domain(rule.domain, &mut item.at("domain"));
    }
    checker
        .at("affinity_groups")
        .at_most(policy.affinity_groups.len(), RULES_MAX);
    for (index, group) in policy.affinity_groups.iter().enumerate() {
        name(group, &mut checker.item("affinity_groups", index));
    }
}
