//! Containers that are destroyed.
//!
//! # Invariants
//!
//! * The first step is a mark in the metadata store, and nothing else is done before it is settled. So whatever a crash
//!   leaves, a container is there with all it holds, or it is marked.
//! * A marked container never comes back: nobody opens it, no list has it, its label is free. What was cut short is taken
//!   up again, after a restart too, until it is done.
//! * The records go last, the mark with them; before, all that is left to do follows from them.

use std::{rc::Rc, time::Duration};

use daos_xstream::{Clock, Env, Time, race, rpc::Status};
use uuid::Uuid;

use super::{
    Batch, Table,
    container::unless_reserved,
    control::{Ask, Control, RETRY_INTERVAL},
    records::{self, Kind},
    refusal::Refusal,
    state::{Destruction, PoolState, permit},
    target::{all_or_first_error, on_all_targets},
};
use crate::{
    access::Capabilities,
    rpc::control::{ContainerDestroy, Name},
};

/// The longest pause before the destruction of a container is tried again.
const RETRY_INTERVAL_MAX: Duration = Duration::from_secs(60);
/// Records that are removed in one step: a step must fit into the log.
const RECORDS_AT_ONCE: usize = 64;

impl<E: Env> Control<E> {
    pub(super) async fn container_destroy(&self, ask: &Ask<E>) -> Result<(), Refusal> {
        let request: ContainerDestroy = ask.body()?;
        unless_reserved(&Name::Uuid(request.container))?;
        let pool = self.pool_of(ask.handle, &ask.responder)?;
        if !self.begin_destroying(&pool, ask.handle, &request)? {
            // It was destroyed, and the reply was lost. Whoever did it may not have heard yet that it is so for good.
            return Ok(pool.rdb.settled().await?);
        }
        let result = self.destroy_marked(&pool, request.container).await;
        if result.is_err() {
            // Whoever asked may not come back.
            self.halted.notify_one();
        }
        result
    }

    /// Marks a container, unless it is marked already and only has to be taken up again; false if there is none.
    fn begin_destroying(
        &self,
        pool: &PoolState<E>,
        pool_handle: Uuid,
        request: &ContainerDestroy,
    ) -> Result<bool, Refusal> {
        let tables = &mut *pool.tables.borrow_mut();
        let asking = tables.pool_handle(pool_handle, Capabilities::READ)?.clone();
        let container = request.container;
        let Some(state) = tables.containers.get(&container) else { return Ok(false) };
        if !state.record.ownership.grants(asking.identity).permits(Capabilities::DELETE_CONTAINER) {
            permit(asking.capabilities, Capabilities::DELETE_CONTAINER)?;
        }
        let how_far = match tables.destroying.get(&container) {
            None => {
                if !state.handles.is_empty() && !request.force {
                    let message = format!("{} handles of the container are open", state.handles.len());
                    return Err(Refusal::new(Status::IN_USE, message));
                }
                let mut batch = Batch::default();
                batch.put(Table::Main, mark_of(container), Vec::new());
                pool.rdb.submit(&batch)?;
                Destruction { under_way: true, failures: 0, due: Time(0) }
            }
            Some(Destruction { under_way: true, .. }) => {
                return Err(Refusal::new(Status::TRY_AGAIN, "the container is being destroyed"));
            }
            Some(halted) => Destruction { under_way: true, ..*halted },
        };
        tables.mark(container, how_far);
        Ok(true)
    }

    /// Destroys what is marked and under way, or leaves it halted, to be taken up again after a while.
    async fn destroy_marked(&self, pool: &Rc<PoolState<E>>, container: Uuid) -> Result<(), Refusal> {
        let result = self.remove_marked(pool, container).await;
        if result.is_err()
            && let Some(how_far) = pool.tables.borrow_mut().destroying.get_mut(&container)
        {
            let due = self.env.clock().now() + pause_after(how_far.failures);
            *how_far = Destruction { under_way: false, failures: how_far.failures.saturating_add(1), due };
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
        for some in pool.records_below(container)?.chunks(RECORDS_AT_ONCE) {
            let mut batch = Batch::default();
            some.iter().for_each(|(table, key)| batch.remove(*table, key.clone()));
            pool.rdb.submit(&batch)?;
            pool.rdb.settled().await?;
        }
        let mut batch = Batch::default();
        for kind in [Kind::Container, Kind::Hce, Kind::Destroying] {
            batch.remove(Table::Main, records::key(kind, &[container.as_bytes()]));
        }
        {
            let tables = &mut *pool.tables.borrow_mut();
            pool.rdb.submit(&batch)?;
            tables.remove_container(container);
        }
        pool.committed.notify_all();
        Ok(pool.rdb.settled().await?)
    }

    /// Takes up, for ever, what was cut short.
    pub(super) async fn finish_destroying(&self) {
        loop {
            let mut next = Time::NEVER;
            let pools: Vec<_> = self.pools.borrow().values().cloned().collect();
            for pool in pools {
                next = next.min(self.finish_in(&pool).await);
            }
            let _ = race(self.halted.notified(), self.env.clock().sleep_until(next)).await;
        }
    }

    /// Takes up what is due in one pool, each container once: one that cannot be destroyed keeps no other waiting. Returns when
    /// the next is due.
    async fn finish_in(&self, pool: &Rc<PoolState<E>>) -> Time {
        let now = self.env.clock().now();
        let is_due = |how_far: &Destruction| !how_far.under_way && how_far.due <= now;
        let due: Vec<Uuid> = {
            let tables = pool.tables.borrow();
            let due = tables.destroying.iter().filter(|(_, how_far)| is_due(how_far));
            due.map(|(container, _)| *container).collect()
        };
        for container in due {
            match pool.tables.borrow_mut().destroying.get_mut(&container) {
                Some(how_far) if is_due(how_far) => how_far.under_way = true,
                // Somebody asked, and was faster.
                _ => continue,
            }
            tracing::info!(%container, pool = %pool.uuid, "taking up the destruction of a container");
            if let Err(refusal) = self.destroy_marked(pool, container).await {
                tracing::warn!(
                    %container,
                    error = refusal.message,
                    "a container could not be destroyed; it will be tried again"
                );
            }
        }
        let tables = pool.tables.borrow();
        let halted = tables.destroying.values().filter(|how_far| !how_far.under_way);
        halted.map(|how_far| how_far.due).min().unwrap_or(Time::NEVER)
    }
}

/// How long to leave a container alone that could not be destroyed, and had failed so often before.
fn pause_after(failures: u32) -> Duration {
    (RETRY_INTERVAL * 2u32.saturating_pow(failures.min(16))).min(RETRY_INTERVAL_MAX)
}

/// Key of a container's mark.
fn mark_of(container: Uuid) -> Vec<u8> {
    records::key(Kind::Destroying, &[container.as_bytes()])
}
