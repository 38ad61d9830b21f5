//! `daos_perf`: the speed of an engine as a client sees it, beside the limits of the machine.

#![forbid(unsafe_code)]

mod cases;
mod echo;
mod engine;
mod idle;
mod load;

use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::{Parser, ValueEnum};
use daos_bench::{
    limits::{copy_and_checksum_per_s, durable_write_us, nanoseconds},
    machine,
    report::{Printer, Row, latencies},
};

use crate::{echo::Echo, engine::Engine};

/// Measures an engine as a client on the same machine sees it: engine on the first core, client on the second.
///
/// By itself it starts a development engine with one target in a temporary folder, makes a pool and a container, and
/// removes all of it at the end. Each case prints its rate, its latencies (microseconds), the engine's CPU time per
/// operation, and below it the limit that was measured in the same run, the ratio, and whether the goal was reached.
///
/// Cases: engine-start, null-rpc, kv-update, kv-update-durable, kv-fetch, array-write, array-read, idle-cpu, wake-after-idle,
/// wake-after-idle-raw (what a raw echo takes whose far side sleeps in between).
/// Limits: a raw libfabric echo (shm beside `local`), a raw write + fdatasync, memcpy + CRC32C.
///
/// Examples:
///   daos_perf                                     everything, over both fabrics
///   daos_perf --fabric local --case kv-update     one case
///   daos_perf --dir /var/tmp/daos --pool tank     an engine that runs already
#[derive(Parser)]
#[command(version, verbatim_doc_comment)]
struct Arguments {
    /// Fabrics to measure; may be given more than once.
    #[arg(long, value_enum, default_values_t = [FabricName::Local, FabricName::Tcp])]
    fabric: Vec<FabricName>,
    /// How long each case runs, in seconds.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Only the cases whose name contains this; may be given more than once.
    #[arg(long = "case", value_name = "TEXT")]
    cases: Vec<String>,
    /// Folder of an engine that runs already. Default: start one.
    #[arg(long, requires = "pool")]
    dir: Option<PathBuf>,
    /// Pool of that engine to make a container in.
    #[arg(long, requires = "dir")]
    pool: Option<String>,
    /// Where the folder of an engine of our own is made: on the disk to be measured.
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    scratch: PathBuf,
    /// Core of the client and of the near side of echoes; the other side is on core 0.
    #[arg(long, default_value_t = 1)]
    client_core: usize,
    /// Print one JSON object per case and line.
    #[arg(short, long)]
    json: bool,
    /// Be the far side of an echo over this libfabric provider.
    #[arg(long, hide = true)]
    echo_server: Option<String>,
    /// As that far side, sleep while there is nothing to do.
    #[arg(long, hide = true)]
    echo_parks: bool,
    /// Run an engine in this folder until the input ends, then remove both.
    #[arg(long, hide = true)]
    keep_engine: Option<PathBuf>,
}

/// The way to the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FabricName {
    /// Shared memory.
    Local,
    /// libfabric's `tcp;ofi_rxm` over loopback.
    Tcp,
}

/// What was asked for, and the limits of the machine.
struct Bench {
    seconds: f64,
    cases: Vec<String>,
    printer: Printer,
    /// A folder on the disk that is measured.
    scratch: PathBuf,
    /// Median of a raw durable write there.
    durable_us: f64,
}

impl Bench {
    fn wants(&self, case: &str) -> bool {
        self.cases.is_empty() || self.cases.iter().any(|wanted| case.contains(wanted.as_str()))
    }

    fn wants_any(&self, cases: &[&str]) -> bool {
        cases.iter().any(|case| self.wants(case))
    }

    fn print(&self, row: &Row) {
        self.printer.print(row);
    }

    /// Blocks of `bytes` per second that a core copies and checksums.
    fn copy_per_s(&self, bytes: usize) -> f64 {
        copy_and_checksum_per_s(bytes, 256 << 20, std::time::Duration::from_millis(200))
    }
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    if let Some(provider) = &arguments.echo_server {
        return echo::serve(provider, arguments.echo_parks);
    }
    if let Some(folder) = &arguments.keep_engine {
        return engine::keep(folder);
    }
    ensure!(arguments.seconds > 0.0, "--seconds must be more than 0");
    let engine = match (&arguments.dir, arguments.pool) {
        (Some(dir), Some(pool)) => Engine::running(dir, pool),
        _ => Engine::start(&arguments.scratch)?,
    };
    machine::pin(arguments.client_core)
        .with_context(|| format!("pinning this client to core {}", arguments.client_core))?;
    let mut bench = Bench {
        seconds: arguments.seconds,
        cases: arguments.cases,
        printer: Printer { json: arguments.json },
        scratch: arguments.scratch.clone(),
        durable_us: 0.0,
    };
    if bench.wants("kv-update-durable") {
        // The best of several, as for the echo.
        bench.durable_us = f64::INFINITY;
        for _ in 0..3 {
            let writes = (700.0 * bench.seconds) as u32 + 20;
            bench.durable_us = bench.durable_us.min(durable_write_us(&arguments.scratch, writes)?);
        }
    }
    if let Some(took) = engine.started_in().filter(|_| bench.wants("engine-start")) {
        print_start(&bench, took);
    }
    let mut result = Ok(());
    for fabric in arguments.fabric {
        // The echo runs while the engine sleeps.
        let echo = Echo::measure(fabric, bench.seconds)?;
        result = cases::measure(&bench, &engine, fabric, &echo);
        if result.is_err() {
            break;
        }
    }
    engine.stop()?;
    result
}

/// How long the engine took to serve; once, so all percentiles are the same.
fn print_start(bench: &Bench, took: std::time::Duration) {
    let mut latencies = latencies();
    latencies.saturating_record(nanoseconds(took));
    let row = Row { case: "engine-start".to_owned(), fabric: Some("both".to_owned()), ..Row::default() };
    bench.print(&row.timed(&latencies, took.as_secs_f64()).latency_limit("the goal", 1e6, 1.0));
}
