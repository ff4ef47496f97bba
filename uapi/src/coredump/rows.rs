//! What the sections of a core dump hold, row by row.
#![expect(
    missing_debug_implementations,
    reason = "zerocopy's derives emit helper types, which the macro below makes look like ours"
)]

use crate::addr::Iova;
use crate::queue::Binding;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Why a dump was made.
pub mod reason {
    /// Somebody asked.
    pub const ASKED: u16 = 1;
    /// A job faulted.
    pub const FAULT: u16 = 2;
    /// A job made no progress.
    pub const HANG: u16 = 3;

    /// A reason in words.
    pub const fn name(reason: u16) -> &'static str {
        match reason {
            ASKED => "asked for",
            FAULT => "a job faulted",
            HANG => "a job hung",
            _ => "for an unknown reason",
        }
    }
}

macro_rules! row {
    ($(#[$doc:meta])* $name:ident: $bytes:literal { $($(#[$fdoc:meta])* $field:ident: $ty:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
        #[derive(FromBytes, Immutable, IntoBytes, KnownLayout)]
        #[repr(C)]
        pub struct $name {
            $($(#[$fdoc])* pub $field: $ty,)*
        }
        const _: () = assert!(size_of::<$name>() == $bytes);
    };
}

row! {
    /// Why, when, and the state of the function.
    SummaryRow: 64 {
        /// One of [`reason`].
        reason: u16,
        /// The status of the job, zero where none ended.
        status: u16,
        /// `Status.STATE`, one of [`crate::regs::state`].
        state: u32,
        /// Unix time.
        time_ms: u64,
        /// Since the function was made.
        uptime_ns: u64,
        /// Bands and commands begun since power-on.
        heartbeat: u64,
        /// Bytes that the device may reach.
        mapped_bytes: u64,
        /// Events before the first of the dump.
        events_before: u64,
        /// Resets since the function was made.
        resets: u32,
        /// Contexts that there are.
        contexts: u32,
        /// Zero.
        reserved: u64,
    }
}
row! {
    /// A register.
    RegisterRow: 8 {
        /// Byte offset in BAR0.
        offset: u32,
        /// What a read gives.
        value: u32,
    }
}
row! {
    /// A queue, and where its rings stand.
    QueueRow: 64 {
        /// Its id, 0 for the admin queue.
        id: u16,
        /// Interrupt vector of its completions.
        vector: u16,
        /// The context its jobs run in.
        context: u32,
        /// One of [`crate::queue::priority`]; of no meaning for the admin queue.
        priority: u32,
        /// Log2 of the submission ring, in entries.
        sq_log2: u8,
        /// Log2 of the completion ring, in entries.
        cq_log2: u8,
        /// Zero.
        reserved: u16,
        /// Start of the ring region.
        base: Iova,
        /// Submissions that the driver has published, as the device reads it: a driver may write anything.
        sq_tail: u32,
        /// Submissions that the device has fetched.
        sq_head: u32,
        /// Completions that the device has posted.
        cq_posted: u32,
        /// Completions that the driver has taken, as the device reads it.
        cq_head: u32,
        /// Entries submitted and not yet answered.
        in_flight: u32,
        /// Zero.
        reserved2: [u32; 5],
    }
}
row! {
    /// An entry of a submission ring.
    SubmissionRow: 72 {
        /// Its queue.
        queue: u16,
        /// Whether the device has fetched it: 0 or 1.
        is_fetched: u16,
        /// Its index in the ring.
        index: u32,
        /// As it lies in memory now.
        words: [u32; 16],
    }
}
row! {
    /// An entry of a completion ring.
    CompletionRow: 40 {
        /// Its queue.
        queue: u16,
        /// Zero.
        reserved: u16,
        /// Its index in the ring.
        index: u32,
        /// As it lies in memory now.
        words: [u32; 8],
    }
}
row! {
    /// A base table.
    TableRow: 16 {
        /// Its id.
        id: u32,
        /// The context it belongs to.
        context: u32,
        /// Slots that it binds.
        bindings: u32,
        /// Zero.
        reserved: u32,
    }
}
row! {
    /// A slot of a base table.
    BindingRow: 40 {
        /// The table.
        table: u32,
        /// Zero.
        reserved: u32,
        /// What the driver gave.
        binding: Binding,
    }
}
row! {
    /// A loaded program.
    ProgramRow: 24 {
        /// Its id.
        id: u32,
        /// The context it belongs to.
        context: u32,
        /// Its commands.
        commands: u32,
        /// Its slots.
        slots: u32,
        /// Operations that have a name.
        names: u32,
        /// Zero.
        reserved: u32,
    }
}
row! {
    /// A job.
    JobRow: 48 {
        /// Its queue.
        queue: u16,
        /// Opcode of its entry.
        opcode: u8,
        /// Whether a command of it was executed at this moment: 0 or 1.
        is_running: u8,
        /// Its number.
        job: u32,
        /// Its program, zero for a transfer.
        program: u32,
        /// The command it is at.
        command: u32,
        /// The commands it has.
        commands: u32,
        /// Index of the first command of the listing.
        first_listed: u32,
        /// Modelled cycles so far.
        cycles: u64,
        /// Zero.
        reserved: [u64; 2],
    }
}
