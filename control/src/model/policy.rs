//! How a volume keeps its data, after its template has been asked.

use std::sync::LazyLock;

use pollux_api::control::v1::{PlacementPolicy, Qos, Template, Volume, VolumePolicy};

/// Most replicas of a volume.
pub const REPLICAS_MAX: u32 = super::SLOTS;

static ANYWHERE: LazyLock<PlacementPolicy> = LazyLock::new(PlacementPolicy::default);

/// What applies to a volume.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EffectivePolicy<'a> {
    /// Copies of the data.
    pub replicas: u32,
    /// With fewer in-sync copies no write is acknowledged.
    pub min_in_sync: u32,
    /// Where they may go.
    pub placement: &'a PlacementPolicy,
    /// What hosts may ask; `None` if nothing is limited.
    pub qos: Option<&'a Qos>,
}

impl<'a> EffectivePolicy<'a> {
    /// Of a volume, and of the template that it follows.
    pub fn of(volume: &'a Volume, template: Option<&'a Template>) -> Self {
        let own = volume.spec.as_ref().and_then(|spec| spec.policy.as_ref());
        let template = template
            .and_then(|template| template.spec.as_ref())
            .and_then(|spec| spec.policy.as_ref());
        Self::merge(own, template)
    }

    /// Of both, the first having the say.
    pub fn merge(own: Option<&'a VolumePolicy>, template: Option<&'a VolumePolicy>) -> Self {
        let both = [own, template];
        let policies = || both.into_iter().flatten();
        let replicas = policies().find_map(|policy| policy.replicas).unwrap_or(1);
        let min_in_sync = policies().find_map(|policy| policy.min_in_sync).unwrap_or(1);
        let replicas = replicas.clamp(1, REPLICAS_MAX);
        Self {
            replicas,
            min_in_sync: min_in_sync.clamp(1, replicas),
            placement: policies()
                .find_map(|policy| policy.placement.as_ref())
                .unwrap_or(&ANYWHERE),
            qos: policies()
                .find_map(|policy| policy.qos.as_ref())
                .filter(|qos| !qos.is_nothing()),
        }
    }
}
