//! A bound on how much of something is held at once.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::Future,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

/// Bounds how much of something, such as bytes, is held at once; first come, first served. Who asks for more than there is
/// altogether gets all of it.
pub struct Budget {
    whole: u64,
    free: Cell<u64>,
    waiting: RefCell<VecDeque<Rc<Place>>>,
}

/// A part of a [`Budget`], given back when dropped.
pub struct Share {
    budget: Rc<Budget>,
    amount: u64,
}

/// One who waits.
struct Place {
    amount: u64,
    granted: Cell<bool>,
    waker: Cell<Option<Waker>>,
}

impl Budget {
    /// A budget of so much.
    pub fn new(whole: u64) -> Rc<Self> {
        Rc::new(Self { whole, free: Cell::new(whole), waiting: RefCell::default() })
    }

    /// What nobody holds.
    pub fn free(&self) -> u64 {
        self.free.get()
    }

    /// So much, if it is free and nobody waits.
    pub fn try_take(self: &Rc<Self>, amount: u64) -> Option<Share> {
        let amount = amount.min(self.whole);
        if !self.waiting.borrow().is_empty() || amount > self.free.get() {
            return None;
        }
        self.free.set(self.free.get() - amount);
        Some(Share { budget: self.clone(), amount })
    }

    /// So much, once it is free.
    pub fn take(self: &Rc<Self>, amount: u64) -> impl Future<Output = Share> + 'static {
        Take { budget: self.clone(), amount: amount.min(self.whole), place: None }
    }

    fn give_back(&self, amount: u64) {
        self.free.set(self.free.get() + amount);
        self.serve();
    }

    /// Grants what the first in the queue wait for, as far as there is enough.
    fn serve(&self) {
        loop {
            let first = {
                let mut waiting = self.waiting.borrow_mut();
                match waiting.front() {
                    Some(first) if first.amount <= self.free.get() => waiting.pop_front(),
                    _ => None,
                }
            };
            let Some(first) = first else { return };
            self.free.set(self.free.get() - first.amount);
            first.granted.set(true);
            if let Some(waker) = first.waker.take() {
                waker.wake();
            }
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.give_back(self.amount);
    }
}

struct Take {
    budget: Rc<Budget>,
    amount: u64,
    place: Option<Rc<Place>>,
}

impl Future for Take {
    type Output = Share;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Share> {
        let Some(place) = &self.place else {
            if let Some(share) = self.budget.try_take(self.amount) {
                return Poll::Ready(share);
            }
            let waker = Cell::new(Some(context.waker().clone()));
            let place = Rc::new(Place { amount: self.amount, granted: Cell::new(false), waker });
            self.budget.waiting.borrow_mut().push_back(place.clone());
            self.place = Some(place);
            return Poll::Pending;
        };
        if !place.granted.get() {
            let old = place.waker.replace(Some(context.waker().clone()));
            drop(old);
            return Poll::Pending;
        }
        self.place = None;
        Poll::Ready(Share { budget: self.budget.clone(), amount: self.amount })
    }
}

impl Drop for Take {
    fn drop(&mut self) {
        let Some(place) = self.place.take() else { return };
        if place.granted.get() {
            // It was granted and is going away without having heard.
            return self.budget.give_back(place.amount);
        }
        self.budget.waiting.borrow_mut().retain(|other| !Rc::ptr_eq(other, &place));
        // It may have been all that kept the next one waiting.
        self.budget.serve();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Polls once.
    fn poll(future: &mut Pin<Box<impl Future<Output = Share>>>) -> Option<Share> {
        match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(share) => Some(share),
            Poll::Pending => None,
        }
    }

    #[test]
    fn what_is_given_back_goes_to_who_waits_first() {
        let budget = Budget::new(10);
        let held = budget.try_take(8).expect("free");
        assert!(budget.try_take(3).is_none());
        let (mut first, mut second) = (Box::pin(budget.take(6)), Box::pin(budget.take(1)));
        assert!(poll(&mut first).is_none() && poll(&mut second).is_none(), "nobody passes by who waits");
        assert!(budget.try_take(1).is_none(), "nor does who does not wait");
        drop(held);
        let first = poll(&mut first).expect("granted");
        assert!(poll(&mut second).is_some());
        assert_eq!(budget.free(), 4);
        drop(first);
        assert_eq!(budget.free(), 10);
    }

    #[test]
    fn who_gives_up_keeps_nothing_and_nobody() {
        let budget = Budget::new(10);
        let held = budget.try_take(5).expect("free");
        let (mut first, mut second) = (Box::pin(budget.take(6)), Box::pin(budget.take(5)));
        assert!(poll(&mut first).is_none() && poll(&mut second).is_none());
        drop(first);
        let second = poll(&mut second).expect("nobody is before it any more");
        let mut third = Box::pin(budget.take(7));
        assert!(poll(&mut third).is_none());
        drop((held, second));
        // Granted, and never asked for again.
        assert_eq!(budget.free(), 3);
        drop(third);
        assert_eq!(budget.free(), 10);
    }

    #[test]
    fn more_than_there_is_means_all() {
        let budget = Budget::new(10);
        let all = budget.try_take(u64::MAX).expect("all of it");
        assert_eq!(budget.free(), 0);
        drop(all);
        assert_eq!(budget.free(), 10);
    }
}
