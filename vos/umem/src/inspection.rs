//! What media says of a heap, for tools.

use uuid::Uuid;

use crate::wal::SuperBlock;

/// A frame of the log that opening the heap would apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameInfo {
    /// Its position in the log; its place in the file is that modulo the file's size.
    pub position: u64,
    /// Its number.
    pub sequence: u64,
    /// The opening of the heap in which it was written.
    pub generation: u64,
    /// Transactions in it.
    pub transactions: u32,
    /// Bytes of them.
    pub payload_bytes: u32,
}

/// What the super-block and what belongs to the media say. Sizes in bytes unless said otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// Identifies the heap.
    pub uuid: Uuid,
    /// Version of the media format.
    pub format_version: u32,
    /// Number of the super-block.
    pub super_block_sequence: u64,
    /// How often the heap was opened for writing.
    pub generation: u64,
    /// Size of the file `heap`, or of that on persistent memory.
    pub heap_bytes: u64,
    /// Size of the arena.
    pub arena_bytes: u64,
    /// What only this kind of media has.
    pub media: MediaInspection,
}

/// What one kind of media has and the others have not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MediaInspection {
    /// A checkpoint and a log.
    Wal(WalInspection),
    /// A file on persistent memory.
    Pmem {
        /// Size of the undo log.
        undo_bytes: u64,
        /// Number of the newest transaction that was committed, aborted or undone. Numbers make a random step at each opening.
        committed: u64,
        /// Entries of the undo log that opening the heap would apply: of a transaction that was cut short.
        entries_to_undo: u64,
    },
}

/// The checkpoint and the log of a `wal` heap. Sizes in bytes unless said otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalInspection {
    /// Size of the file `log`.
    pub log_bytes: u64,
    /// Blocks that a batch of the double-write area can have.
    pub batch_blocks: u64,
    /// The newest batch that is at home for certain.
    pub batch_sequence: u64,
    /// Blocks of a newer batch that opening the heap would write home.
    pub batch_blocks_pending: u64,
    /// Pages of the arena that a checkpoint ever wrote.
    pub pages_written: u64,
    /// Replay begins at this position,
    pub replay_position: u64,
    /// with the frame of this number.
    pub replay_sequence: u64,
    /// The log must be valid up to here.
    pub valid_position: u64,
    /// It is valid up to here.
    pub log_end: u64,
    /// The frames between, oldest first.
    pub frames: Vec<FrameInfo>,
}

impl Inspection {
    /// What `of` says, with what `media` is known to have.
    pub(crate) fn of(of: &SuperBlock, media: MediaInspection) -> Self {
        Self {
            uuid: Uuid::from_bytes(of.uuid),
            format_version: of.format_version,
            super_block_sequence: of.sequence,
            generation: of.generation,
            heap_bytes: of.heap_bytes,
            arena_bytes: of.arena_bytes,
            media,
        }
    }
}
