//! Epochs: transaction numbers chosen by the caller, which order every update of a container.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A transaction number. 0 means "before everything"; the first epoch that can be written is 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    /// Before every change.
    pub const ZERO: Epoch = Epoch(0);
    /// After every change: reading at it gives the newest state, uncommitted changes included. It cannot be written.
    pub const MAX: Epoch = Epoch(u64::MAX);

    /// The next epoch.
    ///
    /// # Panics
    ///
    /// At [`Epoch::MAX`], which has none.
    pub fn next(self) -> Epoch {
        Epoch(self.0.checked_add(1).expect("an epoch after the last"))
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The epochs from `low` to `high`, both included; empty if `low > high`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct EpochRange {
    /// First epoch.
    pub low: Epoch,
    /// Last epoch.
    pub high: Epoch,
}

impl EpochRange {
    /// Every epoch.
    pub const ALL: EpochRange = EpochRange { low: Epoch::ZERO, high: Epoch::MAX };

    /// Whether `epoch` lies in the range.
    pub fn contains(self, epoch: Epoch) -> bool {
        self.low <= epoch && epoch <= self.high
    }

    /// Whether no epoch lies in the range.
    pub fn is_empty(self) -> bool {
        self.low > self.high
    }
}
