//! Connecting: a client of a system, and its pools.

use std::{future::Future, path::Path, rc::Rc, time::Duration};

use daos_dsm::{
    access::{Acl, Capabilities, Identity},
    client::{Caller, ClientConfig, OpenOptions, PoolHandle, PoolSpec, Service, new_uuid},
    rpc::control::{
        ContainerEntry, ContainerProperties, Label, Name, PoolEntry, PoolQueryReply, StorageReply,
    },
};
use daos_dsp::{Attributes, FormatOptions, Fs};
use daos_xstream::{
    Address, Clock, Env, Pair,
    rpc::{Call, Endpoint, EndpointConfig, Opcode},
};
use daos_xstream_local::LocalFabric;
use daos_xstream_ofi::{OfiConfig, OfiFabric};
use uuid::Uuid;

use crate::{
    ClientEnv, Container, DaosError, System,
    env::{ClientClock, ClientRng},
};

/// Which fabric a client uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FabricChoice {
    /// Shared memory if the engine offers it, else the network.
    #[default]
    Nearest,
    /// Shared memory only.
    Local,
    /// The network only.
    Network,
}

/// A client of a system. A cheap handle; it stays on the thread that made it.
///
/// Generic over the world: programs use [`ClientEnv`], the simulator its own.
pub struct Client<E: Env = ClientEnv> {
    caller: Caller<E>,
    service: Rc<Service<E>>,
    addresses: Rc<[Address]>,
}

impl<E: Env> Clone for Client<E> {
    fn clone(&self) -> Self {
        Self { caller: self.caller.clone(), service: self.service.clone(), addresses: self.addresses.clone() }
    }
}

impl Client<ClientEnv> {
    /// Connects to the system of a development engine's folder, or of a client file (a copy of the `daos.json` that an
    /// engine writes).
    pub fn connect(path: impl AsRef<Path>) -> Result<Self, DaosError> {
        Self::connect_to(&System::read(path.as_ref())?, FabricChoice::Nearest)
    }

    /// Connects to a system.
    pub fn connect_to(system: &System, choice: FabricChoice) -> Result<Self, DaosError> {
        let identity =
            Identity { uid: rustix::process::getuid().as_raw(), gid: rustix::process::getgid().as_raw() };
        let addresses = system.service_addresses();
        let is_local = |address: &&Address| address.fabric() == "local";
        let local = addresses.iter().any(|address| is_local(&address)) && choice != FabricChoice::Network;
        let network = addresses.iter().find(|address| !is_local(address));
        let clock = ClientClock::default();
        let rng = ClientRng::from_system()
            .map_err(|error| daos_xstream::FabricError::Failed(format!("no randomness: {error}")))?;
        // Opening the network takes milliseconds: only who needs it pays for it.
        let ofi = match (local, network, choice) {
            (true, ..) => None,
            (false, Some(address), FabricChoice::Nearest | FabricChoice::Network) => {
                let config = OfiConfig::client_of(address.clone());
                let clock = clock.clone();
                Some(OfiFabric::open(config, move || clock.now(), rng.clone())?)
            }
            (false, ..) => {
                let what = "the engine offers no address of the fabric that was asked for";
                return Err(daos_xstream::FabricError::Unreachable(what.to_owned()).into());
            }
        };
        let fabric = Pair::new(LocalFabric::client()?, "local", ofi);
        let env = ClientEnv::new(clock, rng, fabric);
        let usable = |address: &Address| (address.fabric() == "local") == local;
        let addresses = addresses.into_iter().filter(usable).collect();
        let endpoint = Endpoint::new(&env, EndpointConfig::default());
        Ok(Self::with_endpoint(endpoint, ClientConfig::new(identity), addresses))
    }

    /// Runs until `future` is done: the blocking form of every call of this library.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.env().block_on(future)
    }
}

impl<E: Env> Client<E> {
    /// A client over an endpoint of any world. `addresses` are those of an engine's first target, nearest first.
    pub fn with_endpoint(endpoint: Endpoint<E>, config: ClientConfig, addresses: Vec<Address>) -> Self {
        let caller = Caller::new(endpoint, config);
        let service = Rc::new(Service::new(caller.clone(), addresses.clone()));
        Self { caller, service, addresses: addresses.into() }
    }

    /// The world.
    pub fn env(&self) -> &E {
        self.caller.env()
    }

    /// Calls of any procedure, repeated until they are answered.
    pub fn caller(&self) -> &Caller<E> {
        &self.caller
    }

    /// Makes a pool on every target of the engine.
    pub async fn pool_create(&self, spec: &PoolSpec) -> Result<PoolEntry, DaosError> {
        Ok(self.service.pool_create(spec).await?)
    }

    /// The engine's pools.
    pub async fn pool_list(&self) -> Result<Vec<PoolEntry>, DaosError> {
        Ok(self.service.pool_list().await?)
    }

    /// Destroys a pool with all it holds; refused while somebody is connected, unless forced.
    pub async fn pool_destroy(&self, pool: &str, force: bool) -> Result<(), DaosError> {
        Ok(self.service.pool_destroy(name(pool)?, force).await?)
    }

    /// Closes handles of a pool, of whomever they are; returns how many.
    pub async fn pool_evict(&self, pool: &str, handle: Option<Uuid>) -> Result<u64, DaosError> {
        Ok(self.service.pool_evict(name(pool)?, handle).await?)
    }

    /// Space of the engine's targets.
    pub async fn storage_query(&self) -> Result<StorageReply, DaosError> {
        Ok(self.service.storage_query().await?)
    }

    /// Connects to a pool by label or UUID, for reading and writing.
    pub async fn pool_connect(&self, pool: &str) -> Result<Pool<E>, DaosError> {
        self.pool_connect_as(pool, Capabilities::READ.with(Capabilities::WRITE)).await
    }

    /// Connects to a pool for what `capabilities` say.
    pub async fn pool_connect_as(
        &self,
        pool: &str,
        capabilities: Capabilities,
    ) -> Result<Pool<E>, DaosError> {
        let handle = self.service.pool_connect(name(pool)?, capabilities).await?;
        Ok(Pool { client: self.clone(), handle })
    }

    /// One attempt at a procedure of the engine's system module, such as telemetry or stop; returns the reply's body.
    pub async fn system_call(
        &self,
        opcode: Opcode,
        body: &[u8],
        timeout: Duration,
    ) -> Result<Vec<u8>, DaosError> {
        let call = Call { opcode, timeout, ..Call::default() };
        let refused = |error: daos_xstream::rpc::RpcError| {
            let message = error.to_string();
            DaosError::Service(match error {
                daos_xstream::rpc::RpcError::Refused { status, message, .. } => {
                    daos_dsm::client::DsmError::Refused { status, message }
                }
                _ => daos_dsm::client::DsmError::TimedOut { last: message },
            })
        };
        let endpoint = self.caller.endpoint();
        let mut last = None;
        for address in self.addresses.iter() {
            let result = match endpoint.connect(address).await {
                Ok(peer) => endpoint.call(peer, &call, &[body]).await,
                Err(error) => Err(error),
            };
            match result {
                Ok(reply) => return Ok(reply.body().to_vec()),
                Err(error) => last = Some(refused(error)),
            }
        }
        Err(last.unwrap_or(DaosError::NotNamed))
    }
}

/// A UUID or a label.
fn name(text: &str) -> Result<Name, DaosError> {
    text.parse().map_err(|error| DaosError::Service(daos_dsm::client::DsmError::from(error)))
}

/// A connection to a pool. Dropping it does not close it; [`disconnect`](Self::disconnect) does, and so does the end of
/// the process.
pub struct Pool<E: Env = ClientEnv> {
    client: Client<E>,
    handle: PoolHandle<E>,
}

impl<E: Env> Clone for Pool<E> {
    fn clone(&self) -> Self {
        Self { client: self.client.clone(), handle: self.handle.clone() }
    }
}

impl<E: Env> Pool<E> {
    /// The handle, for what has no call here.
    pub fn handle(&self) -> &PoolHandle<E> {
        &self.handle
    }

    /// State, access and, if asked for, the space of every target.
    pub async fn query(&self, space: bool) -> Result<PoolQueryReply, DaosError> {
        Ok(self.handle.query(space).await?)
    }

    /// The pool's containers.
    pub async fn container_list(&self) -> Result<Vec<ContainerEntry>, DaosError> {
        Ok(self.handle.list_containers().await?)
    }

    /// Makes a container. Returns its UUID.
    pub async fn container_create(
        &self,
        label: Option<&str>,
        properties: ContainerProperties,
        acl: Option<Acl>,
    ) -> Result<Uuid, DaosError> {
        let label = label.map(str::parse::<Label>).transpose();
        let label = label.map_err(|error| DaosError::Service(error.into()))?;
        Ok(self.handle.container_create(label, properties, acl).await?)
    }

    /// Makes a container that holds an empty file system, whose root directory belongs to the caller.
    pub async fn container_create_posix(
        &self,
        label: Option<&str>,
        format: FormatOptions,
    ) -> Result<Uuid, DaosError> {
        let properties = ContainerProperties { layout: "POSIX".to_owned(), ..ContainerProperties::default() };
        let uuid = self.container_create(label, properties, None).await?;
        let container = self.container_open(&uuid.to_string(), OpenOptions::WRITE).await?;
        let identity = self.client.caller.config().identity;
        let root = Attributes::new(0o755, identity.uid, identity.gid);
        Fs::format(&container.objects, format, root, &container.fs_options()).await?;
        container.close().await?;
        Ok(uuid)
    }

    /// Destroys a container with all it holds; refused while somebody has it open, unless forced.
    pub async fn container_destroy(&self, container: &str, force: bool) -> Result<(), DaosError> {
        Ok(self.handle.container_destroy(name(container)?, force).await?)
    }

    /// Opens a container by label or UUID.
    pub async fn container_open(
        &self,
        container: &str,
        options: OpenOptions,
    ) -> Result<Container<E>, DaosError> {
        let handle = self.handle.container_open(name(container)?, options).await?;
        Ok(Container::new(self.client.clone(), handle))
    }

    /// Closes the connection, and the container handles opened with it.
    pub async fn disconnect(self) -> Result<(), DaosError> {
        Ok(self.handle.disconnect().await?)
    }
}

/// A new random UUID from the client's world.
pub fn random_uuid<E: Env>(client: &Client<E>) -> Uuid {
    new_uuid(client.env())
}
