//! The pool map: which targets a pool has, where they are, and in what state.
//!
//! # Invariants
//!
//! * A target keeps its **ordinal** (its place in the map) for ever: failed targets stay, new ones are appended. What is
//!   computed from ordinals does not move because another target came or went.
//! * Every change adds one to the version and stamps what it changed, so the difference between two versions can be
//!   taken from the newer map alone ([`PoolMap::changes_since`]), and failed targets sorted by their stamp give the
//!   failure sequence.
//! * A change that asks for what is already so changes nothing, not even the version: it may be repeated.

use std::{collections::BTreeMap, fmt, str::FromStr};

use daos_xstream::Address;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

#[cfg(test)]
mod tests;

/// Most targets that a map may have; bounds what a peer can make us hold.
pub const TARGETS_MAX: usize = 1 << 20;

/// A target: which engine, and which of its xstreams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TargetId {
    /// Persistent number of the engine.
    pub rank: u32,
    /// Index of the target within the engine.
    pub index: u32,
}

impl fmt::Display for TargetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.rank, self.index)
    }
}

/// What a target is good for at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TargetState {
    /// Appended to the map; it receives data, and nobody reads from it yet.
    New,
    /// Coming back; it receives data, and nobody reads from it yet.
    Up,
    /// In full service.
    UpIn,
    /// In full service, and its data is being copied elsewhere so that it can leave.
    Drain,
    /// Failed or excluded; what it held is being rebuilt elsewhere.
    Down,
    /// Gone; nothing refers to it any more.
    DownOut,
}

impl TargetState {
    /// Every state.
    pub const ALL: [TargetState; 6] = [
        TargetState::New,
        TargetState::Up,
        TargetState::UpIn,
        TargetState::Drain,
        TargetState::Down,
        TargetState::DownOut,
    ];

    /// Whether reads may go to the target.
    pub fn serves_reads(self) -> bool {
        matches!(self, Self::UpIn | Self::Drain)
    }

    /// Whether the target takes updates.
    pub fn takes_updates(self) -> bool {
        !matches!(self, Self::Down | Self::DownOut)
    }

    /// The state after `change`; `None` if the change makes no sense in this state.
    pub fn after(self, change: StateChange) -> Option<TargetState> {
        use StateChange::{Drain, Exclude, Filled, Rebuilt, Reintegrate};
        Some(match (self, change) {
            // Repetitions.
            (Self::UpIn, Reintegrate | Filled) => Self::UpIn,
            (Self::Up, Reintegrate) => Self::Up,
            (Self::Drain, Drain) => Self::Drain,
            (Self::Down, Exclude) => Self::Down,
            (Self::DownOut, Exclude | Rebuilt) => Self::DownOut,
            // A target that was never filled holds nothing that has to be rebuilt.
            (Self::New, Exclude) => Self::DownOut,
            (Self::New | Self::Up, Filled) => Self::UpIn,
            (Self::UpIn, Drain) => Self::Drain,
            (Self::Up | Self::UpIn | Self::Drain, Exclude) => Self::Down,
            (Self::Down | Self::Drain, Rebuilt) => Self::DownOut,
            (Self::Down | Self::DownOut, Reintegrate) => Self::Up,
            _ => return None,
        })
    }
}

const STATE_NAMES: [(TargetState, &str); 6] = [
    (TargetState::New, "NEW"),
    (TargetState::Up, "UP"),
    (TargetState::UpIn, "UP_IN"),
    (TargetState::Drain, "DRAIN"),
    (TargetState::Down, "DOWN"),
    (TargetState::DownOut, "DOWN_OUT"),
];

impl fmt::Display for TargetState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = STATE_NAMES.iter().find(|(state, _)| state == self).map_or("?", |(_, name)| name);
        f.pad(name)
    }
}

impl FromStr for TargetState {
    type Err = PoolMapError;

    fn from_str(text: &str) -> Result<Self, PoolMapError> {
        STATE_NAMES
            .iter()
            .find(|(_, name)| *name == text)
            .map(|(state, _)| *state)
            .ok_or_else(|| PoolMapError::Malformed(format!("{text:?} is no target state")))
    }
}

/// What can happen to a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum StateChange {
    /// It is dead or unwanted.
    Exclude,
    /// It shall leave in good order.
    Drain,
    /// What it held is elsewhere now.
    Rebuilt,
    /// It shall come back.
    Reintegrate,
    /// It has everything that it should have.
    Filled,
}

impl StateChange {
    /// Every change.
    pub const ALL: [StateChange; 5] = [
        StateChange::Exclude,
        StateChange::Drain,
        StateChange::Rebuilt,
        StateChange::Reintegrate,
        StateChange::Filled,
    ];
}

/// A target of a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Its name.
    pub id: TargetId,
    /// Its state.
    pub state: TargetState,
    /// The map version that last changed its state (or, at the beginning, the one that added it).
    pub changed: u32,
    /// The map version in which it failed or left; 0 while it is in service or coming.
    pub failed: u32,
    /// Index in [`PoolMap::domains`] of the fault domain that holds its engine.
    pub domain: u32,
    /// Where the target's xstream can be reached, nearest first by the engine's own order.
    pub addresses: Vec<Address>,
}

/// A node of the tree of fault domains.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Domain {
    /// Its name among its siblings.
    pub name: String,
    /// Index of the domain that contains it; `None` at the top. Always less than its own index.
    pub parent: Option<u32>,
}

/// A target to be added to a map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewTarget {
    /// Its name.
    pub id: TargetId,
    /// Path of fault domains from the top, such as `rack3/node17`.
    pub fault_domain: String,
    /// Where its xstream can be reached.
    pub addresses: Vec<Address>,
}

/// Which targets a pool has, where they are, and in what state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolMap {
    pool: Uuid,
    version: u32,
    domains: Vec<Domain>,
    targets: Vec<Target>,
    ordinals: BTreeMap<TargetId, u32>,
}

/// What is different in a newer version of a map. Also the form in which a whole map travels and is stored
/// (the changes since version 0).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolMapChanges {
    /// The pool.
    pub pool: Uuid,
    /// Version to which the changes apply; 0 is the empty map.
    pub from: u32,
    /// Version that results.
    pub version: u32,
    /// All fault domains; those of an older version are the first of them.
    pub domains: Vec<Domain>,
    /// Ordinals and targets that were added or changed.
    pub targets: Vec<(u32, Target)>,
}

/// Why a map cannot be changed, or is none. The map is as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PoolMapError {
    /// The pool has no such target. A retry cannot help.
    #[error("the pool has no target {0}")]
    NoSuchTarget(TargetId),
    /// The change makes no sense in the target's state. A retry helps once the state is another.
    #[error("target {target} is {state}: it cannot be changed by {change:?}")]
    NotNow {
        /// The target.
        target: TargetId,
        /// The state it is in.
        state: TargetState,
        /// What was asked for.
        change: StateChange,
    },
    /// The changes apply to another version than this map's. Ask for the whole map.
    #[error("changes from version {from} do not apply to version {version}")]
    OtherVersion {
        /// The version that the changes apply to.
        from: u32,
        /// The map's version.
        version: u32,
    },
    /// What was sent is no map. A retry cannot help.
    #[error("malformed pool map: {0}")]
    Malformed(String),
}

impl PoolMap {
    /// The map of a new pool, at version 1, with every target in service.
    pub fn new(pool: Uuid, targets: &[NewTarget]) -> Result<Self, PoolMapError> {
        let mut map =
            Self { pool, version: 0, domains: Vec::new(), targets: Vec::new(), ordinals: BTreeMap::new() };
        map.append(targets, TargetState::UpIn)?;
        Ok(map)
    }

    /// The map that `changes` since version 0 describe.
    pub fn from_changes(changes: &PoolMapChanges) -> Result<Self, PoolMapError> {
        let mut map = Self {
            pool: changes.pool,
            version: 0,
            domains: Vec::new(),
            targets: Vec::new(),
            ordinals: BTreeMap::new(),
        };
        map.apply(changes)?;
        Ok(map)
    }

    /// The pool.
    pub fn pool(&self) -> Uuid {
        self.pool
    }

    /// The version; the first is 1.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The fault domains, parents before children.
    pub fn domains(&self) -> &[Domain] {
        &self.domains
    }

    /// The targets by ordinal.
    pub fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// The ordinal of a target.
    pub fn ordinal(&self, id: TargetId) -> Option<u32> {
        self.ordinals.get(&id).copied()
    }

    /// The target with this name.
    pub fn target(&self, id: TargetId) -> Option<&Target> {
        self.targets.get(self.ordinal(id)? as usize)
    }

    /// The path of a fault domain from the top, such as `rack3/node17`; empty for an index that is none.
    pub fn domain_path(&self, domain: u32) -> String {
        let mut names = Vec::new();
        let mut next = Some(domain);
        while let Some(domain) = next.and_then(|index| self.domains.get(index as usize)) {
            names.push(domain.name.as_str());
            next = domain.parent;
        }
        names.reverse();
        names.join("/")
    }

    /// Ordinals of the targets that are down or gone, in the order in which they failed.
    pub fn failure_sequence(&self) -> Vec<u32> {
        let mut failed: Vec<_> = (0u32..)
            .zip(&self.targets)
            .filter(|(_, target)| !target.state.takes_updates())
            .map(|(ordinal, target)| (target.failed, ordinal))
            .collect();
        failed.sort_unstable();
        failed.into_iter().map(|(_, ordinal)| ordinal).collect()
    }

    /// Appends targets in state `New`. Adding a target that is there already changes nothing.
    pub fn extend(&mut self, targets: &[NewTarget]) -> Result<(), PoolMapError> {
        let missing: Vec<_> =
            targets.iter().filter(|target| self.ordinal(target.id).is_none()).cloned().collect();
        if missing.is_empty() { Ok(()) } else { self.append(&missing, TargetState::New) }
    }

    /// Changes the state of a target. Returns whether anything changed.
    pub fn change(&mut self, id: TargetId, change: StateChange) -> Result<bool, PoolMapError> {
        let ordinal = self.ordinal(id).ok_or(PoolMapError::NoSuchTarget(id))?;
        let target = &mut self.targets[ordinal as usize];
        let state = target.state.after(change).ok_or(PoolMapError::NotNow {
            target: id,
            state: target.state,
            change,
        })?;
        if state == target.state {
            return Ok(false);
        }
        self.version += 1;
        // Replacements were chosen in the order of failures: the step from DOWN to DOWN_OUT must not reorder it.
        target.failed = match (state.takes_updates(), target.failed) {
            (true, _) => 0,
            (false, 0) => self.version,
            (false, failed) => failed,
        };
        target.state = state;
        target.changed = self.version;
        Ok(true)
    }

    /// Replaces the addresses of a target, as after a restart of its engine. Returns whether anything changed.
    pub fn set_addresses(&mut self, id: TargetId, addresses: &[Address]) -> Result<bool, PoolMapError> {
        let ordinal = self.ordinal(id).ok_or(PoolMapError::NoSuchTarget(id))?;
        let target = &mut self.targets[ordinal as usize];
        if target.addresses == addresses {
            return Ok(false);
        }
        self.version += 1;
        target.addresses = addresses.to_vec();
        target.changed = self.version;
        Ok(true)
    }

    /// What is different from the map of version `from`.
    pub fn changes_since(&self, from: u32) -> PoolMapChanges {
        let targets = (0u32..)
            .zip(&self.targets)
            .filter(|(_, target)| target.changed > from)
            .map(|(ordinal, target)| (ordinal, target.clone()))
            .collect();
        PoolMapChanges {
            pool: self.pool,
            from,
            version: self.version,
            // Domains are few and only ever appended; sending all saves a history of when each one came.
            domains: self.domains.clone(),
            targets,
        }
    }

    /// Makes this map the version that `changes` lead to. What comes from outside is checked: after an error the map is
    /// as it was. Changes to a version that this map has already reached are no error and change nothing.
    pub fn apply(&mut self, changes: &PoolMapChanges) -> Result<(), PoolMapError> {
        let malformed = |text: &str| PoolMapError::Malformed(text.to_owned());
        if changes.pool != self.pool {
            return Err(malformed("it is of another pool"));
        }
        if changes.version <= self.version {
            return Ok(());
        }
        if changes.from > self.version {
            return Err(PoolMapError::OtherVersion { from: changes.from, version: self.version });
        }
        let domains = &changes.domains;
        if !domains.starts_with(&self.domains) {
            return Err(malformed("its fault domains are others"));
        }
        if (0u32..).zip(domains).any(|(index, domain)| domain.parent.is_some_and(|parent| parent >= index)) {
            return Err(malformed("a fault domain precedes the one that contains it"));
        }
        let mut targets = self.targets.clone();
        let mut ordinals = self.ordinals.clone();
        for (ordinal, target) in &changes.targets {
            if target.domain as usize >= domains.len() {
                return Err(malformed("a target is in a fault domain that is not there"));
            }
            if target.changed == 0 || target.changed > changes.version || target.failed > target.changed {
                return Err(malformed("a target changed in a version that is not there yet"));
            }
            let (ordinal, count) = (*ordinal, targets.len());
            match targets.get_mut(ordinal as usize) {
                Some(known) if known.id == target.id => *known = target.clone(),
                Some(_) => return Err(malformed("a target has moved")),
                None if ordinal as usize == count && count < TARGETS_MAX => {
                    targets.push(target.clone());
                    if ordinals.insert(target.id, ordinal).is_some() {
                        return Err(malformed("a target is there twice"));
                    }
                }
                None => return Err(malformed("targets are missing, or too many")),
            }
        }
        let domains = domains.clone();
        *self = Self { pool: self.pool, version: changes.version, domains, targets, ordinals };
        Ok(())
    }

    fn append(&mut self, targets: &[NewTarget], state: TargetState) -> Result<(), PoolMapError> {
        let mut next = self.clone();
        next.version += 1;
        let mut domain_indices: BTreeMap<_, _> =
            (0u32..).zip(&next.domains).map(|(index, domain)| (domain.clone(), index)).collect();
        for target in targets {
            let mut parent = None;
            for name in target.fault_domain.split('/') {
                if name.is_empty() {
                    return Err(PoolMapError::Malformed(format!(
                        "{:?} is no path of fault domains (NAME or NAME/NAME…)",
                        target.fault_domain
                    )));
                }
                let domain = Domain { name: name.to_owned(), parent };
                let index = *domain_indices.entry(domain.clone()).or_insert_with(|| {
                    next.domains.push(domain);
                    next.domains.len() as u32 - 1
                });
                parent = Some(index);
            }
            let ordinal = next.targets.len() as u32;
            if next.targets.len() >= TARGETS_MAX || next.ordinals.insert(target.id, ordinal).is_some() {
                let id = target.id;
                return Err(PoolMapError::Malformed(format!("target {id} is there twice, or one too many")));
            }
            next.targets.push(Target {
                id: target.id,
                state,
                changed: next.version,
                failed: 0,
                domain: parent.expect("a split text has a first part"),
                addresses: target.addresses.clone(),
            });
        }
        *self = next;
        Ok(())
    }
}

impl Serialize for PoolMap {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.changes_since(0).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for PoolMap {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let changes = PoolMapChanges::deserialize(deserializer)?;
        Self::from_changes(&changes).map_err(serde::de::Error::custom)
    }
}
