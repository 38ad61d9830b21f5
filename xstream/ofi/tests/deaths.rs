//! Peers that die, and strangers that talk nonsense: the endpoint goes on serving and holds nothing for them.
//!
//! The client is this program, started again with an environment variable that says what to be. Memory and descriptors belong to
//! the process, so the tests run one after the other.
#![allow(clippy::disallowed_methods, reason = "tests of a real backend run in the real world")]

mod common;

use std::{
    collections::BTreeSet,
    io::Write,
    net::TcpStream,
    pin::Pin,
    process::{Child, Command, ExitCode, Stdio},
    task::Poll,
    time::{Duration, Instant},
};

use common::{Node, TestRng, client_of, drive, open, run_until};
use daos_xstream::{
    Access, Address, Fabric, FabricError, IoBuffer, PeerId, RemoteBuffer, Rng, conformance::run_tests,
};
use daos_xstream_ofi::{OfiConfig, OfiFabric, descriptors_open};
use zerocopy::{FromBytes, IntoBytes};

const SERVER: &str = "OFI_TEST_SERVER";
const ROLE: &str = "OFI_TEST_ROLE";
const BULK: usize = 256 << 10;
const CREDITS: usize = 32;
/// How long to wait for what must happen, on however slow a machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Endpoints, each a client of its own, in one child process: starting a process costs more than all that it does.
const CLIENTS_PER_CHILD: usize = 17;
const MIB: u64 = 1 << 20;

const TESTS: &[(&str, fn())] = &[
    ("killed_and_stopped_clients_leave_nothing_behind", killed_and_stopped_clients_leave_nothing_behind),
    ("floods_are_held_back", floods_are_held_back),
    (
        "what_waits_for_a_peer_that_does_not_read_is_bounded",
        what_waits_for_a_peer_that_does_not_read_is_bounded,
    ),
    ("silent_connections_are_ended", silent_connections_are_ended),
    ("garbage_on_the_port_does_not_stop_the_endpoint", garbage_on_the_port_does_not_stop_the_endpoint),
];

fn main() -> ExitCode {
    let Ok(address) = std::env::var(SERVER) else { return run_tests(TESTS) };
    let address: Address = address.parse().unwrap();
    match std::env::var(ROLE).as_deref() {
        Ok("flood and read") => flood(&address, 16),
        Ok("flood and do not read") => flood(&address, 1 << 14),
        _ => honest_clients(&address),
    }
    ExitCode::SUCCESS
}

type Connecting = Pin<Box<dyn Future<Output = Result<PeerId, FabricError>>>>;

/// A client that keeps the server busy with messages and exposed memory for ever, with no more unanswered than the credits
/// of the layer above would allow. Given up by the server, which on a machine that stands still is the server's right, it
/// connects again.
struct Client {
    node: Node,
    connecting: Option<Connecting>,
    server: PeerId,
    exposed: Vec<<OfiFabric as Fabric>::Exposed>,
    sent: usize,
    answered: usize,
}

impl Client {
    fn call(address: &Address) -> Self {
        let node = Node::new(client_of(address));
        let (fabric, address) = (node.fabric.clone(), address.clone());
        let connecting: Connecting = Box::pin(async move { fabric.connect(&address).await });
        let connecting = Some(connecting);
        Self { node, connecting, server: PeerId(0), exposed: Vec::new(), sent: 0, answered: 0 }
    }

    /// Does what there is to do; returns whether there was anything. The error says why there is no connection any more.
    fn turn(&mut self) -> Result<bool, String> {
        let mut happened = self.node.poll() > 0;
        if let Some(connecting) = &mut self.connecting {
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            let Poll::Ready(server) = connecting.as_mut().poll(&mut context) else { return Ok(happened) };
            self.connecting = None;
            self.server = server.map_err(|error| error.to_string())?;
            for access in [Access::Read, Access::Write] {
                let exposed = self.node.fabric.expose(self.server, IoBuffer::zeroed(BULK), access);
                self.exposed.push(exposed.map_err(|(_, error)| error.to_string())?);
            }
        }
        happened |= self.ask();
        self.answered += self.node.inbox.messages.drain(..).count();
        match self.node.inbox.closed.is_empty() {
            true => Ok(happened),
            false => Err("the server gave this client up".to_owned()),
        }
    }

    /// Sends what the credits allow.
    fn ask(&mut self) -> bool {
        let fabric = &self.node.fabric;
        let before = self.sent;
        while self.sent < self.answered + CREDITS {
            let round = self.sent;
            for (direction, exposed) in (0..).zip(&self.exposed) {
                let remote = fabric.remote(exposed);
                self.sent +=
                    usize::from(fabric.send(self.server, &[&[direction], remote.as_bytes()]).is_ok());
            }
            self.sent += usize::from(fabric.send(self.server, &[&[7; 3000]]).is_ok());
            if self.sent == round {
                break;
            }
        }
        self.sent > before
    }
}

/// All clients have their turn in every round: one that has connected must not fall silent while others connect.
fn honest_clients(address: &Address) {
    let mut clients: Vec<_> = (0..CLIENTS_PER_CHILD).map(|_| Client::call(address)).collect();
    loop {
        let mut busy = false;
        for client in &mut clients {
            match client.turn() {
                Ok(happened) => busy |= happened,
                Err(why) => {
                    eprintln!("an honest client lost its connection: {why}");
                    *client = Client::call(address);
                }
            }
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
            .env(SERVER, address.to_string())
            .env(ROLE, role)
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn();
        Self(child.expect("a child process"))
    }
}

impl Running {
    /// Takes it off the processor, for good.
    fn stop(&self) {
        // SAFETY: sends a signal to a child that has not been waited for, so the number is its own.
        assert_eq!(unsafe { libc::kill(self.0.id() as i32, libc::SIGSTOP) }, 0);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// Bytes that the C library's allocator has handed out and not got back, in arenas and in mappings of their own: libfabric's and
/// ours together. Memory that was freed and is only not returned to the system does not count.
fn allocated_bytes() -> u64 {
    // SAFETY: takes no argument and returns plain numbers.
    let info = unsafe { libc::mallinfo2() };
    (info.uordblks + info.hblkhd) as u64
}

/// The server, and a well-behaved client beside it that must be served all the time.
struct Survivor {
    node: Node,
    reads: Vec<Transfer>,
    served: u64,
    /// How many peers have asked for something.
    arrived: usize,
    /// Those of them that have not ended.
    alive: BTreeSet<PeerId>,
    witness: Node,
    to_server: PeerId,
    asked: Instant,
    answers: u64,
    slowest: Duration,
}

type Transfer = Pin<Box<dyn Future<Output = (IoBuffer, Result<(), FabricError>)>>>;

impl Survivor {
    fn new() -> (Self, Address) {
        // Patient enough for processes that do not get a core for a second or two.
        let mut config = impatient("tcp://127.0.0.1:0");
        config.keep_alive_timeout = Duration::from_millis(1500);
        (config.stall_timeout, config.connect_timeout) = (Duration::from_secs(4), Duration::from_secs(2));
        let server = Node::new(open(config));
        let address = server.fabric.addresses()[0].clone();
        let witness = Node::new(client_of(&address));
        let (node, witness, to_server, _) = common::join(server, witness, &address);
        witness.fabric.send(to_server, &[b"ask"]).expect("sent");
        let survivor = Self {
            node,
            reads: Vec::new(),
            served: 0,
            arrived: 0,
            alive: BTreeSet::new(),
            witness,
            to_server,
            asked: Instant::now(),
            answers: 0,
            slowest: Duration::ZERO,
        };
        (survivor, address)
    }

    /// Peers besides the witness, proved or not.
    fn others(&self) -> usize {
        self.node.fabric.counters().peers as usize - 1
    }

    /// Answers messages, and reads or writes what they name, for a while.
    fn serve(&mut self, time: Duration) {
        let end = Instant::now() + time;
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        loop {
            self.node.poll();
            for (peer, bytes) in std::mem::take(&mut self.node.inbox.messages) {
                self.arrived += usize::from(self.alive.insert(peer));
                self.request(peer, &bytes);
            }
            for peer in self.node.inbox.closed.drain(..) {
                self.alive.remove(&peer);
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
            assert!(now - self.asked < PATIENCE, "the witness is not served");
            if now >= end {
                return;
            }
        }
    }

    /// Serves until `done`.
    fn serve_until(&mut self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let give_up = Instant::now() + PATIENCE;
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

/// Clients are killed, or stopped and killed later, in the middle of messages and transfers. libfabric reports no event for
/// that, leaks the connection unless the address is removed, and goes on answering "again" for ever; the endpoint must end up
/// holding what it held.
fn killed_and_stopped_clients_leave_nothing_behind() {
    let wanted = std::env::var("OFI_TEST_KILLS").map_or(500, |kills| kills.parse().unwrap());
    const CHILDREN: usize = 4;
    const CLIENTS: usize = CHILDREN * CLIENTS_PER_CHILD;
    /// Growth allowed over all kills: libfabric's pools grow with the number of operations under way at a time, and do not
    /// shrink. One connection that is not freed costs 20 KiB.
    const SLACK: u64 = MIB;
    let (mut survivor, address) = Survivor::new();
    let random = TestRng::new(42);
    let mut at_rest = Vec::new();
    let descriptors = descriptors_open().unwrap().0;
    let (mut killed, mut stopped) = (0, 0);
    while killed + stopped < wanted || at_rest.len() < 4 {
        let mut children: Vec<_> = (0..CHILDREN).map(|_| Running::start(&address, "honest")).collect();
        // On a slow machine not all of them get through at a time: then there are more rounds.
        let enough = Instant::now() + Duration::from_secs(2);
        survivor.serve_until("clients", |survivor| {
            let clients = survivor.alive.len();
            clients == CLIENTS || (clients > CLIENTS_PER_CHILD && Instant::now() > enough)
        });
        survivor.serve(Duration::from_millis(5 + random.next_u64() % 30));
        let (alive, arrived) = (survivor.alive.len(), survivor.arrived);
        let freezing = children.pop().expect("a child");
        freezing.stop();
        for child in children {
            survivor.serve(Duration::from_millis(random.next_u64() % 8));
            drop(child);
        }
        // Those who are stopped are given up although their connections stand.
        survivor.serve_until("the end of dead clients", |survivor| survivor.others() == 0);
        drop(freezing);
        survivor.serve_until("the end of transfers", |survivor| survivor.reads.is_empty());
        // More may have come through while others were dying.
        let dying = alive + survivor.arrived - arrived;
        stopped += dying / CHILDREN;
        killed += dying - dying / CHILDREN;
        // Connections that were being made when their processes died end a little later.
        let settled = Instant::now() + Duration::from_secs(3);
        survivor.serve_until("descriptors", |_| {
            descriptors_open().unwrap().0 <= descriptors || Instant::now() > settled
        });
        at_rest.push((allocated_bytes(), descriptors_open().unwrap().0));
        println!(
            "{killed} killed, {stopped} stopped: {} descriptors, {} KiB allocated, {} KiB resident",
            descriptors_open().unwrap().0,
            allocated_bytes() / 1024,
            resident_bytes() / 1024
        );
    }
    let counters = survivor.node.fabric.counters();
    println!(
        "{} requests, {} answers to the witness, slowest {:?}",
        survivor.served, survivor.answers, survivor.slowest
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
    // The first rounds fill libfabric's pools.
    let (memory, descriptors) = at_rest[1];
    let (memory_now, descriptors_now) = at_rest[at_rest.len() - 1];
    assert!(memory_now <= memory + SLACK, "memory grew from {memory} to {memory_now} bytes: {at_rest:?}");
    assert!(descriptors_now <= descriptors, "descriptors grew from {descriptors} to {descriptors_now}");
}

/// Peers that send as fast as they can, some of which do not read: they are held back, others are served, and memory stays
/// bounded, also while connections are closed under the flood.
fn floods_are_held_back() {
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

/// A peer that does not read: what is kept for it here is bounded, whatever the messages' size, and nothing that was taken is lost
/// when it reads again.
fn what_waits_for_a_peer_that_does_not_read_is_bounded() {
    // 512 short messages and 64 long ones wait at most; libfabric needs less than 1 KiB besides for each.
    const KEPT: u64 = MIB;
    for length in [8, 100, 4000] {
        let (mut server, mut client, _, to_client) = common::pair();
        let body = vec![7; length];
        let before = allocated_bytes();
        let (mut taken, mut refusals) = (0_usize, 0);
        // The system's socket buffers take megabytes; refused for good is who is refused a thousand times in a row.
        while refusals < 1000 {
            match server.fabric.send(to_client, &[&body]) {
                Ok(()) => (taken, refusals) = (taken + 1, 0),
                Err(FabricError::Busy) => {
                    refusals += 1;
                    server.poll();
                }
                Err(error) => panic!("{error} after {taken} messages of {length} bytes"),
            }
        }
        let kept = allocated_bytes().saturating_sub(before);
        println!("{taken} messages of {length} bytes taken, {} KiB kept", kept / 1024);
        assert!(kept < KEPT, "{kept} bytes kept for {taken} messages of {length} bytes");
        let mut received = 0;
        run_until("the rest", &mut [&mut server, &mut client], |nodes| {
            received += nodes[1].inbox.messages.drain(..).filter(|(_, bytes)| *bytes == body).count();
            received >= taken
        });
        assert_eq!(received, taken);
    }
}

/// Sockets that connect and say nothing used up the process's descriptors (libfabric itself ends those that say half a word): 1,100 of them left an engine with the usual limit none, and nothing timed them out.
fn silent_connections_are_ended() {
    const SILENT: usize = 300;
    let node = Node::new(open(impatient("tcp://127.0.0.1:0")));
    let address = node.fabric.addresses()[0].clone();
    let client = Node::new(client_of(&address));
    let (mut server, mut client, to_server, _) = common::join(node, client, &address);
    let before = descriptors_open().unwrap().0;
    let mut silent: Vec<_> = (0..SILENT)
        .map(|number| {
            let mut socket = TcpStream::connect(address.rest()).expect("the port is open");
            socket.write_all(&[1, 1, 0, 0, 0, 0, 0, 0][..[0, 3, 8][number % 3]]).expect("written");
            server.poll();
            socket
        })
        .collect();
    let accepted = |least: usize| {
        let open = descriptors_open().unwrap().0 as usize;
        open.saturating_sub(before as usize + SILENT) >= least
    };
    run_until("accepted", &mut [&mut server, &mut client], |_| accepted(SILENT / 4));
    run_until("ended", &mut [&mut server, &mut client], |_| !accepted(1));
    for socket in &mut silent {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        // An end of file, or a reset where something had not been read.
        let mut rest = Vec::new();
        let _ = std::io::Read::read_to_end(socket, &mut rest);
    }
    // The peer beside them, silent for as long, but for its pongs.
    assert_eq!(server.fabric.counters().peers, 1);
    client.fabric.send(to_server, &[b"still there"]).expect("sent");
    run_until("message", &mut [&mut server, &mut client], |nodes| !nodes[0].inbox.messages.is_empty());
    assert_eq!(server.fabric.counters().peers_lost, 0);
}

/// Plain sockets that connect to the endpoint's port and say nothing, nonsense, or half a word.
fn garbage_on_the_port_does_not_stop_the_endpoint() {
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
