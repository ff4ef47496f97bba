//! The whole stack, over every transport. One binary, so that it is linked once.

mod buffer;
mod device;
mod fault;
mod queue;
