//! Containers of a pool: made, opened, closed, destroyed.

use std::{collections::BTreeMap, rc::Rc};

use daos_types::{Cookie, Epoch, EpochRange};
use daos_xstream::{Bug, Env, Rng, rpc::Status};
use uuid::Uuid;

use super::{
    Batch, Table,
    control::{Ask, Control, answer},
    limits::one_more,
    rdb::is_reserved,
    records::{self, ContainerRecord, Kind},
    refusal::{Refusal, reserved},
    state::{ContainerState, OpenHandle, PoolState, permit},
    target::{HandleInfo, all_or_first_error, on_all_targets},
};
use crate::{
    access::{Acl, Capabilities, Ownership},
    epochs::{ContainerEpochs, EpochState},
    rpc::{
        container,
        control::{
            ContainerCreate, ContainerLookup, ContainerOpen, ContainerOpened, ContainerQueryReply, Name,
            SnapshotList, SnapshotListRequest, page,
        },
    },
};

impl<E: Env> Control<E> {
    pub(super) async fn container(self: &Rc<Self>, ask: &Ask<E>) -> Result<Vec<u8>, Refusal> {
        match ask.procedure {
            container::CREATE => answer(&self.container_create(ask).await?),
            container::DESTROY => answer(&self.container_destroy(ask).await?),
            container::LOOKUP => answer(&self.container_lookup(ask).await?),
            container::OPEN => answer(&self.open(ask).await?),
            container::CLOSE => match self.pool_of(ask.handle, &ask.responder) {
                Ok(pool) => answer(&self.close(&pool, ask.handle).await?),
                // It was closed, and the reply was lost.
                Err(refusal) if refusal.status == Status::BAD_HANDLE => {
                    answer(&self.closed_before(ask.handle).await?)
                }
                Err(refusal) => Err(refusal),
            },
            container::QUERY => answer(&self.container_query(ask).await?),
            container::EPOCH_COMMIT => answer(&self.commit(ask).await?),
            container::SNAPSHOT_LIST => {
                let request: SnapshotListRequest = ask.body()?;
                let (pool, container) = self.open_container(ask, Capabilities::READ)?;
                let (snapshots, more) = {
                    let mut tables = pool.tables.borrow_mut();
                    let rest = tables.container(container)?.epochs.snapshots_after(request.after);
                    page(rest, ask.responder.body_bytes_max())
                };
                pool.rdb.settled().await?;
                answer(&SnapshotList { snapshots, more })
            }
            container::ATTRIBUTES_SET => answer(&self.attributes_set(ask).await?),
            container::ATTRIBUTES_GET => answer(&self.attributes_get(ask).await?),
            procedure => {
                let (pool, container) = self.epochs(ask, procedure).await?;
                answer(&self.settled_state(&pool, container, ask.handle).await?)
            }
        }
    }

    /// The pool and container of the handle that a request is made with.
    pub(super) fn open_container(
        &self,
        ask: &Ask<E>,
        needed: Capabilities,
    ) -> Result<(Rc<PoolState<E>>, Uuid), Refusal> {
        let pool = self.pool_of(ask.handle, &ask.responder)?;
        let (container, open) = pool.tables.borrow().open_handle(ask.handle)?;
        permit(open.capabilities, needed)?;
        Ok((pool, container))
    }

    /// Epochs as the handle sees them, once they are settled.
    async fn settled_state(
        &self,
        pool: &PoolState<E>,
        container: Uuid,
        handle: Uuid,
    ) -> Result<EpochState, Refusal> {
        // Taken first: what is told is settled then, and what comes later is not told.
        let state = pool.tables.borrow_mut().container(container)?.epochs.query(handle)?;
        pool.rdb.settled().await?;
        Ok(state)
    }

    async fn container_create(&self, ask: &Ask<E>) -> Result<(), Refusal> {
        let request: ContainerCreate = ask.body()?;
        unless_reserved(&Name::Uuid(request.uuid))?;
        let pool = self.pool_of(ask.handle, &ask.responder)?;
        {
            let mut tables = pool.tables.borrow_mut();
            let owner = tables.pool_handle(ask.handle, Capabilities::WRITE)?.identity;
            if let Some(label) = &request.label
                && let Some(other) = tables.container_named(&Name::Label(label.clone()))
                && other != request.uuid
            {
                return Err(Refusal::new(Status::EXISTS, format!("there is a container {label} already")));
            }
            if tables.destroying.contains_key(&request.uuid) {
                return Err(Refusal::new(Status::TRY_AGAIN, "the container of this UUID is being destroyed"));
            }
            if request.uuid.is_nil() || request.properties.layout.len() > 64 {
                return Err(Refusal::new(Status::INVALID, "a container needs a UUID and a short layout"));
            }
            let count = tables.containers.len();
            // One that is there was made by this request before, and the reply was lost.
            if !tables.containers.contains_key(&request.uuid) {
                one_more(count, self.config.limits.containers, "containers in the pool", "destroy some")?;
                let acl = request.acl.unwrap_or_else(Acl::initial);
                let record = ContainerRecord {
                    label: request.label,
                    ownership: Ownership { owner, acl },
                    properties: request.properties,
                };
                let epochs = ContainerEpochs::default();
                let mut batch = Batch::default();
                let name = [request.uuid.as_bytes().as_slice()];
                batch.put(Table::Main, records::key(Kind::Container, &name), records::encode(&record));
                batch.put(Table::Main, records::key(Kind::Hce, &name), records::encode(&epochs.record()));
                pool.rdb.submit(&batch)?;
                let state = ContainerState { record, epochs, handles: BTreeMap::new() };
                tables.add_container(request.uuid, state);
            }
        }
        Ok(pool.rdb.settled().await?)
    }

    async fn container_lookup(&self, ask: &Ask<E>) -> Result<Uuid, Refusal> {
        let request: ContainerLookup = ask.body()?;
        let pool = self.pool_of(ask.handle, &ask.responder)?;
        pool.tables.borrow().pool_handle(ask.handle, Capabilities::READ)?;
        let named = pool.tables.borrow().container_named(&request.container);
        pool.rdb.settled().await?;
        named.ok_or_else(|| no_container(&request.container))
    }

    async fn open(&self, ask: &Ask<E>) -> Result<ContainerOpened, Refusal> {
        let request: ContainerOpen = ask.body()?;
        let pool = self.pool_of(request.pool_handle, &ask.responder)?;
        if ask.handle.is_nil() {
            return Err(Refusal::new(Status::INVALID, "a handle needs a UUID"));
        }
        unless_reserved(&request.container)?;
        let named = pool.tables.borrow().container_named(&request.container);
        self.unless_taken(ask.handle, pool.uuid, Some(named.unwrap_or_default()))?;
        let pool_handle = pool.tables.borrow().pool_handle(request.pool_handle, Capabilities::READ)?.clone();
        let Some(container) = named else {
            // That it was destroyed may not be for good yet.
            pool.rdb.settled().await?;
            return Err(no_container(&request.container));
        };
        {
            let tables = &mut *pool.tables.borrow_mut();
            if !tables.container_of.contains_key(&ask.handle) {
                let (count, max) = (tables.container_of.len(), self.config.limits.container_handles);
                one_more(count, max, "container handles in the pool", "close or evict some")?;
            }
            let state = tables.container(container)?;
            let granted = state.record.ownership.grants(pool_handle.identity);
            permit(granted, request.capabilities)
                .map_err(|refusal| Refusal::new(Status::ACCESS_DENIED, refusal.message))?;
            if request.capabilities.permits(Capabilities::WRITE) {
                permit(pool_handle.capabilities, Capabilities::WRITE)?;
            }
            let known = state.handles.entry(ask.handle).or_insert_with(|| {
                OpenHandle::new(request.pool_handle, request.capabilities, request.shared)
            });
            if known.closing || known.revoked {
                return Err(Refusal::new(Status::BAD_HANDLE, "the handle is being closed"));
            }
        }
        let fresh = !pool.tables.borrow().container_of.contains_key(&ask.handle);
        if fresh {
            // Not a number that a client could guess: it selects what a discard removes.
            let cookie = Cookie(self.env.rng().next_u64() | 2);
            let stored = pool.change_epochs(container, ask.handle, Batch::default(), |epochs| {
                epochs.open(ask.handle, cookie);
                if request.hold {
                    epochs.hold(ask.handle, Epoch::ZERO)?;
                }
                Ok(())
            });
            let mut tables = pool.tables.borrow_mut();
            if let Err(refusal) = stored {
                tables.container(container)?.handles.remove(&ask.handle);
                return Err(refusal);
            }
            tables.add_open(ask.handle, container, request.pool_handle);
        }
        self.used(&pool, ask.handle, &ask.responder);
        pool.rdb.settled().await?;
        self.tell_handle(&pool, ask.handle).await?;
        let epochs = self.settled_state(&pool, container, ask.handle).await?;
        let (_, open) = pool.tables.borrow().open_handle(ask.handle)?;
        let properties = pool.tables.borrow_mut().container(container)?.record.properties.clone();
        Ok(ContainerOpened { uuid: container, properties, epochs, capabilities: open.capabilities })
    }

    /// Tells every target what it has to know of a handle.
    pub(super) async fn tell_handle(&self, pool: &PoolState<E>, handle: Uuid) -> Result<(), Refusal> {
        let info = pool.tables.borrow().info(pool.uuid, handle)?;
        self.tell(info).await
    }

    /// Tells every target this.
    pub(super) async fn tell(&self, info: HandleInfo) -> Result<(), Refusal> {
        let told =
            on_all_targets(&self.env, move |target| async move { target.install(&info).map(drop) }).await;
        all_or_first_error(told).map(drop)
    }

    /// Closes a handle, whether its owner asks for it or it is evicted: no target takes it any more, then what it did not
    /// commit is discarded, then it is gone. A crash in between leaves it open, to be closed again. A failure in between
    /// leaves a handle that can only be closed, which is tried again until it succeeds.
    pub(super) async fn close(&self, pool: &Rc<PoolState<E>>, handle: Uuid) -> Result<(), Refusal> {
        let open = pool.tables.borrow().container_of.get(&handle).copied();
        let Some(container) = open else { return Ok(pool.rdb.settled().await?) };
        let (info, range, first) = {
            let tables = &mut *pool.tables.borrow_mut();
            let state = tables.container(container)?;
            let range = state.epochs.uncommitted(handle)?;
            if state.handles.get(&handle).is_some_and(|open| open.closing) {
                return Err(Refusal::new(Status::TRY_AGAIN, "the handle is being closed"));
            }
            let info = tables.info_of_any(pool.uuid, handle)?;
            let mut first = true;
            if let Some(open) = tables.container(container)?.handles.get_mut(&handle) {
                open.closing = true;
                first = !open.revoked;
            }
            (info, range, first)
        };
        let result = self.close_everywhere(pool, &info, range).await;
        if result.is_err()
            && let Ok(state) = pool.tables.borrow_mut().container(info.container)
            && let Some(open) = state.handles.get_mut(&handle)
        {
            open.closing = false;
            // Whoever asked may not come back. The sweep does, at intervals of its own from the second time on.
            if first {
                self.lost.notify_one();
            }
        }
        result
    }

    async fn close_everywhere(
        &self,
        pool: &Rc<PoolState<E>>,
        info: &HandleInfo,
        range: EpochRange,
    ) -> Result<(), Refusal> {
        let (info, handle) = (*info, info.handle);
        if let Some(open) = pool.tables.borrow_mut().container(info.container)?.handles.get_mut(&handle) {
            open.revoked = true;
        }
        let revoked = on_all_targets(&self.env, move |target| async move {
            target.revoke(handle);
            Ok(())
        });
        all_or_first_error(revoked.await)?;
        if !self.env.planted(Bug::SkippedDiscard) {
            self.discard_everywhere(&info, range).await?;
        }
        let closed = pool.change_epochs(info.container, handle, Batch::default(), |epochs| {
            epochs.close(handle);
            Ok(())
        });
        closed?;
        let removal = pool.tables.borrow_mut().remove_open(handle);
        pool.rdb.settled().await?;
        pool.tables.borrow_mut().removal_settled(removal);
        pool.committed.notify_all();
        Ok(())
    }

    pub(super) async fn discard_everywhere(
        &self,
        info: &HandleInfo,
        range: EpochRange,
    ) -> Result<(), Refusal> {
        if range.is_empty() {
            return Ok(());
        }
        let info = *info;
        let discarded = on_all_targets(&self.env, move |target| async move {
            target.discard(info.pool, info.container, info.cookie, range).await
        });
        all_or_first_error(discarded.await).map(drop)
    }

    async fn container_query(&self, ask: &Ask<E>) -> Result<ContainerQueryReply, Refusal> {
        let (pool, container) = self.open_container(ask, Capabilities::READ)?;
        let reply = {
            let mut tables = pool.tables.borrow_mut();
            let state = tables.container(container)?;
            ContainerQueryReply {
                uuid: container,
                label: state.record.label.clone(),
                owner: state.record.ownership.owner,
                properties: state.record.properties.clone(),
                epochs: state.epochs.query(ask.handle)?,
                handles: state.handles.len() as u64,
                snapshots: state.epochs.snapshots().count() as u64,
            }
        };
        pool.rdb.settled().await?;
        Ok(reply)
    }
}

fn no_container(name: &Name) -> Refusal {
    let message = format!("the pool has no container {name}; daos container list shows its own");
    Refusal::new(Status::NOT_FOUND, message)
}

/// Refuses what clients ask of the container that holds the pool's metadata.
pub(super) fn unless_reserved(name: &Name) -> Result<(), Refusal> {
    match name {
        Name::Uuid(uuid) if is_reserved(*uuid) => Err(reserved()),
        _ => Ok(()),
    }
}
