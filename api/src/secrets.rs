//! Secrets in messages: what they have to be, and that nobody sees them by chance.
//!
//! Invariant: the `Debug` form of a message with a field for secrets shows nothing of them. All such messages
//! are listed in `build.rs`, so that one that is forgotten here does not compile.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::control::v1::HostSecrets;
use crate::csi::v1::*;

/// What a secret begins with.
const PREFIX: &str = "DHHC-1";

/// The longest secret: 64 bytes and a checksum in Base64, with all around it.
const TEXT_BYTES_MAX: usize = 104;

/// Bytes of the checksum behind a secret.
const CHECKSUM_BYTES: usize = 4;

/// Whether a text is a secret of DH-HMAC-CHAP as people write it (NVMe Base 2.2, 8.3.4.5.8):
/// `DHHC-1:xx:BASE64:`.
///
/// # Errors
///
/// What is wrong, for people, without any of the text.
pub fn check_secret(text: &str) -> Result<(), &'static str> {
    const FORM: &str = "is not of the form DHHC-1:xx:BASE64:, as `nvme gen-dhchap-key` makes it";
    if text.len() > TEXT_BYTES_MAX {
        return Err(FORM);
    }
    let mut parts = text.split(':');
    let (Some(PREFIX), Some(hash), Some(encoded), Some(""), None) = (
        parts.next(),
        parts.next(),
        parts.next(),
        parts.next(),
        parts.next(),
    ) else {
        return Err(FORM);
    };
    if !matches!(hash, "00" | "01" | "02" | "03") {
        return Err("names a hash function that is not known: give 00, 01, 02 or 03 behind DHHC-1:");
    }
    let decoded = STANDARD.decode(encoded).map_err(|_| FORM)?;
    let (bytes, checksum) = decoded.split_last_chunk::<CHECKSUM_BYTES>().ok_or(FORM)?;
    if !matches!(bytes.len(), 32 | 48 | 64) {
        return Err("does not have 32, 48 or 64 bytes");
    }
    let expected = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32IsoHdlc, bytes);
    match expected == u64::from(u32::from_le_bytes(*checksum)) {
        true => Ok(()),
        false => Err("has a wrong checksum: it is damaged"),
    }
}

impl HostSecrets {
    /// What is wrong: names of fields, and why.
    #[must_use]
    pub fn problems(&self) -> Vec<(&'static str, &'static str)> {
        let host = check_secret(&self.host).err().map(|why| ("host", why));
        let controller = match self.controller.is_empty() {
            true => None,
            false => check_secret(&self.controller).err(),
        };
        host.into_iter()
            .chain(controller.map(|why| ("controller", why)))
            .collect()
    }
}

impl fmt::Debug for HostSecrets {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("HostSecrets(..)")
    }
}

/// Shows a message by its name alone.
macro_rules! unseen {
    ($($message:ident),* $(,)?) => {
        $(impl fmt::Debug for $message {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.debug_struct(stringify!($message)).finish_non_exhaustive()
            }
        })*
    };
}

unseen!(
    CreateVolumeRequest,
    DeleteVolumeRequest,
    ControllerPublishVolumeRequest,
    ControllerUnpublishVolumeRequest,
    ValidateVolumeCapabilitiesRequest,
    ControllerModifyVolumeRequest,
    ControllerListVolumeHealthRequest,
    ControllerGetVolumeHealthRequest,
    NodeGetStorageHealthRequest,
    CreateSnapshotRequest,
    DeleteSnapshotRequest,
    ListSnapshotsRequest,
    GetSnapshotRequest,
    ControllerExpandVolumeRequest,
    NodeStageVolumeRequest,
    NodePublishVolumeRequest,
    NodeExpandVolumeRequest,
    CreateVolumeGroupSnapshotRequest,
    DeleteVolumeGroupSnapshotRequest,
    GetVolumeGroupSnapshotRequest,
    GetMetadataAllocatedRequest,
    GetMetadataDeltaRequest,
);

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification (NVMe Base 2.2, 8.3.4.5.8).
    const EXAMPLE: &str = "DHHC-1:00:ia6zGodOr4SEG0Zzaw398rpY0wqipUWj4jWjUh4HWUz6aQ2n:";

    #[test]
    fn the_example_of_the_specification_is_a_secret() {
        for hash in ["00", "01", "02", "03"] {
            let text = EXAMPLE.replace(":00:", &format!(":{hash}:"));
            assert_eq!(check_secret(&text), Ok(()), "{hash}");
        }
        for bytes in [32, 48, 64] {
            let mut secret = vec![0x5a; bytes];
            let sum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32IsoHdlc, &secret);
            secret.extend(&sum.to_le_bytes()[..CHECKSUM_BYTES]);
            let text = format!("DHHC-1:01:{}:", STANDARD.encode(secret));
            assert_eq!(check_secret(&text), Ok(()), "{bytes}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_by_its_field_and_without_the_text() {
        let damaged = EXAMPLE.replace("2n:", "2o:");
        let short = "DHHC-1:00:AAAAAAAAAAAAAAAAAAAAAA==:";
        for (text, why) in [
            ("", "form"),
            ("secret", "form"),
            ("DHHC-1:", "form"),
            ("DHHC-1:00:!!!!:", "form"),
            (EXAMPLE.trim_end_matches(':'), "form"),
            (&format!("{EXAMPLE}\n"), "form"),
            (&format!(" {EXAMPLE}"), "form"),
            (&EXAMPLE.repeat(3), "form"),
            (&EXAMPLE.replace("DHHC-1", "DHHC-2"), "form"),
            (&EXAMPLE.replace(":00:", ":04:"), "hash function"),
            (&EXAMPLE.replace(":00:", ":0:"), "hash function"),
            (&damaged, "checksum"),
            (short, "bytes"),
        ] {
            let secrets = |host: &str, controller: &str| HostSecrets {
                host: host.to_owned(),
                controller: controller.to_owned(),
            };
            let problems = secrets(text, "").problems();
            assert_eq!(problems.len(), 1, "{text:?}");
            assert_eq!(problems[0].0, "host");
            assert!(problems[0].1.contains(why), "{text:?}: {problems:?}");
            assert!(!problems[0].1.contains("ia6z"), "{problems:?}");
            if !text.is_empty() {
                let problems = secrets(EXAMPLE, text).problems();
                assert_eq!(
                    problems.iter().map(|(field, _)| *field).collect::<Vec<_>>(),
                    ["controller"]
                );
            }
        }
    }

    #[test]
    fn messages_do_not_show_them() {
        let secrets = HostSecrets {
            host: EXAMPLE.to_owned(),
            controller: EXAMPLE.to_owned(),
        };
        let publish = crate::control::v1::PublishVolumeRequest {
            name: "v".to_owned(),
            secrets: Some(secrets.clone()),
            ..Default::default()
        };
        let stored = crate::control::v1::StoredHostSecrets {
            secrets: Some(secrets),
            ..Default::default()
        };
        let stage = NodeStageVolumeRequest {
            secrets: [("host".to_owned(), EXAMPLE.to_owned())].into(),
            ..Default::default()
        };
        for shown in [
            format!("{publish:?}"),
            format!("{stored:#?}"),
            format!("{stage:?}"),
        ] {
            assert!(!shown.contains("DHHC"), "{shown}");
        }
    }
}
