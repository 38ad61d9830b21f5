//! The calling side: calls in flight, and their replies.

use std::{cell::RefCell, rc::Rc, task::Waker, time::Duration};

use uuid::Uuid;
use zerocopy::FromBytes;

use super::{HEADER_BYTES, Header, Opcode, RANK_ANY, Status, peer::Peer};
use crate::{FabricError, PeerId, Time};

/// What to call, and how.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// The procedure.
    pub opcode: Opcode,
    /// The rank that is meant; an engine of another rank refuses.
    pub rank: u32,
    /// The target that is meant.
    pub target: u32,
    /// The caller's pool map version; 0 if it has none.
    pub map_version: u32,
    /// The handle that the call is made with; nil if none.
    pub handle: Uuid,
    /// Bits whose meaning is the procedure's.
    pub flags: u16,
    /// How long to wait. It includes the wait for a credit.
    pub timeout: Duration,
}

impl Default for Call {
    fn default() -> Self {
        Self {
            opcode: Opcode::default(),
            rank: RANK_ANY,
            target: 0,
            map_version: 0,
            handle: Uuid::nil(),
            flags: 0,
            timeout: Duration::from_secs(30),
        }
    }
}

/// Why a call has no reply.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RpcError {
    /// The other side refused or failed. The [`Status`] says what changed and whether a retry helps.
    #[error("{status}{}{message}", if .message.is_empty() { "" } else { ": " })]
    Refused {
        /// Its code.
        status: Status,
        /// The other side's pool map version; 0 if it did not say.
        map_version: u32,
        /// What it said.
        message: String,
    },
    /// The deadline passed. Whether anything changed is unknown; requests are idempotent, so a retry is safe.
    #[error("no reply in time")]
    TimedOut,
    /// The peer went away. Whether anything changed is unknown; connect again and retry.
    #[error("the peer went away")]
    PeerGone,
    /// The fabric could not send. Nothing changed.
    #[error(transparent)]
    Fabric(FabricError),
    /// The other side's reply is of another protocol version, or damaged. Whether anything changed is unknown.
    #[error("the reply cannot be understood: {0}")]
    BadReply(super::Malformed),
}

impl RpcError {
    /// Whether the request has surely changed nothing.
    pub fn nothing_changed(&self) -> bool {
        match self {
            RpcError::Refused { status, .. } => status.nothing_changed(),
            RpcError::Fabric(_) => true,
            RpcError::TimedOut | RpcError::PeerGone | RpcError::BadReply(_) => false,
        }
    }

    /// The status that says the same, for services that pass errors on.
    pub fn status(&self) -> Status {
        match self {
            RpcError::Refused { status, .. } => *status,
            RpcError::TimedOut => Status::TIMED_OUT,
            RpcError::PeerGone => Status::TRY_AGAIN,
            RpcError::Fabric(FabricError::TooLong { .. }) => Status::TOO_LONG,
            RpcError::Fabric(_) => Status::TRY_AGAIN,
            RpcError::BadReply(reason) => reason.status(),
        }
    }
}

impl From<FabricError> for RpcError {
    fn from(error: FabricError) -> Self {
        match error {
            FabricError::PeerGone => RpcError::PeerGone,
            other => RpcError::Fabric(other),
        }
    }
}

/// Buffers that have held a message and will hold another.
pub(super) struct BufferPool {
    free: RefCell<Vec<Vec<u8>>>,
    kept_max: usize,
}

impl BufferPool {
    pub fn new(kept_max: usize) -> Self {
        Self { free: RefCell::new(Vec::with_capacity(kept_max)), kept_max }
    }

    pub fn take(&self) -> Vec<u8> {
        self.free.borrow_mut().pop().unwrap_or_default()
    }

    pub fn put(&self, mut buffer: Vec<u8>) {
        let mut free = self.free.borrow_mut();
        if free.len() < self.kept_max {
            buffer.clear();
            free.push(buffer);
        }
    }
}

/// A successful reply. Its memory goes back to the endpoint when it is dropped.
pub struct Reply {
    message: Vec<u8>,
    pool: Rc<BufferPool>,
}

impl Reply {
    pub(super) fn copy_of(pool: &Rc<BufferPool>, message: &[u8]) -> Self {
        let mut buffer = pool.take();
        buffer.extend_from_slice(message);
        Self { message: buffer, pool: pool.clone() }
    }

    /// The fixed part.
    pub fn header(&self) -> &Header {
        Header::ref_from_bytes(&self.message[..HEADER_BYTES])
            .expect("a reply has been parsed before it was kept")
    }

    /// The rest.
    pub fn body(&self) -> &[u8] {
        &self.message[HEADER_BYTES..]
    }

    /// The other side's pool map version; 0 if it did not say.
    pub fn map_version(&self) -> u32 {
        self.header().map_version()
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.pool.put(std::mem::take(&mut self.message));
    }
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Reply({} bytes)", self.body().len())
    }
}

/// Names a place in the table of calls and how often it has been used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CallId {
    index: u32,
    generation: u32,
}

impl CallId {
    pub fn to_wire(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    pub fn from_wire(request_id: u64) -> Self {
        Self { index: request_id as u32, generation: (request_id >> 32) as u32 }
    }
}

/// How far a call is.
enum State {
    Free,
    /// Waits for a credit.
    Queued,
    /// Has a credit and has not been sent.
    Granted,
    /// Has a credit and has been sent.
    Sent,
    /// As `Sent`, but nobody waits for the reply. The credit stays out: the peer may be at work on it.
    Abandoned,
    /// Has its result and no credit.
    Done(Result<Reply, RpcError>),
}

struct Slot {
    generation: u32,
    state: State,
    deadline: Time,
    peer: Option<Rc<Peer>>,
    waker: Option<Waker>,
}

/// What became of something that the caller asked of a call.
pub(super) enum Progress {
    /// It waits.
    Pending,
    /// It has a credit.
    Granted,
    /// It is over, and its place is free.
    Done(Result<Reply, RpcError>),
}

/// What has to be done when a call ended; by the endpoint, with no borrow held.
#[derive(Default)]
pub(super) struct Ended {
    /// Whose credit is free.
    pub credit: Option<Rc<Peer>>,
    /// Who waits for the result.
    pub waker: Option<Waker>,
}

/// The table of calls.
pub(super) struct Calls {
    slots: RefCell<Vec<Slot>>,
    free: RefCell<Vec<u32>>,
    first_generation: u32,
}

impl Calls {
    /// An empty table. Generations begin at a random number, so that replies to an earlier life of this process miss.
    pub fn new(first_generation: u32) -> Self {
        Self { slots: RefCell::default(), free: RefCell::default(), first_generation }
    }

    /// Takes a place; the call has its credit already, or waits for one.
    pub fn open(&self, peer: &Rc<Peer>, deadline: Time, granted: bool) -> CallId {
        let state = if granted { State::Granted } else { State::Queued };
        let mut slots = self.slots.borrow_mut();
        let index = self.free.borrow_mut().pop().unwrap_or_else(|| {
            let generation = self.first_generation;
            slots.push(Slot { generation, state: State::Free, deadline, peer: None, waker: None });
            u32::try_from(slots.len() - 1).expect("fewer than 2^32 calls")
        });
        let slot = &mut slots[index as usize];
        (slot.state, slot.deadline) = (state, deadline);
        slot.peer = Some(peer.clone());
        CallId { index, generation: slot.generation }
    }

    /// Gives a queued call its credit and says whom to wake; `None` if it has given up.
    pub fn grant(&self, id: CallId) -> Option<Option<Waker>> {
        self.with(id, |slot| match slot.state {
            State::Queued => {
                slot.state = State::Granted;
                Some(slot.waker.take())
            }
            _ => None,
        })?
    }

    /// The call goes out now.
    pub fn sent(&self, id: CallId) {
        self.with(id, |slot| slot.state = State::Sent);
    }

    /// How far a call is, for the one who waits for it.
    pub fn progress(&self, id: CallId, waker: &Waker) -> Progress {
        let old;
        let progress = {
            let mut slots = self.slots.borrow_mut();
            let slot = &mut slots[id.index as usize];
            debug_assert_eq!(slot.generation, id.generation, "a place is not reused while its call lives");
            match &slot.state {
                State::Done(_) => {
                    let State::Done(result) = std::mem::replace(&mut slot.state, State::Free) else {
                        unreachable!("the state was Done")
                    };
                    old = self.vacate(id.index, slot);
                    Progress::Done(result)
                }
                State::Granted => {
                    old = None;
                    Progress::Granted
                }
                _ => {
                    old = match &slot.waker {
                        Some(stored) if stored.will_wake(waker) => None,
                        _ => slot.waker.replace(waker.clone()),
                    };
                    Progress::Pending
                }
            }
        };
        drop(old);
        progress
    }

    /// The call did not go out after all.
    pub fn unsent(&self, id: CallId) {
        self.with(id, |slot| {
            if let State::Sent = slot.state {
                slot.state = State::Granted;
            }
        });
    }

    /// Nobody waits for the call any more. Returns whose credit is free now.
    pub fn abandon(&self, id: CallId) -> Option<Rc<Peer>> {
        let garbage;
        let credit = {
            let mut slots = self.slots.borrow_mut();
            let slot = &mut slots[id.index as usize];
            if slot.generation != id.generation {
                return None;
            }
            match std::mem::replace(&mut slot.state, State::Abandoned) {
                State::Sent => {
                    garbage = (slot.waker.take(), None);
                    None
                }
                State::Granted => {
                    let credit = slot.peer.take();
                    garbage = (self.vacate(id.index, slot), None);
                    credit
                }
                State::Queued => {
                    garbage = (self.vacate(id.index, slot), None);
                    None
                }
                State::Done(result) => {
                    garbage = (self.vacate(id.index, slot), Some(result));
                    None
                }
                State::Free | State::Abandoned => {
                    unreachable!("a place changes its generation when it is freed")
                }
            }
        };
        drop(garbage);
        credit
    }

    /// A reply came from `from`. `make` copies it, if somebody waits for it. `None` if the reply is not expected.
    pub fn complete(
        &self,
        id: CallId,
        from: PeerId,
        make: impl FnOnce() -> Result<Reply, RpcError>,
    ) -> Option<Ended> {
        let mut slots = self.slots.borrow_mut();
        let slot = slots.get_mut(id.index as usize)?;
        if slot.generation != id.generation || slot.peer.as_ref().is_none_or(|peer| peer.id != from) {
            return None;
        }
        self.end(id.index, slot, make)
    }

    /// Ends calls whose deadline has come, or whose peer is `gone`; `each` is told. Returns the next deadline.
    pub fn sweep(&self, now: Time, gone: Option<PeerId>, mut each: impl FnMut(Ended, &RpcError)) -> Time {
        let mut next = Time::NEVER;
        let mut at = 0;
        loop {
            let mut slots = self.slots.borrow_mut();
            let Some(slot) = slots.get_mut(at) else { return next };
            let index = at as u32;
            at += 1;
            let lost = gone.is_some() && slot.peer.as_ref().map(|peer| peer.id) == gone;
            let open = matches!(slot.state, State::Queued | State::Granted | State::Sent | State::Abandoned);
            if !open {
                continue;
            }
            if !lost && slot.deadline > now {
                next = next.min(slot.deadline);
                continue;
            }
            let error = if lost { RpcError::PeerGone } else { RpcError::TimedOut };
            let queued = matches!(slot.state, State::Queued);
            let ended = if queued || matches!(slot.state, State::Granted) {
                slot.state = State::Done(Err(error.clone()));
                let credit = if queued { None } else { slot.peer.take() };
                Some(Ended { credit, waker: slot.waker.take() })
            } else {
                self.end(index, slot, || Err(error.clone()))
            };
            drop(slots);
            if let Some(ended) = ended {
                each(ended, &error);
            }
        }
    }

    /// How many calls have a place.
    pub fn open_count(&self) -> usize {
        self.slots.borrow().len() - self.free.borrow().len()
    }

    fn end(
        &self,
        index: u32,
        slot: &mut Slot,
        make: impl FnOnce() -> Result<Reply, RpcError>,
    ) -> Option<Ended> {
        match slot.state {
            State::Sent => {
                slot.state = State::Done(make());
                Some(Ended { credit: slot.peer.take(), waker: slot.waker.take() })
            }
            State::Abandoned => {
                let credit = slot.peer.take();
                let waker = self.vacate(index, slot);
                Some(Ended { credit, waker })
            }
            _ => None,
        }
    }

    /// Frees a place; what it held is dropped by the caller, later.
    fn vacate(&self, index: u32, slot: &mut Slot) -> Option<Waker> {
        slot.state = State::Free;
        slot.generation = slot.generation.wrapping_add(1);
        slot.peer = None;
        self.free.borrow_mut().push(index);
        slot.waker.take()
    }

    fn with<R>(&self, id: CallId, work: impl FnOnce(&mut Slot) -> R) -> Option<R> {
        let mut slots = self.slots.borrow_mut();
        let slot = slots.get_mut(id.index as usize)?;
        (slot.generation == id.generation).then(|| work(slot))
    }
}
