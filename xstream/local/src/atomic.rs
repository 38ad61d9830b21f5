//! The atomics of the shared memory. `tests/ring_under_loom.rs` compiles the ring with those of a model checker instead.

pub(crate) use std::sync::atomic::{AtomicU64, Ordering, fence};
