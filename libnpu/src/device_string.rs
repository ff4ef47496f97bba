//! The one way to name a device: `sim[:key=value,..]`, `vfio-user:PATH`, `pci:0000:00:02.0`.

use crate::error::Error;

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
        /// Path of the socket.
        path: String,
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
        match kind {
            "sim" => Ok(Self::Sim { options: rest.to_owned() }),
            "vfio-user" if rest.is_empty() => Err(bad("the path of a socket is missing")),
            "vfio-user" => Ok(Self::VfioUser { path: rest.to_owned() }),
            "pci" if rest.is_empty() => Err(bad("the address of a device is missing")),
            "pci" => Ok(Self::Pci { address: rest.to_owned() }),
            _ => Err(bad("it must begin with `sim`, `vfio-user:` or `pci:`")),
        }
    }
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
        for bad in ["", "cpu", "pci:", "vfio-user", "vfio-user:"] {
            let error = DeviceString::parse(bad).unwrap_err();
            assert!(matches!(error, Error::DeviceString { .. }), "{bad}");
        }
    }
}
