//! The heap file: super-blocks, checksums of pages, the double-write area, and the arena's pages.
//!
//! ```text
//! block 0, 1        super-block copies
//! block 2 …         page table: 1022 checksums a block
//! …                 double-write area: header, then the blocks of one batch
//! …                 pages of the arena, each at its own place
//! ```
//!
//! # Invariants
//!
//! * Blocks other than super-blocks are written in batches: first the whole batch to the double-write area, durably, then
//!   every block at home, then a flush. So at any time either the double-write area holds what a home may lack, or all
//!   homes are whole.
//! * A page and the page-table block with its checksum are in the same batch.
//! * A page whose checksum is 0 was never written; it is all zeros and is not read.

use std::collections::BTreeMap;

use daos_xstream::{Durability, IoBuffer, MediaFile};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{
    PAGE_BYTES,
    signal::join_bounded,
    store::StoreError,
    wal::{BLOCK, IO_DEPTH, superblock::SuperBlock},
};

/// Checksums in a block of the page table.
const CHECKSUMS_PER_BLOCK: u64 = (BLOCK - 8) / 4;
const BATCH_MAGIC: u64 = u64::from_le_bytes(*b"daosbtch");
const BATCH_BLOCKS_MAX: u64 = 1000;
/// Blocks that one read joins.
const RUN_BLOCKS_MAX: u64 = 64;
/// Blocks that one write at home joins, and writes that overlap: what is copied before the first of them ends is a slice of
/// work that nobody can interrupt.
const HOME_RUN_BLOCKS_MAX: usize = 32;
const HOME_WRITES: usize = 8;

/// Where things lie in the heap file; all in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub table: u64,
    pub double_write: u64,
    pub batch_header_blocks: u64,
    pub batch_blocks: u64,
    pub pages: u64,
    pub page_count: u64,
}

impl Geometry {
    /// The layout of a heap file of `heap_bytes`.
    pub fn new(heap_bytes: u64) -> Result<Self, StoreError> {
        let blocks = heap_bytes / BLOCK;
        if !heap_bytes.is_multiple_of(BLOCK) || blocks < 128 {
            return Err(StoreError::BadGeometry(format!(
                "a heap file has whole 4 KiB blocks and at least 512 KiB, not {heap_bytes} bytes"
            )));
        }
        let batch_blocks = (blocks / 32).clamp(16, BATCH_BLOCKS_MAX);
        let batch_header_blocks = (size_of::<BatchHeader>() as u64 + batch_blocks * 16).div_ceil(BLOCK);
        let rest = blocks - 2 - batch_header_blocks - batch_blocks;
        // p pages need p / CHECKSUMS_PER_BLOCK blocks of checksums, rounded up.
        let table_blocks = rest.div_ceil(CHECKSUMS_PER_BLOCK + 1);
        let double_write = 2 + table_blocks;
        let pages = double_write + batch_header_blocks + batch_blocks;
        Ok(Self {
            table: 2,
            double_write,
            batch_header_blocks,
            batch_blocks,
            pages,
            page_count: blocks - pages,
        })
    }

    /// Bytes of the arena.
    pub fn arena_bytes(&self) -> u64 {
        self.page_count * PAGE_BYTES
    }

    fn table_blocks(&self) -> u64 {
        self.double_write - self.table
    }
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct BatchHeader {
    magic: u64,
    /// CRC32C of the header blocks, this field being zero.
    checksum: u32,
    count: u32,
    uuid: [u8; 16],
    sequence: u64,
    /// The log is durable up to here, and the batch holds nothing newer.
    valid_position: u64,
    reserved: [u64; 2],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct BatchEntry {
    block: u64,
    checksum: u32,
    reserved: u32,
}

/// Blocks on their way home.
pub(crate) struct Batch {
    buffer: IoBuffer,
    entries: Vec<BatchEntry>,
    /// Blocks of the page table that must go along, ascending.
    table_blocks: Vec<u64>,
}

impl Batch {
    /// Whether it has no page.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// A batch that was found in the double-write area: its header, its entries and their blocks.
type PendingBatch = (BatchHeader, Vec<BatchEntry>, Vec<u8>);

/// The heap file.
pub(crate) struct Image<F> {
    file: F,
    pub path: String,
    pub geometry: Geometry,
    pub super_block: SuperBlock,
    checksums: Vec<u32>,
    /// The buffer of the last batch, or of looking for one when the heap was opened. A fresh one is cleared first, in one piece, and takes a page fault for each block: 1.5 ms.
    spare: Option<IoBuffer>,
    /// Blocks that count instead of what is at home: those of a batch that is not to be written (inspection).
    overlay: BTreeMap<u64, Vec<u8>>,
}

impl<F: MediaFile> Image<F> {
    /// A heap file of which nothing has been read.
    pub fn new(file: F, path: String, geometry: Geometry, super_block: SuperBlock) -> Self {
        let checksums = vec![0; geometry.page_count as usize];
        Self { file, path, geometry, super_block, checksums, spare: None, overlay: BTreeMap::new() }
    }

    fn batch_bytes(&self) -> usize {
        ((self.geometry.batch_header_blocks + self.geometry.batch_blocks) * BLOCK) as usize
    }

    /// An empty batch.
    pub fn batch(&mut self) -> Batch {
        let bytes = self.batch_bytes();
        let mut buffer = self.spare.take().unwrap_or_else(|| IoBuffer::zeroed(bytes));
        buffer.set_len(bytes);
        Batch { buffer, entries: Vec::new(), table_blocks: Vec::new() }
    }

    /// Takes a batch back that nothing came into.
    pub fn give_back(&mut self, batch: Batch) {
        self.spare = Some(batch.buffer);
    }

    /// Whether the batch has room for another page and its checksum.
    pub fn has_room(&self, batch: &Batch) -> bool {
        (batch.entries.len() + batch.table_blocks.len() + 2) as u64 <= self.geometry.batch_blocks
    }

    /// Copies a page into the batch. Pages come in ascending order.
    pub fn add_page(&mut self, batch: &mut Batch, page: u64, bytes: &[u8]) {
        let block = self.geometry.pages + page;
        self.checksums[page as usize] = self.add_block(batch, block, bytes);
        let table_block = page / CHECKSUMS_PER_BLOCK;
        if batch.table_blocks.last() != Some(&table_block) {
            batch.table_blocks.push(table_block);
        }
    }

    fn add_block(&self, batch: &mut Batch, block: u64, bytes: &[u8]) -> u32 {
        let place = ((self.geometry.batch_header_blocks + batch.entries.len() as u64) * BLOCK) as usize;
        batch.buffer.as_mut_slice()[place..][..BLOCK as usize].copy_from_slice(bytes);
        let checksum = self.checksum(block, bytes);
        batch.entries.push(BatchEntry { block, checksum, reserved: 0 });
        checksum
    }

    /// Writes the batch. Everything in it must be durable in the log, which is durable up to `valid_position`.
    pub async fn write_batch(&mut self, mut batch: Batch, valid_position: u64) -> Result<u64, StoreError> {
        for table_block in std::mem::take(&mut batch.table_blocks) {
            let bytes = self.table_block(table_block);
            self.add_block(&mut batch, self.geometry.table + table_block, &bytes);
        }
        let sequence = self.super_block.batch_sequence + 1;
        let Geometry { batch_header_blocks, double_write, .. } = self.geometry;
        let header_bytes = (batch_header_blocks * BLOCK) as usize;
        let mut header = BatchHeader {
            magic: BATCH_MAGIC,
            checksum: 0,
            count: batch.entries.len() as u32,
            uuid: self.super_block.uuid,
            sequence,
            valid_position,
            reserved: [0; 2],
        };
        let bytes = &mut batch.buffer.as_mut_slice()[..header_bytes];
        bytes.fill(0);
        bytes[..size_of::<BatchHeader>()].copy_from_slice(header.as_bytes());
        bytes[size_of::<BatchHeader>()..][..batch.entries.len() * 16]
            .copy_from_slice(batch.entries.as_bytes());
        header.checksum = crc32c::crc32c(bytes);
        bytes[..size_of::<BatchHeader>()].copy_from_slice(header.as_bytes());

        let Batch { mut buffer, entries, .. } = batch;
        buffer.set_len(header_bytes + entries.len() * BLOCK as usize);
        let (buffer, result) = self.file.write(double_write * BLOCK, buffer, Durability::Durable).await;
        result?;
        self.write_home(&entries, &buffer.as_slice()[header_bytes..]).await?;
        self.super_block.batch_sequence = sequence;
        self.spare = Some(buffer);
        Ok(entries.len() as u64)
    }

    /// Writes blocks to where they belong; durable on return.
    async fn write_home(&self, entries: &[BatchEntry], blocks: &[u8]) -> Result<(), StoreError> {
        let mut runs = Vec::new();
        let mut start = 0;
        while start < entries.len() {
            let mut end = start + 1;
            while end < entries.len()
                && entries[end].block == entries[end - 1].block + 1
                && (end - start) < HOME_RUN_BLOCKS_MAX
            {
                end += 1;
            }
            runs.push((entries[start].block, start * BLOCK as usize..end * BLOCK as usize));
            start = end;
        }
        // Each copy is dropped once it is written, so that the next one gets its memory.
        let writes = runs.into_iter().map(async |(block, range)| {
            let copy = IoBuffer::copy_of(&blocks[range]);
            self.file.write(block * BLOCK, copy, Durability::Volatile).await.1
        });
        for result in join_bounded(writes, HOME_WRITES).await {
            result?;
        }
        Ok(self.file.flush().await?)
    }

    /// Writes the next super-block; durable on return.
    pub async fn write_super_block(&mut self) -> Result<(), StoreError> {
        self.super_block.sequence += 1;
        let block = IoBuffer::copy_of(&self.super_block.to_block());
        let place = self.super_block.sequence % 2 * BLOCK;
        let (_, result) = self.file.write(place, block, Durability::Durable).await;
        Ok(result?)
    }

    /// The batch in the double-write area, if it is whole and newer than what is at home for certain.
    async fn pending_batch(&mut self) -> Result<Option<PendingBatch>, StoreError> {
        let Geometry { double_write, .. } = self.geometry;
        let (mut buffer, result) =
            self.file.read(double_write * BLOCK, IoBuffer::zeroed(self.batch_bytes())).await;
        result?;
        let pending = self.whole_batch(buffer.as_mut_slice());
        self.spare = Some(buffer);
        Ok(pending)
    }

    /// The batch that these bytes are. `None` if it was torn on its way to this area, so that nothing of it is on its way home;
    /// or if it is home already.
    fn whole_batch(&self, bytes: &mut [u8]) -> Option<PendingBatch> {
        let Geometry { batch_header_blocks, batch_blocks, .. } = self.geometry;
        let (head, blocks) = bytes.split_at_mut((batch_header_blocks * BLOCK) as usize);
        let (header, _) = BatchHeader::read_from_prefix(head).expect("room for the header");
        head[8..12].fill(0);
        if header.magic != BATCH_MAGIC
            || header.checksum != crc32c::crc32c(head)
            || header.uuid != self.super_block.uuid
            || header.sequence <= self.super_block.batch_sequence
            || u64::from(header.count) > batch_blocks
        {
            return None;
        }
        let entries = &head[size_of::<BatchHeader>()..][..header.count as usize * 16];
        let entries =
            entries.chunks_exact(16).map(|entry| BatchEntry::read_from_bytes(entry).expect("16 bytes"));
        let entries: Vec<_> = entries.collect();
        for (entry, bytes) in entries.iter().zip(blocks.chunks_exact(BLOCK as usize)) {
            let home = (self.geometry.table..self.geometry.double_write).contains(&entry.block)
                || (self.geometry.pages..self.geometry.pages + self.geometry.page_count)
                    .contains(&entry.block);
            if !home || self.checksum(entry.block, bytes) != entry.checksum {
                return None;
            }
        }
        let blocks = blocks[..entries.len() * BLOCK as usize].to_vec();
        Some((header, entries, blocks))
    }

    /// Puts a batch home that may have been on its way when the heap was last in use. Gives up to where the log must be
    /// valid because of it.
    pub async fn recover_batch(&mut self) -> Result<u64, StoreError> {
        let Some((header, entries, blocks)) = self.pending_batch().await? else { return Ok(0) };
        // If only the process died, the batch may be whole in the device's cache alone. Homes must not be touched while
        // that is so: power could fail with them half written and the batch lost.
        self.file.flush().await?;
        self.write_home(&entries, &blocks).await?;
        self.super_block.batch_sequence = header.sequence;
        Ok(header.valid_position)
    }

    /// As [`recover_batch`](Self::recover_batch), without writing: the batch counts from now on as if it were at home.
    /// Gives the position, and the blocks of the batch.
    pub async fn overlay_batch(&mut self) -> Result<(u64, u64), StoreError> {
        let Some((header, entries, blocks)) = self.pending_batch().await? else { return Ok((0, 0)) };
        for (entry, bytes) in entries.iter().zip(blocks.chunks_exact(BLOCK as usize)) {
            self.overlay.insert(entry.block, bytes.to_vec());
        }
        Ok((header.valid_position, entries.len() as u64))
    }

    /// Puts blocks of the overlay over what was read from `first` on.
    fn cover(&self, first: u64, bytes: &mut [u8]) {
        let end = first + bytes.len() as u64 / BLOCK;
        for (block, content) in self.overlay.range(first..end) {
            bytes[((block - first) * BLOCK) as usize..][..BLOCK as usize].copy_from_slice(content);
        }
    }

    /// How many pages were ever written.
    pub fn pages_written(&self) -> u64 {
        self.checksums.iter().filter(|&&checksum| checksum != 0).count() as u64
    }

    /// Reads the page table and every page that was ever written; hands them to `page(number, bytes)`.
    pub async fn load(&mut self, page: impl FnMut(u64, &[u8])) -> Result<(), StoreError> {
        let table_blocks = self.geometry.table_blocks();
        let buffer = IoBuffer::zeroed((table_blocks * BLOCK) as usize);
        let (mut buffer, result) = self.file.read(self.geometry.table * BLOCK, buffer).await;
        result?;
        self.cover(self.geometry.table, buffer.as_mut_slice());
        for (index, bytes) in buffer.as_slice().chunks_exact(BLOCK as usize).enumerate() {
            self.read_table_block(index as u64, bytes)?;
        }
        let page = std::cell::RefCell::new(page);
        let image = &*self;
        let reads = self.written_runs().map(|(first, count)| {
            let page = &page;
            async move {
                let buffer = IoBuffer::for_overwrite((count * PAGE_BYTES) as usize);
                let home = image.geometry.pages + first;
                let (mut buffer, result) = image.file.read(home * BLOCK, buffer).await;
                result?;
                image.cover(home, buffer.as_mut_slice());
                for (number, bytes) in (first..).zip(buffer.as_slice().chunks_exact(PAGE_BYTES as usize)) {
                    let block = image.geometry.pages + number;
                    if image.checksum(block, bytes) != image.checksums[number as usize] {
                        return Err(
                            image.damaged(block, format!("page {number} of the arena has a wrong checksum"))
                        );
                    }
                    page.borrow_mut()(number, bytes);
                }
                Ok(())
            }
        });
        join_bounded(reads, IO_DEPTH).await.into_iter().collect()
    }

    /// Rows of pages that were written: (first, count).
    fn written_runs(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let mut next = 0;
        std::iter::from_fn(move || {
            let first = next + self.checksums[next..].iter().position(|&checksum| checksum != 0)?;
            // No further than the longest run: what comes after it is looked at in its turn.
            let longest = (first + RUN_BLOCKS_MAX as usize).min(self.checksums.len());
            let rest = &self.checksums[first..longest];
            let count = rest.iter().position(|&checksum| checksum == 0).unwrap_or(rest.len());
            next = first + count;
            Some((first as u64, count as u64))
        })
    }

    fn table_block(&self, index: u64) -> Vec<u8> {
        let mut block = vec![0; BLOCK as usize];
        let first = (index * CHECKSUMS_PER_BLOCK) as usize;
        let last = (first + CHECKSUMS_PER_BLOCK as usize).min(self.checksums.len());
        block[8..][..(last - first) * 4].copy_from_slice(self.checksums[first..last].as_bytes());
        let checksum = self.checksum(self.geometry.table + index, &block);
        block[..4].copy_from_slice(&checksum.to_le_bytes());
        block
    }

    fn read_table_block(&mut self, index: u64, bytes: &[u8]) -> Result<(), StoreError> {
        if bytes.iter().all(|&byte| byte == 0) {
            return Ok(());
        }
        let first = (index * CHECKSUMS_PER_BLOCK) as usize;
        let last = (first + CHECKSUMS_PER_BLOCK as usize).min(self.checksums.len());
        self.checksums[first..last].as_mut_bytes().copy_from_slice(&bytes[8..][..(last - first) * 4]);
        if self.table_block(index) != bytes {
            return Err(
                self.damaged(self.geometry.table + index, "a page-table block has a wrong checksum".into())
            );
        }
        Ok(())
    }

    /// The checksum of a block at its place in this heap's file; never 0.
    fn checksum(&self, block: u64, bytes: &[u8]) -> u32 {
        let seed = crc32c::crc32c_append(block as u32, &self.super_block.uuid);
        crc32c::crc32c_append(seed, bytes).max(1)
    }

    fn damaged(&self, block: u64, what: String) -> StoreError {
        StoreError::Damaged { file: self.path.clone(), offset: block * BLOCK, what }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_fits_at_every_size() {
        for blocks in (128..100_000).step_by(101) {
            let geometry = Geometry::new(blocks * BLOCK).expect("a geometry");
            assert!(geometry.table_blocks() * CHECKSUMS_PER_BLOCK >= geometry.page_count, "{geometry:?}");
            assert_eq!(geometry.pages + geometry.page_count, blocks);
            assert!(geometry.batch_header_blocks * BLOCK >= 64 + geometry.batch_blocks * 16);
        }
        assert!(Geometry::new(127 * BLOCK).is_err());
        assert!(Geometry::new(128 * BLOCK + 1).is_err());
    }
}
