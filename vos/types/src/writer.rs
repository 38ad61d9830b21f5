//! Who wrote a record.

use serde::{Deserialize, Serialize};

/// Server-side tag of a container handle. Every update carries it, and discard selects by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Cookie(pub u64);

/// What kind of work wrote a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WriterKind {
    /// An application.
    Application,
    /// A rebuild or rebalance. It never overwrites what an application wrote in the same epoch.
    Rebuild,
}

/// Stamp of a record: whose handle, under which pool map, by what kind of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Writer {
    /// The container handle's tag.
    pub cookie: Cookie,
    /// The version of the pool map that the writer knew: the data fence.
    pub map_version: u32,
    /// What kind of work.
    pub kind: WriterKind,
}
