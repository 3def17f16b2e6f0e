//! Where nodes stand, as orchestrators and the control plane tell it.
//!
//! Volumes can be reached from everywhere: where their data is matters for speed, and for clusters whose
//! zones must not talk to each other. The keys below are those of orchestrators, and the labels that the
//! control plane gives to pools by itself.

use std::collections::BTreeMap;

use pollux_api::control::v1::LabelRule;
use pollux_api::csi::v1::{Topology, TopologyRequirement};

use crate::error::CallError;

/// What all keys begin with.
const PREFIX: &str = "topology.pollux.io/";

/// Domains, from the widest to the narrowest.
const DOMAINS: [&str; 3] = ["zone", "rack", "node"];

/// Places that are preferred one after the other; of more, the first ones count.
const PREFERRED_MAX: usize = 4;

/// Points for the first place that is preferred; each further one has half of the one before.
const WEIGHT_FIRST: u32 = 96;

/// Characters of a value (CSI specification, `Topology`).
const VALUE_CHARACTERS_MAX: usize = 63;

/// What is done with the places that an orchestrator asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Data goes there if it can.
    #[default]
    Prefer,
    /// Data goes nowhere else, and the volume is said to be there only.
    Require,
    /// Data goes anywhere.
    Ignore,
}

/// A place: domains by name, such as `zone`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Place(BTreeMap<&'static str, String>);

impl Place {
    /// From pairs such as `zone=z1`.
    ///
    /// # Errors
    ///
    /// What a pair has to be, for people.
    pub fn parse(pairs: &[String]) -> Result<Self, String> {
        let mut place = Self::default();
        for pair in pairs {
            let (domain, value) = pair
                .split_once('=')
                .ok_or_else(|| format!("{pair:?} is not DOMAIN=NAME, such as zone=z1"))?;
            if place.0.contains_key(domain) {
                return Err(format!("{domain} is given twice: a node stands in one only"));
            }
            place.put(domain, value)?;
        }
        Ok(place)
    }

    fn put(&mut self, domain: &str, value: &str) -> Result<(), String> {
        let known = DOMAINS.into_iter().find(|known| *known == domain);
        let known = known.ok_or_else(|| format!("{domain} is no domain: give zone, rack or node"))?;
        let is_outer = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        let is_inner = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
        let bytes = value.as_bytes();
        let fits = bytes.len() <= VALUE_CHARACTERS_MAX
            && bytes.iter().all(is_inner)
            && is_outer(bytes.first())
            && is_outer(bytes.last());
        if !fits {
            return Err(format!(
                "{value:?} is no name of a {known}: give 1 to {VALUE_CHARACTERS_MAX} letters, digits, -, _ \
                 and ., with a letter or digit at both ends"
            ));
        }
        self.0.insert(known, value.to_owned());
        Ok(())
    }

    /// From a message.
    fn read(topology: &Topology) -> Result<Self, CallError> {
        const FIELD: &str = "accessibility_requirements";
        let mut place = Self::default();
        for (key, value) in &topology.segments {
            let domain = key.strip_prefix(PREFIX).ok_or_else(|| {
                CallError::argument(FIELD, format!("has the key {key}; keys begin with {PREFIX}"))
            })?;
            place
                .put(domain, value)
                .map_err(|problem| CallError::argument(FIELD, problem))?;
        }
        Ok(place)
    }

    /// As a message; nothing if it is nowhere in particular.
    pub fn message(&self) -> Option<Topology> {
        if self.0.is_empty() {
            return None;
        }
        let segments = self.0.iter();
        Some(Topology {
            segments: segments
                .map(|(domain, value)| (format!("{PREFIX}{domain}"), value.clone()))
                .collect(),
        })
    }

    /// Of a node with these domains, those that `like` has too.
    pub fn like(like: &Self, zone: &str, rack: &str, node: &str) -> Self {
        let values = [("zone", zone), ("rack", rack), ("node", node)];
        let both = values
            .into_iter()
            .filter(|(domain, value)| like.0.contains_key(domain) && !value.is_empty());
        Self(both.map(|(domain, value)| (domain, value.to_owned())).collect())
    }

    /// Its domains.
    fn domains(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.0.iter().map(|(domain, value)| (*domain, value.as_str()))
    }

    /// Its parts as rules about labels.
    pub fn rules(&self, weight: Option<u32>) -> Vec<LabelRule> {
        let rule = |(domain, value): (&str, &str)| LabelRule {
            key: format!("{PREFIX}{domain}"),
            values: vec![value.to_owned()],
            excluded: false,
            weight,
        };
        self.domains().map(rule).collect()
    }
}

/// The places that an orchestrator asks for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Places {
    requisite: Vec<Place>,
    preferred: Vec<Place>,
}

impl Places {
    /// From a message.
    ///
    /// # Errors
    ///
    /// [`CallError::Argument`] for keys that are not known and names that are none.
    pub fn read(requirement: Option<&TopologyRequirement>) -> Result<Self, CallError> {
        let Some(requirement) = requirement else {
            return Ok(Self::default());
        };
        let read = |topologies: &[Topology]| -> Result<Vec<Place>, CallError> {
            topologies.iter().map(Place::read).collect()
        };
        Ok(Self {
            requisite: read(&requirement.requisite)?,
            preferred: read(&requirement.preferred)?,
        })
    }

    /// Just one place.
    ///
    /// # Errors
    ///
    /// As for [`Self::read`].
    pub fn one(topology: Option<&Topology>) -> Result<Self, CallError> {
        let requisite = topology.map(Place::read).transpose()?;
        Ok(Self {
            requisite: requisite.into_iter().collect(),
            preferred: Vec::new(),
        })
    }

    /// Whether none is asked for.
    pub fn is_empty(&self) -> bool {
        self.requisite.is_empty() && self.preferred.is_empty()
    }

    /// The domains in which places are told, with some values.
    pub fn domains(&self) -> Place {
        let mut all = Place::default();
        for place in self.requisite.iter().chain(&self.preferred) {
            all.0.extend(place.0.clone());
        }
        all
    }

    /// Rules that make places better: the first one most.
    pub fn preferences(&self) -> Vec<LabelRule> {
        let places = match self.preferred.is_empty() {
            true => &self.requisite,
            false => &self.preferred,
        };
        let weighted = places.iter().take(PREFERRED_MAX).enumerate();
        weighted
            .flat_map(|(index, place)| place.rules(Some((WEIGHT_FIRST >> index).max(1))))
            .collect()
    }

    /// Rules without which there is no place. Each domain by itself: for every domain, any of its values.
    pub fn requirements(&self) -> Vec<LabelRule> {
        let mut values: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        let places = match self.requisite.is_empty() {
            true => &self.preferred,
            false => &self.requisite,
        };
        for (domain, value) in places.iter().flat_map(Place::domains) {
            let known = values.entry(domain).or_default();
            if !known.iter().any(|one| one == value) {
                known.push(value.to_owned());
            }
        }
        let rules = values.into_iter().map(|(domain, values)| LabelRule {
            key: format!("{PREFIX}{domain}"),
            values,
            excluded: false,
            weight: None,
        });
        rules.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(pairs: &[&str]) -> Place {
        let pairs: Vec<String> = pairs.iter().map(|pair| (*pair).to_owned()).collect();
        Place::parse(&pairs).expect("domains and names")
    }

    fn places(requisite: &[Place], preferred: &[Place]) -> Places {
        let messages = |places: &[Place]| places.iter().filter_map(Place::message).collect();
        let requirement = TopologyRequirement {
            requisite: messages(requisite),
            preferred: messages(preferred),
        };
        Places::read(Some(&requirement)).expect("as they were written")
    }

    #[test]
    fn places_go_both_ways() {
        let one = place(&["zone=z1", "rack=r-1"]);
        let message = one.message().expect("it is somewhere");
        assert_eq!(
            message
                .segments
                .get("topology.pollux.io/zone")
                .map(String::as_str),
            Some("z1")
        );
        assert_eq!(Place::read(&message).ok(), Some(one.clone()));
        assert_eq!(Place::default().message(), None);
        assert_eq!(Place::like(&one, "z9", "", "n"), place(&["zone=z9"]));
        for wrong in ["zone", "zone=", "galaxy=x", "zone=-a", "zone=a b"] {
            assert!(Place::parse(&[wrong.to_owned()]).is_err(), "{wrong}");
        }
        let mut foreign = Topology::default();
        foreign
            .segments
            .insert("kubernetes.io/hostname".to_owned(), "a".to_owned());
        assert!(Place::read(&foreign).is_err());
    }

    #[test]
    fn the_first_preferred_place_counts_most() {
        let (one, two) = (place(&["zone=z1"]), place(&["zone=z2"]));
        let rules = places(&[two.clone(), one.clone()], &[one, two]).preferences();
        let weights: Vec<(&str, Option<u32>)> = rules
            .iter()
            .map(|rule| (rule.values[0].as_str(), rule.weight))
            .collect();
        assert_eq!(weights, [("z1", Some(96)), ("z2", Some(48))]);
    }

    #[test]
    fn one_of_the_requisite_places_is_needed() {
        let all = places(
            &[place(&["zone=z1", "rack=r1"]), place(&["zone=z2", "rack=r1"])],
            &[place(&["zone=z2", "rack=r1"])],
        );
        let rules = all.requirements();
        assert_eq!(rules.len(), 2);
        assert_eq!(rules[0].values, ["r1"]);
        assert_eq!(rules[1].values, ["z1", "z2"]);
        assert!(Places::default().requirements().is_empty());
    }
}
