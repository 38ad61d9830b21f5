//! `vos_perf`: the speed of the versioning object store by itself, in this process, beside its peers.

#![forbid(unsafe_code)]

mod adversarial;
mod arrays;
mod blocks;
mod durable;
mod pauses;
mod reopen;
mod setup;
mod values;

use std::{convert::Infallible, path::PathBuf, sync::Arc};

use anyhow::{Context, ensure};
use clap::{Parser, ValueEnum};
use daos_bench::meter;
use daos_xstream_uring::{Config, NoFabric, Shutdown, run, usable_cpus};

use crate::setup::{Bench, Rates, World};

/// Measures the versioning object store (VOS) in this process, on one pinned core, without network or engine.
///
/// Each case prints its rate, its latencies (microseconds; one operation in eight is timed), CPU time and allocations
/// per operation, and below it the limit or peer that was measured in the same run, the ratio between the two, and
/// whether the goal was reached. Values are 64 bytes with keys of 16 bytes; `kv` cases write one KV object, `doc` cases
/// one document with one akey per dkey, `array` cases 4 KiB blocks at random offsets of one byte array.
///
/// Cases: kv-update, kv-update-existing, kv-fetch, kv-fetch-batch, doc-update, doc-update-existing, doc-fetch,
/// doc-fetch-batch, array-update, array-read; on heap media array-nested, array-staggered, array-interleaved (one byte
/// of many extents that hide each other); and on wal media durable-update (one at a time, 32 and 64 in flight),
/// block-write, block-read, open-after-crash, checkpoint-slices and scrubber-slices (how long they hold the core).
///
/// Examples:
///   vos_perf                                  everything, on plain memory and behind a log
///   vos_perf --media heap --case doc-fetch    what a fetch costs
///   vos_perf --media wal --case durable --dir /mnt/nvme0
///   PMEM_IS_PMEM_FORCE=1 vos_perf --media pmem --dir /dev/shm
#[derive(Parser)]
#[command(version, verbatim_doc_comment)]
struct Arguments {
    /// Records of each `kv` and `doc` case. Arrays take one 4 KiB block for every four records: 1 GiB by default.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(64..=100_000_000))]
    records: u64,
    /// How long the cases that wait for a device run, in seconds each.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Only the cases whose name contains this; may be given more than once.
    #[arg(long = "case", value_name = "TEXT")]
    cases: Vec<String>,
    /// Where the heap lives; may be given more than once. `heap` also runs, unprinted, as the peer of the others.
    #[arg(long, value_enum, default_values_t = [MediaName::Heap, MediaName::Wal])]
    media: Vec<MediaName>,
    /// The folder in which files are made and removed again: on the disk to be measured, or for `pmem` on DAX or tmpfs.
    #[arg(long, default_value_os_t = std::env::temp_dir())]
    dir: PathBuf,
    /// The CPU to run on. Default: the last one that this process may use.
    #[arg(long)]
    cpu: Option<usize>,
    /// Print one JSON object per case and line.
    #[arg(short, long)]
    json: bool,
}

/// Where a heap lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum MediaName {
    /// Plain memory.
    Heap,
    /// Memory behind a write-ahead log on a disk.
    Wal,
    /// A file on persistent memory.
    Pmem,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    ensure!(meter::counts_allocations(), "the counter of allocations does not count");
    ensure!(arguments.seconds > 0.0, "--seconds must be more than 0");
    let folder = tempfile::Builder::new()
        .prefix("vos_perf-")
        .tempdir_in(&arguments.dir)
        .with_context(|| format!("making a folder in {}", arguments.dir.display()))?;
    let cpu = match arguments.cpu {
        Some(cpu) => cpu,
        None => *usable_cpus()?.last().context("this process may use no CPU")?,
    };
    let mut config = Config::new(1, folder.path());
    config.cpus = vec![cpu];
    let bench = Bench {
        records: arguments.records,
        seconds: arguments.seconds,
        folder: folder.path().to_owned(),
        cases: arguments.cases.into(),
        json: arguments.json,
    };
    let media: Arc<[MediaName]> = arguments.media.into();
    let result = run(
        &config,
        &Shutdown::new(),
        |_| Ok::<_, Infallible>(NoFabric::new()),
        move |world| {
            let (bench, media) = (bench.clone(), media.clone());
            async move { measure(&world, &bench, &media).await }
        },
    );
    folder.close().context("removing the folder")?;
    result?.into_iter().collect()
}

/// Runs what was asked for on each of `media`.
async fn measure(world: &World, bench: &Bench, media: &[MediaName]) -> anyhow::Result<()> {
    let mut rates = Rates::default();
    let needs_peer = media.contains(&MediaName::Wal) && bench.wants_any(&values::CASES);
    if needs_peer && !media.contains(&MediaName::Heap) {
        values::measure(world, bench, MediaName::Heap, &mut rates, false).await?;
    }
    let mut media = media.to_vec();
    media.sort_unstable();
    media.dedup();
    for media in media {
        if bench.wants_any(&values::CASES) {
            values::measure(world, bench, media, &mut rates, true).await?;
        }
        if bench.wants_any(&arrays::CASES) {
            arrays::measure(world, bench, media).await?;
        }
        if media == MediaName::Heap {
            adversarial::measure(world, bench).await?;
        }
        if media == MediaName::Wal {
            durable::measure(world, bench).await?;
            blocks::measure(world, bench).await?;
            reopen::measure(world, bench).await?;
            pauses::measure(world, bench).await?;
        }
    }
    Ok(())
}
