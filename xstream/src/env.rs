//! The seam between services and the world they run in.

use crate::{Clock, CoreId, Fabric, Locals, Mailbox, Media, Rng, Spawn};

/// A bug that the simulator plants to see whether its checks notice it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A flush is acknowledged before the log is durable.
    EarlyFlush,
    /// What a handle had not committed stays when it is closed or evicted.
    SkippedDiscard,
    /// A read at an epoch sees what was written at later ones.
    ReadBeyondEpoch,
    /// History is aggregated away that somebody may still read.
    AggregatedInUse,
    /// Data that was loaded is not compared with its checksum.
    SkippedChecksum,
}

/// The world in which a service runs: real, or simulated.
///
/// A value of it is a cheap handle (clones share the xstream's state) and stays on its thread.
pub trait Env: Clone + 'static {
    /// Source of time.
    type Clock: Clock;
    /// Source of randomness.
    type Rng: Rng;
    /// The cooperative scheduler of this xstream.
    type Spawn: Spawn;
    /// Work for the other xstreams of this process.
    type Mailbox: Mailbox<Self>;
    /// Messages and bulk transfers to other processes.
    type Fabric: Fabric;
    /// Files and block devices.
    type Media: Media;

    /// Source of time.
    fn clock(&self) -> &Self::Clock;
    /// Source of randomness.
    fn rng(&self) -> &Self::Rng;
    /// The scheduler of this xstream.
    fn scheduler(&self) -> &Self::Spawn;
    /// The way to the other xstreams.
    fn mailbox(&self) -> &Self::Mailbox;
    /// The way to other processes.
    fn fabric(&self) -> &Self::Fabric;
    /// Files and block devices.
    fn media(&self) -> &Self::Media;
    /// The state that modules keep per xstream.
    fn locals(&self) -> &Locals;
    /// Which xstream of the process this is; 0 is the service xstream.
    fn core(&self) -> CoreId;

    /// Whether this bug was planted. Only the simulated world plants any; everywhere else this is known to be false when
    /// the code is compiled, and nothing is left of it.
    fn planted(&self, _bug: Bug) -> bool {
        false
    }
}
