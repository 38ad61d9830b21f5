//! Benchmarks beside the limits of the machine.
//!
//! A figure alone says little on a shared machine: every row carries the limit or the peer that was measured in the same
//! run, and the ratio is what counts.

#![forbid(unsafe_code)]

pub mod limits;
pub mod machine;
pub mod meter;
pub mod report;
pub mod slices;
