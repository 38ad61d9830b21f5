//! Scheduling, mailboxes, death and partitions.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

use daos_xstream::{
    Class, Clock, CoreId, Env, FabricError, Mailbox, MailboxError, Spawn, join_all,
    rpc::{Call, Endpoint, EndpointConfig, Opcode, Request, Responder, RpcError, Service},
    submit_to,
    sync::Notify,
};
use daos_xstream_sim::{Config, Loss, SimEnv, Simulation, Stopped};

struct Echo;

impl Service<SimEnv> for Echo {
    fn module(&self) -> u8 {
        9
    }

    fn name(&self) -> &'static str {
        "echo"
    }

    fn call(&self, request: Request<'_>, responder: Responder<SimEnv>) {
        responder.reply(&[request.body]);
    }
}

async fn serve_echo(env: SimEnv) {
    Endpoint::new(&env, EndpointConfig::default()).register(Rc::new(Echo));
}

fn echo(timeout: Duration) -> Call {
    Call { opcode: Opcode::new(9, 0), timeout, ..Call::default() }
}

#[test]
fn work_crosses_cores_in_order_and_its_result_comes_back() {
    let sim = Simulation::new(1, Config::default());
    let node = sim.add_node(3);
    sim.block_on(&node, |env| async move {
        #[derive(Default)]
        struct Seen(RefCell<Vec<u32>>);
        let calls = (0..200).map(|number| {
            let env = env.clone();
            async move {
                submit_to(&env, CoreId(number % 3), move |there: &SimEnv| {
                    let seen = there.locals().get::<Seen>().unwrap_or_default();
                    there.locals().insert(seen.clone());
                    seen.0.borrow_mut().push(number);
                    let core = there.core().0;
                    async move { (number, core) }
                })
                .await
            }
        });
        for (number, result) in join_all(calls).await.into_iter().enumerate() {
            assert_eq!(result, Ok((number as u32, number as u32 % 3)));
        }
        for core in 0..3 {
            let seen = submit_to(&env, CoreId(core), |there: &SimEnv| {
                let seen = there.locals().get::<Seen>().unwrap().0.borrow().clone();
                async move { seen }
            });
            let expected: Vec<u32> = (0..200).filter(|number| number % 3 == core).collect();
            assert_eq!(seen.await.unwrap(), expected, "in the order in which it was sent");
        }
        let nowhere = submit_to(&env, CoreId(3), |_: &SimEnv| async {}).await;
        assert_eq!(nowhere, Err(MailboxError::NoSuchCore(CoreId(3))));
        assert_eq!(Mailbox::<SimEnv>::cores(env.mailbox()), 3);
    })
    .unwrap();
}

#[test]
fn every_order_of_ready_tasks_comes_about() {
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..100 {
        let sim = Simulation::new(seed, Config::default());
        let node = sim.add_node(1);
        let order = Rc::new(RefCell::new(Vec::new()));
        let env = node.env(0);
        for number in 0..3 {
            let order = order.clone();
            env.scheduler()
                .spawn(Class::Foreground, "one of three", async move { order.borrow_mut().push(number) });
        }
        sim.run_for(Duration::from_secs(1)).unwrap();
        seen.insert(order.borrow().clone());
    }
    assert_eq!(seen.len(), 6);
}

#[test]
fn classes_share_a_core_by_weight() {
    let sim = Simulation::new(5, Config::default());
    let node = sim.add_node(1);
    let env = node.env(0);
    let counts = Rc::new(Class::ALL.map(|_| Cell::new(0_usize)));
    for class in Class::ALL {
        let (counts, inner) = (counts.clone(), env.clone());
        env.scheduler().spawn(class, "busy", async move {
            loop {
                counts[class as usize].set(counts[class as usize].get() + 1);
                inner.scheduler().yield_now().await;
            }
        });
    }
    let done = || counts.iter().map(Cell::get).sum::<usize>() > 20_000;
    sim.run_until(Duration::from_secs(3600), done).unwrap();
    let background = counts[Class::Background as usize].get();
    let service = counts[Class::Service as usize].get();
    assert!(background > 100, "background work is not starved: {background}");
    assert!((3 * background..5 * background).contains(&service), "{service} against {background}");
}

#[test]
fn a_deadlock_is_reported_with_the_names_of_those_who_wait() {
    let sim = Simulation::new(1, Config::default());
    let node = sim.add_node(1);
    let env = node.env(0);
    env.scheduler().spawn(Class::Service, "waits for ever", async {
        Notify::new().notified().await;
    });
    let stopped = sim.run_until(Duration::from_secs(1), || false);
    assert_eq!(stopped, Err(Stopped::Deadlock("0.0 waits for ever".to_owned())));
}

#[test]
fn a_livelock_ends_at_the_limit_of_steps() {
    let sim = Simulation::new(1, Config { steps_max: 10_000, ..Config::default() });
    let node = sim.add_node(1);
    let inner = node.env(0);
    node.env(0).scheduler().spawn(Class::Service, "spins", async move {
        loop {
            inner.scheduler().yield_now().await;
        }
    });
    let stopped = sim.run_until(Duration::from_secs(3600), || false);
    assert_eq!(stopped, Err(Stopped::StepLimit(10_001)));
}

/// An engine dies under load and comes back: every call ends, the dead life's tasks are dropped, and a new connection
/// reaches the new life.
#[test]
fn calls_to_a_killed_node_end_and_its_next_life_answers() {
    for seed in 0..20 {
        let sim = Simulation::new(seed, Config::default());
        let (engine, client) = (sim.add_node(1), sim.add_node(1));
        let held = Rc::new(());
        let inner = held.clone();
        engine.start(|env| {
            let held = inner.clone();
            async move {
                serve_echo(env).await;
                Notify::new().notified().await;
                drop(held);
            }
        });
        drop(inner);
        let address = engine.address(0);
        let (task_sim, task_engine) = (sim.clone(), engine.clone());
        sim.block_on(&client, |env| async move {
            let endpoint = Endpoint::new(&env, EndpointConfig::default());
            let peer = endpoint.connect(&address).await.unwrap();
            endpoint.call(peer, &echo(Duration::from_secs(1)), &[b"alive"]).await.unwrap();
            let call = echo(Duration::from_millis(20));
            let kill = async {
                let delay = task_sim.choose(1_000_000);
                env.clock().sleep_until(env.clock().now() + Duration::from_nanos(delay)).await;
                task_engine.kill(Loss::Power);
                Err(RpcError::TimedOut)
            };
            type Boxed<'a> =
                std::pin::Pin<Box<dyn Future<Output = Result<daos_xstream::rpc::Reply, RpcError>> + 'a>>;
            let mut calls: Vec<Boxed<'_>> = vec![Box::pin(kill)];
            for _ in 0..300 {
                calls.push(Box::pin(endpoint.call(peer, &call, &[b"x"])));
            }
            for result in join_all(calls).await {
                assert!(matches!(result, Ok(_) | Err(RpcError::TimedOut | RpcError::PeerGone)), "{result:?}");
            }
            let dead = endpoint.connect(&address).await;
            assert!(
                matches!(dead, Err(RpcError::Fabric(FabricError::Unreachable(_)))),
                "a dead node is not to be reached: {dead:?}"
            );
            task_engine.restart();
            task_engine.start(serve_echo);
            let peer = endpoint.connect(&address).await.unwrap();
            let reply = endpoint.call(peer, &call, &[b"again"]).await.unwrap();
            assert_eq!(reply.body(), b"again");
            drop(reply);
            env.clock().sleep_until(env.clock().now() + Duration::from_secs(1)).await;
            assert_eq!(endpoint.load().1, 0, "every call has left its place");
        })
        .unwrap();
        assert_eq!(Rc::strong_count(&held), 1, "the tasks of the dead life were dropped");
    }
}

#[test]
fn a_partition_delays_and_when_it_lasts_it_breaks() {
    let sim = Simulation::new(3, Config::default());
    let (engine, client) = (sim.add_node(1), sim.add_node(1));
    engine.start(serve_echo);
    let address = engine.address(0);
    let world = (sim.clone(), engine.clone(), client.clone());
    sim.block_on(&client, |env| async move {
        let (sim, engine, client) = world;
        let endpoint = Endpoint::new(&env, EndpointConfig::default());
        let peer = endpoint.connect(&address).await.unwrap();
        sim.partition(&engine, &client);
        let late = endpoint.call(peer, &echo(Duration::from_millis(100)), &[b"lost"]).await;
        assert_eq!(late.err(), Some(RpcError::TimedOut));
        sim.heal(&engine, &client);
        endpoint.call(peer, &echo(Duration::from_secs(1)), &[b"here"]).await.unwrap();
        assert_eq!(endpoint.counters().replies_unexpected.get(), 1, "the delayed reply came late");
        sim.partition(&engine, &client);
        let gone = endpoint.call(peer, &echo(Duration::from_secs(60)), &[b"lost"]).await;
        assert_eq!(gone.err(), Some(RpcError::PeerGone));
        assert!(endpoint.connect(&address).await.is_err());
        sim.heal_all();
        let peer = endpoint.connect(&address).await.unwrap();
        endpoint.call(peer, &echo(Duration::from_secs(1)), &[b"here"]).await.unwrap();
    })
    .unwrap();
}

#[test]
fn connections_that_break_at_random_lose_no_call() {
    let config = Config { connection_loss_ppm: 5_000, ..Config::default() };
    let sim = Simulation::new(11, config);
    let (engine, client) = (sim.add_node(1), sim.add_node(1));
    engine.start(serve_echo);
    let address = engine.address(0);
    let (served, failed) = sim
        .block_on(&client, |env| async move {
            let endpoint = Endpoint::new(&env, EndpointConfig::default());
            let (mut served, mut failed) = (0, 0);
            for number in 0..3000_u64 {
                let peer = endpoint.connect(&address).await.unwrap();
                match endpoint.call(peer, &echo(Duration::from_secs(1)), &[&number.to_le_bytes()]).await {
                    Ok(reply) => {
                        assert_eq!(reply.body(), number.to_le_bytes());
                        served += 1;
                    }
                    Err(RpcError::PeerGone | RpcError::TimedOut) => failed += 1,
                    Err(error) => panic!("{error}"),
                }
            }
            (served, failed)
        })
        .unwrap();
    assert!(served > 2500 && failed > 5, "{served} served, {failed} failed");
}
