//! What storage classes say: `parameters`, which hold for the life of a volume, and `mutable_parameters`,
//! which a VolumeAttributesClass can change later. The latter go before the former.
//!
//! | key | value | can be changed |
//! | --- | --- | --- |
//! | `template` | name of a template in the control plane | yes |
//! | `replicas` | copies, 1 to 5 | |
//! | `minInSync` | copies without which no write is acknowledged | |
//! | `media` | `nvme`, `ssd`, `hdd` or `scratch` | |
//! | `topologySpread` | `node`, `rack` or `zone`: one copy in each at most | |
//! | `topologyMode` | `prefer`, `require` or `ignore` | |
//! | `qosIops` | operations in a second, or `none` | yes |
//! | `qosBandwidth` | bytes in a second, such as `200MiB`, or `none` | yes |
//! | `qosReadIops`, `qosReadBandwidth`, `qosWriteIops`, `qosWriteBandwidth` | of these alone | yes |
//! | each of these and `PerGib` | for each GiB of the volume, besides, or `none` | yes |
//! | each of these and `Burst` | more for a while: `500MiB`, or `500MiB for 30s` [10 s], or `none` | yes |
//! | `qosWeight` | what it gets next to others, 1 to 10000, or `none` for 100 | yes |
//! | `fsType` | `ext4`, `xfs` or `btrfs`, if the volume's capability does not say | |
//!
//! What a volume says itself goes before its template, limits and placement each as a whole. Places that an
//! orchestrator prefers count for volumes of a template only if `topologyMode` says so.
//!
//! Keys that begin with `csi.storage.k8s.io/` come from sidecars: claim, namespace and volume become tags,
//! others are left alone. Any other key is an error: a misspelt one would be silently without effect.

use std::collections::{BTreeMap, HashMap};

use pollux_api::control::v1::{
    Domain, LabelRule, MediaClass, PlacementPolicy, QosBurst, QosRate, SpreadRule, VolumePolicy, VolumeSpec,
};
use pollux_api::qos::{Counted, Direction, Limit, WEIGHT_MAX};

use crate::capability::FileSystem;
use crate::error::CallError;
use crate::names::{fingerprint, is_resource_name, label};
use crate::topology::{Mode, Places};

/// What keys of sidecars begin with.
const SIDECAR: &str = "csi.storage.k8s.io/";

/// Keys of sidecars that become tags.
const TAGS: [(&str, &str); 5] = [
    ("csi.storage.k8s.io/pvc/name", label::CLAIM),
    ("csi.storage.k8s.io/pvc/namespace", label::NAMESPACE),
    ("csi.storage.k8s.io/pv/name", label::PERSISTENT_VOLUME),
    ("csi.storage.k8s.io/volumesnapshot/name", label::VOLUME_SNAPSHOT),
    ("csi.storage.k8s.io/volumesnapshot/namespace", label::NAMESPACE),
];

/// Characters of a tag.
const TAG_CHARACTERS_MAX: usize = 256;

/// Copies that a volume may have.
const REPLICAS_MAX: u32 = 5;

/// Units of bandwidth, with those of Kubernetes.
const UNITS: [(&str, u64); 8] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
];

/// How long a burst lasts unless it says so, in seconds.
const BURST_SECONDS: u32 = 10;

/// A part of a limit; 0 or nothing takes it away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    PerSecond(u64),
    PerSecondPerGib(u64),
    Burst(Option<QosBurst>),
}

impl Part {
    /// What a value says, `none` or more than nothing.
    fn read(self, counted: Counted, value: &str) -> Option<Self> {
        let number = |text: &str| match counted {
            Counted::Operations => text.parse().ok(),
            Counted::Bytes => bytes(text),
        };
        let limit = |text| match text {
            "none" => Some(0),
            text => number(text).filter(|limit| *limit > 0),
        };
        Some(match self {
            Self::PerSecond(_) => Self::PerSecond(limit(value)?),
            Self::PerSecondPerGib(_) => Self::PerSecondPerGib(limit(value)?),
            Self::Burst(_) if value == "none" => Self::Burst(None),
            Self::Burst(_) => {
                let (most, seconds) = match value.split_once(" for ") {
                    Some((most, span)) => (most, span.trim().strip_suffix('s')?.parse().ok()?),
                    None => (value, BURST_SECONDS),
                };
                let per_second = number(most).filter(|most| *most > 0)?;
                Self::Burst(Some(QosBurst { per_second, seconds }))
            }
        })
    }
}

/// Which part of which limit a key is about.
fn limit_of(key: &str) -> Option<(Limit, Part)> {
    let rest = key.strip_prefix("qos")?;
    let directions = [
        ("Read", Direction::Read),
        ("Write", Direction::Write),
        ("", Direction::Total),
    ];
    let (rest, direction) = directions
        .iter()
        .find_map(|(name, direction)| Some((rest.strip_prefix(name)?, *direction)))?;
    let counters = [("Iops", Counted::Operations), ("Bandwidth", Counted::Bytes)];
    let (rest, counted) = counters
        .iter()
        .find_map(|(name, counted)| Some((rest.strip_prefix(name)?, *counted)))?;
    let part = match rest {
        "" => Part::PerSecond(0),
        "PerGib" => Part::PerSecondPerGib(0),
        "Burst" => Part::Burst(None),
        _ => return None,
    };
    Some((Limit::new(direction, counted), part))
}

/// What can be changed of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mutable {
    /// Another template.
    pub template: Option<String>,
    /// Parts of limits that are others; of the same one the last holds.
    limits: Vec<(Limit, Part)>,
    /// Another weight; `Some(None)` for none.
    weight: Option<Option<u32>>,
}

impl Mutable {
    /// What `mutable_parameters` say.
    ///
    /// # Errors
    ///
    /// [`CallError::Argument`] for keys that are not known, cannot be changed, or have wrong values.
    pub fn read(parameters: &HashMap<String, String>) -> Result<Self, CallError> {
        const FIELD: &str = "mutable_parameters";
        let mut mutable = Self::default();
        for (key, value) in sorted(parameters) {
            if !mutable.take(FIELD, key, value)? && !key.starts_with(SIDECAR) {
                let problem =
                    format!("has {key}, which cannot be changed: give template, or limits such as qosIops");
                return Err(CallError::argument(FIELD, problem));
            }
        }
        Ok(mutable)
    }

    fn take(&mut self, field: &'static str, key: &str, value: &str) -> Result<bool, CallError> {
        let wrong = |what: &str| CallError::argument(field, format!("has {key}={value:?}; give {what}"));
        match key {
            "template" if is_resource_name(value) => self.template = Some(value.to_owned()),
            "template" => return Err(wrong("the name of a template")),
            "qosWeight" if value == "none" => self.weight = Some(None),
            "qosWeight" => {
                let weight = value
                    .parse()
                    .ok()
                    .filter(|weight| (1..=WEIGHT_MAX).contains(weight));
                self.weight = Some(Some(
                    weight.ok_or_else(|| wrong(&format!("1 to {WEIGHT_MAX}, or none")))?,
                ));
            }
            key => {
                let Some((limit, part)) = limit_of(key) else {
                    return Ok(false);
                };
                let what = match (part, limit.counted) {
                    (Part::Burst(_), Counted::Operations) => "a number, or such as 5000 for 30s, or none",
                    (Part::Burst(_), Counted::Bytes) => "such as 200MiB, or 200MiB for 30s, or none",
                    (_, Counted::Operations) => "a number of operations in a second, or none",
                    (_, Counted::Bytes) => "bytes in a second such as 200MiB, or none",
                };
                let part = part.read(limit.counted, value).ok_or_else(|| wrong(what))?;
                self.limits.push((limit, part));
            }
        }
        Ok(true)
    }

    /// Puts what is said here before what is there.
    pub fn apply(&self, spec: &mut VolumeSpec) {
        if let Some(template) = &self.template {
            spec.template.clone_from(template);
        }
        if self.limits.is_empty() && self.weight.is_none() {
            return;
        }
        let qos = spec.policy.get_or_insert_default().qos.get_or_insert_default();
        if let Some(weight) = self.weight {
            qos.weight = weight;
        }
        for (limit, part) in &self.limits {
            let mut rate = qos.rate(*limit).unwrap_or_default();
            match *part {
                Part::PerSecond(per_second) => rate.per_second = per_second,
                Part::PerSecondPerGib(per_second) => rate.per_second_per_gib = per_second,
                Part::Burst(burst) => rate.burst = burst,
            }
            qos.set_rate(*limit, Some(rate));
        }
        for (limit, _) in &self.limits {
            // A burst of what is not limited is none, whichever was said first.
            let is_limited = |rate: &QosRate| rate.per_second > 0 || rate.per_second_per_gib > 0;
            qos.set_rate(*limit, qos.rate(*limit).filter(is_limited));
        }
    }

    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What a storage class says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Parameters {
    /// What can be changed later, with what `parameters` say of it.
    pub mutable: Mutable,
    /// Copies.
    pub replicas: Option<u32>,
    /// Copies without which no write is acknowledged.
    pub min_in_sync: Option<u32>,
    /// What data is on.
    pub media: Option<MediaClass>,
    /// One copy in each at most.
    pub spread: Option<Domain>,
    /// What is done with the places that are asked for.
    pub topology: Option<Mode>,
    /// The file system of volumes whose capability does not say.
    pub file_system: Option<FileSystem>,
    /// What volumes are for.
    pub tags: BTreeMap<String, String>,
    /// Tells different sets of parameters apart; what can be changed and tags do not count.
    pub fingerprint: String,
}

impl Parameters {
    /// What `parameters` and `mutable_parameters` say.
    ///
    /// # Errors
    ///
    /// [`CallError::Argument`] for keys that are not known and values that are wrong.
    pub fn read(
        parameters: &HashMap<String, String>,
        mutable_parameters: &HashMap<String, String>,
    ) -> Result<Self, CallError> {
        const FIELD: &str = "parameters";
        let mut read = Self::default();
        let mut lasting = Vec::new();
        for (key, value) in sorted(parameters) {
            let wrong = |what: &str| CallError::argument(FIELD, format!("has {key}={value:?}; give {what}"));
            if key.starts_with(SIDECAR) {
                continue;
            }
            lasting.extend([key, value]);
            match key {
                "replicas" => {
                    let known = count(value).ok_or_else(|| wrong("1 to 5"))?;
                    read.replicas = Some(known);
                }
                "minInSync" => {
                    let known = count(value).ok_or_else(|| wrong("1 to 5, and not more than replicas"))?;
                    read.min_in_sync = Some(known);
                }
                "media" => {
                    let known =
                        MediaClass::from_str_name(&format!("MEDIA_CLASS_{}", value.to_ascii_uppercase()));
                    let known = known.filter(|media| *media != MediaClass::Unspecified);
                    read.media = Some(known.ok_or_else(|| wrong("nvme, ssd, hdd or scratch"))?);
                }
                "topologySpread" => {
                    let known = match value {
                        "node" => Domain::Node,
                        "rack" => Domain::Rack,
                        "zone" => Domain::Zone,
                        _ => return Err(wrong("node, rack or zone")),
                    };
                    read.spread = Some(known);
                }
                "topologyMode" => {
                    let known = match value {
                        "prefer" => Mode::Prefer,
                        "require" => Mode::Require,
                        "ignore" => Mode::Ignore,
                        _ => return Err(wrong("prefer, require or ignore")),
                    };
                    read.topology = Some(known);
                }
                "fsType" => {
                    let known = value
                        .parse()
                        .map_err(|problem: String| CallError::argument(FIELD, problem))?;
                    read.file_system = Some(known);
                }
                _ if read.mutable.take(FIELD, key, value)? => {}
                _ => {
                    let problem = format!("has {key}, which is not known");
                    return Err(CallError::argument(FIELD, problem));
                }
            }
        }
        if let (Some(replicas), Some(min_in_sync)) = (read.replicas, read.min_in_sync)
            && min_in_sync > replicas
        {
            let problem = format!("has minInSync={min_in_sync}, which is more than replicas={replicas}");
            return Err(CallError::argument(FIELD, problem));
        }
        read.tags = tags(parameters);
        read.fingerprint = fingerprint(&lasting);
        let first = Mutable::read(mutable_parameters)?;
        read.mutable.template = first.template.or(read.mutable.template);
        // The last holds.
        read.mutable.limits.extend(first.limits);
        Ok(read)
    }

    /// What is done with the places that are asked for. A placement of the volume's own would hide that of
    /// its template, so with a template places count only if the class says so.
    pub fn topology_mode(&self) -> Mode {
        let unsaid = match &self.mutable.template {
            Some(_) => Mode::Ignore,
            None => Mode::Prefer,
        };
        self.topology.unwrap_or(unsaid)
    }

    /// What a volume is to be like.
    pub fn spec(&self, size_bytes: u64, places: &Places) -> VolumeSpec {
        let (require, prefer): (Vec<LabelRule>, Vec<LabelRule>) = match self.topology_mode() {
            Mode::Prefer => (Vec::new(), places.preferences()),
            Mode::Require => (places.requirements(), places.preferences()),
            Mode::Ignore => (Vec::new(), Vec::new()),
        };
        let spread = self.spread.map(|domain| SpreadRule {
            domain: domain.into(),
            replicas_max: 1,
        });
        let placement = PlacementPolicy {
            media: self.media.unwrap_or(MediaClass::Unspecified).into(),
            require,
            prefer,
            spread: spread.into_iter().collect(),
            ..PlacementPolicy::default()
        };
        // A placement, also one that says nothing, would hide that of the template.
        let placement = Some(placement).filter(|placement| *placement != PlacementPolicy::default());
        let policy = VolumePolicy {
            replicas: self.replicas,
            min_in_sync: self.min_in_sync,
            placement,
            qos: None,
        };
        let mut spec = VolumeSpec {
            size_bytes,
            policy: Some(policy).filter(|policy| *policy != VolumePolicy::default()),
            ..VolumeSpec::default()
        };
        self.mutable.apply(&mut spec);
        spec
    }
}

/// What sidecars say of what something is for, as labels.
pub fn tags(parameters: &HashMap<String, String>) -> BTreeMap<String, String> {
    let tags = TAGS.iter().filter_map(|(key, label)| {
        let value = parameters.get(*key)?;
        let value: String = value
            .chars()
            .filter(|letter| !letter.is_control())
            .take(TAG_CHARACTERS_MAX)
            .collect();
        Some(((*label).to_owned(), value))
    });
    tags.collect()
}

/// Checks the parameters of a class of snapshots, which knows none of its own.
///
/// # Errors
///
/// [`CallError::Argument`] for any that do not come from sidecars.
pub fn snapshot_tags(parameters: &HashMap<String, String>) -> Result<BTreeMap<String, String>, CallError> {
    match sorted(parameters).find(|(key, _)| !key.starts_with(SIDECAR)) {
        Some((key, _)) => Err(CallError::argument(
            "parameters",
            format!("has {key}, which is not known"),
        )),
        None => Ok(tags(parameters)),
    }
}

fn sorted(parameters: &HashMap<String, String>) -> impl Iterator<Item = (&str, &str)> {
    let sorted: BTreeMap<&str, &str> = parameters
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect();
    sorted.into_iter()
}

fn count(text: &str) -> Option<u32> {
    text.parse()
        .ok()
        .filter(|count| (1..=REPLICAS_MAX).contains(count))
}

fn bytes(text: &str) -> Option<u64> {
    let unit = UNITS
        .iter()
        .find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, *factor)));
    let (number, factor) = unit.unwrap_or((text, 1));
    number.trim().parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use pollux_api::control::v1::Qos;

    use super::*;

    fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        let pairs = pairs.iter();
        pairs
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    fn limited(before: Option<Qos>, said: &[(&str, &str)]) -> Qos {
        let mut spec = VolumeSpec {
            policy: before.map(|qos| VolumePolicy {
                qos: Some(qos),
                ..VolumePolicy::default()
            }),
            ..VolumeSpec::default()
        };
        Mutable::read(&map(said)).expect("limits").apply(&mut spec);
        spec.policy.and_then(|policy| policy.qos).expect("limits")
    }

    #[test]
    fn each_limit_has_its_keys() {
        let keys = ["qos", "qosRead", "qosWrite"].map(|of| [format!("{of}Iops"), format!("{of}Bandwidth")]);
        for (limit, key) in Limit::ALL.into_iter().zip(keys.as_flattened()) {
            let said = [
                (key.clone(), "5"),
                (format!("{key}PerGib"), "7"),
                (format!("{key}Burst"), "90 for 30s"),
            ];
            let said: Vec<(&str, &str)> = said.iter().map(|(key, value)| (key.as_str(), *value)).collect();
            let wanted = QosRate {
                per_second: 5,
                per_second_per_gib: 7,
                burst: Some(QosBurst {
                    per_second: 90,
                    seconds: 30,
                }),
            };
            let qos = limited(None, &said);
            for other in Limit::ALL {
                assert_eq!(qos.rate(other), Some(wanted).filter(|_| other == limit), "{key}");
            }
            // Parts are changed one at a time, and the rest stays.
            let qos = limited(Some(qos), &[(key, "none")]);
            assert_eq!(qos.rate(limit).map(|rate| rate.per_second), Some(0));
            let burst = format!("{key}Burst");
            let qos = limited(Some(qos), &[(&burst, "50")]);
            let seconds = qos
                .rate(limit)
                .and_then(|rate| rate.burst)
                .map(|burst| burst.seconds);
            assert_eq!(seconds, Some(10));
            let qos = limited(Some(qos), &[(&format!("{key}PerGib"), "none")]);
            assert_eq!(qos, Qos::default(), "a burst of what is not limited");
        }
        let mixed = limited(None, &[("qosIops", "100"), ("qosWriteBandwidth", "1MiB")]);
        let later = limited(Some(mixed), &[("qosIopsPerGib", "2")]);
        assert_eq!((later.iops_max, later.total.is_some()), (None, true));
        let later = limited(Some(later), &[("qosIopsPerGib", "none")]);
        assert_eq!(later, mixed);
        let weighted = limited(Some(mixed), &[("qosWeight", "300")]);
        assert_eq!((weighted.weight, weighted.iops_max), (Some(300), Some(100)));
        assert_eq!(limited(Some(weighted), &[("qosWeight", "none")]), mixed);
    }

    #[test]
    fn all_that_a_class_can_say() {
        let said = map(&[
            ("template", "gold"),
            ("replicas", "3"),
            ("minInSync", "2"),
            ("media", "nvme"),
            ("topologySpread", "zone"),
            ("topologyMode", "require"),
            ("qosIops", "1000"),
            ("qosBandwidth", "200MiB"),
            ("fsType", "xfs"),
            ("csi.storage.k8s.io/pvc/name", "data"),
            ("csi.storage.k8s.io/pvc/namespace", "shop"),
            ("csi.storage.k8s.io/fstype", "xfs"),
        ]);
        let read = Parameters::read(&said, &map(&[("qosIops", "none")])).expect("all of it is known");
        let spec = read.spec(1 << 30, &Places::default());
        let policy = spec.policy.clone().expect("it says something");
        assert_eq!((policy.replicas, policy.min_in_sync), (Some(3), Some(2)));
        let qos = policy.qos.expect("it says something");
        assert_eq!((qos.iops_max, qos.bandwidth_bytes_max), (None, Some(200 << 20)));
        assert_eq!(
            policy.placement.expect("it says something").media(),
            MediaClass::Nvme
        );
        assert_eq!(
            (spec.template.as_str(), read.topology_mode()),
            ("gold", Mode::Require)
        );
        assert_eq!(read.file_system, Some(FileSystem::Xfs));
        assert_eq!(read.tags.get(label::CLAIM).map(String::as_str), Some("data"));
        assert_eq!(read.tags.len(), 2);
    }

    #[test]
    fn a_class_that_says_nothing_leaves_all_to_the_template() {
        let read = Parameters::read(&HashMap::new(), &map(&[("template", "gold")])).expect("known");
        let spec = read.spec(1 << 20, &Places::default());
        assert_eq!(spec.policy, None);
        assert_eq!(spec.template, "gold");
        assert_eq!(read.topology_mode(), Mode::Ignore);
        assert_eq!(Parameters::default().topology_mode(), Mode::Prefer);
    }

    #[test]
    fn tags_and_what_can_be_changed_do_not_tell_requests_apart() {
        let one = Parameters::read(&map(&[("replicas", "2")]), &map(&[("qosIops", "5")])).expect("known");
        let tagged = map(&[("replicas", "2"), ("csi.storage.k8s.io/pvc/name", "x")]);
        let two = Parameters::read(&tagged, &HashMap::new()).expect("known");
        assert_eq!(one.fingerprint, two.fingerprint);
        let three = Parameters::read(&map(&[("replicas", "3")]), &HashMap::new()).expect("known");
        assert_ne!(one.fingerprint, three.fingerprint);
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for (key, value) in [
            ("Template", "gold"),
            ("template", "Not A Name"),
            ("replicas", "0"),
            ("replicas", "6"),
            ("replicas", "many"),
            ("media", "tape"),
            ("media", "unspecified"),
            ("topologySpread", "planet"),
            ("topologyMode", "maybe"),
            ("qosIops", "0"),
            ("qosIops", "-1"),
            ("qosIops", "200MiB"),
            ("qosReadIops", "0"),
            ("qosWriteBandwidthPerGib", "-1KiB"),
            ("qosIopsBurst", "0"),
            ("qosIopsBurst", "5 for"),
            ("qosIopsBurst", "5 for 3"),
            ("qosIopsBurst", "5 for -3s"),
            ("qosIopsBurst", "none for 3s"),
            ("qosIopsburst", "5"),
            ("qosReadWriteIops", "5"),
            ("qosWeight", "0"),
            ("qosWeight", "10001"),
            ("qosWeight", "much"),
            ("qos", "5"),
            ("qosBandwidth", "1 lightyear"),
            ("qosBandwidth", "99999999999TiB"),
            ("fsType", "ntfs"),
        ] {
            assert!(
                Parameters::read(&map(&[(key, value)]), &HashMap::new()).is_err(),
                "{key}={value}"
            );
        }
        assert!(Parameters::read(&map(&[("replicas", "1"), ("minInSync", "2")]), &HashMap::new()).is_err());
        for key in ["replicas", "fsType", "anything"] {
            assert!(Mutable::read(&map(&[(key, "1")])).is_err(), "{key}");
        }
        assert!(snapshot_tags(&map(&[("x", "y")])).is_err());
        assert!(snapshot_tags(&map(&[("csi.storage.k8s.io/volumesnapshot/name", "y")])).is_ok());
    }
}
