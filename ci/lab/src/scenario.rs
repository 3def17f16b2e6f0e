//! Scenarios: shell scripts that run in a guest.
//!
//! A script opens with a head of comment lines. The first paragraph says what the scenario shows; after it,
//! lines `# time limit: 60 s` and `# kernel may say: TEXT` set how long it may take, and what messages of
//! the kernel, warnings and worse, it may cause; `# programs: NAME...` names programs of this checkout, or
//! `csi-sanity` and `fio`, that it runs in the guest; `# modules: NAME...` names modules of the kernel that
//! not every guest has. With `# only by name: WHY` it is not among all. Another key is an error.

use std::path::Path;
use std::time::Duration;

use crate::error::{Context, Error};

/// How long a scenario may take unless its head tells.
const TIME_LIMIT: Duration = Duration::from_secs(120);

/// Programs that scenarios can run in the guest: those of this checkout, and some that may be installed.
const PROGRAMS: [&str; 5] = ["csi-sanity", "fio", "pollux-bench", "pollux-csi", "pollux-engine"];

/// The longest time a scenario may ask for.
const TIME_LIMIT_MAX: Duration = Duration::from_secs(900);

/// A script and what its head says.
#[derive(Debug)]
pub(crate) struct Scenario {
    /// The name of its file, without `.sh`.
    pub(crate) name: String,
    /// What it shows.
    pub(crate) about: String,
    /// How long it may take.
    pub(crate) time_limit: Duration,
    /// Parts of messages that the kernel may log.
    pub(crate) kernel_may_say: Vec<String>,
    /// Programs that the guest needs, besides those that every guest has.
    pub(crate) programs: Vec<String>,
    /// Modules of the kernel that the guest needs, besides those that every guest has.
    pub(crate) modules: Vec<String>,
    /// Why it is run only if it is named.
    pub(crate) only_by_name: Option<String>,
    /// All of it.
    pub(crate) script: String,
}

impl Scenario {
    /// Reads every scenario of a directory, by name.
    pub(crate) fn read_all(directory: &Path) -> Result<Vec<Self>, Error> {
        let mut scenarios = Vec::new();
        for entry in std::fs::read_dir(directory).context("read", directory)? {
            let path = entry.context("read", directory)?.path();
            let name = path
                .file_name()
                .and_then(|name| name.to_str()?.strip_suffix(".sh"));
            if let Some(name) = name {
                let script = std::fs::read_to_string(&path).context("read", &path)?;
                let scenario = Self::parse(name, script).map_err(|why| Error::Scenario {
                    path: path.clone(),
                    why,
                })?;
                scenarios.push(scenario);
            }
        }
        scenarios.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(scenarios)
    }

    fn parse(name: &str, script: String) -> Result<Self, String> {
        let head = script
            .lines()
            .map_while(|line| line.strip_prefix('#'))
            .map(str::trim);
        let mut about: Vec<&str> = Vec::new();
        let mut time_limit = TIME_LIMIT;
        let mut kernel_may_say = Vec::new();
        let mut programs: Vec<String> = Vec::new();
        let mut modules: Vec<String> = Vec::new();
        let mut only_by_name = None;
        let mut in_about = true;
        for line in head {
            if line.is_empty() {
                in_about = false;
            } else if in_about {
                about.push(line);
            } else if let Some(value) = line.strip_prefix("time limit:") {
                time_limit = seconds(value).ok_or_else(|| {
                    format!(
                        "`{line}`: a time limit is whole seconds from 1 to {}, such as `60 s`",
                        TIME_LIMIT_MAX.as_secs()
                    )
                })?;
            } else if let Some(value) = line.strip_prefix("kernel may say:") {
                let value = value.trim();
                if value.is_empty() {
                    return Err("`kernel may say:` without a text would allow everything".to_owned());
                }
                kernel_may_say.push(value.to_owned());
            } else if let Some(value) = line.strip_prefix("programs:") {
                programs.extend(value.split_whitespace().map(str::to_owned));
                let unknown = programs.iter().find(|name| !PROGRAMS.contains(&name.as_str()));
                if let Some(unknown) = unknown {
                    return Err(format!("`{unknown}` is none of {}", PROGRAMS.join(", ")));
                }
            } else if let Some(value) = line.strip_prefix("modules:") {
                modules.extend(value.split_whitespace().map(str::to_owned));
            } else if let Some(value) = line.strip_prefix("only by name:") {
                only_by_name = Some(value.trim().to_owned());
            } else {
                return Err(format!(
                    "`{line}` is none of `time limit:`, `kernel may say:`, `programs:`, `modules:` and `only \
                     by name:`"
                ));
            }
        }
        if about.is_empty() {
            return Err("it does not open with a comment that says what it shows".to_owned());
        }
        Ok(Self {
            name: name.to_owned(),
            about: about.join(" "),
            time_limit,
            kernel_may_say,
            programs,
            modules,
            only_by_name,
            script,
        })
    }
}

fn seconds(value: &str) -> Option<Duration> {
    let limit = Duration::from_secs(value.trim().strip_suffix(" s")?.parse().ok()?);
    (limit >= Duration::from_secs(1) && limit <= TIME_LIMIT_MAX).then_some(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Scenario, String> {
        Scenario::parse("name", text.to_owned())
    }

    #[test]
    fn heads_are_understood() {
        let text = "# One\n# two.\n#\n# time limit: 7 s\n# kernel may say: I/O error\necho\n# not: head\n";
        let scenario = parse(text).expect("a head");
        assert_eq!(scenario.about, "One two.");
        assert_eq!(scenario.time_limit, Duration::from_secs(7));
        assert_eq!(scenario.kernel_may_say, ["I/O error"]);
        assert_eq!(scenario.script, text);
        let text = "# One.\n#\n# modules: btrfs\n# only by name: it takes long\n";
        let scenario = parse(text).expect("a head");
        assert_eq!(scenario.modules, ["btrfs"]);
        assert_eq!(scenario.only_by_name.as_deref(), Some("it takes long"));
        let text = "# One.\n#\n# programs: csi-sanity fio pollux-bench pollux-csi pollux-engine\n";
        assert_eq!(parse(text).expect("a head").programs, PROGRAMS);
        assert_eq!(parse("# One.\n").expect("a head").time_limit, TIME_LIMIT);
    }

    #[test]
    fn mistakes_in_heads_are_found() {
        for (text, part) in [
            ("echo\n", "does not open"),
            ("# One\n#\n# time limit: 7\n", "whole seconds"),
            ("# One\n#\n# time limit: 0 s\n", "whole seconds"),
            ("# One\n#\n# time limit: 7000 s\n", "whole seconds"),
            ("# One\n#\n# kernel may say:\n", "allow everything"),
            ("# One\n#\n# kernel might say: x\n", "none of"),
            (
                "# One\n#\n# programs: pollux-engine cargo\n",
                "`cargo` is none of",
            ),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn every_scenario_of_the_lab_has_a_head() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
        let scenarios = Scenario::read_all(&directory).expect("they can be read");
        assert!(!scenarios.is_empty());
    }
}
