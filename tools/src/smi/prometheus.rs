//! Counters in Prometheus' text format, version 0.0.4.
//!
//! Counters of a client begin anew where its function is reset, which Prometheus takes for a restart. A
//! client that has left is no longer told.

use super::figure::real;
use super::reply::{EndCodes, Function, Queue};
use super::sample::Sample;
use serde_json::Value;

/// A client's metric: name, type, help, factor to the base unit, and where it is.
type OfClient = (&'static str, &'static str, &'static str, f64, fn(&Function) -> Option<u64>);

const OF_CLIENT: &[OfClient] = &[
    ("busy_seconds_total", "counter", "Time in which a command was executed.", 1e-6, |f| f.busy_us),
    ("cycles_total", "counter", "Modelled cycles of its jobs.", 1.0, |f| Some(f.cycles)),
    ("array_cycles_total", "counter", "Of these, with work for the MAC array.", 1.0, |f| {
        f.array_cycles
    }),
    ("vector_cycles_total", "counter", "Of these, with work for the vector unit.", 1.0, |f| {
        f.vector_cycles
    }),
    ("dma_cycles_total", "counter", "Of these, with work for the DMA.", 1.0, |f| f.dma_cycles),
    ("jobs_total", "counter", "Jobs that ended well.", 1.0, |f| Some(f.jobs)),
    ("failed_total", "counter", "Queue entries that ended otherwise.", 1.0, |f| Some(f.failed)),
    ("commands_total", "counter", "Commands executed.", 1.0, |f| Some(f.commands)),
    ("macs_total", "counter", "Multiply-accumulates.", 1.0, |f| Some(f.macs)),
    ("dram_read_bytes_total", "counter", "Modelled bytes read from DRAM.", 1.0, |f| {
        Some(f.dram_read)
    }),
    ("dram_written_bytes_total", "counter", "Modelled bytes written to DRAM.", 1.0, |f| {
        Some(f.dram_written)
    }),
    ("copied_bytes_total", "counter", "Bytes of slots that the device had to copy.", 1.0, |f| {
        f.copied_bytes
    }),
    ("energy_joules_total", "counter", "Modelled energy of its work.", 1e-6, |f| f.energy_uj),
    ("kicks_total", "counter", "Writes of the KICK register.", 1.0, |f| Some(f.kicks)),
    ("interrupts_total", "counter", "Interrupts raised.", 1.0, |f| Some(f.interrupts)),
    ("faults_total", "counter", "Faults recorded.", 1.0, |f| Some(f.faults)),
    ("resets_total", "counter", "Resets.", 1.0, |f| f.resets),
    (
        "saturation_counted",
        "gauge",
        "Whether output codes at the ends of their range are counted.",
        1.0,
        |f| f.saturation.map(|saturation| saturation.is_counted.into()),
    ),
    ("mapped_bytes", "gauge", "Memory that the device may reach.", 1.0, |f| f.mapped_bytes),
    ("in_flight", "gauge", "Queue entries submitted and not answered.", 1.0, |f| {
        Some(f.client.in_flight)
    }),
];

/// Everything that `now` and the identity say.
pub(crate) fn text(now: &Sample, identity: Option<&Value>) -> String {
    let mut out = String::new();
    let server = &now.stats.server;
    family(&mut out, "npu_up", "gauge", "Whether the server answers.", [(labels(&[]), 1.0)]);
    if let Some(identity) = identity {
        let field = |path: &str| match identity.pointer(path) {
            Some(Value::String(text)) => text.clone(),
            _ => String::new(),
        };
        let (version, isa) = (field("/server/version"), field("/isa"));
        let (abi, kernels) = (field("/abi/high"), field("/kernels"));
        let labels =
            labels(&[("version", &version), ("abi", &abi), ("isa", &isa), ("kernels", &kernels)]);
        family(&mut out, "npu_info", "gauge", "What the server is.", [(labels, 1.0)]);
    }
    if let Some(time_us) = server.time_us {
        let uptime = [(String::new(), real(time_us) * 1e-6)];
        family(&mut out, "npu_uptime_seconds", "gauge", "Time since the server started.", uptime);
    }
    for (name, kind, help, count) in [
        ("npu_clients", "gauge", "Clients now.", server.clients),
        ("npu_clients_accepted_total", "counter", "Clients accepted.", server.accepted),
        (
            "npu_clients_refused_total",
            "counter",
            "Clients refused for want of room.",
            server.refused,
        ),
        ("npu_clients_ended_total", "counter", "Clients that have left.", server.ended),
        (
            "npu_clients_ended_in_flight_total",
            "counter",
            "Of these, with entries not answered.",
            server.ended_in_flight,
        ),
    ] {
        family(&mut out, name, kind, help, [(String::new(), real(count))]);
    }
    for &(name, kind, help, unit, of) in OF_CLIENT {
        let values = now.stats.functions.iter().filter_map(|function| {
            Some((client_labels(function, &[]), real(of(function)?) * unit))
        });
        family(&mut out, &format!("npu_client_{name}"), kind, help, values);
    }
    end_codes(&mut out, &now.stats.functions);
    let queues = |value: fn(&Queue) -> u64| {
        now.stats.functions.iter().flat_map(move |function| {
            function.queues.iter().flatten().map(move |queue| {
                let id = queue.id.to_string();
                let priority = queue.priority.as_deref().unwrap_or("admin");
                let labels = client_labels(function, &[("queue", &id), ("priority", priority)]);
                (labels, real(value(queue)))
            })
        })
    };
    let depth = queues(|queue| queue.depth);
    family(&mut out, "npu_queue_depth", "gauge", "Entries of a queue's ring.", depth);
    let used = queues(|queue| queue.in_flight);
    family(&mut out, "npu_queue_in_flight", "gauge", "Entries of a queue not answered.", used);
    let injected = now.stats.functions.iter().flat_map(|function| {
        function
            .injected
            .iter()
            .map(move |(kind, &times)| (client_labels(function, &[("kind", kind)]), real(times)))
    });
    family(&mut out, "npu_client_injected_total", "counter", "Injected faults.", injected);
    out
}

/// Output codes that were looked at, and those at an end; nothing of a client where none ever were, since
/// zeros would say that none saturate.
fn end_codes(out: &mut String, functions: &[Function]) {
    let engines = functions.iter().flat_map(|function| {
        let saturation = function.saturation.unwrap_or_default();
        let engines = [("array", saturation.array), ("vector", saturation.vector)];
        let is_told = saturation.is_counted || engines.iter().any(|(_, of)| of.codes > 0);
        engines.map(|(engine, of)| (function, engine, of)).into_iter().filter(move |_| is_told)
    });
    let engines: Vec<_> = engines.collect();
    let counted = engines.iter().map(|&(function, engine, EndCodes { codes, .. })| {
        (client_labels(function, &[("engine", engine)]), real(codes))
    });
    let help = "Output codes that were looked at for saturation.";
    family(out, "npu_client_counted_codes_total", "counter", help, counted);
    let at_ends =
        engines.iter().flat_map(|&(function, engine, EndCodes { lowest, highest, .. })| {
            [("lowest", lowest), ("highest", highest)].map(|(end, count)| {
                (client_labels(function, &[("engine", engine), ("end", end)]), real(count))
            })
        });
    let help = "Of these, codes at an end of their range.";
    family(out, "npu_client_saturated_codes_total", "counter", help, at_ends);
}

/// A metric and its values; nothing where it has none.
fn family(
    out: &mut String,
    name: &str,
    kind: &str,
    help: &str,
    values: impl IntoIterator<Item = (String, f64)>,
) {
    let lines: String =
        values.into_iter().map(|(labels, value)| format!("{name}{labels} {value}\n")).collect();
    if !lines.is_empty() {
        *out += &format!("# HELP {name} {help}\n# TYPE {name} {kind}\n{lines}");
    }
}

fn client_labels(function: &Function, more: &[(&str, &str)]) -> String {
    let client = &function.client;
    let (id, pid) =
        (client.id.to_string(), client.pid.map_or(String::new(), |pid| pid.to_string()));
    let process = client.process.as_deref().unwrap_or("");
    let mut all = vec![("client", id.as_str()), ("pid", &pid), ("process", process)];
    all.extend(more);
    labels(&all)
}

fn labels(labels: &[(&str, &str)]) -> String {
    if labels.is_empty() {
        return String::new();
    }
    let pairs = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value)));
    format!("{{{}}}", pairs.collect::<Vec<_>>().join(","))
}

/// A process may call itself anything.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::smi::reply::Saturation;
    use crate::smi::sample::tests::{function, sample};

    #[test]
    fn saturation_is_told_by_engine_and_end_where_it_is_counted() {
        let mut one = function(3, 0, 1);
        one.saturation = Some(Saturation::default());
        let off = text(&sample(1, vec![one.clone()]), None);
        assert!(
            off.contains("npu_client_saturation_counted{client=\"3\",pid=\"\",process=\"\"} 0\n")
        );
        assert!(!off.contains("saturated_codes"), "{off}");
        let array = EndCodes { codes: 9, lowest: 4, highest: 2 };
        one.saturation = Some(Saturation { is_counted: true, array, ..Saturation::default() });
        let on = text(&sample(1, vec![one]), None);
        let line = r#"npu_client_saturated_codes_total{client="3",pid="",process="",engine="array",end="highest"} 2"#;
        assert!(on.contains(line), "{on}");
        assert_eq!(on.matches("npu_client_counted_codes_total{").count(), 2);
    }

    #[test]
    fn counters_are_in_base_units_with_labels_that_cannot_break_out() {
        let mut odd = function(3, 1_500_000, 8);
        odd.client.process = Some("a\"b\\c\nd".into());
        odd.client.pid = Some(12);
        let text = text(&sample(2_500_000, vec![odd]), None);
        assert!(text.contains("npu_uptime_seconds 2.5\n"), "{text}");
        let line = r#"npu_client_busy_seconds_total{client="3",pid="12",process="a\"b\\c\nd"} 1.5"#;
        assert!(text.contains(line), "{text}");
        assert!(!text.contains("npu_queue_depth"), "a family without values is left out");
        assert_eq!(text.matches("# TYPE npu_client_jobs_total counter").count(), 1);
    }
}
