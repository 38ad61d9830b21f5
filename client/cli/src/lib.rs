//! What the `daos` and `dmg` programs are made of: command lines, commands, and how answers are printed.

#![forbid(unsafe_code)]

pub mod daos;
pub mod dmg;
pub mod output;
mod pools;
pub mod system;
