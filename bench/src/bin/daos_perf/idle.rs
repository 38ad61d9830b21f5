//! An engine with nothing to do, and the first request after that.

use std::time::{Duration, Instant};

use daos::Client;
use daos_bench::{
    limits::nanoseconds,
    machine::cpu_time,
    meter::Measured,
    report::{Row, latencies},
};

use crate::{Bench, FabricName, echo::Echo};

/// The cases of this module.
pub const CASES: [&str; 3] = ["idle-cpu", "wake-after-idle", "wake-after-idle-raw"];

const IDLE: Duration = Duration::from_millis(50);
/// Share of a core that an idle engine may use, in percent.
const IDLE_PERCENT_MAX: f64 = 2.0;
const WAKE_US_MAX: f64 = 200.0;

/// Measures all; `null` makes a null call.
#[allow(clippy::disallowed_methods, reason = "a benchmark measures the real machine")]
pub fn measure<F: Future<Output = anyhow::Result<()>>>(
    bench: &Bench,
    client: &Client,
    pid: u32,
    (fabric, echo): (FabricName, &Echo),
    null: impl Fn() -> F,
) -> anyhow::Result<()> {
    let row = |case: &str| Row {
        case: case.to_owned(),
        fabric: Some(format!("{fabric:?}").to_lowercase()),
        depth: 1,
        ..Row::default()
    };
    if bench.wants(CASES[0]) {
        std::thread::sleep(IDLE);
        let (cpu, start) = (cpu_time(pid)?, Instant::now());
        std::thread::sleep(Duration::from_secs_f64(bench.seconds.max(0.5)));
        let elapsed_s = start.elapsed().as_secs_f64();
        let percent = (cpu_time(pid)? - cpu).as_secs_f64() / elapsed_s * 100.0;
        bench.print(&row(CASES[0]).percent_limit("share of a core", percent, IDLE_PERCENT_MAX));
    }
    let rounds = (bench.seconds * 20.0).clamp(5.0, 200.0) as u32;
    if bench.wants(CASES[1]) {
        let mut latencies = latencies();
        let (cpu, begin) = (cpu_time(pid)?, Instant::now());
        for _ in 0..rounds {
            std::thread::sleep(IDLE);
            let start = Instant::now();
            client.block_on(null())?;
            latencies.saturating_record(nanoseconds(start.elapsed()));
        }
        let elapsed_s = begin.elapsed().as_secs_f64();
        let cpu_s = (cpu_time(pid)? - cpu).as_secs_f64();
        let measured =
            Measured { operations: latencies.len(), latencies, elapsed_s, cpu_s, allocations: None };
        bench.print(&row(CASES[1]).measured(&measured).latency_limit("the goal", WAKE_US_MAX, 1.0));
    }
    // The provider that `local` is held against has nothing to sleep on.
    if fabric == FabricName::Tcp && bench.wants(CASES[2]) {
        let mut latencies = latencies();
        let begin = Instant::now();
        for time in echo.after_idling(rounds as usize, IDLE)? {
            latencies.saturating_record(nanoseconds(time));
        }
        let elapsed_s = begin.elapsed().as_secs_f64();
        let measured =
            Measured { operations: latencies.len(), latencies, elapsed_s, cpu_s: 0.0, allocations: None };
        bench.print(&row(CASES[2]).measured(&measured).latency_limit("the goal", WAKE_US_MAX, 1.0));
    }
    Ok(())
}
