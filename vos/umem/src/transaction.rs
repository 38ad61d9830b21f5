//! A transaction: a unit of atomicity over allocations, frees and stores.

use zerocopy::IntoBytes;

use crate::{
    Durable, Heap, HeapError, Off, Sealed,
    layout::{ArenaHeader, HEADER_OFFSET},
};

/// Changes to the heap that happen all or not at all. Its stores are visible to itself at once. [`Transaction::seal`]
/// makes them part of the heap; dropping it without takes everything back.
///
/// After an error other than [`HeapError::NoSpace`], [`HeapError::OutOfBounds`] and [`HeapError::Misaligned`] drop it.
#[must_use = "a transaction that is not sealed is undone"]
pub struct Transaction<'h> {
    heap: &'h mut Heap,
    sealed: bool,
}

impl<'h> Transaction<'h> {
    #[inline]
    pub(crate) fn new(heap: &'h mut Heap) -> Self {
        Self { heap, sealed: false }
    }

    /// Lets this transaction have what the heap keeps back for those that give space back ([`Heap::set_reserve`]).
    pub fn use_reserve(&mut self) {
        self.heap.allocator.spare_chunks = 0;
    }

    /// The heap as this transaction sees it.
    #[inline]
    pub fn heap(&self) -> &Heap {
        self.heap
    }

    /// The value at `off`, with this transaction's changes.
    #[inline]
    pub fn get<T: Durable>(&self, off: Off<T>) -> Result<&T, HeapError> {
        self.heap.get(off)
    }

    /// `count` values in a row from `off`, with this transaction's changes.
    #[inline]
    pub fn slice<T: Durable>(&self, off: Off<T>, count: u64) -> Result<&[T], HeapError> {
        self.heap.slice(off, count)
    }

    /// `length` bytes from `off`, with this transaction's changes.
    #[inline]
    pub fn bytes(&self, off: Off<u8>, length: u64) -> Result<&[u8], HeapError> {
        self.heap.slice(off, length)
    }

    /// The heap's entry point.
    pub fn root<T>(&self) -> Off<T> {
        self.heap.root()
    }

    /// Says that these ranges (offset, bytes) are about to change. Nothing needs it, but on pmem stores into ranges that were
    /// announced together wait for the device once, not each for itself.
    #[inline]
    pub fn announce(&mut self, ranges: &[(u64, u64)]) -> Result<(), HeapError> {
        let first = self.heap.ledger.layout.chunks;
        self.heap.ledger.announce(first, ranges)
    }

    /// Stores a value: a whole one, or a field through [`crate::field!`].
    #[inline]
    pub fn set<T: Durable>(&mut self, off: Off<T>, value: &T) -> Result<(), HeapError> {
        aligned(off)?;
        self.write(off.cast(), value.as_bytes())
    }

    /// Stores `values` in a row from `off`.
    #[inline]
    pub fn set_slice<T: Durable>(&mut self, off: Off<T>, values: &[T]) -> Result<(), HeapError> {
        aligned(off)?;
        self.write(off.cast(), values.as_bytes())
    }

    /// Changes the value at `off` in place. All of it counts as changed, so for one field of a large value use
    /// [`Transaction::set`] with [`crate::field!`].
    #[inline]
    pub fn update<T: Durable, R>(
        &mut self,
        off: Off<T>,
        change: impl FnOnce(&mut T) -> R,
    ) -> Result<R, HeapError> {
        aligned(off)?;
        let bytes = self.change(off.raw(), size_of::<T>() as u64)?;
        let value = T::mut_from_bytes(bytes).map_err(|_| HeapError::Misaligned(off.raw()))?;
        Ok(change(value))
    }

    /// Stores bytes.
    #[inline]
    pub fn write(&mut self, off: Off<u8>, bytes: &[u8]) -> Result<(), HeapError> {
        self.change(off.raw(), bytes.len() as u64)?.copy_from_slice(bytes);
        Ok(())
    }

    /// Changes `length` bytes from `off` in place.
    #[inline]
    pub fn update_bytes<R>(
        &mut self,
        off: Off<u8>,
        length: u64,
        change: impl FnOnce(&mut [u8]) -> R,
    ) -> Result<R, HeapError> {
        Ok(change(self.change(off.raw(), length)?))
    }

    /// Copies `length` bytes within the arena; the ranges may overlap.
    #[inline]
    pub fn move_within(&mut self, from: Off<u8>, to: Off<u8>, length: u64) -> Result<(), HeapError> {
        self.heap.bytes(from, length)?;
        self.change(to.raw(), length)?;
        let from = from.raw() as usize;
        self.heap.ledger.arena.as_mut_slice().copy_within(from..from + length as usize, to.raw() as usize);
        Ok(())
    }

    /// Allocates room for a `T` and stores `value` there.
    #[inline]
    pub fn allocate<T: Durable>(&mut self, value: &T) -> Result<Off<T>, HeapError> {
        self.allocate_with(align_of::<T>() as u64, &[value.as_bytes()]).map(Off::cast)
    }

    /// Allocates room for `values` in a row and stores them there.
    #[inline]
    pub fn allocate_slice<T: Durable>(&mut self, values: &[T]) -> Result<Off<T>, HeapError> {
        self.allocate_with(align_of::<T>() as u64, &[values.as_bytes()]).map(Off::cast)
    }

    /// Allocates room for the concatenation of `parts`, aligned to `align` (a power of two, at most a page), and stores
    /// it there. Blocks are aligned to 16 in any case.
    #[inline]
    pub fn allocate_with(&mut self, align: u64, parts: &[&[u8]]) -> Result<Off<u8>, HeapError> {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let off = self.allocate_block(length as u64, align)?;
        let first = self.heap.ledger.layout.chunks;
        let mut room = self.heap.ledger.change_fresh(first, off.raw(), length as u64)?;
        for part in parts {
            let (head, rest) = room.split_at_mut(part.len());
            head.copy_from_slice(part);
            room = rest;
        }
        Ok(off)
    }

    /// Allocates `length` bytes of zeros, aligned to `align` (a power of two, at most a page).
    pub fn allocate_zeroed(&mut self, length: u64, align: u64) -> Result<Off<u8>, HeapError> {
        let off = self.allocate_block(length, align)?;
        let first = self.heap.ledger.layout.chunks;
        self.heap.ledger.change_fresh(first, off.raw(), length)?.fill(0);
        Ok(off)
    }

    /// Allocates `length` bytes whose content means nothing, and need not survive a crash, until it is written.
    #[inline]
    pub fn allocate_bytes(&mut self, length: u64) -> Result<Off<u8>, HeapError> {
        self.allocate_block(length, 1)
    }

    /// How many bytes a block for `length` bytes really takes; what lies between is the caller's to use.
    pub fn block_bytes<T>(&self, off: Off<T>) -> Result<u64, HeapError> {
        self.heap.block_bytes(off)
    }

    /// Frees the block that starts at `off` when the transaction is sealed; until then it stays readable, and only after
    /// that can it be allocated again.
    #[inline]
    pub fn free<T>(&mut self, off: Off<T>) -> Result<(), HeapError> {
        let (block, _) = self.heap.allocator.block_at(&self.heap.ledger, off.raw())?;
        self.heap.frees.push(block);
        Ok(())
    }

    /// Stores the heap's entry point.
    pub fn set_root<T>(&mut self, root: Off<T>) -> Result<(), HeapError> {
        let place = HEADER_OFFSET + std::mem::offset_of!(ArenaHeader, root) as u64;
        self.heap.ledger.change(0, place, 8)?.copy_from_slice(&root.raw().to_le_bytes());
        Ok(())
    }

    /// Makes the changes part of the heap. On an error the transaction has been undone. A transaction that changed
    /// nothing gets the position of the newest one that did.
    #[inline]
    pub fn seal(mut self) -> Result<Sealed, HeapError> {
        let heap = &mut *self.heap;
        for index in 0..heap.frees.len() {
            let block = heap.frees[index];
            heap.touched.push(block);
            heap.allocator.release(&mut heap.ledger, block)?;
        }
        let sealed = heap.ledger.seal()?;
        heap.frees.clear();
        heap.touched.clear();
        self.sealed = true;
        Ok(sealed)
    }

    #[inline]
    fn allocate_block(&mut self, length: u64, align: u64) -> Result<Off<u8>, HeapError> {
        let heap = &mut *self.heap;
        let (offset, _, block) = heap.allocator.allocate(&mut heap.ledger, length, align)?;
        heap.touched.push(block);
        Ok(Off::new(offset))
    }

    #[inline]
    fn change(&mut self, offset: u64, length: u64) -> Result<&mut [u8], HeapError> {
        let first = self.heap.ledger.layout.chunks;
        self.heap.ledger.change(first, offset, length)
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        if !self.sealed {
            let heap = &mut *self.heap;
            heap.ledger.abort();
            heap.allocator.resync(&heap.ledger, &heap.touched);
            heap.frees.clear();
            heap.touched.clear();
        }
    }
}

#[inline]
fn aligned<T>(off: Off<T>) -> Result<(), HeapError> {
    if off.raw().is_multiple_of(align_of::<T>() as u64) {
        Ok(())
    } else {
        Err(HeapError::Misaligned(off.raw()))
    }
}
