//! The store against a naive reference: random operations of all kinds on all types of objects.

mod support;

use daos_vos::{MediaKind, Pool, PoolOptions};
use daos_xstream_sim::{Config, Simulation};
use support::{
    Random,
    driver::{Readable, compare, compare_all, operate, verify},
    reference::Reference,
};
use uuid::Uuid;

fn options(media: MediaKind) -> PoolOptions {
    PoolOptions { uuid: Uuid::from_u128(1), media, heap_bytes: 24 << 20, log_bytes: 8 << 20, block_bytes: 0 }
}

/// Operations of one run; `VOS_MODEL_RUNS` makes it many runs.
const STEPS: usize = 2500;

#[test]
fn it_does_what_the_reference_does() {
    let runs = std::env::var("VOS_MODEL_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(24);
    let first = std::env::var("VOS_MODEL_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    for seed in first..first + runs {
        let simulation = Simulation::new(seed, Config::default());
        let node = simulation.add_node(1);
        let ended = simulation.block_on(&node, move |env| async move {
            let mut random = Random(seed);
            let pool = Pool::create(&env, "pool", options(MediaKind::Heap)).await.expect("a pool");
            let before = pool.usage().expect("usage");
            let uuid = Uuid::from_u128(7);
            let _ = pool.container_create(uuid).expect("a container");
            let container = pool.container_open(uuid).expect("the container");
            let (mut reference, mut readable) = (Reference::default(), Readable::default());
            for step in 0..STEPS {
                operate(&mut random, &container, &mut reference, &mut readable).await;
                let epoch = readable.from + random.below(support::driver::EPOCHS + 2);
                let result = match step % 200 {
                    199 => compare_all(&container, &reference, &readable),
                    rest if rest % 5 == 0 => compare(&container, &reference, &readable, epoch),
                    _ => Ok(()),
                };
                let result = match step % 200 {
                    199 => match result {
                        Ok(()) => verify(&pool).await,
                        wrong => wrong,
                    },
                    _ => result,
                };
                result.unwrap_or_else(|what| panic!("seed {seed}, step {step}: {what}"));
                if readable.from == 0 {
                    let usage = container.usage().expect("usage");
                    assert_eq!(usage.records, reference.records() as u64, "seed {seed}, step {step}");
                }
            }
            drop(container);
            let _ = pool.container_destroy(uuid).await.expect("a destruction");
            assert_eq!(pool.usage().expect("usage"), before, "seed {seed}: every byte is given back");
        });
        ended.expect("the run ends");
    }
}
