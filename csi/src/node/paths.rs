//! Keeping the paths of staged volumes: those that could not be connected at first, or were given up by the
//! kernel since, are tried again from time to time.

use std::time::Duration;

use tokio::sync::watch;

use super::NodeService;

/// Between two rounds.
const ROUND: Duration = Duration::from_secs(15);

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
        for record in records {
            let id = record.volume_id;
            let volume_id = id.clone();
            let done = self.exclusively(&id, move |parts| {
                // It may have been unstaged meanwhile.
                let Some(record) = parts.records.get(&volume_id)? else {
                    return Ok(Vec::new());
                };
                parts.connect(&volume_id, &record.reach)
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
