//! Keeps requests in flight for a time and measures them.

use std::{
    cell::Cell,
    rc::Rc,
    time::{Duration, Instant},
};

use daos::Client;
use daos_bench::{limits::nanoseconds, machine::cpu_time, meter::Measured, report::latencies};
use daos_xstream::{Class, Env, spawn_joined};

/// Part of the time that warms up and does not count.
const WARM_UP: f64 = 0.2;

/// Runs `operation` with growing numbers from `numbers` on, `depth` at a time, for `seconds`; the CPU time is that of process
/// `pid`.
#[allow(clippy::disallowed_methods, reason = "a benchmark measures the real machine")]
pub fn run<F: Future<Output = anyhow::Result<()>> + 'static>(
    client: &Client,
    pid: u32,
    seconds: f64,
    depth: u32,
    numbers: &Rc<Cell<u64>>,
    operation: &Rc<impl Fn(u64) -> F + 'static>,
) -> anyhow::Result<Measured> {
    round(client, seconds * WARM_UP, depth, operation, numbers)?;
    let cpu = cpu_time(pid)?;
    let start = Instant::now();
    let latencies = round(client, seconds, depth, operation, numbers)?;
    let elapsed_s = start.elapsed().as_secs_f64();
    let cpu_s = (cpu_time(pid)?.saturating_sub(cpu)).as_secs_f64();
    Ok(Measured { operations: latencies.len(), latencies, elapsed_s, cpu_s, allocations: None })
}

#[allow(clippy::disallowed_methods, reason = "a benchmark measures the real machine")]
fn round<F: Future<Output = anyhow::Result<()>> + 'static>(
    client: &Client,
    seconds: f64,
    depth: u32,
    operation: &Rc<impl Fn(u64) -> F + 'static>,
    numbers: &Rc<Cell<u64>>,
) -> anyhow::Result<hdrhistogram::Histogram<u64>> {
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    let tasks: Vec<_> = (0..depth)
        .map(|_| {
            let (operation, numbers) = (operation.clone(), numbers.clone());
            spawn_joined(client.env().scheduler(), Class::Foreground, "load", async move {
                let mut histogram = latencies();
                let mut start = Instant::now();
                while start < end {
                    let number = numbers.get();
                    numbers.set(number + 1);
                    operation(number).await?;
                    let done = Instant::now();
                    histogram.saturating_record(nanoseconds(done - start));
                    start = done;
                }
                anyhow::Ok(histogram)
            })
        })
        .collect();
    client.block_on(async {
        let mut all = latencies();
        for task in tasks {
            all.add(task.await.map_err(|_| anyhow::anyhow!("a task was dropped"))??)?;
        }
        Ok(all)
    })
}

/// Runs `operation` one at a time and measures `limit_us`, in turns: what the machine does to one it does to the other, such
/// as moving the cores of a virtual machine further apart. Returns what came out, the median limit, and the median of the
/// turns' ratios.
pub fn in_turns<F: Future<Output = anyhow::Result<()>> + 'static>(
    client: &Client,
    pid: u32,
    seconds: f64,
    operation: impl Fn(u64) -> F + 'static,
    limit_us: impl Fn() -> anyhow::Result<f64>,
) -> anyhow::Result<(Measured, f64, f64)> {
    // Every look at a limit starts a process: a run that only shows that everything works looks twice.
    let turns = if seconds < 0.2 { 1 } else { 5 };
    let (operation, numbers) = (Rc::new(operation), Rc::default());
    let mut all =
        Measured { latencies: latencies(), operations: 0, elapsed_s: 0.0, cpu_s: 0.0, allocations: None };
    let (mut limits, mut ratios) = (Vec::new(), Vec::new());
    let mut before = limit_us()?;
    for _ in 0..turns {
        let turn = run(client, pid, seconds / f64::from(turns), 1, &numbers, &operation)?;
        let after = limit_us()?;
        let limit = (before + after) / 2.0;
        before = after;
        limits.push(limit);
        ratios.push(turn.latencies.value_at_quantile(0.5) as f64 / 1e3 / limit);
        all.latencies.add(&turn.latencies)?;
        all.operations += turn.operations;
        all.elapsed_s += turn.elapsed_s;
        all.cpu_s += turn.cpu_s;
    }
    let median = |values: &mut Vec<f64>| {
        values.sort_unstable_by(f64::total_cmp);
        values[values.len() / 2]
    };
    Ok((all, median(&mut limits), median(&mut ratios)))
}
