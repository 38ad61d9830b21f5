//! Memory that devices and fabrics may touch: aligned, and owned by whoever does the I/O.

use std::{fmt, ops::Range};

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

impl IoBuffer {
    /// A buffer of `length` zero bytes; its capacity is rounded up to whole blocks.
    pub fn zeroed(length: usize) -> Self {
        // The fallible constructor is the one that asks the allocator for zero pages instead of clearing them.
        let blocks = Block::new_vec_zeroed(length.div_ceil(BLOCK_BYTES)).expect("memory for an I/O buffer");
        Self { blocks, length }
    }

    /// A buffer with a copy of `bytes`.
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut buffer = Self::zeroed(bytes.len());
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

impl fmt::Debug for IoBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IoBuffer({} of {} bytes)", self.length, self.capacity())
    }
}
