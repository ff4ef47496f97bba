//! Every memory ordering of the rings that is stronger than `Relaxed`, by name, with its pair.
//!
//! The rings take their orderings from here and nowhere else, so that each is argued once and can be
//! weakened alone: built with `--cfg loom`, `NPU_WEAKEN=<name>` turns that one into `Relaxed` (a
//! fence into nothing), and the loom model that [`ALL`] names with it, in `ring/model.rs`, must then
//! fail. `cargo xtask loom --weaken` sees to that. What no model needs is `Relaxed` in the code, with
//! the reason beside it.
//!
//! ```text
//! driver                                     device
//!   entry words        SQ_TAIL_PUBLISH  ──>  SQ_TAIL_TAKE         entry words
//!   reuse of a slot    SQ_HEAD_TAKE     <──  SQ_HEAD_PUBLISH      entry words read
//!   completion words   CQ_ENTRY_TAKE    <──  CQ_ENTRY_PUBLISH     completion words
//!   tail, then event   KICK_DRIVER_FENCE  ┄  KICK_DEVICE_FENCE    event, then tail
//!   event, then entry  IRQ_DRIVER_FENCE   ┄  IRQ_DEVICE_FENCE     entry, then event
//!   clears the rings   GATE_IDLE_TAKE   <──  GATE_IDLE_PUBLISH    last access before a reset
//!   cleared rings      GATE_START_PUBLISH -> GATE_START_TAKE      first access after a reset
//! ```

use core::sync::atomic::Ordering;

/// The ordering of one load or store of a ring word.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Access {
    name: &'static str,
    ordering: Ordering,
}

impl Access {
    /// The ordering to load or store with.
    #[must_use]
    #[inline]
    pub fn ordering(self) -> Ordering {
        if is_weakened(self.name) { Ordering::Relaxed } else { self.ordering }
    }
}

/// A sequentially consistent fence between a store and a load of another word.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Fence {
    name: &'static str,
}

impl Fence {
    /// Orders every access before it with every access after it, as all other fences see them.
    #[inline]
    pub fn run(self) {
        if !is_weakened(self.name) {
            #[cfg(loom)]
            loom::sync::atomic::fence(Ordering::SeqCst);
            #[cfg(not(loom))]
            core::sync::atomic::fence(Ordering::SeqCst);
        }
    }
}

/// An ordering and the model that fails without it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Claim {
    /// The ordering's name: that of its constant here.
    pub ordering: &'static str,
    /// The model's name: that of its test in `ring/model.rs`.
    pub model: &'static str,
}

/// Declares the orderings, each with its model, and from the same table [`ALL`].
macro_rules! orders {
    (@item $(#[$doc:meta])* $name:ident fence) => {
        $(#[$doc])*
        pub const $name: Fence = Fence { name: stringify!($name) };
    };
    (@item $(#[$doc:meta])* $name:ident $ordering:ident) => {
        $(#[$doc])*
        pub const $name: Access =
            Access { name: stringify!($name), ordering: Ordering::$ordering };
    };
    ($($(#[$doc:meta])* $name:ident: $kind:ident, model $model:ident;)*) => {
        $(orders!(@item $(#[$doc])* $name $kind);)*
        /// All orderings above, each with a model that fails without it.
        pub const ALL: &[Claim] =
            &[$(Claim { ordering: stringify!($name), model: stringify!($model) }),*];
    };
}

orders! {
    /// Driver stores `sq_tail`: the entries before it are written. Pairs with [`SQ_TAIL_TAKE`].
    ///
    /// It also orders the driver's reads of completions before the device's reuse of their slots, so
    /// that `cq_head` can be `Relaxed`: see `Device::permit` in `ring/device.rs`.
    SQ_TAIL_PUBLISH: Release, model submission;

    /// Device loads `sq_tail`, then reads the entries before it. Pairs with [`SQ_TAIL_PUBLISH`].
    SQ_TAIL_TAKE: Acquire, model submission;

    /// Device stores `sq_head`: it has read the entries before it. Pairs with [`SQ_HEAD_TAKE`].
    SQ_HEAD_PUBLISH: Release, model submission;

    /// Driver loads `sq_head`, then writes the slots before it again. Pairs with
    /// [`SQ_HEAD_PUBLISH`]: without them an entry may be overwritten before the device's read of it.
    SQ_HEAD_TAKE: Acquire, model submission;

    /// Device stores the last word of a completion, with the phase: its other words, and what the
    /// job wrote to memory, come before. Pairs with [`CQ_ENTRY_TAKE`].
    CQ_ENTRY_PUBLISH: Release, model completion;

    /// Driver loads the last word of a completion, then reads its other words and the job's
    /// results. Pairs with [`CQ_ENTRY_PUBLISH`].
    CQ_ENTRY_TAKE: Acquire, model completion;

    /// Driver, between its store of `sq_tail` and its load of `kick_event`. Pairs with
    /// [`KICK_DEVICE_FENCE`]: of the two loads behind the two fences at least one sees the other
    /// side's store, so either the driver kicks or the device stays awake.
    KICK_DRIVER_FENCE: fence, model kick;

    /// Device, between its store of `kick_event` and its last look at `sq_tail` before it sleeps.
    /// Pairs with [`KICK_DRIVER_FENCE`].
    KICK_DEVICE_FENCE: fence, model kick;

    /// Driver, between its store of `irq_event` and its last look at the completion ring before it
    /// sleeps. Pairs with [`IRQ_DEVICE_FENCE`].
    IRQ_DRIVER_FENCE: fence, model interrupt;

    /// Device, between its store of a completion and its load of `irq_event`. Pairs with
    /// [`IRQ_DRIVER_FENCE`]: either the device interrupts or the driver stays awake.
    IRQ_DEVICE_FENCE: fence, model interrupt;

    /// Device stores the idle state: all its accesses to the rings come before. Pairs with
    /// [`GATE_IDLE_TAKE`].
    GATE_IDLE_PUBLISH: Release, model reset;

    /// Driver loads the idle state, then clears the rings. Pairs with [`GATE_IDLE_PUBLISH`]:
    /// without them a completion of before the reset may land on the cleared ring.
    GATE_IDLE_TAKE: Acquire, model reset;

    /// Driver stores the running state: the rings are cleared. Pairs with [`GATE_START_TAKE`].
    GATE_START_PUBLISH: Release, model restart;

    /// Device loads the running state, then uses the rings. Pairs with [`GATE_START_PUBLISH`]:
    /// without them the device may still see indices of before the reset.
    GATE_START_TAKE: Acquire, model restart;
}

/// Whether `NPU_WEAKEN` names this ordering.
#[cfg(loom)]
fn is_weakened(name: &str) -> bool {
    static WEAKENED: std::sync::OnceLock<Option<std::ffi::OsString>> = std::sync::OnceLock::new();
    WEAKENED.get_or_init(|| std::env::var_os("NPU_WEAKEN")).as_deref()
        == Some(std::ffi::OsStr::new(name))
}

/// Nothing is weakened outside the models.
#[cfg(not(loom))]
#[inline]
const fn is_weakened(_name: &str) -> bool {
    false
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::{ALL, Claim};

    #[test]
    fn the_rings_use_every_named_ordering_and_no_other() {
        let code = [include_str!("ring.rs"), include_str!("ring/driver.rs")].concat()
            + include_str!("ring/device.rs")
            + include_str!("ring/gate.rs");
        let code: String = code
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"))
            .map(|line| line.to_owned() + "\n")
            .collect();
        for Claim { ordering, .. } in ALL {
            assert!(code.contains(&format!("order::{ordering}")), "nothing uses {ordering}");
        }
        for strong in ["Acquire", "Release", "AcqRel", "SeqCst"] {
            assert!(!code.contains(strong), "an ordering without a name: {strong}");
        }
    }
}
