//! An engine of two targets and its clients in the simulator.
#![allow(dead_code, reason = "each test file uses its part")]

use std::{cell::Cell, rc::Rc, time::Duration};

use daos_dsm::{
    access::{Capabilities, Identity},
    client::{
        Caller, ClientConfig, ContainerHandle, DsmError, ObjectAddress, ObjectIo, OpenOptions, PoolHandle,
        PoolSpec, Service,
    },
    rpc::{
        control::{ContainerProperties, Name},
        object::{Outcome, ReadRecord, UpdateRecord},
    },
    service::{self, ServiceConfig},
};
use daos_types::{Epoch, KeyOrder, ObjectClass, ObjectId, ObjectType};
use daos_xstream::{
    Address,
    rpc::{Endpoint, EndpointConfig},
};
use daos_xstream_sim::{Config, Loss, Node, SimEnv, Simulation};

pub const POOL_BYTES: u64 = 64 << 20;

pub struct Cluster {
    pub sim: Simulation,
    pub engine: Node,
    pub config: ServiceConfig,
}

impl Cluster {
    pub fn new(seed: u64) -> Self {
        Self::with(seed, Config::default())
    }

    pub fn with(seed: u64, config: Config) -> Self {
        let sim = Simulation::new(seed, config);
        let engine = sim.add_node(2);
        let config = ServiceConfig { grace: Duration::from_secs(5), ..ServiceConfig::default() };
        let cluster = Self { sim, engine, config };
        cluster.start();
        cluster
    }

    /// Starts the engine and waits until it serves.
    pub fn start(&self) {
        let started = Rc::new(Cell::new(0));
        self.engine.start(|env| {
            let (config, started) = (self.config.clone(), started.clone());
            async move {
                let endpoint = Endpoint::new(&env, EndpointConfig { rank: 0, ..EndpointConfig::default() });
                service::start(&env, &endpoint, config).await.expect("the services start");
                started.set(started.get() + 1);
            }
        });
        self.sim.run_until(Duration::from_secs(60), || started.get() == 2).expect("the engine starts");
    }

    /// Kills the engine and starts it again.
    pub fn restart(&self, loss: Loss) {
        self.engine.kill(loss);
        self.engine.restart();
        self.start();
    }

    /// A node for a client process.
    pub fn client(&self) -> Node {
        self.sim.add_node(1)
    }

    /// Runs a task of a client, and the world with it, until it ends.
    pub fn run<T: 'static, F: Future<Output = T> + 'static>(
        &self,
        client: &Node,
        task: impl FnOnce(Client) -> F + 'static,
    ) -> T {
        let address = self.engine.address(0);
        self.sim
            .block_on(client, move |env| {
                let endpoint =
                    Endpoint::of(&env).unwrap_or_else(|| Endpoint::new(&env, EndpointConfig::default()));
                let caller = Caller::new(endpoint, ClientConfig::new(Identity { uid: 1000, gid: 1000 }));
                let service = Service::new(caller.clone(), vec![address.clone()]);
                task(Client { caller, service, address })
            })
            .expect("the task ends")
    }
}

/// What a client process works with.
pub struct Client {
    pub caller: Caller<SimEnv>,
    pub service: Service<SimEnv>,
    /// Where the engine's first xstream is.
    pub address: Address,
}

impl Client {
    /// Makes a pool `tank` with a container `box`.
    pub async fn make(&self) {
        let spec = PoolSpec { label: Some(label("tank")), bytes: POOL_BYTES, ..PoolSpec::default() };
        self.service.pool_create(&spec).await.expect("a pool");
        let pool = self.connect().await;
        pool.container_create(Some(label("box")), ContainerProperties::default(), None)
            .await
            .expect("a container");
        pool.disconnect().await.expect("disconnected");
    }

    pub async fn connect(&self) -> PoolHandle<SimEnv> {
        self.service.pool_connect(name("tank"), Capabilities::ALL).await.expect("connected")
    }

    pub async fn open(&self, options: OpenOptions) -> ContainerHandle<SimEnv> {
        self.connect().await.container_open(name("box"), options).await.expect("opened")
    }
}

pub fn label(text: &str) -> daos_dsm::rpc::control::Label {
    text.parse().expect("a label")
}

pub fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

pub fn kv(number: u64) -> ObjectId {
    ObjectId::new(ObjectType::KeyValue, KeyOrder::Lexical, KeyOrder::Hashed, ObjectClass(1), (0, 0, number))
}

pub fn array(number: u64) -> ObjectId {
    ObjectId::new(ObjectType::Array, KeyOrder::Hashed, KeyOrder::Hashed, ObjectClass(1), (0, 0, number))
}

pub fn document(number: u64) -> ObjectId {
    ObjectId::new(ObjectType::Document, KeyOrder::Lexical, KeyOrder::Lexical, ObjectClass(1), (0, 0, number))
}

/// The object's shard on target `ordinal`.
pub fn at(ordinal: u32, object: ObjectId) -> ObjectAddress {
    ObjectAddress { ordinal, map_version: 0, object }
}

/// Puts `value` under `key` of KV 1 on target `ordinal`.
pub async fn put(
    io: &ObjectIo<SimEnv>,
    ordinal: u32,
    epoch: u64,
    key: &str,
    value: &[u8],
) -> Result<(), DsmError> {
    let records = [UpdateRecord::Value { key: key.as_bytes(), value }];
    io.update(at(ordinal, kv(1)), Epoch(epoch), 0, b"", &records).await
}

/// The value of `key` of KV 1 on target `ordinal`.
pub async fn get(io: &ObjectIo<SimEnv>, ordinal: u32, epoch: u64, key: &str) -> Option<Vec<u8>> {
    let records = [ReadRecord::Value { key: key.as_bytes(), room: 0 }];
    let fetched = io.fetch(at(ordinal, kv(1)), Epoch(epoch), b"", &records).await.expect("fetched");
    let record = fetched.records().next().expect("a record");
    matches!(record.outcome, Outcome::Value { .. }).then(|| record.value.to_vec())
}
