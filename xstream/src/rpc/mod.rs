//! Requests and replies over a [`Fabric`](crate::Fabric).
//!
//! One [`Endpoint`] per xstream, or per client, calls and serves at the same time. A request carries a fixed
//! [`Header`] and a body whose meaning is its module's; what is too large for a message moves by bulk, driven by the
//! engine.
//!
//! # Invariants
//!
//! * Every request that was received and understood is answered exactly once: by its [`Responder`], or for it when that
//!   is dropped.
//! * Every call ends: with its reply, by its deadline, or with its peer. A reply that comes later is ignored, because a
//!   request ID names a place *and* how often that place has been used.
//! * What a peer can make this process hold is bounded: calls in flight, requests being served, replies not taken. Who
//!   exceeds the first two waits or is told `BUSY`; who does not take its replies is disconnected.
//! * No bytes of a peer cause a panic. Malformed messages are counted, answered if it can be known to whom, and end the
//!   connection when they persist.
//! * No borrow of the endpoint's state is held while a service or a waker runs, so both may call the endpoint.
//! * In steady state a null RPC allocates nothing on either side.

mod call;
mod config;
mod counters;
mod endpoint;
mod header;
mod meter;
mod peer;
mod sending;
mod service;
mod status;
pub mod system;

pub use call::{Call, Reply, RpcError};
pub use config::EndpointConfig;
pub use counters::Counters;
pub use endpoint::Endpoint;
pub use header::{
    HEADER_BYTES, Header, Kind, Malformed, Opcode, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN, RANK_ANY, Rejected,
};
pub use service::{BulkRoom, Request, Responder, Service};
pub use status::Status;

/// Numbers of the modules; the upper byte of an [`Opcode`].
pub mod module {
    /// Null, echo, telemetry, stop.
    pub const SYSTEM: u8 = 1;
    /// Formatting, creation of pools.
    pub const MANAGEMENT: u8 = 2;
    /// The pool service.
    pub const POOL: u8 = 3;
    /// The container service.
    pub const CONTAINER: u8 = 4;
    /// Objects of one target.
    pub const OBJECT: u8 = 5;
    /// The POSIX name space.
    pub const NAMESPACE: u8 = 6;
    /// The conformance suite; never on a production engine.
    pub const CONFORMANCE: u8 = 255;
}
