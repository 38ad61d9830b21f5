//! Every write and every flush of a run is a crash point: there power is lost (or the process killed), any part of what was
//! not flushed is gone, and the pool is opened. All its invariants hold, every checksum is right, and it is in a state in which
//! the run once was, no earlier than what had been acknowledged. The log, the checkpoints and the block tier are covered.

mod support;
#[path = "../umem/tests/support/mod.rs"]
mod world;

use std::{
    cell::{Cell, RefCell},
    ops::ControlFlow,
    rc::Rc,
    sync::atomic::{AtomicU64, Ordering},
};

use daos_types::{Cookie, Epoch, EpochRange, ObjectType};
use daos_vos::{Conflict, Container, Error, Pool, Record, Where};
use support::{
    Random,
    arrays::{self, options},
    driver::{Plan, Readable, change, compare_all, verify},
    reference::Reference,
};
use uuid::Uuid;
use world::{World, media::TestMedia};

const CONTAINER: Uuid = Uuid::from_u128(7);
/// What the reference does not know: extents on the block tier.
const STORED: Uuid = Uuid::from_u128(8);

/// A state of the run: of all records a digest, and (where slices may be cut short) all that can be read.
struct State {
    digest: u64,
    readable: Option<(Reference, Readable)>,
}

/// What the run has been; the last state is the one that it is about to reach.
#[derive(Default)]
struct Run {
    states: Vec<State>,
    /// States before this one were superseded durably.
    acknowledged: usize,
}

/// Of everything that is recorded, with its checksums.
fn digest(pool: &Pool<World>) -> u64 {
    let mut state = 0xcbf2_9ce4_8422_2325u64;
    let mut mix = |value: u64| state = (state ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    let mut each = |record: Record<'_>| {
        match record {
            Record::Object(id, _) => mix(id.to_parts().2 ^ id.to_parts().0),
            Record::Key(key) | Record::Akey(key) => mix(u64::from(crc32c::crc32c(key))),
            Record::ObjectPunch(written) | Record::KeyPunch(written) => mix(written.epoch.0),
            Record::Version(version) => {
                mix(version.written.epoch.0 << 32 | u64::from(version.checksum.0));
                mix(version.length ^ version.written.cookie.0 << 40);
            }
            Record::Extent(extent) => {
                mix(extent.written.epoch.0 << 40 ^ extent.range.start << 20 ^ extent.range.end);
                mix(u64::from(extent.place == Where::Punched) ^ extent.written.cookie.0 << 8);
            }
        }
        ControlFlow::Continue(())
    };
    for container in [CONTAINER, STORED] {
        pool.walk(container, &mut each).expect("a walk");
    }
    state
}

/// Writes an extent to the block tier.
async fn write_stored(pool: &Pool<World>, container: &Container<World>, random: &mut Random, epoch: u64) {
    let length = 4096 + random.below(3) * 5000;
    let offset = random.below(8) * 10_000;
    let data: Vec<u8> = (0..length).map(|at| (at ^ epoch) as u8).collect();
    let how = (epoch, 9, Conflict::LastWins);
    let array = arrays::object(ObjectType::Array, 99);
    match arrays::write_stored(pool, container, array, how, offset, &data).await {
        Ok(()) | Err(Error::EpochConflict { .. } | Error::NoSpace(_)) => {}
        Err(error) => panic!("{error}"),
    }
}

async fn work(pool: Pool<World>, seed: u64, steps: usize, run: Rc<RefCell<Run>>) {
    let container = pool.container_open(CONTAINER).expect("the container");
    let stored = pool.container_open(STORED).expect("the container");
    let mut random = Random(seed);
    let (mut reference, mut readable) = (Reference::default(), Readable::default());
    for step in 0..steps {
        pool.log_space().await.expect("room in the log");
        let mut sealed = None;
        match random.below(30) {
            0 | 1 => {
                let plan = match random.below(2) {
                    0 => Plan::aggregate(&mut random, &readable),
                    _ => Plan::discard(&mut random, &readable),
                };
                plan.apply(&mut reference, &mut readable);
                // Aggregation is done in slices, of which a crash leaves some.
                if let Some(state) = run.borrow_mut().states.last_mut() {
                    state.readable = Some((reference.clone(), readable.clone()));
                }
                sealed = Some(plan.run(&container).await.expect("a plan for whole epochs"));
            }
            2 => {
                if let Some(state) = run.borrow_mut().states.last_mut() {
                    state.readable = Some((reference.clone(), readable.clone()));
                }
                let range = EpochRange { low: Epoch(1 + random.below(20)), high: Epoch(21) };
                sealed = Some(stored.discard(Cookie(9), range).await.expect("a discard"));
            }
            3..12 => write_stored(&pool, &stored, &mut random, 1 + step as u64 % 20).await,
            _ => change(&mut random, &container, &mut reference, &readable),
        }
        run.borrow_mut().states.push(State { digest: digest(&pool), readable: None });
        let now = run.borrow().states.len() - 1;
        match random.below(6) {
            0 => {
                let _ = pool.flush().await.expect("a flush");
                run.borrow_mut().acknowledged = now;
            }
            1 if sealed.is_some() => {
                let _ = pool.persisted(sealed.expect("there is one")).await.expect("durable");
                run.borrow_mut().acknowledged = now;
            }
            2 => {
                use daos_xstream::{Env, Spawn};
                pool.env().scheduler().yield_now().await;
            }
            _ => {}
        }
    }
}

/// Opens the pool after a crash now and looks at it.
fn recover(media: &TestMedia, seed: u64, point: u64, run: &Run) {
    let random = world::Random::new(seed ^ point << 20);
    let mut media = if random.below(3) == 0 { media.after_kill(&random) } else { media.after_crash(&random) };
    if random.below(4) == 0 {
        // Power fails again while the pool is opened.
        let world = World::new(random.next(), media.clone());
        media.crash_at(random.below(6));
        let inner = world.clone();
        let opened = world.run(async move { Pool::open(&inner, "pool").await.map(|_| ()) });
        if let Some(result) = opened {
            result.expect("it opens again");
        }
        world.kill();
        media = media.after_crash(&random);
    }
    let world = World::new(random.next(), media);
    let inner = world.clone();
    let states = &run.states[run.acknowledged..];
    let pool = world.run(async move {
        let pool = Pool::open(&inner, "pool").await.expect("it opens");
        verify(&pool).await.unwrap_or_else(|what| panic!("seed {seed}, point {point}: {what}"));
        pool
    });
    let pool = pool.expect("no crash");
    let found = digest(&pool);
    if states.iter().all(|state| state.digest != found) {
        let container = pool.container_open(CONTAINER).expect("the container");
        let mut last = format!("one of {} states", states.len());
        let same = states.iter().filter_map(|state| state.readable.as_ref()).any(|(reference, readable)| {
            compare_all(&container, reference, readable).map_err(|what| last = what).is_ok()
        });
        assert!(same, "seed {seed}, point {point}: {last}");
    }
    drop(pool);
    world.kill();
}

/// One run; gives its crash points.
fn one_run(seed: u64, steps: usize) -> u64 {
    let media = TestMedia::default();
    let world = World::new(seed, media.clone());
    let inner = world.clone();
    let run = Rc::new(RefCell::new(Run::default()));
    let pool = world.run(async move {
        let pool = Pool::create(&inner, "pool", options(3 << 20, 256 << 10)).await.expect("a pool");
        let _ = pool.container_create(CONTAINER).expect("a container");
        let _ = pool.container_create(STORED).expect("a container");
        let _ = pool.flush().await.expect("a flush");
        pool
    });
    let pool = pool.expect("no crash");
    run.borrow_mut().states.push(State { digest: digest(&pool), readable: None });
    let points = Rc::new(Cell::new(0));
    let (known, point) = (run.clone(), points.clone());
    media.watch(move |media| {
        point.set(point.get() + 1);
        // What the running step is about to reach is the state after it: a discard counts once its first slice is durable.
        recover(media, seed, point.get(), &known.borrow());
    });
    world.run(work(pool.clone(), seed, steps, run)).expect("no crash");
    drop(pool);
    world.kill();
    points.get()
}

#[test]
fn a_crash_at_any_write_leaves_a_sound_pool_in_a_state_that_was() {
    let runs = std::env::var("VOS_CRASH_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(40);
    let (next, points) = (AtomicU64::new(1), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed > runs {
                        return;
                    }
                    points.fetch_add(one_run(seed, 400), Ordering::Relaxed);
                }
            });
        }
    });
    let points = points.load(Ordering::Relaxed);
    println!("{points} crash points");
    assert!(points > 150 * runs, "only {points} crash points");
}
