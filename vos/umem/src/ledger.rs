//! The arena together with what the running transaction did to it.
//!
//! # Invariants
//!
//! * Every change of the arena between two seals passes [`Ledger::change`] or [`Ledger::change_fresh`], which note the
//!   range; so a seal knows every changed byte, and an abort can restore every byte that was in use.
//! * The buffers keep their capacity: a transaction allocates no memory in steady state.

use crate::{
    HeapError, Sealed,
    arena::Arena,
    layout::Layout,
    pmem::{LINE_BYTES, PmemJournal, UNDO_UNIT_BYTES},
    wal::LogBuffer,
};

/// No old bytes were kept: what was there had no meaning.
const NO_UNDO: u32 = u32::MAX;
/// The most bytes a transaction may change.
const TRANSACTION_BYTES_MAX: usize = 1 << 30;

/// One changed range.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Note {
    pub offset: u64,
    pub length: u32,
    /// Where its old bytes lie in the undo buffer.
    undo: u32,
}

/// Where a transaction becomes durable.
pub(crate) enum Journal {
    /// Nowhere.
    Volatile,
    /// In a write-ahead log.
    Wal(Box<LogBuffer>),
    /// In the arena itself, at the seal.
    Pmem(Box<PmemJournal>),
}

/// The arena and the notes of the running transaction.
pub(crate) struct Ledger {
    pub arena: Arena,
    pub layout: Layout,
    pub journal: Journal,
    notes: Vec<Note>,
    undo: Vec<u8>,
    /// Blocks allocated by this transaction: (first byte, end).
    fresh: Vec<(u64, u64)>,
    /// On pmem: stores into the allocator's tables (offset, word) whose undo entries no fence has followed yet. They are made
    /// right after the next one, so that an allocation waits for no fence of its own.
    pending: Vec<(u64, u64)>,
    sealed: u64,
}

impl Ledger {
    /// The newest sealed transaction stands at `sealed`.
    pub fn new(arena: Arena, layout: Layout, journal: Journal, sealed: u64) -> Self {
        Self {
            arena,
            layout,
            journal,
            notes: Vec::with_capacity(64),
            undo: Vec::with_capacity(8192),
            fresh: Vec::with_capacity(16),
            pending: Vec::with_capacity(16),
            sealed,
        }
    }

    /// Notes that `offset..offset + length` (not before `first`) is about to change, and gives the bytes.
    #[inline]
    pub fn change(&mut self, first: u64, offset: u64, length: u64) -> Result<&mut [u8], HeapError> {
        // Most stores into new blocks come right after the allocation, so only the newest few are looked at.
        let end = offset.wrapping_add(length);
        if self.fresh.iter().rev().take(4).any(|&(start, stop)| start <= offset && end <= stop) {
            return self.change_fresh(first, offset, length);
        }
        if matches!(self.journal, Journal::Pmem(_)) {
            return self.change_guarded(first, offset, length);
        }
        let bytes = self.arena.bytes_mut(first, offset, length)?;
        let undo = self.undo.len();
        if undo + bytes.len() > TRANSACTION_BYTES_MAX {
            return Err(HeapError::TransactionTooLarge);
        }
        self.undo.extend_from_slice(bytes);
        self.notes.push(Note { offset, length: length as u32, undo: undo as u32 });
        Ok(bytes)
    }

    /// Like [`Ledger::change`] for bytes of a block that this transaction allocated: nobody misses what was there.
    #[inline]
    pub fn change_fresh(&mut self, first: u64, offset: u64, length: u64) -> Result<&mut [u8], HeapError> {
        let bytes = self.arena.bytes_mut(first, offset, length)?;
        if bytes.len() > TRANSACTION_BYTES_MAX {
            return Err(HeapError::TransactionTooLarge);
        }
        match self.journal {
            // An abort has nothing to restore and a seal nothing to write.
            Journal::Volatile => {}
            Journal::Wal(_) | Journal::Pmem(_) => {
                self.notes.push(Note { offset, length: length as u32, undo: NO_UNDO });
            }
        }
        Ok(bytes)
    }

    /// [`Ledger::change`] on pmem: what changes is in the undo log before.
    fn change_guarded(&mut self, first: u64, offset: u64, length: u64) -> Result<&mut [u8], HeapError> {
        if self.guard(first, offset, length)? {
            self.fence();
        }
        self.arena.bytes_mut(first, offset, length)
    }

    /// Says that these ranges are about to change: on pmem one fence is enough for all of them then. Does nothing elsewhere.
    #[inline]
    pub fn announce(&mut self, first: u64, ranges: &[(u64, u64)]) -> Result<(), HeapError> {
        if !matches!(self.journal, Journal::Pmem(_)) {
            return Ok(());
        }
        let mut noted = false;
        for &(offset, length) in ranges {
            let end = offset.wrapping_add(length);
            if !self.fresh.iter().rev().take(4).any(|&(start, stop)| start <= offset && end <= stop) {
                noted |= self.guard(first, offset, length)?;
            }
        }
        if noted {
            self.fence();
        }
        Ok(())
    }

    /// Puts a range, in whole units of the undo log, there, unless it is there. If it says yes, a fence must follow before the
    /// first store into it.
    fn guard(&mut self, first: u64, offset: u64, length: u64) -> Result<bool, HeapError> {
        self.arena.bytes_mut(first, offset, length)?;
        let start = offset / UNDO_UNIT_BYTES * UNDO_UNIT_BYTES;
        let bytes = (offset + length).next_multiple_of(UNDO_UNIT_BYTES) - start;
        let noted = |note: &Note| {
            note.offset <= start
                && start + bytes <= note.offset + u64::from(note.length)
                && note.undo != NO_UNDO
        };
        if length == 0 || self.notes.iter().rev().take(64).any(noted) {
            // Its entry may be one that the allocator's tables got, and that no fence has followed.
            return Ok(!self.pending.is_empty());
        }
        let undo = self.undo.len();
        if undo as u64 + bytes > TRANSACTION_BYTES_MAX as u64 {
            return Err(HeapError::TransactionTooLarge);
        }
        let Journal::Pmem(journal) = &mut self.journal else { unreachable!("asked by the caller") };
        journal.log.record(&mut self.arena, &mut *journal.persistence, start, bytes)?;
        self.undo.extend_from_slice(self.arena.values(0, start, bytes)?);
        self.notes.push(Note { offset: start, length: bytes as u32, undo: undo as u32 });
        Ok(true)
    }

    /// Makes the undo log's entries durable; then stores that waited for that are made.
    fn fence(&mut self) {
        let Journal::Pmem(journal) = &mut self.journal else { return };
        journal.persistence.fence(self.arena.as_slice());
        for (offset, value) in self.pending.drain(..) {
            let bytes = self.arena.bytes_mut(0, offset, 8).expect("a range noted before");
            bytes.copy_from_slice(&value.to_le_bytes());
        }
    }

    /// Remembers that `bytes` from `offset` were allocated by this transaction.
    #[inline]
    pub fn allocated(&mut self, offset: u64, bytes: u64) {
        self.fresh.push((offset, offset + bytes));
    }

    /// Puts `value` into the allocator's tables. [`Ledger::word`] gives it from then on; the arena may have it later.
    #[inline]
    pub fn set_word(&mut self, offset: u64, value: u64) -> Result<(), HeapError> {
        if !matches!(self.journal, Journal::Pmem(_)) {
            self.change(0, offset, 8)?.copy_from_slice(&value.to_le_bytes());
        } else if self.guard(0, offset, 8)? {
            self.pending.push((offset, value));
        } else {
            self.arena.bytes_mut(0, offset, 8)?.copy_from_slice(&value.to_le_bytes());
        }
        Ok(())
    }

    /// A word of the allocator's tables.
    #[inline]
    pub fn word(&self, offset: u64) -> u64 {
        match self.pending.iter().rev().find(|(place, _)| *place == offset) {
            Some((_, value)) => *value,
            None => *self.arena.value::<u64>(0, offset).expect("the allocator's tables lie in the arena"),
        }
    }

    /// Makes the transaction's changes part of the heap.
    pub fn seal(&mut self) -> Result<Sealed, HeapError> {
        match &mut self.journal {
            Journal::Volatile => self.sealed += u64::from(!self.notes.is_empty()),
            Journal::Wal(log) => {
                if !self.notes.is_empty() {
                    let changed = self.notes.iter().map(|note| (note.offset, u64::from(note.length)));
                    self.sealed = log.append(&self.arena, changed)?;
                }
            }
            Journal::Pmem(_) => {
                if !self.pending.is_empty() {
                    self.fence();
                }
                self.commit();
            }
        }
        self.forget();
        Ok(Sealed(self.sealed))
    }

    /// Takes the transaction's changes back.
    pub fn abort(&mut self) {
        self.pending.clear();
        for note in self.notes.iter().rev() {
            if note.undo != NO_UNDO {
                let old = &self.undo[note.undo as usize..][..note.length as usize];
                let bytes =
                    self.arena.bytes_mut(0, note.offset, old.len() as u64).expect("a range noted before");
                bytes.copy_from_slice(old);
            }
        }
        self.commit();
        self.forget();
    }

    /// On pmem, makes the noted ranges durable as they are, and ends the transaction on media.
    fn commit(&mut self) {
        let Journal::Pmem(journal) = &mut self.journal else { return };
        if self.notes.is_empty() {
            return;
        }
        let PmemJournal { log, persistence } = &mut **journal;
        // Notes often follow each other, several to a line.
        let mut flushed = 0..0;
        for note in &self.notes {
            let start = note.offset / LINE_BYTES * LINE_BYTES;
            let end = (note.offset + u64::from(note.length)).next_multiple_of(LINE_BYTES);
            let start = if flushed.contains(&start) { flushed.end } else { start };
            if start < end {
                persistence.flush(self.arena.as_slice(), start, end - start);
                flushed = start..end;
            }
        }
        persistence.fence(self.arena.as_slice());
        log.commit(&mut self.arena, &mut **persistence);
        self.sealed = log.sequence();
    }

    /// The position of the newest sealed transaction.
    pub fn sealed(&self) -> Sealed {
        Sealed(self.sealed)
    }

    /// The log, on `wal` media.
    pub fn log(&mut self) -> Option<&mut LogBuffer> {
        match &mut self.journal {
            Journal::Wal(log) => Some(log),
            Journal::Volatile | Journal::Pmem(_) => None,
        }
    }

    fn forget(&mut self) {
        self.notes.clear();
        self.undo.clear();
        self.fresh.clear();
        debug_assert!(self.pending.is_empty());
    }
}
