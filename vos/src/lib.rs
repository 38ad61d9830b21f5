//! Versioning object store of one target: containers of objects, and every object's history by epoch.
//!
//! Single-threaded by construction: the xstream that owns a target is the only caller, so there is no lock. It knows
//! epochs, containers and objects; it knows nothing of the network, of other targets, or of redundancy. It is synchronous
//! on memory and asynchronous only where media is.
//!
//! # Where to start
//!
//! [`Pool`] opens a vpool and its [`Container`]s. A container takes [`Update`]s and [`Punch`]es at an epoch and answers
//! with the [`Sealed`] position of the change: visible at once, durable when [`Pool::persisted`] has returned. Reads
//! ([`Container::fetch`], [`Container::fetch_array`]) are near-epoch: the newest change at or before the epoch asked for.
//!
//! # Invariants
//!
//! * Every change is one transaction of the heap: all of it, or nothing, whatever fails.
//! * Data is never returned unless its checksum was verified.
//! * At most one change of a record per epoch; history above and below it may arrive in any order.
//! * An object, a key, a group of changes exists while something is recorded in it, and no longer: what is deleted and
//!   aggregated gives back every byte.

#![forbid(unsafe_code)]
#![allow(clippy::too_many_arguments, reason = "a listing says what, where, when, from where and how much")]

mod blocks;
mod container;
mod destroy;
mod editor;
mod enumerate;
mod epochs;
mod error;
mod extents;
mod fetched;
mod groups;
mod keys;
mod memory;
mod pool;
mod read;
mod records;
mod scrub;
mod slices;
mod sweep;
mod tree;
mod update;
mod verify;
mod versions;
mod visible;
mod walk;
mod write;

pub use blocks::{BlockRef, StoredExtent};
pub use container::{ArrayKeys, Batch, Container};
pub use daos_umem::{FrameInfo, Inspection, MediaInspection, MediaKind, Persisted, Sealed, WalInspection};
pub use error::Error;
pub use extents::EndSearch;
pub use fetched::{
    Anchor, Change, ContainerUsage, Data, Fetched, LogUsage, Piece, PieceData, RecordedExtent, Usage,
    ValueRef,
};
pub use pool::{Pool, PoolOptions};
pub use read::FetchRequest;
pub use scrub::{ScrubCounters, ScrubRate};
pub use update::{
    ARRAY_BYTES_MAX, AkeyData, AkeyUpdate, Checksums, Conflict, ExtentData, ExtentUpdate, INLINE_BYTES_MAX,
    KeyUpdate, Punch, Update, Value,
};
pub use verify::{Fault, VerifyReport};
pub use walk::{ExtentInfo, Record, VersionInfo, Where, Written};
