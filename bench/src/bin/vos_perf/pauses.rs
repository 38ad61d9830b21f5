//! How long a checkpoint and the scrubber hold the core, at most: nobody else runs meanwhile.

use std::time::Instant;

use daos_bench::{
    report::Row,
    slices::{self, Slices},
};

use crate::setup::{Bench, World};

/// The cases of this module.
pub const CASES: [&str; 2] = ["checkpoint-slices", "scrubber-slices"];

/// The longest that a task may hold a core, in microseconds.
const SLICE_US_MAX: f64 = 2000.0;

/// Measures both: an operation is a slice, and its latency the CPU time of it.
#[allow(clippy::disallowed_methods, reason = "a benchmark measures the real machine")]
pub async fn measure(world: &World, bench: &Bench) -> anyhow::Result<()> {
    for case in CASES.into_iter().filter(|case| bench.wants(case)) {
        let start = Instant::now();
        let (_, slices) = match case {
            "checkpoint-slices" => {
                slices::of_checkpoints(world, (bench.records * 256).clamp(16 << 20, 256 << 20)).await?
            }
            _ => slices::of_scrubber(world).await?,
        };
        bench.print(&row(case, &slices, start.elapsed().as_secs_f64()));
    }
    Ok(())
}

fn row(case: &str, slices: &Slices, elapsed_s: f64) -> Row {
    let row = Row { case: case.to_owned(), media: Some("wal".to_owned()), depth: 1, ..Row::default() };
    let mut row = row.timed(slices, elapsed_s);
    row.cpu_us_per_op = slices.mean() / 1e3;
    let ratio = row.max_us / SLICE_US_MAX;
    row.latency_ratio("the longest that a task may hold a core, at most", (SLICE_US_MAX, ratio), 1.0)
}
