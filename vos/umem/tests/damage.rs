//! Media that lies or fails: a flipped bit is found or harmless, a failing device makes the heap read-only, a full log
//! pushes back, and what is not a heap of this version is refused by name.

mod support;

use daos_umem::{FORMAT_VERSION, HeapError, MediaKind, Off, Store, StoreError, StoreOptions};
use support::{
    Random, World,
    media::TestMedia,
    workload::{change, check, empty},
};

const DIRECTORY: &str = "pool";

fn options() -> StoreOptions {
    StoreOptions {
        uuid: uuid::Uuid::from_u128(5),
        media: MediaKind::Wal,
        heap_bytes: 1 << 20,
        log_bytes: 512 << 10,
    }
}

fn create(world: &World, options: StoreOptions) -> Store<World> {
    let inner = world.clone();
    world
        .run(async move { Store::create(&inner, DIRECTORY, options).await.expect("created") })
        .expect("no crash")
}

fn open(media: &TestMedia) -> Result<(World, Store<World>), StoreError> {
    let world = World::new(1, media.clone());
    let inner = world.clone();
    let store = world.run(async move { Store::open(&inner, DIRECTORY).await }).expect("no crash")?;
    Ok((world, store))
}

/// One transaction of the workload; its changes are in memory when this returns.
fn step(store: &Store<World>, seed: u64, number: u64) -> Result<daos_umem::Sealed, HeapError> {
    let mut heap = store.heap_mut();
    let mut transaction = heap.begin();
    change(seed, number, &mut transaction, &mut empty())?;
    transaction.seal()
}

fn flush(world: &World, store: &Store<World>) -> Result<(), StoreError> {
    let store = store.clone();
    world.run(async move { store.flush().await.map(drop) }).expect("no crash")
}

fn checkpoint(world: &World, store: &Store<World>) -> Result<(), StoreError> {
    let store = store.clone();
    world.run(async move { store.checkpoint().await }).expect("no crash")
}

/// A heap with checkpointed pages and a log tail, all of it acknowledged and known to be so by the super-block.
fn image(seed: u64, transactions: u64) -> TestMedia {
    let media = TestMedia::default();
    let world = World::new(seed, media.clone());
    let store = create(&world, options());
    for number in 0..transactions {
        let _ = step(&store, seed, number).expect("sealed");
        if number % 3 == 0 {
            flush(&world, &store).expect("durable");
        }
        if number == transactions / 2 {
            checkpoint(&world, &store).expect("a checkpoint");
        }
    }
    flush(&world, &store).expect("durable");
    drop(store);
    world.kill();
    let media = media.after_crash(&Random::new(seed));
    let (world, store) = open(&media).expect("opens");
    check(seed, &store.heap(), transactions, transactions);
    world.kill();
    media.after_crash(&Random::new(seed))
}

#[test]
fn a_flipped_bit_is_found_or_harmless() {
    let (mut found, mut harmless) = (0, 0);
    for seed in 0..4 {
        let transactions = 40;
        let media = image(seed, transactions);
        let random = Random::new(seed);
        for file in ["pool/heap", "pool/log"] {
            // Most of a file is unused; half of the flips go where something is written.
            let used: Vec<usize> =
                media.with_file(file, |bytes| (0..bytes.len()).filter(|&place| bytes[place] != 0).collect());
            for round in 0..500 {
                let media = media.copy();
                let place = media.with_file(file, |bytes| {
                    let place = match round % 2 {
                        0 => used[random.below(used.len() as u64) as usize],
                        _ => random.below(bytes.len() as u64) as usize,
                    };
                    bytes[place] ^= 1 << random.below(8);
                    place
                });
                match open(&media) {
                    Ok((world, store)) => {
                        check(seed, &store.heap(), transactions, transactions);
                        world.kill();
                        harmless += 1;
                    }
                    Err(StoreError::Damaged { .. }) => found += 1,
                    Err(error) => panic!("{file} at {place}: {error}"),
                }
            }
        }
    }
    println!("{found} found, {harmless} harmless");
    assert!(found > 500 && harmless > 500, "{found} found, {harmless} harmless: the test does not test");
}

/// Media of a process that was killed after three transactions, and where the log has their frames.
fn three_frames() -> (TestMedia, [usize; 3]) {
    let media = TestMedia::default();
    let world = World::new(1, media.clone());
    let store = create(&world, options());
    for number in 0..3 {
        let _ = step(&store, 1, number).expect("sealed");
        flush(&world, &store).expect("durable");
    }
    drop(store);
    world.kill();
    let frames: Vec<_> = media.with_file("pool/log", |log| {
        (0..log.len()).step_by(4096).filter(|&place| log[place..].starts_with(b"dfrm")).collect()
    });
    (media, frames.try_into().expect("three frames"))
}

#[test]
fn the_newest_frame_may_be_torn_and_no_other() {
    let (media, frames) = three_frames();
    for (index, &frame) in frames.iter().enumerate() {
        for at in [frame + 1, frame + 20, frame + 70] {
            let media = media.copy();
            media.with_file("pool/log", |log| log[at] ^= 1);
            match (index, open(&media)) {
                (2, Ok((world, store))) => {
                    check(1, &store.heap(), 2, 2);
                    world.kill();
                }
                (0 | 1, Err(StoreError::Damaged { file, offset, .. })) => {
                    assert_eq!((file.as_str(), offset), ("pool/log", frame as u64));
                }
                (_, result) => panic!("frame {index} at {at}: {:?}", result.err()),
            }
        }
    }
}

/// A frame that a crash has torn lies where the log then ends, and could become whole: by a later write there of which a crash keeps
/// only the part that was missing, or by a write of a process that has died.
#[test]
fn a_torn_frame_does_not_become_whole_once_the_log_was_opened_without_it() {
    let (media, [.., last]) = three_frames();
    for opened in [false, true] {
        let media = media.copy();
        let sector = media.with_file("pool/log", |log| {
            let sector = log[last..][..512].to_vec();
            log[last..][..512].fill(0);
            sector
        });
        if opened {
            let (world, store) = open(&media).expect("opens without the newest frame");
            check(1, &store.heap(), 2, 2);
            drop(store);
            world.kill();
        }
        media.with_file("pool/log", |log| log[last..][..512].copy_from_slice(&sector));
        if opened {
            // Nobody vouches for that frame, whatever becomes of the older super-block.
            let without = |copy: usize| {
                let media = media.copy();
                media.with_file("pool/heap", |bytes| bytes[copy * 4096 + 40] ^= 1);
                let Ok((world, store)) = open(&media) else { return false };
                world.kill();
                drop(store);
                true
            };
            assert!(without(0) && without(1), "a super-block is enough");
        }
        let (world, store) = open(&media).expect("opens");
        let transactions = if opened { 2 } else { 3 };
        check(1, &store.heap(), transactions, transactions);
        // What is written there now counts.
        let _ = step(&store, 1, transactions).expect("sealed");
        flush(&world, &store).expect("durable");
        drop(store);
        world.kill();
        let (world, store) = open(&media).expect("opens");
        check(1, &store.heap(), transactions + 1, transactions + 1);
        world.kill();
    }
}

/// The story of a fuzzer's input that damaged the newest super-block and the newest frame: the older super-block counted, which
/// promises less, so the frame seemed torn by a crash, and what had been durable was gone without a word.
#[test]
fn a_damaged_frame_is_not_taken_for_a_torn_one_where_a_super_block_is_damaged_too() {
    for seed in 0..8 {
        let media = TestMedia::default();
        let world = World::new(seed, media.clone());
        // Longer than what is read of it at once.
        let store = create(&world, StoreOptions { log_bytes: 4 << 20, ..options() });
        for number in 0..12 {
            let _ = step(&store, seed, number).expect("sealed");
            flush(&world, &store).expect("durable");
        }
        drop(store);
        world.kill();
        // Opening vouches for the log in a super-block of its own.
        let media = media.after_crash(&Random::new(seed));
        let (world, store) = open(&media).expect("opens");
        drop(store);
        world.kill();
        let media = media.after_crash(&Random::new(seed));
        let random = Random::new(seed);
        let last = media.with_file("pool/log", |bytes| {
            bytes
                .rchunks(4096)
                .position(|block| block[..4] == *b"dfrm")
                .map(|back| bytes.len() / 4096 - 1 - back)
        });
        let place = last.expect("a frame") * 4096 + [8, 16, 4, 70, 0, 50][random.below(6) as usize];
        for (copy, frame) in [(0, false), (1, false), (0, true), (1, true)] {
            let media = media.copy();
            media.with_file("pool/heap", |bytes| bytes[copy * 4096 + 40] ^= 1);
            if frame {
                media.with_file("pool/log", |bytes| bytes[place] ^= 1);
            }
            match open(&media) {
                Ok((world, store)) => {
                    assert!(!frame, "seed {seed}: copy {copy} and the last frame are damaged");
                    check(seed, &store.heap(), 12, 12);
                    world.kill();
                }
                Err(StoreError::Damaged { .. }) => assert!(frame, "seed {seed}: one copy is enough"),
                Err(error) => panic!("seed {seed}: {error}"),
            }
        }
    }
}

#[test]
fn a_failing_device_makes_the_heap_read_only() {
    let (mut failures, transactions) = (0, 60);
    for event in 0..60 {
        let media = TestMedia::default();
        let world = World::new(event, media.clone());
        let store = create(&world, options());
        media.fail_at(media.events() + event);
        let (mut acknowledged, mut sealed) = (0, 0);
        for number in 0..transactions {
            match step(&store, 7, number) {
                Ok(_) => sealed = number + 1,
                Err(error) => {
                    assert_eq!(error, HeapError::ReadOnly);
                    break;
                }
            }
            let result = if number % 7 == 3 { checkpoint(&world, &store) } else { flush(&world, &store) };
            match result {
                Ok(()) if number % 7 != 3 => acknowledged = number + 1,
                Ok(()) => {}
                Err(error) => assert!(matches!(error, StoreError::ReadOnly(_)), "{error}"),
            }
        }
        if let Some(failure) = store.failure() {
            failures += 1;
            assert!(matches!(failure, StoreError::ReadOnly(_)));
            assert_eq!(step(&store, 7, sealed), Err(HeapError::ReadOnly));
            assert!(!store.has_log_space());
            let waiting = store.clone();
            assert!(world.run(async move { waiting.log_space().await }).expect("no crash").is_err());
        }
        // What is in memory is as sealed, and media has what was acknowledged.
        check(7, &store.heap(), sealed, sealed);
        drop(store);
        world.kill();
        let (world, store) = open(&media.after_crash(&Random::new(event))).expect("opens");
        check(7, &store.heap(), acknowledged, transactions);
        world.kill();
    }
    assert!(failures > 30, "the device failed in {failures} runs only");
}

#[test]
fn a_full_log_refuses_and_then_makes_room() {
    let media = TestMedia::default();
    let world = World::new(3, media.clone());
    let store = create(&world, options());
    let mut number = 0;
    let before = loop {
        let before = store.heap().usage();
        match step(&store, 3, number) {
            Ok(_) => number += 1,
            Err(HeapError::LogFull) => break before,
            Err(error) => panic!("{error}"),
        }
    };
    assert!(number > 10 && !store.has_log_space());
    assert_eq!(store.heap().usage(), before, "a refused transaction left something");
    check(3, &store.heap(), number, number);
    let waiting = store.clone();
    world.run(async move { waiting.log_space().await }).expect("no crash").expect("room");
    for _ in 0..5 {
        let _ = step(&store, 3, number).expect("room after waiting");
        number += 1;
    }
    // The log goes round many times.
    for _ in 0..300 {
        let waiting = store.clone();
        world.run(async move { waiting.log_space().await }).expect("no crash").expect("room");
        let _ = step(&store, 3, number).expect("room after waiting");
        number += 1;
    }
    flush(&world, &store).expect("durable");
    assert!(store.counters().checkpoints >= 3, "{:?}", store.counters());
    drop(store);
    world.kill();
    let (world, store) = open(&media.after_crash(&Random::new(1))).expect("opens");
    check(3, &store.heap(), number, number);
    world.kill();
}

#[test]
fn a_transaction_larger_than_the_log_takes_is_undone() {
    let world = World::new(3, TestMedia::default());
    let store = create(&world, options());
    let before = store.heap().usage();
    let mut heap = store.heap_mut();
    let mut transaction = heap.begin();
    let block: Off<u8> = transaction.allocate_zeroed(100_000, 1).expect("room");
    transaction.write(block, &[1; 100_000]).expect("in bounds");
    assert_eq!(transaction.seal(), Err(HeapError::TransactionTooLarge));
    assert_eq!(heap.usage(), before);
    drop(heap);
    world.kill();
}

#[test]
fn what_is_no_heap_of_this_version_is_refused_by_name() {
    let media = image(1, 10);
    let resign = |block: &mut [u8]| {
        block[12..16].fill(0);
        let checksum = crc32c::crc32c(block);
        block[12..16].copy_from_slice(&checksum.to_le_bytes());
    };
    let newer = media.copy();
    newer.with_file("pool/heap", |heap| {
        for copy in 0..2 {
            heap[copy * 4096 + 8] += 1;
            resign(&mut heap[copy * 4096..][..4096]);
        }
    });
    let error = open(&newer).err().expect("refused");
    assert!(matches!(error, StoreError::UnknownFormat { found, known, .. } if found == known + 1), "{error}");
    assert_eq!(FORMAT_VERSION, 1);

    let both = media.copy();
    both.with_file("pool/heap", |heap| (heap[100], heap[4196]) = (heap[100] ^ 1, heap[4196] ^ 1));
    assert!(matches!(open(&both), Err(StoreError::Damaged { .. })));

    let mixed = media.copy();
    mixed.with_file("pool/heap", |heap| {
        heap[20] ^= 1;
        resign(&mut heap[..4096]);
    });
    assert!(matches!(open(&mixed), Err(StoreError::WrongUuid { .. })));

    let blank = media.copy();
    blank.with_file("pool/heap", |heap| heap[..8192].fill(0));
    assert!(matches!(open(&blank), Err(StoreError::NotFormatted(_))));

    assert!(matches!(open(&TestMedia::default()), Err(StoreError::Media(_))));
}

#[test]
fn opening_reads_what_was_written_and_not_what_was_not() {
    let media = TestMedia::default();
    let world = World::new(1, media.clone());
    let store = create(&world, StoreOptions { heap_bytes: 64 << 20, log_bytes: 1 << 20, ..options() });
    let read = media.bytes_read();
    assert!(read < 6 << 20, "{read} bytes read to open an empty heap of 64 MiB");
    drop(store);
    world.kill();
}
