//! The block tier: large extents written durably, small ones read at random, beside the same I/O without the store.

use std::{cell::Cell, rc::Rc, time::Instant};

use daos_bench::{
    limits::nanoseconds,
    machine::own_cpu_s,
    meter::{Measured, Meter},
    report::Row,
};
use daos_types::{Checksum, Epoch, ObjectType};
use daos_vos::{
    Checksums, Conflict, Container, Data, Error, ExtentData, ExtentUpdate, Fetched, Pool, Update,
};
use daos_xstream::{Class, Durability, Env, IoBuffer, Media, MediaFile, OpenOptions, spawn_joined};

use crate::{
    MediaName,
    setup::{Bench, LATEST, WRITER, World, object, scattered},
};

const CASES: [&str; 2] = ["block-write", "block-read"];
const MEGABYTE: u64 = 1 << 20;
const BLOCK: u64 = 4096;
/// Bytes that writes go over, round and round, and reads come from.
const SPAN: u64 = 256 << 20;
/// Chunks of the array, for checksums: a read of one block must not read more.
const CHUNK: u32 = 4096;

/// Measures 1 MiB writes with 8 in flight, and 4 KiB reads with 32 in flight.
pub async fn measure(world: &World, bench: &Bench) -> anyhow::Result<()> {
    if !bench.wants_any(&CASES) {
        return Ok(());
    }
    let (pool, container) = bench.pool(world, MediaName::Wal, 512 << 20, 2 * SPAN).await?;
    let raw = world
        .media()
        .open(
            "raw",
            OpenOptions { create_new: true, size: SPAN, preallocate: true, ..OpenOptions::default() },
        )
        .await?;
    write_span(&pool, &container).await?;
    let row = |case: &str, bytes, depth| Row {
        case: case.to_owned(),
        media: Some("wal".to_owned()),
        durable: case == CASES[0],
        value_bytes: bytes,
        depth,
        ..Row::default()
    };

    if bench.wants(CASES[0]) {
        let file = raw.clone();
        let limit = in_flight(bench, world, 8, move |number| {
            let file = file.clone();
            async move {
                let buffer = IoBuffer::copy_of(&vec![number as u8; MEGABYTE as usize]);
                let place = number * MEGABYTE % SPAN;
                file.write(place, buffer, Durability::Durable).await.1.map_err(Into::into)
            }
        })
        .await?;
        let (writer, target) = (pool.clone(), container.clone());
        let measured = in_flight(bench, world, 8, move |number| {
            let (pool, container) = (writer.clone(), target.clone());
            async move { write_megabyte(&pool, &container, number, number + 2).await }
        })
        .await?;
        let row = row(CASES[0], MEGABYTE, 8).measured(&measured);
        bench.print(&row.rate_limit("the same writes without the store", limit.per_s(), 0.9));
    }
    if bench.wants(CASES[1]) {
        let limit = in_flight(bench, world, 32, move |number| {
            let file = raw.clone();
            async move {
                let place = scattered(number, SPAN / BLOCK) * BLOCK;
                file.read(place, IoBuffer::zeroed(BLOCK as usize)).await.1.map_err(Into::into)
            }
        })
        .await?;
        let (reader, source) = (pool.clone(), container.clone());
        let measured = in_flight(bench, world, 32, move |number| {
            let (pool, container) = (reader.clone(), source.clone());
            async move { read_block(&pool, &container, scattered(number, SPAN / BLOCK) * BLOCK).await }
        })
        .await?;
        let row = row(CASES[1], BLOCK, 32).measured(&measured);
        bench.print(&row.rate_limit("the same reads without the store", limit.per_s(), 0.9));
    }
    pool.close().await?;
    drop((pool, container));
    world.media().remove("raw").await?;
    bench.remove_pool(world).await
}

async fn write_span(pool: &Pool<World>, container: &Container<World>) -> anyhow::Result<()> {
    for number in 0..SPAN / MEGABYTE {
        write_megabyte(pool, container, number, 1).await?;
    }
    Ok(())
}

/// Writes one MiB in an epoch of its own; older epochs of the same bytes are forgotten when the span is full.
async fn write_megabyte(
    pool: &Pool<World>,
    container: &Container<World>,
    number: u64,
    fill: u64,
) -> anyhow::Result<()> {
    let buffer = IoBuffer::copy_of(&vec![fill as u8; MEGABYTE as usize]);
    let checksum = Checksum(crc32c::crc32c(&buffer.as_slice()[..CHUNK as usize]));
    let checksums = vec![checksum; (MEGABYTE / u64::from(CHUNK)) as usize];
    let offset = number * MEGABYTE % SPAN;
    let (_, stored) = pool.store(buffer, offset, Checksums { chunk_bytes: CHUNK, chunks: &checksums }).await;
    let stored = stored?;
    let update = Update::Array(&[ExtentUpdate { offset, data: ExtentData::Stored(&stored) }]);
    // The same epoch again: the last to arrive wins, and the blocks of the one before are free again.
    let id = object(ObjectType::Array, 1);
    let sealed = container.update(id, Epoch(1), WRITER, Conflict::LastWins, &update)?;
    let _ = pool.persisted(sealed).await?;
    Ok(())
}

async fn read_block(pool: &Pool<World>, container: &Container<World>, from: u64) -> anyhow::Result<()> {
    let mut found = None;
    container.fetch_array(object(ObjectType::Array, 1), None, from..from + BLOCK, LATEST, |piece| {
        if let Fetched::Value(data) = piece.content
            && let Data::Stored(place) = data.data
        {
            found = Some(place);
        }
    })?;
    let place = found.ok_or(Error::NotFound("block that was written before"))?;
    let buffer = pool.load(&place).await?;
    if buffer.len() as u64 == BLOCK { Ok(()) } else { Err(Error::NotFound("whole block").into()) }
}

/// Keeps `depth` operations in flight for the time asked for.
#[allow(clippy::disallowed_methods, reason = "a benchmark measures the real machine")]
async fn in_flight<F: Future<Output = anyhow::Result<()>> + 'static>(
    bench: &Bench,
    world: &World,
    depth: u32,
    operation: impl Fn(u64) -> F + 'static,
) -> anyhow::Result<Measured> {
    let end = Instant::now() + std::time::Duration::from_secs_f64(bench.seconds);
    let operation = Rc::new(operation);
    let numbers = Rc::new(Cell::new(0));
    let cpu_start_s = own_cpu_s();
    let mut meter = Meter::start();
    let tasks: Vec<_> = (0..depth)
        .map(|_| {
            let (operation, numbers) = (operation.clone(), numbers.clone());
            spawn_joined(world.scheduler(), Class::Foreground, "blocks", async move {
                let mut latencies = Vec::new();
                while Instant::now() < end {
                    let number = numbers.replace(numbers.get() + 1);
                    let start = Instant::now();
                    operation(number).await?;
                    latencies.push(nanoseconds(start.elapsed()));
                }
                Ok::<_, anyhow::Error>(latencies)
            })
        })
        .collect();
    for task in tasks {
        let latencies = task.await.map_err(|_| anyhow::anyhow!("a task was dropped"))?;
        for latency in latencies? {
            meter.record(latency);
        }
    }
    let mut measured = meter.stop();
    measured.cpu_s = own_cpu_s() - cpu_start_s;
    Ok(measured)
}
