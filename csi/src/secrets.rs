//! Secrets that come with calls: what the node and its volume authenticate by (DH-HMAC-CHAP).
//!
//! They are in a Kubernetes `Secret` that a StorageClass names twice, for the controller service and for the
//! node service. The one gives them to the control plane, the other to the kernel.
//!
//! Invariant: they are in memory, in calls and in the kernel, and nowhere else: no record, no log, no
//! context of a volume has them.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use pollux_api::control::v1::HostSecrets;

use crate::error::CallError;

/// The key of what the node authenticates by.
pub const HOST: &str = "hostSecret";

/// The key of what the volume authenticates by to the node; without it, it does not have to.
pub const CONTROLLER: &str = "controllerSecret";

/// The secrets of a call, if it has any.
///
/// # Errors
///
/// [`CallError::Argument`] for what is no secret, and for other keys: a misspelt one must not turn
/// authentication off.
pub fn read(secrets: &HashMap<String, String>) -> Result<Option<HostSecrets>, CallError> {
    const FIELD: &str = "secrets";
    if secrets.is_empty() {
        return Ok(None);
    }
    if secrets
        .keys()
        .any(|key| ![HOST, CONTROLLER].contains(&key.as_str()))
    {
        let problem = format!("have another key than {HOST} and {CONTROLLER}: leave it out");
        return Err(CallError::argument(FIELD, problem));
    }
    // Files end with a new line.
    let get = |key| secrets.get(key).map_or("", |text| text.trim_end()).to_owned();
    let read = HostSecrets {
        host: get(HOST),
        controller: get(CONTROLLER),
    };
    if secrets.contains_key(CONTROLLER) && read.controller.is_empty() {
        return Err(CallError::argument(FIELD, format!("{CONTROLLER} is empty")));
    }
    match read.problems().first() {
        None => Ok(Some(read)),
        Some((field, why)) => {
            let key = if *field == "host" { HOST } else { CONTROLLER };
            Err(CallError::argument(FIELD, format!("{key} {why}")))
        }
    }
}

/// The secrets of staged volumes, for paths that are connected later.
#[derive(Debug, Default)]
pub(crate) struct Kept(Mutex<HashMap<String, HostSecrets>>);

impl Kept {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, HostSecrets>> {
        // Nothing that is done with the lock held can leave it half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, volume_id: &str) -> Option<HostSecrets> {
        self.lock().get(volume_id).cloned()
    }

    pub(crate) fn put(&self, volume_id: &str, secrets: HostSecrets) {
        self.lock().insert(volume_id.to_owned(), secrets);
    }

    pub(crate) fn forget(&self, volume_id: &str) {
        self.lock().remove(volume_id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification (NVMe Base 2.2, 8.3.4.5.8).
    const EXAMPLE: &str = "DHHC-1:00:ia6zGodOr4SEG0Zzaw398rpY0wqipUWj4jWjUh4HWUz6aQ2n:";

    fn given(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        let pairs = pairs.iter();
        pairs
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn secrets_are_read() {
        assert_eq!(read(&HashMap::new()).expect("none"), None);
        let line = format!("{EXAMPLE}\n");
        let one = read(&given(&[(HOST, &line)])).expect("one").expect("one");
        assert_eq!((one.host.as_str(), one.controller.as_str()), (EXAMPLE, ""));
        let both = read(&given(&[(HOST, EXAMPLE), (CONTROLLER, EXAMPLE)]));
        assert_eq!(both.expect("two").expect("two").controller, EXAMPLE);
    }

    #[test]
    fn nothing_that_is_wrong_turns_authentication_off() {
        let damaged = EXAMPLE.replace("2n:", "2o:");
        for wrong in [
            given(&[("hostsecret", EXAMPLE)]),
            given(&[(HOST, EXAMPLE), ("controller-secret", EXAMPLE)]),
            given(&[(HOST, EXAMPLE), (CONTROLLER, "")]),
            given(&[(CONTROLLER, EXAMPLE)]),
            given(&[(HOST, "")]),
            given(&[(HOST, "secret")]),
            given(&[(HOST, &EXAMPLE.replace(":00:", ":05:"))]),
            given(&[(HOST, &damaged)]),
            given(&[(HOST, &format!("{EXAMPLE},hostnqn=other"))]),
        ] {
            let error = read(&wrong).expect_err("it is wrong");
            assert_eq!(
                tonic::Status::from(error.clone()).code(),
                tonic::Code::InvalidArgument
            );
            let text = error.to_string();
            assert!(text.starts_with("secrets ") && !text.contains("ia6z"), "{text}");
        }
    }
}
