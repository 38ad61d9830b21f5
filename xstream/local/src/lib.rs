//! Same-node fabric: shared-memory rings between a client and an engine.
//!
//! An engine binds one Unix socket ([`LocalServer`]) and makes one [`LocalFabric`] per xstream; a client makes one for itself
//! ([`LocalFabric::client`]) and connects to `local://PATH#XSTREAM`. For each connection the engine makes a sealed memfd with a ring per direction and a
//! bulk area, and sends it over the socket. The crate's README shows the memory layout and the rules.
//!
//! # Invariants
//!
//! * **The engine trusts nothing in shared memory.** It copies once, then checks; it bounds every index and length; its own positions are
//!   private. A peer that lies is disconnected and counted, and no other peer notices.
//! * A message costs no system call unless its receiver has announced that it sleeps.
//! * What a peer holds in the engine is one descriptor, one mapping of fixed size and one slot in a table, all released in the call
//!   in which the engine learns that it is gone; end of file at its socket is how it learns.
//! * A poll costs O(peers that are awake). All that can wake the endpoint is behind one epoll descriptor.
//! * A client spawns no thread; an endpoint belongs to the thread that made it.

#![warn(unsafe_op_in_unsafe_fn)]

mod atomic;
mod bulk;
mod connect;
mod counters;
mod fabric;
mod handshake;
mod options;
mod peer;
mod region;
mod ring;
mod server;
mod sweep;
mod wait;
mod words;

// Beside the modules, not inside: the model checker's test compiles the ring and its copies on their own.
#[cfg(test)]
mod bulk_tests;
#[cfg(test)]
mod ring_tests;
#[cfg(test)]
mod words_tests;

pub use counters::LocalCounters;
pub use fabric::{Exposed, LocalFabric};
pub use options::LocalOptions;
pub use server::LocalServer;
pub use wait::wait_readable;

/// The longest message, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 16 << 10;
