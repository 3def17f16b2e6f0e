//! `pollux rebalance`: a plan to spread data and targets, looked at before it is done.

use std::io::Write;

use clap::Subcommand;
use pollux_api::control::v1::rebalances_client::RebalancesClient;
use pollux_api::control::v1::{
    CommitRebalanceRequest, DeleteRebalanceRequest, GetRebalanceRequest, ListRebalancesRequest, Metadata,
    PageRequest, PlanRebalanceRequest, Rebalance, RebalanceSpec,
};

use crate::model::Record;

use super::Size;
use super::connection::{Channel, CommandError};
use super::output::{Output, serialized, short, table, time};

/// `rebalance`.
#[derive(Debug, Subcommand)]
pub(super) enum RebalanceCommand {
    /// Make a plan, and tell what would move; nothing does yet.
    Plan {
        /// What the plan is called.
        name: String,
        /// Only spread replicas over pools.
        #[arg(long, conflicts_with = "targets")]
        replicas: bool,
        /// Only spread targets over nodes.
        #[arg(long)]
        targets: bool,
        /// At most so many moves of each kind [default: 100].
        #[arg(long, value_name = "N")]
        moves: Option<u32>,
        /// Leave pools as they are that differ by no more than so many percent in how much of them is given
        /// out [default: 5].
        #[arg(long, value_name = "PERCENT")]
        tolerance: Option<u32>,
    },
    /// Tell what a plan moves, and how far it is.
    Show {
        /// What it is called.
        name: String,
    },
    /// List all plans.
    List,
    /// Have a plan done.
    Commit {
        /// What it is called.
        name: String,
    },
    /// Forget a plan; what has not begun to move stays.
    Delete {
        /// What it is called.
        name: String,
    },
}

/// Does it.
pub(super) async fn run(
    channel: &Channel,
    command: &RebalanceCommand,
    output: Output,
    into: &mut impl Write,
) -> Result<(), CommandError> {
    let mut client = RebalancesClient::new(channel.clone());
    let shown = match command {
        RebalanceCommand::Plan {
            name,
            replicas,
            targets,
            moves,
            tolerance,
        } => {
            // Neither is both.
            let is_all = !replicas && !targets;
            let rebalance = Rebalance {
                metadata: Some(Metadata {
                    name: name.clone(),
                    ..Metadata::default()
                }),
                spec: Some(RebalanceSpec {
                    replicas: is_all || *replicas,
                    targets: is_all || *targets,
                    moves_max: *moves,
                    tolerance_percent: *tolerance,
                }),
                status: None,
            };
            let request = PlanRebalanceRequest {
                rebalance: Some(rebalance),
            };
            client.plan_rebalance(request).await?.into_inner()
        }
        RebalanceCommand::Show { name } => {
            let request = GetRebalanceRequest { name: name.clone() };
            client.get_rebalance(request).await?.into_inner()
        }
        RebalanceCommand::Commit { name } => {
            let request = CommitRebalanceRequest {
                name: name.clone(),
                revision: 0,
            };
            client.commit_rebalance(request).await?.into_inner()
        }
        RebalanceCommand::List => return list(&mut client, output, into).await,
        RebalanceCommand::Delete { name } => {
            client
                .delete_rebalance(DeleteRebalanceRequest { name: name.clone() })
                .await?;
            writeln!(into, "rebalance {name} is deleted")?;
            return Ok(());
        }
    };
    match output {
        Output::Json | Output::Yaml => serialized(&shown, output, into),
        Output::Table | Output::Wide => show(&shown, into),
    }
}

fn show(rebalance: &Rebalance, into: &mut impl Write) -> Result<(), CommandError> {
    let status = rebalance.status.clone().unwrap_or_default();
    let moves = status.replica_moves.len() + status.target_moves.len();
    writeln!(
        into,
        "rebalance {} is {}: {} of {moves} moves are done; {} are copied at most",
        rebalance.name(),
        short(status.state().as_str_name(), "REBALANCE_STATE_"),
        status.moves_done,
        Size(status.copied_bytes_max),
    )?;
    writeln!(
        into,
        "of the pools, {}% to {}% were given out, and {}% to {}% are when it is done",
        status.emptiest_percent_before,
        status.fullest_percent_before,
        status.emptiest_percent_after,
        status.fullest_percent_after,
    )?;
    let replicas = status.replica_moves.into_iter().map(|one| {
        let size = Size(one.size_bytes).to_string();
        vec!["replica".to_owned(), one.volume, one.from_pool, one.to_pool, size]
    });
    let targets = status.target_moves.into_iter().map(|one| {
        vec![
            "target".to_owned(),
            one.volume,
            one.from_node,
            one.to_node,
            String::new(),
        ]
    });
    let rows: Vec<Vec<String>> = replicas.chain(targets).collect();
    match rows.is_empty() {
        true => Ok(()),
        false => table(&["MOVES", "VOLUME", "FROM", "TO", "SIZE"], rows, into),
    }
}

async fn list(
    client: &mut RebalancesClient<Channel>,
    output: Output,
    into: &mut impl Write,
) -> Result<(), CommandError> {
    let mut all = Vec::new();
    let mut page = PageRequest {
        size: 1000,
        token: String::new(),
    };
    loop {
        let request = ListRebalancesRequest {
            page: Some(page.clone()),
        };
        let listed = client.list_rebalances(request).await?.into_inner();
        all.extend(listed.rebalances);
        if listed.next_page_token.is_empty() {
            break;
        }
        page.token = listed.next_page_token;
    }
    if matches!(output, Output::Json | Output::Yaml) {
        return serialized(&all, output, into);
    }
    let rows = all.into_iter().map(|rebalance| {
        let status = rebalance.status.clone().unwrap_or_default();
        let moves = status.replica_moves.len() + status.target_moves.len();
        vec![
            rebalance.name().to_owned(),
            short(status.state().as_str_name(), "REBALANCE_STATE_"),
            format!("{}/{moves}", status.moves_done),
            time(rebalance.meta().created_unix_us),
        ]
    });
    table(&["NAME", "STATE", "MOVES", "MADE"], rows.collect(), into)
}
