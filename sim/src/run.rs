//! One run: a plan made of the seed, a safety phase, a liveness phase, audits.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use daos_xstream_sim::{Config, Loss, Stopped};
use serde::Serialize;

use crate::{
    audit::audit,
    cluster::{Cluster, Plan},
    violation::{Rule, Violation},
};

/// Virtual time in which clients must be done once faults stop.
const LIVENESS_MAX: Duration = Duration::from_secs(1800);

/// How to run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Print every operation.
    pub log: bool,
    /// Plant a bug: the engine's disk acknowledges flushes and durable writes before they are durable.
    pub canary: bool,
}

/// How a run ended.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// Hash of everything that happened.
    pub hash: u64,
    /// Polls and events.
    pub steps: u64,
    /// Virtual time.
    pub virtual_ms: u64,
    /// Operations that succeeded.
    pub operations: u64,
    /// Values, extents and listings compared with the model.
    pub comparisons: u64,
    /// Crashes of the engine.
    pub crashes: u64,
    /// What was broken.
    pub violation: Option<Violation>,
}

/// Runs one seed.
pub fn run(seed: u64, options: Options) -> Outcome {
    let outcome = catch_unwind(AssertUnwindSafe(|| run_cluster(seed, options)));
    outcome.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no text");
        Outcome {
            seed,
            hash: 0,
            steps: 0,
            virtual_ms: 0,
            operations: 0,
            comparisons: 0,
            crashes: 0,
            violation: Some(Violation { rule: Rule::Panic, story: text.to_owned() }),
        }
    })
}

/// A small generator of the plan; the world has its own.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, bound: u64) -> u64 {
        // SplitMix64 (Steele, Lea, Flood 2014).
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ (word >> 31)) % bound
    }
}

fn plan(seed: u64) -> Plan {
    let mut dice = Dice(seed);
    let slow_network = dice.roll(4) == 0;
    let slow_disk = dice.roll(4) == 0;
    let mut world = Config { steps_max: 20_000_000, ..Config::default() };
    world.connection_loss_ppm = [0, 0, 300, 3_000][dice.roll(4) as usize];
    world.partition_breaks_ns = (100_000_000, 3_000_000_000);
    world.network_latency_ns = if slow_network { (1_000_000, 50_000_000) } else { (2_000, 200_000) };
    if slow_disk {
        world.write_latency_ns = (1_000_000, 30_000_000);
        world.flush_latency_ns = (5_000_000, 100_000_000);
    }
    Plan {
        world,
        clients: 2 + dice.roll(2) as usize,
        containers: 1 + dice.roll(2) as usize,
        rounds: 2 + dice.roll(3) as u32,
        faults: 3 + dice.roll(6) as u32,
        grace: Duration::from_millis(1000 + dice.roll(5000)),
        pool_bytes: 40 << 20,
        think_us_max: [1_000, 50_000, 400_000][dice.roll(3) as usize],
    }
}

fn run_cluster(seed: u64, options: Options) -> Outcome {
    let cluster = Cluster::new(seed, plan(seed), options.log);
    if options.log {
        cluster.shared.log(|| format!("{:?}", cluster.shared.plan));
    }
    let stopped = drive(&cluster, options);
    let mut model = cluster.shared.model.borrow_mut();
    if let Err(stopped) = stopped {
        model.violate(Rule::Liveness, stopped.to_string());
    }
    Outcome {
        seed,
        hash: cluster.sim.hash(),
        steps: cluster.sim.steps(),
        virtual_ms: cluster.sim.elapsed().as_millis() as u64,
        operations: model.operations,
        comparisons: model.comparisons,
        crashes: model.engine_life - 1,
        violation: model.violation().cloned(),
    }
}

fn drive(cluster: &Cluster, options: Options) -> Result<(), Stopped> {
    cluster.set_up()?;
    if cluster.is_broken() {
        return Ok(());
    }
    if options.canary {
        cluster.engine.disk().set_lies(true);
    }
    for slot in 0..cluster.clients.len() {
        cluster.start_client(slot);
    }
    for _ in 0..cluster.shared.plan.faults {
        let pause = Duration::from_micros(cluster.sim.choose(600_000));
        cluster.run_for(pause)?;
        if cluster.is_broken() || cluster.is_done() {
            break;
        }
        cluster.fault()?;
    }
    cluster.calm()?;
    for crash in [true, false] {
        if cluster.is_broken() {
            return Ok(());
        }
        let shared = cluster.shared.clone();
        cluster.sim.block_on(&cluster.admin, |env| audit(env, shared))?;
        if crash {
            cluster.crash_engine(Loss::Power);
            cluster.start_engine();
        }
    }
    Ok(())
}

impl Cluster {
    fn is_broken(&self) -> bool {
        self.shared.model.borrow().violation().is_some()
    }

    fn is_done(&self) -> bool {
        self.shared.slots[..self.clients.len()].iter().all(|slot| slot.done.get())
    }

    /// Runs for a while, or until all is done or broken.
    fn run_for(&self, duration: Duration) -> Result<(), Stopped> {
        match self.sim.run_until(duration, || self.is_broken() || self.is_done()) {
            Err(Stopped::TimeLimit(_)) => Ok(()),
            // Seed 451: the last client that had something to do was dead, and nothing was left to happen before its next
            // life. What waits in vain is found when faults have stopped.
            Err(Stopped::Deadlock(_)) => self.sim.run_for(duration),
            other => other,
        }
    }

    /// Causes a fault of the seed's choice.
    fn fault(&self) -> Result<(), Stopped> {
        let slot = self.sim.choose(self.clients.len() as u64) as usize;
        let loss = if self.sim.choose(4) == 0 { Loss::Process } else { Loss::Power };
        match self.sim.choose(10) {
            0..5 => {
                if self.engine.is_alive() {
                    self.crash_engine(loss);
                }
                self.run_for(Duration::from_micros(self.sim.choose(300_000)))?;
                self.start_engine();
                if self.sim.choose(4) == 0 {
                    // Again, while it starts.
                    self.run_for(Duration::from_micros(self.sim.choose(30_000)))?;
                    self.crash_engine(loss);
                    self.start_engine();
                }
            }
            5..8 => {
                self.shared.log(|| format!("{:?} -- client {slot} is cut off", self.sim.elapsed()));
                self.sim.partition(&self.clients[slot], &self.engine);
                if self.sim.choose(3) > 0 {
                    self.run_for(Duration::from_micros(self.sim.choose(6_000_000)))?;
                    self.sim.heal(&self.clients[slot], &self.engine);
                }
            }
            _ => {
                self.kill_client(slot);
                self.run_for(Duration::from_micros(self.sim.choose(1_000_000)))?;
                self.start_client(slot);
            }
        }
        Ok(())
    }

    /// Faults stop, and everything gets done.
    fn calm(&self) -> Result<(), Stopped> {
        self.shared.log(|| format!("{:?} -- faults stop", self.sim.elapsed()));
        self.shared.calm.set(true);
        self.sim.heal_all();
        self.sim.calm();
        self.start_engine();
        let done = self.sim.run_until(LIVENESS_MAX, || self.is_broken() || self.is_done());
        if let Err(stopped) = done {
            let waiting: Vec<usize> =
                (0..self.clients.len()).filter(|slot| !self.shared.slots[*slot].done.get()).collect();
            let story = format!("clients {waiting:?} are not done: {stopped}");
            self.shared.model.borrow_mut().violate(Rule::Liveness, story);
        }
        Ok(())
    }
}
