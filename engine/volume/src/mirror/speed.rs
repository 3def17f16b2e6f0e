//! How fast something goes through a volume, for people who wait for it.

use std::time::Duration;

use pollux_reactor::Instant;

/// The time over which it is told, about.
const SPAN: Duration = Duration::from_secs(5);

/// Bytes in a second, of late.
#[derive(Debug, Clone, Copy)]
pub(super) struct Speed {
    /// The span under way, and what was done in it.
    began: Instant,
    bytes: u64,
    told: Option<f64>,
}

impl Speed {
    pub(super) fn new(began: Instant) -> Self {
        Self {
            began,
            bytes: 0,
            told: None,
        }
    }

    /// So much more was done.
    pub(super) fn add(&mut self, now: Instant, bytes: u64) {
        let span = now.saturating_since(self.began);
        self.bytes += bytes;
        if span >= SPAN {
            // After a pause nothing is known.
            let speed = self.bytes as f64 / span.as_secs_f64();
            self.told = (span < 2 * SPAN).then(|| self.told.map_or(speed, |before| (before + speed) / 2.0));
            (self.began, self.bytes) = (now, 0);
        }
    }

    /// Bytes in a second, if that is known.
    pub(super) fn told(&self) -> Option<f64> {
        self.told
    }
}

/// How long so much takes at a speed.
pub(super) fn time_left(bytes: u64, speed: Option<f64>) -> Option<Duration> {
    let speed = speed.filter(|speed| *speed > 0.0)?;
    Duration::try_from_secs_f64(bytes as f64 / speed).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::from_nanos((10_000 + ms) * 1_000_000)
    }

    #[test]
    fn it_is_known_after_a_span_and_not_after_a_pause() {
        let mut speed = Speed::new(at(0));
        for ms in 1..5000 {
            speed.add(at(ms), 1000);
            assert_eq!(speed.told(), None);
        }
        speed.add(at(5000), 1000);
        assert_eq!(speed.told(), Some(1e6));
        // Half of what is newer, and half of what was before.
        speed.add(at(10_000), 15_000_000);
        assert_eq!(speed.told(), Some(2e6));
        speed.add(at(20_000), 1000);
        assert_eq!(speed.told(), None);
    }

    #[test]
    fn what_is_left_takes_as_long_as_it_is_fast() {
        assert_eq!(time_left(3_000_000, Some(2e6)), Some(Duration::from_millis(1500)));
        assert_eq!(time_left(1, None), None);
        assert_eq!(time_left(1, Some(0.0)), None);
        assert_eq!(time_left(u64::MAX, Some(1e-9)), None);
    }
}
