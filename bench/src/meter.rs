//! Takes the time of many short operations, and counts what they allocate.
//!
//! # Invariants
//!
//! * The rate comes from all operations and the whole time; latencies come from samples, because reading the clock
//!   takes a tenth of the time of the fastest operations here.
//! * Allocations are counted only within [`Meter::slice`], on the calling thread.

use std::time::Instant;

use hdrhistogram::Histogram;

use crate::{limits::nanoseconds, machine::own_cpu_s, report::latencies};

/// One operation in so many is timed by itself.
const SAMPLE_EVERY: u64 = 8;

/// A measurement under way.
pub struct Meter {
    latencies: Histogram<u64>,
    operations: u64,
    allocations: Option<u64>,
    start: Instant,
    cpu_start_s: f64,
}

/// What came out.
pub struct Measured {
    /// Latencies in nanoseconds, sampled.
    pub latencies: Histogram<u64>,
    /// Operations.
    pub operations: u64,
    /// Time that they took together.
    pub elapsed_s: f64,
    /// CPU time that this process used meanwhile.
    pub cpu_s: f64,
    /// Heap allocations, where they were counted.
    pub allocations: Option<u64>,
}

impl Measured {
    /// Operations per second of CPU time.
    pub fn per_cpu_s(&self) -> f64 {
        self.operations as f64 / self.cpu_s
    }

    /// Operations per second.
    pub fn per_s(&self) -> f64 {
        self.operations as f64 / self.elapsed_s
    }
}

impl Meter {
    /// Starts the clock.
    #[allow(clippy::disallowed_methods, reason = "a benchmark measures the real machine")]
    pub fn start() -> Self {
        let latencies = latencies();
        Self { latencies, operations: 0, allocations: None, cpu_start_s: own_cpu_s(), start: Instant::now() }
    }

    /// Runs a few operations that do not wait, and counts their allocations.
    pub fn slice<R>(&mut self, run: impl FnOnce(&mut Self) -> R) -> R {
        let mut result = None;
        let counted = allocation_counter::measure(|| result = Some(run(self)));
        *self.allocations.get_or_insert(0) += counted.count_total;
        result.expect("the counter runs what it is given")
    }

    /// Runs one operation, or several in one call.
    #[inline]
    #[allow(clippy::disallowed_methods, reason = "a benchmark measures the real machine")]
    pub fn run<R>(&mut self, operations: u64, operation: impl FnOnce() -> R) -> R {
        let sampled = (self.operations / operations).is_multiple_of(SAMPLE_EVERY);
        self.operations += operations;
        if !sampled {
            return operation();
        }
        let start = Instant::now();
        let result = operation();
        self.latencies.saturating_record(nanoseconds(start.elapsed()));
        result
    }

    /// Takes in one operation that was timed elsewhere.
    pub fn record(&mut self, nanoseconds: u64) {
        self.operations += 1;
        self.latencies.saturating_record(nanoseconds);
    }

    /// Takes back operations that did nothing.
    pub fn forget(&mut self, operations: u64) {
        self.operations -= operations;
    }

    /// Time since the start, in seconds.
    pub fn elapsed_s(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }

    /// Stops the clock.
    pub fn stop(self) -> Measured {
        let elapsed_s = self.elapsed_s();
        let Self { latencies, operations, allocations, cpu_start_s, .. } = self;
        Measured { latencies, operations, elapsed_s, cpu_s: own_cpu_s() - cpu_start_s, allocations }
    }
}

/// Whether the counter of allocations sees them: without its allocator in the program it would report zeros for ever.
pub fn counts_allocations() -> bool {
    let counted = allocation_counter::measure(|| drop(std::hint::black_box(Box::new([0u64; 4]))));
    counted.count_total == 1
}
