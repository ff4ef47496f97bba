//! `npu-smi show`: what the device is, how much of it is used, and by whom.

use super::Tool;
use super::connection::Connection;
use super::error::SmiError;
use super::figure::{UNKNOWN, bytes, maybe, percent, real, short};
use super::identity::Identity;
use super::list::{age, pid};
use super::output::{self, Paper};
use super::prometheus;
use super::reply::{Counts, EndCodes, Function, Saturation};
use super::sample::{Rates, Sample, Use};
use super::table::{Column, cut, pairs, table};
use super::watch::{self, Watch};
use serde::Serialize;
use serde_json::{Map, Value};
use std::process::ExitCode;
use std::time::Duration;

/// Options of `npu-smi show`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// A client of `list`: its counters and queues
    client: Option<u64>,

    /// Print text for Prometheus, such as its node exporter's textfile collector reads
    #[arg(long, conflicts_with_all = ["json", "watch", "client"])]
    prometheus: bool,

    /// How long to look before use is told; with --watch it is told since the report before
    #[arg(long, value_name = "SECONDS", default_value = "0.2", value_parser = super::seconds)]
    over: Duration,

    #[command(flatten)]
    watch: Watch,
}

/// What is printed as JSON.
#[derive(Debug, Serialize)]
struct Report<'a> {
    schema: &'static str,
    place: &'a str,
    time_ms: u64,
    /// What the server says of itself and its devices; `null` where it is too old to tell.
    identity: Option<&'a Value>,
    server: Counts,
    interval_us: u64,
    #[serde(rename = "use")]
    used: Rates,
    clients: Vec<Described<'a>>,
}

#[derive(Debug, Serialize)]
struct Described<'a> {
    #[serde(flatten)]
    function: &'a Function,
    #[serde(rename = "use")]
    used: Rates,
}

/// Shows the device, or one client.
pub(crate) fn run(tool: &Tool, args: &Args) -> Result<ExitCode, SmiError> {
    let mut connection = tool.connect()?;
    let place = connection.place().to_owned();
    let said = identity(&mut connection)?;
    let mut before = Sample::take(&mut connection)?;
    std::thread::sleep(args.over);
    args.watch.run(|every| {
        let mut now = Sample::take(&mut connection)?;
        if let Some(only) = args.client {
            now.stats.functions.retain(|function| function.client.id == only);
            if now.stats.functions.is_empty() {
                return Err(no_client(&place, only));
            }
        }
        let used = now.since(&before);
        if args.prometheus {
            output::print(&prometheus::text(&now, said.as_ref()))?;
        } else if tool.is_json {
            output::print_json(
                &report(&place, said.as_ref(), &now, &used),
                every.is_one_of_many(),
            )?;
        } else {
            let paper = Paper::of_stdout();
            let text = match (args.client, now.stats.functions.first()) {
                (Some(_), Some(function)) => client_text(function, &used.clients[0], paper),
                _ => text(&place, &Identity::new(said.as_ref()), &now, &used, paper),
            };
            watch::print(&text, every, paper)?;
        }
        before = now;
        Ok(())
    })?;
    Ok(ExitCode::SUCCESS)
}

/// What the server says of itself; nothing where it does not know the question.
pub(crate) fn identity(connection: &mut Connection) -> Result<Option<Value>, SmiError> {
    match connection.ask("show", Map::new()) {
        Ok(mut reply) => {
            reply.retain(|field, _| field != "schema" && field != "minor");
            Ok(Some(Value::Object(reply)))
        }
        Err(SmiError::Older { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The server has no such client.
pub(crate) fn no_client(place: &str, id: u64) -> SmiError {
    SmiError::Refused {
        place: place.to_owned(),
        command: "show".into(),
        why: format!("there is no client {id}; see `npu-smi list`"),
    }
}

fn report<'a>(
    place: &'a str,
    identity: Option<&'a Value>,
    now: &'a Sample,
    used: &Use,
) -> Report<'a> {
    let clients = now.stats.functions.iter().zip(&used.clients);
    Report {
        schema: "npu-smi-show.v1",
        place,
        time_ms: now.time_ms,
        identity,
        server: now.stats.server,
        interval_us: used.interval_us,
        used: used.device,
        clients: clients.map(|(function, &used)| Described { function, used }).collect(),
    }
}

/// Use and clients, without who and what the server is.
pub(crate) fn brief(now: &Sample, used: &Use, paper: Paper) -> String {
    let rates = &used.device;
    let out = pairs(&[("use", busy(rates)), ("each second", work(rates))], paper);
    out + &clients(&now.stats.functions, &used.clients, paper)
}

fn text(place: &str, identity: &Identity<'_>, now: &Sample, used: &Use, paper: Paper) -> String {
    let rates = &used.device;
    let mut lines = vec![("place", place.to_owned())];
    lines.extend(identity.lines());
    lines.extend([
        ("use", busy(rates)),
        ("each second", work(rates)),
        ("clients", counts(&now.stats.server)),
    ]);
    if rates.power_mw.is_some() {
        lines.push(("power", format!("{} mW (modelled)", maybe(rates.power_mw, short))));
    }
    let mut out = pairs(&lines, paper);
    if !now.stats.functions.is_empty() {
        out += "\n";
        out += &clients(&now.stats.functions, &used.clients, paper);
    }
    out
}

fn busy(rates: &Rates) -> String {
    let Rates { busy_percent, array_percent, vector_percent, dma_percent, .. } = *rates;
    let [busy, array, vector, dma] = [busy_percent, array_percent, vector_percent, dma_percent]
        .map(|value| maybe(value, percent));
    format!("{busy} % busy; of the modelled cycles array {array} %, vector {vector} %, DMA {dma} %")
}

fn work(rates: &Rates) -> String {
    let [jobs, macs] = [rates.jobs, rates.macs].map(short);
    let [read, written] = [rates.dram_read_bytes, rates.dram_written_bytes].map(bytes);
    let copied = maybe(rates.copied_bytes, bytes);
    format!(
        "{jobs} jobs, {macs} MAC, DRAM {read} read, {written} written; copied {copied}; {} failed",
        short(rates.failed)
    )
}

fn counts(server: &Counts) -> String {
    let Counts { clients, accepted, refused, ended, ended_in_flight, .. } = *server;
    format!(
        "{clients} now; {accepted} accepted, {refused} refused, {ended} ended, {ended_in_flight} of these \
         with jobs in flight"
    )
}

fn clients(functions: &[Function], used: &[Rates], paper: Paper) -> String {
    let each = || functions.iter().zip(used);
    let cells = |cell: &dyn Fn(&Function, &Rates) -> String| {
        each().map(|(function, rates)| cell(function, rates)).collect::<Vec<_>>()
    };
    let count = |value: Option<u64>| value.map_or_else(|| UNKNOWN.into(), |n| n.to_string());
    let size = |value: Option<u64>| maybe(value.map(real), bytes);
    let columns = vec![
        Column::numbers("ID", 0, cells(&|function, _| function.client.id.to_string())),
        Column::numbers("USE%", 0, cells(&|_, rates| maybe(rates.busy_percent, percent))),
        Column::numbers("JOBS/s", 3, cells(&|_, rates| short(rates.jobs))),
        Column::numbers("MAC/s", 6, cells(&|_, rates| short(rates.macs))),
        Column::numbers("MEMORY", 7, cells(&|function, _| size(function.mapped_bytes))),
        Column::numbers("COPIED", 8, cells(&|function, _| size(function.copied_bytes))),
        Column::numbers("QUEUED", 4, cells(&|function, _| function.client.in_flight.to_string())),
        Column::numbers("FAILED", 9, cells(&|function, _| short(real(function.failed)))),
        Column::numbers("FAULTS", 5, cells(&|function, _| short(real(function.faults)))),
        Column::numbers("RESETS", 10, cells(&|function, _| count(function.resets))),
        Column::words("STATE", 2, cells(&|function, _| function.client.state.clone())),
        Column::numbers("PID", 11, cells(&|function, _| pid(&function.client))),
        Column::numbers("AGE", 12, cells(&|function, _| age(&function.client))),
        Column::words("PROCESS", 1, cells(&|function, _| function.client.process().to_owned())),
    ];
    table(columns, paper)
}

/// All that is known of one client.
pub(crate) fn client_text(function: &Function, rates: &Rates, paper: Paper) -> String {
    let Function { client, .. } = function;
    let count = |value: Option<u64>| maybe(value.map(real), short);
    let size = |value: Option<u64>| maybe(value.map(real), bytes);
    let owner = format!("{} (pid {}), {} ago", client.process(), pid(client), age(client));
    let mut lines = vec![
        ("client", client.id.to_string()),
        ("process", owner),
        ("state", format!("{}, {} queued", client.state, client.in_flight)),
        ("use", busy(rates)),
        ("each second", work(rates)),
        ("jobs", format!("{} done, {} failed", function.jobs, function.failed)),
        ("commands", format!("{}, {} MAC", function.commands, short(real(function.macs)))),
        ("cycles", format!("{} (modelled)", function.cycles)),
        (
            "DRAM",
            format!(
                "{} read, {} written",
                bytes(real(function.dram_read)),
                bytes(real(function.dram_written))
            ),
        ),
        (
            "memory",
            format!(
                "{} mapped, {} copied",
                size(function.mapped_bytes),
                size(function.copied_bytes)
            ),
        ),
        (
            "power",
            format!("{} mW while it works (modelled)", maybe(function.power_mw.map(real), short)),
        ),
        (
            "objects",
            format!(
                "{} contexts, {} programs, {} tables",
                count(function.contexts),
                count(function.programs),
                count(function.tables)
            ),
        ),
        ("signals", format!("{} kicks, {} interrupts", function.kicks, function.interrupts)),
        ("faults", format!("{}, {} resets", function.faults, count(function.resets))),
        ("saturated", saturation(function.saturation.as_ref())),
        ("traced", function.is_traced.map_or(UNKNOWN, |on| if on { "yes" } else { "no" }).into()),
    ];
    if !function.injected.is_empty() || !function.armed.is_empty() {
        let happened = function.injected.iter().map(|(kind, times)| format!("{kind} x{times}"));
        let happened: Vec<_> = happened.collect();
        lines.push((
            "injected",
            format!("happened: {}; armed: {}", words(&happened), words(&function.armed)),
        ));
    }
    let mut out = pairs(&lines, paper);
    if let Some(queues) = function.queues.as_ref().filter(|queues| !queues.is_empty()) {
        let priority = |queue: &super::reply::Queue| {
            queue.priority.clone().unwrap_or_else(|| UNKNOWN.to_owned())
        };
        let number = |value: Option<u64>| value.map_or(UNKNOWN.to_owned(), |n| n.to_string());
        out += "\n";
        out += &table(
            vec![
                Column::numbers("QUEUE", 0, queues.iter().map(|queue| queue.id.to_string())),
                Column::numbers("CONTEXT", 2, queues.iter().map(|queue| number(queue.context))),
                Column::words("PRIORITY", 1, queues.iter().map(priority)),
                Column::numbers("DEPTH", 4, queues.iter().map(|queue| queue.depth.to_string())),
                Column::numbers(
                    "QUEUED",
                    0,
                    queues.iter().map(|queue| queue.in_flight.to_string()),
                ),
                Column::numbers("VECTOR", 3, queues.iter().map(|queue| number(queue.vector))),
            ],
            paper,
        );
    }
    out.lines().map(|line| cut(line, paper.columns) + "\n").collect()
}

/// How many codes are at an end, or that nobody counts them: none would look the same.
fn saturation(saturation: Option<&Saturation>) -> String {
    let Some(Saturation { is_counted, array, vector }) = saturation else { return UNKNOWN.into() };
    let of = |name: &str, of: &EndCodes| {
        let EndCodes { codes, lowest, highest } = *of;
        let share = |part: u64| percent(100.0 * real(part) / real(codes.max(1)));
        let [lowest, highest] = [lowest, highest].map(|n| format!("{n} ({} %)", share(n)));
        format!("{name} {lowest} lowest, {highest} highest of {codes} codes")
    };
    let counts = format!("{}; {}", of("array", array), of("vector", vector));
    match (is_counted, array.codes.saturating_add(vector.codes)) {
        (true, _) => counts,
        (false, 0) => "not counted; see `npu-smi saturation`".into(),
        (false, _) => format!("no longer counted; {counts}"),
    }
}

fn words(words: &[String]) -> String {
    if words.is_empty() { "nothing".to_owned() } else { words.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::smi::sample::tests::{function, sample};

    #[test]
    fn the_device_and_a_client_fit_from_twenty_columns_on() {
        let before = sample(0, vec![function(7, 0, 0)]);
        let mut busy = function(7, 500_000, 123_456);
        busy.client.process = Some("a-process-with-a-name".into());
        busy.client.state = "quiescing".into();
        busy.queues = Some(vec![super::super::reply::Queue::default()]);
        busy.armed = vec!["slow-dma@1:60000".into()];
        let now = sample(1_000_000, vec![busy]);
        let used = now.since(&before);
        for columns in 20..200 {
            let paper = Paper::plain(columns);
            let device = text("/run/npu.manage", &Identity::new(None), &now, &used, paper);
            let client = client_text(&now.stats.functions[0], &used.clients[0], paper);
            for line in device.lines().chain(client.lines()) {
                assert!(line.chars().count() <= columns, "{columns}: {line}");
            }
            assert!(device.contains("USE%") && client.contains("QUEUED"), "{columns}: {device}");
        }
    }

    #[test]
    fn the_report_has_the_counters_and_the_use_of_each_client() {
        let before = sample(0, vec![]);
        let now = sample(1_000_000, vec![function(7, 250_000, 9)]);
        let used = now.since(&before);
        let value = serde_json::to_value(report("p", None, &now, &used)).unwrap();
        assert_eq!(value["clients"][0]["use"]["busy_percent"], 25.0);
        assert_eq!(
            (&value["clients"][0]["jobs"], &value["clients"][0]["id"]),
            (&9.into(), &7.into())
        );
        assert_eq!(value["identity"], Value::Null);
    }

    #[test]
    fn codes_that_nobody_counts_are_not_told_as_none() {
        let told = |saturation: Saturation| super::saturation(Some(&saturation));
        let off = Saturation::default();
        assert_eq!(told(off), "not counted; see `npu-smi saturation`");
        let array = EndCodes { codes: 200, lowest: 100, highest: 1 };
        let counts = "array 100 (50 %) lowest, 1 (0.5 %) highest of 200 codes; \
                      vector 0 (0 %) lowest, 0 (0 %) highest of 0 codes";
        assert_eq!(told(Saturation { is_counted: true, array, ..off }), counts);
        let stopped = told(Saturation { array, ..off });
        assert_eq!(stopped, format!("no longer counted; {counts}"));
        assert_eq!(super::saturation(None), UNKNOWN, "an older server does not tell");
    }
}
