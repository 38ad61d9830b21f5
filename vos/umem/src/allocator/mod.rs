//! The allocator: which parts of the arena are blocks in use.
//!
//! # Invariants
//!
//! * The truth is in the arena: the chunk table says what a chunk is used for, and for a run the bitmap table says which
//!   of its blocks are allocated. Everything in [`Allocator`] is derived from them, and is derived again for every chunk
//!   that an aborted transaction touched.
//! * The bitmap of a chunk that is no run is all zeros, as are bits beyond a run's last block.
//! * A run always has an allocated block at the end of a transaction: an empty one goes back to the free chunks. So the
//!   free space after everything is freed is that before anything was allocated.
//! * A block freed by a transaction is allocated again only after that transaction was sealed.
//!
//! An allocation from a run changes one word of the arena, and so does a free.

mod chunks;
mod classes;

pub(crate) use classes::CLASS_BYTES;
use classes::{blocks, class_of};

use crate::{
    HeapError,
    layout::{CHUNK_BYTES, Layout},
    ledger::Ledger,
};
use chunks::FreeChunks;

const NONE: u32 = u32::MAX;
const CLASS_COUNT: usize = CLASS_BYTES.len();

const KIND_FREE: u8 = 0;
const KIND_RUN: u8 = 1;
const KIND_EXTENT: u8 = 2;

/// What a chunk is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    Free,
    Run {
        class: u8,
    },
    /// The first of `chunks` chunks of one block.
    Extent {
        chunks: u32,
    },
    /// A later chunk of an extent.
    Tail,
}

impl Use {
    fn to_entry(self) -> u64 {
        match self {
            Use::Free | Use::Tail => u64::from(KIND_FREE),
            Use::Run { class } => u64::from(KIND_RUN) | u64::from(class) << 8,
            Use::Extent { chunks } => u64::from(KIND_EXTENT) | u64::from(chunks) << 32,
        }
    }

    /// What a chunk with this entry is used for, if anything can be.
    fn from_entry(entry: u64) -> Option<Self> {
        let usage = match entry as u8 {
            KIND_FREE => Use::Free,
            KIND_RUN => Use::Run { class: (entry >> 8) as u8 },
            KIND_EXTENT => Use::Extent { chunks: (entry >> 32) as u32 },
            _ => return None,
        };
        let possible = match usage {
            Use::Run { class } => usize::from(class) < CLASS_COUNT,
            Use::Extent { chunks } => chunks > 0,
            Use::Free | Use::Tail => true,
        };
        (possible && usage.to_entry() == entry).then_some(usage)
    }
}

/// What is known of one chunk.
#[derive(Clone, Copy, Debug)]
struct Chunk {
    usage: Use,
    /// Free blocks, if it is a run.
    free: u16,
    /// No word of the bitmap before this one has a free block.
    first_word: u8,
    /// Whether it is in its class's list of runs with free blocks, between these neighbours.
    listed: bool,
    next: u32,
    previous: u32,
}

/// A block in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    chunk: u32,
    /// Which block of a run; 0 for an extent.
    index: u32,
}

/// Numbers of one size class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClassUsage {
    /// Bytes of a block.
    pub block_bytes: u32,
    /// Chunks cut into such blocks.
    pub runs: u64,
    /// Blocks in use.
    pub blocks_used: u64,
    /// Blocks of those runs that are free.
    pub blocks_free: u64,
}

/// How the arena's space is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Bytes that blocks can have.
    pub capacity_bytes: u64,
    /// Bytes of blocks in use, as allocated (rounded up to their class).
    pub used_bytes: u64,
    /// Bytes that can be allocated, in blocks of some size.
    pub free_bytes: u64,
    /// Bytes in chunks that any size can use.
    pub free_chunk_bytes: u64,
    /// The largest block that can be allocated.
    pub largest_free_bytes: u64,
    /// Large blocks in use.
    pub extents: u64,
    /// By size of small blocks, ascending; classes without a run are left out.
    pub classes: Vec<ClassUsage>,
}

impl Usage {
    /// The part of the free space that only blocks of certain sizes can use, 0.0 to 1.0.
    pub fn fragmentation(&self) -> f64 {
        if self.free_bytes == 0 { 0.0 } else { 1.0 - self.free_chunk_bytes as f64 / self.free_bytes as f64 }
    }
}

/// What is derived from the allocator's tables, to find space fast.
pub(crate) struct Allocator {
    chunks: Vec<Chunk>,
    free_chunks: FreeChunks,
    /// The first run with free blocks, by class.
    partial: [u32; CLASS_COUNT],
    /// (runs, free blocks) by class.
    counts: [(u64, u64); CLASS_COUNT],
    extents: u64,
    extent_chunks: u64,
    /// Free chunks that the running transaction must leave.
    pub spare_chunks: u64,
}

impl Allocator {
    /// Reads the tables. The work is bounded by their size; no block is looked at.
    pub fn open(ledger: &Ledger) -> Result<Self, HeapError> {
        let count = ledger.layout.chunk_count as usize;
        let unknown =
            Chunk { usage: Use::Tail, free: 0, first_word: 0, listed: false, next: NONE, previous: NONE };
        let mut allocator = Self {
            chunks: vec![unknown; count],
            free_chunks: FreeChunks::none(count),
            partial: [NONE; CLASS_COUNT],
            counts: [(0, 0); CLASS_COUNT],
            extents: 0,
            extent_chunks: 0,
            spare_chunks: 0,
        };
        // From the back, so that the lists begin with the lowest chunks.
        let mut starts = Vec::new();
        let mut chunk = 0;
        while (chunk as usize) < count {
            starts.push(chunk);
            chunk += match allocator.entry(ledger, chunk)? {
                Use::Extent { chunks } => chunks,
                _ => 1,
            };
        }
        for &chunk in starts.iter().rev() {
            allocator.load(ledger, chunk)?;
        }
        Ok(allocator)
    }

    /// Allocates a block of at least `bytes`, aligned to `align`. Gives its offset and how many bytes it really has.
    #[inline]
    pub fn allocate(
        &mut self,
        ledger: &mut Ledger,
        bytes: u64,
        align: u64,
    ) -> Result<(u64, u64, Block), HeapError> {
        let (offset, got, block) = match class_of(bytes, align) {
            Some(class) => self.allocate_small(ledger, class)?,
            None => self.allocate_large(ledger, bytes)?,
        };
        ledger.allocated(offset, got);
        Ok((offset, got, block))
    }

    fn allocate_small(&mut self, ledger: &mut Ledger, class: u8) -> Result<(u64, u64, Block), HeapError> {
        let size = u64::from(CLASS_BYTES[usize::from(class)]);
        let chunk = match self.partial[usize::from(class)] {
            NONE => self.new_run(ledger, class)?,
            chunk => chunk,
        };
        let state = self.chunks[chunk as usize];
        let count = blocks(class);
        let bitmap = ledger.layout.bitmap(chunk);
        for word in u32::from(state.first_word)..count.div_ceil(64) {
            let offset = bitmap + u64::from(word) * 8;
            let bits = ledger.word(offset);
            let free = !bits & word_mask(count, word);
            if free == 0 {
                continue;
            }
            let bit = free.trailing_zeros();
            ledger.set_word(offset, bits | 1 << bit)?;
            let state = &mut self.chunks[chunk as usize];
            state.first_word = word as u8;
            state.free -= 1;
            self.counts[usize::from(class)].1 -= 1;
            if state.free == 0 {
                self.unlist(chunk, class);
            }
            let index = word * 64 + bit;
            return Ok((ledger.layout.chunk(chunk) + u64::from(index) * size, size, Block { chunk, index }));
        }
        Err(HeapError::DamagedTable(ledger.layout.chunk(chunk)))
    }

    fn find_chunks(&mut self, count: u32) -> Option<u32> {
        if self.free_chunks.count() < u64::from(count) + self.spare_chunks {
            return None;
        }
        self.free_chunks.find(count)
    }

    fn new_run(&mut self, ledger: &mut Ledger, class: u8) -> Result<u32, HeapError> {
        let size = u64::from(CLASS_BYTES[usize::from(class)]);
        let chunk = self.find_chunks(1).ok_or(HeapError::NoSpace(size))?;
        ledger.set_word(ledger.layout.chunk_entry(chunk), Use::Run { class }.to_entry())?;
        self.set_run(chunk, class, blocks(class) as u16, 0);
        Ok(chunk)
    }

    fn allocate_large(&mut self, ledger: &mut Ledger, bytes: u64) -> Result<(u64, u64, Block), HeapError> {
        let no_space = HeapError::NoSpace(bytes);
        let chunks = u32::try_from(bytes.div_ceil(CHUNK_BYTES)).map_err(|_| no_space)?;
        let chunk = self.find_chunks(chunks).ok_or(no_space)?;
        ledger.set_word(ledger.layout.chunk_entry(chunk), Use::Extent { chunks }.to_entry())?;
        self.set_extent(chunk, chunks);
        Ok((ledger.layout.chunk(chunk), u64::from(chunks) * CHUNK_BYTES, Block { chunk, index: 0 }))
    }

    /// The block in use that starts at `offset`.
    #[inline]
    pub fn block_at(&self, ledger: &Ledger, offset: u64) -> Result<(Block, u64), HeapError> {
        let not_allocated = HeapError::NotAllocated(offset);
        let within = offset.checked_sub(ledger.layout.chunks).ok_or(not_allocated)?;
        let chunk = u32::try_from(within / CHUNK_BYTES).map_err(|_| not_allocated)?;
        let state = self.chunks.get(chunk as usize).ok_or(not_allocated)?;
        let within = (within % CHUNK_BYTES) as u32;
        match state.usage {
            Use::Run { class } => {
                let size = CLASS_BYTES[usize::from(class)];
                let index = within / size;
                if index * size != within || index >= blocks(class) {
                    return Err(not_allocated);
                }
                let bits = ledger.word(ledger.layout.bitmap(chunk) + u64::from(index / 64) * 8);
                if bits >> (index % 64) & 1 == 0 {
                    return Err(not_allocated);
                }
                Ok((Block { chunk, index }, u64::from(size)))
            }
            Use::Extent { chunks } if within == 0 => {
                Ok((Block { chunk, index: 0 }, u64::from(chunks) * CHUNK_BYTES))
            }
            _ => Err(not_allocated),
        }
    }

    /// Frees a block; at the end of a transaction only, because it may be allocated again at once.
    pub fn release(&mut self, ledger: &mut Ledger, block: Block) -> Result<(), HeapError> {
        let Block { chunk, index } = block;
        let start = ledger.layout.chunk(chunk);
        match self.chunks[chunk as usize].usage {
            Use::Run { class } => {
                let offset = ledger.layout.bitmap(chunk) + u64::from(index / 64) * 8;
                let bits = ledger.word(offset);
                let bit = 1 << (index % 64);
                if bits & bit == 0 {
                    let size = u64::from(CLASS_BYTES[usize::from(class)]);
                    return Err(HeapError::NotAllocated(start + u64::from(index) * size));
                }
                ledger.set_word(offset, bits & !bit)?;
                let state = &mut self.chunks[chunk as usize];
                state.free += 1;
                state.first_word = state.first_word.min((index / 64) as u8);
                let free = u32::from(state.free);
                self.counts[usize::from(class)].1 += 1;
                if free == blocks(class) {
                    ledger.set_word(ledger.layout.chunk_entry(chunk), Use::Free.to_entry())?;
                    self.clear(chunk);
                    self.free_chunks.insert(chunk, 1);
                } else if free == 1 {
                    self.list(chunk, class);
                }
                Ok(())
            }
            Use::Extent { chunks } => {
                ledger.set_word(ledger.layout.chunk_entry(chunk), Use::Free.to_entry())?;
                self.clear(chunk);
                self.free_chunks.insert(chunk, chunks);
                Ok(())
            }
            Use::Free | Use::Tail => Err(HeapError::NotAllocated(start)),
        }
    }

    /// Derives the states of these chunks again, after the arena was put back to what it was before a transaction.
    pub fn resync(&mut self, ledger: &Ledger, touched: &[Block]) {
        // Two steps, because an extent that was allocated may lie over chunks that were freed, or the reverse.
        for block in touched {
            let chunks = match self.chunks[block.chunk as usize].usage {
                Use::Extent { chunks } => chunks,
                Use::Tail => continue,
                _ => 1,
            };
            self.clear(block.chunk);
            self.free_chunks.insert(block.chunk, chunks);
        }
        for block in touched {
            self.clear(block.chunk);
            self.load(ledger, block.chunk).expect("tables that were sound before the transaction");
        }
    }

    /// How the space is used.
    pub fn usage(&self, ledger: &Ledger) -> Usage {
        let free_chunk_bytes = self.free_chunks.count() * CHUNK_BYTES;
        let mut usage = Usage {
            capacity_bytes: ledger.layout.chunk_count * CHUNK_BYTES,
            used_bytes: self.extent_chunks * CHUNK_BYTES,
            free_bytes: free_chunk_bytes,
            free_chunk_bytes,
            largest_free_bytes: self.free_chunks.longest() * CHUNK_BYTES,
            extents: self.extents,
            classes: Vec::new(),
        };
        for (class, &(runs, blocks_free)) in self.counts.iter().enumerate().filter(|(_, count)| count.0 > 0) {
            let block_bytes = CLASS_BYTES[class];
            let blocks_used = runs * u64::from(blocks(class as u8)) - blocks_free;
            usage.used_bytes += blocks_used * u64::from(block_bytes);
            usage.free_bytes += blocks_free * u64::from(block_bytes);
            if blocks_free > 0 {
                usage.largest_free_bytes = usage.largest_free_bytes.max(u64::from(block_bytes));
            }
            usage.classes.push(ClassUsage { block_bytes, runs, blocks_used, blocks_free });
        }
        usage
    }

    /// Calls `visit` with offset and bytes of every block in use, in order.
    pub fn for_each_block(&self, ledger: &Ledger, visit: &mut dyn FnMut(u64, u64)) {
        for (chunk, state) in (0..).zip(&self.chunks) {
            let start = ledger.layout.chunk(chunk);
            match state.usage {
                Use::Free | Use::Tail => {}
                Use::Extent { chunks } => visit(start, u64::from(chunks) * CHUNK_BYTES),
                Use::Run { class } => {
                    let size = u64::from(CLASS_BYTES[usize::from(class)]);
                    for word in 0..blocks(class).div_ceil(64) {
                        let mut bits = ledger.word(ledger.layout.bitmap(chunk) + u64::from(word) * 8);
                        while bits != 0 {
                            let index = u64::from(word * 64 + bits.trailing_zeros());
                            visit(start + index * size, size);
                            bits &= bits - 1;
                        }
                    }
                }
            }
        }
    }

    /// (used bytes, free bytes), without walking anything that grows.
    pub fn used_and_free(&self) -> (u64, u64) {
        let mut used = self.extent_chunks * CHUNK_BYTES;
        let mut free = self.free_chunks.count() * CHUNK_BYTES;
        for (class, &(runs, blocks_free)) in self.counts.iter().enumerate() {
            let size = u64::from(CLASS_BYTES[class]);
            used += (runs * u64::from(blocks(class as u8)) - blocks_free) * size;
            free += blocks_free * size;
        }
        (used, free)
    }

    /// What the chunk table says of `chunk`, if it can be.
    fn entry(&self, ledger: &Ledger, chunk: u32) -> Result<Use, HeapError> {
        let damaged = HeapError::DamagedTable(ledger.layout.chunk(chunk));
        let usage = Use::from_entry(ledger.word(ledger.layout.chunk_entry(chunk))).ok_or(damaged)?;
        match usage {
            Use::Extent { chunks } if chunks as usize > self.chunks.len() - chunk as usize => Err(damaged),
            _ => Ok(usage),
        }
    }

    /// Takes over what the tables say of `chunk`, of which nothing is known so far.
    fn load(&mut self, ledger: &Ledger, chunk: u32) -> Result<(), HeapError> {
        let damaged = HeapError::DamagedTable(ledger.layout.chunk(chunk));
        match self.entry(ledger, chunk)? {
            Use::Run { class } => {
                let (count, mut used, mut first_word) = (blocks(class), 0, None);
                for word in 0..count.div_ceil(64) {
                    let bits = ledger.word(ledger.layout.bitmap(chunk) + u64::from(word) * 8);
                    let mask = word_mask(count, word);
                    if bits & !mask != 0 {
                        return Err(damaged);
                    }
                    if bits != mask && first_word.is_none() {
                        first_word = Some(word as u8);
                    }
                    used += bits.count_ones();
                }
                if used == 0 {
                    return Err(damaged);
                }
                self.set_run(chunk, class, (count - used) as u16, first_word.unwrap_or(0));
            }
            Use::Extent { chunks } => self.set_extent(chunk, chunks),
            _ => {
                self.chunks[chunk as usize].usage = Use::Free;
                self.free_chunks.insert(chunk, 1);
            }
        }
        Ok(())
    }

    fn set_run(&mut self, chunk: u32, class: u8, free: u16, first_word: u8) {
        self.free_chunks.remove(chunk, 1);
        self.chunks[chunk as usize] =
            Chunk { usage: Use::Run { class }, free, first_word, listed: false, next: NONE, previous: NONE };
        let count = &mut self.counts[usize::from(class)];
        *count = (count.0 + 1, count.1 + u64::from(free));
        if free > 0 {
            self.list(chunk, class);
        }
    }

    fn set_extent(&mut self, chunk: u32, chunks: u32) {
        self.free_chunks.remove(chunk, chunks);
        for tail in chunk + 1..chunk + chunks {
            self.chunks[tail as usize].usage = Use::Tail;
        }
        self.chunks[chunk as usize].usage = Use::Extent { chunks };
        self.extents += 1;
        self.extent_chunks += u64::from(chunks);
    }

    /// Forgets what is known of `chunk` (and of the chunks of the extent that it begins), which is free after that.
    fn clear(&mut self, chunk: u32) {
        match self.chunks[chunk as usize].usage {
            Use::Run { class } => {
                self.unlist(chunk, class);
                let free = u64::from(self.chunks[chunk as usize].free);
                let count = &mut self.counts[usize::from(class)];
                *count = (count.0 - 1, count.1 - free);
            }
            Use::Extent { chunks } => {
                for tail in chunk + 1..chunk + chunks {
                    self.chunks[tail as usize].usage = Use::Free;
                }
                self.extents -= 1;
                self.extent_chunks -= u64::from(chunks);
            }
            Use::Free | Use::Tail => {}
        }
        self.chunks[chunk as usize].usage = Use::Free;
    }

    fn list(&mut self, chunk: u32, class: u8) {
        let head = std::mem::replace(&mut self.partial[usize::from(class)], chunk);
        let state = &mut self.chunks[chunk as usize];
        (state.listed, state.next, state.previous) = (true, head, NONE);
        if head != NONE {
            self.chunks[head as usize].previous = chunk;
        }
    }

    fn unlist(&mut self, chunk: u32, class: u8) {
        let Chunk { listed, next, previous, .. } = self.chunks[chunk as usize];
        if !listed {
            return;
        }
        self.chunks[chunk as usize].listed = false;
        match previous {
            NONE => self.partial[usize::from(class)] = next,
            previous => self.chunks[previous as usize].next = next,
        }
        if next != NONE {
            self.chunks[next as usize].previous = previous;
        }
    }
}

/// The bits of `word` that stand for blocks, in a run of `count`.
#[inline]
fn word_mask(count: u32, word: u32) -> u64 {
    match count - word * 64 {
        64.. => u64::MAX,
        bits => (1 << bits) - 1,
    }
}

/// Whether the sizes of the tables agree with what is written there.
const _: () = {
    let mut class = 0;
    while class < CLASS_COUNT {
        assert!(blocks(class as u8) as u64 <= crate::layout::BITMAP_BYTES * 8);
        assert!(CLASS_BYTES[class].is_multiple_of(16));
        class += 1;
    }
    assert!(size_of::<Layout>() > 0);
};
