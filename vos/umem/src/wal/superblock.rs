//! The super-block: what a heap is, and where its recovery begins.
//!
//! # Invariants
//!
//! * There are two copies, in the first two blocks of the heap file (of the arena on pmem); they are written in turn, so
//!   that one is whole at any time. The one with the greater sequence number counts.
//! * All its fields lie in the first 512 bytes: under the assumption that a sector is written whole or not, a crash never
//!   leaves a copy that is neither old nor new. A copy whose checksum is wrong is damaged, not torn.

use uuid::Uuid;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{store::StoreError, wal::BLOCK};

/// The media format that this code writes and reads.
pub const FORMAT_VERSION: u32 = 1;
const MAGIC: u64 = u64::from_le_bytes(*b"daosheap");

/// The fields, in the order of media.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct SuperBlock {
    pub magic: u64,
    pub format_version: u32,
    /// CRC32C of the whole block, this field being zero.
    pub checksum: u32,
    pub uuid: [u8; 16],
    /// The greater one counts; copy `sequence % 2`.
    pub sequence: u64,
    /// 1 `wal`, 2 `pmem`.
    pub media_kind: u64,
    /// Bytes of the heap file.
    pub heap_bytes: u64,
    pub arena_bytes: u64,
    pub undo_bytes: u64,
    pub log_bytes: u64,
    /// Blocks in a batch of the double-write area.
    pub batch_blocks: u64,
    /// How often the heap has been opened for writing.
    pub generation: u64,
    /// A random number that seeds the checksums of the log, so that no user's bytes can pass for a frame.
    pub log_key: u64,
    /// Replay begins at this position of the log,
    pub replay_position: u64,
    /// where the frame with this sequence number is expected.
    pub replay_sequence: u64,
    /// The log was durable up to here when this was written, so replay must get here.
    pub valid_position: u64,
    /// The newest double-write batch that is at home for certain.
    pub batch_sequence: u64,
}

const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<SuperBlock>() == 136);
    // `docs/format.md` says so.
    assert!(offset_of!(SuperBlock, checksum) == 12 && offset_of!(SuperBlock, uuid) == 16);
    assert!(offset_of!(SuperBlock, log_bytes) == 72 && offset_of!(SuperBlock, replay_position) == 104);
};

/// Media kinds in a super-block.
pub(crate) const KIND_WAL: u64 = 1;
pub(crate) const KIND_PMEM: u64 = 2;

impl SuperBlock {
    /// A super-block with these fields, before its first write.
    pub fn magic() -> u64 {
        MAGIC
    }

    /// The block as it goes to media.
    pub fn to_block(self) -> Vec<u8> {
        let mut block = vec![0; BLOCK as usize];
        block[..size_of::<Self>()].copy_from_slice(Self { checksum: 0, ..self }.as_bytes());
        let checksum = crc32c::crc32c(&block);
        block[..size_of::<Self>()].copy_from_slice(Self { checksum, ..self }.as_bytes());
        block
    }

    /// The super-block of `file` from its two copies, and whether the other copy is damaged: that may have been the newer one.
    pub fn choose(file: &str, copies: [&[u8]; 2]) -> Result<(Self, bool), StoreError> {
        let parsed = copies.map(|copy| Self::parse(file, copy));
        match parsed {
            [Ok(a), Ok(b)] => {
                if a.uuid != b.uuid {
                    return Err(StoreError::WrongUuid {
                        file: file.to_owned(),
                        found: Uuid::from_bytes(b.uuid),
                        expected: Uuid::from_bytes(a.uuid),
                    });
                }
                Ok((if a.sequence > b.sequence { a } else { b }, false))
            }
            [Ok(one), Err(error)] | [Err(error), Ok(one)] => match error {
                // A newer software wrote one copy and not yet the other.
                StoreError::UnknownFormat { .. } => Err(error),
                StoreError::Damaged { .. } => Ok((one, true)),
                _ => Ok((one, false)),
            },
            // Say which copy is damaged rather than that there is nothing, if one looks like a super-block.
            [Err(StoreError::NotFormatted(_)), Err(error)] | [Err(error), Err(_)] => Err(error),
        }
    }

    fn parse(file: &str, block: &[u8]) -> Result<Self, StoreError> {
        let (fields, _) = Self::read_from_prefix(block).expect("a whole block");
        if fields.magic != MAGIC {
            return Err(match block.iter().all(|&byte| byte == 0) {
                true => StoreError::NotFormatted(file.to_owned()),
                false => damaged(file, "neither super-block has the magic number"),
            });
        }
        // In every version the first 16 bytes mean the same and the checksum covers the block.
        let mut unsigned = block.to_vec();
        unsigned[12..16].fill(0);
        if crc32c::crc32c(&unsigned) != fields.checksum {
            return Err(damaged(file, "no super-block has a right checksum"));
        }
        if fields.format_version != FORMAT_VERSION {
            return Err(StoreError::UnknownFormat {
                file: file.to_owned(),
                found: fields.format_version,
                known: FORMAT_VERSION,
            });
        }
        Ok(fields)
    }
}

fn damaged(file: &str, what: &str) -> StoreError {
    StoreError::Damaged { file: file.to_owned(), offset: 0, what: what.to_owned() }
}
