//! Sharding and resilience: one object made of many target-local shards.
//!
//! Most of it is arithmetic: where a shard lives is computed from object ID, object class and pool map ([`placement`]),
//! and which shard holds what from offset or key ([`striping`]). The client half spreads I/O over the shards.

#![forbid(unsafe_code)]

pub mod class;
pub mod client;
#[cfg(any(test, feature = "memory"))]
pub mod memory;
pub mod placement;
pub mod striping;
