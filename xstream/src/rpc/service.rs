//! The serving side: modules, requests, and the right to answer one.

use std::{cell::Cell, rc::Rc};

use uuid::Uuid;

use super::{Header, Opcode, Status, counters::count, endpoint::Inner, peer::Peer};
use crate::{
    Credentials, Env, Fabric, FabricError, IoBuffer, PeerId, RemoteBuffer, Time,
    sync::{Budget, Share},
};

/// A module: answers the requests of one module number.
pub trait Service<E: Env>: 'static {
    /// The module's number; see [`module`](super::module).
    fn module(&self) -> u8;

    /// Its name, for logs.
    fn name(&self) -> &'static str;

    /// Its procedures that are worth [measuring](super::Endpoint::measure), by number and name.
    fn procedures(&self) -> &'static [(u8, &'static str)] {
        &[]
    }

    /// Answers a request. Runs within the progress poll, so it must not take long: what waits, or computes for more
    /// than some 100 µs, copies what it needs and goes on in a task that owns the responder.
    fn call(&self, request: Request<'_>, responder: Responder<E>);

    /// A peer has gone; whatever the module keeps for it can go too.
    fn closed(&self, peer: PeerId) {
        let _ = peer;
    }
}

/// A request as it arrived. Its checksums hold; the meaning of its body is still to be checked.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// The fixed part.
    pub header: &'a Header,
    /// The rest; gone after the call.
    pub body: &'a [u8],
    /// Who asks.
    pub peer: PeerId,
}

impl Request<'_> {
    /// The procedure's number within its module.
    pub fn procedure(&self) -> u8 {
        self.header.opcode().procedure()
    }

    /// The target that is meant.
    pub fn target(&self) -> u32 {
        self.header.target()
    }

    /// The caller's pool map version; 0 if it has none.
    pub fn map_version(&self) -> u32 {
        self.header.map_version()
    }

    /// The handle that the request is made with; nil if none.
    pub fn handle(&self) -> Uuid {
        self.header.handle()
    }

    /// Bits whose meaning is the procedure's.
    pub fn flags(&self) -> u16 {
        self.header.flags()
    }
}

/// The right to hold memory for a bulk transfer, until it is dropped. Each peer has so much of it, and all peers together.
#[must_use = "the memory is to be given back after this, not before"]
pub struct BulkRoom {
    _peers: Share,
    _all: Share,
}

/// The right, and the duty, to answer one request. Dropped without an answer it answers [`Status::INTERNAL`].
#[must_use = "a request must be answered"]
pub struct Responder<E: Env> {
    endpoint: Rc<Inner<E>>,
    peer: Rc<Peer>,
    request_id: u64,
    arrived: Time,
    deadline: Time,
    /// The map version that the request was made with.
    asked_map_version: u32,
    map_version: Cell<u32>,
    opcode: Opcode,
    answered: bool,
}

impl<E: Env> Responder<E> {
    pub(super) fn new(
        endpoint: &Rc<Inner<E>>,
        peer: &Rc<Peer>,
        header: &Header,
        arrived: Time,
        deadline: Time,
    ) -> Self {
        peer.requests_open.set(peer.requests_open.get() + 1);
        endpoint.requests_open.set(endpoint.requests_open.get() + 1);
        Self {
            endpoint: endpoint.clone(),
            peer: peer.clone(),
            request_id: header.request_id(),
            arrived,
            deadline,
            asked_map_version: header.map_version(),
            map_version: Cell::new(0),
            opcode: header.opcode(),
            answered: false,
        }
    }

    /// Answers with success; the body is the concatenation of `parts`, copied before this returns.
    pub fn reply(self, parts: &[&[u8]]) {
        self.answer(Status::OK, parts);
    }

    /// Answers with an error and a text for people.
    pub fn fail(self, status: Status, message: &str) {
        self.answer(status, &[message.as_bytes()]);
    }

    /// Answers with any status and body. A body too long for a message becomes [`Status::TOO_LONG`].
    pub fn answer(mut self, status: Status, parts: &[&[u8]]) {
        self.answered = true;
        self.endpoint.answer(&self.peer, self.opcode, self.request_id, status, self.map_version.get(), parts);
        self.endpoint.answered(self.opcode, status, self.arrived);
    }

    /// Who asked.
    pub fn peer(&self) -> PeerId {
        self.peer.id
    }

    /// Whether who asked is still there. Work for one who is not may be given up.
    pub fn is_wanted(&self) -> bool {
        !self.peer.gone.get()
    }

    /// Who the asking process is, where something vouches for it.
    pub fn credentials(&self) -> Option<Credentials> {
        self.endpoint.env.fabric().credentials(self.peer.id)
    }

    /// When the request arrived.
    pub fn arrived(&self) -> Time {
        self.arrived
    }

    /// When the caller stops waiting; [`Time::NEVER`] if it did not say.
    pub fn deadline(&self) -> Time {
        self.deadline
    }

    /// The pool map version that the request was made with; 0 if with none.
    pub fn asked_map_version(&self) -> u32 {
        self.asked_map_version
    }

    /// The pool map version that the answer will carry.
    pub fn set_map_version(&self, version: u32) {
        self.map_version.set(version);
    }

    /// The longest body that [`reply`](Self::reply) takes.
    pub fn body_bytes_max(&self) -> usize {
        self.endpoint.body_bytes_max_to(self.peer.id)
    }

    /// The right to hold so many bytes for a bulk transfer of this request, if there is room now and nobody waits for it.
    pub fn try_bulk_room(&self, bytes: u64) -> Option<BulkRoom> {
        let peers = self.peer_bulk().try_take(bytes)?;
        Some(BulkRoom { _peers: peers, _all: self.endpoint.bulk.try_take(bytes)? })
    }

    /// The same, once there is room. To be had before the memory is: a client may name 16 MiB in a message of 200 bytes.
    pub async fn bulk_room(&self, bytes: u64) -> BulkRoom {
        let peers = self.peer_bulk().take(bytes).await;
        BulkRoom { _peers: peers, _all: self.endpoint.bulk.take(bytes).await }
    }

    fn peer_bulk(&self) -> &Rc<Budget> {
        self.peer.bulk.get_or_init(|| Budget::new(self.endpoint.config.bulk_bytes_per_peer_max))
    }

    /// Reads the caller's memory into `buffer`, from `skip` bytes after the start of `remote`.
    pub async fn pull(
        &self,
        remote: RemoteBuffer,
        skip: u64,
        buffer: IoBuffer,
    ) -> (IoBuffer, Result<(), FabricError>) {
        self.endpoint.env.fabric().read(self.peer.id, remote, skip, buffer).await
    }

    /// Writes `buffer` to the caller's memory, `skip` bytes after the start of `remote`. Once it completes, the caller
    /// sees the bytes before it sees the answer.
    pub async fn push(
        &self,
        remote: RemoteBuffer,
        skip: u64,
        buffer: IoBuffer,
    ) -> (IoBuffer, Result<(), FabricError>) {
        self.endpoint.env.fabric().write(self.peer.id, remote, skip, buffer).await
    }
}

impl<E: Env> Drop for Responder<E> {
    fn drop(&mut self) {
        self.peer.requests_open.set(self.peer.requests_open.get() - 1);
        self.endpoint.requests_open.set(self.endpoint.requests_open.get() - 1);
        if !self.answered {
            count(&self.endpoint.counters.requests_unanswered);
            let text: &[&[u8]] = &[b"the service gave up without an answer"];
            self.endpoint.answer(&self.peer, self.opcode, self.request_id, Status::INTERNAL, 0, text);
            self.endpoint.answered(self.opcode, Status::INTERNAL, self.arrived);
        }
    }
}
