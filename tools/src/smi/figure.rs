//! Numbers as people read them, in few columns.

use std::time::Duration;

/// What stands for a number that is not known.
pub(crate) const UNKNOWN: &str = "-";

/// A number in at most five characters: `0.4`, `12`, `3.1k`, `240G`.
pub(crate) fn short(value: f64) -> String {
    scaled(value, 1000.0, &["", "k", "M", "G", "T", "P", "E"])
}

/// Bytes in at most five characters and a unit: `512 B`, `3.1 MiB`.
pub(crate) fn bytes(value: f64) -> String {
    scaled(value, 1024.0, &[" B", " KiB", " MiB", " GiB", " TiB", " PiB", " EiB"])
}

fn scaled(value: f64, step: f64, units: &[&str]) -> String {
    let (mut value, mut at) = (value, 0);
    // Below the next unit after rounding, so that 999.7 is 1.0k and not 1000.
    while value.abs() >= step - 0.5 && at + 1 < units.len() {
        value /= step;
        at += 1;
    }
    let is_exact = at == 0 && value.fract().abs() < 0.05;
    let digits = usize::from(value.abs() < 9.95 && !is_exact);
    format!("{value:.digits$}{}", units[at])
}

/// A share in percent: `0`, `0.4`, `41`, `100`.
pub(crate) fn percent(value: f64) -> String {
    let digits = usize::from(value > 0.0 && value < 9.95);
    format!("{value:.digits$}")
}

/// A duration in its largest unit: `12s`, `3m`, `5h`, `9d`.
pub(crate) fn age(age: Duration) -> String {
    let seconds = age.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// `figure` of a number, where there is one.
pub(crate) fn maybe(value: Option<f64>, figure: fn(f64) -> String) -> String {
    value.map_or_else(|| UNKNOWN.to_owned(), figure)
}

/// A count as a number to compute figures of; beyond 2^53 the last digits are not shown anyway.
#[expect(clippy::cast_precision_loss, reason = "shown in three digits")]
pub(crate) fn real(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short_at_every_size() {
        let cases = [(0.0, "0"), (0.44, "0.4"), (7.0, "7"), (9.96, "10"), (999.4, "999")];
        let larger = [(999.7, "1.0k"), (12_345.0, "12k"), (2.4e11, "240G"), (9.9e20, "990E")];
        for (value, text) in cases.into_iter().chain(larger) {
            assert_eq!(short(value), text);
        }
        assert_eq!([bytes(0.0), bytes(1536.0), bytes(2.0e9)], ["0 B", "1.5 KiB", "1.9 GiB"]);
        assert_eq!([0.0, 0.42, 41.4, 100.0].map(percent), ["0", "0.4", "41", "100"]);
        assert_eq!(age(Duration::from_secs(7300)), "2h");
    }
}
