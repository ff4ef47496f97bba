//! `npu-smi log`: what went wrong, with queue, operation and ONNX node.

use super::Tool;
use super::error::SmiError;
use super::figure::UNKNOWN;
use super::output::{self, Paper};
use super::reply;
use super::sample::now_ms;
use super::table::wrapped;
use super::watch::{Every, Watch};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::HashSet;
use std::process::ExitCode;

/// Options of `npu-smi log`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Only the faults of this client, which may have left
    #[arg(long, value_name = "ID")]
    client: Option<u64>,

    /// At most so many, the latest
    #[arg(long, value_name = "N", default_value = "256", value_parser = clap::value_parser!(u64).range(1..=1000))]
    most: u64,

    /// Look again every so many seconds, and print what is new
    #[command(flatten)]
    watch: Watch,
}

/// A fault, as the server tells it.
#[derive(Clone, Debug, Deserialize)]
struct Fault {
    client: u64,
    #[serde(default)]
    pid: Option<i64>,
    #[serde(default)]
    process: Option<String>,
    #[serde(default)]
    sequence: Option<u64>,
    #[serde(default)]
    time_ms: u64,
    status: String,
    #[serde(default)]
    node: Option<String>,
    message: String,
}

/// What tells a fault from all others: numbers begin anew after a reset.
type Key = (u64, u64, Option<u64>);

#[derive(Debug, Deserialize)]
struct Faults {
    faults: Vec<Value>,
}

/// What is printed as JSON.
#[derive(Debug, Serialize)]
struct Report<'a> {
    schema: &'static str,
    place: &'a str,
    time_ms: u64,
    faults: Vec<Value>,
}

/// Prints the faults.
pub(crate) fn run(tool: &Tool, args: &Args) -> Result<ExitCode, SmiError> {
    let mut connection = tool.connect()?;
    let mut seen: HashSet<Key> = HashSet::new();
    args.watch.run(|every| {
        let mut fields = Map::from_iter([("most".to_owned(), args.most.into())]);
        if let Some(id) = args.client {
            fields.insert("client".into(), id.into());
        }
        let Faults { faults } = reply::ask(&mut connection, "log", fields)?;
        let place = connection.place().to_owned();
        let mut news = Vec::new();
        for fault in faults {
            let read: Fault = reply::read(&place, "log", fault.clone())?;
            if seen.insert((read.client, read.time_ms, read.sequence)) {
                news.push((read, fault));
            }
        }
        if tool.is_json {
            let faults = news.into_iter().map(|(_, fault)| fault).collect();
            let schema = "npu-smi-log.v1";
            let report = Report { schema, place: &place, time_ms: now_ms(), faults };
            return output::print_json(&report, every.is_one_of_many());
        }
        let paper = Paper::of_stdout();
        if news.is_empty() && every != Every::Later {
            return output::print(&format!("{place}: no faults\n"));
        }
        output::print(&news.iter().map(|(fault, _)| text(fault, paper)).collect::<String>())
    })?;
    Ok(ExitCode::SUCCESS)
}

/// When, whose, what; below, all that is known of it.
fn text(fault: &Fault, paper: Paper) -> String {
    let process = fault.process.as_deref().unwrap_or(UNKNOWN);
    let pid = fault.pid.map_or(UNKNOWN.to_owned(), |pid| pid.to_string());
    let node = fault.node.as_ref().map_or(String::new(), |node| format!("  node `{node}`"));
    let head = format!(
        "{}  client {} ({process}, pid {pid})  {}{node}",
        time(fault.time_ms),
        fault.client,
        fault.status
    );
    let mut out = String::new();
    for line in wrapped(&head, paper.columns) {
        out += &(paper.heading(&line) + "\n");
    }
    for line in wrapped(&fault.message, paper.columns.saturating_sub(2).max(1)) {
        out += &format!("  {line}\n");
    }
    out
}

/// A moment as UTC, such as `2026-11-23 05:04:12.345Z`.
pub(crate) fn time(time_ms: u64) -> String {
    let (days, of_day) = (time_ms / 86_400_000, time_ms % 86_400_000);
    // The days of eras of 400 years, which begin with a March: leap days come last.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let (month, late) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = year + era * 400 + late;
    let (seconds, millis) = (of_day / 1000, of_day % 1000);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_dates() {
        assert_eq!(time(0), "1970-01-01 00:00:00.000Z");
        assert_eq!(time(951_827_696_789), "2000-02-29 12:34:56.789Z");
        assert_eq!(time(1_795_410_252_345), "2026-11-23 05:04:12.345Z");
        assert_eq!(time(4_102_444_799_999), "2099-12-31 23:59:59.999Z");
        // No number is too large.
        let _ = time(u64::MAX);
    }

    #[test]
    fn a_fault_fits_any_width() {
        let value = serde_json::json!({"client": 3, "status": "HUNG", "node": "/layer1/conv1/Conv_quant",
            "message": "job 4 of queue 1: no progress; command 7 (conv, op 12)", "future": 1});
        let fault: Fault = serde_json::from_value(value).unwrap();
        for columns in 20..120 {
            let text = text(&fault, Paper::plain(columns));
            assert!(text.lines().all(|line| line.chars().count() <= columns), "{text}");
            assert!(text.replace("\n", "").contains("HUNG"), "{text}");
        }
    }
}
