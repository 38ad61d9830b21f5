//! Object IDs that nobody else gets, also after crashes.
//!
//! An ID is (stamp, number). Numbers come from ranges, taken from a counter in the superblock object; the stamp is random
//! and differs between mounts, so that processes that mount the same container at the same time need not agree.
//!
//! # Invariants
//!
//! * A number is used in epoch e only if the counter, as written in epochs ≤ e, lies beyond it. So whatever epochs a crash
//!   takes away, a counter that remains lies beyond every number that remains.
//! * As one mount writes it, the counter never decreases from one epoch to a later one.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use daos_dsr::client::{Document, TargetObjects};
use daos_types::Epoch;
use daos_xstream::sync::Semaphore;

use crate::{FsError, layout, superblock::NEXT_NUMBER};

/// Numbers taken from the superblock at once.
const RANGE: u64 = 4096;

/// Gives out object IDs.
pub(crate) struct IdAllocator<T> {
    superblock: Rc<Document<T>>,
    stamp: u64,
    next: Cell<u64>,
    limit: Cell<u64>,
    /// The earliest epoch in which the counter stands at `limit`.
    recorded: Cell<Epoch>,
    /// In which epochs the counter was written that an operation of an earlier one may yet raise it in.
    written: RefCell<Vec<Epoch>>,
    one_at_a_time: Rc<Semaphore>,
}

/// First number of an ordinary object: below it, an object without a stamp is a reserved one.
pub(crate) const FIRST_NUMBER: u64 = 16;

impl<T: TargetObjects> IdAllocator<T> {
    /// An allocator that starts with an empty range. `random` makes the stamp.
    pub(crate) fn new(superblock: Rc<Document<T>>, random: u64, stored_next: u64) -> Self {
        Self {
            superblock,
            stamp: random.max(1),
            next: Cell::new(stored_next),
            limit: Cell::new(stored_next),
            recorded: Cell::new(Epoch::MAX),
            written: RefCell::default(),
            one_at_a_time: Semaphore::new(1),
        }
    }

    /// (stamp, number) of a new object that an operation makes in `epoch`; `first_open` is the earliest in which one may yet.
    pub(crate) async fn allocate(&self, epoch: Epoch, first_open: Epoch) -> Result<(u64, u64), FsError> {
        loop {
            if self.next.get() < self.limit.get() && self.recorded.get() <= epoch {
                let number = self.next.get();
                self.next.set(number + 1);
                return Ok((self.stamp, number));
            }
            let _one = self.one_at_a_time.acquire().await;
            if self.next.get() < self.limit.get() && self.recorded.get() <= epoch {
                continue;
            }
            self.written.borrow_mut().retain(|written| *written > first_open);
            self.record(epoch).await?;
        }
    }

    /// Writes the counter in `epoch`, raised by a range if the last one is used up.
    async fn record(&self, epoch: Epoch) -> Result<(), FsError> {
        let used_up = self.next.get() == self.limit.get();
        let limit = if used_up { self.limit.get() + RANGE } else { self.limit.get() };
        let write = |at: Epoch| async move {
            let bytes = limit.to_le_bytes();
            self.superblock.update(at, layout::SUPERBLOCK_DKEY, &[(NEXT_NUMBER, &bytes)]).await
        };
        write(epoch).await?;
        if used_up {
            // An operation of an older epoch raises the counter: where it was written later, it must not fall back.
            let later: Vec<Epoch> =
                self.written.borrow().iter().copied().filter(|written| *written > epoch).collect();
            for at in later {
                write(at).await?;
            }
        }
        if !self.written.borrow().contains(&epoch) {
            self.written.borrow_mut().push(epoch);
        }
        self.recorded.set(if used_up { epoch } else { self.recorded.get().min(epoch) });
        self.limit.set(limit);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        task::{Context, Poll, Waker},
    };

    use daos_dsr::memory::MemoryTargets;

    use super::*;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        let mut context = Context::from_waker(Waker::noop());
        loop {
            if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
                return value;
            }
        }
    }

    /// Only the latest epoch was looked after, as long as a mount had two of them. Since other calls through the handle begin
    /// epochs too, an operation may last while the counter is raised in several.
    #[test]
    fn the_counter_falls_back_in_no_later_epoch() {
        let targets = MemoryTargets::new(1, 1);
        let document = Rc::new(Document::open(&targets, layout::superblock_object()).expect("a document"));
        let ids = IdAllocator::new(document.clone(), 1, FIRST_NUMBER);
        let first_open = Epoch(5);
        let mut given = 0;
        for epoch in [6, 7, 8, 5] {
            for _ in 0..RANGE {
                let (_, number) = block_on(ids.allocate(Epoch(epoch), first_open)).expect("a number");
                given = given.max(number);
            }
            for seen_at in epoch..9 {
                let fetched =
                    block_on(document.fetch(Epoch(seen_at), layout::SUPERBLOCK_DKEY, &[NEXT_NUMBER]));
                let bytes = fetched.expect("read").remove(0).value().expect("the counter");
                let next = u64::from_le_bytes(bytes.try_into().expect("eight bytes"));
                assert!(next > given, "in epoch {seen_at} the counter is {next}, and {given} has been given");
            }
        }
    }
}
