//! What would be decided, without doing it.

use pollux_api::control::v1::{PlanVolumeResponse, PreviewTemplateResponse, Template, Volume, VolumePreview};

use crate::model::{EffectivePolicy, Record};
use crate::placement::{PlacementRequest, SiteId, decide, explain, misplaced};
use crate::world::World;

use super::Limits;
use super::context::Context;

/// Volumes that a preview tells of by name.
const CHANGES_MAX: usize = 1000;

/// Where a new volume would go, and why.
pub fn explain_volume(world: &World, limits: &Limits, volume: &Volume) -> PlanVolumeResponse {
    let context = Context::of_places(world, limits);
    let policy = world.policy(volume);
    let spec = volume.spec.clone().unwrap_or_default();
    let source = source_sites(&context, world, &spec.source_snapshot);
    let request = PlacementRequest {
        volume_uid: &volume.meta().uid,
        size_bytes: spec.size_bytes,
        policy: policy.placement,
        kept: &[],
        own: &[],
        count: usize::try_from(policy.replicas).unwrap_or(1),
        only: source.as_deref(),
        is_rebuild: false,
    };
    explain(&context.fleet, &request)
}

/// The pools that hold a snapshot.
fn source_sites(context: &Context<'_>, world: &World, snapshot: &str) -> Option<Vec<SiteId>> {
    let snapshot = world.snapshots.get(snapshot)?;
    let origin = snapshot
        .spec
        .as_ref()
        .and_then(|spec| world.volumes.get(&spec.volume))?;
    let replicas = origin.status.iter().flat_map(|status| &status.replicas);
    Some(
        replicas
            .filter_map(|replica| context.fleet.find(&replica.pool))
            .collect(),
    )
}

/// What another version of a template would do to the volumes that follow it.
pub fn preview(world: &World, limits: &Limits, template: &Template) -> PreviewTemplateResponse {
    let mut context = Context::of_places(world, limits);
    let mut answer = PreviewTemplateResponse::default();
    for volume in world.volumes.values().filter(|volume| !volume.is_deleting()) {
        let follows = volume
            .spec
            .as_ref()
            .is_some_and(|spec| spec.template == template.name());
        if !follows {
            continue;
        }
        answer.volumes += 1;
        let Some((change, copied_bytes)) = preview_volume(&mut context, volume, template) else {
            continue;
        };
        answer.copied_bytes_max = answer.copied_bytes_max.saturating_add(copied_bytes);
        if answer.changes.len() < CHANGES_MAX {
            answer.changes.push(change);
        }
    }
    answer
}

/// What would become of one volume, if anything, and the bytes that would be copied.
fn preview_volume(
    context: &mut Context<'_>,
    volume: &Volume,
    template: &Template,
) -> Option<(VolumePreview, u64)> {
    let spec = volume.spec.as_ref()?;
    let status = volume.status.as_ref()?;
    let policy = EffectivePolicy::of(volume, Some(template));
    let wanted = usize::try_from(policy.replicas).unwrap_or(1);
    let own: Vec<SiteId> = status
        .replicas
        .iter()
        .filter_map(|replica| context.fleet.find(&replica.pool))
        .collect();
    let mut removed = misplaced(&context.fleet, &volume.meta().uid, policy.placement, &own);
    let mut kept: Vec<SiteId> = own
        .iter()
        .copied()
        .filter(|site| !removed.contains(site))
        .collect();
    if kept.len() > wanted {
        removed.extend(kept.split_off(wanted));
    }
    let request = PlacementRequest {
        volume_uid: &volume.meta().uid,
        size_bytes: spec.size_bytes,
        policy: policy.placement,
        kept: &kept,
        own: &own,
        count: wanted.saturating_sub(kept.len()),
        only: None,
        is_rebuild: false,
    };
    let decision = decide(&context.fleet, &request);
    let problem = match decision.fits() {
        true => String::new(),
        false => explain(&context.fleet, &request).summary,
    };
    if !decision.fits() {
        // Until all have a place, those that are there stay.
        removed.truncate(decision.placed.len());
    }
    let qos = policy.qos.copied();
    let is_limited_anew = qos != context.world.policy(volume).qos.copied();
    if removed.is_empty() && decision.placed.is_empty() && problem.is_empty() && !is_limited_anew {
        return None;
    }
    let groups = policy.placement.affinity_groups.clone();
    for placed in &decision.placed {
        context.fleet.occupy(placed.site, spec.size_bytes, &groups);
    }
    let name = |site: SiteId| context.fleet.site(site).map(|site| site.pool.clone());
    let added = u64::try_from(decision.placed.len()).unwrap_or(u64::MAX);
    let change = VolumePreview {
        volume: volume.name().to_owned(),
        added_pools: decision
            .placed
            .iter()
            .filter_map(|placed| name(placed.site))
            .collect(),
        removed_pools: removed.into_iter().filter_map(name).collect(),
        problem,
        // No limits are some too, if there were others.
        qos: is_limited_anew.then(|| qos.unwrap_or_default()),
    };
    Some((change, spec.size_bytes.saturating_mul(added)))
}
