//! What all kinds of records have in common: creating, reading, listing, changing, deleting, watching.

use std::collections::BTreeMap;
use std::pin::Pin;

use pollux_api::FieldMask;
use pollux_api::control::v1::{PageRequest, WatchRequest};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use uuid::Uuid;

use crate::model::{FieldError, Guarded, Kind, Record, Validate};
use crate::store::{Change, Condition, RESTORED_KEY, Range, StoreError, Transaction, Watcher};

use super::Services;
use super::errors::CallError;

/// How often a change is tried against others.
pub(super) const ATTEMPTS_MAX: usize = 32;

/// Entries of a page, if the caller does not say, and at most.
const PAGE_SIZE_DEFAULT: usize = 100;
const PAGE_SIZE_MAX: usize = 1000;

/// Changes on their way to one caller.
const CHANGES_ON_THE_WAY: usize = 64;

/// Changes of one kind as they happen.
pub type ChangeStream<C> = Pin<Box<dyn Stream<Item = Result<C, Status>> + Send>>;

/// A page of records.
#[derive(Debug)]
pub struct Page<R> {
    /// By name.
    pub records: Vec<R>,
    /// For the next page; empty on the last.
    pub next_page_token: String,
    /// The revision of the store.
    pub revision: u64,
}

/// What is special about a kind.
#[tonic::async_trait]
pub trait Managed: Validate {
    /// Removes what users cannot set, and sets what a new record has.
    fn sanitize(&mut self);

    /// Takes a field of another record. Says whether it is one that can be changed: nothing but labels, if
    /// the kind does not say otherwise.
    fn set(&mut self, _update: &Self, _path: &str) -> bool {
        false
    }

    /// Looks at the records that this one names, completes a new one, and returns the conditions that those
    /// stay as they are. `before` is what it was, unless it is new.
    async fn refer(
        &mut self,
        _before: Option<&Self>,
        _services: &Services,
    ) -> Result<Vec<Condition>, CallError> {
        Ok(Vec::new())
    }

    /// Refuses if something still needs it.
    async fn require_unused(&self, _services: &Services) -> Result<(), CallError> {
        Ok(())
    }
}

impl Services {
    /// The record that a call names.
    pub async fn named<R: Record>(&self, name: &str) -> Result<R, CallError> {
        require_name(name)?;
        self.find(name).await
    }

    /// A record that has to be there.
    pub async fn find<R: Record>(&self, name: &str) -> Result<R, CallError> {
        match self.parts.store.get(&R::KIND.key(name)).await? {
            Some(entry) => Ok(R::read(&entry)?),
            None => Err(CallError::NotFound {
                kind: R::KIND,
                name: name.to_owned(),
            }),
        }
    }

    /// A record that has to be there for another one that names it in a field, and the condition that it
    /// stays so.
    pub async fn refer<R: Record>(&self, field: &str, name: &str) -> Result<(R, Condition), CallError> {
        let record = match self.find::<R>(name).await {
            Err(CallError::NotFound { kind, name }) => {
                return Err(CallError::field(
                    field,
                    &format!("names {kind} {name}, which is not there"),
                ));
            }
            found => found?,
        };
        if record.is_deleting() {
            return Err(CallError::Deleting {
                kind: R::KIND,
                name: name.to_owned(),
            });
        }
        let condition = Condition {
            key: record.key(),
            revision: record.meta().revision,
        };
        Ok((record, condition))
    }

    /// Creates a record, or returns the one that was asked for in the same way.
    pub async fn create<R: Managed>(&self, record: Option<R>) -> Result<R, CallError> {
        let Some(mut record) = record else {
            return Err(CallError::field(R::KIND.field(), "is missing"));
        };
        let errors = record.field_errors();
        if !errors.is_empty() {
            return Err(CallError::Fields(errors));
        }
        record.sanitize();
        let metadata = record.meta_mut();
        metadata.uid = Uuid::new_v4().to_string();
        metadata.revision = 0;
        metadata.deleted_unix_us = None;
        metadata.created_unix_us = self.parts.clock.now_unix_us();
        for _ in 0..ATTEMPTS_MAX {
            if let Some(entry) = self.parts.store.get(&record.key()).await? {
                let present = R::read(&entry)?;
                return match (present.is_deleting(), present.is_same_request(&record)) {
                    (true, _) => Err(CallError::Deleting {
                        kind: R::KIND,
                        name: record.name().to_owned(),
                    }),
                    (false, true) => Ok(present),
                    (false, false) => Err(CallError::NameTaken {
                        kind: R::KIND,
                        name: record.name().to_owned(),
                    }),
                };
            }
            let mut complete = record.clone();
            let mut transaction = Transaction {
                conditions: complete.refer(None, self).await?,
                writes: Vec::new(),
            };
            transaction.put(&complete);
            // Before it is there: the planner may see it at once.
            self.parts.observations.asked().note(&complete.meta().uid);
            match self.commit(unless_held(R::KIND, transaction)).await {
                Ok(revision) => {
                    complete.meta_mut().revision = revision;
                    return Ok(complete);
                }
                Err(CallError::Store(StoreError::Conflict { .. })) => {}
                Err(error) => return Err(error),
            }
        }
        Err(contended::<R>(record.name()))
    }

    /// Changes a record, as often as it takes. Returns it as it is then.
    pub async fn change<R: Record>(
        &self,
        name: &str,
        change: impl Fn(&mut R) -> Result<(), CallError>,
    ) -> Result<R, CallError> {
        for _ in 0..ATTEMPTS_MAX {
            let present = self.find::<R>(name).await?;
            let mut changed = present.clone();
            change(&mut changed)?;
            if let Some(done) = self.replace(&present, changed, Transaction::default()).await? {
                return Ok(done);
            }
        }
        Err(contended::<R>(name))
    }

    /// Puts a record in the place of another, and writes what is beside it in the same step. Nothing if
    /// somebody was quicker.
    pub(super) async fn replace<R: Record>(
        &self,
        present: &R,
        changed: R,
        beside: Transaction,
    ) -> Result<Option<R>, CallError> {
        if changed == *present {
            return Ok(Some(changed));
        }
        self.put_in_place(changed, unless_held(R::KIND, beside)).await
    }

    /// Puts a record in the place of the one that it was made of. Nothing if somebody was quicker.
    async fn put_in_place<R: Record>(
        &self,
        mut changed: R,
        beside: Transaction,
    ) -> Result<Option<R>, CallError> {
        let mut transaction = beside;
        transaction.put(&changed);
        self.parts.observations.asked().note(&changed.meta().uid);
        match self.commit(transaction).await {
            Ok(revision) => {
                changed.meta_mut().revision = revision;
                Ok(Some(changed))
            }
            Err(CallError::Store(StoreError::Conflict { .. })) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn commit(&self, transaction: Transaction) -> Result<u64, CallError> {
        match self.parts.store.commit(transaction).await {
            Err(StoreError::Conflict { key }) if key == RESTORED_KEY => Err(CallError::Restored),
            done => Ok(done?),
        }
    }

    /// Changes the fields that a mask names.
    pub async fn update<R: Managed>(
        &self,
        update: Option<R>,
        mask: Option<FieldMask>,
    ) -> Result<R, CallError> {
        let update = update.ok_or_else(|| CallError::field(R::KIND.field(), "is missing"))?;
        let name = update.name();
        let mut errors = Vec::new();
        let field = format!("{}.metadata.name", R::KIND.field());
        crate::model::check_name(name, &mut crate::model::Checker::new(&field, &mut errors));
        let paths = mask.map(|mask| mask.paths).unwrap_or_default();
        if paths.is_empty() {
            errors.push(FieldError {
                field: "update_mask".to_owned(),
                description: "is missing: name the fields that are to change".to_owned(),
            });
        }
        if !errors.is_empty() {
            return Err(CallError::Fields(errors));
        }
        let based_on = update.meta().revision;
        for _ in 0..ATTEMPTS_MAX {
            let present = self.find::<R>(name).await?;
            if present.is_deleting() {
                return Err(CallError::Deleting {
                    kind: R::KIND,
                    name: name.to_owned(),
                });
            }
            if based_on != 0 && based_on != present.meta().revision {
                return Err(CallError::RevisionStale {
                    kind: R::KIND,
                    name: name.to_owned(),
                    revision: based_on,
                });
            }
            let mut changed = masked(&present, &update, &paths)?;
            let beside = Transaction {
                conditions: changed.refer(Some(&present), self).await?,
                writes: Vec::new(),
            };
            if let Some(done) = self.replace(&present, changed, beside).await? {
                return Ok(done);
            }
        }
        Err(contended::<R>(name))
    }

    /// Marks a record as to be deleted, for the planner to do the rest.
    pub async fn mark_deleted<R: Managed>(&self, name: &str) -> Result<R, CallError> {
        require_name(name)?;
        for _ in 0..ATTEMPTS_MAX {
            let present = self.find::<R>(name).await?;
            if present.is_deleting() {
                return Ok(present);
            }
            present.require_unused(self).await?;
            let now = self.parts.clock.now_unix_us();
            let Some(marked) = self.mark(&present, Some(now)).await? else {
                continue;
            };
            // What came to use it since it was looked at: it is told as if it had come before. Of what the
            // planner has begun by then nothing is lost, as it takes nothing away that is in use.
            let Err(error) = marked.require_unused(self).await else {
                return Ok(marked);
            };
            match self.mark(&marked, None).await? {
                Some(_) => return Err(error),
                None => return Ok(marked),
            }
        }
        Err(contended::<R>(name))
    }

    /// The same, also of what is not there.
    pub async fn mark_gone<R: Managed>(&self, name: &str) -> Result<(), CallError> {
        match self.mark_deleted::<R>(name).await {
            Ok(_) | Err(CallError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Deletes a record that nothing else names.
    ///
    /// It is marked first. From then on nothing new can name it: who looks at it is refused, and who looked
    /// before has the condition that it is as it was. So what is looked for after the mark is all there can
    /// be. If there is something the mark is taken off again; the planner does so for a caller that died.
    pub async fn delete<R: Managed>(&self, name: &str) -> Result<(), CallError> {
        require_name(name)?;
        let mut is_marked_here = false;
        for _ in 0..ATTEMPTS_MAX {
            let mut record = match self.find::<R>(name).await {
                Err(CallError::NotFound { .. }) if is_marked_here => return Ok(()),
                found => found?,
            };
            if !record.is_deleting() {
                // Most of what is used is found out here, without disturbing those who name it meanwhile.
                record.require_unused(self).await?;
                let now = self.parts.clock.now_unix_us();
                match self.mark(&record, Some(now)).await? {
                    Some(marked) => record = marked,
                    None => continue,
                }
                is_marked_here = true;
            }
            if let Err(error) = record.require_unused(self).await {
                match self.mark(&record, None).await? {
                    Some(_) => return Err(error),
                    None => continue,
                }
            }
            let mut transaction = Transaction::default();
            transaction.delete(&record);
            match self.parts.store.commit(transaction).await {
                Ok(_) => return Ok(()),
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(contended::<R>(name))
    }

    /// Marks a record as to be deleted, or takes the mark off. Nothing if somebody was quicker.
    async fn mark<R: Record>(
        &self,
        record: &R,
        deleted_unix_us: Option<u64>,
    ) -> Result<Option<R>, CallError> {
        let mut changed = record.clone();
        changed.meta_mut().deleted_unix_us = deleted_unix_us;
        if changed == *record {
            return Ok(Some(changed));
        }
        // Also of records that nothing is done by yet: some can only be got rid of.
        self.put_in_place(changed, Transaction::default()).await
    }

    /// All records of a kind.
    pub async fn all<R: Record>(&self) -> Result<Vec<R>, CallError> {
        let listing = self.parts.store.list_all(&R::KIND.prefix()).await?;
        let records: Result<Vec<R>, StoreError> = listing.entries.iter().map(R::read).collect();
        Ok(records?)
    }

    /// One page of the records that are wanted. `filter` tells lists of different wishes apart.
    pub async fn page<R: Record>(
        &self,
        page: Option<PageRequest>,
        filter: &str,
        wanted: impl Fn(&R) -> bool,
    ) -> Result<Page<R>, CallError> {
        let page = page.unwrap_or_default();
        let size = match usize::try_from(page.size).unwrap_or(PAGE_SIZE_MAX) {
            0 => PAGE_SIZE_DEFAULT,
            size => size.min(PAGE_SIZE_MAX),
        };
        let mut after = match page.token.as_str() {
            "" => None,
            token => Some(R::KIND.key(read_token(R::KIND, filter, token)?)),
        };
        let prefix = R::KIND.prefix();
        let mut records: Vec<R> = Vec::new();
        loop {
            let listing = self
                .parts
                .store
                .list(Range {
                    prefix: &prefix,
                    after: after.as_deref(),
                    limit: PAGE_SIZE_MAX.min(size + 1),
                })
                .await?;
            for entry in &listing.entries {
                let record = R::read(entry)?;
                if !wanted(&record) {
                    continue;
                }
                if records.len() == size {
                    let last = records.last().map_or("", |last| last.name());
                    return Ok(Page {
                        next_page_token: token(R::KIND, filter, last),
                        records,
                        revision: listing.revision,
                    });
                }
                records.push(record);
            }
            after = listing.entries.last().map(|entry| entry.key.clone());
            if !listing.more {
                return Ok(Page {
                    records,
                    next_page_token: String::new(),
                    revision: listing.revision,
                });
            }
        }
    }

    /// Changes of a kind as they happen; first what there is, unless a revision is given.
    pub async fn watch<R, C>(
        &self,
        request: WatchRequest,
        message: fn(u64, Result<R, String>) -> C,
    ) -> Result<ChangeStream<C>, CallError>
    where
        R: Record,
        C: Send + 'static,
    {
        let prefix = R::KIND.prefix();
        let mut present = Vec::new();
        let after = match request.after_revision {
            Some(after) => after,
            None => {
                let listing = self.parts.store.list_all(&prefix).await?;
                for entry in &listing.entries {
                    present.push(message(entry.revision, Ok(R::read(entry)?)));
                }
                listing.revision
            }
        };
        let mut watcher = self.parts.store.watch(&prefix, after).await?;
        let (sender, receiver) = mpsc::channel(CHANGES_ON_THE_WAY);
        tokio::spawn(async move {
            for message in present {
                if sender.send(Ok(message)).await.is_err() {
                    return;
                }
            }
            loop {
                let changes = tokio::select! {
                    changes = next::<R>(watcher.as_mut()) => changes,
                    () = sender.closed() => return,
                };
                let changes = match changes {
                    Ok(changes) => changes,
                    Err(error) => {
                        // A caller that is gone does not want to know.
                        let _ = sender.send(Err(CallError::from(error).into())).await;
                        return;
                    }
                };
                for (revision, change) in changes {
                    if sender.send(Ok(message(revision, change))).await.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Box::pin(ReceiverStream::new(receiver)))
    }
}

/// A change of records of a kind that is not made while records may be older than what engines have, as
/// nothing is asked for of those. Who takes part in the cluster is said before that is known.
fn unless_held(kind: Kind, mut transaction: Transaction) -> Transaction {
    let is_done_by = match kind {
        Kind::Pool | Kind::Volume | Kind::Snapshot | Kind::GroupSnapshot | Kind::Rebalance => true,
        Kind::Node | Kind::Group | Kind::Template | Kind::Token => false,
        Kind::HostSecrets | Kind::Removal | Kind::Event => false,
    };
    if is_done_by {
        transaction.conditions.push(Condition {
            key: RESTORED_KEY.to_owned(),
            revision: 0,
        });
    }
    transaction
}

pub(super) fn contended<R: Record>(name: &str) -> CallError {
    CallError::Contended {
        kind: R::KIND,
        name: name.to_owned(),
    }
}

/// A record with the fields of another one that a mask names, checked.
pub(super) fn masked<R: Managed>(present: &R, update: &R, paths: &[String]) -> Result<R, CallError> {
    let mut changed = present.clone();
    for path in paths {
        let is_known = match path.as_str() {
            "metadata.labels" => {
                changed.meta_mut().labels.clone_from(&update.meta().labels);
                true
            }
            path => changed.set(update, path),
        };
        if !is_known {
            let description = format!("has {path:?}, which is no field that can be changed");
            return Err(CallError::field("update_mask", &description));
        }
    }
    let errors = changed.field_errors();
    match errors.is_empty() {
        true => Ok(changed),
        false => Err(CallError::Fields(errors)),
    }
}

/// The next changes: a record, or the name of one that is gone.
async fn next<R: Record>(watcher: &mut dyn Watcher) -> Result<Vec<(u64, Result<R, String>)>, StoreError> {
    let changes = watcher.next().await?;
    let read = |change: Change| {
        let revision = change.revision;
        let name = Kind::parse(&change.key).map_or_else(String::new, |(_, name)| name.to_owned());
        let record = match &change.value {
            Some(value) => Ok(R::read_value(&change.key, value, revision)?),
            None => Err(name),
        };
        Ok((revision, record))
    };
    changes.into_iter().map(read).collect()
}

fn checksum(kind: Kind, filter: &str, name: &str) -> u32 {
    crc32c::crc32c(format!("{kind}\0{filter}\0{name}").as_bytes())
}

/// The last name of a page, with a checksum of the list that it belongs to.
fn token(kind: Kind, filter: &str, name: &str) -> String {
    format!("{:08x}{name}", checksum(kind, filter, name))
}

fn read_token<'a>(kind: Kind, filter: &str, token: &'a str) -> Result<&'a str, CallError> {
    let (sum, name) = token.split_at_checked(8).ok_or(CallError::PageToken)?;
    let sum = u32::from_str_radix(sum, 16).map_err(|_| CallError::PageToken)?;
    match sum == checksum(kind, filter, name) {
        true => Ok(name),
        false => Err(CallError::PageToken),
    }
}

/// Names by which records are found.
pub(super) fn require_name(name: &str) -> Result<(), CallError> {
    let mut errors = Vec::new();
    let mut checker = crate::model::Checker::new("name", &mut errors);
    crate::model::check_name(name, &mut checker);
    match errors.is_empty() {
        true => Ok(()),
        false => Err(CallError::Fields(errors)),
    }
}

/// Records by name.
pub(super) fn by_name<R: Record>(records: Vec<R>) -> BTreeMap<String, R> {
    records
        .into_iter()
        .map(|record| (record.name().to_owned(), record))
        .collect()
}
