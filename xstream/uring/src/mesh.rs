//! The ring mesh: one bounded single-producer single-consumer ring per ordered pair of xstreams, and one doorbell each.
//!
//! # Invariants
//!
//! * A sender rings a doorbell only when the receiver has announced that it parks: a busy core is told nothing, it looks.
//! * The announcement and the ring are ordered by fences on both sides (store announcement, fence, look at the ring;
//!   push, fence, look at the announcement), so at least one side sees the other: no message sleeps with its receiver.
//! * Work to one core leaves in the order of the sends' first polls; what does not fit waits in that order.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    future::{Future, poll_fn},
    os::fd::{AsRawFd, OwnedFd, RawFd},
    rc::Rc,
    sync::atomic::{AtomicBool, AtomicU32, Ordering, fence},
    task::{Poll, Waker},
};

use daos_xstream::{CoreId, Mailbox, MailboxError, Work};
use rtrb::{Consumer, Producer, PushError, RingBuffer};
use rustix::event::{EventfdFlags, eventfd};

use crate::{Park, UringEnv, core_state::Core, notify::Notify};

/// Most work that one round takes from one ring.
const RECEIVE_MAX: usize = 128;

/// What all xstreams of a process see. Nothing in it is written on an I/O path.
pub(crate) struct Shared {
    pub(crate) cores: Vec<CoreShared>,
    stop: AtomicBool,
    /// Xstreams whose main future has not ended.
    running: AtomicU32,
}

/// One xstream, as the others see it. On its own cache lines: the announcement changes with every park.
#[repr(align(128))]
pub(crate) struct CoreShared {
    doorbell: OwnedFd,
    parked: AtomicBool,
    closed: AtomicBool,
}

impl Shared {
    pub(crate) fn new(cores: u32) -> std::io::Result<Self> {
        let cores = (0..cores)
            .map(|_| {
                let doorbell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
                Ok(CoreShared { doorbell, parked: AtomicBool::new(false), closed: AtomicBool::new(false) })
            })
            .collect::<Result<Vec<_>, rustix::io::Errno>>()?;
        let running = AtomicU32::new(cores.len() as u32);
        Ok(Self { cores, stop: AtomicBool::new(false), running })
    }

    /// Asks all xstreams to stop. Async-signal-safe: a store and a few `write`s.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
        self.cores.iter().for_each(CoreShared::ring);
    }

    pub(crate) fn stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// An xstream's main future has ended; the last one tells all.
    pub(crate) fn main_ended(&self) {
        if self.running.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.cores.iter().for_each(CoreShared::ring);
        }
    }

    pub(crate) fn all_ended(&self) -> bool {
        self.running.load(Ordering::Acquire) == 0
    }

    fn core(&self, core: CoreId) -> Option<&CoreShared> {
        self.cores.get(core.0 as usize)
    }
}

impl CoreShared {
    /// The doorbell's descriptor.
    pub(crate) fn doorbell(&self) -> RawFd {
        self.doorbell.as_raw_fd()
    }

    /// Takes back what was rung. Whether anything was.
    pub(crate) fn hear(&self) -> bool {
        rustix::io::read(&self.doorbell, &mut [0_u8; 8]).is_ok()
    }

    /// Wakes the core, whatever it does.
    pub(crate) fn ring(&self) {
        // The counter cannot overflow, and a doorbell that fails otherwise is a broken process.
        let _ = rustix::io::write(&self.doorbell, &1_u64.to_ne_bytes());
    }

    /// The owner says that it is about to look at its rings a last time before it parks.
    pub(crate) fn announce_parking(&self) {
        self.parked.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    pub(crate) fn announce_awake(&self) {
        self.parked.store(false, Ordering::Relaxed);
    }

    fn ring_if_parked(&self) {
        fence(Ordering::SeqCst);
        self.ring_after_count();
    }

    /// Wakes the core if it has announced that it parks. Before this, the caller has changed what the core looks at after
    /// its announcement, by an operation that no load can overtake.
    pub(crate) fn ring_after_count(&self) {
        if self.parked.load(Ordering::SeqCst) && self.parked.swap(false, Ordering::Relaxed) {
            self.ring();
        }
    }

    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }
}

/// The ends of the mesh that belong to one xstream: rings to all, and rings from all.
pub(crate) struct MeshEnds<F: Park + 'static> {
    to: Vec<Producer<Work<UringEnv<F>>>>,
    from: Vec<Consumer<Work<UringEnv<F>>>>,
}

/// Rings of `capacity` between every ordered pair of `cores`, the pair of a core with itself included.
pub(crate) fn mesh<F: Park + 'static>(cores: u32, capacity: usize) -> Vec<MeshEnds<F>> {
    let mut ends: Vec<_> = (0..cores).map(|_| MeshEnds { to: Vec::new(), from: Vec::new() }).collect();
    for sender in 0..cores as usize {
        for receiver in 0..cores as usize {
            let (producer, consumer) = RingBuffer::new(capacity);
            ends[sender].to.push(producer);
            ends[receiver].from.push(consumer);
        }
    }
    ends
}

/// Work that found its ring full, in the order in which it came.
struct Waiting<F: Park + 'static> {
    work: Work<UringEnv<F>>,
    waker: Waker,
}

struct Outbound<F: Park + 'static> {
    ring: Producer<Work<UringEnv<F>>>,
    waiting: BTreeMap<u64, Waiting<F>>,
    next_ticket: u64,
}

/// The mailbox of the real world.
pub struct UringMailbox<F: Park + 'static> {
    core: Rc<Core>,
    outbound: Rc<RefCell<Vec<Outbound<F>>>>,
    inbound: RefCell<Vec<Consumer<Work<UringEnv<F>>>>>,
    /// Sends that wait for room.
    waiting: Rc<Cell<usize>>,
}

impl<F: Park + 'static> UringMailbox<F> {
    pub(crate) fn new(core: Rc<Core>, ends: MeshEnds<F>) -> Self {
        let outbound = ends
            .to
            .into_iter()
            .map(|ring| Outbound { ring, waiting: BTreeMap::new(), next_ticket: 0 })
            .collect();
        Self {
            core,
            outbound: Rc::new(RefCell::new(outbound)),
            inbound: RefCell::new(ends.from),
            waiting: Rc::default(),
        }
    }

    /// Whether a send waits for room: its core must not park, for nobody rings when there is room again.
    pub(crate) fn is_waiting(&self) -> bool {
        self.waiting.get() > 0
    }

    /// Runs what has arrived. Returns how much.
    pub(crate) fn receive(&self, env: &UringEnv<F>) -> usize {
        // Taken out while the work runs, which is free to use the mailbox.
        let mut inbound = std::mem::take(&mut *self.inbound.borrow_mut());
        let mut received = 0;
        for ring in &mut inbound {
            for _ in 0..RECEIVE_MAX {
                let Ok(work) = ring.pop() else { break };
                work(env);
                received += 1;
            }
        }
        *self.inbound.borrow_mut() = inbound;
        received
    }

    /// Moves waiting work into rings that have room again. Returns how much.
    pub(crate) fn refill(&self) -> usize {
        if self.waiting.get() == 0 {
            return 0;
        }
        let mut moved = 0;
        let mut wakers = Vec::new();
        for (receiver, outbound) in self.outbound.borrow_mut().iter_mut().enumerate() {
            let before = moved;
            if self.core.shared.cores[receiver].closed.load(Ordering::Acquire) {
                // Its ring will never have room: whoever waits learns so when it is polled.
                wakers.extend(outbound.waiting.values().map(|waiting| waiting.waker.clone()));
                continue;
            }
            while !outbound.waiting.is_empty() && outbound.ring.slots() > 0 {
                let (_, waiting) = outbound.waiting.pop_first().expect("somebody waits");
                let pushed = outbound.ring.push(waiting.work);
                assert!(pushed.is_ok(), "a ring with room takes work");
                wakers.push(waiting.waker);
                moved += 1;
            }
            if moved > before && receiver != self.core.id.0 as usize {
                self.core.shared.cores[receiver].ring_if_parked();
            }
        }
        self.waiting.set(self.waiting.get() - moved);
        wakers.into_iter().for_each(Waker::wake);
        moved
    }
}

impl<F: Park + daos_xstream::Fabric> Mailbox<UringEnv<F>> for UringMailbox<F> {
    fn cores(&self) -> u32 {
        self.core.shared.cores.len() as u32
    }

    fn send(&self, core: CoreId, work: Work<UringEnv<F>>) -> impl Future<Output = Result<(), MailboxError>> {
        let mut sending = Sending {
            core: self.core.clone(),
            outbound: self.outbound.clone(),
            waiting: self.waiting.clone(),
            receiver: core,
            ticket: None,
        };
        let mut work = Some(work);
        poll_fn(move |context| sending.poll(&mut work, context.waker()))
    }
}

/// One send under way. Dropped while it waits, its work never leaves.
struct Sending<F: Park + 'static> {
    core: Rc<Core>,
    outbound: Rc<RefCell<Vec<Outbound<F>>>>,
    waiting: Rc<Cell<usize>>,
    receiver: CoreId,
    ticket: Option<u64>,
}

impl<F: Park + 'static> Sending<F> {
    fn poll(
        &mut self,
        work: &mut Option<Work<UringEnv<F>>>,
        waker: &Waker,
    ) -> Poll<Result<(), MailboxError>> {
        let shared = &self.core.shared;
        let Some(peer) = shared.core(self.receiver) else {
            return Poll::Ready(Err(MailboxError::NoSuchCore(self.receiver)));
        };
        let mut outbound = self.outbound.borrow_mut();
        let outbound = &mut outbound[self.receiver.0 as usize];
        let closed = peer.closed.load(Ordering::Acquire);
        if let Some(ticket) = self.ticket {
            return match outbound.waiting.get_mut(&ticket) {
                Some(_) if closed => Poll::Ready(Err(MailboxError::Closed(self.receiver))),
                Some(waiting) => {
                    waiting.waker.clone_from(waker);
                    Poll::Pending
                }
                None => {
                    self.ticket = None;
                    Poll::Ready(Ok(()))
                }
            };
        }
        if closed {
            return Poll::Ready(Err(MailboxError::Closed(self.receiver)));
        }
        let work = work.take().expect("polled after its end");
        // Nobody overtakes those who wait already.
        let work = if outbound.waiting.is_empty() {
            match outbound.ring.push(work) {
                Ok(()) => {
                    if self.receiver != self.core.id {
                        peer.ring_if_parked();
                    }
                    return Poll::Ready(Ok(()));
                }
                Err(PushError::Full(work)) => work,
            }
        } else {
            work
        };
        let ticket = outbound.next_ticket;
        outbound.next_ticket += 1;
        outbound.waiting.insert(ticket, Waiting { work, waker: waker.clone() });
        self.waiting.set(self.waiting.get() + 1);
        self.ticket = Some(ticket);
        Poll::Pending
    }
}

impl<F: Park + 'static> Drop for Sending<F> {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else { return };
        let waiting = self.outbound.borrow_mut()[self.receiver.0 as usize].waiting.remove(&ticket);
        if waiting.is_some() {
            self.waiting.set(self.waiting.get() - 1);
        }
        drop(waiting);
    }
}

/// Completes when `all_ended` has been noticed by a progress round.
pub(crate) async fn wait_for_all(core: &Core, round: &Notify) {
    while !core.shared.all_ended() {
        round.notified().await;
    }
}
