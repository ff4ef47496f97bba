//! A thousand clients killed at random moments: the server keeps nothing of them, and nobody else notices.

use libnpu::{Access, Buffer, Caller, Device, Error, Memory};
use npu_tests::{HANG, Noise, Simulator, image, product, product_slots};
use npu_uapi::addr::SlotId;
use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const CLIENTS: u64 = 1000;
const LEAST_IN_FLIGHT: u64 = 300;
const AT_ONCE: u64 = 6;
const SURVIVORS: usize = 2;
/// Looks at the server before the first is killed, of which the least counts.
const LOOKS: usize = 20;
const STATS: &str = r#"{"command":"stats"}"#;

/// What of a process the kernel counts.
#[derive(Debug, Eq, PartialEq)]
struct Footprint {
    descriptors: BTreeMap<String, usize>,
    threads: usize,
    /// Mappings by what is mapped and how; how many, and how many bytes they have in all.
    maps: BTreeMap<String, (usize, u64)>,
}

impl Footprint {
    /// Whether there is nothing more than in `other`: the same, but that the C library may hold less
    /// memory of its own, which it maps and gives back as it has it.
    fn is_within(&self, other: &Self) -> bool {
        let fits = |(name, &(count, bytes)): (&String, &(usize, u64))| {
            let (most, most_bytes) = other.maps.get(name).copied().unwrap_or_default();
            match name.ends_with("anonymous") {
                true => count <= most && bytes <= most_bytes,
                false => (count, bytes) == (most, most_bytes),
            }
        };
        self.descriptors == other.descriptors
            && self.threads == other.threads
            && self.maps.iter().all(fits)
    }
}

fn footprint(server: &Simulator) -> Footprint {
    let process = format!("/proc/{}", server.id());
    let entries = |folder: &str| fs::read_dir(format!("{process}/{folder}")).unwrap().flatten();
    let mut descriptors = BTreeMap::new();
    for entry in entries("fd") {
        // One that is closed meanwhile is none.
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        let target = target.display().to_string();
        let kind = target.split(':').next().unwrap_or_default().to_owned();
        *descriptors.entry(kind).or_default() += 1;
    }
    let mut maps = BTreeMap::new();
    for line in fs::read_to_string(format!("{process}/maps")).unwrap().lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (start, end) = fields[0].split_once('-').unwrap();
        let [start, end] = [start, end].map(|at| u64::from_str_radix(at, 16).unwrap());
        let name = format!("{} {}", fields[1], fields.get(5).unwrap_or(&"anonymous"));
        // The heap is one mapping that grows and shrinks as the allocator has it.
        let bytes = if name.ends_with("[heap]") { 0 } else { end - start };
        let entry: &mut (usize, u64) = maps.entry(name).or_default();
        *entry = (entry.0 + 1, entry.1 + bytes);
    }
    Footprint { descriptors, threads: entries("task").count(), maps }
}

/// A client that computes the same product again and again.
struct Survivor {
    device: Device,
    run: Box<dyn Fn() -> Result<Vec<u8>, Error> + Send + Sync>,
    wanted: Vec<u8>,
}

impl Survivor {
    fn new(server: &Simulator, seed: u64) -> Result<Self, Error> {
        let device = Device::open_private(&server.device())?;
        let context = device.create_context()?;
        let (m, n, k) = (33, 48, 100);
        let slots = product_slots(m, n, k);
        let program = context.load(&image(&slots, &[product(m, n, k, 0)]))?;
        let mut noise = Noise::new(seed);
        let mut buffers: Vec<Buffer> = Vec::new();
        for (_, len) in slots {
            let buffer = device.allocate(usize::try_from(len).unwrap())?;
            let bytes: Vec<u8> = (0..len).map(|_| noise.word().to_le_bytes()[0]).collect();
            buffer.write(0, &bytes)?;
            buffers.push(buffer);
        }
        // Bias 1000, and a multiplier that spreads the sums over the codes; no zero point.
        for record in 0..48 {
            let bias_and_multiplier = [1000_u32.to_le_bytes(), 0.002_f32.to_le_bytes()].concat();
            buffers[2].write(record * 16, &[bias_and_multiplier, vec![0; 8]].concat())?;
        }
        let run = move || {
            let out = &buffers[3];
            out.write(0, &vec![0xa5; out.len()])?;
            let memory = buffers
                .iter()
                .map(|buffer| Memory::buffer(buffer, 0, buffer.len() as u64, Access::ReadWrite));
            let slots = (0..).map(SlotId).zip(memory.collect::<Result<Vec<_>, Error>>()?);
            context.exec(&program, None, slots)?.wait(&Caller, HANG)?;
            Ok(out.to_vec())
        };
        let wanted = run()?;
        let mut codes = wanted.clone();
        codes.sort_unstable();
        codes.dedup();
        assert!(codes.len() > 50, "results that can be told apart, not {} codes", codes.len());
        Ok(Self { device, run: Box::new(run), wanted })
    }

    fn check(&self) {
        assert_eq!((self.run)().unwrap(), self.wanted, "every byte of a survivor's result");
    }
}

/// Starts a client and kills it: one in two once it says that it is busy, the others anywhere on the
/// way there, each after a random time.
fn kill_one(device: &str, noise: &mut Noise) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_npu-victim"));
    let mut child =
        command.arg(device).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    if noise.below(2) == 0 {
        // It ends by itself when it hangs, and then says nothing.
        let mut said = [0; 5];
        child.stdout.take().unwrap().read_exact(&mut said).expect("the client becomes busy");
    }
    thread::sleep(Duration::from_micros(noise.below(15_000)));
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_thousand_killed_clients_leave_nothing_and_disturb_nobody() {
    // Exactly what the server has, without what the C library keeps of it for later.
    let caches = "glibc.pthread.stack_cache_size=0:glibc.malloc.arena_max=1";
    let server = Simulator::start_with("", &[("GLIBC_TUNABLES", caches)]);
    let survivors: Vec<Survivor> =
        (1..=SURVIVORS).map(|seed| Survivor::new(&server, seed as u64).unwrap()).collect();
    let path = server.device().trim_start_matches("vfio-user:").to_owned();
    let count = |name: &str| server.manage(STATS)[name].as_u64().unwrap();
    // When a thread ends, the C library frees the stack of the one before, at times: so more clients
    // come and go, who say nothing, until the last stack is gone too.
    let at_rest = |is_so: &dyn Fn(&Footprint) -> bool| {
        let deadline = Instant::now() + HANG;
        loop {
            let found = footprint(&server);
            if count("clients") == SURVIVORS as u64 && is_so(&found) {
                return found;
            }
            assert!(Instant::now() < deadline, "left of the clients: {found:#?}");
            drop(UnixStream::connect(&path));
            thread::sleep(Duration::from_millis(5));
        }
    };
    // One is killed before: what is made for the first is there from then on.
    let mut noise = Noise::new(7);
    kill_one(&server.device(), &mut noise);
    survivors.iter().for_each(Survivor::check);
    let before: Vec<Footprint> = (0..LOOKS)
        .map(|_| {
            drop(UnixStream::connect(&path));
            at_rest(&|_| true)
        })
        .collect();
    let (accepted, in_flight) = (count("accepted"), count("ended_in_flight"));

    let (killed, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
    let checks = AtomicU64::new(0);
    let start = Barrier::new(SURVIVORS + 1);
    thread::scope(|scope| {
        for survivor in &survivors {
            scope.spawn(|| {
                start.wait();
                while !is_over.load(Ordering::Relaxed) {
                    survivor.check();
                    checks.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        start.wait();
        let killers: Vec<_> = (1..=AT_ONCE)
            .map(|seed| {
                let (device, killed, count) = (server.device(), &killed, &count);
                scope.spawn(move || {
                    let mut noise = Noise::new(seed);
                    // Those that died before they were accepted are not clients yet.
                    while count("accepted") - accepted < CLIENTS {
                        kill_one(&device, &mut noise);
                        killed.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        let ended: Vec<_> = killers.into_iter().map(thread::ScopedJoinHandle::join).collect();
        is_over.store(true, Ordering::Relaxed);
        assert!(ended.iter().all(Result::is_ok), "a client could not be killed");
    });
    survivors.iter().for_each(Survivor::check);
    at_rest(&|_| true);
    let in_flight = count("ended_in_flight") - in_flight;
    let clients = count("accepted") - accepted;
    let after = at_rest(&|found| before.iter().any(|old| found.is_within(old)));
    let (killed, checks) = (killed.into_inner(), checks.into_inner());
    println!(
        "{killed} processes killed, {clients} of them clients, {in_flight} with a job in flight; {checks} results checked"
    );
    println!("the server as before: {after:?}");
    assert!(in_flight >= LEAST_IN_FLIGHT, "only {in_flight} had a job in flight");
    assert!(checks > 100, "only {checks} results were checked meanwhile");
    for survivor in &survivors {
        assert!(survivor.device.faults().unwrap().is_empty(), "nobody's fault is another's");
    }
}
