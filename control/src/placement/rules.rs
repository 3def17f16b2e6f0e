//! What speaks against one pool, and for it.

use pollux_api::control::v1::{AffinityRule, Domain, LabelRule, MediaClass};

use super::{Closed, DOMAIN_KINDS, DOMAINS, Fleet, Occupied, PlacementRequest, Site, domain_index};

/// Points for an empty pool; a full one has none.
const SPACE_POINTS: i64 = 10_000;

/// Points for each weight of a preferred label.
const LABEL_POINTS: i64 = 100;

/// The weight of a preferred label that has none given.
const LABEL_WEIGHT_DEFAULT: u32 = 50;

/// Points for a preferred affinity.
const AFFINITY_POINTS: i64 = 10_000;

/// Why a pool is out of the question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rejection {
    /// It takes nothing.
    Closed(Closed),
    /// Its data is on something else.
    Media(MediaClass),
    /// It lacks a label, or has another value.
    LabelMissing(LabelRule),
    /// It has a label that is excluded.
    LabelExcluded(LabelRule),
    /// Members of a group have to be together, and are elsewhere.
    Together(AffinityRule),
    /// Members of a group have to be apart, and one is here.
    Apart(AffinityRule),
    /// The sizes of its replicas would add up to too much.
    Overcommitted {
        /// What they add up to now, in bytes.
        provisioned_bytes: u64,
        /// What they may, in bytes.
        limit_bytes: u64,
    },
    /// It is used too far.
    Filled {
        /// Bytes that are used.
        used_bytes: u64,
        /// Bytes that may be.
        limit_bytes: u64,
    },
    /// As many replicas as may share a domain are in it.
    DomainFull {
        /// The kind of the domain.
        domain: Domain,
        /// Its name.
        name: String,
    },
    /// A replica of the volume is in it already.
    Own,
    /// Only some pools are considered, and it is none of them.
    NotConsidered,
}

/// Whether a pool can take a replica as far as that does not depend on the other replicas of its volume; if
/// so, how good it is, in points.
pub(super) fn judge(
    fleet: &Fleet,
    site: &Site,
    request: &PlacementRequest<'_>,
    own: &Occupied,
) -> Result<i64, Rejection> {
    if let Some(closed) = site.closed {
        return Err(Rejection::Closed(closed));
    }
    if request.is_rebuild && site.busy {
        return Err(Rejection::Closed(Closed::Busy));
    }
    let score = space(fleet, site, request.size_bytes)?;
    Ok(score + keep(fleet, site, request, own)?)
}

/// Whether a pool is one that the policy of a volume wants, whatever its state; if so, what preferences are
/// worth, in points.
pub(super) fn keep(
    fleet: &Fleet,
    site: &Site,
    request: &PlacementRequest<'_>,
    own: &Occupied,
) -> Result<i64, Rejection> {
    let policy = request.policy;
    let media = policy.media();
    if media != MediaClass::Unspecified && media != site.media {
        return Err(Rejection::Media(site.media));
    }
    for rule in &policy.require {
        if !matches(rule, site) {
            return Err(match rule.excluded {
                true => Rejection::LabelExcluded(rule.clone()),
                false => Rejection::LabelMissing(rule.clone()),
            });
        }
    }
    let mut score = 0;
    for rule in &policy.affinity {
        let kept = keeps(fleet, site, rule, request, own);
        match (kept, rule.required, rule.apart) {
            (true, true, _) => {}
            (true, false, _) => score += AFFINITY_POINTS,
            (false, true, true) => return Err(Rejection::Apart(rule.clone())),
            (false, true, false) => return Err(Rejection::Together(rule.clone())),
            (false, false, _) => {}
        }
    }
    for rule in &policy.prefer {
        if matches(rule, site) {
            score += LABEL_POINTS * i64::from(rule.weight.unwrap_or(LABEL_WEIGHT_DEFAULT));
        }
    }
    Ok(score)
}

/// Whether a pool is as a rule about labels wants it.
pub(super) fn matches(rule: &LabelRule, site: &Site) -> bool {
    let has = site
        .label(&rule.key)
        .is_some_and(|value| rule.values.is_empty() || rule.values.iter().any(|wanted| wanted == value));
    has != rule.excluded
}

/// Whether a rule between volumes is kept by a replica in a pool.
fn keeps(
    fleet: &Fleet,
    site: &Site,
    rule: &AffinityRule,
    request: &PlacementRequest<'_>,
    own: &Occupied,
) -> bool {
    let Some(kind) = domain_index(rule.domain()) else {
        return true;
    };
    let is_member = request.policy.affinity_groups.contains(&rule.group);
    let (own_beside, own_total) = match is_member {
        true => (own.beside(site, kind), own.len()),
        false => (0, 0),
    };
    let others_beside = fleet
        .group_beside(&rule.group, site, kind)
        .saturating_sub(own_beside);
    let others_total = fleet.group_total(&rule.group).saturating_sub(own_total);
    match rule.apart {
        true => others_beside == 0,
        // The first member may go anywhere.
        false => others_beside > 0 || others_total == 0,
    }
}

/// Whether there is space, and how much of it will be left, in points.
fn space(fleet: &Fleet, site: &Site, size_bytes: u64) -> Result<i64, Rejection> {
    let limits = fleet.limits();
    let fill_limit_bytes = percent(site.capacity_bytes, limits.fill_percent_max);
    if site.used_bytes >= fill_limit_bytes {
        return Err(Rejection::Filled {
            used_bytes: site.used_bytes,
            limit_bytes: fill_limit_bytes,
        });
    }
    let limit_bytes = percent(site.capacity_bytes, limits.overcommit_percent);
    let left_bytes = site
        .provisioned_bytes
        .checked_add(size_bytes)
        .and_then(|wanted| limit_bytes.checked_sub(wanted));
    let Some(left_bytes) = left_bytes else {
        return Err(Rejection::Overcommitted {
            provisioned_bytes: site.provisioned_bytes,
            limit_bytes,
        });
    };
    let left = i128::from(left_bytes) * i128::from(SPACE_POINTS) / i128::from(limit_bytes.max(1));
    Ok(i64::try_from(left).unwrap_or(SPACE_POINTS))
}

fn percent(bytes: u64, percent: u32) -> u64 {
    let product = u128::from(bytes) * u128::from(percent) / 100;
    u64::try_from(product).unwrap_or(u64::MAX)
}

impl Occupied {
    fn len(&self) -> u32 {
        u32::try_from(self.0.len()).unwrap_or(u32::MAX)
    }
}

impl Rejection {
    /// The domain of a pool that is full.
    pub(super) fn full(site: &Site, kind: usize) -> Self {
        let kind = kind.min(DOMAIN_KINDS - 1);
        Self::DomainFull {
            domain: DOMAINS.get(kind).copied().unwrap_or(Domain::Zone),
            name: site.domain_name(kind).to_owned(),
        }
    }
}
