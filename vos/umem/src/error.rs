//! Why the heap could not do something.

/// An error of the heap in memory. Small and free of allocation, because reads on hot paths return it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeapError {
    /// The range does not lie in the part of the arena that holds blocks: a damaged image, or a bug. Nothing changed.
    #[error("range {offset:#x}+{length} lies outside the arena's blocks")]
    OutOfBounds {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// The offset does not fit the type's alignment: a damaged image, or a bug. Nothing changed.
    #[error("offset {0:#x} is not aligned for what should be there")]
    Misaligned(u64),
    /// The arena has no room for a block of this size. The transaction is as before the call; a retry helps once
    /// something has been freed.
    #[error("no space for a block of {0} bytes")]
    NoSpace(u64),
    /// No block starts here, or it has been freed already: a damaged image, or a bug. The transaction must be dropped.
    #[error("no allocated block starts at {0:#x}")]
    NotAllocated(u64),
    /// The transaction changes more than the log can take in one piece. It must be dropped, which undoes it; a retry
    /// does not help, smaller steps do.
    #[error("the transaction is larger than the log takes in one piece")]
    TransactionTooLarge,
    /// The log is full. The transaction was undone; retry after [`crate::Store::log_space`].
    #[error("the log is full")]
    LogFull,
    /// A device failed earlier: the heap can be read and not changed. Nothing changed; a retry does not help.
    #[error("the heap is read-only since its device failed")]
    ReadOnly,
    /// The allocator's tables contradict themselves: a damaged image. Nothing changed; a retry does not help.
    #[error("the allocator's table for the chunk at {0:#x} is damaged")]
    DamagedTable(u64),
    /// The sizes asked for do not make an arena. Nothing was made.
    #[error("{0} bytes are no size for an arena: it needs at least 256 KiB and whole pages")]
    BadGeometry(u64),
    /// The system has no memory for the arena. Nothing was made.
    #[error("the system has no {0} bytes of memory for the arena")]
    NoMemory(u64),
}
