//! The pods of a cluster, as its API server tells of them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, ListParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

/// How long the API server may take for one answer.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);

/// Why it is not known who uses a volume.
#[derive(Debug, thiserror::Error)]
pub enum PodsError {
    /// There is no API server to ask.
    #[error(
        "the API server of the cluster is not known: {0}; run it in a pod with a service account, or give \
         --kubeconfig"
    )]
    Settings(String),
    /// The service account may not see pods.
    #[error("the API server forbids it: {0}; allow the service account to list pods and to get replicasets")]
    Forbidden(String),
    /// It cannot be reached, or answers what cannot be understood.
    #[error("the API server does not tell: {0}")]
    Api(String),
    /// It is silent.
    #[error("the API server has not answered for {0:?}")]
    Silent(Duration),
}

impl From<kube::Error> for PodsError {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) if matches!(status.code, 401 | 403) => {
                Self::Forbidden(status.message.clone())
            }
            kube::Error::Api(status) => Self::Api(format!("{} ({})", status.message, status.code)),
            other => Self::Api(other.to_string()),
        }
    }
}

/// Who uses a claim: pods, and what they belong to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Users {
    /// Names of pods.
    pub pods: BTreeSet<String>,
    /// What they belong to, as `KIND/NAME`.
    pub owners: BTreeSet<String>,
}

/// The API server of a cluster. Clones share the connection.
#[derive(Clone)]
pub struct PodsOfCluster {
    client: Client,
    patience: Duration,
}

/// What of a pod's owner is told.
fn told(owner: &OwnerReference) -> String {
    format!("{}/{}", owner.kind, owner.name)
}

/// The owner that controls something; it has one at most.
fn controller(owners: Option<&Vec<OwnerReference>>) -> Option<&OwnerReference> {
    owners?.iter().find(|owner| owner.controller == Some(true))
}

/// Whether a pod uses a claim, and has not ended.
fn uses(pod: &Pod, claim: &str) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    if matches!(phase, Some("Succeeded" | "Failed")) {
        return false;
    }
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let mut claims = volumes.filter_map(|volume| match &volume.persistent_volume_claim {
        Some(source) => Some(source.claim_name.clone()),
        // The claim of such a volume is made for the pod, and called after both.
        None => volume
            .ephemeral
            .as_ref()
            .map(|_| format!("{name}-{}", volume.name)),
    });
    claims.any(|named| named == claim)
}

impl PodsOfCluster {
    /// By the service account of the pod that this runs in, or by the file of settings that is given.
    ///
    /// # Errors
    ///
    /// [`PodsError::Settings`].
    pub async fn connect(kubeconfig: Option<&Path>) -> Result<Self, PodsError> {
        let wrong = |error: &dyn std::fmt::Display| PodsError::Settings(error.to_string());
        let config = match kubeconfig {
            None => Config::incluster().map_err(|error| wrong(&error))?,
            Some(path) => {
                let settings = Kubeconfig::read_from(path).map_err(|error| wrong(&error))?;
                let options = KubeConfigOptions::default();
                let config = Config::from_custom_kubeconfig(settings, &options).await;
                config.map_err(|error| wrong(&error))?
            }
        };
        let client = Client::try_from(config).map_err(|error| wrong(&error))?;
        Ok(Self {
            client,
            patience: ANSWER_PATIENCE,
        })
    }

    /// The same, and one answer may take so long.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// An answer, within its time.
    async fn within<T>(&self, answer: impl Future<Output = kube::Result<T>>) -> Result<T, PodsError> {
        match tokio::time::timeout(self.patience, answer).await {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(PodsError::Silent(self.patience)),
        }
    }

    /// The pods on these nodes that use a claim, and what they belong to.
    ///
    /// # Errors
    ///
    /// [`PodsError`].
    pub async fn users(
        &self,
        namespace: &str,
        claim: &str,
        nodes: &BTreeSet<String>,
    ) -> Result<Users, PodsError> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let mut users = Users::default();
        // The sets that pods belong to; many belong to one.
        let mut known: BTreeMap<String, String> = BTreeMap::new();
        for node in nodes {
            // From the server's memory, which may be a moment old: it is asked often, and again.
            let parameters = ListParams::default()
                .fields(&format!("spec.nodeName={node}"))
                .match_any();
            let all = self.within(pods.list(&parameters)).await?;
            for pod in all.items.iter().filter(|pod| uses(pod, claim)) {
                users.pods.extend(pod.metadata.name.clone());
                let Some(owner) = controller(pod.metadata.owner_references.as_ref()) else {
                    continue;
                };
                let mut told = told(owner);
                if owner.kind == "ReplicaSet" {
                    told = match known.get(&told) {
                        Some(deployment) => deployment.clone(),
                        None => self.owner_of_set(namespace, &owner.name).await?.unwrap_or(told),
                    };
                    known.insert(format!("ReplicaSet/{}", owner.name), told.clone());
                }
                users.owners.insert(told);
            }
        }
        Ok(users)
    }

    /// What a set of replicas belongs to, mostly a deployment; nothing if it has gone or belongs to nothing.
    async fn owner_of_set(&self, namespace: &str, name: &str) -> Result<Option<String>, PodsError> {
        let sets: Api<ReplicaSet> = Api::namespaced(self.client.clone(), namespace);
        let set = self.within(sets.get_opt(name)).await?;
        let owners = set.and_then(|set| set.metadata.owner_references);
        Ok(controller(owners.as_ref()).map(told))
    }
}

impl std::fmt::Debug for PodsOfCluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PodsOfCluster").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_of_pods_are_named_or_made_for_them() {
        let pod = |volume: serde_json::Value| -> Pod {
            let text = serde_json::json!({
                "metadata": {"name": "web"},
                "spec": {"containers": [], "volumes": [{"name": "logs", "emptyDir": {}}, volume]},
            });
            serde_json::from_value(text).expect("a pod")
        };
        let named = serde_json::json!({"name": "v", "persistentVolumeClaim": {"claimName": "data"}});
        assert!(uses(&pod(named.clone()), "data"));
        assert!(!uses(&pod(named), "web-v"));
        let made = serde_json::json!({"name": "v", "ephemeral": {}});
        assert!(uses(&pod(made.clone()), "web-v"));
        assert!(!uses(&pod(made), "web-logs"));
    }
}
