//! The DAOS engine: the server process of a storage node.

#![forbid(unsafe_code)]

pub mod arguments;
pub mod config;
pub mod storage;
pub mod telemetry;
