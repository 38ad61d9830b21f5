//! Where the shards of an object live: computed from object ID, class and pool map, never looked up.
//!
//! Consistent hashing without stored ring points: a slot of the layout draws targets from a consistent hash over the
//! pool map's ordinals ([`hash::bucket`]) until it meets one that its redundancy group can take. Compared with a ring of
//! virtual points this balances exactly (a ring needs about a thousand points a target to come within 10 %), needs no
//! memory beside the pool map, costs the same at 10^5 targets as at 10^3, and spreads the neighbours of a target over the
//! whole pool, so that all of it takes part in a rebuild.
//!
//! # Invariants
//!
//! * The same (object ID, class, map) gives the same layout in every process, for ever.
//! * No two shards of an object are on one target; an object has at most as many shards as there are targets. No two of
//!   a redundancy group share a fault domain, while there are as many domains as the group has shards (an object that
//!   takes nearly all targets of uneven domains has groups for which none is left).
//! * Ordinals are for ever: targets are appended to a map and never removed, a failed one keeps its ordinal. So growth by
//!   x % moves about x/(100 + x) of the shards, all of them to new targets.
//! * Computing into a [`Layout`] that has been used before does not allocate.

pub mod hash;

#[cfg(test)]
mod tests;

use daos_types::ObjectId;

use crate::class::{Family, Groups, Schema};

/// How often a slot draws before it takes the next target that fits in map order.
const DRAWS_MAX: u64 = 64;

/// Layouts up to so many shards look for a target by comparing; larger ones by a stamp per target.
const COMPARED_MAX: usize = 16;

/// What a target can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Shards, and serves them.
    Serving,
    /// Nothing any more: the pool map dropped it in this version.
    Failed {
        /// The map version of the failure, which orders it among others.
        version: u32,
    },
    /// Nothing yet: it is being added. Such targets are the last of a map.
    Joining,
}

/// A target as placement sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlacedTarget {
    /// The engine.
    pub rank: u32,
    /// Its target.
    pub target: u32,
    /// The fault domain, any number that is the same for the targets of one domain.
    pub domain: u32,
    /// What it can hold.
    pub standing: Standing,
}

/// One shard of a layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Ordinal of its target in the map.
    pub ordinal: u32,
    /// Whether the target holds the shard's data. If not, the shard is lost (no redundancy, or no spare left).
    pub available: bool,
    /// Whether the target is a replacement, which has the shard's data only once it is rebuilt.
    pub replacement: bool,
}

/// Where the shards of an object live: groups of [`Layout::group_size`] shards, one after the other.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    shards: Vec<Shard>,
    group_size: u32,
    map_version: u32,
    /// Stamp of each target: equal to `generation` if the layout under construction has it. A new layout takes a new
    /// generation instead of clearing the stamps.
    stamps: Vec<u32>,
    generation: u32,
    lost: Vec<(u32, u32)>,
}

/// Why an object cannot be placed. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlacementError {
    /// The pool has fewer targets than a redundancy group of the class has shards. A retry helps once it has more.
    #[error("object class {class} needs {needed} targets, and the pool has {targets}")]
    TooFewTargets {
        /// Name of the class.
        class: String,
        /// Targets that it needs.
        needed: u32,
        /// Targets of the pool.
        targets: u32,
    },
}

/// A pool map, prepared for computing layouts.
#[derive(Clone, Debug)]
pub struct Placement {
    map_version: u32,
    targets: Vec<PlacedTarget>,
    /// Targets that hold shards: all but those that are joining.
    placed: u32,
    domains: u32,
    failures: bool,
    /// Ordinals such that neighbours are in different domains: the first target of each domain, then the second, …
    across_domains: Vec<u32>,
}

impl Placement {
    /// Prepares the targets of a map, in the order in which they were added.
    pub fn new(map_version: u32, targets: Vec<PlacedTarget>) -> Self {
        let holds = |target: &PlacedTarget| target.standing != Standing::Joining;
        let placed = targets.iter().rposition(holds).map_or(0, |last| last + 1);
        let mut seen = std::collections::BTreeMap::new();
        let mut across: Vec<(u32, u32, u32)> = (0..)
            .zip(&targets[..placed])
            .map(|(ordinal, target)| {
                let row = seen.entry(target.domain).or_insert(0u32);
                *row += 1;
                (*row, target.domain, ordinal)
            })
            .collect();
        across.sort_unstable();
        Self {
            map_version,
            placed: placed as u32,
            domains: seen.len() as u32,
            failures: targets[..placed].iter().any(|target| target.standing != Standing::Serving),
            across_domains: across.into_iter().map(|(_, _, ordinal)| ordinal).collect(),
            targets,
        }
    }

    /// Version of the map.
    pub fn map_version(&self) -> u32 {
        self.map_version
    }

    /// The targets, by ordinal.
    pub fn targets(&self) -> &[PlacedTarget] {
        &self.targets
    }

    /// How many targets hold shards.
    pub fn target_count(&self) -> u32 {
        self.placed
    }

    /// Computes the layout of `object` into `layout`.
    pub fn compute(
        &self,
        object: ObjectId,
        schema: &Schema,
        layout: &mut Layout,
    ) -> Result<(), PlacementError> {
        let group_size = schema.group_size();
        let groups = schema.group_count(self.placed);
        if groups == 0 {
            return Err(PlacementError::TooFewTargets {
                class: schema.to_string(),
                needed: group_size,
                targets: self.placed,
            });
        }
        layout.begin(self, group_size);
        let seed = hash::hash_object(object);
        match (schema.groups, group_size) {
            (Groups::All, 1) => {
                layout.shards.extend((0..self.placed).map(Shard::first_choice));
            }
            (Groups::All, _) => self.walk_groups(seed, groups, layout),
            // Groups that take nearly every target can paint themselves into a corner.
            (Groups::Fixed(_), _) => {
                if !self.draw_groups(seed, groups, layout) {
                    self.walk_groups(seed, groups, layout);
                }
            }
        }
        if self.failures {
            self.replace_failed(seed, schema, layout);
        }
        Ok(())
    }

    /// Takes neighbours of the order across domains, from a place that the object ID decides.
    fn walk_groups(&self, seed: u64, groups: u32, layout: &mut Layout) {
        let start = hash::bucket(seed, self.placed);
        let around = self.across_domains[start as usize..].iter().chain(&self.across_domains);
        let ordinals = around.take((groups * layout.group_size) as usize);
        layout.shards.clear();
        layout.shards.extend(ordinals.map(|ordinal| Shard::first_choice(*ordinal)));
    }

    /// Draws a target for every slot; false if a slot found none in a domain of its own.
    fn draw_groups(&self, seed: u64, groups: u32, layout: &mut Layout) -> bool {
        let total = (groups * layout.group_size) as usize;
        let by_stamp = total > COMPARED_MAX;
        let distinct_domains = layout.group_size > 1 && self.domains >= layout.group_size;
        for slot in 0..total {
            let group = slot - slot % layout.group_size as usize;
            let drawn =
                self.draw(stream(seed, slot as u64), group, by_stamp, distinct_domains, layout, |_| true);
            let Some(ordinal) = drawn else { return false };
            if by_stamp {
                layout.stamps[ordinal as usize] = layout.generation;
            }
            layout.shards.push(Shard::first_choice(ordinal));
        }
        true
    }

    /// The first target of a stream that the layout does not have yet, that is `fit`, and, if `distinct_domains`, whose
    /// domain the group that starts at `group` does not have yet.
    fn draw(
        &self,
        stream: u64,
        group: usize,
        by_stamp: bool,
        distinct_domains: bool,
        layout: &Layout,
        fit: impl Fn(&PlacedTarget) -> bool,
    ) -> Option<u32> {
        let members = &layout.shards[group..layout.shards.len().min(group + layout.group_size as usize)];
        let takes = |ordinal: u32| {
            let target = &self.targets[ordinal as usize];
            let used = if by_stamp {
                layout.stamps[ordinal as usize] == layout.generation
            } else {
                layout.shards.iter().any(|shard| shard.ordinal == ordinal)
            };
            let apart = || {
                let domain = |shard: &Shard| self.targets[shard.ordinal as usize].domain;
                !distinct_domains || members.iter().all(|shard| domain(shard) != target.domain)
            };
            !used && fit(target) && apart()
        };
        let mut ordinal = 0;
        for turn in 0..DRAWS_MAX {
            ordinal = hash::bucket(stream.wrapping_add(turn.wrapping_mul(TURN)), self.placed);
            if takes(ordinal) {
                return Some(ordinal);
            }
        }
        (ordinal..self.placed).chain(0..ordinal).find(|next| takes(*next))
    }

    /// Gives the shards of failed targets to spares, earliest failure first; a spare that failed later is replaced in
    /// turn, so that every map between finds the data where that map's clients put it.
    fn replace_failed(&self, seed: u64, schema: &Schema, layout: &mut Layout) {
        let failed_in = |ordinal: u32| match self.targets[ordinal as usize].standing {
            Standing::Serving => None,
            Standing::Failed { version } => Some(version),
            Standing::Joining => Some(0),
        };
        let mut lost = std::mem::take(&mut layout.lost);
        lost.clear();
        for (slot, shard) in (0..).zip(&mut layout.shards) {
            if let Some(version) = failed_in(shard.ordinal) {
                shard.available = false;
                lost.push((version, slot));
            }
        }
        if layout.group_size > 1 && schema.family != Family::Affinity {
            let mut turn = 0;
            while let Some(next) =
                lost.iter().enumerate().min_by_key(|(_, entry)| **entry).map(|(next, _)| next)
            {
                let (version, slot) = lost.swap_remove(next);
                let group = slot as usize - slot as usize % layout.group_size as usize;
                turn += 1;
                let spares = stream(!seed, u64::from(slot) << 32 | turn);
                let fit = |spare: &PlacedTarget| match spare.standing {
                    Standing::Serving => true,
                    Standing::Failed { version: later } => later > version,
                    Standing::Joining => false,
                };
                // A spare in a domain of its own, or else any.
                let spare = self
                    .draw(spares, group, false, true, layout, fit)
                    .or_else(|| self.draw(spares, group, false, false, layout, fit));
                let Some(ordinal) = spare else { continue };
                let available = match failed_in(ordinal) {
                    None => true,
                    Some(later) => {
                        lost.push((later, slot));
                        false
                    }
                };
                layout.shards[slot as usize] = Shard { ordinal, available, replacement: true };
            }
        }
        layout.lost = lost;
    }
}

const TURN: u64 = 0xd1b5_4a32_d192_ed03;

/// The stream of draws of one slot. Each slot has its own, so that a collision in one does not move the others.
fn stream(seed: u64, slot: u64) -> u64 {
    hash::mix(seed ^ slot.wrapping_mul(0x8cb9_2ba7_2f3d_8dd7))
}

impl Shard {
    fn first_choice(ordinal: u32) -> Self {
        Self { ordinal, available: true, replacement: false }
    }
}

impl Layout {
    /// An empty layout, to compute into.
    pub fn new() -> Self {
        Self::default()
    }

    /// All shards: group by group.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// Shards of one redundancy group.
    pub fn group_size(&self) -> u32 {
        self.group_size
    }

    /// How many redundancy groups there are.
    pub fn group_count(&self) -> u32 {
        self.shards.len() as u32 / self.group_size.max(1)
    }

    /// The shards of one redundancy group.
    ///
    /// # Panics
    ///
    /// If there is no such group.
    pub fn group(&self, group: u32) -> &[Shard] {
        let size = self.group_size as usize;
        &self.shards[group as usize * size..][..size]
    }

    /// Version of the map from which it was computed.
    pub fn map_version(&self) -> u32 {
        self.map_version
    }

    fn begin(&mut self, placement: &Placement, group_size: u32) {
        self.shards.clear();
        self.group_size = group_size;
        self.map_version = placement.map_version;
        if self.stamps.len() < placement.placed as usize {
            self.stamps.resize(placement.placed as usize, 0);
        }
        self.generation = self.generation.wrapping_add(1);
        if self.generation == 0 {
            self.stamps.fill(0);
            self.generation = 1;
        }
    }
}
