//! The way in: completions, messages, introductions.

use daos_xstream::{PeerId, Sink};

use crate::{
    address,
    inner::{Inner, Operation, State},
    peers::{Owed, PEERS_LIMIT, Stage},
    raw::{BATCH, Completion, Completions},
    wire::{self, Message, Stranger},
};

impl Inner {
    /// Moves the endpoint forward; see [`daos_xstream::Fabric::poll`].
    pub(crate) fn poll(&self, limit: usize, sink: &mut impl Sink) -> usize {
        let mut happened = self.before_poll(sink);
        let mut found = [Completion { context: 0, length: 0 }; BATCH];
        let mut messages = 0;
        while messages < limit {
            let room = (limit - messages).min(BATCH);
            let count = match self.port.completions(room, &mut found) {
                Completions::None => break,
                Completions::Failed { context, error } => {
                    self.failed(context, error);
                    happened += 1;
                    // A queue that reports nothing but its own failure must not hold the xstream.
                    messages += 1;
                    continue;
                }
                Completions::Some(count) => count,
            };
            for completion in &found[..count] {
                messages += self.completed(completion, sink);
            }
            happened += count;
            // A short batch means that libfabric has nothing more; asking again would cost a system call.
            if count < room {
                break;
            }
        }
        happened
    }

    fn completed(&self, completion: &Completion, sink: &mut impl Sink) -> usize {
        match Operation::from_context(completion.context) {
            Some(Operation::Receive(piece)) if piece < self.receive.count() => {
                self.received(piece, completion.length, sink);
                if !self.post_receive(piece) {
                    self.state.borrow_mut().unposted.push(piece);
                }
                1
            }
            Some(Operation::Send(piece)) => {
                self.sent(&mut self.state.borrow_mut(), piece);
                0
            }
            Some(Operation::Transfer(id)) => {
                self.finish_transfer(&mut self.state.borrow_mut(), id, Ok(()));
                0
            }
            _ => 0,
        }
    }

    /// An operation failed. Whatever it was, what it held is free again.
    fn failed(&self, context: u64, error: i32) {
        let state = &mut *self.state.borrow_mut();
        state.counters.operations_failed += 1;
        match Operation::from_context(context) {
            Some(Operation::Receive(piece)) if piece < self.receive.count() => {
                // Too long for the piece, or cut off: no message either way.
                state.counters.garbage_received += 1;
                state.unposted.push(piece);
            }
            Some(Operation::Send(piece)) => {
                let owner = self.sent(state, piece);
                tracing::debug!(error = %crate::raw::describe(error), ?owner, "a message could not be delivered");
                if let Some(owner) = owner {
                    self.close_peer(state, owner, false, true);
                }
            }
            Some(Operation::Transfer(id)) => self.fail_transfer(state, id, error),
            _ => {
                tracing::debug!(error = %crate::raw::describe(error), "libfabric reports a failure of nothing of ours")
            }
        }
    }

    fn received(&self, piece: usize, length: usize, sink: &mut impl Sink) {
        let length = length.min(self.receive.stride());
        // SAFETY: libfabric has completed the receive into this piece, which makes it ours until it is posted again, and
        // that happens after this call. The length is within it.
        let bytes = unsafe { std::slice::from_raw_parts(self.receive.piece(piece), length) };
        let mut guard = self.state.borrow_mut();
        let state = &mut *guard;
        let Some((token, message)) = wire::parse(bytes) else {
            state.counters.garbage_received += 1;
            return;
        };
        if let Message::Hello(stranger) = message {
            self.hello(state, &stranger);
            return;
        }
        let now = state.now;
        let Some(peer) = state.peers.by_token(token) else {
            state.counters.unknown_tokens += 1;
            return;
        };
        let id = peer.id;
        if let Message::Welcome(stranger) = &message {
            peer.send_token = stranger.reply_token;
        }
        if peer.send_token == 0 {
            // It has our token and has not told us its own: it does not speak this protocol.
            state.counters.garbage_received += 1;
            return;
        }
        peer.heard = now;
        peer.messages += 1;
        if peer.stage != Stage::Established {
            self.establish(state, id);
        }
        match message {
            Message::Data(body) => {
                state.counters.messages_received += 1;
                state.counters.message_bytes_received += body.len() as u64;
                if let Some(peer) = state.peers.get_mut(id) {
                    peer.known = true;
                }
                drop(guard);
                sink.message(id, body);
            }
            Message::Welcome(_) => self.owe(state, id, Owed::Pong { serial: 0 }),
            Message::Ping { serial } => self.owe(state, id, Owed::Pong { serial }),
            Message::Pong { serial } => self.ponged(state, id, serial),
            Message::Bye => self.close_peer(state, id, false, true),
            Message::Hello(_) => {}
        }
    }

    #[cold]
    fn establish(&self, state: &mut State, id: PeerId) {
        state.counters.peers_established += 1;
        if let Some(predecessor) = state.peers.establish(id) {
            self.close_peer(state, predecessor, false, true);
        }
    }

    /// Somebody introduces itself. All that it gets is an answer to the address that it claims; who can read that is a
    /// peer.
    #[cold]
    fn hello(&self, state: &mut State, stranger: &Stranger<'_>) {
        if stranger.reply_token == 0 || !self.is_plausible(stranger.name) {
            state.counters.garbage_received += 1;
            return;
        }
        let now = state.now;
        let owner = state.peers.by_name(stranger.name);
        let candidate = state.peers.rival(stranger.name).or(owner);
        if let Some(peer) = candidate.and_then(|id| state.peers.get_mut(id)) {
            let (id, established) = (peer.id, peer.stage == Stage::Established);
            if !established || peer.send_token == stranger.reply_token {
                // It says so again, or we call each other at the same time.
                peer.send_token = stranger.reply_token;
                self.owe(state, id, Owed::Welcome);
                return;
            }
        }
        if state.peers.count() + state.leaving.len() >= self.config.peers_max.min(PEERS_LIMIT)
            || state.peers.strangers() >= self.config.strangers_max
        {
            state.counters.peers_refused += 1;
            return;
        }
        let Ok(destination) = self.destination(state, stranger.name) else {
            state.counters.garbage_received += 1;
            return;
        };
        let stage = Stage::Introducing { deadline: now + self.config.connect_timeout, hello: None };
        let id = state.peers.add(stranger.name, destination, stage, self.rng.next_u64(), now);
        if let Some(peer) = state.peers.get_mut(id) {
            peer.send_token = stranger.reply_token;
        }
        self.owe(state, id, Owed::Welcome);
    }

    /// Whether a stranger's claim can be the address of an endpoint like this one.
    fn is_plausible(&self, name: &[u8]) -> bool {
        if name == self.name {
            return false;
        }
        if self.config.uses_sockets() {
            return name.len() == self.name.len()
                && name.get(..2) == self.name.get(..2)
                && address::from_bytes(name).is_some_and(address::is_callable);
        }
        // Binary names all have one length; names that are text end with their only zero byte.
        let text =
            self.name.last() == Some(&0) && name.iter().position(|byte| *byte == 0) == Some(name.len() - 1);
        name.len() == self.name.len() || text
    }

    /// The address vector's entry for `name`, made if need be.
    pub(crate) fn destination(
        &self,
        state: &State,
        name: &[u8],
    ) -> Result<crate::raw::Destination, daos_xstream::FabricError> {
        match state.peers.destination(name) {
            Some(destination) => Ok(destination),
            None => self.port.insert(name),
        }
    }
}
