//! 3x3 windows of stride 1 over many channels, which have a kernel of fewer products, against the same oracle as
//! any. Its sums are known modulo a power of two only: the largest ones must come out right, too.

use super::conv::{Case, check_conv, flags};
use super::machine::{Style, style};
use npu_uapi::command::{Dims, Flags, Window};
use proptest::prelude::*;

fn styles() -> impl Strategy<Value = [Style; 3]> {
    let none = Style { padding: 1, row_gap: 0, image_gap: 0, lead: 0, reversed: 0 };
    let one = move || prop_oneof![1 => Just(none), 1 => style()];
    [one(), one(), one()]
}

fn case(
    dims: Dims,
    outputs: u32,
    pads: [u16; 4],
    flags: Flags,
    (styles, extreme, seed): ([Style; 3], bool, u64),
) -> Case {
    let [pad_top, pad_left, pad_bottom, pad_right] = pads;
    Case {
        dims,
        groups: 1,
        outputs,
        window: Window {
            kernel_h: 3,
            kernel_w: 3,
            stride_h: 1,
            stride_w: 1,
            dilation_h: 1,
            dilation_w: 1,
            pad_top,
            pad_left,
        },
        pad_bottom,
        pad_right,
        flags,
        asymmetric: false,
        extreme,
        styles,
        seed,
    }
}

/// Inputs in whole vectors of their values, in halves of one, and fewer.
fn inputs() -> impl Strategy<Value = u32> {
    prop_oneof![2 => (1u32..3).prop_map(|c| 32 * c), 2 => (1u32..8).prop_map(|c| 16 * c),
        1 => (1u32..30).prop_map(|c| 4 * c)]
}

/// Panels of one to three blocks, and a block and a half.
fn outputs() -> impl Strategy<Value = u32> {
    prop_oneof![2 => Just(24u32), 3 => (1u32..8).prop_map(|blocks| 16 * blocks)]
}

fn pads() -> impl Strategy<Value = [u16; 4]> {
    prop_oneof![1 => Just([1u16; 4]), 1 => prop::array::uniform4(0u16..4)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn tiles_of_any_map_equal_the_oracle(
        n in 1u32..3, h in 1u32..22, w in 1u32..30, c in inputs(), outputs in outputs(), pads in pads(),
        flags in flags(), rest in (styles(), any::<bool>(), any::<u64>()),
    ) {
        check_conv(&case(Dims { n, h, w, c }, outputs, pads, flags, rest))?;
    }

    #[test]
    fn pairs_of_tiles_equal_the_oracle(
        n in 1u32..3, h in 1u32..40, w in 1u32..40, c in (1u32..5).prop_map(|c| 16 * c), pads in pads(),
        flags in flags(), rest in (styles(), any::<bool>(), any::<u64>()),
    ) {
        check_conv(&case(Dims { n, h, w, c }, 24, pads, flags, rest))?;
    }

    #[test]
    fn sums_of_deep_layers_equal_the_oracle(
        h in 1u32..12, w in 1u32..17, c in 6u32..27, outputs in outputs(),
        flags in flags(), rest in (styles(), any::<bool>(), any::<u64>()),
    ) {
        check_conv(&case(Dims { n: 1, h, w, c: 16 * c }, outputs, [1; 4], flags, rest))?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn parts_of_many_tiles_equal_the_oracle(
        h in 21u32..27, w in 21u32..33, c in 13u32..16, outputs in 3u32..6,
        flags in flags(), rest in (styles(), any::<bool>(), any::<u64>()),
    ) {
        check_conv(&case(Dims { n: 1, h, w, c: 16 * c }, 16 * outputs, [1; 4], flags, rest))?;
    }
}
