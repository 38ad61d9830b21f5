//! The deterministic world: virtual time, seeded scheduling, network and disks that fail on purpose

#![forbid(unsafe_code)]
