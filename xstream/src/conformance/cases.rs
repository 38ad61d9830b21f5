//! The driving half: one function per promise.

use std::{cell::Cell, time::Duration};

use zerocopy::{FromBytes, IntoBytes, little_endian::U64};

use super::{
    ECHO, LARGE, LATER, Moved, PULL, PUSH, RECEIVED, SEQUENCE, STOP, Transfer, UNANSWERED, pattern_of,
};
use crate::{
    Access, Address, Clock, Env, Fabric, FabricCounters, FabricError, IoBuffer, PeerId, RemoteBuffer, Rng,
    both, join_all,
    rpc::{Call, Endpoint, Opcode, Reply, RpcError, Status},
};

/// A promise that did not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{case}: {what}")]
pub struct Failure {
    /// Which case.
    pub case: &'static str,
    /// What was seen.
    pub what: String,
}

type Outcome = Result<(), String>;

struct Driver<'a, E: Env> {
    endpoint: &'a Endpoint<E>,
    address: &'a Address,
    peer: Cell<PeerId>,
}

/// Runs the suite against the serving half at `address` and ends that. Stops at the first failure.
pub async fn drive<E: Env>(endpoint: &Endpoint<E>, address: &Address) -> Result<(), Failure> {
    macro_rules! run {
        ($($case:ident),* $(,)?) => {
            $(
                let outcome = async {
                    let driver = Driver::connect(endpoint, address).await?;
                    driver.$case().await
                };
                outcome.await.map_err(|what| Failure { case: stringify!($case), what })?;
            )*
        };
    }
    run![
        echoes_of_all_sizes,
        too_long_is_refused,
        calls_in_flight_keep_their_order,
        large_replies_in_flight,
        what_passes_is_counted,
        errors_are_told_apart,
        deadlines_hold,
        bulk_reads,
        bulk_writes,
        bulk_stays_within_bounds,
        bulk_needs_the_right_access,
        revoked_memory_is_out_of_reach,
        memory_may_be_revoked_while_its_request_is_under_way,
        a_wrong_key_opens_nothing,
        a_flood_is_held_back_and_loses_nothing,
    ];
    disconnecting(endpoint, address).await.map_err(|what| Failure { case: "disconnecting", what })?;
    run![stop];
    Ok(())
}

fn check(holds: bool, what: impl FnOnce() -> String) -> Outcome {
    if holds { Ok(()) } else { Err(what()) }
}

/// After the endpoint has forgotten a peer, calls to it fail, its number is not used again, and a new connection works.
async fn disconnecting<E: Env>(endpoint: &Endpoint<E>, address: &Address) -> Outcome {
    let first = Driver::connect(endpoint, address).await?;
    first.call(ECHO, b"before").await.map_err(|error| error.to_string())?;
    let delay = 5_000_000_u64.to_le_bytes();
    let pending = first.call_within(Duration::from_secs(20), LATER, &delay);
    let disconnect = async {
        // Let the call go out.
        first.pause(Duration::from_millis(5)).await;
        endpoint.disconnect(first.peer.get());
    };
    let (pending, ()) = both(pending, disconnect).await;
    check(matches!(pending, Err(RpcError::PeerGone)), || format!("the pending call ended with {pending:?}"))?;
    let after = first.call(ECHO, b"after").await;
    check(matches!(after, Err(RpcError::PeerGone)), || format!("a call to a forgotten peer gave {after:?}"))?;
    let second = Driver::connect(endpoint, address).await?;
    check(first.peer != second.peer, || "the number of a forgotten peer came again".to_owned())?;
    let reply =
        second.call(ECHO, b"again").await.map_err(|error| format!("after connecting again: {error}"))?;
    check(reply.body() == b"again", || "a wrong echo after connecting again".to_owned())
}

impl<'a, E: Env> Driver<'a, E> {
    async fn connect(endpoint: &'a Endpoint<E>, address: &'a Address) -> Result<Self, String> {
        let peer = endpoint.connect(address).await.map_err(|error| format!("connect: {error}"))?;
        Ok(Self { endpoint, address, peer: Cell::new(peer) })
    }

    async fn call(&self, opcode: Opcode, body: &[u8]) -> Result<Reply, RpcError> {
        self.call_within(Duration::from_secs(20), opcode, body).await
    }

    async fn call_within(&self, timeout: Duration, opcode: Opcode, body: &[u8]) -> Result<Reply, RpcError> {
        self.endpoint.call(self.peer.get(), &Call { opcode, timeout, ..Call::default() }, &[body]).await
    }

    async fn pause(&self, duration: Duration) {
        let clock = self.endpoint.env().clock();
        clock.sleep_until(clock.now() + duration).await;
    }

    async fn echoes_of_all_sizes(&self) -> Outcome {
        let max = self.endpoint.body_bytes_max();
        let around =
            (8..usize::BITS).map(|bit| 1_usize << bit).flat_map(|size| [size - 65, size - 1, size, size + 1]);
        let sizes = (0..=200).chain(around).chain([max - 1, max]).filter(|size| *size <= max);
        for size in sizes {
            let body = pattern_of(size as u64, size);
            let reply = self.call(ECHO, &body).await.map_err(|error| format!("{size} bytes: {error}"))?;
            check(reply.body() == body, || format!("{size} bytes came back changed"))?;
        }
        Ok(())
    }

    async fn too_long_is_refused(&self) -> Outcome {
        let body = vec![0; self.endpoint.body_bytes_max() + 1];
        let reply = self.call(ECHO, &body).await;
        check(matches!(reply, Err(RpcError::Fabric(FabricError::TooLong { .. }))), || {
            format!("call: {reply:?}")
        })?;
        let fabric = self.endpoint.env().fabric();
        let message = vec![0; fabric.message_bytes_max() + 1];
        let sent = fabric.send(self.peer.get(), &[&message[..7], &message[7..]]);
        check(matches!(sent, Err(FabricError::TooLong { .. })), || format!("send: {sent:?}"))?;
        let long = (self.endpoint.body_bytes_max() as u64 + 1).to_le_bytes();
        let reply = self.call(LARGE, &long).await;
        check(is_refused(&reply, Status::TOO_LONG), || format!("a reply too long: {reply:?}"))?;
        self.still_works().await
    }

    async fn still_works(&self) -> Outcome {
        let reply = self.call(ECHO, b"still here").await.map_err(|error| format!("afterwards: {error}"))?;
        check(reply.body() == b"still here", || "afterwards: a wrong echo".to_owned())
    }

    /// The numbers that the peer has seen of this one, and whether they were in order.
    async fn received(&self) -> Result<(u64, bool), String> {
        let reply = self.call(RECEIVED, b"").await.map_err(|error| format!("count: {error}"))?;
        let (count, broken) =
            U64::read_from_prefix(reply.body()).map_err(|_| "count: a short reply".to_owned())?;
        Ok((count.get(), broken == [0]))
    }

    async fn calls_in_flight_keep_their_order(&self) -> Outcome {
        let (start, _) = self.received().await?;
        let count = 2000;
        let numbers: Vec<_> = (start..start + count).map(|number| number.to_le_bytes()).collect();
        for reply in join_all(numbers.iter().map(|number| self.call(SEQUENCE, number))).await {
            reply.map_err(|error| error.to_string())?;
        }
        let (received, in_order) = self.received().await?;
        check(received == start + count, || format!("{} of {count} arrived", received - start))?;
        check(in_order, || "requests overtook each other".to_owned())
    }

    async fn large_replies_in_flight(&self) -> Outcome {
        let length = self.endpoint.body_bytes_max() as u64;
        let body = length.to_le_bytes();
        let expected = pattern_of(length, length as usize);
        for reply in join_all((0..200).map(|_| self.call(LARGE, &body))).await {
            let reply = reply.map_err(|error| error.to_string())?;
            check(reply.body() == expected, || "a reply was damaged".to_owned())?;
        }
        Ok(())
    }

    /// What the fabrics have counted, if they count.
    fn counted(&self) -> Option<FabricCounters> {
        let mut total: Option<FabricCounters> = None;
        self.endpoint.env().fabric().visit_counters(&mut |_, counters| {
            let total = total.get_or_insert_default();
            total.peers += counters.peers;
            total.messages_received += counters.messages_received;
            total.message_bytes_received += counters.message_bytes_received;
            total.messages_sent += counters.messages_sent;
            total.message_bytes_sent += counters.message_bytes_sent;
        });
        total
    }

    async fn what_passes_is_counted(&self) -> Outcome {
        const CALLS: u64 = 10;
        const BODY_BYTES: u64 = 100;
        let Some(before) = self.counted() else { return Ok(()) };
        for _ in 0..CALLS {
            self.call(ECHO, &[7; BODY_BYTES as usize]).await.map_err(|error| error.to_string())?;
        }
        let after = self.counted().unwrap_or_default();
        check(after.peers >= 1, || format!("connected to nobody: {after:?}"))?;
        let messages =
            (after.messages_sent - before.messages_sent, after.messages_received - before.messages_received);
        check(messages == (CALLS, CALLS), || format!("{CALLS} calls counted as {messages:?} messages"))?;
        let bytes = [
            after.message_bytes_sent - before.message_bytes_sent,
            after.message_bytes_received - before.message_bytes_received,
        ];
        let right = bytes.iter().all(|bytes| (CALLS * BODY_BYTES..2 * CALLS * BODY_BYTES).contains(bytes));
        check(right, || format!("{CALLS} calls of {BODY_BYTES} bytes counted as {bytes:?} bytes"))
    }

    async fn errors_are_told_apart(&self) -> Outcome {
        let reply = self.call(UNANSWERED, b"").await;
        check(is_refused(&reply, Status::INTERNAL), || format!("a dropped responder: {reply:?}"))?;
        let reply = self.call(Opcode::new(ECHO.module(), 250), b"").await;
        check(is_refused(&reply, Status::NO_SUCH_PROCEDURE), || format!("an unknown procedure: {reply:?}"))?;
        let reply = self.call(Opcode::new(254, 0), b"").await;
        check(is_refused(&reply, Status::NO_SUCH_PROCEDURE), || format!("an unknown module: {reply:?}"))
    }

    async fn deadlines_hold(&self) -> Outcome {
        let clock = self.endpoint.env().clock();
        let unexpected = self.endpoint.counters().replies_unexpected.get();
        let start = clock.now();
        let reply = self.call_within(Duration::from_millis(20), LATER, &200_000_u64.to_le_bytes()).await;
        check(matches!(reply, Err(RpcError::TimedOut)), || format!("a late reply: {reply:?}"))?;
        let took = clock.now().since(start);
        check(took >= Duration::from_millis(20), || format!("timed out after {took:?} already"))?;
        // The late reply comes while other calls use the same places again. That it comes as one that nobody waits for shows
        // that the call did not wait for it, however slow the machine is.
        let late = || self.endpoint.counters().replies_unexpected.get() - unexpected;
        for _ in 0..2000 {
            if late() > 0 {
                break;
            }
            self.pause(Duration::from_millis(10)).await;
            self.still_works().await?;
        }
        check(late() == 1, || format!("{} late replies were seen", late()))
    }

    /// Asks for a transfer; `Ok` holds the code and the checksum.
    async fn transfer(
        &self,
        opcode: Opcode,
        remote: RemoteBuffer,
        (skip, bytes): (u64, u64),
        delay_us: u64,
    ) -> Result<(u32, u32), String> {
        let transfer = Transfer {
            key: U64::new(remote.key),
            offset: U64::new(remote.offset),
            length: U64::new(remote.length),
            skip: U64::new(skip),
            bytes: U64::new(bytes),
            delay_us: U64::new(delay_us),
            seed: U64::new(bytes),
        };
        let reply =
            self.call(opcode, transfer.as_bytes()).await.map_err(|error| format!("transfer: {error}"))?;
        let moved = Moved::read_from_bytes(reply.body()).map_err(|_| "transfer: a short reply".to_owned())?;
        Ok((moved.code.get(), moved.checksum.get()))
    }

    fn expose(&self, buffer: IoBuffer, access: Access) -> Result<(Exposed<E>, RemoteBuffer), String> {
        self.endpoint.expose(self.peer.get(), buffer, access).map_err(|(_, error)| format!("expose: {error}"))
    }

    async fn bulk_reads(&self) -> Outcome {
        for (length, skip, bytes) in TRANSFERS {
            let content = pattern_of(3, length);
            let (exposed, remote) = self.expose(IoBuffer::copy_of(&content), Access::Read)?;
            let what = || format!("{bytes} bytes from {skip} of {length}");
            let (code, checksum) = self.transfer(PULL, remote, (skip as u64, bytes as u64), 0).await?;
            check(code == 0, || format!("{}: code {code}", what()))?;
            check(checksum == crc32c::crc32c(&content[skip..skip + bytes]), || {
                format!("{}: damaged", what())
            })?;
            let buffer = self.endpoint.withdraw(exposed, true);
            check(buffer.as_slice() == content, || format!("{}: reading changed the buffer", what()))?;
        }
        Ok(())
    }

    async fn bulk_writes(&self) -> Outcome {
        for (length, skip, bytes) in TRANSFERS {
            let mut content = pattern_of(4, length);
            let (exposed, remote) = self.expose(IoBuffer::copy_of(&content), Access::Write)?;
            let what = || format!("{bytes} bytes to {skip} of {length}");
            let (code, _) = self.transfer(PUSH, remote, (skip as u64, bytes as u64), 0).await?;
            check(code == 0, || format!("{}: code {code}", what()))?;
            let buffer = self.endpoint.withdraw(exposed, true);
            content[skip..skip + bytes].copy_from_slice(&pattern_of(bytes as u64, bytes));
            check(buffer.as_slice() == content, || {
                let at = buffer.as_slice().iter().zip(&content).position(|(seen, wanted)| seen != wanted);
                format!("{}: not what the peer wrote, or not only there: byte {at:?}", what())
            })?;
        }
        Ok(())
    }

    async fn bulk_stays_within_bounds(&self) -> Outcome {
        let length = 8192;
        for (opcode, access) in [(PULL, Access::Read), (PUSH, Access::Write)] {
            for (skip, bytes) in
                [(length - 1, 2), (length, 1), (0, length + 1), (u64::MAX - 1, 4), (1 << 62, 1)]
            {
                let content = pattern_of(5, length as usize);
                let (exposed, remote) = self.expose(IoBuffer::copy_of(&content), access)?;
                let (code, _) = self.transfer(opcode, remote, (skip, bytes), 0).await?;
                check(code != 0, || format!("{bytes} bytes at {skip} of {length} were allowed"))?;
                let buffer = self.endpoint.withdraw(exposed, true);
                check(buffer.as_slice() == content, || "a refused transfer changed memory".to_owned())?;
            }
        }
        self.still_works().await
    }

    async fn bulk_needs_the_right_access(&self) -> Outcome {
        for (opcode, access) in [(PULL, Access::Write), (PUSH, Access::Read)] {
            let content = pattern_of(6, 4096);
            let (exposed, remote) = self.expose(IoBuffer::copy_of(&content), access)?;
            let (code, _) = self.transfer(opcode, remote, (0, 4096), 0).await?;
            check(code != 0, || format!("memory exposed for {access:?} could be used otherwise"))?;
            let buffer = self.endpoint.withdraw(exposed, true);
            check(buffer.as_slice() == content, || "a refused transfer changed memory".to_owned())?;
        }
        self.reconnected().await
    }

    /// A fabric may end the connection over a key that is not valid; a new one has to work then. The first call may find the old
    /// one gone. None may find silence: 5 s are longer than any slow machine needs, and shorter than a keep-alive takes to end a
    /// connection on which nothing arrives, which would hide one.
    async fn reconnected(&self) -> Outcome {
        let echo = || self.call_within(Duration::from_secs(5), ECHO, b"");
        let mut echoed = echo().await;
        if let Err(RpcError::PeerGone) = echoed {
            self.peer.set(Self::connect(self.endpoint, self.address).await?.peer.get());
            echoed = echo().await;
        }
        echoed.map(drop).map_err(|error| format!("afterwards: {error}"))
    }

    async fn revoked_memory_is_out_of_reach(&self) -> Outcome {
        for (opcode, access) in [(PULL, Access::Read), (PUSH, Access::Write)] {
            let content = pattern_of(7, 16384);
            let (exposed, remote) = self.expose(IoBuffer::copy_of(&content), access)?;
            let buffer = self.endpoint.withdraw(exposed, false);
            if let Ok((code, _)) = self.transfer(opcode, remote, (0, 16384), 0).await {
                check(code != 0, || "revoked memory was used".to_owned())?;
            }
            check(buffer.as_slice() == content, || "revoked memory was changed".to_owned())?;
            self.reconnected().await?;
        }
        Ok(())
    }

    /// Usually the memory is revoked before the transfer begins. On a slow machine they may meet: then what is given back holds
    /// bytes from before and from after, and no others.
    async fn memory_may_be_revoked_while_its_request_is_under_way(&self) -> Outcome {
        for (opcode, access) in [(PULL, Access::Read), (PUSH, Access::Write)] {
            let content = pattern_of(7, 16384);
            let (exposed, remote) = self.expose(IoBuffer::copy_of(&content), access)?;
            let transfer = self.transfer(opcode, remote, (0, 16384), 50_000);
            let withdraw = async {
                self.pause(Duration::from_millis(10)).await;
                self.endpoint.withdraw(exposed, false)
            };
            let (transfer, buffer) = both(transfer, withdraw).await;
            let written = if opcode == PUSH { pattern_of(16384, 16384) } else { content.clone() };
            let mut bytes = buffer.as_slice().iter().zip(content.iter().zip(&written));
            let known = bytes.all(|(seen, (before, after))| seen == before || seen == after);
            check(known && buffer.len() == 16384, || format!("{transfer:?} left something else"))?;
            self.reconnected().await?;
        }
        Ok(())
    }

    async fn a_wrong_key_opens_nothing(&self) -> Outcome {
        let content = pattern_of(8, 4096);
        let (exposed, remote) = self.expose(IoBuffer::copy_of(&content), Access::Write)?;
        let wrong = RemoteBuffer { key: remote.key ^ self.endpoint.env().rng().next_u64().max(1), ..remote };
        if let Ok((code, _)) = self.transfer(PUSH, wrong, (0, 4096), 0).await {
            check(code != 0, || "a wrong key was taken".to_owned())?;
        }
        let buffer = self.endpoint.withdraw(exposed, false);
        check(buffer.as_slice() == content, || "a wrong key changed memory".to_owned())?;
        self.reconnected().await
    }

    async fn a_flood_is_held_back_and_loses_nothing(&self) -> Outcome {
        let (start, _) = self.received().await?;
        let body = vec![0; self.endpoint.body_bytes_max()];
        let count = 1000;
        // All at once, without a poll between them: far more than any queue holds.
        let numbers: Vec<_> = (start..start + count).map(|number| number.to_le_bytes()).collect();
        let calls = numbers.iter().map(|number| async {
            let padding = self.call(ECHO, &body);
            let (padding, counted) = both(padding, self.call(SEQUENCE, number)).await;
            padding.and(counted)
        });
        for reply in join_all(calls).await {
            reply.map_err(|error| error.to_string())?;
        }
        let (received, in_order) = self.received().await?;
        check(received == start + count, || format!("{} of {count} arrived", received - start))?;
        check(in_order, || "requests overtook each other".to_owned())
    }

    async fn stop(&self) -> Outcome {
        self.call(STOP, b"").await.map(drop).map_err(|error| error.to_string())
    }
}

type Exposed<E> = <<E as Env>::Fabric as Fabric>::Exposed;

/// Length of the exposed memory, bytes to skip, bytes to move.
const TRANSFERS: [(usize, usize, usize); 9] = [
    (1, 0, 1),
    (4096, 0, 4096),
    (4096, 4095, 1),
    (5000, 1, 4998),
    (65536, 0, 65536),
    (65537, 1, 65536),
    (200_000, 70_001, 100_003),
    (1 << 20, 0, 1 << 20),
    ((1 << 20) + 4096, 4096, 1 << 20),
];

fn is_refused(reply: &Result<Reply, RpcError>, wanted: Status) -> bool {
    matches!(reply, Err(RpcError::Refused { status, .. }) if *status == wanted)
}
