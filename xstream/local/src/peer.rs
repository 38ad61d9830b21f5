//! One connection: its socket, its shared memory and this side's private state of both rings.

use std::{
    cell::{Cell, RefCell},
    os::fd::OwnedFd,
    time::Instant,
};

use daos_xstream::{Credentials, PeerId};

use crate::{
    bulk::Area,
    handshake::{Place, ring_doorbell},
    region::{Direction, Region},
    ring::{Consumer, Lie, Popped, Producer, PushError, RingDoorbell, RingView},
};

/// Doorbells in a row without a message before a peer counts as hostile. An honest peer rings once per announcement, which
/// is at most once per message.
const IDLE_DOORBELLS_MAX: u32 = 1000;

/// Which side of the connection this endpoint is.
pub(crate) enum Role {
    /// We serve: the peer is a client, and hostile until proven otherwise, which never happens.
    Engine,
    /// We called: the peer is an engine, and the bulk area is ours to cut up.
    Client {
        /// Whom we called.
        place: Place,
        /// The bulk area.
        area: RefCell<Area>,
    },
}

/// Whether the peer is polled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Its ring is looked at in every poll.
    Awake,
    /// It rings the doorbell.
    Asleep,
    /// The process has ended; what it had sent is still handed out.
    Ending,
    /// Forgotten: only a list that is being walked may still hold it.
    Gone,
}

/// One connection.
pub(crate) struct Peer {
    pub id: PeerId,
    pub role: Role,
    pub socket: OwnedFd,
    pub region: Region,
    pub credentials: Credentials,
    pub state: Cell<State>,
    /// Whether a message has come since the last sweep.
    pub busy: Cell<bool>,
    /// The first sweep at which it was silent.
    pub idle_since: Cell<Instant>,
    incoming: RefCell<Consumer>,
    outgoing: RefCell<Producer>,
    idle_doorbells: Cell<u32>,
}

impl Peer {
    /// A connection just made; nothing has passed in either direction.
    pub fn new(
        id: PeerId,
        role: Role,
        socket: OwnedFd,
        region: Region,
        credentials: Credentials,
        now: Instant,
    ) -> Self {
        Self {
            id,
            role,
            socket,
            region,
            credentials,
            state: Cell::new(State::Awake),
            busy: Cell::new(true),
            idle_since: Cell::new(now),
            incoming: RefCell::default(),
            outgoing: RefCell::default(),
            idle_doorbells: Cell::new(0),
        }
    }

    fn rings(&self) -> (Direction, Direction) {
        match self.role {
            Role::Engine => (Direction::ToEngine, Direction::ToClient),
            Role::Client { .. } => (Direction::ToClient, Direction::ToEngine),
        }
    }

    fn inbound(&self) -> RingView<'_> {
        self.region.ring(self.rings().0)
    }

    fn outbound(&self) -> RingView<'_> {
        self.region.ring(self.rings().1)
    }

    /// Copies the next message to `out`.
    #[inline]
    pub fn pop(&self, out: &mut [u8]) -> Result<Option<Popped>, Lie> {
        self.incoming.borrow_mut().pop(self.inbound(), out)
    }

    /// Sends one message.
    pub fn push(&self, parts: &[&[u8]], length: usize) -> Result<RingDoorbell, PushError> {
        self.outgoing.borrow_mut().push(self.outbound(), parts, length)
    }

    /// Rings the peer if it asked for that.
    #[inline]
    pub fn ring(&self, doorbell: RingDoorbell) -> u64 {
        if doorbell.0 {
            ring_doorbell(&self.socket);
        }
        u64::from(doorbell.0)
    }

    /// Announces that the peer must ring from now on; false if it has sent something meanwhile.
    pub fn fall_asleep(&self) -> bool {
        debug_assert_eq!(self.state.get(), State::Awake);
        let asleep = self.incoming.borrow().announce_sleep(self.inbound());
        if asleep {
            self.state.set(State::Asleep);
        }
        asleep
    }

    /// Polls the peer again; false if it was awake.
    pub fn wake(&self, now: Instant) -> bool {
        let slept = self.state.get() == State::Asleep;
        if slept {
            self.incoming.borrow().announce_awake(self.inbound());
            self.state.set(State::Awake);
            self.idle_since.set(now);
        }
        slept
    }

    /// Whether nothing can be sent to it any more.
    pub fn has_ended(&self) -> bool {
        matches!(self.state.get(), State::Ending | State::Gone)
    }

    /// The other process has ended: only what it has published counts.
    pub fn freeze(&self) -> Result<(), Lie> {
        self.state.set(State::Ending);
        self.incoming.borrow_mut().freeze(self.inbound())
    }

    /// A message has come.
    #[inline]
    pub fn note_message(&self) {
        self.busy.set(true);
        self.idle_doorbells.set(0);
    }

    /// The peer has rung; false if it does so without reason.
    pub fn note_doorbells(&self, rung: u32) -> bool {
        self.idle_doorbells.set(self.idle_doorbells.get() + rung);
        self.idle_doorbells.get() <= IDLE_DOORBELLS_MAX
    }
}
