//! What ends in the middle of a job: the guest by a reset, QEMU by a kill, and the server of its device.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::guest::{self, Guest, Step};
use super::machine::{self, Parts};
use super::programs::Programs;
use super::tools::Tools;
use super::{FOR_FAULTS, OPTIONS, STEP_LIMIT, TROUBLE, control, functions, serve};
use crate::simulator::Simulator;
use crate::tally::Tally;

/// From power to a job that runs, and from a crash to what the server sees of it.
const BUSY_LIMIT: Duration = Duration::from_secs(2 * 60);
const CLEANUP_LIMIT: Duration = Duration::from_secs(20);
/// The signal of a broken assertion.
const ABORT: i32 = 6;
/// How often QEMU may abort with a server before that is given up.
const ABORTS: usize = 6;

/// The machine that is reset while a job of its runs, and killed while the next one does.
pub(crate) fn of_the_guest(
    tools: &Tools,
    programs: &Programs,
    folder: &Path,
    server: &Simulator,
) -> Result<Tally> {
    let device = format!("pci:{}", machine::address(0));
    let steps = [Step::new("a long job", STEP_LIMIT, &["/bin/npu-victim", &device])];
    let archive = folder.join("crashes.cpio");
    std::fs::write(&archive, programs.archive(tools, &steps)?)?;
    let (control, sockets) = (control("crashes"), [server.socket().to_owned()]);
    let parts = Parts { archive: &archive, sockets: &sockets, control: &control, may_reset: true };
    let before = clients(server)?;
    let mut guest = Guest::start(tools, &parts, &steps)?;
    guest.until("busy", BUSY_LIMIT).context("the first job")?;
    println!("resetting the machine in the middle of a job");
    guest.machine().reset()?;
    guest.until("busy", BUSY_LIMIT).context("the job after the machine was reset")?;
    println!("killing QEMU in the middle of a job");
    guest.machine().kill()?;
    let deadline = Instant::now() + CLEANUP_LIMIT;
    while clients(server)? != before {
        ensure!(
            Instant::now() < deadline,
            "the server still has the client of a QEMU that is gone"
        );
        std::thread::yield_now();
    }
    Ok(Tally::of(2))
}

/// How many clients a server has.
fn clients(server: &Simulator) -> Result<usize> {
    let reply = server.ask(r#"{"command":"list"}"#)?;
    reply["functions"].as_array().map(Vec::len).with_context(|| format!("it answered {reply}"))
}

/// The machines under which a server is killed, until a guest lives to be told of it.
///
/// QEMU (11.1) finds an assertion of its own broken where a register access is under way when its server ends,
/// which nobody in the guest can do anything about.
pub(crate) fn of_a_server(
    tools: &Tools,
    programs: &Programs,
    folder: &Path,
    servers: &mut [Simulator],
) -> Result<Tally> {
    until_told(|is_again| {
        if is_again {
            let killed = servers.get_mut(FOR_FAULTS).context("there are some")?;
            *killed = Simulator::run(&programs.server, OPTIONS[FOR_FAULTS])?;
        }
        is_guest_told(tools, programs, folder, servers)
    })?;
    Ok(Tally::ONE)
}

/// Has `attempt` kill a server until a guest was told, unless QEMU aborts too often; it is given whether it was
/// tried before.
fn until_told(mut attempt: impl FnMut(bool) -> Result<bool>) -> Result<()> {
    for tried in 0..ABORTS {
        if attempt(tried > 0)? {
            return Ok(());
        }
        println!("QEMU aborted with the server, so the guest could not be told");
    }
    bail!(
        "QEMU aborted {ABORTS} times with a server that was killed, so that no guest could be told"
    )
}

/// A machine under which a server is killed: whether its guest was told, or QEMU aborted.
///
/// It is turned off when the guest has been told, for its kernel takes minutes to let go of what does not
/// answer.
fn is_guest_told(
    tools: &Tools,
    programs: &Programs,
    folder: &Path,
    servers: &mut [Simulator],
) -> Result<bool> {
    let (sockets, functions) = functions(servers);
    let steps = [Step::new("killed server", BUSY_LIMIT, &["/bin/guest", TROUBLE]).with(&functions)];
    let archive = folder.join("killed.cpio");
    std::fs::write(&archive, programs.archive(tools, &steps)?)?;
    let control = control("killed");
    let parts = Parts { archive: &archive, sockets: &sockets, control: &control, may_reset: false };
    let mut guest = Guest::start(tools, &parts, &steps)?;
    follow(&mut guest, Instant::now() + BUSY_LIMIT, &mut |order| serve(order, servers))
}

/// Does what the guest asks, until it was told of the server that it had killed, or QEMU has aborted.
fn follow(guest: &mut Guest<'_>, deadline: Instant, host: guest::Host<'_>) -> Result<bool> {
    let mut killed = None;
    loop {
        let order = match guest.order(deadline) {
            Ok(order) => order,
            Err(error) if killed.is_some() && error.to_string() == guest::ENDED => {
                let signal = guest.machine().ended_by()?;
                ensure!(signal == Some(ABORT), "the guest ended with the server, by {signal:?}");
                return Ok(false);
            }
            Err(error) => return Err(error.context("the machine whose server is killed")),
        };
        if order.starts_with("kill") {
            killed = Some(Instant::now());
        }
        if let (Some(killed), true) = (killed, order.starts_with("told")) {
            println!("the guest was told {:.0?} after the kill", killed.elapsed());
            return Ok(true);
        }
        host(&order)?;
    }
}

#[cfg(test)]
mod tests {
    use super::super::machine::Machine;
    use super::*;
    use std::process::Command;

    /// What is made of a machine that does as the shell script says; how often a server was killed.
    fn followed(script: &str) -> (Result<bool>, usize) {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let machine = Machine::run(command, Path::new("/nowhere/npu-vm-test.sock")).unwrap();
        let mut kills = 0;
        let mut host = |order: &str| {
            kills += usize::from(order == "kill 2");
            Ok(())
        };
        let deadline = Instant::now() + BUSY_LIMIT;
        let told = follow(&mut Guest::of_test(machine), deadline, &mut host);
        (told, kills)
    }

    #[test]
    fn a_guest_is_told_or_its_machine_aborts_and_all_else_is_an_error() {
        let (told, kills) =
            followed("echo @@host kill 2; echo @@host note it; echo @@host told of it");
        assert_eq!((told.unwrap(), kills), (true, 1));
        let (told, kills) = followed("echo @@host kill 2; kill -ABRT $$");
        assert_eq!((told.unwrap(), kills), (false, 1));
        for (script, why) in [
            ("echo @@host kill 2; kill -SEGV $$", "by Some(11)"),
            ("echo @@host kill 2; exit 0", "by None"),
            ("kill -ABRT $$", "the machine whose server is killed"),
            ("echo @@host kill 2; echo @@ end killed server 1", "the end of its step"),
        ] {
            let error = format!("{:#}", followed(script).0.unwrap_err());
            assert!(error.contains(why), "{script}: {error}");
        }
    }

    #[test]
    fn a_machine_that_aborts_is_tried_again_a_few_times_each_with_a_new_server() {
        let mut tries = Vec::new();
        until_told(|is_again| {
            tries.push(is_again);
            Ok(tries.len() == 3)
        })
        .unwrap();
        assert_eq!(tries, [false, true, true]);
        let mut count = 0;
        let error = until_told(|_| {
            count += 1;
            Ok(false)
        });
        assert!(error.unwrap_err().to_string().contains("no guest could be told"));
        assert_eq!(count, ABORTS);
        assert!(until_told(|_| bail!("it did not start")).is_err());
    }
}
