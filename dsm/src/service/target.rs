//! What one xstream keeps for its target: vpools, and the volatile copies of handles.
//!
//! # Invariants
//!
//! * A handle is here only because the service told so: by a collective when it was opened, or because this target asked
//!   (after a restart). What a client says about a handle is never believed.
//! * Once a handle is revoked nothing is written through it any more: work that waited in between looks again
//!   ([`Handle::check_open`]), and an answer of the service that was under way does not bring it back.

use std::{
    cell::{Cell, RefCell},
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet, VecDeque},
    rc::Rc,
    time::Duration,
};

use daos_types::{Cookie, Epoch, EpochRange};
use daos_vos::{Container, Error, LogUsage, MediaKind, Pool, PoolOptions};
use daos_xstream::{
    Bug, Clock, CoreId, Env, Mailbox, Time, join_all,
    rpc::Status,
    submit_to,
    telemetry::{Counter, Metrics},
};
use uuid::Uuid;

use super::{
    control::Control,
    rdb::is_reserved,
    refusal::{Refusal, reserved},
    scrub::{Health, ScrubUsage, Scrubber},
};
use crate::access::Capabilities;

/// Revoked handles that are remembered: more than can be asked about at one time.
const REVOKED_MAX: usize = 8192;
/// What a client is told that comes too late.
const STOPPING: &str = "the engine is stopping";
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
    /// How many holds there were before that: what is told of fewer comes late.
    pub holds: u64,
    /// Everything it wrote up to here is flushed.
    pub flushed: Epoch,
}

/// A container handle, as the target knows it.
pub struct Handle<E: Env> {
    /// The handle.
    pub uuid: Uuid,
    /// The store of the container.
    pub container: Container<E>,
    /// The tag of its writes.
    pub cookie: Cookie,
    /// What it permits.
    pub capabilities: Capabilities,
    /// Where its target counts bytes.
    pub traffic: Traffic,
    /// The lowest held epoch, as far as the target was told.
    pub lhe: Cell<Epoch>,
    /// The number of holds that this comes from.
    holds: Cell<u64>,
    /// The highest epoch that was flushed. Writes up to here ask the service first: it must not commit them unflushed.
    flushed: Cell<Epoch>,
    /// Flushes that have begun.
    flushes: Cell<u64>,
    /// When something that it has written was last given up here, and all epochs that this was ever done to.
    discarded: Cell<Option<(Time, EpochRange)>>,
    pool: Uuid,
    container_uuid: Uuid,
    map_version: Rc<Cell<u32>>,
    /// Why nothing is written through it any more; success while that is not so.
    revoked: Cell<Status>,
}

impl<E: Env> Handle<E> {
    /// Refuses what is done through a handle that was closed while its user waited, or whose engine is stopping.
    pub fn check_open(&self) -> Result<(), (Status, &'static str)> {
        match self.revoked.get() {
            Status::OK => Ok(()),
            Status::SHUTTING_DOWN => Err((Status::SHUTTING_DOWN, STOPPING)),
            status => Err((status, "the handle was closed")),
        }
    }

    /// Takes in what the service told of the held epochs. Answers and collectives may come in any order; a newer hold may
    /// lower the LHE, nothing else may.
    fn learn(&self, info: &HandleInfo) {
        let (holds, lhe) = newer_hold((self.holds.get(), self.lhe.get()), (info.holds, info.lhe));
        self.holds.set(holds);
        self.lhe.set(lhe);
    }

    /// Whether a write at `epoch` that arrived then, and waited, may belong to what has been given up meanwhile.
    pub fn was_discarded_since(&self, arrived: Time, epoch: Epoch) -> bool {
        self.discarded.get().is_some_and(|(at, range)| arrived <= at && range.contains(epoch))
    }

    /// Whether a write at `epoch` comes after a flush of it, and so has to be [announced](Self::announce) first.
    pub fn is_flushed(&self, epoch: Epoch) -> bool {
        epoch <= self.flushed.get()
    }

    /// Notes that everything written up to `epoch` is being flushed, and that what is written from now on may miss it.
    pub fn flush_begins(&self, epoch: Epoch) {
        self.flushed.set(self.flushed.get().max(epoch));
        self.flushes.set(self.flushes.get() + 1);
    }

    /// Tells the service of a write at an epoch that was flushed; returns when it may be made, at once.
    pub async fn announce(&self, env: &E, epoch: Epoch) -> Result<(), Refusal> {
        while self.is_flushed(epoch) {
            let (handle, flushes) = (self.uuid, self.flushes.get());
            let told = submit_to(env, CoreId(0), move |env: &E| {
                let answer = match Control::of(env) {
                    Some(control) => control.rewrite(handle, epoch),
                    None => Err(Status::TRY_AGAIN.into()),
                };
                async move { answer }
            });
            told.await??;
            // A flush that began since counts for the service, and this write is not in it: ask again.
            if flushes == self.flushes.get() {
                self.flushed.set(Epoch(epoch.0 - 1));
            }
        }
        Ok(())
    }

    /// The pool map version that the target knows.
    pub fn map_version(&self) -> u32 {
        self.map_version.get()
    }
}

struct TargetPool<E: Env> {
    vpool: Pool<E>,
    map_version: Rc<Cell<u32>>,
    health: Rc<Health>,
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

/// Bytes of objects that a target has taken and given.
#[derive(Clone)]
pub struct Traffic {
    /// Bytes of updates that were made.
    pub written: Counter,
    /// Bytes of what fetches found.
    pub read: Counter,
}

impl Traffic {
    fn new(metrics: &Metrics) -> Self {
        Self {
            written: metrics.counter("engine_bytes_written_total", "Bytes of values and extents written."),
            read: metrics.counter("engine_bytes_read_total", "Bytes of values and extents read."),
        }
    }
}

/// How the target's shares of all pools are used.
#[derive(Clone, Copy, Debug, Default)]
pub struct TargetUsage {
    /// Pools.
    pub pools: u64,
    /// Open container handles.
    pub handles: u64,
    /// Space.
    pub space: Space,
    /// The logs. Counts include those of pools that are gone.
    pub log: LogUsage,
    /// What the scrubber has done.
    pub scrub: ScrubUsage,
}

/// The target of one xstream.
pub struct Target<E: Env> {
    env: E,
    media: MediaKind,
    pools: RefCell<BTreeMap<Uuid, TargetPool<E>>>,
    handles: RefCell<BTreeMap<Uuid, Rc<Handle<E>>>>,
    revoked: RefCell<(BTreeSet<Uuid>, VecDeque<Uuid>)>,
    traffic: Traffic,
    stopping: Cell<bool>,
    /// What the logs of pools that are gone had done.
    past_logs: Cell<LogUsage>,
    scrubber: Scrubber,
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
            // A world without metrics counts into the void.
            traffic: Traffic::new(
                &env.locals().get::<Metrics>().map(|metrics| (*metrics).clone()).unwrap_or_default(),
            ),
            stopping: Cell::new(false),
            past_logs: Cell::default(),
            scrubber: Scrubber::default(),
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
            Some(pool) => {
                self.scrubber.let_go(uuid).await;
                let outcome = pool.vpool.close().await;
                self.past_logs.set(with_counts(self.past_logs.get(), &pool.vpool.log_usage()));
                Ok(outcome?)
            }
            None => Ok(()),
        }
    }

    /// Lets go of all pools: nothing is left for the next start to replay.
    pub async fn close(&self) -> Result<(), Refusal> {
        self.stopping.set(true);
        let pools: Vec<Uuid> = self.pools.borrow().keys().copied().collect();
        let mut outcome = Ok(());
        for pool in pools {
            outcome = outcome.and(self.pool_close(pool).await);
        }
        outcome
    }

    fn keep(&self, uuid: Uuid, vpool: Pool<E>) {
        let health = Health::unknown(self.env.clock().now());
        self.pools.borrow_mut().insert(uuid, TargetPool { vpool, map_version: Rc::default(), health });
        self.scrubber.pools_changed();
    }

    /// The target's scrubber.
    pub(super) fn scrubber(&self) -> &Scrubber {
        &self.scrubber
    }

    /// The pool that is to be scrubbed next, and when.
    pub(super) fn next_to_scrub(&self) -> Option<(Uuid, Time)> {
        let pools = self.pools.borrow();
        pools.iter().map(|(uuid, pool)| (*uuid, pool.health.due())).min_by_key(|(_, due)| *due)
    }

    /// What the scrubber needs of a pool, if the target has it.
    pub(super) fn pool_to_scrub(&self, pool: Uuid) -> Option<(Pool<E>, Rc<Health>)> {
        self.pools.borrow().get(&pool).map(|pool| (pool.vpool.clone(), pool.health.clone()))
    }

    /// The vpool of a pool.
    pub fn vpool(&self, pool: Uuid) -> Result<Pool<E>, Refusal> {
        let pools = self.pools.borrow();
        let found = pools.get(&pool).ok_or_else(|| match self.stopping.get() {
            true => Refusal::new(Status::SHUTTING_DOWN, STOPPING),
            false => Refusal::new(Status::NOT_FOUND, format!("this target holds no part of pool {pool}")),
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

    /// How the target's shares of all pools are used.
    pub fn usage(&self) -> TargetUsage {
        let pools = self.pools.borrow();
        let handles = self.handles.borrow().len() as u64;
        let mut usage = TargetUsage { pools: pools.len() as u64, handles, ..TargetUsage::default() };
        usage.log = self.past_logs.get();
        usage.scrub = self.scrubber.usage();
        for pool in pools.values() {
            let log = pool.vpool.log_usage();
            usage.log = with_counts(usage.log, &log);
            usage.log.bytes += log.bytes;
            usage.log.bytes_used += log.bytes_used;
            usage.scrub.damaged_pools += u64::from(pool.health.is_damaged());
            // A pool whose memory cannot be read is reported by whoever works with it.
            if let Ok(space) = pool.vpool.usage() {
                let Space { scm, block } = &mut usage.space;
                *scm = (scm.0 + space.arena_bytes, scm.1 + space.arena_bytes_free);
                *block = (block.0 + space.block_bytes, block.1 + space.block_bytes_free);
            }
        }
        usage
    }

    /// The handle, if the target knows it.
    pub fn handle(&self, handle: Uuid) -> Option<Rc<Handle<E>>> {
        self.handles.borrow().get(&handle).cloned()
    }

    /// Keeps a handle that the service tells of, or changes what is known of it. The container's store is made if this is
    /// the first that the target hears of the container.
    pub fn install(&self, info: &HandleInfo) -> Result<Rc<Handle<E>>, Refusal> {
        if self.stopping.get() {
            return Err(Refusal::new(Status::SHUTTING_DOWN, STOPPING));
        }
        if self.revoked.borrow().0.contains(&info.handle) {
            return Err(Refusal::new(Status::BAD_HANDLE, "the handle was closed"));
        }
        if is_reserved(info.container) {
            return Err(reserved());
        }
        if let Some(handle) = self.handle(info.handle) {
            if (handle.pool, handle.container_uuid) != (info.pool, info.container) {
                return Err(Refusal::new(Status::EXISTS, "the handle is open for another container"));
            }
            handle.learn(info);
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
            uuid: info.handle,
            container,
            cookie: info.cookie,
            capabilities: info.capabilities,
            traffic: self.traffic.clone(),
            lhe: Cell::new(info.lhe),
            holds: Cell::new(info.holds),
            flushed: Cell::new(info.flushed),
            flushes: Cell::new(0),
            discarded: Cell::new(None),
            pool: info.pool,
            container_uuid: info.container,
            map_version: map_version.unwrap_or_default(),
            revoked: Cell::new(Status::OK),
        });
        self.handles.borrow_mut().insert(info.handle, handle.clone());
        Ok(handle)
    }

    /// Refuses a handle from now on.
    pub fn revoke(&self, handle: Uuid) {
        if let Some(known) = self.handles.borrow_mut().remove(&handle) {
            let stopping = self.stopping.get();
            known.revoked.set(if stopping { Status::SHUTTING_DOWN } else { Status::BAD_HANDLE });
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
        self.note_discarded((pool, container), cookie, range);
        let store = match vpool.container_open(container) {
            // Nothing was ever written here.
            Err(Error::NotFound(_)) => return Ok(()),
            result => result?,
        };
        let sealed = store.discard(cookie, range).await?;
        self.note_discarded((pool, container), cookie, range);
        let _ = vpool.persisted(sealed).await?;
        Ok(())
    }

    /// What has arrived until now and waits is not written without being asked for again.
    fn note_discarded(&self, container: (Uuid, Uuid), cookie: Cookie, range: EpochRange) {
        let now = self.env.clock().now();
        for handle in self.handles.borrow().values() {
            if (handle.pool, handle.container_uuid) == container && handle.cookie == cookie {
                let earlier = handle.discarded.get().map_or(range, |(_, earlier)| earlier);
                let (low, high) = (range.low.min(earlier.low), range.high.max(earlier.high));
                handle.discarded.set(Some((now, EpochRange { low, high })));
            }
        }
    }

    /// Destroys a container's store, after revoking what is left of its handles; durable on return.
    pub async fn container_destroy(&self, pool: Uuid, container: Uuid) -> Result<(), Refusal> {
        if is_reserved(container) {
            return Err(reserved());
        }
        let handles = self.handles_where(|handle| handle.pool == pool && handle.container_uuid == container);
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

/// What holds, of two things told: the number of holds, and the LHE. Without a hold in between, an LHE only rises.
fn newer_hold(known: (u64, Epoch), told: (u64, Epoch)) -> (u64, Epoch) {
    match told.0.cmp(&known.0) {
        Ordering::Less => known,
        Ordering::Equal => known.max(told),
        Ordering::Greater => told,
    }
}

/// `sum` with what another log has done, but not with its size.
fn with_counts(sum: LogUsage, log: &LogUsage) -> LogUsage {
    LogUsage {
        commits: sum.commits + log.commits,
        bytes_written: sum.bytes_written + log.bytes_written,
        checkpoints: sum.checkpoints + log.checkpoints,
        ..sum
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_newer_hold_lowers_the_lhe() {
        let known = (3, Epoch(5));
        assert_eq!(newer_hold(known, (2, Epoch(9))), known, "an answer from before the last hold");
        assert_eq!(newer_hold(known, (3, Epoch(1))), known, "an answer from before a commit");
        assert_eq!(newer_hold(known, (3, Epoch(7))), (3, Epoch(7)), "a commit since");
        assert_eq!(newer_hold(known, (4, Epoch(1))), (4, Epoch(1)), "a lower hold");
    }
}
