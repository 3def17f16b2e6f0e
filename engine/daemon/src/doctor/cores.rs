//! Processors: which there are, which this process may use, and how they are run.
//!
//! Files used: `/sys/devices/system/cpu/{online,isolated,nohz_full}`, `cpu<N>/cpufreq/scaling_governor` below
//! it, and `Cpus_allowed_list` of `/proc/self/status`.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::files;
use crate::settings::CoreList;

/// The processors of the machine. Lists are as the kernel writes them: `0-3,8`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Cores {
    /// Those that are switched on.
    pub online: String,
    /// Those that this process may run on.
    pub usable: String,
    /// How many those are.
    pub usable_count: usize,
    /// Those that the scheduler leaves alone (`isolcpus`).
    pub isolated: String,
    /// Those without a timer tick while one task runs (`nohz_full`).
    pub tickless: String,
    /// How many processors each frequency governor runs; empty where there is no frequency scaling.
    pub governors: BTreeMap<String, usize>,
}

pub(super) fn read(sysfs: &Path, proc: &Path) -> Cores {
    let directory = sysfs.join("devices/system/cpu");
    let list = |name: &str| {
        files::line(&directory.join(name))
            .filter(|list| list != "(null)")
            .unwrap_or_default()
    };
    let online = list("online");
    let usable = files::text(&proc.join("self/status"))
        .and_then(|status| {
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
            Some(line.trim().to_owned())
        })
        .unwrap_or_else(|| online.clone());
    let mut governors = BTreeMap::new();
    for core in files::entries(&directory) {
        if let Some(governor) = files::line(&core.join("cpufreq/scaling_governor")) {
            *governors.entry(governor).or_default() += 1;
        }
    }
    Cores {
        usable_count: usable.parse::<CoreList>().map_or(0, |list| list.as_slice().len()),
        online,
        usable,
        isolated: list("isolated"),
        tickless: list("nohz_full"),
        governors,
    }
}
