//! Measures the fabric between two processes: an engine on core 0, a client on core 1.
//!
//! `echo [SECONDS]` starts the engine as a child. Limits measured in the same run: `memcpy` for bulk, the same data by
//! `process_vm_readv`, and two bare cache lines that the processes bounce.

#![allow(clippy::disallowed_methods, reason = "a measurement")]

use std::{
    hint::black_box,
    path::Path,
    pin::pin,
    process::{Command, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use daos_xstream::{Access, Fabric, IoBuffer, PeerId, RemoteBuffer, Sink};
use daos_xstream_local::{LocalFabric, LocalOptions, LocalServer};
use hdrhistogram::Histogram;
use zerocopy::{FromBytes, IntoBytes};

const ECHO: u8 = 0;
const PULL: u8 = 1;
const PUSH: u8 = 2;
const PULL_BY_CMA: u8 = 3;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.get(1).map(String::as_str) {
        Some("engine") => engine(Path::new(&arguments[2])),
        seconds => measure(seconds.map_or(1.0, |text| text.parse().expect("seconds"))),
    }
}

fn pin_to_core(core: usize) {
    let mut cores = rustix::thread::CpuSet::new();
    cores.set(core);
    rustix::thread::sched_setaffinity(None, &cores).expect("two cores");
}

fn finish<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return value;
        }
    }
}

// ---- The engine -------------------------------------------------------------------------------------------------------

struct Engine {
    fabric: LocalFabric,
    buffer: Option<IoBuffer>,
}

impl Sink for Engine {
    fn message(&mut self, peer: PeerId, bytes: &[u8]) {
        if bytes[0] == ECHO {
            self.fabric.send(peer, &[bytes]).expect("room for an answer");
            return;
        }
        let numbers = <[u64; 3]>::read_from_bytes(&bytes[8..32]).expect("a remote buffer");
        let remote = RemoteBuffer { key: numbers[0], offset: numbers[1], length: numbers[2] };
        let mut buffer = self.buffer.take().expect("one request at a time");
        buffer.set_len(remote.length as usize);
        let (buffer, result) = match bytes[0] {
            PULL => finish(self.fabric.read(peer, remote, 0, buffer)),
            PUSH => finish(self.fabric.write(peer, remote, 0, buffer)),
            _ => {
                let pid = self.fabric.credentials(peer).expect("the kernel knows").pid;
                read_by_cma(pid, remote, &mut buffer);
                (buffer, Ok(()))
            }
        };
        result.expect("exposed memory");
        self.buffer = Some(buffer);
        self.fabric.send(peer, &[&bytes[..8]]).expect("room for an answer");
    }

    fn closed(&mut self, _peer: PeerId) {}
}

fn read_by_cma(pid: u32, remote: RemoteBuffer, buffer: &mut IoBuffer) {
    let length = buffer.len();
    let local = libc::iovec { iov_base: buffer.as_mut_slice().as_mut_ptr().cast(), iov_len: length };
    let theirs = libc::iovec { iov_base: remote.offset as *mut libc::c_void, iov_len: length };
    // SAFETY: the local vector describes memory that we hold exclusively; the remote one is checked by the kernel.
    let read = unsafe { libc::process_vm_readv(pid as i32, &raw const local, 1, &raw const theirs, 1, 0) };
    assert_eq!(read, length as isize, "{}", std::io::Error::last_os_error());
}

fn engine(path: &Path) {
    pin_to_core(0);
    let server = LocalServer::bind(path, 1, LocalOptions::default()).expect("a socket");
    let fabric = server.fabric(0).expect("a fabric");
    let polls = 10_000_000u32;
    let started = own_processor_time();
    let mut engine = Engine { fabric: fabric.clone(), buffer: Some(IoBuffer::zeroed(1 << 20)) };
    for _ in 0..polls {
        black_box(fabric.poll(64, &mut engine));
    }
    println!(
        "poll without peers              {:8.1} ns",
        nanoseconds(own_processor_time() - started) / f64::from(polls)
    );
    let mut idle = 0u32;
    loop {
        if fabric.poll(64, &mut engine) != 0 {
            idle = 0;
            continue;
        }
        idle += 1;
        if idle > 100_000 && fabric.prepare_to_park() {
            block_on_descriptor(&fabric);
            idle = 0;
        }
    }
}

/// Not the wall's time: others may be on this core.
fn own_processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn block_on_descriptor(fabric: &LocalFabric) {
    let descriptor = fabric.wait_descriptor();
    let mut wanted = [rustix::event::PollFd::new(&descriptor, rustix::event::PollFlags::IN)];
    rustix::event::poll(&mut wanted, None).expect("poll");
}

// ---- The client -------------------------------------------------------------------------------------------------------

#[derive(Default)]
struct Client {
    answers: u64,
}

impl Sink for Client {
    fn message(&mut self, _peer: PeerId, bytes: &[u8]) {
        black_box(bytes);
        self.answers += 1;
    }

    fn closed(&mut self, _peer: PeerId) {
        panic!("the engine is gone");
    }
}

fn nanoseconds(duration: Duration) -> f64 {
    duration.as_nanos() as f64
}

fn connect(fabric: &LocalFabric, path: &Path) -> PeerId {
    let address = format!("local://{}#0", path.display()).parse().expect("an address");
    loop {
        let mut connecting = pin!(fabric.connect(&address));
        loop {
            match connecting.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Ok(peer)) => return peer,
                Poll::Ready(Err(_)) => break,
                Poll::Pending => fabric.poll(1, &mut Client::default()),
            };
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn round_trip(fabric: &LocalFabric, peer: PeerId, request: &[&[u8]], client: &mut Client) {
    let before = client.answers;
    fabric.send(peer, request).expect("room for a request");
    while client.answers == before {
        fabric.poll(1, client);
    }
}

fn report(name: &str, seconds: f64, mut step: impl FnMut()) -> f64 {
    for _ in 0..100 {
        step();
    }
    let mut histogram = Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3).expect("three digits");
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    let mut now = Instant::now();
    while now < end {
        step();
        let after = Instant::now();
        histogram.saturating_record((after - now).as_nanos() as u64);
        now = after;
    }
    let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1000.0;
    println!(
        "{name:<32}{:9.2} p50 {:9.2} p99 {:9.2} p99.9 {:9.1} max µs {:>9} times",
        at(0.5),
        at(0.99),
        at(0.999),
        at(1.0),
        histogram.len()
    );
    at(0.5)
}

fn measure(seconds: f64) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("engine.sock");
    let program = std::env::current_exe().expect("our own path");
    let mut engine =
        Command::new(program).arg("engine").arg(&path).stdout(Stdio::inherit()).spawn().expect("an engine");
    pin_to_core(1);
    let fabric = LocalFabric::client().expect("a client");
    let peer = connect(&fabric, &path);
    let mut client = Client::default();

    report("two reads of the clock", seconds / 4.0, || {
        black_box(Instant::now());
    });
    bounce_cache_lines(seconds / 2.0);
    for length in [64usize, 256, 1024, 4096, 16 << 10] {
        let mut message = vec![7u8; length];
        message[0] = ECHO;
        report(&format!("echo {length} bytes"), seconds, || {
            round_trip(&fabric, peer, &[&message], &mut client)
        });
    }
    for length in [4096usize, 64 << 10, 1 << 20] {
        bulk(&fabric, peer, length, seconds, &mut client);
    }
    let mut parked: Vec<f64> = (0..(seconds * 100.0) as u32)
        .map(|_| {
            // Long enough for the engine to park.
            std::thread::sleep(Duration::from_millis(8));
            let before = Instant::now();
            round_trip(&fabric, peer, &[&[ECHO; 64]], &mut client);
            nanoseconds(before.elapsed()) / 1000.0
        })
        .collect();
    parked.sort_by(f64::total_cmp);
    let middle = parked.get(parked.len() / 2).copied().unwrap_or_default();
    println!("{:<32}{middle:9.2} p50 of {} times", "echo 64 bytes, engine parked", parked.len());
    drop(fabric);
    report("connect and disconnect", seconds, || {
        let fabric = LocalFabric::client().expect("a client");
        fabric.disconnect(connect(&fabric, &path));
    });
    engine.kill().expect("our own child");
    engine.wait().expect("our own child");
}

fn bulk(fabric: &LocalFabric, peer: PeerId, length: usize, seconds: f64, client: &mut Client) {
    // Fresh data each time, as an application has: else they lie in the engine's cache.
    let mut number = 0;
    let mut buffer = Some(IoBuffer::copy_of(&vec![5u8; length]));
    for (name, operation, access) in [("pull", PULL, Access::Read), ("push", PUSH, Access::Write)] {
        report(&format!("engine {name}s {length} bytes"), seconds, || {
            let mut fresh = buffer.take().expect("one at a time");
            if access == Access::Read {
                number = rewrite(&mut fresh, number);
            }
            let exposed = fabric.expose(peer, fresh, access).expect("room");
            let remote = fabric.remote(&exposed);
            let request = [u64::from(operation), remote.key, remote.offset, remote.length];
            round_trip(fabric, peer, &[request.as_bytes()], client);
            buffer = Some(fabric.withdraw(exposed));
        });
    }
    let mut source = buffer.expect("came back");
    let request = [u64::from(PULL_BY_CMA), 0, source.as_slice().as_ptr() as u64, length as u64];
    report(&format!("  process_vm_readv, {length} bytes"), seconds, || {
        number = rewrite(&mut source, number);
        round_trip(fabric, peer, &[request.as_bytes()], client);
    });
    let mut target = vec![0u8; length];
    report(&format!("  memset of {length} bytes"), seconds / 4.0, || number = rewrite(&mut source, number));
    report(&format!("  memcpy of {length} bytes"), seconds / 4.0, || {
        black_box(&mut target).copy_from_slice(black_box(source.as_slice()));
    });
}

fn rewrite(buffer: &mut IoBuffer, number: u8) -> u8 {
    black_box(buffer.as_mut_slice()).fill(number);
    number.wrapping_add(1)
}

/// The limit of any exchange through memory: two threads on the two cores write to each other's line in turn.
fn bounce_cache_lines(seconds: f64) {
    #[repr(align(128))]
    struct Line(AtomicU64);
    static LINES: [Line; 2] = [Line(AtomicU64::new(0)), Line(AtomicU64::new(0))];
    let mirror = std::thread::spawn(|| {
        pin_to_core(0);
        let mut last = 0;
        while last != u64::MAX {
            let seen = LINES[0].0.load(Ordering::Acquire);
            if seen != last {
                LINES[1].0.store(seen, Ordering::Release);
                last = seen;
            }
        }
    });
    let mut number = 0;
    // The engine parks meanwhile, so that core 0 is free.
    std::thread::sleep(Duration::from_millis(100));
    report("  two cache lines there and back", seconds, || {
        number += 1;
        LINES[0].0.store(number, Ordering::Release);
        while LINES[1].0.load(Ordering::Acquire) != number {
            std::hint::spin_loop();
        }
    });
    LINES[0].0.store(u64::MAX, Ordering::Release);
    mirror.join().expect("the mirror");
}
