//! A node: switched on, killed, restarted; its disk lives on.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    rc::Rc,
};

use daos_xstream::{Address, Class};

use crate::{
    core::Core,
    disk::DiskState,
    env::{Life, SimEnv},
    media::SimMedia,
    world::{Happening, World},
};

/// What a kill takes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// The process dies: what the disk has taken is still there.
    Process,
    /// Power is lost: unflushed writes are lost, kept or torn.
    Power,
}

pub(crate) struct NodeState {
    pub number: u32,
    cores: u32,
    pub disk: Rc<DiskState>,
    pub life: RefCell<Option<Rc<Life>>>,
    lives: Cell<u64>,
}

impl NodeState {
    pub fn new(number: u32, cores: u32) -> Self {
        Self { number, cores, disk: Rc::default(), life: RefCell::default(), lives: Cell::new(0) }
    }

    pub fn kill(&self, world: &Rc<World>, loss: Loss) {
        let Some(life) = self.life.borrow_mut().take() else { return };
        world.record(Happening::Kill, u64::from(self.number), loss as u64);
        for core in &life.cores {
            core.alive.set(false);
        }
        world.network.node_died(world, self.number);
        world.cores.borrow_mut().retain(|core| core.node != self.number);
        self.disk.crash(world, loss);
        for core in &life.cores {
            core.kill();
        }
    }
}

/// A simulated node. A cheap handle.
#[derive(Clone)]
pub struct Node {
    pub(crate) world: Rc<World>,
    pub(crate) state: Rc<NodeState>,
}

impl Node {
    /// Its number, from 0.
    pub fn number(&self) -> u32 {
        self.state.number
    }

    /// Where the endpoint of `core` is reached.
    pub fn address(&self, core: u32) -> Address {
        format!("sim://{}.{core}", self.number()).parse().expect("the form of an address")
    }

    /// Whether it is switched on.
    pub fn is_alive(&self) -> bool {
        self.state.life.borrow().as_ref().is_some_and(|life| life.alive())
    }

    /// Starts `task` on every core of the node, as what its process does.
    pub fn start<F: Future<Output = ()> + 'static>(&self, task: impl Fn(SimEnv) -> F) {
        for core in 0..self.state.cores {
            self.spawn(core, task(self.env(core)));
        }
    }

    /// The world of one of its cores.
    ///
    /// # Panics
    ///
    /// If the node is switched off or has no such core.
    pub fn env(&self, core: u32) -> SimEnv {
        let life = self.state.life.borrow();
        let life = life.as_ref().expect("the node is switched on");
        let env = life.cores[core as usize].env.borrow();
        env.clone().expect("a core has its world until it is killed")
    }

    pub(crate) fn spawn(&self, core: u32, task: impl Future<Output = ()> + 'static) {
        let life = self.state.life.borrow().clone();
        let life = life.expect("the node is switched on");
        life.cores[core as usize].spawn(&self.world, Class::Service, "main", task);
    }

    /// Kills the node, now. Nothing of it runs again until [`restart`](Self::restart).
    pub fn kill(&self, loss: Loss) {
        self.state.kill(&self.world, loss);
    }

    /// Switches the node on again, with what its disk holds and nothing running yet.
    pub fn restart(&self) {
        self.state.kill(&self.world, Loss::Power);
        let (world, state) = (&self.world, &self.state);
        let life_number = state.lives.get() + 1;
        state.lives.set(life_number);
        world.record(Happening::Start, u64::from(state.number), life_number);
        let make = |number| Rc::new(Core::new(world.number(), state.number, number, state.cores));
        let cores: Vec<_> = (0..state.cores).map(make).collect();
        let life = Rc::new(Life::new(cores.clone(), world.config.mailbox_capacity));
        // Clocks of different lives have nothing to do with each other.
        let origin = world.schedule.below(1 << 50);
        for core in &cores {
            let media = SimMedia::new(world, &state.disk, core);
            *core.env.borrow_mut() = Some(SimEnv::new(world, core, &life, media, origin));
        }
        world.cores.borrow_mut().extend(cores);
        *state.life.borrow_mut() = Some(life);
    }

    /// The node's disk, to make it fail.
    pub fn disk(&self) -> Disk {
        Disk { world: self.world.clone(), state: self.state.disk.clone() }
    }
}

/// A node's disk, seen from outside the simulated world.
pub struct Disk {
    world: Rc<World>,
    state: Rc<DiskState>,
}

impl Disk {
    fn record(&self, what: u64) {
        self.world.record(Happening::Fault, what, 0);
    }

    /// How many bytes files may have in all. Less than they have means full.
    pub fn set_capacity(&self, bytes: u64) {
        self.record(1);
        self.state.capacity.set(bytes);
    }

    /// From now on every access fails, until `failed` is false again.
    pub fn set_failed(&self, failed: bool) {
        self.record(2);
        self.state.failed.set(failed);
    }

    /// From now on so many of a million accesses fail: reads, writes, flushes, changes of the name space. What failed may
    /// have happened or not.
    pub fn set_failure_rate(&self, parts_per_million: u32) {
        self.record(8);
        self.state.failure_ppm.set(parts_per_million);
    }

    /// Bytes that files take.
    pub fn used(&self) -> u64 {
        self.state.used()
    }

    /// From now on flushes and durable writes are acknowledged without being made durable, until `lies` is false again:
    /// a bug on purpose, to see whether a test would notice one. No design survives it.
    pub fn set_lies(&self, lies: bool) {
        self.record(5);
        self.state.lies.set(lies);
    }

    /// Makes the sector at `offset` of a file unreadable until it is written again. False if there is no such sector.
    pub fn break_sector(&self, path: &str, offset: u64) -> bool {
        self.record(3);
        self.state.break_sector(path, offset)
    }

    /// Flips one bit of a file, as it is seen now and as it is stored. False if there is no such bit.
    pub fn flip_bit(&self, path: &str, bit: u64) -> bool {
        self.record(4);
        self.state.flip_bit(path, bit)
    }

    /// A byte, of the seed's choice, of the first 1/`part` of those blocks of a file that were ever written.
    pub fn written_byte(&self, path: &str, part: u64) -> Option<u64> {
        self.state.written_byte(path, part, |bound| self.world.weather.below(bound))
    }

    /// A digest of a file as reads see it.
    pub fn digest(&self, path: &str) -> Option<u32> {
        self.state.digest(path)
    }

    /// Paths and sizes of all files.
    pub fn files(&self) -> Vec<(String, u64)> {
        self.state.list_files()
    }
}
