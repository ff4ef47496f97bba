//! The management function: a PCI function that is no NPU, through which whoever has it manages a server's.
//!
//! Its BAR0 is a mailbox, its BAR4 shows the telemetry page ([`crate::telemetry`]) of one client after the
//! other, in the order of their ids. A request and its reply are JSON, as on the management socket.
//!
//! ```text
//! BAR0  0x0000  registers, below                     0x4000  request window, 16 KiB, written
//!                                                    0x8000  reply window, 32 KiB, read
//! BAR4  page i: the telemetry of the i-th client; zeros where there is none
//! ```
//! To ask: write the request into its window, its bytes to `REQUEST`; wait until `STATE` is [`state::DONE`];
//! then, for each 32 KiB of the reply's `REPLY_BYTES`: write where they begin to `REPLY_AT`, read the window.
//! A reset of the device forgets the reply. All accesses are of aligned 32-bit words.
//!
//! A read of the first word of a page of BAR4 takes a snapshot of the page, which its other words are read from
//! until the next: a function at work changes its page more often than a guest can read it word by word.

/// First register: `NPUM`.
pub const MAGIC: u32 = u32::from_le_bytes(*b"NPUM");
/// Version of this layout; a higher one only adds.
pub const VERSION: u32 = 1;

/// Offsets of registers in BAR0.
pub mod register {
    /// [`super::MAGIC`], read only.
    pub const MAGIC: u32 = 0x00;
    /// [`super::VERSION`], read only.
    pub const VERSION: u32 = 0x04;
    /// Written: does the request of as many bytes as the value says.
    pub const REQUEST: u32 = 0x08;
    /// One of [`super::state`], read only.
    pub const STATE: u32 = 0x0c;
    /// Bytes of the whole reply, read only.
    pub const REPLY_BYTES: u32 = 0x10;
    /// Byte of the reply at which the reply window begins, a multiple of 4; zero after each request.
    pub const REPLY_AT: u32 = 0x14;
    /// Clients whose pages BAR4 shows now, read only.
    pub const PAGES: u32 = 0x18;
}

/// Values of `STATE`.
pub mod state {
    /// Nothing was asked since the last reset.
    pub const IDLE: u32 = 0;
    /// The reply is there.
    pub const DONE: u32 = 1;
    /// The request is under way.
    pub const BUSY: u32 = 2;
}

/// Start of the request window in BAR0.
pub const REQUEST_AT: u32 = 0x4000;
/// Bytes of the request window: of a request at most.
pub const REQUEST_BYTES: u32 = 0x4000;
/// Start of the reply window in BAR0.
pub const REPLY_AT: u32 = 0x8000;
/// Bytes of the reply window.
pub const REPLY_BYTES: u32 = 0x8000;
/// Bytes of a whole reply at most.
pub const MOST_REPLY_BYTES: u32 = 8 << 20;
/// Pages of BAR4.
pub const PAGES: u32 = 64;
/// Bytes of BAR4.
pub const BAR4_BYTES: u32 = PAGES * crate::telemetry::PAGE_BYTES;
