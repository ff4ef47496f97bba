//! Each fault is named alike by the application's error, the device's log and its core dump, over every
//! transport.

use crate::observe::{DEVICE, MODEL, ask, ask_through, run};
use ep_npu::Session;
use kmod_sim::inject::Plan;
use libnpu::Device;
use libnpu::manage::Manager;
use libnpu::transport::inproc::InProcess;
use npu_tests::functions::{self, Function};
use npu_tests::{Simulator, Way};
use npu_uapi::command::Command;
use npu_uapi::coredump::{Dump, reason};
use npu_uapi::event::kind;
use npu_uapi::status::{NOT_APPLICABLE, Status};
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;

/// Where the guest has the model.
const MODEL_OF_GUEST: &str = "/model/model.onnx";

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
    Pci(Managed),
}

/// A device of the guest, and what manages it.
struct Managed {
    manager: Manager,
    /// The number that the device's server gave to the guest.
    client: u64,
    /// Held, so that no other test takes it.
    _function: Function,
}

impl Managed {
    fn new(function: Function) -> Self {
        let manager = functions::manager();
        let list = ask_through(&manager, &json!({ "command": "list" }));
        let clients = list["functions"].as_array().unwrap();
        assert_eq!(clients.len(), 1, "the guest is its one client: {list}");
        Self { client: clients[0]["id"].as_u64().unwrap(), manager, _function: function }
    }
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
            Way::Pci => {
                let function = functions::take(functions::OF_MATRIX);
                let device = Device::open_private(&function.device()).unwrap();
                (Self::Pci(Managed::new(function)), device)
            }
        }
    }

    fn inject(&self, fault: &str) {
        match self {
            Self::Sim(transport) if fault == "none" => transport.injector().clear(),
            Self::Sim(transport) => transport.injector().arm(&Plan::parse(fault).unwrap()).unwrap(),
            Self::VfioUser(server) => {
                ask(server, json!({ "command": "inject", "client": 1, "fault": fault }));
            }
            Self::Pci(Managed { manager, client, .. }) => {
                let inject = json!({ "command": "inject", "client": client, "fault": fault });
                ask_through(manager, &inject);
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
                    pid: Value::Null,
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
                let line = last_line(1, |request| ask(server, request));
                assert_eq!(line.pid, std::process::id());
                line
            }
            Self::Pci(Managed { manager, client, .. }) => {
                last_line(*client, |request| ask_through(manager, &request))
            }
        }
    }
}

/// The last fault of `client`, as the server that `ask` asks has it.
fn last_line(client: u64, ask: impl Fn(Value) -> Value) -> Line {
    let log = ask(json!({ "command": "log", "client": client, "most": 1 }));
    let last = &log["faults"][0];
    assert_eq!((&last["client"], &last["is_here"]), (&json!(client), &json!(true)));
    let text = |field: &str| last[field].as_str().map(str::to_owned);
    let stats = ask(json!({ "command": "stats" }));
    assert_eq!(stats["functions"][0]["id"], client);
    Line {
        pid: last["pid"].clone(),
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

/// A fault as the log has it.
#[derive(Debug)]
struct Line {
    /// Of the process whose device had it; `null` where that is no other.
    pid: Value,
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

fn every_fault_is_named_alike(way: Way) {
    let (bench, device) = Bench::new(way);
    let model = if way == Way::Pci { MODEL_OF_GUEST } else { MODEL };
    let session = Session::builder(&device).load(model).unwrap();
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
    let name = match way {
        Way::Sim => "sim",
        Way::VfioUser => "vfio-user",
        Way::Pci => "pci",
    };
    println!("faults as log, dump and error name them, over {name}\n{table}");
    if way == Way::Pci {
        // The guest has no such folder: whoever reads its console has the table.
        functions::tell_host("table", &table);
        return;
    }
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

#[cfg(feature = "guest")]
mod pci {
    #[test]
    fn every_fault_is_named_alike() {
        super::every_fault_is_named_alike(npu_tests::Way::Pci);
    }
}
