//! One pool: connections, queries, lists.

use std::rc::Rc;

use daos_xstream::{Env, rpc::Status};
use uuid::Uuid;

use super::{
    Batch, Table,
    control::{Ask, Control, answer},
    limits::one_more,
    records::{self, Kind, PoolHandleRecord},
    refusal::Refusal,
    state::{PoolState, permit},
};
use crate::{
    access::Capabilities,
    rpc::{
        control::{
            ContainerEntry, ContainerList, ContainerListRequest, PoolConnect, PoolConnected, PoolEvict,
            PoolQuery, PoolQueryReply, SetAcl, page,
        },
        pool,
    },
};

impl<E: Env> Control<E> {
    pub(super) async fn pool(self: &Rc<Self>, ask: &Ask<E>) -> Result<Vec<u8>, Refusal> {
        match ask.procedure {
            pool::CONNECT => answer(&self.connect(ask).await?),
            pool::DISCONNECT => match self.pool_of(ask.handle, &ask.responder) {
                Ok(pool) => answer(&self.disconnect(&pool, ask.handle).await?),
                // It was closed, and the reply was lost.
                Err(refusal) if refusal.status == Status::BAD_HANDLE => {
                    answer(&self.closed_before(ask.handle).await?)
                }
                Err(refusal) => Err(refusal),
            },
            pool::QUERY => answer(&self.query(ask).await?),
            pool::LIST_CONTAINERS => answer(&self.list_containers(ask).await?),
            pool::EVICT => answer(&self.evict(ask).await?),
            pool::SET_ACL => answer(&self.set_acl(ask).await?),
            _ => Err(Status::NO_SUCH_PROCEDURE.into()),
        }
    }

    async fn connect(&self, ask: &Ask<E>) -> Result<PoolConnected, Refusal> {
        let request: PoolConnect = ask.body()?;
        let identity = self.identity(&ask.responder, request.identity)?;
        if ask.handle.is_nil() {
            return Err(Refusal::new(Status::INVALID, "a handle needs a UUID"));
        }
        let pool = self.pool_named(&request.pool)?;
        self.unless_busy(pool.uuid)?;
        if pool.tables.borrow().leaving.contains(&ask.handle) {
            return Err(Refusal::new(Status::BAD_HANDLE, "the pool handle is being closed"));
        }
        self.unless_taken(ask.handle, pool.uuid, None)?;
        let granted = pool.tables.borrow().record.ownership.grants(identity);
        permit(granted, request.capabilities.with(Capabilities::READ)).map_err(|refusal| Refusal {
            status: Status::ACCESS_DENIED,
            message: format!("uid {} gid {}: {}", identity.uid, identity.gid, refusal.message),
        })?;
        let known = pool.tables.borrow().handles.contains_key(&ask.handle);
        if !known {
            let count = pool.tables.borrow().handles.len();
            let remedy = "close or evict some";
            one_more(count, self.config.limits.pool_handles, "connections to the pool", remedy)?;
            let record = PoolHandleRecord { identity, capabilities: request.capabilities };
            let mut batch = Batch::default();
            let key = records::key(Kind::PoolHandle, &[ask.handle.as_bytes()]);
            batch.put(Table::Main, key, records::encode(&record));
            pool.rdb.submit(&batch)?;
            pool.tables.borrow_mut().handles.insert(ask.handle, record);
        }
        self.used(&pool, ask.handle, &ask.responder);
        pool.rdb.settled().await?;
        let map = pool.tables.borrow().map.changes_since(0);
        Ok(PoolConnected { uuid: pool.uuid, map, granted })
    }

    /// Closes a pool handle: first the container handles that were opened with it. Meanwhile no others are opened with it
    /// (simulator, seed 123: one was, and stayed open as long as its user's connection).
    pub(super) async fn disconnect(&self, pool: &Rc<PoolState<E>>, handle: Uuid) -> Result<(), Refusal> {
        let first = pool.tables.borrow_mut().leaving.insert(handle);
        let result = self.disconnect_everywhere(pool, handle).await;
        if first {
            pool.tables.borrow_mut().leaving.remove(&handle);
        }
        result
    }

    async fn disconnect_everywhere(&self, pool: &Rc<PoolState<E>>, handle: Uuid) -> Result<(), Refusal> {
        let opened_with_it: Vec<_> = pool.tables.borrow().opened_with(handle).collect();
        for container_handle in opened_with_it {
            self.close(pool, container_handle).await?;
        }
        let mut batch = Batch::default();
        batch.remove(Table::Main, records::key(Kind::PoolHandle, &[handle.as_bytes()]));
        pool.rdb.submit(&batch)?;
        let removal = pool.tables.borrow_mut().remove_pool_handle(handle);
        pool.rdb.settled().await?;
        pool.tables.borrow_mut().removal_settled(removal);
        Ok(())
    }

    async fn query(&self, ask: &Ask<E>) -> Result<PoolQueryReply, Refusal> {
        let request: PoolQuery = ask.body()?;
        let pool = self.pool_of(ask.handle, &ask.responder)?;
        pool.tables.borrow().pool_handle(ask.handle, Capabilities::READ)?;
        let space = if request.space { self.space(pool.uuid).await? } else { Vec::new() };
        let reply = {
            let tables = pool.tables.borrow();
            PoolQueryReply {
                uuid: pool.uuid,
                label: tables.record.label.clone(),
                owner: tables.record.ownership.owner,
                acl: tables.record.ownership.acl.clone(),
                map: tables.map.changes_since(request.map_version),
                containers: tables.containers.len().saturating_sub(tables.destroying.len()) as u64,
                handles: tables.handles.len() as u64,
                space,
            }
        };
        pool.rdb.settled().await?;
        Ok(reply)
    }

    async fn list_containers(&self, ask: &Ask<E>) -> Result<ContainerList, Refusal> {
        use std::ops::Bound::{Excluded, Unbounded};
        let request: ContainerListRequest = ask.body()?;
        let pool = self.pool_of(ask.handle, &ask.responder)?;
        let (containers, more) = {
            let tables = pool.tables.borrow();
            tables.pool_handle(ask.handle, Capabilities::READ)?;
            let after = request.after.map_or(Unbounded, Excluded);
            let rest = tables.containers.range((after, Unbounded));
            let rest = rest.filter(|(uuid, _)| !tables.destroying.contains_key(*uuid));
            let rest =
                rest.map(|(uuid, state)| ContainerEntry { uuid: *uuid, label: state.record.label.clone() });
            page(rest, ask.responder.body_bytes_max())
        };
        pool.rdb.settled().await?;
        Ok(ContainerList { containers, more })
    }

    async fn evict(&self, ask: &Ask<E>) -> Result<u64, Refusal> {
        let request: PoolEvict = ask.body()?;
        let identity = self.identity(&ask.responder, request.identity)?;
        let pool = self.pool_named(&request.pool)?;
        let (granted, mut handles): (_, Vec<_>) = {
            let tables = pool.tables.borrow();
            (tables.record.ownership.grants(identity), tables.handles.keys().copied().collect())
        };
        permit(granted, Capabilities::SET_PROPERTIES)?;
        if let Some(only) = request.handle {
            handles.retain(|handle| *handle == only);
        }
        for handle in &handles {
            self.disconnect(&pool, *handle).await?;
        }
        // Those that are gone already may have been closed just now, by a request that was repeated.
        pool.rdb.settled().await?;
        Ok(handles.len() as u64)
    }

    async fn set_acl(&self, ask: &Ask<E>) -> Result<(), Refusal> {
        let request: SetAcl = ask.body()?;
        let pool = self.pool_of(ask.handle, &ask.responder)?;
        {
            let mut tables = pool.tables.borrow_mut();
            let identity = tables.pool_handle(ask.handle, Capabilities::NONE)?.identity;
            permit(tables.record.ownership.grants(identity), Capabilities::SET_ACL)?;
            let mut record = tables.record.clone();
            record.ownership.acl = request.acl;
            let mut batch = Batch::default();
            batch.put(Table::Main, records::POOL.to_vec(), records::encode(&record));
            pool.rdb.submit(&batch)?;
            tables.record = record;
        }
        Ok(pool.rdb.settled().await?)
    }
}
