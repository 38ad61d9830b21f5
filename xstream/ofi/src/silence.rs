//! Connections to a listening endpoint that never become peers, or whose peer is gone: found and ended.
//!
//! libfabric accepts whoever connects, tells nobody, and waits for ever for the first word. Each such connection is a
//! descriptor of the process. So the endpoint looks at the process's descriptors, a few at a time, asks the kernel about those that
//! were accepted at its own address, and ends the silent ones; libfabric then reads an end of file and closes them.
//!
//! # Invariants
//!
//! * Only connections accepted at the endpoint's own address are touched, on the thread that alone opens and closes them, and
//!   they are shut down, never closed: the descriptor stays libfabric's.
//! * A peer that keeps to the protocol answers pings, so it is heard more often than a silent connection is looked for. An endpoint that
//!   was not polled has asked nobody, and ends nothing until it has had time to.
//! * A look costs a bounded number of system calls.

use std::{net::SocketAddr, os::fd::RawFd, time::Duration};

use daos_xstream::Time;

use crate::raw::sockets::{
    Accepted, Descriptor, descriptor_limit, descriptor_slots, end, keeping_errno, look_at,
};

/// Bytes of the shortest word that libfabric's tcp provider begins a connection with.
const FIRST_WORD_BYTES: u64 = 8;
/// Descriptors looked at in one look, at least and at most: the most is less than a millisecond.
const LOOKS_MIN: RawFd = 64;
const LOOKS_MAX: RawFd = 1024;
/// How long a walk over all descriptors should take.
const WALK: Duration = Duration::from_secs(2);

/// How long a connection may be silent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// Before its first word.
    pub(crate) before_first_word: Duration,
    /// Afterwards.
    pub(crate) afterwards: Duration,
}

/// The walk over the process's descriptors.
#[derive(Debug)]
pub(crate) struct Silence {
    patience: Patience,
    next: RawFd,
    slots: RawFd,
    limit: u64,
    /// Open descriptors that this walk has met, and the one before in all.
    met: u64,
    open: u64,
    /// Nothing that has spoken is ended earlier: the endpoint was not there to ask.
    absent_until: Time,
}

impl Silence {
    pub(crate) fn new(patience: Patience) -> Self {
        Self { patience, next: 0, slots: 0, limit: u64::MAX, met: 0, open: 0, absent_until: Time(0) }
    }

    /// The endpoint was not polled for a while.
    pub(crate) fn was_absent(&mut self, now: Time) {
        self.absent_until = now + self.patience.afterwards;
    }

    /// Whether a walk is under way, which should go on soon.
    pub(crate) fn is_walking(&self) -> bool {
        self.next < self.slots
    }

    /// Looks at the next descriptors, `passed` after the last look; returns how many connections were ended.
    pub(crate) fn look(&mut self, own: SocketAddr, now: Time, passed: Duration) -> u64 {
        keeping_errno(|| self.look_at_some(own, now, passed))
    }

    fn look_at_some(&mut self, own: SocketAddr, now: Time, passed: Duration) -> u64 {
        if self.next >= self.slots {
            (self.open, self.met) = (self.met, 0);
            (self.next, self.slots, self.limit) = (0, descriptor_slots(), descriptor_limit());
        }
        let share = i64::from(self.slots) * passed.min(WALK).as_millis() as i64 / WALK.as_millis() as i64;
        let share = (share as RawFd).clamp(LOOKS_MIN, LOOKS_MAX);
        let until = self.slots.min(self.next + share);
        let mut ended = 0;
        for descriptor in self.next..until {
            match look_at(descriptor, own) {
                Descriptor::Closed => continue,
                Descriptor::Other => {}
                Descriptor::Accepted(connection) => {
                    if self.is_too_silent(connection, now) {
                        end(descriptor);
                        ended += 1;
                    }
                }
            }
            self.met += 1;
        }
        self.next = until;
        ended
    }

    /// The fewer descriptors are left, the less time has a stranger for its first word.
    fn is_too_silent(&self, connection: Accepted, now: Time) -> bool {
        if connection.received >= FIRST_WORD_BYTES {
            return now >= self.absent_until && connection.silent >= self.patience.afterwards;
        }
        let open = self.open.max(self.met);
        let patience = match self.limit {
            limit if open >= limit / 4 * 3 => Duration::ZERO,
            limit if open >= limit / 2 => self.patience.before_first_word / 10,
            _ => self.patience.before_first_word,
        };
        connection.silent >= patience
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn silence(open: u64, limit: u64) -> Silence {
        let patience =
            Patience { before_first_word: Duration::from_secs(5), afterwards: Duration::from_secs(45) };
        Silence { limit, open, ..Silence::new(patience) }
    }

    #[test]
    fn patience_ends_with_the_descriptors() {
        let connection =
            |received, milliseconds| Accepted { received, silent: Duration::from_millis(milliseconds) };
        let now = Time(1 << 40);
        for (open, milliseconds) in [(10, 5000), (500, 500), (750, 0)] {
            let silence = silence(open, 1000);
            assert!(silence.is_too_silent(connection(7, milliseconds), now));
            if milliseconds > 0 {
                assert!(!silence.is_too_silent(connection(7, milliseconds - 1), now));
            }
            // Who has spoken is no cheaper to get rid of: it may be a peer.
            assert!(!silence.is_too_silent(connection(8, 44_999), now));
            assert!(silence.is_too_silent(connection(8, 45_000), now));
        }
    }

    #[test]
    fn who_was_not_asked_is_not_blamed() {
        let mut silence = silence(10, 1000);
        let now = Time(1 << 40);
        silence.was_absent(now);
        let connection = Accepted { received: 100, silent: Duration::from_secs(1000) };
        assert!(!silence.is_too_silent(connection, now + Duration::from_secs(44)));
        assert!(silence.is_too_silent(connection, now + Duration::from_secs(45)));
        assert!(silence.is_too_silent(Accepted { received: 0, ..connection }, now));
    }
}
