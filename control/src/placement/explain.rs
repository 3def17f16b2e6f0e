//! Why here, and why nowhere, for people.

use std::fmt;

use pollux_api::control::v1::{
    Domain, LabelRule, MediaClass, PlacedReplica, PlanVolumeResponse, RejectedPool,
};

use crate::size::Size;

use super::{
    Caps, Closed, DOMAIN_KINDS, Decision, Fleet, Occupied, PlacementRequest, Rejection, Site, SiteId, decide,
    rules,
};

/// Decides, and tells why.
pub fn explain(fleet: &Fleet, request: &PlacementRequest<'_>) -> PlanVolumeResponse {
    let decision = decide(fleet, request);
    let caps = Caps::of(request.policy);
    let own = Occupied::by(fleet, request.own);
    let mut occupied = Occupied::by(fleet, request.kept);
    let mut placed = Vec::new();
    for choice in &decision.placed {
        let Some(site) = fleet.site(choice.site) else {
            continue;
        };
        placed.push(PlacedReplica {
            pool: site.pool.clone(),
            node: site.node.clone(),
            reasons: reasons(site, request, &occupied, choice.score),
        });
        occupied.add(site);
    }
    let mut rejected: Vec<RejectedPool> = fleet
        .sites()
        .filter(|(id, _)| !decision.placed.iter().any(|placed| placed.site == *id))
        .map(|(id, site)| RejectedPool {
            pool: site.pool.clone(),
            reason: reason_against(fleet, (id, site), request, (&own, &occupied, &caps)),
        })
        .collect();
    rejected.sort_by(|left, right| left.pool.cmp(&right.pool));
    PlanVolumeResponse {
        fits: decision.fits(),
        summary: summary(&decision, &rejected),
        placed,
        rejected,
    }
}

fn summary(decision: &Decision, rejected: &[RejectedPool]) -> String {
    let wanted = decision.placed.len() + decision.missing;
    if decision.fits() {
        return format!("all {wanted} replicas have a place");
    }
    // The reasons that are told most often, without the names in them.
    let mut counts: Vec<(String, usize)> = Vec::new();
    for pool in rejected {
        let reason = pool.reason.split(':').next().unwrap_or_default();
        match counts.iter_mut().find(|(known, _)| known == reason) {
            Some((_, count)) => *count += 1,
            None => counts.push((reason.to_owned(), 1)),
        }
    }
    counts.sort_by(|left, right| right.1.cmp(&left.1).then_with(|| left.0.cmp(&right.0)));
    let reasons: Vec<String> = counts
        .iter()
        .map(|(reason, count)| format!("{count} × {reason}"))
        .collect();
    let place = match decision.placed.len() {
        0 => "no replica has".to_owned(),
        1 => format!("only 1 of {wanted} replicas has"),
        count => format!("only {count} of {wanted} replicas have"),
    };
    match reasons.is_empty() {
        true => format!("{place} a place: there are no other pools"),
        false => format!("{place} a place: {}", reasons.join(", ")),
    }
}

/// What spoke for a pool.
fn reasons(site: &Site, request: &PlacementRequest<'_>, occupied: &Occupied, score: i64) -> Vec<String> {
    let mut reasons = Vec::new();
    let policy = request.policy;
    if policy.media() != MediaClass::Unspecified {
        reasons.push(format!("is on {}", media_name(site.media)));
    }
    for rule in &policy.require {
        reasons.push(format!("keeps the required {}", Labels(rule)));
    }
    for rule in policy.prefer.iter().filter(|rule| rules::matches(rule, site)) {
        reasons.push(format!("has the preferred {}", Labels(rule)));
    }
    for kind in (1..DOMAIN_KINDS).rev() {
        if !site.domain_name(kind).is_empty() && occupied.beside(site, kind) == 0 {
            let name = site.domain_name(kind);
            reasons.push(format!(
                "is the first replica in {} {name}",
                domain_name(*super::DOMAINS.get(kind).unwrap_or(&Domain::Zone))
            ));
            break;
        }
    }
    let provisioned = u128::from(site.provisioned_bytes) + u128::from(request.size_bytes);
    let percent = provisioned * 100 / u128::from(site.capacity_bytes).max(1);
    reasons.push(format!("will have {percent} % of its capacity given out"));
    reasons.push(format!("{score} points"));
    reasons
}

fn reason_against(
    fleet: &Fleet,
    (id, site): (SiteId, &Site),
    request: &PlacementRequest<'_>,
    (own, occupied, caps): (&Occupied, &Occupied, &Caps),
) -> String {
    if request.own.contains(&id) {
        return Rejection::Own.to_string();
    }
    if request.only.is_some_and(|only| !only.contains(&id)) {
        return Rejection::NotConsidered.to_string();
    }
    match rules::judge(fleet, site, request, own) {
        Err(rejection) => rejection.to_string(),
        Ok(score) => match occupied.full(site, caps) {
            Some(kind) => Rejection::full(site, kind).to_string(),
            None => format!(
                "others are better: it has {} points",
                score - occupied.penalty(site)
            ),
        },
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed(closed) => closed.fmt(formatter),
            Self::Media(media) => write!(formatter, "other media: it is on {}", media_name(*media)),
            Self::LabelMissing(rule) => write!(formatter, "label missing: wants {}", Labels(rule)),
            Self::LabelExcluded(rule) => write!(formatter, "label excluded: has {}", Labels(rule)),
            Self::Together(rule) => write!(
                formatter,
                "affinity: group {} is in another {}",
                rule.group,
                domain_name(rule.domain())
            ),
            Self::Apart(rule) => write!(
                formatter,
                "anti-affinity: group {} is in the same {}",
                rule.group,
                domain_name(rule.domain())
            ),
            Self::Overcommitted {
                provisioned_bytes,
                limit_bytes,
            } => write!(
                formatter,
                "overcommitted: {} of at most {} are given out",
                Size(*provisioned_bytes),
                Size(*limit_bytes)
            ),
            Self::Filled {
                used_bytes,
                limit_bytes,
            } => write!(
                formatter,
                "full: {} of at most {} are used",
                Size(*used_bytes),
                Size(*limit_bytes)
            ),
            Self::DomainFull { domain, name } => write!(
                formatter,
                "same {} as another replica: {name}",
                domain_name(*domain)
            ),
            Self::Own => formatter.write_str("holds a replica of the volume already"),
            Self::NotConsidered => formatter.write_str("does not hold the source"),
        }
    }
}

impl fmt::Display for Closed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::NodeAway => "node not online",
            Self::PoolAway => "pool not online",
            Self::NodeCordoned => "node cordoned",
            Self::PoolCordoned => "pool cordoned",
            Self::NodeDrained => "node drained",
            Self::PoolDrained => "pool drained",
            Self::CoolingDown => "replicas failed here lately",
            Self::Busy => "node busy with rebuilds",
        })
    }
}

/// A rule about labels as people write it.
struct Labels<'a>(&'a LabelRule);

impl fmt::Display for Labels<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LabelRule { key, values, .. } = self.0;
        let not = if self.0.excluded { "no " } else { "" };
        match values.as_slice() {
            [] => write!(formatter, "{not}label {key}"),
            values => write!(formatter, "{not}label {key}={}", values.join("|")),
        }
    }
}

pub(crate) fn domain_name(domain: Domain) -> &'static str {
    match domain {
        Domain::Unspecified => "domain",
        Domain::Drive => "pool",
        Domain::Node => "node",
        Domain::Rack => "rack",
        Domain::Zone => "zone",
    }
}

pub(crate) fn media_name(media: MediaClass) -> &'static str {
    match media {
        MediaClass::Unspecified => "unknown media",
        MediaClass::Nvme => "NVMe",
        MediaClass::Ssd => "SSD",
        MediaClass::Hdd => "HDD",
        MediaClass::Scratch => "scratch media",
    }
}
