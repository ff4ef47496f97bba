//! `cargo xtask book`: prints the manual pages that are derived from `uapi`, so that they cannot drift.
//!
//! `docs/registers.md` comes from the register table, `docs/isa.md` and `docs/queues.md` from the wire
//! structs and their documentation in `uapi/src`. `--check` compares instead of writing, for CI.

use anyhow::{Context as _, Result, bail};
use npu_uapi::reg::Access;
use npu_uapi::{regs, status};
use std::fmt::Write as _;
use std::path::Path;

/// Writes the pages below `root`, or fails where one is not current.
pub(crate) fn run(root: &Path, check: bool) -> Result<()> {
    let pages = [
        ("docs/registers.md", registers()),
        (
            "docs/isa.md",
            structs(
                root,
                &[
                    "command",
                    "command/product",
                    "command/pool",
                    "command/lookup",
                    "command/rows",
                    "command/resize",
                    "command/parts",
                ],
                "Command set",
            )?,
        ),
        ("docs/queues.md", structs(root, &["queue"], "Queue entries")?),
    ];
    for (name, text) in pages {
        let path = root.join(name);
        if check {
            let found = std::fs::read_to_string(&path).unwrap_or_default();
            if found != text {
                bail!("{name} is not what `uapi` says; run `cargo xtask book` and commit it");
            }
        } else {
            std::fs::write(&path, text).with_context(|| format!("writing {name}"))?;
        }
    }
    Ok(())
}

const NOTE: &str = "<!-- Printed by `cargo xtask book` from `uapi`; edit there. -->\n";

fn registers() -> String {
    let mut page =
        format!("# Registers\n\n{NOTE}\nBAR0, 64 KiB, 32-bit registers accessed whole.\n");
    for register in regs::TABLE {
        let access = match register.access {
            Access::ReadOnly => "read-only",
            Access::ReadWrite => "read-write",
            Access::WriteOnly => "write-only",
            Access::WriteOneToClear => "write 1 to clear",
        };
        let (name, offset, doc) = (register.name, register.offset, plain(register.doc));
        let _ = write!(page, "\n## `{offset:#06x}` {name} ({access})\n\n{doc}\n\n");
        page.push_str("| bits | field | meaning |\n|---|---|---|\n");
        for field in register.fields {
            let (high, low, name, doc) = (field.high, field.low, field.name, plain(field.doc));
            let _ = writeln!(page, "| {high}:{low} | `{name}` | {doc} |");
        }
    }
    page.push_str("\n## Status codes\n\n| code | name | meaning |\n|---|---|---|\n");
    for (code, name, meaning) in status::Status::ALL {
        let _ = writeln!(page, "| {} | `{name}` | {meaning} |", code.0);
    }
    page
}

/// The page of a module: the documentation of its first file, then each wire struct with byte offsets.
/// Later files hold what the first is made of, so their structs come first.
fn structs(root: &Path, files: &[&str], title: &str) -> Result<String> {
    let read = |file: &&str| {
        let path = root.join("uapi/src").join(file).with_extension("rs");
        std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    };
    let sources = files.iter().map(read).collect::<Result<Vec<_>>>()?;
    let mut page = format!("# {title}\n\n{NOTE}\n");
    for line in sources[0].lines().map_while(|line| line.strip_prefix("//!")) {
        let _ = writeln!(page, "{}", plain(line.strip_prefix(' ').unwrap_or(line)));
    }
    let mut sizes = Sizes::default();
    for item in sources.iter().rev().flat_map(|source| items(source)) {
        sizes.write(&mut page, &item)?;
    }
    Ok(page)
}

/// A struct as the source has it.
struct Item<'a> {
    name: &'a str,
    doc: String,
    /// Name, type, documentation.
    fields: Vec<(&'a str, String, String)>,
}

fn items(source: &str) -> Vec<Item<'_>> {
    let mut items = Vec::new();
    let mut doc = String::new();
    let mut open: Option<Item<'_>> = None;
    let mut in_attribute = false;
    for line in source.lines().map(str::trim).take_while(|line| !line.starts_with("#[cfg(test)]")) {
        in_attribute |= line.starts_with("#[");
        if in_attribute {
            in_attribute = !line.ends_with(']');
        } else if let Some(text) = line.strip_prefix("///") {
            doc.push_str(text.strip_prefix(' ').unwrap_or(text));
            doc.push('\n');
        } else if let Some(name) = struct_name(line) {
            let mut item = Item { name, doc: std::mem::take(&mut doc), fields: Vec::new() };
            if line.contains(" = ") {
                let header = ("header", "EntryHeader".to_owned(), "Opcode and job.".to_owned());
                item.fields.push(header);
            }
            if line.ends_with('{') { open = Some(item) } else { items.push(pad(item, line)) }
        } else if let (Some(item), Some((name, ty))) = (open.as_mut(), field(line)) {
            item.fields.push((name, ty.to_owned(), std::mem::take(&mut doc)));
        } else if let (Some(item), Some((name, value))) = (open.as_mut(), constant(line)) {
            item.fields.push((name, format!("= {value}"), std::mem::take(&mut doc)));
        } else if line.starts_with('}') {
            items.extend(open.take().map(|item| pad(item, line)));
            doc.clear();
        } else if !line.is_empty() {
            doc.clear();
        }
    }
    items
}

/// The name of `pub struct Name {`, or of the queue entries' `Name = OPCODE {`.
fn struct_name(line: &str) -> Option<&str> {
    let block = line.strip_prefix("pub struct ").or_else(|| line.strip_prefix("pub mod "));
    let named = block.and_then(|rest| rest.strip_suffix(" {"));
    let named = named.map(|name| name.strip_suffix(": u16").unwrap_or(name));
    let entry = line.split_once(" = ").filter(|(name, rest)| {
        rest.contains('{') && name.chars().all(char::is_alphanumeric) && !name.is_empty()
    });
    named.filter(|name| !name.contains(['$', ':'])).or(entry.map(|(name, _)| name))
}

/// `const NAME = value;` of a flag set, or `pub const NAME: type = value;` of a module of numbers.
fn constant(line: &str) -> Option<(&str, &str)> {
    let line = line.strip_prefix("pub ").unwrap_or(line).strip_prefix("const ")?;
    let (name, value) = line.strip_suffix(';')?.split_once(" = ")?;
    Some((name.split(':').next()?, value))
}

fn field(line: &str) -> Option<(&str, &str)> {
    let line = line.strip_prefix("pub ").unwrap_or(line);
    let (name, ty) = line.strip_suffix(',')?.split_once(": ")?;
    name.chars()
        .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        .then_some((name, ty))
}

/// Adds the reserved tail that `} pad N` of a queue entry stands for.
fn pad<'a>(mut item: Item<'a>, line: &str) -> Item<'a> {
    if let Some((_, words)) = line.split_once("} pad ") {
        item.fields.push(("reserved", format!("[u32; {words}]"), "Must be zero.".to_owned()));
    }
    item
}

/// Bytes of the types met so far.
#[derive(Default)]
struct Sizes(Vec<(String, usize)>);

impl Sizes {
    fn of(&self, ty: &str) -> Result<usize> {
        if let Some((element, count)) = ty
            .strip_prefix('[')
            .and_then(|ty| ty.strip_suffix(']'))
            .and_then(|ty| ty.split_once("; "))
        {
            return Ok(self.of(element)? * count.parse::<usize>()?);
        }
        let size = match ty {
            "u8" => 1,
            "u16" | "SlotId" | "Status" => 2,
            "u32" | "i32" | "f32" => 4,
            "u64" | "i64" | "Iova" => 8,
            "Operand" => 16,
            _ => match self.0.iter().find(|(name, _)| name == ty) {
                Some((_, size)) => *size,
                None => bail!("`{ty}` is not a wire type that the book knows"),
            },
        };
        Ok(size)
    }

    fn write(&mut self, page: &mut String, item: &Item<'_>) -> Result<()> {
        let _ = write!(page, "\n## {}\n\n{}\n\n", item.name, plain(&item.doc));
        if item.fields.iter().all(|(_, ty, _)| ty.starts_with("= ")) {
            page.push_str("| name | value | meaning |\n|---|---|---|\n");
            for (name, value, doc) in &item.fields {
                let doc = plain(&doc.trim().replace('\n', " "));
                let _ = writeln!(page, "| `{name}` | `{}` | {doc} |", &value[2..]);
            }
            return Ok(());
        }
        page.push_str("| byte | field | type | meaning |\n|---|---|---|---|\n");
        let mut at = 0;
        for (name, ty, doc) in &item.fields {
            let doc = plain(&doc.trim().replace('\n', " "));
            let _ = writeln!(page, "| {at} | `{name}` | `{ty}` | {doc} |");
            at += self.of(ty).with_context(|| format!("{}.{name}", item.name))?;
        }
        let _ = writeln!(page, "\n{at} bytes.");
        self.0.push((item.name.to_owned(), at));
        Ok(())
    }
}

/// Documentation links as plain code: `` [`crate::ring`] `` becomes `` `ring` ``.
fn plain(doc: &str) -> String {
    doc.replace("[`", "`")
        .replace("`]", "`")
        .replace("`crate::", "`")
        .replace("`super::", "`")
        .trim_end()
        .to_owned()
}
