//! Where things lie in the arena.
//!
//! ```text
//!   0 ┌──────────────────────────┐
//!     │ two super-block copies   │  8 KiB; used on pmem only, elsewhere zeros
//!     ├──────────────────────────┤
//!     │ arena header             │  4 KiB: geometry, root
//!     ├──────────────────────────┤
//!     │ chunk table              │  8 bytes per chunk: what the chunk is used for
//!     ├──────────────────────────┤
//!     │ bitmap table             │  512 bytes per chunk: which blocks of a run are allocated
//!     ├──────────────────────────┤
//!     │ undo log                 │  pmem only, elsewhere empty
//!     ├──────────────────────────┤  aligned to 64 KiB
//!     │ chunks of 64 KiB         │  blocks
//!     └──────────────────────────┘
//! ```

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{HeapError, arena::PAGE_BYTES};

/// Bytes of a chunk: the unit in which space is given to size classes and large extents.
pub const CHUNK_BYTES: u64 = 64 * 1024;
/// Bytes of the bitmap of one chunk: a bit per 16 bytes.
pub(crate) const BITMAP_BYTES: u64 = CHUNK_BYTES / 16 / 8;
/// Where the arena header lies.
pub(crate) const HEADER_OFFSET: u64 = 2 * PAGE_BYTES;
const CHUNK_ENTRY_BYTES: u64 = 8;
const ARENA_MAGIC: u64 = u64::from_le_bytes(*b"daosaren");

/// The arena header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct ArenaHeader {
    pub magic: u64,
    pub arena_bytes: u64,
    pub chunk_count: u64,
    pub undo_bytes: u64,
    /// The heap's one entry point, set by its user; 0 while there is none.
    pub root: u64,
}

/// Places that follow from the size of an arena and of its undo log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub arena_bytes: u64,
    pub chunk_count: u64,
    pub undo_bytes: u64,
    pub chunk_table: u64,
    pub bitmap_table: u64,
    pub undo_log: u64,
    pub chunks: u64,
}

impl Layout {
    /// The layout of an arena of `arena_bytes` with an undo log of `undo_bytes`, both in whole pages.
    pub fn new(arena_bytes: u64, undo_bytes: u64) -> Result<Self, HeapError> {
        let bad = HeapError::BadGeometry(arena_bytes);
        if !(4 * CHUNK_BYTES..=1 << 46).contains(&arena_bytes)
            || undo_bytes > arena_bytes / 2
            || !arena_bytes.is_multiple_of(PAGE_BYTES)
            || !undo_bytes.is_multiple_of(PAGE_BYTES)
        {
            return Err(bad);
        }
        // The tables depend on the number of chunks and the room for chunks on the tables: start above and go down.
        let mut chunk_count = arena_bytes / (CHUNK_BYTES + CHUNK_ENTRY_BYTES + BITMAP_BYTES) + 1;
        while chunk_count > 0 {
            let chunk_table = HEADER_OFFSET + PAGE_BYTES;
            let bitmap_table = chunk_table + (chunk_count * CHUNK_ENTRY_BYTES).next_multiple_of(PAGE_BYTES);
            let undo_log = bitmap_table + (chunk_count * BITMAP_BYTES).next_multiple_of(PAGE_BYTES);
            let chunks = (undo_log + undo_bytes).next_multiple_of(CHUNK_BYTES);
            if chunks + chunk_count * CHUNK_BYTES <= arena_bytes {
                return Ok(Self {
                    arena_bytes,
                    chunk_count,
                    undo_bytes,
                    chunk_table,
                    bitmap_table,
                    undo_log,
                    chunks,
                });
            }
            chunk_count -= 1;
        }
        Err(bad)
    }

    /// The header that a new arena of this layout gets.
    pub fn header(&self) -> ArenaHeader {
        ArenaHeader {
            magic: ARENA_MAGIC,
            arena_bytes: self.arena_bytes,
            chunk_count: self.chunk_count,
            undo_bytes: self.undo_bytes,
            root: 0,
        }
    }

    /// Whether `header` is that of an arena of this layout.
    pub fn agrees_with(&self, header: &ArenaHeader) -> bool {
        ArenaHeader { root: 0, ..*header } == self.header()
    }

    /// Where the entry of `chunk` lies in the chunk table.
    #[inline]
    pub fn chunk_entry(&self, chunk: u32) -> u64 {
        self.chunk_table + u64::from(chunk) * CHUNK_ENTRY_BYTES
    }

    /// Where the bitmap of `chunk` lies.
    #[inline]
    pub fn bitmap(&self, chunk: u32) -> u64 {
        self.bitmap_table + u64::from(chunk) * BITMAP_BYTES
    }

    /// Where `chunk` lies.
    #[inline]
    pub fn chunk(&self, chunk: u32) -> u64 {
        self.chunks + u64::from(chunk) * CHUNK_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_and_chunks_fit_without_overlap_at_every_size() {
        for pages in (64..40_000u64).step_by(37) {
            for undo_pages in [0, 16] {
                let layout = Layout::new(pages * PAGE_BYTES, undo_pages * PAGE_BYTES).expect("a layout");
                assert!(layout.bitmap_table >= layout.chunk_entry(layout.chunk_count as u32));
                assert!(layout.undo_log >= layout.bitmap(layout.chunk_count as u32));
                assert!(layout.chunks >= layout.undo_log + layout.undo_bytes);
                assert!(layout.chunk(layout.chunk_count as u32) <= layout.arena_bytes);
            }
        }
        assert!(Layout::new(4096, 0).is_err());
        assert!(Layout::new((1 << 20) + 1, 0).is_err());
    }
}
