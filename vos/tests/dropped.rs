//! A store that is dropped stops: whoever opens it again finds nobody writing to its files, and waits for what is on its way.

use std::{
    cell::Cell,
    future::{Future, poll_fn},
    pin::Pin,
    rc::Rc,
    task::Poll,
    time::Duration,
};

use daos_umem::{MediaKind, Sealed, Store, StoreOptions};
use daos_xstream::{Class, Clock, Env, IoBuffer, Media, MediaFile, OpenOptions, Spawn};
use daos_xstream_sim::{Config, SimEnv, Simulation};

const PAGES: u64 = 40_000;

fn options(heap_bytes: u64) -> StoreOptions {
    StoreOptions { uuid: uuid::Uuid::from_u128(1), media: MediaKind::Wal, heap_bytes, log_bytes: 512 << 10 }
}

/// Seals a small transaction.
fn seal(store: &Store<SimEnv>) -> Sealed {
    let mut heap = store.heap_mut();
    let mut transaction = heap.begin();
    transaction.allocate_bytes(3000).expect("room");
    transaction.seal().expect("sealed")
}

async fn poll_once(mut future: Pin<&mut impl Future>) {
    poll_fn(|context| Poll::Ready(future.as_mut().poll(context).is_ready())).await;
}

async fn checksum(env: &SimEnv, path: &str) -> u32 {
    let file = env.media().open(path, OpenOptions::default()).await.expect("a file");
    let mut checksum = 0;
    for at in (0..file.size()).step_by(1 << 20) {
        let bytes = (file.size() - at).min(1 << 20) as usize;
        let (buffer, result) = file.read(at, IoBuffer::zeroed(bytes)).await;
        result.expect("read");
        checksum = crc32c::crc32c_append(checksum, buffer.as_slice());
    }
    checksum
}

/// A checkpoint went on to its end, seconds later, beneath the store that had been opened in the meantime, which took what it
/// read for damage. Found by `vos_perf --case open-after-crash` on a slow machine.
#[test]
fn a_checkpoint_ends_with_its_store() {
    let sim = Simulation::new(1, Config::default());
    let node = sim.add_node(1);
    let run = sim.block_on(&node, |env| async move {
        let store = Store::create(&env, "pool", options(256 << 20)).await.expect("a store");
        let mut number = 0;
        loop {
            // One page after the other becomes dirty.
            store.log_space().await.expect("room in the log");
            {
                let mut heap = store.heap_mut();
                let mut transaction = heap.begin();
                for _ in 0..64 {
                    let block = transaction.allocate_bytes(3000).expect("room");
                    transaction.write(block, &[1; 8]).expect("written");
                    number += 1;
                }
                let _ = transaction.seal().expect("sealed");
            }
            env.clock().sleep_until(env.clock().now() + Duration::from_micros(100)).await;
            let counters = store.counters();
            if counters.checkpoints == 0 && counters.checkpoint_blocks > 0 {
                break;
            }
            assert!(number < PAGES, "no checkpoint was seen at work: {counters:?}");
        }
        drop(store);
        env.clock().sleep_until(env.clock().now() + Duration::from_millis(20)).await;
        let before = checksum(&env, "pool/heap").await;
        env.clock().sleep_until(env.clock().now() + Duration::from_secs(5)).await;
        assert_eq!(checksum(&env, "pool/heap").await, before, "somebody goes on writing");
        let _ = Store::open(&env, "pool").await.expect("it opens");
    });
    run.expect("it ends");
}

/// A frame was on its way when its store was dropped, and reached the log after the store that had been opened meanwhile had found the
/// log's end before it.
#[test]
fn a_store_is_opened_after_the_last_frame_of_a_dropped_one() {
    let mut frames = 0;
    for seed in 0..50 {
        let sim = Simulation::new(seed, Config::default());
        let node = sim.add_node(1);
        let run = sim.block_on(&node, |env| async move {
            let store = Store::create(&env, "pool", options(8 << 20)).await.expect("a store");
            // The log's task is told, and its write begins.
            let mut persisted = Box::pin(store.persisted(seal(&store)));
            poll_once(persisted.as_mut()).await;
            env.scheduler().yield_now().await;
            env.scheduler().yield_now().await;
            drop((persisted, store));
            let again = Store::open(&env, "pool").await.expect("it opens");
            let found = checksum(&env, "pool/log").await;
            env.clock().sleep_until(env.clock().now() + Duration::from_secs(5)).await;
            assert_eq!(checksum(&env, "pool/log").await, found, "seed {seed}: a frame came late");
            // Bytes of the log that were found.
            again.log_usage().0
        });
        frames += u64::from(run.expect("it ends") > 0);
    }
    assert!(frames > 0, "no frame was on its way");
}

/// Somebody waited for a transaction that had not gone out with the last frame, and was never told.
#[test]
fn who_waits_for_a_store_that_is_dropped_is_told() {
    let sim = Simulation::new(3, Config::default());
    let node = sim.add_node(1);
    let run = sim.block_on(&node, |env| async move {
        let store = Store::create(&env, "pool", options(8 << 20)).await.expect("a store");
        let told = Rc::new(Cell::new(0));
        for _ in 0..3 {
            let persisted = store.persisted(seal(&store));
            let told = told.clone();
            env.scheduler().spawn(Class::Foreground, "who waits", async move {
                // It is durable or not.
                let _ = persisted.await;
                told.set(told.get() + 1);
            });
            // Until the first one's frame is on its way.
            for _ in 0..10 {
                env.scheduler().yield_now().await;
            }
        }
        drop(store);
        env.clock().sleep_until(env.clock().now() + Duration::from_secs(5)).await;
        assert_eq!(told.get(), 3);
        let _ = Store::open(&env, "pool").await.expect("it opens");
    });
    run.expect("it ends");
}
