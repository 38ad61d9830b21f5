//! Benchmarks beside the limits of the machine

#![forbid(unsafe_code)]
