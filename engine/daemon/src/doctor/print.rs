//! The report for people and for machines.

use std::io::{self, Write};

use pollux_device::ByteSize;

use super::{Drive, Limit, ModuleState, Pages, Report, Severity, Verdict};
use crate::table::Table;

/// Width of the names of what is reported.
const NAME_WIDTH: usize = 12;

/// Writes the report as JSON.
///
/// # Errors
///
/// Those of the writer.
pub fn write_json(report: &Report, into: &mut impl Write) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *into, report)?;
    writeln!(into)
}

/// Writes the report for people, with colours if asked for.
///
/// # Errors
///
/// Those of the writer.
pub fn table(report: &Report, colours: bool, into: &mut impl Write) -> io::Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    writeln!(into, "pollux-engine {version} on Linux {}\n", report.kernel)?;
    for (name, value) in facts(report) {
        writeln!(into, "  {name:NAME_WIDTH$}{value}")?;
    }
    if !report.drives.is_empty() {
        writeln!(into)?;
        drives(&report.drives).write(2, into)?;
    }
    writeln!(into)?;
    for problem in &report.problems {
        let severity = paint(problem.severity, &format!("{:8}", problem.severity), colours);
        writeln!(into, "{severity} {}", problem.what)?;
        writeln!(into, "         mend: {}", problem.fix)?;
    }
    let verdict = match report.verdict {
        Verdict::Fine => "An engine can run here.",
        Verdict::Warnings => "An engine can run here; the warnings above cost speed or size.",
        Verdict::CannotRun => "An engine cannot run here; mend the errors above first.",
    };
    if !report.problems.is_empty() {
        writeln!(into)?;
    }
    writeln!(into, "{verdict}")
}

fn facts(report: &Report) -> Vec<(&'static str, String)> {
    let cores = &report.cores;
    let mut facts = vec![(
        "cores",
        format!(
            "{} usable ({}), isolated: {}{}",
            cores.usable_count,
            cores.usable,
            or_none(&cores.isolated),
            cores
                .governors
                .iter()
                .map(|(governor, count)| format!(", {count} with governor {governor}"))
                .collect::<String>(),
        ),
    )];
    for node in &report.numa_nodes {
        facts.push((
            "NUMA node",
            format!(
                "{}: {} cores{}{}",
                node.id,
                node.cpus.len(),
                node.memory_total_bytes
                    .map_or_else(String::new, |bytes| format!(", {}", ByteSize(bytes))),
                node.huge_pages
                    .iter()
                    .map(|pages| format!(", {}", huge(pages)))
                    .collect::<String>(),
            ),
        ));
    }
    let pages: Vec<String> = report.huge_pages.iter().map(huge).collect();
    let pages = if pages.is_empty() {
        "none".to_owned()
    } else {
        pages.join(", ")
    };
    facts.push((
        "huge pages",
        format!("{pages}; transparent: {}", report.transparent_huge_pages),
    ));
    facts.push(("io_uring", ring(report)));
    facts.push((
        "limits",
        format!(
            "{} open files, {} of locked memory",
            limit(report.limits.open_files, |count| count.to_string()),
            limit(report.limits.locked_memory_bytes, |bytes| ByteSize(bytes)
                .to_string()),
        ),
    ));
    let module = match report.nvme_tcp_module {
        ModuleState::Loaded => "loaded",
        ModuleState::Installed => "installed, not loaded",
        ModuleState::Missing => "not installed",
    };
    facts.push(("nvme-tcp", format!("kernel module {module}")));
    let spdk = if report.spdk.built_in {
        "built in"
    } else {
        "not built in"
    };
    facts.push(("SPDK", spdk.to_owned()));
    if report.drives.is_empty() {
        facts.push(("NVMe drives", "none".to_owned()));
    }
    facts
}

fn ring(report: &Report) -> String {
    let ring = &report.io_uring;
    if let Some(error) = &ring.error {
        return format!("not available: {}", error.message);
    }
    let unsupported: Vec<&str> = ring
        .operations
        .iter()
        .filter(|operation| !operation.supported)
        .map(|operation| operation.name)
        .collect();
    let mut text = "available".to_owned();
    for (has, name) in [
        (ring.single_issuer, "SINGLE_ISSUER"),
        (ring.defer_taskrun, "DEFER_TASKRUN"),
    ] {
        text.push_str(if has { ", " } else { ", no " });
        text.push_str(name);
    }
    if !unsupported.is_empty() {
        text.push_str("; lacks ");
        text.push_str(&unsupported.join(", "));
    }
    text
}

fn drives(drives: &[Drive]) -> Table<7> {
    let mut table = Table::new(["DRIVE", "DRIVER", "MODEL", "NODE", "NAMESPACE", "SIZE", "USED BY"]);
    for drive in drives {
        let mut first = [
            drive.address.clone(),
            drive.driver.clone().unwrap_or_else(|| "none".to_owned()),
            drive.model.clone().unwrap_or_default(),
            drive.numa_node.map(|node| node.to_string()).unwrap_or_default(),
        ];
        if drive.namespaces.is_empty() {
            let [address, driver, model, node] = first;
            table.push([
                address,
                driver,
                model,
                node,
                String::new(),
                String::new(),
                String::new(),
            ]);
            continue;
        }
        for namespace in &drive.namespaces {
            let [address, driver, model, node] = std::mem::take(&mut first);
            let used_by = match (namespace.used_by.is_empty(), namespace.partitions) {
                (false, _) => namespace.used_by.join(", "),
                (true, 0) => "nothing".to_owned(),
                (true, count) => format!("nothing, {count} partitions"),
            };
            let size = ByteSize(namespace.size_bytes).to_string();
            table.push([
                address,
                driver,
                model,
                node,
                namespace.name.clone(),
                size,
                used_by,
            ]);
        }
    }
    table
}

fn huge(pages: &Pages) -> String {
    format!(
        "{} of {} pages of {} free",
        pages.available,
        pages.total,
        ByteSize(pages.page_bytes)
    )
}

fn limit(limit: Option<Limit>, show: impl Fn(u64) -> String) -> String {
    match limit {
        None => "unknown".to_owned(),
        Some(Limit { soft: None, .. }) => "unlimited".to_owned(),
        Some(Limit { soft: Some(soft), .. }) => show(soft),
    }
}

fn or_none(text: &str) -> &str {
    if text.is_empty() { "none" } else { text }
}

fn paint(severity: Severity, text: &str, colours: bool) -> String {
    let code = match severity {
        Severity::Error => "1;31",
        Severity::Warning => "1;33",
        Severity::Hint => "36",
    };
    if colours {
        format!("\x1b[{code}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}
