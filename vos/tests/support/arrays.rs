//! Arrays, on the block tier and off it, written and read as one piece.

use daos_types::{Cookie, Epoch, KeyOrder, ObjectClass, ObjectId, ObjectType, Writer, WriterKind};
use daos_vos::{
    Checksums, Conflict, Container, Data, Error, ExtentData, ExtentUpdate, Fetched, Pool, PoolOptions, Update,
};
use daos_xstream::{Env, IoBuffer};

use super::{driver::chunks, pool};

/// A pool on `wal` media with a log of 512 KiB.
pub fn options(heap_bytes: u64, block_bytes: u64) -> PoolOptions {
    pool::wal(heap_bytes, 512 << 10, block_bytes)
}

/// An object with hashed keys.
pub fn object(kind: ObjectType, number: u64) -> ObjectId {
    ObjectId::new(kind, KeyOrder::Hashed, KeyOrder::Hashed, ObjectClass(1), (0, 0, number))
}

/// An application's write with this cookie.
pub fn writer(cookie: u64) -> Writer {
    Writer { cookie: Cookie(cookie), map_version: 1, kind: WriterKind::Application }
}

/// Writes an extent to the block tier, and names it in the array.
pub async fn write_stored<E: Env>(
    pool: &Pool<E>,
    container: &Container<E>,
    id: ObjectId,
    (epoch, cookie, conflict): (u64, u64, Conflict),
    offset: u64,
    bytes: &[u8],
) -> Result<(), Error> {
    let sums = chunks(&(offset..offset + bytes.len() as u64), bytes, 4096);
    let checksums = Checksums { chunk_bytes: 4096, chunks: &sums };
    let stored = pool.store(IoBuffer::copy_of(bytes), offset, checksums).await.1?;
    let update = Update::Array(&[ExtentUpdate { offset, data: ExtentData::Stored(&stored) }]);
    container.update(id, Epoch(epoch), writer(cookie), conflict, &update).map(|_| ())
}

/// The first `length` bytes of an array at an epoch; what is not there is zeros.
pub async fn read_array<E: Env>(
    pool: &Pool<E>,
    container: &Container<E>,
    id: ObjectId,
    length: u64,
    epoch: u64,
) -> Vec<u8> {
    let mut bytes = vec![0; length as usize];
    let mut loads = Vec::new();
    let read = container.fetch_array(id, None, 0..length, Epoch(epoch), |piece| {
        if let Fetched::Value(data) = piece.content {
            match data.data {
                Data::Inline(data) => {
                    bytes[piece.range.start as usize..piece.range.end as usize].copy_from_slice(data);
                }
                Data::Stored(place) => loads.push((piece.range.start as usize, place)),
            }
        }
    });
    read.expect("a read");
    for (start, place) in loads {
        let data = pool.load(&place).await.expect("a load");
        bytes[start..start + data.as_slice().len()].copy_from_slice(data.as_slice());
    }
    bytes
}
