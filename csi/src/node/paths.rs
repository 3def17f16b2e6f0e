//! Keeping the paths of staged volumes: those that could not be connected at first, or were given up by the
//! kernel since, are tried again from time to time, and so are those that came later.
//!
//! Volumes move: what was told when a volume was staged gets old. Where it is now is told by the targets
//! themselves, each of which knows the others that show a volume, and lists them to hosts that are admitted.
//!
//! Invariants:
//! - A path that works is never let go, whatever a target tells; nor is any as long as no path that is told
//!   works.
//! - Where nobody answers, all stays as it is.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::context::{PATHS_MAX, Reach};
use super::{NodeService, Parts, Record};
use crate::error::CallError;
use crate::host::{Controller, DiscoveryLog};

/// Between two rounds.
const ROUND: Duration = Duration::from_secs(15);

/// The access of the path by which a volume is served.
const OPTIMIZED: &str = "optimized";

/// What targets have told, by their addresses; nothing of one that does not answer in this round.
#[derive(Debug, Default)]
pub(super) struct Told {
    newest: Mutex<HashMap<SocketAddr, DiscoveryLog>>,
    round: Mutex<HashMap<SocketAddr, bool>>,
}

impl Told {
    /// Another round: whoever was asked is asked again; who was not asked in the one before is forgotten.
    fn begin(&self) {
        let asked = std::mem::take(&mut *self.round.lock().unwrap_or_else(PoisonError::into_inner));
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        newest.retain(|address, _| asked.contains_key(address));
    }
}

impl NodeService {
    /// Keeps paths until `stop` turns true.
    pub async fn keep_paths(self, mut stop: watch::Receiver<bool>) {
        loop {
            let is_stopped = tokio::time::timeout(ROUND, stop.wait_for(|stop| *stop))
                .await
                .is_ok();
            if is_stopped {
                return;
            }
            self.connect_missing().await;
        }
    }

    /// One round.
    pub async fn connect_missing(&self) {
        let records = match self.parts.records.all() {
            Ok(records) => records,
            Err(error) => {
                tracing::warn!(%error, "the records cannot be read");
                return;
            }
        };
        self.parts.told.begin();
        for record in records {
            let id = record.volume_id;
            let volume_id = id.clone();
            let done = self.exclusively(&id, move |parts| {
                // It may have been unstaged meanwhile.
                let Some(record) = parts.records.get(&volume_id)? else {
                    return Ok(Vec::new());
                };
                let record = parts.follow(record)?;
                let problems = parts.connect(&volume_id, &record.reach)?;
                parts.retire(&record.reach)?;
                Ok(problems)
            });
            match done.await {
                Ok(problems) => {
                    for problem in problems {
                        tracing::debug!(volume = id, problem, "a path is missing");
                    }
                }
                Err(error) => tracing::warn!(volume = id, %error, "no path can be connected"),
            }
        }
    }
}

impl Parts {
    /// Where a subsystem is, as the target at an address tells; nothing if it does not.
    fn told_by(&self, address: SocketAddr, subsystem_nqn: &str) -> Vec<SocketAddr> {
        let answered = {
            let mut round = self.told.round.lock().unwrap_or_else(PoisonError::into_inner);
            let asked = round.get(&address).copied();
            asked.unwrap_or_else(|| {
                let answered = self.ask(address);
                round.insert(address, answered);
                answered
            })
        };
        let newest = self.told.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(told) = newest.get(&address).filter(|_| answered) else {
            return Vec::new();
        };
        let entries = told.entries.iter().filter(|(nqn, _)| nqn == subsystem_nqn);
        let mut paths: Vec<SocketAddr> = entries.map(|(_, address)| *address).collect();
        paths.sort_unstable();
        paths.dedup();
        paths.truncate(PATHS_MAX);
        paths
    }

    /// Asks a target; whether it has answered.
    fn ask(&self, address: SocketAddr) -> bool {
        let mut newest = self.told.newest.lock().unwrap_or_else(PoisonError::into_inner);
        let known = newest.get(&address).map(|told| told.generation);
        match self.machine.discover(address, &self.settings.host, known) {
            Ok(Some(told)) => {
                newest.insert(address, told);
                true
            }
            Ok(None) => true,
            Err(error) => {
                tracing::debug!(%error, "a target tells nothing of paths");
                false
            }
        }
    }

    /// Has a record tell where the volume is by now.
    fn follow(&self, mut record: Record) -> Result<Record, CallError> {
        let reach = &record.reach;
        let mut controllers = self.machine.controllers(&reach.subsystem_nqn)?;
        // Who serves the volume knows best; who cannot be reached knows nothing.
        let rank = |controller: &Controller| match (controller.is_live(), controller.access.as_deref()) {
            (true, Some(OPTIMIZED)) => 0,
            (true, _) => 1,
            _ => 2,
        };
        controllers.sort_by_key(rank);
        let mut asked: Vec<SocketAddr> = controllers.iter().filter_map(|one| one.address).collect();
        asked.extend(&reach.paths);
        let told = asked
            .iter()
            .map(|address| self.told_by(*address, &reach.subsystem_nqn));
        let Some(told) = told.into_iter().find(|told| !told.is_empty()) else {
            return Ok(record);
        };
        let mut before = reach.paths.clone();
        before.sort_unstable();
        if before != told {
            tracing::info!(volume = record.volume_id, paths = ?told, "the volume has other paths by now");
            record.reach.paths = told;
            self.records.put(&record)?;
        }
        Ok(record)
    }

    /// Lets paths go that are not told any more and do not work, once one that is told does.
    fn retire(&self, reach: &Reach) -> Result<(), CallError> {
        let controllers = self.machine.controllers(&reach.subsystem_nqn)?;
        let is_told = |controller: &Controller| {
            let address = controller.address.as_ref();
            address.is_none_or(|address| reach.paths.contains(address))
        };
        let works = Controller::is_live;
        if !controllers.iter().any(|one| is_told(one) && works(one)) {
            return Ok(());
        }
        for controller in controllers.iter().filter(|one| !is_told(one) && !works(one)) {
            tracing::info!(path = controller.name, "a path leads nowhere any more");
            self.machine.disconnect(controller)?;
        }
        Ok(())
    }
}
