//! `npu-smi saturation`: has output codes at the ends of their range counted, or no longer. `show` tells them.

use super::Tool;
use super::error::SmiError;
use super::output;
use super::reply::{self, Reached};
use super::reset::named;
use serde::Serialize;
use serde_json::Map;
use std::process::ExitCode;

/// Options of `npu-smi saturation`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// `on` reads each result once more to count; `off`, as at first, costs nothing and keeps the counts
    count: Switch,

    /// The client that is meant; without, all that are there and all to come
    #[arg(long, value_name = "ID")]
    client: Option<u64>,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq)]
enum Switch {
    On,
    Off,
}

/// What is printed as JSON.
#[derive(Debug, Serialize)]
struct Report<'a> {
    schema: &'static str,
    place: &'a str,
    /// Whether they are counted from now on.
    is_counted: bool,
    /// Those that it was said to.
    clients: &'a [u64],
    /// Whether it is so for clients to come too.
    is_for_all: bool,
}

/// Says what `args` say.
pub(crate) fn run(tool: &Tool, args: &Args) -> Result<ExitCode, SmiError> {
    let mut connection = tool.connect()?;
    let is_counted = args.count == Switch::On;
    let mut fields = Map::from_iter([("count".to_owned(), is_counted.into())]);
    if let Some(id) = args.client {
        fields.insert("client".into(), id.into());
    }
    let Reached { clients } = reply::ask(&mut connection, "saturation", fields)?;
    let is_for_all = args.client.is_none();
    if tool.is_json {
        let (schema, place) = ("npu-smi-saturation.v1", connection.place());
        let report = Report { schema, place, is_counted, clients: &clients, is_for_all };
        output::print_json(&report, false)?;
    } else {
        let done = if is_counted { "counted" } else { "no longer counted" };
        let more = if is_for_all { ", and those to come" } else { "" };
        output::print(&format!("{done}: {}{more}\n", named(&clients)))?;
    }
    Ok(ExitCode::SUCCESS)
}
