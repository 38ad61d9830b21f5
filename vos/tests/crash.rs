//! Crashes: power is lost at a random moment of a random run, unflushed writes are lost or torn, and the pool is opened
//! again. What is there must be what the reference was after some operation, no earlier than the last flush.

mod support;

use std::{cell::RefCell, rc::Rc};

use daos_vos::{Error, Pool, PoolOptions};
use daos_xstream::{Class, Env, Spawn};
use daos_xstream_sim::{Config, Loss, SimEnv, Simulation};
use support::{
    Random,
    driver::{Plan, Readable, change, compare_all},
    pool::{self, CONTAINER},
    reference::Reference,
};

fn options() -> PoolOptions {
    pool::wal(8 << 20, 1 << 20, 1 << 20)
}

/// What the reference has been since the last flush: what a crash may leave.
#[derive(Default)]
struct History {
    states: Vec<(Reference, Readable)>,
}

/// Opens the pool, finds out which state it is in, and goes on until it is killed.
async fn live(env: SimEnv, seed: u64, history: Rc<RefCell<History>>) {
    let mut random = Random(seed);
    let pool = match Pool::open(&env, "pool").await {
        Ok(pool) => pool,
        Err(error) => panic!("seed {seed}: {error}"),
    };
    support::driver::verify(&pool).await.unwrap_or_else(|what| panic!("seed {seed}: {what}"));
    let container = pool.container_open(CONTAINER).expect("the container was durable");
    let (mut reference, mut readable) = {
        let mut history = history.borrow_mut();
        let mut last = String::new();
        let found = history.states.iter().rposition(|(reference, readable)| {
            compare_all(&container, reference, readable).map_err(|what| last = what).is_ok()
        });
        let Some(found) = found else {
            panic!("seed {seed}: none of {} states is there; of the first: {last}", history.states.len())
        };
        // Everything that was found is durable: recovery ends with what the log holds.
        let state = history.states.swap_remove(found);
        history.states = vec![state.clone()];
        state
    };
    for _ in 0..400 {
        match random.below(40) {
            0 => {
                let _ = pool.flush().await.expect("a flush");
                history.borrow_mut().states = vec![(reference.clone(), readable.clone())];
                continue;
            }
            1 => env.scheduler_yield().await,
            2 | 3 => {
                // It is done in slices. A crash in the middle leaves a state from before, or that after it.
                let plan = match random.below(3) {
                    0 => Plan::aggregate(&mut random, &readable),
                    _ => Plan::discard(&mut random, &readable),
                };
                plan.apply(&mut reference, &mut readable);
                history.borrow_mut().states.push((reference.clone(), readable.clone()));
                let _ = plan.run(&container).await.expect("a plan for whole epochs");
            }
            _ => change(&mut random, &container, &mut reference, &readable),
        }
        history.borrow_mut().states.push((reference.clone(), readable.clone()));
    }
    let _ = pool.flush().await.expect("a flush");
    history.borrow_mut().states = vec![(reference, readable)];
    std::future::pending::<()>().await;
}

trait Yield {
    async fn scheduler_yield(&self);
}

impl Yield for SimEnv {
    async fn scheduler_yield(&self) {
        self.scheduler().yield_now().await;
    }
}

#[test]
fn what_was_flushed_survives_and_nothing_is_half_there() {
    let runs = std::env::var("VOS_CRASH_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(12);
    for seed in 1..=runs {
        let simulation = Simulation::new(seed, Config::default());
        let node = simulation.add_node(1);
        let made = simulation.block_on(&node, |env| async move {
            let pool = Pool::create(&env, "pool", options()).await.expect("a pool");
            let _ = pool.container_create(CONTAINER).expect("a container");
            pool.flush().await.map(|_| ())
        });
        assert_eq!(made.expect("the run ends"), Ok::<(), Error>(()));
        let history = Rc::new(RefCell::new(History::default()));
        history.borrow_mut().states.push(Default::default());
        for life in 0..8 {
            let history = history.clone();
            let task = move |env| live(env, seed * 1000 + life, history.clone());
            node.start(task);
            let mut steps = 20 + simulation.choose(1500);
            let limit = std::time::Duration::from_secs(60);
            let _ = simulation.run_until(limit, || {
                steps -= 1;
                steps == 0
            });
            node.kill(if simulation.choose(2) == 0 { Loss::Power } else { Loss::Process });
            node.restart();
        }
    }
}

/// The story of a discard that stopped half way: the first slices had been durable, the rest was not, and what a dead
/// client had written in one epoch was there in part.
#[test]
fn a_discard_of_many_slices_is_done_whole_or_not_at_all() {
    use daos_types::{
        Checksum, Cookie, Epoch, EpochRange, KeyOrder, ObjectClass, ObjectId, ObjectType, Writer, WriterKind,
    };
    use daos_vos::{Conflict, KeyUpdate, Update, Value};
    const KEYS: u64 = 700;
    let kind = ObjectType::KeyValue;
    let object = ObjectId::new(kind, KeyOrder::Hashed, KeyOrder::Hashed, ObjectClass(1), (0, 0, 1));
    let (mut whole, mut nothing) = (0, 0);
    for seed in 1..=40 {
        let simulation = Simulation::new(seed, Config::default());
        let node = simulation.add_node(1);
        let made = simulation.block_on(&node, move |env| async move {
            let (pool, container) = pool::create(&env, options()).await;
            for key in 0..KEYS {
                for cookie in 1..=2 {
                    let writer =
                        Writer { cookie: Cookie(cookie), map_version: 1, kind: WriterKind::Application };
                    let value = Some(Value::Inline(b"value", Checksum(crc32c::crc32c(b"value"))));
                    let update = Update::KeyValue(&[KeyUpdate { key: &key.to_le_bytes(), value }]);
                    let epoch = Epoch(cookie * 10);
                    let _ = container
                        .update(object, epoch, writer, Conflict::Refuse, &update)
                        .expect("an update");
                }
            }
            pool.flush().await.map(|_| ())
        });
        assert_eq!(made.expect("the run ends"), Ok(()));
        node.start(move |env| async move {
            let pool = Pool::open(&env, "pool").await.expect("the pool");
            let container = pool.container_open(CONTAINER).expect("the container");
            // Somebody else flushes all the while, so that slices become durable one by one.
            let flushed = pool.clone();
            let world = env.clone();
            env.scheduler().spawn(Class::Service, "flush", async move {
                while flushed.flush().await.is_ok() {
                    world.scheduler_yield().await;
                }
            });
            let _ = container.discard(Cookie(2), EpochRange::ALL).await.expect("a discard");
            let _ = pool.flush().await;
            std::future::pending::<()>().await;
        });
        let mut steps = 10 + seed * 4;
        let _ = simulation.run_until(std::time::Duration::from_secs(60), || {
            steps -= 1;
            steps == 0
        });
        node.kill(Loss::Power);
        node.restart();
        let records = simulation.block_on(&node, move |env| async move {
            let pool = Pool::open(&env, "pool").await.expect("the pool");
            let container = pool.container_open(CONTAINER).expect("the container");
            support::driver::verify(&pool).await.expect("a sound pool");
            container.usage().expect("usage").records
        });
        match records.expect("the run ends") {
            KEYS => whole += 1,
            records => {
                assert_eq!(records, 2 * KEYS, "seed {seed}: a discard that stopped half way");
                nothing += 1;
            }
        }
    }
    assert!(whole > 0 && nothing > 0, "crashes before ({nothing}) and after ({whole}) the discard began");
}
