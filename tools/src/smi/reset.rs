//! `npu-smi reset`: ends the jobs of a client, or of all, as its driver's own reset would.

use super::Tool;
use super::error::SmiError;
use super::output;
use super::reply::{self, Reached};
use serde::Serialize;
use serde_json::{Map, Value};
use std::process::ExitCode;

/// Options of `npu-smi reset`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// A client of `list`, or `all`
    #[arg(value_name = "CLIENT", value_parser = client)]
    client: Value,
}

/// What is printed as JSON.
#[derive(Debug, Serialize)]
struct Report<'a> {
    schema: &'static str,
    place: &'a str,
    clients: &'a [u64],
}

fn client(text: &str) -> Result<Value, String> {
    match text.parse::<u64>() {
        Ok(id) => Ok(id.into()),
        Err(_) if text == "all" => Ok("all".into()),
        Err(_) => Err("a number of `npu-smi list`, or `all`".to_owned()),
    }
}

/// Resets what `args` name.
pub(crate) fn run(tool: &Tool, args: &Args) -> Result<ExitCode, SmiError> {
    let mut connection = tool.connect()?;
    let fields = Map::from_iter([("client".to_owned(), args.client.clone())]);
    let Reached { clients } = reply::ask(&mut connection, "reset", fields)?;
    if tool.is_json {
        let place = connection.place();
        let report = Report { schema: "npu-smi-reset.v1", place, clients: &clients };
        output::print_json(&report, false)?;
    } else if clients.is_empty() {
        output::print("there was no client to reset\n")?;
    } else {
        output::print(&format!("reset of {} begun\n", named(&clients)))?;
    }
    Ok(if clients.is_empty() { ExitCode::from(1) } else { ExitCode::SUCCESS })
}

/// The clients in a sentence.
pub(crate) fn named(clients: &[u64]) -> String {
    let ids: Vec<String> = clients.iter().map(u64::to_string).collect();
    match &ids[..] {
        [] => "no client".to_owned(),
        [id] => format!("client {id}"),
        ids => format!("clients {}", ids.join(", ")),
    }
}
