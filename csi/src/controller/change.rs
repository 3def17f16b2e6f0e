//! ControllerExpandVolume, ControllerModifyVolume, ValidateVolumeCapabilities.

use pollux_api::control::v1::{self as control, Reason, Volume};
use pollux_api::csi::v1::validate_volume_capabilities_response::Confirmed;
use pollux_api::csi::v1::{
    ControllerExpandVolumeRequest, ControllerExpandVolumeResponse, ControllerModifyVolumeRequest,
    ControllerModifyVolumeResponse, ValidateVolumeCapabilitiesRequest, ValidateVolumeCapabilitiesResponse,
};

use crate::capability::Capability;
use crate::control::{ATTEMPTS_MAX, Waiting, reason};
use crate::error::CallError;
use crate::parameters::{Mutable, Parameters};

use super::ControllerService;
use super::answer::{require_makeable, signed, size_of};
use super::create::Range;

impl ControllerService {
    /// Changes a volume, as often as it takes; nothing is sent if nothing changes.
    async fn update(
        &self,
        id: &str,
        paths: &[&str],
        change: impl Fn(&mut Volume) -> Result<(), CallError>,
    ) -> Result<Volume, CallError> {
        for _ in 0..ATTEMPTS_MAX {
            let volume = self.control.volume(id).await?;
            let mut changed = volume.clone();
            change(&mut changed)?;
            if changed == volume {
                return Ok(volume);
            }
            if let Some(updated) = self.control.try_update(changed, paths).await? {
                return Ok(updated);
            }
        }
        Err(CallError::Pending {
            kind: "volume",
            id: id.to_owned(),
            what: "others change it all the time".to_owned(),
        })
    }

    pub(super) async fn expand(
        &self,
        request: ControllerExpandVolumeRequest,
    ) -> Result<ControllerExpandVolumeResponse, CallError> {
        let id = request.volume_id;
        if id.is_empty() {
            return Err(CallError::missing("volume_id"));
        }
        if request.capacity_range.is_none() {
            return Err(CallError::missing("capacity_range"));
        }
        if request.volume_capability.is_some() {
            Capability::read("volume_capability", request.volume_capability.as_ref())?;
        }
        let range = Range::read(request.capacity_range.as_ref())?;
        let grow = |volume: &mut Volume| {
            // It stays as large as it is if that is enough; it cannot shrink into the range.
            require_makeable(volume)?;
            let size = range.choose(size_of(volume))?;
            volume.spec.get_or_insert_default().size_bytes = size;
            Ok(())
        };
        let volume = self.update(&id, &["spec.size_bytes"], grow).await?;
        let wanted = size_of(&volume);
        let mut waiting = Waiting::default();
        loop {
            let volume = self.control.volume(&id).await?;
            require_makeable(&volume)?;
            let served = volume.status.as_ref().map_or(0, |status| status.size_bytes);
            if served >= wanted.max(range.required()) {
                return Ok(ControllerExpandVolumeResponse {
                    capacity_bytes: signed(served),
                    node_expansion_required: true,
                });
            }
            waiting.pause("volume", &id, "its copies are growing").await?;
        }
    }

    pub(super) async fn modify(
        &self,
        request: ControllerModifyVolumeRequest,
    ) -> Result<ControllerModifyVolumeResponse, CallError> {
        let id = request.volume_id;
        if id.is_empty() {
            return Err(CallError::missing("volume_id"));
        }
        let mutable = Mutable::read(&request.mutable_parameters)?;
        if let Some(template) = &mutable.template {
            self.require_template(template).await?;
        }
        let paths = ["spec.template", "spec.policy"];
        self.update(&id, &paths, |volume| {
            mutable.apply(volume.spec.get_or_insert_default());
            Ok(())
        })
        .await?;
        Ok(ControllerModifyVolumeResponse {})
    }

    async fn require_template(&self, name: &str) -> Result<(), CallError> {
        let request = control::GetTemplateRequest {
            name: name.to_owned(),
        };
        match self.control.templates().get_template(request).await {
            Ok(_) => Ok(()),
            Err(status) if reason(&status) == Some(Reason::NotFound) => {
                let problem = format!("names the template {name}, which is not there");
                Err(CallError::argument("mutable_parameters", problem))
            }
            Err(status) => Err(status.into()),
        }
    }

    pub(super) async fn validate(
        &self,
        request: ValidateVolumeCapabilitiesRequest,
    ) -> Result<ValidateVolumeCapabilitiesResponse, CallError> {
        if request.volume_id.is_empty() {
            return Err(CallError::missing("volume_id"));
        }
        if request.volume_capabilities.is_empty() {
            return Err(CallError::missing("volume_capabilities"));
        }
        self.control.volume(&request.volume_id).await?;
        let supported = Capability::read_all("volume_capabilities", &request.volume_capabilities)
            .and_then(|_| Parameters::read(&request.parameters, &request.mutable_parameters));
        Ok(match supported {
            Ok(_) => ValidateVolumeCapabilitiesResponse {
                confirmed: Some(Confirmed {
                    volume_context: request.volume_context,
                    volume_capabilities: request.volume_capabilities,
                    parameters: request.parameters,
                    mutable_parameters: request.mutable_parameters,
                }),
                message: String::new(),
            },
            Err(error) => ValidateVolumeCapabilitiesResponse {
                confirmed: None,
                message: error.to_string(),
            },
        })
    }
}
