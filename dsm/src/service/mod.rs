//! The service half: management, pools and containers on the service xstream, objects on every xstream.
//!
//! # Invariants
//!
//! * Before a client hears that something was opened, closed, committed or made, it is stored for good and every target
//!   has been told of it.
//! * A pool exists from the moment its marker file is there: what a crash left without one is removed at the next start.
//! * Everything here is bounded by what pools hold; requests in progress are bounded by the endpoint.

mod container;
mod control;
mod destroy;
mod epochs;
mod limits;
mod management;
mod object;
mod pool;
mod rdb;
mod records;
mod refusal;
mod scrub;
mod state;
mod target;

pub use control::{Control, ServiceConfig, start};
pub use limits::Limits;
pub use rdb::{Batch, Rdb, Table};
pub use refusal::Refusal;
pub use scrub::{ScrubConfig, ScrubUsage};
pub use target::{Target, TargetUsage};
