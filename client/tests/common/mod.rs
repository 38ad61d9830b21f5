//! An engine of two targets in the simulator, and clients of it.
#![allow(dead_code, reason = "each test file uses its part")]

use std::{cell::Cell, future::Future, rc::Rc, time::Duration};

use daos::{Client, ClientConfig, Container, FormatOptions, Identity, OpenOptions, PoolSpec};
use daos_dsm::service::{self, ServiceConfig};
use daos_xstream::rpc::{Endpoint, EndpointConfig};
use daos_xstream_sim::{Config, Loss, Node, SimEnv, Simulation};

pub struct Cluster {
    pub sim: Simulation,
    pub engine: Node,
}

impl Cluster {
    pub fn new(seed: u64) -> Self {
        Self::with(seed, Config::default())
    }

    pub fn with(seed: u64, config: Config) -> Self {
        let sim = Simulation::new(seed, config);
        let engine = sim.add_node(2);
        let cluster = Self { sim, engine };
        cluster.start();
        cluster
    }

    fn start(&self) {
        let started = Rc::new(Cell::new(0));
        self.engine.start(|env| {
            let started = started.clone();
            async move {
                let endpoint = Endpoint::new(&env, EndpointConfig { rank: 0, ..EndpointConfig::default() });
                service::start(&env, &endpoint, ServiceConfig::default()).await.expect("the services start");
                started.set(started.get() + 1);
            }
        });
        self.sim.run_until(Duration::from_secs(60), || started.get() == 2).expect("the engine starts");
    }

    /// Kills the engine, loses what it had not made durable, and starts it again.
    pub fn restart(&self) {
        self.engine.kill(Loss::Power);
        self.engine.restart();
        self.start();
    }

    /// Runs a task of a client process of its own, and the world with it, until the task ends.
    pub fn run<T: 'static, F: Future<Output = T> + 'static>(
        &self,
        task: impl FnOnce(Client<SimEnv>) -> F + 'static,
    ) -> T {
        let node = self.sim.add_node(1);
        let address = self.engine.address(0);
        self.sim
            .block_on(&node, move |env| {
                let endpoint = Endpoint::new(&env, EndpointConfig::default());
                let config = ClientConfig::new(Identity { uid: 1000, gid: 1000 });
                task(Client::with_endpoint(endpoint, config, vec![address]))
            })
            .expect("the task ends")
    }

    /// Starts a task of a client process of its own, which goes on until the node is killed.
    pub fn start_client<F: Future<Output = ()> + 'static>(
        &self,
        task: impl FnOnce(Client<SimEnv>) -> F + 'static,
    ) -> Node {
        self.start_client_with(ClientConfig::new(Identity { uid: 1000, gid: 1000 }), task)
    }

    /// The same, of a client with this patience.
    pub fn start_client_with<F: Future<Output = ()> + 'static>(
        &self,
        config: ClientConfig,
        task: impl FnOnce(Client<SimEnv>) -> F + 'static,
    ) -> Node {
        let node = self.sim.add_node(1);
        let address = self.engine.address(0);
        let task = Cell::new(Some(task));
        node.start(move |env| {
            let endpoint = Endpoint::new(&env, EndpointConfig::default());
            let task = task.take().expect("a client has one core");
            task(Client::with_endpoint(endpoint, config.clone(), vec![address.clone()]))
        });
        node
    }

    /// Makes pool `tank` with a container `box` and a POSIX container `tree`.
    pub fn make(&self) {
        self.run(|client| async move {
            let label = Some("tank".parse().expect("a label"));
            let spec = PoolSpec { label, bytes: 256 << 20, ..PoolSpec::default() };
            client.pool_create(&spec).await.expect("a pool");
            let pool = client.pool_connect("tank").await.expect("connected");
            let properties = daos::ContainerProperties::default();
            pool.container_create(Some("box"), properties, None).await.expect("a container");
            pool.container_create_posix(Some("tree"), FormatOptions::default()).await.expect("a file system");
            pool.disconnect().await.expect("disconnected");
        });
    }
}

pub async fn open(client: &Client<SimEnv>, container: &str) -> Container<SimEnv> {
    let pool = client.pool_connect("tank").await.expect("connected");
    pool.container_open(container, OpenOptions::WRITE).await.expect("opened")
}
