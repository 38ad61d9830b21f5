//! An open container: its epochs, snapshots and attributes.

use std::{cell::Cell, rc::Rc};

use daos_types::{Epoch, EpochRange};
use daos_xstream::{Env, rpc::Status};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use uuid::Uuid;

use super::{Caller, DsmError, ObjectIo, PoolHandle, new_uuid};
use crate::{
    access::Capabilities,
    epochs::EpochState,
    rpc::{
        container,
        control::{
            self, AttributesGet, AttributesReply, AttributesSet, ContainerOpen, ContainerOpened,
            ContainerProperties, ContainerQuery, ContainerQueryReply, EpochCommit, EpochDiscard,
            EpochRequest, Name, SnapshotList, SnapshotListRequest,
        },
        module,
    },
};

/// Names of attributes that one request carries: as many as always fit.
const NAMES_PER_REQUEST: usize = 6;

/// How a container is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenOptions {
    /// What the handle shall permit.
    pub capabilities: Capabilities,
    /// Hold the first epoch that can be held in the same step: for writers that do not choose epochs. They write in
    /// [`ContainerHandle::held`], and [`commit`](ContainerHandle::commit) it.
    pub hold: bool,
    /// Other processes will use the handle: it outlives the connection that opened it, until it is closed or evicted.
    pub shared: bool,
}

impl OpenOptions {
    /// For reading.
    pub const READ: Self = Self { capabilities: Capabilities::READ, hold: false, shared: false };
    /// For reading and writing in epochs that the caller chooses and holds.
    pub const WRITE: Self =
        Self { capabilities: Capabilities::READ.with(Capabilities::WRITE), hold: false, shared: false };
    /// For reading and writing in whatever epoch comes next.
    pub const NO_TRANSACTION: Self = Self { hold: true, ..Self::WRITE };
}

/// An open handle of a container. Clones are the same handle.
///
/// Dropping it does not close it: [`close`](Self::close) does, and so does the end of the process. What it has written
/// and not committed by then is gone.
pub struct ContainerHandle<E: Env>(Rc<Inner<E>>);

struct Inner<E: Env> {
    pool: PoolHandle<E>,
    handle: Uuid,
    container: Uuid,
    properties: ContainerProperties,
    capabilities: Capabilities,
    held: Cell<Epoch>,
}

impl<E: Env> Clone for ContainerHandle<E> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// What another process needs to use the handle.
#[derive(Serialize, Deserialize)]
struct Global {
    handle: Uuid,
    container: Uuid,
    properties: ContainerProperties,
    capabilities: Capabilities,
    held: Epoch,
}

impl<E: Env> ContainerHandle<E> {
    pub(super) async fn open(
        pool: PoolHandle<E>,
        container: Name,
        options: OpenOptions,
    ) -> Result<Self, DsmError> {
        let handle = new_uuid(pool.caller().env());
        let OpenOptions { capabilities, hold, shared } = options;
        let request = ContainerOpen { pool_handle: pool.handle(), container, capabilities, hold, shared };
        let opened: ContainerOpened =
            pool.call_with(handle, module::CONTAINER, container::OPEN, &request).await?;
        Ok(Self(Rc::new(Inner {
            pool,
            handle,
            container: opened.uuid,
            properties: opened.properties,
            capabilities: opened.capabilities,
            held: Cell::new(opened.epochs.lhe),
        })))
    }

    /// Packs the handle, so that another process of the group can use it. It should have been opened as
    /// [shared](OpenOptions::shared), or it ends with the process that opened it.
    pub fn local_to_global(&self) -> Vec<u8> {
        control::encode(&Global {
            handle: self.0.handle,
            container: self.0.container,
            properties: self.0.properties.clone(),
            capabilities: self.0.capabilities,
            held: self.held(),
        })
    }

    /// Rebuilds a handle that another process has packed.
    pub fn global_to_local(pool: PoolHandle<E>, bytes: &[u8]) -> Result<Self, DsmError> {
        let Global { handle, container, properties, capabilities, held } = control::decode(bytes)?;
        Ok(Self(Rc::new(Inner { pool, handle, container, properties, capabilities, held: Cell::new(held) })))
    }

    /// Closes the handle. What it did not commit is discarded.
    pub async fn close(self) -> Result<(), DsmError> {
        self.call(container::CLOSE, &()).await
    }

    /// The handle's UUID.
    pub fn handle(&self) -> Uuid {
        self.0.handle
    }

    /// The container.
    pub fn container(&self) -> Uuid {
        self.0.container
    }

    /// What the container is for.
    pub fn properties(&self) -> &ContainerProperties {
        &self.0.properties
    }

    /// What the handle permits.
    pub fn capabilities(&self) -> Capabilities {
        self.0.capabilities
    }

    /// The pool handle that it was opened with.
    pub fn pool(&self) -> &PoolHandle<E> {
        &self.0.pool
    }

    /// Objects of single targets, through this handle.
    pub fn objects(&self) -> ObjectIo<E> {
        ObjectIo::new(self.clone())
    }

    /// The lowest epoch that this handle holds, as far as this process knows: the one to write in.
    /// [`Epoch::MAX`] if it holds nothing.
    pub fn held(&self) -> Epoch {
        self.0.held.get()
    }

    /// Properties and counts.
    pub async fn query(&self) -> Result<ContainerQueryReply, DsmError> {
        let reply: ContainerQueryReply = self.call(container::QUERY, &ContainerQuery {}).await?;
        self.0.held.set(reply.epochs.lhe);
        Ok(reply)
    }

    /// The epochs as this handle sees them. Also tells the service that its owner lives.
    pub async fn epoch_query(&self) -> Result<EpochState, DsmError> {
        self.epochs(container::EPOCH_QUERY, &()).await
    }

    /// Holds `epoch`, or the first above the committed ones if that is later, and all above it; the result tells which.
    /// Writes below it, of this handle, are discarded. [`Epoch::MAX`] holds nothing any more.
    pub async fn hold(&self, epoch: Epoch) -> Result<EpochState, DsmError> {
        self.epochs(container::EPOCH_HOLD, &EpochRequest { epoch }).await
    }

    /// Moves the lowest referenced epoch forward, at most to the container's highest committed one.
    pub async fn slip(&self, epoch: Epoch) -> Result<EpochState, DsmError> {
        self.epochs(container::EPOCH_SLIP, &EpochRequest { epoch }).await
    }

    /// Returns once every acknowledged write up to `epoch` survives any crash.
    pub async fn flush(&self, epoch: Epoch) -> Result<EpochState, DsmError> {
        self.epochs(container::EPOCH_FLUSH, &EpochRequest { epoch }).await
    }

    /// Forgets what this handle has written and not committed in `range`.
    pub async fn discard(&self, range: EpochRange) -> Result<EpochState, DsmError> {
        self.epochs(container::EPOCH_DISCARD, &EpochDiscard { range }).await
    }

    /// Commits what this handle has written up to `epoch` and [flushed](Self::flush) before.
    pub async fn commit(&self, epoch: Epoch) -> Result<EpochState, DsmError> {
        let states = Self::commit_all(&self.0.pool, &[(self, epoch)]).await?;
        states.first().copied().ok_or(DsmError::BadReply(crate::rpc::Malformed("no state")))
    }

    /// Commits on several handles of containers of one pool: all or none.
    pub async fn commit_all(
        pool: &PoolHandle<E>,
        commits: &[(&Self, Epoch)],
    ) -> Result<Vec<EpochState>, DsmError> {
        let pairs = commits.iter().map(|(handle, epoch)| (handle.handle(), *epoch)).collect();
        let request = EpochCommit { commits: pairs };
        let first = commits.first().ok_or_else(|| DsmError::Invalid("nothing to commit".to_owned()))?.0;
        let states: Vec<EpochState> =
            pool.call_with(first.handle(), module::CONTAINER, container::EPOCH_COMMIT, &request).await?;
        for ((handle, _), state) in commits.iter().zip(&states) {
            handle.0.held.set(state.lhe);
        }
        Ok(states)
    }

    /// Waits until `epoch` is committed in the container, however long it takes.
    pub async fn wait(&self, epoch: Epoch) -> Result<EpochState, DsmError> {
        loop {
            match self.epochs(container::EPOCH_WAIT, &EpochRequest { epoch }).await {
                // Here or there: the service lets nobody wait for ever.
                Err(error) if error.status() == Status::TIMED_OUT => {}
                done => return done,
            }
        }
    }

    /// Takes a snapshot of a committed epoch.
    pub async fn snapshot_create(&self, epoch: Epoch) -> Result<EpochState, DsmError> {
        self.epochs(container::SNAPSHOT_CREATE, &EpochRequest { epoch }).await
    }

    /// Gives a snapshot up.
    pub async fn snapshot_destroy(&self, epoch: Epoch) -> Result<EpochState, DsmError> {
        self.epochs(container::SNAPSHOT_DESTROY, &EpochRequest { epoch }).await
    }

    /// The snapshots, oldest first.
    pub async fn snapshots(&self) -> Result<Vec<Epoch>, DsmError> {
        let mut snapshots: Vec<Epoch> = Vec::new();
        loop {
            let request = SnapshotListRequest { after: snapshots.last().copied() };
            let list: SnapshotList = self.call(container::SNAPSHOT_LIST, &request).await?;
            let advanced = !list.snapshots.is_empty();
            snapshots.extend(list.snapshots);
            if !list.more || !advanced {
                return Ok(snapshots);
            }
        }
    }

    /// Sets attributes, or removes those whose value is `None`.
    pub async fn attributes_set(&self, attributes: Vec<(String, Option<Vec<u8>>)>) -> Result<(), DsmError> {
        self.call(container::ATTRIBUTES_SET, &AttributesSet { attributes }).await
    }

    /// The attributes of these names that are there, by name; of all names if none is given.
    pub async fn attributes_get(&self, mut names: Vec<String>) -> Result<Vec<(String, Vec<u8>)>, DsmError> {
        names.sort_unstable();
        names.dedup();
        let mut attributes = Vec::new();
        if names.is_empty() {
            self.attributes_of(Vec::new(), &mut attributes).await?;
        }
        for some in names.chunks(NAMES_PER_REQUEST) {
            self.attributes_of(some.to_vec(), &mut attributes).await?;
        }
        Ok(attributes)
    }

    /// Adds the attributes of these names, or all, to `attributes`.
    async fn attributes_of(
        &self,
        names: Vec<String>,
        attributes: &mut Vec<(String, Vec<u8>)>,
    ) -> Result<(), DsmError> {
        let mut after = None;
        loop {
            let request = AttributesGet { names: names.clone(), after };
            let reply: AttributesReply = self.call(container::ATTRIBUTES_GET, &request).await?;
            let Some((last, _)) = reply.attributes.last() else { return Ok(()) };
            after = Some(last.clone());
            attributes.extend(reply.attributes);
            if !reply.more {
                return Ok(());
            }
        }
    }

    pub(super) fn caller(&self) -> &Caller<E> {
        self.0.pool.caller()
    }

    async fn epochs<Request: Serialize>(
        &self,
        procedure: u8,
        request: &Request,
    ) -> Result<EpochState, DsmError> {
        let state: EpochState = self.call(procedure, request).await?;
        self.0.held.set(state.lhe);
        Ok(state)
    }

    async fn call<Request: Serialize, Answer: DeserializeOwned>(
        &self,
        procedure: u8,
        request: &Request,
    ) -> Result<Answer, DsmError> {
        self.0.pool.call_with(self.0.handle, module::CONTAINER, procedure, request).await
    }
}
