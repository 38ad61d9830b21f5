//! Stop at every write of a run, lose any part of what was not flushed, open again: what was acknowledged is there, whole
//! transactions only, and the heap goes on working. Likewise when the crash comes while the heap recovers.

mod support;

use std::{cell::Cell, rc::Rc};

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

/// One run: create, work, with a crash at an event if one is given. Gives the media, what was acknowledged, and events.
fn run(seed: u64, transactions: u64, crash_at: Option<u64>) -> (TestMedia, u64, u64) {
    let media = TestMedia::default();
    let world = World::new(seed, media.clone());
    let acknowledged = Rc::new(Cell::new(0));
    let store = world.run({
        let world = world.clone();
        async move { Store::create(&world, DIRECTORY, options()).await.expect("created") }
    });
    let store = store.expect("no crash yet");
    if let Some(event) = crash_at {
        media.crash_at(media.events() + event);
    }
    let before = media.events();
    world.run(work(world.clone(), store.clone(), seed, 0, transactions, acknowledged.clone()));
    let events = media.events() - before;
    drop(store);
    world.kill();
    (media, acknowledged.get(), events)
}

fn recover(seed: u64, crash_at: u64, transactions: u64) {
    let (media, acknowledged, _) = run(seed, transactions, Some(crash_at));
    let random = Random::new(seed ^ crash_at << 20);
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

/// How many crash points a run of the tests visits; a longer run by `UMEM_CRASH_SEEDS`.
fn seeds() -> u64 {
    std::env::var("UMEM_CRASH_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(12)
}

#[test]
fn a_crash_at_any_write_keeps_what_was_acknowledged() {
    let mut points = 0;
    for seed in 0..seeds() {
        let transactions = 60 + seed % 5 * 60;
        let (_, _, events) = run(seed, transactions, None);
        for crash_at in 0..events {
            recover(seed, crash_at, transactions);
        }
        points += events;
    }
    println!("{points} crash points");
    assert!(points > 20 * seeds(), "only {points} crash points");
}
