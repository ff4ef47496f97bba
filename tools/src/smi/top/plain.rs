//! `npu-smi top` without a screen: one report a look.

use crate::smi::Tool;
use crate::smi::error::SmiError;
use crate::smi::output::{self, Paper};
use crate::smi::reply::Function;
use crate::smi::sample::{Rates, Sample, Use};
use crate::smi::show;
use serde::Serialize;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// A line of JSON.
#[derive(Debug, Serialize)]
struct Report<'a> {
    schema: &'static str,
    place: &'a str,
    time_ms: u64,
    interval_us: u64,
    #[serde(rename = "use")]
    used: Rates,
    clients: Vec<Client<'a>>,
}

#[derive(Debug, Serialize)]
struct Client<'a> {
    id: u64,
    pid: Option<i64>,
    process: Option<&'a str>,
    state: &'a str,
    in_flight: u64,
    mapped_bytes: Option<u64>,
    failed: u64,
    faults: u64,
    #[serde(rename = "use")]
    used: Rates,
}

/// Prints `count` reports, or reports until it is interrupted.
pub(super) fn run(tool: &Tool, every: Duration, count: Option<u64>) -> Result<ExitCode, SmiError> {
    let mut connection = tool.connect()?;
    let place = connection.place().to_owned();
    let mut before = Sample::take(&mut connection)?;
    let mut number = 0;
    while count.is_none_or(|count| number < count) {
        number += 1;
        std::thread::sleep((before.at + every).saturating_duration_since(Instant::now()));
        let now = Sample::take(&mut connection)?;
        let used = now.since(&before);
        if tool.is_json {
            output::print_json(&report(&place, &now, &used), true)?;
        } else {
            let gap = if number > 1 { "\n" } else { "" };
            output::print(&(gap.to_owned() + &show::brief(&now, &used, Paper::of_stdout())))?;
        }
        before = now;
    }
    Ok(ExitCode::SUCCESS)
}

fn report<'a>(place: &'a str, now: &'a Sample, used: &Use) -> Report<'a> {
    let client = |(function, &used): (&'a Function, &Rates)| Client {
        id: function.client.id,
        pid: function.client.pid,
        process: function.client.process.as_deref(),
        state: &function.client.state,
        in_flight: function.client.in_flight,
        mapped_bytes: function.mapped_bytes,
        failed: function.failed,
        faults: function.faults,
        used,
    };
    Report {
        schema: "npu-smi-top.v1",
        place,
        time_ms: now.time_ms,
        interval_us: used.interval_us,
        used: used.device,
        clients: now.stats.functions.iter().zip(&used.clients).map(client).collect(),
    }
}
