//! Which epoch a call writes into, when an epoch is complete, and committing complete ones.
//!
//! # Invariants
//!
//! * A call takes a [`Ticket`], and writes into the ticket's epoch only, and only while it has it.
//! * An epoch is closed once a later one has begun and no ticket of it is left; only then may it be committed. Otherwise half of
//!   a call that touches several shards could be committed. So whoever writes through a container handle without choosing
//!   epochs shares the [`Epochs`] of that handle: objects, and every file system that is mounted from it.
//! * Nobody waits for a lock while he holds a ticket under which he has written: a sync never waits for one who waits.
//! * The epoch of new calls goes back only after everything that was written and not committed has been given up, and that
//!   has been answered: a later call would be hidden by an earlier one.
//! * No epoch is committed that holds a call which said that it ended half-way ([`Ticket::note_half_done`]), until that epoch
//!   has been given up.
//! * Epochs move on because somebody writes or commits there, never because somebody names one.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
};

use daos_types::Epoch;
use daos_xstream::{
    rpc::Status,
    sync::{Notify, Permit, Semaphore},
};

use super::{ContainerEpochs, DsrError};

/// The epochs of one container handle, for calls that do not choose theirs.
pub struct Epochs {
    current: Cell<Epoch>,
    /// The first epoch beyond all that calls have written into and that was not given up.
    reached: Cell<Epoch>,
    /// The latest epoch that a caller has chosen himself.
    chosen: Cell<Epoch>,
    /// While something is being given up: what calls may write into at the earliest, as others have learned meanwhile.
    giving_up: Cell<Option<Epoch>>,
    /// Epochs with tickets, and how many each has; ascending. Not a map: a call after another must not allocate.
    under_way: RefCell<VecDeque<(Epoch, usize)>>,
    ended: Notify,
    /// Who holds, syncs or discards, does it alone.
    exclusive: Rc<Semaphore>,
    /// How often something that was not committed may have been given up.
    given_up: Cell<u64>,
    /// What ended half-way, and the epoch it wrote into.
    half_done: RefCell<Option<(Epoch, String)>>,
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
            chosen: Cell::new(Epoch::ZERO),
            giving_up: Cell::new(None),
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
        if self.current.get() == Epoch::MAX {
            let _one = self.exclusive.acquire().await;
            self.hold_first(handle).await?;
        }
        Ok(())
    }

    async fn hold_first(&self, handle: &impl ContainerEpochs) -> Result<(), DsrError> {
        // Another call may have held, written and synced meanwhile: nobody writes into what that has closed.
        if self.current.get() == Epoch::MAX {
            let held = handle.hold(Epoch::ZERO).await?;
            self.begin_at(held);
        }
        Ok(())
    }

    /// Lets new calls write into `epoch`, unless they do so into a later one: it is held. While something is being given up,
    /// that waits for its end.
    pub fn begin_at(&self, epoch: Epoch) {
        if let Some(earliest) = self.giving_up.get() {
            return self.giving_up.set(Some(earliest.max(epoch)));
        }
        let (current, epoch) = (self.current.get(), epoch.max(self.reached.get()));
        if current == Epoch::MAX || current < epoch {
            self.current.set(epoch);
        }
    }

    /// Notes that a caller writes into an epoch of his own choice.
    pub fn note_chosen(&self, epoch: Epoch) {
        self.chosen.set(self.chosen.get().max(epoch));
    }

    /// The right to write into the current epoch.
    pub fn ticket(self: &Rc<Self>) -> Ticket {
        let epoch = self.current.get();
        self.reached.set(self.reached.get().max(epoch.next()));
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
        self.current.set(before.next());
        before
    }

    /// Waits until no call writes into `epoch` or an earlier one any more, and lets none begin to: what is committed up to
    /// here are whole calls. New calls go beyond `epoch` as far as anything was written: naming a late epoch moves nobody there.
    pub async fn close(&self, epoch: Epoch) {
        let current = self.current.get();
        if current != Epoch::MAX && current <= epoch {
            self.current.set(epoch.min(current.max(self.chosen.get())).next());
        }
        while self.under_way.borrow().front().is_some_and(|(first, _)| *first <= epoch) {
            self.ended.notified().await;
        }
    }

    /// Makes every call that was complete before this one last: waits for those under way, flushes and commits. New calls go
    /// on meanwhile, in the next epoch. Returns the committed epoch.
    pub async fn sync(&self, handle: &impl ContainerEpochs) -> Result<Epoch, DsrError> {
        let given_up = self.given_up.get();
        let _one = self.exclusive.acquire().await;
        if self.given_up.get() != given_up {
            return Err(DsrError::GivenUp);
        }
        self.hold_first(handle).await?;
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
        let mut half_done = self.half_done.borrow_mut();
        if half_done.as_ref().is_none_or(|(first, _)| epoch < *first) {
            *half_done = Some((epoch, what));
        }
    }

    /// Refuses if something up to `epoch` has ended half-way.
    pub fn check_whole(&self, epoch: Epoch) -> Result<(), DsrError> {
        match &*self.half_done.borrow() {
            Some((first, what)) if *first <= epoch => Err(DsrError::HalfDone(what.clone())),
            _ => Ok(()),
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
        self.giving_up.set(Some(Epoch::ZERO));
        let giving_up =
            GivingUp { epochs: self.clone(), before: self.current.replace(Epoch::MAX), _permit: permit };
        while !self.under_way.borrow().is_empty() {
            self.ended.notified().await;
        }
        giving_up
    }
}

/// Somebody is giving up what was written and not committed. Dropped without [`done`](Self::done), when whether that was done is
/// unknown, new calls go on after all that was written.
#[must_use = "calls wait until it is dropped"]
pub struct GivingUp {
    epochs: Rc<Epochs>,
    /// The epoch of new calls before.
    before: Epoch,
    _permit: Permit,
}

impl GivingUp {
    /// What was written below `below` and not committed is given up: everything if that is [`Epoch::MAX`].
    pub fn done(mut self, below: Epoch) {
        let epochs = &self.epochs;
        epochs.half_done.borrow_mut().take_if(|(first, _)| *first < below);
        if below == Epoch::MAX {
            epochs.reached.set(Epoch::ZERO);
            epochs.chosen.set(Epoch::ZERO);
        }
        self.before = Epoch::MAX;
    }
}

impl Drop for GivingUp {
    fn drop(&mut self) {
        let earliest = self.epochs.giving_up.take().unwrap_or(Epoch::ZERO);
        if self.before != Epoch::MAX {
            self.epochs.current.set(self.before.max(earliest));
        }
    }
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
        // Where nobody has written nobody is moved to: the last epoch, named by mistake, would be the end of all writing.
        assert!(is_closed(&epochs, 1 << 40));
        assert_eq!(epochs.ticket().epoch(), Epoch(8));
        epochs.note_chosen(Epoch(12));
        assert!(is_closed(&epochs, 10));
        assert_eq!(epochs.ticket().epoch(), Epoch(11));
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
        giving_up.done(Epoch::MAX);
        assert_eq!(begin.poll(&mut context), Poll::Ready(Ok(())));
        assert_eq!((epochs.current(), epochs.given_up()), (Epoch(1), 1));
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
        giving_up.done(Epoch(10));
        epochs.begin_at(Epoch(10));
        assert_eq!(epochs.current(), Epoch(25));
    }

    /// A discard whose request never left, or was refused, or whose future was dropped, gave nothing up; new calls went below
    /// what stood, and what had ended half-way could be committed.
    #[test]
    fn a_discard_that_failed_gives_nothing_up() {
        let epochs = Epochs::new(Epoch(5));
        let mut context = Context::from_waker(Waker::noop());
        epochs.ticket().note_half_done("a move".to_owned());
        let _ = epochs.advance();
        let Poll::Ready(giving_up) = pin!(epochs.give_up()).poll(&mut context) else {
            panic!("nothing is under way")
        };
        epochs.begin_at(Epoch(4));
        drop(giving_up);
        assert_eq!(epochs.current(), Epoch(6));
        assert!(epochs.check_whole(Epoch(5)).is_err());
        // Dropped while it waits for a call, it is over too.
        let ticket = epochs.ticket();
        let mut giving_up = Box::pin(epochs.give_up());
        assert!(giving_up.as_mut().poll(&mut context).is_pending());
        epochs.begin_at(Epoch(9));
        drop(giving_up);
        assert_eq!((ticket.epoch(), epochs.current()), (Epoch(6), Epoch(9)));
        // What is above a hold is not given up.
        drop(ticket);
        let Poll::Ready(giving_up) = pin!(epochs.give_up()).poll(&mut context) else {
            panic!("nothing is under way")
        };
        giving_up.done(Epoch(5));
        assert!(epochs.check_whole(Epoch(5)).is_err());
        let Poll::Ready(giving_up) = pin!(epochs.give_up()).poll(&mut context) else {
            panic!("nothing is under way")
        };
        giving_up.done(Epoch(6));
        assert!(epochs.check_whole(Epoch(5)).is_ok());
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
        done.done(Epoch::MAX);
        // It began when the discard was under way: what it is to make last was written after it.
        assert_eq!(late.poll(&mut context), Poll::Ready(Ok(Epoch(1))));
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
        giving_up.done(Epoch::MAX);
        assert_eq!(pin!(epochs.sync(&targets)).poll(&mut context), Poll::Ready(Ok(Epoch(1))));
    }
}
