//! The admin queue: one command at a time, awaited, with a time limit.
//!
//! A command that is not answered in time ends the connection: a controller that does not answer its admin
//! queue is not there any more as far as this host is concerned.

use std::time::Duration;

use pollux_hugepages::{Buffer, Slice};
use pollux_reactor::{sleep, timeout};

use super::connection::{CommandError, QueuePair, Transfer};
use super::error::InitiatorError;
use crate::wire::command::{
    Abort, AdminOpcode, CompletionEntry, GetLogPage, Identify, PropertyGet, PropertySet, SetFeatures,
    SglDescriptor, SubmissionEntry,
};
use crate::wire::features::{AsyncEvent, FeatureId};
use crate::wire::identify::IDENTIFY_BYTES;
use crate::wire::properties::Property;
use crate::wire::status::Status;

/// How often an admin command is sent again that failed for a passing reason.
const TRIES_MAX: u32 = 3;

/// The pause before an admin command is sent again.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// The admin queue of a controller. Clones are the same queue.
#[derive(Debug, Clone)]
pub struct AdminQueue {
    queue: QueuePair,
    limit: Duration,
}

impl AdminQueue {
    /// The admin queue on a connection, whose commands have `limit` to be answered.
    pub(super) fn new(queue: QueuePair, limit: Duration) -> Self {
        Self { queue, limit }
    }

    /// Its connection.
    pub fn queue(&self) -> &QueuePair {
        &self.queue
    }

    /// How long a command may take.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// Sends a command once and waits for its completion, whatever its status.
    ///
    /// # Errors
    ///
    /// [`InitiatorError::TimedOut`] and [`InitiatorError::Connection`].
    pub async fn execute(
        &self,
        what: &'static str,
        entry: &SubmissionEntry,
        transfer: Transfer,
    ) -> Result<(CompletionEntry, Transfer), InitiatorError> {
        let limit = self.limit;
        let Ok(submission) = self.queue.submit(entry, transfer) else {
            return Err(self.why_not(what));
        };
        let Ok(finished) = timeout(limit, submission).await else {
            self.queue.close("an admin command was not answered in time");
            return Err(InitiatorError::TimedOut { what, limit });
        };
        match finished.outcome {
            Ok(completion) => Ok((completion, finished.transfer)),
            Err(CommandError::DataDigest) => {
                let completion = CompletionEntry::new(0, Status::TRANSIENT_TRANSPORT_ERROR, 0);
                Ok((completion, finished.transfer))
            }
            Err(CommandError::ConnectionLost { .. }) => Err(self.queue.ended().await.error.into()),
        }
    }

    /// Sends a command, again if it failed for a passing reason, and expects its success. `make` makes the
    /// data.
    ///
    /// # Errors
    ///
    /// As [`AdminQueue::execute`], and [`InitiatorError::Refused`].
    pub async fn succeed(
        &self,
        what: &'static str,
        entry: &SubmissionEntry,
        make: impl Fn() -> Transfer,
    ) -> Result<(CompletionEntry, Transfer), InitiatorError> {
        let mut tries = 1;
        loop {
            let (completion, transfer) = self.execute(what, entry, make()).await?;
            let status = completion.status();
            if status.is_success() {
                return Ok((completion, transfer));
            }
            let passing = [
                Status::COMMAND_INTERRUPTED,
                Status::TRANSIENT_TRANSPORT_ERROR,
                Status::NAMESPACE_NOT_READY,
            ];
            let again = passing.iter().any(|passing| status.is(*passing)) && !status.do_not_retry();
            if !again || tries >= TRIES_MAX {
                return Err(InitiatorError::Refused { what, status });
            }
            tries += 1;
            sleep(RETRY_PAUSE).await;
        }
    }

    /// A structure of Identify (NVMe Base 2.0, 5.17).
    ///
    /// # Errors
    ///
    /// As [`AdminQueue::succeed`].
    pub async fn identify(
        &self,
        what: &'static str,
        identify: Identify,
        namespace_id: u32,
    ) -> Result<Buffer, InitiatorError> {
        let entry = identify.to_entry(0, namespace_id);
        let make = || Transfer::Receive(Buffer::from_heap(IDENTIFY_BYTES));
        Ok(self.succeed(what, &entry, make).await?.1.into_buffer())
    }

    /// A part of a log page (NVMe Base 2.0, 5.16).
    ///
    /// # Errors
    ///
    /// As [`AdminQueue::succeed`].
    pub async fn log_page(
        &self,
        what: &'static str,
        log_page: GetLogPage,
        namespace_id: u32,
    ) -> Result<Buffer, InitiatorError> {
        let entry = log_page.to_entry(0, namespace_id);
        let bytes = usize::try_from(log_page.data_bytes()).unwrap_or(usize::MAX);
        let make = || Transfer::Receive(Buffer::from_heap(bytes));
        Ok(self.succeed(what, &entry, make).await?.1.into_buffer())
    }

    /// Sets a feature that is one dword; returns dword 0 of the completion (NVMe Base 2.0, 5.27).
    ///
    /// # Errors
    ///
    /// As [`AdminQueue::succeed`].
    pub async fn set_feature(
        &self,
        what: &'static str,
        feature: FeatureId,
        value: u32,
    ) -> Result<u32, InitiatorError> {
        let entry = SetFeatures::new(feature, value).to_entry(0, 0, SglDescriptor::transport(0));
        let (completion, _) = self.succeed(what, &entry, || Transfer::None).await?;
        Ok(completion.result_low())
    }

    /// Sets a feature that is a structure (NVMe Base 2.0, 5.27).
    ///
    /// # Errors
    ///
    /// As [`AdminQueue::succeed`].
    pub async fn set_feature_data(
        &self,
        what: &'static str,
        feature: FeatureId,
        data: &[u8],
    ) -> Result<(), InitiatorError> {
        let entry = SetFeatures::new(feature, 0).to_entry(0, 0, SglDescriptor::transport(0));
        let data = Slice::copy_from(data);
        self.succeed(what, &entry, || Transfer::Send(data.clone().into()))
            .await?;
        Ok(())
    }

    /// Reads a property (NVMe Base 2.0, 6.5).
    ///
    /// # Errors
    ///
    /// As [`AdminQueue::succeed`].
    pub async fn property(&self, property: Property) -> Result<u64, InitiatorError> {
        let get = PropertyGet {
            size: property.size(),
            offset: property.to_wire(),
        };
        let (completion, _) = self
            .succeed("to read a property", &get.to_entry(0), || Transfer::None)
            .await?;
        Ok(completion.result.get())
    }

    /// Sets a property (NVMe Base 2.0, 6.6).
    ///
    /// # Errors
    ///
    /// As [`AdminQueue::succeed`].
    pub async fn set_property(&self, property: Property, value: u64) -> Result<(), InitiatorError> {
        let set = PropertySet {
            size: property.size(),
            offset: property.to_wire(),
            value,
        };
        self.succeed("to set a property", &set.to_entry(0), || Transfer::None)
            .await?;
        Ok(())
    }

    /// Asks the controller to abort a command of another queue; says whether it did (NVMe Base 2.0, 5.1).
    ///
    /// # Errors
    ///
    /// As [`AdminQueue::execute`], and [`InitiatorError::Refused`].
    pub async fn abort(&self, abort: Abort) -> Result<bool, InitiatorError> {
        let what = "an Abort command";
        let (completion, _) = self.execute(what, &abort.to_entry(0), Transfer::None).await?;
        if !completion.status().is_success() {
            let status = completion.status();
            return Err(InitiatorError::Refused { what, status });
        }
        Ok(completion.result_low() & Abort::NOT_ABORTED == 0)
    }

    /// Sends a keep alive (NVMe Base 2.0, 5.18).
    ///
    /// # Errors
    ///
    /// As [`AdminQueue::succeed`].
    pub async fn keep_alive(&self) -> Result<(), InitiatorError> {
        let entry = SubmissionEntry::new(AdminOpcode::KeepAlive.to_wire(), 0, 0);
        self.succeed("a Keep Alive command", &entry, || Transfer::None)
            .await?;
        Ok(())
    }

    /// Waits for the next asynchronous event (NVMe Base 2.0, 5.2). The log page it names has to be read for
    /// the next one of its kind to come. `None` for one of a type that is not known.
    ///
    /// # Errors
    ///
    /// [`InitiatorError::Connection`], and [`InitiatorError::Refused`] by a controller that has none.
    pub async fn next_event(&self) -> Result<Option<AsyncEvent>, InitiatorError> {
        let what = "an Asynchronous Event Request";
        let entry = SubmissionEntry::new(AdminOpcode::AsynchronousEventRequest.to_wire(), 0, 0);
        let finished = match self.queue.submit(&entry, Transfer::None) {
            Ok(submission) => submission.await,
            Err(_) => return Err(self.queue.ended().await.error.into()),
        };
        let Ok(completion) = finished.outcome else {
            return Err(self.queue.ended().await.error.into());
        };
        let status = completion.status();
        if !status.is_success() {
            return Err(InitiatorError::Refused { what, status });
        }
        Ok(AsyncEvent::from_dword(completion.result_low()))
    }

    /// Why a command could not be submitted.
    fn why_not(&self, what: &'static str) -> InitiatorError {
        match self.queue.end() {
            Some(ended) => ended.error.into(),
            // The admin queue has room for all that this host ever has under way.
            None => InitiatorError::Refused {
                what,
                status: Status::ABORTED_BY_HOST,
            },
        }
    }
}
