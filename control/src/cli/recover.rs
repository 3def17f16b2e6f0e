//! `pollux recover`: what is on engines and not on record, looked at before it is put on record.

use std::collections::BTreeMap;
use std::io::Write;

use clap::Args;
use pollux_api::control::v1::recoveries_client::RecoveriesClient;
use pollux_api::control::v1::{
    CommitRecoveryRequest, FoundVolume, PoolDevices, RecoverySpec, ReplicaState, Survey, SurveyEnginesRequest,
};

use crate::recover::{is_committed, is_record_certain};

use super::Size;
use super::connection::{Channel, CommandError};
use super::output::{Output, serialized, short, table};
use super::run::label;

/// `recover`.
#[derive(Debug, Args)]
pub(super) struct RecoverArguments {
    /// A pool that its engine may not have open: NODE=URI, or NODE=URI,URI for one of several devices.
    #[arg(long = "pool", value_name = "NODE=URI,...", value_parser = label)]
    pools: Vec<(String, String)>,
    /// What a volume or pool is to be called: UUID=NAME.
    #[arg(long = "name", value_name = "UUID=NAME", value_parser = label)]
    names: Vec<(String, String)>,
    /// Put this volume on record, by its UUID, although a replica that may know better is not found: what
    /// only that one has is lost.
    #[arg(long, value_name = "UUID")]
    accept_missing: Vec<String>,
    /// Put on record what was found, as it was told with this digest.
    #[arg(long, value_name = "DIGEST")]
    commit: Option<String>,
}

impl RecoverArguments {
    fn spec(&self) -> RecoverySpec {
        let pools = self.pools.iter().map(|(node, devices)| PoolDevices {
            node: node.clone(),
            devices: devices.split(',').map(str::to_owned).collect(),
        });
        RecoverySpec {
            pools: pools.collect(),
            names: self.names.iter().cloned().collect::<BTreeMap<_, _>>(),
            accept_missing: self.accept_missing.clone(),
        }
    }
}

/// What to do about volumes of which engines may know better than a backup.
const UNCERTAIN: &str =
    "bring back what is missing of them, accept it (--accept-missing UUID), or delete the volume";

/// Does it.
pub(super) async fn run(
    channel: &Channel,
    arguments: &RecoverArguments,
    output: Output,
    into: &mut impl Write,
) -> Result<(), CommandError> {
    let client = RecoveriesClient::new(channel.clone());
    let mut client = client.max_decoding_message_size(usize::MAX);
    let spec = Some(arguments.spec());
    let survey = match &arguments.commit {
        Some(digest) => {
            let digest = digest.clone();
            let request = CommitRecoveryRequest { spec, digest };
            client.commit_recovery(request).await?.into_inner()
        }
        None => {
            let request = SurveyEnginesRequest { spec };
            client.survey_engines(request).await?.into_inner()
        }
    };
    match output {
        Output::Json | Output::Yaml => serialized(&survey, output, into),
        Output::Table | Output::Wide => show(&survey, arguments.commit.is_some(), into),
    }
}

fn show(survey: &Survey, is_done: bool, into: &mut impl Write) -> Result<(), CommandError> {
    for node in &survey.nodes {
        for problem in &node.problems {
            writeln!(into, "node {}: {problem}", node.name)?;
        }
    }
    let later = survey.nodes.iter().filter(|node| node.term > survey.term);
    let later: Vec<&str> = later.map(|node| node.name.as_str()).collect();
    if !later.is_empty() && !is_done {
        writeln!(
            into,
            "nodes {} follow a control plane of a later term: make sure that it is gone; they obey this one \
             after --commit {}\n",
            later.join(", "),
            survey.digest
        )?;
    }
    if survey.restored {
        let first = "the records were restored from a backup, and nothing is done by them";
        match (is_done, is_record_certain(survey)) {
            (true, _) => writeln!(into, "{first} yet: {UNCERTAIN}\n")?,
            (false, true) => writeln!(into, "{first} before --commit {}\n", survey.digest)?,
            (false, false) => writeln!(
                into,
                "{first} before --commit {}, and not then either while volumes that were on record are \
                 uncertain: {UNCERTAIN}\n",
                survey.digest
            )?,
        }
    }
    if survey.pools.is_empty() && survey.volumes.is_empty() {
        writeln!(
            into,
            "{} nodes were asked: all that was found is on record",
            survey.nodes.len()
        )?;
        return Ok(());
    }
    let pools = survey.pools.iter().map(|pool| {
        vec![
            pool.uid.clone(),
            pool.node.clone(),
            pool.name.clone(),
            Size(pool.capacity_bytes).to_string(),
            pool.replicas.to_string(),
            pool.problem.clone(),
        ]
    });
    table(
        &["POOL", "NODE", "NAME", "SIZE", "REPLICAS", "PROBLEM"],
        pools.collect(),
        into,
    )?;
    writeln!(into)?;
    let volumes = survey.volumes.iter().map(|volume| {
        let record = volume.record.clone().unwrap_or_default();
        vec![
            volume.uid.clone(),
            volume.name.clone(),
            Size(record.size_bytes).to_string(),
            format!("{}/{}", record.epoch, record.version),
            in_sync(volume),
            record.snapshots.len().to_string(),
            volume.hosts.len().to_string(),
            short(volume.certainty().as_str_name(), "CERTAINTY_"),
            volume.message.clone(),
        ]
    });
    table(
        &[
            "VOLUME",
            "NAME",
            "SIZE",
            "EPOCH",
            "IN SYNC",
            "SNAPSHOTS",
            "HOSTS",
            "CERTAINTY",
            "WHY",
        ],
        volumes.collect(),
        into,
    )?;
    let pools = survey.pools.iter().filter(|pool| pool.problem.is_empty()).count();
    let certain = survey
        .volumes
        .iter()
        .filter(|volume| is_committed(volume))
        .count();
    let left = survey.volumes.len() - certain;
    match is_done {
        true => writeln!(
            into,
            "{pools} pools and {certain} volumes are on record again; {left} volumes stay as they are"
        )?,
        false => writeln!(
            into,
            "nothing is on record yet: --commit {} does that for {pools} pools and {certain} volumes; {left} \
             volumes stay as they are",
            survey.digest
        )?,
    }
    Ok(())
}

/// How many of those in sync are found, and the nodes where they are.
fn in_sync(volume: &FoundVolume) -> String {
    let replicas = volume.replicas.iter();
    let in_sync: Vec<_> = replicas
        .filter(|replica| replica.state() == ReplicaState::InSync)
        .collect();
    let found: Vec<&str> = in_sync
        .iter()
        .map(|replica| replica.node.as_str())
        .filter(|node| !node.is_empty())
        .collect();
    format!("{}/{} {}", found.len(), in_sync.len(), found.join(","))
}
