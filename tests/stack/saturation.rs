//! The telemetry page counts codes at the ends of their range where that was asked for, exactly, and says
//! where it was not.

use crate::observe::ask;
use libnpu::{Caller, Context, Device, Error, Memory, Program};
use npu_tests::{HANG, Simulator, fill, image, over_each_transport, product, product_slots};
use npu_uapi::addr::{Operand, SlotId};
use npu_uapi::command::{
    ChannelRecord, Command, Dims, Flags, Header, Layout, Strides4, element, opcode,
};
use npu_uapi::image::slot_kind;
use npu_uapi::telemetry::{EndCodes, Saturation};
use serde_json::{Value, json};
use std::time::Instant;
use zerocopy::IntoBytes;

over_each_transport! {
    codes_at_the_ends_of_their_range_are_counted_exactly_where_they_are_counted,
}

/// Of the product: rows, columns (of which a row of the result has pad lanes), and the sum's length.
const M: usize = 5;
const N: usize = 33;
const K: usize = 7;
/// Floats that are quantised.
const FLOATS: usize = 200;
const ZERO_POINT: i32 = 40;

/// A program whose every code is known, with its memory.
struct Known {
    context: Context,
    program: Program,
    overlay: Vec<(SlotId, Memory)>,
    results: [libnpu::Buffer; 2],
    codes: [Vec<u8>; 2],
}

fn index(at: usize) -> u32 {
    u32::try_from(at).unwrap()
}

/// The output stage by its definition, where nothing is rounded.
fn clamped(sum: i32) -> u8 {
    u8::try_from(sum.clamp(0, 255)).unwrap()
}

impl Known {
    /// A product whose sums go far beyond a code at either end, floats that do as well, and bytes that are
    /// filled with an end, which are no results of quantising.
    fn new(device: &Device) -> Result<Self, Error> {
        let a: Vec<i32> = (0..M * K).map(|at| i32::try_from(at * 37 % 200).unwrap()).collect();
        let w: Vec<i32> = (0..N * K).map(|at| i32::try_from(at * 29 % 61).unwrap() - 30).collect();
        let sum = |i: usize, j: usize| (0..K).map(|l| a[i * K + l] * w[j * K + l]).sum::<i32>();
        let products = (0..M).flat_map(|i| (0..N).map(move |j| (i, j)));
        let products: Vec<u8> = products.map(|(i, j)| clamped(sum(i, j))).collect();
        let floats: Vec<i32> =
            (0..FLOATS).map(|at| i32::try_from(at * 7 % 400).unwrap() - 90).collect();
        let quantised: Vec<u8> = floats.iter().map(|v| clamped(v + ZERO_POINT)).collect();

        let mut slots = product_slots(index(M), index(N), index(K)).to_vec();
        slots.push((slot_kind::INPUT, index(FLOATS * 4).into()));
        slots.push((slot_kind::OUTPUT, index(FLOATS).into()));
        slots.push((slot_kind::OUTPUT, 64));
        let strides = |channel: i64| Strides4 { channel, ..Strides4::default() };
        let layout = Layout {
            header: Header::new(opcode::LAYOUT, 3, Flags::empty(), 8),
            src: Operand::new(SlotId(4), 0),
            dst: Operand::new(SlotId(5), 0),
            dims: Dims { n: 1, h: 1, w: 1, c: index(FLOATS) },
            src_strides: strides(4),
            dst_strides: strides(1),
            src_element: element::F32,
            dst_element: element::U8,
            zero_point: ZERO_POINT,
            scale: 1.0,
            ..Layout::default()
        };
        let commands = [
            product(index(M), index(N), index(K), 7),
            Command::Layout(layout),
            fill(6, 0, 64, 255, 9),
        ];
        let context = device.create_context()?;
        let program = context.load(&image(&slots, &commands))?;

        let buffers = slots.iter().map(|&(_, len)| device.allocate(usize::try_from(len).unwrap()));
        let buffers: Vec<_> = buffers.collect::<Result<_, Error>>()?;
        let row = K.next_multiple_of(4);
        for (at, &code) in a.iter().enumerate() {
            buffers[0].write(at / K * row + at % K, &[u8::try_from(code).unwrap()])?;
        }
        for (at, &weight) in w.iter().enumerate() {
            // Blocks of 16 columns by 4 of the sum.
            let (j, l) = (at / K, at % K);
            let place = j / 16 * 16 * row + l / 4 * 64 + j % 16 * 4 + l % 4;
            buffers[1].write(place, &i8::try_from(weight).unwrap().to_le_bytes())?;
        }
        for j in 0..N {
            let record = ChannelRecord { multiplier: 1.0, ..ChannelRecord::default() };
            buffers[2].write(j * 16, record.as_bytes())?;
        }
        let floats =
            floats.iter().flat_map(|&v| f32::from(i16::try_from(v).unwrap()).to_le_bytes());
        buffers[4].write(0, &floats.collect::<Vec<u8>>())?;
        let results = [buffers[3].clone(), buffers[5].clone()];
        let overlay = (0..).map(SlotId).zip(buffers.iter().map(Memory::from)).collect();
        Ok(Self { context, program, overlay, results, codes: [products, quantised] })
    }

    /// Runs it; the results are the codes that are known.
    fn run(&self) -> Result<(), Error> {
        self.context.exec(&self.program, None, self.overlay.clone())?.wait(&Caller, HANG)?;
        let row = N.next_multiple_of(16);
        let product = self.results[0].to_vec();
        let rows = (0..M).flat_map(|i| product[i * row..][..N].to_vec());
        assert_eq!(rows.collect::<Vec<_>>(), self.codes[0]);
        assert_eq!(self.results[1].to_vec()[..FLOATS], self.codes[1]);
        Ok(())
    }

    /// What is to be counted in `runs` of it.
    fn ends(&self, runs: u64) -> [EndCodes; 2] {
        self.codes.each_ref().map(|codes| {
            let count = |end| codes.iter().filter(|&&code| code == end).count() as u64 * runs;
            EndCodes { codes: codes.len() as u64 * runs, lowest: count(0), highest: count(255) }
        })
    }
}

/// The page's counts once it shows `jobs` jobs.
fn shown(device: &Device, jobs: u64) -> Saturation {
    let deadline = Instant::now() + HANG;
    loop {
        let page = device.telemetry().unwrap();
        if page.counters.jobs == jobs && !page.is_busy {
            return page.saturation.expect("the page is of layout 3");
        }
        assert!(Instant::now() < deadline, "{page:?}");
        std::thread::yield_now();
    }
}

fn codes_at_the_ends_of_their_range_are_counted_exactly_where_they_are_counted(
    device: &Device,
) -> Result<(), Error> {
    let known = Known::new(device)?;
    let jobs = device.telemetry()?.counters.jobs;
    for _ in 0..3 {
        known.run()?;
    }
    let [array, vector] = known.ends(3);
    let all = [array.lowest, array.highest, vector.lowest, vector.highest];
    assert!(all.iter().all(|&count| count > 0), "{all:?}");
    // The second of the devices counts from the start, the first does not.
    let is_counted = device.limits().macs_per_cycle == 256;
    let expected = Saturation { is_counted: 1, reserved: 0, array, vector };
    let expected = if is_counted { expected } else { Saturation::default() };
    assert_eq!(shown(device, jobs + 3), expected);
    device.reset()?;
    let begun = Saturation { is_counted: is_counted.into(), ..Saturation::default() };
    assert_eq!(shown(device, 0), begun, "as the other counters, they begin anew");
    Ok(())
}

#[test]
fn counting_is_switched_on_and_off_for_one_client_or_for_all_and_those_to_come() {
    let server = Simulator::start("");
    let [one, other] = [(); 2].map(|()| Device::open_private(&server.device()).unwrap());
    let [known, beside] = [&one, &other].map(|device| Known::new(device).unwrap());
    known.run().unwrap();
    assert_eq!(shown(&one, 1), Saturation::default(), "nobody has asked");
    let on = json!({ "command": "saturation", "client": 1, "count": true });
    assert_eq!(ask(&server, on)["clients"], json!([1]));
    known.run().unwrap();
    beside.run().unwrap();
    let [array, vector] = known.ends(1);
    let counted = Saturation { is_counted: 1, reserved: 0, array, vector };
    assert_eq!(shown(&one, 2), counted);
    assert_eq!(shown(&other, 1), Saturation::default());
    let stats = ask(&server, json!({ "command": "stats" }));
    let told = |codes: EndCodes| json!({ "codes": codes.codes, "lowest": codes.lowest, "highest": codes.highest });
    let expected = json!({ "is_counted": true, "array": told(array), "vector": told(vector) });
    assert_eq!(stats["functions"][0]["saturation"], expected);
    assert_eq!(stats["functions"][1]["saturation"]["is_counted"], false);

    // Each command of a trace has its own.
    ask(&server, json!({ "command": "trace", "client": 1, "action": "start" }));
    known.run().unwrap();
    let trace = ask(&server, json!({ "command": "trace", "client": 1, "action": "read" }));
    let events = trace["events"].as_array().unwrap().iter();
    let ends: Vec<_> = events.filter(|event| event["kind"] == "op_end").collect();
    let saturated = ends.iter().map(|event| event.get("saturated").and_then(Value::as_u64));
    let at_ends = |of: EndCodes| Some(of.lowest + of.highest);
    assert_eq!(saturated.collect::<Vec<_>>(), [at_ends(array), at_ends(vector), None, None]);

    // For all: also whoever comes.
    let on = json!({ "command": "saturation", "count": true });
    assert_eq!(ask(&server, on)["clients"], json!([1, 2]));
    let third = Device::open_private(&server.device()).unwrap();
    assert_eq!(shown(&third, 0).is_counted, 1);
    let off = json!({ "command": "saturation", "client": "all", "count": false });
    assert_eq!(ask(&server, off)["clients"], json!([1, 2, 3]));
    known.run().unwrap();
    let [array, vector] = known.ends(2);
    let stopped = Saturation { is_counted: 0, reserved: 0, array, vector };
    assert_eq!(shown(&one, 4), stopped, "what was counted stays");
    for (request, hint) in [
        (json!({ "command": "saturation" }), "needs `count`"),
        (json!({ "command": "saturation", "count": "on" }), "needs `count`"),
        (json!({ "command": "saturation", "count": true, "client": 99 }), "no client 99"),
        (json!({ "command": "saturation", "count": true, "engine": 1 }), "no field `engine`"),
    ] {
        let reply = server.manage(&request.to_string());
        assert!(reply["error"].as_str().unwrap().contains(hint), "{request}: {reply}");
    }
}
