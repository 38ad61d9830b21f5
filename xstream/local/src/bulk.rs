//! Bulk transfers through the shared area.
//!
//! The client cuts *pieces* of whole pages out of its area and writes, for each piece, a key and later the engine writes what it stored into a table of
//! 64 bytes per page. The entries of a piece's pages, taken together, are
//!
//! ```text
//!   word 0       key: 0 = not exposed; bit 0: the engine may write (else: read); bit 1: the engine is at it
//!   word 1       number of extents that the engine has written
//!   words 2..    one extent each: offset within the piece << 32 | length
//! ```
//!
//! # Invariants
//!
//! * **The engine** uses an offset and a length only after it has checked them against the size of the area, which it has chosen itself. The
//!   table belongs to the peer: whatever stands there can make a transfer fail or hit another part *of that peer's own area*.
//! * The engine sets bit 1 of the key by one compare-and-swap before it touches a piece and takes it back after, within one call that
//!   does not wait. So a client that finds the bit clear and clears the key knows that the engine will not touch the piece
//!   again, however late an old request is served. A client that finds the bit set does not reuse the piece until it is clear.
//! * The client copies back only the extents that the engine has written: bytes of a buffer that the engine did not write stay as they were.
//!   Extents that touch are merged; if the table is too small for a scattered transfer the transfer fails and says so.

use std::collections::BTreeMap;

use daos_xstream::{Access, FabricError, RemoteBuffer};

use crate::{
    atomic::{AtomicU64, Ordering},
    region::Region,
    words::{WORD_BYTES, load_bytes, store_bytes},
};

/// Unit of the bulk area.
pub(crate) const PAGE_BYTES: u64 = 4096;
/// Bytes of the table for each page of the area.
pub(crate) const TABLE_ENTRY_BYTES: u64 = 64;
const ENTRY_WORDS: usize = TABLE_ENTRY_BYTES as usize / WORD_BYTES;

const KEY_WRITE: u64 = 1;
const KEY_BUSY: u64 = 2;
const EXTENT_COUNT: usize = 1;
const FIRST_EXTENT: usize = 2;

/// A run of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    page: u32,
    pages: u32,
}

impl Piece {
    fn entries(self, region: &Region) -> &[AtomicU64] {
        let start = self.page as usize * ENTRY_WORDS;
        &region.table()[start..start + self.pages as usize * ENTRY_WORDS]
    }

    fn area(self, region: &Region) -> &[AtomicU64] {
        let words = PAGE_BYTES as usize / WORD_BYTES;
        let start = self.page as usize * words;
        &region.bulk()[start..start + self.pages as usize * words]
    }
}

// ---- The engine's side ------------------------------------------------------------------------------------------------

/// A piece in use by the engine, for the time of one call.
struct Claim<'a> {
    entries: &'a [AtomicU64],
    area: &'a [AtomicU64],
    key: u64,
}

impl<'a> Claim<'a> {
    /// Checks `length` bytes at `skip` of `remote` against the area, then the key.
    fn new(
        region: &'a Region,
        remote: RemoteBuffer,
        skip: u64,
        length: usize,
        access: Access,
    ) -> Option<Self> {
        let within = skip.checked_add(length as u64).is_some_and(|end| end <= remote.length);
        let pages = remote.length.div_ceil(PAGE_BYTES).max(1);
        let end = pages.checked_mul(PAGE_BYTES)?.checked_add(remote.offset)?;
        let aligned = remote.offset.is_multiple_of(PAGE_BYTES);
        let may_write = remote.key & KEY_WRITE != 0;
        let plausible = remote.key & !(KEY_WRITE | KEY_BUSY) != 0 && remote.key & KEY_BUSY == 0;
        let inside = end <= region.layout().bulk_bytes();
        if !(within && aligned && plausible && inside) || may_write != (access == Access::Write) {
            return None;
        }
        let piece = Piece { page: (remote.offset / PAGE_BYTES) as u32, pages: pages as u32 };
        let entries = piece.entries(region);
        // One attempt: nothing that a peer does to the word can hold the engine up.
        entries[0]
            .compare_exchange(remote.key, remote.key | KEY_BUSY, Ordering::AcqRel, Ordering::Relaxed)
            .ok()
            .map(|key| Self { entries, area: piece.area(region), key })
    }

    /// Notes that `length` bytes at `offset` of the piece are about to be written.
    fn note_written(&self, offset: u64, length: usize) -> Result<(), FabricError> {
        let extents = &self.entries[FIRST_EXTENT..];
        // The peer's word: read once, bounded by what the table holds.
        let count = self.entries[EXTENT_COUNT].load(Ordering::Relaxed) as usize;
        if count > extents.len() {
            return Err(FabricError::NotExposed);
        }
        if let Some(last) = count.checked_sub(1) {
            let (start, written) = unpack_extent(extents[last].load(Ordering::Relaxed));
            if start + written == offset {
                extents[last].store(pack_extent(start, written + length as u64), Ordering::Relaxed);
                return Ok(());
            }
        }
        let Some(next) = extents.get(count) else {
            return Err(FabricError::Failed("too many scattered pieces for one remote buffer".to_owned()));
        };
        next.store(pack_extent(offset, length as u64), Ordering::Relaxed);
        self.entries[EXTENT_COUNT].store(count as u64 + 1, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        // Whatever else the peer has put there meanwhile is its own affair.
        let _ = self.entries[0].compare_exchange(
            self.key | KEY_BUSY,
            self.key,
            Ordering::Release,
            Ordering::Relaxed,
        );
    }
}

fn pack_extent(offset: u64, length: u64) -> u64 {
    // An area has at most 2^30 bytes; what a lying table makes of it is masked here and checked by its reader.
    (offset & u64::from(u32::MAX)) << 32 | length & u64::from(u32::MAX)
}

fn unpack_extent(word: u64) -> (u64, u64) {
    (word >> 32, word & u64::from(u32::MAX))
}

/// Fills `out` from the peer's exposed memory.
pub(crate) fn engine_read(
    region: &Region,
    remote: RemoteBuffer,
    skip: u64,
    out: &mut [u8],
) -> Result<(), FabricError> {
    let claim = Claim::new(region, remote, skip, out.len(), Access::Read).ok_or(FabricError::NotExposed)?;
    load_bytes(claim.area, skip as usize, out);
    Ok(())
}

/// Writes `bytes` to the peer's exposed memory.
pub(crate) fn engine_write(
    region: &Region,
    remote: RemoteBuffer,
    skip: u64,
    bytes: &[u8],
) -> Result<(), FabricError> {
    let claim =
        Claim::new(region, remote, skip, bytes.len(), Access::Write).ok_or(FabricError::NotExposed)?;
    if bytes.is_empty() {
        return Ok(());
    }
    claim.note_written(skip, bytes.len())?;
    store_bytes(claim.area, skip as usize, bytes);
    Ok(())
}

// ---- The client's side ------------------------------------------------------------------------------------------------

/// Which pages of the area are free. Private to the client.
#[derive(Debug)]
pub(crate) struct Area {
    pages: u32,
    /// First page of each free run, and its length. Runs do not touch.
    free: BTreeMap<u32, u32>,
    /// Withdrawn while the engine was at them.
    zombies: Vec<Piece>,
}

impl Area {
    /// All of `bytes` is free.
    pub fn new(bytes: u64) -> Self {
        let pages = (bytes / PAGE_BYTES) as u32;
        Self { pages, free: BTreeMap::from([(0, pages)]), zombies: Vec::new() }
    }

    /// Takes the first run that is long enough.
    fn take(&mut self, length: u64) -> Result<Piece, FabricError> {
        let limit = u64::from(self.pages) * PAGE_BYTES;
        if length > limit {
            return Err(FabricError::TooLong { length, limit });
        }
        let pages = length.div_ceil(PAGE_BYTES).max(1) as u32;
        let (&page, &run) = self.free.iter().find(|(_, run)| **run >= pages).ok_or(FabricError::Busy)?;
        self.free.remove(&page);
        if run > pages {
            self.free.insert(page + pages, run - pages);
        }
        Ok(Piece { page, pages })
    }

    fn give_back(&mut self, piece: Piece) {
        let Piece { mut page, mut pages } = piece;
        if let Some((&before, &run)) = self.free.range(..page).next_back() {
            debug_assert!(before + run <= page, "a piece is given back once");
            if before + run == page {
                self.free.remove(&before);
                (page, pages) = (before, pages + run);
            }
        }
        if let Some(run) = self.free.remove(&(page + pages)) {
            pages += run;
        }
        self.free.insert(page, pages);
    }

    /// Cuts out a piece and lets the engine at it.
    pub fn expose(
        &mut self,
        region: &Region,
        random: u64,
        bytes: &[u8],
        access: Access,
    ) -> Result<(Piece, RemoteBuffer), FabricError> {
        self.bury(region);
        let piece = self.take(bytes.len() as u64)?;
        if access == Access::Read {
            store_bytes(piece.area(region), 0, bytes);
        }
        let mut key = random & !(KEY_WRITE | KEY_BUSY) | 4;
        if access == Access::Write {
            key |= KEY_WRITE;
        }
        let entries = piece.entries(region);
        entries[EXTENT_COUNT].store(0, Ordering::Relaxed);
        entries[0].store(key, Ordering::Release);
        let offset = u64::from(piece.page) * PAGE_BYTES;
        Ok((piece, RemoteBuffer { key, offset, length: bytes.len() as u64 }))
    }

    /// Takes the key back and copies what the engine wrote to `bytes`.
    pub fn withdraw(&mut self, region: &Region, piece: Piece, key: u64, bytes: Option<&mut [u8]>) {
        let revoked = revoke(region, piece, key);
        if let Some(bytes) = bytes
            && key & KEY_WRITE != 0
        {
            copy_written(region, piece, bytes);
        }
        if revoked { self.give_back(piece) } else { self.zombies.push(piece) }
    }

    /// Frees the pieces that the engine has let go since.
    fn bury(&mut self, region: &Region) {
        for zombie in std::mem::take(&mut self.zombies) {
            let key = zombie.entries(region)[0].load(Ordering::Relaxed) & !KEY_BUSY;
            if revoke(region, zombie, key) { self.give_back(zombie) } else { self.zombies.push(zombie) }
        }
    }

    /// Whether everything is free again.
    #[cfg(test)]
    pub fn is_unused(&self) -> bool {
        self.zombies.is_empty() && self.free == BTreeMap::from([(0, self.pages)])
    }
}

/// Clears the key unless the engine is at the piece just now.
fn revoke(region: &Region, piece: Piece, key: u64) -> bool {
    piece.entries(region)[0].compare_exchange(key, 0, Ordering::AcqRel, Ordering::Acquire).is_ok()
}

fn copy_written(region: &Region, piece: Piece, bytes: &mut [u8]) {
    let entries = piece.entries(region);
    let count = entries[EXTENT_COUNT].load(Ordering::Relaxed) as usize;
    for extent in entries[FIRST_EXTENT..].iter().take(count) {
        let (start, length) = unpack_extent(extent.load(Ordering::Relaxed));
        if let Some(out) = bytes.get_mut(start as usize..(start + length) as usize) {
            load_bytes(piece.area(region), start as usize, out);
        }
    }
}
