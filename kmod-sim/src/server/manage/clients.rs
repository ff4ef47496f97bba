//! Who is connected, what they have done, and what the device is.

use crate::inject::Kind;
use crate::pci::subsystem;
use crate::report::{QueueReport, Report};
use crate::server::roster::{Facts, Roster, Seen};
use npu_uapi::queue::{power, priority_name};
use npu_uapi::reg::Register;
use npu_uapi::regs::{Status, pci, state};
use npu_uapi::telemetry::{EndCodes, Saturation};
use serde_json::{Map, Value, json};
use std::time::{Instant, UNIX_EPOCH};

/// `list`.
pub(super) fn list(roster: &Roster) -> Value {
    let seen = roster.functions(None);
    let functions = seen.iter().map(|seen| Value::Object(about(seen, &seen.function.report())));
    json!({ "functions": functions.collect::<Vec<_>>() })
}

fn about(seen: &Seen, report: &Report) -> Map<String, Value> {
    let since = seen.since.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let in_flight: u32 = report.queues.iter().map(|queue| queue.in_flight).sum();
    Map::from_iter([
        ("id".to_owned(), json!(seen.id)),
        ("pid".to_owned(), json!(seen.peer.map(|(pid, _)| pid))),
        ("uid".to_owned(), json!(seen.peer.map(|(_, uid)| uid))),
        ("process".to_owned(), json!(seen.process.as_deref())),
        ("since_ms".to_owned(), json!(u64::try_from(since).unwrap_or(u64::MAX))),
        ("state".to_owned(), json!(state::name(report.status.get(Status::STATE)))),
        ("in_flight".to_owned(), json!(in_flight)),
    ])
}

/// `stats`.
pub(super) fn stats(roster: &Roster) -> Value {
    let seen = roster.functions(None);
    // Of one moment: what comes between two looks at the clock would be use that there was not, or lacked.
    let now = Instant::now();
    let functions = seen.iter().map(|seen| Value::Object(function(seen, now)));
    let functions: Vec<Value> = functions.collect();
    let (clients, counts) = roster.counts();
    json!({
        "clients": clients,
        "accepted": counts.accepted,
        "refused": counts.refused,
        "ended": counts.ended,
        "ended_in_flight": counts.ended_in_flight,
        "threads": threads(),
        "time_us": uptime_us(&roster.facts, now),
        "functions": functions,
    })
}

fn function(seen: &Seen, now: Instant) -> Map<String, Value> {
    let report = seen.function.report_at(now);
    let mut about = about(seen, &report);
    let c = &report.counters;
    let clock_khz = seen.function.limits().clock_khz;
    let counts = [
        ("cycles", c.cycles),
        ("array_cycles", c.array_cycles),
        ("vector_cycles", c.vector_cycles),
        ("dma_cycles", c.dma_cycles),
        ("jobs", c.jobs),
        ("failed", c.failed),
        ("commands", c.commands),
        ("macs", c.macs),
        ("dram_read", c.dram_read),
        ("dram_written", c.dram_written),
        ("kicks", c.kicks),
        ("interrupts", c.interrupts),
        ("faults", c.faults),
        ("copied_bytes", c.bounced_bytes),
        ("mapped_bytes", report.mapped_bytes),
        ("energy_uj", c.energy_uj()),
        ("power_mw", c.power_mw(clock_khz)),
        ("busy_us", report.busy_ns / 1000),
        ("resets", report.resets.into()),
        ("heartbeat", report.heartbeat),
    ];
    about.extend(counts.map(|(name, count)| (name.to_owned(), json!(count))));
    for (name, count) in
        [("contexts", report.contexts), ("programs", report.programs), ("tables", report.tables)]
    {
        about.insert(name.to_owned(), json!(count));
    }
    let queues: Vec<Value> = report.queues.iter().map(queue).collect();
    about.insert("queues".into(), queues.into());
    let injector = seen.function.injector();
    let happened = Kind::ALL.iter().map(|&kind| (kind, injector.happened(kind)));
    let happened = happened.filter(|&(_, times)| times > 0);
    let happened: Map<String, Value> =
        happened.map(|(kind, times)| (kind.name().to_owned(), json!(times))).collect();
    about.insert("injected".into(), Value::Object(happened));
    about.insert("armed".into(), json!(injector.armed()));
    about.insert("is_traced".into(), json!(report.is_traced));
    about.insert("saturation".into(), saturation(&report.saturation));
    about
}

fn saturation(saturation: &Saturation) -> Value {
    let end_codes = |EndCodes { codes, lowest, highest }: EndCodes| json!({ "codes": codes, "lowest": lowest, "highest": highest });
    json!({
        "is_counted": saturation.is_counted != 0,
        "array": end_codes(saturation.array),
        "vector": end_codes(saturation.vector),
    })
}

fn queue(queue: &QueueReport) -> Value {
    let QueueReport { id, context, priority, vector, depth, in_flight } = *queue;
    json!({
        "id": id,
        "context": context,
        "priority": priority.and_then(priority_name),
        "vector": vector,
        "depth": depth,
        "in_flight": in_flight,
    })
}

/// Threads of this process; `null` where the system does not tell.
fn threads() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix("Threads:")?.trim().parse().ok())
}

fn uptime_us(facts: &Facts, now: Instant) -> u64 {
    let uptime = now.saturating_duration_since(facts.started);
    u64::try_from(uptime.as_micros()).unwrap_or(u64::MAX)
}

/// `show`.
pub(super) fn show(roster: &Roster) -> Value {
    let facts = &roster.facts;
    let limits = &facts.config.limits;
    let version = |version: u16| format!("{}.{}", version >> 8, version & 0xff);
    let isa = limits.isa_version;
    let (subsystem_vendor, subsystem_device) = subsystem();
    let comm = std::fs::read_to_string("/proc/self/comm").ok();
    json!({
        "server": {
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "process": comm.as_deref().map(str::trim_end),
            "uptime_us": uptime_us(facts, Instant::now()),
            "clients": roster.len(),
            "max_clients": facts.max_clients,
        },
        "pci": {
            "vendor": pci::VENDOR,
            "device": pci::DEVICE,
            "class": pci::CLASS,
            "revision": crate::pci::REVISION,
            "subsystem_vendor": subsystem_vendor,
            "subsystem_device": subsystem_device,
        },
        "abi": { "low": version(facts.config.abi.0), "high": version(facts.config.abi.1) },
        "isa": format!("{}.{}", isa >> 16, isa & 0xffff),
        "firmware": { "version": env!("CARGO_PKG_VERSION"), "slot": 0, "slots": 1 },
        "platform": "emulator",
        "kernels": crate::kernel::Isa::detect().ok().map(crate::kernel::Isa::name),
        "workers": facts.workers,
        "clock_khz": limits.clock_khz,
        "macs_per_cycle": limits.macs_per_cycle,
        "sram_bytes": limits.sram_bytes,
        "sram_bytes_per_cycle": limits.sram_bytes_per_cycle,
        "dram_bytes_per_cycle": limits.dram_bytes_per_cycle,
        "dma_channels": limits.dma_channels,
        "limits": {
            "slots": limits.slots,
            "contexts": limits.contexts,
            "queues": limits.queues,
            "programs": limits.programs,
            "tables": limits.tables,
            "ring_entries": 1_u64 << limits.ring_log2.min(32),
            "vectors": limits.vectors,
            "program_bytes": limits.program_bytes,
            "commands": limits.commands,
            "command_macs": limits.command_macs,
            "program_macs": limits.program_macs,
            "program_traffic": limits.program_traffic,
            "features": limits.features,
        },
        "hang_ms": u64::try_from(facts.config.hang.as_millis()).unwrap_or(u64::MAX),
        "power_model": {
            "static_mw": power::STATIC_MW,
            "pj_per_mac": power::PJ_PER_MAC,
            "pj_per_dram_byte": power::PJ_PER_DRAM_BYTE,
        },
    })
}
