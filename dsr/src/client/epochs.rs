//! Which epoch a call writes into, and when an epoch is complete.
//!
//! # Invariants
//!
//! * A call takes a [`Ticket`], and writes into the ticket's epoch only, and only while it has it.
//! * An epoch is closed once a later one has begun and no ticket of it is left; only then may it be committed. Otherwise half of
//!   a call that touches several shards could be committed.
//! * Nobody waits for a lock while he holds a ticket under which he has written: a sync never waits for one who waits.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
};

use daos_types::Epoch;
use daos_xstream::sync::Notify;

/// The epochs of one container handle, for calls that do not choose theirs.
pub struct Epochs {
    current: Cell<Epoch>,
    /// Epochs with tickets, and how many each has; ascending. Not a map: a call after another must not allocate.
    under_way: RefCell<VecDeque<(Epoch, usize)>>,
    ended: Notify,
}

/// Right of one call to write into an epoch, which stays open until the ticket is dropped.
#[must_use = "the epoch may be committed once the ticket is gone"]
pub struct Ticket {
    epochs: Rc<Epochs>,
    epoch: Epoch,
}

impl Epochs {
    /// Calls write into `held` first; [`Epoch::MAX`] while nothing is held.
    pub fn new(held: Epoch) -> Rc<Self> {
        Rc::new(Self { current: Cell::new(held), under_way: RefCell::default(), ended: Notify::new() })
    }

    /// The epoch into which new calls write.
    pub fn current(&self) -> Epoch {
        self.current.get()
    }

    /// Lets new calls write into `epoch`: another one was held, or committed.
    pub fn set_current(&self, epoch: Epoch) {
        self.current.set(epoch);
    }

    /// The right to write into the current epoch.
    pub fn ticket(self: &Rc<Self>) -> Ticket {
        let epoch = self.current.get();
        let mut under_way = self.under_way.borrow_mut();
        match under_way.binary_search_by_key(&epoch, |(epoch, _)| *epoch) {
            Ok(place) => under_way[place].1 += 1,
            // At the end, but after a hold of an earlier epoch.
            Err(place) => under_way.insert(place, (epoch, 1)),
        }
        Ticket { epochs: self.clone(), epoch }
    }

    /// Lets new calls write into the next epoch, and returns the one before.
    pub fn advance(&self) -> Epoch {
        let before = self.current.get();
        self.current.set(before.next());
        before
    }

    /// Waits until no call writes into `epoch` or an earlier one any more.
    pub async fn closed(&self, epoch: Epoch) {
        while self.under_way.borrow().front().is_some_and(|(first, _)| *first <= epoch) {
            self.ended.notified().await;
        }
    }
}

impl Ticket {
    /// The epoch.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut under_way = self.epochs.under_way.borrow_mut();
        let place = under_way.binary_search_by_key(&self.epoch, |(epoch, _)| *epoch);
        let place = place.expect("an epoch with a ticket is counted");
        under_way[place].1 -= 1;
        if under_way[place].1 == 0 {
            under_way.remove(place);
            drop(under_way);
            self.epochs.ended.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        task::{Context, Poll, Waker},
    };

    use super::*;

    fn is_closed(epochs: &Epochs, epoch: u64) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        pin!(epochs.closed(Epoch(epoch))).poll(&mut context) == Poll::Ready(())
    }

    #[test]
    fn an_epoch_is_closed_once_its_last_ticket_is_gone() {
        let epochs = Epochs::new(Epoch(5));
        let (first, second) = (epochs.ticket(), epochs.ticket());
        assert_eq!((first.epoch(), epochs.advance()), (Epoch(5), Epoch(5)));
        let later = epochs.ticket();
        assert_eq!(later.epoch(), Epoch(6));
        assert!(is_closed(&epochs, 4) && !is_closed(&epochs, 5));
        drop(first);
        assert!(!is_closed(&epochs, 5));
        drop(second);
        assert!(is_closed(&epochs, 5) && !is_closed(&epochs, 6));
        // A hold may go back where nothing is held; earlier epochs are looked at all the same.
        epochs.set_current(Epoch(2));
        let earlier = epochs.ticket();
        drop(later);
        assert!(!is_closed(&epochs, 6) && is_closed(&epochs, 1));
        drop(earlier);
        assert!(is_closed(&epochs, u64::MAX));
    }
}
