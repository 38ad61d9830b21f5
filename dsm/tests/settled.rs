//! Nobody is answered before what the answer rests on survives any crash: the power fails at the moment of the answer.
#![cfg(feature = "service")]

mod common;

use std::time::Duration;

use common::{Cluster, POOL_BYTES, label, name};
use daos_dsm::{
    access::Capabilities,
    client::{ContainerHandle, DsmError, OpenOptions, PoolHandle, PoolSpec},
    rpc::{
        container,
        control::{self, Name},
        module,
        object::{UpdateRecord, flags},
    },
};
use daos_types::Epoch;
use daos_xstream::{
    Clock, Either, Env, race,
    rpc::{Call, Opcode, Status},
};
use daos_xstream_sim::{Config, Loss};
use uuid::Uuid;

/// A disk so slow that whoever asks meanwhile is answered before something is durable, if he is answered too early.
fn slow() -> Config {
    Config {
        flush_latency_ns: (5_000_000, 40_000_000),
        write_latency_ns: (1_000_000, 20_000_000),
        ..Config::default()
    }
}

fn status<T>(result: Result<T, DsmError>) -> Option<Status> {
    result.err().map(|error| error.status())
}

/// The repetition of a CLOSE found the handle gone and said so at once, while the first was still being written to the log:
/// after a loss of power the handle was open again, with its hold, and its user thought it closed.
#[test]
fn a_repeated_close_is_answered_when_the_first_is_settled() {
    for seed in 0..30 {
        let cluster = Cluster::with(seed, slow());
        let client = cluster.client();
        let packed = cluster.run(&client, |client| async move {
            client.make().await;
            let pool = client.connect().await;
            let handle = pool.container_open(name("box"), OpenOptions::WRITE).await.expect("opened");
            let packed = (pool.local_to_global(), handle.local_to_global());
            // Asked again and again, as whoever loses all the replies does.
            let again = async {
                loop {
                    let again =
                        ContainerHandle::global_to_local(pool.clone(), &packed.1).expect("the handle");
                    let clock = client.caller.env().clock();
                    clock.sleep_until(clock.now() + Duration::from_millis(2)).await;
                    let patience = clock.now() + Duration::from_millis(1);
                    if let Ok(closed) = daos_xstream::timeout(clock, patience, again.close()).await {
                        return closed;
                    }
                }
            };
            let first =
                ContainerHandle::global_to_local(pool.clone(), &packed.1).expect("the handle").close();
            match race(first, again).await {
                Either::First(closed) | Either::Second(closed) => closed.expect("closed"),
            }
            packed
        });
        cluster.restart(Loss::Power);
        cluster.run(&client, move |client| async move {
            let pool =
                PoolHandle::global_to_local(client.caller.clone(), &packed.0).expect("the pool handle");
            let handle = ContainerHandle::global_to_local(pool, &packed.1).expect("the handle");
            assert_eq!(status(handle.epoch_query().await), Some(Status::BAD_HANDLE), "seed {seed}");
        });
    }
}

/// A container was listed while its making was still being written to the log; after a loss of power it was not there.
#[test]
fn what_is_listed_is_there_for_good() {
    for seed in 0..12 {
        let cluster = Cluster::with(seed, slow());
        let client = cluster.client();
        let maker = cluster.client();
        cluster.run(&client, |client| async move { client.make().await });
        let listed = cluster.run(&maker, |client| async move {
            let pool = client.connect().await;
            let made = async {
                pool.container_create(Some(label("second")), Default::default(), None).await.expect("made");
                std::future::pending::<()>().await;
            };
            let listed = async {
                loop {
                    let listed = pool.list_containers().await.expect("listed");
                    if listed.len() > 1 {
                        return listed;
                    }
                }
            };
            match race(made, listed).await {
                Either::Second(listed) => listed,
                Either::First(()) => unreachable!("it never ends"),
            }
        });
        cluster.restart(Loss::Power);
        cluster.run(&client, move |client| async move {
            let pool = client.connect().await;
            assert_eq!(pool.list_containers().await.expect("listed"), listed, "seed {seed}");
        });
    }
}

/// The repetition of a CLOSE asked every pool of the engine, because nobody knew which one had had the handle: where one had
/// failed, closing a handle of any other could be done once and never again.
#[test]
fn a_repeated_close_asks_no_other_pool() {
    let cluster = Cluster::new(1);
    let engine = cluster.engine.clone();
    cluster.run(&cluster.client(), |client| async move {
        client.make().await;
        let other = PoolSpec { label: Some(label("other")), bytes: POOL_BYTES, ..PoolSpec::default() };
        client.service.pool_create(&other).await.expect("made");
        let (mut handles, mut again) = (Vec::new(), Vec::new());
        for (index, of) in ["tank", "other"].into_iter().enumerate() {
            let pool = client.service.pool_connect(name(of), Capabilities::ALL).await.expect("connected");
            if index == 1 {
                pool.container_create(Some(label("box")), Default::default(), None).await.expect("made");
            }
            let handle = pool.container_open(name("box"), OpenOptions::READ).await.expect("opened");
            let packed = handle.local_to_global();
            again.push(ContainerHandle::global_to_local(pool, &packed).expect("the same handle"));
            handles.push(handle);
        }
        let (other, tank) = (handles.pop().expect("two"), handles.pop().expect("two"));
        let pool = PoolHandle::global_to_local(client.caller.clone(), &other.pool().local_to_global());
        let pool = pool.expect("the same handle");
        other.clone().close().await.expect("closed");
        other.pool().clone().disconnect().await.expect("disconnected");
        engine.disk().set_failed(true);
        tank.close().await.expect_err("it cannot be made durable");
        engine.disk().set_failed(false);
        let [tank, other] = again.try_into().map_err(drop).expect("two");
        other.close().await.expect("it is closed");
        pool.disconnect().await.expect("it is closed");
        tank.close().await.expect_err("that it is closed would not survive a crash");
    });
}

/// The repetition of POOL_DESTROY found no pool and called that a success, and the list had it no more, while its marker was
/// being removed: after a loss of power the pool was back.
#[test]
fn a_pool_that_is_not_listed_any_more_is_gone_for_good() {
    for seed in 0..12 {
        let cluster = Cluster::with(seed, slow());
        let client = cluster.client();
        cluster.run(&client, move |client| async move {
            let spec = PoolSpec { label: Some(label("tank")), bytes: POOL_BYTES, ..PoolSpec::default() };
            let pool = client.service.pool_create(&spec).await.expect("made").uuid;
            let by_uuid = || Name::Uuid(pool);
            let destroyed = async {
                client.service.pool_destroy(by_uuid(), true).await.expect("destroyed");
                std::future::pending::<()>().await;
            };
            let seen = async {
                let clock = client.caller.env().clock();
                clock.sleep_until(clock.now() + Duration::from_micros(500)).await;
                if seed % 2 == 0 {
                    return client.service.pool_destroy(by_uuid(), true).await.expect("destroyed");
                }
                while !client.service.pool_list().await.expect("listed").is_empty() {}
            };
            race(destroyed, seen).await;
        });
        cluster.restart(Loss::Power);
        cluster.run(&client, move |client| async move {
            assert!(client.service.pool_list().await.expect("listed").is_empty(), "seed {seed}");
        });
    }
}

/// A target asked for a handle whose opening was still being written to the log, and was told of it: what was written through
/// it, durably, belonged to nobody after a loss of power. It was never discarded, and a later commit made it visible.
#[test]
fn a_target_hears_of_a_handle_when_it_is_settled() {
    for seed in 0..30 {
        let cluster = Cluster::with(seed, slow());
        let client = cluster.client();
        cluster.run(&client, |client| async move {
            client.make().await;
            let pool = client.connect().await;
            let container = pool.list_containers().await.expect("listed")[0].uuid;
            let (handle, address) = (Uuid::from_u128(77), [client.address.clone()]);
            // A handle of which the client knows before the service has answered.
            let capabilities = Capabilities::READ.with(Capabilities::WRITE);
            let open = control::ContainerOpen {
                pool_handle: pool.handle(),
                container: Name::Uuid(container),
                capabilities,
                hold: true,
                shared: false,
            };
            let global = (handle, container, control::ContainerProperties::default(), capabilities, Epoch(1));
            let known =
                ContainerHandle::global_to_local(pool.clone(), &control::encode(&global)).expect("a handle");
            let opened = async {
                let endpoint = client.caller.endpoint();
                let peer = endpoint.connect(&address[0]).await.expect("connected");
                let opcode = Opcode::new(module::CONTAINER, container::OPEN);
                let call = Call { opcode, handle, timeout: Duration::from_secs(10), ..Call::default() };
                endpoint.call(peer, &call, &[&control::encode(&open)]).await.expect("opened");
                std::future::pending::<()>().await;
            };
            let written = async {
                let (io, clock) = (known.objects(), client.caller.env().clock());
                let record = [UpdateRecord::Value { key: b"stray", value: b"v" }];
                // The other target than that of the pool's records: it has a log of its own.
                let place = common::at(1, common::kv(1));
                while let Err(error) = io.update(place, Epoch(1), flags::DURABLE, b"", &record).await {
                    assert_eq!(error.status(), Status::BAD_HANDLE, "{error}");
                    clock.sleep_until(clock.now() + Duration::from_micros(300)).await;
                }
            };
            race(opened, written).await;
        });
        client.kill(Loss::Process);
        cluster.restart(Loss::Power);
        // The grace of its user passes.
        cluster.sim.run_for(Duration::from_secs(10)).expect("runs");
        let found = cluster.run(&cluster.client(), |client| async move {
            let handle = client.open(OpenOptions::READ).await;
            common::get(&handle.objects(), 1, u64::MAX - 2, "stray").await
        });
        assert_eq!(found, None, "seed {seed}");
    }
}
