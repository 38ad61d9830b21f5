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
    epochs::{Before, ContainerEpochs, ContainerHce},
    pool_map::PoolMap,
    rpc::control::{Label, Name},
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
    /// Container of each label, of those that are not being destroyed.
    labels: BTreeMap<Label, Uuid>,
    /// Container of each open container handle.
    pub container_of: BTreeMap<Uuid, Uuid>,
    /// Pool handle and container handle, of each open container handle.
    opened_with: BTreeSet<(Uuid, Uuid)>,
    /// Who uses the handles, pool and container handles alike.
    pub owners: BTreeMap<Uuid, Owner>,
    /// Handles that were taken out, as long as that is not settled, with the number of the removal.
    removed: BTreeMap<Uuid, u64>,
    removals: u64,
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
pub struct Destruction {
    /// It goes on. Otherwise a failure or a restart has ended it, and it has to be taken up again.
    pub under_way: bool,
    /// How often it has failed since the service started.
    pub failures: u32,
    /// When it is to be taken up again, if nobody asks before.
    pub due: Time,
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
        Self::with(uuid, rdb, Tables::new(record, map))
    }

    fn with(uuid: Uuid, rdb: Rdb<E>, tables: Tables) -> Rc<Self> {
        Rc::new(Self { uuid, rdb, tables: RefCell::new(tables), committed: Notify::new() })
    }

    /// Loads what the metadata store in `vpool` holds, in one pass over it. Every handle counts as unused since `now`.
    pub async fn load(uuid: Uuid, vpool: &Pool<E>, now: Time) -> Result<Rc<Self>, Refusal> {
        let rdb = Rdb::open(vpool)?;
        let record = records::decode(&rdb.get(Table::Main, records::POOL)?.ok_or_else(incomplete)?)?;
        let map = records::decode(&rdb.get(Table::Main, records::MAP)?.ok_or_else(incomplete)?)?;
        let mut tables = Tables::new(record, map);
        let unused = Owner { peer: None, verified: false, gone_since: Some(now) };
        let of_kind = |kind| records::key(kind, &[]);
        rdb.for_each(Table::Main, &of_kind(Kind::PoolHandle), |key, value| {
            let handle = records::uuid_at(key, 0)?;
            tables.handles.insert(handle, records::decode(value)?);
            tables.owners.insert(handle, unused);
            Ok::<(), Refusal>(())
        })
        .await?;
        let mut found: BTreeMap<Uuid, Found> = BTreeMap::new();
        rdb.for_each(Table::Main, &of_kind(Kind::Container), |key, value| {
            found.insert(records::uuid_at(key, 0)?, Found::new(records::decode(value)?));
            Ok::<(), Refusal>(())
        })
        .await?;
        if let Some(container) = found.keys().copied().find(|container| is_reserved(*container)) {
            rdb.submit(&records_of_reserved(&rdb, container)?)?;
            found.remove(&container);
        }
        rdb.for_each(Table::Main, &of_kind(Kind::Hce), |key, value| {
            if let Some(container) = found.get_mut(&records::uuid_at(key, 0)?) {
                container.hce = Some(records::decode(value)?);
            }
            Ok::<(), Refusal>(())
        })
        .await?;
        rdb.for_each(Table::Main, &of_kind(Kind::Handle), |key, value| {
            if let Some(container) = found.get_mut(&records::uuid_at(key, 0)?) {
                container.handles.push((records::uuid_at(key, 1)?, records::decode(value)?));
            }
            Ok::<(), Refusal>(())
        })
        .await?;
        rdb.for_each(Table::Main, &of_kind(Kind::Snapshot), |key, _| {
            if let Some(container) = found.get_mut(&records::uuid_at(key, 0)?) {
                container.snapshots.push(records::epoch_of(key)?);
            }
            Ok::<(), Refusal>(())
        })
        .await?;
        rdb.for_each(Table::Main, &of_kind(Kind::Destroying), |key, _| {
            tables.mark(records::uuid_at(key, 0)?, Destruction { under_way: false, failures: 0, due: now });
            Ok::<(), Refusal>(())
        })
        .await?;
        for (uuid, found) in found {
            for (handle, record) in &found.handles {
                tables.add_open(*handle, uuid, record.pool_handle);
                tables.owners.insert(*handle, unused);
            }
            tables.add_container(uuid, found.state()?);
        }
        Ok(Self::with(uuid, rdb, tables))
    }

    /// The records of a container that are not removed together with its own: of snapshots and attributes.
    pub fn records_below(&self, container: Uuid) -> Result<Vec<(Table, Vec<u8>)>, Refusal> {
        let mut found = Vec::new();
        if let Some(state) = self.tables.borrow().containers.get(&container) {
            let keys = state.epochs.snapshots().map(|epoch| records::snapshot_key(container, epoch));
            found.extend(keys.map(|key| (Table::Main, key)));
        }
        let attributes = Table::Attributes(container);
        found.extend(self.rdb.keys(attributes, b"")?.into_iter().map(|key| (attributes, key)));
        Ok(found)
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
    fn new(record: PoolRecord, map: PoolMap) -> Self {
        Self {
            record,
            map,
            handles: BTreeMap::new(),
            leaving: BTreeSet::new(),
            containers: BTreeMap::new(),
            destroying: BTreeMap::new(),
            labels: BTreeMap::new(),
            container_of: BTreeMap::new(),
            opened_with: BTreeSet::new(),
            owners: BTreeMap::new(),
            removed: BTreeMap::new(),
            removals: 0,
        }
    }

    /// Adds a container.
    pub fn add_container(&mut self, uuid: Uuid, state: ContainerState) {
        if let Some(label) = &state.record.label
            && !self.destroying.contains_key(&uuid)
        {
            self.labels.insert(label.clone(), uuid);
        }
        self.containers.insert(uuid, state);
    }

    /// Notes that a container is being destroyed: its label is free.
    pub fn mark(&mut self, uuid: Uuid, how_far: Destruction) {
        self.destroying.insert(uuid, how_far);
        let label = self.containers.get(&uuid).and_then(|state| state.record.label.as_ref());
        if let Some(label) = label
            && self.labels.get(label) == Some(&uuid)
        {
            self.labels.remove(label);
        }
    }

    /// Forgets a container that is destroyed.
    pub fn remove_container(&mut self, uuid: Uuid) {
        self.containers.remove(&uuid);
        self.destroying.remove(&uuid);
    }

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
            Name::Label(label) => self.labels.get(label).copied(),
        };
        found.filter(|uuid| !is_reserved(*uuid) && !self.destroying.contains_key(uuid))
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

    /// Takes a container handle out. Returns the [removal](Self::removal).
    pub fn remove_open(&mut self, handle: Uuid) -> (Uuid, u64) {
        let container = self.container_of.remove(&handle);
        let open = container
            .and_then(|container| self.containers.get_mut(&container))
            .and_then(|state| state.handles.remove(&handle));
        if let Some(open) = open {
            self.opened_with.remove(&(open.pool_handle, handle));
        }
        self.forget_owner(handle);
        self.removal(handle)
    }

    /// Takes a pool handle out. Returns the [removal](Self::removal).
    pub fn remove_pool_handle(&mut self, handle: Uuid) -> (Uuid, u64) {
        self.handles.remove(&handle);
        self.forget_owner(handle);
        self.removal(handle)
    }

    /// Remembers the removal of a handle until it [is settled](Self::removal_settled): who asks for it once more meanwhile is
    /// answered then.
    fn removal(&mut self, handle: Uuid) -> (Uuid, u64) {
        self.removals += 1;
        self.removed.insert(handle, self.removals);
        (handle, self.removals)
    }

    /// Forgets a removal; not a later one of the same handle.
    pub fn removal_settled(&mut self, (handle, number): (Uuid, u64)) {
        if self.removed.get(&handle) == Some(&number) {
            self.removed.remove(&handle);
        }
    }

    /// Whether the handle was taken out, and that is not settled.
    pub fn is_being_removed(&self, handle: Uuid) -> bool {
        self.removed.contains_key(&handle)
    }

    /// Forgets who used a handle that is gone. Pools made before the UUIDs of handles were checked may have two of one.
    fn forget_owner(&mut self, handle: Uuid) {
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

/// What the records say of a container.
struct Found {
    record: ContainerRecord,
    hce: Option<ContainerHce>,
    handles: Vec<(Uuid, HandleRecord)>,
    snapshots: Vec<Epoch>,
}

impl Found {
    fn new(record: ContainerRecord) -> Self {
        Self { record, hce: None, handles: Vec::new(), snapshots: Vec::new() }
    }

    fn state(self) -> Result<ContainerState, Refusal> {
        let hce = self.hce.ok_or_else(incomplete)?;
        let epochs = self.handles.iter().map(|(handle, record)| (*handle, record.epochs));
        let epochs = ContainerEpochs::load(hce, epochs, self.snapshots);
        let open = |record: HandleRecord| {
            let HandleRecord { pool_handle, capabilities, shared, .. } = record;
            OpenHandle::new(pool_handle, capabilities, shared)
        };
        let handles = self.handles.into_iter().map(|(handle, record)| (handle, open(record))).collect();
        Ok(ContainerState { record: self.record, epochs, handles })
    }
}

fn incomplete() -> Refusal {
    Refusal::new(Status::CORRUPT, "the pool's metadata is incomplete")
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

#[cfg(test)]
mod tests;
