//! Why a store could not do something with its media.

use daos_xstream::MediaError;

use crate::HeapError;

/// An error of the heap together with its media.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// An error of the heap in memory; see there.
    #[error(transparent)]
    Heap(#[from] HeapError),
    /// The device refused or failed a call while nothing had been changed yet (creating, opening). A retry may help.
    #[error(transparent)]
    Media(#[from] MediaError),
    /// The device failed earlier. The heap in memory is as it was and stays readable; nothing sealed since is durable. A
    /// retry does not help: close the store, mend the device, open it again.
    #[error("the heap is read-only: {0}")]
    ReadOnly(String),
    /// The files hold no heap, or not one whose creation was completed. Nothing changed.
    #[error("{0}: no heap was formatted here")]
    NotFormatted(String),
    /// The heap was written by another version of this software. Nothing changed; upgrade it first.
    #[error("{file}: media format version {found}, this software reads version {known}")]
    UnknownFormat {
        /// The file.
        file: String,
        /// The version found.
        found: u32,
        /// The version known.
        known: u32,
    },
    /// The files are those of another heap than asked for, or do not belong together. Nothing changed.
    #[error("{file}: belongs to heap {found}, not to {expected}")]
    WrongUuid {
        /// The file.
        file: String,
        /// Whose it is.
        found: uuid::Uuid,
        /// Whose it should be.
        expected: uuid::Uuid,
    },
    /// What is on media is not what was written there. Nothing changed; a retry does not help.
    #[error("{file}: damaged at byte {offset}: {what}")]
    Damaged {
        /// The file.
        file: String,
        /// Where.
        offset: u64,
        /// How it shows.
        what: String,
    },
    /// The sizes asked for cannot be. Nothing was made.
    #[error("bad sizes: {0}")]
    BadGeometry(String),
    /// The store was closed. Nothing changed.
    #[error("the store is closed")]
    Closed,
}
