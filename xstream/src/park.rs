//! How a core sleeps without missing anything: what a fabric of the real world offers for it.

use std::os::fd::RawFd;

use crate::{Fabric, Pair, Time};

/// A fabric that can wake a parked core.
///
/// Who wants to park announces it ([`prepare_to_park`](Self::prepare_to_park)), polls every source once more, and only
/// then waits. A fabric that is asked to announce itself as sleeping *before* it looks at its queues a last time cannot
/// lose a message: either the last look finds it, or its sender sees the announcement and rings.
pub trait Park {
    /// Descriptors that become readable when the fabric wants to be polled. Asked once: a fabric whose descriptors come
    /// and go puts them into an epoll set of its own and names that. They stay open as long as the fabric lives.
    fn descriptors(&self) -> Vec<RawFd>;

    /// Tells peers that from now on they have to wake this core. `false`: something is waiting already (or may be), do
    /// not park but poll.
    fn prepare_to_park(&self) -> bool;

    /// When the fabric wants to be polled even if no descriptor becomes readable; [`Time::NEVER`] if it has no such wish.
    fn wake_at(&self) -> Time;

    /// The core is awake again, or did not park after all: peers need not ring any more.
    fn unpark(&self);
}

impl<F: Park> Park for Option<F> {
    fn descriptors(&self) -> Vec<RawFd> {
        self.as_ref().map(F::descriptors).unwrap_or_default()
    }

    fn prepare_to_park(&self) -> bool {
        self.as_ref().is_none_or(F::prepare_to_park)
    }

    fn wake_at(&self) -> Time {
        self.as_ref().map_or(Time::NEVER, F::wake_at)
    }

    fn unpark(&self) {
        if let Some(fabric) = self {
            fabric.unpark();
        }
    }
}

impl<A: Park + Fabric, B: Park + Fabric> Park for Pair<A, B> {
    fn descriptors(&self) -> Vec<RawFd> {
        let mut descriptors = self.first().descriptors();
        descriptors.append(&mut self.second().descriptors());
        descriptors
    }

    fn prepare_to_park(&self) -> bool {
        self.poll_both_next();
        if !self.first().prepare_to_park() {
            return false;
        }
        let ready = self.second().prepare_to_park();
        if !ready {
            self.first().unpark();
        }
        ready
    }

    fn wake_at(&self) -> Time {
        self.first().wake_at().min(self.second().wake_at())
    }

    fn unpark(&self) {
        self.poll_both_next();
        self.first().unpark();
        self.second().unpark();
    }
}
