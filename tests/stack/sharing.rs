//! Several clients, contexts and priorities on one device, and who is served.
//!
//! The clients of one server are processes, of the binary `npu-contender`.

use libnpu::{Caller, ContextOptions, Device, Error, Job, Memory, Pool, Priority};
use npu_tests::{HANG, Simulator, Work, image, over_each_transport, product, product_slots};
use npu_uapi::addr::SlotId;
use npu_uapi::image::slot_kind;
use npu_uapi::reg::Register;
use npu_uapi::regs::HeartbeatLow;
use npu_uapi::status::Status;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Instant;

over_each_transport! {
    a_job_of_a_higher_priority_does_not_wait_for_one_of_a_lower,
    the_first_urgent_context_is_created_during_one_long_command,
}

fn until_it_beats(device: &Device) {
    let beat = || device.transport().read32(HeartbeatLow::OFFSET).unwrap();
    let (first, start) = (beat(), Instant::now());
    while beat().wrapping_sub(first) < 3 {
        assert!(start.elapsed() < HANG, "the device does not start");
        std::thread::yield_now();
    }
}

fn a_job_of_a_higher_priority_does_not_wait_for_one_of_a_lower(
    device: &Device,
) -> Result<(), Error> {
    // Minutes, unless it is ended.
    let long = Work::new(device, Priority::Background, 2000, [1024, 1024, 1024])?;
    let below = long.submit()?;
    let first = Work::new(device, Priority::Normal, 3, [64, 64, 64])?;
    let urgent = Work::new(device, Priority::Urgent, 3, [64, 64, 64])?;
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| below.wait(&Pool::new(2), HANG));
        until_it_beats(device);
        for work in [&first, &urgent, &first, &urgent] {
            work.submit()?.wait(&Caller, HANG)?;
            assert_eq!(long.context.in_flight(), 1, "it rests, or goes on");
        }
        long.context.abort()?;
        let error = waiter.join().unwrap().unwrap_err();
        assert_eq!(error.fault().map(|fault| fault.status), Some(Status::ABORTED), "{error}");
        Ok(())
    })
}

fn the_first_urgent_context_is_created_during_one_long_command(
    device: &Device,
) -> Result<(), Error> {
    let size = 8192;
    let long = Work::new(device, Priority::Normal, 1, [size, size, size])?;
    let job = long.submit()?;
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| job.wait(&Pool::new(2), HANG));
        until_it_beats(device);
        let urgent = Work::new(device, Priority::Urgent, 3, [64, 64, 64])?;
        urgent.submit()?.wait(&Caller, HANG)?;
        assert_eq!(long.context.in_flight(), 1, "its one command is not through");
        long.context.abort()?;
        let error = waiter.join().unwrap().unwrap_err();
        assert_eq!(error.fault().map(|fault| fault.status), Some(Status::ABORTED), "{error}");
        Ok(())
    })
}

#[test]
fn a_client_of_a_higher_priority_does_not_wait_for_the_job_of_another() {
    let server = Simulator::start("");
    let [low, high] = [(), ()].map(|()| Device::open_private(&server.device()).unwrap());
    let long = Work::new(&low, Priority::Normal, 2000, [1024, 1024, 1024]).unwrap();
    let below = long.submit().unwrap();
    until_it_beats(&low);
    let urgent = Work::new(&high, Priority::High, 3, [64, 64, 64]).unwrap();
    for _ in 0..20 {
        urgent.submit().unwrap().wait(&Caller, HANG).unwrap();
        assert_eq!(long.context.in_flight(), 1);
    }
    long.context.abort().unwrap();
    let error = below.wait(&Caller, HANG).unwrap_err();
    assert_eq!(error.fault().map(|fault| fault.status), Some(Status::ABORTED), "{error}");
    assert!(high.faults().unwrap().is_empty(), "the fault is the other client's");
}

#[test]
fn a_hung_job_is_named_and_the_jobs_of_other_clients_go_on() {
    let server = Simulator::start("hang_ms=50");
    let [bad, good] = [(), ()].map(|()| Device::open_private(&server.device()).unwrap());
    let hung = Work::new(&bad, Priority::Normal, 4, [64, 64, 64]).unwrap();
    let other = Work::new(&good, Priority::Normal, 4, [64, 64, 64]).unwrap();
    let clients = server.manage(r#"{"command":"stats"}"#);
    let id = clients["functions"].as_array().and_then(|all| all.first()?["id"].as_u64());
    let id = id.unwrap_or_else(|| panic!("{clients}"));
    let reply =
        server.manage(&format!(r#"{{"command":"inject","client":{id},"fault":"stuck-engine@3"}}"#));
    let (one, two) = (hung.submit().unwrap(), hung.submit().unwrap());
    for _ in 0..50 {
        other.submit().unwrap().wait(&Caller, HANG).unwrap();
    }
    let error = one.wait(&Caller, HANG).expect_err(&reply.to_string());
    let fault = error.fault().unwrap_or_else(|| panic!("{error}"));
    assert_eq!(fault.status, Status::HUNG, "{error}");
    let record = fault.record.unwrap();
    assert_eq!((record.command, record.op_id), (2, 2));
    two.wait(&Caller, HANG).unwrap();
    assert!(good.faults().unwrap().is_empty());
}

fn next_line(output: &mut BufReader<ChildStdout>, start: &str) -> String {
    loop {
        let mut line = String::new();
        assert_ne!(output.read_line(&mut line).unwrap(), 0, "the client has ended");
        if let Some(rest) = line.strip_prefix(start) {
            return rest.trim().to_owned();
        }
    }
}

#[test]
fn four_processes_with_full_queues_have_equal_shares_and_their_own_faults() {
    let server = Simulator::start("");
    let start = |index: u32| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_npu-contender"));
        command.args([&index.to_string(), &server.device()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
    };
    let mut clients: Vec<Child> = (0..4).map(start).collect();
    let mut outputs: Vec<_> =
        clients.iter_mut().map(|client| BufReader::new(client.stdout.take().unwrap())).collect();
    for output in &mut outputs {
        next_line(output, "ready");
    }
    for client in &mut clients {
        client.stdin.take().unwrap().write_all(b"go\n").unwrap();
    }
    let mut shares = Vec::new();
    for (index, output) in outputs.iter_mut().enumerate() {
        let line = next_line(output, "cycles ");
        let (cycles, faults) = line.split_once(" faults ").unwrap();
        assert_eq!(index == 0, faults != "0", "client {index} saw {faults} faults");
        shares.push(cycles.parse::<u64>().unwrap());
    }
    for client in &mut clients {
        assert!(client.wait().unwrap().success());
    }
    println!("modelled cycles of four clients: {shares:?}");
    let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
    assert!(most - least <= most / 10, "{shares:?}");
}

#[test]
fn a_job_that_loses_its_sram_because_another_hung_is_innocent() {
    let server = Simulator::start("hang_ms=50");
    let device = Device::open_private(&server.device()).unwrap();
    let options = ContextOptions::default().with_priority(Priority::Background);
    let context = device.create_context_with(options).unwrap();
    let urgent = Work::new(&device, Priority::Urgent, 2, [64, 64, 64]).unwrap();
    // One command of many seconds: what begins next is the other job.
    let size = 8192;
    let mut slots = product_slots(size, size, size).to_vec();
    slots.push((slot_kind::SRAM, 64 << 10));
    let program = context.load(&image(&slots, &[product(size, size, size, 0)])).unwrap();
    let memory = |len| Memory::from(&device.allocate(usize::try_from(len).unwrap()).unwrap());
    let overlay = (0..).map(SlotId).zip(slots[..4].iter().map(|&(_, len)| memory(len)));
    let resting = context.exec(&program, None, overlay).unwrap();
    until_it_beats(&device);
    let reply = server.manage(r#"{"command":"inject","fault":"stuck-engine"}"#);
    let status = |job: &Job| {
        let error = job.wait(&Caller, HANG).expect_err(&reply.to_string());
        error.fault().unwrap_or_else(|| panic!("{error}")).status
    };
    assert_eq!(status(&urgent.submit().unwrap()), Status::HUNG);
    assert_eq!(status(&resting), Status::INNOCENT);
    urgent.submit().unwrap().wait(&Caller, HANG).unwrap();
}
