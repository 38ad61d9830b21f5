//! Space of a block device: which of its blocks hold data that the heap refers to.
//!
//! # Invariants
//!
//! * The truth is a bitmap in the arena, changed by transactions. [`SpaceMap`] is what one process knows beyond it: blocks
//!   *reserved* for data that is being written and not yet referred to, and blocks *freed* by a transaction that is not
//!   yet durable.
//! * A block is handed out only if it is free in all three senses. So data is never written over blocks that a recovered
//!   heap could refer to: not those of a free that a crash undoes, nor those that somebody else is writing.
//! * A crash forgets reservations. Their blocks are free again, and no durable transaction refers to them.

use std::collections::VecDeque;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{Heap, HeapError, Off, Persisted, Sealed, Transaction};

/// Blocks in a segment: the unit of the summary that finds space.
const SEGMENT_BLOCKS: u64 = 4096;
const SEGMENT_WORDS: usize = (SEGMENT_BLOCKS / 64) as usize;

/// The persistent half of a space map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SpaceRoot {
    /// Blocks of the device.
    block_count: u64,
    /// Blocks that the heap refers to.
    used: u64,
    /// A bit per block; 1 is in use. Allocated in pieces of [`PIECE_WORDS`], so that no large extent is needed.
    pieces: Off<Off<u64>>,
    piece_count: u64,
}

/// Words of the bitmap in one block of the arena (32 KiB, 1 GiB of 4 KiB blocks).
const PIECE_WORDS: u64 = 4096;
const PIECE_BLOCKS: u64 = PIECE_WORDS * 64;

/// Blocks in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Extent {
    /// The first block.
    pub start: u64,
    /// How many.
    pub count: u64,
}

/// Blocks reserved for data that nothing refers to yet. [`SpaceMap::publish`] makes them part of the heap;
/// [`SpaceMap::cancel`] gives them back.
#[derive(Debug)]
#[must_use = "reserved blocks stay so until they are published or cancelled"]
pub struct Reservation(Extent);

impl Reservation {
    /// The blocks.
    pub fn extent(&self) -> Extent {
        self.0
    }
}

/// Blocks freed in a transaction; hand it to [`SpaceMap::settle`] with the position at which that was sealed. If the
/// transaction was not sealed, drop it.
#[derive(Debug)]
#[must_use = "freed blocks are handed out again only after `settle`"]
pub struct Freed(Extent);

/// The space of a block device, as one process sees it.
pub struct SpaceMap {
    root: Off<SpaceRoot>,
    pieces: Vec<Off<u64>>,
    block_count: u64,
    /// A bit per block that must not be handed out.
    busy: Vec<u64>,
    /// Blocks that may be handed out, by segment.
    free_in_segment: Vec<u32>,
    free: u64,
    /// Where the last search ended.
    cursor: usize,
    /// Freed, in order of the positions at which that becomes durable.
    settling: VecDeque<(Sealed, Extent)>,
}

impl SpaceMap {
    /// Makes the map of a device of `block_count` blocks, all free.
    pub fn create(transaction: &mut Transaction<'_>, block_count: u64) -> Result<Off<SpaceRoot>, HeapError> {
        let piece_count = block_count.div_ceil(PIECE_BLOCKS);
        let mut pieces: Vec<Off<u64>> = Vec::new();
        for _ in 0..piece_count {
            pieces.push(transaction.allocate_zeroed(PIECE_WORDS * 8, 8)?.cast());
        }
        let pieces = transaction.allocate_slice(&pieces)?;
        transaction.allocate(&SpaceRoot { block_count, used: 0, pieces, piece_count })
    }

    /// The map at `root`. The work is bounded by the size of the bitmap: 32 KiB per GiB of the device.
    pub fn open(heap: &Heap, root: Off<SpaceRoot>) -> Result<Self, HeapError> {
        let SpaceRoot { block_count, used, pieces, piece_count } = *heap.get(root)?;
        let damaged = HeapError::DamagedTable(root.raw());
        if piece_count != block_count.div_ceil(PIECE_BLOCKS) || used > block_count {
            return Err(damaged);
        }
        let pieces = heap.slice(pieces, piece_count)?.to_vec();
        let mut busy = Vec::new();
        for &piece in &pieces {
            busy.extend_from_slice(heap.slice(piece, PIECE_WORDS)?);
        }
        busy.truncate(block_count.div_ceil(64) as usize);
        let found: u64 = busy.iter().map(|word| u64::from(word.count_ones())).sum();
        let mut last = u64::MAX;
        if !block_count.is_multiple_of(64)
            && let Some(word) = busy.last_mut()
        {
            // What lies beyond the device is never free.
            last <<= block_count % 64;
            if *word & last != 0 {
                return Err(damaged);
            }
            *word |= last;
        }
        if found != used {
            return Err(damaged);
        }
        let free_in_segment =
            busy.chunks(SEGMENT_WORDS).map(|words| words.iter().map(|w| w.count_zeros()).sum());
        let free_in_segment: Vec<u32> = free_in_segment.collect();
        Ok(Self {
            root,
            pieces,
            block_count,
            free: block_count - used,
            busy,
            free_in_segment,
            cursor: 0,
            settling: VecDeque::new(),
        })
    }

    /// The blocks of the arena that the map is made of: offset and bytes. For checkers.
    pub fn parts(&self, heap: &Heap) -> Result<Vec<(u64, u64)>, HeapError> {
        let list = heap.get(self.root)?.pieces;
        let mut parts = vec![(self.root.raw(), size_of::<SpaceRoot>() as u64)];
        parts.push((list.raw(), self.pieces.len() as u64 * 8));
        parts.extend(self.pieces.iter().map(|piece| (piece.raw(), PIECE_WORDS * 8)));
        Ok(parts)
    }

    /// Word `index` of the bitmap in the arena: blocks `64 * index` and the 63 after it; 1 is in use. For checkers.
    pub fn word(&self, heap: &Heap, index: u64) -> Result<u64, HeapError> {
        let bad = HeapError::OutOfBounds { offset: index * 64, length: 64 };
        let piece = self.pieces.get((index / PIECE_WORDS) as usize).ok_or(bad)?;
        heap.get(piece.element(index % PIECE_WORDS)).copied()
    }

    /// Blocks of the device.
    pub fn block_count(&self) -> u64 {
        self.block_count
    }

    /// Blocks that can be handed out now.
    pub fn free_blocks(&self) -> u64 {
        self.free
    }

    /// Blocks that the heap refers to.
    pub fn used_blocks(&self, heap: &Heap) -> Result<u64, HeapError> {
        Ok(heap.get(self.root)?.used)
    }

    /// Blocks freed by transactions that are not durable yet.
    pub fn settling_blocks(&self) -> u64 {
        self.settling.iter().map(|(_, extent)| extent.count).sum()
    }

    /// The first position whose persistence would give blocks back, if any are waiting for one.
    pub fn settles_at(&self) -> Option<Sealed> {
        self.settling.front().map(|&(sealed, _)| sealed)
    }

    /// Reserves `count` blocks in a row, the first that fit after the last ones found. `None` if there is no such row:
    /// nothing changed, and a retry helps after frees have settled.
    pub fn reserve(&mut self, count: u64) -> Option<Reservation> {
        if count == 0 || self.free < count {
            return None;
        }
        let start = self.find(self.cursor, self.free_in_segment.len(), count);
        let start = start.or_else(|| self.find(0, self.free_in_segment.len(), count))?;
        let extent = Extent { start, count };
        self.set_busy(extent, true);
        self.cursor = (start / SEGMENT_BLOCKS) as usize;
        Some(Reservation(extent))
    }

    /// Makes reserved blocks part of the heap. If the transaction is not sealed, `reservation` is still what it was: keep
    /// it until the seal, then drop it, or [`SpaceMap::cancel`] it.
    pub fn publish(
        &self,
        transaction: &mut Transaction<'_>,
        reservation: &Reservation,
    ) -> Result<(), HeapError> {
        self.set_used(transaction, reservation.0, true)
    }

    /// Gives reserved blocks back that were not published.
    pub fn cancel(&mut self, reservation: Reservation) {
        self.set_busy(reservation.0, false);
    }

    /// Frees blocks that the heap refers to.
    pub fn free(&self, transaction: &mut Transaction<'_>, extent: Extent) -> Result<Freed, HeapError> {
        self.set_used(transaction, extent, false)?;
        Ok(Freed(extent))
    }

    /// Says that the transaction which freed these blocks was sealed at `sealed`.
    pub fn settle(&mut self, freed: Freed, sealed: Sealed) {
        self.settling.push_back((sealed, freed.0));
    }

    /// Lets the blocks be handed out again whose frees are durable, everything up to `persisted` being so.
    pub fn reclaim(&mut self, persisted: Sealed, _: Persisted) {
        while let Some(&(sealed, extent)) = self.settling.front()
            && sealed <= persisted
        {
            self.settling.pop_front();
            self.set_busy(extent, false);
        }
    }

    /// The first row of `count` free blocks that begins in the segments `from..to`.
    fn find(&self, from: usize, to: usize, count: u64) -> Option<u64> {
        let mut segment = from;
        // The row that ends where the search stands.
        let (mut start, mut length) = (0, 0);
        while segment < self.free_in_segment.len() {
            let free = u64::from(self.free_in_segment[segment]);
            let first = segment as u64 * SEGMENT_BLOCKS;
            let blocks = SEGMENT_BLOCKS.min(self.block_count - first);
            if free == 0 {
                length = 0;
            } else if free == blocks {
                if length == 0 {
                    start = first;
                }
                length += blocks;
                if length >= count {
                    return Some(start);
                }
            } else if length + free >= count
                || count <= SEGMENT_BLOCKS
                || length > 0
                || self.ends_free(segment)
            {
                for word in segment * SEGMENT_WORDS..((segment + 1) * SEGMENT_WORDS).min(self.busy.len()) {
                    let (mut bits, mut bit) = (self.busy[word], 0);
                    while bit < 64 {
                        let zeros = u64::from(bits.trailing_zeros()).min(64 - bit);
                        if zeros > 0 {
                            if length == 0 {
                                start = word as u64 * 64 + bit;
                            }
                            length += zeros;
                            if length >= count {
                                return Some(start);
                            }
                            bit += zeros;
                            bits = bits.checked_shr(zeros as u32).unwrap_or(0);
                        }
                        if bit < 64 {
                            let ones = u64::from(bits.trailing_ones()).min(64 - bit);
                            bit += ones;
                            bits = bits.checked_shr(ones as u32).unwrap_or(0);
                            length = 0;
                        }
                    }
                }
            }
            segment += 1;
            if segment >= to && length == 0 {
                return None;
            }
        }
        None
    }

    fn ends_free(&self, segment: usize) -> bool {
        self.busy.get((segment + 1) * SEGMENT_WORDS - 1).is_some_and(|word| word >> 63 == 0)
    }

    fn set_busy(&mut self, extent: Extent, busy: bool) {
        for (word, mask) in words(extent) {
            let bits = &mut self.busy[word as usize];
            debug_assert_eq!(
                *bits & mask,
                if busy { 0 } else { mask },
                "blocks of {extent:?} are used twice"
            );
            *bits = if busy { *bits | mask } else { *bits & !mask };
            let segment = &mut self.free_in_segment[word as usize / SEGMENT_WORDS];
            *segment = if busy { *segment - mask.count_ones() } else { *segment + mask.count_ones() };
        }
        self.free = if busy { self.free - extent.count } else { self.free + extent.count };
    }

    fn set_used(
        &self,
        transaction: &mut Transaction<'_>,
        extent: Extent,
        used: bool,
    ) -> Result<(), HeapError> {
        let bad = HeapError::OutOfBounds { offset: extent.start, length: extent.count };
        let end = extent.start.checked_add(extent.count).ok_or(bad)?;
        if extent.count == 0 || end > self.block_count {
            return Err(bad);
        }
        for (word, mask) in words(extent) {
            let off = self.pieces[(word / PIECE_WORDS) as usize].element(word % PIECE_WORDS);
            let bits = *transaction.get(off)?;
            if bits & mask != if used { 0 } else { mask } {
                return Err(HeapError::NotAllocated(extent.start));
            }
            transaction.set(off, &(bits ^ mask))?;
        }
        let field = crate::field!(self.root, SpaceRoot, used);
        let count = *transaction.get(field)?;
        let count = if used { count.checked_add(extent.count) } else { count.checked_sub(extent.count) };
        transaction.set(field, &count.ok_or(HeapError::DamagedTable(self.root.raw()))?)
    }
}

/// The words of a bitmap that hold an extent's bits, with those bits.
fn words(extent: Extent) -> impl Iterator<Item = (u64, u64)> {
    let end = extent.start + extent.count;
    (extent.start / 64..end.div_ceil(64)).map(move |word| {
        let low = extent.start.saturating_sub(word * 64);
        let high = (end - word * 64).min(64);
        let mask = if high - low == 64 { u64::MAX } else { ((1 << (high - low)) - 1) << low };
        (word, mask)
    })
}
