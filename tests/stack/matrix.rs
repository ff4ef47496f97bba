//! Every injected fault over every transport, with jobs in flight in two queues: each job ends exactly
//! once and in bounded time, and the device works again.
//!
//! Each test writes its table to `fault-matrix-TRANSPORT.txt` in the folder for tests' files, where
//! `cargo xtask test` finds it.

use libnpu::manage::Manager;
use libnpu::transport::inproc::InProcess;
use libnpu::{Caller, Context, Device, Error, Job, Loss, Memory, TransportError};
use npu_tests::functions::{self, Function};
use npu_tests::{HANG, Simulator, Way};
use npu_uapi::status::Status;
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Jobs in each of two queues.
const JOBS: usize = 3;
/// Options of every device: a command that makes no progress is found soon.
const DEVICE: &str = "hang_ms=300";
/// How long a device in another process may take over a request.
const PATIENCE_MS: u32 = 1000;

/// A fault, and how it is to end.
struct Case {
    fault: &'static str,
    /// Over which transport it is as told here; `None` over each.
    way: Option<Way>,
    /// Whether a queue's ends are as they must be.
    is_expected: fn(&[String]) -> bool,
    /// Whether the ends of both queues are, together.
    is_expected_of_all: fn(&[String]) -> bool,
    revive: Revive,
}

/// What makes the device work again.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Revive {
    /// Nothing: the same queues go on.
    Nothing,
    Reset,
    Reopen,
}

fn count(ends: &[String], end: &str) -> usize {
    ends.iter().filter(|found| *found == end).count()
}

fn all_done(ends: &[String]) -> bool {
    count(ends, "done") == ends.len()
}

fn one_of(ends: &[String], end: &str) -> bool {
    count(ends, end) == 1 && count(ends, "done") == ends.len() - 1
}

fn any(_: &[String]) -> bool {
    true
}

const CASES: &[Case] = &[
    Case {
        fault: "lost-interrupt:4",
        way: None,
        is_expected: all_done,
        is_expected_of_all: any,
        revive: Revive::Nothing,
    },
    Case {
        fault: "stuck-engine",
        way: None,
        is_expected: any,
        is_expected_of_all: |ends| {
            let innocent = count(ends, "INNOCENT");
            count(ends, "HUNG") == 1 && count(ends, "done") + innocent == ends.len() - 1
        },
        revive: Revive::Nothing,
    },
    Case {
        fault: "dma-error",
        way: None,
        is_expected: any,
        is_expected_of_all: |ends| one_of(ends, "DMA_ERROR"),
        revive: Revive::Nothing,
    },
    Case {
        fault: "slow-dma:60",
        way: None,
        is_expected: all_done,
        is_expected_of_all: any,
        revive: Revive::Nothing,
    },
    Case {
        fault: "corrupt-completion",
        way: None,
        is_expected: |ends| all_done(ends) || count(ends, "lost: stray answer") == ends.len(),
        is_expected_of_all: |ends| count(ends, "lost: stray answer") == JOBS,
        revive: Revive::Reset,
    },
    Case {
        fault: "wrong-ring-index:100",
        way: None,
        is_expected: |ends| {
            let lost = count(ends, "lost: ring index");
            lost > 0 && lost + count(ends, "done") == ends.len()
        },
        is_expected_of_all: any,
        revive: Revive::Reset,
    },
    Case {
        fault: "delayed-reply:200",
        way: None,
        is_expected: all_done,
        is_expected_of_all: any,
        revive: Revive::Nothing,
    },
    Case {
        fault: "delayed-reply:3000",
        way: Some(Way::VfioUser),
        is_expected: |ends| count(ends, "lost: gone") == ends.len(),
        is_expected_of_all: any,
        revive: Revive::Reopen,
    },
    Case {
        fault: "delayed-reply:3000",
        way: Some(Way::Sim),
        is_expected: all_done,
        is_expected_of_all: any,
        revive: Revive::Nothing,
    },
];

/// A device, and the way to make it misbehave.
enum Bench {
    Sim(Arc<InProcess>),
    VfioUser(Simulator),
    Pci(Function, Manager),
}

impl Bench {
    fn new(way: Way) -> (Self, Device) {
        let bench = match way {
            Way::Sim => Self::Sim(Arc::new(InProcess::new(DEVICE).unwrap())),
            Way::VfioUser => Self::VfioUser(Simulator::start(DEVICE)),
            Way::Pci => {
                let function = functions::take(functions::OF_MATRIX);
                Self::Pci(function, functions::manager())
            }
        };
        let device = bench.open();
        (bench, device)
    }

    fn open(&self) -> Device {
        match self {
            Self::Sim(transport) => Device::over("sim", Arc::<InProcess>::clone(transport)),
            Self::VfioUser(server) => {
                let name = server.device();
                let path = name.split_once(':').unwrap().1;
                Device::open_private(&format!("vfio-user,patience_ms={PATIENCE_MS}:{path}"))
            }
            Self::Pci(function, _) => Device::open_private(&function.device()),
        }
        .unwrap()
    }

    fn inject(&self, fault: &str) {
        match self {
            Self::Sim(transport) => match fault {
                "none" => transport.injector().clear(),
                fault => transport.injector().arm(&fault_plan(fault)).unwrap(),
            },
            Self::VfioUser(server) => {
                let reply = server.manage(&inject_request(fault));
                assert!(reply.get("error").is_none(), "{reply}");
            }
            Self::Pci(_, manager) => {
                let reply = manager.request(&inject_request(fault), HANG).unwrap();
                assert!(!reply.contains("\"error\""), "{reply}");
            }
        }
    }
}

fn inject_request(fault: &str) -> String {
    format!(r#"{{"command":"inject","fault":"{fault}"}}"#)
}

fn fault_plan(text: &str) -> kmod_sim::inject::Plan {
    kmod_sim::inject::Plan::parse(text).unwrap()
}

/// How a job, or the attempt to submit it, ended.
fn end<T>(result: &Result<T, Error>) -> String {
    let lost = match result {
        Ok(_) => return "done".into(),
        Err(Error::Fault(fault)) => return format!("{:?}", fault.status),
        Err(Error::Transport(TransportError::Silent { .. } | TransportError::Gone { .. })) => {
            "gone"
        }
        Err(Error::Lost { why, .. }) => match why {
            Loss::Ring(_) => "ring index",
            Loss::Stray { .. } => "stray answer",
            Loss::Gone(_) => "gone",
            other => return format!("lost: {other}"),
        },
        Err(other) => return format!("unexpected: {other}"),
    };
    format!("lost: {lost}")
}

/// Ends of the jobs in each of two queues of a device that shows `fault`.
fn ends(bench: &Bench, device: &Device, fault: &str) -> [Vec<String>; 2] {
    let contexts = [device.create_context().unwrap(), device.create_context().unwrap()];
    let memory = Memory::from(&device.allocate(64).unwrap());
    // Each takes a while, so that they are in flight together.
    bench.inject(&format!("{fault}+slow-dma:20"));
    let submit = |context: &Context| {
        let jobs: Vec<Result<Job, Error>> = (0..JOBS).map(|_| context.fill(&memory, 1)).collect();
        jobs
    };
    let jobs = [submit(&contexts[0]), submit(&contexts[1])];
    let ends: [Vec<String>; 2] = jobs.each_ref().map(|jobs| {
        let ended = jobs.iter().map(|job| {
            let Ok(job) = job else { return end(job) };
            let first = job.wait(&Caller, HANG);
            if let Err(Error::Fault(fault)) = &first {
                let record = fault.record.expect("the fault ring has room");
                let is_dma = fault.status == Status::DMA_ERROR;
                assert!(!is_dma || record.iova == memory.iova().raw(), "{record:?}");
            }
            // Asked again, it has ended as it did.
            let again = job.poll().expect("it has ended");
            assert_eq!(end(&first), end(&again));
            end(&first)
        });
        ended.collect()
    });
    bench.inject("none");
    for (context, ends) in contexts.iter().zip(&ends) {
        if !ends.iter().any(|end| end.starts_with("lost")) {
            assert_eq!(context.in_flight(), 0, "answered jobs are off the ring");
            context.nop().unwrap().wait(&Caller, HANG).unwrap();
        }
    }
    ends
}

fn check(way: Way) {
    let mut table = format!("{:<22} {:<62} then\n", "fault", "ends of the jobs of two queues");
    for case in CASES.iter().filter(|case| case.way.is_none_or(|only| only == way)) {
        let (bench, mut device) = Bench::new(way);
        let started = Instant::now();
        let queues = ends(&bench, &device, case.fault);
        let told = queues.each_ref().map(|ends| ends.join(", ")).join(" | ");
        assert!(started.elapsed() < HANG, "{}: {told}", case.fault);
        assert!(queues.iter().all(|ends| (case.is_expected)(ends)), "{}: {told}", case.fault);
        assert!((case.is_expected_of_all)(&queues.concat()), "{}: {told}", case.fault);
        let missed = device.missed_interrupts();
        assert_eq!(
            missed > 0,
            case.fault.starts_with("lost-interrupt"),
            "{}: {missed}",
            case.fault
        );
        match case.revive {
            Revive::Nothing => {}
            Revive::Reset => device.reset().unwrap(),
            Revive::Reopen => device = bench.open(),
        }
        let buffer = device.allocate(256).unwrap();
        let context = device.create_context().unwrap();
        context.fill(&Memory::from(&buffer), 9).unwrap().wait(&Caller, HANG).unwrap();
        assert_eq!(buffer.to_vec(), [9; 256], "{}", case.fault);
        let then = match case.revive {
            Revive::Nothing => "works on",
            Revive::Reset => "works after a reset",
            Revive::Reopen => "works opened again",
        };
        writeln!(table, "{:<22} {told:<62} {then}", case.fault).unwrap();
    }
    let name = match way {
        Way::Sim => "sim",
        Way::VfioUser => "vfio-user",
        Way::Pci => "pci",
    };
    println!("faults over {name}\n{table}");
    if way == Way::Pci {
        // The guest has no such folder: whoever reads its console has the table.
        functions::tell_host("table", &table);
        return;
    }
    let file = format!("fault-matrix-{name}.txt");
    std::fs::write(Path::new(env!("CARGO_TARGET_TMPDIR")).join(file), table).unwrap();
}

mod sim {
    #[test]
    fn each_injected_fault_ends_each_job_once_and_the_device_works_again() {
        super::check(npu_tests::Way::Sim);
    }
}

mod vfio_user {
    #[test]
    fn each_injected_fault_ends_each_job_once_and_the_device_works_again() {
        super::check(npu_tests::Way::VfioUser);
    }
}

#[cfg(feature = "guest")]
mod pci {
    #[test]
    fn each_injected_fault_ends_each_job_once_and_the_device_works_again() {
        super::check(npu_tests::Way::Pci);
    }
}

#[test]
fn a_device_that_somebody_else_resets_ends_waits_within_moments() {
    let server = Simulator::start("");
    let device = Device::open_private(&server.device()).unwrap();
    let context = device.create_context().unwrap();
    let memory = Memory::from(&device.allocate(64).unwrap());
    server.manage(r#"{"command":"inject","fault":"slow-dma:60000"}"#);
    let job = context.fill(&memory, 1).unwrap();
    let started = Instant::now();
    std::thread::scope(|scope| {
        let wait = scope.spawn(|| job.wait(&Caller, HANG));
        server.manage(r#"{"command":"reset","client":"all"}"#);
        let error = wait.join().unwrap().unwrap_err();
        assert!(matches!(error, Error::Lost { why: Loss::Stopped { .. }, .. }), "{error}");
        assert!(error.to_string().contains("reset it"), "{error}");
    });
    assert!(started.elapsed() < Duration::from_secs(30));
    server.manage(r#"{"command":"inject","fault":"none"}"#);
    device.reset().unwrap();
    device.create_context().unwrap().nop().unwrap().wait(&Caller, HANG).unwrap();
}
