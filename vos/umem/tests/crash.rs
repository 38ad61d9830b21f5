//! Stop at every write of a run, lose any part of what was not flushed, open again: what was acknowledged is there, whole
//! transactions only, and the heap goes on working. Likewise when the crash comes while the heap recovers.

mod support;

use std::{
    cell::Cell,
    rc::Rc,
    sync::atomic::{AtomicU64, Ordering},
};

use daos_umem::{MediaKind, Store, StoreOptions};
use support::{
    Random, World,
    media::TestMedia,
    workload::{change, check, empty},
};

const DIRECTORY: &str = "pool";

fn options() -> StoreOptions {
    StoreOptions {
        uuid: uuid::Uuid::from_bytes(*b"0123456789abcdef"),
        media: MediaKind::Wal,
        heap_bytes: 1 << 20,
        log_bytes: 256 << 10,
    }
}

/// Runs transactions `from..to`; `acknowledged` follows what is known to be durable.
async fn work(world: World, store: Store<World>, seed: u64, from: u64, to: u64, acknowledged: Rc<Cell<u64>>) {
    let mut ignored = empty();
    for number in from..to {
        store.log_space().await.expect("room in the log");
        let sealed = {
            let mut heap = store.heap_mut();
            if world.random().below(5) == 0 {
                // One that is given up must leave no trace.
                change(seed ^ 1, number, &mut heap.begin(), &mut ignored).expect("room");
            }
            let mut transaction = heap.begin();
            change(seed, number, &mut transaction, &mut ignored).expect("room");
            transaction.seal().expect("sealed")
        };
        match world.random().below(8) {
            0 => {
                let _ = store.persisted(sealed).await.expect("durable");
                acknowledged.set(number + 1);
            }
            1 => {
                let _ = store.flush().await.expect("durable");
                acknowledged.set(number + 1);
            }
            2 if world.random().below(4) == 0 => store.checkpoint().await.expect("a checkpoint"),
            3 => {
                use daos_xstream::{Env, Spawn};
                world.scheduler().yield_now().await;
            }
            _ => {}
        }
        if store.is_persisted(sealed).is_some() {
            acknowledged.set(number + 1);
        }
    }
}

/// One run: create and work; every write and flush is a crash point. Gives how many there were.
fn run(seed: u64, transactions: u64) -> u64 {
    let media = TestMedia::default();
    let world = World::new(seed, media.clone());
    let acknowledged = Rc::new(Cell::new(0));
    let store = world.run({
        let world = world.clone();
        async move { Store::create(&world, DIRECTORY, options()).await.expect("created") }
    });
    let store = store.expect("no crash yet");
    let points = Rc::new(Cell::new(0));
    let (known, point) = (acknowledged.clone(), points.clone());
    media.watch(move |media| {
        point.set(point.get() + 1);
        recover(media, seed, point.get(), known.get(), transactions);
    });
    world.run(work(world.clone(), store.clone(), seed, 0, transactions, acknowledged)).expect("no crash");
    drop(store);
    world.kill();
    points.get()
}

/// Recovers from a crash now.
fn recover(media: &TestMedia, seed: u64, point: u64, acknowledged: u64, transactions: u64) {
    let random = Random::new(seed ^ point << 20);
    // The machine may go on although the process died: then what was on its way may be in the device's cache, where the
    // heap finds it, and be lost later.
    let mut media = if random.below(3) == 0 { media.after_kill(&random) } else { media.after_crash(&random) };
    // Now and then power fails again during recovery.
    for _ in 0..random.below(3) {
        let world = World::new(random.next(), media.clone());
        media.crash_at(random.below(5));
        let opened = world.run({
            let world = world.clone();
            async move { Store::open(&world, DIRECTORY).await.map(|_| ()) }
        });
        if let Some(result) = opened {
            result.expect("it opens again");
        }
        world.kill();
        media = media.after_crash(&random);
    }
    let world = World::new(random.next(), media.clone());
    let open = |world: &World| {
        let inner = world.clone();
        world.run(async move { Store::open(&inner, DIRECTORY).await.expect("opens") }).expect("no crash")
    };
    let store = open(&world);
    let found = check(seed, &store.heap(), acknowledged, transactions);
    if random.below(4) > 0 {
        world.kill();
        return;
    }
    // It goes on working, and what it does then is there after the next crash.
    let acknowledged = Rc::new(Cell::new(0));
    world.run(work(world.clone(), store.clone(), seed, found, found + 5, acknowledged)).expect("no crash");
    check(seed, &store.heap(), found + 5, found + 5);
    let close = random.below(2) == 0;
    let closing = store.clone();
    world
        .run(async move {
            if close {
                closing.close().await.expect("closes")
            } else {
                closing.flush().await.map(drop).expect("durable")
            }
        })
        .expect("no crash");
    drop(store);
    world.kill();
    let world = World::new(random.next(), media.after_crash(&random));
    check(seed, &open(&world).heap(), found + 5, found + 5);
    world.kill();
}

/// How many runs; more by `UMEM_CRASH_SEEDS`.
fn seeds() -> u64 {
    std::env::var("UMEM_CRASH_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(32)
}

#[test]
fn a_crash_at_any_write_keeps_what_was_acknowledged() {
    let (next, points) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds() {
                        return;
                    }
                    points.fetch_add(run(seed, 60 + seed % 5 * 60), Ordering::Relaxed);
                }
            });
        }
    });
    let points = points.load(Ordering::Relaxed);
    println!("{points} crash points");
    assert!(points > 200 * seeds(), "only {points} crash points");
}
