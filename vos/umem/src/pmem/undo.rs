//! The undo log: old content of what the running transaction changes.
//!
//! ```text
//! header: magic u64 │ number of the newest committed transaction u64 │ zeros to 64 bytes
//! entry:  arena offset u64 │ length u32 │ CRC32C u32 │ transaction u64 │ zero u64 │ old bytes │ zeros to 64 bytes
//! ```
//!
//! An entry counts if its transaction is the one after the newest committed and its checksum is right, and if the one
//! before it counts. One that was torn has a wrong checksum; the stores that it guards had not begun.
//!
//! What lies behind the last entry are old bytes of earlier transactions, which a client may have chosen to look like an entry. So
//! numbers make a random step whenever a heap is opened: nobody knows what such an entry would have to carry.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{LINE_BYTES, Persistence};
use crate::{
    HeapError,
    arena::Arena,
    layout::{HEADER_OFFSET, Layout},
};

const MAGIC: u64 = u64::from_le_bytes(*b"daosundo");
const ENTRY_HEADER_BYTES: u64 = size_of::<Entry>() as u64;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct UndoHeader {
    magic: u64,
    committed: u64,
}

impl UndoHeader {
    /// That of a new heap.
    pub fn new() -> Self {
        Self { magic: MAGIC, committed: 0 }
    }

    pub fn store(&self, arena: &mut Arena, layout: &Layout) {
        let bytes = arena.bytes_mut(0, layout.undo_log, size_of::<Self>() as u64).expect("the undo log");
        bytes.copy_from_slice(self.as_bytes());
    }

    /// The header in the arena, if there is one.
    pub fn load(arena: &Arena, layout: &Layout) -> Option<Self> {
        arena
            .value::<Self>(0, layout.undo_log)
            .ok()
            .copied()
            .filter(|header| header.magic == MAGIC && header.committed < 1 << 63)
    }
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Entry {
    offset: u64,
    length: u32,
    checksum: u32,
    transaction: u64,
    reserved: u64,
}

impl Entry {
    fn computed(&self, old: &[u8]) -> u32 {
        crc32c::crc32c_append(crc32c::crc32c(Self { checksum: 0, ..*self }.as_bytes()), old)
    }
}

/// The undo log of an open heap.
pub(crate) struct UndoLog {
    start: u64,
    end: u64,
    /// Where the next entry goes.
    next: u64,
    committed: u64,
}

impl UndoLog {
    /// Undoes what was not committed; gives the number of entries that were applied. On an error gives the entry that is
    /// damaged.
    pub fn recover(
        header: UndoHeader,
        arena: &mut Arena,
        layout: &Layout,
        persistence: &mut dyn Persistence,
    ) -> Result<(Self, u64), u64> {
        let start = layout.undo_log + LINE_BYTES;
        let mut log = Self {
            start,
            end: layout.undo_log + layout.undo_bytes,
            next: start,
            committed: header.committed,
        };
        let mut entries = Vec::new();
        while let Some((place, offset, old)) = log.entry(arena) {
            if offset < HEADER_OFFSET || arena.values::<u8>(0, offset, old.len() as u64).is_err() {
                return Err(place);
            }
            entries.push((offset, old));
        }
        // Backwards, so that the oldest content of a line wins.
        for (offset, old) in entries.iter().rev() {
            let bytes = arena.bytes_mut(0, *offset, old.len() as u64).expect("looked at before");
            bytes.copy_from_slice(old);
            persistence.flush(arena.as_slice(), *offset, old.len() as u64);
        }
        persistence.fence(arena.as_slice());
        log.commit(arena, persistence);
        Ok((log, entries.len() as u64))
    }

    /// The entry at `next`, if it counts: (place, arena offset, old bytes).
    fn entry(&mut self, arena: &Arena) -> Option<(u64, u64, Vec<u8>)> {
        let place = self.next;
        if place + ENTRY_HEADER_BYTES > self.end {
            return None;
        }
        let entry = *arena.value::<Entry>(0, place).ok()?;
        let whole = (ENTRY_HEADER_BYTES + u64::from(entry.length)).next_multiple_of(LINE_BYTES);
        if entry.transaction != self.committed + 1 || whole > self.end - place {
            return None;
        }
        let old = arena.values::<u8>(0, place + ENTRY_HEADER_BYTES, u64::from(entry.length)).ok()?;
        if entry.checksum != entry.computed(old) {
            return None;
        }
        self.next += whole;
        Some((place, entry.offset, old.to_vec()))
    }

    /// Lets the numbers make a step of which `secret` decides. There must be no running transaction.
    pub fn skip(&mut self, secret: u64, arena: &mut Arena, persistence: &mut dyn Persistence) {
        // Forwards, so that no number comes again whatever the secret is. The log has room for 2^16 guesses at one of 2^44. After a
        // quarter of a million openings at least the steps become small, so that numbers never end.
        self.committed += if self.committed < 1 << 62 { secret >> 20 } else { secret >> 44 };
        self.write_committed(arena, persistence);
    }

    /// The number of the newest committed transaction.
    pub fn sequence(&self) -> u64 {
        self.committed
    }

    /// Puts the present content of a range here, before it changes. It is durable after the next fence: several may share one.
    /// If a crash takes some of them, none of their ranges had changed.
    pub fn record(
        &mut self,
        arena: &mut Arena,
        persistence: &mut dyn Persistence,
        offset: u64,
        length: u64,
    ) -> Result<(), HeapError> {
        let place = self.next;
        let whole = (ENTRY_HEADER_BYTES + length).next_multiple_of(LINE_BYTES);
        if whole > self.end - place {
            return Err(HeapError::TransactionTooLarge);
        }
        let mut entry = Entry {
            offset,
            length: length as u32,
            checksum: 0,
            transaction: self.committed + 1,
            reserved: 0,
        };
        entry.checksum = entry.computed(arena.values(0, offset, length)?);
        let bytes = arena.as_mut_slice();
        bytes.copy_within(offset as usize..(offset + length) as usize, (place + ENTRY_HEADER_BYTES) as usize);
        bytes[place as usize..][..ENTRY_HEADER_BYTES as usize].copy_from_slice(entry.as_bytes());
        persistence.flush(arena.as_slice(), place, ENTRY_HEADER_BYTES + length);
        self.next += whole;
        Ok(())
    }

    /// Ends the running transaction. All its stores are durable.
    pub fn commit(&mut self, arena: &mut Arena, persistence: &mut dyn Persistence) {
        self.committed += 1;
        self.next = self.start;
        self.write_committed(arena, persistence);
    }

    fn write_committed(&self, arena: &mut Arena, persistence: &mut dyn Persistence) {
        let place = self.start - LINE_BYTES + std::mem::offset_of!(UndoHeader, committed) as u64;
        arena.bytes_mut(0, place, 8).expect("the undo log").copy_from_slice(&self.committed.to_le_bytes());
        persistence.flush(arena.as_slice(), place, 8);
        persistence.fence(arena.as_slice());
    }
}
