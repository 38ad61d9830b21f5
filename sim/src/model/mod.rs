//! What ought to be stored: kept outside the simulated world, told of every operation when it begins and when it ends.
//!
//! # Invariants
//!
//! * What the model calls [`Standing::Committed`] never changes again.
//! * Doubt is kept, not guessed: a change whose fate nobody was told is a candidate beside what it would hide, until a
//!   read settles it; from then on the other answer is a violation.
//! * Slots (clients) never write the same place, so the order of changes of a place is (epoch, order of issue).

pub mod check;
mod version;

use std::collections::{BTreeMap, BTreeSet};

use daos_dsm::epochs::EpochState;
use daos_types::{Epoch, EpochRange, ObjectId};
use uuid::Uuid;

pub use version::{Answer, Change, CommitKey, Cover, HandleKey, Place, Standing, Version, byte, content};

use crate::violation::{Rule, Violation};

/// One container.
pub struct ContainerModel {
    /// Its UUID.
    pub uuid: Uuid,
    /// Changes by object, in the order of issue.
    pub objects: BTreeMap<ObjectId, Vec<Version>>,
    /// Epochs that were committed for sure.
    pub claims: BTreeSet<u64>,
    /// Highest HCE that anybody was told.
    pub hce_told: u64,
    /// Snapshots that anybody has asked for.
    pub snapshots: BTreeMap<u64, SnapshotModel>,
    /// Ranges of epochs of which only what is visible at the end has been kept.
    pub aggregated: Vec<(u64, u64)>,
    /// Changes that were discarded, to know them if they turn up again.
    pub gone: BTreeMap<ObjectId, Vec<(Change, usize)>>,
}

impl ContainerModel {
    /// The first epoch from this one on that can be read: nothing of it was aggregated away.
    pub fn readable(&self, mut epoch: u64) -> u64 {
        while let Some((_, high)) = self.aggregated.iter().find(|(low, high)| (*low..*high).contains(&epoch))
        {
            epoch = *high;
        }
        epoch
    }

    /// Whether aggregation may have dropped a punch that hides nothing, so that a read at `epoch` finds nothing at all.
    pub fn may_forget_punches(&self, epoch: u64) -> bool {
        self.aggregated.iter().any(|(_, high)| *high <= epoch)
    }
}

/// One epoch of which a snapshot was asked for.
#[derive(Clone, Copy, Default)]
pub struct SnapshotModel {
    /// It was acknowledged.
    pub taken: bool,
    /// Somebody has begun to give it up.
    pub given_up: bool,
}

/// One handle.
pub struct HandleModel {
    /// Its container, by its place in the model.
    pub container: usize,
    /// Its HCE.
    pub hce: u64,
    /// Its LHE; `u64::MAX` if it holds nothing.
    pub lhe: u64,
    /// Its LRE.
    pub lre: u64,
    /// The life of the engine in which it last had nothing to lose.
    pub clean_since: u64,
    /// Its user knows that it is gone, or is gone itself.
    pub dead: bool,
    /// A close or an eviction of it was acknowledged.
    pub revoked: bool,
    /// A close or an eviction of it has begun.
    pub threatened: bool,
    /// Its commit under way.
    pub commit: Option<CommitKey>,
    /// Media failed while its LHE was changed: the next answer tells what it is.
    pub unsure: bool,
}

/// A commit of one or more handles.
struct Commit {
    parts: Vec<(HandleKey, u64)>,
    done: Option<bool>,
}

/// What a caller knew when it asked.
#[derive(Clone, Copy)]
pub struct Before {
    hce_told: u64,
    revoked: bool,
    life: u64,
}

/// What ought to be stored.
pub struct Model {
    /// Containers.
    pub containers: Vec<ContainerModel>,
    /// Handles, dead ones too.
    pub handles: Vec<HandleModel>,
    /// Counts the lives of the engine.
    pub engine_life: u64,
    /// The engine's media fail, or have failed in this life of it.
    pub sick: bool,
    /// The last life of the engine of which that was so.
    sick_life: u64,
    /// What media hold was changed behind the engine's back.
    pub damaged: bool,
    /// Reads that were refused for that.
    pub refused_reads: u64,
    /// Passes of scrubbers, for the summary.
    pub scrub_passes: u64,
    /// Operations that ended well, for the summary.
    pub operations: u64,
    /// Values, extents and listings that were compared.
    pub comparisons: u64,
    commits: Vec<Commit>,
    changes: Change,
    issued_in: BTreeMap<Change, u64>,
    violation: Option<Violation>,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            containers: Vec::new(),
            handles: Vec::new(),
            engine_life: 1,
            sick: false,
            sick_life: 0,
            damaged: false,
            refused_reads: 0,
            scrub_passes: 0,
            operations: 0,
            comparisons: 0,
            commits: Vec::new(),
            changes: 0,
            issued_in: BTreeMap::new(),
            violation: None,
        }
    }
}

impl Model {
    /// Notes that a rule was broken. The first one counts.
    pub fn violate(&mut self, rule: Rule, story: impl Into<String>) {
        if self.violation.is_none() {
            self.violation = Some(Violation { rule, story: story.into() });
        }
    }

    /// What was broken first.
    pub fn violation(&self) -> Option<&Violation> {
        self.violation.as_ref()
    }

    /// A container was made.
    pub fn container_made(&mut self, uuid: Uuid) {
        self.containers.push(ContainerModel {
            uuid,
            objects: BTreeMap::new(),
            claims: BTreeSet::new(),
            hce_told: 0,
            snapshots: BTreeMap::new(),
            aggregated: Vec::new(),
            gone: BTreeMap::new(),
        });
    }

    /// A handle was opened.
    pub fn opened(&mut self, container: usize, before: Before, state: &EpochState) -> HandleKey {
        let key = self.handles.len();
        self.handles.push(HandleModel {
            container,
            hce: state.hce.0,
            lhe: state.lhe.0,
            lre: state.lre.0,
            clean_since: before.life,
            dead: false,
            revoked: false,
            threatened: false,
            commit: None,
            unsure: false,
        });
        self.told(key, before, state);
        key
    }

    /// To be asked before a handle of a container is opened.
    pub fn before_open(&self, container: usize) -> Before {
        Before { hce_told: self.containers[container].hce_told, revoked: false, life: self.engine_life }
    }

    /// To be asked before every operation through a handle.
    pub fn before(&self, handle: HandleKey) -> Before {
        let known = &self.handles[handle];
        Before { revoked: known.revoked, ..self.before_open(known.container) }
    }

    /// An operation through a handle succeeded.
    pub fn succeeded(&mut self, handle: HandleKey, before: Before) {
        self.operations += 1;
        if before.revoked {
            let story =
                format!("handle {handle} was closed or evicted, and an operation begun later succeeded");
            self.violate(Rule::Revocation, story);
        }
    }

    /// The service told a handle's epochs.
    pub fn told(&mut self, handle: HandleKey, before: Before, state: &EpochState) {
        self.succeeded(handle, before);
        let (container, lhe) = (self.handles[handle].container, state.lhe.0);
        let hce = state.container_hce.0;
        let mut wrong = Vec::new();
        if hce < before.hce_told {
            wrong.push(format!("container HCE {hce} after {} was told", before.hce_told));
        }
        if lhe <= hce || lhe <= state.hce.0 {
            wrong.push("LHE is not above every HCE".to_owned());
        }
        let possible = self.claim_max(container);
        if hce > possible {
            wrong.push(format!("container HCE {hce}, but nobody can have committed more than {possible}"));
        }
        let known = &mut self.handles[handle];
        let in_commit = known.commit.and_then(|commit| {
            self.commits[commit].parts.iter().find(|(part, _)| *part == handle).map(|(_, epoch)| *epoch)
        });
        if state.hce.0 != known.hce && Some(state.hce.0) != in_commit {
            wrong.push(format!("handle HCE {}, but it has committed {}", state.hce, known.hce));
        }
        if state.lre.0 < known.lre || state.container_lre > state.lre {
            wrong.push(format!(
                "LRE {} after {}, container LRE {}",
                state.lre, known.lre, state.container_lre
            ));
        }
        if state.interrupted && known.clean_since == self.engine_life {
            wrong.push("interrupted, but the engine has not restarted since it was clean".to_owned());
        }
        known.lre = known.lre.max(state.lre.0);
        if std::mem::take(&mut known.unsure) {
            known.lhe = lhe;
        }
        let told = &mut self.containers[container].hce_told;
        *told = (*told).max(hce);
        if !wrong.is_empty() {
            self.violate(Rule::Epochs, format!("handle {handle}: {}: {state:?}", wrong.join("; ")));
        }
    }

    /// The highest epoch that anybody may have committed.
    fn claim_max(&self, container: usize) -> u64 {
        let sure = self.containers[container].claims.last().copied().unwrap_or(0);
        let doubtful =
            self.commits.iter().filter(|commit| commit.done.is_none()).flat_map(|commit| &commit.parts);
        let doubtful = doubtful.filter(|(handle, _)| self.handles[*handle].container == container);
        doubtful.map(|(_, epoch)| *epoch).fold(sure, u64::max)
    }

    /// A change begins. Returns its number, which decides its content.
    pub fn change(
        &mut self,
        handle: HandleKey,
        object: ObjectId,
        epoch: u64,
        cover: Cover,
        length: Option<usize>,
    ) -> Change {
        self.changes += 1;
        let change = self.changes;
        let standing = Standing::Doubtful;
        let version = Version { change, epoch, handle, cover, length, standing, durable_since: None };
        self.container_of(handle).objects.entry(object).or_default().push(version);
        self.issued_in.insert(change, self.engine_life);
        change
    }

    /// A change was acknowledged.
    pub fn changed(
        &mut self,
        handle: HandleKey,
        before: Before,
        object: ObjectId,
        change: Change,
        durable: bool,
    ) {
        self.succeeded(handle, before);
        let life = self.engine_life;
        let same_life = self.issued_in.remove(&change) == Some(life);
        let versions = self.container_of(handle).objects.entry(object).or_default();
        let version = versions.iter_mut().find(|version| version.change == change);
        if let Some(version) = version
            && version.standing == Standing::Doubtful
        {
            version.standing = match (durable, same_life) {
                (true, _) => {
                    version.durable_since = Some(life);
                    Standing::Durable
                }
                (false, true) => Standing::Visible,
                // The answer may be that of the life that was lost.
                (false, false) => Standing::Doubtful,
            };
        }
    }

    /// Whether a change of a handle that can still be used is in doubt: it must not be committed.
    pub fn in_doubt(&self, handle: HandleKey) -> bool {
        let of_handle = |version: &Version| version.handle == handle;
        let objects = self.containers[self.handles[handle].container].objects.values();
        objects.flatten().any(|version| of_handle(version) && version.standing == Standing::Doubtful)
    }

    /// A flush begins: what it has to make durable.
    pub fn flush(&self, handle: HandleKey, epoch: u64) -> BTreeSet<Change> {
        let objects = self.containers[self.handles[handle].container].objects.values();
        let covered = |version: &&Version| {
            version.handle == handle && version.epoch <= epoch && version.standing == Standing::Visible
        };
        objects.flatten().filter(covered).map(|version| version.change).collect()
    }

    /// A flush was acknowledged.
    pub fn flushed(&mut self, handle: HandleKey, changes: &BTreeSet<Change>) {
        let life = self.engine_life;
        self.each_of(handle, |version| {
            if changes.contains(&version.change)
                && matches!(version.standing, Standing::Visible | Standing::Doubtful)
            {
                version.standing = Standing::Durable;
                version.durable_since.get_or_insert(life);
            }
            true
        });
    }

    /// A discard, or a hold that gives something up, begins: what it takes away is in doubt until it is acknowledged.
    pub fn discard(&mut self, handle: HandleKey, range: EpochRange) {
        self.each_of(handle, |version| {
            if range.contains(Epoch(version.epoch)) && version.standing != Standing::Committed {
                version.standing = Standing::Doubtful;
            }
            true
        });
    }

    /// A discard was acknowledged.
    pub fn discarded(&mut self, handle: HandleKey, before: Before, range: EpochRange) {
        self.each_of(handle, |version| {
            !range.contains(Epoch(version.epoch)) || version.standing == Standing::Committed
        });
        if range.low.0 <= self.handles[handle].hce + 1 && range.high >= Epoch(u64::MAX - 2) {
            self.handles[handle].clean_since = before.life;
        }
    }

    /// A hold was acknowledged.
    pub fn held(&mut self, handle: HandleKey, before: Before, lhe: u64) {
        if lhe > 0 {
            let gone = EpochRange { low: Epoch::ZERO, high: Epoch(lhe - 1) };
            self.each_of(handle, |version| {
                !gone.contains(Epoch(version.epoch)) || version.standing == Standing::Committed
            });
        }
        if self.handles[handle].lhe == u64::MAX || lhe == u64::MAX {
            self.handles[handle].clean_since = before.life;
        }
        self.handles[handle].lhe = lhe;
    }

    /// A commit begins. Everything up to the epoch has been flushed.
    pub fn commit(&mut self, parts: &[(HandleKey, u64)]) -> CommitKey {
        let key = self.commits.len();
        for (handle, epoch) in parts {
            let (lhe, container) = (self.handles[*handle].lhe, self.handles[*handle].container);
            let told = self.containers[container].hce_told;
            if told >= lhe && !self.handles[*handle].revoked && lhe <= *epoch {
                // Only a violation if the commit succeeds: the handle may have been evicted meanwhile.
                self.handles[*handle].lhe = 0;
            }
            self.handles[*handle].commit = Some(key);
        }
        self.commits.push(Commit { parts: parts.to_vec(), done: None });
        key
    }

    /// The commit of a handle that is under way, and its epoch.
    pub fn commit_under_way(&self, handle: HandleKey) -> Option<(CommitKey, u64)> {
        let commit = self.handles[handle].commit?;
        let parts = &self.commits[commit].parts;
        parts.iter().find(|(part, _)| *part == handle).map(|(_, epoch)| (commit, *epoch))
    }

    /// What became of a commit is known.
    pub fn committed(&mut self, commit: CommitKey, done: bool) {
        if self.commits[commit].done.is_some() {
            return;
        }
        self.commits[commit].done = Some(done);
        let life = self.engine_life;
        for (handle, epoch) in self.commits[commit].parts.clone() {
            self.handles[handle].commit = None;
            let dead = self.handles[handle].dead;
            if !done {
                self.handles[handle].unsure = true;
                self.each_of(
                    handle,
                    |version| !matches!(version.standing, Standing::InCommit(key) if key == commit),
                );
                continue;
            }
            let mut unflushed = None;
            self.each_of(handle, |version| {
                let abandoned = matches!(version.standing, Standing::Abandoned);
                if version.epoch <= epoch && !abandoned && version.standing != Standing::Committed {
                    if matches!(version.standing, Standing::Doubtful | Standing::Visible) {
                        unflushed = Some(version.change);
                    }
                    version.standing = Standing::Committed;
                    version.durable_since.get_or_insert(life);
                }
                true
            });
            assert!(
                unflushed.is_none(),
                "the workload commits what it has flushed, not change {unflushed:?}"
            );
            let container = self.handles[handle].container;
            self.containers[container].claims.insert(epoch);
            let known = &mut self.handles[handle];
            if known.lhe == 0 && !dead {
                let story = format!("handle {handle}: the container's HCE passed its LHE while it held it");
                self.violate(Rule::Epochs, story);
            }
            let known = &mut self.handles[handle];
            known.hce = known.hce.max(epoch);
            known.lhe = epoch + 1;
        }
    }

    /// The user of a handle is dead, or knows that the handle is gone. What it had not committed will go.
    pub fn died(&mut self, handle: HandleKey) {
        if self.handles[handle].dead {
            return;
        }
        self.handles[handle].dead = true;
        let up_to = self.commit_under_way(handle);
        self.each_of(handle, |version| {
            if version.standing != Standing::Committed {
                version.standing = match up_to {
                    Some((key, epoch)) if version.epoch <= epoch => Standing::InCommit(key),
                    _ => Standing::Abandoned,
                };
            }
            true
        });
    }

    /// A close or eviction of a handle was acknowledged: what it had not committed is gone.
    pub fn revoked(&mut self, handle: HandleKey) {
        self.died(handle);
        self.handles[handle].revoked = true;
        self.each_of(handle, |version| version.standing != Standing::Abandoned);
    }

    /// Nobody but who asks has the container open, and its HCE is this: commits in doubt are settled as far as it tells.
    pub fn at_rest(&mut self, container: usize, hce: u64) {
        for handle in 0..self.handles.len() {
            if self.handles[handle].container == container && self.handles[handle].dead {
                self.each_of(handle, |version| version.standing != Standing::Abandoned);
            }
        }
        let possible = self.claim_max(container);
        let sure = self.containers[container].claims.last().copied().unwrap_or(0);
        if hce < sure || hce > possible {
            let story =
                format!("container {container} is at rest with HCE {hce}; committed: {sure} to {possible}");
            self.violate(Rule::Epochs, story);
        }
        for key in 0..self.commits.len() {
            let beyond = self.commits[key]
                .parts
                .iter()
                .any(|(handle, epoch)| self.handles[*handle].container == container && *epoch > hce);
            if beyond && self.commits[key].done.is_none() {
                self.committed(key, false);
            }
        }
    }

    /// The engine has crashed: what was not durable is in doubt.
    pub fn crashed(&mut self) {
        if self.sick {
            self.sick_life = self.engine_life;
        }
        self.engine_life += 1;
        for container in &mut self.containers {
            for version in container.objects.values_mut().flatten() {
                if version.standing == Standing::Visible {
                    version.standing = Standing::Doubtful;
                }
            }
        }
    }

    /// Media begin to fail, or have failed in this life of the engine.
    pub fn sicken(&mut self) {
        self.sick = true;
        self.sick_life = self.engine_life;
    }

    /// Whether an answer that media have failed may come now: it may have been given by the life before.
    pub fn may_be_sick(&self) -> bool {
        self.sick || self.engine_life <= self.sick_life + 1
    }

    fn container_of(&mut self, handle: HandleKey) -> &mut ContainerModel {
        &mut self.containers[self.handles[handle].container]
    }

    /// Goes over all changes of a handle; keeps those for which `keep` says so.
    fn each_of(&mut self, handle: HandleKey, mut keep: impl FnMut(&mut Version) -> bool) {
        let ContainerModel { objects, gone, .. } = self.container_of(handle);
        for (object, versions) in objects {
            versions.retain_mut(|version| {
                let kept = version.handle != handle || keep(version);
                if let (false, Some(length)) = (kept, version.length) {
                    gone.entry(*object).or_default().push((version.change, length));
                }
                kept
            });
        }
    }
}
