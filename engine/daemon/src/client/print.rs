//! What commands about pools and volumes print: tables for people, JSON for programs.

use std::io::{self, Write};

use pollux_api::engine::v1 as api;
use pollux_device::ByteSize;
use serde::Serialize;

use crate::cli::Output;
use crate::table::Table;

pub(super) fn scrub_lines(name: &str, report: &api::ScrubReport, into: &mut impl Write) -> io::Result<()> {
    for bad in &report.bad_blocks {
        let volume = match bad.volume.as_str() {
            "" => "a deleted volume".to_owned(),
            volume => format!("{name}/{volume}"),
        };
        writeln!(into, "{volume}: 4 KiB at {} are lost", bad.offset_bytes)?;
    }
    let api::ScrubReport {
        blocks,
        unchecked_blocks,
        bad_block_count,
        pages,
        repaired_pages,
        lost_pages,
        ..
    } = report;
    writeln!(
        into,
        "pool {name}: {blocks} blocks of data compared, {bad_block_count} bad, {unchecked_blocks} without a \
         checksum; {pages} pages of metadata read, {repaired_pages} copies repaired, {lost_pages} lost"
    )
}

pub(super) fn json(value: &impl Serialize, into: &mut impl Write) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *into, value)?;
    writeln!(into)
}

pub(super) fn print<T: Serialize>(
    things: &[T],
    output: Output,
    into: &mut impl Write,
    table: impl FnOnce(&[T], &mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    match output {
        Output::Json => json(&things, into),
        Output::Table => table(things, into),
    }
}

pub(super) fn one(volume: Option<api::Volume>, output: Output, into: &mut impl Write) -> io::Result<()> {
    let volumes: Vec<_> = volume.into_iter().collect();
    print(&volumes, output, into, volume_table)
}

pub(super) fn show<T: Serialize>(
    thing: Option<T>,
    output: Output,
    into: &mut impl Write,
    lines: impl FnOnce(&T) -> Vec<(&'static str, String)>,
) -> io::Result<()> {
    match (&thing, output) {
        (thing, Output::Json) => json(thing, into),
        (Some(thing), Output::Table) => {
            for (name, value) in lines(thing) {
                writeln!(into, "{name:<14}  {value}")?;
            }
            Ok(())
        }
        (None, Output::Table) => Ok(()),
    }
}

pub(super) fn size(bytes: u64) -> String {
    ByteSize(bytes).to_string()
}

/// A time in UTC, to the second.
pub(super) fn time(unix_s: u64) -> String {
    let (hour, minute, second) = (unix_s / 3_600 % 24, unix_s / 60 % 60, unix_s % 60);
    // Years that begin with March, in eras of 400, so that a leap day is the last of its year. Day 0 is
    // 0000-03-01.
    let day = unix_s / 86_400 + 719_468;
    let (era, day_of_era) = (day / 146_097, day % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let (month, is_next_year) = match month_from_march {
        0..=9 => (month_from_march + 3, 0),
        _ => (month_from_march - 9, 1),
    };
    let year = era * 400 + year_of_era + is_next_year;
    format!("{year}-{month:02}-{day_of_month:02} {hour:02}:{minute:02}:{second:02} UTC")
}

pub(super) fn pool_table(pools: &[api::Pool], mut into: &mut dyn Write) -> io::Result<()> {
    if pools.is_empty() {
        return writeln!(into, "no pools are open");
    }
    let names = [
        "NAME",
        "SIZE",
        "FREE",
        "PROMISED",
        "VOLUMES",
        "SNAPSHOTS",
        "STATE",
        "DEVICES",
    ];
    let mut table = Table::new(names);
    for pool in pools {
        table.push([
            pool.name.clone(),
            size(pool.total_bytes),
            size(pool.free_bytes),
            size(pool.provisioned_bytes),
            pool.volumes.to_string(),
            pool.snapshots.to_string(),
            state(pool).to_owned(),
            pool.devices.join(", "),
        ]);
    }
    table.write(0, &mut into)
}

fn state(pool: &api::Pool) -> &'static str {
    match (&pool.stopped, pool.read_only) {
        (Some(_), _) => "stopped",
        (None, true) => "read-only",
        (None, false) => "open",
    }
}

/// What volumes would take if they were full, and how often the pool has that.
fn promised(pool: &api::Pool) -> String {
    let promised = size(pool.provisioned_bytes);
    match pool.total_bytes {
        0 => promised,
        total => {
            let ratio = pool.provisioned_bytes as f64 / total as f64;
            format!("{promised}, {ratio:.2} times its size")
        }
    }
}

/// A line for each device, below one another.
fn member_lines(pool: &api::Pool) -> String {
    let lines = pool.members.iter().map(|member| {
        let mut line = format!("{}: {}, {}", member.number, member.uri, size(member.size_bytes));
        if member.state() == api::PoolDeviceState::Draining {
            line.push_str(", being removed");
        }
        if member.device_bytes > member.size_bytes {
            line.push_str(&format!(", can grow to {}", size(member.device_bytes)));
        }
        line
    });
    lines.collect::<Vec<_>>().join("\n                ")
}

pub(super) fn pool_lines(pool: &api::Pool) -> Vec<(&'static str, String)> {
    let mut lines = vec![
        ("name", pool.name.clone()),
        ("uuid", pool.uuid.clone()),
        ("devices", member_lines(pool)),
        ("size", size(pool.total_bytes)),
        ("free", size(pool.free_bytes)),
        ("free soon", size(pool.freeing_bytes)),
        ("set aside", size(pool.set_aside_bytes)),
        ("metadata", size(pool.metadata_bytes)),
        ("promised", promised(pool)),
        ("volumes", pool.volumes.to_string()),
        ("snapshots", pool.snapshots.to_string()),
        ("being deleted", pool.deleting.to_string()),
        ("reactor", pool.reactor.to_string()),
        ("bad checksums", pool.checksum_mismatches.to_string()),
    ];
    if pool.read_only {
        let features = pool.import.as_ref().map_or(0, |import| import.unknown_features);
        let why = match features {
            0 => "yes, as it was asked for".to_owned(),
            features => format!("yes: it uses features that are not known here ({features:#x})"),
        };
        lines.push(("read-only", why));
    }
    if let Some(reason) = &pool.stopped {
        lines.push(("stopped", reason.clone()));
    }
    if let Some(scrub) = &pool.last_scrub {
        let report = scrub.report.clone().unwrap_or_default();
        let found = format!(
            "{} bad of {} blocks, {} lost and {} repaired of {} pages",
            report.bad_block_count, report.blocks, report.lost_pages, report.repaired_pages, report.pages
        );
        lines.push((
            "last scrub",
            match scrub.ended_unix_s {
                Some(ended) => format!("ended {}: {found}", time(ended)),
                None => format!("begun {}, not ended: {found}", time(scrub.started_unix_s)),
            },
        ));
    }
    if let Some(import) = &pool.import {
        let left = match import.was_exported {
            true => "in good order".to_owned(),
            false => format!(
                "as after a crash: {} changes in {} blocks of the journal done again",
                import.records, import.journal_blocks
            ),
        };
        lines.push(("was left", left));
        if import.newer_blocks > 0 {
            lines.push(("newer blocks", import.newer_blocks.to_string()));
        }
        if import.unreadable_blocks > 0 {
            lines.push(("lost blocks", import.unreadable_blocks.to_string()));
        }
    }
    lines
}

pub(super) fn volume_table(volumes: &[api::Volume], mut into: &mut dyn Write) -> io::Result<()> {
    if volumes.is_empty() {
        return writeln!(into, "no volumes are in the pool");
    }
    let mut table = Table::new(["NAME", "KIND", "SIZE", "OWN", "THICK", "CHECKSUMS", "OF", "UUID"]);
    for volume in volumes {
        table.push([
            format!("{}/{}", volume.pool, volume.name),
            kind(volume).to_owned(),
            size(volume.size_bytes),
            size(volume.own_bytes),
            yes(volume.thick),
            yes(volume.checksums),
            volume.origin.clone().unwrap_or_else(|| "-".to_owned()),
            volume.uuid.clone(),
        ]);
    }
    table.write(0, &mut into)
}

fn yes(answer: bool) -> String {
    if answer { "yes" } else { "no" }.to_owned()
}

fn kind(volume: &api::Volume) -> &'static str {
    match volume.kind() {
        api::VolumeKind::Snapshot => "snapshot",
        api::VolumeKind::Volume => "volume",
        api::VolumeKind::Unspecified => "unknown",
    }
}

pub(super) fn volume_lines(volume: &api::Volume) -> Vec<(&'static str, String)> {
    let mut lines = vec![
        ("name", format!("{}/{}", volume.pool, volume.name)),
        ("uuid", volume.uuid.clone()),
        ("kind", kind(volume).to_owned()),
        ("size", size(volume.size_bytes)),
        ("own", size(volume.own_bytes)),
        ("thick", yes(volume.thick)),
        ("checksums", yes(volume.checksums)),
        ("of", volume.origin.clone().unwrap_or_else(|| "-".to_owned())),
        ("made", time(volume.created_unix_s)),
    ];
    if let Some(usage) = &volume.usage {
        lines.push(("used", size(usage.used_bytes)));
        lines.push(("unique", size(usage.unique_bytes)));
        lines.push(("shared", size(usage.shared_bytes)));
    }
    lines
}

pub(super) fn check_lines(name: &str, report: &api::CheckReport, into: &mut impl Write) -> io::Result<()> {
    let (pages, extents) = (report.pages, report.extents);
    for finding in &report.findings {
        writeln!(into, "{finding}")?;
    }
    match report.findings_count {
        0 => writeln!(
            into,
            "pool {name} is sound: {pages} pages, {extents} extents of data"
        ),
        count => writeln!(
            into,
            "pool {name} is not sound: {count} things are wrong in {pages} pages, {extents} extents of data"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_for_people() {
        for (unix_s, text) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_399, "2000-02-28 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (951_868_800, "2000-03-01 00:00:00 UTC"),
            (1_795_427_840, "2026-11-23 09:57:20 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        ] {
            assert_eq!(time(unix_s), text);
        }
        assert!(time(u64::MAX).ends_with("UTC"));
    }
}
