//! What was used, look by look: of the device and of each client that is there.

use crate::smi::sample::{Rates, Sample, Use};
use std::collections::{HashMap, VecDeque};

/// Looks that are kept: more than a screen is wide.
const MOST: usize = 512;

/// Bars of an eighth, two eighths and so on of a line; a space is none.
const BARS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// The latest looks.
#[derive(Debug, Default)]
pub(super) struct History {
    device: VecDeque<Rates>,
    clients: HashMap<u64, VecDeque<Rates>>,
}

impl History {
    /// Adds a look; clients that have left are forgotten.
    pub(super) fn add(&mut self, sample: &Sample, used: &Use) {
        push(&mut self.device, used.device);
        let is_here = |id: &u64| sample.stats.functions.iter().any(|f| f.client.id == *id);
        self.clients.retain(|id, _| is_here(id));
        for (function, &rates) in sample.stats.functions.iter().zip(&used.clients) {
            push(self.clients.entry(function.client.id).or_default(), rates);
        }
    }

    /// Of the device, the newest first.
    pub(super) fn device(&self, value: impl Fn(&Rates) -> f64) -> Vec<f64> {
        self.device.iter().rev().map(value).collect()
    }

    /// The use of a client as bars, the newest on the right.
    pub(super) fn bars(&self, client: u64, columns: usize) -> String {
        let empty = VecDeque::new();
        let rates = self.clients.get(&client).unwrap_or(&empty);
        let newest = rates.iter().rev().take(columns);
        let mut bars: Vec<char> =
            newest.map(|rates| bar(rates.busy_percent.unwrap_or(0.0))).collect();
        bars.resize(columns, BARS[0]);
        bars.iter().rev().collect()
    }
}

fn push(looks: &mut VecDeque<Rates>, rates: Rates) {
    if looks.len() == MOST {
        looks.pop_front();
    }
    looks.push_back(rates);
}

/// Any use at all is a bar.
fn bar(percent: f64) -> char {
    let least = if percent > 0.0 { 1.0 } else { 0.0 };
    let eighths = (percent / 100.0 * 8.0).round().clamp(least, 8.0);
    let at = (0_u8..).zip(BARS).find(|&(at, _)| f64::from(at) >= eighths);
    at.map_or(BARS[8], |(_, bar)| bar)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::smi::sample::tests::{function, sample};

    #[test]
    fn bars_show_any_use_and_the_newest_last() {
        assert_eq!([0.0, 0.1, 50.0, 100.0, 300.0].map(bar), [' ', '▁', '▄', '█', '█']);
        let mut history = History::default();
        for busy_us in [100_000, 50_000, 0] {
            let before = sample(0, vec![function(1, 0, 0)]);
            let now = sample(100_000, vec![function(1, busy_us, 0)]);
            history.add(&now, &now.since(&before));
        }
        assert_eq!((history.bars(1, 4), history.bars(1, 2)), (" █▄ ".into(), "▄ ".into()));
        assert_eq!(history.device(|rates| rates.busy_percent.unwrap()), [0.0, 50.0, 100.0]);
        let gone = sample(0, vec![]);
        history.add(&gone, &gone.since(&gone));
        assert_eq!(history.bars(1, 3), "   ");
        for _ in 0..2 * MOST {
            history.add(&gone, &gone.since(&gone));
        }
        assert_eq!(history.device(|_| 0.0).len(), MOST);
    }
}
