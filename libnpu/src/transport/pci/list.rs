//! What NPUs the PCI bus has, and for each whether it can be opened.

use super::Obstacle;
use npu_uapi::regs::pci::{DEVICE, MANAGER, VENDOR};
use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// The driver that a device must be bound to.
const DRIVER: &str = "vfio-pci";
/// The kernel's name for a group that is none.
const NO_IOMMU_GROUP: &str = "vfio-noiommu";
/// Drivers of other devices of a group that leave their memory alone, as the kernel sees it.
const HARMLESS: [&str; 3] = [DRIVER, "pci-stub", "pcieport"];

/// A device on the PCI bus.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Found {
    /// Domain, bus, device and function, such as `0000:00:02.0`.
    pub address: String,
    /// Its vendor.
    pub vendor: u16,
    /// Its kind: [`DEVICE`] or, for a management function, [`MANAGER`].
    pub device: u16,
    /// The driver that has it.
    pub driver: Option<String>,
    /// Its IOMMU group.
    pub group: Option<u32>,
    /// Why it cannot be opened now.
    pub obstacle: Option<Obstacle>,
}

impl Found {
    /// The string that opens it.
    pub fn device_string(&self) -> String {
        format!("pci:{}", self.address)
    }
}

/// The NPUs of this machine, in order of their addresses.
///
/// Whether a group is in use is found by opening it for a moment.
///
/// # Errors
/// The system does not tell what its PCI bus has.
pub fn list() -> io::Result<Vec<Found>> {
    Roots::default().list()
}

/// Where the kernel shows its devices.
#[derive(Debug)]
pub(super) struct Roots {
    sys: PathBuf,
    dev: PathBuf,
    /// Opens the file of a group and lets it go.
    open: fn(&Path) -> io::Result<()>,
}

impl Default for Roots {
    fn default() -> Self {
        let open = |path: &Path| OpenOptions::new().read(true).write(true).open(path).map(|_| ());
        Self { sys: "/sys".into(), dev: "/dev".into(), open }
    }
}

impl Roots {
    fn devices(&self) -> PathBuf {
        self.sys.join("bus/pci/devices")
    }

    fn list(&self) -> io::Result<Vec<Found>> {
        let entries = match fs::read_dir(self.devices()) {
            // A machine without the bus.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut all = Vec::new();
        for entry in entries {
            let Ok(address) = entry?.file_name().into_string() else { continue };
            let Ok(mut found) = self.look(&address) else { continue };
            if found.vendor != VENDOR {
                continue;
            }
            if found.obstacle.is_none() {
                found.obstacle = found.group.and_then(|group| self.try_group(group));
            }
            all.push(found);
        }
        all.sort_by(|one, other| one.address.cmp(&other.address));
        Ok(all)
    }

    /// The folder of the device at `address`.
    pub(super) fn folder(&self, address: &str) -> PathBuf {
        self.devices().join(address)
    }

    /// The file of a group.
    pub(super) fn group_file(&self, group: u32) -> PathBuf {
        self.dev.join("vfio").join(group.to_string())
    }

    /// What is at `address`, with what can be known without opening it.
    ///
    /// # Errors
    /// There is nothing.
    pub(super) fn look(&self, address: &str) -> Result<Found, Obstacle> {
        let folder = self.folder(address);
        let nothing = || Obstacle::NoDevice { address: address.to_owned() };
        let id = |name: &str| {
            let text = fs::read_to_string(folder.join(name)).ok()?;
            u16::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok()
        };
        let (Some(vendor), Some(device)) = (id("vendor"), id("device")) else {
            return Err(nothing());
        };
        let driver = link_name(&folder.join("driver"));
        let group = link_name(&folder.join("iommu_group"));
        let group: Option<u32> = group.and_then(|name| name.parse().ok());
        let address = address.to_owned();
        let mut found = Found { address, vendor, device, driver, group, obstacle: None };
        found.obstacle = self.obstacle(&found).err();
        Ok(found)
    }

    fn obstacle(&self, found: &Found) -> Result<(), Obstacle> {
        let Found { vendor, device, .. } = *found;
        // A management function is opened like an NPU.
        if vendor != VENDOR || device != DEVICE && device != MANAGER {
            return Err(Obstacle::OtherKind { vendor, device });
        }
        let group = found.group.ok_or(Obstacle::NoIommu)?;
        let group_folder = self.folder(&found.address).join("iommu_group");
        let name = fs::read_to_string(group_folder.join("name")).unwrap_or_default();
        if name.trim() == NO_IOMMU_GROUP {
            return Err(Obstacle::Unprotected);
        }
        let address = found.address.clone();
        match found.driver.as_deref() {
            Some(DRIVER) => {}
            None => return Err(Obstacle::NotBound { address }),
            Some(driver) => {
                return Err(Obstacle::OtherDriver { address, driver: driver.to_owned() });
            }
        }
        let others = self.others_in_use(&group_folder);
        if !others.is_empty() {
            return Err(Obstacle::SharedGroup { group, others });
        }
        let path = self.dev.join("vfio/vfio");
        if path.exists() { Ok(()) } else { Err(Obstacle::NoVfio { path }) }
    }

    /// The devices of a group that the kernel drives.
    fn others_in_use(&self, group: &Path) -> Vec<String> {
        let entries = fs::read_dir(group.join("devices")).into_iter().flatten().flatten();
        let mut others: Vec<String> = entries
            .filter_map(|entry| {
                let address = entry.file_name().into_string().ok()?;
                let driver = link_name(&self.folder(&address).join("driver"))?;
                let is_harmless = HARMLESS.contains(&driver.as_str());
                (!is_harmless).then(|| format!("{address} ({driver})"))
            })
            .collect();
        others.sort();
        others
    }

    /// Whether the group can be opened now.
    fn try_group(&self, group: u32) -> Option<Obstacle> {
        let path = self.group_file(group);
        let error = (self.open)(&path).err()?;
        Some(cannot_open(&error, group, path))
    }
}

/// What stands behind a failure to open the file of a group.
pub(super) fn cannot_open(error: &io::Error, group: u32, path: PathBuf) -> Obstacle {
    match error.kind() {
        ErrorKind::ResourceBusy => Obstacle::Busy { group, path },
        ErrorKind::PermissionDenied => Obstacle::Permission { path },
        ErrorKind::NotFound => Obstacle::NoVfio { path },
        _ => Obstacle::Kernel { what: "open the IOMMU group", why: error.to_string() },
    }
}

/// The last part of what a link points to.
fn link_name(link: &Path) -> Option<String> {
    fs::read_link(link).ok()?.file_name()?.to_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicU32, Ordering};

    /// A tree as the kernel shows one, removed when it is dropped.
    struct Tree {
        root: PathBuf,
        roots: Roots,
    }

    impl Tree {
        fn new(open: fn(&Path) -> io::Result<()>) -> Self {
            static COUNT: AtomicU32 = AtomicU32::new(0);
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            let root =
                std::env::temp_dir().join(format!("npu-pci-{}-{number}", std::process::id()));
            let (sys, dev) = (root.join("sys"), root.join("dev"));
            fs::create_dir_all(sys.join("bus/pci/devices")).unwrap();
            fs::create_dir_all(dev.join("vfio")).unwrap();
            fs::write(dev.join("vfio/vfio"), "").unwrap();
            Self { root, roots: Roots { sys, dev, open } }
        }

        fn add(&self, address: &str, ids: (u16, u16), driver: Option<&str>, group: Option<u32>) {
            let folder = self.roots.folder(address);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("vendor"), format!("{:#06x}\n", ids.0)).unwrap();
            fs::write(folder.join("device"), format!("{:#06x}\n", ids.1)).unwrap();
            if let Some(driver) = driver {
                symlink(format!("../../drivers/{driver}"), folder.join("driver")).unwrap();
            }
            if let Some(group) = group {
                let place = self.roots.sys.join(format!("kernel/iommu_groups/{group}"));
                fs::create_dir_all(place.join("devices").join(address)).unwrap();
                symlink(place, folder.join("iommu_group")).unwrap();
                fs::write(self.roots.group_file(group), "").unwrap();
            }
        }

        fn only(&self) -> Found {
            let mut all = self.roots.list().unwrap();
            assert_eq!(all.len(), 1);
            all.remove(0)
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.root);
        }
    }

    const NPU: (u16, u16) = (VENDOR, DEVICE);

    fn free(_: &Path) -> io::Result<()> {
        Ok(())
    }

    #[test]
    fn a_bound_device_with_a_free_group_is_usable_and_other_vendors_are_not_listed() {
        let tree = Tree::new(free);
        tree.add("0000:00:03.0", NPU, Some("vfio-pci"), Some(4));
        tree.add("0000:00:02.0", NPU, Some("vfio-pci"), Some(3));
        tree.add("0000:00:01.0", (0x8086, 0x1234), Some("e1000e"), Some(2));
        let all = tree.roots.list().unwrap();
        let strings: Vec<String> = all.iter().map(Found::device_string).collect();
        assert_eq!(strings, ["pci:0000:00:02.0", "pci:0000:00:03.0"]);
        assert!(all.iter().all(|found| found.obstacle.is_none()), "{all:?}");
        assert_eq!((all[0].group, all[0].driver.as_deref()), (Some(3), Some("vfio-pci")));
    }

    #[test]
    fn what_cannot_be_used_says_why_and_what_to_do() {
        type Case = (Option<&'static str>, Option<u32>, &'static [&'static str]);
        let cases: [Case; 4] = [
            (Some("vfio-pci"), None, &["no IOMMU", "intel_iommu=on"]),
            (None, Some(3), &["no driver", "driver_override", "drivers_probe"]),
            (Some("npu_kmd"), Some(3), &["`npu_kmd`", "driver/unbind", "drivers_probe"]),
            (Some("vfio-pci"), Some(3), &[]),
        ];
        for (driver, group, texts) in cases {
            let tree = Tree::new(free);
            tree.add("0000:00:02.0", NPU, driver, group);
            let obstacle = tree.only().obstacle;
            assert_eq!(obstacle.is_some(), !texts.is_empty(), "{obstacle:?}");
            let told = obstacle.map(|obstacle| obstacle.to_string()).unwrap_or_default();
            assert!(texts.iter().all(|text| told.contains(text)), "{told}");
        }
    }

    #[test]
    fn a_group_that_cannot_be_opened_says_whose_fault_it_is() {
        let busy: fn(&Path) -> io::Result<()> =
            |_| Err(io::Error::from_raw_os_error(nix::libc::EBUSY));
        let forbidden: fn(&Path) -> io::Result<()> =
            |_| Err(io::Error::from_raw_os_error(nix::libc::EACCES));
        let broken: fn(&Path) -> io::Result<()> =
            |_| Err(io::Error::from_raw_os_error(nix::libc::ENODEV));
        let cases = [
            (busy, "one user at a time; end that one (`fuser -v"),
            (forbidden, "chown $USER"),
            (broken, "dmesg"),
        ];
        for (open, text) in cases {
            let tree = Tree::new(open);
            tree.add("0000:00:02.0", NPU, Some("vfio-pci"), Some(3));
            let told = tree.only().obstacle.unwrap().to_string();
            assert!(told.contains(text), "{told}");
        }
    }

    #[test]
    fn a_group_is_used_as_a_whole_and_behind_an_iommu() {
        let tree = Tree::new(free);
        tree.add("0000:00:02.0", NPU, Some("vfio-pci"), Some(3));
        tree.add("0000:00:02.1", (0x8086, 1), Some("nvme"), Some(3));
        tree.add("0000:00:02.2", (0x8086, 2), Some("pcieport"), Some(3));
        let others = vec!["0000:00:02.1 (nvme)".to_owned()];
        let obstacle = tree.only().obstacle.unwrap();
        assert_eq!(obstacle, Obstacle::SharedGroup { group: 3, others });
        let tree = Tree::new(free);
        tree.add("0000:00:02.0", NPU, Some("vfio-pci"), Some(0));
        let name = tree.roots.folder("0000:00:02.0").join("iommu_group/name");
        fs::write(name, "vfio-noiommu\n").unwrap();
        assert_eq!(tree.only().obstacle, Some(Obstacle::Unprotected));
    }

    #[test]
    fn without_the_module_or_the_bus_that_is_what_is_said() {
        let tree = Tree::new(free);
        tree.add("0000:00:02.0", NPU, Some("vfio-pci"), Some(3));
        fs::remove_file(tree.roots.dev.join("vfio/vfio")).unwrap();
        let told = tree.only().obstacle.unwrap().to_string();
        assert!(told.contains("modprobe vfio-pci"), "{told}");
        fs::remove_dir_all(tree.roots.devices()).unwrap();
        assert!(tree.roots.list().unwrap().is_empty());
        let told = tree.roots.look("0000:00:02.0").unwrap_err().to_string();
        assert!(told.contains("no PCI device at 0000:00:02.0"), "{told}");
    }

    #[test]
    fn a_function_of_another_kind_is_listed_with_its_number() {
        let tree = Tree::new(free);
        tree.add("0000:00:02.0", (VENDOR, MANAGER), Some("vfio-pci"), Some(3));
        assert_eq!((tree.only().device, tree.only().obstacle), (MANAGER, None));
        let tree = Tree::new(free);
        tree.add("0000:00:02.0", (VENDOR, 0x4e7f), Some("vfio-pci"), Some(3));
        let told = tree.only().obstacle.unwrap().to_string();
        assert!(told.contains("1de5:4e7f") && told.contains("1de5:4e50"), "{told}");
    }
}
