//! A private authority for those who have none, and the certificates that it gives.

use std::time::SystemTime;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use time::{Duration, OffsetDateTime};

use super::Role;

/// For how long a certificate is good, in days, unless told otherwise.
pub const LIFETIME_DAYS_DEFAULT: u32 = 365;

/// For how many days a certificate can be good: as long as an authority is.
pub const LIFETIME_DAYS_MAX: i64 = AUTHORITY_DAYS;

/// For how long an authority is good.
const AUTHORITY_DAYS: i64 = 3650;

/// Clocks of other machines may be a little behind.
const CLOCK_SKEW: Duration = Duration::minutes(5);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A name cannot be in a certificate, or a key cannot be used.
    #[error("the certificate cannot be made: {0}")]
    Make(#[from] rcgen::Error),
    /// A host is neither a name nor an address.
    #[error("{0:?} is no host name or address")]
    Host(String),
}

/// A certificate and its key, both in PEM.
#[derive(Clone)]
pub struct Issued {
    /// The certificate.
    pub certificate: String,
    /// Its key: a secret.
    pub key: String,
}

impl std::fmt::Debug for Issued {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Issued")
            .field("certificate", &self.certificate)
            .field("key", &"***")
            .finish()
    }
}

/// Whom a certificate is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The name; of an engine that of its node.
    pub name: String,
    /// The role.
    pub role: Role,
    /// Host names and addresses under which it is called; none for those who only call.
    pub hosts: Vec<String>,
    /// For how long it is good, in days; less than 0 makes one that has run out, for tests.
    pub lifetime_days: i64,
}

/// A private authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Authority").finish_non_exhaustive()
    }
}

fn subject(name: &str, role: Option<Role>) -> DistinguishedName {
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, "Pollux");
    if let Some(role) = role {
        subject.push(DnType::OrganizationalUnitName, role.name());
    }
    subject.push(DnType::CommonName, name);
    subject
}

fn now() -> OffsetDateTime {
    OffsetDateTime::from(SystemTime::now())
}

impl Authority {
    /// A new one.
    ///
    /// # Errors
    ///
    /// [`CertificateError::Make`].
    pub fn new(name: &str) -> Result<Self, CertificateError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = subject(name, None);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = now() - CLOCK_SKEW;
        params.not_after = now() + Duration::days(AUTHORITY_DAYS);
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self {
            issuer: Issuer::new(params, key),
            certificate,
        })
    }

    /// One that was made before, from what [`Authority::issued`] told.
    ///
    /// # Errors
    ///
    /// [`CertificateError::Make`] if certificate or key cannot be read.
    pub fn load(issued: &Issued) -> Result<Self, CertificateError> {
        let key = KeyPair::from_pem(&issued.key)?;
        Ok(Self {
            issuer: Issuer::from_ca_cert_pem(&issued.certificate, key)?,
            certificate: issued.certificate.clone(),
        })
    }

    /// Its certificate, for all who are to trust it, and its key, for nobody.
    pub fn issued(&self) -> Issued {
        Issued {
            certificate: self.certificate.clone(),
            key: self.issuer.key().serialize_pem(),
        }
    }

    /// Gives a certificate.
    ///
    /// # Errors
    ///
    /// [`CertificateError`].
    pub fn issue(&self, identity: &Identity) -> Result<Issued, CertificateError> {
        issue(identity, &self.issuer)
    }
}

fn issue(identity: &Identity, issuer: &Issuer<'_, KeyPair>) -> Result<Issued, CertificateError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = subject(&identity.name, Some(identity.role));
    for host in &identity.hosts {
        let is_host = !host.is_empty()
            && host
                .chars()
                .all(|character| character.is_ascii_alphanumeric() || "-._:*".contains(character));
        if !is_host {
            return Err(CertificateError::Host(host.clone()));
        }
        let name = match host.parse() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(
                host.as_str()
                    .try_into()
                    .map_err(|_| CertificateError::Host(host.clone()))?,
            ),
        };
        params.subject_alt_names.push(name);
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params
        .extended_key_usages
        .push(ExtendedKeyUsagePurpose::ClientAuth);
    if !identity.hosts.is_empty() {
        params
            .extended_key_usages
            .push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    let end = now() + Duration::days(identity.lifetime_days);
    params.not_after = end;
    params.not_before = now().min(end - Duration::days(1)) - CLOCK_SKEW;
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, issuer)?;
    Ok(Issued {
        certificate: certificate.pem(),
        key: key.serialize_pem(),
    })
}
