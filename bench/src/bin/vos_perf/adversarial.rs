//! Arrays whose extents lie as badly as they can: reads of one byte at any epoch, beside the same of extents that do not overlap.

use daos_bench::{meter::Measured, report::Row};
use daos_types::{Checksum, Epoch, ObjectType};
use daos_vos::{Checksums, Conflict, Container, Error, ExtentData, ExtentUpdate, Pool, Punch, Update};

use crate::{
    MediaName,
    setup::{Bench, WRITER, World, container, object, scattered},
};

/// Extents one in the other, each of them newer than what is around it; extents of half the array, each a byte further than the
/// one before; single bytes in no order.
pub const CASES: [&str; 3] = ["array-nested", "array-staggered", "array-interleaved"];
/// More extents than this are not made.
const EXTENTS_MAX: u64 = 1_000_000;

/// The last case of all, which is not printed: single bytes side by side, in order.
const PEER: usize = CASES.len();

/// Measures the cases that were asked for.
pub async fn measure(world: &World, bench: &Bench) -> anyhow::Result<()> {
    if !bench.wants_any(&CASES) {
        return Ok(());
    }
    let count = bench.records.min(EXTENTS_MAX);
    let (pool, first) = bench.pool(world, MediaName::Heap, (256 << 20) + count * 512, 0).await?;
    let _ = pool.container_destroy(first.uuid()).await?;
    let peer = case(bench, &pool, PEER, count).await?;
    for (index, name) in CASES.into_iter().enumerate().filter(|(_, name)| bench.wants(name)) {
        let measured = case(bench, &pool, index, count).await?;
        let row = Row {
            case: name.to_owned(),
            media: Some("heap".to_owned()),
            value_bytes: 1,
            depth: 1,
            records: Some(count),
            ..Row::default()
        };
        bench.print(&row.measured(&measured).rate_beside("extents that do not overlap", peer.per_s()));
    }
    pool.close().await?;
    drop((pool, first));
    bench.remove_pool(world).await
}

/// Makes the extents and reads.
async fn case(bench: &Bench, pool: &Pool<World>, index: usize, count: u64) -> anyhow::Result<Measured> {
    let container = container(pool, 10 + index as u128)?;
    bench.drive(pool, count, 1, |number| write(&container, index, number, count)).await?;
    let measured = bench.drive(pool, count, 1, |number| read(&container, number, count)).await?;
    let _ = pool.container_destroy(container.uuid()).await?;
    let _ = pool.flush().await?;
    Ok(measured)
}

/// Extents with much in them are punches: their bytes are not what is measured.
fn write(container: &Container<World>, index: usize, number: u64, count: u64) -> Result<(), Error> {
    let (id, epoch) = (object(ObjectType::Array, 1), Epoch(number + 1));
    let range = match index {
        0 => number..2 * count - number,
        1 => number..number + count / 2,
        _ => {
            // An odd factor visits every place of a power of two once.
            let places = count.next_power_of_two();
            let place = if index == PEER { number } else { number.wrapping_mul(0x9e37_79b1) % places };
            let byte = [number as u8];
            let checksum = [Checksum(crc32c::crc32c(&byte))];
            let data = ExtentData::Inline(&byte, Checksums { chunk_bytes: 4096, chunks: &checksum });
            let update = Update::Array(&[ExtentUpdate { offset: place, data }]);
            return container.update(id, epoch, WRITER, Conflict::LastWins, &update).map(drop);
        }
    };
    container.punch(id, epoch, WRITER, Conflict::LastWins, &Punch::Extent(range)).map(drop)
}

fn read(container: &Container<World>, number: u64, count: u64) -> Result<(), Error> {
    let at = scattered(number, count);
    let epoch = Epoch(1 + scattered(number.wrapping_mul(31), count));
    let mut pieces = 0;
    container.fetch_array(object(ObjectType::Array, 1), None, at..at + 1, epoch, |piece| {
        pieces += piece.range.end - piece.range.start;
        std::hint::black_box(&piece.content);
    })?;
    if pieces == 1 { Ok(()) } else { Err(Error::NotFound("byte that was asked for")) }
}
