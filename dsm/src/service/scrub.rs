//! The scrubber of a target: compares what its pools hold with its checksums, in the background, for ever.
//!
//! # Invariants
//!
//! * One pool at a time, so the rate is that of the target, however many pools there are.
//! * A pool that is closed is let go of before closing it returns: nobody reads files that are being removed.
//! * Nothing is changed. What is damaged is counted and told; reads of it fail, scrubbed or not.

use std::{cell::Cell, rc::Rc, time::Duration};

use daos_vos::{Fault, ScrubCounters, ScrubRate};
use daos_xstream::{Clock, Either, Env, Time, WallTime, race, sync::Notify};
use uuid::Uuid;

use super::target::Target;

/// Faults of one pass that are logged one by one.
const FAULTS_LOGGED: u64 = 20;
/// How soon a pass that media cut short is begun again, if the period is not shorter.
const RETRY_INTERVAL: Duration = Duration::from_secs(600);

/// When and how fast targets are scrubbed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScrubConfig {
    /// From the beginning of a pass over a pool to that of the next. The first begins when the pool is opened.
    pub period: Duration,
    /// How fast one target is read.
    pub rate: ScrubRate,
}

impl Default for ScrubConfig {
    /// Once a week, as DAOS does, with 8 MiB/s.
    fn default() -> Self {
        Self { period: Duration::from_secs(7 * 24 * 3600), rate: ScrubRate { bytes_per_second: 8 << 20 } }
    }
}

/// What the scrubber knows of a pool.
#[derive(Debug)]
pub(super) struct Health {
    /// When the next pass begins.
    due: Cell<Time>,
    /// Faults that the last pass found; while the next one is under way, that one if it has found more.
    faults: Cell<u64>,
}

impl Health {
    /// Of a pool that has just been opened.
    pub fn unknown(now: Time) -> Rc<Self> {
        Rc::new(Self { due: Cell::new(now), faults: Cell::new(0) })
    }

    /// When the next pass begins.
    pub fn due(&self) -> Time {
        self.due.get()
    }

    /// Whether the last pass found something.
    pub fn is_damaged(&self) -> bool {
        self.faults.get() > 0
    }
}

/// What the scrubber of a target has done.
#[derive(Clone, Copy, Debug, Default)]
pub struct ScrubUsage {
    /// Passes over a pool that came to their end.
    pub passes: u64,
    /// Passes that media cut short.
    pub passes_failed: u64,
    /// Records looked at.
    pub records: u64,
    /// Bytes compared with their checksums.
    pub bytes: u64,
    /// Faults found.
    pub faults: u64,
    /// Pools in which the last pass found something.
    pub damaged_pools: u64,
    /// How long the last whole pass took.
    pub last_pass: Duration,
    /// When it ended.
    pub last_pass_end: WallTime,
}

/// The scrubber of one target.
#[derive(Default)]
pub(super) struct Scrubber {
    counters: ScrubCounters,
    last: Cell<ScrubUsage>,
    scrubbing: Cell<Option<Uuid>>,
    changed: Notify,
    released: Notify,
}

impl Scrubber {
    /// Pools have come.
    pub fn pools_changed(&self) {
        self.changed.notify_all();
    }

    /// Waits until a pool that the target no longer has is no longer read.
    pub async fn let_go(&self, pool: Uuid) {
        while self.scrubbing.get() == Some(pool) {
            self.changed.notify_all();
            self.released.notified().await;
        }
    }

    /// What it has done; `damaged_pools` is left to who knows the pools.
    pub fn usage(&self) -> ScrubUsage {
        ScrubUsage {
            passes: self.counters.passes.get(),
            records: self.counters.records.get(),
            bytes: self.counters.bytes.get(),
            faults: self.counters.faults.get(),
            ..self.last.get()
        }
    }
}

/// Scrubs the pools of a target for ever.
pub(super) async fn run<E: Env>(env: E, target: Rc<Target<E>>, config: ScrubConfig) {
    let changed = &target.scrubber().changed;
    loop {
        let now = env.clock().now();
        match target.next_to_scrub() {
            Some((pool, due)) if due <= now => pass(&env, &target, pool, config).await,
            next => {
                let due = next.map_or(Time::NEVER, |(_, due)| due);
                let _ = race(changed.notified(), env.clock().sleep_until(due)).await;
            }
        }
    }
}

/// Scrubs one pool, unless it is closed meanwhile.
async fn pass<E: Env>(env: &E, target: &Rc<Target<E>>, pool: Uuid, config: ScrubConfig) {
    let scrubber = target.scrubber();
    let Some((vpool, health)) = target.pool_to_scrub(pool) else { return };
    let began = env.clock().now();
    health.due.set(began + config.period);
    scrubber.scrubbing.set(Some(pool));
    let found = Cell::new(0);
    let tell = |fault: &Fault| {
        found.set(found.get() + 1);
        health.faults.set(health.faults.get().max(found.get()));
        if found.get() <= FAULTS_LOGGED {
            tracing::error!(
                %pool,
                target = env.core().0,
                "the scrubber found damage: {}: {}; reads of it fail: restore it from elsewhere, and check the device",
                fault.place,
                fault.what
            );
        }
    };
    let closed = async {
        while target.pool_to_scrub(pool).is_some() {
            scrubber.changed.notified().await;
        }
    };
    match race(closed, vpool.scrub(config.rate, &scrubber.counters, tell)).await {
        Either::First(()) => {}
        Either::Second(Ok(())) => {
            health.faults.set(found.get());
            let (last_pass, last_pass_end) = (env.clock().now().since(began), env.clock().wall());
            scrubber.last.set(ScrubUsage { last_pass, last_pass_end, ..scrubber.last.get() });
            match found.get() {
                0 => tracing::debug!(%pool, target = env.core().0, ?last_pass, "scrubbed: no damage"),
                faults => {
                    tracing::error!(%pool, target = env.core().0, faults, ?last_pass, "scrubbed: damage");
                }
            }
        }
        Either::Second(Err(error)) => {
            let last = scrubber.last.get();
            scrubber.last.set(ScrubUsage { passes_failed: last.passes_failed + 1, ..last });
            health.due.set(env.clock().now() + RETRY_INTERVAL.min(config.period));
            tracing::warn!(%pool, target = env.core().0, %error, "scrubbing was cut short; it will be tried again");
        }
    }
    drop(vpool);
    scrubber.scrubbing.set(None);
    scrubber.released.notify_all();
}
