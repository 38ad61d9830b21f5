//! Opening a pool after a crash: the arena file is loaded and the log replayed, and no record is looked at.

use std::time::Instant;

use daos_bench::{limits::nanoseconds, meter::Meter, report::Row};
use daos_types::ObjectType;
use daos_vos::Pool;
use daos_xstream::{Clock, Env, IoBuffer, Media, MediaFile, OpenOptions, join_all};

use crate::{
    MediaName,
    setup::{Bench, World, object},
    values,
};

const CASE: &str = "open-after-crash";
const READ_BYTES: u64 = 1 << 20;
const READS_IN_FLIGHT: u64 = 8;

/// Measures the time from a dropped pool to one that is open again.
#[allow(clippy::disallowed_methods, reason = "a benchmark measures the real machine")]
pub async fn measure(world: &World, bench: &Bench) -> anyhow::Result<()> {
    if !bench.wants(CASE) {
        return Ok(());
    }
    let count = bench.records;
    let id = object(ObjectType::KeyValue, 1);
    let (pool, container) = bench.pool(world, MediaName::Wal, (64 << 20) + count * 256, 0).await?;
    bench.drive(&pool, count, 1, |number| values::write(&container, id, number, 1, 1)).await?;
    let uuid = container.uuid();
    // Dropped, not closed: what is not in the files is gone, as in a crash.
    drop((pool, container));
    world.clock().sleep_until(world.clock().now() + std::time::Duration::from_millis(50)).await;

    let (read_s, bytes) = read_files(world).await?;
    let mut meter = Meter::start();
    let start = Instant::now();
    let pool = Pool::open(world, "pool").await?;
    meter.record(nanoseconds(start.elapsed()));
    let measured = meter.stop();
    let found = pool.container_open(uuid)?.usage()?.records;
    anyhow::ensure!(found == count, "{found} of {count} durable records are there after the crash");
    let row = Row {
        case: CASE.to_owned(),
        media: Some("wal".to_owned()),
        value_bytes: bytes,
        depth: 1,
        ..Row::default()
    };
    // 0.8 of the speed of the disk is 1.25 times its time.
    let row = row.measured(&measured).latency_limit("reading both files", read_s * 1e6, 1.25);
    bench.print(&row);
    pool.close().await?;
    drop(pool);
    bench.remove_pool(world).await
}

/// Reads the pool's files and gives the time that it took and their bytes.
#[allow(clippy::disallowed_methods, reason = "a benchmark measures the real machine")]
async fn read_files(world: &World) -> anyhow::Result<(f64, u64)> {
    let start = Instant::now();
    let mut bytes = 0;
    for name in ["heap", "log"] {
        let file = world.media().open(&format!("pool/{name}"), OpenOptions::default()).await?;
        bytes += file.size();
        let mut at = 0;
        while at < file.size() {
            let end = (at + READS_IN_FLIGHT * READ_BYTES).min(file.size());
            let reads = (at..end)
                .step_by(READ_BYTES as usize)
                .map(|place| file.read(place, IoBuffer::zeroed((end - place).min(READ_BYTES) as usize)));
            for (_, result) in join_all(reads).await {
                result?;
            }
            at = end;
        }
    }
    Ok((start.elapsed().as_secs_f64(), bytes))
}
