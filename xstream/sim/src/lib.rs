//! The deterministic world: virtual time, one seeded scheduler over simulated nodes, and a network and disks that fail
//! on purpose.
//!
//! A run is a function of the code and the seed. Everything that happens is added to a [hash](Simulation::hash), so two
//! runs of one seed can be compared, and a failure can be seen again.
//!
//! # Fault model
//!
//! **Cores.** Every core of every node polls one task at a time; which core goes next, which class (by its shares), and
//! which of its ready tasks is the seed's choice, so every interleaving of polls may happen. A poll takes no virtual time
//! itself; the core is busy for a seeded while after it. Clocks of nodes have unrelated origins, and timers are late. A
//! node may be killed between any two polls: its tasks, endpoints and mailboxes are gone at once. *Not modelled:* a core
//! that computes wrongly, memory errors, a clock that runs backwards or at another rate.
//!
//! **Mailbox.** Bounded, in order per pair of cores, delayed; never loses while the node lives.
//!
//! **Network.** Messages of one connection arrive in order, whole, once, or not at all; connections overtake each other.
//! A connection may break at any message ([`Config::connection_loss_ppm`]), when a partition lasts, or when a node dies:
//! what was under way is lost, each end learns of it at its own later time, and what it sends until then is lost
//! too. Queues are bounded ([`FabricError::Busy`](daos_xstream::FabricError)). Remote writes land in parts, before their
//! completion is seen, and even when who started them has died; they reach exposed memory only. *Not modelled:*
//! messages changed on the way (the header's checksums are tested apart from this), duplicates within a connection.
//!
//! **Media.** What is written is visible to reads when the write completes. When power is lost, each 512-byte sector with
//! unflushed writes keeps its durable content or that of any one of those writes, chosen sector by sector, so writes are
//! lost, torn and reordered; writes under way take part in this. A durable write and a flush promise what
//! [`Durability`](daos_xstream::Durability) says and nothing more. Name space operations are atomic and durable when they
//! return; one that was under way has happened or has not. On command or by rate: sectors that cannot be read until they
//! are written again, flipped bits, a full disk, a failed device. *Not modelled:* a device that lies about a flush
//! (but [`Disk::set_lies`] plants one, for canaries), writes that go astray, torn 512-byte sectors.
//!
//! # Invariants
//!
//! * One thread, no OS clock, no OS randomness, no iteration over hashed containers.
//! * No borrow of the world's state is held while simulated code runs: polls, wakers, drops of futures.

#![forbid(unsafe_code)]

mod core;
mod disk;
mod env;
mod media;
mod network;
mod node;
mod random;
mod rma;
mod simulation;
mod world;

pub use env::{SimClock, SimEnv, SimMailbox, SimRng, SimSpawn};
pub use media::{SimFile, SimMedia};
pub use network::SimFabric;
pub use node::{Disk, Loss, Node};
pub use rma::SimExposed;
pub use simulation::{Simulation, Stopped};
pub use world::Config;
