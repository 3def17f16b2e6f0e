//! What the simulated machines log, for looking into one seed.

use std::fmt;
use std::io::IsTerminal as _;

use pollux_reactor::Reactor;
use tracing::Level;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

/// The clock of the reactor that logs.
struct VirtualTime;

impl FormatTime for VirtualTime {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        match Reactor::try_current() {
            Some(reactor) => write!(writer, "{:?}", reactor.now()),
            None => writer.write_str("world"),
        }
    }
}

/// Writes everything of this level and above to the standard error from now on, in virtual time. The level
/// `TRACE` has every event of the world itself.
pub fn show(level: Level) {
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_timer(VirtualTime)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .finish();
    // Fails only where someone else shows logs already.
    let _ = tracing::subscriber::set_global_default(subscriber);
}
