//! A compiled model, run on tensors wherever they lie.

use ep_npu::graph::{Dim, ElementType, Graph, GraphBuilder, Node, Tensor, TensorType};
use ep_npu::run::{
    CopyCause, Executable, Outputs, OwnedOutputs, Role, RunError, RunOptions, TensorRef,
};
use libnpu::{Buffer, Caller, Device, Error};
use npu_tests::over_each_transport;

over_each_transport! {
    tensors_in_device_memory_are_used_in_place_and_others_as_the_device_reaches_them,
    where_copies_are_denied_a_tensor_that_needs_one_is_named_and_the_run_fails,
}

const SHAPE: [usize; 3] = [1, 65, 1031];
const ELEMENTS: usize = 65 * 1031;
const SCALE: f32 = 0.25;
const ZERO_POINT: u8 = 117;

/// Floats in, their codes out.
fn quantizer() -> Graph {
    let mut builder = GraphBuilder::new("quantizer");
    let [input, output, scale, zero_point] =
        ["floats", "codes", "scale", "zero_point"].map(|name| builder.value(name));
    builder.add_input(input);
    let shape = Some(SHAPE.map(Dim::Known).to_vec());
    builder.set_type(input, TensorType { element: ElementType::F32, shape });
    for (value, element, bytes) in [
        (scale, ElementType::F32, SCALE.to_le_bytes().to_vec()),
        (zero_point, ElementType::U8, vec![ZERO_POINT]),
    ] {
        let tensor = Tensor { element, shape: Vec::new(), bytes: bytes.into() };
        builder.set_constant(value, tensor).unwrap();
    }
    let node = Node {
        name: "quantize".to_owned(),
        op: "QuantizeLinear".to_owned(),
        domain: String::new(),
        inputs: vec![Some(input), Some(scale), Some(zero_point)],
        outputs: vec![Some(output)],
        attributes: Default::default(),
    };
    builder.add_node(node).unwrap();
    builder.add_output(output);
    builder.finish().unwrap()
}

/// One output, in device memory.
struct InDeviceMemory(Buffer);

// SAFETY: a buffer has memory for as long as it lives, and the one output fills it.
unsafe impl Outputs for InDeviceMemory {
    fn output(&mut self, _: usize, _: ElementType, shape: &[usize]) -> Result<*mut u8, String> {
        assert_eq!(shape.iter().product::<usize>(), self.0.len());
        Ok(self.0.as_ptr())
    }
}

fn tensors_in_device_memory_are_used_in_place_and_others_as_the_device_reaches_them(
    device: &Device,
) -> Result<(), Error> {
    let context = device.create_context()?;
    let executable =
        Executable::new(quantizer(), context, device.clone(), RunOptions::default()).unwrap();
    // Whole steps, so that the codes need no rounding.
    let steps: Vec<i16> = (0..ELEMENTS).map(|at| i16::try_from(at % 300).unwrap() - 150).collect();
    let floats: Vec<f32> = steps.iter().map(|&step| f32::from(step) * SCALE).collect();
    let code = |&step: &i16| u8::try_from((step + i16::from(ZERO_POINT)).clamp(0, 255)).unwrap();
    let codes: Vec<u8> = steps.iter().map(code).collect();
    let copied = if device.transport().reaches_process_memory() { 0 } else { ELEMENTS as u64 };

    let mut outputs = OwnedOutputs::default();
    let tensor = TensorRef::from_f32(&SHAPE, &floats);
    let report = executable.run(&[tensor], &mut outputs, &Caller).unwrap();
    assert_eq!(outputs.bytes(0).unwrap(), codes);
    assert_eq!(report.copied_bytes, copied * 5, "four bytes in and one out");

    let (from, to) = (device.allocate(ELEMENTS * 4)?, device.allocate(ELEMENTS)?);
    let bytes: Vec<u8> = floats.iter().flat_map(|float| float.to_le_bytes()).collect();
    from.write(0, &bytes)?;
    // SAFETY: the buffer outlives the tensor, and nothing writes it meanwhile.
    let tensor =
        unsafe { TensorRef::from_raw(ElementType::F32, &SHAPE, from.as_ptr(), ELEMENTS * 4) };
    let mut outputs = InDeviceMemory(to.clone());
    let report = executable.run(&[tensor], &mut outputs, &Caller).unwrap();
    assert_eq!((to.to_vec(), report.copied_bytes), (codes.clone(), 0));

    // One in place, the other not.
    to.write(0, &[0; ELEMENTS])?;
    let mut outputs = OwnedOutputs::default();
    let report = executable.run(&[tensor], &mut outputs, &Caller).unwrap();
    assert_eq!((outputs.bytes(0).unwrap(), report.copied_bytes), (codes, copied));
    assert!(to.to_vec().iter().all(|&byte| byte == 0));
    Ok(())
}

fn where_copies_are_denied_a_tensor_that_needs_one_is_named_and_the_run_fails(
    device: &Device,
) -> Result<(), Error> {
    let options = RunOptions { deny_copy: true, ..RunOptions::default() };
    let context = device.create_context()?;
    let executable = Executable::new(quantizer(), context, device.clone(), options).unwrap();
    let reaches_all = device.transport().reaches_process_memory();
    // One float past a multiple of 64 bytes, in process memory.
    let room = vec![0.5_f32; ELEMENTS + 32];
    let first = room.as_ptr().align_offset(64) + 1;
    let foreign = TensorRef::from_f32(&SHAPE, &room[first..][..ELEMENTS]);
    let (from, to) = (device.allocate(ELEMENTS * 4)?, device.allocate(ELEMENTS)?);
    let tensor = |start: *const u8| {
        // SAFETY: the callers give the start of as many bytes, unwritten while the test runs.
        unsafe { TensorRef::from_raw(ElementType::F32, &SHAPE, start, ELEMENTS * 4) }
    };
    let own = tensor(from.as_ptr());
    let refused = |result: Result<_, RunError>| {
        let error = result.map(drop).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("deny_copy") && text.contains("allocator"), "{text}");
        let RunError::Copy { role, tensor, bytes, cause } = error else { panic!("{text}") };
        (role, tensor, bytes, cause)
    };

    let result = executable.run(&[foreign], &mut InDeviceMemory(to.clone()), &Caller);
    if reaches_all {
        assert_eq!(result.unwrap().copied_bytes, 0);
    } else {
        let cause = CopyCause::Unaligned { past: 4, align: 64 };
        let wanted = (Role::Input, "floats".to_owned(), ELEMENTS as u64 * 4, cause);
        assert_eq!(refused(result), wanted);
    }
    let mut outputs = OwnedOutputs::default();
    let result = executable.run(&[own], &mut outputs, &Caller);
    if reaches_all {
        assert_eq!(result.unwrap().copied_bytes, 0);
    } else {
        let (role, tensor, bytes, cause) = refused(result);
        assert_eq!((role, tensor.as_str(), bytes), (Role::Output, "codes", ELEMENTS as u64));
        let is_plain = matches!(cause, CopyCause::NotReachable | CopyCause::Unaligned { .. });
        assert!(is_plain, "{cause}");
    }
    // From inside a buffer to behind its end, where the arena goes on.
    let past_end = tensor(from.as_ptr().wrapping_add(64));
    let result = executable.run(&[past_end], &mut InDeviceMemory(to.clone()), &Caller);
    if !reaches_all {
        assert_eq!(refused(result).3, CopyCause::Straddles);
    }
    let report = executable.run(&[own], &mut InDeviceMemory(to.clone()), &Caller).unwrap();
    assert_eq!(report.copied_bytes, 0);
    assert!(to.to_vec().iter().all(|&code| code == ZERO_POINT), "zeros in");
    Ok(())
}
