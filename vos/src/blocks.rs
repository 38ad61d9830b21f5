//! The block tier: large values and extents.

use std::{cell::Cell, fmt, rc::Rc};

use daos_types::Checksum;

use crate::Checksums;

/// Room on the block tier that was taken in memory, and whether a record names it.
#[derive(Clone)]
pub(crate) struct Reservation(Rc<Cell<bool>>);

impl Reservation {
    pub fn is(&self, other: &Reservation) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }
}

/// Bytes on the block tier that no record names yet. Dropped without having been published by an update, they are free
/// again; so they are after a crash.
pub struct StoredExtent {
    pub(crate) position: u64,
    pub(crate) length: u64,
    pub(crate) chunk_bytes: u32,
    pub(crate) checksums: Box<[Checksum]>,
    pub(crate) whole: Checksum,
    pub(crate) reservation: Reservation,
}

impl StoredExtent {
    /// Bytes.
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Whether it has no bytes: never.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    pub(crate) fn is_published(&self) -> bool {
        self.reservation.0.get()
    }

    pub(crate) fn checksums(&self) -> Checksums<'_> {
        Checksums { chunk_bytes: self.chunk_bytes, chunks: &self.checksums }
    }
}

impl fmt::Debug for StoredExtent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoredExtent({} bytes at {:#x})", self.length, self.position)
    }
}

/// Where bytes lie on the block tier, and what they must add up to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockRef {
    /// Position of the first byte of the first chunk.
    pub(crate) position: u64,
    /// First byte wanted, after that.
    pub(crate) skip: u64,
    /// Bytes wanted.
    pub(crate) length: u64,
    /// Length and CRC32C of each chunk.
    pub(crate) chunks: Vec<(u32, Checksum)>,
}

impl BlockRef {
    pub(crate) fn new(position: u64, skip: u64, length: u64, chunks: Vec<(u32, Checksum)>) -> Self {
        Self { position, skip, length, chunks }
    }

    /// Bytes that loading it gives.
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }
}
