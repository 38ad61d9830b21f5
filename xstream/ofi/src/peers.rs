//! Who the endpoint knows: slots with generations, tokens, addresses.
//!
//! # Invariants
//!
//! * A [`PeerId`] is a slot number and the slot's generation; a generation never comes again, so neither does the number.
//! * A token is random and contains its slot number, so that a message finds its peer without a search; it is compared as
//!   a whole.
//! * An address is in libfabric's address vector exactly as long as a peer, or a newcomer that claims it, has it.

use std::{collections::BTreeMap, task::Waker, time::Duration};

use daos_xstream::{PeerId, Time};

use crate::raw::Destination;

const SLOT_BITS: u32 = 20;
const SLOT_MASK: u64 = (1 << SLOT_BITS) - 1;

/// Most slots there can be, because tokens have so much room for them.
pub(crate) const PEERS_LIMIT: usize = 1 << SLOT_BITS;

/// How far a peer has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Not proved yet that it is where its address says. Ends at the deadline.
    Introducing {
        /// When to give up.
        deadline: Time,
        /// When to say hello again, if it is we who call.
        hello: Option<Time>,
    },
    /// It has used the token that was sent to its address.
    Established,
}

/// A control message that could not be sent yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owed {
    Hello,
    Welcome,
    Ping { serial: u64 },
    Pong { serial: u64 },
}

/// One peer.
pub(crate) struct Peer {
    pub(crate) id: PeerId,
    pub(crate) name: Box<[u8]>,
    pub(crate) destination: Destination,
    pub(crate) stage: Stage,
    /// What its messages must carry.
    pub(crate) receive_token: u64,
    /// What messages to it must carry; 0 while it has not said.
    pub(crate) send_token: u64,
    /// Whether the layer above knows its number, and so must hear of its end.
    pub(crate) known: bool,
    /// When something came from it.
    pub(crate) heard: Time,
    /// Messages that came from it.
    pub(crate) messages: u64,
    /// Since when nothing can be sent to it.
    pub(crate) stalled: Option<Time>,
    /// When to try again, while it is stalled: see [`Peer::refused`].
    pub(crate) try_again: Time,
    /// Control messages to be sent, oldest first; at most one of each kind.
    pub(crate) owed: Vec<Owed>,
    /// Whether it stands in the endpoint's queue of peers with control messages to be sent, where it stands once.
    pub(crate) in_line: bool,
    /// Messages in transmit buffers.
    pub(crate) sends: u32,
    /// Messages that libfabric has copied since the last one in a transmit buffer.
    pub(crate) injected: u32,
    /// Transfers under way.
    pub(crate) transfers: u32,
    /// Serial number of the last ping.
    pub(crate) pings: u64,
    /// When to ask again whether it lives.
    pub(crate) ask_again: Time,
    /// Who waits for it to be established.
    pub(crate) waiting: Vec<Waker>,
}

/// The longest pause between attempts to send to a stalled peer.
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// How long the connection to a peer that a failed transfer has ended is left to the peer to make anew. If both sides do so
/// at once, `ofi_rxm` 1.17 now and then ends up with a connection on which nothing arrives.
const PEERS_TURN: Duration = Duration::from_millis(20);

impl Peer {
    /// libfabric has no room for it, or no connection to it. Where a connection has ended every attempt makes a new one, and
    /// a dead peer refuses them all, so the longer it goes on the longer are the pauses.
    pub(crate) fn refused(&mut self, now: Time) {
        let since = *self.stalled.get_or_insert(now);
        self.try_again = now + (now.since(since) / 4).min(PAUSE_MAX);
    }

    /// A transfer has failed, and with it perhaps the connection.
    pub(crate) fn disconnected(&mut self, now: Time) {
        self.stalled.get_or_insert(now);
        self.try_again = now + PEERS_TURN;
    }

    /// Whether it would be a waste to ask libfabric to send something now.
    pub(crate) fn is_pausing(&self, now: Time) -> bool {
        self.stalled.is_some() && now < self.try_again
    }

    /// Remembers to send `owed`, in place of an earlier one of its kind.
    pub(crate) fn owe(&mut self, owed: Owed) {
        self.owed.retain(|other| std::mem::discriminant(other) != std::mem::discriminant(&owed));
        self.owed.push(owed);
    }
}

#[derive(Default)]
struct Slot {
    generation: u32,
    peer: Option<Peer>,
}

/// The peers of an endpoint.
#[derive(Default)]
pub(crate) struct Peers {
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// The peer that has an address.
    by_name: BTreeMap<Box<[u8]>, PeerId>,
    /// A newcomer that claims the address of an established peer, perhaps because that one has been restarted. It takes
    /// its place when it has proved itself: a claim alone must not disconnect anybody.
    rivals: BTreeMap<Box<[u8]>, PeerId>,
    /// Addresses in libfabric's address vector, and how many peers have them.
    destinations: BTreeMap<Box<[u8]>, (Destination, u32)>,
    strangers: usize,
    introducing: usize,
}

fn slot_of(id: PeerId) -> usize {
    (id.0 & u64::from(u32::MAX)) as usize
}

impl Peers {
    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// How many of them have not proved themselves and were not called by us.
    pub(crate) fn strangers(&self) -> usize {
        self.strangers
    }

    /// How many have not proved themselves, whoever called.
    pub(crate) fn introducing(&self) -> usize {
        self.introducing
    }

    pub(crate) fn get(&self, id: PeerId) -> Option<&Peer> {
        self.slots.get(slot_of(id))?.peer.as_ref().filter(|peer| peer.id == id)
    }

    pub(crate) fn get_mut(&mut self, id: PeerId) -> Option<&mut Peer> {
        self.slots.get_mut(slot_of(id))?.peer.as_mut().filter(|peer| peer.id == id)
    }

    /// The peer to whom `token` was given.
    pub(crate) fn by_token(&mut self, token: u64) -> Option<&mut Peer> {
        self.slots
            .get_mut((token & SLOT_MASK) as usize)?
            .peer
            .as_mut()
            .filter(|peer| peer.receive_token == token)
    }

    /// The peer that has the address `name`.
    pub(crate) fn by_name(&self, name: &[u8]) -> Option<PeerId> {
        self.by_name.get(name).copied()
    }

    /// The newcomer that claims the address of an established peer.
    pub(crate) fn rival(&self, name: &[u8]) -> Option<PeerId> {
        self.rivals.get(name).copied()
    }

    /// The address vector's entry for `name`, if there is one.
    pub(crate) fn destination(&self, name: &[u8]) -> Option<Destination> {
        self.destinations.get(name).map(|entry| entry.0)
    }

    /// Adds a peer. If its address is taken it becomes the rival of the one who has it; the caller has made sure that
    /// there is no rival yet. `random` becomes its token.
    pub(crate) fn add(
        &mut self,
        name: &[u8],
        destination: Destination,
        stage: Stage,
        random: u64,
        now: Time,
    ) -> PeerId {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            (self.slots.len() - 1) as u32
        });
        let place = &mut self.slots[slot as usize];
        place.generation += 1;
        let id = PeerId(u64::from(place.generation) << 32 | u64::from(slot));
        // The top bit keeps a token from being 0, which means "none".
        let receive_token = (random | 1 << 63) & !SLOT_MASK | u64::from(slot);
        place.peer = Some(Peer {
            id,
            name: name.into(),
            destination,
            stage,
            receive_token,
            send_token: 0,
            known: false,
            heard: now,
            messages: 0,
            stalled: None,
            try_again: now,
            owed: Vec::new(),
            in_line: false,
            sends: 0,
            injected: 0,
            transfers: 0,
            pings: 0,
            ask_again: now,
            waiting: Vec::new(),
        });
        self.destinations.entry(name.into()).or_insert((destination, 0)).1 += 1;
        let index = if self.by_name.contains_key(name) { &mut self.rivals } else { &mut self.by_name };
        let earlier = index.insert(name.into(), id);
        assert!(earlier.is_none(), "two newcomers for one address");
        if matches!(stage, Stage::Introducing { hello: None, .. }) {
            self.strangers += 1;
        }
        if stage != Stage::Established {
            self.introducing += 1;
        }
        id
    }

    /// Makes an introducing peer an established one. Returns the peer whose address it has taken over, which the caller
    /// closes.
    pub(crate) fn establish(&mut self, id: PeerId) -> Option<PeerId> {
        let peer = self.slots.get_mut(slot_of(id))?.peer.as_mut().filter(|peer| peer.id == id)?;
        if matches!(peer.stage, Stage::Introducing { hello: None, .. }) {
            self.strangers -= 1;
        }
        if peer.stage != Stage::Established {
            self.introducing -= 1;
        }
        peer.stage = Stage::Established;
        peer.waiting.drain(..).for_each(Waker::wake);
        if self.rivals.get(&peer.name) == Some(&id) {
            self.rivals.remove(&peer.name);
            return self.by_name.insert(peer.name.clone(), id);
        }
        None
    }

    /// Makes a stranger one that we call, too.
    pub(crate) fn call(&mut self, id: PeerId, deadline: Time, now: Time) {
        let Some(peer) = self.slots.get_mut(slot_of(id)).and_then(|slot| slot.peer.as_mut()) else { return };
        if matches!(peer.stage, Stage::Introducing { hello: None, .. }) {
            self.strangers -= 1;
            peer.stage = Stage::Introducing { deadline, hello: Some(now) };
        }
    }

    /// Removes a peer. Its address stays until it is [released](Self::release).
    pub(crate) fn remove(&mut self, id: PeerId) -> Option<Peer> {
        let slot = self.slots.get_mut(slot_of(id))?;
        let peer = slot.peer.take_if(|peer| peer.id == id)?;
        // A slot whose generations are used up is not used again. The top bit of a number stays 0.
        if slot.generation < u32::MAX >> 1 {
            self.free.push(slot_of(id) as u32);
        }
        if matches!(peer.stage, Stage::Introducing { hello: None, .. }) {
            self.strangers -= 1;
        }
        if peer.stage != Stage::Established {
            self.introducing -= 1;
        }
        for index in [&mut self.by_name, &mut self.rivals] {
            if index.get(&peer.name) == Some(&id) {
                index.remove(&peer.name);
            }
        }
        if !self.by_name.contains_key(&peer.name)
            && let Some(rival) = self.rivals.remove(&peer.name)
        {
            self.by_name.insert(peer.name.clone(), rival);
        }
        Some(peer)
    }

    /// A removed peer does not need its address any more. Returns it if nobody else does.
    pub(crate) fn release(&mut self, name: &[u8]) -> Option<Destination> {
        let entry = self.destinations.get_mut(name).expect("a peer's address is entered");
        entry.1 -= 1;
        let unused = (entry.1 == 0).then_some(entry.0);
        if unused.is_some() {
            self.destinations.remove(name);
        }
        unused
    }

    /// All peers, by slot.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Peer> {
        self.slots.iter_mut().filter_map(|slot| slot.peer.as_mut())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRANGER: Stage = Stage::Introducing { deadline: Time::NEVER, hello: None };

    #[test]
    fn a_number_is_never_used_for_two_peers() {
        let mut peers = Peers::default();
        let first = peers.add(b"a", 1, STRANGER, 77, Time(0));
        assert!(peers.remove(first).is_some());
        let second = peers.add(b"a", 1, STRANGER, 77, Time(0));
        assert_ne!(first, second);
        assert!(peers.get(first).is_none() && peers.get(second).is_some());
        assert!(peers.remove(first).is_none());
        assert_eq!((peers.count(), peers.strangers()), (1, 1));
    }

    #[test]
    fn a_token_must_match_as_a_whole() {
        let mut peers = Peers::default();
        let id = peers.add(b"a", 1, STRANGER, u64::MAX, Time(0));
        let token = peers.get(id).unwrap().receive_token;
        assert_eq!(peers.by_token(token).unwrap().id, id);
        for wrong in [0, token ^ 1 << 40, token ^ 1, token & SLOT_MASK, u64::MAX] {
            assert!(peers.by_token(wrong).is_none(), "{wrong:#x}");
        }
    }

    #[test]
    fn a_claimed_address_changes_hands_only_when_the_claim_is_proved() {
        let mut peers = Peers::default();
        let owner = peers.add(b"a", 1, STRANGER, 1 << 30, Time(0));
        assert_eq!(peers.establish(owner), None);
        let claimant = peers.add(b"a", 1, STRANGER, 2 << 30, Time(0));
        assert_eq!((peers.by_name(b"a"), peers.rival(b"a")), (Some(owner), Some(claimant)));
        assert_eq!(peers.establish(claimant), Some(owner));
        assert_eq!((peers.by_name(b"a"), peers.rival(b"a")), (Some(claimant), None));
        assert!(peers.remove(owner).is_some());
        assert_eq!(peers.release(b"a"), None, "the claimant still has the address");
        assert!(peers.remove(claimant).is_some());
        assert_eq!(peers.release(b"a"), Some(1));
    }
}
