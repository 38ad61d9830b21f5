//! What lies in the arena: the layouts of all records, and the classes of trees over them.
//!
//! ```text
//! PoolRoot ── containers: tree by UUID
//!   ContainerRecord ── objects: tree by ObjectId
//!     │  ObjectRecord ── KV: tree of KeyRecord · document: tree of KeyRecord (dkeys) · array: ArrayHead
//!     │    KeyRecord (KV key, or akey with single values) ── tree by epoch of Version
//!     │    KeyRecord (dkey) ── tree of KeyRecord (akeys)
//!     │    KeyRecord (akey with an array) ── ArrayHead ── tree by (block, epoch) of Extent
//!     └─ groups: two trees of Group, by (epoch, cookie) and by (cookie, epoch)
//! ```
//!
//! # Invariants
//!
//! * Offsets of records are multiples of 8, so that the low bits of a word that refers to one can carry a tag.
//! * A key record, an object, an array head exists while something is recorded below it, and no longer.
//! * A record below another may lie in its **nest** (see [`KeyRecord`]), and then is not a block of its own.

use daos_types::{Cookie, Epoch, KeyOrder, ObjectId, Writer, WriterKind};
use daos_umem::Heap;
use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128_with_seed};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{
    Error, memory,
    tree::{KeyClass, Probe, Summary},
};

/// Entry point of the heap.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct PoolRoot {
    pub magic: u64,
    pub version: u64,
    pub uuid: [u8; 16],
    /// Seed of the hashes of keys, so that nobody outside can make keys collide.
    pub seed: u64,
    /// Tree of containers.
    pub containers: u64,
    pub container_count: u64,
    /// Bytes of the block tier, and the root of its space map; 0 without one.
    pub block_bytes: u64,
    pub space: u64,
}

pub(crate) const POOL_MAGIC: u64 = u64::from_le_bytes(*b"daosvos\0");
/// Version 2 has narrow trees and more sizes of leaves. What version 1 allows, version 2 allows too.
pub(crate) const POOL_VERSION: u64 = 2;
/// The oldest version that can be read, and be brought up to date.
pub(crate) const POOL_VERSION_OLDEST: u64 = 1;

/// A container.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct ContainerRecord {
    pub uuid: [u8; 16],
    /// Tree of objects.
    pub objects: u64,
    /// Tree of groups by (epoch, cookie).
    pub by_epoch: u64,
    /// Tree of groups by (cookie, epoch).
    pub by_cookie: u64,
    /// List of discards that have begun: [`PendingDiscard`].
    pub discards: u64,
    pub counts: Counts,
    /// Not 0: being destroyed.
    pub destroying: u64,
    /// List of [`Boundary`]s: the upper ends of aggregated ranges.
    pub boundaries: u64,
}

/// What a container holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Counts {
    pub objects: u64,
    pub records: u64,
    pub data_bytes: u64,
}

/// A discard that has begun and must be finished before the container is used.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct PendingDiscard {
    pub next: u64,
    pub cookie: u64,
    pub low: u64,
    pub high: u64,
}

/// The upper end of a range that was aggregated.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Boundary {
    pub next: u64,
    pub high: u64,
}

/// An object.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct ObjectRecord {
    /// The three words of its ID, big-endian: its key in the tree of objects.
    pub id: [u8; 24],
    /// KV, document: tree of keys. Array: offset of its [`ArrayHead`], or 0.
    pub root: u64,
    /// Tree of punches of the whole object.
    pub punches: u64,
    /// Greatest epoch of any change below.
    pub newest: u64,
    /// Upper-layer metadata: offset of a block, or 0.
    pub metadata: u64,
    pub metadata_bytes: u64,
}

/// A negative entry of an object or a dkey.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct PunchRecord {
    pub epoch: u64,
    pub cookie: u64,
    pub map_version: u32,
    pub flags: u32,
}

/// Header of a version of a single value; the bytes (or, on the block tier, their position) follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Version {
    pub epoch: u64,
    pub cookie: u64,
    pub map_version: u32,
    pub flags: u32,
    pub checksum: u32,
    pub length: u32,
}

pub(crate) const VERSION_BYTES: u64 = size_of::<Version>() as u64;

/// A punch instead of data.
pub(crate) const PUNCHED: u32 = 1;
/// The data is on the block tier.
pub(crate) const STORED: u32 = 2;
/// Written by a rebuild.
pub(crate) const REBUILD: u32 = 4;
/// Aggregated: no group lists it any more.
pub(crate) const AGED: u32 = 8;
/// An extent that shows part of another block's data.
pub(crate) const VIEW: u32 = 16;

/// The data is in the arena, in a block of its own whose offset stands in its place.
pub(crate) const DETACHED: u32 = 32;
/// From how many bytes on data is detached: sizes that callers like are sizes of blocks, and a header on top of one would
/// waste most of the next.
pub(crate) const DETACHED_BYTES_MIN: usize = 1024;

/// Header of a key: a KV's key, a dkey or an akey. Its bytes follow, padded to 8; then its **nest**.
///
/// The nest is room for one record below this one, laid out in the same block so that a search finds it in the cache
/// lines that it has just read, and that the allocator keeps one block instead of three. It is made as large as the first
/// record below needs (if that is small), and taken again when it is free and fits.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct KeyRecord {
    /// What it is in: an object, or for an akey its dkey.
    pub parent: u64,
    /// What is below it: by [`Kind`], a tree, an [`ArrayHead`], or (extended) a [`DkeyExtension`].
    pub root: u64,
    /// CRC32C of the key's bytes.
    pub checksum: u32,
    /// Key length (17 bits), nest size in units of 8 bytes (9 bits), nest in use (1 bit), kind (3 bits), extended (1 bit).
    pub shape: u32,
}

pub(crate) const KEY_RECORD_BYTES: u64 = size_of::<KeyRecord>() as u64;
/// Largest nest, in bytes.
pub(crate) const NEST_BYTES_MAX: u64 = 511 * 8;

/// What is below a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A key of a KV, with versions of a single value.
    Key,
    /// A dkey, with akeys.
    Dkey,
    /// An akey with versions of a single value.
    Single,
    /// An akey with an array.
    Array,
}

impl KeyRecord {
    pub fn shape(key_bytes: usize, nest_bytes: u64, nested: bool, kind: Kind) -> u32 {
        key_bytes as u32 | (nest_bytes as u32 / 8) << 17 | u32::from(nested) << 26 | (kind as u32) << 27
    }

    #[inline]
    pub fn key_bytes(&self) -> u64 {
        u64::from(self.shape & 0x1_ffff)
    }

    #[inline]
    pub fn nest_bytes(&self) -> u64 {
        u64::from(self.shape >> 17 & 0x1ff) * 8
    }

    pub fn nested(&self) -> bool {
        self.shape >> 26 & 1 == 1
    }

    pub fn set_nested(&mut self, nested: bool) {
        self.shape = self.shape & !(1 << 26) | u32::from(nested) << 26;
    }

    pub fn kind(&self) -> Kind {
        match self.shape >> 27 & 7 {
            0 => Kind::Key,
            1 => Kind::Dkey,
            2 => Kind::Single,
            _ => Kind::Array,
        }
    }

    pub fn extended(&self) -> bool {
        self.shape >> 30 & 1 == 1
    }

    pub fn set_extended(&mut self) {
        self.shape |= 1 << 30;
    }

    /// Where the nest of the record at `offset` begins.
    #[inline]
    pub fn nest(&self, offset: u64) -> u64 {
        offset + KEY_RECORD_BYTES + self.key_bytes().next_multiple_of(8)
    }
}

/// What a dkey has when it has been punched: its akeys and its punches.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct DkeyExtension {
    pub akeys: u64,
    pub punches: u64,
}

/// An array.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct ArrayHead {
    /// Tree of extents.
    pub extents: u64,
    /// Bit *n* is set if there may be extents at level *n*.
    pub levels: u64,
    /// Greatest epoch of any extent that was ever inserted.
    pub newest: u64,
    /// Entries of groups that name this array and were not consumed. Some may be stale (an extent can be replaced, cut and
    /// replaced again within its epoch), so the head, and with it what holds it, stays until the last is consumed.
    pub notes: u64,
}

/// Header of an extent. What follows: checksums padded to 8 and bytes; or (stored) the position on the block tier and
/// checksums; or (view) the offset of the extent that has the data; or (punched) nothing.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Extent {
    pub start: u64,
    pub end: u64,
    pub epoch: u64,
    pub cookie: u64,
    pub map_version: u32,
    pub flags: u32,
    /// How many slots of the tree use its data: itself, or views of it.
    pub references: u32,
    pub chunk_bytes: u32,
}

pub(crate) const EXTENT_BYTES: u64 = size_of::<Extent>() as u64;

/// What one cookie changed in one epoch: a list of chunks of entries, oldest first.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Group {
    pub epoch: u64,
    pub cookie: u64,
    pub head: u64,
    pub tail: u64,
}

/// The flags of a record that `writer` writes.
pub(crate) fn writer_flags(writer: Writer) -> u32 {
    match writer.kind {
        WriterKind::Application => 0,
        WriterKind::Rebuild => REBUILD,
    }
}

/// Stamp of a record, as [`Version`], [`Extent`] and [`PunchRecord`] carry it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub epoch: Epoch,
    pub cookie: Cookie,
    pub rebuild: bool,
}

macro_rules! stamped {
    ($($type:ty),*) => {$(
        impl $type {
            pub fn stamp(&self) -> Stamp {
                Stamp {
                    epoch: Epoch(self.epoch),
                    cookie: Cookie(self.cookie),
                    rebuild: self.flags & REBUILD != 0,
                }
            }
        }
    )*};
}
stamped!(Version, PunchRecord);

/// The parts of an object ID.
pub(crate) fn object_id(object: &ObjectRecord, position: u64) -> Result<ObjectId, Error> {
    let word = |index: usize| {
        object.id[index * 8..index * 8 + 8].iter().fold(0, |word, &byte| word << 8 | u64::from(byte))
    };
    ObjectId::from_parts(word(0), word(1), word(2))
        .map_err(|_| Error::Corrupt { place: "object ID", position })
}

/// Trees of key records.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keys {
    pub order: KeyOrder,
    pub seed: u64,
}

impl Keys {
    /// The probe of a key.
    #[inline]
    pub fn of<'k>(self, key: &'k [u8]) -> Probe<'k> {
        match self.order {
            KeyOrder::Hashed => {
                let prefix = xxh3_128_with_seed(key, self.seed);
                // The tree orders by the high bits; the low ones are as good as independent of them.
                Probe { prefix, fingerprint: prefix as u8, tail: key }
            }
            KeyOrder::Integer => {
                let mut bytes = [0; 8];
                let length = key.len().min(8);
                bytes[..length].copy_from_slice(&key[..length]);
                Probe { tail: key, ..Probe::number(u128::from(u64::from_le_bytes(bytes))) }
            }
            KeyOrder::Lexical => {
                let mut bytes = [0; 16];
                let length = key.len().min(16);
                bytes[..length].copy_from_slice(&key[..length]);
                let fingerprint = xxh3_64_with_seed(key, self.seed) as u8;
                Probe { prefix: u128::from_be_bytes(bytes), fingerprint, tail: key }
            }
        }
    }
}

/// The bytes of a key.
#[inline]
pub(crate) fn key_of(heap: &Heap, record: u64) -> Result<&[u8], Error> {
    let key: &KeyRecord = memory::read(heap, record)?;
    memory::read_slice(heap, record + KEY_RECORD_BYTES, key.key_bytes())
}

/// The bytes of a key, verified against their checksum.
pub(crate) fn key_verified(heap: &Heap, record: u64) -> Result<&[u8], Error> {
    let key = key_of(heap, record)?;
    if crc32c::crc32c(key) != memory::read::<KeyRecord>(heap, record)?.checksum {
        return Err(Error::BadChecksum { place: "key", position: record });
    }
    Ok(key)
}

impl KeyClass for Keys {
    const TAILS: bool = true;
    const TAIL_IS_KEY: bool = true;

    #[inline]
    fn narrow(self) -> bool {
        self.order == KeyOrder::Hashed
    }

    fn probe(self, heap: &Heap, record: u64) -> Result<Probe<'_>, Error> {
        Ok(self.of(key_of(heap, record)?))
    }

    #[inline]
    fn tail(self, heap: &Heap, record: u64) -> Result<&[u8], Error> {
        key_of(heap, record)
    }
}

/// The tree of objects: the high and middle words are the prefix, all bytes the tail (the tail alone must tell keys apart).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Objects;

/// The tail of an object's key.
pub(crate) fn object_tail(id: ObjectId) -> [u8; 24] {
    let (high, middle, low) = id.to_parts();
    let mut bytes = [0; 24];
    for (place, word) in bytes.chunks_exact_mut(8).zip([high, middle, low]) {
        place.copy_from_slice(&word.to_be_bytes());
    }
    bytes
}

impl Objects {
    /// The probe of an object, whose tail is [`object_tail`].
    #[inline]
    pub fn of(id: ObjectId, tail: &[u8; 24]) -> Probe<'_> {
        let (high, middle, low) = id.to_parts();
        let prefix = u128::from(high) << 64 | u128::from(middle);
        let mixed = (high ^ middle.rotate_left(32) ^ low).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Probe { prefix, fingerprint: (mixed >> 56) as u8, tail }
    }
}

impl KeyClass for Objects {
    const TAILS: bool = true;
    const TAIL_IS_KEY: bool = true;

    fn probe(self, heap: &Heap, record: u64) -> Result<Probe<'_>, Error> {
        let object: &ObjectRecord = memory::read(heap, record)?;
        Ok(Self::of(object_id(object, record)?, &object.id))
    }

    #[inline]
    fn tail(self, heap: &Heap, record: u64) -> Result<&[u8], Error> {
        Ok(&memory::read::<ObjectRecord>(heap, record)?.id)
    }
}

/// A class of trees whose keys are numbers found in their records.
macro_rules! number_class {
    ($(#[$about:meta])* $name:ident, $record:ty, |$value:ident| $number:expr) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug)]
        pub(crate) struct $name;

        impl KeyClass for $name {
            const TAILS: bool = false;

            #[inline]
            fn probe(self, heap: &Heap, record: u64) -> Result<Probe<'_>, Error> {
                let $value: &$record = memory::read(heap, record)?;
                Ok(Probe::number($number))
            }

            fn tail(self, _: &Heap, _: u64) -> Result<&[u8], Error> {
                Ok(&[])
            }
        }
    };
}

number_class! {
    /// The tree of containers, by UUID.
    Containers, ContainerRecord, |container| u128::from_be_bytes(container.uuid)
}
number_class! {
    /// Trees of versions, by epoch.
    Versions, Version, |version| u128::from(version.epoch)
}
number_class! {
    /// Trees of punches, by epoch.
    Punches, PunchRecord, |punch| u128::from(punch.epoch)
}
number_class! {
    /// The tree of groups by epoch and cookie.
    ByEpoch, Group, |group| u128::from(group.epoch) << 64 | u128::from(group.cookie)
}
number_class! {
    /// The tree of groups by cookie and epoch.
    ByCookie, Group, |group| u128::from(group.cookie) << 64 | u128::from(group.epoch)
}

/// Trees of extents, by block and epoch; see [`crate::extents`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extents;

impl KeyClass for Extents {
    const TAILS: bool = false;
    const SUMMARIES: bool = true;

    #[inline]
    fn probe(self, heap: &Heap, record: u64) -> Result<Probe<'_>, Error> {
        let extent: &Extent = memory::read(heap, record)?;
        if extent.start >= extent.end || extent.end > crate::ARRAY_BYTES_MAX {
            return Err(Error::Corrupt { place: "extent", position: record });
        }
        let block = crate::extents::block_of(extent.start, extent.end);
        Ok(crate::extents::key_of(block, extent.epoch))
    }

    fn tail(self, _: &Heap, _: u64) -> Result<&[u8], Error> {
        Ok(&[])
    }

    fn summary(self, heap: &Heap, record: u64) -> Result<Summary, Error> {
        let extent: &Extent = memory::read(heap, record)?;
        Ok(Summary { start: extent.start, end: extent.end, epoch: extent.epoch })
    }
}
