//! The network fabric: messages and bulk transfers over libfabric's reliable datagram endpoints.
//!
//! # Invariants
//!
//! * One endpoint belongs to one thread; [`OfiFabric`] and everything it hands out is neither `Send` nor `Sync`.
//! * Memory that libfabric may touch is owned by the endpoint until libfabric has said that it is done with it, or until
//!   the endpoint is closed: dropping a future, an exposure or the fabric itself can never leave a write to freed memory.
//! * A peer is known by the random token that was given to it, never by what it claims; a number ([`PeerId`]) is never
//!   used twice. A peer that is gone holds nothing: address, connection, buffers and transfers are released.
//! * Over `tcp;ofi_rxm`, nothing a peer does makes the endpoint wait, grow without bound or stop: every wait has a deadline,
//!   every queue a limit, every error of libfabric a defined consequence. What a peer sends is held back by TCP while no
//!   receive buffer is free; what waits for a peer is bounded by the transmit buffers that it may hold. Connections that never
//!   become peers are ended (`src/silence.rs`). Other providers are not measured.
//! * Time and randomness come in from outside ([`daos_xstream::Clock`], [`daos_xstream::Rng`]).
//!
//! What was decided, what was measured and what libfabric does that it should not: `README.md` beside this crate.
//!
//! [`PeerId`]: daos_xstream::PeerId

mod address;
mod config;
mod counters;
mod environment;
mod exposure;
mod fabric;
mod inner;
mod peers;
pub mod pingpong;
mod raw;
mod receive;
mod silence;
mod timers;
mod transfers;
mod transmit;
mod wire;

pub use config::{DEFAULT_PROVIDER, OfiConfig, Place};
pub use counters::{OfiCounters, descriptors_open};
pub use environment::{BUFFER_BYTES, prepare_process};
pub use exposure::Exposed;
pub use fabric::OfiFabric;
