//! What the device tells of itself: events, counters and state are those of what was done. `named.rs` has
//! what it tells of faults.

use ep_npu::{Session, TensorRef};
use libnpu::manage::{ManageError, Manager};
use libnpu::{Caller, Device};
use npu_tests::{HANG, Simulator, fill, image};
use npu_uapi::coredump::{Dump, reason};
use npu_uapi::image::slot_kind;
use npu_uapi::names::Names;
use npu_uapi::queue::Counters;
use npu_uapi::regs;
use serde_json::{Value, json};
use std::time::Instant;

pub(crate) const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/digits.qdq.onnx");
/// Options of every device: a command that makes no progress is found soon, as by the guest's device.
pub(crate) const DEVICE: &str = "hang_ms=200";

/// What the management socket replies, which is no error.
pub(crate) fn ask(server: &Simulator, request: Value) -> Value {
    sound(&request, server.manage(&request.to_string()))
}

/// What a management function replies, which is no error.
pub(crate) fn ask_through(manager: &Manager, request: &Value) -> Value {
    let reply = manager.request(&request.to_string(), HANG).unwrap();
    sound(request, serde_json::from_str(&reply).unwrap())
}

fn sound(request: &Value, reply: Value) -> Value {
    assert_eq!((&reply["schema"], &reply["minor"]), (&json!(1), &json!(2)));
    assert!(reply.get("error").is_none(), "{request}: {reply}");
    reply
}

pub(crate) fn run(session: &Session) -> Result<(), String> {
    let image = vec![0.5; 784];
    let input = TensorRef::from_f32(&[1, 1, 28, 28], &image);
    session.run(&[input]).map(drop).map_err(|error| error.to_string())
}

/// A server with a client that has run the model once.
fn served() -> (Simulator, Device, Session) {
    let server = Simulator::start(DEVICE);
    let device = Device::open_private(&server.device()).unwrap();
    let session = Session::builder(&device).load(MODEL).unwrap();
    run(&session).unwrap();
    (server, device, session)
}

#[test]
fn a_program_that_is_refused_is_told_with_the_node_of_its_command() {
    let (server, device, session) = served();
    let context = device.create_context().unwrap();
    let names = Names::new([(76, "first"), (77, "second")]);
    let slots = [(slot_kind::OUTPUT, 64)];
    // The second leaves its slot.
    let bad = image(&slots, &[fill(0, 0, 64, 0, 76), fill(0, 60, 5, 0, 77)]);
    let error = context.load_named(&bad, &names).unwrap_err().to_string();
    let log = ask(&server, json!({ "command": "log" }));
    let last = &log["faults"][0];
    assert_eq!((&last["status"], &last["node"]), (&json!("PROGRAM_REFUSED"), &json!("second")));
    assert_eq!((&last["op_id"], &last["op"]), (&json!(77), &json!("fill")));
    assert!(last["message"].as_str().unwrap().contains(", node `second`"), "{last}");
    assert!(error.contains("op 77"), "{error}");
    // Where no command is to blame, no node is named.
    context.load_named(&[0; 64], &names).unwrap_err();
    let log = ask(&server, json!({ "command": "log", "most": 1 }));
    let last = &log["faults"][0];
    assert_eq!((&last["op_id"], &last["node"]), (&Value::Null, &Value::Null));
    run(&session).unwrap();
}

#[test]
fn counters_and_sizes_are_those_of_the_device_and_what_it_did() {
    let (server, device, session) = served();
    let show = ask(&server, json!({ "command": "show" }));
    assert_eq!((&show["pci"]["vendor"], &show["pci"]["device"]), (&json!(0x1de5), &json!(0x4e50)));
    assert_eq!((&show["abi"]["low"], &show["abi"]["high"]), (&json!("1.0"), &json!("1.1")));
    let limits = device.limits();
    assert_eq!(show["sram_bytes"], limits.sram_bytes);
    assert_eq!(show["macs_per_cycle"], limits.macs_per_cycle);
    assert_eq!((&show["hang_ms"], &show["server"]["pid"]), (&json!(200), &json!(server.id())));
    let before = ask(&server, json!({ "command": "stats" }));
    let cycles = device.counters().unwrap();
    for _ in 0..20 {
        run(&session).unwrap();
    }
    let after = ask(&server, json!({ "command": "stats" }));
    let moved = |field: &str| {
        let [old, new] = [&before, &after].map(|stats| stats["functions"][0][field].as_u64());
        new.unwrap() - old.unwrap()
    };
    let counters = device.counters().unwrap();
    assert_eq!(moved("cycles"), counters.cycles - cycles.cycles);
    assert_eq!(moved("array_cycles"), counters.array_cycles - cycles.array_cycles);
    assert!(counters.array_cycles > 0 && counters.vector_cycles > 0 && counters.dma_cycles > 0);
    let engines = [counters.array_cycles, counters.vector_cycles, counters.dma_cycles];
    assert!(engines.iter().all(|&busy| busy <= counters.cycles));
    let elapsed = after["time_us"].as_u64().unwrap() - before["time_us"].as_u64().unwrap();
    assert!((1..=elapsed).contains(&moved("busy_us")), "{after}");
    assert_eq!((moved("jobs"), moved("faults")), (20, 0));
    assert!(moved("energy_uj") > 0);
    let function = &after["functions"][0];
    assert!(function["power_mw"].as_u64().unwrap() > 50);
    assert!(function["mapped_bytes"].as_u64().unwrap() > 1 << 20);
    assert!(function["process"].as_str().is_some_and(|name| !name.is_empty()));
    let queues = function["queues"].as_array().unwrap();
    assert_eq!((&queues[0]["id"], &queues[0]["priority"]), (&json!(0), &Value::Null));
    assert!(queues.iter().skip(1).all(|queue| queue["priority"] == "normal"));
    assert_eq!(function["in_flight"], 0);
}

#[test]
fn a_dump_of_a_device_at_work_shows_the_command_it_is_at() {
    let (server, device, session) = served();
    ask(&server, json!({ "command": "inject", "client": 1, "fault": "slow-dma@3:60000" }));
    std::thread::scope(|scope| {
        let running = scope.spawn(|| run(&session));
        let deadline = Instant::now() + HANG;
        let dump = loop {
            let dump = ask(&server, json!({ "command": "dump", "client": 1 }));
            if dump["job"]["command"] == 2 {
                break dump;
            }
            assert!(Instant::now() < deadline, "{dump}");
        };
        let job = &dump["job"];
        assert_eq!((&job["is_running"], &job["entry"]), (&json!(true), &json!("exec")));
        let node = job["node"].as_str().unwrap();
        let listing = job["listing"].as_array().unwrap();
        let current = listing.iter().find(|line| line["is_current"] == true).unwrap();
        assert_eq!((&current["index"], &current["node"]), (&json!(2), &json!(node)));
        assert!(current["text"].as_str().unwrap().starts_with(job["op"].as_str().unwrap()));
        assert!(job["slots"].as_array().unwrap().iter().any(|slot| slot["kind"] == "constant"));
        let registers = dump["registers"].as_array().unwrap();
        let magic = registers.iter().find(|register| register["name"] == "Magic").unwrap();
        assert_eq!(magic["value"], npu_uapi::regs::MAGIC);
        let table = &dump["tables"][0]["bindings"][0];
        assert_eq!(table["access"], "r");
        let queue = &dump["queues"][1];
        assert_eq!(queue["in_flight"], 1);
        let last = queue["submissions"].as_array().unwrap().last().unwrap();
        assert_eq!((&last["job"], &last["entry"]), (&job["job"], &json!("exec")));
        let bytes = unhex(dump["bytes"].as_str().unwrap());
        let read = Dump::from_bytes(&bytes).unwrap();
        assert_eq!((read.summary.reason, read.node()), (reason::ASKED, Some(node)));
        ask(&server, json!({ "command": "reset", "client": 1 }));
        ask(&server, json!({ "command": "inject", "client": 1, "fault": "none" }));
        assert!(running.join().unwrap().is_err());
    });
    let dump = ask(&server, json!({ "command": "dump", "client": 1 }));
    assert_eq!(dump["job"], Value::Null);
    device.reset().unwrap();
    assert_eq!(device.last_dump().unwrap(), None, "nobody faulted");
}

fn unhex(text: &str) -> Vec<u8> {
    let digit = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(digit).collect()
}

#[test]
fn a_trace_has_each_command_of_each_job_with_its_time_and_node() {
    let (server, _device, session) = served();
    let trace = |action: &str| json!({ "command": "trace", "client": 1, "action": action });
    ask(&server, trace("start"));
    run(&session).unwrap();
    run(&session).unwrap();
    let stopped = ask(&server, trace("stop"));
    run(&session).unwrap();
    let mut events: Vec<Value> = Vec::new();
    // In pieces, as a long one is read.
    loop {
        let mut request = trace("read");
        request["from"] = json!(events.len());
        request["most"] = json!(7);
        let piece = ask(&server, request);
        assert_eq!((&piece["lost"], &piece["recorded"]), (&json!(0), &stopped["recorded"]));
        assert_eq!(piece["from"], events.len());
        let more = piece["events"].as_array().unwrap();
        events.extend(more.iter().cloned());
        assert_eq!(piece["next"], events.len());
        if more.is_empty() {
            break;
        }
    }
    let ns: Vec<u64> = events.iter().map(|event| event["ns"].as_u64().unwrap()).collect();
    assert!(ns.is_sorted() && ns[0] > 0);
    let of = |kind: &str| events.iter().filter(|event| event["kind"] == kind).collect::<Vec<_>>();
    let (begins, ends, jobs) = (of("op_begin"), of("op_end"), of("job_end"));
    assert_eq!((of("job_begin").len(), jobs.len(), of("submit").len()), (2, 2, 2));
    assert!(begins.len() >= ends.len() && ends.len() > 6 && ends.len().is_multiple_of(2));
    let cycles = |events: &[&Value]| -> u64 {
        events.iter().map(|event| event["took_cycles"].as_u64().unwrap()).sum()
    };
    assert_eq!(cycles(&ends), cycles(&jobs));
    let named = ends.iter().filter(|event| event["node"].is_string()).count();
    assert_eq!(named, ends.len() - 2, "all but END");
    // Another begins anew.
    ask(&server, trace("start"));
    assert_eq!(ask(&server, trace("read"))["recorded"], 0);
}

#[test]
fn faults_and_dumps_outlive_the_client_that_had_them() {
    let (server, device, session) = served();
    ask(&server, json!({ "command": "inject", "client": 1, "fault": "stuck-engine@2" }));
    run(&session).unwrap_err();
    let dump = device.last_dump().unwrap().unwrap();
    device.reset().unwrap();
    assert_eq!(device.last_dump().unwrap().as_ref(), Some(&dump), "a reset does not forget it");
    let list = ask(&server, json!({ "command": "coredump" }));
    let kept = &list["dumps"][0];
    assert_eq!((&kept["status"], &kept["client"]), (&json!("HUNG"), &json!(1)));
    assert_eq!((&kept["bytes"], &kept["file"]), (&json!(dump.len()), &Value::Null));
    drop((session, device));
    let deadline = Instant::now() + HANG;
    while ask(&server, json!({ "command": "stats" }))["ended"] == 0 {
        assert!(Instant::now() < deadline, "the client does not leave");
        std::thread::yield_now();
    }
    let log = ask(&server, json!({ "command": "log" }));
    assert_eq!(
        (&log["faults"][0]["node"], &log["faults"][0]["is_here"]),
        (&kept["node"], &json!(false))
    );
    let whole = ask(&server, json!({ "command": "coredump", "id": kept["id"] }));
    assert_eq!(unhex(whole["hex"].as_str().unwrap()), dump);
    for (request, hint) in [
        (json!({ "command": "dump", "client": 1 }), "no client 1"),
        (json!({ "command": "dump" }), "needs `client`"),
        (json!({ "command": "trace", "client": 1, "action": "start" }), "no client 1"),
        (json!({ "command": "coredump", "id": 99 }), "no dump 99"),
        (json!({ "command": "log", "most": 0 }), "from 1 to 1000"),
        (json!({ "command": "show", "client": 1 }), "no field `client`"),
    ] {
        let reply = server.manage(&request.to_string());
        assert!(reply["error"].as_str().unwrap().contains(hint), "{request}: {reply}");
    }
    // A device that is new has none.
    let other = Device::open_private(&server.device()).unwrap();
    assert_eq!(other.last_dump().unwrap(), None);
    other.create_context().unwrap().nop().unwrap().wait(&Caller, HANG).unwrap();
}

#[test]
fn a_management_function_answers_as_the_socket_does() {
    let (server, device, session) = served();
    let name = server.management_function();
    let manager = Manager::open(&name).unwrap();
    let socket = Manager::open(server.management_socket().to_str().unwrap()).unwrap();
    let ask = |manager: &Manager, request: Value| -> Value {
        let reply = manager.request(&request.to_string(), HANG).unwrap();
        serde_json::from_str(&reply).unwrap()
    };
    let list = json!({ "command": "list" });
    assert_eq!(ask(&manager, list.clone()), ask(&socket, list));
    // A reply of several windows.
    for _ in 0..30 {
        run(&session).unwrap();
    }
    let dump = ask(&manager, json!({ "command": "dump", "client": 1 }));
    let bytes = unhex(dump["bytes"].as_str().unwrap());
    let counters = Dump::from_bytes(&bytes).unwrap().counters;
    assert_eq!((counters.jobs, counters.commands), (31, device.counters().unwrap().commands));
    assert!(dump.to_string().len() > 0x8000);
    // Its BAR4 shows what the device's counters say, whole, word by word.
    let pages = manager.telemetry().unwrap();
    let [page] = &pages[..] else { panic!("{pages:?}") };
    // But for what asking the device may itself take.
    let work = |counters| Counters { kicks: 0, interrupts: 0, ..counters };
    assert_eq!(work(page.counters), work(device.counters().unwrap()));
    let gauges = page.gauges.unwrap();
    assert_eq!((gauges.in_flight, gauges.state), (0, regs::state::READY));
    assert!(matches!(socket.telemetry(), Err(ManageError::NoPages)));
    // Neither is taken for the other.
    let error = Device::open_private(&name).unwrap_err().to_string();
    assert!(error.contains("is no NPU"), "{error}");
    let error = Manager::open(&server.device()).unwrap_err().to_string();
    assert!(error.contains("is no management function"), "{error}");
    // There is room for a few, one of which says nothing.
    let path = name.split_once(':').unwrap().1;
    let _silent = std::os::unix::net::UnixStream::connect(path).unwrap();
    let other = Manager::open(&name).unwrap();
    assert_eq!(ask(&other, json!({ "command": "reset" }))["schema"], 1);
    // A request that would be too long for its window never leaves.
    let long = " ".repeat(0x4001);
    assert!(matches!(manager.request(&long, HANG), Err(ManageError::Request { .. })));
    // Faults can be had and seen by it.
    ask(&manager, json!({ "command": "inject", "client": 1, "fault": "bus-error" }));
    run(&session).unwrap_err();
    let log = ask(&manager, json!({ "command": "log" }));
    assert_eq!(log["faults"][0]["status"], "DMA_ERROR");
}
