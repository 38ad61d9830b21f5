//! Connecting: a client of a system, its pools, and open containers.

use std::{future::Future, path::Path, rc::Rc, time::Duration};

use daos_dsm::{
    access::{Acl, Capabilities, Identity},
    client::{
        Caller, ClientConfig, ContainerHandle, DsmError, OpenOptions, PoolHandle, PoolSpec, Service, new_uuid,
    },
    epochs::{EPOCH_LAST, EpochState},
    rpc::control::{
        ContainerEntry, ContainerProperties, Label, Name, PoolEntry, PoolQueryReply, StorageReply,
    },
};
use daos_dsp::{Attributes, FormatOptions, Fs, Options};
use daos_dsr::{
    class::{SX, class_by_name},
    client::{Anchor, Container as Objects, Epochs, Page, Ticket, enumerate_objects},
};
use daos_types::{Epoch, EpochRange, KeyOrder, ObjectClass, ObjectId, ObjectType};
use daos_xstream::{
    Address, Clock, Env, Pair, Rng,
    rpc::{Call, Endpoint, EndpointConfig, Opcode},
};
use daos_xstream_local::LocalFabric;
use daos_xstream_ofi::{OfiConfig, OfiFabric};
use uuid::Uuid;

use crate::{
    Array, ClientEnv, DaosError, Document, Kv, System,
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
        let held = handle.held();
        Ok(Container {
            client: self.client.clone(),
            objects: Objects::new(&handle),
            handle,
            automatic: Epochs::new(held),
        })
    }

    /// Closes the connection, and the container handles opened with it.
    pub async fn disconnect(self) -> Result<(), DaosError> {
        Ok(self.handle.disconnect().await?)
    }
}

/// When something is written, or read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum At {
    /// A write takes an epoch of its own; a read sees the newest state, uncommitted writes included.
    #[default]
    Auto,
    /// In this epoch.
    Epoch(Epoch),
}

impl From<Epoch> for At {
    fn from(epoch: Epoch) -> Self {
        Self::Epoch(epoch)
    }
}

/// An open container.
///
/// Two ways to write:
///
/// * **Explicit epochs**: [`hold`](Self::hold) one, write as much as wanted `At::Epoch` of it, [`flush`](Self::flush),
///   [`commit`](Self::commit): all of it becomes visible as one, or after a crash none of it is there.
/// * **Auto**: every call takes the next epoch by itself; [`sync`](Self::sync) makes what was written so far last. Mounted
///   file systems write so too.
///
/// They may be mixed: a commit, of whatever kind, commits everything of this handle up to its epoch, and waits for the
/// automatic writes under way there.
///
/// Dropping it does not close it; [`close`](Self::close) does, and so does the end of the process. What was not
/// committed by then is gone.
pub struct Container<E: Env = ClientEnv> {
    client: Client<E>,
    pub(crate) objects: Objects<E>,
    handle: ContainerHandle<E>,
    /// Epochs of automatic writes.
    automatic: Rc<Epochs>,
}

impl<E: Env> Clone for Container<E> {
    fn clone(&self) -> Self {
        Self {
            client: self.client.clone(),
            objects: self.objects.clone(),
            handle: self.handle.clone(),
            automatic: self.automatic.clone(),
        }
    }
}

impl<E: Env> Container<E> {
    /// The handle, for what has no call here.
    pub fn handle(&self) -> &ContainerHandle<E> {
        &self.handle
    }

    /// The world.
    pub fn env(&self) -> &E {
        self.client.env()
    }

    /// Objects as DSR serves them.
    pub fn objects(&self) -> &Objects<E> {
        &self.objects
    }

    /// A new object ID, random: of this type, in the class of this name (such as `S1`, `SX`; `None`: the container's own,
    /// or else all targets), with keys hashed.
    pub fn new_object_id(&self, object_type: ObjectType, class: Option<&str>) -> Result<ObjectId, DaosError> {
        let class = match (class, self.handle.properties().object_class) {
            (Some(name), _) => class_by_name(name)?,
            (None, 0) => SX,
            (None, class) => ObjectClass(class),
        };
        let rng = self.env().rng();
        let caller = (rng.next_u64() as u32, rng.next_u64(), rng.next_u64());
        Ok(ObjectId::new(object_type, KeyOrder::Hashed, KeyOrder::Hashed, class, caller))
    }

    /// A key-value object.
    pub fn kv(&self, id: ObjectId) -> Result<Kv<E>, DaosError> {
        Kv::open(self, id)
    }

    /// A byte array.
    pub fn array(&self, id: ObjectId) -> Result<Array<E>, DaosError> {
        Array::open(self, id)
    }

    /// A document: distribution key → attribute key → value.
    pub fn document(&self, id: ObjectId) -> Result<Document<E>, DaosError> {
        Document::open(self, id)
    }

    /// Lists the container's objects. Pages may be empty before the end.
    pub async fn list_objects(
        &self,
        at: impl Into<At>,
        anchor: &Anchor,
        objects_max: u32,
    ) -> Result<Page<ObjectId>, DaosError> {
        Ok(enumerate_objects(&self.objects, read_epoch(at.into()), anchor, objects_max).await?)
    }

    /// Mounts the container's file system for reading and writing.
    pub async fn mount(&self) -> Result<Fs<Objects<E>>, DaosError> {
        Ok(Fs::mount(&self.objects, self.fs_options()).await?)
    }

    /// Mounts the container's file system for filling it: the times of directories do not change with their entries, which
    /// saves a request for every change.
    pub async fn mount_for_copy(&self) -> Result<Fs<Objects<E>>, DaosError> {
        Ok(Fs::mount(&self.objects, Options { directory_times: false, ..self.fs_options() }).await?)
    }

    /// Mounts the container's file system as it was at an epoch, for reading.
    pub async fn mount_at(&self, epoch: Epoch) -> Result<Fs<Objects<E>>, DaosError> {
        Ok(Fs::mount(&self.objects, Options { read_at: Some(epoch), ..self.fs_options() }).await?)
    }

    /// What a mount gets from this world; with it [`Fs::mount`] can be called with other options.
    pub fn fs_options(&self) -> Options {
        let env = self.env().clone();
        Options {
            now: Rc::new(move || env.clock().wall().0),
            random: self.env().rng().next_u64(),
            directory_times: true,
            read_at: None,
            epochs: self.automatic.clone(),
        }
    }

    /// The epochs, as this handle sees them.
    pub async fn epochs(&self) -> Result<EpochState, DaosError> {
        Ok(self.handle.epoch_query().await?)
    }

    /// Holds `epoch`, or the first that can be held if that is later, and returns it: the first epoch to write in. If an
    /// earlier one was held, what was written below `epoch` and not committed is given up; file systems that were mounted
    /// before must be mounted again then.
    pub async fn hold(&self, epoch: Epoch) -> Result<Epoch, DaosError> {
        let giving_up = match self.handle.held() < epoch {
            true => Some(self.automatic.give_up().await),
            false => None,
        };
        let held = self.handle.hold(epoch).await?.lhe;
        match giving_up {
            Some(giving_up) => giving_up.done(epoch, held),
            None => self.automatic.begin_at(held),
        }
        Ok(held)
    }

    /// Returns once everything written up to `epoch` survives any crash. Waits for the automatic writes that are under way
    /// there, so that a [`commit`](Self::commit) takes none of them by half; later ones go beyond it.
    pub async fn flush(&self, epoch: Epoch) -> Result<(), DaosError> {
        self.close_epochs(epoch).await;
        self.handle.flush(epoch).await?;
        Ok(())
    }

    /// Commits everything up to `epoch`, which was flushed; the epochs after it stay held.
    pub async fn commit(&self, epoch: Epoch) -> Result<(), DaosError> {
        self.close_epochs(epoch).await;
        self.automatic.check_whole(epoch)?;
        let lhe = self.handle.commit(epoch).await?.lhe;
        self.automatic.begin_at(lhe);
        Ok(())
    }

    async fn close_epochs(&self, epoch: Epoch) {
        // Nothing can be committed beyond the last epoch, so nobody has to wait.
        if epoch <= EPOCH_LAST {
            self.automatic.close(epoch).await;
        }
    }

    /// Forgets everything that was written through this handle and not committed; it can be written again. File systems that
    /// were mounted before must be mounted again. If there were automatic writes, what is held begins after them from then on.
    pub async fn discard(&self) -> Result<(), DaosError> {
        Ok(self.discard_uncommitted().await?)
    }

    pub(crate) async fn discard_uncommitted(&self) -> Result<(), DsmError> {
        let giving_up = self.automatic.give_up().await;
        self.handle.discard(EpochRange { low: Epoch::ZERO, high: Epoch::MAX }).await?;
        // A write that nobody awaits any more may still be on its way. From here on it is refused.
        let mut held = self.handle.held();
        if held < self.automatic.reached() {
            held = self.handle.hold(self.automatic.reached()).await?.lhe;
        }
        giving_up.done(Epoch::MAX, held);
        Ok(())
    }

    /// Waits until `epoch` is committed, by whomever.
    pub async fn wait(&self, epoch: Epoch) -> Result<EpochState, DaosError> {
        Ok(self.handle.wait(epoch).await?)
    }

    /// Makes every automatic write that was complete before the call last, operations of mounted file systems too; returns
    /// the committed epoch. Waits for those under way, so that none of them is committed by half; those to come write in
    /// later epochs meanwhile. A write that was given up (its future was dropped) may be there in part; one that nobody polls
    /// holds everything up.
    pub async fn sync(&self) -> Result<Epoch, DaosError> {
        Ok(self.automatic.sync(&self.objects).await?)
    }

    /// Takes a snapshot of the newest committed epoch (or of `epoch`) and returns it.
    pub async fn snapshot_create(&self, epoch: Option<Epoch>) -> Result<Epoch, DaosError> {
        let epoch = match epoch {
            Some(epoch) => epoch,
            None => self.handle.epoch_query().await?.container_hce,
        };
        self.handle.snapshot_create(epoch).await?;
        Ok(epoch)
    }

    /// The snapshots, oldest first.
    pub async fn snapshots(&self) -> Result<Vec<Epoch>, DaosError> {
        Ok(self.handle.snapshots().await?)
    }

    /// Gives a snapshot up.
    pub async fn snapshot_destroy(&self, epoch: Epoch) -> Result<(), DaosError> {
        self.handle.snapshot_destroy(epoch).await?;
        Ok(())
    }

    /// Closes the handle. What it did not commit is discarded.
    pub async fn close(self) -> Result<(), DaosError> {
        Ok(self.handle.close().await?)
    }

    /// Epoch of a write, which lasts as long as this is kept.
    pub(crate) async fn turn(&self, at: At) -> Result<Turn, DaosError> {
        if let At::Epoch(epoch) = at {
            return Ok(Turn::Chosen(epoch));
        }
        self.automatic.begin(&self.objects).await?;
        let ticket = self.automatic.ticket();
        // Automatic writes are ordered by when they are called, not by when they arrive.
        self.automatic.advance();
        Ok(Turn::Automatic(ticket))
    }

    /// Lets automatic writes go where they may, after a target has refused one: somebody else has committed that epoch.
    pub(crate) async fn overtaken(&self) -> Result<(), DaosError> {
        let mut held = self.handle.epoch_query().await?.lhe;
        if held == Epoch::MAX {
            held = self.handle.hold(Epoch::ZERO).await?.lhe;
        }
        self.automatic.begin_at(held);
        Ok(())
    }
}

/// The right to write into an epoch.
pub(crate) enum Turn {
    Chosen(Epoch),
    Automatic(Ticket),
}

impl Turn {
    pub(crate) fn epoch(&self) -> Epoch {
        match self {
            Self::Chosen(epoch) => *epoch,
            Self::Automatic(ticket) => ticket.epoch(),
        }
    }
}

/// Epoch of a read.
pub(crate) fn read_epoch(at: At) -> Epoch {
    match at {
        At::Epoch(epoch) => epoch,
        At::Auto => Epoch::MAX,
    }
}

/// A new random UUID from the client's world.
pub fn random_uuid<E: Env>(client: &Client<E>) -> Uuid {
    new_uuid(client.env())
}
