//! The simulated cluster: one engine of two targets, client nodes, and what both know of the run.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    time::Duration,
};

use daos_dsm::{
    access::{Capabilities, Identity},
    client::{Caller, ClientConfig, PoolSpec, Service},
    rpc::control::{ContainerProperties, Label, Name},
    service::{self, Limits, ScrubConfig, ServiceConfig, Target},
};
use daos_vos::{MediaKind, ScrubRate};
use daos_xstream::{
    Address, Env,
    rpc::{Endpoint, EndpointConfig},
};
use daos_xstream_sim::{Loss, Node, SimEnv, Simulation, Stopped};

use crate::{
    aggregation, brief_containers, brief_pools,
    model::{HandleKey, Model},
    plan::{Helper, Plan},
    tree,
    violation::Rule,
    workload::{self, Parked},
};

/// The pool.
pub const POOL: &str = "tank";
const TARGETS: u32 = 2;
/// Several passes in a run, each over many of its changes.
const SCRUB: ScrubConfig =
    ScrubConfig { period: Duration::from_millis(700), rate: ScrubRate { bytes_per_second: 2 << 20 } };
/// No call of a client ends before it is answered: a run is shorter than this.
const FOREVER: Duration = Duration::from_secs(24 * 3600);

/// One client slot: a client, in all its lives.
#[derive(Default)]
pub struct Slot {
    /// Rounds left to do.
    pub rounds: Cell<u32>,
    /// Everything is done.
    pub done: Cell<bool>,
    /// Handles of this life.
    pub handles: RefCell<Vec<HandleKey>>,
    /// A shared handle that this slot has open, in whichever life.
    pub parked: RefCell<Option<Parked>>,
    /// A shared handle is being opened: if the client dies now, nobody will know of it.
    pub opening_shared: Cell<bool>,
    /// The pool handle of this life, and the container handles opened with it.
    pub pool_handle: Cell<Option<uuid::Uuid>>,
}

impl Slot {
    /// The handles that end with a pool handle of this life.
    pub fn opened_with(&self, pool_handle: uuid::Uuid) -> Vec<HandleKey> {
        let parked = self.parked.borrow();
        let parked = parked.as_ref().filter(|parked| parked.pool_handle == pool_handle);
        let handles = self.handles.borrow();
        handles.iter().copied().chain(parked.map(|parked| parked.key)).collect()
    }
}

/// What clients and the outside share.
pub struct Shared {
    /// What ought to be stored.
    pub model: RefCell<Model>,
    /// By slot.
    pub slots: Vec<Slot>,
    /// What the seed has decided.
    pub plan: Plan,
    /// Faults are over.
    pub calm: Cell<bool>,
    /// The file system, if there is one.
    pub tree: RefCell<tree::State>,
    /// Containers that the helper makes and destroys, if it does.
    pub brief_containers: brief_containers::State,
    /// Aggregation, where there is some.
    pub aggregation: aggregation::State,
    /// Reads under way: container and epoch.
    pub readers: RefCell<BTreeMap<(usize, u64), usize>>,
    /// Pools that the engine lists when all is over.
    pub pools: RefCell<BTreeSet<uuid::Uuid>>,
    /// The helper has done everything; or there is none.
    pub helper_done: Cell<bool>,
    /// A shared handle may be open that nobody uses.
    pub orphans: Cell<bool>,
    /// Whether operations are printed.
    pub log: bool,
    /// The engine is switched on, and was told to start.
    on: Cell<bool>,
    /// Cores of the engine that serve.
    started: Cell<u32>,
    engine: Address,
}

impl Shared {
    /// Prints a line of the log.
    #[allow(clippy::print_stderr, reason = "the log is for people who look at one seed")]
    pub fn log(&self, line: impl FnOnce() -> String) {
        if self.log {
            eprintln!("{}", line());
        }
    }

    /// Begins a read: at `epoch`, or at the next one that has not been aggregated away. It can be read until the read ends.
    pub fn begin_read(self: &Rc<Self>, container: usize, epoch: u64) -> Reading {
        let epoch = self.model.borrow().containers[container].readable(epoch);
        *self.readers.borrow_mut().entry((container, epoch)).or_insert(0) += 1;
        Reading { shared: self.clone(), container, epoch }
    }

    /// The services, from a client node.
    pub fn service(&self, env: &SimEnv) -> Service<SimEnv> {
        let endpoint = Endpoint::of(env).unwrap_or_else(|| Endpoint::new(env, EndpointConfig::default()));
        let config = ClientConfig {
            attempt_timeout: Duration::from_secs(3),
            call_timeout: FOREVER,
            ..ClientConfig::new(Identity { uid: 1000, gid: 1000 })
        };
        Service::new(Caller::new(endpoint, config), vec![self.engine.clone()])
    }
}

/// A read under way.
pub struct Reading {
    shared: Rc<Shared>,
    container: usize,
    /// Its epoch.
    pub epoch: u64,
}

impl Drop for Reading {
    fn drop(&mut self) {
        let mut readers = self.shared.readers.borrow_mut();
        if let Some(count) = readers.get_mut(&(self.container, self.epoch)) {
            *count -= 1;
            if *count == 0 {
                readers.remove(&(self.container, self.epoch));
            }
        }
    }
}

/// The pool's name.
pub fn pool_name() -> Name {
    Name::Label(POOL.parse::<Label>().expect("a label"))
}

/// The cluster.
pub struct Cluster {
    /// The world.
    pub sim: Simulation,
    /// The engine.
    pub engine: Node,
    /// The node that sets up and checks.
    pub admin: Node,
    /// The node of the helper.
    pub helper: Node,
    /// Client nodes, by slot.
    pub clients: Vec<Node>,
    /// What all share.
    pub shared: Rc<Shared>,
}

impl Cluster {
    /// A cluster; nothing runs yet.
    pub fn new(seed: u64, plan: Plan, log: bool) -> Self {
        let sim = Simulation::new(seed, plan.world.clone());
        let engine = sim.add_node(TARGETS);
        let admin = sim.add_node(1);
        let helper = sim.add_node(1);
        let clients: Vec<Node> = (0..plan.clients).map(|_| sim.add_node(1)).collect();
        // One more, for the admin node: it has no rounds to do.
        let slots =
            (0..=plan.clients).map(|_| Slot { rounds: Cell::new(plan.rounds), ..Slot::default() }).collect();
        let shared = Rc::new(Shared {
            model: RefCell::default(),
            slots,
            tree: RefCell::default(),
            brief_containers: brief_containers::State::default(),
            aggregation: aggregation::State::default(),
            readers: RefCell::default(),
            pools: RefCell::default(),
            orphans: Cell::new(false),
            helper_done: Cell::new(plan.helper.is_none()),
            plan,
            calm: Cell::new(false),
            log,
            on: Cell::new(false),
            started: Cell::new(0),
            engine: engine.address(0),
        });
        Self { sim, engine, admin, helper, clients, shared }
    }

    /// Starts the engine on what its disk holds. It serves some time later.
    pub fn start_engine(&self) {
        if self.shared.on.replace(true) {
            return;
        }
        if !self.engine.is_alive() {
            self.engine.restart();
        }
        let config = ServiceConfig {
            rank: 0,
            fault_domain: "node0".to_owned(),
            media: MediaKind::Wal,
            bytes: 0,
            trust_stated_identity: true,
            administrators: None,
            grace: self.shared.plan.grace,
            // The simulated network vouches for peers; both times are the same here, so that one rule can be checked.
            grace_verified: self.shared.plan.grace,
            limits: Limits::default(),
            scrub: Some(SCRUB),
        };
        let shared = Rc::downgrade(&self.shared);
        self.engine.start(move |env| {
            let (config, shared) = (config.clone(), shared.clone());
            async move {
                let endpoint = Endpoint::new(&env, EndpointConfig { rank: 0, ..EndpointConfig::default() });
                let started = service::start(&env, &endpoint, config).await;
                let Some(shared) = shared.upgrade() else { return };
                match started {
                    Ok(()) => {
                        shared.started.set(shared.started.get() + 1);
                        if shared.plan.aggregates {
                            aggregation::live(env, Rc::downgrade(&shared)).await;
                        }
                    }
                    Err(_) if shared.model.borrow().sick => {}
                    Err(refusal) => {
                        let story = format!("the engine does not start: {}", refusal.message);
                        shared.model.borrow_mut().violate(Rule::Start, story);
                    }
                }
            }
        });
    }

    /// Crashes the engine.
    pub fn crash_engine(&self, loss: Loss) {
        self.shared.log(|| format!("{:?} -- engine crashes: {loss:?}", self.sim.elapsed()));
        self.check_scrubbers();
        let cut_short = &self.shared.aggregation.cut_short;
        cut_short.set(cut_short.get() + self.slices_waiting().0);
        self.engine.kill(loss);
        self.shared.started.set(0);
        self.shared.on.set(false);
        self.shared.model.borrow_mut().crashed();
    }

    /// Long work of the targets that waits between two slices, and how often any has in this life of the engine.
    pub fn slices_waiting(&self) -> (u64, u64) {
        let mut sum = (0, 0);
        for core in (0..TARGETS).filter(|_| self.engine.is_alive()) {
            let target = self.engine.env(core).locals().get::<Target<SimEnv>>();
            if let (Some(target), Some(pool)) = (target, self.shared.aggregation.pool.get())
                && let Ok(pool) = target.vpool(pool)
            {
                let (waiting, waits) = pool.slices_waiting();
                sum = (sum.0 + waiting, sum.1 + waits);
            }
        }
        sum
    }

    /// In this life of the engine scrubbers have found damage only where there can be some.
    pub fn check_scrubbers(&self) {
        if !self.engine.is_alive() {
            return;
        }
        let mut model = self.shared.model.borrow_mut();
        for core in 0..TARGETS {
            let Some(target) = self.engine.env(core).locals().get::<Target<SimEnv>>() else { continue };
            let found = target.usage().scrub;
            model.scrub_passes += found.passes;
            if found.faults + found.passes_failed > 0 && !model.damaged && !model.may_be_sick() {
                let story =
                    format!("the scrubber of target {core} finds damage where there is none: {found:?}");
                model.violate(Rule::Scrub, story);
            }
        }
    }

    /// Makes the pool and the containers, before there is any fault.
    pub fn set_up(&self) -> Result<(), Stopped> {
        self.start_engine();
        self.sim.run_until(Duration::from_secs(600), || {
            self.shared.started.get() == TARGETS || self.shared.model.borrow().violation().is_some()
        })?;
        let shared = self.shared.clone();
        let made = self.sim.block_on(&self.admin, |env| async move {
            let service = shared.service(&env);
            let spec =
                PoolSpec { label: POOL.parse().ok(), bytes: shared.plan.pool_bytes, ..PoolSpec::default() };
            shared.aggregation.pool.set(Some(service.pool_create(&spec).await?.uuid));
            let pool = service.pool_connect(pool_name(), Capabilities::ALL).await?;
            for number in 0..shared.plan.containers {
                let label = format!("box{number}").parse().ok();
                let uuid = pool.container_create(label, ContainerProperties::default(), None).await?;
                shared.model.borrow_mut().container_made(uuid);
            }
            if shared.plan.helper == Some(Helper::Tree) {
                let label = "files".parse().ok();
                let uuid = pool.container_create(label, ContainerProperties::default(), None).await?;
                shared.tree.borrow_mut().container = Some(uuid);
            }
            pool.disconnect().await
        })?;
        if let Err(error) = made {
            let story = format!("the pool cannot be made: {error}");
            self.shared.model.borrow_mut().violate(Rule::Start, story);
        }
        Ok(())
    }

    /// Starts a life of a client.
    pub fn start_client(&self, slot: usize) {
        if !self.clients[slot].is_alive() {
            self.clients[slot].restart();
        }
        let shared = Rc::downgrade(&self.shared);
        self.clients[slot].start(move |env| {
            let shared = shared.clone();
            async move {
                if let Some(shared) = shared.upgrade() {
                    workload::live(env, shared, slot).await;
                }
            }
        });
    }

    /// Starts a life of the helper, if there is one.
    pub fn start_helper(&self) {
        let Some(helper) = self.shared.plan.helper else { return };
        if !self.helper.is_alive() {
            self.helper.restart();
        }
        let shared = Rc::downgrade(&self.shared);
        self.helper.start(move |env| {
            let shared = shared.clone();
            async move {
                match (shared.upgrade(), helper) {
                    (Some(shared), Helper::Tree) => tree::live(env, shared).await,
                    (Some(shared), Helper::BriefPools) => brief_pools::live(env, shared).await,
                    (Some(shared), Helper::BriefContainers) => brief_containers::live(env, shared).await,
                    (None, _) => {}
                }
            }
        });
    }

    /// Kills a client.
    pub fn kill_client(&self, slot: usize) {
        self.shared.log(|| format!("{:?} -- client {slot} dies", self.sim.elapsed()));
        self.clients[slot].kill(Loss::Process);
        let handles = self.shared.slots[slot].handles.take();
        if self.shared.slots[slot].opening_shared.take() {
            self.shared.orphans.set(true);
        }
        self.shared.slots[slot].pool_handle.set(None);
        let mut model = self.shared.model.borrow_mut();
        handles.into_iter().for_each(|handle| model.died(handle));
    }
}
