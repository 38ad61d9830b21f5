//! The progress of one xstream: rounds while no task is ready, parking when nothing happens.
//!
//! # How a core divides its time
//!
//! The **spinner** is the idle task: it lives in a queue of its own with the smallest share, so that it runs when nothing
//! else is ready (and now and then when something is). It makes rounds, each of which asks the mailbox, the media ring, the
//! timers and the sources of [`Spawn::add_progress`](daos_xstream::Spawn::add_progress), until a task is ready
//! ([`Readiness`](crate::readiness::Readiness)); only then it gives way. While tasks keep the core busy, the scheduler asks
//! the **pacer**, a task of the foreground class, for a round whenever the last one is older than 20 µs.
//!
//! # Parking
//!
//! After an idle budget, which is longer while media is at work (sleeping and waking takes longer than a flush; what the
//! kernel needs the CPU for in the meantime it gets by `sched_yield`), the spinner parks: it announces so to the other cores
//! and the fabric, makes one more round, looks whether a task is ready, and then blocks the thread until the media ring has
//! an entry. Blocking within a task is right because of what readiness counts: the executor has nothing that it could
//! run. What wakes the core:
//!
//! | Source | Way |
//! |---|---|
//! | another core's mailbox, shutdown, a task called from another thread | writes the doorbell, which the ring polls |
//! | media completion | an entry of the ring |
//! | fabric descriptor | one-shot poll in the ring |
//! | next timer, of ours or of the fabric | the wait's time limit |

use std::{cell::Cell, rc::Rc, time::Duration};

use daos_xstream::{Env, Fabric, Time};

use crate::{
    Park, UringEnv,
    clock::now,
    core_state::{Core, FailStop, yield_queue},
    notify::Notify,
};

/// Rounds without a find between two readings of the clock: about a microsecond.
const ROUNDS_PER_CLOCK: u32 = 16;
/// The idle budget while media is at work: longer than a flush of a fast disk takes, short against a slow one's.
const MEDIA_BUDGET: Duration = Duration::from_millis(1);

pub(crate) struct Progress<F: Park + Fabric> {
    env: UringEnv<F>,
    core: Rc<Core>,
    idle_budget: Duration,
    stopped: Cell<bool>,
    receiving: Cell<bool>,
    /// Notified by rounds once the main futures of all xstreams have ended.
    pub(crate) ended: Notify,
}

impl<F: Park + Fabric> Progress<F> {
    pub(crate) fn new(env: UringEnv<F>, idle_budget: Duration) -> Self {
        let core = env.core_state().clone();
        Self {
            env,
            core,
            idle_budget,
            stopped: Cell::new(false),
            receiving: Cell::new(false),
            ended: Notify::default(),
        }
    }

    /// From now on work of other cores is taken.
    pub(crate) fn main_has_begun(&self) {
        self.receiving.set(true);
    }

    /// Lets the spinner and the pacer end.
    pub(crate) fn stop(&self) {
        self.stopped.set(true);
        self.core.round_due.notify();
    }

    /// Asks everything once, at a time that was read just before. Returns whether anything had happened.
    fn round(&self, time: Time) -> bool {
        let fail_stop = FailStop("progress");
        let core = &self.core;
        let mut happened = core.ring.reap();
        if core.ring.take_rung() {
            core.shared.cores[core.id.0 as usize].hear();
        }
        if self.receiving.get() {
            happened += self.env.uring_mailbox().receive(&self.env);
        }
        happened += core.poll_sources(time);
        happened += core.timers.fire(core.timers.recent());
        happened += self.env.uring_mailbox().refill();
        core.ring.submit();
        if core.shared.stopping() {
            happened += core.wake_stop_waiters();
        }
        if core.shared.all_ended() {
            self.ended.notify();
        }
        core.count(|counters| counters.rounds += 1);
        std::mem::forget(fail_stop);
        happened > 0
    }

    /// The idle task.
    pub(crate) async fn spin(self: Rc<Self>) {
        let core = &self.core;
        let mut idle_since = core.timers.now();
        let mut empty = 0;
        while !self.stopped.get() {
            if self.round(core.timers.recent()) {
                empty = 0;
            } else {
                empty += 1;
            }
            if core.readiness.any() {
                yield_queue().await;
                empty = 0;
            }
            if empty == 0 {
                // Whatever happened has read the clock, if it took time.
                idle_since = core.timers.recent();
                continue;
            }
            let budget = self.budget();
            if !budget.is_zero() && empty % ROUNDS_PER_CLOCK != 0 {
                continue;
            }
            if core.timers.now().since(idle_since) >= budget {
                self.park();
                idle_since = core.timers.now();
                empty = 0;
            } else if !core.ring.is_idle() {
                // The kernel's thread that flushes may be queued behind this one, on this CPU.
                rustix::thread::sched_yield();
            }
        }
    }

    /// How long a core that finds nothing polls on before it parks.
    fn budget(&self) -> Duration {
        // A core that shares its CPU must not spin, whatever it waits for.
        if self.idle_budget.is_zero() || self.core.ring.is_idle() {
            self.idle_budget
        } else {
            self.idle_budget.max(MEDIA_BUDGET)
        }
    }

    /// Makes rounds while tasks keep the core from being idle.
    pub(crate) async fn pace(self: Rc<Self>) {
        loop {
            self.core.round_due.notified().await;
            if self.stopped.get() {
                return;
            }
            self.round(self.core.timers.now());
        }
    }

    /// Blocks the thread until something happens, if nothing has happened by the time that everybody knows.
    fn park(&self) {
        let core = &self.core;
        let own = &core.shared.cores[core.id.0 as usize];
        own.announce_parking();
        let quiet = self.env.fabric().prepare_to_park()
            && !self.env.uring_mailbox().is_waiting()
            && !self.round(core.timers.now())
            && !core.readiness.any();
        if quiet {
            core.count(|counters| counters.parks += 1);
            let next = core.timers.next().min(self.env.fabric().wake_at());
            let timeout = (next != Time::NEVER).then(|| next.since(now()));
            core.ring.wait(timeout);
        }
        self.env.fabric().unpark();
        own.announce_awake();
    }
}
