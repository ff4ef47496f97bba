//! What only the guest of `cargo xtask vm` can show: a real kernel's VFIO around the device.

#![cfg(feature = "guest")]

#[cfg(test)]
mod classifier;
#[cfg(test)]
mod exclusive;
#[cfg(test)]
mod memory;
#[cfg(test)]
mod neighbours;
#[cfg(test)]
mod smi;
#[cfg(test)]
mod trouble;
#[cfg(test)]
mod versions;
