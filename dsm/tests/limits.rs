//! How much clients may make an engine hold, and what pools that are being made have reserved.
#![cfg(feature = "service")]

mod common;

use common::{Cluster, POOL_BYTES, label, name};
use daos_dsm::{
    access::Capabilities,
    client::{DsmError, OpenOptions, PoolSpec},
    service::Limits,
};
use daos_types::Epoch;
use daos_xstream::{both, join_all, rpc::Status};
use daos_xstream_sim::Loss;

fn refused<T>(result: Result<T, DsmError>) -> bool {
    matches!(result, Err(DsmError::Refused { status: Status::LIMIT_REACHED, .. }))
}

/// Nothing bounded what one client could make a pool hold, in memory and on media: handles, containers, snapshots, attributes.
#[test]
fn a_pool_holds_so_much_of_each_kind_and_no_more() {
    let mut cluster = Cluster::new(1);
    cluster.config.limits =
        Limits { pool_handles: 3, containers: 2, container_handles: 4, snapshots: 3, attributes: 5 };
    cluster.restart(Loss::Process);
    cluster.run(&cluster.client(), |client| async move {
        client.make().await;
        let pool = client.connect().await;
        let second = client.connect().await;
        client.connect().await;
        let full = client.service.pool_connect(name("tank"), Capabilities::READ).await;
        let error = full.err().expect("too many");
        assert!(error.to_string().contains("no more than 3"), "{error}");
        second.disconnect().await.expect("disconnected");
        client.connect().await;

        let other = pool.container_create(None, Default::default(), None).await.expect("made");
        assert!(refused(pool.container_create(None, Default::default(), None).await));
        let name_of_other = daos_dsm::rpc::control::Name::Uuid(other);
        pool.container_destroy(name_of_other, false).await.expect("destroyed");
        pool.container_create(None, Default::default(), None).await.expect("there is room again");

        let mut handles = Vec::new();
        for _ in 0..4 {
            handles.push(pool.container_open(name("box"), OpenOptions::WRITE).await.expect("opened"));
        }
        assert!(refused(pool.container_open(name("box"), OpenOptions::WRITE).await));
        handles.pop().expect("a handle").close().await.expect("closed");
        let handle = pool.container_open(name("box"), OpenOptions::NO_TRANSACTION).await.expect("opened");

        handle.flush(Epoch(9)).await.expect("flushed");
        handle.commit(Epoch(9)).await.expect("committed");
        for epoch in [2, 4, 6, 4] {
            handle.snapshot_create(Epoch(epoch)).await.expect("taken, or taken before");
        }
        assert!(refused(handle.snapshot_create(Epoch(8)).await));
        handle.snapshot_destroy(Epoch(2)).await.expect("given up");
        handle.snapshot_create(Epoch(8)).await.expect("taken");

        let set = |number: u32| (format!("name{number}"), Some(vec![number as u8]));
        handle.attributes_set((0..4).map(set).collect()).await.expect("set");
        // All or none, counted as they will be then.
        assert!(refused(handle.attributes_set((3..6).map(set).collect()).await));
        assert_eq!(handle.attributes_get(vec![]).await.expect("read").len(), 4);
        let swapped = vec![("name0".to_owned(), None), set(7), set(1), set(8)];
        handle.attributes_set(swapped).await.expect("set");
        assert_eq!(handle.attributes_get(vec![]).await.expect("read").len(), 5);
    });
}

/// Pools that were made at one time were not counted for each other: two could get one label, and together more bytes than
/// there are.
#[test]
fn pools_that_are_being_made_have_their_label_and_bytes() {
    for seed in 0..12 {
        let mut cluster = Cluster::new(seed);
        cluster.config.bytes = 3 * POOL_BYTES;
        cluster.restart(Loss::Process);
        cluster.run(&cluster.client(), |client| async move {
            let spec = |text| PoolSpec { label: Some(label(text)), bytes: POOL_BYTES, ..PoolSpec::default() };
            let (one, same) = (spec("tank"), spec("tank"));
            let (first, second) =
                both(client.service.pool_create(&one), client.service.pool_create(&same)).await;
            let errors: Vec<_> = [first, second].into_iter().filter_map(Result::err).collect();
            assert_eq!(errors.iter().map(DsmError::status).collect::<Vec<_>>(), [Status::EXISTS]);
            assert_eq!(client.service.pool_list().await.expect("listed").len(), 1);
            let specs: Vec<_> = ["a", "b", "c", "d"].into_iter().map(spec).collect();
            let made = join_all(specs.iter().map(|spec| client.service.pool_create(spec))).await;
            let errors: Vec<_> = made.into_iter().filter_map(Result::err).collect();
            assert_eq!(errors.iter().map(DsmError::status).collect::<Vec<_>>(), [Status::NO_SPACE; 2]);
            let storage = client.service.storage_query().await.expect("asked");
            assert_eq!(storage.bytes_in_pools, 3 * POOL_BYTES);
            // What is destroyed has its bytes until its files are gone.
            let (gone, made) =
                both(client.service.pool_destroy(name("tank"), false), client.service.pool_create(&one))
                    .await;
            gone.expect("destroyed");
            let made = made.map_err(|error| error.status());
            assert!(matches!(made, Ok(_) | Err(Status::EXISTS)), "{made:?}");
        });
    }
}
