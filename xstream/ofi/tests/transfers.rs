//! Remote memory access: the engine reads and writes what a client has exposed, and nothing else.
#![allow(clippy::disallowed_methods, reason = "tests of a real backend run in the real world")]

mod common;

use common::{Node, drive, pair, run_until};
use daos_xstream::{Access, Fabric, FabricError, IoBuffer, PeerId, RemoteBuffer};

fn pattern(length: usize, seed: u8) -> IoBuffer {
    let bytes: Vec<u8> = (0..length).map(|at| (at as u8).wrapping_mul(31) ^ seed ^ (at >> 8) as u8).collect();
    IoBuffer::copy_of(&bytes)
}

struct Both {
    server: Node,
    client: Node,
    to_server: PeerId,
    to_client: PeerId,
}

impl Both {
    fn new() -> Self {
        let (server, client, to_server, to_client) = pair();
        Self { server, client, to_server, to_client }
    }

    fn read(
        &mut self,
        remote: RemoteBuffer,
        skip: u64,
        length: usize,
    ) -> (IoBuffer, Result<(), FabricError>) {
        let future = self.server.fabric.read(self.to_client, remote, skip, IoBuffer::zeroed(length));
        drive("read", &mut [&mut self.server, &mut self.client], future)
    }

    fn write(&mut self, remote: RemoteBuffer, skip: u64, buffer: IoBuffer) -> Result<(), FabricError> {
        let future = self.server.fabric.write(self.to_client, remote, skip, buffer);
        drive("write", &mut [&mut self.server, &mut self.client], future).1
    }

    fn answer(&mut self) {
        let seen = self.client.inbox.messages.len();
        let to_client = self.to_client;
        let mut sent = false;
        run_until("answer", &mut [&mut self.server, &mut self.client], |nodes| {
            // Right after a refused transfer the connection has to be made anew.
            sent = sent || nodes[0].fabric.send(to_client, &[b"done"]) != Err(FabricError::Busy);
            nodes[1].inbox.messages.len() > seen
        });
    }
}

#[test]
fn reads_bring_what_the_client_exposed() {
    let mut both = Both::new();
    for length in [1, 63, 4096, 65_537, 1 << 20] {
        let data = pattern(length, 3);
        let copy = data.as_slice().to_vec();
        let exposed = both.client.fabric.expose(both.to_server, data, Access::Read).expect("exposed");
        let remote = both.client.fabric.remote(&exposed);
        assert_eq!(remote.length, length as u64);
        for (skip, count) in [(0, length), (length / 3, length - length / 3), (length - 1, 1), (length, 0)] {
            let (buffer, result) = both.read(remote, skip as u64, count);
            assert_eq!(result, Ok(()), "{length}: {skip}+{count}");
            assert_eq!(buffer.as_slice(), &copy[skip..skip + count]);
        }
        both.answer();
        assert_eq!(both.client.fabric.withdraw(exposed).as_slice(), copy);
    }
    assert_eq!(both.client.fabric.counters().buffers_fenced, 0);
}

#[test]
fn writes_arrive_where_they_should_before_a_message_sent_after_them() {
    let mut both = Both::new();
    for length in [1, 63, 4096, 65_537, 1 << 20] {
        let exposed = both
            .client
            .fabric
            .expose(both.to_server, IoBuffer::zeroed(length), Access::Write)
            .expect("exposed");
        let remote = both.client.fabric.remote(&exposed);
        let data = pattern(length - length / 2, 9);
        let copy = data.as_slice().to_vec();
        assert_eq!(both.write(remote, (length / 2) as u64, data), Ok(()));
        both.answer();
        let back = both.client.fabric.withdraw(exposed);
        assert!(back.as_slice()[..length / 2].iter().all(|byte| *byte == 0));
        assert_eq!(&back.as_slice()[length / 2..], copy);
    }
}

#[test]
fn a_range_outside_the_buffer_is_refused_without_a_transfer() {
    let mut both = Both::new();
    let exposed = both.client.fabric.expose(both.to_server, pattern(100, 1), Access::Read).expect("exposed");
    let remote = both.client.fabric.remote(&exposed);
    for (skip, length) in [(0, 101), (100, 1), (u64::MAX, 1), (u64::MAX - 3, 8)] {
        assert_eq!(both.read(remote, skip, length).1, Err(FabricError::NotExposed), "{skip}+{length}");
    }
    assert_eq!(both.read(remote, 50, 50).1, Ok(()));
}

/// Whatever the provider does about it, no byte moves, the future ends, and the two can go on.
fn forbidden(name: &str, attempt: impl FnOnce(&mut Both) -> Result<(), FabricError>) {
    let mut both = Both::new();
    let outcome = attempt(&mut both);
    println!("{name}: {outcome:?}");
    assert_eq!(outcome, Err(FabricError::NotExposed), "{name}");
    // The two still know each other, although the provider has closed the connection.
    both.answer();
    let exposed = both.client.fabric.expose(both.to_server, pattern(100, 7), Access::Read).expect("exposed");
    let remote = both.client.fabric.remote(&exposed);
    let (buffer, result) = both.read(remote, 0, 100);
    assert_eq!((buffer.as_slice(), result), (pattern(100, 7).as_slice(), Ok(())));
}

#[test]
fn a_wrong_key_moves_nothing() {
    forbidden("read", |both| {
        let exposed =
            both.client.fabric.expose(both.to_server, pattern(100, 1), Access::Read).expect("exposed");
        let mut remote = both.client.fabric.remote(&exposed);
        remote.key ^= 1;
        let (buffer, result) = both.read(remote, 0, 100);
        assert!(buffer.as_slice().iter().all(|byte| *byte == 0));
        result
    });
    forbidden("write", |both| {
        let exposed =
            both.client.fabric.expose(both.to_server, IoBuffer::zeroed(100), Access::Write).expect("exposed");
        let mut remote = both.client.fabric.remote(&exposed);
        remote.key ^= 1;
        let result = both.write(remote, 0, pattern(100, 1));
        assert!(both.client.fabric.withdraw(exposed).as_slice().iter().all(|byte| *byte == 0));
        result
    });
}

#[test]
fn a_revoked_key_moves_nothing() {
    forbidden("read", |both| {
        let exposed =
            both.client.fabric.expose(both.to_server, pattern(100, 1), Access::Read).expect("exposed");
        let remote = both.client.fabric.remote(&exposed);
        drop(exposed);
        both.read(remote, 0, 100).1
    });
    forbidden("write", |both| {
        let exposed =
            both.client.fabric.expose(both.to_server, IoBuffer::zeroed(100), Access::Write).expect("exposed");
        let remote = both.client.fabric.remote(&exposed);
        let kept = both.client.fabric.withdraw(exposed);
        let result = both.write(remote, 0, pattern(100, 1));
        assert!(kept.as_slice().iter().all(|byte| *byte == 0));
        result
    });
}

#[test]
fn the_wrong_direction_moves_nothing() {
    forbidden("write to what may be read", |both| {
        let exposed =
            both.client.fabric.expose(both.to_server, IoBuffer::zeroed(100), Access::Read).expect("exposed");
        let remote = both.client.fabric.remote(&exposed);
        let result = both.write(remote, 0, pattern(100, 1));
        assert!(both.client.fabric.withdraw(exposed).as_slice().iter().all(|byte| *byte == 0));
        result
    });
    forbidden("read what may be written", |both| {
        let exposed =
            both.client.fabric.expose(both.to_server, pattern(100, 1), Access::Write).expect("exposed");
        let remote = both.client.fabric.remote(&exposed);
        both.read(remote, 0, 100).1
    });
}

#[test]
fn a_lie_about_the_length_moves_nothing() {
    forbidden("read", |both| {
        let exposed =
            both.client.fabric.expose(both.to_server, pattern(100, 1), Access::Read).expect("exposed");
        let mut remote = both.client.fabric.remote(&exposed);
        remote.length = 5000;
        both.read(remote, 0, 5000).1
    });
}

/// A buffer that the peer might still write to stays with the fabric until a ping has gone there and back.
#[test]
fn an_unanswered_buffer_is_fenced_and_then_freed() {
    let mut both = Both::new();
    let exposed =
        both.client.fabric.expose(both.to_server, pattern(8192, 1), Access::Write).expect("exposed");
    let back = both.client.fabric.withdraw(exposed);
    assert_eq!(back.as_slice(), pattern(8192, 1).as_slice());
    drop(both.client.fabric.expose(both.to_server, pattern(10, 1), Access::Read).expect("exposed"));
    assert_eq!(both.client.fabric.counters().buffers_fenced, 2);
    run_until("the fence", &mut [&mut both.server, &mut both.client], |nodes| {
        nodes[1].fabric.counters().buffers_fenced == 0
    });
}

/// That something has arrived since the exposure does not show that the request was answered.
#[test]
fn an_unanswered_buffer_is_fenced_whatever_else_arrives() {
    let mut both = Both::new();
    let exposed =
        both.client.fabric.expose(both.to_server, pattern(8192, 1), Access::Write).expect("exposed");
    both.server.fabric.send(both.to_client, &[b"the answer to something else"]).expect("sent");
    run_until("a message", &mut [&mut both.server, &mut both.client], |nodes| {
        !nodes[1].inbox.messages.is_empty()
    });
    let back = both.client.fabric.withdraw_unanswered(exposed);
    assert_eq!(back.as_slice(), pattern(8192, 1).as_slice());
    assert_eq!(both.client.fabric.counters().buffers_fenced, 1);
    run_until("the fence", &mut [&mut both.server, &mut both.client], |nodes| {
        nodes[1].fabric.counters().buffers_fenced == 0
    });
}

#[test]
fn a_dropped_transfer_goes_on_and_leaves_nothing() {
    let mut both = Both::new();
    let exposed =
        both.client.fabric.expose(both.to_server, pattern(1 << 20, 1), Access::Read).expect("exposed");
    let remote = both.client.fabric.remote(&exposed);
    for _ in 0..8 {
        drop(both.server.fabric.read(both.to_client, remote, 0, IoBuffer::zeroed(1 << 20)));
    }
    assert!(both.server.fabric.counters().transfers > 0);
    run_until("the end", &mut [&mut both.server, &mut both.client], |nodes| {
        nodes[0].fabric.counters().transfers == 0
    });
    assert_eq!(both.read(remote, 7, 50).1, Ok(()));
}

/// More than libfabric takes at once: the rest waits its turn.
#[test]
fn many_transfers_at_once_all_end() {
    let mut both = Both::new();
    let data = pattern(1 << 18, 5);
    let copy = data.as_slice().to_vec();
    let exposed = both.client.fabric.expose(both.to_server, data, Access::Read).expect("exposed");
    let remote = both.client.fabric.remote(&exposed);
    let reads: Vec<_> = (0..200_usize)
        .map(|at| {
            (
                at,
                Box::pin(both.server.fabric.read(
                    both.to_client,
                    remote,
                    at as u64,
                    IoBuffer::zeroed(1 << 16),
                )),
            )
        })
        .collect();
    for (at, read) in reads {
        let (buffer, result) = drive("read", &mut [&mut both.server, &mut both.client], read);
        assert_eq!(result, Ok(()));
        assert_eq!(buffer.as_slice(), &copy[at..at + (1 << 16)]);
    }
}

#[test]
fn disconnecting_ends_transfers_under_way() {
    let mut both = Both::new();
    let exposed =
        both.client.fabric.expose(both.to_server, pattern(1 << 22, 1), Access::Read).expect("exposed");
    let remote = both.client.fabric.remote(&exposed);
    let reads: Vec<_> = (0..20)
        .map(|_| both.server.fabric.read(both.to_client, remote, 0, IoBuffer::zeroed(1 << 22)))
        .collect();
    for _ in 0..20 {
        both.server.poll();
        both.client.poll();
    }
    both.server.fabric.disconnect(both.to_client);
    for read in reads {
        let (buffer, result) = drive("the end", &mut [&mut both.server, &mut both.client], read);
        assert_eq!(buffer.len(), 1 << 22);
        assert!(result == Ok(()) || result == Err(FabricError::PeerGone), "{result:?}");
    }
    let counters = both.server.fabric.counters();
    assert_eq!((counters.peers, counters.transfers, counters.buffers_lost), (0, 0, 0));
    assert_eq!(counters.connections_leaving, 0);
}
