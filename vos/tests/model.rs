//! The store against a naive reference: random operations of all kinds on all types of objects, with crashes and openings
//! among them.

mod support;

use std::{
    cell::RefCell,
    rc::Rc,
    sync::atomic::{AtomicU64, Ordering},
};

use daos_vos::{MediaKind, Pool, PoolOptions};
use daos_xstream_sim::{Config, Loss, Simulation};
use support::{
    Random,
    driver::{EPOCHS, Readable, compare, compare_all, operate, verify},
    pool::{self, CONTAINER},
    reference::Reference,
};

fn options(media: MediaKind) -> PoolOptions {
    PoolOptions { media, ..pool::wal(24 << 20, 8 << 20, 0) }
}

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).ok().and_then(|number| number.parse().ok()).unwrap_or(otherwise)
}

/// Operations of one run; `VOS_MODEL_RUNS` says how many runs.
const STEPS: usize = 2500;
/// Of so many runs one is on `wal` media, with crashes.
const CRASHING: u64 = 8;
/// Lives of a run with crashes.
const LIVES: usize = 5;

/// What a run is in the middle of.
struct Run {
    seed: u64,
    random: Random,
    reference: Reference,
    readable: Readable,
    steps: usize,
}

impl Run {
    async fn go(&mut self, pool: &Pool<daos_xstream_sim::SimEnv>, steps: usize) {
        let container = pool.container_open(CONTAINER).expect("the container");
        let Self { seed, random, reference, readable, .. } = self;
        for step in self.steps..self.steps + steps {
            pool.log_space().await.expect("room in the log");
            operate(random, &container, reference, readable).await;
            let epoch = readable.from + random.below(EPOCHS + 2);
            let result = match step % 500 {
                499 => match compare_all(&container, reference, readable) {
                    Ok(()) => verify(pool).await,
                    wrong => wrong,
                },
                rest if rest % 25 == 0 => compare(&container, reference, readable, epoch),
                _ => Ok(()),
            };
            result.unwrap_or_else(|what| panic!("seed {seed}, step {step}: {what}"));
            if readable.from == 0 && step % 5 == 0 {
                let usage = container.usage().expect("usage");
                assert_eq!(usage.records, reference.records() as u64, "seed {seed}, step {step}");
            }
        }
        self.steps += steps;
    }
}

fn run(seed: u64) {
    let simulation = Simulation::new(seed, Config::default());
    let node = simulation.add_node(1);
    let (reference, readable) = Default::default();
    let run = Rc::new(RefCell::new(Some(Run { seed, random: Random(seed), reference, readable, steps: 0 })));
    let crashing = seed.is_multiple_of(CRASHING);
    let media = if crashing { MediaKind::Wal } else { MediaKind::Heap };
    let at = run.clone();
    let ended = simulation.block_on(&node, move |env| async move {
        let pool = Pool::create(&env, "pool", options(media)).await.expect("a pool");
        let before = pool.usage().expect("usage");
        let _ = pool.container_create(CONTAINER).expect("a container");
        let mut run = at.take().expect("the run");
        run.go(&pool, if crashing { STEPS / LIVES } else { STEPS }).await;
        if crashing {
            let _ = pool.flush().await.expect("a flush");
        } else {
            let _ = pool.container_destroy(CONTAINER).await.expect("a destruction");
            assert_eq!(pool.usage().expect("usage"), before, "seed {seed}: every byte is given back");
        }
        at.replace(Some(run));
    });
    ended.expect("the run ends");
    for life in 1..if crashing { LIVES } else { 1 } {
        node.kill(if life % 2 == 0 { Loss::Power } else { Loss::Process });
        node.restart();
        let at = run.clone();
        let ended = simulation.block_on(&node, move |env| async move {
            let pool = Pool::open(&env, "pool").await.expect("the pool");
            let mut run = at.take().expect("the run");
            let container = pool.container_open(CONTAINER).expect("the container");
            let same = compare_all(&container, &run.reference, &run.readable);
            same.unwrap_or_else(|what| panic!("seed {seed}, life {life}: {what}"));
            run.go(&pool, STEPS / LIVES).await;
            let _ = pool.flush().await.expect("a flush");
            at.replace(Some(run));
        });
        ended.expect("the run ends");
    }
}

#[test]
fn it_does_what_the_reference_does() {
    let runs = number("VOS_MODEL_RUNS", 400);
    let next = AtomicU64::new(number("VOS_MODEL_SEED", 1));
    let end = next.load(Ordering::Relaxed) + runs;
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    run(seed);
                }
            });
        }
    });
}
