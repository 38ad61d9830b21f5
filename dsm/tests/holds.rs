//! Epochs that are given up, discarded or closed while something else is under way, or halfway, in the simulator.
#![cfg(feature = "service")]

mod common;

use std::{pin::Pin, time::Duration};

use common::{Cluster, at, get, kv, put};
use daos_dsm::{
    client::{DsmError, OpenOptions},
    rpc::object::{UpdateRecord, flags},
};
use daos_types::{Epoch, EpochRange};
use daos_xstream::{Clock, Env, join_all, rpc::Status};
use daos_xstream_sim::Loss;

type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

fn status<T>(result: Result<T, DsmError>) -> Option<Status> {
    result.err().map(|error| error.status())
}

/// A write in flight used to land after the discard of the epochs that a hold gave up, and before the hold was known: it
/// was acknowledged, and committed with a later epoch.
#[test]
fn a_write_that_meets_a_hold_is_refused_or_given_up() {
    let (mut taken, mut refused) = (0, 0);
    for seed in 0..24 {
        let cluster = Cluster::new(seed);
        let outcomes = cluster.run(&cluster.client(), move |client| async move {
            client.make().await;
            let handle = client.open(OpenOptions::WRITE).await;
            handle.hold(Epoch(0)).await.expect("held");
            let io = handle.objects();
            // So that the discard takes a while.
            for target in 0..2 {
                for key in 0..60 {
                    put(&io, target, 1, &format!("k{key}"), b"x").await.expect("written");
                }
            }
            let data = vec![7; 100_000];
            let env = client.caller.env().clone();
            let mut work: Vec<Boxed<'_, Option<Status>>> = Vec::new();
            for number in 0..16u64 {
                let (io, env, data) = (&io, &env, &data);
                work.push(Box::pin(async move {
                    let delay = Duration::from_micros(number * 60 + seed);
                    env.clock().sleep_until(env.clock().now() + delay).await;
                    let key = number.to_le_bytes();
                    let records = [UpdateRecord::Value { key: &key, value: data }];
                    let place = at((number % 2) as u32, kv(2));
                    status(io.update(place, Epoch(1), flags::LAST_WINS, b"", &records).await)
                }));
            }
            work.push(Box::pin(async {
                env.clock().sleep_until(env.clock().now() + Duration::from_micros(500)).await;
                status(handle.hold(Epoch(5)).await)
            }));
            let mut outcomes = join_all(work).await;
            assert_eq!(outcomes.pop(), Some(None), "the hold succeeds");
            handle.flush(Epoch(5)).await.expect("flushed");
            handle.commit(Epoch(5)).await.expect("committed");
            for number in 0..16u64 {
                let key = number.to_le_bytes();
                let records = [daos_dsm::rpc::object::ReadRecord::Value { key: &key, room: 0 }];
                let place = at((number % 2) as u32, kv(2));
                let found = io.fetch(place, Epoch(5), b"", &records).await.expect("fetched");
                let record = found.records().next().expect("a record");
                let there = matches!(record.outcome, daos_dsm::rpc::object::Outcome::Value { .. });
                assert!(!there, "seed {seed}: write {number} of a given-up epoch was committed");
            }
            outcomes
        });
        for outcome in outcomes {
            match outcome {
                None => taken += 1,
                Some(Status::BAD_EPOCH) => refused += 1,
                Some(other) => panic!("seed {seed}: {other}"),
            }
        }
    }
    assert!(taken > 5 && refused > 5, "both happened: {taken} {refused}");
}

/// A close that failed used to leave a handle that could commit what was half discarded.
#[test]
fn a_handle_whose_close_failed_can_only_be_closed() {
    let cluster = Cluster::new(2);
    let engine = cluster.engine.clone();
    cluster.run(&cluster.client(), |client| async move {
        client.make().await;
        let handle = client.open(OpenOptions::WRITE).await;
        handle.hold(Epoch(0)).await.expect("held");
        let io = handle.objects();
        for epoch in 1..3 {
            for target in 0..2 {
                put(&io, target, epoch, "a", &[epoch as u8]).await.expect("written");
            }
            handle.flush(Epoch(epoch)).await.expect("flushed");
            if epoch == 1 {
                handle.commit(Epoch(1)).await.expect("committed");
            }
        }
        engine.disk().set_failed(true);
        assert!(handle.clone().close().await.is_err(), "the discard is not durable");
        assert_eq!(status(handle.commit(Epoch(2)).await), Some(Status::BAD_HANDLE));
        assert_eq!(status(handle.epoch_query().await), Some(Status::BAD_HANDLE));
        assert_eq!(status(put(&io, 0, 3, "a", b"3").await), Some(Status::BAD_HANDLE));
        engine.disk().set_failed(false);
    });
    cluster.restart(Loss::Power);
    cluster.sim.run_for(Duration::from_secs(10)).expect("the grace of the dead passes");
    cluster.run(&cluster.client(), |client| async move {
        let handle = client.open(OpenOptions::READ).await;
        let query = handle.query().await.expect("queried");
        assert_eq!((query.handles, query.epochs.container_hce), (1, Epoch(1)));
        for target in 0..2 {
            let newest = get(&handle.objects(), target, u64::MAX, "a").await;
            assert_eq!(newest.as_deref(), Some([1].as_slice()));
        }
    });
}

/// A discard that failed used to leave a handle that could commit what was half discarded.
#[test]
fn what_is_half_discarded_cannot_be_committed() {
    let cluster = Cluster::new(3);
    let engine = cluster.engine.clone();
    cluster.run(&cluster.client(), |client| async move {
        client.make().await;
        let handle = client.open(OpenOptions::WRITE).await;
        handle.hold(Epoch(0)).await.expect("held");
        let io = handle.objects();
        put(&io, 0, 2, "a", b"2").await.expect("written");
        handle.flush(Epoch(4)).await.expect("flushed");
        let range = EpochRange { low: Epoch(2), high: Epoch(3) };
        handle.discard(range).await.expect("discarded");
        assert_eq!(
            status(handle.commit(Epoch(4)).await),
            Some(Status::NOT_FLUSHED),
            "the flush counts no more"
        );
        put(&io, 0, 2, "a", b"2").await.expect("written again");
        handle.flush(Epoch(4)).await.expect("flushed");
        engine.disk().set_failed(true);
        assert!(handle.discard(range).await.is_err(), "the discard is not durable");
        assert_eq!(status(handle.commit(Epoch(4)).await), Some(Status::INTERRUPTED));
    });
}
