//! Memory that a client lets an engine read or write for the time of one request.
//!
//! # Invariants
//!
//! * Memory is given back, or freed, only when the peer cannot touch it any more. libfabric's software providers check a
//!   key once, when a transfer begins, and closing the region does not stop a transfer that has begun. So after the answer
//!   to the request the buffer is given back as it is, because an engine answers when its transfers are over (an owner who
//!   says that there was an answer although nothing has arrived since the exposure is not believed). Otherwise the memory
//!   stays **fenced** until the peer has answered two pings, the second sent after the answer to the first, or its
//!   connection is closed; the owner gets a copy.

use std::rc::Rc;

use daos_xstream::{Access, FabricError, IoBuffer, PeerId, RemoteBuffer};

use crate::{
    inner::{Fenced, Inner},
    raw::Region,
};

/// An exposed buffer. Dropping it revokes the key.
pub struct Exposed {
    // Dropped before `inner`, whose port it uses.
    region: Option<Region>,
    buffer: Option<IoBuffer>,
    remote: RemoteBuffer,
    peer: PeerId,
    /// Messages that had come from the peer before.
    messages: u64,
    inner: Rc<Inner>,
}

/// Keys that are tried: a second random key is as unlikely to be taken as the first was.
const KEY_ATTEMPTS: usize = 4;

impl Exposed {
    pub(crate) fn new(
        inner: &Rc<Inner>,
        peer: PeerId,
        mut buffer: IoBuffer,
        access: Access,
    ) -> Result<Self, (IoBuffer, FabricError)> {
        let Some(messages) = inner.state.borrow().peers.get(peer).map(|peer| peer.messages) else {
            return Err((buffer, FabricError::PeerGone));
        };
        let length = buffer.len();
        let mut region = None;
        let mut remote = RemoteBuffer { key: inner.rng.next_u64(), offset: 0, length: length as u64 };
        for attempt in 1..=KEY_ATTEMPTS {
            // There is nothing to let anybody touch in an empty buffer.
            if length == 0 {
                break;
            }
            let start = buffer.as_mut_slice().as_mut_ptr();
            // SAFETY: the buffer's memory does not move, and it is kept in this value until the region is closed, and after
            // that until nothing that the peer had begun can be under way (see the invariants above).
            match unsafe { inner.port.register(start, length, access == Access::Write, remote.key) } {
                Ok(registered) => {
                    (remote.key, remote.offset) = (registered.key(), registered.offset());
                    region = Some(registered);
                    break;
                }
                Err(error) if attempt == KEY_ATTEMPTS => return Err((buffer, error)),
                Err(_) => remote.key = inner.rng.next_u64(),
            }
        }
        Ok(Self { region, buffer: Some(buffer), remote, peer, messages, inner: Rc::clone(inner) })
    }

    pub(crate) fn remote(&self) -> RemoteBuffer {
        self.remote
    }

    /// The memory, or a copy if the request was not `answered`: that something else has arrived since then proves nothing.
    pub(crate) fn withdraw(mut self, answered: bool) -> IoBuffer {
        let exposed = self.region.take().is_some();
        let buffer = self.buffer.take().expect("a buffer is withdrawn once");
        if exposed && (!answered || self.may_be_in_use()) {
            let copy = IoBuffer::copy_of(buffer.as_slice());
            self.fence(buffer);
            return copy;
        }
        buffer
    }

    /// Whether the peer may have begun a transfer that has not ended: it is there, and has not said a word since.
    fn may_be_in_use(&self) -> bool {
        let state = self.inner.state.borrow();
        state.peers.get(self.peer).is_some_and(|peer| peer.messages == self.messages)
    }

    fn fence(&self, buffer: IoBuffer) {
        let state = &mut *self.inner.state.borrow_mut();
        if state.peers.get(self.peer).is_some() {
            let serial = self.inner.owe_ping(state, self.peer);
            state.fenced.push(Fenced { peer: self.peer, serial, last_round: false, _memory: buffer });
        }
    }
}

impl Drop for Exposed {
    fn drop(&mut self) {
        let exposed = self.region.take().is_some();
        // Whoever drops an exposure instead of withdrawing it has usually given up waiting for the answer.
        if exposed && let Some(buffer) = self.buffer.take() {
            self.fence(buffer);
        }
    }
}
