//! `npu objdump`: what a program file holds, and what each command costs on a device.
//!
//! The listing assembles again: everything that is not the program stands in comments.

use anyhow::{Context, Result};
use kmod_sim::timing::{self, Cost};
use npu_uapi::command::Command;
use npu_uapi::container::{self, Container, Io};
use npu_uapi::image::{Image, slot_kind};
use npu_uapi::limits::Limits;
use npu_uapi::text::{command_text, head_text, slot_kind_name};
use npu_uapi::verify::verify;
use serde::Serialize;
use std::fmt::Write as _;
use std::io::{ErrorKind, Write as _};
use std::path::PathBuf;

/// Print a program: header, slots, tensors, commands and their modelled cost.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// A program file (.npu), or a bare image.
    file: PathBuf,
    /// The device to verify and price the program for, as `sim:macs=256`.
    #[arg(long, default_value = "sim")]
    device: String,
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
}

/// Prints what `args` ask for.
pub(crate) fn run(args: Args) -> Result<()> {
    let bytes = std::fs::read(&args.file)
        .with_context(|| format!("cannot read {}", args.file.display()))?;
    let container = read(&bytes).with_context(|| format!("cannot list {}", args.file.display()))?;
    let device = libnpu::Device::open(&args.device)
        .with_context(|| format!("cannot open device `{}`", args.device))?;
    let listing = Listing::of(&container, bytes.len(), device.limits());
    let text = match args.json {
        true => serde_json::to_string_pretty(&listing)? + "\n",
        false => listing.text(&container.image),
    };
    match std::io::stdout().write_all(text.as_bytes()) {
        // The reader has seen enough, as `head` has.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot write the listing"),
    }
}

/// A program file, or a bare image as one without names.
fn read(bytes: &[u8]) -> Result<Container> {
    if bytes.starts_with(&container::MAGIC.to_le_bytes()) {
        return Ok(Container::from_bytes(bytes)?);
    }
    let image = Image::from_bytes(bytes)?;
    Ok(Container { image, ..Container::default() })
}

/// Version of the JSON form.
const SCHEMA: u16 = 1;

#[derive(Serialize)]
struct Listing {
    schema: u16,
    bytes: usize,
    compiler: String,
    source: String,
    /// `None` when the verifier accepts the program.
    refused: Option<String>,
    slots: Vec<Slot>,
    tensors: Vec<Tensor>,
    commands: Vec<Line>,
    total: Price,
}

#[derive(Serialize)]
struct Slot {
    kind: &'static str,
    bytes: u64,
    /// Bytes that the file holds for the slot.
    constants: Option<usize>,
}

#[derive(Serialize)]
struct Tensor {
    direction: &'static str,
    name: String,
    element: String,
    shape: Vec<u64>,
    slot: u16,
}

#[derive(Serialize)]
struct Line {
    index: usize,
    command: &'static str,
    op_id: u32,
    node: Option<String>,
    text: String,
    #[serde(flatten)]
    price: Price,
}

#[derive(Clone, Copy, Default, Serialize)]
struct Price {
    cycles: u64,
    macs: u64,
    dram_read: u64,
    dram_written: u64,
    sram_read: u64,
    sram_written: u64,
}

impl Price {
    fn of(command: &Command, image: &Image, limits: &Limits) -> Self {
        let cost = timing::cycles(command, limits, &|slot| {
            image.slots.get(slot.index()).is_some_and(|decl| decl.kind == slot_kind::SRAM)
        });
        let Cost { cycles, macs, dram_read, dram_written, sram_read, sram_written, .. } = cost;
        Self { cycles, macs, dram_read, dram_written, sram_read, sram_written }
    }

    fn add(&mut self, other: Self) {
        for (sum, more) in [
            (&mut self.cycles, other.cycles),
            (&mut self.macs, other.macs),
            (&mut self.dram_read, other.dram_read),
            (&mut self.dram_written, other.dram_written),
            (&mut self.sram_read, other.sram_read),
            (&mut self.sram_written, other.sram_written),
        ] {
            *sum = sum.saturating_add(more);
        }
    }

    fn text(&self) -> String {
        format!(
            "{} cycles, {} MAC, DRAM {} read {} written, SRAM {} read {} written",
            self.cycles,
            self.macs,
            self.dram_read,
            self.dram_written,
            self.sram_read,
            self.sram_written
        )
    }
}

impl Listing {
    fn of(container: &Container, bytes: usize, limits: &Limits) -> Self {
        let image = &container.image;
        let mut total = Price::default();
        let mut commands = Vec::new();
        for (index, command) in image.commands.iter().enumerate() {
            let price = Price::of(command, image, limits);
            total.add(price);
            let op_id = command.header().op_id;
            commands.push(Line {
                index,
                command: command.name(),
                op_id,
                node: container.name(op_id).map(str::to_owned),
                text: command_text(command),
                price,
            });
        }
        let constants = |slot: usize| container.constants.iter().find(|(id, _)| id.index() == slot);
        let slots = image.slots.iter().enumerate().map(|(id, decl)| Slot {
            kind: slot_kind_name(decl.kind),
            bytes: decl.len,
            constants: constants(id).map(|(_, bytes)| bytes.len()),
        });
        Self {
            schema: SCHEMA,
            bytes,
            compiler: container.compiler.clone(),
            source: container.source.iter().map(|byte| format!("{byte:02x}")).collect(),
            refused: verify(image, limits).err().map(|refusal| refusal.to_string()),
            slots: slots.collect(),
            tensors: container.io.iter().map(tensor).collect(),
            commands,
            total,
        }
    }

    fn text(&self, image: &Image) -> String {
        let mut out = format!("# {} bytes", self.bytes);
        if !self.compiler.is_empty() {
            out += &format!(", compiled by {}, source {}", comment(&self.compiler), self.source);
        }
        out += "\n";
        out += &match &self.refused {
            None => "# the verifier accepts it\n".to_owned(),
            Some(refusal) => format!("# {}\n", comment(refusal)),
        };
        for tensor in &self.tensors {
            let Tensor { direction, name, element, shape, slot } = tensor;
            out += &format!("# {direction} s{slot} {element} {shape:?} {}\n", comment(name));
        }
        for (id, slot) in self.slots.iter().enumerate() {
            if let Some(bytes) = slot.constants {
                out += &format!("# s{id} is given {bytes} bytes by the file\n");
            }
        }
        out += "\n";
        out += &head_text(image);
        for line in &self.commands {
            let node = line.node.as_deref().unwrap_or("no name");
            let (index, price) = (line.index, line.price.text());
            // Writing to a string cannot fail.
            let _ = write!(out, "\n# {index} {}: {price}\n{}", comment(node), line.text);
        }
        out + "\n# total: " + &self.total.text() + "\n"
    }
}

/// `text` on one line, so that a name cannot leave its comment.
fn comment(text: &str) -> String {
    text.escape_debug().to_string()
}

fn tensor(io: &Io) -> Tensor {
    let element = match io.element {
        1 => "float32".to_owned(),
        2 => "uint8".to_owned(),
        3 => "int8".to_owned(),
        6 => "int32".to_owned(),
        7 => "int64".to_owned(),
        other => format!("type {other}"),
    };
    Tensor {
        direction: if io.output { "output" } else { "input" },
        name: io.name.clone(),
        element,
        shape: io.shape.clone(),
        slot: io.slot.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use npu_uapi::addr::SlotId;
    use npu_uapi::text::assemble;

    const PROGRAM: &str = "\
image isa=1.0 features=0x0
slot s0 scratch 4096
slot s1 constant 256
table op=3 src=s0+0x0 dst=s0+0x400 table=s1+0x0 dims=1x8x8x16
    src_strides=1024,128,16 dst_strides=1024,128,16
fill op=4 dst=s0+0x0 len=160 value=7
end
";

    fn container() -> Container {
        Container {
            image: assemble(PROGRAM).unwrap(),
            constants: vec![(SlotId(1), vec![0; 256])],
            io: vec![Io {
                name: "in\n# put".into(),
                element: 2,
                shape: vec![1, 16],
                ..Io::default()
            }],
            names: vec![(3, "/relu\nend".into())],
            compiler: "ep-npu 0.1.0".into(),
            ..Container::default()
        }
    }

    #[test]
    fn a_listing_assembles_to_the_image_it_shows() {
        let container = container();
        let listing = Listing::of(&container, 100, &Limits::REFERENCE);
        let text = listing.text(&container.image);
        assert_eq!(assemble(&text).unwrap(), container.image, "{text}");
        assert!(text.contains("# 0 /relu\\nend: 272 cycles"), "{text}");
        assert!(text.contains("# the verifier accepts it"), "{text}");
        assert!(text.contains("# input s0 uint8 [1, 16] in\\n# put"), "{text}");
    }

    #[test]
    fn json_has_the_same_figures() {
        let listing = Listing::of(&container(), 100, &Limits::REFERENCE);
        let json: serde_json::Value = serde_json::to_value(&listing).unwrap();
        assert_eq!(json["schema"], 1);
        assert_eq!(json["commands"][1]["command"], "fill");
        assert_eq!(json["commands"][1]["cycles"], 128 + 10);
        assert_eq!(json["commands"][1]["dram_written"], 160);
        let sum = json["commands"].as_array().unwrap().iter();
        let sum: u64 = sum.map(|line| line["cycles"].as_u64().unwrap()).sum();
        assert_eq!(json["total"]["cycles"], sum);
    }

    #[test]
    fn a_refused_program_is_listed_with_the_reason() {
        let mut container = container();
        container.image.slots[0].len = 100;
        let listing = Listing::of(&container, 100, &Limits::REFERENCE);
        assert!(listing.refused.as_ref().unwrap().contains("rule 14"));
        assert!(listing.text(&container.image).contains("# program refused: command 0 (table"));
    }

    #[test]
    fn both_kinds_of_file_are_read_and_others_refused() {
        let container = container();
        assert_eq!(read(&container.to_bytes()).unwrap(), container);
        assert_eq!(read(&container.image.to_bytes()).unwrap().image, container.image);
        assert!(read(b"\x7fELF").is_err());
    }
}
