//! Who this engine is to the control plane and to other engines, and who may tell it what to do.
//!
//! With mutual TLS a caller is what its certificate says: the common name is its name, the organizational
//! unit its role, as in the control plane. Without, the interface listens on the loopback interface only,
//! and every caller is the administrator of this machine.

use std::io;
use std::path::Path;

use tonic::transport::{Certificate, ClientTlsConfig, Identity, ServerTlsConfig};
use tonic::{Request, Status};
use x509_parser::prelude::{FromDer, X509Certificate};

/// The role of control planes, and of people who may do everything.
const ROLE_ADMIN: &str = "admin";

/// The role of engines.
const ROLE_ENGINE: &str = "engine";

/// What is read from a directory of certificates.
#[derive(Clone)]
pub(super) struct Certificates {
    authority: Certificate,
    own: Identity,
}

impl Certificates {
    /// Reads authority.pem, own.pem and own.key.
    ///
    /// # Errors
    ///
    /// Those of the file system, with the path.
    pub(super) fn read(directory: &Path) -> io::Result<Self> {
        let read = |name: &str| {
            let path = directory.join(name);
            std::fs::read(&path)
                .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
        };
        Ok(Self {
            authority: Certificate::from_pem(read("authority.pem")?),
            own: Identity::from_pem(read("own.pem")?, read("own.key")?),
        })
    }

    /// For those who call this engine.
    pub(super) fn server(&self) -> ServerTlsConfig {
        ServerTlsConfig::new()
            .identity(self.own.clone())
            .client_ca_root(self.authority.clone())
    }

    /// For those whom this engine calls.
    pub(super) fn client(&self) -> ClientTlsConfig {
        ClientTlsConfig::new()
            .identity(self.own.clone())
            .ca_certificate(self.authority.clone())
    }
}

/// Who may call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Guard {
    /// Only this machine can, and all of it may.
    Local,
    /// Callers are what their certificates say.
    Certificates,
}

impl Guard {
    /// Refuses whoever is not the control plane.
    pub(super) fn require_control<T>(self, request: &Request<T>) -> Result<(), Status> {
        self.require(request, &[ROLE_ADMIN])
    }

    /// Refuses whoever is neither another engine nor the control plane.
    pub(super) fn require_engine<T>(self, request: &Request<T>) -> Result<(), Status> {
        self.require(request, &[ROLE_ADMIN, ROLE_ENGINE])
    }

    fn require<T>(self, request: &Request<T>, roles: &[&str]) -> Result<(), Status> {
        if self == Self::Local {
            return Ok(());
        }
        let certificates = request.peer_certs();
        let own = certificates
            .as_ref()
            .and_then(|certificates| certificates.first());
        let role = own.and_then(|own| role_of(own));
        match role {
            Some(role) if roles.contains(&role.as_str()) => Ok(()),
            Some(role) => Err(Status::permission_denied(format!(
                "the caller has the role {role}, and it takes {}",
                roles.join(" or ")
            ))),
            None => Err(Status::unauthenticated("give a certificate of the cluster")),
        }
    }
}

/// The role that a certificate says.
pub(crate) fn role_of(der: &[u8]) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let unit = certificate.subject().iter_organizational_unit().next()?;
    Some(unit.as_str().ok()?.to_owned())
}
