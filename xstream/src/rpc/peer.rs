//! What an endpoint keeps per peer.

use std::{
    cell::{Cell, OnceCell, RefCell},
    collections::{HashMap, VecDeque},
    hash::{BuildHasherDefault, Hasher},
    rc::Rc,
};

use super::call::CallId;
use crate::{PeerId, Time, sync::Budget};

/// Weight of one malformed message against well-formed ones.
const OFFENCE_WEIGHT: u32 = 16;

/// The state of one peer.
pub(super) struct Peer {
    pub id: PeerId,
    /// Nothing can be sent to it any more.
    pub gone: Cell<bool>,
    /// Calls to it that hold a credit.
    pub calls_open: Cell<u32>,
    /// Calls that wait for a credit, in order; some may have given up.
    pub calls_waiting: RefCell<VecDeque<CallId>>,
    /// Requests of it that are being served.
    pub requests_open: Cell<u32>,
    /// Messages that the fabric would not take yet, in order.
    pub outbox: RefCell<VecDeque<Vec<u8>>>,
    /// Their bytes.
    pub outbox_bytes: Cell<usize>,
    /// Since when the first of them has waited.
    pub outbox_since: Cell<Time>,
    /// Bounds what bulk transfers of its requests hold.
    pub bulk: OnceCell<Rc<Budget>>,
    guilt: Cell<u32>,
}

impl Peer {
    fn new(id: PeerId) -> Self {
        Self {
            id,
            gone: Cell::new(false),
            calls_open: Cell::new(0),
            calls_waiting: RefCell::default(),
            requests_open: Cell::new(0),
            outbox: RefCell::default(),
            outbox_bytes: Cell::new(0),
            bulk: OnceCell::new(),
            outbox_since: Cell::new(Time::NEVER),
            guilt: Cell::new(0),
        }
    }

    /// A malformed message came; true if it was one too many.
    pub fn offend(&self, offences_max: u32) -> bool {
        self.guilt.set(self.guilt.get().saturating_add(OFFENCE_WEIGHT));
        self.guilt.get() >= offences_max.saturating_mul(OFFENCE_WEIGHT)
    }

    /// A well-formed message came.
    pub fn atone(&self) {
        self.guilt.set(self.guilt.get().saturating_sub(1));
    }
}

/// The peers by number. Never iterated, so that no order depends on the hash.
#[derive(Default)]
pub(super) struct Peers {
    all: RefCell<HashMap<PeerId, Rc<Peer>, BuildHasherDefault<Mix>>>,
    /// The one that was asked for last: requests come in runs.
    last: RefCell<Option<Rc<Peer>>>,
}

impl Peers {
    /// The peer's state; made if there is none.
    pub fn get(&self, id: PeerId) -> Rc<Peer> {
        let mut last = self.last.borrow_mut();
        if let Some(peer) = &*last
            && peer.id == id
        {
            return peer.clone();
        }
        let peer = self.all.borrow_mut().entry(id).or_insert_with(|| Rc::new(Peer::new(id))).clone();
        *last = Some(peer.clone());
        peer
    }

    /// Takes the peer's state out, if there is one.
    pub fn remove(&self, id: PeerId) -> Option<Rc<Peer>> {
        let mut last = self.last.borrow_mut();
        if last.as_ref().is_some_and(|peer| peer.id == id) {
            *last = None;
        }
        self.all.borrow_mut().remove(&id)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.all.borrow().len()
    }
}

/// Hash of a peer number: one multiplication. Peers do not choose their numbers, so it need not resist them.
#[derive(Default)]
pub(super) struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        // Fibonacci hashing (Knuth, The Art of Computer Programming, vol. 3, 6.4); the table uses the high bits too.
        self.0 = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 ^= self.0 >> 32;
    }
}
