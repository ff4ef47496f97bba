//! `npu-smi dump`: registers, rings, tables and the running program, of a client or of a job that failed.
//!
//! ```text
//! CLIENT ──── `dump` ─────┐
//! --core ID ─ `coredump` ─┼─> bytes ─> npu_uapi::coredump::Dump ─> text, JSON, or a file
//! FILE ───────────────────┘
//! ```

use super::Tool;
use super::error::SmiError;
use super::figure::{UNKNOWN, bytes, real};
use super::log::time;
use super::output::{self, Paper};
use super::reply;
use super::table::{Column, folded, table};
use npu_uapi::coredump::{Dump, MOST_BYTES, reason};
use npu_uapi::status::NOT_APPLICABLE;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Options of `npu-smi dump`.
#[derive(clap::Args, Debug)]
#[command(group = clap::ArgGroup::new("what").required(true))]
pub(crate) struct Args {
    /// A client of `list`, or the file of a core dump; `./7` is a file that is called 7
    #[arg(group = "what", value_name = "CLIENT|FILE")]
    target: Option<PathBuf>,

    /// A core dump that the server keeps, of --list
    #[arg(long, group = "what", value_name = "ID")]
    core: Option<u64>,

    /// List the core dumps that the server keeps: of the last jobs that faulted or hung
    #[arg(long, group = "what")]
    list: bool,

    /// Write the dump to this file instead of printing it
    #[arg(long, value_name = "FILE", conflicts_with = "list")]
    save: Option<PathBuf>,
}

/// What is printed as JSON of one dump.
#[derive(Debug, Serialize)]
struct Report<'a> {
    schema: &'static str,
    place: &'a str,
    #[serde(flatten)]
    fields: Map<String, Value>,
}

/// What is printed as JSON of the list.
#[derive(Debug, Serialize)]
struct List<'a> {
    schema: &'static str,
    place: &'a str,
    dumps: Vec<Value>,
}

/// Prints or saves what `args` name.
pub(crate) fn run(tool: &Tool, args: &Args) -> Result<ExitCode, SmiError> {
    if args.list {
        return list(tool);
    }
    let (place, bytes) = match (&args.target, args.core) {
        (Some(target), _) => match target.to_str().and_then(|text| text.parse::<u64>().ok()) {
            Some(client) => of_client(tool, client)?,
            None => (target.display().to_string(), of_file(target)?),
        },
        (None, Some(id)) => of_core(tool, id)?,
        // The command line has one of them.
        (None, None) => (String::new(), Vec::new()),
    };
    let dump = Dump::from_bytes(&bytes)
        .map_err(|error| SmiError::NoDump { what: place.clone(), why: error.to_string() })?;
    if let Some(path) = &args.save {
        let what = "write";
        std::fs::write(path, &bytes).map_err(|source| SmiError::File {
            what,
            path: path.clone(),
            source,
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    if tool.is_json {
        let report = Report { schema: "npu-smi-dump.v1", place: &place, fields: fields(&dump) };
        output::print_json(&report, false)?;
    } else {
        let text = output::visible(&dump.text(), &['\n']);
        output::print(&folded(&text, Paper::of_stdout().columns))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// As the server replies, and why there is a dump.
fn fields(dump: &Dump) -> Map<String, Value> {
    let mut fields = kmod_sim::server::dump_fields(dump);
    let fault = dump.fault.as_ref().map(|fault| {
        json!({
            "status": format!("{:?}", fault.status),
            "queue": fault.queue,
            "job": fault.job,
            "op_id": (fault.op_id != NOT_APPLICABLE).then_some(fault.op_id),
            "node": dump.node(),
            "message": fault.message(dump.node()),
        })
    });
    fields.insert("fault".into(), fault.unwrap_or_default());
    fields.insert("reason".into(), reason::name(dump.summary.reason).into());
    fields.insert("origin".into(), dump.origin.as_str().into());
    fields
}

/// What a client's function is now.
fn of_client(tool: &Tool, client: u64) -> Result<(String, Vec<u8>), SmiError> {
    #[derive(Deserialize)]
    struct Live {
        bytes: String,
    }
    let mut connection = tool.connect()?;
    let fields = Map::from_iter([("client".to_owned(), client.into())]);
    let Live { bytes } = reply::ask(&mut connection, "dump", fields)?;
    Ok((connection.place().to_owned(), unhex(connection.place(), "dump", &bytes)?))
}

/// What a job has left.
fn of_core(tool: &Tool, id: u64) -> Result<(String, Vec<u8>), SmiError> {
    #[derive(Deserialize)]
    struct Kept {
        hex: String,
    }
    let mut connection = tool.connect()?;
    let fields = Map::from_iter([("id".to_owned(), id.into())]);
    let Kept { hex } = reply::ask(&mut connection, "coredump", fields)?;
    Ok((connection.place().to_owned(), unhex(connection.place(), "coredump", &hex)?))
}

fn of_file(path: &Path) -> Result<Vec<u8>, SmiError> {
    let failed = |source| SmiError::File { what: "read", path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    // One byte more than there may be: too long is told, not read.
    let most = u64::try_from(MOST_BYTES).unwrap_or(u64::MAX).saturating_add(1);
    file.take(most).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

fn unhex(place: &str, command: &str, text: &str) -> Result<Vec<u8>, SmiError> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let bytes = pairs.iter().map(|&[high, low]| Some(digit(high)? << 4 | digit(low)?));
    match (bytes.collect::<Option<Vec<u8>>>(), rest) {
        (Some(bytes), []) => Ok(bytes),
        _ => Err(SmiError::Garbage {
            place: place.to_owned(),
            command: command.to_owned(),
            found: "bytes that are no hexadecimal digits".into(),
        }),
    }
}

/// The core dumps that the server keeps.
fn list(tool: &Tool) -> Result<ExitCode, SmiError> {
    #[derive(Deserialize)]
    struct All {
        dumps: Vec<Value>,
    }
    #[derive(Deserialize)]
    #[serde(default)]
    #[derive(Default)]
    struct Row {
        id: u64,
        client: u64,
        process: Option<String>,
        time_ms: u64,
        bytes: u64,
        status: String,
        node: Option<String>,
        op: Option<String>,
        file: Option<String>,
    }
    let mut connection = tool.connect()?;
    let All { dumps } = reply::ask(&mut connection, "coredump", Map::new())?;
    let place = connection.place();
    if tool.is_json {
        let schema = "npu-smi-dump-list.v1";
        output::print_json(&List { schema, place, dumps }, false)?;
        return Ok(ExitCode::SUCCESS);
    }
    if dumps.is_empty() {
        output::print(&format!("{place}: no core dumps\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows = dumps.into_iter().map(|dump| reply::read::<Row>(place, "coredump", dump));
    let rows = rows.collect::<Result<Vec<_>, _>>()?;
    let cells = |cell: &dyn Fn(&Row) -> String| rows.iter().map(cell).collect::<Vec<_>>();
    let word = |text: &Option<String>| text.clone().unwrap_or_else(|| UNKNOWN.to_owned());
    output::print(&table(
        vec![
            Column::numbers("ID", 0, cells(&|row| row.id.to_string())),
            Column::words("STATUS", 0, cells(&|row| row.status.clone())),
            Column::numbers("CLIENT", 1, cells(&|row| row.client.to_string())),
            Column::words("PROCESS", 4, cells(&|row| word(&row.process))),
            Column::words("OP", 3, cells(&|row| word(&row.op))),
            Column::words("TIME", 5, cells(&|row| time(row.time_ms))),
            Column::numbers("SIZE", 6, cells(&|row| bytes(real(row.bytes)))),
            Column::words("NODE", 2, cells(&|row| word(&row.node))),
            Column::words("FILE", 7, cells(&|row| word(&row.file))),
        ],
        Paper::of_stdout(),
    ))?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_bytes_or_an_error() {
        assert_eq!(unhex("p", "dump", "00ff7A").unwrap(), [0, 255, 0x7a]);
        for text in ["0", "0g", "é0", "+1"] {
            assert!(unhex("p", "dump", text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_file_is_not_read_beyond_what_a_dump_can_be() {
        let bytes = of_file(Path::new("/dev/zero")).unwrap();
        assert_eq!(bytes.len(), MOST_BYTES + 1);
        assert!(Dump::from_bytes(&bytes).is_err());
    }
}
