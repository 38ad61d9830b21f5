//! What can go wrong with a sharded object.

use daos_types::{ObjectId, ObjectType};

use crate::{class::ClassError, placement::PlacementError};

/// Why an operation on an object failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DsrError {
    /// The object's class is unknown or not served. Nothing was changed; a retry cannot help.
    #[error(transparent)]
    Class(#[from] ClassError),
    /// The object cannot be placed in this pool. Nothing was changed.
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// The object is of another type. Nothing was changed; a retry cannot help.
    #[error("object {object} is of type {found:?}, not {wanted:?}")]
    WrongType {
        /// The object.
        object: ObjectId,
        /// Its type.
        found: ObjectType,
        /// The type that the call is for.
        wanted: ObjectType,
    },
    /// The shard was on a target that is gone, and the class has no redundancy. A retry helps only if the target is
    /// brought back.
    #[error("a shard of object {object} is lost with target {rank}.{target}")]
    ShardLost {
        /// The object.
        object: ObjectId,
        /// Rank of the target.
        rank: u32,
        /// Index of the target.
        target: u32,
    },
    /// The pool map has changed under the call. Nothing was changed on the target that said so; the handle knows the new
    /// map, so a repetition goes where it should. The handles of objects repeat by themselves.
    #[error("the pool map has changed, to version {version}")]
    StaleMap {
        /// The version that is known now.
        version: u32,
    },
    /// An anchor is not one that this listing gave. Nothing was changed; start the listing again.
    #[error("bad anchor: it does not belong to this listing")]
    BadAnchor,
    /// A range ends beyond the last offset. Nothing was changed; a retry cannot help.
    #[error("{length} bytes at offset {offset} end beyond the last offset of an array")]
    BadRange {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// A change ended half-way, so that its epoch and those after it can never be committed. What is not committed is
    /// discarded when the container handle is closed; open it again and repeat it.
    #[error("{0} ended half-way: nothing since the last sync can be committed; open again and repeat it")]
    HalfDone(String),
    /// What was written through this container handle and not committed was given up meanwhile: by a hold of a later epoch, or
    /// by a discard. Nothing was committed; repeat what is still wanted.
    #[error("what was written and not committed has been given up meanwhile; repeat what is still wanted")]
    GivenUp,
    /// A target, or the way to it, failed. Of a change to several shards, any part may have happened; repeating it at the
    /// same epoch is safe.
    #[error("{message}")]
    Target {
        /// The status on the wire: an errno where one exists, or one of this system's own.
        status: i32,
        /// What happened.
        message: String,
        /// The target that says so may have made the change nevertheless, or may make it yet.
        in_doubt: bool,
    },
}

impl DsrError {
    /// Whether a change to one shard has surely not happened.
    pub fn nothing_changed(&self) -> bool {
        matches!(
            self,
            Self::Class(_)
                | Self::Placement(_)
                | Self::WrongType { .. }
                | Self::BadAnchor
                | Self::BadRange { .. }
                | Self::Target { in_doubt: false, .. }
        )
    }
}
