//! Bundles: the same results without a compiler, other batches with it, and any damage refused.

use super::exact::random_model;
use crate::bundle::{Bundle, BundleError};
use crate::graph::{Graph, ValueId};
use crate::run::{BundleLoadError, Executable, OwnedOutputs, RunError, RunOptions, TensorRef};
use crate::testing::{executable, expected, inputs, run};
use crate::trace;
use bytes::Bytes;
use libnpu::{Caller, Device};
use npu_uapi::limits::Limits;
use proptest::prelude::*;

/// A model of a few operators, as a bundle.
fn sample() -> (Graph, Vec<u8>) {
    let graph = random_model(5, 3);
    let blob = executable(graph.clone()).bundle().unwrap().to_bytes();
    (graph, blob)
}

fn read(blob: &[u8]) -> Result<Bundle, BundleError> {
    Bundle::from_bytes(&Bytes::copy_from_slice(blob))
}

fn load(blob: &[u8], device: &str, options: RunOptions) -> Result<Executable, BundleLoadError> {
    let device = Device::open(device).unwrap();
    let context = device.create_context().unwrap();
    Executable::from_bundle(read(blob)?, context, device, options)
}

#[test]
fn a_bundle_runs_without_a_stage_of_the_compiler_and_compiles_what_it_lacks() {
    let (graph, blob) = sample();
    let before = trace::counts();
    let loaded = load(&blob, "sim", RunOptions::default()).unwrap();
    let one = inputs(&graph, 1, 7);
    let three = inputs(&graph, 3, 8);
    let wanted = [expected(&graph, &one), expected(&graph, &three)];
    let quantized = trace::counts() - before;
    assert_eq!(quantized.to_string(), "2 stages run: quantize 2", "the reference's own");
    let before = trace::counts();
    assert_eq!(run(&loaded, &one, &wanted[0]), wanted[0]);
    assert_eq!((trace::counts() - before).total(), 0);
    assert_eq!(run(&loaded, &three, &wanted[1]), wanted[1]);
    assert!((trace::counts() - before).to_string().contains("emit 1"));
}

#[test]
fn a_bundle_of_a_loaded_bundle_is_the_same() {
    let (_, blob) = sample();
    let loaded = load(&blob, "sim", RunOptions::default()).unwrap();
    assert_eq!(loaded.bundle().unwrap().to_bytes(), blob);
}

#[test]
fn weights_are_in_a_bundle_once_and_the_graph_is_made_whole_of_them() {
    let constants = |graph: &Graph| -> Vec<Bytes> {
        let values = (0..).map(ValueId).take(graph.value_count());
        values.filter_map(|id| Some(graph.value(id).constant.clone()?.bytes)).collect()
    };
    let (mut apart_bytes, mut all_bytes) = (0, 0);
    for seed in 0..20 {
        let graph = random_model(seed, 4);
        let blob = executable(graph.clone()).bundle().unwrap().to_bytes();
        let read = read(&blob).unwrap();
        let (held, all) = (constants(&read.part), constants(&graph));
        for (held, all) in held.iter().zip(&all) {
            all_bytes += all.len();
            if held != all {
                assert!(held.is_empty(), "kept apart or kept whole");
                apart_bytes += all.len();
            }
        }
        let whole = crate::bundle::whole(&read.part, &read.programs);
        assert_eq!(constants(&whole), all, "seed {seed}");
        assert_eq!(crate::dump::graph(&whole), crate::dump::graph(&graph), "seed {seed}");
    }
    assert!(4 * apart_bytes > all_bytes, "{apart_bytes} of {all_bytes} bytes are kept apart");
}

#[test]
fn with_compiling_forbidden_the_shapes_held_are_told() {
    let (graph, _) = sample();
    let device = Device::open("sim").unwrap();
    let context = device.create_context().unwrap();
    let options = RunOptions { batches: vec![1, 2], ..RunOptions::default() };
    let made = Executable::new(graph.clone(), context, device, options).unwrap();
    let blob = made.bundle().unwrap().to_bytes();
    let options = RunOptions { compile_missing: false, programs: 1, ..RunOptions::default() };
    let loaded = load(&blob, "sim", options).unwrap();
    // More than are kept on the device, in turn.
    for batch in [1, 2, 1, 2] {
        let given = inputs(&graph, batch, 7);
        let wanted = expected(&graph, &given);
        assert_eq!(run(&loaded, &given, &wanted), wanted);
    }
    let given = inputs(&graph, 3, 7);
    let tensors: Vec<TensorRef<'_>> = given
        .iter()
        .map(|value| match value {
            crate::reference::Value::Codes(codes) => {
                TensorRef::from_u8(codes.shape(), codes.as_slice().unwrap())
            }
            crate::reference::Value::Floats(floats) => {
                TensorRef::from_f32(floats.shape(), floats.as_slice().unwrap())
            }
        })
        .collect();
    let error = loaded.run(&tensors, &mut OwnedOutputs::default(), &Caller).unwrap_err();
    let RunError::Missing { found, held } = error else { panic!("{error}") };
    assert!(found.starts_with("[3, "), "{found}");
    assert!(held.starts_with("[1, ") && held.contains("; [2, "), "{held}");
}

#[test]
fn another_device_is_told_by_what_it_lacks() {
    let (_, blob) = sample();
    let error = load(&blob, "sim:sram=512K", RunOptions::default()).unwrap_err();
    let BundleLoadError::Bundle(BundleError::Device { why }) = &error else { panic!("{error}") };
    assert!(why.contains("bytes of SRAM"), "{why}");
    assert!(error.to_string().contains("compile the model again"), "{error}");
    assert!(load(&blob, "sim:macs=256", RunOptions::default()).is_ok());
}

#[test]
fn every_flipped_bit_is_refused() {
    let (_, blob) = sample();
    let mut damaged = blob.clone();
    // All of the header and the table, and a stride through the rest that meets every bit of a byte.
    let places = (0..512.min(8 * blob.len())).chain((512..8 * blob.len()).step_by(1021));
    for place in places {
        damaged[place / 8] ^= 1 << (place % 8);
        let error = read(&damaged).expect_err("a flipped bit is seen");
        let is_typed = match place / 8 {
            0..4 => matches!(error, BundleError::Magic { .. }),
            4..6 => matches!(error, BundleError::Version { .. }),
            8..16 => matches!(error, BundleError::Length { .. }),
            _ => error == BundleError::Hash,
        };
        assert!(is_typed, "bit {place}: {error}");
        damaged[place / 8] ^= 1 << (place % 8);
    }
    assert_eq!(damaged, blob);
}

#[test]
fn every_truncation_is_refused() {
    let (_, blob) = sample();
    for len in (0..200).chain((200..blob.len()).step_by(97)) {
        let error = read(&blob[..len]).expect_err("a cut is seen");
        match len {
            0..4 => assert_eq!(error, BundleError::Magic { found: 0 }),
            _ => assert!(matches!(error, BundleError::Length { .. }), "{len}: {error}"),
        }
    }
    let longer = [&blob[..], &[0]].concat();
    assert!(matches!(read(&longer), Err(BundleError::Length { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// A graph reads back as it was: the same bundle again, of the same graph text.
    #[test]
    fn any_graph_reads_back(seed: u64, steps in 1_usize..5) {
        let part = random_model(seed, steps);
        let text = crate::dump::graph(&part);
        let (limits, compiler) = (Limits::REFERENCE, "test".to_owned());
        let blob = Bundle { part, limits, compiler, programs: Vec::new() }.to_bytes();
        let read = read(&blob).unwrap();
        prop_assert_eq!(crate::dump::graph(&read.part), text);
        prop_assert_eq!(read.to_bytes(), blob);
    }

    /// Changes that the hash does not see, since it is made anew: read or refused, never a panic.
    #[test]
    fn any_change_with_a_right_hash_is_read_or_refused(changes in prop::collection::vec((any::<usize>(), any::<u8>()), 1..4)) {
        let (_, mut blob) = sample();
        let end = blob.len();
        for (at, byte) in changes {
            blob[at % end] = byte;
        }
        crate::bundle::rehash(&mut blob);
        if let Ok(bundle) = read(&blob) {
            let _ = crate::bundle::whole(&bundle.part, &bundle.programs);
            let device = Device::open("sim").unwrap();
            let context = device.create_context().unwrap();
            let _ = Executable::from_bundle(bundle, context, device, RunOptions::default());
        }
    }
}
