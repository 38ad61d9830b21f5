//! Endpoints of both sides on one thread: turns, sleeping and waking, several xstreams.

#![allow(clippy::disallowed_methods, reason = "tests of a real backend")]

use std::{
    collections::BTreeMap,
    path::Path,
    pin::pin,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use daos_xstream::{Access, Fabric, FabricError, IoBuffer, PeerId, Sink};
use daos_xstream_local::{LocalFabric, LocalOptions, LocalServer};
use rustix::event::{PollFd, PollFlags};

#[derive(Default)]
struct Received {
    messages: BTreeMap<PeerId, Vec<Vec<u8>>>,
    closed: Vec<PeerId>,
}

impl Sink for Received {
    fn message(&mut self, peer: PeerId, bytes: &[u8]) {
        self.messages.entry(peer).or_default().push(bytes.to_vec());
    }

    fn closed(&mut self, peer: PeerId) {
        self.closed.push(peer);
    }
}

impl Received {
    fn count(&self) -> usize {
        self.messages.values().map(Vec::len).sum()
    }
}

/// Connects while `engines` are polled by the same thread.
fn connect(
    client: &LocalFabric,
    path: &Path,
    xstream: u32,
    engines: &[&LocalFabric],
) -> Result<PeerId, FabricError> {
    let address = format!("local://{}#{xstream}", path.display()).parse().unwrap();
    let mut connecting = pin!(client.connect(&address));
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        if let Poll::Ready(connected) = connecting.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return connected;
        }
        assert!(Instant::now() < deadline);
        let mut nothing = Received::default();
        for engine in engines {
            engine.poll(8, &mut nothing);
        }
        client.poll(8, &mut nothing);
    }
}

fn readable(fabric: &LocalFabric) -> bool {
    let descriptor = fabric.wait_descriptor();
    let mut wanted = [PollFd::new(&descriptor, PollFlags::IN)];
    let at_once = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut wanted, Some(&at_once)).unwrap() > 0
}

struct Setup {
    _folder: tempfile::TempDir,
    engine: LocalFabric,
    clients: Vec<(LocalFabric, PeerId)>,
}

/// Peers fall asleep only when they are told to: a machine that stalls for a millisecond changes nothing.
fn setup(clients: usize) -> Setup {
    setup_with(clients, Duration::from_secs(3600))
}

fn setup_with(clients: usize, idle: Duration) -> Setup {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("engine.sock");
    let server = LocalServer::bind(&path, 1, LocalOptions { idle, ..LocalOptions::default() }).unwrap();
    let engine = server.fabric(0).unwrap();
    let clients = (0..clients)
        .map(|_| {
            let client = LocalFabric::client().unwrap();
            let peer = connect(&client, &path, 0, &[&engine]).unwrap();
            (client, peer)
        })
        .collect();
    Setup { _folder: folder, engine, clients }
}

#[test]
fn every_client_has_its_turn_beside_one_that_floods() {
    let Setup { engine, clients, .. } = setup(5);
    let (flooding, others) = clients.split_first().unwrap();
    let mut rounds = 0;
    for round in 0..50u64 {
        while flooding.0.send(flooding.1, &[&[0; 1000]]).is_ok() {}
        for (client, peer) in others {
            client.send(*peer, &[&round.to_le_bytes()]).unwrap();
        }
        let mut received = Received::default();
        // A limit that the flood alone would use up; a client has at most 16 messages in a row.
        for _ in 0..2 {
            engine.poll(5 * 16, &mut received);
        }
        let from_others =
            received.messages.values().filter(|messages| messages[0] == round.to_le_bytes()).count();
        assert_eq!(from_others, 4, "in round {round}");
        rounds += 1;
    }
    assert_eq!(rounds, 50);
}

/// One user could take all places of an xstream, and others were refused.
#[test]
fn one_user_cannot_take_all_places() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("engine.sock");
    let options = LocalOptions { peers_max: 10, peers_per_user_max: 3, ..LocalOptions::default() };
    let engine = LocalServer::bind(&path, 1, options).unwrap().fabric(0).unwrap();
    let clients: Vec<_> = (0..4).map(|_| LocalFabric::client().unwrap()).collect();
    let peers: Vec<_> =
        clients[..3].iter().map(|client| connect(client, &path, 0, &[&engine]).unwrap()).collect();
    let refused = connect(&clients[3], &path, 0, &[&engine]).unwrap_err();
    assert!(refused.to_string().contains("one user may"), "{refused}");
    assert_eq!((engine.counters().peers, engine.counters().refused), (3, 1));
    // A place that is free again can be taken.
    clients[1].disconnect(peers[1]);
    while engine.counters().peers == 3 {
        engine.poll(8, &mut Received::default());
    }
    connect(&clients[3], &path, 0, &[&engine]).unwrap();
}

/// A burst of connects was welcomed in one poll, which took the core for as long as it took to make memory for all of them.
#[test]
fn a_burst_of_connects_is_let_in_a_few_at_a_time() {
    const BURST: usize = 50;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("engine.sock");
    let engine = LocalServer::bind(&path, 1, LocalOptions::default()).unwrap().fabric(0).unwrap();
    let clients: Vec<_> = (0..BURST).map(|_| LocalFabric::client().unwrap()).collect();
    let address = format!("local://{}#0", path.display()).parse().unwrap();
    let mut connecting: Vec<_> =
        clients.iter().map(|client| Some(Box::pin(client.connect(&address)))).collect();
    let (mut connected, mut most) = (0, 0);
    let deadline = Instant::now() + Duration::from_secs(10);
    while connected < BURST {
        assert!(Instant::now() < deadline, "{connected} connected");
        for slot in &mut connecting {
            let Some(future) = slot else { continue };
            if let Poll::Ready(peer) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                peer.unwrap();
                *slot = None;
                connected += 1;
            }
        }
        let before = engine.counters().peers;
        engine.poll(8, &mut Received::default());
        most = most.max(engine.counters().peers - before);
        clients.iter().for_each(|client| _ = client.poll(8, &mut Received::default()));
    }
    assert_eq!(engine.counters().peers, BURST as u64);
    assert!((1..=4).contains(&most), "{most} in one poll");
}

#[test]
fn a_parked_endpoint_is_woken_by_the_first_message_and_only_by_that() {
    let Setup { engine, clients, .. } = setup(2);
    let mut received = Received::default();
    while engine.poll(8, &mut received) != 0 {}
    clients[0].0.send(clients[0].1, &[b"before"]).unwrap();
    assert!(!engine.prepare_to_park(), "a message is waiting");
    while received.count() < 1 {
        engine.poll(8, &mut received);
    }
    assert!(engine.prepare_to_park());
    assert_eq!(engine.counters().peers_awake, 0, "a poll of nobody costs nothing");
    assert!(!readable(&engine));
    let (client, peer) = &clients[1];
    let rung = client.counters().doorbells_sent;
    for _ in 0..3 {
        client.send(*peer, &[b"wake up"]).unwrap();
    }
    assert_eq!(client.counters().doorbells_sent, rung + 1, "one system call for three messages");
    assert!(readable(&engine));
    engine.poll(8, &mut received);
    assert_eq!(received.count(), 4, "the poll after the wait finds it");
    assert_eq!(engine.counters().peers_awake, 1, "the other one sleeps on");
}

#[test]
fn a_silent_client_falls_asleep_on_a_busy_core_and_is_heard_soon() {
    let Setup { engine, clients, .. } = setup_with(2, Duration::from_millis(1));
    let (busy, silent) = (&clients[0], &clients[1]);
    let mut received = Received::default();
    let deadline = Instant::now() + Duration::from_secs(10);
    while engine.counters().peers_awake != 1 {
        let _ = busy.0.send(busy.1, &[b"still here"]);
        engine.poll(64, &mut received);
        assert!(Instant::now() < deadline, "{:?}", engine.counters());
    }
    silent.0.send(silent.1, &[b"so am I"]).unwrap();
    while !received.messages.values().any(|messages| messages.contains(&b"so am I".to_vec())) {
        let _ = busy.0.send(busy.1, &[b"still here"]);
        engine.poll(64, &mut received);
        assert!(Instant::now() < deadline, "{:?}", engine.counters());
    }
}

#[test]
fn a_sender_without_room_is_woken_when_there_is_some() {
    let Setup { engine, clients, .. } = setup(1);
    let (client, peer) = &clients[0];
    let mut sent = 0;
    while client.send(*peer, &[&[7; 4000]]).is_ok() {
        sent += 1;
    }
    assert!(sent >= 40, "{sent} messages of 4 KiB in a ring of 256 KiB");
    let mut nothing = Received::default();
    while client.poll(8, &mut nothing) != 0 {}
    assert!(client.prepare_to_park());
    assert!(!readable(client));
    let mut received = Received::default();
    while received.count() < sent {
        engine.poll(8, &mut received);
    }
    assert!(readable(client));
    assert!(client.poll(8, &mut nothing) > 0, "something happened: try again");
    client.send(*peer, &[&[8; 4000]]).unwrap();
}

#[test]
fn clients_reach_the_xstream_they_ask_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("engine.sock");
    let server = LocalServer::bind(&path, 3, LocalOptions::default()).unwrap();
    let (first, second) = (server.fabric(0).unwrap(), server.fabric(1).unwrap());
    assert!(server.fabric(1).is_err(), "one fabric per xstream");
    assert_eq!(second.addresses()[0].to_string(), format!("local://{}#1", path.display()));
    let client = LocalFabric::client().unwrap();
    let engines = [&first, &second];
    let to_first = connect(&client, &path, 0, &engines).unwrap();
    let to_second = connect(&client, &path, 1, &engines).unwrap();
    assert_ne!(to_first, to_second);
    assert_eq!(connect(&client, &path, 1, &engines).unwrap(), to_second, "found, not made again");
    client.send(to_second, &[b"to xstream 1"]).unwrap();
    let (mut at_first, mut at_second) = (Received::default(), Received::default());
    for _ in 0..100 {
        first.poll(8, &mut at_first);
        second.poll(8, &mut at_second);
    }
    assert_eq!((at_first.count(), at_second.count()), (0, 1));
    for xstream in [2, 3] {
        let error = connect(&client, &path, xstream, &engines).unwrap_err();
        assert!(error.to_string().contains("no such xstream"), "{error}");
    }
}

#[test]
fn bad_addresses_are_told_apart_from_absent_engines() {
    let client = LocalFabric::client().unwrap();
    let connect = |address: &str| {
        let address = address.parse().unwrap();
        let mut connecting = pin!(client.connect(&address));
        match connecting.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(outcome) => outcome.unwrap_err(),
            Poll::Pending => panic!("{address} leads somewhere"),
        }
    };
    for bad in ["tcp://127.0.0.1:1", "local:///run/x", "local:///run/x#y", "local://#1"] {
        assert!(matches!(connect(bad), FabricError::BadAddress(_)), "{bad}");
    }
    let long = format!("local:///{}#0", "x".repeat(200));
    assert!(matches!(connect(&long), FabricError::BadAddress(_)));
    assert!(matches!(connect("local:///nowhere/engine.sock#0"), FabricError::Unreachable(_)));
}

#[test]
fn a_dropped_connect_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("engine.sock");
    let server = LocalServer::bind(&path, 1, LocalOptions::default()).unwrap();
    let engine = server.fabric(0).unwrap();
    let client = LocalFabric::client().unwrap();
    let address = format!("local://{}#0", path.display()).parse().unwrap();
    {
        let mut connecting = pin!(client.connect(&address));
        assert!(connecting.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }
    let mut received = Received::default();
    let deadline = Instant::now() + Duration::from_secs(10);
    while engine.counters().gone + engine.counters().refused == 0 {
        engine.poll(8, &mut received);
        client.poll(8, &mut received);
        assert!(Instant::now() < deadline, "{:?}", engine.counters());
    }
    assert_eq!((engine.counters().peers, client.counters().peers), (0, 0));
}

#[test]
fn an_exposure_outlives_neither_its_owner_nor_its_peer() {
    let Setup { engine, clients, .. } = setup(1);
    let (client, peer) = &clients[0];
    let area = LocalOptions::default().bulk_bytes as usize;
    let exposed = client.expose(*peer, IoBuffer::zeroed(area), Access::Read).unwrap();
    let busy = client.expose(*peer, IoBuffer::zeroed(1), Access::Read).err().unwrap().1;
    assert_eq!(busy, FabricError::Busy);
    drop(exposed);
    let exposed = client.expose(*peer, IoBuffer::copy_of(b"mine"), Access::Write).unwrap();
    client.disconnect(*peer);
    assert_eq!(client.withdraw(exposed).as_slice(), b"mine");
    let mut received = Received::default();
    while received.closed.is_empty() {
        engine.poll(8, &mut received);
    }
    let refused = engine.expose(received.closed[0], IoBuffer::zeroed(1), Access::Read).err().unwrap().1;
    assert_eq!(refused, FabricError::PeerGone);
}
