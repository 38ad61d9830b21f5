//! Updates that wait until they survive a crash.

use std::time::Instant;

use daos_bench::{
    limits::{durable_write_us, nanoseconds},
    machine::own_cpu_s,
    meter::Meter,
    report::Row,
};
use daos_types::{Checksum, Epoch, ObjectType};
use daos_vos::{Conflict, Container, Error, KeyUpdate, Pool, Sealed, Update, Value};
use daos_xstream::{Class, Env, spawn_joined};

use crate::{
    MediaName,
    setup::{Bench, WRITER, World, key, object},
};

const CASE: &str = "durable-update";
const VALUE: [u8; 64] = [0x5a; 64];

/// Measures one at a time, 32 in flight (RocksDB's peer, `bench/compare/rocksdb.sh`), and 64.
pub async fn measure(world: &World, bench: &Bench) -> anyhow::Result<()> {
    if !bench.wants(CASE) {
        return Ok(());
    }
    let (pool, container) = bench.pool(world, MediaName::Wal, 1 << 30, 0).await?;
    let writes = (bench.seconds * 5000.0).clamp(50.0, 5000.0) as u32;
    for (depth, goal) in [(1, Some(1.2)), (32, None), (64, Some(20.0))] {
        // Before and after, because a shared disk changes its mind within seconds.
        let before_us = durable_write_us(&bench.folder, writes / 2)?;
        let measured = in_flight(bench, &pool, &container, depth).await?;
        let after_us = durable_write_us(&bench.folder, writes / 2)?;
        let raw_us = (before_us + after_us) / 2.0;
        let row = Row {
            case: CASE.to_owned(),
            media: Some("wal".to_owned()),
            durable: true,
            value_bytes: VALUE.len() as u64,
            depth,
            ..Row::default()
        };
        let row = row.measured(&measured);
        const ONE_AT_A_TIME: &str = "raw 4 KiB write + fdatasync, one at a time";
        bench.print(&match (depth, goal) {
            (1, Some(goal)) => row.latency_limit("raw 4 KiB write + fdatasync", raw_us, goal),
            (_, Some(goal)) => row.rate_limit(ONE_AT_A_TIME, 1e6 / raw_us, goal),
            (_, None) => row.rate_beside(ONE_AT_A_TIME, 1e6 / raw_us),
        });
    }
    pool.close().await?;
    drop((pool, container));
    bench.remove_pool(world).await
}

#[allow(clippy::disallowed_methods, reason = "a benchmark measures the real machine")]
async fn in_flight(
    bench: &Bench,
    pool: &Pool<World>,
    container: &Container<World>,
    depth: u32,
) -> anyhow::Result<daos_bench::meter::Measured> {
    let end = Instant::now() + std::time::Duration::from_secs_f64(bench.seconds);
    let cpu_start_s = own_cpu_s();
    let mut meter = Meter::start();
    let tasks: Vec<_> = (0..depth)
        .map(|task| {
            let (pool, container) = (pool.clone(), container.clone());
            spawn_joined(pool.env().clone().scheduler(), Class::Foreground, "durable updates", async move {
                let mut latencies = Vec::new();
                let mut number = u64::from(task) << 40;
                while Instant::now() < end {
                    let start = Instant::now();
                    let sealed = loop {
                        match update(&container, number) {
                            Err(Error::LogFull) => pool.log_space().await?,
                            other => break other?,
                        }
                    };
                    let _ = pool.persisted(sealed).await?;
                    latencies.push(nanoseconds(start.elapsed()));
                    number += 1;
                }
                Ok::<_, Error>(latencies)
            })
        })
        .collect();
    for task in tasks {
        for latency in task.await.map_err(|_| anyhow::anyhow!("a task was dropped"))?? {
            meter.record(latency);
        }
    }
    let mut measured = meter.stop();
    measured.cpu_s = own_cpu_s() - cpu_start_s;
    Ok(measured)
}

fn update(container: &Container<World>, number: u64) -> Result<Sealed, Error> {
    let key = key(number);
    let value = Value::Inline(&VALUE, Checksum(crc32c::crc32c(&VALUE)));
    let update = Update::KeyValue(&[KeyUpdate { key: &key, value: Some(value) }]);
    container.update(object(ObjectType::KeyValue, 1), Epoch(1), WRITER, Conflict::LastWins, &update)
}
