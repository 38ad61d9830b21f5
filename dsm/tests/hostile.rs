//! A hostile client: requests that a proper one would never send, made by hand. What must not happen is that it reaches
//! what is not its own, or that the engine stops serving others.
#![cfg(feature = "service")]

mod common;

use std::{cell::Cell, rc::Rc, time::Duration};

use common::*;
use daos_dsm::{
    access::{Capabilities, Identity},
    client::{OpenOptions, PoolSpec},
    rpc::{
        self, container,
        control::{self, *},
        management,
        object::{self, FetchReply, Outcome, ReadRecord, UpdateRecord, encode_fetch, encode_update},
        pool,
    },
    service::Target,
};
use daos_types::Epoch;
use daos_xstream::{
    Access, Class, Clock, Env, IoBuffer, PeerId, RemoteBuffer, Spawn, join_all,
    rpc::{Call, Endpoint, EndpointConfig, Opcode, RpcError, Status},
};
use daos_xstream_sim::{Loss, SimEnv};
use uuid::Uuid;

/// The container with a pool's metadata.
const RESERVED: Uuid = Uuid::from_u128(0xda05_0000_0000_0000_0000_0000_0000_0001);

/// A connection to the engine over which anything can be sent.
#[derive(Clone)]
struct Hostile {
    endpoint: Endpoint<SimEnv>,
    peer: PeerId,
}

impl Hostile {
    async fn new(client: &Client) -> Self {
        let endpoint = client.caller.endpoint().clone();
        let peer = endpoint.connect(&client.address).await.unwrap();
        Self { endpoint, peer }
    }

    async fn send(&self, opcode: Opcode, handle: Uuid, body: &[u8]) -> Result<Vec<u8>, RpcError> {
        let call = Call { opcode, handle, ..Call::default() };
        self.endpoint.call(self.peer, &call, &[body]).await.map(|reply| reply.body().to_vec())
    }

    async fn pool<B: serde::Serialize>(&self, procedure: u8, handle: Uuid, body: &B) -> Result<(), RpcError> {
        let opcode = Opcode::new(rpc::module::POOL, procedure);
        self.send(opcode, handle, &control::encode(body)).await.map(drop)
    }

    async fn container<B: serde::Serialize>(
        &self,
        procedure: u8,
        handle: Uuid,
        body: &B,
    ) -> Result<(), RpcError> {
        let opcode = Opcode::new(rpc::module::CONTAINER, procedure);
        self.send(opcode, handle, &control::encode(body)).await.map(drop)
    }

    async fn connect(&self, pool: &str, handle: Uuid) -> Result<(), RpcError> {
        let capabilities = Capabilities::READ.with(Capabilities::WRITE);
        let identity = Identity { uid: 1000, gid: 1000 };
        self.pool(pool::CONNECT, handle, &PoolConnect { pool: name(pool), identity, capabilities }).await
    }

    async fn open(&self, pool_handle: Uuid, container: Name, handle: Uuid) -> Result<(), RpcError> {
        let capabilities = Capabilities::READ.with(Capabilities::WRITE);
        let request = ContainerOpen { pool_handle, container, capabilities, hold: true, shared: false };
        self.container(container::OPEN, handle, &request).await
    }
}

fn uuid(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

fn status<T: std::fmt::Debug>(result: Result<T, RpcError>) -> Status {
    match result {
        Err(RpcError::Refused { status, .. }) => status,
        other => panic!("not refused, but {other:?}"),
    }
}

/// Whether the engine serves somebody else.
fn assert_serves(cluster: &Cluster) {
    cluster.run(&cluster.client(), |client| async move {
        client.open(OpenOptions::WRITE).await.close().await.expect("closed");
    });
}

/// A circle of handles made the engine follow it for ever, and again at each start.
#[test]
fn a_handle_cannot_be_its_own_pool_handle() {
    let cluster = Cluster::new(1);
    let client = cluster.client();
    cluster.run(&client, |client| async move {
        client.make().await;
        let hostile = Hostile::new(&client).await;
        let (a, b, c) = (uuid(77), uuid(78), uuid(79));
        hostile.connect("tank", a).await.unwrap();
        hostile.connect("tank", b).await.unwrap();
        assert_eq!(status(hostile.open(a, name("box"), a).await), Status::EXISTS, "itself");
        assert_eq!(status(hostile.open(a, name("box"), b).await), Status::EXISTS, "another pool handle");
        hostile.open(a, name("box"), c).await.unwrap();
        hostile.open(a, name("box"), c).await.expect("repeated, as after a lost reply");
        hostile.connect("tank", a).await.expect("repeated, as after a lost reply");
        assert_eq!(status(hostile.connect("tank", c).await), Status::EXISTS, "a container handle");
    });
    client.kill(Loss::Process);
    cluster.sim.run_for(Duration::from_secs(60)).unwrap();
    assert_serves(&cluster);
    cluster.restart(Loss::Process);
    cluster.sim.run_for(Duration::from_secs(60)).unwrap();
    assert_serves(&cluster);
}

/// Who may write to the metadata container owns every pool of the engine.
#[test]
fn the_metadata_container_is_out_of_reach() {
    let cluster = Cluster::new(1);
    let owner = cluster.client();
    cluster.run(&owner, |client| async move { client.make().await });
    cluster.run(&cluster.client(), |client| async move {
        let hostile = Hostile::new(&client).await;
        let (handle, opened) = (uuid(77), uuid(78));
        hostile.connect("tank", handle).await.unwrap();
        let create =
            ContainerCreate { uuid: RESERVED, label: None, properties: Default::default(), acl: None };
        assert_eq!(
            status(hostile.container(container::CREATE, handle, &create).await),
            Status::NOT_PERMITTED
        );
        let open = hostile.open(handle, Name::Uuid(RESERVED), opened).await;
        assert_eq!(status(open), Status::NOT_PERMITTED);
        let destroy = ContainerDestroy { container: RESERVED, force: true };
        assert_eq!(
            status(hostile.container(container::DESTROY, handle, &destroy).await),
            Status::NOT_PERMITTED
        );
        let mut body = Vec::new();
        let records = [UpdateRecord::Value { key: b"pool", value: b"garbage" }];
        encode_update(&mut body, kv(0), Epoch(1), object::flags::LAST_WINS, b"", &records, None);
        let update = Opcode::new(rpc::module::OBJECT, rpc::object_procedure::UPDATE);
        assert_eq!(status(hostile.send(update, opened, &body).await), Status::BAD_HANDLE);
    });
    assert_serves(&cluster);
    cluster.restart(Loss::Process);
    assert_serves(&cluster);
}

/// A handle of the same UUID in another pool made targets take writes to committed epochs.
#[test]
fn a_handle_is_open_in_one_pool_only() {
    let cluster = Cluster::new(1);
    cluster.run(&cluster.client(), |client| async move {
        client.make().await;
        let other = PoolSpec { label: Some(label("other")), bytes: POOL_BYTES, ..PoolSpec::default() };
        client.service.pool_create(&other).await.unwrap();
        let hostile = Hostile::new(&client).await;
        let (a, b, handle) = (uuid(70), uuid(71), uuid(77));
        hostile.connect("tank", a).await.unwrap();
        hostile.connect("other", b).await.unwrap();
        assert_eq!(status(hostile.connect("other", a).await), Status::EXISTS);
        let create = ContainerCreate {
            uuid: uuid(2000),
            label: Some(label("box")),
            properties: Default::default(),
            acl: None,
        };
        hostile.container(container::CREATE, b, &create).await.unwrap();
        hostile.open(a, name("box"), handle).await.unwrap();
        let write = async |value: &[u8]| {
            let mut body = Vec::new();
            let records = [UpdateRecord::Value { key: b"k", value }];
            encode_update(&mut body, kv(1), Epoch(1), object::flags::LAST_WINS, b"", &records, None);
            let update = Opcode::new(rpc::module::OBJECT, rpc::object_procedure::UPDATE);
            hostile.send(update, handle, &body).await
        };
        write(b"one").await.unwrap();
        let epoch = |epoch| EpochRequest { epoch: Epoch(epoch) };
        hostile.container(container::EPOCH_FLUSH, handle, &epoch(1)).await.unwrap();
        let commit = EpochCommit { commits: vec![(handle, Epoch(1))] };
        hostile.container(container::EPOCH_COMMIT, handle, &commit).await.unwrap();
        hostile.container(container::EPOCH_FLUSH, handle, &epoch(2)).await.unwrap();
        assert_eq!(status(write(b"forged").await), Status::BAD_EPOCH);
        assert_eq!(status(hostile.open(b, name("box"), handle).await), Status::EXISTS);
        assert_eq!(status(write(b"forged").await), Status::BAD_EPOCH);
    });
}

/// Who is named manages pools, and nobody else, whoever a client says that it is.
#[test]
fn only_administrators_manage_pools() {
    let mut cluster = Cluster::new(1);
    // The simulated network vouches for it.
    let user = 1000;
    let request = |cluster: &Cluster, stated: u32, destroy: bool| {
        cluster.run(&cluster.client(), move |client| async move {
            let hostile = Hostile::new(&client).await;
            let identity = Identity { uid: stated, gid: stated };
            let (procedure, body) = if destroy {
                let destroy = PoolDestroy { pool: uuid(9), identity, force: true };
                (management::POOL_DESTROY, control::encode(&destroy))
            } else {
                let create = PoolCreate {
                    uuid: uuid(9),
                    label: Some(label("tank")),
                    identity,
                    bytes: POOL_BYTES,
                    scm_bytes: None,
                    owner: None,
                    acl: None,
                };
                (management::POOL_CREATE, control::encode(&create))
            };
            hostile.send(Opcode::new(rpc::module::MANAGEMENT, procedure), Uuid::nil(), &body).await
        })
    };
    cluster.config.administrators = Some(vec![user]);
    cluster.restart(Loss::Process);
    request(&cluster, user, false).expect("an administrator");
    cluster.config.administrators = Some(vec![0, 1001]);
    cluster.restart(Loss::Process);
    for stated in [user, 0, 1001] {
        assert_eq!(status(request(&cluster, stated, false)), Status::NOT_PERMITTED, "as {stated}");
        let Err(RpcError::Refused { status: Status::NOT_PERMITTED, message, .. }) =
            request(&cluster, stated, true)
        else {
            panic!("destroyed by {stated}")
        };
        assert!(message.contains("user 1000") && message.contains("0, 1001"), "{message}");
    }
    assert_serves_pools(&cluster);
}

/// Whether the pool is there.
fn assert_serves_pools(cluster: &Cluster) {
    cluster.run(&cluster.client(), |client| async move {
        client.connect().await.disconnect().await.expect("disconnected");
    });
}

/// A small request made the engine gather any number of large values.
#[test]
fn a_fetch_brings_no_more_than_there_is_room_for() {
    let cluster = Cluster::new(1);
    cluster.run(&cluster.client(), |client| async move {
        client.make().await;
        let handle = client.open(OpenOptions::NO_TRANSACTION).await;
        let io = handle.objects();
        let value = vec![7; 100_000];
        let records = [UpdateRecord::Value { key: b"k", value: &value }];
        io.update(at(0, kv(1)), handle.held(), 0, b"", &records).await.unwrap();
        let hostile = Hostile::new(&client).await;
        let wanted = vec![ReadRecord::Value { key: b"k", room: 0 }; 100];
        let mut body = Vec::new();
        let nowhere = RemoteBuffer { key: 8, offset: 0, length: 0 };
        encode_fetch(&mut body, kv(1), handle.held(), b"", &wanted, Some(nowhere));
        let fetch = Opcode::new(rpc::module::OBJECT, rpc::object_procedure::FETCH);
        let reply = hostile.send(fetch, handle.handle(), &body).await.expect("an answer without data");
        let reply = FetchReply::parse(&reply).expect("a fetch's reply");
        assert_eq!(reply.records().count(), 100);
        for record in reply.records() {
            assert!(matches!(record.outcome, Outcome::TooLong { length: 100_000 }), "{:?}", record.outcome);
        }
    });
}

/// The most that bulk transfers have held at one time, of all that the engine's first xstream has seen.
async fn most_held(env: SimEnv, most: Rc<Cell<u64>>) {
    let endpoint = Endpoint::of(&env).expect("the engine's");
    loop {
        most.set(most.get().max(endpoint.bytes_held().1));
        env.clock().sleep_until(env.clock().now() + Duration::from_micros(20)).await;
    }
}

/// Each bulk request took as much memory as it named, up to 16 MiB, and one client may have 256 of them open: 4 GiB, for messages of a
/// few hundred bytes.
#[test]
fn bulk_transfers_of_one_client_hold_so_much_and_no_more() {
    const BYTES: usize = 4 << 20;
    const REQUESTS: usize = 40;
    let cluster = Cluster::new(1);
    let most = Rc::new(Cell::new(0));
    let watch = most.clone();
    let watched = cluster.sim.block_on(&cluster.engine, move |env| async move {
        let (name, task) = ("watch", most_held(env.clone(), watch));
        env.scheduler().spawn(Class::Service, name, task);
    });
    watched.unwrap();
    let seen = most.clone();
    cluster.run(&cluster.client(), move |client| async move {
        let spec = PoolSpec { label: Some(label("tank")), bytes: 1 << 30, ..PoolSpec::default() };
        client.service.pool_create(&spec).await.unwrap();
        let pool = client.connect().await;
        pool.container_create(Some(label("box")), Default::default(), None).await.unwrap();
        let handle = client.open(OpenOptions::NO_TRANSACTION).await;
        let hostile = Hostile::new(&client).await;
        let (value, mut body) = (vec![7; BYTES], Vec::new());
        let expose = |access| {
            let exposed = hostile.endpoint.expose(hostile.peer, IoBuffer::copy_of(&value), access);
            exposed.map_err(|(_, error)| error).unwrap()
        };
        let all_at_once = async |procedure: u8, body: &[u8]| {
            let opcode = Opcode::new(rpc::module::OBJECT, procedure);
            let results = join_all((0..REQUESTS).map(|_| hostile.send(opcode, handle.handle(), body))).await;
            results.into_iter().map(|result| result.unwrap().len()).max()
        };
        let (exposed, remote) = expose(Access::Read);
        let records = [UpdateRecord::Value { key: b"k", value: &value }];
        encode_update(&mut body, kv(1), handle.held(), 0, b"", &records, Some(remote));
        all_at_once(rpc::object_procedure::UPDATE, &body).await;
        hostile.endpoint.withdraw(exposed, true);
        let limit = EndpointConfig::default().bulk_bytes_per_peer_max;
        assert!(limit < (BYTES * REQUESTS) as u64);
        assert_eq!(seen.replace(0), limit, "as much as there may be, and no more");
        let (exposed, remote) = expose(Access::Write);
        let wanted = [ReadRecord::Value { key: b"k", room: BYTES as u64 }];
        body.clear();
        encode_fetch(&mut body, kv(1), handle.held(), b"", &wanted, Some(remote));
        all_at_once(rpc::object_procedure::FETCH, &body).await;
        assert_eq!(hostile.endpoint.withdraw(exposed, true).as_slice(), value);
        assert_eq!(seen.replace(0), limit);
    });
    cluster.sim.run_for(Duration::from_millis(1)).unwrap();
    let held = cluster.sim.block_on(&cluster.engine, |env| async move {
        Endpoint::of(&env).expect("the engine's").bytes_held().1
    });
    assert_eq!(held.unwrap(), 0, "all of it is given back");
}

/// A fetch that waited for memory was answered by the target that it had asked, though the object might have moved meanwhile.
#[test]
fn a_fetch_that_waited_is_refused_when_the_pool_map_has_changed() {
    const BYTES: usize = 4 << 20;
    const REQUESTS: usize = 40;
    let cluster = Cluster::new(1);
    let engine = cluster.engine.env(0);
    cluster.run(&cluster.client(), move |client| async move {
        client.make().await;
        let handle = client.open(OpenOptions::NO_TRANSACTION).await;
        let version = handle.pool().map().version();
        let value = vec![7; BYTES];
        let records = [UpdateRecord::Value { key: b"k", value: &value }];
        handle.objects().update(at(0, kv(1)), handle.held(), 0, b"", &records).await.unwrap();
        let hostile = Hostile::new(&client).await;
        let exposed = hostile.endpoint.expose(hostile.peer, IoBuffer::zeroed(BYTES), Access::Write);
        let (exposed, remote) = exposed.map_err(|(_, error)| error).unwrap();
        let mut body = Vec::new();
        let wanted = [ReadRecord::Value { key: b"k", room: BYTES as u64 }];
        encode_fetch(&mut body, kv(1), handle.held(), b"", &wanted, Some(remote));
        let opcode = Opcode::new(rpc::module::OBJECT, rpc::object_procedure::FETCH);
        let call = Call { opcode, handle: handle.handle(), map_version: version, ..Call::default() };
        let target = Target::of(&engine).await;
        let (pool, parts): (_, [&[u8]; 1]) = (handle.pool().pool(), [&body]);
        let fetch = async |_: usize| {
            let result = hostile.endpoint.call(hostile.peer, &call, &parts).await;
            // The map changes when the first is answered.
            target.set_map_version(pool, version + 1);
            result
        };
        let results = join_all((0..REQUESTS).map(fetch)).await;
        let (mut served, mut stale) = (0, 0);
        for result in results {
            match result {
                Ok(_) => served += 1,
                Err(RpcError::Refused { status: Status::STALE_MAP, map_version, .. }) => {
                    assert_eq!(map_version, version + 1);
                    stale += 1;
                }
                Err(error) => panic!("{error}"),
            }
        }
        let at_once = EndpointConfig::default().bulk_bytes_per_peer_max / BYTES as u64;
        hostile.endpoint.withdraw(exposed, true);
        // While the first answer is on its way a second round may begin.
        assert!((1..=2 * at_once).contains(&served) && stale > 0, "{served} served, {stale} refused");
    });
}

/// Requests of clients that had died, waiting for an epoch that never came, took all places for ever.
#[test]
fn waits_of_dead_clients_end() {
    let cluster = Cluster::new(1);
    let first = cluster.client();
    let (pool_handle, handle) = (uuid(5), uuid(6));
    cluster.run(&first, move |client| async move {
        client.make().await;
        let hostile = Hostile::new(&client).await;
        hostile.connect("tank", pool_handle).await.unwrap();
        hostile.open(pool_handle, name("box"), handle).await.unwrap();
    });
    let places = EndpointConfig::default();
    let each = places.calls_per_peer_max;
    let started = Rc::new(Cell::new(0));
    for number in 0..=places.requests_max / each {
        let waiting = cluster.client();
        let (address, sent) = (cluster.engine.address(0), started.clone());
        waiting.start(move |env| {
            let (address, sent) = (address.clone(), sent.clone());
            async move {
                let endpoint = Endpoint::new(&env, EndpointConfig::default());
                let peer = endpoint.connect(&address).await.unwrap();
                let body = control::encode(&EpochRequest { epoch: Epoch(1 << 40) });
                let opcode = Opcode::new(rpc::module::CONTAINER, container::EPOCH_WAIT);
                let timeout = Duration::from_secs(4000);
                let call = Call { opcode, handle, timeout, ..Call::default() };
                sent.set(sent.get() + 1);
                let parts: [&[u8]; 1] = [&body];
                let _ = join_all((0..each).map(|_| endpoint.call(peer, &call, &parts))).await;
            }
        });
        cluster.sim.run_until(Duration::from_secs(60), || started.get() > number).unwrap();
        cluster.sim.run_for(Duration::from_millis(100)).unwrap();
        waiting.kill(Loss::Process);
    }
    cluster.sim.run_for(Duration::from_secs(2)).unwrap();
    assert_serves(&cluster);
}
