//! The way out: messages, control messages, transfers.

use daos_xstream::{FabricError, IoBuffer, PeerId, RemoteBuffer};
use libfabric_sys as fi;

use crate::{
    inner::{Inner, Operation, State},
    peers::{Owed, Stage},
    transfers::{Direction, Phase, Transfer, TransferId},
    wire::{self, Control, HEADER_BYTES, Kind},
};

/// libfabric: no room now, or no connection yet.
pub(crate) const AGAIN: i32 = fi::FI_EAGAIN as i32;

/// Control messages tried per poll.
const CONTROLS_PER_POLL: usize = 8;

/// After so many messages to a peer that libfabric has copied, one goes from a transmit piece.
const INJECTED_MAX: u32 = 64;
/// Messages to a peer that libfabric may have copied and not sent, at most; further ones go from transmit pieces.
const BEHIND_MAX: u32 = 512;

impl Inner {
    /// The longest message of the layer above.
    pub(crate) fn message_bytes_max(&self) -> usize {
        self.transmit.stride() - HEADER_BYTES
    }

    /// See [`daos_xstream::Fabric::send`].
    pub(crate) fn send(&self, id: PeerId, parts: &[&[u8]]) -> Result<(), FabricError> {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        if length > self.message_bytes_max() {
            return Err(FabricError::TooLong {
                length: length as u64,
                limit: self.message_bytes_max() as u64,
            });
        }
        let state = &mut *self.state.borrow_mut();
        let Some(peer) = state.peers.get_mut(id) else { return Err(FabricError::PeerGone) };
        let mut header = [0; HEADER_BYTES];
        wire::put_header(&mut header, Kind::Data, peer.send_token, length);
        match self.put(state, id, &[&header], parts) {
            Ok(()) => {
                state.counters.messages_sent += 1;
                state.counters.message_bytes_sent += length as u64;
                Ok(())
            }
            Err(AGAIN) => {
                state.counters.sends_refused += 1;
                Err(FabricError::Busy)
            }
            Err(error) => {
                tracing::debug!(error = %crate::raw::describe(error), peer = id.0, "a message cannot be sent");
                self.close_peer(state, id, false, true);
                Err(FabricError::PeerGone)
            }
        }
    }

    /// Hands a whole message to libfabric: short ones are copied, others, and every [`INJECTED_MAX`]th, go from a transmit
    /// piece. The completion of a piece shows that what was copied before it has left, so the pieces that a peer may hold
    /// bound all that waits for it here.
    fn put(&self, state: &mut State, id: PeerId, first: &[&[u8]], rest: &[&[u8]]) -> Result<(), i32> {
        let Some(peer) = state.peers.get_mut(id).filter(|peer| !peer.is_pausing(state.now)) else {
            return Err(AGAIN);
        };
        let parts = || first.iter().chain(rest).copied();
        let total = parts().map(<[u8]>::len).sum();
        let unfinished = peer.injected + peer.sends * INJECTED_MAX;
        let outcome =
            if total <= state.scratch.len() && peer.injected < INJECTED_MAX && unfinished < BEHIND_MAX {
                let place = &mut state.scratch[..total];
                gather(place, parts());
                let outcome = self.port.inject(place, peer.destination);
                peer.injected += u32::from(outcome.is_ok());
                outcome
            } else if peer.sends >= self.config.sends_per_peer_max {
                Err(AGAIN)
            } else if let Some(piece) = state.transmit_free.pop() {
                let outcome = self.send_piece(piece, peer.destination, parts(), total);
                if outcome.is_ok() {
                    peer.sends += 1;
                    peer.injected = 0;
                    state.transmit_owner[piece as usize] = id;
                } else {
                    state.transmit_free.push(piece);
                }
                outcome
            } else {
                // All pieces are taken: if none of them is this peer's, it is not this peer that stalls.
                return Err(AGAIN);
            };
        match outcome {
            // While a piece waits, only its completion shows that the peer reads.
            Ok(()) if peer.sends == 0 => peer.stalled = None,
            Ok(()) => peer.try_again = state.now,
            Err(AGAIN) => peer.refused(state.now),
            Err(_) => {}
        }
        outcome
    }

    fn send_piece<'a>(
        &self,
        piece: u32,
        destination: crate::raw::Destination,
        parts: impl Iterator<Item = &'a [u8]>,
        total: usize,
    ) -> Result<(), i32> {
        let piece = piece as usize;
        let start = self.transmit.piece(piece);
        assert!(total <= self.transmit.stride(), "a message longer than the longest");
        // SAFETY: the piece is free (the caller has taken it from the free list), so nobody else reads or writes it; total
        // is at most its stride, asserted above. The slice is gone before libfabric gets the piece.
        let place = unsafe { std::slice::from_raw_parts_mut(start, total) };
        gather(place, parts);
        // SAFETY: the piece is not used until its completion, which puts it back on the free list, and is freed after the
        // port is closed.
        unsafe { self.port.send(start, total, destination, Operation::Send(piece).to_context()) }
    }

    /// A transmit piece is free again. Returns whose message was in it, if that peer is still there.
    pub(crate) fn sent(&self, state: &mut State, piece: usize) -> Option<PeerId> {
        let owner = *state.transmit_owner.get(piece)?;
        state.transmit_free.push(piece as u32);
        let Some(peer) = state.peers.get_mut(owner) else {
            self.left(state, owner);
            return None;
        };
        peer.sends -= 1;
        peer.stalled = None;
        Some(owner)
    }

    /// Tries to send control messages that are owed.
    pub(crate) fn pay(&self, state: &mut State) {
        for _ in 0..CONTROLS_PER_POLL.min(state.owing.len()) {
            let Some(id) = state.owing.pop_front() else { return };
            let Some(peer) = state.peers.get_mut(id) else { continue };
            peer.in_line = false;
            let Some(owed) = peer.owed.first().copied() else { continue };
            let introducing = matches!(peer.stage, Stage::Introducing { .. });
            let control = match owed {
                Owed::Hello => Control::introduction(Kind::Hello, 0, peer.receive_token, &self.name),
                Owed::Welcome => {
                    Control::introduction(Kind::Welcome, peer.send_token, peer.receive_token, &self.name)
                }
                Owed::Ping { serial } => Control::short(Kind::Ping, peer.send_token, serial),
                Owed::Pong { serial } => Control::short(Kind::Pong, peer.send_token, serial),
            };
            match self.put(state, id, &[control.as_bytes()], &[]) {
                Ok(()) => {
                    let Some(peer) = state.peers.get_mut(id) else { continue };
                    peer.owed.remove(0);
                    if !peer.owed.is_empty() {
                        Self::line_up(state, id);
                    }
                }
                // While a peer is being called its refusal is no reason to stop: it may be about to start.
                Err(error) if error == AGAIN || introducing => Self::line_up(state, id),
                Err(_) => self.close_peer(state, id, false, true),
            }
        }
    }

    /// Begins a transfer. The outcome is the transfer's name, or the buffer and why it cannot be.
    pub(crate) fn start_transfer(
        &self,
        id: PeerId,
        direction: Direction,
        remote: RemoteBuffer,
        skip: u64,
        buffer: IoBuffer,
    ) -> Result<TransferId, (IoBuffer, Result<(), FabricError>)> {
        let state = &mut *self.state.borrow_mut();
        let Some(peer) = state.peers.get_mut(id) else { return Err((buffer, Err(FabricError::PeerGone))) };
        let length = buffer.len() as u64;
        let fits = skip.checked_add(length).is_some_and(|end| end <= remote.length);
        let Some(offset) = remote.offset.checked_add(skip).filter(|_| fits) else {
            return Err((buffer, Err(FabricError::NotExposed)));
        };
        if length == 0 {
            return Err((buffer, Ok(())));
        }
        if peer.transfers >= self.config.transfers_per_peer_max {
            return Err((buffer, Err(FabricError::Busy)));
        }
        peer.transfers += 1;
        let transfer = state.transfers.add(Transfer {
            peer: id,
            direction,
            buffer,
            remote: RemoteBuffer { offset, ..remote },
            phase: Phase::Queued,
            deadline: state.now + self.config.transfer_timeout,
            waker: None,
            abandoned: false,
            given_up: false,
        });
        if !self.post_transfer(state, transfer) {
            state.queued.push_back(transfer);
        }
        Ok(transfer)
    }

    /// Hands a queued transfer to libfabric. False if it must be tried again later.
    pub(crate) fn post_transfer(&self, state: &mut State, id: TransferId) -> bool {
        let Some(transfer) = state.transfers.get_mut(id) else { return true };
        if !matches!(transfer.phase, Phase::Queued) {
            return true;
        }
        let Some(peer) = state.peers.get_mut(transfer.peer) else {
            self.finish_transfer(state, id, Err(FabricError::PeerGone));
            return true;
        };
        if peer.is_pausing(state.now) {
            return false;
        }
        let context = Operation::Transfer(id).to_context();
        let bytes = transfer.buffer.as_mut_slice();
        let (start, length) = (bytes.as_mut_ptr(), bytes.len());
        let remote = (transfer.remote.offset, transfer.remote.key);
        // SAFETY: the buffer is in the table, does not move in memory, and is neither touched nor taken out before the
        // completion with this context (`Phase::Posted`), or before the port is closed.
        let outcome = unsafe {
            match transfer.direction {
                Direction::Read => self.port.read(start, length, peer.destination, remote, context),
                Direction::Write => self.port.write(start, length, peer.destination, remote, context),
            }
        };
        match outcome {
            Ok(()) => transfer.phase = Phase::Posted,
            Err(AGAIN) => {
                peer.refused(state.now);
                return false;
            }
            Err(error) => {
                let failure = crate::raw::failed(error, "transfer");
                self.finish_transfer(state, id, Err(failure));
            }
        }
        true
    }

    /// libfabric is done with a transfer, or never had it.
    pub(crate) fn finish_transfer(&self, state: &mut State, id: TransferId, result: Result<(), FabricError>) {
        let Some(transfer) = state.transfers.get_mut(id) else { return };
        if matches!(transfer.phase, Phase::Done(_)) {
            return;
        }
        let posted = matches!(transfer.phase, Phase::Posted);
        let (peer, waker, abandoned) = (transfer.peer, transfer.waker.take(), transfer.abandoned);
        if result.is_ok() {
            state.counters.transfers_done += 1;
            match transfer.direction {
                Direction::Read => state.counters.bytes_read += transfer.buffer.len() as u64,
                Direction::Write => state.counters.bytes_written += transfer.buffer.len() as u64,
            }
        } else {
            state.counters.transfers_failed += 1;
        }
        // Once the peer was given up, the outcome is that: what libfabric says of the connection is no news.
        transfer.phase =
            Phase::Done(if state.peers.get(peer).is_some() { result } else { Err(FabricError::PeerGone) });
        if abandoned {
            state.transfers.remove(id);
        }
        if let Some(waker) = waker {
            waker.wake();
        }
        match state.peers.get_mut(peer) {
            Some(peer) => peer.transfers -= 1,
            None if posted => self.left(state, peer),
            None => {}
        }
    }

    /// libfabric reports that a transfer failed: its buffer is ours again.
    pub(crate) fn fail_transfer(&self, state: &mut State, id: TransferId, error: i32) {
        let Some(transfer) = state.transfers.get_mut(id) else { return };
        let peer = transfer.peer;
        tracing::debug!(error = %crate::raw::describe(error), peer = peer.0, "a transfer failed");
        let refused =
            [fi::FI_EACCES, fi::FI_EINVAL, fi::FI_EKEYREJECTED, fi::FI_EPERM].map(|code| code as i32);
        if refused.contains(&error) || error == fi::FI_ENOKEY as i32 {
            self.finish_transfer(state, id, Err(FabricError::NotExposed));
        } else if state.peers.get(peer).is_none() {
            self.finish_transfer(state, id, Err(FabricError::PeerGone));
        } else {
            // The tcp provider answers a wrong key by closing the connection, which looks like death.
            let now = state.now;
            if let Some(peer) = state.peers.get_mut(peer) {
                peer.disconnected(now);
            }
            let serial = self.owe_ping(state, peer);
            let deadline = state.now + self.config.stall_timeout;
            if let Some(transfer) = state.transfers.get_mut(id) {
                (transfer.phase, transfer.deadline) = (Phase::Doubtful(serial), deadline);
            }
        }
    }

    /// A peer has answered a ping, so it lives: transfers that failed before were refused, and buffers that it might have
    /// been writing to are free.
    pub(crate) fn ponged(&self, state: &mut State, id: PeerId, answered: u64) {
        let reached = |fenced: &crate::inner::Fenced| fenced.peer == id && fenced.serial <= answered;
        state.fenced.retain(|fenced| !(reached(fenced) && fenced.last_round));
        if state.fenced.iter().any(reached) {
            let serial = self.owe_ping(state, id);
            for fenced in state.fenced.iter_mut().filter(|fenced| reached(fenced)) {
                (fenced.serial, fenced.last_round) = (serial, true);
            }
        }
        if state.transfers.count() == 0 {
            return;
        }
        let settled = |phase: &Phase| matches!(phase, Phase::Doubtful(serial) if *serial <= answered);
        for transfer in state.transfers.pick(|transfer| transfer.peer == id && settled(&transfer.phase)) {
            self.finish_transfer(state, transfer, Err(FabricError::NotExposed));
        }
    }
}

fn gather<'a>(mut place: &mut [u8], parts: impl Iterator<Item = &'a [u8]>) {
    for part in parts {
        let (here, rest) = place.split_at_mut(part.len());
        here.copy_from_slice(part);
        place = rest;
    }
}
