//! The one way to name a device: `sim[:key=value,..]`, `vfio-user[,patience_ms=N]:PATH`,
//! `pci:0000:00:02.0`.

use crate::error::Error;
use std::time::Duration;

/// A parsed device string.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum DeviceString {
    /// A virtual device in this process, with its options.
    Sim {
        /// What stands behind `sim:`.
        options: String,
    },
    /// A virtual device behind a UNIX socket.
    VfioUser {
        /// Path of the socket: all that stands behind the first colon.
        path: String,
        /// How long the device may take over a request; `None` for the usual.
        patience: Option<Duration>,
    },
    /// A device behind the kernel's VFIO.
    Pci {
        /// Domain, bus, device and function.
        address: String,
    },
}

impl DeviceString {
    /// Reads `text`. Options are checked when the device is opened.
    ///
    /// # Errors
    /// [`Error::DeviceString`] for an unknown kind or a missing part.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let bad = |why: &str| Error::DeviceString { found: text.to_owned(), why: why.to_owned() };
        let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
        // Before the colon, since a path may hold anything.
        let (kind, options) = match kind.split_once(',') {
            Some((kind, options)) => (kind, Some(options)),
            None => (kind, None),
        };
        match kind {
            "sim" if options.is_none() => Ok(Self::Sim { options: rest.to_owned() }),
            "vfio-user" if rest.is_empty() => Err(bad("the path of a socket is missing")),
            "vfio-user" => {
                let patience = options.map(patience).transpose().map_err(bad)?;
                Ok(Self::VfioUser { path: rest.to_owned(), patience })
            }
            _ if options.is_some() => Err(bad("only `vfio-user` has options before the colon")),
            "pci" if rest.is_empty() => Err(bad("the address of a device is missing")),
            "pci" if !is_address(rest) => Err(bad("an address reads like `0000:00:02.0`")),
            "pci" => Ok(Self::Pci { address: rest.to_owned() }),
            _ => Err(bad("it must begin with `sim`, `vfio-user:` or `pci:`")),
        }
    }
}

/// Whether `text` is domain, bus, device and function as the kernel writes them: it becomes part of paths.
fn is_address(text: &str) -> bool {
    let is_lower_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let bytes = text.bytes().zip(*b"xxxx:xx:xx.x");
    text.len() == 12
        && bytes.into_iter().all(|(byte, form)| match form {
            b'x' => is_lower_hex(byte),
            form => byte == form,
        })
}

/// Reads `patience_ms=N`.
fn patience(options: &str) -> Result<Duration, &'static str> {
    let millis = options.strip_prefix("patience_ms=").and_then(|digits| digits.parse().ok());
    let millis = millis.filter(|millis| (1..=3_600_000).contains(millis));
    let want = "before the colon may stand `,patience_ms=N` with 1 to 3600000 milliseconds";
    millis.map(Duration::from_millis).ok_or(want)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_kinds_are_read() {
        let sim = DeviceString::Sim { options: String::new() };
        assert_eq!(DeviceString::parse("sim").unwrap(), sim);
        let sim = DeviceString::Sim { options: "macs=256,mhz=800".into() };
        assert_eq!(DeviceString::parse("sim:macs=256,mhz=800").unwrap(), sim);
        let pci = DeviceString::Pci { address: "0000:00:02.0".into() };
        assert_eq!(DeviceString::parse("pci:0000:00:02.0").unwrap(), pci);
        let path = "/run/a,patience_ms=7:b".to_owned();
        let plain = DeviceString::parse("vfio-user:/run/a,patience_ms=7:b").unwrap();
        assert_eq!(plain, DeviceString::VfioUser { path: path.clone(), patience: None });
        let hasty =
            DeviceString::parse("vfio-user,patience_ms=500:/run/a,patience_ms=7:b").unwrap();
        let patience = Some(Duration::from_millis(500));
        assert_eq!(hasty, DeviceString::VfioUser { path, patience });
        for bad in [
            "sim,patience_ms=5:",
            "vfio-user,patience_ms=0:/a",
            "vfio-user,patience_ms=x:/a",
            "vfio-user,patience=5:/a",
            "",
            "cpu",
            "pci:",
            "pci:00:02.0",
            "pci:0000:00:02.0/",
            "pci:../../00:02.0",
            "pci:0000:00:0A.0",
            "vfio-user",
            "vfio-user:",
        ] {
            let error = DeviceString::parse(bad).unwrap_err();
            assert!(matches!(error, Error::DeviceString { .. }), "{bad}");
        }
    }
}
