//! Which epoch an operation writes into, and when an epoch is complete.
//!
//! # Invariants
//!
//! * An operation takes a [`Ticket`] when it holds its locks, and writes into the ticket's epoch only. So who has a lock writes
//!   into the same epoch as whoever had it before, or a later one, and builds on what that one wrote.
//! * Nobody waits for a lock while he holds a ticket under which he has written: a sync never waits for one who waits.
//! * An epoch is closed once a later one has begun and no ticket of it is left; only then may it be committed.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
};

use daos_types::Epoch;
use daos_xstream::sync::Notify;

/// The epochs of one mount.
pub(crate) struct Epochs {
    current: Cell<Epoch>,
    under_way: RefCell<BTreeMap<Epoch, usize>>,
    ended: Notify,
}

/// Right of one operation to write into an epoch, which stays open until the ticket is dropped.
pub(crate) struct Ticket {
    epochs: Rc<Epochs>,
    epoch: Epoch,
}

impl Epochs {
    pub(crate) fn new(held: Epoch) -> Rc<Self> {
        Rc::new(Self { current: Cell::new(held), under_way: RefCell::default(), ended: Notify::new() })
    }

    /// The epoch into which new operations write.
    pub(crate) fn current(&self) -> Epoch {
        self.current.get()
    }

    pub(crate) fn ticket(self: &Rc<Self>) -> Ticket {
        let epoch = self.current.get();
        *self.under_way.borrow_mut().entry(epoch).or_default() += 1;
        Ticket { epochs: self.clone(), epoch }
    }

    /// Lets new operations write into the next epoch, and returns the one before.
    pub(crate) fn advance(&self) -> Epoch {
        let before = self.current.get();
        self.current.set(before.next());
        before
    }

    /// Waits until no operation writes into `epoch` or an earlier one any more.
    pub(crate) async fn closed(&self, epoch: Epoch) {
        while self.under_way.borrow().range(..=epoch).next().is_some() {
            self.ended.notified().await;
        }
    }
}

impl Ticket {
    pub(crate) fn epoch(&self) -> Epoch {
        self.epoch
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut under_way = self.epochs.under_way.borrow_mut();
        let left = under_way.get_mut(&self.epoch).expect("an epoch with a ticket is counted");
        *left -= 1;
        if *left == 0 {
            under_way.remove(&self.epoch);
            drop(under_way);
            self.epochs.ended.notify_all();
        }
    }
}
