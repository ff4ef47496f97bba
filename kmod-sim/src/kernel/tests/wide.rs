//! CONV and MATMUL of many outputs and of wide kernels over three channels, against the same oracle as any:
//! shapes that random ones seldom have.

use super::conv::{Case, check_conv, check_matmul, flags};
use super::machine::{Style, style};
use npu_uapi::command::{Dims, Window};
use proptest::prelude::*;

/// Mostly without gaps between pixels, rows and images.
fn dense() -> impl Strategy<Value = Style> {
    let none = Style { padding: 1, row_gap: 0, image_gap: 0, lead: 0, reversed: 0 };
    prop_oneof![4 => Just(none), 1 => style()]
}

/// Outputs in whole blocks of 16, with all remainders of panels of four; 24, which are paired; seldom others.
fn outputs() -> impl Strategy<Value = u32> {
    prop_oneof![6 => (2u32..13).prop_map(|blocks| 16 * blocks), 3 => Just(24), 1 => 40u32..200]
}

fn case(
    dims: Dims,
    (groups, outputs): (u32, u32),
    window: Window,
    flags: npu_uapi::command::Flags,
    styles: [Style; 3],
    seed: u64,
) -> Case {
    let (pad_bottom, pad_right) = (window.pad_top, window.pad_left);
    Case {
        dims,
        groups,
        outputs,
        window,
        pad_bottom,
        pad_right,
        flags,
        asymmetric: false,
        extreme: false,
        styles,
        seed,
    }
}

proptest! {
    #[test]
    fn pixels_in_a_row_equal_the_oracle(
        n in 1u32..3, h in 1u32..5, w in 1u32..60, inputs in 60u32..160, groups in 1u32..3,
        outputs in outputs(), flags in flags(), styles in [dense(), dense(), dense()], seed: u64,
    ) {
        let one = Window {
            kernel_h: 1, kernel_w: 1, stride_h: 1, stride_w: 1, dilation_h: 1, dilation_w: 1,
            ..Window::default()
        };
        let inputs = inputs.next_multiple_of(4) * groups;
        let dims = Dims { n, h, w, c: inputs };
        check_conv(&case(dims, (groups, outputs * groups), one, flags, styles, seed))?;
    }

    #[test]
    fn windows_in_the_padding_equal_the_oracle(
        n in 1u32..3, h in 1u32..9, w in 1u32..40, inputs in prop_oneof![2 => Just(3u32), 1 => 1u32..12],
        kernel in (2u16..8, 2u16..10), stride in (1u16..4, 1u16..4), dilation in 1u16..3,
        pads in (0u16..5, 0u16..5), outputs in outputs(), flags in flags(),
        styles in [dense(), dense(), dense()], seed: u64,
    ) {
        let window = Window {
            kernel_h: kernel.0, kernel_w: kernel.1, stride_h: stride.0, stride_w: stride.1,
            dilation_h: dilation, dilation_w: 1, pad_top: pads.0, pad_left: pads.1,
        };
        let styles = styles.map(|style| Style { padding: style.padding % 4, ..style });
        let ifm = Style { padding: 3, ..styles[0] };
        let dims = Dims { n, h, w, c: inputs };
        let styles = [ifm, styles[1], styles[2]];
        check_conv(&case(dims, (1, outputs), window, flags, styles, seed))?;
    }

    #[test]
    fn windows_over_channels_with_gaps_between_pixels_equal_the_oracle(
        n in 1u32..3, h in 1u32..7, w in 1u32..70, inputs in 1u32..40,
        kernel in (1u16..4, 1u16..4), stride in (1u16..3, 1u16..3), dilation in (1u16..3, 1u16..3),
        pads in (0u16..3, 0u16..3), outputs in outputs(), flags in flags(),
        styles in [dense(), dense(), dense()], gap in 0u8..5, seed: u64,
    ) {
        let window = Window {
            kernel_h: kernel.0, kernel_w: kernel.1, stride_h: stride.0, stride_w: stride.1,
            dilation_h: dilation.0, dilation_w: dilation.1, pad_top: pads.0, pad_left: pads.1,
        };
        let ifm = Style { padding: 4 * gap + 3, ..styles[0] };
        let dims = Dims { n, h, w, c: inputs };
        let styles = [ifm, styles[1], styles[2]];
        check_conv(&case(dims, (1, outputs), window, flags, styles, seed))?;
    }

    #[test]
    fn products_of_many_columns_equal_the_oracle(
        m in 1u32..120, n in outputs(), k in 64u32..520, flags in flags(),
        styles in [dense(), dense(), dense()], seed: u64,
    ) {
        check_matmul([m, n, k], flags, false, styles, seed)?;
    }
}
