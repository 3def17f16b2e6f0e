//! Who this engine is to the control plane and to other engines, and who may tell it what to do.
//!
//! With mutual TLS a caller is what its certificate says: the common name is its name, the organizational
//! unit its role, as in the control plane. Without, the interface listens on the loopback interface only,
//! and every caller is the administrator of this machine.

use std::path::Path;

use pollux_tls::{Certificates, TlsError};
use tonic::{Request, Status};
use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::pools::unix_seconds;

/// The role of control planes, and of people who may do everything.
const ROLE_ADMIN: &str = "admin";

/// The role of engines.
const ROLE_ENGINE: &str = "engine";

/// Seconds of a day.
const DAY_S: i64 = 86_400;

/// With fewer days left a certificate is told to expire soon.
const DAYS_LEFT_MIN: i64 = 30;

/// Reads the certificates of the engine of a node. New ones by which nobody would know it are not used.
///
/// # Errors
///
/// Those of files; a certificate by which nobody would know this node.
pub(super) fn open(directory: &Path, node: &str) -> Result<Certificates, TlsError> {
    let node = node.to_owned();
    Certificates::open(directory, move |own| check_own(own, &node, unix_seconds()))
}

/// Whether a certificate is one that this node is known by; if not, why.
fn check_own(pem: &[u8], node: &str, now_unix_s: u64) -> Result<(), String> {
    let (_, pem) = parse_x509_pem(pem).map_err(|error| format!("is no certificate: {error}"))?;
    let certificate = pem.parse_x509();
    let certificate = certificate.map_err(|error| format!("is no certificate: {error}"))?;
    let role = role(&certificate).unwrap_or_default();
    let mut names = certificate.subject().iter_common_name();
    let name = names
        .next()
        .and_then(|name| name.as_str().ok())
        .unwrap_or_default();
    if role == ROLE_ENGINE && name != node {
        return Err(format!(
            "is the certificate of node {name}, and this is node {node}: issue one for it (`pollux cert \
             issue {node} --role engine`), or correct `cluster.node`"
        ));
    }
    if role != ROLE_ENGINE && role != ROLE_ADMIN {
        return Err(format!(
            "has the role {role:?}, and an engine needs the role engine (`pollux cert issue {node} --role \
             engine`)"
        ));
    }
    let now_unix_s = i64::try_from(now_unix_s).unwrap_or(i64::MAX);
    let end_unix_s = certificate.validity().not_after.timestamp();
    if now_unix_s >= end_unix_s {
        let end = certificate.validity().not_after;
        return Err(format!(
            "has expired at {end}: issue another with `pollux cert issue`, and see that the clock is right"
        ));
    }
    let days_left = (end_unix_s - now_unix_s) / DAY_S;
    if days_left < DAYS_LEFT_MIN {
        tracing::warn!(
            days_left,
            "the certificate of this engine expires soon: issue another one"
        );
    }
    Ok(())
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
    role(&certificate).map(str::to_owned)
}

fn role<'a>(certificate: &'a X509Certificate<'_>) -> Option<&'a str> {
    let unit = certificate.subject().iter_organizational_unit().next()?;
    unit.as_str().ok()
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, date_time_ymd};

    use super::*;

    fn pem(name: &str, role: &str) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params
            .distinguished_name
            .push(DnType::OrganizationalUnitName, role);
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
        let key = KeyPair::generate().expect("a key");
        params
            .self_signed(&key)
            .expect("a certificate")
            .pem()
            .into_bytes()
    }

    #[test]
    fn a_certificate_by_which_nobody_would_know_the_node_is_refused() {
        // In the summer of 2020, and a year later.
        let (good, late) = (1_593_000_000, 1_624_536_000);
        for (name, role) in [("n1", "engine"), ("root", "admin")] {
            assert_eq!(check_own(&pem(name, role), "n1", good), Ok(()));
        }
        for (pem, now, why) in [
            (pem("n2", "engine"), good, "of node n2, and this is node n1"),
            (pem("n1", "viewer"), good, "has the role \"viewer\""),
            (pem("n1", "engine"), late, "has expired"),
            (b"no".to_vec(), good, "is no certificate"),
        ] {
            let told = check_own(&pem, "n1", now).expect_err(why);
            assert!(told.contains(why), "{told}");
        }
    }
}
