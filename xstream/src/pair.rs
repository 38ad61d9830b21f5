//! Two fabrics as one.

use std::{cell::Cell, future::Future};

use crate::{
    Access, Address, Credentials, Either, Fabric, FabricCounters, FabricError, IoBuffer, PeerId,
    RemoteBuffer, Sink,
    combine::Either::{First, Second},
};

/// Set in the numbers of the second fabric's peers.
const SECOND: u64 = 1 << 63;

/// What a message costs, in polls that find nothing: about a microsecond against some 50 ns.
const MESSAGE_WEIGHT: u32 = 16;

/// Two fabrics that look like one: an address chooses by its scheme, a peer's number remembers which.
///
/// The first should be the cheaper one to poll: a poll of the second may cost a system call, and would stand between a
/// message of the first and its answer. So the second is polled every time only while it is **warm**: while one of its last
/// [`WARM_POLLS`](Self::WARM_POLLS) polls found something, and the first does not keep the core busy. A cold one is polled
/// when work worth [`COLD_PAUSE`](Self::COLD_PAUSE) polls has passed, a few microseconds, and at every poll before and after
/// the core sleeps. Counts and not the clock say so, because reading the clock costs as much as a poll.
pub struct Pair<A, B> {
    first: A,
    first_scheme: &'static str,
    second: B,
    /// Polls of the first, and messages by their weight, since the last poll of the second.
    passed: Cell<u32>,
    /// Polls of the second until it counts as cold.
    warm: Cell<u32>,
}

impl<A: Fabric, B: Fabric> Pair<A, B> {
    /// Polls without a find after which the second fabric counts as cold. Several round trips of a network.
    pub const WARM_POLLS: u32 = 256;
    /// Polls of the first fabric between two of a cold second one; a message counts as 16.
    pub const COLD_PAUSE: u32 = 64;
    /// The same while the second is warm and the first finds something every time.
    const WARM_PAUSE: u32 = 8 * MESSAGE_WEIGHT;

    /// `first` gets the addresses that begin with `first_scheme`, `second` all others.
    pub fn new(first: A, first_scheme: &'static str, second: B) -> Self {
        Self { first, first_scheme, second, passed: Cell::new(0), warm: Cell::new(0) }
    }

    /// The first fabric.
    pub fn first(&self) -> &A {
        &self.first
    }

    /// The second fabric.
    pub fn second(&self) -> &B {
        &self.second
    }

    /// Makes the next poll look at both fabrics.
    pub(crate) fn poll_both_next(&self) {
        self.passed.set(u32::MAX);
    }
}

/// Adds the mark of the second fabric to the peers that it hands up.
struct Marked<'a, S>(&'a mut S, u64);

impl<S: Sink> Sink for Marked<'_, S> {
    fn message(&mut self, peer: PeerId, bytes: &[u8]) {
        debug_assert_eq!(peer.0 & SECOND, 0, "fabrics leave the top bit of a peer's number alone");
        self.0.message(PeerId(peer.0 | self.1), bytes);
    }

    fn closed(&mut self, peer: PeerId) {
        self.0.closed(PeerId(peer.0 | self.1));
    }
}

fn split(peer: PeerId) -> Either<PeerId, PeerId> {
    if peer.0 & SECOND == 0 { First(peer) } else { Second(PeerId(peer.0 & !SECOND)) }
}

impl<A: Fabric, B: Fabric> Fabric for Pair<A, B> {
    type Exposed = Either<A::Exposed, B::Exposed>;

    fn addresses(&self) -> Vec<Address> {
        let mut addresses = self.first.addresses();
        addresses.append(&mut self.second.addresses());
        addresses
    }

    async fn connect(&self, address: &Address) -> Result<PeerId, FabricError> {
        if address.fabric() == self.first_scheme {
            self.first.connect(address).await
        } else {
            self.second.connect(address).await.map(|peer| PeerId(peer.0 | SECOND))
        }
    }

    fn visit_counters(&self, visit: &mut dyn FnMut(&'static str, FabricCounters)) {
        self.first.visit_counters(visit);
        self.second.visit_counters(visit);
    }

    fn disconnect(&self, peer: PeerId) {
        match split(peer) {
            First(peer) => self.first.disconnect(peer),
            Second(peer) => self.second.disconnect(peer),
        }
    }

    fn credentials(&self, peer: PeerId) -> Option<Credentials> {
        match split(peer) {
            First(peer) => self.first.credentials(peer),
            Second(peer) => self.second.credentials(peer),
        }
    }

    fn message_bytes_max(&self) -> usize {
        self.first.message_bytes_max().min(self.second.message_bytes_max())
    }

    fn message_bytes_max_to(&self, peer: PeerId) -> usize {
        match split(peer) {
            First(peer) => self.first.message_bytes_max_to(peer),
            Second(peer) => self.second.message_bytes_max_to(peer),
        }
    }

    fn send(&self, peer: PeerId, parts: &[&[u8]]) -> Result<(), FabricError> {
        match split(peer) {
            First(peer) => self.first.send(peer, parts),
            Second(peer) => self.second.send(peer, parts),
        }
    }

    fn poll(&self, limit: usize, sink: &mut impl Sink) -> usize {
        let done = self.first.poll(limit, &mut Marked(sink, 0));
        let passed = self.passed.get().saturating_add(1 + MESSAGE_WEIGHT * done as u32);
        let pause = match (self.warm.get(), done) {
            (0, _) => Self::COLD_PAUSE,
            (_, 0) => 0,
            _ => Self::WARM_PAUSE,
        };
        if passed < pause {
            self.passed.set(passed);
            return done;
        }
        self.passed.set(0);
        let found = self.second.poll(limit, &mut Marked(sink, SECOND));
        self.warm.set(if found > 0 { Self::WARM_POLLS } else { self.warm.get().saturating_sub(1) });
        done + found
    }

    fn expose(
        &self,
        peer: PeerId,
        buffer: IoBuffer,
        access: Access,
    ) -> Result<Self::Exposed, (IoBuffer, FabricError)> {
        match split(peer) {
            First(peer) => self.first.expose(peer, buffer, access).map(First),
            Second(peer) => self.second.expose(peer, buffer, access).map(Second),
        }
    }

    fn remote(&self, exposed: &Self::Exposed) -> RemoteBuffer {
        match exposed {
            First(exposed) => self.first.remote(exposed),
            Second(exposed) => self.second.remote(exposed),
        }
    }

    fn withdraw(&self, exposed: Self::Exposed) -> IoBuffer {
        match exposed {
            First(exposed) => self.first.withdraw(exposed),
            Second(exposed) => self.second.withdraw(exposed),
        }
    }

    fn withdraw_unanswered(&self, exposed: Self::Exposed) -> IoBuffer {
        match exposed {
            First(exposed) => self.first.withdraw_unanswered(exposed),
            Second(exposed) => self.second.withdraw_unanswered(exposed),
        }
    }

    fn read(
        &self,
        peer: PeerId,
        remote: RemoteBuffer,
        skip: u64,
        buffer: IoBuffer,
    ) -> impl Future<Output = (IoBuffer, Result<(), FabricError>)> + 'static {
        let transfer = match split(peer) {
            First(peer) => First(self.first.read(peer, remote, skip, buffer)),
            Second(peer) => Second(self.second.read(peer, remote, skip, buffer)),
        };
        either(transfer)
    }

    fn write(
        &self,
        peer: PeerId,
        remote: RemoteBuffer,
        skip: u64,
        buffer: IoBuffer,
    ) -> impl Future<Output = (IoBuffer, Result<(), FabricError>)> + 'static {
        let transfer = match split(peer) {
            First(peer) => First(self.first.write(peer, remote, skip, buffer)),
            Second(peer) => Second(self.second.write(peer, remote, skip, buffer)),
        };
        either(transfer)
    }
}

async fn either<T>(transfer: Either<impl Future<Output = T>, impl Future<Output = T>>) -> T {
    match transfer {
        First(transfer) => transfer.await,
        Second(transfer) => transfer.await,
    }
}
