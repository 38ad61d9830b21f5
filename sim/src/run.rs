//! One run: a plan made of the seed, a safety phase, a liveness phase, audits.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use daos_xstream::Bug;
use daos_xstream_sim::{Loss, Stopped};
use serde::Serialize;

use crate::{
    audit::audit,
    brief_containers, brief_pools,
    cluster::Cluster,
    plan::{Helper, Plan},
    tree,
    violation::{Rule, Violation},
};

/// Virtual time in which clients must be done once faults stop.
const LIVENESS_MAX: Duration = Duration::from_secs(1800);

/// How to run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Print every operation.
    pub log: bool,
    /// Plant a bug.
    pub planted: Option<Bug>,
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
    /// Reads that were refused because media had changed what they hold.
    pub refused_reads: u64,
    /// Passes of scrubbers.
    pub scrub_passes: u64,
    /// Aggregations that came to their end.
    pub aggregations: u64,
    /// Aggregations, discards and destructions that a crash cut short between two slices.
    pub cut_short: u64,
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
            refused_reads: 0,
            scrub_passes: 0,
            aggregations: 0,
            cut_short: 0,
            violation: Some(Violation { rule: Rule::Panic, story: text.to_owned() }),
        }
    })
}

fn run_cluster(seed: u64, options: Options) -> Outcome {
    let plan = match options.planted {
        Some(bug) => Plan::new(seed).that_provokes(bug),
        None => Plan::new(seed),
    };
    let cluster = Cluster::new(seed, plan, options.log);
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
        refused_reads: model.refused_reads,
        scrub_passes: model.scrub_passes,
        aggregations: cluster.shared.aggregation.done.get(),
        cut_short: cluster.shared.aggregation.cut_short.get(),
        violation: model.violation().cloned(),
    }
}

fn drive(cluster: &Cluster, options: Options) -> Result<(), Stopped> {
    cluster.set_up()?;
    if cluster.is_broken() {
        return Ok(());
    }
    if let Some(bug) = options.planted {
        cluster.sim.plant(bug);
    }
    for slot in 0..cluster.clients.len() {
        cluster.start_client(slot);
    }
    cluster.start_helper();
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
        cluster.audit_helper()?;
        if crash {
            cluster.crash_engine(Loss::Power);
            cluster.start_engine();
        }
    }
    cluster.check_scrubbers();
    cluster.audit_files();
    Ok(())
}

impl Cluster {
    fn audit_helper(&self) -> Result<(), Stopped> {
        let shared = self.shared.clone();
        if self.shared.plan.helper == Some(Helper::Tree) {
            self.sim.block_on(&self.admin, |env| tree::audit(env, shared))?;
        }
        let shared = self.shared.clone();
        if self.shared.plan.helper == Some(Helper::BriefContainers) {
            self.sim.block_on(&self.admin, |env| brief_containers::audit(env, shared))?;
        }
        let shared = self.shared.clone();
        self.sim.block_on(&self.admin, |env| brief_pools::audit(env, shared))
    }

    /// After the last restart the engine's media hold the files of those pools that it lists, and nothing else.
    fn audit_files(&self) {
        if self.is_broken() {
            return;
        }
        let pools = self.shared.pools.borrow();
        let mut model = self.shared.model.borrow_mut();
        for (path, _) in self.engine.disk().files() {
            let pool = path.strip_prefix("pools/").and_then(|rest| rest.split('/').next());
            if !pool.is_some_and(|pool| pools.iter().any(|listed| listed.to_string() == pool)) {
                model.violate(Rule::Pools, format!("{path} is of no pool"));
            }
        }
        if pools.len() != 1 {
            model.violate(Rule::Pools, format!("one pool ought to be there; listed are {pools:?}"));
        }
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.shared.model.borrow().violation().is_some()
    }

    pub(crate) fn is_done(&self) -> bool {
        let clients = &self.shared.slots[..self.clients.len()];
        self.shared.helper_done.get() && clients.iter().all(|slot| slot.done.get())
    }

    /// Runs for a while, or until all is done or broken.
    pub(crate) fn run_for(&self, duration: Duration) -> Result<(), Stopped> {
        match self.sim.run_until(duration, || self.is_broken() || self.is_done()) {
            Err(Stopped::TimeLimit(_)) => Ok(()),
            // Seed 451: the last client that had something to do was dead, and nothing was left to happen before its next
            // life. What waits in vain is found when faults have stopped.
            Err(Stopped::Deadlock(_)) => self.sim.run_for(duration),
            other => other,
        }
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
            let helper = if self.shared.helper_done.get() { "is" } else { "is not" };
            let story = format!("clients {waiting:?} are not done, the helper {helper}: {stopped}");
            self.shared.model.borrow_mut().violate(Rule::Liveness, story);
        }
        Ok(())
    }
}
