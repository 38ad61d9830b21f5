//! What travels between the halves of DSM: procedure numbers, and the bodies of requests and replies.
//!
//! # Invariants
//!
//! * Bodies of hot procedures ([`object`]) have a fixed little-endian layout, are parsed in place and without allocation,
//!   and what has parsed is consistent: every count, length and offset was checked against the others and the limits.
//! * Bodies of control procedures ([`control`]) are postcard; lists in them are bounded by the size of a message.
//! * A number that means something on the wire is never given another meaning; see `docs/protocol.md`.

pub mod control;
pub mod object;

/// Modules of the engine whose procedures are DSM's.
pub mod module {
    /// Pools of the whole engine, and its storage.
    pub const MANAGEMENT: u8 = 2;
    /// One pool.
    pub const POOL: u8 = 3;
    /// One container.
    pub const CONTAINER: u8 = 4;
    /// Objects of one target.
    pub const OBJECT: u8 = 5;
}

/// Procedures of [`module::MANAGEMENT`].
pub mod management {
    /// Make a pool on every target of the engine.
    pub const POOL_CREATE: u8 = 1;
    /// Destroy a pool with all it holds.
    pub const POOL_DESTROY: u8 = 2;
    /// The engine's pools.
    pub const POOL_LIST: u8 = 3;
    /// Space of the engine's targets.
    pub const STORAGE_QUERY: u8 = 4;
    /// The UUID of the pool of a name.
    pub const POOL_LOOKUP: u8 = 5;
}

/// Procedures of [`module::POOL`].
pub mod pool {
    /// Open a handle.
    pub const CONNECT: u8 = 1;
    /// Close a handle, and the container handles opened with it.
    pub const DISCONNECT: u8 = 2;
    /// State and space, and what is new in the pool map.
    pub const QUERY: u8 = 3;
    /// The pool's containers.
    pub const LIST_CONTAINERS: u8 = 4;
    /// Close handles of others.
    pub const EVICT: u8 = 5;
    /// Replace the access control list.
    pub const SET_ACL: u8 = 6;
}

/// Procedures of [`module::CONTAINER`].
pub mod container {
    /// Make a container.
    pub const CREATE: u8 = 1;
    /// Destroy a container with all it holds.
    pub const DESTROY: u8 = 2;
    /// Open a handle.
    pub const OPEN: u8 = 3;
    /// Close a handle; what it did not commit is discarded.
    pub const CLOSE: u8 = 4;
    /// Properties and counts.
    pub const QUERY: u8 = 5;
    /// Epochs as the handle sees them. Also tells the service that the handle's owner lives.
    pub const EPOCH_QUERY: u8 = 6;
    /// Hold epochs.
    pub const EPOCH_HOLD: u8 = 7;
    /// Move the lowest referenced epoch forward.
    pub const EPOCH_SLIP: u8 = 8;
    /// Make everything up to an epoch durable on all targets.
    pub const EPOCH_FLUSH: u8 = 9;
    /// Forget the handle's writes of some epochs.
    pub const EPOCH_DISCARD: u8 = 10;
    /// Commit epochs of one or several handles, all or none.
    pub const EPOCH_COMMIT: u8 = 11;
    /// Wait until an epoch is committed.
    pub const EPOCH_WAIT: u8 = 12;
    /// Take a snapshot.
    pub const SNAPSHOT_CREATE: u8 = 13;
    /// The snapshots.
    pub const SNAPSHOT_LIST: u8 = 14;
    /// Give up a snapshot.
    pub const SNAPSHOT_DESTROY: u8 = 15;
    /// Set or remove attributes.
    pub const ATTRIBUTES_SET: u8 = 16;
    /// Read attributes.
    pub const ATTRIBUTES_GET: u8 = 17;
    /// The UUID of the container of a name.
    pub const LOOKUP: u8 = 18;
}

/// Procedures of [`module::OBJECT`].
pub mod object_procedure {
    /// Write records of one object, atomically.
    pub const UPDATE: u8 = 1;
    /// Read records of one object.
    pub const FETCH: u8 = 2;
    /// Punch an object, a distribution key, keys or extents.
    pub const PUNCH: u8 = 3;
    /// List objects, keys or extents.
    pub const ENUMERATE: u8 = 4;
    /// Whether an object is there, and how far its data reaches.
    pub const QUERY: u8 = 5;
}

/// Why bytes are no body of their procedure. A retry cannot help.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed body: {0}")]
pub struct Malformed(pub &'static str);
