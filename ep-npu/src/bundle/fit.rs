//! Whether what was compiled for one device runs on another; and the line that a model carries to say for which.

use super::VERSION;
use npu_uapi::limits::Limits;
use zerocopy::{FromBytes, IntoBytes};

/// How a device suits what was compiled for another.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Fit {
    /// It is the same, or one that differs in nothing.
    Same,
    /// It runs the programs, which could be better ones.
    Runs,
    /// It does not, for this reason.
    No(String),
}

impl Fit {
    /// What was compiled for `wanted`, on a device that is `found`.
    pub fn of(wanted: &Limits, found: &Limits) -> Self {
        if wanted == found {
            return Self::Same;
        }
        let [want_isa, isa] = [wanted, found].map(|limits| limits.isa_version);
        let version = |isa: u32| format!("{}.{}", isa >> 16, isa & 0xffff);
        if wanted.isa_major() != found.isa_major() || want_isa > isa {
            let (want, found) = (version(want_isa), version(isa));
            return Self::No(format!("it has command set {found}, the programs are of {want}"));
        }
        let missing = wanted.features & !found.features;
        if missing != 0 {
            return Self::No(format!("it lacks the features {missing:#x}"));
        }
        let bounds = [
            ("bytes of SRAM", wanted.sram_bytes, found.sram_bytes),
            ("slots", wanted.slots.into(), found.slots.into()),
            ("bytes of a program", wanted.program_bytes, found.program_bytes),
            ("commands of a program", wanted.commands.into(), found.commands.into()),
            ("multiply-accumulates of a command", wanted.command_macs, found.command_macs),
            ("multiply-accumulates of a program", wanted.program_macs, found.program_macs),
            ("bytes moved by a program", wanted.program_traffic, found.program_traffic),
        ];
        match bounds.iter().find(|(_, want, found)| want > found) {
            Some((what, want, found)) => {
                Self::No(format!("it has {found} {what}, the programs were compiled for {want}"))
            }
            None => Self::Runs,
        }
    }

    /// As [`Fit::of`], from the line that [`line()`] wrote.
    pub fn of_line(line: &str, found: &Limits) -> Self {
        match parse(line) {
            Ok(wanted) => Self::of(&wanted, found),
            Err(why) => Self::No(why),
        }
    }
}

/// What a compiled model says of itself: the version of its bundles, and the device they are for.
pub fn line(limits: &Limits) -> String {
    let hex: String = limits.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    let (isa, macs, sram) = (limits.isa_version, limits.macs_per_cycle, limits.sram_bytes);
    format!(
        "npu;bundle={VERSION};isa={}.{};macs={macs};sram={sram};limits={hex}",
        isa >> 16,
        isa & 0xffff
    )
}

fn parse(line: &str) -> Result<Limits, String> {
    let field = |name: &str| line.split(';').find_map(|part| part.strip_prefix(name));
    let version = field("bundle=").and_then(|text| text.parse::<u16>().ok());
    if !line.starts_with("npu;") || version.is_none() {
        return Err("what it says of its device is not of this provider".into());
    }
    if version != Some(VERSION) {
        let version = version.unwrap_or_default();
        return Err(format!("its bundles are of version {version}, this library reads {VERSION}"));
    }
    let hex = field("limits=").unwrap_or_default().as_bytes();
    let is_hex = hex.len() == 2 * size_of::<Limits>() && hex.iter().all(u8::is_ascii_hexdigit);
    let digit = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok();
    let bytes: Option<Vec<u8>> = hex.chunks(2).map(digit).collect();
    let limits = bytes.filter(|_| is_hex).and_then(|bytes| Limits::read_from_bytes(&bytes).ok());
    limits.ok_or_else(|| "its limits cannot be read".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICE: Limits = Limits::REFERENCE;

    #[test]
    fn the_same_a_larger_and_a_smaller_device_are_told_apart() {
        assert_eq!(Fit::of(&DEVICE, &DEVICE), Fit::Same);
        let larger = Limits { sram_bytes: DEVICE.sram_bytes * 2, ..DEVICE };
        assert_eq!(Fit::of(&DEVICE, &larger), Fit::Runs);
        assert_eq!(Fit::of(&DEVICE, &Limits { macs_per_cycle: 256, ..DEVICE }), Fit::Runs);
        let smaller = Limits { sram_bytes: DEVICE.sram_bytes / 2, ..DEVICE };
        let Fit::No(why) = Fit::of(&DEVICE, &smaller) else { panic!("half the SRAM fits") };
        assert_eq!(why, "it has 1048576 bytes of SRAM, the programs were compiled for 2097152");
    }

    #[test]
    fn another_command_set_does_not_fit() {
        for isa_version in [DEVICE.isa_version + (1 << 16), DEVICE.isa_version + 1] {
            let newer = Limits { isa_version, ..DEVICE };
            assert!(
                matches!(Fit::of(&newer, &DEVICE), Fit::No(why) if why.contains("command set"))
            );
        }
        let minor = Limits { isa_version: DEVICE.isa_version + 1, ..DEVICE };
        assert_eq!(Fit::of(&DEVICE, &minor), Fit::Runs);
        let featured = Limits { features: 1, ..DEVICE };
        assert!(matches!(Fit::of(&featured, &DEVICE), Fit::No(_)));
    }

    #[test]
    fn the_line_says_what_the_limits_do_and_nonsense_fits_nothing() {
        assert_eq!(Fit::of_line(&line(&DEVICE), &DEVICE), Fit::Same);
        let good = line(&DEVICE);
        let cut = &good[..good.len() - 1];
        let newer = good.replace("bundle=3", "bundle=4");
        for bad in [
            "",
            "npu",
            "npu;bundle=3",
            "other;bundle=3;limits=00",
            cut,
            &newer,
            "npu;bundle=3;limits=ü",
        ] {
            assert!(matches!(Fit::of_line(bad, &DEVICE), Fit::No(_)), "{bad}");
        }
    }
}
