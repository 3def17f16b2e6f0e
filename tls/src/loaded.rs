//! Files as they were read, and what is made of them.

use std::path::Path;
use std::sync::Arc;

use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use tonic::transport::{Certificate, ClientTlsConfig, Identity};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Ends, TlsError};

const AUTHORITY: &str = "authority.pem";
const OWN: &str = "own.pem";
const KEY: &str = "own.key";

/// What the files hold.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Files {
    authority: Vec<u8>,
    own: Vec<u8>,
    key: Vec<u8>,
}

impl Files {
    /// Of a directory.
    pub(crate) fn read(directory: &Path) -> Result<Self, TlsError> {
        let read = |name: &str| {
            let path = directory.join(name);
            std::fs::read(&path).map_err(|source| TlsError::File { path, source })
        };
        Ok(Self {
            own: read(OWN)?,
            key: read(KEY)?,
            authority: read(AUTHORITY)?,
        })
    }
}

/// What can be used.
pub(crate) struct Loaded {
    pub(crate) files: Files,
    pub(crate) server_required: Arc<ServerConfig>,
    pub(crate) server_optional: Arc<ServerConfig>,
    pub(crate) client: ClientTlsConfig,
    pub(crate) ends: Ends,
}

impl Loaded {
    /// Of files of a directory, if they fit each other; with a time, in seconds since 1970 in UTC, only if
    /// the own certificate is good then.
    pub(crate) fn new(
        files: Files,
        directory: &Path,
        check: &dyn Fn(&[u8]) -> Result<(), String>,
        now_unix_s: Option<i64>,
    ) -> Result<Self, TlsError> {
        let unusable = |name: &str, reason: String| TlsError::Unusable {
            path: directory.join(name),
            reason,
        };
        let of_authority = |reason| unusable(AUTHORITY, reason);
        let of_own = |reason| unusable(OWN, reason);
        let of_key = |reason| unusable(KEY, reason);
        let authorities = certificates(&files.authority).map_err(of_authority)?;
        let chain = certificates(&files.own).map_err(of_own)?;
        let own = chain.first().map(validity).transpose().map_err(of_own)?;
        let (begins_unix_s, own_unix_s) = own.unwrap_or_default();
        let ends = Ends {
            own_unix_s,
            authority_unix_s: last_end(&authorities).map_err(of_authority)?,
        };
        let key = PrivateKeyDer::from_pem_slice(&files.key).map_err(|error| of_key(error.to_string()))?;
        let server = |is_optional| server(&authorities, &chain, key.clone_key(), is_optional);
        let client = ClientTlsConfig::new()
            .identity(Identity::from_pem(&files.own, &files.key))
            .ca_certificate(Certificate::from_pem(&files.authority));
        let loaded = Self {
            server_required: server(false).map_err(of_key)?,
            server_optional: server(true).map_err(of_key)?,
            client,
            ends,
            files,
        };
        match now_unix_s {
            Some(now) if ends.own_unix_s <= now => return Err(of_own("it has expired".to_owned())),
            Some(now) if begins_unix_s > now => return Err(of_own("it is not good yet".to_owned())),
            _ => {}
        }
        // Last, as it may tell of what is used.
        check(&loaded.files.own).map_err(of_own)?;
        Ok(loaded)
    }
}

fn server(
    authorities: &[CertificateDer<'static>],
    chain: &[CertificateDer<'static>],
    key: PrivateKeyDer<'static>,
    is_optional: bool,
) -> Result<Arc<ServerConfig>, String> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority.clone()).map_err(|error| error.to_string())?;
    }
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    let verifier = match is_optional {
        true => verifier.allow_unauthenticated(),
        false => verifier,
    };
    let verifier = verifier.build().map_err(|error| error.to_string())?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain.to_vec(), key)
        .map_err(|error| error.to_string())?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if found.is_empty() => Err("there is no certificate in it".to_owned()),
        Ok(found) => Ok(found),
        Err(error) => Err(error.to_string()),
    }
}

/// From when until when it is good.
fn validity(certificate: &CertificateDer<'_>) -> Result<(i64, i64), String> {
    let (_, certificate) = X509Certificate::from_der(certificate).map_err(|error| error.to_string())?;
    let validity = certificate.validity();
    Ok((validity.not_before.timestamp(), validity.not_after.timestamp()))
}

/// While an authority is replaced by another one both are trusted.
fn last_end(certificates: &[CertificateDer<'static>]) -> Result<i64, String> {
    certificates
        .iter()
        .try_fold(0, |last, certificate| Ok(validity(certificate)?.1.max(last)))
}
