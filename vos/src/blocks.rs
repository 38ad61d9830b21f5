//! The block tier: large values and extents.
//!
//! # Invariants
//!
//! * A [`StoredExtent`] exists only once its bytes are durable. So a record that names them, which comes later, can never
//!   become durable before them, whatever the order in which log and block device are flushed.
//! * Until an update names it, its blocks are reserved in memory only: dropped, or after a crash, they are free. The
//!   transaction that names it makes them part of the heap (publishes them) in the same step.
//! * Blocks that a transaction frees are handed out again only when that transaction is durable (a crash before would
//!   bring back the record that names them) and no [`BlockRef`] from before it is left (a reader that still loads them).

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fmt,
    rc::Rc,
};

use daos_types::Checksum;
use daos_umem::{
    Sealed, Transaction,
    space::{Extent, Freed, Reservation as Room, SpaceMap},
};
use daos_xstream::{BLOCK_BYTES, Durability, Env, IoBuffer, Media, MediaError, MediaFile};

use crate::{
    Checksums, Error,
    error::{from_heap, from_media},
};

const BLOCK: u64 = BLOCK_BYTES as u64;
/// Bytes that are read and compared in one piece: some 30 µs.
const VERIFY_BYTES: u64 = 256 << 10;

/// The block tier of a pool.
pub(crate) struct BlockTier<E: Env> {
    file: <E::Media as Media>::File,
    pub space: Rc<RefCell<SpaceMap>>,
    failed: Cell<bool>,
}

/// Blocks taken in memory, and whether a record names them.
#[derive(Clone)]
pub(crate) struct Reservation(Rc<Reserved>);

struct Reserved {
    space: Rc<RefCell<SpaceMap>>,
    room: RefCell<Option<Room>>,
    published: Cell<bool>,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if let (false, Some(room)) = (self.published.get(), self.room.take()) {
            self.space.borrow_mut().cancel(room);
        }
    }
}

impl Reservation {
    pub fn is(&self, other: &Reservation) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }

    /// Makes the blocks part of the heap, if the transaction is sealed; then [`published`](Self::published) is to be called.
    pub fn publish(&self, space: &SpaceMap, tx: &mut Transaction<'_>) -> Result<(), Error> {
        let room = self.0.room.borrow();
        let room = room.as_ref().ok_or(Error::Invalid("stored bytes can be named by one record only"))?;
        space.publish(tx, room).map_err(from_heap)
    }

    pub fn published(&self) {
        self.0.published.set(true);
    }
}

/// A write into reserved blocks, which goes on if nobody waits for it any more. The blocks then stay reserved until the pool is
/// opened again: whoever had them next would be written over.
struct UnderWay(Option<Reservation>);

impl UnderWay {
    fn ended(mut self) -> Reservation {
        self.0.take().expect("it ends once")
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if let Some(reservation) = &self.0 {
            reservation.published();
        }
    }
}

/// Bytes on the block tier, durable there, that no record names yet. Dropped without having been published by an update,
/// they are free again; so they are after a crash.
pub struct StoredExtent {
    pub(crate) position: u64,
    pub(crate) length: u64,
    /// Bytes per chunk; 0 for a single value, which is one.
    pub(crate) chunk_bytes: u32,
    /// Where in a chunk of the array the first byte belongs.
    pub(crate) chunk_offset: u64,
    pub(crate) checksums: Box<[Checksum]>,
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
        self.reservation.0.published.get()
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

/// Readers of the block tier: how many [`BlockRef`]s there are, by the newest transaction that each of them saw.
#[derive(Default)]
pub(crate) struct Pins(RefCell<BTreeMap<Sealed, usize>>);

impl Pins {
    fn oldest(&self) -> Option<Sealed> {
        self.0.borrow().keys().next().copied()
    }
}

/// Keeps the blocks that a reader saw from being handed out again.
struct Pin {
    pins: Rc<Pins>,
    seen: Sealed,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.pins.0.borrow_mut();
        if let Some(count) = pins.get_mut(&self.seen) {
            *count -= 1;
            if *count == 0 {
                pins.remove(&self.seen);
            }
        }
    }
}

/// Where bytes lie on the block tier, and what they must add up to. While it lives they stay there.
#[derive(Clone)]
pub struct BlockRef {
    /// Position of the first byte of the first chunk.
    position: u64,
    /// First byte wanted, after that.
    skip: u64,
    /// Bytes wanted.
    length: u64,
    /// Length and CRC32C of each chunk.
    chunks: Rc<[(u32, Checksum)]>,
    _pin: Rc<Pin>,
}

impl fmt::Debug for BlockRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockRef({} bytes at {:#x})", self.length, self.position + self.skip)
    }
}

impl BlockRef {
    pub(crate) fn new(
        (pins, seen): (&Rc<Pins>, Sealed),
        (position, skip, length): (u64, u64, u64),
        chunks: Vec<(u32, Checksum)>,
    ) -> Self {
        *pins.0.borrow_mut().entry(seen).or_insert(0) += 1;
        let pin = Rc::new(Pin { pins: pins.clone(), seen });
        Self { position, skip, length, chunks: chunks.into(), _pin: pin }
    }

    /// Bytes that loading it gives.
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Reads the bytes and verifies them (`verify` is false where the simulator has planted that bug).
    pub(crate) async fn load<E: Env>(&self, tier: &BlockTier<E>, verify: bool) -> Result<IoBuffer, Error> {
        let whole: u64 = self.chunks.iter().map(|&(length, _)| u64::from(length)).sum();
        if self.skip + self.length > whole {
            return Err(Error::Corrupt { place: "reference to the block tier", position: self.position });
        }
        let start = self.position / BLOCK * BLOCK;
        let length = (self.position + whole - start).next_multiple_of(BLOCK);
        let buffer = IoBuffer::for_overwrite(length as usize);
        let (mut buffer, result) = tier.file.read(start, buffer).await;
        result.map_err(from_media)?;
        let mut at = (self.position - start) as usize;
        for &(length, checksum) in &self.chunks[..] {
            let end = at + length as usize;
            let intact = buffer.get(at..end).is_some_and(|bytes| crc32c::crc32c(bytes) == checksum.0);
            if verify && !intact {
                return Err(Error::BadChecksum { place: "the block tier", position: start + at as u64 });
            }
            at = end;
        }
        let first = (self.position + self.skip - start) as usize;
        let wanted = self.length as usize;
        if first > 0 {
            buffer.as_mut_slice().copy_within(first..first + wanted, 0);
        }
        buffer.set_len(wanted);
        Ok(buffer)
    }

    /// Compares all chunks with their checksums. However large they are, little memory is taken and no core is held long.
    pub(crate) async fn verify<E: Env>(&self, tier: &BlockTier<E>) -> Result<(), Error> {
        let whole: u64 = self.chunks.iter().map(|&(length, _)| u64::from(length)).sum();
        let last = (self.position + whole).next_multiple_of(BLOCK);
        let mut start = self.position / BLOCK * BLOCK;
        let mut buffer = IoBuffer::for_overwrite((last - start).min(VERIFY_BYTES) as usize);
        let mut chunks = self.chunks.iter();
        // Of the chunk that is being read: its checksum, where it began, that of its bytes so far, and how many are left.
        let (mut wanted, mut began, mut sum, mut left) = (Checksum(0), self.position, 0, 0);
        while start < last {
            buffer.set_len((last - start).min(VERIFY_BYTES) as usize);
            let result;
            (buffer, result) = tier.file.read(start, buffer).await;
            result.map_err(from_media)?;
            let mut at = self.position.saturating_sub(start).min(buffer.len() as u64) as usize;
            loop {
                if left == 0 {
                    if sum != wanted.0 {
                        return Err(Error::BadChecksum { place: "the block tier", position: began });
                    }
                    let Some(&(length, checksum)) = chunks.next() else { break };
                    (wanted, began, sum, left) = (checksum, start + at as u64, 0, length as usize);
                }
                let piece = left.min(buffer.len() - at);
                if piece == 0 {
                    break;
                }
                sum = crc32c::crc32c_append(sum, &buffer.as_slice()[at..at + piece]);
                (at, left) = (at + piece, left - piece);
            }
            start += buffer.len() as u64;
        }
        Ok(())
    }
}

impl<E: Env> BlockTier<E> {
    pub fn new(file: <E::Media as Media>::File, space: SpaceMap) -> Self {
        Self { file, space: Rc::new(RefCell::new(space)), failed: Cell::new(false) }
    }

    /// Lets blocks be handed out again whose frees are settled at `persisted` and unseen by readers.
    pub fn reclaim(&self, store: &daos_umem::Store<E>, pins: &Pins) {
        let persisted = store.persisted_position();
        let up_to = pins.oldest().map_or(persisted, |seen| seen.min(persisted));
        if let Some(proof) = store.is_persisted(up_to) {
            self.space.borrow_mut().reclaim(up_to, proof);
        }
    }

    /// Takes room for `bytes` bytes.
    pub fn reserve(&self, bytes: u64) -> Option<Reservation> {
        let room = self.space.borrow_mut().reserve(bytes.div_ceil(BLOCK))?;
        let reserved = Reserved {
            space: self.space.clone(),
            room: RefCell::new(Some(room)),
            published: Cell::new(false),
        };
        Some(Reservation(Rc::new(reserved)))
    }

    /// Whether a write has failed: since then it is unknown which of the blocks that were written lately are durable.
    pub fn has_failed(&self) -> bool {
        self.failed.get()
    }

    /// Writes `buffer` into reserved blocks, durably. Once a write has failed none succeeds, also not one that was under way.
    pub async fn write(
        &self,
        reservation: Reservation,
        mut buffer: IoBuffer,
        (chunk_bytes, chunk_offset): (u32, u64),
        checksums: Box<[Checksum]>,
    ) -> (IoBuffer, Result<StoredExtent, Error>) {
        let position = {
            let room = reservation.0.room.borrow();
            room.as_ref().map_or(0, |room| room.extent().start * BLOCK)
        };
        let length = buffer.len();
        let padded = length.next_multiple_of(BLOCK_BYTES);
        buffer.set_len(padded);
        buffer.as_mut_slice()[length..].fill(0);
        let under_way = UnderWay(Some(reservation));
        let (mut buffer, result) = self.file.write(position, buffer, Durability::Durable).await;
        let reservation = under_way.ended();
        buffer.set_len(length);
        let length = length as u64;
        self.failed.set(self.failed.get() || matches!(result, Err(MediaError::Failed(_))));
        if result.is_ok() && self.failed.get() {
            return (buffer, Err(Error::ReadOnly));
        }
        let stored = result
            .map(|()| StoredExtent { position, length, chunk_bytes, chunk_offset, checksums, reservation })
            .map_err(from_media);
        (buffer, stored)
    }
}

/// Frees blocks in a transaction.
pub(crate) fn free(
    space: &SpaceMap,
    tx: &mut Transaction<'_>,
    (position, bytes): (u64, u64),
) -> Result<Freed, Error> {
    let extent = Extent { start: position / BLOCK, count: bytes.div_ceil(BLOCK) };
    space.free(tx, extent).map_err(from_heap)
}
