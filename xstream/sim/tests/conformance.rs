//! The conformance suite over the simulated fabric, under many seeds.

use std::{cell::Cell, rc::Rc};

use daos_xstream::{
    conformance,
    rpc::{Endpoint, EndpointConfig},
};
use daos_xstream_sim::{Config, Simulation};

fn run(seed: u64, config: Config) -> u64 {
    let sim = Simulation::new(seed, config);
    let (engine, client) = (sim.add_node(2), sim.add_node(1));
    let stopped = Rc::new(Cell::new(0));
    let count = stopped.clone();
    engine.start(|env| {
        let count = count.clone();
        async move {
            let endpoint = Endpoint::new(&env, EndpointConfig::default());
            conformance::register(&endpoint).stopped().await;
            count.set(count.get() + 1);
        }
    });
    for core in 0..2 {
        let address = engine.address(core);
        sim.block_on(&client, |env| async move {
            let endpoint =
                Endpoint::of(&env).unwrap_or_else(|| Endpoint::new(&env, EndpointConfig::default()));
            conformance::drive(&endpoint, &address).await
        })
        .unwrap()
        .unwrap();
    }
    sim.run_until(std::time::Duration::from_secs(10), || stopped.get() == 2).unwrap();
    sim.hash()
}

#[test]
fn the_simulated_fabric_conforms() {
    for seed in 0..8 {
        run(seed, Config::default());
    }
}

#[test]
fn it_conforms_with_queues_that_are_always_full_and_messages_that_hold_little() {
    for seed in 0..4 {
        run(seed, Config { connection_capacity: 2, message_bytes_max: 300, ..Config::default() });
    }
}

#[test]
fn a_seed_is_a_run() {
    let first = run(7, Config::default());
    assert_eq!(first, run(7, Config::default()), "the same seed gives the same run");
    assert_ne!(first, run(8, Config::default()), "another seed gives another run");
}
