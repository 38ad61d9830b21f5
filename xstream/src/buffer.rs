//! Memory that devices and fabrics may touch: aligned, and owned by whoever does the I/O.

use std::{cell::RefCell, collections::VecDeque, fmt, ops::Range};

use zerocopy::{FromZeros, Immutable, IntoBytes, KnownLayout};

/// Alignment and unit of capacity of an [`IoBuffer`], and the unit of block media, in bytes.
pub const BLOCK_BYTES: usize = 4096;

#[derive(Clone, Copy, zerocopy::FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
struct Block([u8; BLOCK_BYTES]);

/// A run of bytes on 4 KiB-aligned memory, fit for O_DIRECT and for remote memory access.
///
/// It is moved into an I/O call and comes back with the result. Its address never changes while it lives.
pub struct IoBuffer {
    blocks: Vec<Block>,
    length: usize,
}

/// Smaller buffers cost the allocator nothing worth saving.
const SPARE_BLOCKS_MIN: usize = 4;
/// Blocks that a thread keeps for buffers to come: 16 MiB.
const SPARE_BLOCKS_MAX: usize = 4096;

/// The memory of dropped buffers, for those to come: fresh memory of this size costs a page fault for each block, which is
/// more than filling it takes.
#[derive(Default)]
struct Spare {
    runs: VecDeque<Vec<Block>>,
    blocks: usize,
}

thread_local! {
    static SPARE: RefCell<Spare> = RefCell::default();
}

impl IoBuffer {
    /// A buffer of `length` bytes that the caller overwrites, all of them: until then they hold anything, such as what
    /// passed through an earlier buffer.
    pub fn for_overwrite(length: usize) -> Self {
        let wanted = length.div_ceil(BLOCK_BYTES);
        let spare = SPARE.try_with(|spare| {
            let spare = &mut *spare.borrow_mut();
            // The one that was dropped last is the one most likely to be in the cache.
            let place = spare.runs.iter().rposition(|run| (wanted..=2 * wanted).contains(&run.len()))?;
            let run = spare.runs.remove(place)?;
            spare.blocks -= run.len();
            Some(run)
        });
        match spare.ok().flatten() {
            Some(blocks) => Self { blocks, length },
            None => Self::zeroed(length),
        }
    }

    /// A buffer of `length` zero bytes; its capacity is rounded up to whole blocks.
    pub fn zeroed(length: usize) -> Self {
        // In place: made one by one, blocks would be copied. Aligned memory is cleared at once, not when it is touched.
        let blocks = Block::new_vec_zeroed(length.div_ceil(BLOCK_BYTES)).expect("memory for an I/O buffer");
        Self { blocks, length }
    }

    /// A buffer with a copy of `bytes`.
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut buffer = Self::for_overwrite(bytes.len());
        buffer.as_mut_slice().copy_from_slice(bytes);
        buffer
    }

    /// Bytes in use.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether no byte is in use.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Bytes that fit without moving: a multiple of [`BLOCK_BYTES`].
    pub fn capacity(&self) -> usize {
        self.blocks.len() * BLOCK_BYTES
    }

    /// Changes how many bytes are in use. Bytes beyond the old length keep what they held.
    ///
    /// # Panics
    ///
    /// If `length` exceeds the capacity: a buffer in flight must not move.
    pub fn set_len(&mut self, length: usize) {
        assert!(length <= self.capacity(), "an I/O buffer of {} bytes cannot hold {length}", self.capacity());
        self.length = length;
    }

    /// The bytes in use.
    pub fn as_slice(&self) -> &[u8] {
        &self.blocks.as_bytes()[..self.length]
    }

    /// The bytes in use, writable.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.blocks.as_mut_bytes()[..self.length]
    }

    /// Part of the bytes in use; `None` if it does not lie within them.
    pub fn get(&self, range: Range<usize>) -> Option<&[u8]> {
        self.as_slice().get(range)
    }
}

impl Drop for IoBuffer {
    fn drop(&mut self) {
        let run = std::mem::take(&mut self.blocks);
        if (SPARE_BLOCKS_MIN..=SPARE_BLOCKS_MAX).contains(&run.len()) {
            // A thread that is ending keeps nothing any more.
            let _ = SPARE.try_with(|spare| {
                let spare = &mut *spare.borrow_mut();
                spare.blocks += run.len();
                spare.runs.push_back(run);
                // Those that nobody has asked for the longest make room.
                while spare.blocks > SPARE_BLOCKS_MAX {
                    spare.blocks -= spare.runs.pop_front().map_or(0, |run| run.len());
                }
            });
        }
    }
}

impl fmt::Debug for IoBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IoBuffer({} of {} bytes)", self.length, self.capacity())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again_and_only_within_bounds() {
        let large = IoBuffer::zeroed(1 << 20);
        let address = large.as_slice().as_ptr();
        drop(large);
        let again = IoBuffer::for_overwrite((1 << 20) - 5);
        assert_eq!((again.as_slice().as_ptr(), again.len()), (address, (1 << 20) - 5));
        let other = IoBuffer::for_overwrite(1 << 20);
        assert_ne!(other.as_slice().as_ptr(), address);
        drop(again);
        // Much larger than wanted: kept for somebody who needs it.
        assert_ne!(IoBuffer::for_overwrite(8192).as_slice().as_ptr(), address);
        let many: Vec<_> = (0..32).map(|_| IoBuffer::zeroed(1 << 20)).collect();
        drop(many);
        SPARE.with_borrow(|spare| {
            assert_eq!(spare.blocks, spare.runs.iter().map(Vec::len).sum::<usize>());
            assert!(spare.blocks <= SPARE_BLOCKS_MAX);
        });
    }

    #[test]
    fn zeroed_is_zero_whatever_was_there() {
        let mut dirty = IoBuffer::zeroed(1 << 16);
        dirty.as_mut_slice().fill(7);
        drop(dirty);
        assert!(IoBuffer::zeroed(1 << 16).as_slice().iter().all(|&byte| byte == 0));
    }
}
