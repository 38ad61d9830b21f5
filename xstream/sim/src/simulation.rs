//! A run: the nodes, and how far it goes.

use std::{cell::RefCell, future::Future, rc::Rc, time::Duration};

use daos_xstream::Bug;

use crate::{
    env::SimEnv,
    node::{Loss, Node, NodeState},
    world::{Config, Happening, World},
};

/// Why a run went no further.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Stopped {
    /// Nothing is ready and nothing will ever happen. The text names the tasks that wait.
    #[error("deadlock; tasks that wait: {0}")]
    Deadlock(String),
    /// The run has reached its limit of steps.
    #[error("no end after {0} steps")]
    StepLimit(u64),
    /// The condition did not come true in time.
    #[error("not done at {0:?} of virtual time")]
    TimeLimit(Duration),
}

/// One seeded run. A cheap handle; simulated code may hold one too, to cause faults.
#[derive(Clone)]
pub struct Simulation {
    pub(crate) world: Rc<World>,
    _end: Rc<End>,
}

/// Ends the world with its last handle: its parts hold each other.
struct End(Rc<World>);

impl Drop for End {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let nodes = self.0.nodes.borrow().clone();
        for node in nodes {
            node.kill(&self.0, Loss::Power);
        }
        self.0.clear_events();
    }
}

impl Simulation {
    /// An empty world at time 0.
    pub fn new(seed: u64, config: Config) -> Self {
        let world = Rc::new(World::new(seed, config));
        Self { _end: Rc::new(End(world.clone())), world }
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.world.seed
    }

    /// Virtual time since the start.
    pub fn elapsed(&self) -> Duration {
        Duration::from_nanos(self.world.now.get())
    }

    /// Polls and events so far.
    pub fn steps(&self) -> u64 {
        self.world.steps.get()
    }

    /// Hash of everything that has happened so far.
    pub fn hash(&self) -> u64 {
        self.world.hash()
    }

    /// A number of the seed's choice below `bound`; for workloads and fault plans.
    pub fn choose(&self, bound: u64) -> u64 {
        self.world.weather.below(bound)
    }

    /// Adds a node with `cores` cores and an empty disk, and switches it on. Its endpoints are at
    /// `sim://NODE.CORE`, nodes counted from 0.
    pub fn add_node(&self, cores: u32) -> Node {
        let number = self.world.nodes.borrow().len() as u32;
        let state = Rc::new(NodeState::new(number, cores));
        self.world.nodes.borrow_mut().push(state.clone());
        let node = Node { world: self.world.clone(), state };
        node.restart();
        node
    }

    /// Cuts the network between two nodes. What is under way waits; connections break if it lasts.
    pub fn partition(&self, one: &Node, other: &Node) {
        self.world.network.partition(&self.world, one.number(), other.number());
    }

    /// Ends a partition.
    pub fn heal(&self, one: &Node, other: &Node) {
        self.world.network.heal(&self.world, one.number(), other.number());
    }

    /// Ends every partition.
    pub fn heal_all(&self) {
        for (one, other) in self.world.network.partitions() {
            self.world.network.heal(&self.world, one, other);
        }
    }

    /// Ends everything that the configuration loses at random: connections, sectors. Latencies stay.
    pub fn calm(&self) {
        self.world.calm.set(true);
        self.record(6, 0);
    }

    /// Plants a bug: from now on code that asks is told so.
    pub fn plant(&self, bug: Bug) {
        self.world.planted.set(Some(bug));
        self.record(7, bug as u64);
    }

    /// Runs until `done` says so, at most for `limit` of virtual time.
    pub fn run_until(&self, limit: Duration, mut done: impl FnMut() -> bool) -> Result<(), Stopped> {
        let end = self.world.now.get().saturating_add(u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX));
        loop {
            if done() {
                return Ok(());
            }
            if self.world.now.get() >= end {
                return Err(Stopped::TimeLimit(self.elapsed()));
            }
            self.step(end)?;
        }
    }

    /// Runs for a while. That everything comes to rest before is no error.
    pub fn run_for(&self, duration: Duration) -> Result<(), Stopped> {
        match self.run_until(duration, || false) {
            Err(Stopped::TimeLimit(_)) => Ok(()),
            Err(Stopped::Deadlock(_)) => {
                let end = self.world.now.get() + duration.as_nanos() as u64;
                self.world.now.set(end);
                Ok(())
            }
            other => other,
        }
    }

    /// Runs `task` on core 0 of `node`, and the world with it, until it ends; at most for an hour of virtual time.
    pub fn block_on<T: 'static, F>(&self, node: &Node, task: impl FnOnce(SimEnv) -> F) -> Result<T, Stopped>
    where
        F: Future<Output = T> + 'static,
    {
        let result = Rc::new(RefCell::new(None));
        let task = task(node.env(0));
        let place = result.clone();
        node.spawn(0, async move {
            let value = task.await;
            *place.borrow_mut() = Some(value);
        });
        self.run_until(Duration::from_secs(3600), || result.borrow().is_some())?;
        let value = result.borrow_mut().take();
        Ok(value.expect("the run ended because the result was there"))
    }

    /// Lets one thing happen, or time pass to when something does, but not beyond `end`.
    fn step(&self, end: u64) -> Result<(), Stopped> {
        let world = &self.world;
        let steps = world.steps.get() + 1;
        world.steps.set(steps);
        if steps > world.config.steps_max {
            return Err(Stopped::StepLimit(steps));
        }
        world.deliver_wakes();
        if world.run_event() {
            return Ok(());
        }
        let now = world.now.get();
        let chosen = {
            let cores = world.cores.borrow();
            let able = || cores.iter().filter(|core| core.has_work() && core.busy_until.get() <= now);
            match able().count() as u64 {
                0 => None,
                count => able().nth(world.schedule.below(count) as usize).cloned(),
            }
        };
        if let Some(core) = chosen {
            core.step(world);
            return Ok(());
        }
        let next_core = {
            let cores = world.cores.borrow();
            cores.iter().filter(|core| core.has_work()).map(|core| core.busy_until.get()).min()
        };
        match next_core.into_iter().chain(world.next_event()).min() {
            Some(next) => world.now.set(next.min(end)),
            None => return Err(Stopped::Deadlock(self.waiting())),
        }
        Ok(())
    }

    fn waiting(&self) -> String {
        let cores = self.world.cores.borrow();
        let names = cores.iter().flat_map(|core| {
            core.waiting().into_iter().map(|name| format!("{}.{} {name}", core.node, core.number))
        });
        names.collect::<Vec<_>>().join(", ")
    }

    /// Adds something of the caller's own to the hash: a checkpoint of a workload.
    pub fn record(&self, first: u64, second: u64) {
        self.world.record(Happening::Fault, first, second);
    }
}
