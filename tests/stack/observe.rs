//! What the device tells of itself: each fault is named alike by the application's error, the device's log
//! and its core dump; events, counters and state are those of what was done.

use ep_npu::{Session, TensorRef};
use kmod_sim::inject::Plan;
use libnpu::manage::{ManageError, Manager};
use libnpu::transport::inproc::InProcess;
use libnpu::{Caller, Device};
use npu_tests::{HANG, Simulator, Way};
use npu_uapi::command::Command;
use npu_uapi::coredump::{Dump, reason};
use npu_uapi::event::kind;
use npu_uapi::status::{NOT_APPLICABLE, Status};
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/digits.qdq.onnx");
/// Options of every device: a command that makes no progress is found soon.
const DEVICE: &str = "hang_ms=200";

/// What a fault is to be told as: the status, and whether a command of the model is to blame.
const FAULTS: [(&str, Status, bool); 12] = [
    ("stuck-engine", Status::HUNG, true),
    ("stuck-engine@2", Status::HUNG, true),
    ("stuck-engine@3", Status::HUNG, true),
    ("stuck-engine@5", Status::HUNG, true),
    ("bus-error", Status::DMA_ERROR, true),
    ("bus-error@2", Status::DMA_ERROR, true),
    ("bus-error@3", Status::DMA_ERROR, true),
    ("bus-error@5", Status::DMA_ERROR, true),
    ("slow-dma:2+bus-error@4", Status::DMA_ERROR, true),
    ("lost-interrupt+stuck-engine@4", Status::HUNG, true),
    ("dma-error", Status::DMA_ERROR, false),
    ("dma-error@2", Status::DMA_ERROR, false),
];

/// A device, and the ways to look behind it.
enum Bench {
    Sim(Arc<InProcess>),
    VfioUser(Simulator),
}

impl Bench {
    fn new(way: Way) -> (Self, Device) {
        match way {
            Way::Sim => {
                let transport = Arc::new(InProcess::new(DEVICE).unwrap());
                let device = Device::over("sim", Arc::<InProcess>::clone(&transport) as _);
                (Self::Sim(transport), device.unwrap())
            }
            Way::VfioUser => {
                let server = Simulator::start(DEVICE);
                let device = Device::open_private(&server.device()).unwrap();
                (Self::VfioUser(server), device)
            }
            Way::Pci => panic!("what is behind a device is looked at from its host"),
        }
    }

    fn inject(&self, fault: &str) {
        match self {
            Self::Sim(transport) if fault == "none" => transport.injector().clear(),
            Self::Sim(transport) => transport.injector().arm(&Plan::parse(fault).unwrap()).unwrap(),
            Self::VfioUser(server) => {
                ask(server, json!({ "command": "inject", "client": 1, "fault": fault }));
            }
        }
    }

    /// The last line of the log.
    fn last_fault(&self) -> Line {
        match self {
            Self::Sim(transport) => {
                let log = transport.function().log();
                let last = log.last().expect("a fault was logged");
                let record = &last.record;
                let has_op = record.op_id != NOT_APPLICABLE;
                Line {
                    status: record.status.0.into(),
                    queue: record.queue.into(),
                    job: record.job.into(),
                    op_id: has_op.then(|| record.op_id.into()),
                    op: has_op.then(|| Command::name_of(record.opcode).unwrap().to_owned()),
                    node: last.node.as_deref().map(str::to_owned),
                    message: record.message(last.node.as_deref()),
                    faults: transport.function().report().counters.faults,
                }
            }
            Self::VfioUser(server) => {
                let log = ask(server, json!({ "command": "log", "client": 1, "most": 1 }));
                let last = &log["faults"][0];
                assert_eq!((&last["client"], &last["is_here"]), (&json!(1), &json!(true)));
                assert_eq!(last["pid"], std::process::id());
                let text = |field: &str| last[field].as_str().map(str::to_owned);
                let stats = ask(server, json!({ "command": "stats" }));
                Line {
                    status: last["code"].as_u64().unwrap(),
                    queue: last["queue"].as_u64().unwrap(),
                    job: last["job"].as_u64().unwrap(),
                    op_id: last["op_id"].as_u64(),
                    op: text("op"),
                    node: text("node"),
                    message: text("message").unwrap(),
                    faults: stats["functions"][0]["faults"].as_u64().unwrap(),
                }
            }
        }
    }
}

/// A fault as the log has it.
#[derive(Debug)]
struct Line {
    status: u64,
    queue: u64,
    job: u64,
    op_id: Option<u64>,
    op: Option<String>,
    node: Option<String>,
    message: String,
    /// How many there were.
    faults: u64,
}

/// What the management socket replies, which is no error.
fn ask(server: &Simulator, request: Value) -> Value {
    let reply = server.manage(&request.to_string());
    assert_eq!((&reply["schema"], &reply["minor"]), (&json!(1), &json!(1)));
    assert!(reply.get("error").is_none(), "{request}: {reply}");
    reply
}

fn run(session: &Session) -> Result<(), String> {
    let image = vec![0.5; 784];
    let input = TensorRef::from_f32(&[1, 1, 28, 28], &image);
    session.run(&[input]).map(drop).map_err(|error| error.to_string())
}

fn every_fault_is_named_alike(way: Way) {
    let (bench, device) = Bench::new(way);
    let session = Session::builder(&device).load(MODEL).unwrap();
    run(&session).unwrap();
    let mut table = format!("{:<30} {:<10} {:<6} {:<8} node\n", "fault", "status", "queue", "op");
    for (number, (fault, status, has_op)) in (1..).zip(FAULTS) {
        bench.inject(fault);
        let error = run(&session).expect_err(fault);
        bench.inject("none");
        let line = bench.last_fault();
        assert_eq!((line.status, line.faults), (status.0.into(), number), "{fault}: {line:?}");
        let named = format!("job {} of queue {}: ", line.job, line.queue);
        assert!(error.contains(&named) && line.message.contains(&named), "{error} {line:?}");
        assert!(error.contains(status.meaning()), "{fault}: {error}");
        assert_eq!((line.op_id.is_some(), line.node.is_some()), (has_op, has_op), "{line:?}");
        if let (Some(op_id), Some(node)) = (line.op_id, &line.node) {
            assert!(error.contains(&format!("at node `{node}` ")), "{error} {line:?}");
            assert!(error.contains(&format!("op {op_id}")), "{error} {line:?}");
            assert!(line.message.contains(&format!("op {op_id}), node `{node}`")), "{line:?}");
        }
        // The dump is of the same.
        let bytes = device.last_dump().unwrap().expect("it has left a dump");
        let dump = Dump::from_bytes(&bytes).unwrap();
        let record = dump.fault.unwrap();
        assert_eq!((u64::from(record.queue), u64::from(record.job)), (line.queue, line.job));
        assert_eq!((record.status, dump.status()), (status, Some(status)));
        let why = if status == Status::HUNG { reason::HANG } else { reason::FAULT };
        assert_eq!(dump.summary.reason, why);
        if has_op {
            assert_eq!(dump.node(), line.node.as_deref());
            let current = dump.current().unwrap();
            assert_eq!(Some(current.name()), line.op.as_deref());
            assert_eq!(Some(u64::from(current.header().op_id)), line.op_id);
            assert!(!dump.slots.is_empty());
        }
        let text = dump.text();
        assert!(text.contains(&line.message), "{text}");
        let last = dump.events.last().unwrap();
        assert_eq!((last.kind, u64::from(last.job)), (kind::JOB_END, line.job), "{text}");
        writeln!(
            table,
            "{fault:<30} {:<10} {:<6} {:<8} {}",
            format!("{status:?}"),
            line.queue,
            line.op.as_deref().unwrap_or("-"),
            line.node.as_deref().unwrap_or("-")
        )
        .unwrap();
        // The device goes on.
        run(&session).unwrap();
    }
    // What is no fault leaves no line.
    bench.inject("lost-interrupt+delayed-reply:20");
    run(&session).unwrap();
    assert_eq!(bench.last_fault().faults, FAULTS.len() as u64);
    let name = if way == Way::Sim { "sim" } else { "vfio-user" };
    println!("faults as log, dump and error name them, over {name}\n{table}");
    let file = format!("fault-names-{name}.txt");
    std::fs::write(Path::new(env!("CARGO_TARGET_TMPDIR")).join(file), table).unwrap();
}

mod sim {
    #[test]
    fn every_fault_is_named_alike() {
        super::every_fault_is_named_alike(npu_tests::Way::Sim);
    }
}

mod vfio_user {
    #[test]
    fn every_fault_is_named_alike() {
        super::every_fault_is_named_alike(npu_tests::Way::VfioUser);
    }
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
