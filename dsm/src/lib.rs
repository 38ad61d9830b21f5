//! Pools, containers, targets and epochs.
//!
//! DSM turns many targets into pools with transactional containers. It knows objects of *one* target only; spreading
//! an object over targets is the layer above.
//!
//! # Parts
//!
//! * Sans-IO cores, usable without any world: [`pool_map`], [`epochs`], [`access`].
//! * [`client`]: pools, containers and objects as callers see them.
//! * [`rpc`]: what travels between the halves, parsed so that what exists is valid.
//! * `service` (feature `service`): the service half.
//!
//! # Invariants
//!
//! * A client's word is never enough: what a handle may do is decided by the pool and container service and told to the
//!   targets by it; a target refuses a handle that it was not told of.
//! * Every procedure may be repeated until its answer arrives: handles, containers and pools are named by UUIDs that the
//!   client makes, and object operations are idempotent in the store.
//! * A committed epoch never changes and is never lost; of an epoch that is not committed nothing remains once its
//!   handle is closed, evicted or dead.

#![forbid(unsafe_code)]

pub mod access;
pub mod client;
pub mod epochs;
pub mod pool_map;
pub mod rpc;
#[cfg(feature = "service")]
pub mod service;

#[cfg(test)]
mod golden;
