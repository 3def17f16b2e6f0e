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
//! | `qosIops` | requests in a second, or `none` | yes |
//! | `qosBandwidth` | bytes in a second, such as `200MiB`, or `none` | yes |
//! | `fsType` | `ext4`, `xfs` or `btrfs`, if the volume's capability does not say | |
//!
//! What a volume says itself goes before its template, limits and placement each as a whole. Places that an
//! orchestrator prefers count for volumes of a template only if `topologyMode` says so.
//!
//! Keys that begin with `csi.storage.k8s.io/` come from sidecars: claim, namespace and volume become tags,
//! others are left alone. Any other key is an error: a misspelt one would be silently without effect.

use std::collections::{BTreeMap, HashMap};

use pollux_api::control::v1::{
    Domain, LabelRule, MediaClass, PlacementPolicy, SpreadRule, VolumePolicy, VolumeSpec,
};

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

/// What can be changed of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mutable {
    /// Another template.
    pub template: Option<String>,
    /// Another limit of requests in a second; `Some(None)` for none.
    pub iops_max: Option<Option<u64>>,
    /// Another limit of bytes in a second; `Some(None)` for none.
    pub bandwidth_bytes_max: Option<Option<u64>>,
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
                    format!("has {key}, which cannot be changed: give template, qosIops or qosBandwidth");
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
            "qosIops" => {
                let limit = limit(value, |text| text.parse().ok());
                self.iops_max =
                    Some(limit.ok_or_else(|| wrong("a number of requests in a second, or none"))?);
            }
            "qosBandwidth" => {
                let limit = limit(value, bytes);
                self.bandwidth_bytes_max =
                    Some(limit.ok_or_else(|| wrong("bytes in a second such as 200MiB, or none"))?);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Puts what is said here before what is there.
    pub fn apply(&self, spec: &mut VolumeSpec) {
        if let Some(template) = &self.template {
            spec.template.clone_from(template);
        }
        if self.iops_max.is_none() && self.bandwidth_bytes_max.is_none() {
            return;
        }
        let qos = spec.policy.get_or_insert_default().qos.get_or_insert_default();
        if let Some(limit) = self.iops_max {
            qos.iops_max = limit;
        }
        if let Some(limit) = self.bandwidth_bytes_max {
            qos.bandwidth_bytes_max = limit;
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
        read.mutable = Mutable {
            template: first.template.or(read.mutable.template),
            iops_max: first.iops_max.or(read.mutable.iops_max),
            bandwidth_bytes_max: first.bandwidth_bytes_max.or(read.mutable.bandwidth_bytes_max),
        };
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

/// A limit: `none`, or more than nothing.
fn limit(text: &str, read: impl Fn(&str) -> Option<u64>) -> Option<Option<u64>> {
    match text {
        "none" => Some(None),
        text => read(text).filter(|limit| *limit > 0).map(Some),
    }
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
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        let pairs = pairs.iter();
        pairs
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
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
