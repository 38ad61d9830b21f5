//! What callers hand to the store to be written.

use std::ops::Range;

use daos_types::Checksum;

use crate::StoredExtent;

/// First offset that no array reaches: offsets fit a signed 64-bit number.
pub const ARRAY_BYTES_MAX: u64 = 1 << 63;

/// Longest inline value or extent of one update, in bytes. Larger ones go through [`crate::Pool::store`].
pub const INLINE_BYTES_MAX: usize = 1 << 20;

/// What happens when the same cookie writes other content in an epoch in which it has written the record before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Conflict {
    /// Refuse it: replicas that get two writes in different orders would diverge.
    Refuse,
    /// The last one to arrive wins: somebody orders the writes.
    LastWins,
}

/// Checksums of an extent, one for each chunk that it touches. Chunks lie on multiples of `chunk_bytes` of the array
/// (not of the extent): the first and the last may be shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checksums<'a> {
    /// Bytes per chunk: a power of two from 512 to 2^20.
    pub chunk_bytes: u32,
    /// CRC32C of each chunk's bytes that lie in the extent, in order.
    pub chunks: &'a [Checksum],
}

/// A single value.
#[derive(Clone, Copy, Debug)]
pub enum Value<'a> {
    /// The bytes and their CRC32C, verified before they are stored.
    Inline(&'a [u8], Checksum),
    /// On the block tier already; published by the update that names it.
    Stored(&'a StoredExtent),
}

/// The bytes of an extent.
#[derive(Clone, Copy, Debug)]
pub enum ExtentData<'a> {
    /// The bytes and their checksums, verified before they are stored.
    Inline(&'a [u8], Checksums<'a>),
    /// On the block tier already; published by the update that names it.
    Stored(&'a StoredExtent),
}

/// A write to an array.
#[derive(Clone, Copy, Debug)]
pub struct ExtentUpdate<'a> {
    /// First byte.
    pub offset: u64,
    /// What to write there; not empty.
    pub data: ExtentData<'a>,
}

/// One record of a KV object.
#[derive(Clone, Copy, Debug)]
pub struct KeyUpdate<'a> {
    /// Its key.
    pub key: &'a [u8],
    /// Its value; `None` punches the key.
    pub value: Option<Value<'a>>,
}

/// What is written to an attribute key.
#[derive(Clone, Copy, Debug)]
pub enum AkeyData<'a> {
    /// A single value; `None` punches the akey, whatever it holds.
    Single(Option<Value<'a>>),
    /// Extents of a byte array.
    Extents(&'a [ExtentUpdate<'a>]),
}

/// One attribute key of a document.
#[derive(Clone, Copy, Debug)]
pub struct AkeyUpdate<'a> {
    /// Attribute key.
    pub akey: &'a [u8],
    /// What is written to it.
    pub data: AkeyData<'a>,
}

/// One atomic change of one object.
#[derive(Clone, Copy, Debug)]
pub enum Update<'a> {
    /// Records of a KV object.
    KeyValue(&'a [KeyUpdate<'a>]),
    /// Attribute keys of one distribution key.
    Document {
        /// Distribution key.
        dkey: &'a [u8],
        /// What changes below it.
        akeys: &'a [AkeyUpdate<'a>],
    },
    /// Extents of an array.
    Array(&'a [ExtentUpdate<'a>]),
}

/// What to punch: a negative entry, below which history stays readable.
#[derive(Clone, Debug)]
pub enum Punch<'a> {
    /// The object, with all it holds.
    Object,
    /// A key of a KV.
    Key(&'a [u8]),
    /// A distribution key, with all it holds.
    Dkey(&'a [u8]),
    /// An attribute key.
    Akey {
        /// Distribution key.
        dkey: &'a [u8],
        /// Attribute key.
        akey: &'a [u8],
    },
    /// Bytes of an array.
    Extent(Range<u64>),
    /// Bytes of an attribute key that holds an array.
    AkeyExtent {
        /// Distribution key.
        dkey: &'a [u8],
        /// Attribute key.
        akey: &'a [u8],
        /// Bytes.
        range: Range<u64>,
    },
}
