//! Products of matrices as a load for devices.

use crate::{image, product, product_slots};
use libnpu::{Context, ContextOptions, Device, Error, Job, Memory, Priority, Program};
use npu_uapi::addr::SlotId;

/// A program and its memory, ready to be submitted many times.
#[derive(Debug)]
pub struct Work {
    /// Where it is submitted.
    pub context: Context,
    program: Program,
    overlay: Vec<(SlotId, Memory)>,
}

impl Work {
    /// `count` products of `[m, n, k]`, with `priority`.
    ///
    /// # Errors
    /// The device has no room.
    ///
    /// # Panics
    /// A slot is more than memory can be.
    pub fn new(
        device: &Device,
        priority: Priority,
        count: u32,
        [m, n, k]: [u32; 3],
    ) -> Result<Self, Error> {
        let options = ContextOptions::default().with_priority(priority);
        let context = device.create_context_with(options)?;
        let commands: Vec<_> = (0..count).map(|op_id| product(m, n, k, op_id)).collect();
        let slots = product_slots(m, n, k);
        let program = context.load(&image(&slots, &commands))?;
        let overlay = slots.iter().zip(0..).map(|(&(_, len), slot)| {
            let buffer =
                device.allocate(usize::try_from(len).expect("a slot of a test is short"))?;
            Ok((SlotId(slot), Memory::from(&buffer)))
        });
        let overlay = overlay.collect::<Result<_, Error>>()?;
        Ok(Self { context, program, overlay })
    }

    /// Submits it once more, on the same memory.
    ///
    /// # Errors
    /// As for any job; [`Error::QueueFull`] where the queue is.
    pub fn submit(&self) -> Result<Job, Error> {
        self.context.exec(&self.program, None, self.overlay.clone())
    }
}
