//! What happened: extents were written over in their own epoch, again and again, and the discard of all of it failed with
//! a corrupt heap. Each write notes its extent in the group of its epoch, also when it replaces one that was noted before.
//! The discard prunes the object with its last extent, and then meets another note that names the object.

mod support;

use daos_types::{Checksum, Cookie, Epoch, EpochRange, ObjectType};
use daos_vos::{Checksums, Conflict, ExtentData, ExtentUpdate, Pool, Update};
use daos_xstream::IoBuffer;
use support::{
    arrays::{object, writer},
    pool::{self, CONTAINER},
};

const CHUNK: usize = 32 << 10;

fn run(extent_bytes: usize, extents: u64, rounds: u64, chunk: usize, discard: bool) {
    pool::run(move |env| async move {
        let pool = Pool::create(&env, "pool", pool::heap(64 << 20, 256 << 20)).await.expect("a pool");
        let free = pool.usage().expect("usage");
        let _ = pool.container_create(CONTAINER).expect("a container");
        let container = pool.container_open(CONTAINER).expect("the container");
        let id = object(ObjectType::Array, 1);
        for number in 0..extents * rounds {
            let offset = number % extents * extent_bytes as u64;
            let buffer = IoBuffer::copy_of(&vec![number as u8; extent_bytes]);
            let checksum = Checksum(crc32c::crc32c(&buffer.as_slice()[..chunk]));
            let chunks = vec![checksum; extent_bytes / chunk];
            let checksums = Checksums { chunk_bytes: chunk as u32, chunks: &chunks };
            let (_, stored) = pool.store(buffer, offset, checksums).await;
            let stored = stored.expect("room");
            let update = Update::Array(&[ExtentUpdate { offset, data: ExtentData::Stored(&stored) }]);
            let sealed = container.update(id, Epoch(5), writer(1), Conflict::LastWins, &update);
            let _ = pool.persisted(sealed.expect("an update")).await.expect("durable");
        }
        if discard {
            let range = EpochRange { low: Epoch(1), high: Epoch(9) };
            let _ = container.discard(Cookie(1), range).await.expect("a discard");
        }
        let _ = pool.container_destroy(CONTAINER).await.expect("a destruction");
        let _ = pool.flush().await.expect("a flush");
        assert_eq!(pool.usage().expect("usage"), free);
    });
}

#[test]
fn extents_written_over_in_their_epoch_are_discarded() {
    for extent_bytes in [64 << 10, 1 << 20] {
        for chunk in [4096, CHUNK] {
            for (extents, rounds) in [(3, 1), (40, 1), (40, 4), (150, 2)] {
                for discard in [true, false] {
                    println!("{extent_bytes} {chunk} {extents} {rounds} {discard}");
                    run(extent_bytes, extents, rounds, chunk, discard);
                }
            }
        }
    }
}
