//! Pools of the engine: made on all of its targets or on none, listed, destroyed.

use std::{
    ops::Bound::{Excluded, Unbounded},
    rc::Rc,
};

use daos_xstream::{BLOCK_BYTES, Env, Mailbox, Media, OpenOptions, rpc::Status};
use uuid::Uuid;

use super::{
    Batch, Rdb, Table,
    control::{Ask, Control, MARKER, Reserved, answer},
    records::{self, PoolRecord},
    refusal::Refusal,
    state::PoolState,
    target::{Share, Target, all_or_first_error, on_all_targets, pool_directory},
};
use crate::{
    access::{Acl, Identity, Ownership},
    pool_map::PoolMap,
    rpc::{
        control::{
            Label, ManagementQuery, Name, PoolCreate, PoolDestroy, PoolEntry, PoolList, PoolListRequest,
            PoolLookup, StorageReply, TargetSpace, page,
        },
        management,
    },
};

/// The smallest share of a target that works, in bytes.
const TARGET_BYTES_MIN: u64 = 16 << 20;
const HEAP_BYTES_MIN: u64 = 8 << 20;
const LOG_BYTES: (u64, u64) = (4 << 20, 256 << 20);

impl<E: Env> Control<E> {
    pub(super) async fn management(self: &Rc<Self>, ask: &Ask<E>) -> Result<Vec<u8>, Refusal> {
        match ask.procedure {
            management::POOL_CREATE => {
                let request: PoolCreate = ask.body()?;
                let identity = self.administrator(ask, request.identity)?;
                answer(&self.pool_create(request, identity).await?)
            }
            management::POOL_DESTROY => {
                let request: PoolDestroy = ask.body()?;
                self.administrator(ask, request.identity)?;
                answer(&self.pool_destroy(&request).await?)
            }
            management::POOL_LOOKUP => {
                let request: PoolLookup = ask.body()?;
                self.administrator(ask, request.identity)?;
                answer(&self.pool_lookup(&request)?)
            }
            management::POOL_LIST => {
                let request: PoolListRequest = ask.body()?;
                self.administrator(ask, request.identity)?;
                let pools = self.pools.borrow();
                let after = request.after.map_or(Unbounded, Excluded);
                let rest = pools.range((after, Unbounded)).map(|(_, pool)| entry(pool));
                let (pools, more) = page(rest, ask.responder.body_bytes_max());
                answer(&PoolList { pools, more })
            }
            management::STORAGE_QUERY => {
                let request: ManagementQuery = ask.body()?;
                self.administrator(ask, request.identity)?;
                answer(&self.storage().await?)
            }
            _ => Err(Status::NO_SUCH_PROCEDURE.into()),
        }
    }

    fn administrator(&self, ask: &Ask<E>, stated: Identity) -> Result<Identity, Refusal> {
        let identity = self.identity(&ask.responder, stated)?;
        match &self.config.administrators {
            Some(users) if !users.contains(&identity.uid) => {
                let users: Vec<_> = users.iter().map(u32::to_string).collect();
                let message = format!(
                    "not permitted: user {} may not manage this engine; these user IDs may: {}",
                    identity.uid,
                    users.join(", ")
                );
                Err(Refusal::new(Status::NOT_PERMITTED, message))
            }
            _ => Ok(identity),
        }
    }

    /// The pool of this name.
    pub(super) fn pool_named(&self, name: &Name) -> Result<Rc<PoolState<E>>, Refusal> {
        let pools = self.pools.borrow();
        let found = match name {
            Name::Uuid(uuid) => pools.get(uuid),
            Name::Label(label) => {
                pools.values().find(|pool| pool.tables.borrow().record.label.as_ref() == Some(label))
            }
        };
        let missing = || {
            let message = format!("there is no pool {name}; dmg pool list shows what there is");
            Refusal::new(Status::NOT_FOUND, message)
        };
        found.cloned().ok_or_else(|| match name {
            Name::Uuid(uuid) => self.broken.borrow().get(uuid).cloned().unwrap_or_else(missing),
            // The label of a pool that could not be opened is not known.
            Name::Label(_) => self.unless_broken(missing()),
        })
    }

    async fn pool_create(&self, request: PoolCreate, asking: Identity) -> Result<PoolEntry, Refusal> {
        let uuid = request.uuid;
        self.unless_busy(uuid)?;
        if let Some(pool) = self.pools.borrow().get(&uuid) {
            // The reply to an earlier request was lost.
            return Ok(entry(pool));
        }
        if let Some(why) = self.broken.borrow().get(&uuid) {
            // It was made, and what is left of it must not be overwritten.
            return Err(why.clone());
        }
        if let Some(label) = &request.label
            && self.pool_named(&Name::Label(label.clone())).is_ok()
        {
            return Err(Refusal::new(Status::EXISTS, format!("there is a pool {label} already")));
        }
        self.unless_label_busy(request.label.as_ref())?;
        let share = self.share(&request)?;
        self.busy.borrow_mut().insert(uuid, Reserved { label: request.label.clone(), bytes: request.bytes });
        let result = self.pool_make(&request, asking, share).await;
        if result.is_err() {
            self.pool_remove(uuid).await;
        }
        self.busy.borrow_mut().remove(&uuid);
        result
    }

    /// Refuses, for now, what is asked about a pool that is being made or destroyed.
    pub(super) fn unless_busy(&self, uuid: Uuid) -> Result<(), Refusal> {
        match self.busy.borrow().contains_key(&uuid) {
            true => Err(Refusal::new(Status::TRY_AGAIN, "the pool is being made or destroyed")),
            false => Ok(()),
        }
    }

    /// The same, by its label.
    fn unless_label_busy(&self, label: Option<&Label>) -> Result<(), Refusal> {
        match label {
            Some(label) if self.busy.borrow().values().any(|busy| busy.label.as_ref() == Some(label)) => {
                let message = format!("a pool {label} is being made or destroyed");
                Err(Refusal::new(Status::TRY_AGAIN, message))
            }
            _ => Ok(()),
        }
    }

    async fn pool_make(
        &self,
        request: &PoolCreate,
        asking: Identity,
        share: Share,
    ) -> Result<PoolEntry, Refusal> {
        let uuid = request.uuid;
        // What an attempt before a restart may have left.
        self.env.media().remove(&pool_directory(uuid)).await?;
        let made =
            on_all_targets(&self.env, move |target| async move { target.pool_create(uuid, share).await });
        all_or_first_error(made.await)?;
        let vpool = Target::of(&self.env).await.vpool(uuid)?;
        let owner = request.owner.unwrap_or(asking);
        let acl = request.acl.clone().unwrap_or_else(Acl::initial);
        let record = PoolRecord {
            label: request.label.clone(),
            ownership: Ownership { owner, acl },
            bytes: request.bytes,
        };
        let map = PoolMap::new(uuid, &self.targets())?;
        let rdb = Rdb::create(&vpool)?;
        let mut batch = Batch::default();
        batch.put(Table::Main, records::POOL.to_vec(), records::encode(&record));
        batch.put(Table::Main, records::MAP.to_vec(), records::encode(&map));
        rdb.submit(&batch)?;
        rdb.settled().await?;
        let pool = PoolState::new(uuid, rdb, record, map);
        self.tell_map_version(&pool).await?;
        let marker = format!("{}/{MARKER}", pool_directory(uuid));
        let options = OpenOptions {
            create_new: true,
            size: BLOCK_BYTES as u64,
            preallocate: false,
            ..OpenOptions::default()
        };
        self.env.media().open(&marker, options).await?;
        let entry = entry(&pool);
        self.pools.borrow_mut().insert(uuid, pool);
        Ok(entry)
    }

    /// How much of each kind a target gives to a pool.
    fn share(&self, request: &PoolCreate) -> Result<Share, Refusal> {
        let targets = u64::from(self.env.mailbox().cores()).max(1);
        let bytes = request.bytes / targets;
        if bytes < TARGET_BYTES_MIN {
            let least = TARGET_BYTES_MIN * targets;
            let message =
                format!("{} bytes are too few for {targets} targets: {least} would do", request.bytes);
            return Err(Refusal::new(Status::INVALID, message));
        }
        let taken = self.bytes_taken();
        if self.config.bytes > 0 && request.bytes > self.config.bytes.saturating_sub(taken) {
            let free = self.config.bytes.saturating_sub(taken);
            let message = format!(
                "{} bytes are more than the {free} that are left; see dmg storage query usage",
                request.bytes
            );
            return Err(Refusal::new(Status::NO_SPACE, message));
        }
        let log_bytes = (bytes / 16).clamp(LOG_BYTES.0, LOG_BYTES.1);
        let wanted = request.scm_bytes.map_or(bytes / 4, |scm_bytes| scm_bytes / targets);
        let heap_bytes = wanted.clamp(HEAP_BYTES_MIN, bytes - log_bytes);
        let whole_blocks = |bytes: u64| bytes / (1 << 20) * (1 << 20);
        Ok(Share {
            heap_bytes: whole_blocks(heap_bytes),
            log_bytes: whole_blocks(log_bytes),
            block_bytes: whole_blocks(bytes - log_bytes - heap_bytes),
        })
    }

    /// Bytes of all pools, also of those that are being made, and of those that are being destroyed until that is done.
    fn bytes_taken(&self) -> u64 {
        let (pools, busy) = (self.pools.borrow(), self.busy.borrow());
        let made = pools.values().map(|pool| pool.tables.borrow().record.bytes);
        let others = busy.iter().filter(|(uuid, _)| !pools.contains_key(*uuid)).map(|(_, busy)| busy.bytes);
        made.chain(others).fold(0, u64::saturating_add)
    }

    fn pool_lookup(&self, request: &PoolLookup) -> Result<Uuid, Refusal> {
        if let Name::Label(label) = &request.pool {
            self.unless_label_busy(Some(label))?;
        }
        Ok(self.pool_named(&request.pool)?.uuid)
    }

    async fn pool_destroy(&self, request: &PoolDestroy) -> Result<(), Refusal> {
        let uuid = request.pool;
        let broken = self.broken.borrow().get(&uuid).cloned();
        if let Some(refusal) = broken {
            if !request.force {
                let message = format!("{}; --force removes it with all it holds", refusal.message);
                return Err(Refusal::new(refusal.status, message));
            }
            return self.destroy_broken(uuid).await;
        }
        self.unless_busy(uuid)?;
        // What is not there has been destroyed, by a request whose reply was lost.
        let Ok(pool) = self.pool_named(&Name::Uuid(uuid)) else { return Ok(()) };
        let (handles, label, bytes) = {
            let tables = pool.tables.borrow();
            (tables.handles.len(), tables.record.label.clone(), tables.record.bytes)
        };
        if handles > 0 && !request.force {
            let message =
                format!("{handles} connections to the pool are open: close or evict them, or force");
            return Err(Refusal::new(Status::IN_USE, message));
        }
        self.busy.borrow_mut().insert(pool.uuid, Reserved { label, bytes });
        // Without its marker it is gone for the next start; only then nobody is told of it any more.
        let marker = format!("{}/{MARKER}", pool_directory(pool.uuid));
        let result = self.env.media().remove(&marker).await;
        self.pools.borrow_mut().remove(&pool.uuid);
        pool.committed.notify_all();
        match &result {
            Ok(()) => self.pool_remove(pool.uuid).await,
            // The marker may be gone or not. What would be acknowledged from now on might not be there after the next start, so
            // nothing is.
            Err(error) => {
                let message = format!("its destruction failed half-way ({error})");
                self.broken.borrow_mut().insert(pool.uuid, Refusal::new(Status::MEDIA_FAILED, message));
                let uuid = pool.uuid;
                on_all_targets(&self.env, move |target| async move { target.pool_close(uuid).await }).await;
            }
        }
        self.busy.borrow_mut().remove(&pool.uuid);
        Ok(result?)
    }

    /// Destroys a pool that could not be opened.
    async fn destroy_broken(&self, uuid: Uuid) -> Result<(), Refusal> {
        self.unless_busy(uuid)?;
        self.busy.borrow_mut().insert(uuid, Reserved::default());
        let result = self.env.media().remove(&format!("{}/{MARKER}", pool_directory(uuid))).await;
        if result.is_ok() {
            self.broken.borrow_mut().remove(&uuid);
            self.pool_remove(uuid).await;
        }
        self.busy.borrow_mut().remove(&uuid);
        Ok(result?)
    }

    /// Takes a pool off every target, and its files off media. What stays because media fails is removed at the next
    /// start: the pool has no marker.
    async fn pool_remove(&self, uuid: Uuid) {
        let closed =
            on_all_targets(&self.env, move |target| async move { target.pool_close(uuid).await }).await;
        let removed = self.env.media().remove(&pool_directory(uuid)).await;
        if let Err(refusal) = all_or_first_error(closed).map(drop).and(removed.map_err(Refusal::from)) {
            tracing::warn!(pool = %uuid, error = refusal.message, "a pool was not removed cleanly");
        }
    }

    async fn storage(&self) -> Result<StorageReply, Refusal> {
        let pools: Vec<_> = self.pools.borrow().values().cloned().collect();
        let bytes_in_pools = pools.iter().map(|pool| pool.tables.borrow().record.bytes).sum();
        let mut targets: Vec<TargetSpace> = (0..self.env.mailbox().cores())
            .map(|index| TargetSpace { rank: self.config.rank, index, ..TargetSpace::default() })
            .collect();
        for pool in pools {
            for (sum, space) in targets.iter_mut().zip(self.space(pool.uuid).await?) {
                sum.scm_bytes += space.scm_bytes;
                sum.scm_bytes_free += space.scm_bytes_free;
                sum.block_bytes += space.block_bytes;
                sum.block_bytes_free += space.block_bytes_free;
            }
        }
        Ok(StorageReply { bytes: self.config.bytes, bytes_in_pools, targets })
    }

    /// Space of a pool on every target of this engine.
    pub(super) async fn space(&self, pool: Uuid) -> Result<Vec<TargetSpace>, Refusal> {
        let spaces = on_all_targets(&self.env, move |target| async move { target.space(pool) }).await;
        let spaces = (0u32..).zip(all_or_first_error(spaces)?).map(|(index, space)| TargetSpace {
            rank: self.config.rank,
            index,
            scm_bytes: space.scm.0,
            scm_bytes_free: space.scm.1,
            block_bytes: space.block.0,
            block_bytes_free: space.block.1,
        });
        Ok(spaces.collect())
    }
}

fn entry<E: Env>(pool: &PoolState<E>) -> PoolEntry {
    let tables = pool.tables.borrow();
    PoolEntry {
        uuid: pool.uuid,
        label: tables.record.label.clone(),
        bytes: tables.record.bytes,
        targets: tables.map.targets().len() as u32,
    }
}
