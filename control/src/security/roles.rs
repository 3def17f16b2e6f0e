//! Roles, and what they may do.

use std::fmt;
use std::str::FromStr;

use pollux_http::PeerCertificates;
use tonic::Request;
use tonic::transport::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::server::CallError;

/// What callers are trusted with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, clap::ValueEnum)]
pub enum Role {
    /// Looks.
    Viewer,
    /// Looks, and makes and publishes volumes and snapshots.
    Csi,
    /// What csi may, and nodes, pools, templates and groups.
    Operator,
    /// All.
    Admin,
    /// An engine: reports of its own node, and in-sync sets of the volumes that it serves.
    Engine,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Viewer, Self::Csi, Self::Operator, Self::Admin, Self::Engine];

    /// Its name in certificates.
    pub fn name(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Csi => "csi",
            Self::Operator => "operator",
            Self::Admin => "admin",
            Self::Engine => "engine",
        }
    }

    /// Whether it may do that.
    pub fn may(self, action: Action) -> bool {
        match (self, action) {
            (Self::Admin, _) => true,
            (Self::Operator, Action::Read | Action::Provision | Action::Operate) => true,
            (Self::Csi, Action::Read | Action::Provision) => true,
            (Self::Viewer, Action::Read) => true,
            (Self::Engine, Action::Report) => true,
            (_, Action::Administer) => false,
            (Self::Operator, Action::Report)
            | (Self::Csi, Action::Operate | Action::Report)
            | (Self::Viewer, Action::Provision | Action::Operate | Action::Report)
            | (Self::Engine, Action::Read | Action::Provision | Action::Operate) => false,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let role = Self::ALL.into_iter().find(|role| role.name() == text);
        role.ok_or_else(|| format!("{text:?} is no role"))
    }
}

/// What calls do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Get, list, watch, plan.
    Read,
    /// Volumes and snapshots.
    Provision,
    /// Nodes, pools, templates, groups.
    Operate,
    /// What engines tell.
    Report,
    /// Tokens, and records that were lost.
    Administer,
}

impl Action {
    /// The least that may do it, for people.
    fn needed(self) -> &'static str {
        match self {
            Self::Read => "viewer",
            Self::Provision => "csi",
            Self::Operate => "operator",
            Self::Report => "engine",
            Self::Administer => "admin",
        }
    }
}

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The name, for people and for engines that of their node.
    pub name: String,
    /// The role.
    pub role: Role,
}

impl Caller {
    /// The node that the caller is the engine of; nothing if it may speak for any.
    pub fn node(&self) -> Option<&str> {
        match self.role {
            Role::Engine => Some(&self.name),
            Role::Viewer | Role::Csi | Role::Operator | Role::Admin => None,
        }
    }

    /// Refuses engines that speak for other nodes.
    pub(crate) fn require_node(&self, node: &str) -> Result<(), CallError> {
        match self.node() {
            Some(own) if own != node => Err(CallError::Role {
                caller: self.name.clone(),
                role: self.role.to_string(),
                needed: format!("engine of node {node}"),
            }),
            _ => Ok(()),
        }
    }

    /// What a certificate says.
    fn of_certificate(der: &[u8]) -> Result<Self, CallError> {
        let unknown = |why: &str| CallError::Unauthenticated(format!("its certificate {why}"));
        let (_, certificate) =
            X509Certificate::from_der(der).map_err(|error| unknown(&format!("cannot be read: {error}")))?;
        let subject = certificate.subject();
        let name = subject
            .iter_common_name()
            .next()
            .and_then(|name| name.as_str().ok())
            .ok_or_else(|| unknown("has no common name"))?;
        let role = subject
            .iter_organizational_unit()
            .next()
            .and_then(|unit| unit.as_str().ok())
            .ok_or_else(|| unknown("has no organizational unit, which tells the role"))?;
        Ok(Self {
            name: name.to_owned(),
            role: role
                .parse()
                .map_err(|error: String| unknown(&format!("has no role: {error}")))?,
        })
    }
}

/// Who calls by a token, or why nobody is known by it: an extension of requests that have one.
#[derive(Debug, Clone)]
pub struct Authenticated(pub Result<Caller, CallError>);

/// Who may do what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// Only this machine can call, and all of it may do everything.
    Local,
    /// Callers are what their certificates say.
    Certificates,
}

impl Guard {
    /// Who calls, if the caller may do that.
    ///
    /// # Errors
    ///
    /// [`CallError::Unauthenticated`], [`CallError::Role`].
    pub fn permit<T>(self, request: &Request<T>, action: Action) -> Result<Caller, CallError> {
        self.permit_by(request.extensions(), request.peer_certs().as_deref(), action)
    }

    /// The same, by what goes with a request.
    ///
    /// # Errors
    ///
    /// Those of [`Guard::permit`].
    pub(crate) fn permit_by(
        self,
        extensions: &axum::http::Extensions,
        certificates: Option<&Vec<CertificateDer<'static>>>,
        action: Action,
    ) -> Result<Caller, CallError> {
        let caller = match (extensions.get::<Authenticated>(), self) {
            // Who gives a token is what the token says, and nobody if it says nothing.
            (Some(Authenticated(found)), _) => found.clone()?,
            (None, Self::Local) => Caller {
                name: "local".to_owned(),
                role: Role::Admin,
            },
            (None, Self::Certificates) => {
                let by_http = extensions.get::<PeerCertificates>();
                let own = certificates
                    .and_then(|certificates| certificates.first())
                    .map(|own| own.as_ref())
                    .or_else(|| by_http.and_then(|by_http| by_http.0.first()).map(Vec::as_slice));
                let own = own.ok_or_else(|| {
                    CallError::Unauthenticated(
                        "give a certificate of the cluster (`pollux cert`) or a token (`pollux token`)"
                            .to_owned(),
                    )
                })?;
                Caller::of_certificate(own)?
            }
        };
        match caller.role.may(action) {
            true => Ok(caller),
            false => Err(CallError::Role {
                needed: action.needed().to_owned(),
                role: caller.role.to_string(),
                caller: caller.name,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_may_what_the_manual_says() {
        let all = [
            Action::Read,
            Action::Provision,
            Action::Operate,
            Action::Report,
            Action::Administer,
        ];
        let permitted = |role: Role| all.map(|action| role.may(action));
        assert_eq!(permitted(Role::Viewer), [true, false, false, false, false]);
        assert_eq!(permitted(Role::Csi), [true, true, false, false, false]);
        assert_eq!(permitted(Role::Operator), [true, true, true, false, false]);
        assert_eq!(permitted(Role::Engine), [false, false, false, true, false]);
        assert_eq!(permitted(Role::Admin), [true; 5]);
    }

    #[test]
    fn engines_speak_for_their_own_node() {
        let engine = Caller {
            name: "n1".to_owned(),
            role: Role::Engine,
        };
        assert!(engine.require_node("n1").is_ok());
        assert!(engine.require_node("n2").is_err());
    }

    #[test]
    fn bytes_that_are_no_certificate_are_refused() {
        for bytes in [&b""[..], b"x", &[0x30, 0x82, 0xff, 0xff]] {
            assert!(matches!(
                Caller::of_certificate(bytes),
                Err(CallError::Unauthenticated(_))
            ));
        }
    }
}
