//! Sending: at once if the fabric takes it, otherwise in order and within bounds; and the end of peers.

use std::{cell::OnceCell, rc::Rc, time::Duration};

use zerocopy::IntoBytes;

use super::{Header, counters::count, endpoint::Inner, peer::Peer};
use crate::{Clock, Env, Fabric, FabricError, PeerId, Time};

/// How soon a send that the fabric refused is tried again, at the latest.
const RETRY_INTERVAL: Duration = Duration::from_micros(100);

impl<E: Env> Inner<E> {
    /// Sends a message, or puts it aside in order if the fabric is busy.
    pub(super) fn transmit(
        &self,
        peer: &Rc<Peer>,
        header: &Header,
        body: &[&[u8]],
    ) -> Result<(), FabricError> {
        if peer.gone.get() {
            return Err(FabricError::PeerGone);
        }
        let was_empty = peer.outbox.borrow().is_empty();
        if was_empty {
            match with_parts(header.as_bytes(), body, |parts| self.env.fabric().send(peer.id, parts)) {
                Err(FabricError::Busy) => {}
                Err(FabricError::PeerGone) => {
                    self.doom(peer);
                    return Err(FabricError::PeerGone);
                }
                other => return other,
            }
        }
        count(&self.counters.sends_deferred);
        if peer.outbox.borrow().len() >= self.config.outbox_messages_max {
            count(&self.counters.peers_dropped_stuck);
            self.doom(peer);
            return Err(FabricError::PeerGone);
        }
        let mut message = self.buffers.take();
        message.extend_from_slice(header.as_bytes());
        body.iter().for_each(|part| message.extend_from_slice(part));
        self.count_outbox(peer, message.len() as isize);
        peer.outbox.borrow_mut().push_back(message);
        if was_empty {
            let now = self.env.clock().now();
            peer.outbox_since.set(now);
            self.backlog.borrow_mut().push(peer.clone());
            self.alarm_by(now + RETRY_INTERVAL);
        }
        self.bound_outboxes();
        Ok(())
    }

    /// Disconnects the peer for which most is kept, while more is kept than may be.
    fn bound_outboxes(&self) {
        while self.outbox_bytes.get() > self.config.outbox_bytes_max {
            let largest = self.backlog.borrow().iter().max_by_key(|peer| peer.outbox_bytes.get()).cloned();
            let Some(largest) = largest.filter(|peer| peer.outbox_bytes.get() > 0) else { return };
            count(&self.counters.peers_dropped_stuck);
            self.doom(&largest);
            self.empty_outbox(&largest);
        }
    }

    fn count_outbox(&self, peer: &Peer, change: isize) {
        peer.outbox_bytes.set(peer.outbox_bytes.get().wrapping_add_signed(change));
        self.outbox_bytes.set(self.outbox_bytes.get().wrapping_add_signed(change));
    }

    fn empty_outbox(&self, peer: &Peer) {
        let unsent = std::mem::take(&mut *peer.outbox.borrow_mut());
        self.count_outbox(peer, -(peer.outbox_bytes.get() as isize));
        unsent.into_iter().for_each(|message| self.buffers.put(message));
    }

    /// Tries to send what was put aside; returns how many messages went out.
    pub(super) fn flush(&self) -> usize {
        let mut sent = 0;
        let mut peers = std::mem::take(&mut *self.backlog.borrow_mut());
        peers.retain(|peer| {
            let mut taken = 0;
            loop {
                let Some(message) = peer.outbox.borrow_mut().pop_front() else { break };
                match self.env.fabric().send(peer.id, &[&message]) {
                    Ok(()) => {
                        taken += 1;
                        self.count_outbox(peer, -(message.len() as isize));
                        self.buffers.put(message);
                    }
                    Err(FabricError::Busy) => {
                        peer.outbox.borrow_mut().push_front(message);
                        break;
                    }
                    Err(_) => {
                        self.count_outbox(peer, -(message.len() as isize));
                        self.doom(peer);
                        break;
                    }
                }
            }
            if taken > 0 {
                peer.outbox_since.set(self.env.clock().now());
                sent += taken;
            }
            !peer.outbox.borrow().is_empty()
        });
        let mut backlog = self.backlog.borrow_mut();
        peers.append(&mut backlog);
        *backlog = peers;
        sent
    }

    /// Tries again what was put aside, and disconnects who has not taken anything for too long. Returns when to look next.
    pub(super) fn retry(&self, now: Time) -> Option<Time> {
        if self.backlog.borrow().is_empty() {
            return None;
        }
        self.flush();
        let backlog = self.backlog.borrow().clone();
        for peer in &backlog {
            if peer.outbox_since.get() + self.config.drain_timeout <= now && !peer.gone.get() {
                count(&self.counters.peers_dropped_stuck);
                self.doom(peer);
            }
        }
        self.bury();
        (!self.backlog.borrow().is_empty()).then_some(now + RETRY_INTERVAL)
    }

    /// Notes a malformed message against its sender.
    pub(super) fn blame(&self, peer: &Rc<Peer>) {
        if !peer.gone.get() && peer.offend(self.config.offences_max) {
            count(&self.counters.peers_dropped_malformed);
            self.doom(peer);
        }
    }

    /// Marks a peer for disconnection: at the end of this poll, not while somebody is at work with it.
    pub(super) fn doom(&self, peer: &Rc<Peer>) {
        if !peer.gone.replace(true) {
            self.doomed.borrow_mut().push(peer.clone());
            self.alarm_by(Time::default());
        }
    }

    pub(super) fn bury(&self) {
        loop {
            let Some(peer) = self.doomed.borrow_mut().pop() else { return };
            self.forget(peer.id);
            self.env.fabric().disconnect(peer.id);
        }
    }

    /// Drops everything kept for a peer.
    pub(super) fn forget(&self, id: PeerId) {
        let Some(peer) = self.peers.remove(id) else { return };
        peer.gone.set(true);
        self.empty_outbox(&peer);
        self.backlog.borrow_mut().retain(|other| !Rc::ptr_eq(other, &peer));
        self.calls.sweep(Time::default(), Some(id), |ended, _| {
            count(&self.counters.calls_lost);
            self.settle(ended);
        });
        for service in self.services.iter().filter_map(OnceCell::get) {
            service.closed(id);
        }
    }
}

/// Hands `send` one list of the header and the parts of the body.
fn with_parts<R>(header: &[u8], body: &[&[u8]], send: impl FnOnce(&[&[u8]]) -> R) -> R {
    const INLINE: usize = 8;
    if body.len() < INLINE {
        let mut parts = [header; INLINE];
        parts[1..=body.len()].copy_from_slice(body);
        send(&parts[..=body.len()])
    } else {
        let parts: Vec<&[u8]> = std::iter::once(header).chain(body.iter().copied()).collect();
        send(&parts)
    }
}
