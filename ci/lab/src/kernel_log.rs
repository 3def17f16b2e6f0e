//! What the kernel of a guest may say.
//!
//! A scenario ends with the kernel's log since it began, in the raw form `<PRIORITY>[SECONDS] TEXT`. The
//! lower three bits of the priority are the level: 4 is a warning, less is worse. Warnings and worse must
//! be on the scenario's own list, and some texts are never right, whatever their level.

/// The least severe level that has to be excused.
const WARNING: u32 = 4;

/// What is never right.
const NEVER: [&str; 7] = [
    "BUG:",
    "Call Trace",
    "Oops",
    "WARNING:",
    "blocked for more than",
    "general protection",
    "Kernel panic",
];

/// What the emulator is slow at, and no scenario can help.
const EMULATED: [&str; 2] = ["hrtimer: interrupt took", "long keepalive RTT"];

/// The messages of a raw log that none of the texts in `may_say` excuses.
pub(crate) fn unexpected<'a>(log: &'a str, may_say: &[String]) -> Vec<&'a str> {
    let mut level = 0;
    let mut found = Vec::new();
    for line in log.lines().filter(|line| !line.trim().is_empty()) {
        let text = match split(line) {
            Some((priority, text)) => {
                level = priority & 7;
                text
            }
            // The second line of a message has no priority of its own.
            None => line,
        };
        let is_never_right = NEVER.iter().any(|never| text.contains(never));
        let is_excused = may_say.iter().any(|part| text.contains(part.as_str()))
            || EMULATED.iter().any(|part| text.contains(part));
        if is_never_right || (level <= WARNING && !is_excused) {
            found.push(text);
        }
    }
    found
}

fn split(line: &str) -> Option<(u32, &str)> {
    let (priority, text) = line.strip_prefix('<')?.split_once('>')?;
    Some((priority.parse().ok()?, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "<6>[    1.0] nvme nvme0: creating 2 I/O queues.\n\
                       <12>[    2.0] user: a warning\n\
                       <3>[    3.0] nvme nvme0: I/O error\n  its second line\n\
                       <5>[    4.0] a notice\n";

    #[test]
    fn warnings_and_worse_need_an_excuse() {
        let all = [
            "[    2.0] user: a warning",
            "[    3.0] nvme nvme0: I/O error",
            "  its second line",
        ];
        assert_eq!(unexpected(LOG, &[]), all);
        let excused = ["I/O error".to_owned(), "second line".to_owned()];
        assert_eq!(unexpected(LOG, &excused), all[..1]);
    }

    #[test]
    fn some_texts_have_no_excuse() {
        let log = "<6>[ 1.0] INFO: task x:1 blocked for more than 120 seconds.\n";
        assert_eq!(unexpected(log, &["task".to_owned()]).len(), 1);
    }

    #[test]
    fn lines_without_a_priority_at_the_start_count() {
        assert_eq!(unexpected("half a line\n", &[]), ["half a line"]);
        assert!(unexpected("\n", &[]).is_empty());
    }
}
