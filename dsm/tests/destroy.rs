//! Containers that are destroyed: as a whole or not at all, over failures, and once and for all.
#![cfg(feature = "service")]

mod common;

use std::{
    cell::Cell,
    collections::BTreeMap,
    rc::Rc,
    sync::{Arc, Mutex},
    time::Duration,
};

use common::{Cluster, at, label, name};
use daos_dsm::{
    access::{Capabilities, Identity},
    client::{
        Caller, ClientConfig, ContainerHandle, DsmError, ObjectIo, OpenOptions, PoolHandle, PoolSpec, Service,
    },
    rpc::{
        control::Name,
        object::{ReadRecord, UpdateRecord},
    },
    service::Target,
};
use daos_types::{Epoch, ObjectId};
use daos_xstream::{
    Clock, CoreId, Env, Media, both, join_all,
    rpc::{Endpoint, EndpointConfig, Status},
    submit_to,
};
use daos_xstream_sim::{Config, Loss, SimEnv};

const KEYS: u32 = 200;
const TARGETS: u32 = 2;

fn object(number: u32) -> ObjectId {
    common::kv(u64::from(100 + number % 10))
}

/// Writes values on both targets, and commits them. Returns the epoch.
async fn fill(handle: &ContainerHandle<SimEnv>) -> Epoch {
    let (io, epoch) = (handle.objects(), handle.held());
    for number in 0..KEYS {
        let record = [UpdateRecord::Value { key: &number.to_le_bytes(), value: &[7; 100] }];
        let place = at(number % TARGETS, object(number));
        io.update(place, epoch, 0, b"", &record).await.expect("written");
    }
    handle.flush(epoch).await.expect("flushed");
    handle.commit(epoch).await.expect("committed");
    epoch
}

/// How many of the values are there.
async fn count(io: &ObjectIo<SimEnv>, epoch: Epoch) -> u32 {
    let mut found = 0;
    for number in 0..KEYS {
        let key = number.to_le_bytes();
        let records = [ReadRecord::Value { key: &key, room: 0 }];
        let place = at(number % TARGETS, object(number));
        let fetched = io.fetch(place, epoch, b"", &records).await.expect("fetched");
        found += u32::from(fetched.records().next().expect("a record").value.len() == 100);
    }
    found
}

fn status<T>(result: Result<T, DsmError>) -> Option<Status> {
    result.err().map(|error| error.status())
}

/// The power failed while a container was being destroyed: one target had forgotten it for good, and the service's record of
/// it, with its HCE, was removed last. So it opened again, at an epoch that was committed, and a half or all of it was
/// missing. Now it opens with everything, or never again.
#[test]
fn a_container_is_never_half_destroyed() {
    let mut outcomes = [0; 2];
    for seed in 0..48 {
        let cluster = Cluster::new(seed);
        let client = cluster.client();
        let epoch = cluster.run(&client, |client| async move {
            client.make().await;
            let handle = client.open(OpenOptions::NO_TRANSACTION).await;
            let epoch = fill(&handle).await;
            handle.snapshot_create(epoch).await.expect("a snapshot");
            handle.attributes_set(vec![("a".to_owned(), Some(vec![1]))]).await.expect("an attribute");
            epoch
        });
        // The handle is open still: it goes with the container.
        let address = cluster.engine.address(0);
        client.start(move |env| {
            let address = address.clone();
            async move {
                let endpoint = Endpoint::of(&env).expect("made before");
                let identity = Identity { uid: 1000, gid: 1000 };
                let caller = Caller::new(endpoint, ClientConfig::new(identity));
                let service = Service::new(caller, vec![address]);
                let pool = service.pool_connect(name("tank"), Capabilities::ALL).await.expect("connected");
                pool.container_destroy(name("box"), true).await.expect("destroyed");
            }
        });
        cluster.sim.run_for(Duration::from_micros(200 + cluster.sim.choose(4_000))).expect("runs");
        client.kill(Loss::Process);
        cluster.restart(Loss::Power);
        let other = cluster.client();
        let there = cluster.run(&other, move |client| async move {
            let pool = client.connect().await;
            match pool.container_open(name("box"), OpenOptions::READ).await {
                Ok(handle) => {
                    let state = handle.epoch_query().await.expect("asked");
                    assert_eq!(state.container_hce, epoch, "seed {seed}");
                    assert_eq!(
                        count(&handle.objects(), epoch).await,
                        KEYS,
                        "seed {seed}: it opened without its data"
                    );
                    assert_eq!(handle.snapshots().await.expect("listed"), [epoch]);
                    true
                }
                Err(error) => {
                    assert_eq!(error.status(), Status::NOT_FOUND, "seed {seed}: {error}");
                    assert!(pool.list_containers().await.expect("listed").is_empty(), "seed {seed}");
                    assert_eq!(pool.query(false).await.expect("asked").containers, 0);
                    false
                }
            }
        });
        if !there {
            // For good; and all of it goes, also what the crash had left.
            cluster.sim.run_for(Duration::from_secs(1)).expect("runs");
            assert_eq!(stored(&cluster), 0, "seed {seed}: a target holds more than the pool's own container");
            cluster.restart(Loss::Power);
            assert_eq!(stored(&cluster), 0, "seed {seed}");
            cluster.run(&other, |client| async move {
                let pool = client.connect().await;
                assert_eq!(
                    status(pool.container_open(name("box"), OpenOptions::READ).await),
                    Some(Status::NOT_FOUND)
                );
                pool.container_create(Some(label("box")), Default::default(), None).await.expect("made anew");
            });
        }
        outcomes[usize::from(there)] += 1;
    }
    assert!(outcomes[0] > 4 && outcomes[1] > 4, "both happened: {outcomes:?}");
}

/// Whoever asks while a container is being destroyed waits, and hears of the end. Its label is free at once, and what is made
/// under it is not destroyed with it.
#[test]
fn a_second_destruction_waits_for_the_first() {
    let cluster = Cluster::new(1);
    let client = cluster.client();
    cluster.run(&client, |client| async move {
        client.make().await;
        let pool = client.connect().await;
        let handle = client.open(OpenOptions::NO_TRANSACTION).await;
        fill(&handle).await;
        let uuid = handle.container();
        assert_eq!(status(pool.container_destroy(name("box"), false).await), Some(Status::IN_USE));
        let destroyed = (0..3).map(|_| pool.container_destroy(Name::Uuid(uuid), true));
        for result in join_all(destroyed).await {
            result.expect("destroyed");
        }
        assert_eq!(status(handle.epoch_query().await), Some(Status::BAD_HANDLE));
        assert_eq!(status(pool.container_destroy(name("box"), true).await), Some(Status::NOT_FOUND));

        // One attempt each, while the first is under way.
        client.service.pool_evict(name("tank"), None).await.expect("evicted");
        let pool = client.connect().await;
        let old = pool.container_create(Some(label("box")), Default::default(), None).await.expect("made");
        let handle = pool.container_open(name("box"), OpenOptions::NO_TRANSACTION).await.expect("opened");
        fill(&handle).await;
        let impatient = ClientConfig {
            call_timeout: Duration::from_micros(900),
            ..ClientConfig::new(Identity { uid: 1000, gid: 1000 })
        };
        let caller = Caller::new(client.caller.endpoint().clone(), impatient);
        let hasty = PoolHandle::global_to_local(caller, &pool.local_to_global()).expect("the same handle");
        hasty.query(false).await.expect("it is connected");
        let meanwhile = async {
            let clock = client.caller.env().clock();
            clock.sleep_until(clock.now() + Duration::from_micros(500)).await;
            let second = hasty.container_destroy(Name::Uuid(old), true).await.expect_err("it is under way");
            assert!(second.to_string().contains("is being destroyed"), "{second}");
            let opened = hasty.container_open(Name::Uuid(old), OpenOptions::READ).await;
            assert_eq!(status(opened), Some(Status::NOT_FOUND));
            assert!(hasty.list_containers().await.expect("listed").is_empty());
            pool.container_create(Some(label("box")), Default::default(), None)
                .await
                .expect("the label is free")
        };
        let (destroyed, new) = both(pool.container_destroy(name("box"), true), meanwhile).await;
        destroyed.expect("destroyed");
        let handle = pool.container_open(name("box"), OpenOptions::NO_TRANSACTION).await.expect("opened");
        assert_eq!(handle.container(), new);
        let epoch = fill(&handle).await;
        assert_eq!(count(&handle.objects(), epoch).await, KEYS);
    });
}

/// Media fail in the middle. Once they are sound again the container is there as a whole, or what is left of it goes without
/// anybody asking.
#[test]
fn what_failed_halfway_is_taken_up_again() {
    let mut outcomes = [0; 2];
    for seed in 0..24 {
        let cluster = Cluster::new(seed);
        let client = cluster.client();
        let epoch = cluster.run(&client, |client| async move {
            client.make().await;
            fill(&client.open(OpenOptions::NO_TRANSACTION).await).await
        });
        let failed = cluster.client();
        let (address, begun) = (cluster.engine.address(0), Rc::new(Cell::new(false)));
        let connected = begun.clone();
        failed.start(move |env| {
            let (address, connected) = (address.clone(), connected.clone());
            async move {
                let endpoint = Endpoint::new(&env, EndpointConfig::default());
                let config = ClientConfig::new(Identity { uid: 1000, gid: 1000 });
                let service = Service::new(Caller::new(endpoint, config), vec![address]);
                let pool = service.pool_connect(name("tank"), Capabilities::ALL).await.expect("connected");
                connected.set(true);
                // Failed, or just done.
                let _ = pool.container_destroy(name("box"), true).await;
            }
        });
        cluster.sim.run_until(Duration::from_secs(1), || begun.get()).expect("it begins");
        cluster.sim.run_for(Duration::from_micros(cluster.sim.choose(2_000))).expect("runs");
        cluster.engine.disk().set_failure_rate(1_000_000);
        cluster.sim.run_for(Duration::from_secs(2)).expect("runs");
        cluster.engine.disk().set_failure_rate(0);
        cluster.restart(Loss::Power);
        cluster.sim.run_for(Duration::from_secs(1)).expect("runs");
        let there = stored(&cluster) > 1;
        cluster.run(&client, move |client| async move {
            let pool = client.connect().await;
            let listed = pool.list_containers().await.expect("listed").len();
            assert_eq!(listed, usize::from(there), "seed {seed}");
            if there {
                let handle = pool.container_open(name("box"), OpenOptions::READ).await.expect("opened");
                assert_eq!(count(&handle.objects(), epoch).await, KEYS, "seed {seed}");
            }
        });
        outcomes[usize::from(there)] += 1;
    }
    assert!(outcomes[0] > 2 && outcomes[1] > 2, "both happened: {outcomes:?}");
}

/// Counts, by container, how often the engine says that it could not be destroyed.
struct Failures(Arc<Mutex<BTreeMap<String, u32>>>);

impl tracing::Subscriber for Failures {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        metadata.is_event()
    }

    fn event(&self, event: &tracing::Event<'_>) {
        #[derive(Default)]
        struct Fields(BTreeMap<&'static str, String>);
        impl tracing::field::Visit for Fields {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                self.0.insert(field.name(), format!("{value:?}"));
            }
        }
        let mut fields = Fields::default();
        event.record(&mut fields);
        let message = fields.0.get("message").map_or("", String::as_str);
        if let Some(container) = fields.0.get("container")
            && message.starts_with("a container could not be destroyed")
        {
            *self.0.lock().expect("one thread").entry(container.clone()).or_default() += 1;
        }
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

/// A container that could not be destroyed was tried again every 250 ms, for ever and before all others of its pool, which had
/// to wait until it was gone.
#[test]
fn every_container_that_cannot_be_destroyed_has_its_turn() {
    let failures = Arc::new(Mutex::new(BTreeMap::new()));
    let (containers, cluster) = tracing::subscriber::with_default(Failures(failures.clone()), || {
        let cluster = Cluster::with(1, slow());
        let engine = cluster.engine.clone();
        let containers = cluster.run(&cluster.client(), |client| async move {
            client.make().await;
            let pool = client.connect().await;
            let mut containers = Vec::new();
            for _ in 0..3 {
                containers.push(pool.container_create(None, Default::default(), None).await.expect("made"));
            }
            engine.disk().set_failed(true);
            // At one time: once the failure is noticed nothing is marked any more.
            let destroyed =
                containers.iter().map(|container| pool.container_destroy(Name::Uuid(*container), false));
            for destroyed in join_all(destroyed).await {
                destroyed.expect_err("media fail");
            }
            containers
        });
        cluster.sim.run_for(Duration::from_secs(60)).expect("runs");
        (containers, cluster)
    });
    let failures = failures.lock().expect("one thread");
    for container in &containers {
        // After 0.25 s, then 0.5, 1, and so on.
        let tried = failures.get(&container.to_string()).copied().unwrap_or(0);
        assert!((6..=8).contains(&tried), "{container} was tried {tried} times: {failures:?}");
    }
    cluster.engine.disk().set_failed(false);
    cluster.restart(Loss::Power);
    cluster.sim.run_for(Duration::from_secs(1)).expect("runs");
    cluster.run(&cluster.client(), move |client| async move {
        // What media had taken before they failed: all or nothing of the marks.
        let listed = client.connect().await.list_containers().await.expect("listed").len();
        assert!(listed == 1 || listed == 4, "{listed}");
    });
}

/// A disk that makes destruction take longer than the attempts of a client.
fn slow() -> Config {
    Config { flush_latency_ns: (5_000_000, 40_000_000), ..Config::default() }
}

/// A client whose attempts are over long before the answer can come: it asks again and again.
fn hasty(client: &common::Client) -> Caller<SimEnv> {
    let config = ClientConfig {
        attempt_timeout: Duration::from_millis(3),
        ..ClientConfig::new(Identity { uid: 1000, gid: 1000 })
    };
    Caller::new(client.caller.endpoint().clone(), config)
}

/// DESTROY named a container by its label. Repeated after the destruction had gone on in the background, it was answered "there is
/// no such container"; and if somebody had made another one of that label, it destroyed that.
#[test]
fn a_repeated_destruction_by_label_means_the_same_container() {
    for seed in 0..12 {
        let cluster = Cluster::with(seed, slow());
        let anew = seed % 2 == 0;
        cluster.run(&cluster.client(), move |client| async move {
            client.make().await;
            let pool = client.connect().await;
            let (old, packed) =
                (pool.list_containers().await.expect("listed")[0].uuid, pool.local_to_global());
            let hasty = PoolHandle::global_to_local(hasty(&client), &packed).expect("the same handle");
            let others = async {
                loop {
                    let listed = pool.list_containers().await.expect("listed");
                    if listed.iter().all(|entry| entry.uuid != old) {
                        break;
                    }
                }
                match anew {
                    true => Some(pool.container_create(Some(label("box")), Default::default(), None).await),
                    false => None,
                }
            };
            let (destroyed, made) = both(hasty.container_destroy(name("box"), true), others).await;
            destroyed.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            let made: Vec<_> = made.into_iter().map(|made| made.expect("made")).collect();
            let listed = pool.list_containers().await.expect("listed");
            assert_eq!(listed.iter().map(|entry| entry.uuid).collect::<Vec<_>>(), made, "seed {seed}");
            // One that was never there, or is not any more, is still not found.
            let missing = pool.container_destroy(name("crate"), true).await;
            assert_eq!(status(missing), Some(Status::NOT_FOUND));
        });
    }
}

/// The same, of pools.
#[test]
fn a_repeated_destruction_of_a_pool_by_label_means_the_same_pool() {
    for seed in 0..12 {
        let cluster = Cluster::with(seed, slow());
        let anew = seed % 2 == 0;
        cluster.run(&cluster.client(), move |client| async move {
            let spec =
                PoolSpec { label: Some(label("tank")), bytes: common::POOL_BYTES, ..PoolSpec::default() };
            client.service.pool_create(&spec).await.expect("made");
            let hasty = Service::new(hasty(&client), vec![client.address.clone()]);
            let others = async {
                while !client.service.pool_list().await.expect("listed").is_empty() {}
                match anew {
                    true => Some(client.service.pool_create(&spec).await),
                    false => None,
                }
            };
            let (destroyed, made) = both(hasty.pool_destroy(name("tank"), true), others).await;
            destroyed.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            let made: Vec<_> = made.into_iter().map(|made| made.expect("made")).collect();
            assert_eq!(client.service.pool_list().await.expect("listed"), made, "seed {seed}");
            let missing = client.service.pool_destroy(name("basin"), true).await;
            assert_eq!(status(missing), Some(Status::NOT_FOUND));
        });
    }
}

/// Containers in the vpools of all targets, without the metadata's.
fn stored(cluster: &Cluster) -> usize {
    let counted = cluster.sim.block_on(&cluster.engine, |env| async move {
        let pools = env.media().list("pools").await.expect("listed");
        let pool = pools.first().expect("a pool").parse().expect("a UUID");
        let mut sum = 0;
        for core in 0..TARGETS {
            let counted = submit_to(&env, CoreId(core), move |env: &SimEnv| {
                let env = env.clone();
                async move {
                    let vpool = Target::of(&env).await.vpool(pool).expect("the vpool");
                    vpool.containers().expect("listed").len()
                }
            });
            sum += counted.await.expect("answered");
        }
        sum
    });
    counted.expect("ends") - 1
}
