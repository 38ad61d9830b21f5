//! An engine and many clients in processes of their own: some die, some freeze, some lie; the others must not notice, and
//! the engine must end with what it began with.
//!
//! This program is also the client: run with a role in its environment it plays that part. The tests measure their process, so
//! they run one at a time.

#![allow(clippy::disallowed_methods, reason = "tests of a real backend, with real processes and real time")]

mod client;
mod engine;

use std::{
    process::{Child, ExitCode},
    time::{Duration, Instant},
};

use client::{Dice, start};
use daos_xstream::{Fabric, FabricError, PeerId, Sink, conformance::run_tests};
use daos_xstream_local::{LocalFabric, LocalOptions, LocalServer};
use engine::Engine;
use rustix::process::{Pid, Signal, kill_process};

const TESTS: &[(&str, fn())] = &[
    ("five_hundred_clients_are_killed_under_load", five_hundred_clients_are_killed_under_load),
    ("stopped_and_deaf_clients_hold_nobody_up", stopped_and_deaf_clients_hold_nobody_up),
    ("clients_that_scribble_harm_only_themselves", clients_that_scribble_harm_only_themselves),
    ("a_client_learns_at_once_that_its_engine_is_gone", a_client_learns_at_once_that_its_engine_is_gone),
    (
        "a_dead_engines_socket_is_replaced_and_a_live_ones_is_not",
        a_dead_engines_socket_is_replaced_and_a_live_ones_is_not,
    ),
    (
        "connections_that_say_nothing_or_nonsense_keep_nobody_out",
        connections_that_say_nothing_or_nonsense_keep_nobody_out,
    ),
    ("an_engine_takes_no_more_clients_than_it_may", an_engine_takes_no_more_clients_than_it_may),
];

fn main() -> ExitCode {
    if client::play() {
        return ExitCode::SUCCESS;
    }
    run_tests(TESTS)
}

/// What this process holds.
#[derive(Debug, PartialEq, Eq)]
struct Holdings {
    descriptors: usize,
    mappings: usize,
}

fn holdings() -> Holdings {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    Holdings {
        descriptors: std::fs::read_dir("/proc/self/fd").unwrap().count(),
        mappings: maps.lines().filter(|line| line.contains("memfd:daos-local")).count(),
    }
}

/// Waits until this process holds what it held before. The ends of clients are noticed one after the other; what is not given back
/// until the deadline is lost.
fn expect_holdings(before: &Holdings) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while holdings() != *before {
        assert!(Instant::now() < deadline, "held now: {:?}, held before: {before:?}", holdings());
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn resident_kilobytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// What the engine's thread and the test's may keep of I/O buffers for those to come: 16 MiB each.
const SPARE_KILOBYTES: u64 = 2 * 16 * 1024;

/// Memory that the C library's allocator has handed out and not got back. What was freed and is only not returned to the system
/// does not count, as it would in resident memory: that depends on how many clients were there at one time.
fn allocated_kilobytes() -> u64 {
    // SAFETY: takes no argument and returns plain numbers.
    let info = unsafe { libc::mallinfo2() };
    ((info.uordblks + info.hblkhd) >> 10) as u64
}

fn expect_success(mut child: Child) {
    assert!(child.wait().unwrap().success(), "an honest client saw an error");
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

fn five_hundred_clients_are_killed_under_load() {
    let folder = tempfile::tempdir().unwrap();
    let engine = Engine::start(folder.path(), LocalOptions::default());
    let mut dice = Dice(20);
    let before = holdings();
    // The allocator's and the tables' own growth is not a leak.
    kill_clients(&engine, 20, &mut dice);
    let allocated = allocated_kilobytes();
    let honest: Vec<Child> = (0..2).map(|seed| start("honest", &engine.path, seed)).collect();
    kill_clients(&engine, 500, &mut dice);
    honest.into_iter().for_each(expect_success);
    let counters = engine.wait_until(|counters| counters.peers == 0);
    assert!(counters.connected > 200, "most clients came far enough to be worth killing: {counters:?}");
    assert_eq!(counters.liars, 0, "a dying client is no liar: {counters:?}");
    expect_holdings(&before);
    let grown = allocated_kilobytes().saturating_sub(allocated);
    assert!(grown < SPARE_KILOBYTES + 4096, "{grown} KiB more than before");
    let (reported, counters) = engine.stop();
    assert_eq!(
        (reported, counters.gone),
        (counters.connected, counters.connected),
        "each end is reported once"
    );
}

/// Starts `count` clients, eight at a time, and kills each at a random moment.
fn kill_clients(engine: &Engine, count: u64, dice: &mut Dice) {
    let mut living: Vec<(Instant, Child)> = Vec::new();
    let mut started = 0;
    while started < count || !living.is_empty() {
        while living.len() < 8 && started < count {
            started += 1;
            // Longer while the machine is so slow that most die before they have connected.
            let connected = engine.wait_until(|_| true).connected;
            let slowness = (1 + started / (connected + 1)).min(20) as u32;
            let life = Duration::from_micros(3000 + dice.below(40_000)) * slowness;
            living.push((Instant::now() + life, start("victim", &engine.path, 1000 + started)));
        }
        living.retain_mut(|(end, child)| {
            let due = Instant::now() >= *end;
            if due {
                child.kill().unwrap();
                child.wait().unwrap();
            }
            !due
        });
        std::thread::sleep(Duration::from_micros(500));
    }
    engine.wait_until(|counters| counters.peers <= 2);
}

fn stopped_and_deaf_clients_hold_nobody_up() {
    let folder = tempfile::tempdir().unwrap();
    let engine = Engine::start(folder.path(), LocalOptions::default());
    let before = holdings();
    let mut bad: Vec<Child> = (0..4).map(|seed| start("victim", &engine.path, seed)).collect();
    bad.extend((0..2).map(|seed| start("deaf", &engine.path, seed)));
    std::thread::sleep(Duration::from_millis(300));
    bad.iter().for_each(|child| signal(child, Signal::STOP));
    let resident = resident_kilobytes();
    let honest: Vec<Child> = (0..2).map(|seed| start("honest", &engine.path, 50 + seed)).collect();
    honest.into_iter().for_each(expect_success);
    assert!(resident_kilobytes() < resident + 3 * 20_000, "a stopped client costs at most its own memory");
    for mut child in bad {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    engine.wait_until(|counters| counters.peers == 0);
    expect_holdings(&before);
    engine.stop();
}

fn clients_that_scribble_harm_only_themselves() {
    let folder = tempfile::tempdir().unwrap();
    let engine = Engine::start(folder.path(), LocalOptions::default());
    let (before, allocated) = (holdings(), allocated_kilobytes());
    let scribblers: Vec<Child> = (0..3).map(|seed| start("scribbler", &engine.path, 77 + seed)).collect();
    let honest: Vec<Child> = (0..2).map(|seed| start("honest", &engine.path, seed)).collect();
    honest.into_iter().for_each(expect_success);
    scribblers.into_iter().for_each(expect_success);
    let counters = engine.wait_until(|counters| counters.peers == 0);
    assert!(counters.liars > 50, "the lies were found out: {counters:?}");
    assert!(counters.not_exposed > 50, "the keys were checked: {counters:?}");
    expect_holdings(&before);
    let grown = allocated_kilobytes().saturating_sub(allocated);
    assert!(grown < SPARE_KILOBYTES + 8192, "{grown} KiB more than before: {counters:?}");
    engine.stop();
}

struct Ends(Vec<PeerId>);

impl Sink for Ends {
    fn message(&mut self, _peer: PeerId, _bytes: &[u8]) {}

    fn closed(&mut self, peer: PeerId) {
        self.0.push(peer);
    }
}

fn a_client_learns_at_once_that_its_engine_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let engine = Engine::start(folder.path(), LocalOptions::default());
    let path = engine.path.clone();
    let fabric = LocalFabric::client().unwrap();
    let peer = client::connect(&fabric, &path).unwrap();
    engine.stop();
    let since = Instant::now();
    let mut ends = Ends(Vec::new());
    while ends.0.is_empty() {
        engine::park(&fabric, Duration::from_millis(500));
        fabric.poll(10, &mut ends);
        assert!(since.elapsed() < Duration::from_secs(5));
    }
    assert_eq!(ends.0, [peer]);
    assert_eq!(fabric.send(peer, &[b"anybody?"]), Err(FabricError::PeerGone));
    assert!(matches!(client::connect(&fabric, &path), Err(FabricError::Unreachable(_))));
    // The same place, a new engine, a new number.
    let engine = Engine::start(folder.path(), LocalOptions::default());
    assert_ne!(client::connect(&fabric, &path).unwrap(), peer);
    engine.stop();
}

fn a_dead_engines_socket_is_replaced_and_a_live_ones_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("engine.sock");
    // A socket file without a process behind it, as SIGKILL leaves it.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let server = LocalServer::bind(&path, 1, LocalOptions::default()).unwrap();
    let error = LocalServer::bind(&path, 1, LocalOptions::default()).err().unwrap().to_string();
    assert!(error.contains("another engine is running there"), "{error}");
    drop(server);
    assert!(!path.exists(), "an engine that ends removes its socket");
    std::fs::write(&path, "precious").unwrap();
    let error = LocalServer::bind(&path, 1, LocalOptions::default()).err().unwrap().to_string();
    assert!(error.contains("not a socket"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

fn connections_that_say_nothing_or_nonsense_keep_nobody_out() {
    let folder = tempfile::tempdir().unwrap();
    let engine = Engine::start(folder.path(), LocalOptions::default());
    let before = holdings();
    let address = rustix::net::SocketAddrUnix::new(&engine.path).unwrap();
    let dial = || {
        let (family, kind) = (rustix::net::AddressFamily::UNIX, rustix::net::SocketType::SEQPACKET);
        let socket = rustix::net::socket(family, kind, None).unwrap();
        rustix::net::connect(&socket, &address).unwrap();
        socket
    };
    let fabric = LocalFabric::client().unwrap();
    let mut open = Vec::new();
    let mut dice = Dice(3);
    for length in 0..300usize {
        let socket = dial();
        if length % 2 == 1 {
            let nonsense: Vec<u8> = (0..length % 40).map(|_| dice.roll() as u8).collect();
            let _ = rustix::net::send(&socket, &nonsense, rustix::net::SendFlags::NOSIGNAL);
        }
        open.push(socket);
    }
    let peer = client::connect(&fabric, &engine.path).unwrap();
    let counters = engine.wait_until(|counters| counters.refused >= 236);
    assert_eq!((counters.peers, counters.connected), (1, 1), "{counters:?}");
    drop(open);
    fabric.disconnect(peer);
    drop(fabric);
    // The engine sees the last silent connections end only when it looks.
    engine.wait_until(|counters| counters.peers == 0 && counters.refused == 300);
    expect_holdings(&before);
    engine.stop();
}

fn an_engine_takes_no_more_clients_than_it_may() {
    let folder = tempfile::tempdir().unwrap();
    let engine = Engine::start(folder.path(), LocalOptions { peers_max: 2, ..LocalOptions::default() });
    let clients: Vec<LocalFabric> = (0..3).map(|_| LocalFabric::client().unwrap()).collect();
    let first = client::connect(&clients[0], &engine.path).unwrap();
    client::connect(&clients[1], &engine.path).unwrap();
    let refused = client::connect(&clients[2], &engine.path).unwrap_err();
    assert!(refused.to_string().contains("too many clients"), "{refused}");
    assert_eq!(clients[0].credentials(first).unwrap().pid, std::process::id());
    clients[0].disconnect(first);
    engine.wait_until(|counters| counters.peers == 1);
    client::connect(&clients[2], &engine.path).unwrap();
    engine.stop();
}
