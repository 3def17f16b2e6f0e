//! The identity service.

use pbjson_types::BoolValue;
use pollux_api::csi::v1::identity_server::Identity;
use pollux_api::csi::v1::plugin_capability::service::Type as ServiceType;
use pollux_api::csi::v1::plugin_capability::volume_expansion::Type as ExpansionType;
use pollux_api::csi::v1::plugin_capability::{Service, Type, VolumeExpansion};
use pollux_api::csi::v1::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest, GetPluginInfoResponse,
    PluginCapability, ProbeRequest, ProbeResponse,
};
use tonic::{Request, Response, Status};

use crate::control::ControlPlane;
use crate::names::DRIVER;

/// Says who the driver is.
#[derive(Debug, Clone)]
pub struct IdentityService {
    /// Whether nodes tell where they stand.
    has_topology: bool,
    /// Asked whether it answers, by those who probe the controller service.
    control: Option<ControlPlane>,
}

impl IdentityService {
    /// Beside a controller service, or without a control plane beside a node service.
    pub fn new(has_topology: bool, control: Option<ControlPlane>) -> Self {
        Self {
            has_topology,
            control,
        }
    }
}

#[tonic::async_trait]
impl Identity for IdentityService {
    async fn get_plugin_info(
        &self,
        _: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        Ok(Response::new(GetPluginInfoResponse {
            name: DRIVER.to_owned(),
            vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
            ..GetPluginInfoResponse::default()
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        let service = |kind: ServiceType| Type::Service(Service { r#type: kind.into() });
        // Those of the whole driver, whichever part is asked (CSI specification, GetPluginCapabilities).
        let mut kinds = vec![
            service(ServiceType::ControllerService),
            service(ServiceType::GroupControllerService),
            service(ServiceType::SnapshotMetadataService),
            Type::VolumeExpansion(VolumeExpansion {
                r#type: ExpansionType::Online.into(),
            }),
        ];
        if self.has_topology {
            kinds.push(service(ServiceType::VolumeAccessibilityConstraints));
        }
        let capabilities = kinds.into_iter();
        Ok(Response::new(GetPluginCapabilitiesResponse {
            capabilities: capabilities
                .map(|kind| PluginCapability { r#type: Some(kind) })
                .collect(),
        }))
    }

    /// A control plane that does not answer makes the driver not ready; restarting it would not help, so
    /// that is no error.
    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        let ready = match &self.control {
            None => true,
            Some(control) => match control.probe().await {
                Ok(()) => true,
                Err(error) => {
                    tracing::warn!(%error, "the control plane does not answer");
                    false
                }
            },
        };
        Ok(Response::new(ProbeResponse {
            ready: Some(BoolValue { value: ready }),
        }))
    }
}
