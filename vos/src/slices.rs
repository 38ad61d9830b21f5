//! What discards, aggregations and destructions know of their slices: how large one may be, and who waits for the next.

use std::cell::Cell;

use crate::epochs::SliceSize;

/// Slices of long work: of discards, aggregations and destructions.
pub(crate) struct Slices {
    /// Changes that one deals with at most.
    changes: Cell<usize>,
    /// How often work has waited between two of them.
    waits: Cell<u64>,
    /// Work that does so now.
    waiting: Cell<u64>,
}

impl Slices {
    pub fn new() -> Self {
        let (waits, waiting) = (Cell::new(0), Cell::new(0));
        Self { changes: Cell::new(SliceSize::WHOLE.entries), waits, waiting }
    }

    /// Has the next ones deal with at most so many changes.
    pub fn set_changes(&self, changes: usize) {
        self.changes.set(changes.clamp(1, SliceSize::WHOLE.entries));
    }

    /// Work that waits now, and how often any has.
    pub fn waiting(&self) -> (u64, u64) {
        (self.waiting.get(), self.waits.get())
    }

    /// How much the next one may do.
    pub fn size(&self) -> SliceSize {
        SliceSize { entries: self.changes.get(), ..SliceSize::WHOLE }
    }
}

/// Work that waits between two slices, or is given up there.
pub(crate) struct Waiting<'s>(&'s Slices);

impl<'s> Waiting<'s> {
    pub fn begin(slices: &'s Slices) -> Self {
        slices.waits.set(slices.waits.get() + 1);
        slices.waiting.set(slices.waiting.get() + 1);
        Self(slices)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.set(self.0.waiting.get() - 1);
    }
}
