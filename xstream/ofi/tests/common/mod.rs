//! What the tests of this crate share: a real clock, a cheap random source, a driver for two endpoints.
#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::disallowed_methods, reason = "tests of a real backend run in the real world")]

use std::{
    cell::Cell,
    future::Future,
    pin::pin,
    sync::atomic::{AtomicU64, Ordering},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use daos_xstream::{Address, Clock, Fabric, PeerId, Rng, Sink, Time, WallTime};
use daos_xstream_ofi::{OfiConfig, OfiFabric};

/// The system's monotonic clock.
pub struct RealClock(Instant);

impl RealClock {
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// What an endpoint is told the time by.
    pub fn reader(self) -> impl Fn() -> Time {
        move || self.now()
    }
}

impl Clock for RealClock {
    fn now(&self) -> Time {
        Time(self.0.elapsed().as_nanos() as u64)
    }

    fn wall(&self) -> WallTime {
        WallTime(0)
    }

    fn sleep_until(&self, _deadline: Time) -> impl Future<Output = ()> + 'static {
        std::future::pending()
    }
}

/// Good enough for tests, where no peer guesses.
pub struct TestRng(Cell<u64>);

impl TestRng {
    pub fn new(seed: u64) -> Self {
        Self(Cell::new(seed | 1))
    }
}

impl Rng for TestRng {
    fn next_u64(&self) -> u64 {
        // SplitMix64 (Steele, Lea, Flood 2014).
        self.0.set(self.0.get().wrapping_add(0x9e37_79b9_7f4a_7c15));
        let mut mixed = self.0.get();
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }
}

pub fn open(config: OfiConfig) -> OfiFabric {
    static OPENED: AtomicU64 = AtomicU64::new(1);
    let seed = OPENED.fetch_add(1, Ordering::Relaxed) << 32 | u64::from(std::process::id());
    OfiFabric::open(config, RealClock::start().reader(), TestRng::new(seed)).expect("an endpoint")
}

/// Whether a descriptor becomes readable within so many milliseconds.
pub fn readable(descriptor: std::os::fd::RawFd, milliseconds: i32) -> bool {
    let mut poll = libc::pollfd { fd: descriptor, events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid entry; the call writes its `revents`.
    unsafe { libc::poll(&mut poll, 1, milliseconds) > 0 }
}

pub fn anywhere() -> Address {
    "tcp://127.0.0.1:0".parse().unwrap()
}

pub fn server() -> OfiFabric {
    open(OfiConfig::server(anywhere()))
}

pub fn client_of(server: &Address) -> OfiFabric {
    open(OfiConfig::client_of(server.clone()))
}

/// Keeps what arrives.
#[derive(Default)]
pub struct Inbox {
    pub messages: Vec<(PeerId, Vec<u8>)>,
    pub closed: Vec<PeerId>,
}

impl Sink for Inbox {
    fn message(&mut self, peer: PeerId, bytes: &[u8]) {
        self.messages.push((peer, bytes.to_vec()));
    }

    fn closed(&mut self, peer: PeerId) {
        self.closed.push(peer);
    }
}

/// An endpoint and what has arrived at it.
pub struct Node {
    pub fabric: OfiFabric,
    pub inbox: Inbox,
}

impl Node {
    pub fn new(fabric: OfiFabric) -> Self {
        Self { fabric, inbox: Inbox::default() }
    }

    pub fn poll(&mut self) -> usize {
        self.fabric.poll(64, &mut self.inbox)
    }
}

/// Polls the nodes until `done` says so.
pub fn run_until(what: &str, nodes: &mut [&mut Node], mut done: impl FnMut(&mut [&mut Node]) -> bool) {
    let give_up = Instant::now() + Duration::from_secs(20);
    while !done(nodes) {
        assert!(Instant::now() < give_up, "timed out: {what}");
        for node in nodes.iter_mut() {
            node.poll();
        }
    }
}

/// Drives a future while polling the nodes.
pub fn drive<T>(what: &str, nodes: &mut [&mut Node], future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    let mut output = None;
    run_until(what, nodes, |_| match future.as_mut().poll(&mut context) {
        Poll::Ready(value) => {
            output = Some(value);
            true
        }
        Poll::Pending => false,
    });
    output.expect("set when done")
}

/// A server and a client that is connected to it; the peers as each knows the other.
pub fn pair() -> (Node, Node, PeerId, PeerId) {
    let server = Node::new(server());
    let address = server.fabric.addresses()[0].clone();
    let client = Node::new(client_of(&address));
    join(server, client, &address)
}

pub fn join(mut server: Node, mut client: Node, address: &Address) -> (Node, Node, PeerId, PeerId) {
    let fabric = client.fabric.clone();
    let to_server =
        drive("connect", &mut [&mut server, &mut client], fabric.connect(address)).expect("connected");
    client.fabric.send(to_server, &[b"first"]).expect("sent");
    run_until("first message", &mut [&mut server, &mut client], |nodes| !nodes[0].inbox.messages.is_empty());
    let (to_client, bytes) = server.inbox.messages.remove(0);
    assert_eq!(bytes, b"first");
    (server, client, to_server, to_client)
}
