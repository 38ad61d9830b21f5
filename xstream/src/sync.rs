//! Waiting within one xstream: nothing here is shared between threads, and nothing allocates once its queue has grown.
//!
//! No borrow is held while a waker runs or is dropped, so a waker may come back here.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    fmt,
    future::Future,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

mod budget;

pub use budget::{Budget, Share};

/// First in, first out queue of tasks that wait.
#[derive(Default)]
struct WaitQueue {
    tickets: Cell<u64>,
    waiting: RefCell<VecDeque<(u64, Waker)>>,
}

impl WaitQueue {
    fn enter(&self, waker: &Waker) -> u64 {
        let ticket = self.tickets.get();
        self.tickets.set(ticket + 1);
        self.waiting.borrow_mut().push_back((ticket, waker.clone()));
        ticket
    }

    /// Renews the waker of a ticket that still waits; false if it has been called.
    fn renew(&self, ticket: u64, waker: &Waker) -> bool {
        let mut old = None;
        let waits = match self.waiting.borrow_mut().iter_mut().find(|(waiting, _)| *waiting == ticket) {
            Some((_, stored)) => {
                if !stored.will_wake(waker) {
                    old = Some(std::mem::replace(stored, waker.clone()));
                }
                true
            }
            None => false,
        };
        drop(old);
        waits
    }

    /// Takes a ticket out of the queue; false if it has been called.
    fn leave(&self, ticket: u64) -> bool {
        let mut waiting = self.waiting.borrow_mut();
        let Some(at) = waiting.iter().position(|(other, _)| *other == ticket) else { return false };
        let left = waiting.remove(at);
        drop(waiting);
        drop(left);
        true
    }

    fn is_empty(&self) -> bool {
        self.waiting.borrow().is_empty()
    }

    fn wake_one(&self) -> bool {
        let next = self.waiting.borrow_mut().pop_front();
        match next {
            Some((_, waker)) => {
                waker.wake();
                true
            }
            None => false,
        }
    }
}

/// Tells waiting tasks that something has changed. A notification with nobody waiting is kept, once.
///
/// Wakes may be spurious: check your condition again.
#[derive(Default)]
pub struct Notify {
    kept: Cell<bool>,
    queue: WaitQueue,
}

impl Notify {
    /// Nobody waits, nothing kept.
    pub fn new() -> Self {
        Self::default()
    }

    /// Wakes the task that has waited longest, or keeps the notification for the next one that comes.
    pub fn notify_one(&self) {
        if !self.queue.wake_one() {
            self.kept.set(true);
        }
    }

    /// Wakes every task that waits now. Keeps nothing.
    pub fn notify_all(&self) {
        let count = self.queue.waiting.borrow().len();
        for _ in 0..count {
            self.queue.wake_one();
        }
    }

    /// Completes with the next notification.
    pub fn notified(&self) -> impl Future<Output = ()> + '_ {
        Notified { notify: self, ticket: None }
    }
}

struct Notified<'a> {
    notify: &'a Notify,
    ticket: Option<u64>,
}

impl Future for Notified<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        match self.ticket {
            Some(ticket) if self.notify.queue.renew(ticket, context.waker()) => Poll::Pending,
            Some(_) => {
                self.ticket = None;
                Poll::Ready(())
            }
            None if self.notify.kept.take() => Poll::Ready(()),
            None => {
                self.ticket = Some(self.notify.queue.enter(context.waker()));
                Poll::Pending
            }
        }
    }
}

impl Drop for Notified<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket
            && !self.notify.queue.leave(ticket)
        {
            // It was called and is going away without having heard: the call belongs to the next one.
            self.notify.notify_one();
        }
    }
}

/// Bounds how many do something at once; first come, first served.
pub struct Semaphore {
    free: Cell<usize>,
    queue: WaitQueue,
}

/// One unit of a [`Semaphore`], given back when dropped.
pub struct Permit(Rc<Semaphore>);

impl Semaphore {
    /// A semaphore with `permits` free units.
    pub fn new(permits: usize) -> Rc<Self> {
        Rc::new(Self { free: Cell::new(permits), queue: WaitQueue::default() })
    }

    /// Units that nobody holds.
    pub fn free(&self) -> usize {
        self.free.get()
    }

    /// A unit, if one is free and nobody waits for it.
    pub fn try_acquire(self: &Rc<Self>) -> Option<Permit> {
        if !self.queue.is_empty() || self.free.get() == 0 {
            return None;
        }
        self.free.set(self.free.get() - 1);
        Some(Permit(self.clone()))
    }

    /// A unit, once one is free.
    pub fn acquire(self: &Rc<Self>) -> impl Future<Output = Permit> + 'static {
        Acquire { semaphore: self.clone(), ticket: None }
    }

    /// Passes a unit to the next in the queue, who owns it from now on, or makes it free.
    fn release(&self) {
        if !self.queue.wake_one() {
            self.free.set(self.free.get() + 1);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.release();
    }
}

struct Acquire {
    semaphore: Rc<Semaphore>,
    ticket: Option<u64>,
}

impl Future for Acquire {
    type Output = Permit;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Permit> {
        match self.ticket {
            Some(ticket) if self.semaphore.queue.renew(ticket, context.waker()) => Poll::Pending,
            Some(_) => {
                self.ticket = None;
                Poll::Ready(Permit(self.semaphore.clone()))
            }
            None => match self.semaphore.try_acquire() {
                Some(permit) => Poll::Ready(permit),
                None => {
                    self.ticket = Some(self.semaphore.queue.enter(context.waker()));
                    Poll::Pending
                }
            },
        }
    }
}

impl Drop for Acquire {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket
            && !self.semaphore.queue.leave(ticket)
        {
            self.semaphore.release();
        }
    }
}

/// A place for one value: what [`oneshot`]'s two ends share.
struct Cup<T> {
    value: Cell<Option<T>>,
    waker: Cell<Option<Waker>>,
    sender_gone: Cell<bool>,
}

/// The end of [`oneshot`] that gives.
pub struct Sender<T>(Rc<Cup<T>>);

/// The end of [`oneshot`] that receives: a future.
pub struct Receiver<T>(Rc<Cup<T>>);

/// The sender was dropped without a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the sender went away without a value")]
pub struct SenderGone;

/// A channel for one value.
pub fn oneshot<T>() -> (Sender<T>, Receiver<T>) {
    let cup = Rc::new(Cup { value: Cell::new(None), waker: Cell::new(None), sender_gone: Cell::new(false) });
    (Sender(cup.clone()), Receiver(cup))
}

impl<T> Sender<T> {
    /// Gives the value. If nobody receives it, it is dropped.
    pub fn send(self, value: T) {
        self.0.value.set(Some(value));
    }

    /// Whether somebody still waits.
    pub fn is_wanted(&self) -> bool {
        Rc::strong_count(&self.0) > 1
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.0.sender_gone.set(true);
        if let Some(waker) = self.0.waker.take() {
            waker.wake();
        }
    }
}

impl<T> Receiver<T> {
    /// The value, if it is there.
    pub fn try_take(&mut self) -> Option<T> {
        self.0.value.take()
    }
}

impl<T> Future for Receiver<T> {
    type Output = Result<T, SenderGone>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(value) = self.0.value.take() {
            return Poll::Ready(Ok(value));
        }
        if self.0.sender_gone.get() {
            return Poll::Ready(Err(SenderGone));
        }
        self.0.waker.set(Some(context.waker().clone()));
        Poll::Pending
    }
}

impl fmt::Debug for Semaphore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Semaphore({} free)", self.free.get())
    }
}

#[cfg(test)]
#[path = "sync/tests.rs"]
mod tests;
