//! `npu-smi list`: who is connected.

use super::Tool;
use super::error::SmiError;
use super::figure::{self, UNKNOWN};
use super::output::{self, Paper};
use super::reply::{self, Client, Clients};
use super::sample::now_ms;
use super::table::{Column, cut, table};
use super::watch::{self, Watch};
use nix::unistd::{Uid, User};
use serde::Serialize;
use serde_json::Map;
use std::process::ExitCode;
use std::time::Duration;

/// Options of `npu-smi list`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    #[command(flatten)]
    watch: Watch,
}

/// What is printed as JSON.
#[derive(Debug, Serialize)]
struct Report<'a> {
    schema: &'static str,
    place: &'a str,
    time_ms: u64,
    clients: &'a [Client],
}

/// Lists the clients.
pub(crate) fn run(tool: &Tool, args: &Args) -> Result<ExitCode, SmiError> {
    let mut connection = tool.connect()?;
    args.watch.run(|every| {
        let Clients { functions } = reply::ask(&mut connection, "list", Map::new())?;
        let place = connection.place();
        if tool.is_json {
            let schema = "npu-smi-list.v1";
            let report = Report { schema, place, time_ms: now_ms(), clients: &functions };
            return output::print_json(&report, every.is_one_of_many());
        }
        let paper = Paper::of_stdout();
        watch::print(&text(place, &functions, paper), every, paper)
    })?;
    Ok(ExitCode::SUCCESS)
}

fn text(place: &str, clients: &[Client], paper: Paper) -> String {
    if clients.is_empty() {
        return cut(&format!("{place}: no clients"), paper.columns) + "\n";
    }
    let cells = |cell: &dyn Fn(&Client) -> String| clients.iter().map(cell).collect::<Vec<_>>();
    let columns = vec![
        Column::numbers("ID", 0, cells(&|client| client.id.to_string())),
        Column::words("STATE", 0, cells(&|client| client.state.clone())),
        Column::numbers("QUEUED", 2, cells(&|client| client.in_flight.to_string())),
        Column::numbers("PID", 3, cells(&pid)),
        Column::words("USER", 5, cells(&|client| client.uid.map_or(UNKNOWN.into(), user))),
        Column::numbers("AGE", 4, cells(&|client| age(client))),
        Column::words("PROCESS", 1, cells(&|client| client.process().to_owned())),
    ];
    table(columns, paper)
}

/// A client's process, as text.
pub(crate) fn pid(client: &Client) -> String {
    client.pid.map_or_else(|| UNKNOWN.to_owned(), |pid| pid.to_string())
}

/// How long a client has been connected.
pub(crate) fn age(client: &Client) -> String {
    figure::age(Duration::from_millis(now_ms().saturating_sub(client.since_ms)))
}

/// A user's name, or its number where this system does not know it.
fn user(uid: u32) -> String {
    let known = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    known.map_or_else(|| uid.to_string(), |user| user.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_fits_from_twenty_columns_on() {
        let client = Client {
            id: 12,
            pid: Some(4_194_303),
            uid: Some(0),
            process: Some("python3".into()),
            since_ms: now_ms(),
            state: "quiescing".into(),
            in_flight: 3,
        };
        let clients = [client, Client::default()];
        for columns in 20..100 {
            let text = text("/run/npu.manage", &clients, Paper::plain(columns));
            assert!(text.lines().all(|line| line.chars().count() <= columns), "{text}");
            assert!(text.contains("12  quiescing"), "{text}");
        }
        let text = text("/run/npu.manage", &clients, Paper::plain(100));
        assert!(text.contains("4194303  root"), "{text}");
        assert!(text.lines().nth(1).unwrap().ends_with("0s  python3"), "{text}");
    }
}
