//! Where replicas go: a pure function from what is known of pools to a choice of them.
//!
//! The rules are of three kinds:
//!
//! - *filters* say of one pool that it is out of the question ([`rules::judge`]);
//! - *caps* say how many replicas of a volume a pool, node, rack or zone may hold ([`Caps`]). The domains are
//!   a tree, so the sets that the caps admit are the independent sets of a laminar matroid;
//! - *scores* say how good a pool is, less a penalty that grows with each replica of the volume that is
//!   already in the same domain. A sum of single scores and of concave functions on the sets of a tree is
//!   M♮-concave.
//!
//! For such rules, taking the best pool that the caps still admit, again and again, ends with as many
//! replicas as any choice can have and with the highest sum among those. So nothing is searched or taken
//! back, and "fits nowhere" is a proof. `tests.rs` compares with all choices there are.

mod explain;
mod fleet;
mod rules;

#[cfg(test)]
mod tests;

use pollux_api::control::v1::{Domain, PlacementPolicy};

pub use explain::explain;
pub(crate) use explain::media_name;
pub use fleet::{Closed, Fleet, PlacementLimits, Site, SiteId};
pub use rules::Rejection;

/// Kinds of domains, from the smallest to the largest; the index of arrays that have one entry for each.
pub const DOMAINS: [Domain; DOMAIN_KINDS] = [Domain::Drive, Domain::Node, Domain::Rack, Domain::Zone];

/// How many kinds of domains there are.
pub const DOMAIN_KINDS: usize = 4;

/// What each further replica of the same volume in a domain costs, in points, by kind of domain. Loss of a
/// zone is rarer than loss of a rack, but takes more with it.
const SPREAD_PENALTY: [i64; DOMAIN_KINDS] = [0, 2_000, 8_000, 20_000];

/// What is to be placed.
#[derive(Debug, Clone)]
pub struct PlacementRequest<'a> {
    /// The volume: breaks ties.
    pub volume_uid: &'a str,
    /// The size of a replica.
    pub size_bytes: u64,
    /// The rules.
    pub policy: &'a PlacementPolicy,
    /// Where it has replicas that will stay.
    pub kept: &'a [SiteId],
    /// Where it has replicas at all: they do not count as others', and their pools are not taken again.
    pub own: &'a [SiteId],
    /// How many more are wanted.
    pub count: usize,
    /// If given, only these pools are considered.
    pub only: Option<&'a [SiteId]>,
    /// Whether data will be copied there, so that busy nodes are left alone.
    pub is_rebuild: bool,
}

/// A pool that was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placed {
    /// The pool.
    pub site: SiteId,
    /// What spoke for it, in points, less penalties.
    pub score: i64,
}

/// What was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The pools, in the order in which they were chosen.
    pub placed: Vec<Placed>,
    /// How many replicas have no place.
    pub missing: usize,
}

impl Decision {
    /// Whether every replica has a place.
    pub fn fits(&self) -> bool {
        self.missing == 0
    }
}

/// At most how many replicas of a volume a domain may hold, by kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Caps([u32; DOMAIN_KINDS]);

impl Caps {
    /// Those of a policy: one for a pool, one for a node unless a rule says otherwise, any for the others.
    pub(crate) fn of(policy: &PlacementPolicy) -> Self {
        let mut caps = [1, 1, u32::MAX, u32::MAX];
        for rule in &policy.spread {
            if let Some(kind) = domain_index(rule.domain())
                && kind > 0
                && let Some(cap) = caps.get_mut(kind)
            {
                *cap = rule.replicas_max;
            }
        }
        Self(caps)
    }

    fn get(&self, kind: usize) -> u32 {
        self.0.get(kind).copied().unwrap_or(u32::MAX)
    }
}

/// The place of a kind of domain in arrays; nothing for the unspecified one.
pub(crate) fn domain_index(domain: Domain) -> Option<usize> {
    DOMAINS.iter().position(|other| *other == domain)
}

/// How many replicas of one volume are in each domain: few, so that a list is quicker than a map.
#[derive(Debug, Clone, Default)]
pub(crate) struct Occupied(Vec<[u32; DOMAIN_KINDS]>);

impl Occupied {
    fn by(fleet: &Fleet, sites: &[SiteId]) -> Self {
        Self(
            sites
                .iter()
                .filter_map(|id| fleet.site(*id))
                .map(|site| site.domains)
                .collect(),
        )
    }

    fn add(&mut self, site: &Site) {
        self.0.push(site.domains);
    }

    /// How many replicas share the domain of this kind with a pool.
    pub(crate) fn beside(&self, site: &Site, kind: usize) -> u32 {
        let own = site.domains.get(kind);
        let count = self.0.iter().filter(|domains| domains.get(kind) == own).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    /// The kind of the smallest domain that holds no more.
    pub(crate) fn full(&self, site: &Site, caps: &Caps) -> Option<usize> {
        (0..DOMAIN_KINDS).find(|kind| self.beside(site, *kind) >= caps.get(*kind))
    }

    /// What a further replica in a pool costs, in points.
    pub(crate) fn penalty(&self, site: &Site) -> i64 {
        SPREAD_PENALTY
            .iter()
            .enumerate()
            .map(|(kind, penalty)| penalty * i64::from(self.beside(site, kind)))
            .sum()
    }
}

/// Chooses pools.
pub fn decide(fleet: &Fleet, request: &PlacementRequest<'_>) -> Decision {
    let caps = Caps::of(request.policy);
    let own = Occupied::by(fleet, request.own);
    let mut candidates: Vec<(SiteId, &Site, i64)> = fleet
        .sites()
        .filter(|(id, _)| !request.own.contains(id))
        .filter(|(id, _)| request.only.is_none_or(|only| only.contains(id)))
        .filter_map(|(id, site)| {
            let score = rules::judge(fleet, site, request, &own).ok()?;
            Some((id, site, score))
        })
        .collect();
    let mut occupied = Occupied::by(fleet, request.kept);
    let mut placed = Vec::with_capacity(request.count);
    while placed.len() < request.count {
        // What is full stays full: it need not be looked at again.
        candidates.retain(|(_, site, _)| occupied.full(site, &caps).is_none());
        let best = candidates
            .iter()
            .map(|(id, site, score)| {
                let score = score - occupied.penalty(site);
                (score, site.tie(request.volume_uid), *id, *site)
            })
            .max_by_key(|(score, tie, id, _)| (*score, *tie, *id));
        let Some((score, _, site, found)) = best else {
            break;
        };
        occupied.add(found);
        placed.push(Placed { site, score });
    }
    let missing = request.count - placed.len();
    Decision { placed, missing }
}

/// Which of a volume's replicas are where its rules would not have them: on other media, against required
/// labels or affinities, or more in a domain than may be. Of those that are too many in a domain, the later
/// ones.
///
/// Whether a pool is full or takes nothing new does not matter: what is there may stay.
pub fn misplaced(fleet: &Fleet, volume_uid: &str, policy: &PlacementPolicy, sites: &[SiteId]) -> Vec<SiteId> {
    let caps = Caps::of(policy);
    let own = Occupied::by(fleet, sites);
    let request = PlacementRequest {
        volume_uid,
        size_bytes: 0,
        policy,
        kept: &[],
        own: sites,
        count: 0,
        only: None,
        is_rebuild: false,
    };
    let mut right = Occupied::default();
    let mut wrong = Vec::new();
    for id in sites {
        let Some(site) = fleet.site(*id) else { continue };
        let is_right = rules::keep(fleet, site, &request, &own).is_ok();
        if is_right && right.full(site, &caps).is_none() {
            right.add(site);
        } else {
            wrong.push(*id);
        }
    }
    wrong
}
