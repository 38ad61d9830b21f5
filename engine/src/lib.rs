//! The DAOS engine: the server process of a storage node.
//!
//! [`node::serve`] is where everything comes together: the real world (`daos_xstream_uring`) with both fabrics, and the
//! service modules on every xstream.

#![forbid(unsafe_code)]

pub mod arguments;
pub mod config;
mod descriptors;
mod fabric;
mod metrics;
pub mod node;
mod services;
pub mod storage;
pub mod telemetry;
