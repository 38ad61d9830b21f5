//! Bugs that are planted, to see that the checks notice them.

use daos_xstream::Bug;

use crate::violation::Rule;

/// A planted bug, and the rule that must notice it.
#[derive(Clone, Copy, Debug)]
pub struct Canary {
    /// Its name on the command line.
    pub name: &'static str,
    /// The bug.
    pub bug: Bug,
    /// The rule.
    pub rule: Rule,
}

/// All of them. Where each is planted: look for `planted(Bug::` in `dsm`, `vos` and here.
pub const CANARIES: [Canary; 5] = [
    Canary { name: "early-flush", bug: Bug::EarlyFlush, rule: Rule::Durability },
    Canary { name: "skipped-discard", bug: Bug::SkippedDiscard, rule: Rule::Discard },
    Canary { name: "read-beyond-epoch", bug: Bug::ReadBeyondEpoch, rule: Rule::ReadEpoch },
    Canary { name: "aggregated-in-use", bug: Bug::AggregatedInUse, rule: Rule::CommittedEpochs },
    Canary { name: "skipped-checksum", bug: Bug::SkippedChecksum, rule: Rule::Checksum },
];
