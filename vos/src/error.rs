//! What can go wrong in the store.

use daos_types::{Cookie, Epoch};
use daos_umem::{HeapError, StoreError};
use daos_xstream::MediaError;

/// Why the store did not do something. Unless a variant says otherwise nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no such container, or no such object where one must exist. A retry cannot help.
    #[error("there is no such {0}")]
    NotFound(&'static str),
    /// What was to be created is there. A retry cannot help.
    #[error("that {0} exists already")]
    Exists(&'static str),
    /// The object, or the akey, holds another kind of data. A retry cannot help.
    #[error("{0}")]
    WrongType(&'static str),
    /// An argument breaks a limit or contradicts itself. A retry cannot help.
    #[error("invalid: {0}")]
    Invalid(&'static str),
    /// The epoch of the record is taken: by another cookie, or by other content of the same cookie where the caller
    /// asked for [`crate::Conflict::Refuse`]. A retry cannot help.
    #[error("epoch {} is taken by a change of cookie {:#x}", .epoch.0, .holder.0)]
    EpochConflict {
        /// Epoch of the change that was refused.
        epoch: Epoch,
        /// Who wrote the record that is there.
        holder: Cookie,
    },
    /// The arena or the block tier is full. Discard, punch and aggregation give space back; then a retry helps.
    #[error("no space left in the {0}")]
    NoSpace(&'static str),
    /// The log is full for the moment. Retry after [`crate::Pool::log_space`].
    #[error("the log is full for the moment")]
    LogFull,
    /// The change is larger than the log takes in one piece. A retry cannot help; smaller steps do.
    #[error("the change is larger than the log takes in one piece")]
    TooLarge,
    /// The pool's media failed, or it was closed: it can be read only. A retry cannot help.
    #[error("the pool is read-only")]
    ReadOnly,
    /// The pool's media failed before the change was durable: it is visible, and a restart may take it away. A retry
    /// cannot help before that.
    #[error("media failed: whether the change survives a restart is unknown")]
    NotDurable,
    /// What the pool's files hold is not what was written there, so it was not opened. Nothing changed.
    #[error("{0}")]
    Damaged(String),
    /// Stored bytes do not match their checksum, or the bytes given do not match theirs. The data is never returned.
    /// A retry helps only after the data was restored from elsewhere.
    #[error("checksum mismatch in {place} at {position:#x}")]
    BadChecksum {
        /// What was read: a value, a key, a chunk of an extent.
        place: &'static str,
        /// Arena offset, or byte position on the block tier, of what was read.
        position: u64,
    },
    /// A structure on media is not what the format says. The target should be taken out of service.
    #[error("corrupt {place} at {position:#x}")]
    Corrupt {
        /// Which structure.
        place: &'static str,
        /// Its arena offset.
        position: u64,
    },
    /// The pool was written by older software. `ddb upgrade` ([`crate::Pool::upgrade`]) brings it up to date; older software
    /// cannot use it any more then.
    #[error(
        "the pool has format version {found}, and this software writes version {known}: stop the engine and run \
         `ddb TARGET upgrade` for every target"
    )]
    OldFormat {
        /// The version found.
        found: u64,
        /// The version written.
        known: u64,
    },
    /// The pool was written by newer software. Use that.
    #[error(
        "the pool has format version {found}, this software knows {known}: use the software that wrote it"
    )]
    UnknownFormat {
        /// The version found.
        found: u64,
        /// The version known.
        known: u64,
    },
    /// The heap or its media failed; see there. For failed media what is durable is unknown.
    #[error("{0}")]
    Heap(String),
}

/// What an error of the heap means here.
#[cold]
pub(crate) fn from_heap(error: HeapError) -> Error {
    match error {
        HeapError::NoSpace(_) => Error::NoSpace("arena"),
        HeapError::OutOfBounds { offset: position, .. }
        | HeapError::Misaligned(position)
        | HeapError::NotAllocated(position)
        | HeapError::DamagedTable(position) => Error::Corrupt { place: "heap", position },
        HeapError::LogFull => Error::LogFull,
        HeapError::TransactionTooLarge => Error::TooLarge,
        HeapError::ReadOnly => Error::ReadOnly,
        other => Error::Heap(other.to_string()),
    }
}

/// What an error of the store means here.
#[cold]
pub(crate) fn from_store(error: StoreError) -> Error {
    match error {
        StoreError::Heap(error) => from_heap(error),
        StoreError::ReadOnly(_) | StoreError::Closed => Error::ReadOnly,
        damaged @ (StoreError::Damaged { .. }
        | StoreError::WrongUuid { .. }
        | StoreError::NotFormatted(_)) => Error::Damaged(damaged.to_string()),
        other => Error::Heap(other.to_string()),
    }
}

/// What it means here that the store cannot say that a change is durable.
#[cold]
pub(crate) fn not_persisted(error: StoreError) -> Error {
    match error {
        StoreError::ReadOnly(_) => Error::NotDurable,
        other => from_store(other),
    }
}

/// What an error of the block tier's media means here.
#[cold]
pub(crate) fn from_media(error: MediaError) -> Error {
    match error {
        MediaError::Full(_) => Error::NoSpace("device of the block tier"),
        other => Error::Heap(format!("block tier: {other}")),
    }
}
