//! Access to the heap by raw offset. Records have parts of variable length, whose places are computed; these few functions
//! keep the casts in one place.

use daos_umem::{Durable, Heap, Off, Transaction};

use crate::{Error, error::from_heap};

#[inline]
pub(crate) fn read<T: Durable>(heap: &Heap, offset: u64) -> Result<&T, Error> {
    heap.get(Off::new(offset)).map_err(from_heap)
}

#[inline]
pub(crate) fn read_slice<T: Durable>(heap: &Heap, offset: u64, count: u64) -> Result<&[T], Error> {
    heap.slice(Off::new(offset), count).map_err(from_heap)
}

#[inline(always)]
pub(crate) fn prefetch(heap: &Heap, offset: u64, lines: u64) {
    heap.prefetch(Off::<u8>::new(offset), lines);
}

#[inline]
pub(crate) fn write<T: Durable>(tx: &mut Transaction<'_>, offset: u64, value: &T) -> Result<(), Error> {
    tx.set(Off::new(offset), value).map_err(from_heap)
}

#[inline]
pub(crate) fn write_slice<T: Durable>(
    tx: &mut Transaction<'_>,
    offset: u64,
    values: &[T],
) -> Result<(), Error> {
    tx.set_slice(Off::new(offset), values).map_err(from_heap)
}

/// Says that these ranges (offset, bytes) are about to change: see [`Transaction::announce`].
#[inline]
pub(crate) fn announce(tx: &mut Transaction<'_>, ranges: &[(u64, u64)]) -> Result<(), Error> {
    tx.announce(ranges).map_err(from_heap)
}

/// A block whose bytes mean nothing until they are written.
#[inline]
pub(crate) fn allocate(tx: &mut Transaction<'_>, bytes: u64) -> Result<u64, Error> {
    Ok(tx.allocate_bytes(bytes).map_err(from_heap)?.raw())
}

/// A block with the concatenation of `parts`.
#[inline]
pub(crate) fn allocate_with(tx: &mut Transaction<'_>, parts: &[&[u8]]) -> Result<u64, Error> {
    Ok(tx.allocate_with(8, parts).map_err(from_heap)?.raw())
}

#[inline]
pub(crate) fn free(tx: &mut Transaction<'_>, offset: u64) -> Result<(), Error> {
    tx.free(Off::<u8>::new(offset)).map_err(from_heap)
}
