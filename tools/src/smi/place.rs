//! Where the server is that a command is for.
//!
//! `--socket`, else the socket that goes with `--device`, else `NPU_MANAGE`, else what `NPU_DEVICE` goes
//! with, else the first of a few places that has one, else the management function on the PCI bus.

use super::error::SmiError;
use libnpu::pci::{self, Found};
use npu_uapi::regs::pci::MANAGER;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// The name that a server's management socket has in the places that are looked at.
const USUAL_NAME: &str = "npu.manage";

/// What is connected to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Target {
    /// A management socket.
    Socket(PathBuf),
    /// A management function, as a device string.
    Function(String),
}

/// What the command line says about the server.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Place {
    /// The management socket, as behind `npu-sim --manage`; or a management function, in a guest as
    /// `pci:0000:00:03.0`, else as `vfio-user:PATH`
    #[arg(long, global = true, value_name = "PATH", env = "NPU_MANAGE")]
    socket: Option<PathBuf>,

    /// The device as a driver names it; for `vfio-user:PATH` the management socket is looked for at PATH with
    /// the extension `manage`
    #[arg(long, global = true, value_name = "STRING")]
    device: Option<String>,
}

impl Place {
    /// The device that is named, here or in the environment.
    pub(crate) fn device(&self) -> Option<String> {
        self.device.clone().or_else(|| std::env::var("NPU_DEVICE").ok())
    }

    /// What is meant.
    ///
    /// # Errors
    /// None is named and none found, or the device has none.
    pub(crate) fn find(&self) -> Result<Target, SmiError> {
        if let Some(device) = &self.device {
            return of_device(device).map(Target::Socket);
        }
        if let Some(path) = &self.socket {
            return Ok(named(path));
        }
        let beside = std::env::var("NPU_DEVICE").ok().and_then(|name| of_device(&name).ok());
        if let Some(path) = beside {
            return Ok(Target::Socket(path));
        }
        let looked = usual_places();
        match looked.iter().find(|path| is_socket(path)) {
            Some(path) => trusted(path).map(Target::Socket),
            None => on_the_bus(pci::list().unwrap_or_default(), looked),
        }
    }
}

/// A path, or the device string of a management function where no file is called so.
fn named(path: &Path) -> Target {
    let text = path.to_str().unwrap_or_default();
    let is_device = ["pci:", "vfio-user:", "vfio-user,"].iter().any(|kind| text.starts_with(kind));
    match is_device && !path.exists() {
        true => Target::Function(text.to_owned()),
        false => Target::Socket(path.to_owned()),
    }
}

/// The management function among what the PCI bus has: what a guest has instead of a socket.
fn on_the_bus(found: Vec<Found>, looked: Vec<PathBuf>) -> Result<Target, SmiError> {
    let managers = || found.iter().filter(|found| found.device == MANAGER);
    let device = Found::device_string;
    if let Some(free) = managers().find(|found| found.obstacle.is_none()) {
        return Ok(Target::Function(device(free)));
    }
    Err(match managers().find_map(|found| Some((found, found.obstacle.as_ref()?))) {
        Some((found, why)) => SmiError::Unopened { device: device(found), why: why.to_string() },
        None => SmiError::Nowhere { looked },
    })
}

/// Where a server may listen without being named.
fn usual_places() -> Vec<PathBuf> {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").filter(|folder| !folder.is_empty());
    let folders = runtime.map(PathBuf::from).into_iter();
    let folders = folders.chain([PathBuf::from("/run"), std::env::temp_dir()]);
    folders.map(|folder| folder.join(USUAL_NAME)).collect()
}

fn is_socket(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.file_type().is_socket())
}

/// A socket in a folder that anybody may write is used only if it is the user's own or root's.
fn trusted(path: &Path) -> Result<PathBuf, SmiError> {
    let owner = path.metadata().map_or(0, |metadata| metadata.uid());
    if owner == 0 || owner == nix::unistd::geteuid().as_raw() {
        Ok(path.to_owned())
    } else {
        Err(SmiError::Stranger { path: path.to_owned(), owner })
    }
}

/// The management socket beside the socket of a device.
fn of_device(device: &str) -> Result<PathBuf, SmiError> {
    let unmanaged = |why: &str| SmiError::Unmanaged { device: device.to_owned(), why: why.into() };
    let (scheme, path) = device.split_once(':').unwrap_or((device, ""));
    match scheme.split(',').next() {
        Some("vfio-user") if !path.is_empty() => Ok(Path::new(path).with_extension("manage")),
        Some("vfio-user") => Err(unmanaged("it names no socket; write vfio-user:PATH")),
        Some("sim") => Err(unmanaged(
            "`sim` is in the process that uses it; give devices a process of their own with `npu-sim`",
        )),
        Some("pci") => Err(unmanaged(
            "name the management function beside it with --socket pci:ADDRESS, or name nothing",
        )),
        _ => Err(unmanaged("only vfio-user:PATH has one")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use libnpu::pci::Obstacle;
    use npu_uapi::regs::pci::{DEVICE, VENDOR};

    #[test]
    fn a_device_string_leads_to_the_socket_beside_it() {
        for name in ["vfio-user:/run/npu.sock", "vfio-user,patience_ms=5:/run/npu.sock"] {
            assert_eq!(of_device(name).unwrap(), Path::new("/run/npu.manage"));
        }
        for (name, why) in [
            ("sim:macs=256", "process"),
            ("vfio-user", "PATH"),
            ("pci:0000:00:02.0", "--socket pci:"),
            ("other", "only"),
        ] {
            let error = of_device(name).unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
        }
    }

    #[test]
    fn a_management_function_is_named_as_a_device() {
        for function in ["pci:0000:00:03.0", "vfio-user:/run/m", "vfio-user,patience_ms=5:/run/m"] {
            assert_eq!(named(Path::new(function)), Target::Function(function.into()));
        }
        assert_eq!(named(Path::new("/run/npu.manage")), Target::Socket("/run/npu.manage".into()));
    }

    #[test]
    fn where_there_is_no_socket_the_bus_is_looked_at() {
        let found = |device, obstacle| Found {
            address: "0000:00:03.0".into(),
            vendor: VENDOR,
            device,
            driver: Some("vfio-pci".into()),
            group: Some(3),
            obstacle,
        };
        let function = "pci:0000:00:03.0";
        let looked = || vec![PathBuf::from("/run/npu.manage")];
        let target = on_the_bus(vec![found(DEVICE, None), found(MANAGER, None)], looked());
        assert_eq!(target.unwrap(), Target::Function(function.into()));
        let blocked = vec![found(MANAGER, Some(Obstacle::NoIommu))];
        let error = on_the_bus(blocked, looked()).unwrap_err().to_string();
        assert!(error.contains(function) && !error.contains("/run/npu.manage"), "{error}");
        let error = on_the_bus(vec![found(DEVICE, None)], looked()).unwrap_err().to_string();
        assert!(error.contains("/run/npu.manage"), "{error}");
    }

    #[test]
    fn a_socket_of_somebody_else_is_not_used_unasked() {
        // The root folder belongs to root, whose sockets are trusted.
        assert!(trusted(Path::new("/")).is_ok());
        let error = SmiError::Stranger { path: "/tmp/npu.manage".into(), owner: 7 };
        assert!(error.to_string().contains("user 7"));
    }
}
