//! The cooperative scheduler of an xstream.

use std::future::Future;

/// Scheduling class of a task. The scheduler shares a busy core between classes by weight, so that background work
/// never starves requests, and requests never stop background work for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Polling of the fabric, and requests of clients. Latency counts.
    Foreground,
    /// Control work: pool and container services, membership.
    Service,
    /// Restoring redundancy.
    Rebuild,
    /// Aggregation, checkpoints, scrubbing.
    Background,
}

impl Class {
    /// All classes.
    pub const ALL: [Class; 4] = [Class::Foreground, Class::Service, Class::Rebuild, Class::Background];

    /// Relative share of a core that all classes want.
    pub fn shares(self) -> usize {
        match self {
            Class::Foreground => 1000,
            Class::Service => 400,
            Class::Rebuild => 200,
            Class::Background => 100,
        }
    }
}

/// Runs tasks on this xstream. Tasks never move to another thread.
pub trait Spawn: 'static {
    /// Starts a task that runs until it ends or the world shuts down. `name` appears in stall reports and traces.
    fn spawn(&self, class: Class, name: &'static str, task: impl Future<Output = ()> + 'static);

    /// Lets every other ready task run once.
    fn yield_now(&self) -> impl Future<Output = ()> + 'static;

    /// Whether the running task has used up its slice (about 500 µs) and should [`yield_now`](Self::yield_now).
    fn should_yield(&self) -> bool;

    /// Adds a source of work that must be asked: `poll` returns how many things it did. The world calls it over and over
    /// while anything is busy, and parks the core on the descriptors of its own fabrics, rings and timers when nothing
    /// is. A source is never removed; it lives as long as the xstream.
    fn add_progress(&self, name: &'static str, poll: impl FnMut() -> usize + 'static);
}

/// Source of randomness: the OS in the real world, the run's seed in the simulated one.
pub trait Rng: 'static {
    /// 64 uniform bits, unpredictable to peers in the real world.
    fn next_u64(&self) -> u64;
}
