//! Object IDs that nobody else gets, also after crashes.
//!
//! An ID is (stamp, number). Numbers come from ranges, taken from a counter in the superblock object; the stamp is random
//! and differs between mounts, so that processes that mount the same container at the same time need not agree.
//!
//! # Invariants
//!
//! * A number is used in epoch e only if the counter, as written in epochs ≤ e, lies beyond it. So whatever epochs a crash
//!   takes away, a counter that remains lies beyond every number that remains.
//! * The counter never decreases from one epoch to a later one.

use std::{cell::Cell, rc::Rc};

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
    /// The latest epoch in which the counter was written.
    latest: Cell<Epoch>,
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
            latest: Cell::new(Epoch::ZERO),
            one_at_a_time: Semaphore::new(1),
        }
    }

    /// (stamp, number) of a new object that an operation makes in `epoch`.
    pub(crate) async fn allocate(&self, epoch: Epoch) -> Result<(u64, u64), FsError> {
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
        if used_up && self.latest.get() > epoch {
            // An operation of an older epoch raises the counter: where it was written later, it must not fall back. No
            // more than two epochs are open at a time, so these two are all.
            write(self.latest.get()).await?;
        }
        self.latest.set(self.latest.get().max(epoch));
        self.recorded.set(if used_up { epoch } else { self.recorded.get().min(epoch) });
        self.limit.set(limit);
        Ok(())
    }
}
