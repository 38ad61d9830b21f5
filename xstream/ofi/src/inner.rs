//! What all handles of an endpoint share: the port, its buffers, and the state of peers and transfers.
//!
//! # Invariants
//!
//! * `port` is the first field, so libfabric's endpoint is closed before any memory that it may still use is freed.
//! * `state` is never borrowed while the layer above is called: a sink may call any method of the fabric.

use std::{cell::RefCell, collections::VecDeque, rc::Rc};

use daos_xstream::{FabricError, IoBuffer, PeerId, Rng, Time};

use crate::{
    address,
    config::OfiConfig,
    counters::OfiCounters,
    peers::{Owed, Peers},
    raw::{Pieces, Port, PortSpec},
    silence::{Patience, Silence},
    transfers::{GENERATION_MASK, Phase, TransferId, Transfers},
    wire::{self, Control, Kind},
};

// Contexts of operations travel where libfabric carries a pointer.
const _: () = assert!(size_of::<usize>() == 8);

/// Which operation a completion belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// A receive into this piece.
    Receive(usize),
    /// A send from this piece.
    Send(usize),
    /// A transfer.
    Transfer(TransferId),
}

impl Operation {
    pub(crate) fn to_context(self) -> u64 {
        match self {
            Self::Receive(piece) => 1 << 56 | piece as u64,
            Self::Send(piece) => 2 << 56 | piece as u64,
            Self::Transfer(id) => {
                3 << 56 | u64::from(id.generation & GENERATION_MASK) << 32 | u64::from(id.place)
            }
        }
    }

    pub(crate) fn from_context(context: u64) -> Option<Self> {
        let low = context as u32;
        match context >> 56 {
            1 => Some(Self::Receive(low as usize)),
            2 => Some(Self::Send(low as usize)),
            3 => {
                let generation = (context >> 32) as u32 & GENERATION_MASK;
                Some(Self::Transfer(TransferId { place: low, generation }))
            }
            _ => None,
        }
    }
}

/// An exposed buffer whose owner is done with it while the peer might not be.
pub(crate) struct Fenced {
    pub(crate) peer: PeerId,
    /// The pong that proves that everything begun before has ended.
    pub(crate) serial: u64,
    /// The pong to a first ping has come: the peer will not begin anything more. That of the second one shows that what
    /// had to go to the peer for a read of it has left this memory, because it was queued before that ping.
    pub(crate) last_round: bool,
    /// Only kept.
    pub(crate) _memory: IoBuffer,
}

/// A peer that is gone, with operations that libfabric still has, of a provider whose connections must not be closed while
/// they are in use: the address stays until the last of them has completed.
pub(crate) struct Leaving {
    pub(crate) peer: PeerId,
    pub(crate) name: Box<[u8]>,
    pub(crate) operations: u32,
}

/// What changes.
pub(crate) struct State {
    pub(crate) peers: Peers,
    pub(crate) transfers: Transfers,
    /// Transfers for which libfabric had no room.
    pub(crate) queued: VecDeque<TransferId>,
    pub(crate) transmit_free: Vec<u32>,
    /// Whose message is in each transmit piece.
    pub(crate) transmit_owner: Vec<PeerId>,
    /// Receive pieces that could not be posted again at once.
    pub(crate) unposted: Vec<usize>,
    /// Where short messages are put together.
    pub(crate) scratch: Box<[u8]>,
    /// Peers with control messages to be sent.
    pub(crate) owing: VecDeque<PeerId>,
    /// Peers whose end the layer above has not been told.
    pub(crate) closed: VecDeque<PeerId>,
    pub(crate) fenced: Vec<Fenced>,
    /// Peers that are gone, whose connections libfabric is not done with.
    pub(crate) leaving: Vec<Leaving>,
    /// Silent connections, where others can connect over TCP.
    pub(crate) silence: Option<(std::net::SocketAddr, Silence)>,
    /// Time of the last look at the clock.
    pub(crate) now: Time,
    pub(crate) ticked: Time,
    pub(crate) polls: u32,
    pub(crate) counters: OfiCounters,
}

pub(crate) struct Inner {
    pub(crate) port: Rc<Port>,
    pub(crate) receive: Pieces,
    pub(crate) transmit: Pieces,
    pub(crate) state: RefCell<State>,
    pub(crate) config: OfiConfig,
    pub(crate) name: Vec<u8>,
    pub(crate) clock: Box<dyn Fn() -> Time>,
    pub(crate) rng: Box<dyn Rng>,
}

impl Inner {
    pub(crate) fn open(
        config: OfiConfig,
        clock: Box<dyn Fn() -> Time>,
        rng: Box<dyn Rng>,
    ) -> Result<Self, FabricError> {
        let bind = config.bind()?;
        let service = match &config.place {
            crate::Place::Server(address) if bind.is_none() => Some(address.rest().to_owned()),
            _ => None,
        };
        let transmit_pieces = config.transmit_buffers.max(1);
        let receive_pieces = config.receive_buffers.max(1);
        let port = Port::open(&PortSpec {
            provider: &config.provider,
            bind,
            service: service.as_deref(),
            // Transfers and short messages take places in the queue besides the pieces.
            transmit_queue: (2 * transmit_pieces).next_power_of_two(),
            receive_queue: receive_pieces.next_power_of_two(),
            inject_bytes: wire::CONTROL_BYTES_MAX,
        })?;
        let name = port.name()?;
        if port.inject_bytes_max() < wire::CONTROL_BYTES_MAX {
            let (has, needs) = (port.inject_bytes_max(), wire::CONTROL_BYTES_MAX);
            return Err(FabricError::Failed(format!(
                "provider {:?} injects at most {has} bytes, {needs} are needed",
                config.provider
            )));
        }
        let own = address::from_bytes(&name).filter(|_| bind.is_some());
        let listens = matches!(config.place, crate::Place::Server(_)) && config.scheme() == "tcp";
        let silence = own.filter(|_| listens).map(|own| {
            let afterwards = config.keep_alive_idle + config.keep_alive_timeout + config.connect_timeout;
            let patience = Patience { before_first_word: config.connect_timeout, afterwards };
            (own, Silence::new(patience))
        });
        let now = clock();
        let scratch = vec![0; port.inject_bytes_max().min(crate::BUFFER_BYTES)].into_boxed_slice();
        let inner = Self {
            port: Rc::new(port),
            receive: Pieces::new(receive_pieces, crate::BUFFER_BYTES),
            transmit: Pieces::new(transmit_pieces, crate::BUFFER_BYTES),
            state: RefCell::new(State {
                peers: Peers::default(),
                transfers: Transfers::default(),
                queued: VecDeque::new(),
                transmit_free: (0..transmit_pieces as u32).rev().collect(),
                transmit_owner: vec![PeerId(0); transmit_pieces],
                unposted: (0..receive_pieces).collect(),
                scratch,
                owing: VecDeque::new(),
                closed: VecDeque::new(),
                fenced: Vec::new(),
                leaving: Vec::new(),
                silence,
                now,
                ticked: now,
                polls: 0,
                counters: OfiCounters::default(),
            }),
            config,
            name,
            clock,
            rng,
        };
        inner.post_receives();
        let unposted = inner.state.borrow().unposted.len();
        if unposted > 0 {
            return Err(FabricError::Failed(format!("libfabric did not take {unposted} receive buffers")));
        }
        Ok(inner)
    }

    /// Lends libfabric every receive piece that it does not have.
    pub(crate) fn post_receives(&self) {
        let mut unposted = std::mem::take(&mut self.state.borrow_mut().unposted);
        unposted.retain(|piece| !self.post_receive(*piece));
        self.state.borrow_mut().unposted.append(&mut unposted);
    }

    pub(crate) fn post_receive(&self, piece: usize) -> bool {
        let context = Operation::Receive(piece).to_context();
        // SAFETY: the piece lives in `self.receive`, which is freed after the port is closed. It is looked at only between
        // its completion and this call.
        unsafe { self.port.post_receive(self.receive.piece(piece), self.receive.stride(), context) }.is_ok()
    }

    /// Forgets a peer, releases all that is held for it, and, if `report`, tells the layer above with the next poll.
    pub(crate) fn close_peer(&self, state: &mut State, id: PeerId, say_bye: bool, report: bool) {
        let Some(mut peer) = state.peers.remove(id) else { return };
        peer.waiting.drain(..).for_each(std::task::Waker::wake);
        if report {
            state.counters.peers_lost += 1;
            if peer.known {
                state.closed.push_back(id);
            }
        }
        if say_bye && peer.send_token != 0 {
            // As good as it gets: it may be dead, or its connection full.
            let _ =
                self.port.inject(Control::short(Kind::Bye, peer.send_token, 0).as_bytes(), peer.destination);
        }
        let mut operations = peer.sends;
        for transfer in state.transfers.pick(|transfer| transfer.peer == id) {
            let entry = state.transfers.get_mut(transfer).expect("picked just now");
            match entry.phase {
                Phase::Queued | Phase::Doubtful(_) => {
                    self.finish_transfer(state, transfer, Err(FabricError::PeerGone))
                }
                Phase::Posted => {
                    operations += 1;
                    entry.deadline = state.now + PATIENCE;
                }
                Phase::Done(_) => {}
            }
        }
        let mut connection_closed = false;
        if operations > 0 && !self.port.closes_busy_connections() {
            state.leaving.push(Leaving { peer: id, name: peer.name.clone(), operations });
        } else if let Some(destination) = state.peers.release(&peer.name) {
            self.port.remove(destination);
            connection_closed = true;
        }
        self.unfence(state, &peer, connection_closed);
    }

    /// An operation of a peer that is gone has completed.
    #[cold]
    pub(crate) fn left(&self, state: &mut State, id: PeerId) {
        let Some(at) = state.leaving.iter().position(|leaving| leaving.peer == id) else { return };
        state.leaving[at].operations -= 1;
        if state.leaving[at].operations == 0 {
            let left = state.leaving.swap_remove(at);
            if let Some(destination) = state.peers.release(&left.name) {
                self.port.remove(destination);
                state.fenced.retain(|fenced| fenced.peer != id);
            }
        }
    }

    /// Lets go of exposed buffers that were fenced against a peer that is gone. If somebody else has its address now, and
    /// so perhaps its connection, the fence is his.
    fn unfence(&self, state: &mut State, gone: &crate::peers::Peer, connection_closed: bool) {
        if connection_closed {
            state.fenced.retain(|fenced| fenced.peer != gone.id);
            return;
        }
        // Without an heir the connection is closed when its last operation ends, and the fence with it.
        let Some(heir) = state.peers.by_name(&gone.name) else { return };
        if state.fenced.iter().any(|fenced| fenced.peer == gone.id) {
            let serial = self.owe_ping(state, heir);
            for fenced in state.fenced.iter_mut().filter(|fenced| fenced.peer == gone.id) {
                (fenced.peer, fenced.serial, fenced.last_round) = (heir, serial, false);
            }
        }
    }

    /// Asks a peer for a sign of life; returns the serial number that the answer will have at least.
    pub(crate) fn owe_ping(&self, state: &mut State, id: PeerId) -> u64 {
        let Some(peer) = state.peers.get_mut(id) else { return 0 };
        peer.pings += 1;
        let serial = peer.pings;
        peer.owe(Owed::Ping { serial });
        Self::line_up(state, id);
        serial
    }

    /// Remembers that a control message is to be sent.
    pub(crate) fn owe(&self, state: &mut State, id: PeerId, owed: Owed) {
        if let Some(peer) = state.peers.get_mut(id) {
            peer.owe(owed);
            Self::line_up(state, id);
        }
    }

    /// Puts a peer into the queue of those with control messages to be sent, unless it stands there: a stalled one that is asked
    /// again and again must not make the queue longer.
    pub(crate) fn line_up(state: &mut State, id: PeerId) {
        if let Some(peer) = state.peers.get_mut(id)
            && !std::mem::replace(&mut peer.in_line, true)
        {
            state.owing.push_back(id);
        }
    }
}

/// How long whoever waits for a transfer waits for libfabric once the peer is gone.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);

impl Drop for Inner {
    fn drop(&mut self) {
        let mut state = self.state.borrow_mut();
        let mut goodbyes = Vec::new();
        goodbyes.extend(
            state
                .peers
                .iter_mut()
                .filter(|peer| peer.send_token != 0)
                .map(|peer| (peer.send_token, peer.destination)),
        );
        for (token, destination) in goodbyes {
            let _ = self.port.inject(Control::short(Kind::Bye, token, 0).as_bytes(), destination);
        }
        drop(state);
        assert_eq!(Rc::strong_count(&self.port), 1, "an exposure outlives its endpoint");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_names_one_operation() {
        let transfer = Operation::Transfer(TransferId { place: u32::MAX, generation: GENERATION_MASK });
        for operation in [Operation::Receive(0), Operation::Receive(7), Operation::Send(7), transfer] {
            assert_eq!(Operation::from_context(operation.to_context()), Some(operation));
        }
        assert_eq!(Operation::from_context(0), None);
        assert_eq!(Operation::from_context(u64::MAX), None);
    }
}
