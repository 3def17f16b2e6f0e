//! What is told when something panics: a defect, in the log like everything else and not in between.

use std::panic::PanicHookInfo;

/// Has panics reported by the log, with thread and place.
pub(super) fn report() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(
            thread = thread.name().unwrap_or("unnamed"),
            place,
            "panicked: {}; this is a defect, please report it",
            message(panic)
        );
    }));
}

fn message<'a>(panic: &'a PanicHookInfo<'_>) -> &'a str {
    panic.payload_as_str().unwrap_or("no text")
}
