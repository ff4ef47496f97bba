//! What a server says of itself and its devices (`show`), as lines of a report.

use super::figure::{self, UNKNOWN, bytes, real};
use serde_json::Value;
use std::time::Duration;

/// The reply to `show`, or that there is none.
#[derive(Clone, Debug)]
pub(crate) struct Identity<'a>(Option<&'a Value>);

impl<'a> Identity<'a> {
    pub(crate) fn new(reply: Option<&'a Value>) -> Self {
        Self(reply)
    }

    /// The field at `path`, as text.
    fn text(&self, path: &str) -> String {
        match self.0.and_then(|reply| reply.pointer(path)) {
            None | Some(Value::Null) => UNKNOWN.to_owned(),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        }
    }

    fn number(&self, path: &str) -> Option<u64> {
        self.0?.pointer(path)?.as_u64()
    }

    fn hex(&self, path: &str) -> String {
        self.number(path).map_or_else(|| UNKNOWN.to_owned(), |value| format!("{value:04x}"))
    }

    fn bytes(&self, path: &str) -> String {
        figure::maybe(self.number(path).map(real), bytes)
    }

    /// Name and value of each line.
    pub(crate) fn lines(&self) -> Vec<(&'static str, String)> {
        if self.0.is_none() {
            return vec![("device", "this npu-sim is too old to say what it is".to_owned())];
        }
        let uptime = self.number("/server/uptime_us").map(Duration::from_micros);
        let uptime = uptime.map_or_else(|| UNKNOWN.to_owned(), figure::age);
        let mhz = figure::maybe(self.number("/clock_khz").map(|khz| real(khz) / 1e3), |mhz| {
            format!("{mhz:.0}")
        });
        vec![
            (
                "server",
                format!(
                    "{} {}, pid {}, up {uptime}, at most {} clients",
                    self.text("/server/process"),
                    self.text("/server/version"),
                    self.text("/server/pid"),
                    self.text("/server/max_clients"),
                ),
            ),
            (
                "device",
                format!(
                    "{} {}:{}, ABI {} to {}, commands {}, firmware {} (slot {} of {})",
                    self.text("/platform"),
                    self.hex("/pci/vendor"),
                    self.hex("/pci/device"),
                    self.text("/abi/low"),
                    self.text("/abi/high"),
                    self.text("/isa"),
                    self.text("/firmware/version"),
                    self.text("/firmware/slot"),
                    self.text("/firmware/slots"),
                ),
            ),
            (
                "sizes",
                format!(
                    "{} MAC a cycle at {mhz} MHz, SRAM {} ({} a cycle), DRAM {} a cycle, {} DMA channels",
                    self.text("/macs_per_cycle"),
                    self.bytes("/sram_bytes"),
                    self.bytes("/sram_bytes_per_cycle"),
                    self.bytes("/dram_bytes_per_cycle"),
                    self.text("/dma_channels"),
                ),
            ),
            (
                "computes",
                format!(
                    "{} kernels on {} threads; a job is ended after {} ms without progress",
                    self.text("/kernels"),
                    self.text("/workers"),
                    self.text("/hang_ms"),
                ),
            ),
        ]
    }

    /// What a title has room for: the array and its clock.
    pub(crate) fn short(&self) -> Option<String> {
        let (macs, khz) = (self.number("/macs_per_cycle")?, self.number("/clock_khz")?);
        Some(format!("{macs} MAC at {} MHz", khz / 1000))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_not_said_is_a_dash() {
        let reply = json!({"server": {"version": "0.1.0", "pid": 7}, "clock_khz": 800_000,
            "pci": {"vendor": 0x1de5, "device": 0x4e50}, "macs_per_cycle": 256});
        let identity = Identity::new(Some(&reply));
        let lines = identity.lines();
        assert!(lines[0].1.starts_with("- 0.1.0, pid 7, up -"), "{lines:?}");
        assert!(lines[1].1.starts_with("- 1de5:4e50"), "{lines:?}");
        assert_eq!(identity.short().unwrap(), "256 MAC at 800 MHz");
        assert!(Identity::new(None).lines()[0].1.contains("too old"));
    }
}
