//! Crashes between any two slices of aggregation and discard, and at every media write and flush on the way: what was done is
//! durable at each boundary. The pool is opened, is sound, and answers as it must; then the work is done to its end, now and
//! then with another crash on the way, and leaves no more than it leaves when nothing interrupts it.

mod support;
#[path = "../umem/tests/support/mod.rs"]
mod world;

use std::{
    cell::{Cell, RefCell},
    ops::Range,
    rc::Rc,
    sync::atomic::{AtomicU64, Ordering},
};

use daos_types::{ObjectId, ObjectType};
use daos_vos::{Conflict, ContainerUsage, Pool};
use support::{
    Random,
    arrays::{self, object, options, read_array},
    driver::{EPOCHS, Plan, Readable, change, compare_all, verify},
    reference::Reference,
};
use uuid::Uuid;
use world::{World, media::TestMedia};

const CONTAINER: Uuid = Uuid::from_u128(7);
/// An array on the block tier, which the reference does not know.
const STORED: Uuid = Uuid::from_u128(8);
const STORED_COOKIE: u64 = 9;
const STORED_BYTES: u64 = 90_000;
const CHANGES: u64 = 1600;

fn array() -> ObjectId {
    object(ObjectType::Array, 99)
}

/// What is in the array on the block tier: by epoch the range and the byte that it is filled with.
type StoredModel = Vec<(u64, Range<u64>, u8)>;

/// A pool before the work, and what a reader must find before and after it.
struct Case {
    media: TestMedia,
    plan: Plan,
    before: Reference,
    after: Reference,
    readable: Readable,
    stored: StoredModel,
}

impl Case {
    /// The work on the array on the block tier.
    fn stored_plan(&self) -> Plan {
        match self.plan {
            Plan::Discard(_, low, high) => Plan::Discard(STORED_COOKIE, low, high),
            aggregate => aggregate,
        }
    }

    /// Bytes of the array at `epoch`, if (or if not) the work on it is done.
    fn stored_at(&self, epoch: u64, done: bool) -> Vec<u8> {
        let mut bytes = vec![0; STORED_BYTES as usize];
        for (at, range, fill) in &self.stored {
            let gone = match self.plan {
                Plan::Discard(_, low, high) => done && (low..=high).contains(at),
                Plan::Aggregate(..) => false,
            };
            if *at <= epoch && !gone {
                bytes[range.start as usize..range.end as usize].fill(*fill);
            }
        }
        bytes
    }
}

/// What is there after the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Outcome {
    container: ContainerUsage,
    stored: ContainerUsage,
    block_bytes_free: u64,
}

impl Outcome {
    /// Nothing else is kept. A sweep that begins again may trim what it merged before, so that less is left.
    fn is_no_worse_than(&self, other: &Self) -> bool {
        let each = |one: &ContainerUsage, other: &ContainerUsage| {
            one.objects == other.objects && one.records <= other.records && one.data_bytes <= other.data_bytes
        };
        each(&self.container, &other.container)
            && each(&self.stored, &other.stored)
            && self.block_bytes_free >= other.block_bytes_free
    }
}

fn outcome(pool: &Pool<World>) -> Outcome {
    let usage = |uuid| {
        pool.container_open(uuid).and_then(|container| container.usage()).expect("a container's usage")
    };
    let block_bytes_free = pool.usage().expect("usage").block_bytes_free;
    Outcome { container: usage(CONTAINER), stored: usage(STORED), block_bytes_free }
}

/// Makes a pool with a history.
fn case(seed: u64, aggregate: bool) -> Case {
    let swept = aggregate && seed.is_multiple_of(2);
    let media = TestMedia::default();
    let world = World::new(seed, media.clone());
    let inner = world.clone();
    let made = world.run(async move {
        let pool = Pool::create(&inner, "pool", options(4 << 20, 1 << 20)).await.expect("a pool");
        for uuid in [CONTAINER, STORED] {
            let _ = pool.container_create(uuid).expect("a container");
        }
        let container = pool.container_open(CONTAINER).expect("the container");
        let (mut random, mut reference) = (Random(seed), Reference::default());
        let mut readable = Readable::default();
        for _ in 0..CHANGES {
            pool.log_space().await.expect("room in the log");
            change(&mut random, &container, &mut reference, &readable);
        }
        let stored = write_stored(&pool, &mut random).await;
        // Three states are kept for readers who will be gone: of these no group tells, a sweep finds them.
        for plan in [Plan::Aggregate(1, 5), Plan::Aggregate(6, 11)].into_iter().filter(|_| swept) {
            plan.apply(&mut reference, &mut readable);
            for uuid in [CONTAINER, STORED] {
                let container = pool.container_open(uuid).expect("the container");
                let _ = plan.run(&container).await.expect("an aggregation");
            }
        }
        pool.close().await.expect("a close");
        (reference, readable, stored, random)
    });
    let (before, mut readable, stored, mut random) = made.expect("no crash");
    world.kill();
    let high = EPOCHS - random.below(EPOCHS / 3);
    let plan = match aggregate {
        true if swept => Plan::Aggregate(1, high),
        true => Plan::Aggregate(1 + random.below(3) * 4, high),
        false => Plan::Discard(random.below(3), 1 + random.below(4), EPOCHS),
    };
    let mut after = before.clone();
    plan.apply(&mut after, &mut readable);
    Case { media: media.copy(), plan, before, after, readable, stored }
}

async fn write_stored(pool: &Pool<World>, random: &mut Random) -> StoredModel {
    let container = pool.container_open(STORED).expect("the container");
    let mut model = StoredModel::new();
    for epoch in 1..=EPOCHS {
        let length = 4096 + random.below(20_000);
        let offset = random.below(STORED_BYTES - length);
        let (range, fill) = (offset..offset + length, 1 + random.below(255) as u8);
        let data = vec![fill; length as usize];
        let how = (epoch, STORED_COOKIE, Conflict::Refuse);
        arrays::write_stored(pool, &container, array(), how, offset, &data).await.expect("room");
        model.push((epoch, range, fill));
    }
    model
}

/// Which of the two pieces of work are done, as a reader sees it: (of the container, of the array on the block tier). An
/// aggregation is not to be seen: it counts as done.
async fn look(pool: &Pool<World>, case: &Case, what: &str) -> (bool, bool) {
    verify(pool).await.unwrap_or_else(|fault| panic!("{what}: {fault}"));
    let container = pool.container_open(CONTAINER).expect("the container");
    let done = match compare_all(&container, &case.after, &case.readable) {
        Ok(()) => true,
        Err(after) => match compare_all(&container, &case.before, &case.readable) {
            Ok(()) => false,
            Err(before) => panic!("{what}: neither before ({before}) nor after ({after})"),
        },
    };
    let stored = pool.container_open(STORED).expect("the container");
    let mut found = Vec::new();
    for epoch in
        [case.readable.from.max(1), EPOCHS / 2, EPOCHS].into_iter().filter(|&at| at >= case.readable.from)
    {
        found.push((epoch, read_array(pool, &stored, array(), STORED_BYTES, epoch).await));
    }
    let is = |done| found.iter().all(|(epoch, bytes)| *bytes == case.stored_at(*epoch, done));
    let stored_done = is(true);
    assert!(stored_done || is(false), "{what}: the array on the block tier is neither before nor after");
    (done, stored_done)
}

/// Does the work, or what is left of it.
async fn work(pool: &Pool<World>, case: &Case) {
    for (uuid, plan) in [(CONTAINER, case.plan), (STORED, case.stored_plan())] {
        let container = pool.container_open(uuid).expect("the container");
        let sealed = plan.run(&container).await.expect("work on whole epochs");
        let _ = pool.persisted(sealed).await.expect("durable");
    }
}

/// What was met at crash points.
#[derive(Default)]
struct Met {
    slices: Cell<u64>,
    points: Cell<u64>,
    /// Discards: points at which nothing, a part, and all was done.
    not_begun: Cell<u64>,
    between: Cell<u64>,
    ended: Cell<u64>,
}

fn count(cell: &Cell<u64>) -> u64 {
    cell.set(cell.get() + 1);
    cell.get()
}

/// Crashes now, opens the pool, looks at it, and brings the work to its end.
fn crash(media: &TestMedia, case: &Rc<Case>, seed: u64, met: &Met, wanted: Outcome) {
    let point = count(&met.points);
    let what = format!("seed {seed}, {:?}, point {point}", case.plan);
    let random = world::Random::new(seed << 32 ^ point);
    let mut media = if random.below(3) == 0 { media.after_kill(&random) } else { media.after_crash(&random) };
    let mut done = (false, false);
    // Now and then power fails again while the pool is opened, or while the work goes on.
    for life in 0.. {
        let last = life == 2 || random.below(3) > 0;
        if !last {
            media.crash_at(random.below(30));
        }
        let world = World::new(random.next(), media.clone());
        let (inner, case, story) = (world.clone(), case.clone(), what.clone());
        let ended = world.run(async move {
            let pool = Pool::open(&inner, "pool").await.expect("it opens");
            let found = look(&pool, &case, &story).await;
            work(&pool, &case).await;
            assert_eq!(look(&pool, &case, &story).await, (true, true), "{story}: after the work");
            (found, outcome(&pool))
        });
        world.kill();
        if let Some((found, left)) = ended {
            assert!(left.is_no_worse_than(&wanted), "{what}: {left:?} is left, not {wanted:?}");
            if life == 0 {
                done = found;
            }
            break;
        }
        media = media.after_crash(&random);
    }
    let met = match done {
        (false, _) => &met.not_begun,
        (true, false) => &met.between,
        (true, true) => &met.ended,
    };
    count(met);
}

/// One piece of work, interrupted everywhere; gives the counts of [`Met`].
fn one_run(seed: u64, aggregate: bool) -> [u64; 5] {
    let case = Rc::new(case(seed, aggregate));
    // What is left when nothing interrupts it.
    let world = World::new(seed, case.media.copy());
    let (inner, known) = (world.clone(), case.clone());
    let wanted = world.run(async move {
        let pool = Pool::open(&inner, "pool").await.expect("it opens");
        work(&pool, &known).await;
        outcome(&pool)
    });
    let wanted = wanted.expect("no crash");
    world.kill();

    let media = case.media.copy();
    let world = World::new(seed, media.clone());
    let inner = world.clone();
    let pool =
        world.run(async move { Pool::open(&inner, "pool").await.expect("it opens") }).expect("no crash");
    let met = Rc::new(Met::default());
    let (known, counts) = (case.clone(), met.clone());
    media.watch(move |media| crash(media, &known, seed, &counts, wanted));
    let (inner, known, counts) = (world.clone(), case.clone(), met.clone());
    let flushed = pool.clone();
    let watched = media.clone();
    let ended = Rc::new(RefCell::new(None));
    let end = ended.clone();
    world.run(async move {
        let between = move || {
            let (pool, media, case, met) = (flushed.clone(), watched.clone(), known.clone(), counts.clone());
            Box::pin(async move {
                // The slice before is durable now, and nothing of the next.
                let _ = pool.flush().await.expect("a flush");
                count(&met.slices);
                crash(&media, &case, seed, &met, wanted);
            }) as std::pin::Pin<Box<dyn Future<Output = ()>>>
        };
        inner.sliced(work(&pool, &case), between).await;
        *end.borrow_mut() = Some(outcome(&pool));
    });
    assert_eq!(*ended.borrow(), Some(wanted), "seed {seed}: cut in slices");
    world.kill();
    [&met.slices, &met.points, &met.not_begun, &met.between, &met.ended].map(Cell::get)
}

/// The counts of `runs` runs, on two threads: slices, points, and the three kinds of them.
fn all_runs(aggregate: bool) -> (u64, [u64; 5]) {
    let runs = std::env::var("VOS_SLICE_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(16);
    let next = AtomicU64::new(1);
    let total: [AtomicU64; 5] = Default::default();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed > runs {
                        return;
                    }
                    for (total, count) in total.iter().zip(one_run(seed, aggregate)) {
                        total.fetch_add(count, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    (runs, total.map(AtomicU64::into_inner))
}

#[test]
fn aggregation_goes_on_after_a_crash_between_any_two_slices() {
    let (runs, [slices, points, ..]) = all_runs(true);
    println!("aggregation: {points} crash points, {slices} of them between two slices");
    assert!(slices >= 10 * runs && points > 2 * slices, "{slices} slices, {points} points in {runs} runs");
}

#[test]
fn discard_is_whole_after_a_crash_between_any_two_slices() {
    let (runs, [slices, points, not_begun, between, ended]) = all_runs(false);
    println!("discard: {points} crash points, {slices} of them between two slices");
    println!("found: {not_begun} before, {between} between two discards, {ended} after");
    assert!(slices >= 4 * runs && points > 2 * slices, "{slices} slices, {points} points in {runs} runs");
    assert!(not_begun >= runs && between > 10 * runs && ended >= runs, "{not_begun}, {between}, {ended}");
}
