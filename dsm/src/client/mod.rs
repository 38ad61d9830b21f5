//! The client half: pools, containers, and objects of single targets.
//!
//! # Invariants
//!
//! * Every request is repeated, with growing pauses, until it is answered or its deadline passes; that is safe because
//!   every procedure may be repeated. Pauses come from the world's clock.
//! * A handle's UUID is made here, from the world's randomness, before the first request that names it.
//! * Memory is exposed for the time of one request, to the one peer that serves it.
//! * Nothing here knows how an object is spread over targets, and nothing runs unless it is polled.

mod caller;
mod container;
mod error;
mod management;
mod object;
mod pool;

pub use caller::{Caller, ClientConfig};
pub use container::{ContainerHandle, OpenOptions};
pub use error::DsmError;
pub use management::{PoolSpec, Service};
pub use object::{Fetched, FetchedData, ObjectAddress, ObjectIo, ReadPiece};
pub use pool::PoolHandle;

use daos_xstream::{Env, Rng};
use uuid::Uuid;

/// A new random UUID.
pub fn new_uuid<E: Env>(env: &E) -> Uuid {
    let (high, low) = (env.rng().next_u64(), env.rng().next_u64());
    uuid::Builder::from_random_bytes((u128::from(high) << 64 | u128::from(low)).to_be_bytes()).into_uuid()
}
