//! Extents whose records say something else than the tree that they lie in: on persistent memory one flipped bit is enough.

use daos_types::{Checksum, Cookie, Epoch, KeyOrder, ObjectClass, ObjectId, ObjectType, Writer, WriterKind};
use daos_xstream_sim::{Config, SimEnv, Simulation};
use uuid::Uuid;

use crate::{
    Checksums, Conflict, Container, Error, ExtentData, ExtentUpdate, MediaKind, Pool, PoolOptions, Punch,
    Update, memory, records::Extent,
};

const WRITER: Writer = Writer { cookie: Cookie(1), map_version: 1, kind: WriterKind::Application };
const BYTES: [u8; 64] = [7; 64];
/// Starts of the extents: each fills a block of its own.
const STARTS: [u64; 3] = [64, 128, 192];

fn object() -> ObjectId {
    ObjectId::new(ObjectType::Array, KeyOrder::Hashed, KeyOrder::Hashed, ObjectClass(1), (0, 0, 1))
}

fn write(container: &Container<SimEnv>, start: u64, epoch: u64, fill: u8) -> Result<(), Error> {
    let bytes = [fill; 64];
    let checksums = [Checksum(crc32c::crc32c(&bytes))];
    let data = ExtentData::Inline(&bytes, Checksums { chunk_bytes: 4096, chunks: &checksums });
    let update = Update::Array(&[ExtentUpdate { offset: start, data }]);
    container.update(object(), Epoch(epoch), WRITER, Conflict::LastWins, &update).map(drop)
}

fn is_damage<T: std::fmt::Debug>(done: Result<T, Error>) {
    assert!(matches!(done, Err(Error::Corrupt { .. } | Error::BadChecksum { .. })), "{done:?}");
}

/// A change of a damaged extent once freed its record and left it in the tree, or showed its bytes where they were never
/// written; a read between two epochs of a block never ended.
#[test]
fn what_meets_a_damaged_extent_ends_with_an_error_and_changes_nothing() {
    type Harm = fn(&mut Extent);
    let harms: [(&str, Harm); 5] = [
        ("an end before the start", |extent| extent.end = 0),
        ("another block", |extent| (extent.start, extent.end) = (4, 5)),
        ("a wider range", |extent| extent.end += 1 << 40),
        ("an end beyond all arrays", |extent| extent.end = u64::MAX),
        ("a later epoch", |extent| extent.epoch += 1 << 20),
    ];
    for (name, harm) in harms {
        let sim = Simulation::new(1, Config::default());
        let node = sim.add_node(1);
        let run = sim.block_on(&node, move |env| async move {
            let options = PoolOptions {
                uuid: Uuid::from_u128(1),
                media: MediaKind::Heap,
                heap_bytes: 4 << 20,
                log_bytes: 0,
                block_bytes: 0,
            };
            let pool = Pool::create(&env, "pool", options).await.expect("a pool");
            let _ = pool.container_create(Uuid::from_u128(2)).expect("a container");
            let container = pool.container_open(Uuid::from_u128(2)).expect("a handle");
            for start in STARTS {
                write(&container, start, 5, BYTES[0]).expect("written");
            }
            let mut damaged = 0;
            for (place, bytes) in pool.arena_blocks() {
                let _ = pool
                    .transaction(|tx| {
                        if bytes < size_of::<Extent>() as u64 {
                            return Ok(());
                        }
                        let mut extent: Extent = *memory::read(tx.heap(), place)?;
                        if (extent.start, extent.end, extent.epoch) != (STARTS[1], STARTS[1] + 64, 5) {
                            return Ok(());
                        }
                        damaged += 1;
                        harm(&mut extent);
                        memory::write(tx, place, &extent)
                    })
                    .expect("damaged");
            }
            assert_eq!(damaged, 1, "{name}");
            let blocks = pool.arena_blocks();
            is_damage(write(&container, STARTS[1], 5, 8));
            let punch = Punch::Extent(STARTS[1]..STARTS[1] + 32);
            is_damage(container.punch(object(), Epoch(5), WRITER, Conflict::LastWins, &punch));
            assert_eq!(pool.arena_blocks(), blocks, "{name}: something was given away");
            // Whatever a read at any epoch answers, it ends, and the neighbours are there.
            for epoch in [4, 5, 6, 1 << 10, 1 << 21] {
                let range = STARTS[1]..STARTS[1] + 64;
                let _ = container.fetch_array(object(), None, range, Epoch(epoch), |_| ());
            }
            write(&container, STARTS[0], 5, 9).expect("a neighbour is written over");
            assert!(pool.verify().await.is_ok_and(|report| !report.is_sound()), "{name}: not noticed");
        });
        run.expect("it ends");
    }
}
