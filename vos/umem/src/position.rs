//! Where a transaction stands in the order of all transactions, and the proof that it is durable.

/// The place of a sealed transaction in the heap's order: its changes are visible, and durable once everything up to this
/// place is. On `wal` media it is a byte position in the log; in memory it counts transactions; on
/// persistent memory it goes on from a random place at each opening.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[must_use = "a reply that promises durability needs the proof that this position is persisted"]
pub struct Sealed(pub(crate) u64);

impl Sealed {
    /// Before every transaction: always persisted.
    pub const START: Sealed = Sealed(0);

    /// The position as a number, for counters and traces.
    pub fn position(self) -> u64 {
        self.0
    }
}

/// Proof that a [`Sealed`] position has reached its media. Only this crate makes one, so that a durable reply cannot be
/// written without having waited.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Persisted(pub(crate) ());
