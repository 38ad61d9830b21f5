//! What a client does: rounds of transactions on random objects, through the real client halves of DSM and DSR.

mod parked;
mod reads;
mod together;
mod writes;

pub use parked::Parked;

use std::{rc::Rc, time::Duration};

use daos_dsm::{
    access::Capabilities,
    client::{ContainerHandle, DsmError, OpenOptions, PoolHandle, Service},
    epochs::EpochState,
    rpc::control::Name,
};
use daos_dsr::client::{Container, DsrError};
use daos_types::{Epoch, EpochRange};
use daos_xstream::{Clock, Env, Rng, Time, rpc::Status};
use daos_xstream_sim::SimEnv;

use crate::{
    cluster::{Shared, pool_name},
    model::{Before, HandleKey, Model},
    objects::{Part, parts},
    violation::Rule,
};

/// Why a transaction went no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// The handle is gone, or the pool handle.
    Gone,
    /// What is not committed must be discarded.
    Undo,
    /// Media have failed: nothing can be changed until the engine has restarted, and what was asked for may have been done.
    Sick,
}

/// What comes after a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Another, over the same connection.
    Go,
    /// The end of the connection, which closes the container handle.
    Disconnect,
}

/// A client's life.
pub(crate) struct Client {
    pub env: SimEnv,
    pub shared: Rc<Shared>,
    slot: usize,
    pub service: Service<SimEnv>,
}

/// An open container handle.
pub(crate) struct Session {
    pub client: Rc<Client>,
    pub container: usize,
    pub handle: ContainerHandle<SimEnv>,
    pub targets: Container<SimEnv>,
    /// The same, for changes that are durable when they are acknowledged.
    pub durable: Container<SimEnv>,
    pub key: HandleKey,
    /// When the last control operation that succeeded was begun.
    contact: std::cell::Cell<Time>,
}

/// Lives until all rounds of the slot are done.
pub(crate) async fn live(env: SimEnv, shared: Rc<Shared>, slot: usize) {
    let client = Client::new(env, shared, slot);
    while client.own().rounds.get() > 0 || client.own().parked.borrow().is_some() {
        client.connection().await;
        client.own().pool_handle.set(None);
    }
    client.own().done.set(true);
}

impl Client {
    /// A client of a slot; it does nothing by itself.
    pub fn new(env: SimEnv, shared: Rc<Shared>, slot: usize) -> Rc<Self> {
        let service = shared.service(&env);
        Rc::new(Self { env, shared, slot, service })
    }

    /// A number below `bound`.
    pub fn roll(&self, bound: u64) -> u64 {
        self.env.rng().next_u64() % bound
    }

    fn own(&self) -> &crate::cluster::Slot {
        &self.shared.slots[self.slot]
    }

    pub fn parts(&self) -> Vec<Part> {
        parts(self.slot)
    }

    pub fn log(&self, line: impl FnOnce() -> String) {
        self.shared.log(|| {
            format!("{} ns client {}: {}", self.env.clock().wall().0 % 1_000_000_000_000, self.slot, line())
        });
    }

    pub async fn pause(&self, duration: Duration) {
        self.env.clock().sleep_until(self.env.clock().now() + duration).await;
    }

    pub async fn think(&self) {
        if self.roll(3) == 0 {
            self.pause(Duration::from_micros(self.roll(self.shared.plan.think_us_max + 1))).await;
        }
    }

    /// Whether an answer means that the engine's media have failed, at a time when they may have.
    pub fn is_sick(&self, status: Status) -> bool {
        let model = self.shared.model.borrow();
        let failed =
            matches!(status, Status::READ_ONLY | Status::MEDIA_FAILED | Status::CORRUPT | Status::NO_SPACE);
        failed && model.may_be_sick()
    }

    /// Waits until media are sound again.
    pub async fn recovery(&self) {
        self.pause(Duration::from_millis(20)).await;
        while self.shared.model.borrow().sick {
            self.pause(Duration::from_millis(100)).await;
        }
    }

    /// Does something again and again while media have failed.
    pub async fn persist<T>(&self, what: impl AsyncFn() -> Result<T, DsmError>) -> Result<T, DsmError> {
        loop {
            match what().await {
                Err(error) if self.is_sick(error.status()) => self.recovery().await,
                done => return done,
            }
        }
    }

    /// One connection to the pool, and a few rounds.
    async fn connection(self: &Rc<Self>) {
        let connected =
            self.persist(async || self.service.pool_connect(pool_name(), Capabilities::ALL).await);
        let pool = match connected.await {
            Ok(pool) => pool,
            Err(error) => {
                let story = format!("client {} cannot connect to the pool: {error}", self.slot);
                self.shared.model.borrow_mut().violate(Rule::Refusal, story);
                return self.own().rounds.set(0);
            }
        };
        self.own().pool_handle.set(Some(pool.handle()));
        for round in 0..=self.roll(3) {
            let parked = self.own().parked.borrow().is_some();
            if self.own().rounds.get() == 0 && !parked {
                break;
            }
            if self.roll(12) == 0 {
                self.evict_another().await;
            }
            // Others may wait for epochs that an earlier life has held: that is looked after first.
            let result = match parked && (round == 0 || self.own().rounds.get() == 0 || self.roll(2) == 0) {
                true => self.adopt(&pool).await,
                false => self.round(&pool).await,
            };
            self.own().rounds.set(self.own().rounds.get().saturating_sub(1));
            match result {
                Ok(Next::Go) => {}
                Ok(Next::Disconnect) => break,
                Err(_) => return,
            }
        }
        // Closes what was left open, too.
        let handles = self.own().opened_with(pool.handle());
        self.own().handles.take();
        self.threaten(&handles);
        match self.persist(async || pool.clone().disconnect().await).await {
            Ok(()) => {
                self.revoked(&handles);
                let mut parked = self.own().parked.borrow_mut();
                parked.take_if(|parked| parked.pool_handle == pool.handle());
            }
            Err(error) => {
                let story = format!("client {} cannot disconnect: {error}", self.slot);
                self.shared.model.borrow_mut().violate(Rule::Refusal, story);
            }
        }
    }

    fn threaten(&self, handles: &[HandleKey]) {
        let mut model = self.shared.model.borrow_mut();
        handles.iter().for_each(|handle| model.handles[*handle].threatened = true);
    }

    fn revoked(&self, handles: &[HandleKey]) {
        let mut model = self.shared.model.borrow_mut();
        handles.iter().for_each(|handle| model.revoked(*handle));
    }

    /// Evicts the pool handle of another client.
    async fn evict_another(&self) {
        let other = self.roll(self.shared.slots.len() as u64) as usize;
        let victim = &self.shared.slots[other];
        let Some(pool_handle) = victim.pool_handle.get().filter(|_| other != self.slot) else { return };
        let handles = victim.opened_with(pool_handle);
        self.log(|| format!("evicts client {other}, handles {handles:?}"));
        self.threaten(&handles);
        // It may open more with this pool handle until the eviction gets there; those are threatened too.
        victim.pool_handle.set(None);
        let result = self.service.pool_evict(pool_name(), Some(pool_handle)).await;
        match result {
            Ok(_) => self.revoked(&handles),
            Err(DsmError::Refused { status: Status::TRY_AGAIN, .. }) => {}
            Err(error) if self.is_sick(error.status()) => {}
            Err(error) => {
                let story = format!("client {} cannot evict: {error}", self.slot);
                self.shared.model.borrow_mut().violate(Rule::Refusal, story);
            }
        }
    }

    /// Opens a container, works, closes it.
    async fn round(self: &Rc<Self>, pool: &PoolHandle<SimEnv>) -> Result<Next, Trouble> {
        if self.own().parked.borrow().is_none() && self.roll(7) == 0 {
            return self.round_shared(pool).await;
        }
        if self.shared.plan.containers > 1 && self.roll(5) == 0 {
            return self.round_together(pool).await;
        }
        let container = self.roll(self.shared.plan.containers as u64) as usize;
        let options = match self.roll(6) {
            0 => OpenOptions::READ,
            1 | 2 => OpenOptions::NO_TRANSACTION,
            _ => OpenOptions::WRITE,
        };
        let session = self.open(pool, container, options).await?;
        let result = if options == OpenOptions::READ {
            session.read_for_a_while().await
        } else {
            session.work().await
        };
        match result {
            Ok(()) => {}
            Err(Trouble::Sick) if options == OpenOptions::READ => self.recovery().await,
            Err(Trouble::Sick) => session.undo().await?,
            Err(_) => return Err(Trouble::Gone),
        }
        if self.roll(5) == 0 {
            return Ok(Next::Disconnect);
        }
        session.close().await?;
        Ok(Next::Go)
    }

    pub async fn open(
        self: &Rc<Self>,
        pool: &PoolHandle<SimEnv>,
        container: usize,
        options: OpenOptions,
    ) -> Result<Session, Trouble> {
        let uuid = self.shared.model.borrow().containers[container].uuid;
        let before = self.shared.model.borrow().before_open(container);
        let threatened = self.own().pool_handle.get().is_none();
        let contact = self.env.clock().now();
        let opened = self.persist(async || pool.container_open(Name::Uuid(uuid), options).await).await;
        let handle = match opened {
            Ok(handle) => handle,
            Err(error) => {
                // The pool handle may be gone, for the reasons for which any handle may be.
                if error.status() != Status::BAD_HANDLE {
                    let story = format!("client {} cannot open container {container}: {error}", self.slot);
                    self.shared.model.borrow_mut().violate(Rule::Refusal, story);
                }
                self.log(|| format!("open: {error}"));
                return Err(Trouble::Gone);
            }
        };
        // What the handle holds is asked for again, because the answer to the open is not kept by the client half.
        let state = match self.persist(async || handle.epoch_query().await).await {
            Ok(state) => state,
            Err(error) => {
                self.log(|| format!("query after open: {error}"));
                return Err(Trouble::Gone);
            }
        };
        let key = {
            let mut model = self.shared.model.borrow_mut();
            let key = model.opened(container, before, &state);
            model.handles[key].threatened = threatened || self.own().pool_handle.get().is_none();
            key
        };
        self.own().handles.borrow_mut().push(key);
        self.log(|| format!("opened container {container} as handle {key}: {state:?}"));
        let session = self.session(container, handle, key);
        session.contact.set(contact);
        Ok(session)
    }

    fn session(
        self: &Rc<Self>,
        container: usize,
        handle: ContainerHandle<SimEnv>,
        key: HandleKey,
    ) -> Session {
        let targets = Container::new(&handle);
        let durable = targets.durable();
        let contact = std::cell::Cell::new(self.env.clock().now());
        Session { client: self.clone(), container, handle, targets, durable, key, contact }
    }
}

impl Session {
    /// What an error means, after it was judged.
    pub fn trouble(&self, what: &str, status: Status, message: &str) -> Trouble {
        let client = &self.client;
        client.log(|| format!("handle {} {what}: {message}", self.key));
        if client.is_sick(status) {
            client.shared.model.borrow_mut().handles[self.key].unsure = true;
            return Trouble::Sick;
        }
        let mut model = client.shared.model.borrow_mut();
        let known = &model.handles[self.key];
        let story = || format!("handle {} {what}: {message}", self.key);
        match status {
            Status::BAD_HANDLE | Status::STALE_HANDLE => {
                let (now, grace) = (client.env.clock().now(), client.shared.plan.grace);
                let parked = client.own().parked.borrow();
                let shared = parked.as_ref().is_some_and(|parked| parked.key == self.key);
                if !known.threatened && (shared || now < self.contact.get() + grace) {
                    let silent = now.since(self.contact.get());
                    let story = format!("{} (last heard of {silent:?} ago, grace {grace:?})", story());
                    model.violate(Rule::Eviction, story);
                }
                model.died(self.key);
                Trouble::Gone
            }
            Status::INTERRUPTED => {
                if known.clean_since == model.engine_life {
                    model.violate(Rule::Refusal, format!("{}, but it has not restarted", story()));
                }
                Trouble::Undo
            }
            // Another life of this client, not evicted yet, has written there.
            Status::EPOCH_CONFLICT => Trouble::Undo,
            Status::NO_MEMORY => Trouble::Undo,
            _ => {
                model.violate(Rule::Refusal, story());
                Trouble::Gone
            }
        }
    }

    pub fn dsm_trouble(&self, what: &str, error: &DsmError) -> Trouble {
        self.trouble(what, error.status(), &error.to_string())
    }

    pub fn dsr_trouble(&self, what: &str, error: &DsrError) -> Trouble {
        match error {
            DsrError::Target { status, message, .. } => self.trouble(what, Status(*status), message),
            other => self.trouble(what, Status::INTERNAL, &other.to_string()),
        }
    }

    /// A control operation: judged, and its answer told to the model, after `apply` has told what it changed.
    pub async fn control(
        &self,
        what: impl std::fmt::Display,
        operation: impl Future<Output = Result<EpochState, DsmError>>,
        apply: impl FnOnce(&mut Model, Before, &EpochState),
    ) -> Result<EpochState, Trouble> {
        let begun = self.client.env.clock().now();
        let before = self.client.shared.model.borrow().before(self.key);
        match operation.await {
            Ok(state) => {
                self.contact.set(begun);
                self.client.log(|| format!("handle {} {what}: {state:?}", self.key));
                let mut model = self.client.shared.model.borrow_mut();
                apply(&mut model, before, &state);
                model.told(self.key, before, &state);
                Ok(state)
            }
            Err(error) => Err(self.dsm_trouble(&what.to_string(), &error)),
        }
    }

    /// Forgets everything that is not committed.
    async fn undo(&self) -> Result<(), Trouble> {
        let all = EpochRange { low: Epoch::ZERO, high: Epoch(u64::MAX - 2) };
        loop {
            match self.discard(all).await {
                Err(Trouble::Sick) => self.client.recovery().await,
                done => return done,
            }
        }
    }

    async fn discard(&self, range: EpochRange) -> Result<(), Trouble> {
        self.client.shared.model.borrow_mut().discard(self.key, range);
        let what = format!("discard {}..={}", range.low, range.high);
        let discarded = self.control(what, self.handle.discard(range), |model, before, _| {
            model.discarded(self.key, before, range);
        });
        discarded.await.map(drop)
    }

    /// Closes the handle; then it must be of no use.
    async fn close(self) -> Result<(), Trouble> {
        let Session { client, handle, targets, key, .. } = &self;
        client.threaten(&[*key]);
        {
            let mut model = client.shared.model.borrow_mut();
            let all = EpochRange { low: Epoch::ZERO, high: Epoch(u64::MAX - 2) };
            model.discard(*key, all);
        }
        if let Err(error) = client.persist(async || handle.clone().close().await).await {
            return Err(self.dsm_trouble("close", &error));
        }
        client.log(|| format!("handle {key} closed"));
        client.revoked(&[*key]);
        client.own().handles.borrow_mut().retain(|other| other != key);
        if client.roll(3) == 0 {
            let part = &client.parts()[0];
            let kv = daos_dsr::client::Kv::open(targets, part.object).expect("a KV");
            let epoch = Epoch(handle.held().0.clamp(1, 1 << 40) + 5);
            if kv.put(epoch, &part.keys[0].1, b"from beyond").await.is_ok() {
                let story = format!("handle {key} is closed, and wrote at epoch {epoch}");
                client.shared.model.borrow_mut().violate(Rule::Revocation, story);
            }
        }
        Ok(())
    }
}
