//! What the `daos` and `dmg` programs are made of.

#![forbid(unsafe_code)]

pub mod output;
pub mod system;
