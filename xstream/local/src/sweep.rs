//! The slow part of a poll: sockets, newcomers, peers that fall asleep or wake up. It costs a system call and happens every few
//! microseconds while the core is busy, and once after the core has parked.

use std::{
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd},
    rc::Rc,
    time::{Duration, Instant},
};

use daos_xstream::PeerId;
use rustix::{event::epoll, io::Errno};

use crate::{
    fabric::{Inner, Slot, Tenant},
    handshake::{Heard, Verdict, listen_to_doorbells, send_refusal, send_welcome},
    peer::{Peer, Role, State},
    region::Region,
    server::{Accepted, Newcomer},
};

/// What an epoll event is about: a peer's number, or one of these.
const LISTENER: u64 = u64::MAX;
const NEWCOMERS: u64 = u64::MAX - 1;
/// With the number of a connection that has not said hello.
const HANDSHAKE: u64 = 1 << 63;

/// Level-triggered: what is not taken now shows up again.
pub(crate) const READABLE: epoll::EventFlags = epoll::EventFlags::IN;

/// Events taken in one sweep.
const EVENTS_AT_ONCE: usize = 64;
/// Clients let in in one sweep: making the memory of one takes a tenth of a millisecond, and others wait meanwhile.
const WELCOMES_AT_ONCE: usize = 4;
/// How often to look at the sockets while somebody may be ringing a doorbell: the most that a sleeping peer's message waits on a
/// busy core.
const INTERVAL_ASLEEP: Duration = Duration::from_micros(25);
/// How often otherwise: for new connections and for peers that end.
const INTERVAL_AWAKE: Duration = Duration::from_micros(200);

impl Inner {
    fn watch(&self, descriptor: BorrowedFd<'_>, data: u64) -> Result<(), Errno> {
        epoll::add(&self.epoll, descriptor, epoll::EventData::new_u64(data), READABLE)
    }

    /// Registers what an engine's endpoint listens to besides its peers.
    pub fn watch_seat(&self) -> Result<(), Errno> {
        let Some((seat, _)) = &self.seat else { return Ok(()) };
        self.watch(seat.bell(), NEWCOMERS)?;
        seat.listener().map_or(Ok(()), |listener| self.watch(listener, LISTENER))
    }

    #[allow(clippy::disallowed_methods, reason = "a real backend: the time between looks at the sockets")]
    pub fn sweep_interval_passed(&self) -> bool {
        let anybody_asleep =
            self.attempts.get() > 0 || self.counters.borrow().peers > self.awake.borrow().len() as u64;
        let interval = if anybody_asleep { INTERVAL_ASLEEP } else { INTERVAL_AWAKE };
        self.last_sweep.get().elapsed() >= interval
    }

    /// Looks at all sockets once. Returns how many things happened.
    #[cold]
    #[allow(clippy::disallowed_methods, reason = "a real backend: the time between looks at the sockets")]
    pub fn sweep(&self) -> usize {
        let now = Instant::now();
        self.last_sweep.set(now);
        self.counters.borrow_mut().sweeps += 1;
        if !self.undialled.borrow().is_empty() {
            self.redial();
        }
        let mut events = [MaybeUninit::uninit(); EVENTS_AT_ONCE];
        let at_once = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
        let happened = match epoll::wait(&self.epoll, &mut events, Some(&at_once)) {
            Ok((events, _)) => {
                // More may be waiting: look again in the next poll.
                self.sweep_now.set(events.len() == EVENTS_AT_ONCE);
                events.iter().map(|event| self.handle(event.data.u64(), now)).sum()
            }
            Err(_) => 0,
        };
        self.put_idle_peers_to_sleep(now);
        happened
    }

    fn handle(&self, data: u64, now: Instant) -> usize {
        match (data, &self.seat) {
            (LISTENER, Some((seat, acceptor))) => {
                let watch = |socket: BorrowedFd<'_>, number| self.watch(socket, HANDSHAKE | number).is_ok();
                self.count(acceptor.accept(seat, watch))
            }
            (NEWCOMERS, Some((seat, _))) => {
                seat.newcomers(WELCOMES_AT_ONCE).into_iter().map(|newcomer| self.welcome(newcomer, now)).sum()
            }
            (data, Some((seat, acceptor))) if data & HANDSHAKE != 0 => {
                let unwatch = |socket: BorrowedFd<'_>| {
                    let _ = epoll::delete(&self.epoll, socket);
                };
                self.count(acceptor.hello(seat, data & !HANDSHAKE, unwatch))
            }
            (data, _) => self.hear(PeerId(data), now),
        }
    }

    fn count(&self, accepted: Accepted) -> usize {
        self.counters.borrow_mut().refused += accepted.refused;
        accepted.handed_over as usize
    }

    /// Lets a client in, if there is room: makes its memory and sends it.
    fn welcome(&self, newcomer: Newcomer, now: Instant) -> usize {
        match self.try_welcome(&newcomer) {
            Ok(region) => {
                let id = self.take_slot();
                let Newcomer { socket, credentials } = newcomer;
                if self.watch(socket.as_fd(), id.0).is_ok() {
                    self.admit(Peer::new(id, Role::Engine, socket, region, credentials, now));
                    return 1;
                }
                self.give_slot_back(id);
            }
            Err(verdict) => send_refusal(&newcomer.socket, verdict),
        }
        self.counters.borrow_mut().refused += 1;
        0
    }

    fn try_welcome(&self, newcomer: &Newcomer) -> Result<Region, Verdict> {
        let Some((seat, _)) = &self.seat else { return Err(Verdict::NoSuchXstream) };
        if self.counters.borrow().peers >= u64::from(self.options.peers_max) {
            return Err(Verdict::Full);
        }
        if self.peers_of(newcomer.credentials.uid) >= self.options.peers_per_user_max as usize {
            return Err(Verdict::UserFull);
        }
        let (region, memory) = Region::create(seat.layout()).map_err(|_| Verdict::NoMemory)?;
        send_welcome(&newcomer.socket, seat.layout(), &memory).map_err(|_| Verdict::NoMemory)?;
        Ok(region)
    }

    /// How many peers are processes of this user.
    fn peers_of(&self, uid: u32) -> usize {
        let slots = self.slots.borrow();
        let of_user =
            |slot: &&Slot| matches!(&slot.tenant, Tenant::Peer(peer) if peer.credentials.uid == uid);
        slots.iter().filter(of_user).count()
    }

    /// A connection stands: from now on it is a peer.
    pub fn admit(&self, peer: Peer) {
        let peer = Rc::new(peer);
        self.settle(peer.id, Tenant::Peer(peer.clone()));
        self.awake.borrow_mut().push(peer);
        let mut counters = self.counters.borrow_mut();
        counters.peers += 1;
        counters.connected += 1;
    }

    /// Something stands at a peer's socket.
    fn hear(&self, id: PeerId, now: Instant) -> usize {
        if let Ok(peer) = self.with_peer(id, Rc::clone) {
            return self.hear_peer(&peer, now);
        }
        match self.attempt(id) {
            Some(attempt) => usize::from(self.advance_attempt(id, &attempt, now)),
            None => 0,
        }
    }

    fn hear_peer(&self, peer: &Rc<Peer>, now: Instant) -> usize {
        match listen_to_doorbells(&peer.socket) {
            Heard::Doorbells(rung) => {
                self.counters.borrow_mut().doorbells_received += u64::from(rung);
                if !peer.note_doorbells(rung) {
                    tracing::warn!(
                        pid = peer.credentials.pid,
                        uid = peer.credentials.uid,
                        "peer rings without reason"
                    );
                    self.counters.borrow_mut().liars += 1;
                    self.forget(peer.id, true);
                } else if peer.wake(now) {
                    self.awake.borrow_mut().push(peer.clone());
                }
            }
            Heard::EndOfFile => self.lose(peer, now),
        }
        1
    }

    /// The other process has ended. A client's requests are of no use to anybody now; an engine's last answers are.
    fn lose(&self, peer: &Rc<Peer>, now: Instant) {
        let _ = epoll::delete(&self.epoll, &peer.socket);
        match peer.role {
            Role::Engine => self.forget(peer.id, true),
            Role::Client { .. } => {
                if peer.wake(now) {
                    self.awake.borrow_mut().push(peer.clone());
                }
                if peer.freeze().is_err() {
                    self.forget(peer.id, true);
                }
            }
        }
    }

    fn put_idle_peers_to_sleep(&self, now: Instant) {
        self.awake.borrow_mut().retain(|peer| {
            if peer.busy.replace(false) {
                peer.idle_since.set(now);
            }
            let idle = peer.state.get() == State::Awake
                && now.saturating_duration_since(peer.idle_since.get()) >= self.options.idle;
            !(idle && peer.fall_asleep())
        });
    }

    /// See [`crate::LocalFabric::prepare_to_park`].
    pub fn prepare_to_park(&self) -> bool {
        let mut quiet = self.ended.borrow().is_empty() && self.undialled.borrow().is_empty();
        self.awake.borrow_mut().retain(|peer| {
            let asleep = peer.state.get() == State::Awake && peer.fall_asleep();
            quiet &= asleep;
            !asleep
        });
        // Whatever ends the wait, the sockets are looked at first.
        self.sweep_now.set(true);
        quiet
    }
}
