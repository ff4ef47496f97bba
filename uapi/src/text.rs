//! A program as text: a disassembly that assembles again.
//!
//! ```text
//! image isa=1.0 features=0x0
//! slot s0 scratch 4096
//! fill op=3 dst=s0+0x40 len=64 value=7     # a comment
//! end
//! ```
//!
//! A line that begins with a command's name begins the command, indented lines go on with it; a field
//! that is missing is zero. Reserved fields have no text. `assemble` gives well-formed commands or
//! says where it stopped; whether the program may run is [`crate::verify`]'s to say.

mod field;

use crate::command::{
    Add, ChannelTable, Command, Conv, Copy, End, Fill, Header, ISA_VERSION, Layout, MatMul, Mul,
    Norm, PairTable, Pool, Product, Reduce, Resize, Softmax, Table, UNIT_BYTES, opcode,
};
use crate::image::{Image, SlotDecl, slot_kind};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use field::{Field, fields};

/// Columns that a line of the disassembly keeps within, unless one field is longer.
const WIDTH: usize = 100;

const SLOT_KINDS: [(u8, &str); 6] = [
    (slot_kind::UNUSED, "unused"),
    (slot_kind::SRAM, "sram"),
    (slot_kind::CONSTANT, "constant"),
    (slot_kind::SCRATCH, "scratch"),
    (slot_kind::INPUT, "input"),
    (slot_kind::OUTPUT, "output"),
];

/// Where a text is no program.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("line {line}, column {column}: found `{found}`, want {want}")]
pub struct TextError {
    /// Line, from 1.
    pub line: usize,
    /// Column in bytes, from 1.
    pub column: usize,
    /// What stands there; empty at the end of a line.
    pub found: String,
    /// What could stand there.
    pub want: String,
}

/// The text of `image`.
pub fn disassemble(image: &Image) -> String {
    let mut out = head_text(image);
    for (index, command) in image.commands.iter().enumerate() {
        out += &format!("\n# {index}\n{}", command_text(command));
    }
    out
}

/// What stands before the commands: version, features, slots.
pub fn head_text(image: &Image) -> String {
    let mut out = format!("{} features={:#x}\n", isa_line(image.isa_version()), image.features);
    for (index, slot) in image.slots.iter().enumerate() {
        out += &format!("slot s{index} {} {}\n", slot_kind_name(slot.kind), slot.len);
    }
    out
}

/// The text of one command: its name, then every field that is not zero.
pub fn command_text(command: &Command) -> String {
    let mut out = String::new();
    let mut line = String::from(command.name());
    let mut copy = *command;
    fields(&mut copy, &mut |name, field| {
        let Some(value) = field.print() else { return };
        if line.len() + name.len() + value.len() + 2 > WIDTH {
            out += &core::mem::replace(&mut line, String::from("   "));
            out.push('\n');
        }
        line += &format!(" {name}={value}");
    });
    out + &line + "\n"
}

/// The name of a slot's kind, `unknown` for one that this version does not have.
pub fn slot_kind_name(kind: u8) -> &'static str {
    SLOT_KINDS.iter().find(|(code, _)| *code == kind).map_or("unknown", |(_, name)| name)
}

/// The program that `text` says.
pub fn assemble(text: &str) -> Result<Image, TextError> {
    let mut image = Image::default();
    let mut seen_head = false;
    let mut block: Vec<Token<'_>> = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let code = line.split('#').next().unwrap_or_default();
        let indented = code.starts_with([' ', '\t']);
        let mut tokens = tokens(number, code);
        let Some(first) = tokens.first().copied() else { continue };
        if indented && !block.is_empty() {
            block.append(&mut tokens);
            continue;
        }
        finish(&mut block, &mut image)?;
        match first.text {
            "image" if !seen_head => {
                image.features = head(&tokens)?;
                seen_head = true;
            }
            _ if !seen_head => return Err(first.wants("`image` on the first line")),
            "slot" if image.commands.is_empty() => {
                let slot = slot(&tokens, image.slots.len())?;
                image.slots.push(slot);
            }
            "image" | "slot" => return Err(first.wants("a command: the slots are complete")),
            _ => block = tokens,
        }
    }
    finish(&mut block, &mut image)?;
    if !seen_head {
        return Err(Token { line: 1, column: 1, text: "" }.wants("`image` on the first line"));
    }
    Ok(image)
}

/// A word of the text, and where it stands.
#[derive(Clone, core::marker::Copy)]
struct Token<'a> {
    line: usize,
    column: usize,
    text: &'a str,
}

impl<'a> Token<'a> {
    fn wants(&self, want: impl Into<String>) -> TextError {
        let Self { line, column, text } = *self;
        TextError { line, column, found: text.into(), want: want.into() }
    }

    /// The place behind the word.
    fn end(&self) -> Token<'a> {
        Token { column: self.column + self.text.len(), text: "", ..*self }
    }

    fn part(&self, at: usize) -> Token<'a> {
        Token { column: self.column + at, text: &self.text[at..], ..*self }
    }

    fn key_value(&self) -> Result<(&'a str, Token<'a>), TextError> {
        let at = self.text.find('=').ok_or_else(|| self.wants("a field, as name=value"))?;
        Ok((&self.text[..at], self.part(at + 1)))
    }

    fn parse<T: Field>(&self, mut value: T) -> Result<T, TextError> {
        value.parse(self.text).map_err(|want| self.wants(want))?;
        Ok(value)
    }
}

fn tokens(line: usize, code: &str) -> Vec<Token<'_>> {
    let mut out = Vec::new();
    let mut at = 0;
    for text in code.split([' ', '\t', '\r']) {
        if !text.is_empty() {
            out.push(Token { line, column: at + 1, text });
        }
        at += text.len() + 1;
    }
    out
}

fn isa_line(version: u32) -> String {
    format!("image isa={}.{}", version >> 16, version & 0xffff)
}

/// `image isa=1.0 features=0x0`: the features.
fn head(tokens: &[Token<'_>]) -> Result<u32, TextError> {
    let mut features = None;
    let mut isa = false;
    for token in &tokens[1..] {
        match token.key_value()? {
            ("isa", value) if is_known(value.text) => isa = true,
            ("features", value) => features = Some(value.parse(0u32)?),
            _ => return Err(token.wants(format!("`{} features=0x0`", isa_line(ISA_VERSION)))),
        }
    }
    let end = tokens[tokens.len() - 1].end();
    match features {
        Some(features) if isa => Ok(features),
        _ => Err(end.wants(format!("`{} features=0x0`", isa_line(ISA_VERSION)))),
    }
}

/// Whether `1.0` is a version whose programs are programs of this one.
fn is_known(version: &str) -> bool {
    let (major, minor) = version.split_once('.').unwrap_or_default();
    major.parse() == Ok(ISA_VERSION >> 16)
        && minor.parse::<u32>().is_ok_and(|minor| minor <= ISA_VERSION & 0xffff)
}

/// `slot s0 scratch 4096`, slots in order.
fn slot(tokens: &[Token<'_>], index: usize) -> Result<SlotDecl, TextError> {
    let &[_, id, kind, len] = tokens else {
        let end = tokens[tokens.len() - 1].end();
        return Err(end.wants("a slot, its kind and its bytes, as `slot s0 scratch 4096`"));
    };
    let want = format!("s{index}");
    if id.text != want || index > 255 {
        return Err(id.wants(if index > 255 { "at most 256 slots".into() } else { want }));
    }
    let code = SLOT_KINDS.iter().find(|(_, name)| *name == kind.text);
    let names = "unused, sram, constant, scratch, input or output";
    Ok(SlotDecl::new(code.ok_or_else(|| kind.wants(names))?.0, len.parse(0u64)?))
}

/// Ends the command whose words `block` holds, if any.
fn finish(block: &mut Vec<Token<'_>>, image: &mut Image) -> Result<(), TextError> {
    let words = core::mem::take(block);
    let Some((name, rest)) = words.split_first() else { return Ok(()) };
    let mut command = blank(name.text).ok_or_else(|| name.wants("the name of a command"))?;
    let mut seen: Vec<&str> = Vec::new();
    for token in rest {
        let (key, value) = token.key_value()?;
        if seen.contains(&key) {
            return Err(token.wants("each field once"));
        }
        seen.push(key);
        let mut outcome = None;
        fields(&mut command, &mut |field_name, field| {
            if field_name == key {
                outcome = Some(field.parse(value.text));
            }
        });
        match outcome {
            Some(Ok(())) => {}
            Some(Err(want)) => return Err(value.wants(want)),
            None => return Err(token.wants(format!("a field of {}", name.text))),
        }
    }
    let well_formed = crate::decode::command(crate::encode::command(&command), 0);
    if let Err(error) = well_formed {
        return Err(name.wants(format!("a command that can be decoded: {error}")));
    }
    image.commands.push(command);
    Ok(())
}

/// The command called `name` with every field zero.
fn blank(name: &str) -> Option<Command> {
    macro_rules! blank {
        ($($variant:ident = $opcode:ident),* $(,)?) => {
            [$( {
                let units = u8::try_from(size_of::<$variant>() / UNIT_BYTES).ok()?;
                let header = Header { opcode: opcode::$opcode, units, ..Header::default() };
                Command::$variant($variant { header, ..$variant::default() })
            } ),*]
        };
    }
    let all = blank![
        Conv = CONV,
        MatMul = MATMUL,
        Product = PRODUCT,
        Softmax = SOFTMAX,
        Reduce = REDUCE,
        Norm = NORM,
        Resize = RESIZE,
        Add = ADD,
        Mul = MUL,
        Pool = POOL,
        Table = TABLE,
        PairTable = PAIR_TABLE,
        ChannelTable = CHANNEL_TABLE,
        Layout = LAYOUT,
        Copy = COPY,
        Fill = FILL,
        End = END,
    ];
    all.into_iter().find(|command| command.name() == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    const PROGRAM: &str = "\
image isa=1.0 features=0x0
slot s0 scratch 65536
slot s1 constant 0x1000

conv op=7 flags=add_aux|table_1 ifm=s0+0x0 weights=s1+0x0 channels=s1+0x900 ofm=s0+0x8000
    aux=s0+0x4000 tables=s1+0xa00 ifm_dims=1x8x8x16 ofm_h=8 ofm_w=8 ofm_c=16 groups=1
    ifm_strides=1024,128,16 ofm_strides=1024,128,16 aux_strides=1024,-128,16
    kernel=3x3 stride=1x1 dilation=1x1 pad=1x1 input_zero_point=128 clamp_high=255
    add_first=0.1 add_second=bits:0x7f800000 add_offset=-0.0
pool op=8 kind=max ifm=s0+0x8000 ofm=s0+0x0 ifm_dims=1x8x8x16 ofm_h=4 ofm_w=4
    ifm_strides=1024,128,16 ofm_strides=256,64,16 kernel=2x2 stride=2x2 dilation=1x1 clamp_high=255
layout op=9 src_element=u8 dst_element=f32 src=s0+0x0 dst=s0+0x100 dims=1x4x4x10
    src_strides=256,64,16,1 dst_strides=640,16,4,64 zero_point=3 scale=0.0625 # comment
end
";

    #[test]
    fn a_program_prints_as_blocks_and_reads_back() {
        let image = assemble(PROGRAM).unwrap();
        let text = disassemble(&image);
        insta::assert_snapshot!(text, @r"
        image isa=1.0 features=0x0
        slot s0 scratch 65536
        slot s1 constant 4096

        # 0
        conv op=7 flags=add_aux|table_1 ifm=s0+0x0 weights=s1+0x0 channels=s1+0x900 ofm=s0+0x8000
            aux=s0+0x4000 tables=s1+0xa00 ifm_dims=1x8x8x16 ofm_h=8 ofm_w=8 ofm_c=16 groups=1
            ifm_strides=1024,128,16 ofm_strides=1024,128,16 aux_strides=1024,-128,16 kernel=3x3 stride=1x1
            dilation=1x1 pad=1x1 input_zero_point=128 clamp_high=255 add_first=0.1
            add_second=bits:0x7f800000 add_offset=-0.0

        # 1
        pool op=8 kind=max ifm=s0+0x8000 ofm=s0+0x0 ifm_dims=1x8x8x16 ofm_h=4 ofm_w=4
            ifm_strides=1024,128,16 ofm_strides=256,64,16 kernel=2x2 stride=2x2 dilation=1x1 clamp_high=255

        # 2
        layout op=9 src_element=u8 dst_element=f32 src=s0+0x0 dst=s0+0x100 dims=1x4x4x10
            src_strides=256,64,16,1 dst_strides=640,16,4,64 zero_point=3 scale=0.0625

        # 3
        end
        ");
        assert_eq!(assemble(&text).unwrap(), image);
    }

    #[test]
    fn a_mistake_is_shown_with_line_and_column() {
        let head = "image isa=1.0 features=0x0\n";
        let after = |text: &str| format!("{head}{text}\n");
        let texts = [
            after("fill dst=s0+0x40 len=ten"),
            after("fill dst=q0+0x40"),
            after("fill dts=s0+0x40"),
            after("fill len=1 len=2"),
            after("jump"),
            after("slot s1 scratch 5"),
            after("slot s0 scratch"),
            after("pool kind=min"),
            after("conv clamp_low=5"),
            "fill".into(),
            "".into(),
            "image isa=2.0 features=0".into(),
        ];
        let errors = texts.map(|text| assemble(&text).unwrap_err().to_string());
        insta::assert_snapshot!(errors.join("\n"), @r"
        line 2, column 22: found `ten`, want a decimal or 0x number that fits u64
        line 2, column 10: found `q0+0x40`, want a slot and a byte offset, as s3+0x40
        line 2, column 6: found `dts=s0+0x40`, want a field of fill
        line 2, column 12: found `len=2`, want each field once
        line 2, column 1: found `jump`, want the name of a command
        line 2, column 6: found `s1`, want s0
        line 2, column 16: found ``, want a slot, its kind and its bytes, as `slot s0 scratch 4096`
        line 2, column 11: found `min`, want max, average, global_average or global_mean
        line 2, column 1: found `conv`, want a command that can be decoded: field `clamp_low` of opcode 0x30 at byte 0 cannot be 5
        line 1, column 1: found `fill`, want `image` on the first line
        line 1, column 1: found ``, want `image` on the first line
        line 1, column 7: found `isa=2.0`, want `image isa=1.3 features=0x0`
        ");
    }
}
