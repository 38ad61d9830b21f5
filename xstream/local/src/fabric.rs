//! The endpoint of an xstream or of a client.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::poll_fn,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    rc::Rc,
    task::{Context, Poll},
    time::Instant,
};

use daos_xstream::{
    Access, Address, Credentials, Fabric, FabricCounters, FabricError, IoBuffer, Park, PeerId, RemoteBuffer,
    Sink, Time,
};
use rustix::{event::epoll, io::Errno};
use zerocopy::IntoBytes;

use crate::{
    LocalCounters, LocalOptions, MESSAGE_BYTES_MAX,
    bulk::{Piece, engine_read, engine_write},
    connect::Attempt,
    handshake::Place,
    peer::{Peer, Role, State},
    ring::{Lie, PushError},
    server::{Acceptor, Seat},
    words::WORD_BYTES,
};

/// Messages taken from one peer before the next one has its turn.
const MESSAGES_IN_A_ROW: usize = 16;
/// Polls between two looks at the clock.
const POLLS_PER_CLOCK: u32 = 64;
/// Bytes of a bulk transfer moved before other work has its turn.
const BULK_SLICE_BYTES: usize = 256 << 10;

/// One endpoint. Clones are handles of the same one; it stays on the thread that made it.
#[derive(Clone)]
pub struct LocalFabric(pub(crate) Rc<Inner>);

pub(crate) struct Inner {
    /// Xstream's place at the engine's socket, with the connections not handed over yet; a client has none.
    pub seat: Option<(Seat, Acceptor)>,
    pub options: LocalOptions,
    pub epoll: OwnedFd,
    pub slots: RefCell<Vec<Slot>>,
    pub free: RefCell<Vec<u32>>,
    /// Peers whose rings each poll looks at.
    pub awake: RefCell<Vec<Rc<Peer>>>,
    /// Peers that are gone and whose end has not been reported.
    pub ended: RefCell<VecDeque<PeerId>>,
    pub counters: RefCell<LocalCounters>,
    pub last_sweep: Cell<Instant>,
    pub sweep_now: Cell<bool>,
    /// Connections being made.
    pub attempts: Cell<u32>,
    /// Those whose engine had no room in its queue of connections.
    pub undialled: RefCell<Vec<PeerId>>,
    polls: Cell<u32>,
    /// Where the next round over `awake` starts.
    turn: Cell<usize>,
    /// The private copy of a message; absent while a poll is running.
    message: Cell<Option<Box<[u64]>>>,
    random: RefCell<Vec<u64>>,
}

/// A place in the table of peers. The generation is part of a peer's number, so that no number comes twice.
pub(crate) struct Slot {
    pub generation: u32,
    pub tenant: Tenant,
}

impl Slot {
    /// The number of the tenant of the slot at `index`.
    pub fn id(&self, index: usize) -> PeerId {
        PeerId(u64::from(self.generation) << 32 | index as u64)
    }
}

/// Who is in a slot.
pub(crate) enum Tenant {
    /// Nobody.
    Nobody,
    /// A connection being made.
    Attempt(Rc<Attempt>),
    /// A peer.
    Peer(Rc<Peer>),
}

/// Generations use 31 bits: the highest bit of a number stays free for those who tell fabrics apart by it.
const GENERATION_MAX: u32 = (1 << 31) - 1;

/// Exposed memory of a client. Dropping it revokes the exposure and loses the buffer.
pub struct Exposed {
    fabric: Rc<Inner>,
    peer: PeerId,
    piece: Piece,
    remote: RemoteBuffer,
    buffer: Option<IoBuffer>,
}

pub(crate) fn failed(what: &str, error: Errno) -> FabricError {
    FabricError::Failed(format!("{what}: {error}"))
}

impl LocalFabric {
    /// An endpoint that can call engines and cannot be called.
    pub fn client() -> Result<Self, FabricError> {
        Self::new(None, LocalOptions::default())
    }

    pub(crate) fn of_engine(seat: Seat) -> Result<Self, FabricError> {
        let acceptor = Acceptor::new().map_err(|error| failed("no descriptor in reserve", error))?;
        let options = seat.options().clone();
        Self::new(Some((seat, acceptor)), options)
    }

    #[allow(clippy::disallowed_methods, reason = "a real backend: the time between looks at the sockets")]
    fn new(seat: Option<(Seat, Acceptor)>, options: LocalOptions) -> Result<Self, FabricError> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|error| failed("epoll", error))?;
        let message = vec![0; MESSAGE_BYTES_MAX / WORD_BYTES].into_boxed_slice();
        let inner = Inner {
            seat,
            options,
            epoll,
            slots: RefCell::default(),
            free: RefCell::default(),
            awake: RefCell::default(),
            ended: RefCell::default(),
            counters: RefCell::default(),
            last_sweep: Cell::new(Instant::now()),
            sweep_now: Cell::new(true),
            attempts: Cell::new(0),
            undialled: RefCell::default(),
            polls: Cell::new(0),
            turn: Cell::new(0),
            message: Cell::new(Some(message)),
            random: RefCell::default(),
        };
        inner.watch_seat().map_err(|error| failed("epoll", error))?;
        Ok(Self(Rc::new(inner)))
    }

    /// The descriptor on which the world may block after [`prepare_to_park`](Self::prepare_to_park): it is readable when
    /// there is something to poll for.
    pub fn wait_descriptor(&self) -> BorrowedFd<'_> {
        self.0.epoll.as_fd()
    }

    /// Tells every peer that it must ring from now on. False: something has come meanwhile, poll again. True: everything
    /// that comes makes [`wait_descriptor`](Self::wait_descriptor) readable; poll after blocking on it, however it ended.
    pub fn prepare_to_park(&self) -> bool {
        self.0.prepare_to_park()
    }

    /// What the endpoint has done.
    pub fn counters(&self) -> LocalCounters {
        let peers_awake = self.0.awake.borrow().len() as u64;
        LocalCounters { peers_awake, ..*self.0.counters.borrow() }
    }
}

impl Park for LocalFabric {
    fn descriptors(&self) -> Vec<RawFd> {
        vec![self.wait_descriptor().as_raw_fd()]
    }

    fn prepare_to_park(&self) -> bool {
        self.prepare_to_park()
    }

    fn wake_at(&self) -> Time {
        Time::NEVER
    }

    // The next poll looks at the sockets, where whoever woke this core has rung, and tells the other peers.
    fn unpark(&self) {
        self.0.sweep_now.set(true);
    }
}

impl Inner {
    /// The peer of that number, if it is there.
    #[inline]
    pub fn with_peer<R>(&self, id: PeerId, f: impl FnOnce(&Rc<Peer>) -> R) -> Result<R, FabricError> {
        let slots = self.slots.borrow();
        let (generation, index) = split(id);
        match slots.get(index as usize) {
            Some(Slot { generation: current, tenant: Tenant::Peer(peer) }) if *current == generation => {
                Ok(f(peer))
            }
            _ => Err(FabricError::PeerGone),
        }
    }

    /// Takes a slot. Its number is new.
    pub fn take_slot(&self) -> PeerId {
        let mut slots = self.slots.borrow_mut();
        let index = self.free.borrow_mut().pop().unwrap_or_else(|| {
            slots.push(Slot { generation: 0, tenant: Tenant::Nobody });
            u32::try_from(slots.len() - 1).expect("fewer than 2^32 peers at a time")
        });
        let slot = &mut slots[index as usize];
        slot.generation += 1;
        slot.id(index as usize)
    }

    /// Puts somebody into a slot that was taken.
    pub fn settle(&self, id: PeerId, tenant: Tenant) {
        let (generation, index) = split(id);
        let slot = &mut self.slots.borrow_mut()[index as usize];
        debug_assert_eq!(slot.generation, generation);
        slot.tenant = tenant;
    }

    /// Empties a slot.
    pub fn vacate(&self, id: PeerId) -> Tenant {
        let (generation, index) = split(id);
        let mut slots = self.slots.borrow_mut();
        match slots.get_mut(index as usize) {
            Some(slot) if slot.generation == generation && !matches!(slot.tenant, Tenant::Nobody) => {
                self.give_slot_back(id);
                std::mem::replace(&mut slot.tenant, Tenant::Nobody)
            }
            _ => Tenant::Nobody,
        }
    }

    /// Lets a slot be taken again, unless its generations are used up.
    pub fn give_slot_back(&self, id: PeerId) {
        let (generation, index) = split(id);
        if generation < GENERATION_MAX {
            self.free.borrow_mut().push(index);
        }
    }

    /// Forgets a peer and releases what it holds; `report` its end in the next poll.
    pub fn forget(&self, id: PeerId, report: bool) {
        if let Tenant::Peer(peer) = self.vacate(id) {
            // The socket leaves the epoll set when it is closed, which happens here unless a poll is just looking at it.
            peer.state.set(State::Gone);
            self.awake.borrow_mut().retain(|other| other.id != id);
            let mut counters = self.counters.borrow_mut();
            counters.peers -= 1;
            if report {
                counters.gone += 1;
                self.ended.borrow_mut().push_back(id);
            }
        }
    }

    /// Ends the connection with a peer that broke the rules.
    pub fn expel(&self, peer: &Peer, lie: Lie) {
        tracing::warn!(
            pid = peer.credentials.pid,
            uid = peer.credentials.uid,
            ?lie,
            "peer broke the rules of shared memory"
        );
        self.counters.borrow_mut().liars += 1;
        self.forget(peer.id, true);
    }

    fn sweep_due(&self) -> bool {
        if self.sweep_now.replace(false) {
            return true;
        }
        let polls = self.polls.get().wrapping_add(1);
        self.polls.set(polls);
        polls.is_multiple_of(POLLS_PER_CLOCK) && self.sweep_interval_passed()
    }

    /// Hands out messages of peers that are awake, in turns.
    fn poll_rings(&self, limit: usize, buffer: &mut [u64], sink: &mut impl Sink) -> usize {
        let mut received = 0;
        let peers = self.awake.borrow().len();
        let mut turn = self.turn.get();
        for _ in 0..peers {
            if received == limit {
                break;
            }
            let Some(peer) = self.awake_at(&mut turn) else { break };
            turn += 1;
            received += self.poll_ring(&peer, MESSAGES_IN_A_ROW.min(limit - received), buffer, sink);
        }
        self.turn.set(turn);
        received
    }

    /// The peer whose turn it is; after the last one comes the first.
    fn awake_at(&self, turn: &mut usize) -> Option<Rc<Peer>> {
        let awake = self.awake.borrow();
        if *turn >= awake.len() {
            *turn = 0;
        }
        awake.get(*turn).cloned()
    }

    fn poll_ring(&self, peer: &Rc<Peer>, limit: usize, buffer: &mut [u64], sink: &mut impl Sink) -> usize {
        for received in 0..limit {
            match peer.pop(buffer.as_mut_bytes()) {
                Ok(Some(popped)) => {
                    peer.note_message();
                    let rung = peer.ring(popped.doorbell);
                    let mut counters = self.counters.borrow_mut();
                    counters.messages_received += 1;
                    counters.message_bytes_received += popped.length as u64;
                    counters.doorbells_sent += rung;
                    drop(counters);
                    sink.message(peer.id, &buffer.as_bytes()[..popped.length]);
                    // The sink may have disconnected it.
                    if peer.state.get() == State::Gone {
                        return received + 1;
                    }
                }
                Ok(None) => {
                    if peer.state.get() == State::Ending {
                        self.forget(peer.id, true);
                    }
                    return received;
                }
                Err(lie) => {
                    self.expel(peer, lie);
                    return received;
                }
            }
        }
        limit
    }

    fn report_ended(&self, sink: &mut impl Sink) -> usize {
        let mut reported = 0;
        loop {
            let Some(id) = self.ended.borrow_mut().pop_front() else { return reported };
            sink.closed(id);
            reported += 1;
        }
    }

    fn random(&self) -> Result<u64, FabricError> {
        const AT_ONCE: usize = 64;
        let mut random = self.random.borrow_mut();
        if random.is_empty() {
            let mut numbers = [0u64; AT_ONCE];
            // Up to 256 bytes come whole.
            for chunk in numbers.chunks_mut(32) {
                rustix::rand::getrandom(chunk.as_mut_bytes(), rustix::rand::GetRandomFlags::empty())
                    .map_err(|error| failed("no random numbers", error))?;
            }
            random.extend(numbers);
        }
        Ok(random.pop().expect("just filled"))
    }

    /// One slice of a bulk transfer, driven by the engine.
    fn transfer(
        &self,
        id: PeerId,
        direction: Access,
        bytes: usize,
        slice: impl FnOnce(&Peer) -> Result<(), FabricError>,
    ) -> Result<(), FabricError> {
        let result = self.with_peer(id, |peer| match (&peer.role, peer.state.get()) {
            // Nobody reads what is written to a dead client, and nobody vouches for what it left.
            (Role::Engine, State::Awake | State::Asleep) => slice(peer),
            (Role::Engine, _) => Err(FabricError::PeerGone),
            (Role::Client { .. }, _) => Err(FabricError::NotExposed),
        })?;
        let mut counters = self.counters.borrow_mut();
        match result {
            Ok(()) => match direction {
                Access::Read => counters.bulk_bytes_read += bytes as u64,
                Access::Write => counters.bulk_bytes_written += bytes as u64,
            },
            Err(FabricError::NotExposed) => counters.not_exposed += 1,
            Err(_) => {}
        }
        result
    }
}

/// Generation and index of a peer's number.
fn split(id: PeerId) -> (u32, u32) {
    ((id.0 >> 32) as u32, id.0 as u32)
}

/// Runs `slice(start, end)` over `length` bytes, letting other work run in between.
async fn in_slices(
    length: usize,
    mut slice: impl FnMut(usize, usize) -> Result<(), FabricError>,
) -> Result<(), FabricError> {
    let mut start = 0;
    poll_fn(move |context: &mut Context<'_>| {
        let end = length.min(start + BULK_SLICE_BYTES);
        let moved = slice(start, end);
        start = end;
        if moved.is_err() || end == length {
            return Poll::Ready(moved);
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await
}

impl Fabric for LocalFabric {
    type Exposed = Exposed;

    fn addresses(&self) -> Vec<Address> {
        self.0.seat.iter().map(|(seat, _)| seat.place().address()).collect()
    }

    async fn connect(&self, address: &Address) -> Result<PeerId, FabricError> {
        self.0.connect(Place::parse(address)?).await
    }

    fn visit_counters(&self, visit: &mut dyn FnMut(&'static str, FabricCounters)) {
        visit("local", self.counters().into());
    }

    fn disconnect(&self, peer: PeerId) {
        self.0.forget(peer, false);
    }

    fn credentials(&self, peer: PeerId) -> Option<Credentials> {
        self.0.with_peer(peer, |peer| peer.credentials).ok()
    }

    fn message_bytes_max(&self) -> usize {
        MESSAGE_BYTES_MAX
    }

    fn send(&self, peer: PeerId, parts: &[&[u8]]) -> Result<(), FabricError> {
        let length = parts.iter().map(|part| part.len()).sum::<usize>();
        if length > MESSAGE_BYTES_MAX {
            return Err(FabricError::TooLong { length: length as u64, limit: MESSAGE_BYTES_MAX as u64 });
        }
        let pushed = self.0.with_peer(peer, |peer| {
            if peer.state.get() == State::Ending {
                return Err(None);
            }
            match peer.push(parts, length) {
                Ok(doorbell) => Ok(peer.ring(doorbell)),
                Err(PushError::Full) => Err(Some(None)),
                Err(PushError::Lie(lie)) => Err(Some(Some((peer.clone(), lie)))),
            }
        })?;
        let mut counters = self.0.counters.borrow_mut();
        match pushed {
            Ok(rung) => {
                counters.messages_sent += 1;
                counters.message_bytes_sent += length as u64;
                counters.doorbells_sent += rung;
                Ok(())
            }
            Err(None) => Err(FabricError::PeerGone),
            Err(Some(None)) => {
                counters.sends_busy += 1;
                Err(FabricError::Busy)
            }
            Err(Some(Some((peer, lie)))) => {
                drop(counters);
                self.0.expel(&peer, lie);
                Err(FabricError::PeerGone)
            }
        }
    }

    #[inline]
    fn poll(&self, limit: usize, sink: &mut impl Sink) -> usize {
        let inner = &*self.0;
        // A sink that polls gets nothing: the messages in hand come first.
        let Some(mut buffer) = inner.message.take() else { return 0 };
        let mut happened = 0;
        if inner.sweep_due() {
            happened += inner.sweep();
        }
        happened += inner.poll_rings(limit, &mut buffer, sink);
        happened += inner.report_ended(sink);
        inner.message.set(Some(buffer));
        happened
    }

    fn expose(
        &self,
        peer: PeerId,
        buffer: IoBuffer,
        access: Access,
    ) -> Result<Exposed, (IoBuffer, FabricError)> {
        let taken = self.0.random().and_then(|random| {
            self.0.with_peer(peer, |peer| match &peer.role {
                Role::Engine => Err(FabricError::Failed("an engine never exposes memory".to_owned())),
                Role::Client { area, .. } => {
                    area.borrow_mut().expose(&peer.region, random, buffer.as_slice(), access)
                }
            })?
        });
        match taken {
            Ok((piece, remote)) => {
                Ok(Exposed { fabric: self.0.clone(), peer, piece, remote, buffer: Some(buffer) })
            }
            Err(error) => Err((buffer, error)),
        }
    }

    fn remote(&self, exposed: &Exposed) -> RemoteBuffer {
        exposed.remote
    }

    fn withdraw(&self, mut exposed: Exposed) -> IoBuffer {
        let mut buffer = exposed.buffer.take().expect("only here and in drop");
        exposed.revoke(Some(&mut buffer));
        buffer
    }

    fn read(
        &self,
        peer: PeerId,
        remote: RemoteBuffer,
        skip: u64,
        mut buffer: IoBuffer,
    ) -> impl Future<Output = (IoBuffer, Result<(), FabricError>)> + 'static {
        let inner = self.0.clone();
        async move {
            let bytes = buffer.as_mut_slice();
            let result = in_slices(bytes.len(), |start, end| {
                inner.transfer(peer, Access::Read, end - start, |peer| {
                    let skip = skip.checked_add(start as u64).ok_or(FabricError::NotExposed)?;
                    engine_read(&peer.region, remote, skip, &mut bytes[start..end])
                })
            })
            .await;
            (buffer, result)
        }
    }

    fn write(
        &self,
        peer: PeerId,
        remote: RemoteBuffer,
        skip: u64,
        buffer: IoBuffer,
    ) -> impl Future<Output = (IoBuffer, Result<(), FabricError>)> + 'static {
        let inner = self.0.clone();
        async move {
            let bytes = buffer.as_slice();
            let result = in_slices(bytes.len(), |start, end| {
                inner.transfer(peer, Access::Write, end - start, |peer| {
                    let skip = skip.checked_add(start as u64).ok_or(FabricError::NotExposed)?;
                    engine_write(&peer.region, remote, skip, &bytes[start..end])
                })
            })
            .await;
            (buffer, result)
        }
    }
}

impl Exposed {
    fn revoke(&self, buffer: Option<&mut IoBuffer>) {
        // With the peer, its area is gone, and with it the exposure.
        let _ = self.fabric.with_peer(self.peer, |peer| {
            if let Role::Client { area, .. } = &peer.role {
                let bytes = buffer.map(IoBuffer::as_mut_slice);
                area.borrow_mut().withdraw(&peer.region, self.piece, self.remote.key, bytes);
            }
        });
    }
}

impl Drop for Exposed {
    fn drop(&mut self) {
        if self.buffer.is_some() {
            self.revoke(None);
        }
    }
}
