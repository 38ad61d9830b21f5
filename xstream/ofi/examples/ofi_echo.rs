//! Echo round trips through [`OfiFabric`], against the same straight over libfabric, both between two pinned processes.
//!
//! `cargo run --release -p daos-xstream-ofi --example ofi_echo`
#![allow(clippy::disallowed_methods, reason = "a measurement of the real world")]

use std::{
    cell::Cell,
    future::Future,
    io::{BufRead, BufReader},
    os::fd::AsRawFd,
    pin::pin,
    process::{Child, Command, Stdio},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use daos_xstream::{Address, Clock, Fabric, FabricError, PeerId, Rng, Sink, Time, WallTime};
use daos_xstream_ofi::{
    OfiConfig, OfiFabric,
    pingpong::{self, Pace},
};

const WARM_UP: usize = 5_000;
const ROUNDS: usize = 40_000;
const TCP: &str = "tcp;ofi_rxm";

struct RealClock(Instant);

impl Clock for RealClock {
    fn now(&self) -> Time {
        Time(self.0.elapsed().as_nanos() as u64)
    }

    fn wall(&self) -> WallTime {
        WallTime::default()
    }

    fn sleep_until(&self, _deadline: Time) -> impl Future<Output = ()> + 'static {
        std::future::pending()
    }
}

struct Counting(Cell<u64>);

impl Rng for Counting {
    fn next_u64(&self) -> u64 {
        self.0.set(self.0.get().wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f));
        self.0.get()
    }
}

fn open(config: OfiConfig) -> OfiFabric {
    let seed = u64::from(std::process::id());
    let clock = RealClock(Instant::now());
    OfiFabric::open(config, move || clock.now(), Counting(Cell::new(seed))).expect("an endpoint")
}

struct Echo<'a>(&'a OfiFabric, bool);

impl Sink for Echo<'_> {
    fn message(&mut self, peer: PeerId, bytes: &[u8]) {
        while self.0.send(peer, &[bytes]) == Err(FabricError::Busy) {}
    }

    fn closed(&mut self, _peer: PeerId) {
        self.1 = true;
    }
}

struct Count(usize);

impl Sink for Count {
    fn message(&mut self, _peer: PeerId, _bytes: &[u8]) {
        self.0 += 1;
    }

    fn closed(&mut self, _peer: PeerId) {
        panic!("the server has gone");
    }
}

fn serve(kind: &str) {
    pingpong::pin_to_core(0).expect("core 0");
    let place: Address = "tcp://127.0.0.1:0".parse().expect("an address");
    match kind {
        "fabric" => {
            let fabric = open(OfiConfig::server(place));
            println!("{}", fabric.addresses()[0]);
            let mut echo = Echo(&fabric, false);
            while !echo.1 {
                fabric.poll(16, &mut echo);
            }
        }
        provider => {
            let place = (provider == TCP).then_some(&place);
            let server = pingpong::Server::open(provider, place).expect("a server");
            println!("{}", server.name());
            server.serve(false).expect("served");
        }
    }
}

fn start(kind: &str) -> (Child, String) {
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .args(["serve", kind])
        .stdout(Stdio::piped())
        .spawn()
        .expect("a second process");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("the server's address");
    (child, line.trim().to_owned())
}

fn connect(fabric: &OfiFabric, address: &Address) -> PeerId {
    let mut call = pin!(fabric.connect(address));
    let mut context = Context::from_waker(Waker::noop());
    loop {
        fabric.poll(16, &mut Count(0));
        if let Poll::Ready(peer) = call.as_mut().poll(&mut context) {
            return peer.expect("connected");
        }
    }
}

fn through_fabric(message_bytes: usize) -> Vec<Duration> {
    let (mut child, address) = start("fabric");
    let address: Address = address.parse().expect("an address");
    let fabric = open(OfiConfig::client_of(address.clone()));
    let server = connect(&fabric, &address);
    let message = vec![7; message_bytes];
    let mut times = Vec::with_capacity(ROUNDS);
    let mut count = Count(0);
    for round in 0..WARM_UP + ROUNDS {
        let begun = Instant::now();
        while fabric.send(server, &[&message]) == Err(FabricError::Busy) {
            fabric.poll(1, &mut count);
        }
        while count.0 <= round {
            fabric.poll(1, &mut count);
        }
        if round >= WARM_UP {
            times.push(begun.elapsed());
        }
    }
    let begun = Instant::now();
    const POLLS: u32 = 200_000;
    for _ in 0..POLLS {
        fabric.poll(16, &mut count);
    }
    let poll = begun.elapsed() / POLLS;
    let floor = empty_epoll(POLLS);
    println!(
        "empty poll, one peer: {} ns, {:.2} × the one system call in it ({} ns)",
        poll.as_nanos(),
        poll.as_secs_f64() / floor.as_secs_f64(),
        floor.as_nanos()
    );
    fabric.disconnect(server);
    for _ in 0..10_000 {
        fabric.poll(1, &mut count);
    }
    drop(fabric);
    child.wait().expect("the server ends");
    times
}

/// What it costs to ask the system whether any of the connections in an epoll set has something.
fn empty_epoll(rounds: u32) -> Duration {
    let (receiver, _sender) = std::io::pipe().expect("a pipe");
    let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 0 };
    // SAFETY: the descriptor that the first call gives is used while it is open and closed once; the pipe outlives it; each call
    // reads or writes the one event that it is given room for.
    unsafe {
        let epoll = libc::epoll_create1(libc::EPOLL_CLOEXEC);
        assert!(epoll >= 0, "an epoll set");
        assert_eq!(libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, receiver.as_raw_fd(), &mut event), 0);
        let begun = Instant::now();
        for _ in 0..rounds {
            assert_eq!(libc::epoll_wait(epoll, &mut event, 1, 0), 0);
        }
        let took = begun.elapsed() / rounds;
        libc::close(epoll);
        took
    }
}

fn raw(provider: &str, message_bytes: usize) -> Vec<Duration> {
    let (mut child, name) = start(provider);
    let place: Address = "tcp://127.0.0.1:1".parse().expect("an address");
    let place = (provider == TCP).then_some(&place);
    let pace = Pace { warm_up: WARM_UP, rounds: ROUNDS, pause: Duration::ZERO };
    let times = pingpong::measure(provider, place, &name, message_bytes, pace).expect("measured");
    child.wait().expect("the server ends");
    times
}

fn quantiles(mut times: Vec<Duration>) -> (f64, f64) {
    times.sort_unstable();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e6;
    (at(0.5), at(0.99))
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [verb, kind] = &arguments[..]
        && verb == "serve"
    {
        return serve(kind);
    }
    pingpong::pin_to_core(1).expect("core 1");
    for message_bytes in [64, 4096] {
        let mut ratios = Vec::new();
        for _ in 0..3 {
            let (raw50, raw99) = quantiles(raw(TCP, message_bytes));
            let (our50, our99) = quantiles(through_fabric(message_bytes));
            println!(
                "{message_bytes} B: raw p50 {raw50:.2} p99 {raw99:.2} µs, fabric p50 {our50:.2} p99 {our99:.2} µs, ratio {:.3}",
                our50 / raw50
            );
            ratios.push(our50 / raw50);
        }
        ratios.sort_by(f64::total_cmp);
        println!("{message_bytes} B: median ratio {:.3}", ratios[1]);
        let (shm50, shm99) = quantiles(raw("shm", message_bytes));
        println!("{message_bytes} B: shm raw p50 {shm50:.2} p99 {shm99:.2} µs");
    }
}
