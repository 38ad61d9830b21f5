//! What the `daos` and `dmg` programs share: where the engine is, how sizes are written, how answers are printed.

#![forbid(unsafe_code)]

pub mod output;
pub mod size;
