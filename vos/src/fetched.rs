//! What the store hands to callers that read.

use std::ops::Range;

use daos_types::{Checksum, Epoch, ObjectId};

use crate::{BlockRef, Checksums};

/// Answer to a read at an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fetched<T> {
    /// The newest change at or before the epoch is this.
    Value(T),
    /// It is a punch, made in this epoch.
    Punched(Epoch),
    /// There is no change at or before the epoch.
    Miss,
}

/// A single value, borrowed from the store.
#[derive(Clone, Debug)]
pub struct ValueRef<'a> {
    /// Epoch in which it was written.
    pub epoch: Epoch,
    /// Bytes.
    pub length: u64,
    /// CRC32C of the bytes, as the writer gave it. Inline bytes were verified against it.
    pub checksum: Checksum,
    /// Where the bytes are.
    pub data: Data<'a>,
}

/// Bytes in the arena, or where they are on the block tier.
#[derive(Clone, Debug)]
pub enum Data<'a> {
    /// In the arena; verified.
    Inline(&'a [u8]),
    /// On the block tier: to be loaded (and verified) by [`crate::Pool::load`].
    Stored(BlockRef),
}

/// A piece of an array as it is at an epoch. The pieces of an answer are in order, do not overlap, and cover exactly the
/// range asked for.
#[derive(Clone, Debug)]
pub struct Piece<'a> {
    /// Bytes of the array.
    pub range: Range<u64>,
    /// What is there.
    pub content: Fetched<PieceData<'a>>,
}

/// Bytes of an array.
#[derive(Clone, Debug)]
pub struct PieceData<'a> {
    /// Epoch in which they were written.
    pub epoch: Epoch,
    /// The bytes of the piece.
    pub data: Data<'a>,
}

/// An extent as it was recorded (less what the same cookie wrote over it later in the same epoch).
#[derive(Clone, Debug)]
pub struct RecordedExtent<'a> {
    /// Bytes of the array.
    pub range: Range<u64>,
    /// Epoch of the write or punch.
    pub epoch: Epoch,
    /// Whether it is a punch.
    pub punched: bool,
    /// Checksums of the write that made it, if it is one.
    pub checksums: Option<Checksums<'a>>,
}

/// A record that changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change<'a> {
    /// When.
    pub epoch: Epoch,
    /// The object.
    pub object: ObjectId,
    /// Distribution key, or key of a KV; `None` for arrays and punches of whole objects.
    pub dkey: Option<&'a [u8]>,
    /// Attribute key, if there is one.
    pub akey: Option<&'a [u8]>,
}

/// Space and counts of a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of the arena that can hold data.
    pub arena_bytes: u64,
    /// Of these, free.
    pub arena_bytes_free: u64,
    /// Bytes of the block tier.
    pub block_bytes: u64,
    /// Of these, free.
    pub block_bytes_free: u64,
    /// Containers.
    pub containers: u64,
}

/// The log of a pool. All zero where the media need none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogUsage {
    /// Bytes of the log.
    pub bytes: u64,
    /// Of these, in use: written since the last checkpoint.
    pub bytes_used: u64,
    /// Durable writes to it, each of which carries all that was sealed meanwhile.
    pub commits: u64,
    /// Bytes of them.
    pub bytes_written: u64,
    /// Checkpoints completed.
    pub checkpoints: u64,
}

/// Counts of a container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ContainerUsage {
    /// Objects.
    pub objects: u64,
    /// Records: versions of values, extents, negative entries.
    pub records: u64,
    /// Bytes of values and extents, every version counted.
    pub data_bytes: u64,
}

/// Where an enumeration stands: after the last thing it gave. Concurrent changes do not invalidate it; what is there
/// from begin to end is given exactly once. It can be sent and stored ([`Anchor::to_bytes`]).
///
/// An entry below which very much is removed takes several calls ([`Anchor::is_within`]). It is there from begin to end if one and the
/// same thing below it is: if what is visible below it moves meanwhile, it may be missed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Anchor(pub(crate) Position);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Position {
    #[default]
    Start,
    After(Vec<u8>),
    /// Somewhere below an entry of which it is not known yet whether anything is visible.
    Within {
        /// The entry before it; `None` if it is the first.
        before: Option<Vec<u8>>,
        /// The entry, and below it the keys from one level to the next: the last was looked at, those before it in part. In an
        /// array the last is an [`EndSearch`](crate::EndSearch).
        path: Vec<Vec<u8>>,
    },
    End,
}

impl Anchor {
    /// The place after `key` in a listing of keys, whether there is such a key or not.
    pub fn after(key: &[u8]) -> Self {
        Anchor(Position::After(key.to_vec()))
    }

    /// Whether everything was given.
    pub fn at_end(&self) -> bool {
        self.0 == Position::End
    }

    /// Whether the last call has ended in the midst of an entry, because too much below it is invisible. The listing goes on there
    /// from this anchor; from its [bytes](Self::to_bytes) it begins with that entry anew.
    pub fn is_within(&self) -> bool {
        matches!(self.0, Position::Within { .. })
    }

    /// The anchor in a form to be sent or stored.
    pub fn to_bytes(&self) -> Vec<u8> {
        match &self.0 {
            Position::Start | Position::Within { before: None, .. } => vec![0],
            Position::End => vec![2],
            Position::After(key) | Position::Within { before: Some(key), .. } => {
                [&[1], key.as_slice()].concat()
            }
        }
    }

    /// The anchor that these bytes are, if they are one.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Anchor(match bytes {
            [] | [0] => Position::Start,
            [2] => Position::End,
            [1, key @ ..] if key.len() <= daos_types::KEY_BYTES_MAX => Position::After(key.to_vec()),
            _ => return None,
        }))
    }
}
