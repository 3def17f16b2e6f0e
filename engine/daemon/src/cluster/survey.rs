//! What is on the pools of this engine, for a control plane that has lost its records: pools are opened under
//! the UUIDs that are on them, and replicas tell what they know of their volumes. Nothing is made or removed.

use pollux_api::control::v1::{DeviceSet, EngineSurvey, SurveyRequest, SurveyedPool, SurveyedReplica};
use uuid::Uuid;

use super::Cluster;
use super::agent::CommandError;
use super::record::to_api;
use super::report::{describe_pool, replica_config};
use crate::pools::OpenPool;
use crate::settings::PoolSettings;

impl Cluster {
    /// All of it. What cannot be opened is told, and holds nothing else up.
    pub(super) async fn survey(&self, request: &SurveyRequest) -> Result<EngineSurvey, CommandError> {
        let mut problems = Vec::new();
        for set in &request.pools {
            if let Err(problem) = self.open_found(set).await {
                problems.push(format!("{}: {problem}", set.devices.join(", ")));
            }
        }
        let mut pools = Vec::new();
        for pool in self.parts.pools.all() {
            let name = pool.shared.name().to_owned();
            // Others were made by hand, and are no matter of the control plane.
            if name.parse::<Uuid>().is_err() {
                continue;
            }
            // One that is open since the engine was started may have replicas that nobody asked for yet.
            self.parts.replicas.open_in_pool(&name).await?;
            self.ready_pools().insert(name);
            pools.push(SurveyedPool {
                pool: Some(describe_pool(&pool).await),
                devices: devices(&pool),
            });
        }
        let mut replicas = Vec::new();
        for found in self.parts.replicas.survey().await {
            let Some(config) = replica_config(&found.uri, &found.label) else {
                continue;
            };
            let (record, problem) = match found.record {
                Ok(record) => (record.as_ref().map(to_api), String::new()),
                Err(problem) => (None, problem),
            };
            replicas.push(SurveyedReplica {
                config: Some(config),
                promised_epoch: found.promised.0,
                record,
                problem,
            });
        }
        Ok(EngineSurvey {
            node: self.settings.node.clone(),
            term: self.term.newest().await,
            pools,
            replicas,
            targets: self.targets.report(),
            problems,
        })
    }

    /// Opens the pool that devices hold.
    async fn open_found(&self, set: &DeviceSet) -> Result<(), String> {
        let is_open = |pool: &OpenPool| {
            let open = devices(pool);
            open.len() == set.devices.len() && set.devices.iter().all(|device| open.contains(device))
        };
        if self.parts.pools.all().iter().any(is_open) {
            return Ok(());
        }
        let settings = PoolSettings::new(set.devices.clone());
        let label = self.parts.pools.label(&settings).await;
        let label = label.map_err(|error| error.to_string())?;
        let name = label.ok_or("they hold no pool")?;
        if name.parse::<Uuid>().is_err() {
            return Err(format!(
                "they hold the pool {name:?}, which was not made by a control plane"
            ));
        }
        let opened = self.parts.pools.import(&settings).await;
        opened.map(drop).map_err(|error| error.to_string())
    }
}

fn devices(pool: &OpenPool) -> Vec<String> {
    pool.uris.iter().map(|uri| uri.reveal().to_owned()).collect()
}
