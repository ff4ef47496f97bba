//! Why a device on the PCI bus cannot be used, each with what to do about it.

use npu_uapi::regs::pci::{DEVICE, VENDOR};
use std::path::PathBuf;

/// Why a device on the PCI bus cannot be used.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Obstacle {
    /// The bus has nothing at the address.
    #[error("there is no PCI device at {address}; `lspci -D -d {VENDOR:04x}:` lists NPUs")]
    NoDevice {
        /// The address.
        address: String,
    },
    /// It is of another kind.
    #[error(
        "it is {vendor:04x}:{device:04x}, and an NPU is {VENDOR:04x}:{DEVICE:04x}; check the \
         address with `lspci -D -d {VENDOR:04x}:`"
    )]
    OtherKind {
        /// Vendor.
        vendor: u16,
        /// Device.
        device: u16,
    },
    /// Nothing keeps its accesses to memory apart from others'.
    #[error(
        "the system has no IOMMU for it; enable VT-d or AMD-Vi in the firmware's settings, and boot \
         Linux with `intel_iommu=on` on a processor of Intel's"
    )]
    NoIommu,
    /// It was bound in the mode in which nothing is kept apart.
    #[error(
        "it is bound without an IOMMU, and could then write any memory; this is not supported: \
         enable the IOMMU, and bind it again"
    )]
    Unprotected,
    /// It has no driver.
    #[error("it is not bound to vfio-pci but to no driver; as root: `{}`", bind(.address))]
    NotBound {
        /// Its address.
        address: String,
    },
    /// It has another driver.
    #[error(
        "it is not bound to vfio-pci but to `{driver}`; as root: `echo {address} > \
         /sys/bus/pci/devices/{address}/driver/unbind; {}`", bind(.address)
    )]
    OtherDriver {
        /// Its address.
        address: String,
        /// The driver.
        driver: String,
    },
    /// Others in its group are in use by the kernel.
    #[error(
        "IOMMU group {group} has other devices that the kernel drives: {}; all devices of a group \
         go together: bind them to vfio-pci too, or move the NPU to another slot", .others.join(", ")
    )]
    SharedGroup {
        /// The group.
        group: u32,
        /// Addresses and drivers of the others.
        others: Vec<String>,
    },
    /// The kernel's VFIO is not there.
    #[error("{} is not there; as root: `modprobe vfio-pci`", path.display())]
    NoVfio {
        /// What was looked for.
        path: PathBuf,
    },
    /// A device file may not be opened.
    #[error(
        "this user may not open {}; as root: `chown $USER {}`, or a udev rule for \
         SUBSYSTEM==\"vfio\"", path.display(), path.display()
    )]
    Permission {
        /// The file.
        path: PathBuf,
    },
    /// Somebody has the group.
    #[error(
        "IOMMU group {group} is in use: a group has one user at a time; end that one (`fuser -v {}` \
         names it), or open another NPU", path.display()
    )]
    Busy {
        /// The group.
        group: u32,
        /// Its file.
        path: PathBuf,
    },
    /// The IOMMU lets a device raise any interrupt.
    #[error(
        "the IOMMU does not keep interrupts apart, so the kernel refuses; turn on interrupt remapping \
         (`intremap=on`), or, where every such device is trusted, as root: `echo 1 > \
         /sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts`"
    )]
    UnsafeInterrupts,
    /// Memory for the device stays in RAM, and the process may not lock as much.
    #[error(
        "{bytes} bytes of memory are to be locked for the device, and this process may lock {limit} \
         in all; raise the limit (`ulimit -l unlimited`, or `LimitMEMLOCK=infinity` in a service)"
    )]
    LockedMemory {
        /// Bytes of one mapping.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// It is no device that this library knows how to drive.
    #[error("{found}, where an NPU has {expected}; its firmware and this library do not fit")]
    Shape {
        /// What an NPU has.
        expected: &'static str,
        /// What was found.
        found: String,
    },
    /// The kernel refuses for another reason.
    #[error("the kernel refuses to {what}: {why}; its log (`dmesg`) may say more")]
    Kernel {
        /// What was asked of it.
        what: &'static str,
        /// Its answer.
        why: String,
    },
}

/// What binds the device at `address` to vfio-pci.
fn bind(address: &str) -> String {
    format!(
        "modprobe vfio-pci; echo vfio-pci > /sys/bus/pci/devices/{address}/driver_override; echo \
         {address} > /sys/bus/pci/drivers_probe"
    )
}
