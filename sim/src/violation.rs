//! What a run may not show.

use serde::Serialize;

/// The rules that are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// A committed epoch is there, whole, and reads the same for ever; nothing else is.
    CommittedEpochs,
    /// A handle reads what it was told it had written, and has flushed, also before it commits.
    OwnWrites,
    /// What was acknowledged as durable (by a flush, a commit, or for itself) survives a crash.
    Durability,
    /// What was discarded, or not committed when its handle ended, does not come back.
    Discard,
    /// A read at an epoch sees nothing of later ones.
    ReadEpoch,
    /// What media have changed is never returned as data.
    Checksum,
    /// The scrubber finds no damage where media have not changed.
    Scrub,
    /// A file system does what a naive tree does, and is after a crash as the last sync left it.
    Tree,
    /// A pool that was made is there, one that was destroyed is not, and nothing is left of either.
    Pools,
    /// Listings agree with the values.
    Enumeration,
    /// HCE, LHE and LRE move as they should, through crashes too.
    Epochs,
    /// A snapshot that was acknowledged is there, and one that was given up is not.
    Snapshots,
    /// Nothing is done through a handle that was closed or evicted.
    Revocation,
    /// A handle in use is not taken away.
    Eviction,
    /// An operation is refused only for a reason.
    Refusal,
    /// The engine starts on whatever a crash has left.
    Start,
    /// Once faults stop, everything gets done.
    Liveness,
    /// No code panics.
    Panic,
}

/// A rule was broken.
#[derive(Clone, Debug, Serialize)]
pub struct Violation {
    /// Which.
    pub rule: Rule,
    /// How.
    pub story: String,
}
