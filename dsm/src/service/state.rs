//! One pool as its service has it in memory: what the metadata store holds, and who uses it.
//!
//! # Invariants
//!
//! * Memory and the metadata store agree: both are changed in one step without suspension, or neither is.
//! * Who owns a handle (a connection) is volatile. After a restart nobody does, until a request with the handle arrives.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use daos_types::{Epoch, EpochRange};
use daos_vos::Pool;
use daos_xstream::{Env, PeerId, Time, rpc::Status, sync::Notify};
use uuid::Uuid;

use super::{
    rdb::{Batch, Rdb, Table, is_reserved},
    records::{self, ContainerRecord, HandleRecord, Kind, PoolHandleRecord, PoolRecord},
    refusal::Refusal,
    target::HandleInfo,
};
use crate::{
    access::Capabilities,
    epochs::{Before, ContainerEpochs},
    pool_map::PoolMap,
    rpc::control::Name,
};

/// One pool.
pub struct PoolState<E: Env> {
    /// The pool.
    pub uuid: Uuid,
    /// Its metadata store.
    pub rdb: Rdb<E>,
    /// What changes.
    pub tables: RefCell<Tables>,
    /// Told whenever a container's HCE may have moved and that is settled.
    pub committed: Notify,
}

/// What changes in a pool.
pub struct Tables {
    /// The pool itself.
    pub record: PoolRecord,
    /// Its map.
    pub map: PoolMap,
    /// Open pool handles.
    pub handles: BTreeMap<Uuid, PoolHandleRecord>,
    /// Pool handles that are being closed: nothing is opened with them any more.
    pub leaving: BTreeSet<Uuid>,
    /// Containers, also those that are being destroyed.
    pub containers: BTreeMap<Uuid, ContainerState>,
    /// Containers that are marked to be destroyed: nobody opens one, no list has it, and it never comes back.
    pub destroying: BTreeMap<Uuid, Destruction>,
    /// Container of each open container handle.
    pub container_of: BTreeMap<Uuid, Uuid>,
    /// Pool handle and container handle, of each open container handle.
    opened_with: BTreeSet<(Uuid, Uuid)>,
    /// Who uses the handles, pool and container handles alike.
    pub owners: BTreeMap<Uuid, Owner>,
}

/// One container.
pub struct ContainerState {
    /// What it is.
    pub record: ContainerRecord,
    /// Its epochs.
    pub epochs: ContainerEpochs,
    /// Its open handles. Their epochs are in `epochs`, not here.
    pub handles: BTreeMap<Uuid, OpenHandle>,
}

/// How far the destruction of a container is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destruction {
    /// It goes on.
    UnderWay,
    /// A failure or a restart has ended it; it has to be taken up again.
    Halted,
}

/// An open container handle, as far as it is not epochs.
#[derive(Clone, Debug)]
pub struct OpenHandle {
    /// The pool handle that it was opened with.
    pub pool_handle: Uuid,
    /// What it permits.
    pub capabilities: Capabilities,
    /// It outlives the connection that opened it.
    pub shared: bool,
    /// How often its LHE was changed by a hold since the service started: which of two things that targets are told is newer.
    pub holds: u64,
    /// It is being closed.
    pub closing: bool,
    /// Targets have begun to refuse it: it can only be closed, if need be again, for what it wrote may be half discarded.
    pub revoked: bool,
}

impl OpenHandle {
    /// A handle that is open.
    pub fn new(pool_handle: Uuid, capabilities: Capabilities, shared: bool) -> Self {
        Self { pool_handle, capabilities, shared, holds: 0, closing: false, revoked: false }
    }
}

/// Who uses a handle.
#[derive(Clone, Copy, Debug)]
pub struct Owner {
    /// The connection of the last request; `None` once it is gone.
    pub peer: Option<PeerId>,
    /// Whether the kernel vouches for the peer, so that a lost connection hardly means anything but a dead process.
    pub verified: bool,
    /// Since when nobody has used it.
    pub gone_since: Option<Time>,
}

impl<E: Env> PoolState<E> {
    /// The state of a new pool; nothing is stored yet.
    pub fn new(uuid: Uuid, rdb: Rdb<E>, record: PoolRecord, map: PoolMap) -> Rc<Self> {
        let tables = Tables {
            record,
            map,
            handles: BTreeMap::new(),
            leaving: BTreeSet::new(),
            containers: BTreeMap::new(),
            destroying: BTreeMap::new(),
            container_of: BTreeMap::new(),
            opened_with: BTreeSet::new(),
            owners: BTreeMap::new(),
        };
        Rc::new(Self { uuid, rdb, tables: RefCell::new(tables), committed: Notify::new() })
    }

    /// Loads what the metadata store in `vpool` holds. Every handle counts as unused since `now`.
    pub fn load(uuid: Uuid, vpool: &Pool<E>, now: Time) -> Result<Rc<Self>, Refusal> {
        let rdb = Rdb::open(vpool)?;
        let missing = || Refusal::new(Status::CORRUPT, "the pool's metadata is incomplete");
        let record = records::decode(&rdb.get(Table::Main, records::POOL)?.ok_or_else(missing)?)?;
        let map = records::decode(&rdb.get(Table::Main, records::MAP)?.ok_or_else(missing)?)?;
        let unused = Owner { peer: None, verified: false, gone_since: Some(now) };
        let state = Self::new(uuid, rdb, record, map);
        let tables = &mut *state.tables.borrow_mut();
        for (key, value) in state.rdb.range(Table::Main, b"p ")? {
            let handle = records::uuid_at(&key, 0)?;
            tables.handles.insert(handle, records::decode(&value)?);
            tables.owners.insert(handle, unused);
        }
        for (key, value) in state.rdb.range(Table::Main, b"c ")? {
            let container = records::uuid_at(&key, 0)?;
            if is_reserved(container) {
                state.rdb.submit(&records_of_reserved(&state.rdb, container)?)?;
                continue;
            }
            let hce_key = records::key(Kind::Hce, &[container.as_bytes()]);
            let hce = records::decode(&state.rdb.get(Table::Main, &hce_key)?.ok_or_else(missing)?)?;
            let (mut handles, mut epochs) = (BTreeMap::new(), Vec::new());
            let prefix = records::key(Kind::Handle, &[container.as_bytes()]);
            for (key, value) in state.rdb.range(Table::Main, &prefix)? {
                let handle = records::uuid_at(&key, 1)?;
                let stored: HandleRecord = records::decode(&value)?;
                let HandleRecord { pool_handle, capabilities, shared, epochs: own } = stored;
                handles.insert(handle, OpenHandle::new(pool_handle, capabilities, shared));
                epochs.push((handle, own));
                tables.add_open(handle, container, pool_handle);
                tables.owners.insert(handle, unused);
            }
            let prefix = records::key(Kind::Snapshot, &[container.as_bytes()]);
            let snapshots = state.rdb.range(Table::Main, &prefix)?;
            let snapshots: Result<Vec<Epoch>, _> =
                snapshots.iter().map(|(key, _)| records::epoch_of(key)).collect();
            let epochs = ContainerEpochs::load(hce, epochs, snapshots?);
            let record = records::decode(&value)?;
            tables.containers.insert(container, ContainerState { record, epochs, handles });
        }
        for (key, _) in state.rdb.range(Table::Main, b"d ")? {
            tables.destroying.insert(records::uuid_at(&key, 0)?, Destruction::Halted);
        }
        Ok(state.clone())
    }

    /// Changes the epochs of a handle (or of none but the container's) and stores them with `batch`. If they cannot be
    /// stored they are as they were.
    pub fn change_epochs<R>(
        &self,
        container: Uuid,
        handle: Uuid,
        batch: Batch,
        change: impl FnOnce(&mut ContainerEpochs) -> Result<R, Refusal>,
    ) -> Result<R, Refusal> {
        let tables = &mut *self.tables.borrow_mut();
        let state = tables.container(container)?;
        let before = state.epochs.before(handle);
        let outcome = change(&mut state.epochs).and_then(|outcome| {
            let mut batch = batch;
            state.put_epochs(container, handle, &mut batch);
            self.rdb.submit(&batch)?;
            Ok(outcome)
        });
        if outcome.is_err() {
            state.epochs.restore(before);
        }
        outcome
    }

    /// Begins a discard of what a handle wrote in `range`; returns the part of it that may be discarded.
    pub fn begin_discard(
        &self,
        container: Uuid,
        handle: Uuid,
        range: EpochRange,
    ) -> Result<EpochRange, Refusal> {
        Ok(self.tables.borrow_mut().container(container)?.epochs.begin_discard(handle, range)?)
    }

    /// Notes that a discard has failed.
    pub fn discard_failed(&self, container: Uuid, handle: Uuid) {
        if let Ok(state) = self.tables.borrow_mut().container(container) {
            state.epochs.discard_failed(handle);
        }
    }

    /// Commits several handles in one batch: all or none. They must be open, in containers of this pool.
    pub fn commit(&self, commits: &[(Uuid, Epoch)]) -> Result<(), Refusal> {
        let tables = &mut *self.tables.borrow_mut();
        let (mut undo, mut batch): (Vec<(Uuid, Before)>, _) = (Vec::new(), Batch::default());
        let outcome = commits.iter().try_for_each(|(handle, epoch)| {
            let container = tables.open_handle(*handle)?.0;
            let state = tables.container(container)?;
            undo.push((container, state.epochs.before(*handle)));
            state.epochs.commit(*handle, *epoch)?;
            state.put_epochs(container, *handle, &mut batch);
            Ok::<(), Refusal>(())
        });
        let outcome = outcome.and_then(|()| Ok(self.rdb.submit(&batch)?));
        if outcome.is_err() {
            for (container, before) in undo.into_iter().rev() {
                if let Ok(state) = tables.container(container) {
                    state.epochs.restore(before);
                }
            }
        }
        outcome
    }
}

impl ContainerState {
    /// Puts the container's HCE, and the record of `handle` as it is now, into a batch.
    fn put_epochs(&self, container: Uuid, handle: Uuid, batch: &mut Batch) {
        let key = records::key(Kind::Hce, &[container.as_bytes()]);
        batch.put(Table::Main, key, records::encode(&self.epochs.record()));
        let key = records::key(Kind::Handle, &[container.as_bytes(), handle.as_bytes()]);
        match (self.epochs.handle(handle), self.handles.get(&handle)) {
            (Ok(epochs), Some(open)) => {
                let OpenHandle { pool_handle, capabilities, shared, .. } = *open;
                let record = HandleRecord { pool_handle, capabilities, shared, epochs: *epochs };
                batch.put(Table::Main, key, records::encode(&record));
            }
            _ => batch.remove(Table::Main, key),
        }
    }
}

impl Tables {
    /// A container.
    pub fn container(&mut self, uuid: Uuid) -> Result<&mut ContainerState, Refusal> {
        self.containers
            .get_mut(&uuid)
            .ok_or_else(|| Refusal::new(Status::NOT_FOUND, format!("the pool has no container {uuid}")))
    }

    /// The container of this name. The reserved one has none, and what is being destroyed has none any more.
    pub fn container_named(&self, name: &Name) -> Option<Uuid> {
        let found = match name {
            Name::Uuid(uuid) => self.containers.contains_key(uuid).then_some(*uuid),
            Name::Label(label) => self.containers.iter().find_map(|(uuid, state)| {
                let named = state.record.label.as_ref() == Some(label);
                (named && !self.destroying.contains_key(uuid)).then_some(*uuid)
            }),
        };
        found.filter(|uuid| !is_reserved(*uuid) && !self.destroying.contains_key(uuid))
    }

    /// The container that had this name and is being destroyed.
    pub fn destroying_named(&self, name: &Name) -> Option<(Uuid, Destruction)> {
        let named = |uuid: &Uuid| match name {
            Name::Uuid(wanted) => uuid == wanted,
            Name::Label(label) => {
                self.containers.get(uuid).is_some_and(|state| state.record.label.as_ref() == Some(label))
            }
        };
        self.destroying.iter().find(|(uuid, _)| named(uuid)).map(|(uuid, how_far)| (*uuid, *how_far))
    }

    /// The container handles that were opened with a pool handle.
    pub fn opened_with(&self, pool_handle: Uuid) -> impl Iterator<Item = Uuid> {
        let range = (pool_handle, Uuid::nil())..=(pool_handle, Uuid::max());
        self.opened_with.range(range).map(|(_, handle)| *handle)
    }

    /// Adds the container handle that a pool handle has opened.
    pub fn add_open(&mut self, handle: Uuid, container: Uuid, pool_handle: Uuid) {
        self.container_of.insert(handle, container);
        self.opened_with.insert((pool_handle, handle));
    }

    /// Takes a container handle out.
    pub fn remove_open(&mut self, handle: Uuid) {
        let container = self.container_of.remove(&handle);
        let open = container
            .and_then(|container| self.containers.get_mut(&container))
            .and_then(|state| state.handles.remove(&handle));
        if let Some(open) = open {
            self.opened_with.remove(&(open.pool_handle, handle));
        }
        self.forget_owner(handle);
    }

    /// Forgets who used a handle that is gone. Pools made before the UUIDs of handles were checked may have two of one.
    pub fn forget_owner(&mut self, handle: Uuid) {
        if !self.handles.contains_key(&handle) && !self.container_of.contains_key(&handle) {
            self.owners.remove(&handle);
        }
    }

    /// The pool handle, if it permits `needed`.
    pub fn pool_handle(&self, handle: Uuid, needed: Capabilities) -> Result<&PoolHandleRecord, Refusal> {
        let record = self
            .handles
            .get(&handle)
            .filter(|_| !self.leaving.contains(&handle))
            .ok_or_else(|| Refusal::new(Status::BAD_HANDLE, "the pool handle is not open"))?;
        permit(record.capabilities, needed)?;
        Ok(record)
    }

    /// The container of an open handle, and the handle.
    pub fn open_handle(&self, handle: Uuid) -> Result<(Uuid, OpenHandle), Refusal> {
        let bad = || Refusal::new(Status::BAD_HANDLE, "the container handle is not open");
        let container = *self.container_of.get(&handle).ok_or_else(bad)?;
        let open = self.containers.get(&container).and_then(|state| state.handles.get(&handle));
        match open {
            Some(open) if !open.closing && !open.revoked => Ok((container, open.clone())),
            _ => Err(bad()),
        }
    }

    /// Whether closing the handle has failed after it had begun. Nothing else is possible with it.
    pub fn is_half_closed(&self, handle: Uuid) -> bool {
        let container = self.container_of.get(&handle).and_then(|container| self.containers.get(container));
        let open = container.and_then(|state| state.handles.get(&handle));
        open.is_some_and(|open| open.revoked && !open.closing)
    }

    /// Makes what targets are told of a handle's LHE from now on newer than what they were told before.
    pub fn begin_hold(&mut self, handle: Uuid) {
        let container =
            self.container_of.get(&handle).and_then(|container| self.containers.get_mut(container));
        if let Some(open) = container.and_then(|state| state.handles.get_mut(&handle)) {
            open.holds += 1;
        }
    }

    /// What targets are told about an open handle.
    pub fn info(&self, pool: Uuid, handle: Uuid) -> Result<HandleInfo, Refusal> {
        self.open_handle(handle)?;
        self.info_of_any(pool, handle)
    }

    /// The same, of one that may be half closed.
    pub fn info_of_any(&self, pool: Uuid, handle: Uuid) -> Result<HandleInfo, Refusal> {
        let bad = || Refusal::new(Status::BAD_HANDLE, "the container handle is not open");
        let container = *self.container_of.get(&handle).ok_or_else(bad)?;
        let state = self.containers.get(&container).ok_or(Status::NOT_FOUND)?;
        let open = state.handles.get(&handle).ok_or_else(bad)?;
        let epochs = state.epochs.handle(handle)?;
        Ok(HandleInfo {
            pool,
            container,
            handle,
            cookie: epochs.cookie,
            capabilities: open.capabilities,
            lhe: epochs.lhe.unwrap_or(Epoch::MAX),
            holds: open.holds,
            flushed: epochs.flushed,
        })
    }
}

/// Removes what the records say of a container that has the UUID of the pool's own. A client could make one once; nobody
/// could ever open it, or destroy it. The container itself is the metadata store, and stays.
fn records_of_reserved<E: Env>(rdb: &Rdb<E>, container: Uuid) -> Result<Batch, Refusal> {
    tracing::warn!(%container, "forgetting a container that has the UUID of the pool's own");
    let mut batch = Batch::default();
    for kind in [Kind::Container, Kind::Hce, Kind::Handle, Kind::Snapshot, Kind::Destroying] {
        for key in rdb.keys(Table::Main, &records::key(kind, &[container.as_bytes()]))? {
            batch.remove(Table::Main, key);
        }
    }
    Ok(batch)
}

/// Refuses what `granted` does not permit.
pub fn permit(granted: Capabilities, needed: Capabilities) -> Result<(), Refusal> {
    if granted.permits(needed) {
        return Ok(());
    }
    let message = format!("the handle permits {granted:?}; this needs {needed:?}");
    Err(Refusal::new(Status::NOT_PERMITTED, message))
}
