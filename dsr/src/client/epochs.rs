//! Which epoch a call writes into, when an epoch is complete, and committing complete ones.
//!
//! # Invariants
//!
//! * A call takes a [`Ticket`], and writes into the ticket's epoch only, and only while it has it.
//! * An epoch is closed once a later one has begun and no ticket of it is left; only then may it be committed. Otherwise half of
//!   a call that touches several shards could be committed. So whoever writes through a container handle without choosing
//!   epochs shares the [`Epochs`] of that handle: objects, and every file system that is mounted from it.
//! * Nobody waits for a lock while he holds a ticket under which he has written: a sync never waits for one who waits.
//! * The epoch of new calls never goes back: a later call would be hidden by an earlier one. (What callers write in epochs of
//!   their own choice may hide theirs.)
//! * While something is being given up nobody writes, and whoever writes next asks the service what is held. It answers once
//!   what it does is done, whether or not the one who gave up has waited for that.
//! * No epoch is committed that holds a call which said that it ended half-way ([`Ticket::note_half_done`]), until that epoch
//!   has been given up.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
};

use daos_dsm::epochs::EPOCH_LAST;
use daos_types::Epoch;
use daos_xstream::{
    rpc::Status,
    sync::{Notify, Permit, Semaphore},
};

use super::{ContainerEpochs, DsrError};

/// The epochs of one container handle, for calls that do not choose theirs.
pub struct Epochs {
    current: Cell<Epoch>,
    /// The first epoch beyond all that calls have written into.
    reached: Cell<Epoch>,
    /// New calls write at this epoch or later.
    earliest: Cell<Epoch>,
    /// Something is being given up, or it is not known whether it was: the service has to be asked before anybody writes.
    in_doubt: Cell<bool>,
    /// Epochs with tickets, and how many each has; ascending. Not a map: a call after another must not allocate.
    under_way: RefCell<VecDeque<(Epoch, usize)>>,
    ended: Notify,
    /// Who holds, syncs or discards, does it alone.
    exclusive: Rc<Semaphore>,
    /// How often something that was not committed may have been given up.
    given_up: Cell<u64>,
    /// What ended half-way, and the epochs it wrote into.
    half_done: RefCell<Vec<(Epoch, String)>>,
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
        Rc::new(Self {
            current: Cell::new(held),
            reached: Cell::new(Epoch::ZERO),
            earliest: Cell::new(Epoch::ZERO),
            in_doubt: Cell::new(false),
            under_way: RefCell::default(),
            ended: Notify::new(),
            exclusive: Semaphore::new(1),
            given_up: Cell::new(0),
            half_done: RefCell::default(),
        })
    }

    /// The epoch into which new calls write; [`Epoch::MAX`] while nothing is held.
    pub fn current(&self) -> Epoch {
        self.current.get()
    }

    /// The earliest epoch into which a call may still write.
    pub fn first_open(&self) -> Epoch {
        self.under_way.borrow().front().map_or(self.current.get(), |(first, _)| *first)
    }

    /// Holds what can be held first, unless something is held: from then on there are tickets.
    pub async fn begin(&self, handle: &impl ContainerEpochs) -> Result<(), DsrError> {
        if self.current.get() > EPOCH_LAST {
            let _one = self.exclusive.acquire().await;
            self.hold_first(handle).await?;
        }
        Ok(())
    }

    async fn hold_first(&self, handle: &impl ContainerEpochs) -> Result<(), DsrError> {
        // Another call may have held, written and synced meanwhile: nobody writes into what that has closed.
        if self.current.get() == Epoch::MAX {
            let held = handle.hold(Epoch::ZERO).await?;
            self.in_doubt.set(false);
            self.begin_at(held);
        }
        if self.current.get() > EPOCH_LAST {
            let message = "the last epoch has been written or closed: open the container again".to_owned();
            return Err(DsrError::Target { status: Status::BAD_EPOCH.0, message, in_doubt: false });
        }
        Ok(())
    }

    /// Lets new calls write into `epoch`, which is held, or after all that was written if that is later. Does nothing while
    /// something is being given up.
    pub fn begin_at(&self, epoch: Epoch) {
        if self.in_doubt.get() {
            return;
        }
        let (current, epoch) = (self.current.get(), epoch.max(self.reached.get()).max(self.earliest.get()));
        if current == Epoch::MAX || current < epoch {
            self.current.set(epoch);
        }
    }

    /// The first epoch beyond all that calls have written into.
    pub fn reached(&self) -> Epoch {
        self.reached.get()
    }

    /// The right to write into the current epoch.
    pub fn ticket(self: &Rc<Self>) -> Ticket {
        let epoch = self.current.get();
        self.reached.set(self.reached.get().max(after(epoch)));
        let mut under_way = self.under_way.borrow_mut();
        match under_way.binary_search_by_key(&epoch, |(epoch, _)| *epoch) {
            Ok(place) => under_way[place].1 += 1,
            // At the end, but after what was given up.
            Err(place) => under_way.insert(place, (epoch, 1)),
        }
        Ticket { epochs: self.clone(), epoch }
    }

    /// Lets new calls write into the next epoch, and returns the one before.
    pub fn advance(&self) -> Epoch {
        let before = self.current.get();
        self.current.set(after(before));
        before
    }

    /// Waits until no call writes into `epoch` or an earlier one any more, and lets none begin to: what is committed up to
    /// here are whole calls.
    pub async fn close(&self, epoch: Epoch) {
        if self.current.get() <= epoch {
            self.current.set(after(epoch));
        }
        while self.under_way.borrow().front().is_some_and(|(first, _)| *first <= epoch) {
            self.ended.notified().await;
        }
    }

    /// Makes every call that was complete before this one last: waits for those under way, flushes and commits. New calls go
    /// on meanwhile, in the next epoch. Returns the committed epoch.
    pub async fn sync(&self, handle: &impl ContainerEpochs) -> Result<Epoch, DsrError> {
        let (given_up, in_doubt) = (self.given_up.get(), self.in_doubt.get());
        let _one = self.exclusive.acquire().await;
        self.hold_first(handle).await?;
        if in_doubt || self.given_up.get() != given_up {
            return Err(DsrError::GivenUp);
        }
        let last = self.advance();
        self.close(last).await;
        loop {
            self.check_whole(last)?;
            handle.flush(last).await?;
            match handle.commit(last).await {
                // A repeated request that was held up on its way may arrive between the flush and the commit, and takes the
                // flush back: then both are done again.
                Err(DsrError::Target { status, .. }) if Status(status) == Status::NOT_FLUSHED => {}
                outcome => return outcome.map(|()| last),
            }
        }
    }

    /// Notes that a call ended between two of its steps in `epoch`: it and what comes after must never be committed.
    pub fn note_half_done(&self, epoch: Epoch, what: String) {
        self.half_done.borrow_mut().push((epoch, what));
    }

    /// Refuses if something up to `epoch` has ended half-way.
    pub fn check_whole(&self, epoch: Epoch) -> Result<(), DsrError> {
        match self.half_done.borrow().iter().find(|(first, _)| *first <= epoch) {
            Some((_, what)) => Err(DsrError::HalfDone(what.clone())),
            None => Ok(()),
        }
    }

    /// How often something that was not committed may have been given up: who remembers what he has written compares.
    pub fn given_up(&self) -> u64 {
        self.given_up.get()
    }

    /// Everything that is not committed is about to be discarded, or some of it. Waits for the calls under way; those to come
    /// wait until the answer is known, and then hold what can be held first. Tell the answer by [`GivingUp::done`].
    pub async fn give_up(self: &Rc<Self>) -> GivingUp {
        let permit = self.exclusive.acquire().await;
        self.given_up.set(self.given_up.get() + 1);
        self.in_doubt.set(true);
        let before = self.current.replace(Epoch::MAX);
        if before != Epoch::MAX {
            self.earliest.set(self.earliest.get().max(before));
        }
        let giving_up = GivingUp { epochs: self.clone(), _permit: permit };
        while !self.under_way.borrow().is_empty() {
            self.ended.notified().await;
        }
        giving_up
    }
}

/// Somebody is giving up what was written and not committed. Dropped without [`done`](Self::done), whether that was done is
/// unknown: whoever writes next asks the service.
#[must_use = "calls wait until it is dropped"]
pub struct GivingUp {
    epochs: Rc<Epochs>,
    _permit: Permit,
}

impl GivingUp {
    /// What was written below `below` and not committed is given up: everything if that is [`Epoch::MAX`]. New calls begin at
    /// `held`, or hold what can be held first if that is [`Epoch::MAX`].
    pub fn done(self, below: Epoch, held: Epoch) {
        self.epochs.half_done.borrow_mut().retain(|(epoch, _)| *epoch >= below);
        self.epochs.in_doubt.set(false);
        if held != Epoch::MAX {
            self.epochs.begin_at(held);
        }
    }
}

/// The next epoch; none after the last, which nobody may use.
fn after(epoch: Epoch) -> Epoch {
    Epoch(epoch.0.saturating_add(1))
}

impl Ticket {
    /// The epoch.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Notes that the call has ended between two of its steps: its epoch must never be committed.
    pub fn note_half_done(&self, what: String) {
        self.epochs.note_half_done(self.epoch, what);
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
        pin!(epochs.close(Epoch(epoch))).poll(&mut context) == Poll::Ready(())
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
        // What is asked for is closed to those who come.
        assert_eq!(epochs.current(), Epoch(7));
        drop(later);
        assert!(is_closed(&epochs, 9));
        assert_eq!(epochs.ticket().epoch(), Epoch(10));
    }

    /// A hold of an epoch that was held anyway let new calls write below what older ones had written: they were acknowledged,
    /// and hidden.
    #[test]
    fn new_calls_never_write_below_older_ones_until_these_are_given_up() {
        let epochs = Epochs::new(Epoch(5));
        let _ = epochs.advance();
        epochs.begin_at(Epoch(5));
        assert_eq!(epochs.current(), Epoch(6));
        epochs.begin_at(Epoch(9));
        assert_eq!(epochs.current(), Epoch(9));
        let ticket = epochs.ticket();
        let mut context = Context::from_waker(Waker::noop());
        let mut giving_up = pin!(epochs.give_up());
        assert!(giving_up.as_mut().poll(&mut context).is_pending(), "a call is under way");
        drop(ticket);
        let Poll::Ready(giving_up) = giving_up.poll(&mut context) else { panic!("no call is under way") };
        let targets = crate::memory::MemoryTargets::new(1, 1);
        let mut begin = pin!(epochs.begin(&targets));
        assert!(begin.as_mut().poll(&mut context).is_pending(), "it is being discarded");
        // The answer to a commit that was made before the discard.
        epochs.begin_at(Epoch(3));
        assert!(begin.as_mut().poll(&mut context).is_pending(), "it is being discarded");
        giving_up.done(Epoch::MAX, Epoch::MAX);
        assert_eq!(begin.poll(&mut context), Poll::Ready(Ok(())));
        assert_eq!((epochs.current(), epochs.given_up()), (Epoch(10), 1));
    }

    /// A hold in the middle of what was written gives up what is below, and what is above stands: calls that were let in there
    /// wrote below it, were hidden by it, and no sync reached it.
    #[test]
    fn a_hold_in_the_middle_lets_nobody_write_below_what_stands() {
        let epochs = Epochs::new(Epoch(5));
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..20 {
            drop(epochs.ticket());
            let _ = epochs.advance();
        }
        let Poll::Ready(giving_up) = pin!(epochs.give_up()).poll(&mut context) else {
            panic!("nothing is under way")
        };
        giving_up.done(Epoch(10), Epoch(10));
        assert_eq!(epochs.current(), Epoch(25));
    }

    /// The answer to a discard was not awaited, or it failed: it may be made yet. New calls were let in, acknowledged and synced,
    /// and then discarded; and what had ended half-way could be committed.
    #[test]
    fn after_a_discard_in_doubt_the_service_is_asked_first() {
        let epochs = Epochs::new(Epoch(5));
        let targets = crate::memory::MemoryTargets::new(1, 1);
        let mut context = Context::from_waker(Waker::noop());
        let mut give_up = || {
            let Poll::Ready(giving_up) = pin!(epochs.give_up()).poll(&mut context) else {
                panic!("nothing is under way")
            };
            giving_up
        };
        epochs.ticket().note_half_done("a move".to_owned());
        epochs.note_half_done(Epoch(8), "another".to_owned());
        drop(give_up());
        // The answer to a commit that was made before says nothing of it.
        epochs.begin_at(Epoch(3));
        assert_eq!(epochs.current(), Epoch::MAX);
        assert!(epochs.check_whole(Epoch(5)).is_err());
        let mut context = Context::from_waker(Waker::noop());
        assert_eq!(pin!(epochs.begin(&targets)).poll(&mut context), Poll::Ready(Ok(())));
        assert_eq!(epochs.current(), Epoch(6));
        // Dropped while it waits for a call, it is over too.
        let ticket = epochs.ticket();
        let mut giving_up = Box::pin(epochs.give_up());
        assert!(giving_up.as_mut().poll(&mut context).is_pending());
        drop(giving_up);
        drop(ticket);
        assert_eq!(pin!(epochs.begin(&targets)).poll(&mut context), Poll::Ready(Ok(())));
        assert_eq!(epochs.current(), Epoch(7));
        // What is above a hold is not given up.
        let mut give_up = || {
            let Poll::Ready(giving_up) = pin!(epochs.give_up()).poll(&mut context) else {
                panic!("nothing is under way")
            };
            giving_up
        };
        give_up().done(Epoch(5), Epoch::MAX);
        assert!(epochs.check_whole(Epoch(5)).is_err());
        give_up().done(Epoch(6), Epoch::MAX);
        assert!(epochs.check_whole(Epoch(7)).is_ok() && epochs.check_whole(Epoch(8)).is_err());
        give_up().done(Epoch::MAX, Epoch::MAX);
        assert!(epochs.check_whole(Epoch::MAX).is_ok());
    }

    /// A sync that waited while everything was discarded would have acknowledged what is gone.
    #[test]
    fn a_sync_that_waited_for_a_discard_fails() {
        let epochs = Epochs::new(Epoch(5));
        let targets = crate::memory::MemoryTargets::new(1, 1);
        let mut context = Context::from_waker(Waker::noop());
        let mut giving_up = Box::pin(epochs.give_up());
        let Poll::Ready(done) = giving_up.as_mut().poll(&mut context) else { panic!("nothing is under way") };
        let mut late = pin!(epochs.sync(&targets));
        assert!(late.as_mut().poll(&mut context).is_pending());
        let mut waiting = pin!(epochs.give_up());
        done.done(Epoch::MAX, Epoch(5));
        // It began when the discard was under way: what it is to make last is gone.
        assert_eq!(late.poll(&mut context), Poll::Ready(Err(DsrError::GivenUp)));
        let syncing = epochs.exclusive.try_acquire().expect("nobody is there");
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        let mut late = pin!(epochs.sync(&targets));
        assert!(late.as_mut().poll(&mut context).is_pending());
        drop(syncing);
        assert!(waiting.poll(&mut context).is_ready());
        assert_eq!(late.poll(&mut context), Poll::Ready(Err(DsrError::GivenUp)));
    }

    #[test]
    fn what_ended_half_way_is_not_committed_nor_what_comes_after() {
        let epochs = Epochs::new(Epoch(5));
        let targets = crate::memory::MemoryTargets::new(1, 1);
        let mut context = Context::from_waker(Waker::noop());
        epochs.ticket().note_half_done("a move".to_owned());
        let refused = pin!(epochs.sync(&targets)).poll(&mut context);
        assert_eq!(refused, Poll::Ready(Err(DsrError::HalfDone("a move".to_owned()))));
        assert!(epochs.check_whole(Epoch(4)).is_ok() && epochs.check_whole(Epoch(5)).is_err());
        assert_eq!(targets.committed(), Epoch::ZERO);
        let Poll::Ready(giving_up) = pin!(epochs.give_up()).poll(&mut context) else {
            panic!("nothing is under way")
        };
        giving_up.done(Epoch::MAX, Epoch::MAX);
        assert_eq!(pin!(epochs.sync(&targets)).poll(&mut context), Poll::Ready(Ok(Epoch(6))));
    }

    /// The last epoch, named by mistake, was the end of all writing, and of the program.
    #[test]
    fn beyond_the_last_epoch_there_are_errors() {
        let epochs = Epochs::new(Epoch(5));
        let targets = crate::memory::MemoryTargets::new(1, 1);
        let mut context = Context::from_waker(Waker::noop());
        assert!(is_closed(&epochs, EPOCH_LAST.0));
        for _ in 0..3 {
            drop(epochs.ticket());
            let _ = epochs.advance();
            let refused = pin!(epochs.begin(&targets)).poll(&mut context);
            assert!(
                matches!(refused, Poll::Ready(Err(DsrError::Target { in_doubt: false, .. }))),
                "{refused:?}"
            );
            assert!(matches!(pin!(epochs.sync(&targets)).poll(&mut context), Poll::Ready(Err(_))));
        }
    }
}
