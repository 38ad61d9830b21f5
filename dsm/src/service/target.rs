//! What one xstream keeps for its target: vpools, and the volatile copies of handles.
//!
//! # Invariants
//!
//! * A handle is here only because the service told so: by a collective when it was opened, or because this target asked
//!   (after a restart). What a client says about a handle is never believed.
//! * Once a handle is revoked nothing is written through it any more: work that waited in between looks again
//!   ([`Handle::is_revoked`]), and an answer of the service that was under way does not bring it back.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet, VecDeque},
    rc::Rc,
    time::Duration,
};

use daos_types::{Cookie, Epoch, EpochRange};
use daos_vos::{Container, Error, MediaKind, Pool, PoolOptions};
use daos_xstream::{Bug, Clock, CoreId, Env, Mailbox, join_all, rpc::Status, submit_to};
use uuid::Uuid;

use super::refusal::Refusal;
use crate::access::Capabilities;

/// Revoked handles that are remembered: more than can be asked about at one time.
const REVOKED_MAX: usize = 8192;
/// How long to wait before looking again whether another xstream's target is ready.
const START_INTERVAL: Duration = Duration::from_millis(1);

/// What a target is told about a container handle.
#[derive(Clone, Copy, Debug)]
pub struct HandleInfo {
    /// The pool.
    pub pool: Uuid,
    /// The container.
    pub container: Uuid,
    /// The handle.
    pub handle: Uuid,
    /// Its tag.
    pub cookie: Cookie,
    /// What it permits.
    pub capabilities: Capabilities,
    /// Its lowest held epoch; [`Epoch::MAX`] if it holds nothing.
    pub lhe: Epoch,
}

/// A container handle, as the target knows it.
pub struct Handle<E: Env> {
    /// The store of the container.
    pub container: Container<E>,
    /// The tag of its writes.
    pub cookie: Cookie,
    /// What it permits.
    pub capabilities: Capabilities,
    /// The lowest held epoch, as far as the target was told.
    pub lhe: Cell<Epoch>,
    pool: Uuid,
    container_uuid: Uuid,
    map_version: Rc<Cell<u32>>,
    revoked: Cell<bool>,
}

impl<E: Env> Handle<E> {
    /// Whether the handle was closed while its user waited.
    pub fn is_revoked(&self) -> bool {
        self.revoked.get()
    }

    /// The pool map version that the target knows.
    pub fn map_version(&self) -> u32 {
        self.map_version.get()
    }
}

struct TargetPool<E: Env> {
    vpool: Pool<E>,
    map_version: Rc<Cell<u32>>,
}

/// Space of a vpool.
#[derive(Clone, Copy, Debug, Default)]
pub struct Space {
    /// Bytes for small data and metadata, and of these, free.
    pub scm: (u64, u64),
    /// Bytes for large data, and of these, free.
    pub block: (u64, u64),
}

/// How large one target's share of a pool is.
#[derive(Clone, Copy, Debug)]
pub struct Share {
    /// Bytes of the heap.
    pub heap_bytes: u64,
    /// Bytes of the log.
    pub log_bytes: u64,
    /// Bytes of the block tier.
    pub block_bytes: u64,
}

/// The target of one xstream.
pub struct Target<E: Env> {
    env: E,
    media: MediaKind,
    pools: RefCell<BTreeMap<Uuid, TargetPool<E>>>,
    handles: RefCell<BTreeMap<Uuid, Rc<Handle<E>>>>,
    revoked: RefCell<(BTreeSet<Uuid>, VecDeque<Uuid>)>,
}

/// Folder of a pool's files.
pub fn pool_directory(pool: Uuid) -> String {
    format!("pools/{pool}")
}

impl<E: Env> Target<E> {
    /// Makes the target of `env`'s xstream and leaves it in its locals.
    pub fn start(env: &E, media: MediaKind) -> Rc<Self> {
        let target = Rc::new(Self {
            env: env.clone(),
            media,
            pools: RefCell::default(),
            handles: RefCell::default(),
            revoked: RefCell::default(),
        });
        env.locals().insert(target.clone());
        target
    }

    /// The target of `env`'s xstream, once it has started.
    pub async fn of(env: &E) -> Rc<Self> {
        loop {
            if let Some(target) = env.locals().get::<Self>() {
                return target;
            }
            env.clock().sleep_until(env.clock().now() + START_INTERVAL).await;
        }
    }

    fn directory(&self, pool: Uuid) -> String {
        format!("{}/{}", pool_directory(pool), self.env.core().0)
    }

    /// Makes the target's share of a new pool.
    pub async fn pool_create(&self, uuid: Uuid, share: Share) -> Result<(), Refusal> {
        let Share { heap_bytes, log_bytes, block_bytes } = share;
        let media = self.media.clone();
        let options = PoolOptions { uuid, media, heap_bytes, log_bytes, block_bytes };
        let vpool = Pool::create(&self.env, &self.directory(uuid), options).await?;
        self.keep(uuid, vpool);
        Ok(())
    }

    /// Opens the target's share of a pool.
    pub async fn pool_open(&self, uuid: Uuid) -> Result<(), Refusal> {
        let vpool = Pool::open(&self.env, &self.directory(uuid)).await?;
        self.keep(uuid, vpool);
        Ok(())
    }

    /// Lets go of a pool: of its handles first.
    pub async fn pool_close(&self, uuid: Uuid) -> Result<(), Refusal> {
        let handles: Vec<_> = self.handles_where(|handle| handle.pool == uuid);
        handles.into_iter().for_each(|handle| self.revoke(handle));
        let pool = self.pools.borrow_mut().remove(&uuid);
        match pool {
            Some(pool) => Ok(pool.vpool.close().await?),
            None => Ok(()),
        }
    }

    /// Lets go of all pools: nothing is left for the next start to replay.
    pub async fn close(&self) -> Result<(), Refusal> {
        let pools: Vec<Uuid> = self.pools.borrow().keys().copied().collect();
        let mut outcome = Ok(());
        for pool in pools {
            outcome = outcome.and(self.pool_close(pool).await);
        }
        outcome
    }

    fn keep(&self, uuid: Uuid, vpool: Pool<E>) {
        self.pools.borrow_mut().insert(uuid, TargetPool { vpool, map_version: Rc::default() });
    }

    /// The vpool of a pool.
    pub fn vpool(&self, pool: Uuid) -> Result<Pool<E>, Refusal> {
        let pools = self.pools.borrow();
        let found = pools.get(&pool).ok_or_else(|| {
            Refusal::new(Status::NOT_FOUND, format!("this target holds no part of pool {pool}"))
        })?;
        Ok(found.vpool.clone())
    }

    /// Notes the version of the pool map.
    pub fn set_map_version(&self, pool: Uuid, version: u32) {
        if let Some(pool) = self.pools.borrow().get(&pool) {
            pool.map_version.set(pool.map_version.get().max(version));
        }
    }

    /// Space of a pool on this target.
    pub fn space(&self, pool: Uuid) -> Result<Space, Refusal> {
        let usage = self.vpool(pool)?.usage()?;
        Ok(Space {
            scm: (usage.arena_bytes, usage.arena_bytes_free),
            block: (usage.block_bytes, usage.block_bytes_free),
        })
    }

    /// The handle, if the target knows it.
    pub fn handle(&self, handle: Uuid) -> Option<Rc<Handle<E>>> {
        self.handles.borrow().get(&handle).cloned()
    }

    /// Keeps a handle that the service tells of, or changes what is known of it. The container's store is made if this is
    /// the first that the target hears of the container.
    pub fn install(&self, info: &HandleInfo) -> Result<Rc<Handle<E>>, Refusal> {
        if self.revoked.borrow().0.contains(&info.handle) {
            return Err(Refusal::new(Status::BAD_HANDLE, "the handle was closed"));
        }
        if let Some(handle) = self.handle(info.handle) {
            handle.lhe.set(info.lhe);
            return Ok(handle);
        }
        let vpool = self.vpool(info.pool)?;
        let container = match vpool.container_open(info.container) {
            Err(Error::NotFound(_)) => {
                let _ = vpool.container_create(info.container)?;
                vpool.container_open(info.container)?
            }
            result => result?,
        };
        let map_version = self.pools.borrow().get(&info.pool).map(|pool| pool.map_version.clone());
        let handle = Rc::new(Handle {
            container,
            cookie: info.cookie,
            capabilities: info.capabilities,
            lhe: Cell::new(info.lhe),
            pool: info.pool,
            container_uuid: info.container,
            map_version: map_version.unwrap_or_default(),
            revoked: Cell::new(false),
        });
        self.handles.borrow_mut().insert(info.handle, handle.clone());
        Ok(handle)
    }

    /// Refuses a handle from now on.
    pub fn revoke(&self, handle: Uuid) {
        if let Some(known) = self.handles.borrow_mut().remove(&handle) {
            known.revoked.set(true);
        }
        let (set, order) = &mut *self.revoked.borrow_mut();
        if set.insert(handle) {
            order.push_back(handle);
        }
        while order.len() > REVOKED_MAX {
            if let Some(oldest) = order.pop_front() {
                set.remove(&oldest);
            }
        }
    }

    /// Makes every change of a pool so far durable.
    pub async fn flush(&self, pool: Uuid) -> Result<(), Refusal> {
        if self.env.planted(Bug::EarlyFlush) {
            return Ok(());
        }
        let _ = self.vpool(pool)?.flush().await?;
        Ok(())
    }

    /// Forgets the writes of a cookie in a range of epochs; durable on return.
    pub async fn discard(
        &self,
        pool: Uuid,
        container: Uuid,
        cookie: Cookie,
        range: EpochRange,
    ) -> Result<(), Refusal> {
        let vpool = self.vpool(pool)?;
        let container = match vpool.container_open(container) {
            // Nothing was ever written here.
            Err(Error::NotFound(_)) => return Ok(()),
            result => result?,
        };
        let sealed = container.discard(cookie, range).await?;
        let _ = vpool.persisted(sealed).await?;
        Ok(())
    }

    /// Destroys a container's store, after revoking what is left of its handles; durable on return.
    pub async fn container_destroy(&self, pool: Uuid, container: Uuid) -> Result<(), Refusal> {
        let handles = self.handles_where(|handle| handle.container_uuid == container);
        handles.into_iter().for_each(|handle| self.revoke(handle));
        let vpool = self.vpool(pool)?;
        let sealed = vpool.container_destroy(container).await?;
        let _ = vpool.persisted(sealed).await?;
        Ok(())
    }

    fn handles_where(&self, wanted: impl Fn(&Handle<E>) -> bool) -> Vec<Uuid> {
        let handles = self.handles.borrow();
        handles.iter().filter(|(_, handle)| wanted(handle)).map(|(uuid, _)| *uuid).collect()
    }
}

/// Does `work` on every target of the engine at once. Results come by target index, after all have ended: when this
/// returns nothing is under way any more.
pub async fn on_all_targets<E, R, F>(
    env: &E,
    work: impl Fn(Rc<Target<E>>) -> F + Clone + Send + 'static,
) -> Vec<Result<R, Refusal>>
where
    E: Env,
    R: Send + 'static,
    F: Future<Output = Result<R, Refusal>> + 'static,
{
    let calls = (0..env.mailbox().cores()).map(|core| {
        let work = work.clone();
        submit_to(env, CoreId(core), move |env: &E| {
            let env = env.clone();
            async move { work(Target::of(&env).await).await }
        })
    });
    join_all(calls).await.into_iter().map(|result| result.unwrap_or_else(|error| Err(error.into()))).collect()
}

/// The first error of a collective, if there is one.
pub fn all_or_first_error<R>(results: Vec<Result<R, Refusal>>) -> Result<Vec<R>, Refusal> {
    results.into_iter().collect()
}
