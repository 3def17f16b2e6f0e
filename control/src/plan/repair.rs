//! Replicas that are lost, leave, or are where they should not be: others in their place, then they go.

use pollux_api::control::v1::{Replica, ReplicaState, Severity, Volume};

use crate::model::Record;
use crate::placement::{PlacementRequest, SiteId, decide, explain, misplaced};

use super::context::Context;
use super::targets;
use super::volume::Draft;

/// What can be expected of a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fitness {
    /// It can be used, and may stay.
    Good,
    /// It cannot be reached; it is waited for.
    Away,
    /// It can be used, and is to leave.
    Leaving,
    /// It is not waited for any more.
    Gone,
}

impl Fitness {
    /// Whether its engine can be asked.
    pub(super) fn is_usable(self) -> bool {
        match self {
            Self::Good | Self::Leaving => true,
            Self::Away | Self::Gone => false,
        }
    }
}

/// What can be expected of a replica.
pub(super) fn fitness(context: &Context<'_>, replica: &Replica) -> Fitness {
    let Some(place) = context
        .place(&replica.pool)
        .filter(|place| place.node == replica.node)
    else {
        return Fitness::Gone;
    };
    if !place.fitness.is_usable() {
        return place.fitness;
    }
    let was_made = replica.state() != ReplicaState::Assigned;
    let is_missing = place.tells && (was_made || place.has_failed) && context.replica(&replica.uid).is_none();
    // Nobody brings it back where it is.
    let since = replica.given_up_unix_us;
    let is_given_up = since.is_some_and(|since| {
        context.world.now_unix_us >= since.saturating_add(context.limits.replace_after_us)
    });
    match (is_missing, is_given_up) {
        (true, _) => Fitness::Gone,
        (false, true) => Fitness::Leaving,
        (false, false) => place.fitness,
    }
}

/// Notes which replicas their target has given up as slow, and since when. What is not known stays as it was.
fn note_given_up(context: &Context<'_>, draft: &mut Draft<'_>) {
    if !targets::serves(context, draft.uid(), &draft.status) {
        return;
    }
    let now_unix_us = context.world.now_unix_us;
    let seconds = context.limits.replace_after_us / 1_000_000;
    for replica in &mut draft.status.replicas {
        let (pool, node) = (&replica.pool, &replica.node);
        match (context.is_given_up(&replica.uid), replica.given_up_unix_us) {
            (true, None) => {
                replica.given_up_unix_us = Some(now_unix_us);
                let text = format!(
                    "its replica in pool {pool} on node {node} was given up, as far slower than the others \
                     again and again: in {seconds} s it is replaced by one in another pool; look at the drive"
                );
                draft.events.push((Severity::Warning, text));
            }
            (false, Some(_)) => {
                replica.given_up_unix_us = None;
                let text = format!("its replica in pool {pool} on node {node} is brought back");
                draft.events.push((Severity::Info, text));
            }
            (true, Some(_)) | (false, None) => {}
        }
    }
}

/// Volumes with smaller numbers are looked at first: with replicas to be replaced, how many are left that
/// can be used; others last.
pub(super) fn urgency(context: &Context<'_>, volume: &Volume) -> u32 {
    let Some(status) = volume.status.as_ref().filter(|status| status.epoch > 0) else {
        return u32::MAX;
    };
    let mut left = 0;
    let mut is_whole = true;
    for replica in &status.replicas {
        match fitness(context, replica) {
            Fitness::Good | Fitness::Leaving if replica.state() == ReplicaState::InSync => left += 1,
            Fitness::Good | Fitness::Leaving | Fitness::Away => {}
            Fitness::Gone => is_whole = false,
        }
    }
    is_whole &= status.replicas.len() >= usize::try_from(context.world.policy(volume).replicas).unwrap_or(1);
    match is_whole {
        true => u32::MAX - 1,
        false => left,
    }
}

/// What is there of a volume's replicas.
struct Census {
    replicas: Vec<(Replica, Fitness)>,
    /// Where the next one has to go, if a plan to rebalance says so.
    only: Option<SiteId>,
}

impl Census {
    fn take(context: &Context<'_>, draft: &Draft<'_>) -> Self {
        let mut replicas: Vec<(Replica, Fitness)> = draft
            .status
            .replicas
            .iter()
            .map(|replica| (replica.clone(), fitness(context, replica)))
            .collect();
        // Those that may stay come first: of too many in a domain, the others have to move. Among those,
        // what is in sync stays.
        let rank = |replica: &Replica, fitness: Fitness| {
            let stays = matches!(fitness, Fitness::Good | Fitness::Away);
            (!stays, replica.state() != ReplicaState::InSync)
        };
        replicas.sort_by_key(|(replica, fitness)| rank(replica, *fitness));
        let staying: Vec<_> = replicas
            .iter()
            .filter(|(_, fitness)| matches!(fitness, Fitness::Good | Fitness::Away))
            .filter_map(|(replica, _)| context.fleet.find(&replica.pool))
            .collect();
        let wrong = misplaced(&context.fleet, draft.uid(), draft.policy.placement, &staying);
        for (replica, fitness) in &mut replicas {
            let site = context.fleet.find(&replica.pool);
            if *fitness == Fitness::Good && site.is_some_and(|site| wrong.contains(&site)) {
                *fitness = Fitness::Leaving;
            }
        }
        let mut census = Self { replicas, only: None };
        census.apply_move(context, draft);
        census
    }

    /// A replica that a plan to rebalance moves is to leave, and the one for it goes where the plan says:
    /// if all is well with the volume but for that.
    fn apply_move(&mut self, context: &Context<'_>, draft: &Draft<'_>) {
        let Some((moved_uid, to)) = context.moves.replica(draft.volume.name()) else {
            return;
        };
        let wanted = usize::try_from(draft.policy.replicas).unwrap_or(1);
        let is_begun = draft.sites(context, |_| true).contains(&to);
        let good = self
            .count(|replica, fitness| fitness == Fitness::Good && replica.state() == ReplicaState::InSync);
        if !is_begun && (good != wanted || good != self.replicas.len()) {
            return;
        }
        for (replica, fitness) in &mut self.replicas {
            if replica.uid == moved_uid && *fitness == Fitness::Good {
                *fitness = Fitness::Leaving;
                self.only = (!is_begun).then_some(to);
            }
        }
    }

    fn count(&self, wanted: impl Fn(&Replica, Fitness) -> bool) -> usize {
        let replicas = self.replicas.iter();
        replicas
            .filter(|(replica, fitness)| wanted(replica, *fitness))
            .count()
    }

    /// Replicas that hold all that was acknowledged and can be asked.
    fn usable_in_sync(&self) -> usize {
        self.count(|replica, fitness| fitness.is_usable() && replica.state() == ReplicaState::InSync)
    }
}

/// From the first epoch on.
pub(super) fn repair(context: &mut Context<'_>, draft: &mut Draft<'_>) {
    for replica in &mut draft.status.replicas {
        if replica.state() == ReplicaState::Assigned && context.replica(&replica.uid).is_some() {
            replica.state = ReplicaState::Rebuilding.into();
        }
    }
    note_given_up(context, draft);
    let wanted = usize::try_from(draft.policy.replicas).unwrap_or(1);
    let census = Census::take(context, draft);
    drop_lost(context, draft, &census, wanted);
    let counted = census.count(|_, fitness| matches!(fitness, Fitness::Good | Fitness::Away));
    if counted < wanted {
        replace(context, draft, &census, wanted - counted);
    }
    if census.usable_in_sync() == 0 {
        draft.status.message = "none of its in-sync replicas can be reached".to_owned();
    }
    drop_surplus(draft, &census, wanted);
}

/// Replicas that are not waited for any more and hold nothing that counts.
fn drop_lost(context: &Context<'_>, draft: &mut Draft<'_>, census: &Census, wanted: usize) {
    let whole = census
        .count(|replica, fitness| fitness == Fitness::Good && replica.state() == ReplicaState::InSync)
        >= wanted;
    for (replica, fitness) in &census.replicas {
        if *fitness != Fitness::Gone {
            continue;
        }
        let is_forgotten = context.place(&replica.pool).is_none();
        let is_dropped = match replica.state() {
            // Its target takes it out of the set first; without a target it may be the last.
            ReplicaState::InSync => false,
            ReplicaState::Assigned | ReplicaState::Rebuilding | ReplicaState::Unspecified => true,
            ReplicaState::Stale => whole || is_forgotten,
        };
        if is_dropped {
            draft.drop_replica(replica, "its place is lost");
        }
    }
}

/// Places more replicas, as far as the limits of rebuilds admit.
fn replace(context: &mut Context<'_>, draft: &mut Draft<'_>, census: &Census, count: usize) {
    let source = draft.status.target_node.clone();
    if census.usable_in_sync() == 0
        || !context.budget.admits(&source, context.limits)
        || !context.may_decide()
    {
        return;
    }
    let stays = |replica: &Replica| {
        census.replicas.iter().any(|(other, fitness)| {
            other.uid == replica.uid && matches!(fitness, Fitness::Good | Fitness::Away)
        })
    };
    let only = census.only.map(|site| vec![site]);
    let kept = draft.sites(context, stays);
    let own = draft.sites(context, |_| true);
    let request = PlacementRequest {
        volume_uid: &draft.volume.meta().uid,
        size_bytes: draft.spec.size_bytes,
        policy: draft.policy.placement,
        kept: &kept,
        own: &own,
        count,
        only: only.as_deref(),
        is_rebuild: true,
    };
    let decision = decide(&context.fleet, &request);
    if decision.placed.is_empty() {
        draft.status.message = explain(&context.fleet, &request).summary;
        return;
    }
    for placed in decision.placed {
        let node = context.fleet.site(placed.site).map(|site| site.node.clone());
        let Some(node) = node else { continue };
        if !context.budget.admits(&source, context.limits) || !context.budget.admits(&node, context.limits) {
            break;
        }
        context.take_rebuild(&node, &source);
        draft.add_replica(context, placed.site);
    }
}

/// Replicas that are too many, or are to leave, once enough others are in sync. Those in sync are taken out
/// of the set by their target first.
fn drop_surplus(draft: &mut Draft<'_>, census: &Census, wanted: usize) {
    let mut leaving: Vec<&str> = Vec::new();
    find_surplus(draft, census, wanted, &mut leaving);
    for replica in &mut draft.status.replicas {
        let is_leaving = leaving.contains(&replica.uid.as_str());
        if is_leaving && !replica.leaving {
            let text = format!("its replica in pool {} is to leave the in-sync set", replica.pool);
            draft.events.push((Severity::Info, text));
        }
        replica.leaving = is_leaving;
    }
}

/// Drops what holds nothing that counts, and finds what is to leave the set.
fn find_surplus<'a>(draft: &mut Draft<'_>, census: &'a Census, wanted: usize, leaving: &mut Vec<&'a str>) {
    let least = usize::try_from(draft.policy.min_in_sync).unwrap_or(1).max(1);
    let mut whole =
        census.count(|replica, fitness| fitness == Fitness::Good && replica.state() == ReplicaState::InSync);
    if whole < wanted {
        return;
    }
    let mut usable = census.usable_in_sync();
    // The last that were placed go first, and the one beside the target last.
    let mut candidates: Vec<&(Replica, Fitness)> = census.replicas.iter().collect();
    candidates.sort_by_key(|(replica, fitness)| {
        let position = draft
            .status
            .replicas
            .iter()
            .position(|other| other.uid == replica.uid);
        (
            *fitness != Fitness::Leaving,
            replica.state() == ReplicaState::InSync,
            replica.node == draft.status.target_node,
            std::cmp::Reverse(position),
        )
    });
    for (replica, fitness) in candidates {
        let is_in_sync = replica.state() == ReplicaState::InSync;
        let is_dropped = match fitness {
            // Dropped above, or taken out of the set by the target first.
            Fitness::Gone => false,
            Fitness::Leaving => true,
            // It is not known what it holds: with enough others it is of no use unless it counts.
            Fitness::Away => !is_in_sync,
            Fitness::Good => !is_in_sync || whole > wanted,
        };
        if !is_dropped || (is_in_sync && usable <= least) {
            continue;
        }
        if draft.has_alone(replica) {
            draft.status.message = format!(
                "its replica in pool {} stays: it alone has a snapshot, which has to be deleted first",
                replica.pool
            );
            continue;
        }
        if is_in_sync {
            usable -= 1;
            if *fitness == Fitness::Good {
                whole -= 1;
            }
            leaving.push(&replica.uid);
            continue;
        }
        let why = match fitness {
            Fitness::Leaving => "it is to leave its place, and others took over",
            Fitness::Good | Fitness::Away | Fitness::Gone => "there are enough others",
        };
        draft.drop_replica(replica, why);
    }
}
