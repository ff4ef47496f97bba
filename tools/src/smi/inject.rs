//! `npu-smi inject`: faults on demand, for those who test what survives them.

use super::Tool;
use super::error::SmiError;
use super::output;
use super::reply::{self, Reached};
use super::reset::named;
use serde::Serialize;
use serde_json::Map;
use std::process::ExitCode;

/// Options of `npu-smi inject`.
#[derive(clap::Args, Debug)]
#[command(after_help = kinds())]
pub(crate) struct Args {
    /// `KIND[@N][:ARG]`, several with +; or `none`, which takes back what is armed
    fault: String,

    /// The client that gets it; without, all that are there and all to come
    #[arg(long, value_name = "ID")]
    client: Option<u64>,
}

/// What is printed as JSON.
#[derive(Debug, Serialize)]
struct Report<'a> {
    schema: &'static str,
    place: &'a str,
    fault: &'a str,
    /// Those that have it now.
    clients: &'a [u64],
    /// Whether clients to come get it too.
    is_for_all: bool,
}

fn kinds() -> String {
    let names: Vec<&str> = kmod_sim::inject::Kind::ALL.iter().map(|kind| kind.name()).collect();
    format!(
        "KIND is one of {}.\nN: at the n-th occurrence from now, 1 unless said otherwise. \
         ARG: how many in a row, for slow-dma and delayed-reply milliseconds.",
        names.join(", ")
    )
}

/// Arms what `args` say.
pub(crate) fn run(tool: &Tool, args: &Args) -> Result<ExitCode, SmiError> {
    let mut connection = tool.connect()?;
    let mut fields = Map::from_iter([("fault".to_owned(), args.fault.clone().into())]);
    if let Some(id) = args.client {
        fields.insert("client".into(), id.into());
    }
    let Reached { clients } = reply::ask(&mut connection, "inject", fields)?;
    let is_for_all = args.client.is_none();
    if tool.is_json {
        let (place, fault) = (connection.place(), args.fault.as_str());
        let schema = "npu-smi-inject.v1";
        let report = Report { schema, place, fault, clients: &clients, is_for_all };
        output::print_json(&report, false)?;
    } else {
        let done = if args.fault == "none" { "disarmed" } else { "armed" };
        let more = if is_for_all { ", and those to come" } else { "" };
        output::print(&format!("{done}: {}{more}\n", named(&clients)))?;
    }
    Ok(ExitCode::SUCCESS)
}
