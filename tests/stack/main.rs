//! The whole stack, over every transport. One binary, so that it is linked once.
// `cfg(test)` always holds here; it tells clippy that helpers of tests may unwrap as tests do.

#[cfg(test)]
mod buffer;
#[cfg(test)]
mod device;
#[cfg(test)]
mod fault;
#[cfg(test)]
mod fork;
#[cfg(test)]
mod guarded;
#[cfg(test)]
mod interop;
#[cfg(test)]
mod kill;
#[cfg(test)]
mod liar;
#[cfg(test)]
mod manage;
#[cfg(test)]
mod matrix;
#[cfg(test)]
mod model;
#[cfg(test)]
mod named;
#[cfg(test)]
mod observe;
#[cfg(test)]
mod once;
#[cfg(test)]
mod oracle;
#[cfg(test)]
mod process;
#[cfg(test)]
mod queue;
#[cfg(test)]
mod registers;
#[cfg(test)]
mod saturation;
#[cfg(test)]
mod sharing;
