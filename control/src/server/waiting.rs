//! Calls that wait until what they asked for is so.
//!
//! What is asked for is stored before the wait begins, and a wait only looks: whoever is cut off, or asks
//! another instance, asks again and finds the same. An answer that comes because the time is over tells what
//! is so then.
//!
//! Invariants:
//! - A wait ends before its call is cut off: after [`WAIT_US_MAX`], or before the deadline of the caller.
//! - Nobody looks at a volume but when an engine tells something else of it, or every [`LOOK_INTERVAL`].

use std::collections::BTreeMap;
use std::time::Duration;

use pollux_api::control::v1::{Node, Volume};
use tokio::time::Instant;
use tonic::metadata::MetadataMap;

use crate::controller::{REPORT_TIMEOUT, address};
use crate::model::{Kind, Record};
use crate::store::StoreError;

use super::Services;
use super::errors::CallError;
use super::records::by_name;

/// The longest wait, which is less than what a call may take.
const WAIT_US_MAX: u64 = 30_000_000;

/// The pause after which it is looked again, if no engine has told anything.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// Engines tell an instance that they tell anything at all more often than this. What is older was told
/// before another one began to lead.
const TOLD_US_MAX: u64 = 3_000_000;

/// The header with the deadline of a call (gRPC over HTTP/2, "Requests").
const DEADLINE_HEADER: &str = "grpc-timeout";

/// What is left of the time before a deadline, for the answer to arrive.
const ANSWER_TIME: Duration = Duration::from_millis(100);

/// How long a call waits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wait {
    until: Option<Instant>,
}

impl Wait {
    /// What a request says, within the deadline of its caller.
    ///
    /// # Errors
    ///
    /// [`CallError::Fields`] for a wait that is longer than the longest.
    pub(super) fn of(wait_us: Option<u64>, metadata: &MetadataMap) -> Result<Self, CallError> {
        let Some(wait_us) = wait_us else {
            return Ok(Self { until: None });
        };
        if wait_us > WAIT_US_MAX {
            let description = format!("is {wait_us}; give {WAIT_US_MAX} at most, and ask again");
            return Err(CallError::field("wait_us", &description));
        }
        let given = metadata.get(DEADLINE_HEADER).and_then(|text| text.to_str().ok());
        let deadline = given.and_then(deadline).unwrap_or(Duration::MAX);
        let span = Duration::from_micros(wait_us).min(deadline.saturating_sub(ANSWER_TIME));
        Ok(Self {
            until: Some(Instant::now() + span),
        })
    }

    /// When it is looked next; nothing once the time is over.
    fn next(&self) -> Option<Instant> {
        let now = Instant::now();
        let until = self.until.filter(|until| *until > now)?;
        Some(until.min(now + LOOK_INTERVAL))
    }
}

/// The deadline in the words of gRPC: up to eight digits and a unit.
fn deadline(text: &str) -> Option<Duration> {
    let (at, unit) = text.char_indices().next_back()?;
    let number = text.get(..at).filter(|digits| digits.len() <= 8)?;
    let number: u64 = number.parse().ok()?;
    match unit {
        'H' => Some(Duration::from_secs(number.saturating_mul(3600))),
        'M' => Some(Duration::from_secs(number.saturating_mul(60))),
        'S' => Some(Duration::from_secs(number)),
        'm' => Some(Duration::from_millis(number)),
        'u' => Some(Duration::from_micros(number)),
        'n' => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

/// Nodes by their names.
pub(super) type Nodes = BTreeMap<String, Node>;

/// The last look at a volume.
pub(super) struct Look {
    pub(super) volume: Volume,
    pub(super) nodes: Nodes,
    /// Whether it is so.
    pub(super) done: bool,
}

impl Services {
    async fn nodes_by_name(&self) -> Result<Nodes, CallError> {
        Ok(by_name(self.all::<Node>().await?))
    }

    /// Looks at a volume until it is as it is to be, or the time is over. What engines tell decides that, so
    /// those are asked that do not tell it here: another instance may lead.
    ///
    /// # Errors
    ///
    /// [`CallError::NotFound`] and [`CallError::Deleting`] if it is deleted meanwhile; those of the store.
    pub(super) async fn await_volume(
        &self,
        wait: Wait,
        mut volume: Volume,
        is_done: impl Fn(&Volume, &Nodes) -> bool,
    ) -> Result<Look, CallError> {
        let uid = volume.meta().uid.clone();
        let mut told = self.parts.observations.of_volume(&uid);
        loop {
            let nodes = self.nodes_by_name().await?;
            let done = is_done(&volume, &nodes);
            let next = match wait.next() {
                Some(next) if !done => next,
                _ => {
                    return Ok(Look { volume, nodes, done });
                }
            };
            if tokio::time::timeout_at(next, told.changed()).await.is_err() {
                self.ask_silent(&volume, &nodes, next + LOOK_INTERVAL).await;
            }
            let found: Volume = self.find(volume.name()).await?;
            if found.meta().uid != uid || found.is_deleting() {
                return Err(CallError::Deleting {
                    kind: Kind::Volume,
                    name: found.name().to_owned(),
                });
            }
            volume = found;
        }
    }

    /// Asks the engines of a volume that have told nothing here for a while.
    async fn ask_silent(&self, volume: &Volume, nodes: &Nodes, until: Instant) {
        let status = volume.status.clone().unwrap_or_default();
        let mut names: Vec<&str> = status
            .replicas
            .iter()
            .map(|replica| replica.node.as_str())
            .collect();
        names.push(&status.target_node);
        names.sort_unstable();
        names.dedup();
        let now_us = self.parts.clock.steady_us();
        let is_silent = |name: &&str| {
            let last = self.parts.observations.get(name);
            last.is_none_or(|last| now_us.saturating_sub(last.at_steady_us) > TOLD_US_MAX)
        };
        for name in names.into_iter().filter(is_silent) {
            let Some(node) = nodes.get(name) else { continue };
            let until = until.min(Instant::now() + REPORT_TIMEOUT);
            let engine = address(node);
            // One that does not answer is asked again when it is looked next.
            if let Ok(Ok(report)) = tokio::time::timeout_at(until, self.parts.engines.report(&engine)).await
                && report.node == name
            {
                let now_us = self.parts.clock.steady_us();
                self.parts.observations.put(report, now_us);
            }
        }
    }

    /// A record once it is as it is to be, or as it is when the time is over. The record alone decides that.
    ///
    /// # Errors
    ///
    /// [`CallError::NotFound`] and [`CallError::Deleting`] if it is deleted meanwhile; those of the store.
    pub(super) async fn await_record<R: Record>(
        &self,
        wait: Wait,
        mut record: R,
        is_done: impl Fn(&R) -> bool,
    ) -> Result<R, CallError> {
        let Some(until) = wait.until else {
            return Ok(record);
        };
        let uid = record.meta().uid.clone();
        while !is_done(&record) && Instant::now() < until {
            let mut watcher = self
                .parts
                .store
                .watch(&record.key(), record.meta().revision)
                .await?;
            match tokio::time::timeout_at(until, watcher.next()).await {
                // The history was cut off: the record itself tells.
                Ok(Ok(_) | Err(StoreError::HistoryGone { .. })) => {}
                Ok(Err(error)) => return Err(error.into()),
                Err(_) => break,
            }
            let found: R = self.find(record.name()).await?;
            if found.meta().uid != uid || found.is_deleting() {
                return Err(CallError::Deleting {
                    kind: R::KIND,
                    name: record.name().to_owned(),
                });
            }
            record = found;
        }
        Ok(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_deadline(text: &str) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        metadata.insert(DEADLINE_HEADER, text.parse().expect("ASCII"));
        metadata
    }

    #[test]
    fn deadlines_are_read() {
        for (text, wanted) in [
            ("1S", Some(Duration::from_secs(1))),
            ("2M", Some(Duration::from_secs(120))),
            ("3H", Some(Duration::from_secs(10_800))),
            ("4m", Some(Duration::from_millis(4))),
            ("5u", Some(Duration::from_micros(5))),
            ("99999999n", Some(Duration::from_nanos(99_999_999))),
            ("", None),
            ("S", None),
            ("1", None),
            ("-1S", None),
            ("123456789S", None),
            ("1\u{fc}", None),
        ] {
            assert_eq!(deadline(text), wanted, "{text:?}");
        }
    }

    #[tokio::test]
    async fn waits_are_bounded() {
        let none = MetadataMap::new();
        assert!(Wait::of(None, &none).expect("none").next().is_none());
        assert!(Wait::of(Some(0), &none).expect("none").next().is_none());
        assert!(
            Wait::of(Some(WAIT_US_MAX), &none)
                .expect("the longest")
                .next()
                .is_some()
        );
        assert!(Wait::of(Some(WAIT_US_MAX + 1), &none).is_err());
        // The answer has to arrive before the deadline, whatever is asked.
        let wait = Wait::of(Some(WAIT_US_MAX), &with_deadline("50m")).expect("it is short");
        assert!(wait.next().is_none());
        let wait = Wait::of(Some(WAIT_US_MAX), &with_deadline("10S")).expect("it is short");
        let until = wait.until.expect("it waits");
        assert!(until < Instant::now() + Duration::from_secs(10));
        let wait = Wait::of(Some(1_000_000), &with_deadline("nonsense")).expect("it is none");
        assert!(wait.next().is_some());
    }
}
