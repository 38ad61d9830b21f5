//! 4 KiB blocks at random offsets of one byte array, kept in the arena.

use std::time::Duration;

use daos_bench::{limits::copy_and_checksum_per_s, report::Row};
use daos_types::{Checksum, Epoch, ObjectType};
use daos_vos::{Checksums, Conflict, Data, Error, ExtentData, ExtentUpdate, Fetched, Update};

use crate::{
    MediaName,
    setup::{Bench, LATEST, WRITER, World, arena_bytes_used, container, object, scattered},
};

/// The cases of this module.
pub const CASES: [&str; 2] = ["array-update", "array-read"];

const BLOCK: usize = 4096;
/// Writes with the same epoch: later ones over earlier ones keep what they hide.
const WRITES_PER_EPOCH: u64 = 1000;

/// Measures the cases that were asked for on `media`.
pub async fn measure(world: &World, bench: &Bench, media: MediaName) -> anyhow::Result<()> {
    let blocks = (bench.records / 4).next_power_of_two();
    let (pool, first) =
        bench.pool(world, media, (64 << 20) + blocks * (BLOCK as u64 + 512) * 5 / 4, 0).await?;
    let id = object(ObjectType::Array, 1);
    let bytes: Vec<u8> = (0..BLOCK).map(|index| index as u8).collect();
    let checksum = [Checksum(crc32c::crc32c(&bytes))];
    let data = ExtentData::Inline(&bytes, Checksums { chunk_bytes: BLOCK as u32, chunks: &checksum });
    let place = |number| scattered(number, blocks) * BLOCK as u64;
    let write = |container: &daos_vos::Container<World>, number| {
        let update = Update::Array(&[ExtentUpdate { offset: place(number), data }]);
        let epoch = Epoch(number / WRITES_PER_EPOCH + 1);
        container.update(id, epoch, WRITER, Conflict::LastWins, &update).map(drop)
    };
    // The first touch of memory is not what is measured.
    bench.drive(&pool, blocks, 1, |number| write(&first, number)).await?;
    let _ = pool.container_destroy(first.uuid()).await?;
    let _ = pool.flush().await?;
    let second = container(&pool, 2)?;

    let limit = copy_and_checksum_per_s(BLOCK, BLOCK * blocks as usize, Duration::from_millis(500));
    let row = |case: &str| Row {
        case: case.to_owned(),
        media: Some(format!("{media:?}").to_lowercase()),
        durable: media == MediaName::Pmem,
        value_bytes: BLOCK as u64,
        depth: 1,
        records: Some(blocks),
        ..Row::default()
    };
    let before = arena_bytes_used(&pool)?;
    let measured = bench.drive(&pool, blocks, 1, |number| write(&second, number)).await?;
    let records = second.usage()?;
    let mut written =
        row(CASES[0]).measured(&measured).cpu_rate_limit("memcpy + CRC32C of 4 KiB", limit, 0.7);
    let taken = arena_bytes_used(&pool)? - before;
    written.metadata_bytes_per_record =
        Some((taken as f64 - records.data_bytes as f64) / records.records as f64);
    bench.print(&written);

    if bench.wants(CASES[1]) {
        let mut target = vec![0; BLOCK];
        let measured = bench
            .drive(&pool, blocks, 1, |number| {
                let from = place(number);
                let mut copied = 0;
                second.fetch_array(id, None, from..from + BLOCK as u64, LATEST, |piece| {
                    if let Fetched::Value(data) = piece.content
                        && let Data::Inline(bytes) = data.data
                    {
                        target[copied..copied + bytes.len()].copy_from_slice(bytes);
                        copied += bytes.len();
                    }
                })?;
                std::hint::black_box(&target);
                if copied == BLOCK { Ok(()) } else { Err(Error::NotFound("block that was written before")) }
            })
            .await?;
        bench.print(&row(CASES[1]).measured(&measured).cpu_rate_limit(
            "memcpy + CRC32C of 4 KiB",
            limit,
            0.7,
        ));
    }
    pool.close().await?;
    drop((pool, first, second));
    bench.remove_pool(world).await
}
