//! The whole stack, over every transport.

mod guarded;
mod oracle;
