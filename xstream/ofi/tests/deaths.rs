//! Peers that die, and strangers that talk nonsense: the endpoint goes on serving and holds nothing for them.
//!
//! The client is this test's own program, started again with an environment variable that says what to be.
#![allow(clippy::disallowed_methods, reason = "tests of a real backend run in the real world")]

mod common;

use std::{
    io::Write,
    net::TcpStream,
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use common::{Node, TestRng, client_of, drive, open, run_until};
use daos_xstream::{Access, Address, Fabric, FabricError, IoBuffer, PeerId, RemoteBuffer, Rng};
use daos_xstream_ofi::{OfiConfig, OfiFabric, descriptors_open};
use zerocopy::{FromBytes, IntoBytes};

const SERVER: &str = "OFI_TEST_SERVER";
const ROLE: &str = "OFI_TEST_ROLE";
const BULK: usize = 1 << 20;
const CREDITS: usize = 32;
/// Endpoints, each a client of its own, in one child process: starting a process costs more than all that it does.
const CLIENTS_PER_CHILD: usize = 17;
const MIB: u64 = 1 << 20;

/// Not a test of its own: what the child processes run.
#[test]
fn child() {
    let Ok(address) = std::env::var(SERVER) else { return };
    let address: Address = address.parse().unwrap();
    match std::env::var(ROLE).as_deref() {
        Ok("flood and read") => flood(&address, 16),
        Ok("flood and do not read") => flood(&address, 1 << 14),
        _ => honest_clients(&address),
    }
}

/// A client that keeps the server busy with messages and exposed memory for ever, with no more unanswered than the credits
/// of the layer above would allow.
struct Client {
    node: Node,
    server: PeerId,
    exposed: Vec<<OfiFabric as Fabric>::Exposed>,
    filler: Vec<u8>,
    sent: usize,
    answered: usize,
}

impl Client {
    fn connect(address: &Address) -> Self {
        let mut node = Node::new(client_of(address));
        let fabric = node.fabric.clone();
        let server = drive("connect", &mut [&mut node], fabric.connect(address)).expect("connected");
        let exposed = [Access::Read, Access::Write]
            .into_iter()
            .map(|access| fabric.expose(server, IoBuffer::zeroed(BULK), access).map_err(|(_, error)| error))
            .collect::<Result<_, _>>()
            .expect("exposed");
        Self { node, server, exposed, filler: vec![7; 3000], sent: 0, answered: 0 }
    }

    /// Does what there is to do; returns whether there was anything, or `None` if the server is gone.
    fn turn(&mut self) -> Option<bool> {
        let fabric = &self.node.fabric;
        while self.sent < self.answered + CREDITS {
            let before = self.sent;
            for (direction, exposed) in (0..).zip(&self.exposed) {
                let remote = fabric.remote(exposed);
                self.sent +=
                    usize::from(fabric.send(self.server, &[&[direction], remote.as_bytes()]).is_ok());
            }
            self.sent += usize::from(fabric.send(self.server, &[&self.filler]).is_ok());
            if self.sent == before {
                break;
            }
        }
        let happened = self.node.poll();
        self.answered += self.node.inbox.messages.drain(..).count();
        self.node.inbox.closed.is_empty().then_some(happened > 0)
    }
}

fn honest_clients(address: &Address) {
    let mut clients: Vec<_> = (0..CLIENTS_PER_CHILD).map(|_| Client::connect(address)).collect();
    loop {
        let mut busy = false;
        for client in &mut clients {
            let Some(happened) = client.turn() else { return };
            busy |= happened;
        }
        if !busy {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

/// Sends for ever, as fast as it can, and looks at what arrives only once in so many messages.
fn flood(address: &Address, between_polls: usize) {
    let mut node = Node::new(client_of(address));
    let fabric = node.fabric.clone();
    let server = drive("connect", &mut [&mut node], fabric.connect(address)).expect("connected");
    let filler = vec![7; 3000];
    for message in 0_usize.. {
        let short = message % 4 != 0;
        let _ = fabric.send(server, &[if short { &filler[..40] } else { &filler }]);
        if message % between_polls == 0 {
            node.poll();
            node.inbox.messages.clear();
            if !node.inbox.closed.is_empty() {
                return;
            }
        }
    }
}

/// A child process, killed at the latest when this is dropped.
struct Running(Child);

impl Running {
    fn start(address: &Address, role: &str) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture"])
            .env(SERVER, address.to_string())
            .env(ROLE, role)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Self(child.expect("a child process"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Memory and descriptors belong to the process, so tests that measure them run one after the other.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// The server, and a well-behaved client beside it that must be served all the time.
struct Survivor {
    node: Node,
    reads: Vec<Transfer>,
    served: u64,
    witness: Node,
    to_server: PeerId,
    asked: Instant,
    answers: u64,
    slowest: Duration,
}

type Transfer = std::pin::Pin<Box<dyn Future<Output = (IoBuffer, Result<(), FabricError>)>>>;

impl Survivor {
    fn new() -> (Self, Address) {
        // Patient enough for processes that do not get a core for a second or two.
        let mut config = impatient("tcp://127.0.0.1:0");
        config.keep_alive_timeout = Duration::from_millis(1500);
        (config.stall_timeout, config.connect_timeout) = (Duration::from_secs(4), Duration::from_secs(4));
        let server = Node::new(open(config));
        let address = server.fabric.addresses()[0].clone();
        let witness = Node::new(client_of(&address));
        let (node, witness, to_server, _) = common::join(server, witness, &address);
        witness.fabric.send(to_server, &[b"ask"]).expect("sent");
        let survivor = Self {
            node,
            reads: Vec::new(),
            served: 0,
            witness,
            to_server,
            asked: Instant::now(),
            answers: 0,
            slowest: Duration::ZERO,
        };
        (survivor, address)
    }

    /// Peers besides the witness.
    fn others(&self) -> usize {
        self.node.fabric.counters().peers as usize - 1
    }

    /// Peers besides the witness that have been there at any time.
    fn arrived(&self) -> usize {
        self.others() + self.node.fabric.counters().peers_lost as usize
    }

    /// Answers messages, and reads or writes what they name, for a while.
    fn serve(&mut self, time: Duration) {
        let end = Instant::now() + time;
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        loop {
            self.node.poll();
            for (peer, bytes) in std::mem::take(&mut self.node.inbox.messages) {
                self.request(peer, &bytes);
            }
            self.reads.retain_mut(|read| read.as_mut().poll(&mut context).is_pending());
            self.witness.poll();
            let now = Instant::now();
            if self.witness.inbox.messages.pop().is_some() {
                self.answers += 1;
                self.slowest = self.slowest.max(now - self.asked);
                self.asked = now;
                self.witness.fabric.send(self.to_server, &[b"ask"]).expect("sent");
            }
            assert!(now - self.asked < Duration::from_secs(10), "the witness is not served");
            if now >= end {
                return;
            }
        }
    }

    /// Serves until `done`.
    fn serve_until(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let give_up = Instant::now() + Duration::from_secs(20);
        while !done(self) {
            assert!(Instant::now() < give_up, "{what}: {:?}", self.node.fabric.counters());
            self.serve(Duration::from_millis(2));
        }
    }

    fn request(&mut self, peer: PeerId, bytes: &[u8]) {
        self.served += 1;
        let _ = self.node.fabric.send(peer, &[bytes]);
        if let Some((direction, remote)) = bytes.split_first()
            && let Ok(remote) = RemoteBuffer::read_from_bytes(remote)
            && self.reads.len() < 8
        {
            let buffer = IoBuffer::zeroed(BULK);
            let fabric = &self.node.fabric;
            self.reads.push(if *direction == 0 {
                Box::pin(fabric.read(peer, remote, 0, buffer))
            } else {
                Box::pin(fabric.write(peer, remote, 0, buffer))
            });
        }
    }
}

fn impatient(address: &str) -> OfiConfig {
    let mut config = OfiConfig::server(address.parse().unwrap());
    config.keep_alive_idle = Duration::from_millis(300);
    config.keep_alive_timeout = Duration::from_millis(700);
    config.stall_timeout = Duration::from_millis(500);
    config.connect_timeout = Duration::from_millis(700);
    config
}

/// Clients are killed in the middle of messages and transfers. libfabric reports no event for that, leaks the connection
/// unless the address is removed, and goes on answering "again" for ever; the endpoint must end up holding what it held.
#[test]
#[ignore = "passes in one of three runs: clients that do not get through, memory kept by libfabric (README, open)"]
fn killed_clients_leave_nothing_behind() {
    let _alone = alone();
    const ROUNDS: usize = 8;
    const CHILDREN: usize = 4;
    const CLIENTS: usize = CHILDREN * CLIENTS_PER_CHILD;
    /// Clients that may still be connecting when their processes are killed.
    const LATE: usize = 4;
    /// libfabric 1.17 keeps 15 to 30 KiB for every connection that died; without removal of addresses ten times that.
    const KEPT_PER_KILL: u64 = 48 << 10;
    let (mut survivor, address) = Survivor::new();
    let random = TestRng::new(42);
    let start = || -> Vec<_> { (0..CHILDREN).map(|_| Running::start(&address, "honest")).collect() };
    let (mut before, descriptors_before) = (0, descriptors_open().unwrap().0);
    for round in 0..ROUNDS {
        let children = start();
        survivor.serve_until("clients", |survivor| survivor.others() >= CLIENTS - LATE);
        survivor.serve(Duration::from_millis(5 + random.next_u64() % 30));
        if round == 0 {
            // The clients of the first round have been served, and none has died.
            before = resident_bytes();
        }
        for child in children {
            survivor.serve(Duration::from_millis(random.next_u64() % 8));
            drop(child);
        }
        // As many peers at a time as before the first kill: libfabric's pools do not shrink.
        survivor.serve_until("the end of dead clients", |survivor| survivor.others() == 0);
        println!("after round {round}: {} KiB", resident_bytes() / 1024);
    }
    survivor.serve_until("the end of transfers", |survivor| survivor.reads.is_empty());
    survivor.serve(Duration::from_millis(200));
    let counters = survivor.node.fabric.counters();
    let after = resident_bytes();
    println!(
        "{} clients killed, memory {} KiB before and {} KiB after, {} requests, {} answers to the witness, slowest {:?}",
        survivor.arrived(),
        before / 1024,
        after / 1024,
        survivor.served,
        survivor.answers,
        survivor.slowest
    );
    println!("{counters:?}");
    assert_eq!(
        (counters.transfers, counters.buffers_lost, counters.buffers_fenced, counters.connections_leaving),
        (0, 0, 0, 0)
    );
    assert!(
        counters.transfers_done > 0 && counters.transfers_failed > 0,
        "kills that hit no transfer prove little"
    );
    let killed = survivor.arrived() as u64;
    assert!(killed >= 500, "only {killed} clients were killed");
    assert!(after <= before + killed * KEPT_PER_KILL, "memory grew from {before} to {after} bytes");
    let descriptors = descriptors_open().unwrap().0;
    assert!(
        descriptors <= descriptors_before + 2,
        "descriptors grew from {descriptors_before} to {descriptors}"
    );
}

/// Peers that send as fast as they can, some of which do not read: they are held back, others are served, and memory stays
/// bounded, also while connections are closed under the flood.
#[test]
fn floods_are_held_back() {
    let _alone = alone();
    const ROLES: [&str; 4] =
        ["flood and read", "flood and do not read", "flood and read", "flood and do not read"];
    let (mut survivor, address) = Survivor::new();
    survivor.serve(Duration::from_millis(100));
    let before = resident_bytes();
    let mut children: Vec<_> = ROLES.map(|role| Running::start(&address, role)).into();
    survivor.serve_until("a flood", |survivor| survivor.served > 50_000);
    let (mut most, mut slowest) = (0, Duration::ZERO);
    for round in 0..24 {
        survivor.serve(Duration::from_millis(150));
        most = most.max(resident_bytes());
        slowest = slowest.max(survivor.slowest);
        let which = round % ROLES.len();
        children[which] = Running::start(&address, ROLES[which]);
    }
    drop(children);
    survivor.serve_until("the end of dead clients", |survivor| survivor.others() == 0);
    println!(
        "{} messages, memory {} KiB before, {} KiB at most, {} KiB after; the witness got {} answers, slowest {slowest:?}",
        survivor.served,
        before / 1024,
        most / 1024,
        resident_bytes() / 1024,
        survivor.answers
    );
    println!("{:?}", survivor.node.fabric.counters());
    assert!(most <= before + 32 * MIB, "memory grew from {before} to {most} bytes");
}

/// Plain sockets that connect to the endpoint's port and say nothing, nonsense, or half a word.
#[test]
fn garbage_on_the_port_does_not_stop_the_endpoint() {
    let _alone = alone();
    let node = Node::new(open(impatient("tcp://127.0.0.1:0")));
    let address = node.fabric.addresses()[0].clone();
    let client = Node::new(client_of(&address));
    let (mut server, mut client, to_server, to_client) = common::join(node, client, &address);
    let random = TestRng::new(7);
    let mut silent = Vec::new();
    let before = descriptors_open().unwrap().0;
    for attempt in 0..100 {
        let mut socket = TcpStream::connect(address.rest()).expect("the port is open");
        let noise: Vec<u8> = (0..random.next_u64() % 5000).map(|_| random.next_u64() as u8).collect();
        match attempt % 4 {
            0 => silent.push(socket),
            1 => drop(socket.write_all(&noise)),
            // Something that begins like libfabric's own connection request.
            2 => drop(socket.write_all(&[&[1, 1, 0, 0, 0, 0, 0, 0], &noise[..]].concat())),
            _ => drop(socket.write_all(&noise[..noise.len().min(7)])),
        }
        client.fabric.send(to_server, &[b"still there?"]).expect("sent");
        run_until("request", &mut [&mut server, &mut client], |nodes| !nodes[0].inbox.messages.is_empty());
        server.inbox.messages.clear();
        server.fabric.send(to_client, &[b"yes"]).expect("sent");
        run_until("answer", &mut [&mut server, &mut client], |nodes| !nodes[1].inbox.messages.is_empty());
        client.inbox.messages.clear();
    }
    drop(silent);
    let end = Instant::now() + Duration::from_millis(500);
    run_until("a while", &mut [&mut server, &mut client], |_| Instant::now() > end);
    println!("descriptors: {before} before, {:?} after", descriptors_open());
    assert_eq!(server.fabric.counters().peers, 1);
    let newcomer = Node::new(client_of(&address));
    common::join(server, newcomer, &address);
}
