//! Handles and epochs over crashes of engine and client, in the simulator.
#![cfg(feature = "service")]

mod common;

use std::{pin::Pin, time::Duration};

use common::{Cluster, get, put};
use daos_dsm::client::{ContainerHandle, DsmError, OpenOptions};
use daos_types::{Epoch, EpochRange};
use daos_xstream::{Clock, Env, join_all, rpc::Status};
use daos_xstream_sim::{Config, Loss};

fn status<T>(result: Result<T, DsmError>) -> Option<Status> {
    result.err().map(|error| error.status())
}

#[test]
fn what_is_committed_can_be_read_by_others() {
    let cluster = Cluster::new(1);
    let (writer, reader) = (cluster.client(), cluster.client());
    cluster.run(&writer, |client| async move {
        client.make().await;
        let handle = client.open(OpenOptions::WRITE).await;
        let io = handle.objects();
        assert_eq!(status(put(&io, 0, 1, "a", b"1").await), Some(Status::BAD_EPOCH), "nothing is held");
        assert_eq!(handle.hold(Epoch(0)).await.expect("held").lhe, Epoch(1));
        for target in 0..2 {
            put(&io, target, 1, "a", b"one").await.expect("written");
            put(&io, target, 1, "a", b"one").await.expect("written again: the same");
        }
        assert_eq!(status(handle.commit(Epoch(1)).await), Some(Status::NOT_FLUSHED));
        handle.flush(Epoch(1)).await.expect("flushed");
        let state = handle.commit(Epoch(1)).await.expect("committed");
        assert_eq!((state.hce, state.lhe, state.container_hce), (Epoch(1), Epoch(2), Epoch(1)));
        put(&io, 0, 2, "a", b"two").await.expect("written");
        handle.snapshot_create(Epoch(1)).await.expect("a snapshot");
        assert_eq!(status(handle.snapshot_create(Epoch(2)).await), Some(Status::BAD_EPOCH));
        assert_eq!(handle.snapshots().await.expect("listed"), [Epoch(1)]);
        handle.attributes_set(vec![("x".into(), Some(b"y".to_vec()))]).await.expect("set");
        assert_eq!(handle.attributes_get(vec![]).await.expect("read"), [("x".into(), b"y".to_vec())]);
        handle.close().await.expect("closed");
    });
    cluster.run(&reader, |client| async move {
        let handle = client.open(OpenOptions::READ).await;
        let io = handle.objects();
        for target in 0..2 {
            assert_eq!(get(&io, target, 1, "a").await.as_deref(), Some(b"one".as_slice()));
            let newest = get(&io, target, u64::MAX, "a").await;
            assert_eq!(newest.as_deref(), Some(b"one".as_slice()), "epoch 2 was discarded by the close");
        }
        assert_eq!(status(handle.hold(Epoch(0)).await), Some(Status::NOT_PERMITTED), "opened to read");
    });
}

/// For many seeds: a writer commits epochs, the power fails at a random moment, and afterwards every epoch is there on both
/// targets or on none, and at least those whose commit was answered are.
#[test]
fn epochs_are_whole_after_power_is_lost() {
    let mut commits_seen = [0; 2];
    for seed in 0..12 {
        let cluster = Cluster::new(seed);
        let (writer, reader) = (cluster.client(), cluster.client());
        cluster.run(&writer, |client| async move { client.make().await });
        let committed = std::rc::Rc::new(std::cell::Cell::new(0));
        let progress = committed.clone();
        let address = cluster.engine.address(0);
        writer.start(move |env| {
            let (progress, address) = (progress.clone(), address.clone());
            async move {
                let endpoint = daos_xstream::rpc::Endpoint::of(&env).expect("made before");
                let identity = daos_dsm::access::Identity { uid: 1000, gid: 1000 };
                let config = daos_dsm::client::ClientConfig::new(identity);
                let caller = daos_dsm::client::Caller::new(endpoint, config);
                let service = daos_dsm::client::Service::new(caller.clone(), vec![address.clone()]);
                let handle =
                    common::Client { caller, service, address }.open(OpenOptions::NO_TRANSACTION).await;
                let io = handle.objects();
                for epoch in 1..40 {
                    for target in 0..2 {
                        put(&io, target, epoch, "a", &epoch.to_le_bytes()).await.expect("written");
                    }
                    handle.flush(Epoch(epoch)).await.expect("flushed");
                    handle.commit(Epoch(epoch)).await.expect("committed");
                    progress.set(epoch);
                }
            }
        });
        let moment = Duration::from_micros(2_000 + cluster.sim.choose(60_000));
        cluster.sim.run_for(moment).expect("runs");
        let answered = committed.get();
        commits_seen[usize::from(answered > 0)] += 1;
        writer.kill(Loss::Process);
        cluster.restart(Loss::Power);
        cluster.sim.run_for(Duration::from_secs(10)).expect("the grace of the dead passes");
        let sane = cluster.run(&reader, move |client| async move {
            let handle = client.open(OpenOptions::READ).await;
            let query = handle.query().await.expect("queried");
            let hce = query.epochs.container_hce.0;
            assert_eq!(query.handles, 1, "the dead writer's handle is gone");
            assert!(hce >= answered, "a commit was answered for epoch {answered}, and {hce} is there");
            for epoch in 1..=hce {
                for target in 0..2 {
                    let value = get(&handle.objects(), target, epoch, "a").await;
                    assert_eq!(value, Some(epoch.to_le_bytes().to_vec()), "epoch {epoch} on target {target}");
                }
            }
            let expected = (hce > 0).then(|| hce.to_le_bytes().to_vec());
            for target in 0..2 {
                let newest = get(&handle.objects(), target, u64::MAX, "a").await;
                assert_eq!(newest, expected, "nothing uncommitted is left on target {target}");
            }
            true
        });
        assert!(sane);
    }
    assert!(commits_seen[1] > 4, "the crash came too early to test anything: {commits_seen:?}");
}

#[test]
fn a_client_that_lives_keeps_its_handle_over_a_restart_but_must_write_uncommitted_epochs_again() {
    let cluster = Cluster::new(3);
    let writer = cluster.client();
    let packed = cluster.run(&writer, |client| async move {
        client.make().await;
        let handle = client.open(OpenOptions::NO_TRANSACTION).await;
        let io = handle.objects();
        put(&io, 1, 1, "a", b"kept").await.expect("written");
        handle.flush(Epoch(1)).await.expect("flushed");
        handle.commit(Epoch(1)).await.expect("committed");
        put(&io, 1, 2, "a", b"not flushed").await.expect("written");
        (handle.pool().local_to_global(), handle.local_to_global())
    });
    cluster.restart(Loss::Power);
    cluster.run(&writer, |client| async move {
        let pool =
            daos_dsm::client::PoolHandle::global_to_local(client.caller.clone(), &packed.0).expect("rebuilt");
        let handle = daos_dsm::client::ContainerHandle::global_to_local(pool, &packed.1).expect("rebuilt");
        let io = handle.objects();
        // The target has to ask the service for the handle.
        put(&io, 1, 2, "b", b"after the restart").await.expect("written");
        assert_eq!(handle.flush(Epoch(2)).await, Err(DsmError::Interrupted));
        assert_eq!(handle.commit(Epoch(2)).await.map(drop), Err(DsmError::Interrupted));
        assert_eq!(get(&io, 1, 1, "a").await.as_deref(), Some(b"kept".as_slice()));
        handle.discard(EpochRange { low: Epoch(2), high: Epoch::MAX }).await.expect("discarded");
        assert_eq!(get(&io, 1, u64::MAX, "b").await, None);
        put(&io, 1, 2, "a", b"again").await.expect("written");
        handle.flush(Epoch(2)).await.expect("flushed");
        handle.commit(Epoch(2)).await.expect("committed");
        assert_eq!(get(&io, 1, 2, "a").await.as_deref(), Some(b"again".as_slice()));
    });
}

#[test]
fn a_dead_clients_handle_is_revoked_everywhere_and_its_hold_blocks_nobody() {
    let cluster = Cluster::new(4);
    let (dying, living) = (cluster.client(), cluster.client());
    let packed = cluster.run(&dying, |client| async move {
        client.make().await;
        let handle = client.open(OpenOptions::NO_TRANSACTION).await;
        put(&handle.objects(), 0, 1, "a", b"lost").await.expect("written");
        (handle.pool().local_to_global(), handle.local_to_global())
    });
    cluster.run(&living, |client| async move {
        let handle = client.open(OpenOptions::WRITE).await;
        handle.hold(Epoch(5)).await.expect("held");
        handle.flush(Epoch(5)).await.expect("flushed");
        let state = handle.commit(Epoch(5)).await.expect("committed");
        assert_eq!(state.container_hce, Epoch(0), "the other handle holds epoch 1");
    });
    dying.kill(Loss::Process);
    cluster.run(&living, move |client| async move {
        let handle = client.open(OpenOptions::READ).await;
        handle.wait(Epoch(5)).await.expect("committed once the dead one's hold is gone");
        assert_eq!(get(&handle.objects(), 0, u64::MAX, "a").await, None, "what it wrote is gone");
        let pool =
            daos_dsm::client::PoolHandle::global_to_local(client.caller.clone(), &packed.0).expect("rebuilt");
        let stolen = daos_dsm::client::ContainerHandle::global_to_local(pool, &packed.1).expect("rebuilt");
        for target in 0..2 {
            let result = put(&stolen.objects(), target, 9, "a", b"x").await;
            assert_eq!(status(result), Some(Status::BAD_HANDLE), "target {target}");
        }
        assert_eq!(status(stolen.epoch_query().await), Some(Status::BAD_HANDLE));
    });
}

#[test]
fn conflicting_epochs_are_refused_and_several_containers_commit_together() {
    let cluster = Cluster::new(5);
    cluster.run(&cluster.client(), |client| async move {
        client.make().await;
        let pool = client.connect().await;
        pool.container_create(Some(common::label("other")), Default::default(), None).await.expect("made");
        let one =
            pool.container_open(common::name("box"), OpenOptions::NO_TRANSACTION).await.expect("opened");
        let two =
            pool.container_open(common::name("box"), OpenOptions::NO_TRANSACTION).await.expect("opened");
        let other =
            pool.container_open(common::name("other"), OpenOptions::NO_TRANSACTION).await.expect("opened");
        put(&one.objects(), 0, 1, "a", b"one").await.expect("written");
        let conflict = put(&two.objects(), 0, 1, "a", b"two").await;
        assert_eq!(status(conflict), Some(Status::EPOCH_CONFLICT));
        put(&two.objects(), 0, 2, "a", b"two").await.expect("written");
        put(&other.objects(), 0, 1, "a", b"other").await.expect("another container");
        let commits = [(&one, Epoch(1)), (&other, Epoch(1))];
        one.flush(Epoch(1)).await.expect("flushed");
        let refused = daos_dsm::client::ContainerHandle::commit_all(&pool, &commits).await;
        assert_eq!(status(refused), Some(Status::NOT_FLUSHED), "one of the two is not flushed");
        assert_eq!(one.epoch_query().await.expect("queried").hce, Epoch(0), "none of the two");
        other.flush(Epoch(1)).await.expect("flushed");
        let states = daos_dsm::client::ContainerHandle::commit_all(&pool, &commits).await.expect("committed");
        assert_eq!(states.iter().map(|state| state.hce).collect::<Vec<_>>(), [Epoch(1), Epoch(1)]);
        assert_eq!(pool.list_containers().await.expect("listed").len(), 2);
        assert_eq!(status(pool.container_destroy(common::name("box"), false).await), Some(Status::IN_USE));
        pool.container_destroy(common::name("box"), true).await.expect("destroyed");
        assert_eq!(status(put(&one.objects(), 0, 5, "a", b"x").await), Some(Status::BAD_HANDLE));
        assert_eq!(pool.list_containers().await.expect("listed").len(), 1);
    });
}

/// Connections break all the time: every call is repeated until it succeeds, and nothing is done twice or half.
#[test]
fn work_goes_on_over_a_network_that_loses_connections() {
    for seed in 0..6 {
        let cluster = Cluster::with(seed, Config { connection_loss_ppm: 10_000, ..Config::default() });
        cluster.run(&cluster.client(), |client| async move {
            client.make().await;
            let handle = client.open(OpenOptions::NO_TRANSACTION).await;
            let io = handle.objects();
            for epoch in 1..20 {
                for target in 0..2 {
                    put(&io, target, epoch, "a", &epoch.to_le_bytes()).await.expect("written");
                }
                handle.flush(Epoch(epoch)).await.expect("flushed");
                let state = handle.commit(Epoch(epoch)).await.expect("committed");
                assert_eq!(state.container_hce, Epoch(epoch));
            }
            for epoch in 1..20 {
                let value = get(&io, 1, epoch, "a").await;
                assert_eq!(value, Some(epoch.to_le_bytes().to_vec()));
            }
            handle.close().await.expect("closed");
        });
    }
}

/// A client lost its connection and came back. From then on it used its container handle only, and never its pool handle: the
/// service took the pool handle for unused, evicted it after the time of grace, and with it the container handle and
/// all that was not committed. Found by the cluster simulator.
#[test]
fn a_pool_handle_lives_as_long_as_a_container_handle_opened_with_it_is_used() {
    let world = Config { partition_breaks_ns: (100_000_000, 200_000_000), ..Config::default() };
    let cluster = Cluster::with(4, world);
    let node = cluster.client();
    let (sim, engine, cut_off) = (cluster.sim.clone(), cluster.engine.clone(), node.clone());
    cluster.run(&node, |client| async move {
        client.make().await;
        let handle = client.open(OpenOptions::NO_TRANSACTION).await;
        let env = client.caller.env().clone();
        let pause = |time| env.clock().sleep_until(env.clock().now() + time);
        sim.partition(&cut_off, &engine);
        pause(Duration::from_millis(400)).await;
        sim.heal(&cut_off, &engine);
        for _ in 0..30 {
            pause(Duration::from_millis(400)).await;
            handle.epoch_query().await.expect("a handle in use");
        }
        handle.pool().clone().disconnect().await.expect("the pool handle is there too");
    });
}

type Boxed<'a> = Pin<Box<dyn Future<Output = Result<(), DsmError>> + 'a>>;

/// A write that came after the flush of its epoch used to be committed without being durable, and one that came after the
/// commit changed a committed epoch.
#[test]
fn a_write_after_the_flush_needs_another_flush_and_one_after_the_commit_is_refused() {
    let cluster = Cluster::new(8);
    let (writer, reader) = (cluster.client(), cluster.client());
    cluster.run(&writer, |client| async move {
        client.make().await;
        let handle = client.open(OpenOptions::NO_TRANSACTION).await;
        let io = handle.objects();
        // Another process of the group, which does not hear of what this one commits.
        let (pool, packed) = (handle.pool().clone(), handle.local_to_global());
        let other = ContainerHandle::global_to_local(pool, &packed).expect("rebuilt").objects();
        put(&io, 0, 1, "a", b"1").await.expect("written");
        handle.flush(Epoch(5)).await.expect("flushed");
        put(&io, 1, 3, "b", b"3").await.expect("written, and the flush counts no more");
        assert_eq!(status(handle.commit(Epoch(5)).await), Some(Status::NOT_FLUSHED));
        assert_eq!(status(handle.commit(Epoch(3)).await), Some(Status::NOT_FLUSHED));
        handle.commit(Epoch(2)).await.expect("what lies before the late write is flushed");
        for target in 0..2 {
            assert_eq!(status(put(&io, target, 2, "c", b"late").await), Some(Status::BAD_EPOCH));
            // Not only this client refuses it.
            assert_eq!(status(put(&other, target, 2, "c", b"late").await), Some(Status::BAD_EPOCH));
        }
        handle.flush(Epoch(5)).await.expect("flushed");
        handle.commit(Epoch(5)).await.expect("committed");
        put(&io, 0, 6, "d", b"6").await.expect("written");
    });
    // Before, during and after a flush: what is committed afterwards is durable.
    let mut outcomes = [0; 2];
    for round in 0..40 {
        let moments = [(); 2].map(|()| Duration::from_micros(cluster.sim.choose(2000)));
        let base = 7 + 10 * round;
        let outcome = cluster.run(&writer, move |client| async move {
            let handle = client.open(OpenOptions::WRITE).await;
            handle.hold(Epoch(base)).await.expect("held");
            let io = handle.objects();
            put(&io, 0, base, "first", &[round as u8]).await.expect("written");
            let env = client.caller.env().clone();
            let late = async {
                env.clock().sleep_until(env.clock().now() + moments[0]).await;
                put(&io, 1, base, &format!("late {round}"), &[round as u8]).await
            };
            let flush = async {
                env.clock().sleep_until(env.clock().now() + moments[1]).await;
                handle.flush(Epoch(base)).await.map(drop)
            };
            let both: [Boxed<'_>; 2] = [Box::pin(flush), Box::pin(late)];
            for result in join_all(both).await {
                result.expect("both work");
            }
            let committed = handle.commit(Epoch(base)).await;
            (committed.is_ok(), status(committed))
        });
        writer.kill(Loss::Process);
        writer.restart();
        cluster.restart(Loss::Power);
        cluster.sim.run_for(Duration::from_secs(10)).expect("the grace of the dead passes");
        let (committed, status) = outcome;
        assert!(committed || status == Some(Status::NOT_FLUSHED), "{status:?}");
        outcomes[usize::from(committed)] += 1;
        cluster.run(&reader, move |client| async move {
            let handle = client.open(OpenOptions::READ).await;
            let late = get(&handle.objects(), 1, base, &format!("late {round}")).await;
            assert_eq!(late, committed.then(|| vec![round as u8]), "round {round}");
            handle.close().await.expect("closed");
        });
    }
    assert!(outcomes[0] > 2 && outcomes[1] > 2, "both happened: {outcomes:?}");
}
