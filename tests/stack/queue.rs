//! Submitting, waiting, back-pressure, aborts, and resets while a job runs.

use libnpu::{
    Access, Buffer, Caller, Context, Device, Error, Job, Loss, Memory, Pool, TransportExt,
};
use npu_tests::{HANG, Way, fill, image, over, over_each_transport, product, product_slots};
use npu_uapi::addr::SlotId;
use npu_uapi::image::slot_kind;
use npu_uapi::reg::Register;
use npu_uapi::regs::HeartbeatLow;
use npu_uapi::status::Status;
use std::time::{Duration, Instant};

over_each_transport! {
    a_full_queue_says_so_and_loses_nothing,
    completions_go_round_the_ring_many_times,
    four_threads_submit_to_contexts_of_their_own_and_to_one_they_share,
    a_wait_that_is_too_short_says_that_the_device_computes_and_the_job_goes_on,
    an_abort_ends_the_job_that_runs_and_names_the_command,
    an_abort_of_one_context_leaves_the_job_of_another,
    a_reset_while_a_job_runs_ends_the_wait_and_the_device_starts_anew,
    dropping_the_context_of_a_job_that_runs_ends_it,
    a_handle_dropped_in_flight_frees_nothing_before_the_job_has_ended,
    programs_run_in_order_on_base_table_and_overlay,
    a_context_dropped_with_jobs_in_flight_gives_everything_back,
}

/// A job that takes minutes, with its memory, unless it is ended.
fn submit_long(device: &Device, context: &Context) -> Result<Job, Error> {
    submit_long_to(device, context, None)
}

/// As [`submit_long`], with its result in `output`.
fn submit_long_to(
    device: &Device,
    context: &Context,
    mut output: Option<Memory>,
) -> Result<Job, Error> {
    let (m, n, k) = (1024, 1024, 1024);
    let commands: Vec<_> = (0..2000).map(|op_id| product(m, n, k, op_id)).collect();
    let slots = product_slots(m, n, k);
    let program = context.load(&image(&slots, &commands))?;
    let overlay = slots.iter().zip(0..).map(|(&(_, len), slot)| {
        let memory = match output.take_if(|_| slot == 3) {
            Some(output) => output,
            None => Memory::from(&device.allocate(usize::try_from(len).unwrap())?),
        };
        Ok((SlotId(slot), memory))
    });
    context.exec(&program, None, overlay.collect::<Result<Vec<_>, Error>>()?)
}

/// Waits until the device is computing.
fn until_it_beats(device: &Device) {
    let beat = || device.transport().read::<HeartbeatLow>().unwrap().raw();
    let (first, start) = (beat(), Instant::now());
    while beat().wrapping_sub(first) < 3 {
        assert!(start.elapsed() < HANG, "the device does not start");
        std::thread::yield_now();
    }
}

fn a_full_queue_says_so_and_loses_nothing(device: &Device) -> Result<(), Error> {
    let context = device.create_context()?;
    // The first holds the others up, wherever the device computes.
    let mut jobs = vec![submit_long(device, &context)?];
    let refused = loop {
        match context.nop() {
            Ok(job) => jobs.push(job),
            Err(error) => break error,
        }
    };
    let Error::QueueFull { in_flight } = refused else { panic!("{refused}") };
    assert_eq!(usize::try_from(in_flight).unwrap(), jobs.len());
    context.abort()?;
    for job in &jobs {
        let error = job.wait(&Caller, HANG).unwrap_err();
        assert_eq!(error.fault().map(|fault| fault.status), Some(Status::ABORTED), "{error}");
    }
    assert_eq!(context.in_flight(), 0);
    context.nop()?.wait(&Caller, HANG)?;
    Ok(())
}

fn completions_go_round_the_ring_many_times(device: &Device) -> Result<(), Error> {
    let context = device.create_context()?;
    for round in 0..500_u32 {
        let jobs: Vec<Job> = (0..=round % 60).map(|_| context.nop()).collect::<Result<_, _>>()?;
        for job in jobs.iter().rev() {
            job.wait(&Caller, HANG)?;
        }
    }
    Ok(())
}

/// Fills, copies back and checks `rounds` times.
fn fill_and_check(device: &Device, context: &Context, seed: u8, rounds: u8) -> Result<(), Error> {
    let len = 10_000 + usize::from(seed);
    let (one, other) = (device.allocate(len)?, device.allocate(len)?);
    for round in 0..rounds {
        let value = seed.wrapping_mul(31).wrapping_add(round);
        let filled = context.fill(&Memory::from(&one), value)?;
        let copied = context.copy(&Memory::from(&one), &Memory::from(&other))?;
        copied.wait(&Caller, HANG)?;
        filled.wait(&Caller, HANG)?;
        assert!(other.to_vec().iter().all(|&byte| byte == value));
    }
    Ok(())
}

fn four_threads_submit_to_contexts_of_their_own_and_to_one_they_share(
    device: &Device,
) -> Result<(), Error> {
    let shared = device.create_context()?;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|seed| {
                let shared = &shared;
                scope.spawn(move || {
                    let own = device.create_context()?;
                    fill_and_check(device, &own, seed, 40)?;
                    fill_and_check(device, shared, seed, 40)
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| thread.join().unwrap())
    })
}

fn a_wait_that_is_too_short_says_that_the_device_computes_and_the_job_goes_on(
    device: &Device,
) -> Result<(), Error> {
    let context = device.create_context()?;
    let job = submit_long(device, &context)?;
    let started = Instant::now();
    loop {
        let error = job.wait(&Caller, Duration::from_millis(1)).unwrap_err();
        let Error::Timeout(stall) = &error else { panic!("{error}") };
        assert_eq!(stall.in_flight, 1, "{error}");
        if stall.has_moved {
            break;
        }
        // A process of its own may take a while to get a processor.
        assert!(started.elapsed() < HANG, "{error}");
    }
    assert!(job.poll().is_none());
    context.abort()?;
    let error = job.wait(&Caller, HANG).unwrap_err();
    assert_eq!(error.fault().map(|fault| fault.status), Some(Status::ABORTED));
    Ok(())
}

fn an_abort_ends_the_job_that_runs_and_names_the_command(device: &Device) -> Result<(), Error> {
    let context = device.create_context()?;
    let (job, queued) = (submit_long(device, &context)?, context.nop()?);
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| job.wait(&Pool::new(2), HANG));
        until_it_beats(device);
        context.abort()?;
        let error = waiter.join().unwrap().unwrap_err();
        let fault = *error.fault().expect("a fault");
        assert_eq!((fault.status, fault.queue), (Status::ABORTED, context.queue_id()));
        let record = fault.record.expect("a record");
        assert_eq!((record.job, record.op_id), (job.number(), record.command));
        let error = queued.wait(&Caller, HANG).unwrap_err();
        assert_eq!(error.fault().map(|fault| fault.status), Some(Status::ABORTED));
        context.nop()?.wait(&Caller, HANG)?;
        Ok(())
    })
}

fn an_abort_of_one_context_leaves_the_job_of_another(device: &Device) -> Result<(), Error> {
    let (one, other) = (device.create_context()?, device.create_context()?);
    let job = submit_long(device, &one)?;
    let buffer = device.allocate(100)?;
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| job.wait(&Caller, HANG));
        until_it_beats(device);
        let filled = other.fill(&Memory::from(&buffer), 9)?;
        other.abort()?;
        assert!(job.poll().is_none(), "it runs on");
        one.abort()?;
        assert!(waiter.join().unwrap().is_err());
        let error = filled.wait(&Caller, HANG).unwrap_err();
        assert_eq!(error.fault().map(|fault| fault.status), Some(Status::ABORTED));
        other.fill(&Memory::from(&buffer), 9)?.wait(&Caller, HANG)?;
        Ok(())
    })
}

fn a_reset_while_a_job_runs_ends_the_wait_and_the_device_starts_anew(
    device: &Device,
) -> Result<(), Error> {
    let context = device.create_context()?;
    let job = submit_long(device, &context)?;
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| job.wait(&Caller, HANG));
        until_it_beats(device);
        device.reset()?;
        let error = waiter.join().unwrap().unwrap_err();
        assert!(matches!(error, Error::Lost { why: Loss::Reset, .. }), "{error}");
        device.create_context()?.nop()?.wait(&Caller, HANG)?;
        Ok(())
    })
}

fn dropping_the_context_of_a_job_that_runs_ends_it(device: &Device) -> Result<(), Error> {
    let context = device.create_context()?;
    let job = submit_long(device, &context)?;
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| job.wait(&Caller, HANG));
        until_it_beats(device);
        drop(context);
        assert!(waiter.join().unwrap().is_err());
    });
    fill_and_check(device, &device.create_context()?, 1, 2)
}

fn a_handle_dropped_in_flight_frees_nothing_before_the_job_has_ended(
    device: &Device,
) -> Result<(), Error> {
    let context = device.create_context()?;
    let buffer = device.allocate(1 << 20)?;
    let iova = buffer.iova();
    drop(context.fill(&Memory::from(&buffer), 5)?);
    drop(buffer);
    let other = device.allocate(1 << 20)?;
    assert_ne!(other.iova(), iova, "the job still has it");
    context.nop()?.wait(&Caller, HANG)?;
    assert!(other.to_vec().iter().all(|&byte| byte == 0));
    drop(other);
    let again: Buffer = device.allocate(1 << 20)?;
    assert_eq!(again.iova(), iova, "now it was given back");
    assert!(again.to_vec().iter().all(|&byte| byte == 0), "and is zeroed again");
    Ok(())
}

fn programs_run_in_order_on_base_table_and_overlay(device: &Device) -> Result<(), Error> {
    let context = device.create_context()?;
    let slots = [(slot_kind::SCRATCH, 64), (slot_kind::OUTPUT, 32)];
    let commands = [fill(0, 0, 64, 1, 0), fill(1, 0, 32, 2, 1), fill(1, 8, 8, 3, 2)];
    let program = context.load(&image(&slots, &commands))?;
    let (scratch, out) = (device.allocate(64)?, device.allocate(40)?);
    let table = context.bind(&[(SlotId(0), Memory::from(&scratch))])?;
    let overlay = vec![(SlotId(1), Memory::buffer(&out, 8, 32, Access::ReadWrite)?)];
    let job = context.exec(&program, Some(&table), overlay)?;
    // What a job names lives until it has ended.
    drop((program, table));
    let done = job.wait(&Caller, HANG)?;
    assert!(done.cycles >= 3);
    let mut want = vec![0; 8];
    want.extend([[2; 8], [3; 8], [2; 8], [2; 8]].concat());
    assert_eq!(out.to_vec(), want);
    assert_eq!(scratch.to_vec(), [1; 64]);
    Ok(())
}

fn a_context_dropped_with_jobs_in_flight_gives_everything_back(
    device: &Device,
) -> Result<(), Error> {
    let contexts = device.limits().contexts * 2;
    for _ in 0..contexts {
        let context = device.create_context()?;
        drop(submit_long(device, &context)?);
        drop(context.nop()?);
    }
    Ok(())
}

#[test]
fn foreign_memory_taken_away_from_a_job_that_runs_ends_the_job_first() {
    over(Way::Sim, |device| {
        let context = device.create_context()?;
        let mut output = vec![0_u8; 1 << 20];
        let (start, len) = (output.as_mut_ptr(), output.len());
        // SAFETY: the vector outlives the mapping and is not touched meanwhile.
        let foreign = unsafe { device.map_foreign(start, len, Access::ReadWrite) }?;
        let job = submit_long_to(device, &context, Some(Memory::from(&foreign)))?;
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| job.wait(&Pool::new(2), HANG));
            until_it_beats(device);
            foreign.unmap()?;
            // The device has made its last access: the vector is ours again.
            output.fill(0xee);
            let error = waiter.join().unwrap().unwrap_err();
            assert_eq!(error.fault().map(|fault| fault.status), Some(Status::ABORTED), "{error}");
            assert!(output.iter().all(|&byte| byte == 0xee));
            context.nop()?.wait(&Caller, HANG)?;
            Ok(())
        })
    });
}

#[test]
fn foreign_memory_is_taken_away_from_all_jobs_at_once_however_many_are_queued() {
    over(Way::Sim, |device| {
        let context = device.create_context()?;
        let mut output = vec![0_u8; 1 << 20];
        let (start, len) = (output.as_mut_ptr(), output.len());
        // SAFETY: the vector outlives the mapping and is not touched meanwhile.
        let foreign = unsafe { device.map_foreign(start, len, Access::ReadWrite) }?;
        let submit = |_| submit_long_to(device, &context, Some(Memory::from(&foreign)));
        let jobs = (0..20).map(submit).collect::<Result<Vec<_>, _>>()?;
        let statuses = std::thread::scope(|scope| {
            let waiter = scope.spawn(move || {
                let status = |job: Job| {
                    let error = job.wait(&Caller, HANG).expect_err("its memory is gone");
                    error.fault().map(|fault| fault.status)
                };
                jobs.into_iter().map(status).collect::<Vec<_>>()
            });
            until_it_beats(device);
            foreign.unmap()?;
            Ok::<_, Error>(waiter.join().unwrap())
        })?;
        assert_eq!(statuses[0], Some(Status::ABORTED));
        assert_eq!(statuses[1..], [Some(Status::UNMAPPED_IOVA); 19], "they find nothing mapped");
        Ok(())
    });
}
