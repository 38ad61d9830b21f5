//! The heap: an arena with an allocator, read through shared and changed through exclusive borrows.

use std::fmt;

use crate::{
    Durable, HeapError, Off, Persisted, Sealed, Transaction, Usage,
    allocator::{Allocator, Block},
    arena::{Arena, PAGE_BYTES},
    layout::{ArenaHeader, HEADER_OFFSET, Layout},
    ledger::{Journal, Ledger},
};

/// A heap of persistent structures that refer to each other by [`Off`].
///
/// Reading borrows it shared; a [`Transaction`] borrows it exclusively. So no reader ever sees a transaction half done,
/// and nothing changes except through a transaction.
pub struct Heap {
    pub(crate) ledger: Ledger,
    pub(crate) allocator: Allocator,
    /// Blocks that the running transaction allocated or freed at its seal.
    pub(crate) touched: Vec<Block>,
    /// Blocks that the running transaction will free when it is sealed.
    pub(crate) frees: Vec<Block>,
    /// Free chunks kept for transactions that give space back.
    pub(crate) reserve_chunks: u64,
}

impl Heap {
    /// A heap in plain memory: for volatile data, the simulator, and tests under sanitizers.
    pub fn volatile(arena_bytes: u64) -> Result<Self, HeapError> {
        let layout = Layout::new(arena_bytes, 0)?;
        let mut arena = Arena::reserve(arena_bytes)?;
        format(&mut arena, &layout);
        Self::open(arena, layout, Journal::Volatile, Sealed::START)
    }

    /// The heap in an arena that holds one.
    pub(crate) fn open(
        arena: Arena,
        layout: Layout,
        journal: Journal,
        sealed: Sealed,
    ) -> Result<Self, HeapError> {
        let header = arena.value::<ArenaHeader>(0, HEADER_OFFSET)?;
        if arena.len() < layout.arena_bytes || !layout.agrees_with(header) {
            return Err(HeapError::DamagedTable(HEADER_OFFSET));
        }
        let ledger = Ledger::new(arena, layout, journal, sealed.0);
        let allocator = Allocator::open(&ledger)?;
        Ok(Self {
            ledger,
            allocator,
            touched: Vec::with_capacity(64),
            frees: Vec::with_capacity(16),
            reserve_chunks: 0,
        })
    }

    /// The value at `off`. Bounds and alignment are checked; what the bytes mean is the caller's to check.
    #[inline]
    pub fn get<T: Durable>(&self, off: Off<T>) -> Result<&T, HeapError> {
        self.ledger.arena.value(self.ledger.layout.chunks, off.raw())
    }

    /// `count` values in a row from `off`.
    #[inline]
    pub fn slice<T: Durable>(&self, off: Off<T>, count: u64) -> Result<&[T], HeapError> {
        self.ledger.arena.values(self.ledger.layout.chunks, off.raw(), count)
    }

    /// `length` bytes from `off`.
    #[inline]
    pub fn bytes(&self, off: Off<u8>, length: u64) -> Result<&[u8], HeapError> {
        self.slice(off, length)
    }

    /// Starts fetching `lines` cache lines from `off` on, so that several reads can wait for memory together. Any offset is
    /// allowed; lines that do not all exist are not fetched.
    #[inline(always)]
    pub fn prefetch<T>(&self, off: Off<T>, lines: u64) {
        self.ledger.arena.prefetch(off.raw(), lines);
    }

    /// The entry point that [`Transaction::set_root`] stored; null in a new heap.
    pub fn root<T>(&self) -> Off<T> {
        Off::new(self.header().root)
    }

    /// Begins a transaction. It has no suspension point inside: it ends before the exclusive borrow does.
    #[inline]
    pub fn begin(&mut self) -> Transaction<'_> {
        self.allocator.spare_chunks = self.reserve_chunks;
        Transaction::new(self)
    }

    /// The position of the newest sealed transaction.
    pub fn sealed(&self) -> Sealed {
        self.ledger.sealed()
    }

    /// The proof that everything sealed is as durable as it can be, if this heap's media makes that so at the seal: in
    /// plain memory and on pmem.
    pub fn persisted(&self) -> Option<Persisted> {
        match self.ledger.journal {
            Journal::Volatile | Journal::Pmem(_) => Some(Persisted(())),
            Journal::Wal(_) => None,
        }
    }

    /// How the space is used, in detail.
    pub fn usage(&self) -> Usage {
        self.allocator.usage(&self.ledger)
    }

    /// (bytes in use, free bytes), at a cost that does not grow with the heap.
    pub fn used_and_free(&self) -> (u64, u64) {
        self.allocator.used_and_free()
    }

    /// Keeps about this many bytes for transactions that say so ([`Transaction::use_reserve`]): those that give space back
    /// need some first, also when others have filled the heap.
    pub fn set_reserve(&mut self, bytes: u64) {
        self.reserve_chunks = bytes.div_ceil(crate::CHUNK_BYTES);
    }

    /// Bytes of the arena: every offset of a block is below.
    pub fn arena_bytes(&self) -> u64 {
        self.ledger.layout.arena_bytes
    }

    /// Calls `visit` with offset and bytes of every block in use, in order. For checkers.
    pub fn for_each_block(&self, visit: &mut dyn FnMut(u64, u64)) {
        self.allocator.for_each_block(&self.ledger, visit);
    }

    /// Whether a block in use starts at `off`, and how many bytes it has. For checkers.
    pub fn block_bytes<T>(&self, off: Off<T>) -> Result<u64, HeapError> {
        self.allocator.block_at(&self.ledger, off.raw()).map(|(_, bytes)| bytes)
    }

    pub(crate) fn header(&self) -> &ArenaHeader {
        self.ledger.arena.value(0, HEADER_OFFSET).expect("the header lies in the arena")
    }
}

/// Makes an arena of zeros an empty heap.
pub(crate) fn format(arena: &mut Arena, layout: &Layout) {
    const { assert!(size_of::<ArenaHeader>() <= PAGE_BYTES as usize) };
    let header = layout.header();
    let bytes = zerocopy::IntoBytes::as_bytes(&header);
    arena
        .bytes_mut(0, HEADER_OFFSET, bytes.len() as u64)
        .expect("room for the header")
        .copy_from_slice(bytes);
}

impl fmt::Debug for Heap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (used, free) = self.used_and_free();
        write!(f, "Heap({used} bytes used, {free} free)")
    }
}
