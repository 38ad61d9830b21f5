//! Epochs of containers: held, flushed, committed, waited for; snapshots and attributes.

use std::{collections::BTreeSet, rc::Rc, time::Duration};

use daos_types::{Epoch, EpochRange};
use daos_xstream::{Clock, Env, rpc::Status, timeout};
use uuid::Uuid;

use super::{
    Batch, Table,
    control::{Ask, Control},
    limits::one_more,
    records,
    refusal::Refusal,
    state::{PoolState, permit},
    target::{HandleInfo, all_or_first_error, on_all_targets},
};
use crate::{
    access::Capabilities,
    epochs::{ContainerEpochs, EpochState},
    rpc::{
        container,
        control::{
            ATTRIBUTE_NAME_BYTES_MAX, ATTRIBUTE_VALUE_BYTES_MAX, AttributesGet, AttributesReply,
            AttributesSet, COMMIT_HANDLES_MAX, EpochCommit, EpochDiscard, EpochRequest, page,
        },
    },
};

/// The longest that a request waits for an epoch.
const WAIT_MAX: Duration = Duration::from_secs(30);

impl<E: Env> Control<E> {
    /// The procedures that answer with the handle's epochs.
    pub(super) async fn epochs(
        &self,
        ask: &Ask<E>,
        procedure: u8,
    ) -> Result<(Rc<PoolState<E>>, Uuid), Refusal> {
        let needed = match procedure {
            container::EPOCH_QUERY | container::EPOCH_SLIP | container::EPOCH_WAIT => Capabilities::READ,
            _ => Capabilities::WRITE,
        };
        let (pool, container) = self.open_container(ask, needed)?;
        let handle = ask.handle;
        match procedure {
            container::EPOCH_QUERY => {}
            container::EPOCH_HOLD => {
                self.hold(&pool, container, handle, ask.body::<EpochRequest>()?.epoch).await?
            }
            container::EPOCH_SLIP => {
                let epoch = ask.body::<EpochRequest>()?.epoch;
                pool.change_epochs(container, handle, Batch::default(), |epochs| {
                    Ok(epochs.slip(handle, epoch)?)
                })?;
            }
            container::EPOCH_FLUSH => {
                self.flush(&pool, container, handle, ask.body::<EpochRequest>()?.epoch).await?;
            }
            container::EPOCH_DISCARD => {
                let asked = ask.body::<EpochDiscard>()?.range;
                let info = pool.tables.borrow().info(pool.uuid, handle)?;
                let range = pool.begin_discard(container, handle, asked)?;
                // Each target must know the handle: what waits there for being told of it comes after the discard.
                let discarded = async {
                    self.tell(info).await?;
                    self.discard_everywhere(&info, range).await
                };
                match discarded.await {
                    Ok(()) => {
                        pool.tables.borrow_mut().container(container)?.epochs.discarded(handle, range)?
                    }
                    Err(refusal) => {
                        pool.discard_failed(container, handle);
                        return Err(refusal);
                    }
                }
            }
            container::EPOCH_WAIT => {
                let epoch = ask.body::<EpochRequest>()?.epoch;
                // Whoever wants to wait longer asks again: a place among the requests in progress is not for ever.
                let end = self.deadline(&ask.responder).min(self.env.clock().now() + WAIT_MAX);
                let waited = timeout(self.env.clock(), end, async {
                    while pool.tables.borrow_mut().container(container)?.epochs.hce() < epoch {
                        // The connection's end, or the handle's, ends the wait too.
                        pool.committed.notified().await;
                        if !ask.responder.is_wanted() {
                            return Err(Status::BAD_HANDLE.into());
                        }
                        pool.tables.borrow().open_handle(handle)?;
                    }
                    Ok::<(), Refusal>(())
                });
                waited.await.map_err(|_| Refusal::from(Status::TIMED_OUT))??;
            }
            container::SNAPSHOT_CREATE => {
                let epoch = ask.body::<EpochRequest>()?.epoch;
                let mut batch = Batch::default();
                batch.put(Table::Main, records::snapshot_key(container, epoch), Vec::new());
                let (count, known) = {
                    let mut tables = pool.tables.borrow_mut();
                    let epochs = &tables.container(container)?.epochs;
                    (epochs.snapshots().count(), epochs.snapshots().any(|snapshot| snapshot == epoch))
                };
                if !known {
                    let max = self.config.limits.snapshots;
                    one_more(count, max, "snapshots of the container", "destroy some")?;
                }
                self.change_snapshots(&pool, container, &batch, |epochs| Ok(epochs.snapshot_create(epoch)?))?;
            }
            container::SNAPSHOT_DESTROY => {
                let epoch = ask.body::<EpochRequest>()?.epoch;
                let mut batch = Batch::default();
                batch.remove(Table::Main, records::snapshot_key(container, epoch));
                self.change_snapshots(&pool, container, &batch, |epochs| {
                    epochs.snapshot_destroy(epoch);
                    Ok(())
                })?;
            }
            _ => return Err(Status::NO_SUCH_PROCEDURE.into()),
        }
        Ok((pool, container))
    }

    fn change_snapshots(
        &self,
        pool: &PoolState<E>,
        container: Uuid,
        batch: &Batch,
        change: impl FnOnce(&mut ContainerEpochs) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let mut tables = pool.tables.borrow_mut();
        let state = tables.container(container)?;
        let mut epochs = state.epochs.clone();
        change(&mut epochs)?;
        pool.rdb.submit(batch)?;
        state.epochs = epochs;
        Ok(())
    }

    async fn hold(
        &self,
        pool: &Rc<PoolState<E>>,
        container: Uuid,
        handle: Uuid,
        epoch: Epoch,
    ) -> Result<(), Refusal> {
        let given_up =
            pool.tables.borrow_mut().container(container)?.epochs.given_up_by_hold(handle, epoch)?;
        match given_up {
            Some(range) => self.raise_hold(pool, container, handle, range, epoch).await?,
            None => pool
                .change_epochs(container, handle, Batch::default(), |epochs| Ok(epochs.hold(handle, epoch)?))
                .map(drop)?,
        }
        pool.tables.borrow_mut().begin_hold(handle);
        pool.rdb.settled().await?;
        // A hold that was raised may have been all that was in the way of other handles' commits.
        pool.committed.notify_all();
        self.tell_handle(pool, handle).await
    }

    /// A hold that gives up `range`. Targets refuse writes there first: one that was under way would otherwise come after
    /// the discard, and be committed with a later epoch. Then it is discarded, and then the hold is what it is.
    async fn raise_hold(
        &self,
        pool: &Rc<PoolState<E>>,
        container: Uuid,
        handle: Uuid,
        range: EpochRange,
        epoch: Epoch,
    ) -> Result<(), Refusal> {
        let range = pool.begin_discard(container, handle, range)?;
        pool.tables.borrow_mut().begin_hold(handle);
        let result = async {
            let info = pool.tables.borrow().info(pool.uuid, handle)?;
            self.tell(HandleInfo { lhe: Epoch(range.high.0.saturating_add(1)), ..info }).await?;
            self.discard_everywhere(&info, range).await?;
            pool.change_epochs(container, handle, Batch::default(), |epochs| {
                epochs.discarded(handle, range)?;
                Ok(epochs.hold(handle, epoch)?)
            })
        };
        let Err(refusal) = result.await else { return Ok(()) };
        pool.discard_failed(container, handle);
        pool.tables.borrow_mut().begin_hold(handle);
        // What cannot be told now is told with the next hold or flush.
        if let Err(untold) = self.tell_handle(pool, handle).await {
            tracing::warn!(%handle, error = untold.message, "a hold that failed could not be taken back everywhere");
        }
        Err(refusal)
    }

    async fn flush(
        &self,
        pool: &Rc<PoolState<E>>,
        container: Uuid,
        handle: Uuid,
        epoch: Epoch,
    ) -> Result<(), Refusal> {
        let begun = pool.tables.borrow_mut().container(container)?.epochs.begin_flush(handle, epoch)?;
        let info = pool.tables.borrow().info(pool.uuid, handle)?;
        let flushed = on_all_targets(&self.env, move |target| async move {
            // Commits tell targets nothing; what they have raised since is told on the way.
            let known = target.install(&info)?;
            // In one step with the beginning of the flush: what is written afterwards asks first.
            known.flush_begins(epoch);
            target.flush(info.pool).await
        });
        all_or_first_error(flushed.await)?;
        Ok(pool.tables.borrow_mut().container(container)?.epochs.flushed(handle, begun)?)
    }

    /// A target asks whether a handle may write at an epoch that it has flushed before. If so, the flush counts no more.
    pub fn rewrite(&self, handle: Uuid, epoch: Epoch) -> Result<(), Refusal> {
        for pool in self.pools.borrow().values() {
            let mut tables = pool.tables.borrow_mut();
            if let Some(container) = tables.container_of.get(&handle).copied() {
                return Ok(tables.container(container)?.epochs.rewritten(handle, epoch)?);
            }
        }
        Err(Refusal::new(Status::BAD_HANDLE, "the container handle is not open"))
    }

    pub(super) async fn commit(&self, ask: &Ask<E>) -> Result<Vec<EpochState>, Refusal> {
        let request: EpochCommit = ask.body()?;
        let count = request.commits.len();
        if count == 0 || count > COMMIT_HANDLES_MAX {
            let message = format!("a commit names 1 to {COMMIT_HANDLES_MAX} handles, not {count}");
            return Err(Refusal::new(Status::INVALID, message));
        }
        let pool = self.pool_of(ask.handle, &ask.responder)?;
        let mut states = Vec::with_capacity(count);
        for (handle, _) in &request.commits {
            permit(pool.tables.borrow().open_handle(*handle)?.1.capabilities, Capabilities::WRITE)?;
            self.used(&pool, *handle, &ask.responder);
        }
        pool.commit(&request.commits)?;
        for (handle, _) in &request.commits {
            let mut tables = pool.tables.borrow_mut();
            let (container, _) = tables.open_handle(*handle)?;
            states.push(tables.container(container)?.epochs.query(*handle)?);
        }
        pool.rdb.settled().await?;
        pool.committed.notify_all();
        Ok(states)
    }

    pub(super) async fn attributes_set(&self, ask: &Ask<E>) -> Result<(), Refusal> {
        let request: AttributesSet = ask.body()?;
        let (pool, container) = self.open_container(ask, Capabilities::WRITE)?;
        let mut batch = Batch::default();
        let keys = pool.rdb.keys(Table::Attributes(container), b"")?;
        let mut names: BTreeSet<Vec<u8>> = keys.into_iter().collect();
        for (name, value) in request.attributes {
            let too_long = value.as_ref().is_some_and(|value| value.len() > ATTRIBUTE_VALUE_BYTES_MAX);
            if name.is_empty() || name.len() > ATTRIBUTE_NAME_BYTES_MAX || too_long {
                let message = format!(
                    "an attribute has a name of 1 to {ATTRIBUTE_NAME_BYTES_MAX} bytes and a value of at most \
                     {ATTRIBUTE_VALUE_BYTES_MAX}"
                );
                return Err(Refusal::new(Status::INVALID, message));
            }
            match value {
                Some(_) if names.contains(name.as_bytes()) => {}
                Some(_) => {
                    let max = self.config.limits.attributes;
                    one_more(names.len(), max, "attributes of the container", "remove some")?;
                    names.insert(name.clone().into_bytes());
                }
                None => drop(names.remove(name.as_bytes())),
            }
            match value {
                Some(value) => batch.put(Table::Attributes(container), name.into_bytes(), value),
                None => batch.remove(Table::Attributes(container), name.into_bytes()),
            }
        }
        pool.rdb.submit(&batch)?;
        Ok(pool.rdb.settled().await?)
    }

    pub(super) async fn attributes_get(&self, ask: &Ask<E>) -> Result<AttributesReply, Refusal> {
        let request: AttributesGet = ask.body()?;
        let (pool, container) = self.open_container(ask, Capabilities::READ)?;
        let table = Table::Attributes(container);
        let mut names = request.names;
        if names.is_empty() {
            let all = pool.rdb.keys(table, b"")?.into_iter();
            names = all.map(|name| String::from_utf8_lossy(&name).into_owned()).collect();
        }
        names.retain(|name| request.after.as_ref().is_none_or(|after| name > after));
        names.sort_unstable();
        names.dedup();
        let mut failed = None;
        let read = names.into_iter().map_while(|name| match pool.rdb.get(table, name.as_bytes()) {
            Ok(value) => Some(value.map(|value| (name, value))),
            Err(error) => {
                failed = Some(error);
                None
            }
        });
        let (attributes, more) = page(read.flatten(), ask.responder.body_bytes_max());
        if let Some(error) = failed {
            return Err(error.into());
        }
        pool.rdb.settled().await?;
        Ok(AttributesReply { attributes, more })
    }
}
