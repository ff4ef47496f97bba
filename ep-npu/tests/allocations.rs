//! What a run of a warm session allocates: nothing on bound tensors, two small blocks for each tensor of
//! the caller that it maps. Unsafe: it counts in the allocator.

use ep_npu::{Device, Session, TensorMut, TensorRef};
use std::alloc::{GlobalAlloc, Layout, System};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};

struct Counting;

static COUNT: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_thousand_runs_of_a_warm_session_allocate_nothing() {
    const BATCH: usize = 4;
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/models/digits.qdq.onnx");
    let device = Device::open("sim").unwrap();
    let input: Vec<f32> = (0_u16..).take(BATCH * 784).map(|i| f32::from(i % 7)).collect();
    let input_shape = [BATCH, 1, 28, 28];
    // One test for all cases, as the allocator counts for the process.
    for threads in [1, 2].map(|count| NonZeroUsize::new(count).unwrap()) {
        let session = Session::builder(&device).threads(threads).load(model).unwrap();
        let mut output = vec![0.0; BATCH * 10];
        let mut into_tensors = || {
            let inputs = [TensorRef::from_f32(&input_shape, &input)];
            let mut outputs = [TensorMut::from_f32(&[BATCH, 10], &mut output)];
            session.run_into(&inputs, &mut outputs).unwrap().copied_bytes
        };
        // An input and an output, each with a mapping and what keeps its addresses.
        let mapped = 1000 * 2 * 2;
        assert_eq!(
            allocations(&mut into_tensors),
            mapped,
            "the caller's tensors, {threads} threads"
        );
        let mut binding = session.bind(&[&input_shape]).unwrap();
        let mut bound = || binding.run().unwrap().copied_bytes;
        assert_eq!(allocations(&mut bound), 0, "bound tensors, {threads} threads");
    }
}

/// Blocks allocated in 1,000 runs after some others, which copy nothing.
fn allocations(run: &mut dyn FnMut() -> u64) -> usize {
    // As many as leave nothing that grows once: each worker has had each command.
    for _ in 0..200 {
        assert_eq!(run(), 0);
    }
    let before = COUNT.load(Ordering::Relaxed);
    for _ in 0..1000 {
        run();
    }
    COUNT.load(Ordering::Relaxed) - before
}
