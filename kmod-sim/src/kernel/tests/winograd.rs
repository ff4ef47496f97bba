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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn tiles_of_any_map_equal_the_oracle(
        n in 1u32..3, h in 1u32..22, w in 1u32..30, c in 1u32..3, outputs in 1u32..4,
        pads in prop_oneof![1 => Just([1u16; 4]), 1 => prop::array::uniform4(0u16..4)],
        flags in flags(), rest in (styles(), any::<bool>(), any::<u64>()),
    ) {
        check_conv(&case(Dims { n, h, w, c: 32 * c }, 32 * outputs, pads, flags, rest))?;
    }

    #[test]
    fn sums_of_deep_layers_equal_the_oracle(
        h in 1u32..12, w in 1u32..17, c in 3u32..14, outputs in 1u32..3,
        flags in flags(), rest in (styles(), any::<bool>(), any::<u64>()),
    ) {
        check_conv(&case(Dims { n: 1, h, w, c: 32 * c }, 32 * outputs, [1; 4], flags, rest))?;
    }
}
