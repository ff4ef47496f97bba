//! The whole stack, over every transport.
