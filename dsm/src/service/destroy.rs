//! Containers that are destroyed.
//!
//! # Invariants
//!
//! * The first step is a mark in the metadata store, and nothing else is done before it is settled. So whatever a crash
//!   leaves, a container is there with all it holds, or it is marked.
//! * A marked container never comes back: nobody opens it, no list has it, its label is free. What was cut short is taken
//!   up again, after a restart too, until it is done.
//! * The records go last, the mark with them; before, all that is left to do follows from them.

use std::rc::Rc;

use daos_xstream::{Clock, Env, rpc::Status};
use uuid::Uuid;

use super::{
    Batch, Table,
    container::unless_reserved,
    control::{Ask, Control, RETRY_INTERVAL},
    records::{self, Kind},
    refusal::Refusal,
    state::{Destruction, PoolState, Tables, permit},
    target::{all_or_first_error, on_all_targets},
};
use crate::{
    access::Capabilities,
    rpc::control::{ContainerDestroy, Name},
};

/// Records that are removed in one step: a step must fit into the log.
const RECORDS_AT_ONCE: usize = 64;

impl<E: Env> Control<E> {
    pub(super) async fn container_destroy(&self, ask: &Ask<E>) -> Result<(), Refusal> {
        let request: ContainerDestroy = ask.body()?;
        unless_reserved(&request.container)?;
        let pool = self.pool_of(ask.handle, &ask.responder)?;
        let found = self.begin_destroying(&pool, ask.handle, &request)?;
        let Some(container) = found else {
            // Whoever destroyed it may not have heard yet that it is so for good.
            pool.rdb.settled().await?;
            return match request.container {
                // By UUID: it was destroyed, and the reply was lost.
                Name::Uuid(_) => Ok(()),
                Name::Label(label) => {
                    Err(Refusal::new(Status::NOT_FOUND, format!("the pool has no container {label}")))
                }
            };
        };
        let result = self.destroy_marked(&pool, container).await;
        if result.is_err() {
            // Whoever asked may not come back.
            self.halted.notify_one();
        }
        result
    }

    /// Marks a container, unless it is marked already and only has to be taken up again; `None` if there is none.
    fn begin_destroying(
        &self,
        pool: &PoolState<E>,
        pool_handle: Uuid,
        request: &ContainerDestroy,
    ) -> Result<Option<Uuid>, Refusal> {
        let tables = &mut *pool.tables.borrow_mut();
        let asking = tables.pool_handle(pool_handle, Capabilities::READ)?.clone();
        let marked = tables.destroying_named(&request.container);
        let named = tables.container_named(&request.container);
        let Some(container) = named.or(marked.map(|(container, _)| container)) else { return Ok(None) };
        let state = tables.container(container)?;
        if !state.record.ownership.grants(asking.identity).permits(Capabilities::DELETE_CONTAINER) {
            permit(asking.capabilities, Capabilities::DELETE_CONTAINER)?;
        }
        match (named, marked) {
            (Some(_), _) => {
                if !state.handles.is_empty() && !request.force {
                    let message = format!("{} handles of the container are open", state.handles.len());
                    return Err(Refusal::new(Status::IN_USE, message));
                }
                let mut batch = Batch::default();
                batch.put(Table::Main, mark_of(container), Vec::new());
                pool.rdb.submit(&batch)?;
            }
            (None, Some((_, Destruction::UnderWay))) => {
                return Err(Refusal::new(Status::TRY_AGAIN, "the container is being destroyed"));
            }
            (None, _) => {}
        }
        tables.destroying.insert(container, Destruction::UnderWay);
        Ok(Some(container))
    }

    /// Destroys what is marked and [under way](Destruction::UnderWay), or leaves it [halted](Destruction::Halted).
    async fn destroy_marked(&self, pool: &Rc<PoolState<E>>, container: Uuid) -> Result<(), Refusal> {
        let result = self.remove_marked(pool, container).await;
        if result.is_err()
            && let Some(how_far) = pool.tables.borrow_mut().destroying.get_mut(&container)
        {
            *how_far = Destruction::Halted;
        }
        result
    }

    async fn remove_marked(&self, pool: &Rc<PoolState<E>>, container: Uuid) -> Result<(), Refusal> {
        pool.rdb.settled().await?;
        // Nobody opens it any more, so these are all.
        let handles: Vec<Uuid> = match pool.tables.borrow().containers.get(&container) {
            Some(state) => state.handles.keys().copied().collect(),
            None => Vec::new(),
        };
        for handle in handles {
            self.close(pool, handle).await?;
        }
        let uuid = pool.uuid;
        let destroyed = on_all_targets(&self.env, move |target| async move {
            target.container_destroy(uuid, container).await
        });
        all_or_first_error(destroyed.await)?;
        let of_container = container.as_bytes().as_slice();
        let snapshots = pool.rdb.keys(Table::Main, &records::key(Kind::Snapshot, &[of_container]))?;
        let attributes = pool.rdb.keys(Table::Attributes(container), b"")?;
        for (table, keys) in [(Table::Main, snapshots), (Table::Attributes(container), attributes)] {
            for some in keys.chunks(RECORDS_AT_ONCE) {
                let mut batch = Batch::default();
                some.iter().for_each(|key| batch.remove(table, key.clone()));
                pool.rdb.submit(&batch)?;
                pool.rdb.settled().await?;
            }
        }
        let mut batch = Batch::default();
        for kind in [Kind::Container, Kind::Hce, Kind::Destroying] {
            batch.remove(Table::Main, records::key(kind, &[of_container]));
        }
        {
            let tables = &mut *pool.tables.borrow_mut();
            pool.rdb.submit(&batch)?;
            tables.containers.remove(&container);
            tables.destroying.remove(&container);
        }
        pool.committed.notify_all();
        Ok(pool.rdb.settled().await?)
    }

    /// Takes up, for ever, what was cut short.
    pub(super) async fn finish_destroying(&self) {
        loop {
            let mut failed = false;
            let pools: Vec<_> = self.pools.borrow().values().cloned().collect();
            for pool in pools {
                loop {
                    let halted = take_halted(&mut pool.tables.borrow_mut());
                    let Some(container) = halted else { break };
                    tracing::info!(%container, pool = %pool.uuid, "taking up the destruction of a container");
                    if let Err(refusal) = self.destroy_marked(&pool, container).await {
                        tracing::warn!(
                            %container,
                            error = refusal.message,
                            "a container could not be destroyed; it will be tried again"
                        );
                        failed = true;
                        break;
                    }
                }
            }
            match failed {
                true => {
                    let next = self.env.clock().now() + RETRY_INTERVAL;
                    self.env.clock().sleep_until(next).await;
                }
                false => self.halted.notified().await,
            }
        }
    }
}

/// A container of which the destruction was cut short, and goes on from now.
fn take_halted(tables: &mut Tables) -> Option<Uuid> {
    let halted = tables.destroying.iter_mut().find(|(_, how_far)| **how_far == Destruction::Halted);
    let (container, how_far) = halted?;
    *how_far = Destruction::UnderWay;
    Some(*container)
}

/// Key of a container's mark.
fn mark_of(container: Uuid) -> Vec<u8> {
    records::key(Kind::Destroying, &[container.as_bytes()])
}
