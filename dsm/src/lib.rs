//! Pools, containers, targets and epochs

#![forbid(unsafe_code)]
