//! The management socket: what it counts, what it refuses, and whom it does not wait for.

use libnpu::{Caller, Context, Device, Error, Memory};
use npu_tests::{HANG, Simulator};
use npu_uapi::telemetry::Snapshot;
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const STATS: &str = r#"{"command":"stats"}"#;

/// Asks until `is_so`: clients come and go on threads of the server.
fn wait_for(server: &Simulator, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + HANG;
    loop {
        let stats = server.manage(STATS);
        if is_so(&stats) {
            return stats;
        }
        assert!(Instant::now() < deadline, "{what} does not come: {stats}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A context with a job that runs for a minute, unless it is ended.
fn busy(device: &Device) -> Result<Context, Error> {
    let context = device.create_context()?;
    let memory = Memory::from(&device.allocate(64)?);
    let _ = context.fill(&memory, 1)?;
    Ok(context)
}

#[test]
fn clients_and_how_they_leave_are_counted() {
    let server = Simulator::start("");
    let start = server.manage(STATS);
    assert_eq!((&start["schema"], &start["clients"]), (&1.into(), &0.into()));
    let names = [server.device(), server.device()];
    let [one, other] = names.map(|name| Device::open_private(&name).unwrap());
    one.create_context().unwrap().nop().unwrap().wait(&Caller, HANG).unwrap();
    let stats = server.manage(STATS);
    assert_eq!((&stats["clients"], &stats["accepted"]), (&2.into(), &2.into()));
    let functions = stats["functions"].as_array().unwrap();
    assert_eq!(functions.len(), 2);
    for function in functions {
        assert_eq!(function["pid"], std::process::id());
        assert_eq!((&function["state"], &function["in_flight"]), (&"ready".into(), &0.into()));
        assert!(function["since_ms"].as_u64().unwrap() > 1_600_000_000_000);
    }
    let listed = server.manage(r#"{"command":"list","schema":1}"#);
    assert_eq!(listed["functions"][1]["id"], functions[1]["id"]);
    assert!(listed["functions"][1].get("cycles").is_none());
    // One leaves in peace.
    drop(one);
    let stats = wait_for(&server, "an end", |stats| stats["ended"] == 1);
    assert_eq!((&stats["ended_in_flight"], &stats["clients"]), (&0.into(), &1.into()));

    // The other while its job runs. Its connection is cut, so that it cannot end the job first.
    let id = &functions[1]["id"];
    let slow = format!(r#"{{"command":"inject","client":{id},"fault":"slow-dma:60000"}}"#);
    assert_eq!(server.manage(&slow)["clients"][0], *id);
    let context = busy(&other).unwrap();
    let stats = wait_for(&server, "a job", |stats| stats["functions"][0]["in_flight"] == 1);
    assert_eq!(stats["functions"][0]["armed"][0], "slow-dma@1:60000");
    cut_connections_of_this_process(&server);
    let stats = wait_for(&server, "an end", |stats| stats["ended"] == 2);
    assert_eq!((&stats["ended_in_flight"], &stats["accepted"]), (&1.into(), &2.into()));
    assert_eq!(stats["clients"], 0);
    let stats = wait_for(&server, "as many threads as before", |stats| {
        stats["threads"] == start["threads"]
    });
    assert_eq!(stats["functions"].as_array().map(Vec::len), Some(0));
    drop(context);
}

/// Shuts down this process's sockets to `server` that are devices.
fn cut_connections_of_this_process(server: &Simulator) {
    use nix::sys::socket::{Shutdown, UnixAddr, getpeername, shutdown};
    use std::os::fd::RawFd;
    let path = server.device();
    let path = path.split_once(':').unwrap().1;
    for entry in std::fs::read_dir("/proc/self/fd").unwrap().flatten() {
        let Ok(fd) = entry.file_name().to_string_lossy().parse::<RawFd>() else { continue };
        let peer = getpeername::<UnixAddr>(fd);
        if peer.is_ok_and(|peer| peer.path().is_some_and(|found| found.to_str() == Some(path))) {
            shutdown(fd, Shutdown::Both).unwrap();
        }
    }
}

#[test]
fn a_reset_from_outside_ends_the_jobs_of_one_client_only() {
    let server = Simulator::start("");
    let names = [server.device(), server.device()];
    let [one, other] = names.map(|name| Device::open_private(&name).unwrap());
    let first = server.manage(STATS)["functions"][0]["id"].clone();
    let reply = server.manage(&format!(r#"{{"command":"reset","client":{first}}}"#));
    assert_eq!(reply["clients"], Value::from(vec![first]));
    other.create_context().unwrap().nop().unwrap().wait(&Caller, HANG).unwrap();
    one.reset().unwrap();
    one.create_context().unwrap().nop().unwrap().wait(&Caller, HANG).unwrap();
}

#[test]
fn what_makes_no_sense_is_refused_with_what_does() {
    let server = Simulator::start("");
    for (request, hint) in [
        ("", "one JSON object a line"),
        ("[]", "JSON object, such as"),
        ("{\"command\":", "one JSON object a line"),
        (r#"{"command":"halt"}"#, "list, stats, show, log"),
        (r#"{"command":7}"#, "coredump, inject, saturation, reset"),
        (r#"{"command":"stats","schema":2}"#, "speaks schema 1"),
        (r#"{"command":"stats","clients":1}"#, "no field `clients`"),
        (r#"{"command":"inject"}"#, "needs `fault`"),
        (r#"{"command":"inject","fault":"stuck"}"#, "stuck-engine"),
        (r#"{"command":"inject","fault":"dma-error","client":"x"}"#, "a number of `list`"),
        (r#"{"command":"inject","fault":"dma-error","client":9}"#, "no client 9"),
        (r#"{"command":"reset"}"#, "needs `client`"),
    ] {
        let reply = server.manage(request);
        let error = reply["error"].as_str().unwrap_or_else(|| panic!("{request}: {reply}"));
        assert!(error.contains(hint), "{request}: {error}");
        assert_eq!(reply["schema"], 1);
    }
}

#[test]
fn who_stalls_or_sends_garbage_harms_nobody() {
    let server = Simulator::start("");
    let path = server.management_socket();
    let file = std::fs::metadata(&path).unwrap();
    assert!(file.file_type().is_socket());
    assert_eq!(file.permissions().mode() & 0o777, 0o600);
    let connect = || {
        let stream = UnixStream::connect(&path).unwrap();
        stream.set_read_timeout(Some(HANG)).unwrap();
        stream.set_write_timeout(Some(HANG)).unwrap();
        stream
    };
    // Half a request, and then nothing.
    let mut half = connect();
    half.write_all(br#"{"command":"#).unwrap();
    // Requests without end, and no reply is read: sooner or later it is heard no more.
    let greedy = connect();
    greedy.set_nonblocking(true).unwrap();
    while (&greedy).write(format!("{STATS}\n").repeat(100).as_bytes()).is_ok() {}
    server.manage(STATS);
    // A line that is too long is refused, and the connection closed.
    let mut long = connect();
    // It may be closed before the last byte is sent.
    let _ = long.write_all(&vec![b'x'; 80 << 10]);
    let mut line = String::new();
    let mut reader = BufReader::new(&long);
    // Bytes that were not read make the end of the stream an error.
    if reader.read_line(&mut line).is_ok() && !line.is_empty() {
        assert!(line.contains("at most 65536 bytes"), "{line}");
    }
    // Garbage is answered, also when it is no text, and what follows is too.
    let mut garbage = connect();
    garbage.write_all(b"\xff\0\n{}\n").unwrap();
    let mut reader = BufReader::new(&garbage);
    for _ in 0..2 {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        assert!(line.contains("error"), "{line}");
    }
    // More than there is room for: the newest are served, the silent make room.
    let crowd: Vec<UnixStream> = (0..40).map(|_| connect()).collect();
    let mut last = crowd.last().unwrap();
    writeln!(last, "{STATS}").unwrap();
    let mut line = String::new();
    BufReader::new(last).read_line(&mut line).unwrap();
    assert!(line.contains("ended_in_flight"), "{line}");
    let mut gone = Vec::new();
    assert_eq!(half.read_to_end(&mut gone).unwrap_or(0), 0, "it was silent for longest");
    // A client of the devices notices nothing.
    let device = Device::open_private(&server.device()).unwrap();
    device.create_context().unwrap().nop().unwrap().wait(&Caller, HANG).unwrap();
}

#[test]
fn the_telemetry_of_a_device_at_work_is_read_over_its_socket() {
    let server = Simulator::start("");
    let device = Device::open_private(&server.device()).unwrap();
    let context = device.create_context().unwrap();
    let memory = Memory::from(&device.allocate(64).unwrap());
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                context.fill(&memory, 1).unwrap().wait(&Caller, HANG).unwrap();
            }
        });
        // Each job changes the page; whichever comes in between, a look is of one moment.
        let start = Instant::now();
        let mut looks = vec![device.telemetry()];
        let jobs =
            |look: Option<&Result<Snapshot, Error>>| Some(look?.as_ref().ok()?.counters.jobs);
        while start.elapsed() < HANG
            && looks.last().is_some_and(Result::is_ok)
            && (looks.len() < 50 || jobs(looks.last()) == jobs(looks.first()))
        {
            looks.push(device.telemetry());
        }
        is_over.store(true, Ordering::Relaxed);
        let looks: Vec<Snapshot> = looks.into_iter().map(Result::unwrap).collect();
        assert!(looks.is_sorted_by_key(|look| look.counters.jobs));
        assert!(looks[0].counters.jobs < looks[looks.len() - 1].counters.jobs);
    });
}

#[test]
fn the_socket_goes_with_the_server() {
    let mut server = Simulator::start("");
    let path = server.management_socket();
    let _idle = UnixStream::connect(&path).unwrap();
    assert!(path.exists());
    assert!(server.stop().success());
    assert!(!path.exists(), "removed at the end");
}
