//! The persistent heap of a target: an arena in which structures refer to each other by offset, an allocator, and
//! transactions over both; in plain memory, on persistent memory, or in memory behind a write-ahead log.
//!
//! # Invariants
//!
//! * This crate is the only home of raw memory in the store. Outside [`arena`](Arena) every access is checked against
//!   bounds and alignment, and every type that can lie in the arena ([`Durable`]) takes any bytes, so that a damaged
//!   image gives errors or wrong values, never undefined behaviour.
//! * The arena never moves. It changes only through a [`Transaction`], which borrows the [`Heap`] exclusively: a store
//!   that is not noted cannot be written, no reader overlaps a change, and there is no suspension point inside.
//! * A transaction happens whole or not at all, in memory and on media. Durable is what has a [`Persisted`] proof, and
//!   everything sealed before it.
//! * In steady state a transaction makes no memory allocation and no system call.
//!
//! The media format is described in `docs/format.md`.

mod allocator;
mod arena;
mod error;
mod heap;
mod inspection;
mod layout;
mod ledger;
mod offset;
pub mod pmem;
mod position;
mod signal;
pub mod space;
mod store;
mod transaction;
mod wal;

pub use allocator::{ClassUsage, Usage};
pub use arena::{Arena, PAGE_BYTES};
pub use error::HeapError;
pub use heap::Heap;
pub use inspection::{FrameInfo, Inspection, MediaInspection, WalInspection};
pub use layout::CHUNK_BYTES;
pub use offset::{Durable, Off};
pub use position::{Persisted, Sealed};
pub use store::{Counters, MediaKind, Store, StoreError, StoreOptions};
pub use transaction::Transaction;
pub use wal::FORMAT_VERSION;
