//! The real world: glommio executors pinned to cores, a ring mesh between them, parking, clock, randomness and io_uring
//! media.
//!
//! [`run`] starts one xstream per core and gives each its [`UringEnv`], generic over the fabric, which must know how to
//! wake a parked core ([`Park`](daos_xstream::Park)). `README.md` of this crate holds the decisions and the figures behind them.
//!
//! # Invariants
//!
//! * Nothing is shared between cores on an I/O path; cores reach each other only through the mesh.
//! * A busy core learns of messages, completions and timers without a system call.
//! * The thread sleeps only when no task is ready, which is counted: parking cannot starve anything.
//! * Memory in the kernel's hands outlives the futures that asked for it, and the world waits for it at its end.
//! * A panic in an xstream stops the process.

mod clock;
mod config;
mod core_state;
mod env;
mod file;
mod media;
mod mesh;
mod notify;
mod progress;
mod random;
mod readiness;
mod ring;
mod run;
mod shutdown;

pub use clock::{UringClock, now};
pub use config::{Config, WorldError, usable_cpus};
pub use core_state::{Counters, UringSpawn};
pub use daos_xstream::{NoFabric, Park};
pub use env::UringEnv;
pub use file::UringFile;
pub use media::UringMedia;
pub use mesh::UringMailbox;
pub use random::UringRng;
pub use ring::RingCounters;
pub use run::run;
pub use shutdown::{Shutdown, SignalWatch};
