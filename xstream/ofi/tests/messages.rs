//! Messages between two endpoints of one process.
#![allow(clippy::disallowed_methods, reason = "tests of a real backend run in the real world")]

mod common;

use common::{Node, anywhere, client_of, drive, join, open, pair, run_until, server};
use daos_xstream::{Address, Fabric, FabricError, PeerId};
use daos_xstream_ofi::{OfiConfig, OfiFabric};

#[test]
fn messages_of_every_size_come_back_unchanged() {
    let (mut server, mut client, to_server, to_client) = pair();
    let longest = client.fabric.message_bytes_max();
    assert!(longest >= 4096 + 64, "4 KiB and an RPC header travel in one message");
    let sizes = (0..300).chain((300..longest).step_by(97)).chain([longest - 1, longest]);
    for size in sizes {
        let sent: Vec<u8> = (0..size).map(|at| (at * 7 + size) as u8).collect();
        let (left, right) = sent.split_at(size / 3);
        send(&mut server, &mut client, to_server, &[left, right]);
        run_until("request", &mut [&mut server, &mut client], |nodes| !nodes[0].inbox.messages.is_empty());
        let (from, bytes) = server.inbox.messages.remove(0);
        assert_eq!((from, bytes.len()), (to_client, size));
        send(&mut client, &mut server, to_client, &[&bytes]);
        run_until("answer", &mut [&mut server, &mut client], |nodes| !nodes[1].inbox.messages.is_empty());
        assert_eq!(client.inbox.messages.remove(0), (to_server, sent));
    }
    let too_long = vec![0; longest + 1];
    let error = client.fabric.send(to_server, &[&too_long]).unwrap_err();
    assert_eq!(error, FabricError::TooLong { length: longest as u64 + 1, limit: longest as u64 });
}

fn send(other: &mut Node, sender: &mut Node, peer: PeerId, parts: &[&[u8]]) {
    let mut outcome = sender.fabric.send(peer, parts);
    run_until("room to send", &mut [other, sender], |nodes| {
        if outcome == Err(FabricError::Busy) {
            outcome = nodes[1].fabric.send(peer, parts);
        }
        outcome != Err(FabricError::Busy)
    });
    outcome.expect("sent");
}

/// Inline and buffered sends take different ways through libfabric; they must not overtake each other.
#[test]
fn messages_stay_in_order_under_pressure_and_refusals_lose_nothing() {
    let (mut server, mut client, to_server, _) = pair();
    let total = 20_000_u32;
    let (mut next, mut expected, mut refused) = (0_u32, 0_u32, 0_u32);
    run_until("all messages", &mut [&mut server, &mut client], |nodes| {
        while next < total {
            let filler = vec![next as u8; [0, 40, 200, 4000][next as usize % 4]];
            match nodes[1].fabric.send(to_server, &[&next.to_le_bytes(), &filler]) {
                Ok(()) => next += 1,
                Err(FabricError::Busy) => {
                    refused += 1;
                    break;
                }
                Err(error) => panic!("{error}"),
            }
        }
        for (_, bytes) in nodes[0].inbox.messages.drain(..) {
            let (number, filler) = bytes.split_first_chunk().expect("a number");
            assert_eq!(u32::from_le_bytes(*number), expected);
            assert!(filler.iter().all(|byte| *byte == expected as u8));
            expected += 1;
        }
        expected == total
    });
    assert!(refused > 0, "the pressure was no pressure");
    assert_eq!(client.fabric.counters().sends_refused, u64::from(refused));
}

#[test]
fn both_ends_may_call_at_the_same_time() {
    let mut left = Node::new(server());
    let mut right = Node::new(server());
    let (left_address, right_address) =
        (left.fabric.addresses()[0].clone(), right.fabric.addresses()[0].clone());
    let (left_fabric, right_fabric) = (left.fabric.clone(), right.fabric.clone());
    let both = async {
        let mut calls =
            (Box::pin(left_fabric.connect(&right_address)), Box::pin(right_fabric.connect(&left_address)));
        let (mut to_right, mut to_left) = (None, None);
        std::future::poll_fn(move |context| {
            use std::{future::Future, task::Poll};
            if to_right.is_none()
                && let Poll::Ready(peer) = calls.0.as_mut().poll(context)
            {
                to_right = Some(peer);
            }
            if to_left.is_none()
                && let Poll::Ready(peer) = calls.1.as_mut().poll(context)
            {
                to_left = Some(peer);
            }
            match (&to_right, &to_left) {
                (Some(right), Some(left)) => Poll::Ready((right.clone(), left.clone())),
                _ => Poll::Pending,
            }
        })
        .await
    };
    let (to_right, to_left) = drive("both calls", &mut [&mut left, &mut right], both);
    let (to_right, to_left) = (to_right.unwrap(), to_left.unwrap());
    left.fabric.send(to_right, &[b"from left"]).unwrap();
    right.fabric.send(to_left, &[b"from right"]).unwrap();
    run_until("messages", &mut [&mut left, &mut right], |nodes| {
        nodes.iter().all(|node| !node.inbox.messages.is_empty())
    });
    assert_eq!(left.inbox.messages, [(to_right, b"from right".to_vec())]);
    assert_eq!(right.inbox.messages, [(to_left, b"from left".to_vec())]);
    assert_eq!((left.fabric.counters().peers, right.fabric.counters().peers), (1, 1));
}

#[test]
fn a_peer_that_says_goodbye_is_closed_and_its_number_is_dead() {
    let (mut server, mut client, to_server, to_client) = pair();
    client.fabric.disconnect(to_server);
    assert_eq!(client.fabric.send(to_server, &[b"x"]), Err(FabricError::PeerGone));
    run_until("goodbye", &mut [&mut server, &mut client], |nodes| nodes[0].inbox.closed == [to_client]);
    assert_eq!(server.fabric.send(to_client, &[b"x"]), Err(FabricError::PeerGone));
    assert_eq!((server.fabric.counters().peers, client.fabric.counters().peers), (0, 0));
    let address = server.fabric.addresses()[0].clone();
    server.inbox.closed.clear();
    let (_server, _client, again_to_server, again_to_client) = join(server, client, &address);
    assert_ne!((again_to_server, again_to_client), (to_server, to_client));
}

#[test]
fn a_server_that_is_replaced_at_its_address_is_a_new_peer() {
    let (server, mut client, to_server, _) = pair();
    let address = server.fabric.addresses()[0].clone();
    drop(server);
    run_until("the end of the first", &mut [&mut client], |nodes| nodes[0].inbox.closed == [to_server]);
    let second = Node::new(open(OfiConfig::server(address.clone())));
    let (_second, _client, to_second, _) = join(second, client, &address);
    assert_ne!(to_server, to_second);
}

#[test]
fn calling_nobody_fails_in_time() {
    let vacant = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut config = OfiConfig::client_of(anywhere());
    config.connect_timeout = std::time::Duration::from_millis(300);
    let mut client = Node::new(open(config));
    let fabric = client.fabric.clone();
    let address: Address = format!("tcp://{vacant}").parse().unwrap();
    let outcome = drive("refusal", &mut [&mut client], fabric.connect(&address));
    assert_eq!(outcome, Err(FabricError::Unreachable(address.to_string())));
    assert_eq!(client.fabric.counters().peers, 0);
}

fn refusal(config: OfiConfig) -> String {
    match OfiFabric::open(config, common::RealClock::start().reader(), common::TestRng::new(1)) {
        Ok(_) => panic!("opened"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn what_cannot_be_opened_says_why() {
    let first = server();
    let taken = first.addresses()[0].clone();
    assert!(
        refusal(OfiConfig::server(taken.clone())).contains("in use"),
        "{}",
        refusal(OfiConfig::server(taken))
    );
    let missing = refusal(OfiConfig::server("nosuch://127.0.0.1:0".parse().unwrap()).with_provider("nosuch"));
    assert!(missing.contains("\"nosuch\""), "{missing}");
    let everywhere = refusal(OfiConfig::server("tcp://0.0.0.0:0".parse().unwrap()));
    assert!(everywhere.contains("one interface"), "{everywhere}");
    let foreign = refusal(OfiConfig::server("local:///tmp/x".parse().unwrap()));
    assert!(foreign.contains("tcp://"), "{foreign}");
}

#[test]
fn version_six_of_the_internet_protocol_works() {
    let server = Node::new(open(OfiConfig::server("tcp://[::1]:0".parse().unwrap())));
    let address = server.fabric.addresses()[0].clone();
    assert!(address.rest().starts_with("[::1]:"), "{address}");
    let client = Node::new(client_of(&address));
    join(server, client, &address);
}

#[test]
fn idle_peers_are_asked_and_stay() {
    let quick = |mut config: OfiConfig| {
        config.keep_alive_idle = std::time::Duration::from_millis(200);
        config.keep_alive_timeout = std::time::Duration::from_millis(400);
        open(config)
    };
    let server = Node::new(quick(OfiConfig::server(anywhere())));
    let address = server.fabric.addresses()[0].clone();
    let client = Node::new(quick(OfiConfig::client_of(address.clone())));
    let (mut server, mut client, ..) = join(server, client, &address);
    let end = std::time::Instant::now() + std::time::Duration::from_millis(1500);
    run_until("idling", &mut [&mut server, &mut client], |_| std::time::Instant::now() > end);
    assert!(server.inbox.closed.is_empty() && client.inbox.closed.is_empty());
    // And one that does not answer is given up.
    let given_up = std::time::Instant::now();
    run_until("silence", &mut [&mut server], |nodes| !nodes[0].inbox.closed.is_empty());
    assert!(given_up.elapsed() < std::time::Duration::from_secs(3));
}

#[test]
fn a_parked_endpoint_is_woken_by_its_descriptor() {
    let (mut server, mut client, to_server, _) = pair();
    let descriptor = server.fabric.wait_descriptor().expect("tcp has one");
    // Whatever is left from connecting has to be worked off first.
    run_until("quiet", &mut [&mut server, &mut client], |nodes| {
        nodes[0].fabric.prepare_to_park() && !common::readable(descriptor, 50)
    });
    client.fabric.send(to_server, &[b"wake up"]).unwrap();
    client.poll();
    assert!(common::readable(descriptor, 1000), "the descriptor does not tell");
    run_until("message", &mut [&mut server], |nodes| !nodes[0].inbox.messages.is_empty());
}
