//! Round numbers for axes.

/// Ticks of a linear axis at most.
const TICKS_MAX: f64 = 6.0;

/// An axis from 0 up: its end and the step of its ticks, round numbers both.
pub fn linear(most: f64) -> (f64, f64) {
    if !(most.is_finite() && most > 0.0) {
        return (1.0, 0.5);
    }
    let rough = most / TICKS_MAX;
    let unit = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * unit)
        .find(|step| *step >= rough)
        .unwrap_or(10.0 * unit);
    ((most / step).ceil() * step, step)
}

/// A logarithmic axis around these values: its ends, 1, 2 or 5 times a power of ten, and the ticks between.
pub fn logarithmic(values: impl Iterator<Item = f64>) -> (f64, f64, Vec<f64>) {
    let (mut low, mut high) = (f64::INFINITY, 0f64);
    for value in values.filter(|value| value.is_finite() && *value > 0.0) {
        low = low.min(value);
        high = high.max(value);
    }
    if low > high {
        (low, high) = (1.0, 10.0);
    }
    let first = low.log10().floor() as i32;
    let last = high.log10().ceil() as i32;
    let round: Vec<f64> = (first..=last)
        .flat_map(|power| [1.0, 2.0, 5.0].map(|factor| factor * 10f64.powi(power)))
        .collect();
    let below = round.iter().copied().rfind(|tick| *tick <= low).unwrap_or(low);
    let above = round
        .iter()
        .copied()
        .find(|tick| *tick >= high && *tick > below)
        .unwrap_or(high * 2.0);
    let ticks = round
        .into_iter()
        .filter(|tick| (below..=above).contains(tick))
        .collect();
    (below, above, ticks)
}

/// A number with about three digits.
pub fn short(value: f64) -> String {
    let text = match value.abs() {
        size if size >= 99.95 => format!("{value:.0}"),
        size if size >= 9.995 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    };
    if text.contains('.') {
        return text.trim_end_matches('0').trim_end_matches('.').to_owned();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_are_round_and_hold_the_values() {
        assert_eq!(linear(523.7), (600.0, 100.0));
        assert_eq!(linear(6.0), (6.0, 1.0));
        assert_eq!(linear(0.11), (0.12, 0.02));
        assert_eq!(linear(0.0), (1.0, 0.5));
        assert_eq!(linear(f64::NAN), (1.0, 0.5));
        let (low, high, ticks) = logarithmic([11.0, 340.0].into_iter());
        assert_eq!((low, high), (10.0, 500.0));
        assert_eq!(ticks, [10.0, 20.0, 50.0, 100.0, 200.0, 500.0]);
        let (low, high, _) = logarithmic([10.0].into_iter());
        assert!(low <= 10.0 && high > low);
        assert_eq!(logarithmic(std::iter::empty()).0, 1.0);
    }

    #[test]
    fn numbers_are_short() {
        for (value, text) in [
            (523.7, "524"),
            (52.37, "52.4"),
            (5.237, "5.24"),
            (5.0, "5"),
            (0.25, "0.25"),
            (0.5, "0.5"),
            (1000.0, "1000"),
            (0.0, "0"),
            (99.96, "100"),
        ] {
            assert_eq!(short(value), text);
        }
    }
}
