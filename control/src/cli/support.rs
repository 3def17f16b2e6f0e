//! `pollux support`: what those need who help, in one file, without secrets.
//!
//! Nothing in it is needed to call the control plane or to read data: records and measurements as the
//! interface tells them, of which keys, tokens, secrets and the parameters of device URIs are taken out.
//! What is taken out is told from what is left in by rules on names and forms ([`redact`]), which are applied
//! to everything, also where nothing secret should be.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use pollux_api::control::v1::measurements_client::MeasurementsClient;
use pollux_api::control::v1::{Event, GetMeasurementsRequest, Group, Node, Pool, Snapshot, Template, Volume};
use serde::Serialize;
use serde_json::{Value, json};

use super::connection::{Channel, CommandError};
use super::redact::redact;
use super::resource::{Listed, all};

/// Only their owner may read such files: names of volumes are nobody else's business.
const FILE_MODE: u32 = 0o600;

/// Events that go with it, the newest.
const EVENTS_MAX: usize = 2_000;

/// `support`.
#[derive(Debug, Args)]
pub(super) struct SupportArguments {
    /// The file that is made, a tar archive; what is there is not replaced.
    #[arg(default_value = "pollux-support.tar")]
    file: PathBuf,
}

/// One file of the bundle.
struct Part {
    name: &'static str,
    content: Value,
}

/// Does it.
pub(super) async fn run(
    channel: &Channel,
    arguments: &SupportArguments,
    into: &mut impl Write,
) -> Result<(), CommandError> {
    let mut parts = vec![Part {
        name: "about.json",
        content: json!({
            "version": env!("CARGO_PKG_VERSION"),
            "taken_unix_s": now_unix_s(),
            "left_out": "keys, tokens, secrets, and parameters of device URIs but size and block",
        }),
    }];
    parts.push(listed::<Node>(channel, "nodes.json").await);
    parts.push(listed::<Pool>(channel, "pools.json").await);
    parts.push(listed::<Volume>(channel, "volumes.json").await);
    parts.push(listed::<Snapshot>(channel, "snapshots.json").await);
    parts.push(listed::<Group>(channel, "groups.json").await);
    parts.push(listed::<Template>(channel, "templates.json").await);
    let mut events = listed::<Event>(channel, "events.json").await;
    if let Value::Array(events) = &mut events.content {
        events.drain(..events.len().saturating_sub(EVENTS_MAX));
    }
    parts.push(events);
    let measured = MeasurementsClient::new(channel.clone())
        .get_measurements(GetMeasurementsRequest::default())
        .await;
    parts.push(Part {
        name: "measurements.json",
        content: match measured {
            Ok(measured) => value(measured.get_ref()),
            Err(status) => json!({"problem": status.message()}),
        },
    });
    let path = &arguments.file;
    write(path, parts).map_err(|error| CommandError::File {
        path: path.clone(),
        reason: error.to_string(),
    })?;
    writeln!(
        into,
        "what those need who help is in {}: look at it before you give it away",
        path.display()
    )?;
    Ok(())
}

/// All records of a kind; what went wrong instead, as the rest is of use too.
async fn listed<R: Listed>(channel: &Channel, name: &'static str) -> Part {
    let content = match all::<R>(channel).await {
        Ok(records) => value(&records),
        Err(status) => json!({"problem": status.message()}),
    };
    Part { name, content }
}

fn value(content: &impl Serialize) -> Value {
    serde_json::to_value(content).unwrap_or_else(|error| json!({"problem": error.to_string()}))
}

fn now_unix_s() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

fn write(path: &Path, parts: Vec<Part>) -> std::io::Result<()> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(FILE_MODE).open(path)?;
    let mut archive = tar::Builder::new(file);
    for mut part in parts {
        redact(&mut part.content);
        let text = format!("{:#}\n", part.content);
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(FILE_MODE);
        header.set_mtime(now_unix_s());
        header.set_cksum();
        archive.append_data(
            &mut header,
            Path::new("pollux-support").join(part.name),
            text.as_bytes(),
        )?;
    }
    archive.into_inner()?.sync_all()
}
