//! The block tier: what is stored comes back; what nobody names is free; what is freed is not reused too early; what was
//! damaged is never returned.

mod support;

use daos_types::{
    Checksum, Cookie, Epoch, EpochRange, KeyOrder, ObjectClass, ObjectId, ObjectType, Writer, WriterKind,
};
use daos_vos::{
    BlockRef, Checksums, Conflict, Container, Data, Error, ExtentData, ExtentUpdate, FetchRequest, Fetched,
    KeyUpdate, Pool, Update, Value,
};
use daos_xstream::IoBuffer;
use daos_xstream_sim::{Config, Loss, SimEnv, Simulation};
use support::pool::{self, CONTAINER};

const BLOCK_BYTES: u64 = 1 << 20;
const WRITER: Writer = Writer { cookie: Cookie(1), map_version: 1, kind: WriterKind::Application };

fn object(kind: ObjectType) -> ObjectId {
    ObjectId::new(kind, KeyOrder::Hashed, KeyOrder::Hashed, ObjectClass(1), (0, 0, 1))
}

fn bytes(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|index| (index * 7 + index / 251) as u8 ^ seed).collect()
}

fn sums(offset: u64, bytes: &[u8], chunk: u64) -> Vec<Checksum> {
    let end = offset + bytes.len() as u64;
    (offset / chunk..=(end - 1) / chunk)
        .map(|index| {
            let (from, to) = ((index * chunk).max(offset), ((index + 1) * chunk).min(end));
            Checksum(crc32c::crc32c(&bytes[(from - offset) as usize..(to - offset) as usize]))
        })
        .collect()
}

async fn create(env: &SimEnv) -> (Pool<SimEnv>, Container<SimEnv>) {
    pool::create(env, pool::wal(4 << 20, 1 << 20, BLOCK_BYTES)).await
}

/// Stores `data` and writes it to the array at `offset`.
async fn write(
    pool: &Pool<SimEnv>,
    container: &Container<SimEnv>,
    epoch: u64,
    offset: u64,
    data: &[u8],
) -> Result<(), Error> {
    let chunks = sums(offset, data, 4096);
    let checksums = Checksums { chunk_bytes: 4096, chunks: &chunks };
    let (_, stored) = pool.store(IoBuffer::copy_of(data), offset, checksums).await;
    let stored = stored?;
    let update = Update::Array(&[ExtentUpdate { offset, data: ExtentData::Stored(&stored) }]);
    container.update(object(ObjectType::Array), Epoch(epoch), WRITER, Conflict::LastWins, &update).map(|_| ())
}

fn places(container: &Container<SimEnv>, range: std::ops::Range<u64>, epoch: u64) -> Vec<BlockRef> {
    let mut places = Vec::new();
    let read = container.fetch_array(object(ObjectType::Array), None, range, Epoch(epoch), |piece| {
        if let Fetched::Value(data) = piece.content
            && let Data::Stored(place) = data.data
        {
            assert_eq!(place.len(), piece.range.end - piece.range.start);
            places.push(place);
        }
    });
    read.expect("a read");
    places
}

async fn read(
    pool: &Pool<SimEnv>,
    container: &Container<SimEnv>,
    range: std::ops::Range<u64>,
    epoch: u64,
) -> Vec<u8> {
    let mut found = Vec::new();
    for place in places(container, range, epoch) {
        found.extend_from_slice(pool.load(&place).await.expect("a load").as_slice());
    }
    found
}

fn run<F: Future<Output = ()> + 'static>(
    seed: u64,
    task: impl FnOnce(SimEnv) -> F,
) -> (Simulation, daos_xstream_sim::Node) {
    let simulation = Simulation::new(seed, Config::default());
    let node = simulation.add_node(1);
    simulation.block_on(&node, task).expect("the run ends");
    (simulation, node)
}

#[test]
fn parts_of_what_was_stored_come_back_at_any_alignment() {
    run(1, |env| async move {
        let (pool, container) = create(&env).await;
        let (old, new) = (bytes(100_000, 1), bytes(9_999, 2));
        write(&pool, &container, 1, 5_000, &old).await.expect("a write");
        write(&pool, &container, 2, 20_001, &new).await.expect("a write");
        for (from, to) in
            [(5_000, 105_000), (5_001, 5_002), (12_288, 16_384), (19_000, 31_000), (29_999, 30_001)]
        {
            let wanted: Vec<u8> = (from..to)
                .map(
                    |at: usize| {
                        if (20_001..30_000).contains(&at) { new[at - 20_001] } else { old[at - 5_000] }
                    },
                )
                .collect();
            assert!(read(&pool, &container, from as u64..to as u64, 9).await == wanted, "{from}..{to}");
            let before = &old[from - 5_000..to - 5_000];
            assert!(read(&pool, &container, from as u64..to as u64, 1).await == before, "{from}..{to} at 1");
        }
        let value = bytes(70_000, 3);
        let checksum = Checksum(crc32c::crc32c(&value));
        let (_, stored) = pool.store_value(IoBuffer::copy_of(&value), checksum).await;
        let stored = stored.expect("room");
        let records = [KeyUpdate { key: b"key", value: Some(Value::Stored(&stored)) }];
        let update = Update::KeyValue(&records);
        let kv = object(ObjectType::KeyValue);
        let _ = container.update(kv, Epoch(1), WRITER, Conflict::Refuse, &update).expect("an update");
        let twice = [KeyUpdate { key: b"other", value: Some(Value::Stored(&stored)) }];
        let refused = container.update(kv, Epoch(1), WRITER, Conflict::Refuse, &Update::KeyValue(&twice));
        assert!(matches!(refused, Err(Error::Invalid(_))), "one record names the bytes");
        let request = FetchRequest { object: kv, dkey: b"key", akey: None };
        let place = container.fetch(&request, Epoch(1), |answer| match answer {
            Fetched::Value(value) => match value.data {
                Data::Stored(place) => place,
                Data::Inline(_) => panic!("it was stored"),
            },
            _ => panic!("it is there"),
        });
        let loaded = pool.load(&place.expect("a fetch")).await.expect("a load");
        assert!(loaded.as_slice() == value);
    });
}

#[test]
fn space_comes_back_when_nobody_can_need_it() {
    run(2, |env| async move {
        let (pool, container) = create(&env).await;
        let free = pool.usage().expect("usage").block_bytes_free;
        assert_eq!(free, BLOCK_BYTES);
        let data = bytes(300 * 1024, 5);
        // Twenty times what fits: every round needs what the one before gave back.
        for round in 1..=60u64 {
            write(&pool, &container, round, 0, &data).await.expect("room");
            let reader = places(&container, 0..4096, round);
            let range = EpochRange { low: Epoch(1), high: Epoch(round) };
            if round % 2 == 0 {
                let _ = container.discard(Cookie(1), range).await.expect("a discard");
                // It was freed under a reader, which still gets what it saw.
                write(&pool, &container, round, 0, &bytes(300 * 1024, 6)).await.expect("room");
                for place in reader {
                    assert!(pool.load(&place).await.expect("a load").as_slice() == &data[..4096]);
                }
                let _ = container.discard(Cookie(1), range).await.expect("a discard");
            }
        }
        let _ = container.discard(Cookie(1), EpochRange::ALL).await.expect("a discard");
        assert_eq!(pool.usage().expect("usage").block_bytes_free, free);
        // What was stored and never named is free as soon as it is dropped.
        for _ in 0..10 {
            let chunks = sums(0, &data, 4096);
            let checksums = Checksums { chunk_bytes: 4096, chunks: &chunks };
            drop(pool.store(IoBuffer::copy_of(&data), 0, checksums).await.1.expect("room"));
        }
        let large = bytes(BLOCK_BYTES as usize + 1, 0);
        assert_eq!(write(&pool, &container, 99, 0, &large).await, Err(Error::NoSpace("block tier")));
    });
}

/// Nobody waits for a write any more, and it goes on: what it writes over must not be somebody else's.
#[test]
fn blocks_of_a_write_that_nobody_waits_for_are_not_handed_out() {
    run(1, |env| async move {
        let (pool, container) = create(&env).await;
        let data = bytes(BLOCK_BYTES as usize / 2, 1);
        let chunks = sums(0, &data, 4096);
        {
            let checksums = Checksums { chunk_bytes: 4096, chunks: &chunks };
            let mut storing = std::pin::pin!(pool.store(IoBuffer::copy_of(&data), 0, checksums));
            let polled = std::future::poll_fn(|context| {
                std::task::Poll::Ready(storing.as_mut().poll(context).is_ready())
            });
            assert!(!polled.await, "the write is under way");
        }
        let more = bytes(BLOCK_BYTES as usize / 2 + 4096, 2);
        assert_eq!(write(&pool, &container, 1, 0, &more).await, Err(Error::NoSpace("block tier")));
        write(&pool, &container, 1, 0, &data).await.expect("the other half is free");
        pool.close().await.expect("closed");
        drop((container, pool));
        let pool = Pool::open(&env, "pool").await.expect("the pool");
        let container = pool.container_open(CONTAINER).expect("the container");
        write(&pool, &container, 2, 1 << 20, &data).await.expect("what was reserved is free again");
    });
}

#[test]
fn after_a_crash_every_record_that_is_there_has_its_bytes() {
    for seed in 1..=60 {
        let (simulation, node) = run(seed, |env| async move {
            let (pool, _) = create(&env).await;
            let _ = pool.flush().await.expect("a flush");
        });
        node.start(|env| async move {
            let pool = Pool::open(&env, "pool").await.expect("the pool");
            let container = pool.container_open(CONTAINER).expect("the container");
            for epoch in 1..100 {
                // The second half of the rounds goes over what the first left.
                let place = epoch % 10 * 32_768;
                if epoch > 10 {
                    let range = EpochRange { low: Epoch(epoch - 10), high: Epoch(epoch - 10) };
                    let _ = container.discard(Cookie(1), range).await.expect("a discard");
                }
                write(&pool, &container, epoch, place, &bytes(30_000, epoch as u8)).await.expect("a write");
                if epoch % 3 == 0 {
                    let _ = pool.flush().await.expect("a flush");
                }
            }
        });
        let mut steps = 50 + seed * 9;
        let _ = simulation.run_until(std::time::Duration::from_secs(60), || {
            steps -= 1;
            steps == 0
        });
        node.kill(Loss::Power);
        node.restart();
        let checked = simulation.block_on(&node, move |env| async move {
            let pool = Pool::open(&env, "pool").await.expect("the pool");
            let container = pool.container_open(CONTAINER).expect("the container");
            let report = pool.verify().await.expect("a walk");
            assert!(report.is_sound(), "seed {seed}: {:?}", report.faults);
            for epoch in 1..100u64 {
                let place = epoch % 10 * 32_768;
                let found = read(&pool, &container, place..place + 30_000, epoch).await;
                let known = (1..=epoch).any(|epoch| found == bytes(30_000, epoch as u8));
                assert!(found.is_empty() || known, "seed {seed}, epoch {epoch}: bytes of nobody");
            }
        });
        checked.expect("the run ends");
    }
}

#[test]
fn a_flipped_bit_is_an_error_and_never_data() {
    let (simulation, node) = run(3, |env| async move {
        let (pool, container) = create(&env).await;
        write(&pool, &container, 1, 0, &bytes(200_000, 1)).await.expect("a write");
        pool.close().await.expect("a close");
    });
    assert!(node.disk().flip_bit("pool/blocks", 77_777 * 8 + 3), "the file is there");
    let ended = simulation.block_on(&node, |env| async move {
        let pool = Pool::open(&env, "pool").await.expect("the pool");
        let container = pool.container_open(CONTAINER).expect("the container");
        assert!(read(&pool, &container, 0..73_728, 1).await == bytes(200_000, 1)[..73_728]);
        assert!(read(&pool, &container, 81_920..200_000, 1).await == bytes(200_000, 1)[81_920..]);
        for place in places(&container, 75_000..75_001, 1) {
            let damaged = pool.load(&place).await.map(|_| ());
            assert_eq!(damaged, Err(Error::BadChecksum { place: "the block tier", position: 73_728 }));
        }
        let report = pool.verify().await.expect("a walk");
        assert_eq!(report.faults.len(), 1, "{:?}", report.faults);
        assert!(report.faults[0].to_string().contains("the block tier at 0x12000"), "{}", report.faults[0]);
    });
    ended.expect("the run ends");
}

fn put(container: &Container<SimEnv>, key: &[u8]) -> Result<(), Error> {
    let value = Some(Value::Inline(b"value", Checksum(crc32c::crc32c(b"value"))));
    let update = Update::KeyValue(&[KeyUpdate { key, value }]);
    let kv = object(ObjectType::KeyValue);
    container.update(kv, Epoch(1), WRITER, Conflict::LastWins, &update).map(|_| ())
}

#[test]
fn a_block_tier_that_fails_makes_the_pool_read_only_and_what_was_durable_stays() {
    let simulation = Simulation::new(11, Config::default());
    let node = simulation.add_node(1);
    let disk = node.disk();
    let data = bytes(100_000, 1);
    let wanted = data.clone();
    let ended = simulation.block_on(&node, |env| async move {
        let (pool, container) = create(&env).await;
        write(&pool, &container, 1, 0, &data).await.expect("a write");
        put(&container, b"durable").expect("an update");
        let _ = pool.flush().await.expect("a flush");
        let before = pool.usage().expect("usage");
        disk.set_failed(true);
        let failed = write(&pool, &container, 2, 0, &bytes(50_000, 2)).await;
        assert!(matches!(&failed, Err(Error::Heap(what)) if what.contains("failed")), "{failed:?}");
        // The device may come back; what it did meanwhile nobody knows.
        disk.set_failed(false);
        assert_eq!(write(&pool, &container, 3, 0, &bytes(50_000, 3)).await, Err(Error::ReadOnly));
        assert_eq!(put(&container, b"late"), Err(Error::ReadOnly));
        let range = EpochRange { low: Epoch(1), high: Epoch(9) };
        assert_eq!(container.discard(Cookie(1), range).await.err(), Some(Error::ReadOnly));
        assert_eq!(container.aggregate(range).await.err(), Some(Error::ReadOnly));
        assert!(read(&pool, &container, 0..100_000, 9).await == data, "it is read as before");
        assert_eq!(pool.usage().expect("usage"), before, "nothing was changed");
    });
    ended.expect("the run ends");
    node.kill(Loss::Power);
    node.restart();
    let ended = simulation.block_on(&node, |env| async move {
        let pool = Pool::open(&env, "pool").await.expect("the pool");
        let container = pool.container_open(CONTAINER).expect("the container");
        assert!(pool.verify().await.expect("a walk").is_sound());
        assert!(read(&pool, &container, 0..100_000, 9).await == wanted);
        write(&pool, &container, 4, 0, &bytes(50_000, 4)).await.expect("it can be written again");
        put(&container, b"late").expect("an update");
    });
    ended.expect("the run ends");
}

/// The block file is sparse: its device can be full although the space map has room.
#[test]
fn a_full_device_of_the_block_tier_changes_nothing() {
    let simulation = Simulation::new(12, Config::default());
    let node = simulation.add_node(1);
    let disk = node.disk();
    let ended = simulation.block_on(&node, |env| async move {
        let (pool, container) = create(&env).await;
        write(&pool, &container, 1, 0, &bytes(100_000, 1)).await.expect("a write");
        let _ = pool.flush().await.expect("a flush");
        let before = pool.usage().expect("usage");
        disk.set_capacity(disk.used());
        for _ in 0..3 {
            let full = write(&pool, &container, 2, 0, &bytes(50_000, 2)).await;
            assert_eq!(full, Err(Error::NoSpace("device of the block tier")));
        }
        assert_eq!(pool.usage().expect("usage"), before, "what was reserved is free again");
        assert!(read(&pool, &container, 0..100_000, 9).await == bytes(100_000, 1));
        // What was given back can be written again: its blocks are there.
        let range = EpochRange { low: Epoch(1), high: Epoch(9) };
        let _ = container.discard(Cookie(1), range).await.expect("a discard");
        let _ = pool.flush().await.expect("a flush");
        write(&pool, &container, 3, 0, &bytes(50_000, 3)).await.expect("room that was there before");
        disk.set_capacity(u64::MAX);
        write(&pool, &container, 4, 100_000, &bytes(300_000, 4)).await.expect("room");
        assert!(pool.verify().await.expect("a walk").is_sound());
    });
    ended.expect("the run ends");
}
