//! Time as services see it: a monotonic clock for deadlines, a wall clock for what people read.

use std::{future::Future, ops::Add, time::Duration};

/// A point on the world's monotonic clock, in nanoseconds since an origin that the world chose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time(pub u64);

impl Time {
    /// Later than every deadline.
    pub const NEVER: Time = Time(u64::MAX);

    /// How long `earlier` lies back; zero if it does not.
    pub fn since(self, earlier: Time) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Time {
    type Output = Time;

    fn add(self, duration: Duration) -> Time {
        Time(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// Nanoseconds since 1970-01-01 UTC. It may jump: it goes into file times and logs, never into a deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct WallTime(pub u64);

/// Source of time.
pub trait Clock: 'static {
    /// The monotonic time. Reading it takes about as long as sending a message to a process of the same node.
    fn now(&self) -> Time;
    /// The monotonic time when the xstream last looked, some microseconds ago: free, and good enough for deadlines. It never
    /// goes back. Worlds that do not remember look anew.
    fn recent(&self) -> Time {
        self.now()
    }
    /// The wall-clock time.
    fn wall(&self) -> WallTime;
    /// Completes at `deadline`, or at once if that has passed.
    fn sleep_until(&self, deadline: Time) -> impl Future<Output = ()> + 'static;
}
