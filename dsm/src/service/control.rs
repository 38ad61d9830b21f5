//! What the services on the service xstream share: pools, who asks, handles that nobody uses any more.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    ops::Bound::{Excluded, Unbounded},
    rc::Rc,
    time::Duration,
};

use daos_vos::MediaKind;
use daos_xstream::{
    Address, Class, Clock, CoreId, Env, Fabric, Mailbox, Media, PeerId, Spawn, Time, race,
    rpc::{Endpoint, Request, Responder, Service, Status},
    submit_to,
    sync::Notify,
};
use uuid::Uuid;

use super::{
    limits::Limits,
    object::ObjectService,
    refusal::Refusal,
    scrub::{self, ScrubConfig},
    state::{Owner, PoolState, Tables},
    target::{HandleInfo, Target, all_or_first_error, on_all_targets, pool_directory},
};
use crate::{
    access::Identity,
    pool_map::{NewTarget, TargetId},
    rpc::{
        container,
        control::{self, Label},
        management, module, pool,
    },
};

/// Name of the file that says that a pool is complete, in its folder.
pub(super) const MARKER: &str = "ready";
/// How soon an eviction that failed is tried again, and, the first time, the destruction of a container.
pub(super) const RETRY_INTERVAL: Duration = Duration::from_millis(250);
/// Handles looked at for eviction before others have their turn.
const HANDLES_AT_ONCE: usize = 64;

/// How the services behave.
#[derive(Clone, Debug)]
pub struct ServiceConfig {
    /// Rank of this engine.
    pub rank: u32,
    /// Path of fault domains of this engine, such as `rack3/node17`.
    pub fault_domain: String,
    /// Where heaps of pools live.
    pub media: MediaKind,
    /// Bytes that pools may take; 0 for no limit but the device's.
    pub bytes: u64,
    /// Believe the identity that a client states where the kernel does not vouch for it. For development.
    pub trust_stated_identity: bool,
    /// Users who may manage pools; `None` for everybody.
    pub administrators: Option<Vec<u32>>,
    /// How long a handle is kept after its user's connection was lost, or after a restart of the engine, for the user to
    /// come back.
    pub grace: Duration,
    /// The same, where the kernel vouches for the peer: there a lost connection almost always means a dead process.
    pub grace_verified: Duration,
    /// How much clients may make a pool hold.
    pub limits: Limits,
    /// Whether and how targets compare what they store with its checksums in the background.
    pub scrub: Option<ScrubConfig>,
}

impl Default for ServiceConfig {
    /// A development engine of rank 0.
    fn default() -> Self {
        Self {
            rank: 0,
            fault_domain: "node0".to_owned(),
            media: MediaKind::Wal,
            bytes: 0,
            trust_stated_identity: true,
            administrators: None,
            grace: Duration::from_secs(30),
            grace_verified: Duration::from_secs(1),
            limits: Limits::default(),
            scrub: Some(ScrubConfig::default()),
        }
    }
}

/// The services' common state, on the service xstream.
pub struct Control<E: Env> {
    pub(super) env: E,
    pub(super) config: ServiceConfig,
    pub(super) pools: RefCell<BTreeMap<Uuid, Rc<PoolState<E>>>>,
    /// Pools that are on media and could not be opened, and why. What a client asks of one, or of something that may be
    /// in one, is answered with that, and never with "there is no such thing".
    pub(super) broken: RefCell<BTreeMap<Uuid, Refusal>>,
    /// Pools that are being made or destroyed, with what each has of the engine meanwhile.
    pub(super) busy: RefCell<BTreeMap<Uuid, Reserved>>,
    pub(super) addresses: RefCell<Vec<Vec<Address>>>,
    ready: Cell<bool>,
    /// It has been said in the log that the identity of clients is believed.
    trust_logged: Cell<bool>,
    /// Told when a handle has lost its user, or could not be closed.
    pub(super) lost: Notify,
    /// Told when the destruction of a container was cut short.
    pub(super) halted: Notify,
}

/// What belongs to a pool that is being made, or is not quite destroyed.
#[derive(Clone, Debug, Default)]
pub(super) struct Reserved {
    /// Its label.
    pub label: Option<Label>,
    /// Its bytes.
    pub bytes: u64,
}

/// Starts the services of one xstream; on the service xstream (core 0) opens the pools and returns once they can be used.
/// To be called once on every xstream of the engine, at the same time.
pub async fn start<E: Env>(env: &E, endpoint: &Endpoint<E>, config: ServiceConfig) -> Result<(), Refusal> {
    let target = Target::start(env, config.media.clone());
    endpoint.register(ObjectService::new(env, target.clone()));
    if let Some(scrub) = config.scrub {
        env.scheduler().spawn(Class::Background, "scrub", scrub::run(env.clone(), target, scrub));
    }
    if env.core() != CoreId(0) {
        return Ok(());
    }
    let control = Rc::new(Control {
        env: env.clone(),
        config,
        pools: RefCell::default(),
        broken: RefCell::default(),
        busy: RefCell::default(),
        addresses: RefCell::default(),
        ready: Cell::new(false),
        trust_logged: Cell::new(false),
        lost: Notify::new(),
        halted: Notify::new(),
    });
    env.locals().insert(control.clone());
    for module in [module::MANAGEMENT, module::POOL, module::CONTAINER] {
        endpoint.register(Rc::new(ControlService { control: control.clone(), module }));
    }
    control.open_pools().await?;
    control.ready.set(true);
    let sweeper = control.clone();
    env.scheduler().spawn(Class::Service, "evict unused handles", async move { sweeper.sweep().await });
    env.scheduler().spawn(
        Class::Service,
        "destroy containers",
        async move { control.finish_destroying().await },
    );
    Ok(())
}

/// One of the three modules on the service xstream.
struct ControlService<E: Env> {
    control: Rc<Control<E>>,
    module: u8,
}

/// A request that is dealt with in a task.
pub(super) struct Ask<E: Env> {
    pub procedure: u8,
    pub handle: Uuid,
    pub body: Vec<u8>,
    pub responder: Responder<E>,
}

impl<E: Env> Ask<E> {
    /// The body.
    pub fn body<T: serde::de::DeserializeOwned>(&self) -> Result<T, Refusal> {
        Ok(control::decode(&self.body)?)
    }
}

/// The bytes of an answer.
pub(super) fn answer<T: serde::Serialize>(body: &T) -> Result<Vec<u8>, Refusal> {
    Ok(control::encode(body))
}

impl<E: Env> Service<E> for ControlService<E> {
    fn module(&self) -> u8 {
        self.module
    }

    fn name(&self) -> &'static str {
        match self.module {
            module::MANAGEMENT => "management",
            module::POOL => "pool",
            _ => "container",
        }
    }

    fn procedures(&self) -> &'static [(u8, &'static str)] {
        match self.module {
            module::MANAGEMENT => &[
                (management::POOL_CREATE, "pool_create"),
                (management::POOL_DESTROY, "pool_destroy"),
                (management::POOL_LIST, "pool_list"),
                (management::STORAGE_QUERY, "storage_query"),
                (management::POOL_LOOKUP, "pool_lookup"),
            ],
            module::POOL => &[
                (pool::CONNECT, "connect"),
                (pool::DISCONNECT, "disconnect"),
                (pool::QUERY, "query"),
                (pool::LIST_CONTAINERS, "list_containers"),
                (pool::EVICT, "evict"),
                (pool::SET_ACL, "set_acl"),
            ],
            _ => &[
                (container::CREATE, "create"),
                (container::DESTROY, "destroy"),
                (container::OPEN, "open"),
                (container::CLOSE, "close"),
                (container::QUERY, "query"),
                (container::EPOCH_QUERY, "epoch_query"),
                (container::EPOCH_HOLD, "epoch_hold"),
                (container::EPOCH_SLIP, "epoch_slip"),
                (container::EPOCH_FLUSH, "epoch_flush"),
                (container::EPOCH_DISCARD, "epoch_discard"),
                (container::EPOCH_COMMIT, "epoch_commit"),
                (container::EPOCH_WAIT, "epoch_wait"),
                (container::SNAPSHOT_CREATE, "snapshot_create"),
                (container::SNAPSHOT_LIST, "snapshot_list"),
                (container::SNAPSHOT_DESTROY, "snapshot_destroy"),
                (container::ATTRIBUTES_SET, "attributes_set"),
                (container::ATTRIBUTES_GET, "attributes_get"),
                (container::LOOKUP, "lookup"),
            ],
        }
    }

    fn call(&self, request: Request<'_>, responder: Responder<E>) {
        if !self.control.ready.get() {
            return responder.fail(Status::TRY_AGAIN, "the engine is starting or stopping");
        }
        let (control, module) = (self.control.clone(), self.module);
        let (procedure, handle) = (request.procedure(), request.handle());
        let ask = Ask { procedure, handle, body: request.body.to_vec(), responder };
        self.control.env.scheduler().spawn(Class::Service, self.name(), async move {
            let result = match module {
                module::MANAGEMENT => control.management(&ask).await,
                module::POOL => control.pool(&ask).await,
                _ => control.container(&ask).await,
            };
            match result {
                Ok(body) => ask.responder.reply(&[&body]),
                Err(refusal) => ask.responder.fail(refusal.status, &refusal.message),
            }
        });
    }

    fn closed(&self, peer: PeerId) {
        // All three modules hear of it; one is enough.
        if self.module == module::CONTAINER {
            self.control.peer_closed(peer);
        }
    }
}

impl<E: Env> Control<E> {
    /// The control state of this engine, if this is its service xstream.
    pub fn of(env: &E) -> Option<Rc<Self>> {
        env.locals().get::<Self>()
    }

    /// Takes no requests any more: the engine stops.
    pub fn stop(&self) {
        self.ready.set(false);
    }

    /// What the service knows of a handle: for targets that have restarted. Nothing is written through a handle, or at an
    /// epoch that it holds, before that is settled: else a crash could leave writes that belong to nobody.
    pub async fn lookup(&self, handle: Uuid) -> Result<HandleInfo, Refusal> {
        if !self.ready.get() {
            return Err(Status::TRY_AGAIN.into());
        }
        let has_it = |pool: &&Rc<PoolState<E>>| pool.tables.borrow().container_of.contains_key(&handle);
        let pool = self.pools.borrow().values().find(has_it).cloned();
        let missing =
            || self.unless_broken(Refusal::new(Status::BAD_HANDLE, "the container handle is not open"));
        let pool = pool.ok_or_else(missing)?;
        let info = pool.tables.borrow().info(pool.uuid, handle)?;
        pool.rdb.settled().await?;
        Ok(info)
    }

    /// Answers the repetition of a request to close a handle that is gone: whoever closed it may still wait for that to be
    /// settled. It asks the pool that had the handle and no other, which may have failed or be busy.
    pub(super) async fn closed_before(&self, handle: Uuid) -> Result<(), Refusal> {
        let had_it = |pool: &&Rc<PoolState<E>>| pool.tables.borrow().is_being_removed(handle);
        let pool = self.pools.borrow().values().find(had_it).cloned();
        if let Some(pool) = pool {
            pool.rdb.settled().await?;
        }
        Ok(())
    }

    /// What to answer about something that no open pool has: if there are pools that could not be opened, it may be there.
    pub(super) fn unless_broken(&self, missing: Refusal) -> Refusal {
        match self.broken.borrow().first_key_value() {
            Some((pool, why)) => {
                let message = format!("{}; pool {pool} cannot be opened: {}", missing.message, why.message);
                Refusal::new(why.status, message)
            }
            None => missing,
        }
    }

    /// Who asks: as the kernel says, or as the client says if that is enough here.
    pub(super) fn identity(&self, responder: &Responder<E>, stated: Identity) -> Result<Identity, Refusal> {
        match responder.credentials() {
            Some(verified) => Ok(Identity { uid: verified.uid, gid: verified.gid }),
            None if self.config.trust_stated_identity => {
                if !self.trust_logged.replace(true) {
                    tracing::warn!(
                        uid = stated.uid,
                        gid = stated.gid,
                        "a network client states who it is and is believed, as all of them are from now on: \
                         a development engine checks nobody"
                    );
                }
                Ok(stated)
            }
            None => Err(Refusal::new(Status::ACCESS_DENIED, "nothing vouches for who you are")),
        }
    }

    /// The pool in which a pool or container handle is open; notes that its user lives.
    pub(super) fn pool_of(
        &self,
        handle: Uuid,
        responder: &Responder<E>,
    ) -> Result<Rc<PoolState<E>>, Refusal> {
        let pools = self.pools.borrow();
        let open = |pool: &&Rc<PoolState<E>>| pool.tables.borrow().owners.contains_key(&handle);
        let pool = pools.values().find(open).cloned();
        let missing = || self.unless_broken(Refusal::new(Status::BAD_HANDLE, "the handle is not open"));
        let pool = pool.ok_or_else(missing)?;
        self.used(&pool, handle, responder);
        Ok(pool)
    }

    /// Refuses the UUID of a new pool handle of `pool` (or with `container` of a container handle there) that is in use
    /// for another handle, in this pool or in any other: a UUID alone says which handle is meant.
    pub(super) fn unless_taken(
        &self,
        handle: Uuid,
        pool: Uuid,
        container: Option<Uuid>,
    ) -> Result<(), Refusal> {
        for other in self.pools.borrow().values() {
            let tables = other.tables.borrow();
            let here = other.uuid == pool;
            let pool_handle = tables.handles.contains_key(&handle) && !(here && container.is_none());
            let open_for = tables.container_of.get(&handle);
            let container_handle = open_for.is_some_and(|open_for| !(here && container == Some(*open_for)));
            if pool_handle || container_handle {
                return Err(Refusal::new(Status::EXISTS, "the UUID is in use for another handle"));
            }
        }
        Ok(())
    }

    /// Notes that the peer of `responder` uses a handle.
    pub(super) fn used(&self, pool: &PoolState<E>, handle: Uuid, responder: &Responder<E>) {
        let gone_since = (!responder.is_wanted()).then(|| self.env.clock().now());
        let verified = responder.credentials().is_some();
        let owner = Owner { peer: Some(responder.peer()), verified, gone_since };
        pool.tables.borrow_mut().owners.insert(handle, owner);
    }

    /// A connection is gone: the handles that were used over it are unused from now on.
    fn peer_closed(&self, peer: PeerId) {
        let now = self.env.clock().now();
        for pool in self.pools.borrow().values() {
            for owner in pool.tables.borrow_mut().owners.values_mut() {
                if owner.peer == Some(peer) {
                    owner.peer = None;
                    owner.gone_since = Some(now);
                }
            }
            // Its requests that wait for an epoch end.
            pool.committed.notify_all();
        }
        self.lost.notify_one();
    }

    /// Evicts, for ever, what nobody has used for its time of grace.
    async fn sweep(&self) {
        loop {
            let mut next = Time::NEVER;
            let pools: Vec<_> = self.pools.borrow().values().cloned().collect();
            for pool in pools {
                next = next.min(self.sweep_pool(&pool).await);
            }
            let _ = race(self.lost.notified(), self.env.clock().sleep_until(next)).await;
        }
    }

    /// Evicts a pool's handles that are due, some at a time; returns when the next one is.
    async fn sweep_pool(&self, pool: &Rc<PoolState<E>>) -> Time {
        let (mut next, mut after) = (Time::NEVER, Unbounded);
        loop {
            let now = self.env.clock().now();
            let (mut due, mut last) = (Vec::new(), None);
            for (handle, owner) in pool.tables.borrow().owners.range((after, Unbounded)).take(HANDLES_AT_ONCE)
            {
                last = Some(*handle);
                match self.end_of_grace(pool, *handle, owner) {
                    end if end <= now => due.push(*handle),
                    end => next = next.min(end),
                }
            }
            for handle in due {
                self.evict_unused(pool, handle).await;
                // What could not be evicted is tried again after a while.
                next = next.min(self.env.clock().now() + RETRY_INTERVAL);
            }
            let Some(last) = last else { return next };
            after = Excluded(last);
            self.env.scheduler().yield_now().await;
        }
    }

    /// When a handle is to be evicted; [`Time::NEVER`] while somebody uses it, or if others may.
    fn end_of_grace(&self, pool: &PoolState<E>, handle: Uuid, owner: &Owner) -> Time {
        let tables = pool.tables.borrow();
        let own = self.end_of_own_grace(&tables, handle, owner);
        // A pool handle goes after the last container handle that was opened with it. A client may use nothing else for
        // ever, and an evicted pool handle takes them all away. One step down and no further: UUIDs of handles are the
        // clients' choice, and pools made before that was checked may name them in a circle.
        let ends = tables.opened_with(handle).filter_map(|other| {
            tables.owners.get(&other).map(|owner| self.end_of_own_grace(&tables, other, owner))
        });
        ends.fold(own, Time::max)
    }

    /// The same, whatever was opened with it.
    fn end_of_own_grace(&self, tables: &Tables, handle: Uuid, owner: &Owner) -> Time {
        if tables.is_half_closed(handle) {
            return Time(0);
        }
        let Some(since) = owner.gone_since else { return Time::NEVER };
        if tables.open_handle(handle).is_ok_and(|(_, open)| open.shared) {
            return Time::NEVER;
        }
        since + if owner.verified { self.config.grace_verified } else { self.config.grace }
    }

    /// Evicts a handle, unless its user has come back meanwhile. Trouble is left to the next sweep.
    async fn evict_unused(&self, pool: &Rc<PoolState<E>>, handle: Uuid) {
        let owner = pool.tables.borrow().owners.get(&handle).copied();
        let now = self.env.clock().now();
        if owner.is_none_or(|owner| self.end_of_grace(pool, handle, &owner) > now) {
            return;
        }
        tracing::info!(%handle, pool = %pool.uuid, "evicting a handle that nobody uses");
        let is_pool_handle = pool.tables.borrow().handles.contains_key(&handle);
        let result = match is_pool_handle {
            true => self.disconnect(pool, handle).await,
            false => self.close(pool, handle).await,
        };
        if let Err(refusal) = result {
            tracing::warn!(%handle, error = refusal.message, "a handle could not be evicted; it will be tried again");
        }
    }

    /// Opens the pools that are on media, and removes what was never finished.
    async fn open_pools(&self) -> Result<(), Refusal> {
        let mut addresses = Vec::new();
        for core in 0..self.env.mailbox().cores() {
            let there = submit_to(&self.env, CoreId(core), |env: &E| {
                let addresses = env.fabric().addresses();
                async move { addresses }
            });
            addresses.push(there.await?);
        }
        *self.addresses.borrow_mut() = addresses;
        for name in self.env.media().list("pools").await? {
            let Ok(uuid) = Uuid::parse_str(&name) else { continue };
            let files = self.env.media().list(&pool_directory(uuid)).await?;
            if !files.iter().any(|file| file == MARKER) {
                tracing::warn!(pool = %uuid, "removing a pool that was not finished");
                self.env.media().remove(&pool_directory(uuid)).await?;
                continue;
            }
            // A pool that cannot be opened stays on media: somebody may be able to repair it.
            if let Err(refusal) = self.open_pool(uuid).await {
                tracing::error!(pool = %uuid, error = refusal.message, "the pool cannot be opened");
                self.broken.borrow_mut().insert(uuid, refusal);
                self.close_broken(uuid).await;
            }
        }
        Ok(())
    }

    /// Lets go of what could be opened of a pool that could not be opened as a whole.
    async fn close_broken(&self, uuid: Uuid) {
        let closed =
            on_all_targets(&self.env, move |target| async move { target.pool_close(uuid).await }).await;
        if let Err(refusal) = all_or_first_error(closed) {
            tracing::warn!(pool = %uuid, error = refusal.message, "a broken pool was not closed cleanly");
        }
    }

    async fn open_pool(&self, uuid: Uuid) -> Result<(), Refusal> {
        let opened =
            on_all_targets(&self.env, move |target| async move { target.pool_open(uuid).await }).await;
        all_or_first_error(opened)?;
        let vpool = Target::of(&self.env).await.vpool(uuid)?;
        let pool = PoolState::load(uuid, &vpool, self.env.clock().now()).await?;
        self.store_addresses(&pool)?;
        pool.rdb.settled().await?;
        self.tell_map_version(&pool).await?;
        self.pools.borrow_mut().insert(uuid, pool);
        Ok(())
    }

    /// Puts the addresses that this engine has now into the pool map.
    fn store_addresses(&self, pool: &PoolState<E>) -> Result<(), Refusal> {
        let mut map = pool.tables.borrow().map.clone();
        let mut changed = false;
        for (target, addresses) in self.targets().into_iter().map(|new| (new.id, new.addresses)) {
            if map.ordinal(target).is_some() {
                changed |= map.set_addresses(target, &addresses)?;
            }
        }
        if changed {
            let mut batch = super::Batch::default();
            batch.put(super::Table::Main, super::records::MAP.to_vec(), super::records::encode(&map));
            pool.rdb.submit(&batch)?;
            pool.tables.borrow_mut().map = map;
        }
        Ok(())
    }

    /// Tells every target the version of the pool map.
    pub(super) async fn tell_map_version(&self, pool: &PoolState<E>) -> Result<(), Refusal> {
        let (uuid, version) = (pool.uuid, pool.tables.borrow().map.version());
        let told = on_all_targets(&self.env, move |target| async move {
            target.set_map_version(uuid, version);
            Ok(())
        });
        all_or_first_error(told.await).map(drop)
    }

    /// The targets of this engine.
    pub(super) fn targets(&self) -> Vec<NewTarget> {
        let addresses = self.addresses.borrow();
        let targets = (0u32..).zip(addresses.iter()).map(|(index, addresses)| NewTarget {
            id: TargetId { rank: self.config.rank, index },
            fault_domain: self.config.fault_domain.clone(),
            addresses: addresses.clone(),
        });
        targets.collect()
    }

    /// When the time for a request is up: at its deadline.
    pub(super) fn deadline(&self, responder: &Responder<E>) -> Time {
        responder.deadline()
    }
}
