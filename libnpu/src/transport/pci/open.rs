//! Container, group and device of the kernel's VFIO: opened, asked for their parts, and closed in the
//! order that the kernel wants.

use super::list::{Roots, cannot_open};
use super::registers::Registers;
use super::{Obstacle, kernel};
use nix::errno::Errno;
use npu_uapi::mailbox::BAR4_BYTES;
use npu_uapi::telemetry::PAGE_BYTES;
use std::fmt;
use std::fs::File;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;
use vfio_bindings::bindings::vfio::{VFIO_REGION_INFO_FLAG_MMAP, VFIO_REGION_INFO_FLAG_WRITE};
use vfio_ioctls::{VfioContainer, VfioDevice, VfioError, VfioOps};

/// Kinds of interrupts, as the kernel numbers them.
pub(super) mod irq {
    /// The vectors of the device.
    pub(in super::super) const MSIX: u32 = 2;
    /// The kernel wants the device back.
    pub(in super::super) const REQUEST: u32 = 4;
}

/// Regions, likewise.
mod region {
    pub(super) const BAR0: u32 = 0;
    pub(super) const BAR4: u32 = 4;
    pub(super) const CONFIG: u32 = 7;
}

/// Bytes of the configuration space that are used.
const CONFIG_BYTES: u32 = 256;

/// A device and what it came out of.
pub(super) struct Opened {
    device: ManuallyDrop<VfioDevice>,
    container: ManuallyDrop<Arc<VfioContainer>>,
    folder: PathBuf,
    owner: u32,
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        // A child has the same files: its requests would be its parent's. And the crate reads the group's
        // number anew when it closes a device, and would panic if it could not.
        if self.owner != std::process::id() || !self.folder.join("iommu_group").exists() {
            return;
        }
        // SAFETY: not used again; the device goes before its container.
        unsafe { ManuallyDrop::drop(&mut self.device) };
        // SAFETY: not used again.
        unsafe { ManuallyDrop::drop(&mut self.container) };
    }
}

impl Opened {
    /// Opens the device at `address`; with it, the number of its group.
    pub(super) fn new(address: &str) -> Result<(Self, u32), Obstacle> {
        let roots = Roots::default();
        let found = roots.look(address)?;
        if let Some(obstacle) = found.obstacle {
            return Err(obstacle);
        }
        let group = found.group.ok_or(Obstacle::NoIommu)?;
        let folder = roots.folder(address);
        let blocked = |error| obstacle(error, group, roots.group_file(group));
        let container = Arc::new(VfioContainer::new(None).map_err(blocked)?);
        let ops: Arc<dyn VfioOps> = Arc::<VfioContainer>::clone(&container);
        let device = VfioDevice::new(&folder, ops, false).map_err(blocked)?;
        let (device, container) = (ManuallyDrop::new(device), ManuallyDrop::new(container));
        Ok((Self { device, container, folder, owner: std::process::id() }, group))
    }

    /// The device's file.
    pub(super) fn device(&self) -> BorrowedFd<'_> {
        // SAFETY: open as long as `self` lives.
        unsafe { BorrowedFd::borrow_raw(self.device.as_raw_fd()) }
    }

    /// The container's file.
    pub(super) fn container(&self) -> BorrowedFd<'_> {
        // SAFETY: open as long as `self` lives.
        unsafe { BorrowedFd::borrow_raw(self.container.as_raw_fd()) }
    }

    /// How many interrupts of a kind there are.
    pub(super) fn interrupts(&self, index: u32) -> u32 {
        self.device.get_irq_info(index).map_or(0, |irq| irq.count)
    }

    /// The first `len` bytes of BAR0.
    pub(super) fn registers(&self, len: u32) -> Result<Registers, Obstacle> {
        let flags = self.device.get_region_flags(region::BAR0);
        self.region(region::BAR0, len, flags & VFIO_REGION_INFO_FLAG_MMAP != 0)
    }

    /// BAR4: a page of telemetry, or those of a management function; `None` for a device without.
    pub(super) fn telemetry(&self) -> Result<Option<Registers>, Obstacle> {
        let size = self.device.get_region_size(region::BAR4).min(BAR4_BYTES.into());
        let len = u32::try_from(size).unwrap_or(0);
        if len < PAGE_BYTES {
            return Ok(None);
        }
        let flags = self.device.get_region_flags(region::BAR4);
        self.words(region::BAR4, len, flags & VFIO_REGION_INFO_FLAG_MMAP != 0).map(Some)
    }

    /// Configuration space.
    pub(super) fn config(&self) -> Result<Registers, Obstacle> {
        self.region(region::CONFIG, CONFIG_BYTES, false)
    }

    fn region(&self, index: u32, len: u32, is_mapped: bool) -> Result<Registers, Obstacle> {
        let size = self.device.get_region_size(index);
        let is_writable = self.device.get_region_flags(index) & VFIO_REGION_INFO_FLAG_WRITE != 0;
        if size < u64::from(len) || !is_writable {
            let expected = "64 KiB of registers in BAR0 and a configuration space, both to write";
            let found = format!("region {index} has {size} bytes, to write: {is_writable}");
            return Err(Obstacle::Shape { expected, found });
        }
        self.words(index, len, is_mapped)
    }

    fn words(&self, index: u32, len: u32, is_mapped: bool) -> Result<Registers, Obstacle> {
        let refused = |error: std::io::Error| Obstacle::Kernel {
            what: "give access to a region",
            why: error.to_string(),
        };
        let file = self.device().try_clone_to_owned().map_err(refused)?;
        let offset = self.device.get_region_offset(index);
        Registers::new(File::from(file), offset, len, is_mapped).map_err(refused)
    }

    /// Ends the mapping of `len` bytes from `at` on.
    pub(super) fn unmap(&self, at: u64, len: usize) -> Result<(), String> {
        self.container.vfio_dma_unmap(at, len).map_err(|error| error.to_string())
    }
}

/// What stands behind an error of the crate.
fn obstacle(error: VfioError, group: u32, group_file: PathBuf) -> Obstacle {
    let container = || PathBuf::from("/dev/vfio/vfio");
    match error {
        VfioError::OpenContainer(error) => cannot_open(&error, group, container()),
        VfioError::OpenGroup(error, _) => cannot_open(&error, group, group_file),
        VfioError::GroupViable => Obstacle::SharedGroup { group, others: Vec::new() },
        VfioError::ContainerSetIOMMU(error) => iommu_obstacle(Errno::from_raw(error.errno())),
        VfioError::VfioExtension | VfioError::VfioType1V2 => Obstacle::Kernel {
            what: "map memory for devices",
            why: "vfio_iommu_type1 is not loaded: `modprobe vfio_iommu_type1`".to_owned(),
        },
        VfioError::GroupGetDeviceFD(error) => {
            kernel("open the device", Errno::from_raw(error.errno()))
        }
        other => Obstacle::Kernel { what: "open the device", why: other.to_string() },
    }
}

/// What stands behind a refusal to give a container its IOMMU.
fn iommu_obstacle(error: Errno) -> Obstacle {
    match error {
        Errno::EPERM => Obstacle::UnsafeInterrupts,
        other => kernel("use its IOMMU", other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_kernel_become_what_to_do_about_them() {
        let file = || PathBuf::from("/dev/vfio/3");
        let os = |errno| std::io::Error::from_raw_os_error(errno);
        let cases = [
            (VfioError::OpenGroup(os(nix::libc::EBUSY), "3".into()), "fuser -v /dev/vfio/3"),
            (VfioError::OpenGroup(os(nix::libc::EACCES), "3".into()), "chown $USER /dev/vfio/3"),
            (VfioError::OpenContainer(os(nix::libc::EACCES)), "chown $USER /dev/vfio/vfio"),
            (VfioError::OpenContainer(os(nix::libc::ENOENT)), "modprobe vfio-pci"),
            (VfioError::VfioExtension, "modprobe vfio_iommu_type1"),
            (VfioError::VfioInvalidType, "dmesg"),
        ];
        for (error, text) in cases {
            let told = obstacle(error, 3, file()).to_string();
            assert!(told.contains(text), "{told}");
        }
        let told = iommu_obstacle(Errno::EPERM).to_string();
        assert!(told.contains("allow_unsafe_interrupts"), "{told}");
        let told = iommu_obstacle(Errno::ENODEV).to_string();
        assert!(told.contains("use its IOMMU"), "{told}");
    }
}
