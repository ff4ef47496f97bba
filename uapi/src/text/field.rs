//! The fields of each command as text: one list, read by both directions.

use crate::addr::{Operand, SlotId};
use crate::command::{
    Command, Dims, Flags, Header, Stage, Strides, Strides4, Window, element, norm_kind, pool_kind,
};
use crate::float_order::code as float_order;
use crate::rows::sum_order;
use alloc::format;
use alloc::string::{String, ToString};

/// One field's text. `print` gives `None` for the value that a missing field has.
pub(super) trait Field {
    fn print(&self) -> Option<String>;
    /// Takes the value, or says what it wants.
    fn parse(&mut self, text: &str) -> Result<(), &'static str>;
}

/// What [`fields`] calls for each field, by name.
pub(super) type Visit<'a> = dyn FnMut(&'static str, &mut dyn Field) + 'a;

/// Calls `visit` for every field that the text form has, in the order it writes them.
pub(super) fn fields(command: &mut Command, visit: &mut Visit<'_>) {
    macro_rules! visit {
        ($c:ident: $($field:ident),* $(,)?) => { $( visit(stringify!($field), &mut $c.$field); )* };
    }
    macro_rules! required {
        ($c:ident: $($field:ident),* $(,)?) => {
            $( visit(stringify!($field), &mut Required(&mut $c.$field)); )*
        };
    }
    match command {
        Command::Conv(c) => {
            header(&mut c.header, visit);
            required!(c: ifm, weights, channels, ofm);
            visit!(c: aux, tables, quant, ifm_dims, ofm_h, ofm_w, ofm_c, groups);
            visit!(c: ifm_strides, ofm_strides, aux_strides);
            window(&mut c.window, visit);
            stage(&mut c.stage, visit);
        }
        Command::MatMul(c) => {
            header(&mut c.header, visit);
            required!(c: a, weights, channels, out);
            visit!(c: aux, tables, quant, m, n, k, a_row, out_row, aux_row);
            stage(&mut c.stage, visit);
        }
        Command::Product(c) => {
            header(&mut c.header, visit);
            required!(c: a, b, out);
            visit!(c: tables, outer, batch, m, n, k, a_outer, a_batch, a_row);
            visit!(c: b_outer, b_batch, b_row, b_column, out_outer, out_batch, out_row);
            visit!(c: multiplier, a_zero_point, b_zero_point, zero_point, clamp_low, clamp_high);
        }
        Command::Softmax(c) => {
            header(&mut c.header, visit);
            required!(c: src, dst, table);
            visit!(c: dims, src_strides, dst_strides, scale, zero_point);
        }
        Command::Reduce(c) => {
            header(&mut c.header, visit);
            required!(c: src, dst);
            visit!(c: dims, src_strides, dst_strides, input_scale, output_scale);
            visit!(c: input_zero_point, zero_point);
            visit("order", &mut Named(&mut c.order, SUM_ORDERS, SUM_ORDER));
            visit!(c: mean);
        }
        Command::Norm(c) => {
            header(&mut c.header, visit);
            visit("kind", &mut Named(&mut c.kind, NORM_KINDS, "layer, instance or staged"));
            required!(c: src, dst, terms);
            visit!(c: dims, src_strides, dst_strides, input_scale, output_scale);
            visit!(c: epsilon, variance_scale, period);
            visit!(c: input_zero_point, zero_point, variance_zero_point);
            visit("order", &mut Named(&mut c.order, SUM_ORDERS, SUM_ORDER));
            visit("square_order", &mut Named(&mut c.square_order, SUM_ORDERS, SUM_ORDER));
        }
        Command::Resize(c) => {
            header(&mut c.header, visit);
            required!(c: ifm, ofm, taps);
            visit!(c: ifm_dims, ofm_h, ofm_w, ifm_strides, ofm_strides, input_scale, output_scale);
            visit!(c: input_zero_point, zero_point);
        }
        Command::Add(c) => {
            header(&mut c.header, visit);
            required!(c: a, b, out);
            visit!(c: tables, quant, dims, a_strides, b_strides, out_strides);
            visit!(c: first, second, offset, clamp_low, clamp_high);
        }
        Command::Mul(c) => {
            header(&mut c.header, visit);
            required!(c: a, b, out);
            visit!(c: tables, quant, dims, a_strides, b_strides, out_strides, multiplier);
            visit!(c: first_zero_point, second_zero_point, zero_point, clamp_low, clamp_high);
        }
        Command::Pool(c) => {
            header(&mut c.header, visit);
            visit(
                "kind",
                &mut Named(&mut c.kind, POOL_KINDS, "max, average, global_average or global_mean"),
            );
            required!(c: ifm, ofm);
            visit!(c: tables, quant, ifm_dims, ofm_h, ofm_w, ifm_strides, ofm_strides);
            window(&mut c.window, visit);
            visit!(c: count_padding, pad_bottom, pad_right, input_zero_point, zero_point);
            visit!(c: clamp_low, clamp_high, input_scale, output_scale, multiplier);
        }
        Command::Table(c) => {
            header(&mut c.header, visit);
            required!(c: src, dst, table);
            visit!(c: dims, src_strides, dst_strides);
        }
        Command::PairTable(c) => {
            header(&mut c.header, visit);
            required!(c: a, b, out, table);
            visit!(c: dims, a_strides, b_strides, out_strides);
        }
        Command::ChannelTable(c) => {
            header(&mut c.header, visit);
            required!(c: src, dst, tables);
            visit!(c: dims, src_strides, dst_strides);
        }
        Command::Layout(c) => {
            header(&mut c.header, visit);
            visit("src_element", &mut Named(&mut c.src_element, ELEMENTS, "u8 or f32"));
            visit("dst_element", &mut Named(&mut c.dst_element, ELEMENTS, "u8 or f32"));
            required!(c: src, dst);
            visit!(c: tables, quant, dims, src_strides, dst_strides, zero_point, scale);
            visit!(c: outer, src_outer, dst_outer);
        }
        Command::Copy(c) => {
            header(&mut c.header, visit);
            required!(c: src, dst);
            visit!(c: len);
        }
        Command::Fill(c) => {
            header(&mut c.header, visit);
            required!(c: dst);
            visit!(c: len, value);
        }
        Command::End(c) => header(&mut c.header, visit),
    }
}

const POOL_KINDS: &[(u8, &str)] = &[
    (pool_kind::MAX, "max"),
    (pool_kind::AVERAGE, "average"),
    (pool_kind::GLOBAL_AVERAGE, "global_average"),
    (pool_kind::GLOBAL_MEAN, "global_mean"),
];

const SUM_ORDER: &str = "peeled, in_turn or in_fours";

const SUM_ORDERS: &[(u8, &str)] = &[
    (sum_order::PEELED, "peeled"),
    (sum_order::IN_TURN, "in_turn"),
    (sum_order::IN_FOURS, "in_fours"),
];

const NORM_KINDS: &[(u8, &str)] = &[
    (norm_kind::LAYER, "layer"),
    (norm_kind::INSTANCE, "instance"),
    (norm_kind::STAGED, "staged"),
];

const ELEMENTS: &[(u8, &str)] = &[(element::U8, "u8"), (element::F32, "f32")];

const FLOAT_ORDERS: &[(u8, &str)] = &[
    (float_order::FUSED, "fused"),
    (float_order::FUSED_BEHIND_BIAS, "fused_behind_bias"),
    (float_order::QUADS, "quads"),
    (float_order::QUADS_BEHIND_BIAS, "quads_behind_bias"),
    (float_order::LANES, "lanes"),
];

fn header(header: &mut Header, visit: &mut Visit<'_>) {
    visit("op", &mut header.op_id);
    visit("flags", &mut FlagNames(&mut header.flags));
}

fn window(w: &mut Window, visit: &mut Visit<'_>) {
    visit("kernel", &mut Pair(&mut w.kernel_h, &mut w.kernel_w));
    visit("stride", &mut Pair(&mut w.stride_h, &mut w.stride_w));
    visit("dilation", &mut Pair(&mut w.dilation_h, &mut w.dilation_w));
    visit("pad", &mut Pair(&mut w.pad_top, &mut w.pad_left));
}

fn stage(stage: &mut Stage, visit: &mut Visit<'_>) {
    visit("input_zero_point", &mut stage.input_zero_point);
    visit("zero_point", &mut stage.zero_point);
    visit("clamp_low", &mut stage.clamp_low);
    visit("clamp_high", &mut stage.clamp_high);
    visit("add_first", &mut stage.add_first);
    visit("add_second", &mut stage.add_second);
    visit("add_offset", &mut stage.add_offset);
    let want = "fused, fused_behind_bias, quads, quads_behind_bias or lanes";
    visit("float_order", &mut Named(&mut stage.float_order, FLOAT_ORDERS, want));
    visit("float_block_log2", &mut stage.float_block_log2);
    visit("input_scale", &mut stage.input_scale);
    visit("output_scale", &mut stage.output_scale);
}

/// An operand that is written even when it is the default, `s0+0x0`.
struct Required<'a>(&'a mut Operand);

/// Two sizes, `height x width`.
struct Pair<'a>(&'a mut u16, &'a mut u16);

/// A code with names.
struct Named<'a>(&'a mut u8, &'static [(u8, &'static str)], &'static str);

struct FlagNames<'a>(&'a mut u16);

macro_rules! integers {
    ($($ty:ty),*) => { $(
        impl Field for $ty {
            fn print(&self) -> Option<String> {
                (*self != 0).then(|| self.to_string())
            }

            fn parse(&mut self, text: &str) -> Result<(), &'static str> {
                let want = concat!("a decimal or 0x number that fits ", stringify!($ty));
                let digits = text.strip_prefix("0x");
                let value = match digits {
                    Some(digits) if digits.starts_with(['+', '-']) => return Err(want),
                    Some(digits) => <$ty>::from_str_radix(digits, 16),
                    None => text.parse(),
                };
                *self = value.map_err(|_| want)?;
                Ok(())
            }
        }
    )* };
}
integers!(u8, u16, u32, u64, i32, i64);

impl Field for f32 {
    fn print(&self) -> Option<String> {
        match self.to_bits() {
            0 => None,
            // The shortest decimal that reads back to the same bits; there is none for the rest.
            _ if self.is_finite() => Some(format!("{self:?}")),
            bits => Some(format!("bits:{bits:#010x}")),
        }
    }

    fn parse(&mut self, text: &str) -> Result<(), &'static str> {
        let want = "a decimal number, or bits:0x and 8 hexadecimal digits";
        *self = match text.strip_prefix("bits:") {
            Some(bits) => {
                let mut value = 0u32;
                value.parse(bits)?;
                f32::from_bits(value)
            }
            None => text.parse().map_err(|_| want)?,
        };
        Ok(())
    }
}

impl Field for Operand {
    fn print(&self) -> Option<String> {
        (!self.is_unused()).then(|| format!("{self:?}"))
    }

    fn parse(&mut self, text: &str) -> Result<(), &'static str> {
        let want = "a slot and a byte offset, as s3+0x40";
        let (slot, at) = text.split_once('+').ok_or(want)?;
        let (mut id, mut offset) = (0u16, 0u64);
        id.parse(slot.strip_prefix('s').ok_or(want)?)?;
        offset.parse(at)?;
        *self = Self::new(SlotId(id), offset);
        Ok(())
    }
}

impl Field for Required<'_> {
    fn print(&self) -> Option<String> {
        Some(format!("{:?}", self.0))
    }

    fn parse(&mut self, text: &str) -> Result<(), &'static str> {
        self.0.parse(text)
    }
}

/// Parses `parts` from `text`, divided by `by`.
fn split(
    text: &str,
    by: char,
    parts: &mut [&mut dyn Field],
    want: &'static str,
) -> Result<(), &'static str> {
    if text.split(by).count() != parts.len() {
        return Err(want);
    }
    text.split(by).zip(parts).try_for_each(|(text, part)| part.parse(text))
}

impl Field for Dims {
    fn print(&self) -> Option<String> {
        let Self { n, h, w, c } = self;
        (*self != Self::default()).then(|| format!("{n}x{h}x{w}x{c}"))
    }

    fn parse(&mut self, text: &str) -> Result<(), &'static str> {
        let Self { n, h, w, c } = self;
        split(text, 'x', &mut [n, h, w, c], "images x rows x pixels x channels, as 1x8x8x16")
    }
}

impl Field for Strides {
    fn print(&self) -> Option<String> {
        let Self { image, row, pixel } = self;
        (*self != Self::default()).then(|| format!("{image},{row},{pixel}"))
    }

    fn parse(&mut self, text: &str) -> Result<(), &'static str> {
        let Self { image, row, pixel } = self;
        split(text, ',', &mut [image, row, pixel], "three strides, as image,row,pixel")
    }
}

impl Field for Strides4 {
    fn print(&self) -> Option<String> {
        let Self { image, row, pixel, channel } = self;
        (*self != Self::default()).then(|| format!("{image},{row},{pixel},{channel}"))
    }

    fn parse(&mut self, text: &str) -> Result<(), &'static str> {
        let Self { image, row, pixel, channel } = self;
        let want = "four strides, as image,row,pixel,channel";
        split(text, ',', &mut [image, row, pixel, channel], want)
    }
}

impl Field for Pair<'_> {
    fn print(&self) -> Option<String> {
        (*self.0 != 0 || *self.1 != 0).then(|| format!("{}x{}", self.0, self.1))
    }

    fn parse(&mut self, text: &str) -> Result<(), &'static str> {
        split(text, 'x', &mut [&mut *self.0, &mut *self.1], "height x width, as 3x3")
    }
}

impl Field for Named<'_> {
    fn print(&self) -> Option<String> {
        let name = self.1.iter().find(|(code, _)| code == self.0);
        name.map_or_else(|| self.0.print(), |(_, name)| Some((*name).into()))
    }

    fn parse(&mut self, text: &str) -> Result<(), &'static str> {
        let code = self.1.iter().find(|(_, name)| *name == text);
        *self.0 = code.ok_or(self.2)?.0;
        Ok(())
    }
}

impl Field for FlagNames<'_> {
    fn print(&self) -> Option<String> {
        let flags = Flags::from_bits_retain(*self.0);
        let names = flags.iter_names().map(|(name, _)| name.to_ascii_lowercase());
        let all = names.reduce(|all, name| format!("{all}|{name}"));
        all.or_else(|| self.0.print())
    }

    fn parse(&mut self, text: &str) -> Result<(), &'static str> {
        let want = "table_0, add_aux, aux_first, table_1, dynamic or float, joined with |";
        for name in text.split('|') {
            *self.0 |= Flags::from_name(&name.to_ascii_uppercase()).ok_or(want)?.bits();
        }
        Ok(())
    }
}
