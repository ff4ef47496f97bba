//! Programs built by hand from commands: packed, loaded, verified, executed, unpacked, compared.

use super::scalar::{self, Map};
use super::{Bench, Figures};
use anyhow::{Context as _, Result, bail, ensure};
use libnpu::{Access, Buffer, Memory};
use npu_uapi::addr::{Operand, SlotId};
use npu_uapi::command::{
    Add, ChannelRecord, Command, Conv, Dims, End, Fill, Flags, Header, MatMul, Pool, Stage,
    Strides, Window, opcode, pool_kind, record_bytes,
};
use npu_uapi::image::{Image, SlotDecl, slot_kind};
use npu_uapi::requantise::{self, AddTerms};
use npu_uapi::status::Status;
use npu_uapi::verify::Rule;
use std::time::Instant;
use zerocopy::IntoBytes;

/// The image of `commands`, END appended.
fn image(slots: &[SlotDecl], commands: &[Command]) -> Vec<u8> {
    let end = Command::End(End { header: header(opcode::END, 1, 0), ..End::default() });
    let commands = commands.iter().copied().chain([end]).collect();
    Image { features: 0, slots: slots.to_vec(), commands }.to_bytes()
}

fn header(opcode: u8, units: u8, op_id: u32) -> Header {
    Header::new(opcode, units, Flags::empty(), op_id)
}

fn slot(slot: u16) -> Operand {
    Operand::new(SlotId(slot), 0)
}

/// Runs `image` on `slots`, the constants of which `table` binds.
fn execute(
    bench: &Bench,
    image: &[u8],
    table: &[(u16, &Buffer)],
    overlay: &[(u16, &Buffer, Access)],
) -> Result<Figures> {
    let program = bench.context.load(image).context("the program was not loaded")?;
    let constants = table.iter().map(|&(slot, buffer)| {
        let memory = Memory::buffer(buffer, 0, buffer.len() as u64, Access::Read)?;
        Ok((SlotId(slot), memory))
    });
    let table = bench.context.bind(&constants.collect::<Result<Vec<_>>>()?)?;
    let overlay = overlay.iter().map(|&(slot, buffer, access)| {
        Ok((SlotId(slot), Memory::buffer(buffer, 0, buffer.len() as u64, access)?))
    });
    let overlay = overlay.collect::<Result<Vec<_>>>()?;
    let started = Instant::now();
    let job = bench.context.exec(&program, Some(&table), overlay)?;
    let done = bench.finish(&job, bench.device.pool())?;
    let time = Some(started.elapsed());
    Ok(Figures { cycles: done.cycles, time, ..Figures::default() })
}

/// A buffer with `bytes` in it.
fn buffer(bench: &Bench, bytes: &[u8]) -> Result<Buffer> {
    let buffer = bench.device.allocate(bytes.len())?;
    buffer.write(0, bytes)?;
    Ok(buffer)
}

/// `rows` of `len` bytes, each padded to a multiple of `to` with what no command may let through.
fn padded(rows: &[u8], len: usize, to: usize) -> Vec<u8> {
    let pad = len.next_multiple_of(to) - len;
    rows.chunks_exact(len).flat_map(|row| [row, &vec![0xb7; pad]].concat()).collect()
}

/// The first `len` of each `stride` bytes.
fn unpadded(bytes: &[u8], len: usize, stride: usize) -> Vec<u8> {
    bytes.chunks_exact(stride).flat_map(|row| row[..len].iter().copied()).collect()
}

/// Weights `[output][reduction]`, each tap's `channels` rounded up to 4, in blocks of 16 by 4.
fn packed(weights: &[i8], outputs: usize, channels: usize) -> Vec<u8> {
    let taps = weights.len() / outputs / channels;
    let reduction = taps * channels.next_multiple_of(4);
    let at = |oc: usize, step: usize| -> u8 {
        let (tap, ic) = (step / channels.next_multiple_of(4), step % channels.next_multiple_of(4));
        let is_real = oc < outputs && ic < channels;
        if is_real { weights[(oc * taps + tap) * channels + ic].cast_unsigned() } else { 0 }
    };
    let mut bytes = Vec::new();
    for block in 0..outputs.div_ceil(16) {
        for quad in 0..reduction / 4 {
            for (lane, step) in (0..16).flat_map(|lane| (0..4).map(move |step| (lane, step))) {
                bytes.push(at(block * 16 + lane, quad * 4 + step));
            }
        }
    }
    bytes
}

/// Records as they lie in memory, padded to a multiple of 16.
fn record_memory(records: &[ChannelRecord]) -> Vec<u8> {
    let mut bytes = records.as_bytes().to_vec();
    bytes.resize(bytes.len().next_multiple_of(256), 0);
    bytes
}

fn decl(kind: u8, bytes: usize) -> SlotDecl {
    SlotDecl::new(kind, bytes as u64)
}

/// The first difference, for people.
fn compare(found: &[u8], want: &[u8]) -> Result<()> {
    ensure!(found.len() == want.len(), "{} bytes instead of {}", found.len(), want.len());
    let different = found.iter().zip(want).filter(|(found, want)| found != want).count();
    let first = found.iter().zip(want).enumerate().find(|(_, (found, want))| found != want);
    match first {
        None => Ok(()),
        Some((at, (found, want))) => {
            bail!("{different} values differ; element {at} is {found}, not {want}")
        }
    }
}

/// How many codes of `values` are distinct: a result that saturates proves little.
fn distinct(values: &[u8]) -> usize {
    let mut seen = [false; 256];
    values.iter().for_each(|&value| seen[usize::from(value)] = true);
    seen.iter().filter(|&&seen| seen).count()
}

fn product(bench: &Bench, [m, n, k]: [u32; 3], zero_points: u16) -> Result<Figures> {
    let [rows, columns, depth] = [m, n, k].map(|x| usize::try_from(x).unwrap_or(0));
    let (a, w) = (scalar::codes(rows * depth, 2), scalar::weights(columns * depth, 3));
    let records = scalar::records(columns, depth, zero_points);
    let stage = Stage { zero_point: 121, clamp_low: 3, clamp_high: 250, ..Stage::default() };
    let (a_row, out_row) = (depth.next_multiple_of(4), columns.next_multiple_of(16));

    let input = buffer(bench, &padded(&a, depth, 4))?;
    let weights = buffer(bench, &packed(&w, columns, depth))?;
    let record_buffer = buffer(bench, &record_memory(&records))?;
    let output = bench.device.allocate(rows * out_row)?;
    let command = Command::MatMul(MatMul {
        header: header(opcode::MATMUL, 3, 1),
        a: slot(0),
        weights: slot(1),
        channels: slot(2),
        out: slot(3),
        m,
        n,
        k,
        a_row: i32::try_from(a_row)?,
        out_row: i32::try_from(out_row)?,
        stage,
        ..MatMul::default()
    });
    let slots = [
        decl(slot_kind::INPUT, input.len()),
        decl(slot_kind::CONSTANT, weights.len()),
        decl(slot_kind::CONSTANT, record_buffer.len()),
        decl(slot_kind::OUTPUT, output.len()),
    ];
    ensure!(record_buffer.len() as u64 == record_bytes(n), "the records are packed wrongly");
    let overlay = [(0, &input, Access::Read), (3, &output, Access::ReadWrite)];
    let table = [(1, &weights), (2, &record_buffer)];
    let mut figures = execute(bench, &image(&slots, &[command]), &table, &overlay)?;

    let found = unpadded(&output.to_vec(), columns, out_row);
    let want = scalar::matmul(&a, &w, depth, &records, &stage);
    compare(&found, &want)?;
    let macs = u64::from(m) * u64::from(n) * u64::from(k);
    let codes = distinct(&want);
    figures.detail = format!("{m}x{n}x{k}, {codes} codes, equal; {}", rate(macs, &figures));
    Ok(figures)
}

/// `1.2 GMAC/s`.
fn rate(macs: u64, figures: &Figures) -> String {
    let nanos = figures.time.map_or(0, |time| time.as_nanos()).max(1);
    let tenths = u128::from(macs) * 10 / nanos;
    format!("{}.{} GMAC/s", tenths / 10, tenths % 10)
}

/// A product with every tail, rows, columns and depth that no block divides, and asymmetric weights.
pub(super) fn matmul(bench: &Bench) -> Result<Figures> {
    product(bench, [37, 83, 203], 3)
}

/// A product as models have them, that all workers share.
pub(super) fn large_matmul(bench: &Bench) -> Result<Figures> {
    product(bench, [512, 512, 1024], 1)
}

/// Dimensions, strides and bytes of a map of one image with pixels padded to 16 channels.
fn layout(h: u32, w: u32, c: u32) -> Result<(Dims, Strides, usize)> {
    let pixel = c.next_multiple_of(16);
    let (row, image) = (w * pixel, h * w * pixel);
    let (row, pixel) = (i32::try_from(row)?, i32::try_from(pixel)?);
    let strides = Strides { image: image.into(), row, pixel };
    Ok((Dims { n: 1, h, w, c }, strides, usize::try_from(image)?))
}

/// A convolution into SRAM, a residual added there, the result pooled to memory.
pub(super) fn conv_add_pool(bench: &Bench) -> Result<Figures> {
    const H: u32 = 14;
    const W: u32 = 18;
    const INPUTS: u32 = 21;
    const OUTPUTS: u32 = 40;
    let [h, w, inputs, outputs] = [H, W, INPUTS, OUTPUTS].map(|x| usize::try_from(x).unwrap_or(0));
    let ifm = Map { h, w, c: inputs, data: scalar::codes(h * w * inputs, 4) };
    let residual = Map { h, w, c: outputs, data: scalar::codes(h * w * outputs, 5) };
    let kernel = scalar::weights(outputs * 9 * inputs, 6);
    let records = scalar::records(outputs, 9 * inputs, 1);
    let stage =
        Stage { input_zero_point: 117, zero_point: 128, clamp_high: 255, ..Stage::default() };
    let terms = AddTerms::new((0.031, 128), (0.027, 110), (0.045, 124));

    let (ifm_dims, ifm_strides, ifm_bytes) = layout(H, W, INPUTS)?;
    let (ofm_dims, ofm_strides, ofm_bytes) = layout(H, W, OUTPUTS)?;
    let (_, pool_strides, pool_bytes) = layout(H / 2, W / 2, OUTPUTS)?;
    let unit = Window { kernel_h: 1, kernel_w: 1, stride_h: 1, stride_w: 1, ..Window::default() };
    let conv = Command::Conv(Conv {
        header: header(opcode::CONV, 4, 1),
        ifm: slot(0),
        weights: slot(1),
        channels: slot(2),
        ofm: slot(4),
        ifm_dims,
        ofm_h: H,
        ofm_w: W,
        ofm_c: OUTPUTS,
        groups: 1,
        ifm_strides,
        ofm_strides,
        window: Window {
            kernel_h: 3,
            kernel_w: 3,
            dilation_h: 1,
            dilation_w: 1,
            pad_top: 1,
            pad_left: 1,
            ..unit
        },
        stage,
        ..Conv::default()
    });
    let add = Command::Add(Add {
        header: header(opcode::ADD, 3, 2),
        a: slot(4),
        b: slot(3),
        out: slot(4),
        dims: ofm_dims,
        a_strides: ofm_strides,
        b_strides: ofm_strides,
        out_strides: ofm_strides,
        first: terms.first,
        second: terms.second,
        offset: terms.offset,
        clamp_low: 9,
        clamp_high: 240,
        ..Add::default()
    });
    let pool = Command::Pool(Pool {
        header: header(opcode::POOL, 3, 3),
        ifm: slot(4),
        ofm: slot(5),
        ifm_dims: ofm_dims,
        ofm_h: H / 2,
        ofm_w: W / 2,
        kind: pool_kind::MAX,
        ifm_strides: ofm_strides,
        ofm_strides: pool_strides,
        window: Window {
            kernel_h: 2,
            kernel_w: 2,
            stride_h: 2,
            stride_w: 2,
            dilation_h: 1,
            dilation_w: 1,
            ..Window::default()
        },
        clamp_high: 255,
        ..Pool::default()
    });

    let input = buffer(bench, &padded(&ifm.data, inputs, 16))?;
    let weights = buffer(bench, &packed(&kernel, outputs, inputs))?;
    let record_buffer = buffer(bench, &record_memory(&records))?;
    let residual_buffer = buffer(bench, &padded(&residual.data, outputs, 16))?;
    let output = bench.device.allocate(pool_bytes)?;
    ensure!(input.len() == ifm_bytes, "the input is packed wrongly");
    let slots = [
        decl(slot_kind::INPUT, input.len()),
        decl(slot_kind::CONSTANT, weights.len()),
        decl(slot_kind::CONSTANT, record_buffer.len()),
        decl(slot_kind::INPUT, residual_buffer.len()),
        decl(slot_kind::SRAM, ofm_bytes),
        decl(slot_kind::OUTPUT, output.len()),
    ];
    let table = [(1, &weights), (2, &record_buffer)];
    let overlay = [
        (0, &input, Access::Read),
        (3, &residual_buffer, Access::Read),
        (5, &output, Access::ReadWrite),
    ];
    let mut figures = execute(bench, &image(&slots, &[conv, add, pool]), &table, &overlay)?;

    let mut sum = scalar::conv3x3(&ifm, &kernel, &records, &stage);
    for (code, &other) in sum.data.iter_mut().zip(&residual.data) {
        *code = requantise::add(*code, other, terms).clamp(9, 240);
    }
    let want = scalar::max_pool2x2(&sum);
    let found = unpadded(&output.to_vec(), outputs, outputs.next_multiple_of(16));
    compare(&found, &want.data)?;
    let codes = distinct(&want.data);
    figures.detail =
        format!("{H}x{W}x{INPUTS} -> {}x{}x{OUTPUTS}, {codes} codes, equal", want.h, want.w);
    Ok(figures)
}

/// A program that leaves its slot is refused, with the rule and the command.
pub(super) fn refused(bench: &Bench) -> Result<Figures> {
    let fill = Command::Fill(Fill {
        header: header(opcode::FILL, 1, 77),
        dst: Operand::new(SlotId(0), 60),
        len: 5,
        ..Fill::default()
    });
    let image = image(&[decl(slot_kind::OUTPUT, 64)], &[fill]);
    let error = match bench.context.load(&image) {
        Ok(_) => bail!("a program that leaves its slot was loaded"),
        Err(error) => error,
    };
    let fault = *error.fault().with_context(|| format!("not a fault: {error}"))?;
    let record = fault.record.context("the device left no fault record")?;
    ensure!(fault.status == Status::PROGRAM_REFUSED, "{fault}");
    let named = (record.cause, record.op_id, record.slot);
    let want = (Rule::SlotLength.number(), 77, SlotId(0));
    ensure!(named == want, "the record says {named:?}, not {want:?}");
    Ok(Figures::new(fault.to_string()))
}
