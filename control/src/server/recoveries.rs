//! Calls about what is on engines and not on record.

use std::collections::BTreeSet;
use std::time::Duration;

use pollux_api::control::v1::recoveries_server::Recoveries;
use pollux_api::control::v1::{
    CommitRecoveryRequest, DeviceSet, RecoverySpec, Survey, SurveyEnginesRequest, SurveyRequest,
};
use tokio::task::JoinSet;
use tonic::{Request, Response, Status};

use crate::engines::EngineAddress;
use crate::model::Record;
use crate::recover::{Answers, examine, is_record_certain, records};
use crate::security::Action;
use crate::store::{
    Condition, Entry, LEADER_KEY, RESTORED_KEY, TERM_BASE_KEY, Transaction, Write, term_base,
};
use crate::world::World;

use super::errors::CallError;
use super::{Services, answer};

/// Engines that are asked at a time.
const ENGINES_AT_ONCE: usize = 64;

/// How long an engine may take: pools are opened for it.
const SURVEY_TIMEOUT: Duration = Duration::from_secs(50);

/// Pools that may be named in one call.
const POOLS_MAX: usize = 4096;

impl Services {
    /// Asks all engines, side by side.
    async fn survey(&self, world: &World, spec: &RecoverySpec) -> Answers {
        let mut tasks = JoinSet::new();
        let mut answers = Answers::new();
        for node in world.nodes.values() {
            if tasks.len() >= ENGINES_AT_ONCE
                && let Some(Ok((node, answer))) = tasks.join_next().await
            {
                answers.insert(node, answer);
            }
            let engine = EngineAddress {
                node: node.name().to_owned(),
                address: node
                    .spec
                    .as_ref()
                    .map_or_else(String::new, |spec| spec.address.clone()),
            };
            let pools = spec.pools.iter().filter(|pool| pool.node == engine.node);
            // Engines that were started since have none of theirs open.
            let recorded = world.pools.values().filter(|_| world.is_restored);
            let recorded = recorded.filter_map(|pool| pool.spec.as_ref());
            let recorded = recorded.filter(|pool| pool.node == engine.node);
            let sets = pools
                .map(|pool| &pool.devices)
                .chain(recorded.map(|pool| &pool.devices));
            let request = SurveyRequest {
                pools: sets
                    .map(|devices| DeviceSet {
                        devices: devices.clone(),
                    })
                    .collect(),
            };
            let engines = self.parts.engines.clone();
            tasks.spawn(async move {
                let asked = tokio::time::timeout(SURVEY_TIMEOUT, engines.survey(&engine, request)).await;
                let answer = match asked {
                    Ok(Ok(survey)) if survey.node == engine.node => Ok(survey),
                    Ok(Ok(survey)) => Err(format!("node {} answers at its address", survey.node)),
                    Ok(Err(error)) => Err(error.to_string()),
                    Err(_) => Err("it takes too long".to_owned()),
                };
                (engine.node, answer)
            });
        }
        while let Some(done) = tasks.join_next().await {
            if let Ok((node, answer)) = done {
                answers.insert(node, answer);
            }
        }
        answers
    }

    /// What is on engines and not on record, or not as it was last, and the records there are.
    async fn look(&self, spec: &RecoverySpec, before: &World) -> Result<(World, Survey), CallError> {
        let mut answers = self.survey(before, spec).await;
        // Later than all that engines have told: what they know came from the store. What has gone from it
        // since is no loss.
        let world = self.view(World::clone).await?;
        let is_there = |uid: &str| world.volumes.values().any(|volume| volume.meta().uid == uid);
        let volumes = before.volumes.values().map(|volume| volume.meta().uid.as_str());
        let removed = before
            .removals
            .values()
            .map(|removal| removal.volume_uid.as_str());
        let gone: BTreeSet<&str> = volumes.chain(removed).filter(|uid| !is_there(uid)).collect();
        for answer in answers.values_mut().flatten() {
            answer.replicas.retain(|replica| {
                let config = replica.config.as_ref();
                config.is_some_and(|config| !gone.contains(config.volume_uid.as_str()))
            });
        }
        let mut survey = examine(&world, &answers, spec);
        survey.term = self.term().await?.0;
        survey.restored = world.is_restored;
        Ok((world, survey))
    }

    /// The term of the leader of this store, and what is added to make it.
    async fn term(&self) -> Result<(u64, Option<Entry>), CallError> {
        let entry = self.parts.store.get(TERM_BASE_KEY).await?;
        let base = term_base(entry.as_ref().map(|entry| entry.value.as_slice()))?;
        let leader = self.parts.store.get(LEADER_KEY).await?;
        let own = base.saturating_add(leader.map_or(0, |leader| leader.revision));
        Ok((own, entry))
    }

    /// Has engines obey the leaders of this store, whatever terms they have seen.
    async fn lead_engines(&self, survey: &Survey) -> Result<(), CallError> {
        let newest = survey
            .nodes
            .iter()
            .map(|node| node.term)
            .max()
            .unwrap_or_default();
        let (own, entry) = self.term().await?;
        if own >= newest {
            return Ok(());
        }
        let transaction = Transaction {
            conditions: vec![Condition {
                key: TERM_BASE_KEY.to_owned(),
                revision: entry.map_or(0, |entry| entry.revision),
            }],
            writes: vec![Write::Put {
                key: TERM_BASE_KEY.to_owned(),
                value: newest.saturating_add(1).to_string().into_bytes(),
            }],
        };
        self.parts.store.commit(transaction).await?;
        Ok(())
    }
}

fn checked(spec: Option<RecoverySpec>, world: &World) -> Result<RecoverySpec, CallError> {
    let spec = spec.unwrap_or_default();
    if spec.pools.len() > POOLS_MAX {
        let description = format!("are more than {POOLS_MAX}");
        return Err(CallError::field("spec.pools", &description));
    }
    for pool in &spec.pools {
        if !world.nodes.contains_key(&pool.node) {
            let description = format!(
                "name the node {:?}, which is not on record: create it first",
                pool.node
            );
            return Err(CallError::field("spec.pools", &description));
        }
        if pool.devices.is_empty() {
            return Err(CallError::field("spec.pools", "name no device"));
        }
    }
    Ok(spec)
}

#[tonic::async_trait]
impl Recoveries for Services {
    async fn survey_engines(
        &self,
        request: Request<SurveyEnginesRequest>,
    ) -> Result<Response<Survey>, Status> {
        self.permit(&request, Action::Administer)?;
        let world = self.view(World::clone).await?;
        let spec = checked(request.into_inner().spec, &world)?;
        let (_, survey) = self.look(&spec, &world).await?;
        answer!(survey)
    }

    async fn commit_recovery(
        &self,
        request: Request<CommitRecoveryRequest>,
    ) -> Result<Response<Survey>, Status> {
        self.permit(&request, Action::Administer)?;
        let CommitRecoveryRequest { spec, digest } = request.into_inner();
        let world = self.view(World::clone).await?;
        let spec = checked(spec, &world)?;
        let (world, mut survey) = self.look(&spec, &world).await?;
        if survey.digest != digest {
            let description = "is not that of what is found now: look again";
            return Err(CallError::field("digest", description).into());
        }
        let mut transactions = records(&world, &survey);
        survey.restored &= !is_record_certain(&survey);
        if world.is_restored && !survey.restored {
            // Once all of them are there.
            transactions.push(Transaction {
                conditions: Vec::new(),
                writes: vec![Write::Delete {
                    key: RESTORED_KEY.to_owned(),
                }],
            });
        }
        // Before any record that engines are told of.
        self.lead_engines(&survey).await?;
        for transaction in transactions {
            self.parts
                .store
                .commit(transaction)
                .await
                .map_err(CallError::from)?;
        }
        answer!(survey)
    }
}
