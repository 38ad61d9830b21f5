//! The ground every DAOS service stands on.
//!
//! A service is written against [`Env`] and runs unchanged in two worlds: the real one (glommio, libfabric, shared
//! memory, io_uring) and a simulated one (virtual time, a seeded scheduler, a network and disks that fail on purpose).
//!
//! # Invariants
//!
//! * One [`Env`] belongs to one **xstream**: one thread, one core. Nothing reached through it is shared between cores;
//!   the only way to another core is [`Mailbox`].
//! * No default method of a seam trait reaches the operating system, and nothing outside a world's backend reads a
//!   clock, a random source, a socket or a file of its own.
//! * The seam is static: services are generic over `E: Env`, so an I/O path has no virtual call and no boxed future.
//! * Whatever crosses the seam for longer than a call is owned ([`IoBuffer`] goes in, and comes back with the result),
//!   so a dropped future can never leave the kernel or a network card writing into memory that was given back.

#![forbid(unsafe_code)]

mod absent;
mod buffer;
pub mod collective;
mod combine;
#[cfg(feature = "conformance")]
pub mod conformance;
mod env;
mod fabric;
mod fabric_counters;
mod locals;
mod mailbox;
mod media;
mod optional;
mod pair;
mod park;
mod returns;
pub mod rpc;
pub mod sync;
mod task;
pub mod telemetry;
mod time;

pub use absent::{NoFabric, NoFile, NoMailbox, NoMedia};
pub use buffer::{BLOCK_BYTES, IoBuffer};
pub use combine::{Either, Elapsed, both, join_all, race, spawn_joined, submit_to, timeout};
pub use env::{Bug, Env};
pub use fabric::{Access, Address, Credentials, Fabric, FabricError, PeerId, RemoteBuffer, Sink};
pub use fabric_counters::{FabricCounters, Kind as CounterKind};
pub use locals::Locals;
pub use mailbox::{CoreId, Mailbox, MailboxError, Work};
pub use media::{Durability, Media, MediaError, MediaFile, OpenOptions, open_alone};
pub use pair::Pair;
pub use park::Park;
pub use task::{Class, Rng, Spawn};
pub use time::{Clock, Time, WallTime};
