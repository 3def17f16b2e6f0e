//! GetCapacity.
//!
//! The largest volume is found by asking the control plane for plans, which know every rule that a volume
//! would be held to. What is available altogether is an estimate: free space of the pools that such volumes
//! may go to, divided by their copies.

use pbjson_types::Int64Value;
use pollux_api::control::v1::{
    self as control, ListPoolsRequest, MediaClass, Metadata, PlanVolumeRequest, Pool, PoolState,
};
use pollux_api::csi::v1::{GetCapacityRequest, GetCapacityResponse};

use crate::capability::Capability;
use crate::control::Pages;
use crate::error::CallError;
use crate::parameters::Parameters;
use crate::topology::Places;

use super::ControllerService;
use super::answer::signed;
use super::create::{VOLUME_BYTES_MAX, VOLUME_BYTES_MIN};

/// How exactly the largest volume is looked for, in parts of its size: 1/64.
const EXACT_SHIFT: u32 = 6;

impl ControllerService {
    pub(super) async fn capacity(
        &self,
        request: GetCapacityRequest,
    ) -> Result<GetCapacityResponse, CallError> {
        let none = std::collections::HashMap::new();
        let parameters = Parameters::read(&request.parameters, &none)?;
        if !request.volume_capabilities.is_empty()
            && Capability::read_all("volume_capabilities", &request.volume_capabilities).is_err()
        {
            // Volumes of that kind there are none.
            return Ok(GetCapacityResponse::default());
        }
        let places = Places::one(request.accessible_topology.as_ref())?;
        let available = self.available(&parameters).await?;
        let largest = self.largest(&parameters, &places).await?;
        Ok(GetCapacityResponse {
            available_capacity: signed(available.max(largest)),
            maximum_volume_size: Some(Int64Value {
                value: signed(largest),
            }),
            minimum_volume_size: Some(Int64Value {
                value: signed(VOLUME_BYTES_MIN),
            }),
        })
    }

    /// Bytes of the largest volume that has a place; 0 if none has.
    async fn largest(&self, parameters: &Parameters, places: &Places) -> Result<u64, CallError> {
        if !self.fits(parameters, places, VOLUME_BYTES_MIN).await? {
            return Ok(0);
        }
        let (mut fits, mut fails) = (VOLUME_BYTES_MIN, VOLUME_BYTES_MAX);
        if self.fits(parameters, places, fails).await? {
            return Ok(fails);
        }
        // First the power of two, then between it and the next one.
        while fits * 2 < fails {
            let middle = match fails / fits {
                ratio if ratio > 2 => fits << ((63 - ratio.leading_zeros()) / 2).max(1),
                _ => break,
            };
            match self.fits(parameters, places, middle).await? {
                true => fits = middle,
                false => fails = middle,
            }
        }
        while (fails - fits) >> VOLUME_BYTES_MIN.trailing_zeros() > 1 && fails - fits > fits >> EXACT_SHIFT {
            let middle = fits + (fails - fits) / 2;
            let middle = middle / VOLUME_BYTES_MIN * VOLUME_BYTES_MIN;
            match self.fits(parameters, places, middle).await? {
                true => fits = middle,
                false => fails = middle,
            }
        }
        Ok(fits)
    }

    async fn fits(&self, parameters: &Parameters, places: &Places, size: u64) -> Result<bool, CallError> {
        let volume = control::Volume {
            metadata: Some(Metadata {
                name: "capacity".to_owned(),
                ..Metadata::default()
            }),
            spec: Some(parameters.spec(size, places)),
            status: None,
        };
        let request = PlanVolumeRequest { volume: Some(volume) };
        Ok(self
            .control
            .volumes()
            .plan_volume(request)
            .await?
            .into_inner()
            .fits)
    }

    /// An estimate of the bytes that all volumes together can still have.
    async fn available(&self, parameters: &Parameters) -> Result<u64, CallError> {
        let replicas = match (parameters.replicas, &parameters.mutable.template) {
            (Some(replicas), _) => replicas,
            (None, None) => 1,
            (None, Some(name)) => {
                let request = control::GetTemplateRequest { name: name.clone() };
                let template = self.control.templates().get_template(request).await?.into_inner();
                let policy = template.spec.and_then(|spec| spec.policy);
                policy.and_then(|policy| policy.replicas).unwrap_or(1)
            }
        };
        let mut free = 0_u64;
        let mut pages = Pages::all();
        while let Some(page) = pages.request() {
            let request = ListPoolsRequest { page: Some(page) };
            let answer = self.control.pools().list_pools(request).await?.into_inner();
            for pool in &answer.pools {
                free = free.saturating_add(free_bytes(pool, parameters.media));
            }
            pages.came(answer.next_page_token);
        }
        Ok(free / u64::from(replicas.max(1)))
    }
}

/// Bytes of a pool that new volumes can have.
fn free_bytes(pool: &Pool, media: Option<MediaClass>) -> u64 {
    let spec = pool.spec.clone().unwrap_or_default();
    let status = pool.status.clone().unwrap_or_default();
    let takes = status.state() == PoolState::Online
        && !spec.cordoned
        && !spec.drained
        && media.is_none_or(|media| media == spec.media());
    match takes {
        true => status.capacity_bytes.saturating_sub(status.used_bytes),
        false => 0,
    }
}
