//! Two looks at a server, and what happened between them.

use super::connection::Connection;
use super::error::SmiError;
use super::figure::real;
use super::reply::{self, Function, Stats};
use serde::Serialize;
use serde_json::Map;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Power of a device at rest, unless it says otherwise.
const STATIC_MW: f64 = 50.0;

/// What a server said, and when.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    pub(crate) at: Instant,
    pub(crate) time_ms: u64,
    pub(crate) stats: Stats,
}

/// What was done in each second between two samples; nothing where the server does not count it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Rates {
    /// Share of the time in which a command was executed.
    pub(crate) busy_percent: Option<f64>,
    /// Shares of the modelled cycles in which the engines had work.
    pub(crate) array_percent: Option<f64>,
    pub(crate) vector_percent: Option<f64>,
    pub(crate) dma_percent: Option<f64>,
    pub(crate) jobs: f64,
    pub(crate) failed: f64,
    pub(crate) macs: f64,
    pub(crate) dram_read_bytes: f64,
    pub(crate) dram_written_bytes: f64,
    pub(crate) copied_bytes: Option<f64>,
    /// Modelled: of a client what its work takes, of the device with what it takes at rest.
    pub(crate) power_mw: Option<f64>,
}

/// Between two samples: of the device, and of each client of the second.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Use {
    pub(crate) interval_us: u64,
    pub(crate) device: Rates,
    pub(crate) clients: Vec<Rates>,
}

impl Sample {
    /// Asks for one now.
    pub(crate) fn take(connection: &mut Connection) -> Result<Self, SmiError> {
        let stats = reply::ask(connection, "stats", Map::new())?;
        Ok(Self { at: Instant::now(), time_ms: now_ms(), stats })
    }

    /// What happened since `before`.
    pub(crate) fn since(&self, before: &Self) -> Use {
        let interval_us = self.interval_us(before);
        let seconds = real(interval_us.max(1)) / 1e6;
        let mut sums = Sums::default();
        let clients = self.stats.functions.iter().map(|now| {
            let earlier = before.stats.functions.iter().find(|old| old.client.id == now.client.id);
            // One that came in between has done all it did since.
            let did = Sums::between(earlier.unwrap_or(&Function::default()), now);
            sums.add(&did);
            did.rates(seconds)
        });
        let clients = clients.collect();
        let mut device = sums.rates(seconds);
        device.busy_percent = device.busy_percent.map(|busy| busy.min(100.0));
        device.power_mw = device.power_mw.map(|power| tenths(STATIC_MW + power));
        Use { interval_us, device, clients }
    }

    /// By the server's clock, where it tells: how long the reply was under way does not count.
    fn interval_us(&self, before: &Self) -> u64 {
        let told = self.stats.server.time_us.zip(before.stats.server.time_us);
        match told.and_then(|(now, then)| now.checked_sub(then)) {
            Some(interval) if interval > 0 => interval,
            _ => micros(self.at.duration_since(before.at)),
        }
    }
}

/// What one client, or all, did.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    busy_us: Option<u64>,
    cycles: u64,
    engines: [Option<u64>; 3],
    counts: [u64; 5],
    copied: Option<u64>,
    energy_uj: Option<u64>,
}

impl Sums {
    fn between(before: &Function, now: &Function) -> Self {
        // A reset begins the counts anew: what is less than before was counted since.
        let more = |before: u64, now: u64| now.checked_sub(before).unwrap_or(now);
        let maybe = |before: Option<u64>, now: Option<u64>| Some(more(before.unwrap_or(0), now?));
        Self {
            busy_us: maybe(before.busy_us, now.busy_us),
            cycles: more(before.cycles, now.cycles),
            engines: [
                maybe(before.array_cycles, now.array_cycles),
                maybe(before.vector_cycles, now.vector_cycles),
                maybe(before.dma_cycles, now.dma_cycles),
            ],
            counts: [
                more(before.jobs, now.jobs),
                more(before.failed, now.failed),
                more(before.macs, now.macs),
                more(before.dram_read, now.dram_read),
                more(before.dram_written, now.dram_written),
            ],
            copied: maybe(before.copied_bytes, now.copied_bytes),
            energy_uj: maybe(before.energy_uj, now.energy_uj),
        }
    }

    fn add(&mut self, other: &Self) {
        let add = |sum: &mut Option<u64>, more: Option<u64>| {
            if let Some(more) = more {
                *sum = Some(sum.unwrap_or(0).saturating_add(more));
            }
        };
        add(&mut self.busy_us, other.busy_us);
        add(&mut self.copied, other.copied);
        add(&mut self.energy_uj, other.energy_uj);
        for (sum, &more) in self.engines.iter_mut().zip(&other.engines) {
            add(sum, more);
        }
        for (sum, &more) in self.counts.iter_mut().zip(&other.counts) {
            *sum = sum.saturating_add(more);
        }
        self.cycles = self.cycles.saturating_add(other.cycles);
    }

    fn rates(&self, seconds: f64) -> Rates {
        let each = |count: u64| tenths(real(count) / seconds);
        let of_cycles = |count: Option<u64>| match (count, self.cycles) {
            (Some(_), 0) => Some(0.0),
            (count, cycles) => Some(tenths((100.0 * real(count?) / real(cycles)).min(100.0))),
        };
        let [jobs, failed, macs, read, written] = self.counts.map(each);
        let [array, vector, dma] = self.engines.map(of_cycles);
        Rates {
            busy_percent: self.busy_us.map(|busy| tenths(real(busy) / 1e4 / seconds)),
            array_percent: array,
            vector_percent: vector,
            dma_percent: dma,
            jobs,
            failed,
            macs,
            dram_read_bytes: read,
            dram_written_bytes: written,
            copied_bytes: self.copied.map(each),
            // Microjoules a second are microwatts.
            power_mw: self.energy_uj.map(|energy| tenths(real(energy) / 1e3 / seconds)),
        }
    }
}

/// To one digit behind the point: more would be noise.
fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Unix time.
pub(crate) fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::smi::reply::{Client, Counts};

    /// A sample at `time_us` of the server's clock.
    pub(crate) fn sample(time_us: u64, functions: Vec<Function>) -> Sample {
        let server = Counts { time_us: Some(time_us), ..Counts::default() };
        Sample { at: Instant::now(), time_ms: 0, stats: Stats { server, functions } }
    }

    /// A function that has been busy and had jobs.
    pub(crate) fn function(id: u64, busy_us: u64, jobs: u64) -> Function {
        let client = Client { id, ..Client::default() };
        Function { client, busy_us: Some(busy_us), jobs, ..Function::default() }
    }

    #[test]
    fn use_is_what_happened_over_the_time_by_the_servers_clock() {
        let before = sample(1_000_000, vec![function(1, 100_000, 10), function(2, 0, 0)]);
        let mut one = function(1, 350_000, 20);
        (one.cycles, one.dma_cycles) = (1000, Some(250));
        let now = sample(2_000_000, vec![one, function(2, 900_000, 4)]);
        let used = now.since(&before);
        assert_eq!(used.interval_us, 1_000_000);
        let busy: Vec<_> = used.clients.iter().map(|rates| rates.busy_percent).collect();
        assert_eq!(busy, [Some(25.0), Some(90.0)]);
        assert_eq!((used.clients[0].jobs, used.device.jobs), (10.0, 14.0));
        assert_eq!(used.clients[0].dma_percent, Some(25.0));
        assert_eq!(used.device.busy_percent, Some(100.0), "two at once are one device");
        assert_eq!((used.device.array_percent, used.device.power_mw), (None, None));
    }

    #[test]
    fn a_reset_and_a_newcomer_are_counted_from_zero() {
        let before = sample(0, vec![function(1, 500, 100)]);
        let now = sample(1_000_000, vec![function(1, 700, 3), function(9, 0, 8)]);
        let used = now.since(&before);
        assert_eq!((used.clients[0].jobs, used.clients[1].jobs), (3.0, 8.0));
        let same = now.since(&now);
        assert!(same.device.jobs == 0.0 && same.interval_us < 1_000_000);
    }

    #[test]
    fn what_a_server_does_not_count_is_not_made_up() {
        let old = Function { busy_us: None, ..function(1, 0, 5) };
        let used = sample(9, vec![old]).since(&sample(3, Vec::new()));
        assert_eq!(used.device.busy_percent, None);
    }
}
