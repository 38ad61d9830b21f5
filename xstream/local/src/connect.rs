//! The client's way to an engine: dial, say hello, wait for the shared memory.
//!
//! Nothing here blocks: an attempt moves forward in the sweeps of [`crate::LocalFabric`]'s polls. Dropping every future
//! that waits for it gives it up. How long to wait is the caller's affair: an engine that is stopped answers late.

use std::{
    cell::RefCell,
    future::poll_fn,
    os::fd::OwnedFd,
    rc::Rc,
    task::{Poll, Waker},
    time::Instant,
};

use daos_xstream::{FabricError, PeerId};
use rustix::{event::epoll, io::Errno};

use crate::{
    bulk::Area,
    fabric::{Inner, Tenant, failed},
    handshake::{Answer, Place, Verdict, dial, new_socket, peer_credentials, read_welcome},
    peer::{Peer, Role},
    region::Region,
    sweep::READABLE,
};

/// A connection being made.
pub(crate) struct Attempt {
    place: Place,
    socket: RefCell<Option<OwnedFd>>,
    outcome: RefCell<Option<Result<PeerId, FabricError>>>,
    waiting: RefCell<Vec<Waker>>,
}

impl Attempt {
    fn finish(&self, outcome: Result<PeerId, FabricError>) {
        *self.outcome.borrow_mut() = Some(outcome);
        self.waiting.take().into_iter().for_each(Waker::wake);
    }
}

/// A future's interest in an attempt.
struct Interest<'a> {
    inner: &'a Inner,
    id: PeerId,
    attempt: Rc<Attempt>,
}

impl Drop for Interest<'_> {
    fn drop(&mut self) {
        // The table has one handle, this is one: nobody else waits.
        if self.attempt.outcome.borrow().is_none() && Rc::strong_count(&self.attempt) == 2 {
            self.inner.attempt_ended(self.id);
        }
    }
}

impl Inner {
    /// Finds or makes the connection to `place`.
    pub fn connect(&self, place: Place) -> impl Future<Output = Result<PeerId, FabricError>> + '_ {
        let begun = match self.find_connected(&place) {
            Some(peer) => Err(Ok(peer)),
            None => match self.find_attempt(&place) {
                Some(interest) => Ok(interest),
                None => self.begin_attempt(place).map_err(Err),
            },
        };
        async move {
            let interest = match begun {
                Ok(interest) => interest,
                Err(known) => return known,
            };
            poll_fn(|context| match &*interest.attempt.outcome.borrow() {
                Some(outcome) => Poll::Ready(outcome.clone()),
                None => {
                    interest.attempt.waiting.borrow_mut().push(context.waker().clone());
                    Poll::Pending
                }
            })
            .await
        }
    }

    fn find_connected(&self, place: &Place) -> Option<PeerId> {
        self.slots.borrow().iter().find_map(|slot| match &slot.tenant {
            Tenant::Peer(peer) => match &peer.role {
                Role::Client { place: theirs, .. } if theirs == place && !peer.has_ended() => Some(peer.id),
                _ => None,
            },
            _ => None,
        })
    }

    fn find_attempt(&self, place: &Place) -> Option<Interest<'_>> {
        self.slots.borrow().iter().enumerate().find_map(|(index, slot)| match &slot.tenant {
            Tenant::Attempt(attempt) if attempt.place == *place => {
                Some(Interest { inner: self, id: slot.id(index), attempt: attempt.clone() })
            }
            _ => None,
        })
    }

    fn begin_attempt(&self, place: Place) -> Result<Interest<'_>, FabricError> {
        let socket = new_socket().map_err(|error| failed("no socket", error))?;
        let dialled = try_dial(&socket, &place)?;
        let attempt = Rc::new(Attempt {
            place,
            socket: RefCell::new(Some(socket)),
            outcome: RefCell::default(),
            waiting: RefCell::default(),
        });
        let id = self.take_slot();
        self.settle(id, Tenant::Attempt(attempt.clone()));
        self.attempts.set(self.attempts.get() + 1);
        let interest = Interest { inner: self, id, attempt };
        if dialled {
            self.watch_attempt(id, &interest.attempt)?;
        } else {
            self.undialled.borrow_mut().push(id);
        }
        Ok(interest)
    }

    fn watch_attempt(&self, id: PeerId, attempt: &Attempt) -> Result<(), FabricError> {
        let socket = attempt.socket.borrow();
        let socket = socket.as_ref().ok_or(FabricError::PeerGone)?;
        epoll::add(&self.epoll, socket, epoll::EventData::new_u64(id.0), READABLE)
            .map_err(|error| failed("epoll", error))
    }

    fn attempt_ended(&self, id: PeerId) {
        if let Tenant::Attempt(_) = self.vacate(id) {
            self.attempts.set(self.attempts.get() - 1);
        }
    }

    /// Dials again where the engine's queue of connections was full.
    pub fn redial(&self) {
        for id in self.undialled.take() {
            let Some(attempt) = self.attempt(id) else { continue };
            let dialled = match &*attempt.socket.borrow() {
                Some(socket) => try_dial(socket, &attempt.place),
                None => continue,
            };
            let watched = match dialled {
                Ok(false) => {
                    self.undialled.borrow_mut().push(id);
                    continue;
                }
                Ok(true) => self.watch_attempt(id, &attempt),
                Err(error) => Err(error),
            };
            if let Err(error) = watched {
                self.attempt_ended(id);
                attempt.finish(Err(error));
            }
        }
    }

    /// The attempt of that number, if it still is one.
    pub fn attempt(&self, id: PeerId) -> Option<Rc<Attempt>> {
        let index = id.0 as u32 as usize;
        match self.slots.borrow().get(index) {
            Some(slot) if slot.id(index) == id => match &slot.tenant {
                Tenant::Attempt(attempt) => Some(attempt.clone()),
                _ => None,
            },
            _ => None,
        }
    }

    /// The engine has answered, or is gone. Returns whether the attempt came to its end.
    pub fn advance_attempt(&self, id: PeerId, attempt: &Attempt, now: Instant) -> bool {
        let answer = match &*attempt.socket.borrow() {
            Some(socket) => read_welcome(socket),
            None => return false,
        };
        let joined = match answer {
            Err(Errno::AGAIN | Errno::INTR) => return false,
            Err(_) => Err(FabricError::Unreachable(format!("{} (hung up)", attempt.place.address()))),
            Ok(Answer::Refused(verdict)) => Err(refusal(&attempt.place, verdict)),
            Ok(Answer::Welcome(layout, memory)) => Region::open(memory, layout)
                .map_err(|error| failed("the engine's shared memory is not as it should be", error)),
        };
        let joined = joined.and_then(|region| self.join(id, attempt, region, now));
        if joined.is_err() {
            self.attempt_ended(id);
        }
        attempt.finish(joined.map(|()| id));
        true
    }

    fn join(&self, id: PeerId, attempt: &Attempt, region: Region, now: Instant) -> Result<(), FabricError> {
        let socket = attempt.socket.take().ok_or(FabricError::PeerGone)?;
        let credentials = peer_credentials(&socket).map_err(|error| failed("SO_PEERCRED", error))?;
        let area = RefCell::new(Area::new(region.layout().bulk_bytes()));
        let role = Role::Client { place: attempt.place.clone(), area };
        self.attempts.set(self.attempts.get() - 1);
        self.admit(Peer::new(id, role, socket, region, credentials, now));
        Ok(())
    }
}

fn try_dial(socket: &OwnedFd, place: &Place) -> Result<bool, FabricError> {
    match dial(socket, place) {
        Ok(()) => Ok(true),
        Err(Errno::AGAIN | Errno::INTR) => Ok(false),
        Err(error) => Err(FabricError::Unreachable(format!("{} ({error})", place.address()))),
    }
}

fn refusal(place: &Place, verdict: Verdict) -> FabricError {
    let address = place.address();
    match verdict {
        Verdict::NoSuchXstream => {
            FabricError::Unreachable(format!("{address} (the engine has no such xstream)"))
        }
        Verdict::Full => FabricError::Unreachable(format!("{address} (the xstream has too many clients)")),
        Verdict::UserFull => FabricError::Unreachable(format!(
            "{address} (this user has as many clients of the xstream as one user may; end some of them)"
        )),
        Verdict::NoMemory => FabricError::Unreachable(format!("{address} (the engine is out of memory)")),
        Verdict::WrongVersion | Verdict::Welcome => {
            FabricError::Failed(format!("{address} speaks another version of this fabric"))
        }
    }
}
