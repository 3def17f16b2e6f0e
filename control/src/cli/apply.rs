//! `pollux apply`: nodes, pools, groups and templates from one file; first the difference, then the deed.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::PathBuf;
use std::sync::LazyLock;

use clap::Args;
use pollux_api::control::v1::{Group, Node, Pool, Template};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tonic::Code;

use crate::model::{Record, Validate};

use super::connection::{Channel, CommandError, read};
use super::resource::Changed;

/// `apply`.
#[derive(Debug, Args)]
pub(super) struct ApplyArguments {
    /// The file, in YAML or JSON: lists `nodes`, `pools`, `groups` and `templates`.
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,

    /// Only tell what would be done.
    #[arg(long)]
    dry_run: bool,
}

/// What a file holds. What is not in it stays as it is: resources, and fields of those that it has.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Topology {
    nodes: Vec<Node>,
    templates: Vec<Template>,
    groups: Vec<Group>,
    pools: Vec<Pool>,
}

/// Fields that can be changed, in protobuf's own mapping: those that differ are updated.
trait Comparable: Changed + Validate {
    fn fields(&self) -> Vec<(&'static str, Value)>;
}

/// A field as it is in files. What cannot be written is nothing, and differs from what can.
fn shown<T: Serialize>(value: &T) -> Value {
    serde_json::to_value(value).unwrap_or(Value::Null)
}

/// A value's parts, if it may have some: nothing has none.
fn parts(value: &Value) -> Option<&Map<String, Value>> {
    static NOTHING: LazyLock<Map<String, Value>> = LazyLock::new(Map::new);
    match value {
        Value::Object(parts) => Some(parts),
        Value::Null => Some(&NOTHING),
        _ => None,
    }
}

fn part<'a>(of: &'a Map<String, Value>, name: &str) -> &'a Value {
    of.get(name).unwrap_or(&Value::Null)
}

/// What differs between two values: the path of each part, as it is, and as it is to be.
fn differences(path: &str, is: &Value, wanted: &Value, told: &mut Vec<String>) {
    match (parts(is), parts(wanted)) {
        (Some(is), Some(wanted)) => {
            let names: BTreeSet<&String> = is.keys().chain(wanted.keys()).collect();
            for name in names {
                let path = format!("{path}.{name}");
                differences(&path, part(is, name), part(wanted, name), told);
            }
        }
        _ if is == wanted => {}
        _ => {
            let text = |value: &Value| match value {
                Value::Null => "nothing".to_owned(),
                value => value.to_string(),
            };
            told.push(format!("{path} {} -> {}", text(is), text(wanted)));
        }
    }
}

impl Comparable for Node {
    fn fields(&self) -> Vec<(&'static str, Value)> {
        let spec = self.spec.clone().unwrap_or_default();
        vec![
            ("spec.address", shown(&spec.address)),
            ("spec.zone", shown(&spec.zone)),
            ("spec.rack", shown(&spec.rack)),
            ("spec.cordoned", shown(&spec.cordoned)),
            ("spec.drained", shown(&spec.drained)),
            ("metadata.labels", shown(&self.meta().labels)),
        ]
    }
}

impl Comparable for Pool {
    fn fields(&self) -> Vec<(&'static str, Value)> {
        let spec = self.spec.clone().unwrap_or_default();
        vec![
            // The control plane refuses these two, by name.
            ("spec.node", shown(&spec.node)),
            ("spec.devices", shown(&spec.devices)),
            ("spec.cordoned", shown(&spec.cordoned)),
            ("spec.drained", shown(&spec.drained)),
            ("metadata.labels", shown(&self.meta().labels)),
        ]
    }
}

impl Comparable for Template {
    fn fields(&self) -> Vec<(&'static str, Value)> {
        let policy = self.spec.clone().and_then(|spec| spec.policy);
        vec![
            ("spec.policy", shown(&policy)),
            ("metadata.labels", shown(&self.meta().labels)),
        ]
    }
}

impl Comparable for Group {
    fn fields(&self) -> Vec<(&'static str, Value)> {
        let schedule = self.spec.as_ref().and_then(|spec| spec.schedule);
        vec![
            ("spec.schedule", shown(&schedule)),
            ("metadata.labels", shown(&self.meta().labels)),
        ]
    }
}

/// Whether the file says anything of a field.
fn says(written: &Value, path: &str) -> bool {
    let mut names = path.split('.');
    let found = names.try_fold(written, |value, name| value.get(name));
    found.is_some()
}

/// One thing that is to be done.
enum Deed<R> {
    Create(R),
    Update(R, Vec<String>),
}

/// Tells what differs, and returns what is to be done about it.
async fn compare<R: Comparable>(
    channel: &Channel,
    wanted: Vec<R>,
    written: &Value,
    into: &mut impl Write,
) -> Result<Vec<Deed<R>>, CommandError> {
    let mut deeds = Vec::new();
    for (index, record) in wanted.into_iter().enumerate() {
        let written = written.get(index).unwrap_or(&Value::Null);
        if let Some(error) = record.field_errors().first() {
            let text = format!("{}: {} {}", record.subject(), error.field, error.description);
            return Err(CommandError::Refused(text));
        }
        match R::get(channel.clone(), record.name().to_owned()).await {
            Ok(present) => {
                let mut paths = Vec::new();
                for ((path, is), (_, wanted)) in present.fields().into_iter().zip(record.fields()) {
                    if is == wanted || !says(written, path) {
                        continue;
                    }
                    let mut told = Vec::new();
                    differences(path, &is, &wanted, &mut told);
                    for one in told {
                        writeln!(into, "~ {}: {one}", record.subject())?;
                    }
                    paths.push(path.to_owned());
                }
                if !paths.is_empty() {
                    deeds.push(Deed::Update(record, paths));
                }
            }
            Err(status) if status.code() == Code::NotFound => {
                writeln!(into, "+ {}", record.subject())?;
                deeds.push(Deed::Create(record));
            }
            Err(status) => return Err(status.into()),
        }
    }
    Ok(deeds)
}

async fn perform<R: Comparable>(channel: &Channel, deeds: Vec<Deed<R>>) -> Result<(), CommandError> {
    for deed in deeds {
        match deed {
            Deed::Create(record) => R::create(channel.clone(), record).await?,
            Deed::Update(record, paths) => R::update(channel.clone(), record, paths).await?,
        };
    }
    Ok(())
}

/// Compares, tells, and does it.
pub(super) async fn apply(
    channel: &Channel,
    arguments: &ApplyArguments,
    into: &mut impl Write,
) -> Result<(), CommandError> {
    let text = read(&arguments.file)?;
    let wrong = |reason: String| CommandError::File {
        path: arguments.file.clone(),
        reason,
    };
    let text = String::from_utf8(text).map_err(|_| wrong("is not UTF-8".to_owned()))?;
    let topology: Topology = serde_saphyr::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    let written: Value = serde_saphyr::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    // All is compared before anything is done.
    let nodes = compare(channel, topology.nodes, &written["nodes"], into).await?;
    let templates = compare(channel, topology.templates, &written["templates"], into).await?;
    let groups = compare(channel, topology.groups, &written["groups"], into).await?;
    let pools = compare(channel, topology.pools, &written["pools"], into).await?;
    let count = nodes.len() + templates.len() + groups.len() + pools.len();
    if count == 0 {
        writeln!(into, "all is as the file says")?;
        return Ok(());
    }
    if arguments.dry_run {
        writeln!(into, "{}, none of them made", changes(count))?;
        return Ok(());
    }
    perform(channel, nodes).await?;
    perform(channel, templates).await?;
    perform(channel, groups).await?;
    perform(channel, pools).await?;
    writeln!(into, "{} made", changes(count))?;
    Ok(())
}

fn changes(count: usize) -> String {
    match count {
        1 => "1 change".to_owned(),
        count => format!("{count} changes"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_are_found_where_the_file_has_them() {
        let text = "{metadata: {name: a, labels: {}}, spec: {zone: '', drained: false, policy: null}}";
        let written: Value = serde_saphyr::from_str(text).expect("it is YAML");
        for path in ["metadata.labels", "spec.zone", "spec.drained", "spec.policy"] {
            assert!(says(&written, path), "{path}");
        }
        for path in ["spec.cordoned", "spec.rack", "status.zone"] {
            assert!(!says(&written, path), "{path}");
        }
    }

    #[test]
    fn differences_are_told_by_their_paths() {
        let is = json!({"replicas": 3, "qos": {"iops_max": "5", "weight": 7}, "same": [1, 2]});
        let wanted = json!({"replicas": 2, "qos": {"iops_max": "6"}, "same": [1, 2], "media": ["NVME"]});
        let mut told = Vec::new();
        differences("spec.policy", &is, &wanted, &mut told);
        let expected = [
            r#"spec.policy.media nothing -> ["NVME"]"#,
            r#"spec.policy.qos.iops_max "5" -> "6""#,
            "spec.policy.qos.weight 7 -> nothing",
            "spec.policy.replicas 3 -> 2",
        ];
        assert_eq!(told, expected);
        told.clear();
        differences("spec.schedule", &Value::Null, &json!({"kept_max": 7}), &mut told);
        assert_eq!(told, ["spec.schedule.kept_max nothing -> 7"]);
        told.clear();
        differences("spec.policy", &is, &is, &mut told);
        assert_eq!(told, [""; 0]);
    }
}
