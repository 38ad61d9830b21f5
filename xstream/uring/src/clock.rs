//! Time and timers of one xstream.
//!
//! Timers live in a heap of this crate, not in glommio: the progress round fires them, so a busy core keeps its
//! deadlines without a system call, and a core about to park knows its next one.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use daos_xstream::{Clock, Time, WallTime};
use rustix::time::{ClockId, clock_gettime};

/// The monotonic clock, in nanoseconds since boot. The vDSO answers it without entering the kernel, in about 20 ns: little,
/// but not next to a request of a microsecond, so the progress rounds keep their latest reading for
/// [`Clock::recent`](daos_xstream::Clock::recent).
#[inline]
pub fn now() -> Time {
    Time(nanoseconds(ClockId::Monotonic))
}

#[inline]
fn nanoseconds(clock: ClockId) -> u64 {
    let reading = clock_gettime(clock);
    (reading.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(reading.tv_nsec as u64)
}

/// The timers of one xstream, by deadline.
pub(crate) struct Timers {
    heap: RefCell<BTreeMap<(Time, u64), Waker>>,
    next_id: Cell<u64>,
    /// The first deadline: a round compares it before it touches the heap.
    first: Cell<Time>,
    /// When the clock was last read, by whatever of this xstream.
    recent: Cell<Time>,
}

impl Timers {
    pub(crate) fn new() -> Self {
        Self {
            heap: RefCell::default(),
            next_id: Cell::new(0),
            first: Cell::new(Time::NEVER),
            recent: Cell::new(now()),
        }
    }

    /// Reads the clock.
    #[inline]
    pub(crate) fn now(&self) -> Time {
        let now = now();
        self.recent.set(now);
        now
    }

    /// The latest reading.
    #[inline]
    pub(crate) fn recent(&self) -> Time {
        self.recent.get()
    }

    /// The deadline of the next timer; [`Time::NEVER`] without one.
    pub(crate) fn next(&self) -> Time {
        self.first.get()
    }

    /// Wakes whoever waits for a time that has come. Returns how many.
    pub(crate) fn fire(&self, now: Time) -> usize {
        let mut fired = 0;
        while self.first.get() <= now {
            let waker = self.heap.borrow_mut().pop_first().map(|(_, waker)| waker);
            self.remember_first();
            let Some(waker) = waker else { break };
            waker.wake();
            fired += 1;
        }
        fired
    }

    fn arm(&self, deadline: Time, waker: Waker) -> u64 {
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        self.heap.borrow_mut().insert((deadline, id), waker);
        self.remember_first();
        id
    }

    fn replace(&self, deadline: Time, id: u64, waker: &Waker) {
        if let Some(armed) = self.heap.borrow_mut().get_mut(&(deadline, id)) {
            armed.clone_from(waker);
        }
    }

    fn cancel(&self, deadline: Time, id: u64) {
        let cancelled = self.heap.borrow_mut().remove(&(deadline, id));
        self.remember_first();
        drop(cancelled);
    }

    fn remember_first(&self) {
        let first = self.heap.borrow().first_key_value().map_or(Time::NEVER, |((deadline, _), _)| *deadline);
        self.first.set(first);
    }
}

/// The clock of the real world.
#[derive(Clone)]
pub struct UringClock {
    timers: Rc<Timers>,
}

impl UringClock {
    pub(crate) fn new(timers: Rc<Timers>) -> Self {
        Self { timers }
    }
}

impl Clock for UringClock {
    #[inline]
    fn now(&self) -> Time {
        self.timers.now()
    }

    #[inline]
    fn recent(&self) -> Time {
        self.timers.recent()
    }

    fn wall(&self) -> WallTime {
        WallTime(nanoseconds(ClockId::Realtime))
    }

    fn sleep_until(&self, deadline: Time) -> impl Future<Output = ()> + 'static {
        Sleep { timers: self.timers.clone(), deadline, armed: None }
    }
}

struct Sleep {
    timers: Rc<Timers>,
    deadline: Time,
    armed: Option<u64>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if now() >= self.deadline {
            return Poll::Ready(());
        }
        match self.armed {
            Some(id) => self.timers.replace(self.deadline, id, context.waker()),
            None => self.armed = Some(self.timers.arm(self.deadline, context.waker().clone())),
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(id) = self.armed {
            self.timers.cancel(self.deadline, id);
        }
    }
}
