//! What a run of a warm session allocates: bookkeeping, nothing of a tensor's size. Unsafe: it counts in
//! the allocator.

use ep_npu::{Device, Session, TensorMut, TensorRef};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

struct Counting;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
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
fn a_warm_session_allocates_nothing_of_a_tensors_size() {
    const BATCH: usize = 64;
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/models/digits.qdq.onnx");
    let device = Device::open("sim").unwrap();
    let session = Session::builder(&device).load(model).unwrap();
    let input: Vec<f32> = (0_u16..).take(BATCH * 784).map(|i| f32::from(i % 7)).collect();
    let input_shape = [BATCH, 1, 28, 28];
    let mut output = vec![0.0; BATCH * 10];
    let mut run = || {
        let inputs = [TensorRef::from_f32(&input_shape, &input)];
        let mut outputs = [TensorMut::from_f32(&[BATCH, 10], &mut output)];
        session.run_into(&inputs, &mut outputs).unwrap()
    };
    for _ in 0..3 {
        run();
    }
    LARGEST.store(0, Ordering::Relaxed);
    let report = run();
    let largest = LARGEST.load(Ordering::Relaxed);
    // The smallest tensor of the run is its output.
    assert!(largest < BATCH * 10 * size_of::<f32>(), "a block of {largest} bytes was allocated");
    assert_eq!(report.copied_bytes, 0);
}
