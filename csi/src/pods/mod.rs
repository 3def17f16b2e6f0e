//! Which pods use volumes, as labels of the volumes.
//!
//! Kubernetes does not tell a driver which pod a volume is published for, so the cluster's API server is
//! asked. Nobody waits for that: calls only note which volume has changed. What is noted is looked at until a
//! pod is seen, or for a while; and all volumes are, at the beginning and every few minutes, which sets right
//! whatever was missed: a note that was lost with the process, a pod that has gone and left the volume to
//! another.
//!
//! The labels follow from the hosts of a volume and from the pods on them, and from nothing else. So services
//! that run at the same time write the same, and the last word is that of the latest look.

mod cluster;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pollux_api::control::v1::{ListVolumesRequest, Reason, Volume};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tracing::{debug, info, warn};

pub use cluster::{PodsError, PodsOfCluster, Users};

use crate::control::{ATTEMPTS_MAX, ControlPlane, Pages, reason};
use crate::error::CallError;
use crate::names::label;

/// Characters of a label's value: what the control plane takes.
const VALUE_CHARACTERS_MAX: usize = 256;

/// When volumes are looked at.
#[derive(Debug, Clone, Copy)]
pub struct PodTimes {
    /// Between looks at all volumes.
    pub pass: Duration,
    /// Before the second look at one volume; each further one is twice as late.
    pub first_look: Duration,
    /// For how long one that was published is looked at, until a pod is seen.
    pub patience: Duration,
}

impl Default for PodTimes {
    fn default() -> Self {
        Self {
            pass: Duration::from_secs(180),
            first_look: Duration::from_secs(1),
            patience: Duration::from_secs(60),
        }
    }
}

/// A volume that is to be looked at.
#[derive(Debug, Clone, Copy)]
struct Note {
    due: Instant,
    pause: Duration,
    until: Instant,
    /// Tells notes of one volume apart.
    number: u64,
}

#[derive(Debug, Default)]
struct Notes {
    volumes: BTreeMap<String, Note>,
    number: u64,
}

/// Where calls note what has changed. Clones share it.
#[derive(Debug, Clone)]
pub struct PodNotes {
    notes: Arc<Mutex<Notes>>,
    noted: Arc<Notify>,
    times: PodTimes,
}

impl PodNotes {
    fn new(times: PodTimes) -> Self {
        Self {
            notes: Arc::default(),
            noted: Arc::default(),
            times,
        }
    }

    /// A volume is published elsewhere than before. Waits for nothing.
    pub fn note(&self, id: &str) {
        let now = Instant::now();
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        notes.number += 1;
        let note = Note {
            due: now,
            pause: self.times.first_look,
            until: now + self.times.patience,
            number: notes.number,
        };
        notes.volumes.insert(id.to_owned(), note);
        drop(notes);
        self.noted.notify_one();
    }

    /// The note that is due first.
    fn next(&self) -> Option<(String, Note)> {
        let notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        let first = notes.volumes.iter().min_by_key(|(_, note)| note.due);
        first.map(|(id, note)| (id.clone(), *note))
    }

    /// A volume was looked at: it is looked at again later, or not. What was noted meanwhile stays.
    fn looked_at(&self, id: &str, old: Note, again: bool) {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(note) = notes.volumes.get_mut(id).filter(|note| note.number == old.number) else {
            return;
        };
        let now = Instant::now();
        if again && now < note.until {
            note.due = now + note.pause;
            note.pause *= 2;
        } else {
            notes.volumes.remove(id);
        }
    }

    fn clear(&self) {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        notes.volumes.clear();
    }
}

/// Why a volume was not labelled.
#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error(transparent)]
    Pods(#[from] PodsError),
    #[error(transparent)]
    Control(#[from] CallError),
}

/// Writes down which pods use volumes.
#[derive(Debug)]
pub struct PodLabels {
    control: ControlPlane,
    pods: PodsOfCluster,
    notes: PodNotes,
    complaint: Complaint,
}

/// Says what is wrong, once until it is right again.
#[derive(Debug, Default)]
struct Complaint {
    is_told: bool,
}

impl Complaint {
    fn tell(&mut self, done: Result<(), LookError>) {
        match done {
            Ok(()) if self.is_told => {
                info!("volumes are labelled with the pods that use them again");
                self.is_told = false;
            }
            Ok(()) => {}
            Err(error) if self.is_told => debug!(%error, "volumes are still not labelled with pods"),
            Err(error) => {
                warn!(%error, "volumes are not labelled with the pods that use them; it is tried again");
                self.is_told = true;
            }
        }
    }
}

/// Texts in one label, as many as it takes.
fn joined(texts: &BTreeSet<String>) -> Option<String> {
    let mut value = String::new();
    for (index, text) in texts.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        let more = format!("{comma}{text}");
        let left = texts.len() - index;
        // There is always room left to tell how many more there are.
        let rest = format!(" and {left} more").len();
        let is_last = left == 1;
        let reserve = if is_last { 0 } else { rest };
        if value.chars().count() + more.chars().count() + reserve > VALUE_CHARACTERS_MAX {
            value.push_str(&format!(" and {left} more"));
            break;
        }
        value.push_str(&more);
    }
    (!value.is_empty()).then(|| value.trim_start().to_owned())
}

impl PodLabels {
    /// Of the volumes of the cluster that the control plane is asked for.
    pub fn new(control: ControlPlane, pods: PodsOfCluster, times: PodTimes) -> Self {
        Self {
            control,
            pods,
            notes: PodNotes::new(times),
            complaint: Complaint::default(),
        }
    }

    /// Where calls note what has changed.
    pub fn notes(&self) -> PodNotes {
        self.notes.clone()
    }

    /// Looks at volumes until it is told to stop.
    pub async fn run(mut self, mut stopped: watch::Receiver<bool>) {
        let stop = async move {
            // Whoever would tell is gone: that is the end too.
            let _ = stopped.wait_for(|stopped| *stopped).await;
        };
        tokio::select! {
            () = stop => {}
            () = self.look() => {}
        }
    }

    async fn look(&mut self) {
        let mut pass = Instant::now();
        loop {
            let next = self.notes.next();
            let due = next.as_ref().map_or(pass, |(_, note)| note.due.min(pass));
            tokio::select! {
                () = tokio::time::sleep_until(due) => {}
                () = self.notes.noted.notified() => continue,
            }
            if pass <= Instant::now() {
                let done = self.look_at_all().await;
                self.tell(done);
                pass = Instant::now() + self.notes.times.pass;
            } else if let Some((id, note)) = next {
                let looked = self.look_at(&id).await;
                let again = !matches!(looked, Ok(true));
                self.notes.looked_at(&id, note, again);
                self.tell(looked.map(drop));
            }
        }
    }

    /// Says what is wrong. Who is forbidden to ask does not ask again soon.
    fn tell(&mut self, done: Result<(), LookError>) {
        if matches!(done, Err(LookError::Pods(PodsError::Forbidden(_)))) {
            self.notes.clear();
        }
        self.complaint.tell(done);
    }

    /// One volume that cannot be looked at does not keep others from it, if asking for them is worth while.
    async fn look_at_all(&self) -> Result<(), LookError> {
        let mut pages = Pages::all();
        let mut wrong = None;
        while let Some(page) = pages.request() {
            let request = ListVolumesRequest { page: Some(page) };
            let answer = self.control.volumes().list_volumes(request).await;
            let answer = answer.map_err(CallError::from)?.into_inner();
            for volume in answer.volumes {
                match self.settle(volume).await {
                    Ok(_) => {}
                    Err(error @ LookError::Pods(PodsError::Api(_))) => wrong = Some(error),
                    Err(error) => return Err(error),
                }
            }
            pages.came(answer.next_page_token);
        }
        wrong.map_or(Ok(()), Err)
    }

    /// Whether all is said of a volume: it is published to nobody, or pods are seen.
    async fn look_at(&self, id: &str) -> Result<bool, LookError> {
        match self.control.any_volume(id).await? {
            Some(volume) => self.settle(volume).await,
            None => Ok(true),
        }
    }

    /// Labels a volume as it is used now. Whether all is said of it.
    async fn settle(&self, mut volume: Volume) -> Result<bool, LookError> {
        for _ in 0..ATTEMPTS_MAX {
            let Some(metadata) = volume.metadata.as_ref() else {
                return Ok(true);
            };
            let label = |key: &str| metadata.labels.get(key).map(String::as_str);
            let (Some(claim), Some(namespace)) = (label(label::CLAIM), label(label::NAMESPACE)) else {
                return Ok(true);
            };
            // Those of other clusters are theirs.
            if label(label::CLUSTER) != Some(self.control.cluster().name()) {
                return Ok(true);
            }
            let hosts = volume.spec.iter().flat_map(|spec| &spec.hosts);
            let nodes: BTreeSet<String> = hosts
                .filter_map(|host| self.control.cluster().node_of_id(&host.host_nqn))
                .map(str::to_owned)
                .collect();
            let users = match nodes.is_empty() {
                true => Users::default(),
                false => self.pods.users(namespace, claim, &nodes).await?,
            };
            let is_said = nodes.is_empty() || !users.pods.is_empty();
            let mut changed = volume.clone();
            let labels = &mut changed.metadata.get_or_insert_default().labels;
            for (key, texts) in [(label::POD, &users.pods), (label::OWNER, &users.owners)] {
                match joined(texts) {
                    Some(value) => labels.insert(key.to_owned(), value),
                    None => labels.remove(key),
                };
            }
            if changed == volume {
                return Ok(is_said);
            }
            let name = metadata.name.clone();
            match self.control.try_update(changed, &["metadata.labels"]).await {
                Ok(Some(_)) => return Ok(is_said),
                Ok(None) => {}
                Err(status) => match reason(&status) {
                    Some(Reason::Deleting | Reason::NotFound) => return Ok(true),
                    _ => return Err(CallError::from(status).into()),
                },
            }
            match self.control.any_volume(&name).await? {
                Some(present) => volume = present,
                None => return Ok(true),
            }
        }
        // Others change it all the time; it is looked at again.
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_tells_as_many_as_it_takes() {
        assert_eq!(joined(&BTreeSet::new()), None);
        let texts = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(
            joined(&texts(&["web-1", "web-0"])).as_deref(),
            Some("web-0,web-1")
        );
        let long = "x".repeat(VALUE_CHARACTERS_MAX);
        assert_eq!(joined(&texts(&[&long])).as_deref(), Some(long.as_str()));
        for count in 2..200 {
            let many: BTreeSet<String> = (0..count).map(|number| format!("pod-{number:03}")).collect();
            let value = joined(&many).expect("there are some");
            assert!(value.chars().count() <= VALUE_CHARACTERS_MAX, "{value}");
            let told = value.split(" and ").next().unwrap_or_default().split(',').count();
            let more = value.split(" and ").nth(1).map_or(0, |more| {
                let number = more.strip_suffix(" more").unwrap_or_default();
                number.parse::<usize>().unwrap_or_default()
            });
            assert_eq!(told + more, count, "{value}");
        }
    }

    /// What is logged for people, as lines.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("nobody panicked").write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_is_wrong_is_told_once_until_it_is_right() {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .without_time()
            .with_target(false)
            .with_ansi(false)
            .finish();
        let mut complaint = Complaint::default();
        let forbidden = || Err(PodsError::Forbidden("pods".to_owned()).into());
        let done = [
            Ok(()),
            forbidden(),
            forbidden(),
            Err(PodsError::Silent(Duration::from_secs(1)).into()),
            Ok(()),
            Ok(()),
            forbidden(),
        ];
        tracing::subscriber::with_default(subscriber, || {
            done.into_iter().for_each(|done| complaint.tell(done));
        });
        let text = String::from_utf8(log.0.lock().expect("nobody panicked").clone()).expect("text");
        let levels: Vec<&str> = text
            .lines()
            .filter_map(|line| line.split_whitespace().next())
            .collect();
        assert_eq!(levels, ["WARN", "INFO", "WARN"], "{text}");
        assert!(text.contains("allow the service account to list pods"), "{text}");
    }

    #[tokio::test]
    async fn what_is_noted_while_it_is_looked_at_stays() {
        let notes = PodNotes::new(PodTimes::default());
        notes.note("v");
        let (id, note) = notes.next().expect("it is noted");
        notes.note("v");
        notes.looked_at(&id, note, false);
        let (id, note) = notes.next().expect("it was noted again");
        notes.looked_at(&id, note, true);
        let (_, later) = notes.next().expect("it is looked at again");
        assert!(later.due > note.due && later.pause > note.pause);
        notes.looked_at(&id, later, false);
        assert!(notes.next().is_none());
    }
}
