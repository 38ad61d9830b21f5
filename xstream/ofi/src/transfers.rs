//! Transfers between this process's buffers and memory that peers expose.
//!
//! # Invariants
//!
//! * From the moment a transfer is posted until libfabric reports its completion, its buffer belongs to the table, whatever
//!   becomes of the future that asked for it.
//! * A place in the table has a generation, so a late completion never finishes a later transfer.

use std::task::Waker;

use daos_xstream::{FabricError, IoBuffer, PeerId, RemoteBuffer, Time};

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From the peer.
    Read,
    /// To the peer.
    Write,
}

/// How far a transfer is.
#[derive(Debug)]
pub(crate) enum Phase {
    /// libfabric had no room for it yet.
    Queued,
    /// libfabric has it.
    Posted,
    /// It failed because the connection broke: the peer is dead, or it refused the transfer. Its answer to the ping of this
    /// number, or none, will tell.
    Doubtful(u64),
    /// It is over, and the buffer free.
    Done(Result<(), FabricError>),
}

/// One transfer.
pub(crate) struct Transfer {
    pub(crate) peer: PeerId,
    pub(crate) direction: Direction,
    pub(crate) buffer: IoBuffer,
    pub(crate) remote: RemoteBuffer,
    pub(crate) phase: Phase,
    pub(crate) deadline: Time,
    pub(crate) waker: Option<Waker>,
    /// Nobody waits for it any more.
    pub(crate) abandoned: bool,
    /// The peer is gone and libfabric has not let go of the buffer in good time: whoever waits gets another one.
    pub(crate) given_up: bool,
}

/// Names a transfer: place and generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TransferId {
    pub(crate) place: u32,
    pub(crate) generation: u32,
}

/// All transfers of an endpoint.
#[derive(Default)]
pub(crate) struct Transfers {
    places: Vec<(u32, Option<Transfer>)>,
    free: Vec<u32>,
}

/// Generations travel in completions in this many bits.
pub(crate) const GENERATION_MASK: u32 = 0xff_ffff;

impl Transfers {
    pub(crate) fn add(&mut self, transfer: Transfer) -> TransferId {
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push((0, None));
            (self.places.len() - 1) as u32
        });
        let entry = &mut self.places[place as usize];
        entry.0 = (entry.0 + 1) & GENERATION_MASK;
        entry.1 = Some(transfer);
        TransferId { place, generation: entry.0 }
    }

    pub(crate) fn get_mut(&mut self, id: TransferId) -> Option<&mut Transfer> {
        let (generation, transfer) = self.places.get_mut(id.place as usize)?;
        transfer.as_mut().filter(|_| *generation == id.generation)
    }

    /// Takes a transfer out; its buffer is the caller's again. The caller has made sure that libfabric is done with it.
    pub(crate) fn remove(&mut self, id: TransferId) -> Option<Transfer> {
        self.get_mut(id)?;
        self.free.push(id.place);
        self.places[id.place as usize].1.take()
    }

    /// How many are given up.
    pub(crate) fn given_up(&self) -> usize {
        self.places
            .iter()
            .filter(|(_, transfer)| transfer.as_ref().is_some_and(|transfer| transfer.given_up))
            .count()
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Names of those that `matches` picks.
    pub(crate) fn pick(&self, mut matches: impl FnMut(&Transfer) -> bool) -> Vec<TransferId> {
        let named = self.places.iter().enumerate();
        named
            .filter(|(_, (_, transfer))| transfer.as_ref().is_some_and(&mut matches))
            .map(|(place, (generation, _))| TransferId { place: place as u32, generation: *generation })
            .collect()
    }
}
