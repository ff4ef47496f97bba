//! `npu-smi` in the guest, over the management function of the device for injected faults.

use ep_npu::{Session, TensorRef};
use libnpu::{Caller, Device, Error, Priority};
use npu_tests::functions::{self, Function};
use npu_tests::{HANG, Work};
use serde_json::Value;
use std::process::{Command, Output};
use std::time::Duration;

const PROGRAM: &str = "/bin/npu-smi";
const MODEL: &str = "/model/model.onnx";

/// What is injected, and the status that the log has of it.
const FAULTS: [(&str, &str); 4] = [
    ("stuck-engine", "HUNG"),
    ("stuck-engine@3", "HUNG"),
    ("bus-error", "DMA_ERROR"),
    ("bus-error@3", "DMA_ERROR"),
];

fn smi(arguments: &[&str]) -> Output {
    // Far above what a reply takes that is read word by word from an emulated processor.
    let place = ["--socket", &functions::manager_name(), "--timeout", "100"];
    Command::new(PROGRAM).args(place).args(arguments).output().expect("it is in the archive")
}

/// What `npu-smi` prints as JSON.
fn report(arguments: &[&str]) -> Value {
    let done = smi(&[arguments, &["--json"]].concat());
    let error = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{arguments:?}: {error}");
    serde_json::from_slice(&done.stdout).unwrap_or_else(|why| panic!("{arguments:?}: {why}"))
}

fn run(session: &Session) -> Result<(), String> {
    let image = vec![0.5; 784];
    let input = TensorRef::from_f32(&[1, 1, 28, 28], &image);
    session.run(&[input]).map(drop).map_err(|error| error.to_string())
}

fn opened() -> (Function, Device, Session) {
    let function = functions::take(functions::OF_MATRIX);
    let device = Device::open_private(&function.device()).unwrap();
    let session = Session::builder(&device).load(MODEL).unwrap();
    (function, device, session)
}

#[test]
fn npu_smi_counts_what_the_guest_does() {
    let (_function, device, session) = opened();
    let list = report(&["list"]);
    let clients = list["clients"].as_array().unwrap();
    assert_eq!(clients.len(), 1, "the guest is its one client: {list}");
    assert_eq!((&clients[0]["state"], &clients[0]["in_flight"]), (&"ready".into(), &0.into()));
    let before = report(&["show"]);
    for _ in 0..5 {
        run(&session).unwrap();
    }
    let after = report(&["show"]);
    let jobs = |report: &Value| report["clients"][0]["jobs"].as_u64().unwrap();
    assert_eq!(jobs(&after) - jobs(&before), 5);
    assert_eq!(jobs(&after), device.counters().unwrap().jobs);
    assert_eq!(after["clients"][0]["id"], clients[0]["id"]);
    assert_eq!(after["identity"]["hang_ms"], 300);
    let text = smi(&["show", "--prometheus"]);
    assert!(text.status.success() && text.stdout.starts_with(b"# HELP"), "{text:?}");
}

#[test]
fn npu_smi_has_saturated_codes_counted_through_the_management_function() {
    let (_function, device, session) = opened();
    let client = report(&["list"])["clients"][0]["id"].to_string();
    run(&session).unwrap();
    let saturation = || report(&["show"])["clients"][0]["saturation"].clone();
    assert_eq!(
        (&saturation()["is_counted"], &saturation()["array"]["codes"]),
        (&false.into(), &0.into())
    );
    report(&["saturation", "on", "--client", &client]);
    run(&session).unwrap();
    let counted = saturation();
    let page = device.telemetry().unwrap().saturation.unwrap();
    assert_eq!((page.is_counted, counted["is_counted"].as_bool()), (1, Some(true)));
    assert!(page.array.codes > 0 && page.vector.codes > 0, "{page:?}");
    for (engine, codes) in [("array", page.array), ("vector", page.vector)] {
        let told = ["codes", "lowest", "highest"].map(|field| counted[engine][field].as_u64());
        assert_eq!(told, [codes.codes, codes.lowest, codes.highest].map(Some), "{counted}");
    }
    report(&["saturation", "off", "--client", &client]);
    run(&session).unwrap();
    assert_eq!(saturation()["array"], counted["array"], "it has ended");
}

#[test]
fn the_log_of_npu_smi_and_the_application_name_the_same_queue_operation_and_node() {
    let (_function, _device, session) = opened();
    run(&session).unwrap();
    let client = report(&["list"])["clients"][0]["id"].to_string();
    for (fault, status) in FAULTS {
        report(&["inject", fault, "--client", &client]);
        let told = run(&session).expect_err(fault);
        report(&["inject", "none", "--client", &client]);
        let log = report(&["log", "--client", &client, "--most", "1"]);
        let last = &log["faults"][0];
        assert_eq!(last["status"], status, "{fault}: {last}");
        let text = |field: &str| last[field].as_str().unwrap_or_else(|| panic!("{field}: {last}"));
        let (node, message) = (format!("node `{}`", text("node")), text("message"));
        let job = format!("job {} of queue {}", last["job"], last["queue"]);
        let op = format!("op {}", last["op_id"]);
        for part in [&node, &job, &op] {
            assert!(
                told.contains(part) && message.contains(part),
                "{fault}: {part}: {told}, {last}"
            );
        }
        assert!(!text("op").is_empty(), "{last}");
        functions::tell_host("note", &format!("{fault}: {message}"));
        run(&session).unwrap();
    }
}

#[test]
fn dumps_a_trace_and_a_reset_go_through_the_management_function() {
    let (_function, device, session) = opened();
    let client = report(&["list"])["clients"][0]["id"].to_string();
    report(&["inject", "stuck-engine@2", "--client", &client]);
    run(&session).unwrap_err();
    report(&["inject", "none", "--client", &client]);
    let dumps = report(&["dump", "--list"]);
    let last = dumps["dumps"].as_array().unwrap().last().unwrap();
    assert_eq!((&last["status"], last["client"].to_string()), (&"HUNG".into(), client.clone()));
    let saved = smi(&["dump", "--core", &last["id"].to_string(), "--save", "/tmp/core"]);
    assert!(saved.status.success(), "{saved:?}");
    assert_eq!(Some(std::fs::read("/tmp/core").unwrap()), device.last_dump().unwrap());
    let now = report(&["dump", &client]);
    assert_eq!((&now["state"], &now["job"]), (&"ready".into(), &Value::Null));

    let trace = traced_at_work(&session, &client);
    let events = trace["clients"][0]["events"].as_array().unwrap();
    let named = events.iter().filter(|event| event["node"].is_string());
    assert!(named.count() > 0, "{events:?}");

    // Minutes, unless it is ended.
    let work = Work::new(&device, Priority::Normal, 2000, [1024, 1024, 1024]).unwrap();
    let job = work.submit().unwrap();
    let reset = report(&["reset", &client]);
    assert_eq!(reset["clients"][0].to_string(), client);
    let error = job.wait(&Caller, HANG).unwrap_err();
    assert!(matches!(error, Error::Lost { .. }), "{error}");
    device.reset().unwrap();
    device.create_context().unwrap().nop().unwrap().wait(&Caller, HANG).unwrap();
}

/// A trace of `client` while it runs a model, as long as it takes for one to have events.
fn traced_at_work(session: &Session, client: &str) -> Value {
    for seconds in ["0.5", "2", "8", "32"] {
        let trace = std::thread::scope(|scope| {
            let tracing = scope.spawn(|| report(&["trace", client, "--for", seconds]));
            while !tracing.is_finished() {
                run(session).unwrap();
                // A few jobs are enough: their events are read word by word.
                std::thread::sleep(Duration::from_millis(250));
            }
            tracing.join().unwrap()
        });
        if trace["clients"][0]["events"].as_array().is_some_and(|events| !events.is_empty()) {
            return trace;
        }
    }
    panic!("half a minute of work left no event");
}

#[test]
fn the_self_test_of_npu_smi_passes_and_a_device_in_use_is_said_to_be() {
    let function = functions::take(functions::OF_MATRIX);
    let name = function.device();
    let tested = report(&["selftest", "--device", &name]);
    assert_eq!(tested["failed"], 0, "{tested}");
    assert!(tested["passed"].as_u64().unwrap() > 5, "{tested}");
    // Neither the device nor its management function has two users.
    let device = Device::open_private(&name).unwrap();
    let manager = functions::manager();
    for arguments in [&["selftest", "--device", &name][..], &["list"]] {
        let refused = smi(arguments);
        let error = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && error.contains("one user at a time"), "{error}");
    }
    drop((device, manager));
}
