//! Peers that die, and strangers that talk nonsense: the endpoint goes on serving and holds nothing for them.
//!
//! The client is this test's own program, started again with an environment variable that says what to be.
#![allow(clippy::disallowed_methods, reason = "tests of a real backend run in the real world")]

mod common;

use std::{
    io::Write,
    net::TcpStream,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use common::{Node, TestRng, client_of, drive, open, run_until};
use daos_xstream::{Access, Address, Fabric, FabricError, IoBuffer, PeerId, RemoteBuffer, Rng};
use daos_xstream_ofi::{OfiConfig, descriptors_open};
use zerocopy::{FromBytes, IntoBytes};

const SERVER: &str = "OFI_TEST_SERVER";
const BULK: usize = 1 << 20;
const CREDITS: usize = 32;

/// Not a test of its own: what the child processes run. It keeps the server busy with messages and exposed
/// memory for ever, with no more unanswered than the credits of the layer above would allow.
#[test]
fn child() {
    let Ok(address) = std::env::var(SERVER) else { return };
    let address: Address = address.parse().unwrap();
    let mut node = Node::new(client_of(&address));
    let fabric = node.fabric.clone();
    let server = drive("connect", &mut [&mut node], fabric.connect(&address)).expect("connected");
    let exposed: Vec<_> = [Access::Read, Access::Write]
        .into_iter()
        .map(|access| fabric.expose(server, IoBuffer::zeroed(BULK), access).expect("exposed"))
        .collect();
    let filler = vec![7; 3000];
    let (mut sent, mut answered) = (0, 0);
    loop {
        if sent < answered + CREDITS {
            for exposed in &exposed {
                sent += usize::from(fabric.send(server, &[fabric.remote(exposed).as_bytes()]).is_ok());
            }
            sent += usize::from(fabric.send(server, &[&filler]).is_ok());
        }
        node.poll();
        answered += node.inbox.messages.drain(..).count();
        if !node.inbox.closed.is_empty() {
            return;
        }
    }
}

fn start_child(address: &Address) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env(SERVER, address.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("a child process")
}

fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

struct Victims {
    node: Node,
    reads: Vec<Transfer>,
    served: u64,
}

type Transfer = std::pin::Pin<Box<dyn Future<Output = (IoBuffer, Result<(), FabricError>)>>>;

impl Victims {
    /// Answers messages, and reads or writes what they name, for a while.
    fn serve(&mut self, time: Duration) {
        let end = Instant::now() + time;
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        while Instant::now() < end {
            self.node.poll();
            for (peer, bytes) in std::mem::take(&mut self.node.inbox.messages) {
                self.request(peer, &bytes);
            }
            self.reads.retain_mut(|read| read.as_mut().poll(&mut context).is_pending());
        }
    }

    fn request(&mut self, peer: PeerId, bytes: &[u8]) {
        self.served += 1;
        let _ = self.node.fabric.send(peer, &[bytes]);
        if let Ok(remote) = RemoteBuffer::read_from_bytes(bytes)
            && self.reads.len() < 8
        {
            let buffer = IoBuffer::zeroed(BULK);
            let fabric = &self.node.fabric;
            self.reads.push(if self.served % 2 == 0 {
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
#[ignore = "takes minutes: removing the address of one client under load stalls in libfabric (README, open)"]
fn killed_clients_leave_nothing_behind() {
    const ROUNDS: usize = 25;
    const CLIENTS: usize = 4;
    let node = Node::new(open(impatient("tcp://127.0.0.1:0")));
    let address = node.fabric.addresses()[0].clone();
    let mut victims = Victims { node, reads: Vec::new(), served: 0 };
    let random = TestRng::new(42);
    let mut after_warm_up = None;
    let mut connected = 0;
    for round in 0..ROUNDS {
        let mut children: Vec<Child> = (0..CLIENTS).map(|_| start_child(&address)).collect();
        let give_up = Instant::now() + Duration::from_secs(10);
        while victims.node.fabric.counters().peers < CLIENTS as u64 && Instant::now() < give_up {
            victims.serve(Duration::from_millis(5));
        }
        victims.serve(Duration::from_millis(random.next_u64() % 30));
        connected += victims.node.fabric.counters().peers;
        for mut child in children.drain(..) {
            victims.serve(Duration::from_millis(random.next_u64() % 8));
            child.kill().expect("killed");
            child.wait().expect("reaped");
        }
        if round == 4 || round == ROUNDS - 1 {
            let give_up = Instant::now() + Duration::from_secs(10);
            while victims.node.fabric.counters().peers > 0 || !victims.reads.is_empty() {
                assert!(Instant::now() < give_up, "{:?}", victims.node.fabric.counters());
                victims.serve(Duration::from_millis(50));
            }
            let usage = (resident_bytes(), descriptors_open().unwrap().0);
            println!("after {} kills: {usage:?}", (round + 1) * CLIENTS);
            let (memory, descriptors) = *after_warm_up.get_or_insert(usage);
            assert!(usage.0 < memory + (24 << 20), "memory grew from {memory} to {} bytes", usage.0);
            assert!(usage.1 <= descriptors + 4, "descriptors grew from {descriptors} to {}", usage.1);
        }
    }
    let counters = victims.node.fabric.counters();
    println!("{counters:?}, {} requests served, {connected} connections killed", victims.served);
    assert!(
        connected as usize > ROUNDS * CLIENTS * 9 / 10,
        "the clients were killed before they did anything"
    );
    assert_eq!((counters.transfers, counters.buffers_lost, counters.connections_leaving), (0, 0, 0));
    assert!(
        counters.transfers_done > 0 && counters.transfers_failed > 0,
        "kills that hit no transfer prove little"
    );
    let client = Node::new(client_of(&address));
    common::join(victims.node, client, &address);
}

/// Plain sockets that connect to the endpoint's port and say nothing, nonsense, or half a word.
#[test]
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
