//! Space comes back: fill, delete, aggregate, again and again, ends with the free space that it began with. What a snapshot
//! kept goes when the snapshot has gone. What is kept becomes small.

mod support;

use daos_types::{Cookie, Epoch, EpochRange, ObjectId, ObjectType, Writer, WriterKind};
use daos_vos::{
    AkeyData, AkeyUpdate, Checksums, Conflict, Container, Error, ExtentData, ExtentUpdate, KeyUpdate,
    MediaKind, Pool, PoolOptions, Punch, Update, Value,
};
use daos_xstream_sim::SimEnv;
use support::{
    Random,
    arrays::{self, object, options, read_array},
    driver::{chunks, crc, verify},
    pool::{self, run},
};

const WRITER: Writer = Writer { cookie: Cookie(1), map_version: 1, kind: WriterKind::Application };

async fn create(env: &SimEnv, media: MediaKind, heap_bytes: u64) -> (Pool<SimEnv>, Container<SimEnv>) {
    pool::create(env, PoolOptions { media, ..options(heap_bytes, 1 << 20) }).await
}

async fn aggregate(container: &Container<SimEnv>, low: u64, high: u64) {
    let range = EpochRange { low: Epoch(low), high: Epoch(high) };
    let _ = container.aggregate(range).await.expect("an aggregation");
}

fn write(
    container: &Container<SimEnv>,
    id: ObjectId,
    epoch: u64,
    offset: u64,
    bytes: &[u8],
) -> Result<(), Error> {
    let sums = chunks(&(offset..offset + bytes.len() as u64), bytes, 4096);
    let data = ExtentData::Inline(bytes, Checksums { chunk_bytes: 4096, chunks: &sums });
    let update = Update::Array(&[ExtentUpdate { offset, data }]);
    container.update(id, Epoch(epoch), WRITER, Conflict::LastWins, &update).map(|_| ())
}

async fn write_stored(
    pool: &Pool<SimEnv>,
    container: &Container<SimEnv>,
    id: ObjectId,
    epoch: u64,
    offset: u64,
    bytes: &[u8],
) -> Result<(), Error> {
    arrays::write_stored(pool, container, id, (epoch, 1, Conflict::LastWins), offset, bytes).await
}

/// Writes until a tier is full; returns how many updates there were.
async fn fill(pool: &Pool<SimEnv>, container: &Container<SimEnv>, random: &mut Random, round: u64) -> u64 {
    let mut updates = 0;
    loop {
        pool.log_space().await.expect("room in the log");
        let epoch = Epoch(round * 10 + random.below(8));
        let bytes = vec![updates as u8; 1 + random.below(3000) as usize];
        let value = Some(Value::Inline(&bytes, crc(&bytes)));
        let key = random.next().to_le_bytes();
        let done = match updates % 4 {
            0 => {
                let update = Update::KeyValue(&[KeyUpdate { key: &key, value }]);
                container
                    .update(object(ObjectType::KeyValue, 1), epoch, WRITER, Conflict::LastWins, &update)
                    .map(|_| ())
            }
            1 => {
                let akeys = [AkeyUpdate { akey: b"akey", data: AkeyData::Single(value) }];
                let update = Update::Document { dkey: &key, akeys: &akeys };
                container
                    .update(object(ObjectType::Document, 2), epoch, WRITER, Conflict::LastWins, &update)
                    .map(|_| ())
            }
            2 => write(container, object(ObjectType::Array, 3), epoch.0, random.below(1 << 20), &bytes),
            _ if updates % 16 == 3 => {
                let bytes = vec![updates as u8; 4096 + random.below(30_000) as usize];
                write_stored(
                    pool,
                    container,
                    object(ObjectType::Array, 4),
                    epoch.0,
                    random.below(1 << 18),
                    &bytes,
                )
                .await
            }
            _ => Ok(()),
        };
        match done {
            Ok(()) => updates += 1,
            Err(Error::NoSpace(_)) => return updates,
            Err(error) => panic!("round {round}: {error}"),
        }
    }
}

#[test]
fn a_hundred_rounds_of_fill_delete_aggregate_end_with_the_space_they_began_with() {
    let rounds = std::env::var("VOS_SPACE_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(100);
    run(move |env| async move {
        let (pool, container) = create(&env, MediaKind::Wal, 6 << 20).await;
        // What stays once a container has been aggregated: the note of how far.
        aggregate(&container, 1, 1).await;
        let before = pool.usage().expect("usage");
        let mut random = Random(1);
        let mut least = u64::MAX;
        for round in 1..=rounds {
            let updates = fill(&pool, &container, &mut random, round).await;
            least = least.min(updates);
            let full = pool.usage().expect("usage");
            assert!(
                full.arena_bytes_free < before.arena_bytes / 5
                    || full.block_bytes_free < before.block_bytes / 5,
                "round {round}: {full:?} is not full"
            );
            let epoch = Epoch(round * 10 + 9);
            for (kind, number) in [
                (ObjectType::KeyValue, 1),
                (ObjectType::Document, 2),
                (ObjectType::Array, 3),
                (ObjectType::Array, 4),
            ] {
                let id = object(kind, number);
                let _ =
                    container.punch(id, epoch, WRITER, Conflict::LastWins, &Punch::Object).expect("a punch");
            }
            aggregate(&container, 1, epoch.0).await;
            assert_eq!(pool.usage().expect("usage"), before, "round {round}: all space is back");
            let usage = container.usage().expect("usage");
            assert_eq!((usage.objects, usage.records, usage.data_bytes), (0, 0, 0), "round {round}");
            if round % 20 == 0 {
                verify(&pool).await.expect("a sound pool");
            }
        }
        assert!(least > 50, "a round filled the pool with {least} updates");
        let _ = pool.flush().await.expect("a flush");
    });
}

#[test]
fn what_a_snapshot_kept_goes_with_the_snapshot() {
    run(|env| async move {
        let (pool, container) = create(&env, MediaKind::Heap, 8 << 20).await;
        let (kv, document, array) =
            (object(ObjectType::KeyValue, 1), object(ObjectType::Document, 2), object(ObjectType::Array, 3));
        let bytes = [7; 100];
        let value = || Some(Value::Inline(&bytes, crc(&bytes)));
        for epoch in 1..=40 {
            for key in 0..20u8 {
                let update = Update::KeyValue(&[KeyUpdate { key: &[key], value: value() }]);
                let _ =
                    container.update(kv, Epoch(epoch), WRITER, Conflict::Refuse, &update).expect("an update");
                let akeys = [AkeyUpdate { akey: b"akey", data: AkeyData::Single(value()) }];
                let update = Update::Document { dkey: &[key], akeys: &akeys };
                let _ = container
                    .update(document, Epoch(epoch), WRITER, Conflict::Refuse, &update)
                    .expect("an update");
                write(&container, array, epoch, u64::from(key) * 200, &[epoch as u8; 100])
                    .expect("an update");
            }
            if epoch == 15 {
                for key in 0..10u8 {
                    let punch = Punch::Key(&[key + 100]);
                    let _ =
                        container.punch(kv, Epoch(epoch), WRITER, Conflict::Refuse, &punch).expect("a punch");
                }
                let punch = Punch::Extent(0..100_000);
                let _ = container.punch(array, Epoch(16), WRITER, Conflict::Refuse, &punch).expect("a punch");
            }
        }
        // Three snapshots: four states of each record are kept.
        for (low, high) in [(1, 10), (11, 20), (21, 30), (31, 40)] {
            aggregate(&container, low, high).await;
        }
        let kept = container.usage().expect("usage").records;
        assert!(kept > 4 * 40, "{kept} records for four readers");
        verify(&pool).await.expect("a sound pool");
        // The snapshots go: nothing was changed since, and no group lists what they kept.
        aggregate(&container, 1, 40).await;
        let usage = container.usage().expect("usage");
        // Each key once; the extents of 100 bytes with gaps between them.
        assert_eq!((usage.objects, usage.records), (3, 60));
        verify(&pool).await.expect("a sound pool");
        let array_now = read_array(&pool, &container, array, 4000, 40).await;
        assert!(array_now.chunks(200).all(|chunk| chunk[..100] == [40; 100] && chunk[100..] == [0; 100]));
    });
}

#[test]
fn small_neighbours_become_one_and_hidden_parts_go() {
    run(|env| async move {
        let (pool, container) = create(&env, MediaKind::Heap, 16 << 20).await;
        let array = object(ObjectType::Array, 3);
        // A log that grows by 50 bytes an epoch.
        let mut wanted = Vec::new();
        for epoch in 1..=2000u64 {
            let bytes: Vec<u8> = (0..50).map(|at| (epoch * 31 + at) as u8).collect();
            write(&container, array, epoch, (epoch - 1) * 50, &bytes).expect("a write");
            wanted.extend_from_slice(&bytes);
            if epoch % 97 == 0 {
                aggregate(&container, 1, epoch).await;
            }
        }
        aggregate(&container, 1, 2000).await;
        let records = container.usage().expect("usage").records;
        assert!(records <= 40, "100,000 bytes in {records} extents");
        assert!(read_array(&pool, &container, array, 100_000, 2000).await == wanted);
        verify(&pool).await.expect("a sound pool");
        // A large extent of which all but two pieces are written over, in the arena and on the block tier.
        for (number, stored) in [(5, false), (6, true)] {
            let array = object(ObjectType::Array, number);
            let old = vec![1u8; 200_000];
            let mut wanted = old.clone();
            let free = pool.usage().expect("usage");
            if stored {
                write_stored(&pool, &container, array, 2001, 0, &old).await.expect("a write");
            } else {
                write(&container, array, 2001, 0, &old).expect("a write");
            }
            for (start, length) in [(100, 99_000), (120_000, 80_000)] {
                write(&container, array, 2002, start, &vec![2; length as usize]).expect("a write");
                wanted[start as usize..(start + length) as usize].fill(2);
            }
            aggregate(&container, 1, 2002 + number).await;
            assert!(read_array(&pool, &container, array, 200_000, 9999).await == wanted, "stored {stored}");
            verify(&pool).await.expect("a sound pool");
            let now = pool.usage().expect("usage");
            let took = free.block_bytes_free - now.block_bytes_free;
            assert!(took <= 32_768, "{took} bytes of the block tier for 21,100 that are visible");
            let data = container.usage().expect("usage").data_bytes;
            assert!(data < 100_000 + (number - 4) * 240_000, "{data} bytes are kept");
        }
    });
}

#[test]
fn neighbours_on_the_block_tier_become_one_record() {
    run(|env| async move {
        let (pool, container) = create(&env, MediaKind::Heap, 8 << 20).await;
        let array = object(ObjectType::Array, 3);
        let mut wanted = Vec::new();
        for epoch in 1..=32u64 {
            let bytes = vec![epoch as u8; 8192];
            write_stored(&pool, &container, array, epoch, (epoch - 1) * 8192, &bytes).await.expect("a write");
            wanted.extend_from_slice(&bytes);
        }
        aggregate(&container, 1, 32).await;
        let usage = container.usage().expect("usage");
        assert!(usage.records <= 8, "{} records", usage.records);
        assert_eq!(usage.data_bytes, 32 * 8192);
        assert!(read_array(&pool, &container, array, 32 * 8192, 40).await == wanted);
        verify(&pool).await.expect("a sound pool");
        let _ = container.punch(array, Epoch(50), WRITER, Conflict::Refuse, &Punch::Object).expect("a punch");
        aggregate(&container, 1, 50).await;
        let usage = pool.usage().expect("usage");
        assert_eq!(usage.block_bytes_free, usage.block_bytes);
    });
}

/// The story of metadata that are kept in one epoch: what had been aggregated and was removed later left its negative entry
/// for ever, since no group named it and a range of one epoch is never swept.
#[test]
fn what_is_removed_in_an_epoch_that_was_aggregated_leaves_nothing() {
    run(|env| async move {
        let (pool, container) = create(&env, MediaKind::Heap, 8 << 20).await;
        let (kv, document) = (object(ObjectType::KeyValue, 1), object(ObjectType::Document, 2));
        aggregate(&container, 1, 1).await;
        let before = pool.usage().expect("usage");
        let change = |key: u8, value: Option<&[u8]>| {
            let value = || value.map(|bytes| Value::Inline(bytes, crc(bytes)));
            let update = Update::KeyValue(&[KeyUpdate { key: &[key], value: value() }]);
            let _ = container.update(kv, Epoch(1), WRITER, Conflict::LastWins, &update).expect("an update");
            let akeys = [AkeyUpdate { akey: b"akey", data: AkeyData::Single(value()) }];
            let update = Update::Document { dkey: &[key], akeys: &akeys };
            let _ =
                container.update(document, Epoch(1), WRITER, Conflict::LastWins, &update).expect("an update");
        };
        for round in 0..3u8 {
            (0..200).for_each(|key| change(key, Some(&[key; 50])));
            aggregate(&container, 1, 1).await;
            // Now and then in place, now and then not, before they go.
            (0..100).for_each(|key| change(key, Some(&vec![key; 50 + usize::from(key % 2 * round)])));
            verify(&pool).await.expect("a sound pool");
            (0..200).for_each(|key| change(key, None));
            aggregate(&container, 1, 1).await;
            verify(&pool).await.expect("a sound pool");
            let usage = container.usage().expect("usage");
            assert_eq!((usage.objects, usage.records), (0, 0), "round {round}");
            assert_eq!(pool.usage().expect("usage"), before, "round {round}");
        }
        // A change of what was aggregated is its writer's: a discard finds it.
        (0..20).for_each(|key| change(key, Some(&[key; 50])));
        aggregate(&container, 1, 1).await;
        (0..10).for_each(|key| change(key, Some(&[key; 60])));
        let _ = container.discard(WRITER.cookie, EpochRange::ALL).await.expect("a discard");
        verify(&pool).await.expect("a sound pool");
        assert_eq!(container.usage().expect("usage").records, 20, "what nobody changed since stays");
    });
}

/// The story of a megabyte whose middle was written again in the same epoch: the two ends that were left shared the old blocks,
/// and kept those of the middle too, for as long as both were there.
#[test]
fn blocks_that_several_pieces_share_are_given_back_with_what_nobody_sees() {
    run(|env| async move {
        let (pool, container) = create(&env, MediaKind::Heap, 8 << 20).await;
        let array = object(ObjectType::Array, 3);
        let mut wanted = vec![1u8; 400_000];
        write_stored(&pool, &container, array, 1, 0, &wanted).await.expect("a write");
        for (start, end) in [(50_000, 150_000), (200_000, 330_000)] {
            let middle = vec![start as u8; end - start];
            write_stored(&pool, &container, array, 1, start as u64, &middle).await.expect("a write");
            wanted[start..end].copy_from_slice(&middle);
        }
        let used = |pool: &Pool<SimEnv>| {
            let usage = pool.usage().expect("usage");
            usage.block_bytes - usage.block_bytes_free
        };
        assert!(used(&pool) > 620_000, "the old middles are there");
        aggregate(&container, 1, 1).await;
        assert!(read_array(&pool, &container, array, 400_000, 1).await == wanted);
        verify(&pool).await.expect("a sound pool");
        assert!(used(&pool) < 400_000 + 6 * 8192, "{} bytes for 400,000 that are visible", used(&pool));
        // Later epochs hide more of the ends, small pieces of a chunk among it.
        for (epoch, start, end) in [(2, 10_000, 30_000), (3, 41_000, 41_100), (4, 340_000, 399_999)] {
            let bytes = vec![epoch as u8; end - start];
            write(&container, array, epoch, start as u64, &bytes).expect("a write");
            wanted[start..end].copy_from_slice(&bytes);
            aggregate(&container, 1, epoch).await;
            assert!(read_array(&pool, &container, array, 400_000, 9).await == wanted, "epoch {epoch}");
            verify(&pool).await.expect("a sound pool");
        }
        assert!(used(&pool) < 400_000 - 70_000 + 10 * 8192, "{} bytes", used(&pool));
        let _ = container.punch(array, Epoch(9), WRITER, Conflict::Refuse, &Punch::Object).expect("a punch");
        aggregate(&container, 1, 9).await;
        assert_eq!(used(&pool), 0);
    });
}

/// What snapshots had kept of the punches of one object, or of one dkey, went in one transaction once they were gone, however
/// many there were: the core was held for that long, and more than a log takes could never go.
#[test]
fn many_punches_go_in_slices() {
    const PUNCHES: u64 = 1000;
    run(|env| async move {
        let (pool, container) = create(&env, MediaKind::Wal, 8 << 20).await;
        let document = object(ObjectType::Document, 2);
        let value = Some(Value::Inline(b"old", crc(b"old")));
        let akeys = [AkeyUpdate { akey: b"akey", data: AkeyData::Single(value) }];
        let update = Update::Document { dkey: b"dkey", akeys: &akeys };
        let _ = container.update(document, Epoch(1), WRITER, Conflict::Refuse, &update).expect("an update");
        for epoch in 2..PUNCHES + 2 {
            pool.log_space().await.expect("room in the log");
            let punch = if epoch % 2 == 0 { Punch::Dkey(b"dkey") } else { Punch::Object };
            let _ =
                container.punch(document, Epoch(epoch), WRITER, Conflict::Refuse, &punch).expect("a punch");
            aggregate(&container, epoch, epoch).await;
        }
        assert_eq!(container.usage().expect("usage").records, PUNCHES + 1);
        let before = pool.slices_waiting().1;
        aggregate(&container, 1, PUNCHES + 1).await;
        let slices = pool.slices_waiting().1 - before;
        assert!(slices > PUNCHES / 64, "{PUNCHES} punches in {slices} slices");
        let usage = container.usage().expect("usage");
        assert_eq!((usage.objects, usage.records), (0, 0));
        verify(&pool).await.expect("a sound pool");
    });
}
