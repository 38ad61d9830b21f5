//! Cluster simulator: a whole engine, its disk and its clients in one process, on one seed.
//!
//! The services and the client halves are the real ones; world, network and disk are `daos-xstream-sim`'s. Clients do random
//! work while faults happen (**safety phase**); then faults stop and everything must get done (**liveness phase**); then all
//! that is stored is compared with a model that was kept outside the world, once more after a last loss of power.
//!
//! # Invariants
//!
//! * A run is a function of code and seed: two runs of one seed have one hash.
//! * The model learns only what clients were told, and when faults happened; it never looks into the engine.
//! * A checker may doubt; it never guesses. What nobody was told the fate of may be there or not, until a read shows which.

#![forbid(unsafe_code)]

mod aggregation;
mod audit;
mod brief_containers;
mod brief_pools;
mod canary;
mod cluster;
mod faults;
mod model;
mod objects;
mod plan;
mod run;
mod tree;
mod violation;
mod workload;

pub use canary::{CANARIES, Canary};
pub use run::{Options, Outcome, run};
pub use violation::{Rule, Violation};
