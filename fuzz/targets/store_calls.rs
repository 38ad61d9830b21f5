//! Sequences of calls on the store against the reference: each eight bytes of the input are one operation.

#![no_main]

use daos_vos::{MediaKind, Pool, PoolOptions};
use daos_xstream_sim::{Config, Simulation};
use libfuzzer_sys::fuzz_target;
use uuid::Uuid;

#[path = "../../vos/tests/support/mod.rs"]
mod support;
use support::{
    Random,
    driver::{Readable, compare_all, operate, verify},
    reference::Reference,
};

fuzz_target!(|input: &[u8]| {
    let seeds: Vec<u64> =
        input.chunks_exact(8).map(|bytes| u64::from_le_bytes(bytes.try_into().expect("8 bytes"))).collect();
    let simulation = Simulation::new(1, Config::default());
    let node = simulation.add_node(1);
    let ended = simulation.block_on(&node, move |env| async move {
        let uuid = Uuid::from_u128(1);
        let options =
            PoolOptions { uuid, media: MediaKind::Heap, heap_bytes: 8 << 20, log_bytes: 0, block_bytes: 0 };
        let pool = Pool::create(&env, "pool", options).await.expect("a pool");
        let _ = pool.container_create(uuid).expect("a container");
        let container = pool.container_open(uuid).expect("the container");
        let (mut reference, mut readable) = (Reference::default(), Readable::default());
        for seed in seeds {
            operate(&mut Random(seed), &container, &mut reference, &mut readable).await;
        }
        compare_all(&container, &reference, &readable).expect("the same");
        verify(&pool).await.expect("a sound pool");
    });
    ended.expect("the run ends");
});
