//! Answers as tables for people, and as JSON or YAML for machines.

use std::io::Write;

use pollux_api::control::v1::{
    Event, Group, GroupSnapshot, MediaClass, Node, NodeState, Pool, PoolState, ReplicaState, Severity,
    Snapshot, SnapshotState, Template, Volume, VolumeState,
};
use pollux_api::labels;
use serde::Serialize;

use crate::model::Record;
use crate::placement::media_name;

use super::connection::CommandError;
use crate::size::Size;

/// How answers are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Output {
    /// A table.
    #[default]
    Table,
    /// A table with more columns.
    Wide,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// What tables tell of a record.
pub(super) trait Row: Record + Serialize {
    /// The names of the columns; those after `NARROW` are for wide tables.
    const COLUMNS: &'static [&'static str];
    /// Columns of a narrow table.
    const NARROW: usize;

    /// What is in the columns.
    fn row(&self) -> Vec<String>;
}

/// The part of a name in capitals that tells something: `NODE_STATE_ONLINE` is `online`.
pub(super) fn short(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix)
        .unwrap_or(name)
        .to_lowercase()
        .replace('_', " ")
}

fn flags(pairs: &[(bool, &str)]) -> String {
    let set: Vec<&str> = pairs
        .iter()
        .filter(|(set, _)| *set)
        .map(|(_, name)| *name)
        .collect();
    set.join(", ")
}

impl Row for Node {
    const COLUMNS: &'static [&'static str] = &[
        "NAME",
        "STATE",
        "ZONE",
        "RACK",
        "FLAGS",
        "MESSAGE",
        "ADDRESS",
        "VERSION",
        "LISTENERS",
    ];
    const NARROW: usize = 6;

    fn row(&self) -> Vec<String> {
        let spec = self.spec.clone().unwrap_or_default();
        let status = self.status.clone().unwrap_or_default();
        let state = match status.state() {
            NodeState::Unspecified => "never heard from".to_owned(),
            state => short(state.as_str_name(), "NODE_STATE_"),
        };
        vec![
            self.name().to_owned(),
            state,
            spec.zone,
            spec.rack,
            flags(&[
                (spec.cordoned, "cordoned"),
                (spec.drained, "drained"),
                // What was noted when it was drained may be noted still.
                (spec.drained && status.empty, "empty"),
            ]),
            status.message,
            spec.address,
            status.version,
            status.nvmf_listeners.join(" "),
        ]
    }
}

impl Row for Pool {
    const COLUMNS: &'static [&'static str] = &[
        "NAME",
        "STATE",
        "NODE",
        "CAPACITY",
        "USED",
        "REPLICAS",
        "FLAGS",
        "MESSAGE",
        "MEDIA",
        "GIVEN OUT",
    ];
    const NARROW: usize = 8;

    fn row(&self) -> Vec<String> {
        let spec = self.spec.clone().unwrap_or_default();
        let status = self.status.clone().unwrap_or_default();
        let state = match status.state() {
            PoolState::Unspecified => "being made".to_owned(),
            state => short(state.as_str_name(), "POOL_STATE_"),
        };
        let media = match spec.media() {
            MediaClass::Unspecified => String::new(),
            media => media_name(media).to_owned(),
        };
        vec![
            self.name().to_owned(),
            state,
            spec.node,
            Size(status.capacity_bytes).to_string(),
            Size(status.used_bytes).to_string(),
            status.replicas.to_string(),
            flags(&[(spec.cordoned, "cordoned"), (spec.drained, "drained")]),
            status.message,
            media,
            Size(status.provisioned_bytes).to_string(),
        ]
    }
}

impl Row for Volume {
    const COLUMNS: &'static [&'static str] = &[
        "NAME", "STATE", "SIZE", "REPLICAS", "TARGET", "HOSTS", "CLAIM", "MESSAGE", "TEMPLATE", "LIMITS",
        "EPOCH", "WHERE", "PODS", "OWNERS",
    ];
    const NARROW: usize = 8;

    fn row(&self) -> Vec<String> {
        let spec = self.spec.clone().unwrap_or_default();
        let status = self.status.clone().unwrap_or_default();
        let state = match self.is_deleting() {
            true => VolumeState::Deleting,
            false => status.state(),
        };
        let in_sync = status
            .replicas
            .iter()
            .filter(|replica| replica.state() == ReplicaState::InSync)
            .count();
        // Of its own: without, those of its template hold.
        let own_qos = spec.policy.as_ref().and_then(|policy| policy.qos);
        let places = status.replicas.iter().map(|replica| {
            let state = short(replica.state().as_str_name(), "REPLICA_STATE_");
            format!("{} ({state})", replica.pool)
        });
        vec![
            self.name().to_owned(),
            short(state.as_str_name(), "VOLUME_STATE_"),
            Size(spec.size_bytes).to_string(),
            format!("{in_sync}/{}", status.replicas.len()),
            status.target_node,
            spec.hosts.len().to_string(),
            claim_of(self),
            status.message,
            spec.template,
            own_qos.map_or_else(String::new, |qos| super::limits::told(Some(&qos))),
            status.epoch.to_string(),
            places.collect::<Vec<_>>().join(", "),
            label_of(self, labels::POD),
            label_of(self, labels::OWNER),
        ]
    }
}

/// A label of a volume; empty if it has none.
fn label_of(volume: &Volume, key: &str) -> String {
    volume.meta().labels.get(key).cloned().unwrap_or_default()
}

/// The claim that a volume was made for, as the CSI driver labels it: `NAMESPACE/NAME`.
fn claim_of(volume: &Volume) -> String {
    let label = |key| volume.meta().labels.get(key).map(String::as_str);
    match (label(labels::NAMESPACE), label(labels::CLAIM)) {
        (Some(namespace), Some(claim)) => format!("{namespace}/{claim}"),
        (None, Some(claim)) => claim.to_owned(),
        (_, None) => String::new(),
    }
}

impl Row for Snapshot {
    const COLUMNS: &'static [&'static str] = &["NAME", "STATE", "VOLUME", "SIZE", "TAKEN", "UID"];
    const NARROW: usize = 5;

    fn row(&self) -> Vec<String> {
        let status = self.status.clone().unwrap_or_default();
        let state = match self.is_deleting() {
            true => SnapshotState::Deleting,
            false => status.state(),
        };
        vec![
            self.name().to_owned(),
            short(state.as_str_name(), "SNAPSHOT_STATE_"),
            self.spec.clone().unwrap_or_default().volume,
            Size(status.size_bytes).to_string(),
            status.taken_unix_us.map_or_else(String::new, time),
            self.meta().uid.clone(),
        ]
    }
}

impl Row for Group {
    const COLUMNS: &'static [&'static str] = &["NAME", "EVERY", "KEPT", "LAST"];
    const NARROW: usize = 4;

    fn row(&self) -> Vec<String> {
        let schedule = self.spec.as_ref().and_then(|spec| spec.schedule);
        let last = self
            .status
            .as_ref()
            .and_then(|status| status.last_snapshot_unix_us);
        vec![
            self.name().to_owned(),
            schedule.map_or_else(String::new, |schedule| period(schedule.interval_us / 1_000_000)),
            schedule.map_or_else(String::new, |schedule| schedule.kept_max.to_string()),
            last.map_or_else(String::new, time),
        ]
    }
}

impl Row for GroupSnapshot {
    const COLUMNS: &'static [&'static str] = &["NAME", "STATE", "VOLUMES", "TAKEN", "WHY"];
    const NARROW: usize = 5;

    fn row(&self) -> Vec<String> {
        let status = self.status.clone().unwrap_or_default();
        let state = match self.is_deleting() {
            true => "deleting".to_owned(),
            false => short(status.state().as_str_name(), "GROUP_SNAPSHOT_STATE_"),
        };
        let volumes = status.members.iter().map(|member| member.volume.as_str());
        vec![
            self.name().to_owned(),
            state,
            volumes.collect::<Vec<_>>().join(","),
            status.taken_unix_us.map_or_else(String::new, time),
            status.message,
        ]
    }
}

impl Row for Template {
    const COLUMNS: &'static [&'static str] = &["NAME", "REPLICAS", "MIN IN SYNC", "LIMITS"];
    const NARROW: usize = 4;

    fn row(&self) -> Vec<String> {
        let policy = self.spec.clone().and_then(|spec| spec.policy).unwrap_or_default();
        let number = |number: Option<u32>| number.map_or_else(String::new, |number| number.to_string());
        vec![
            self.name().to_owned(),
            number(policy.replicas),
            number(policy.min_in_sync),
            super::limits::told(policy.qos.as_ref()),
        ]
    }
}

impl Row for Event {
    const COLUMNS: &'static [&'static str] = &["TIME", "SEVERITY", "SUBJECT", "MESSAGE"];
    const NARROW: usize = 4;

    fn row(&self) -> Vec<String> {
        let severity = match self.severity() {
            Severity::Unspecified => String::new(),
            severity => short(severity.as_str_name(), "SEVERITY_"),
        };
        vec![
            time(self.unix_us),
            severity,
            self.subject.clone(),
            self.message.clone(),
        ]
    }
}

/// A length of time for people, without the parts that are nothing.
pub(super) fn period(seconds: u64) -> String {
    let parts = [
        (seconds / 86_400, "d"),
        (seconds / 3_600 % 24, "h"),
        (seconds / 60 % 60, "min"),
        (seconds % 60, "s"),
    ];
    let told = parts.into_iter().filter(|(count, _)| *count > 0);
    let told: Vec<String> = told.map(|(count, unit)| format!("{count} {unit}")).collect();
    match told.is_empty() {
        true => "0 s".to_owned(),
        false => told.join(" "),
    }
}

/// A time in UTC, to the second.
pub(super) fn time(unix_us: u64) -> String {
    let seconds = i64::try_from(unix_us / 1_000_000).unwrap_or(i64::MAX);
    match time::OffsetDateTime::from_unix_timestamp(seconds) {
        Ok(at) => format!(
            "{}-{:02}-{:02} {:02}:{:02}:{:02}",
            at.year(),
            u8::from(at.month()),
            at.day(),
            at.hour(),
            at.minute(),
            at.second()
        ),
        Err(_) => unix_us.to_string(),
    }
}

/// Makes columns as wide as what is in a line.
fn widen(widths: &mut Vec<usize>, line: &[String]) {
    widths.resize(widths.len().max(line.len()), 0);
    for (width, cell) in widths.iter_mut().zip(line) {
        *width = (*width).max(cell.chars().count());
    }
}

/// Writes a line of cells.
fn line(cells: &[String], widths: &[usize], into: &mut impl Write) -> Result<(), CommandError> {
    let cells = cells.iter().zip(widths);
    let cells: Vec<String> = cells.map(|(cell, width)| format!("{cell:width$}")).collect();
    writeln!(into, "{}", cells.join("  ").trim_end())?;
    Ok(())
}

/// Writes lines of cells in columns as wide as what is in them.
pub(super) fn table(
    names: &[&str],
    rows: Vec<Vec<String>>,
    into: &mut impl Write,
) -> Result<(), CommandError> {
    let mut lines = vec![names.iter().map(ToString::to_string).collect::<Vec<String>>()];
    lines.extend(rows);
    let mut widths = Vec::new();
    for cells in &lines {
        widen(&mut widths, cells);
    }
    for cells in &lines {
        line(cells, &widths, into)?;
    }
    Ok(())
}

/// Tells records one after the other, as they change: lines of one table, one JSON object a line, or one YAML
/// document each. One that is gone is told by its name, to machines as `deleted`.
pub(super) struct Changing {
    output: Output,
    widths: Vec<usize>,
    is_headed: bool,
}

impl Changing {
    /// With columns as wide as these records need.
    pub(super) fn new<R: Row>(output: Output, records: &[R]) -> Self {
        let mut widths = Vec::new();
        for record in records {
            widen(&mut widths, &record.row());
        }
        Self {
            output,
            widths,
            is_headed: false,
        }
    }

    fn machine<T: Serialize>(&self, value: &T, into: &mut impl Write) -> Result<(), CommandError> {
        if self.output == Output::Yaml {
            writeln!(into, "---")?;
            return serialized(value, Output::Yaml, into);
        }
        serde_json::to_writer(&mut *into, value)?;
        writeln!(into)?;
        Ok(())
    }

    /// It is so from now on.
    pub(super) fn tell<R: Row>(&mut self, record: &R, into: &mut impl Write) -> Result<(), CommandError> {
        let columns = match self.output {
            Output::Json | Output::Yaml => return self.machine(record, into),
            Output::Table => R::NARROW,
            Output::Wide => R::COLUMNS.len(),
        };
        let mut row = record.row();
        row.truncate(columns);
        widen(&mut self.widths, &row);
        if !self.is_headed {
            self.is_headed = true;
            let names: Vec<String> = R::COLUMNS.iter().take(columns).map(ToString::to_string).collect();
            widen(&mut self.widths, &names);
            line(&names, &self.widths, into)?;
        }
        line(&row, &self.widths, into)
    }

    /// It is gone.
    pub(super) fn gone<R: Row>(&self, name: &str, into: &mut impl Write) -> Result<(), CommandError> {
        match self.output {
            Output::Json | Output::Yaml => {
                self.machine(&std::collections::BTreeMap::from([("deleted", name)]), into)
            }
            Output::Table | Output::Wide => {
                writeln!(into, "{} {name} is gone", words::<R>())?;
                Ok(())
            }
        }
    }
}

/// What a kind is called, also in commands.
pub(super) fn words<R: Record>() -> String {
    R::KIND.name().replace('-', " ")
}

/// Writes anything that can be serialized.
pub(super) fn serialized<T: Serialize>(
    value: &T,
    output: Output,
    into: &mut impl Write,
) -> Result<(), CommandError> {
    match output {
        Output::Yaml => {
            let text =
                serde_saphyr::to_string(value).map_err(|error| CommandError::Print(error.to_string()))?;
            write!(into, "{text}")?;
        }
        Output::Json | Output::Table | Output::Wide => {
            serde_json::to_writer_pretty(&mut *into, value)?;
            writeln!(into)?;
        }
    }
    Ok(())
}

/// Writes records.
pub(super) fn records<R: Row>(
    records: &[R],
    output: Output,
    into: &mut impl Write,
) -> Result<(), CommandError> {
    let columns = match output {
        Output::Json | Output::Yaml => return serialized(&records, output, into),
        Output::Table | Output::Wide if records.is_empty() => {
            writeln!(into, "there is no {}", words::<R>())?;
            return Ok(());
        }
        Output::Table => R::NARROW,
        Output::Wide => R::COLUMNS.len(),
    };
    let rows = records.iter().map(|record| {
        let mut row = record.row();
        row.truncate(columns);
        row
    });
    table(
        R::COLUMNS.get(..columns).unwrap_or(R::COLUMNS),
        rows.collect(),
        into,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told<R: Row>(record: &R, output: Output) -> String {
        let mut text = Vec::new();
        records(std::slice::from_ref(record), output, &mut text).expect("memory takes it");
        String::from_utf8(text).expect("UTF-8")
    }

    #[test]
    fn rows_have_all_columns() {
        fn check<R: Row>() {
            assert_eq!(R::default().row().len(), R::COLUMNS.len(), "{}", R::KIND);
            assert!(R::NARROW <= R::COLUMNS.len());
        }
        check::<Node>();
        check::<Pool>();
        check::<Volume>();
        check::<Snapshot>();
        check::<Group>();
        check::<Template>();
        check::<Event>();
    }

    #[test]
    fn volumes_tell_the_claim_they_are_for() {
        let mut volume = Volume::default();
        assert_eq!(claim_of(&volume), "");
        for (key, value) in [
            (labels::CLAIM, "data"),
            (labels::NAMESPACE, "shop"),
            ("other", "east"),
        ] {
            volume.meta_mut().labels.insert(key.to_owned(), value.to_owned());
        }
        let table = told(&volume, Output::Table);
        assert!(table.contains("CLAIM      MESSAGE"), "{table}");
        assert!(table.contains("shop/data"), "{table}");
        for (key, value) in [(labels::POD, "web-0,web-1"), (labels::OWNER, "StatefulSet/web")] {
            volume.meta_mut().labels.insert(key.to_owned(), value.to_owned());
            assert!(!told(&volume, Output::Table).contains(value), "{key}");
            assert!(told(&volume, Output::Wide).contains(value), "{key}");
        }
    }

    #[test]
    fn changes_are_lines_of_one_table_or_one_document_each() {
        let mut short = Group::default();
        short.meta_mut().name = "g".to_owned();
        let mut long = Group::default();
        long.meta_mut().name = "a-long-name".to_owned();
        let told = |output| {
            let mut changing = Changing::new(output, &[short.clone(), long.clone()]);
            let mut text = Vec::new();
            for group in [&short, &long] {
                changing.tell(group, &mut text).expect("memory takes it");
            }
            changing.gone::<Group>("g", &mut text).expect("memory takes it");
            String::from_utf8(text).expect("UTF-8")
        };
        let table = "NAME         EVERY  KEPT  LAST\ng\na-long-name\ngroup g is gone\n";
        assert_eq!(told(Output::Table), table);
        let json = told(Output::Json);
        let lines: Vec<serde_json::Value> = json
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect();
        assert_eq!(lines[1]["metadata"]["name"], "a-long-name");
        assert_eq!(lines[2], serde_json::json!({"deleted": "g"}));
        let yaml = told(Output::Yaml);
        assert_eq!(yaml.matches("---\n").count(), 3, "{yaml}");
        assert!(yaml.ends_with("---\ndeleted: g\n"), "{yaml}");
    }

    #[test]
    fn that_there_is_nothing_is_told() {
        for output in [Output::Table, Output::Wide] {
            let mut text = Vec::new();
            records::<GroupSnapshot>(&[], output, &mut text).expect("memory takes it");
            assert_eq!(text, b"there is no group snapshot\n");
        }
    }

    #[test]
    fn answers_have_all_forms() {
        let mut event = Event {
            unix_us: 1_763_700_000_000_000,
            severity: Severity::Warning.into(),
            subject: "node/a".to_owned(),
            message: "is away".to_owned(),
            ..Event::default()
        };
        event.meta_mut().name = "e".to_owned();
        let expected = "TIME                 SEVERITY  SUBJECT  MESSAGE\n\
                        2025-11-21 04:40:00  warning   node/a   is away\n";
        assert_eq!(told(&event, Output::Table), expected);
        let json: Vec<Event> = serde_json::from_str(&told(&event, Output::Json)).expect("JSON");
        assert_eq!(json, [event.clone()]);
        assert!(told(&event, Output::Json).contains("\"SEVERITY_WARNING\""));
        let yaml: Vec<Event> = serde_saphyr::from_str(&told(&event, Output::Yaml)).expect("YAML");
        assert_eq!(yaml, [event]);
    }
}
