//! Pools: made on all targets or on none, listed, destroyed, over failures; who may do what.
#![cfg(feature = "service")]

mod common;

use std::time::Duration;

use common::{Cluster, POOL_BYTES, label, name};
use daos_dsm::{
    access::Capabilities,
    client::{DsmError, OpenOptions, PoolSpec},
    service::{Batch, Rdb, Table, Target},
};
use daos_types::Epoch;
use daos_xstream::{Clock, Env, rpc::Status};
use daos_xstream_sim::{Config, Loss};
use uuid::Uuid;

fn spec(text: &str) -> PoolSpec {
    PoolSpec { label: Some(label(text)), bytes: POOL_BYTES, ..PoolSpec::default() }
}

fn status<T>(result: Result<T, DsmError>) -> Option<Status> {
    result.err().map(|error| error.status())
}

fn pool_files(cluster: &Cluster) -> usize {
    cluster.engine.disk().files().iter().filter(|(path, _)| path.contains("pools/")).count()
}

#[test]
fn pools_come_and_go_and_leave_nothing() {
    let mut cluster = Cluster::new(1);
    cluster.config.bytes = 3 * POOL_BYTES;
    cluster.restart(Loss::Process);
    let client = cluster.client();
    cluster.run(&client, |client| async move {
        let made = client.service.pool_create(&spec("tank")).await.expect("a pool");
        assert_eq!((made.targets, made.bytes), (2, POOL_BYTES));
        client.service.pool_create(&spec("second")).await.expect("another");
        assert_eq!(status(client.service.pool_create(&spec("tank")).await), Some(Status::EXISTS));
        let large = PoolSpec { bytes: 2 * POOL_BYTES, ..spec("third") };
        assert_eq!(status(client.service.pool_create(&large).await), Some(Status::NO_SPACE));
        let small = PoolSpec { bytes: 1 << 20, ..spec("third") };
        assert_eq!(status(client.service.pool_create(&small).await), Some(Status::INVALID));
        assert_eq!(client.service.pool_list().await.expect("listed").len(), 2);
        let storage = client.service.storage_query().await.expect("queried");
        assert_eq!((storage.bytes_in_pools, storage.targets.len()), (2 * POOL_BYTES, 2));
        assert!(storage.targets.iter().all(|target| target.scm_bytes_free > 0));
    });
    cluster.restart(Loss::Power);
    cluster.run(&client, |client| async move {
        assert_eq!(client.service.pool_list().await.expect("listed").len(), 2, "both are there");
        let pool = client.connect().await;
        assert_eq!(pool.query(true).await.expect("queried").space.len(), 2);
        assert_eq!(status(client.service.pool_destroy(name("tank"), false).await), Some(Status::IN_USE));
        client.service.pool_destroy(name("tank"), true).await.expect("destroyed");
        assert_eq!(status(pool.query(false).await), Some(Status::BAD_HANDLE));
        client.service.pool_destroy(name("second"), false).await.expect("destroyed");
        let missing = client.service.pool_connect(name("tank"), Capabilities::READ).await;
        assert_eq!(status(missing), Some(Status::NOT_FOUND));
    });
    assert_eq!(pool_files(&cluster), 0);
}

/// The power fails at a random moment while a pool is made or destroyed: after the restart the pool is there as a whole, or
/// not at all and without a file. The client, who repeats its request, gets what it wanted.
#[test]
fn a_pool_is_never_half_made() {
    let mut outcomes = [0; 2];
    for seed in 0..24 {
        let cluster = Cluster::new(seed);
        let client = cluster.client();
        cluster.run(&client, |client| async move { drop(client) });
        let address = cluster.engine.address(0);
        client.start(move |env| {
            let address = address.clone();
            async move {
                let endpoint = daos_xstream::rpc::Endpoint::of(&env).expect("made before");
                let identity = daos_dsm::access::Identity { uid: 1000, gid: 1000 };
                let config = daos_dsm::client::ClientConfig::new(identity);
                let caller = daos_dsm::client::Caller::new(endpoint, config);
                let service = daos_dsm::client::Service::new(caller, vec![address]);
                for _ in 0..20 {
                    service.pool_create(&spec("tank")).await.expect("made");
                    env.clock().sleep_until(env.clock().now() + Duration::from_millis(5)).await;
                    service.pool_destroy(name("tank"), true).await.expect("destroyed");
                }
            }
        });
        cluster.sim.run_for(Duration::from_micros(500 + cluster.sim.choose(100_000))).expect("runs");
        client.kill(Loss::Process);
        cluster.restart(Loss::Power);
        let files = pool_files(&cluster);
        let other = cluster.client();
        let listed = cluster.run(&other, |client| async move {
            let pools = client.service.pool_list().await.expect("listed");
            if !pools.is_empty() {
                // As a whole: it can be used.
                let pool = client.connect().await;
                pool.container_create(Some(label("box")), Default::default(), None).await.expect("made");
                let handle =
                    pool.container_open(name("box"), OpenOptions::NO_TRANSACTION).await.expect("opened");
                for target in 0..2 {
                    common::put(&handle.objects(), target, 1, "a", b"v").await.expect("written");
                }
            }
            pools.len()
        });
        assert_eq!(listed > 0, files > 0, "files without a pool, or a pool without files");
        outcomes[listed] += 1;
    }
    assert!(outcomes[0] > 2 && outcomes[1] > 2, "both happened: {outcomes:?}");
}

#[test]
fn a_device_that_is_full_refuses_a_pool_and_keeps_nothing_of_it() {
    let cluster = Cluster::new(2);
    let client = cluster.client();
    cluster.engine.disk().set_capacity(1 << 20);
    cluster.run(&client, |client| async move {
        let refused = client.service.pool_create(&spec("tank")).await.expect_err("too large");
        assert!(matches!(refused, DsmError::Refused { .. }), "{refused}");
        assert!(client.service.pool_list().await.expect("listed").is_empty());
    });
    assert_eq!(pool_files(&cluster), 0);
    cluster.engine.disk().set_capacity(u64::MAX);
    cluster.run(&client, |client| async move {
        client.service.pool_create(&spec("tank")).await.expect("there is room now");
    });
}

#[test]
fn lists_decide_who_may_do_what() {
    let cluster = Cluster::new(3);
    cluster.run(&cluster.client(), |client| async move {
        client.make().await;
        let pool = client.connect().await;
        // This client is user 1000, who owns the pool; the list leaves that user nothing but to read and to change it.
        pool.set_acl("A::OWNER@:rA".parse().expect("a list")).await.expect("set");
        let refused = client.service.pool_connect(name("tank"), Capabilities::WRITE).await;
        assert_eq!(status(refused), Some(Status::ACCESS_DENIED));
        let reader = client.service.pool_connect(name("tank"), Capabilities::READ).await.expect("connected");
        let refused = reader.container_create(None, Default::default(), None).await;
        assert_eq!(status(refused), Some(Status::NOT_PERMITTED));
        let refused = reader.container_open(name("box"), OpenOptions::WRITE).await;
        assert_eq!(status(refused), Some(Status::NOT_PERMITTED));
        let handle = reader.container_open(name("box"), OpenOptions::READ).await.expect("opened");
        let refused = common::put(&handle.objects(), 0, u64::MAX - 2, "a", b"v").await;
        assert!(refused.is_err());
    });
}

/// Lists that are longer than a message come in pieces, and come whole.
#[test]
fn lists_longer_than_a_message_are_whole() {
    let cluster = Cluster::with(4, Config { message_bytes_max: 1024, ..Config::default() });
    cluster.run(&cluster.client(), |client| async move {
        let mut labels: Vec<String> = (0..9).map(|number| format!("{}{number}", "p".repeat(126))).collect();
        for label in &labels {
            let spec =
                PoolSpec { label: Some(label.parse().expect("a label")), bytes: 32 << 20, ..spec("x") };
            client.service.pool_create(&spec).await.expect("a pool");
        }
        let listed = client.service.pool_list().await.expect("listed");
        let mut found: Vec<_> =
            listed.into_iter().map(|pool| pool.label.expect("it has one").to_string()).collect();
        found.sort_unstable();
        assert_eq!(found, labels);

        let pool = client.service.pool_connect(name(&labels[0]), Capabilities::ALL).await.expect("connected");
        for label in &mut labels {
            label.replace_range(..1, "c");
            let made = pool.container_create(Some(label.parse().expect("a label")), Default::default(), None);
            made.await.expect("made");
        }
        let listed = pool.list_containers().await.expect("listed");
        let mut found: Vec<_> =
            listed.into_iter().map(|entry| entry.label.expect("it has one").to_string()).collect();
        found.sort_unstable();
        assert_eq!(found, labels);

        let handle =
            pool.container_open(name(&labels[3]), OpenOptions::NO_TRANSACTION).await.expect("opened");
        assert_eq!(handle.snapshots().await.expect("listed"), []);
        handle.flush(Epoch(2000)).await.expect("flushed");
        handle.commit(Epoch(2000)).await.expect("committed");
        // Numbers of two bytes on the wire.
        let snapshots: Vec<_> = (1000..1600).map(Epoch).collect();
        for epoch in &snapshots {
            handle.snapshot_create(*epoch).await.expect("taken");
        }
        assert_eq!(handle.snapshots().await.expect("listed"), snapshots);

        assert_eq!(handle.attributes_get(vec![]).await.expect("read"), []);
        let value = |number: usize| vec![number as u8; 100 + number];
        let mut attributes = Vec::new();
        for number in 0..40 {
            let attribute = (format!("{}{number:02}", "n".repeat(80)), value(number));
            let change = vec![(attribute.0.clone(), Some(attribute.1.clone()))];
            handle.attributes_set(change).await.expect("set");
            attributes.push(attribute);
        }
        assert_eq!(handle.attributes_get(vec![]).await.expect("read"), attributes);
        let mut names: Vec<_> = attributes.iter().rev().map(|(name, _)| name.clone()).collect();
        names.extend(["absent".to_owned(), "z".repeat(81), names[7].clone()]);
        assert_eq!(handle.attributes_get(names).await.expect("read"), attributes);
        let none = handle.attributes_get(vec!["absent".to_owned()]).await.expect("read");
        assert_eq!(none, []);
        let long = vec![("x".repeat(600), Some(vec![]))];
        assert_eq!(status(handle.attributes_set(long).await), Some(Status::INVALID));
    });
}

/// Before its UUID was refused, a client could make a container with the UUID of the pool's own: it was listed, and could
/// neither be opened nor destroyed. The next start forgets it, and keeps everything else.
#[test]
fn a_container_with_the_reserved_uuid_is_forgotten_at_the_next_start() {
    const RESERVED: Uuid = Uuid::from_u128(0xda05_0000_0000_0000_0000_0000_0000_0001);
    let cluster = Cluster::new(5);
    let client = cluster.client();
    let (pool, container) = cluster.run(&client, |client| async move {
        client.make().await;
        let handle = client.open(OpenOptions::NO_TRANSACTION).await;
        common::put(&handle.objects(), 0, handle.held().0, "a", b"v").await.expect("written");
        handle.flush(handle.held()).await.expect("flushed");
        handle.commit(handle.held()).await.expect("committed");
        (handle.pool().pool(), handle.container())
    });
    let planted = cluster.sim.block_on(&cluster.engine, move |env| async move {
        let vpool = Target::of(&env).await.vpool(pool).expect("the vpool");
        let rdb = Rdb::open(&vpool).expect("the records");
        let mut batch = Batch::default();
        let key = |letter: &[u8], uuid: Uuid| [letter, uuid.as_bytes()].concat();
        for letter in [b"c ", b"e "] {
            let record = rdb.get(Table::Main, &key(letter, container)).expect("read").expect("a record");
            batch.put(Table::Main, key(letter, RESERVED), record);
        }
        rdb.submit(&batch).expect("planted");
        rdb.settled().await.expect("settled");
    });
    planted.expect("ends");
    for _ in 0..2 {
        cluster.restart(Loss::Power);
        cluster.run(&client, move |client| async move {
            let pool = client.connect().await;
            let listed: Vec<_> = pool.list_containers().await.expect("listed");
            assert_eq!(listed.iter().map(|entry| entry.uuid).collect::<Vec<_>>(), [container]);
            let handle = pool.container_open(name("box"), OpenOptions::READ).await.expect("opened");
            let read = common::get(&handle.objects(), 0, u64::MAX - 2, "a").await;
            assert_eq!(read, Some(b"v".to_vec()));
        });
    }
}

/// The marker of a pool was taken away and the media then failed, so that the destruction was answered with an error and the pool
/// went on being served: until the next start, which found no marker and removed all that had been acknowledged since.
#[test]
fn a_pool_whose_destruction_failed_is_served_no_more() {
    let cluster = Cluster::new(3);
    let engine = cluster.engine.clone();
    let client = cluster.client();
    cluster.run(&client, |client| async move {
        client.make().await;
        let handle = client.open(OpenOptions::WRITE).await;
        let epoch = handle.hold(Epoch(0)).await.expect("held").lhe;
        let io = handle.objects();
        common::put(&io, 0, epoch.0, "a", b"before").await.expect("written");
        handle.flush(epoch).await.expect("flushed");
        handle.commit(epoch).await.expect("committed");
        engine.disk().set_failed(true);
        assert!(client.service.pool_destroy(name("tank"), true).await.is_err());
        engine.disk().set_failed(false);
        let later = epoch.next();
        let written = common::put(&io, 0, later.0, "a", b"after").await;
        assert!(written.is_err() || handle.flush(later).await.is_err(), "nothing is acknowledged any more");
        assert!(handle.commit(later).await.is_err());
        assert!(client.service.pool_connect(name("tank"), Capabilities::ALL).await.is_err());
    });
    // Here the marker was still there, so the pool is, with all that was acknowledged.
    cluster.restart(Loss::Power);
    cluster.run(&cluster.client(), |client| async move {
        let handle = client.open(OpenOptions::READ).await;
        let read = common::get(&handle.objects(), 0, u64::MAX - 2, "a").await;
        assert_eq!(read, Some(b"before".to_vec()));
    });
}
