//! The epochs of one container: who has committed, holds and reads what. Sans-IO; the container service keeps it on
//! media, and tells the targets.
//!
//! # Invariants
//!
//! * The container's highest committed epoch (HCE) never goes down, and no epoch at or below it can be held: a committed
//!   epoch is immutable.
//! * A handle's lowest held epoch (LHE) is above the handle's own HCE and above the container's.
//! * The container's HCE is below every LHE: nothing is committed that a handle may still write.
//! * What is committed was flushed, and not written again since: a write to an epoch that its handle has flushed is told
//!   to this state machine before it is made ([`ContainerEpochs::rewritten`]), and takes the flush back.
//! * What is being discarded is not committed: meanwhile there is no flush and no commit of the handle, and a flush from
//!   before counts no more. If the discard fails the handle is interrupted, for the epochs may be half there.
//! * What a handle wrote and did not commit is named by [`EpochRange`]s that the state machine hands out to be discarded,
//!   before the handle or its hold disappears.
//!
//! # Decisions where the rules leave room
//!
//! * What a handle has committed counts for the container's HCE also after the handle is closed; otherwise an epoch that
//!   was committed while another handle held a lower one would be neither committed nor discarded.
//! * `hold` with an epoch above the present hold gives up the epochs between: what was written in them is discarded. A
//!   hold at [`Epoch::MAX`] gives up everything.
//! * After a restart of the service, nobody knows whether a handle that held an epoch had written something that no
//!   flush had reached. Such a handle is **interrupted**: flush and commit are refused until its uncommitted epochs are
//!   discarded and can be written again. Otherwise an epoch could be committed of which a part was lost.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound::{Excluded, Unbounded},
};

use daos_types::{Cookie, Epoch, EpochRange};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

#[cfg(test)]
mod tests;

/// The last epoch that can be written and committed.
pub const EPOCH_LAST: Epoch = Epoch(u64::MAX - 2);

/// Epochs of one handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandleEpochs {
    /// The tag of everything that the handle writes.
    pub cookie: Cookie,
    /// Highest epoch that this handle has committed; at the beginning, the container's HCE.
    pub hce: Epoch,
    /// Lowest epoch that it holds, and so may write; `None` if it holds nothing.
    pub lhe: Option<Epoch>,
    /// Lowest epoch that it may still want to read.
    pub lre: Epoch,
    /// Everything it wrote up to here is durable. Not stored: a restart makes it unknown.
    #[serde(skip)]
    pub flushed: Epoch,
    /// How often a flush was taken back by a write that came after it. Not stored: it is only compared with itself.
    #[serde(skip)]
    pub rewrites: u64,
    /// A restart may have lost some of what it wrote and did not commit. Not stored: it follows from a restart.
    #[serde(skip)]
    pub interrupted: bool,
    /// A discard of some of it is under way. Not stored: it is not under way after a restart.
    #[serde(skip)]
    pub discarding: bool,
}

/// The epochs of a container as one handle sees them; travels in replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochState {
    /// The handle's highest committed epoch.
    pub hce: Epoch,
    /// The handle's lowest held epoch, [`Epoch::MAX`] if it holds nothing.
    pub lhe: Epoch,
    /// The handle's lowest referenced epoch.
    pub lre: Epoch,
    /// The container's highest committed epoch.
    pub container_hce: Epoch,
    /// The container's lowest referenced epoch.
    pub container_lre: Epoch,
    /// Whether uncommitted writes of the handle may be lost: see [`ContainerEpochs::commit`].
    pub interrupted: bool,
}

/// The part of a container's epochs that does not belong to a handle; a record of the metadata store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ContainerHce {
    /// Highest committed epoch.
    pub hce: Epoch,
    /// Highest epoch that any handle, open or not, has committed.
    pub claimed: Epoch,
}

/// The epochs of one container.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ContainerEpochs {
    state: ContainerHce,
    handles: BTreeMap<Uuid, HandleEpochs>,
    snapshots: BTreeSet<Epoch>,
    /// (LHE, handle) of the handles that hold something: the least is found without looking at all handles.
    holds: BTreeSet<(Epoch, Uuid)>,
    /// (LRE, handle) of all handles.
    references: BTreeSet<(Epoch, Uuid)>,
}

/// What [`ContainerEpochs::restore`] needs to take back a change of one handle.
#[derive(Clone, Copy, Debug)]
pub struct Before {
    handle: Uuid,
    epochs: Option<HandleEpochs>,
    state: ContainerHce,
}

/// A flush that is under way.
#[derive(Clone, Copy, Debug)]
pub struct FlushBegun {
    epoch: Epoch,
    rewrites: u64,
}

/// Why something about epochs was refused. Nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EpochError {
    /// The container has no such handle. A retry cannot help: open again.
    #[error("the handle is not open")]
    BadHandle,
    /// The epoch is not held. A retry helps after a hold.
    #[error("epoch {epoch} is not held: the lowest held epoch is {lhe}")]
    NotHeld {
        /// The epoch asked for.
        epoch: Epoch,
        /// The lowest held epoch; [`Epoch::MAX`] if nothing is held.
        lhe: Epoch,
    },
    /// Writes up to the epoch have not been flushed, or something was written after the flush. A retry helps after a
    /// flush.
    #[error("epoch {epoch} is not flushed since it was last written: flush it, then commit")]
    NotFlushed {
        /// The epoch asked for.
        epoch: Epoch,
    },
    /// The epoch is committed by this handle, and so is immutable. Write in a later one.
    #[error("epoch {epoch} is committed and cannot be written any more: write in {next} or later")]
    Committed {
        /// The epoch asked for.
        epoch: Epoch,
        /// The first that can be written.
        next: Epoch,
    },
    /// The engine has restarted, or a discard has failed, and writes of uncommitted epochs may be lost. Discard all of
    /// them and write them again.
    #[error("writes may be lost: uncommitted epochs must be discarded and written again")]
    Interrupted,
    /// Another request is discarding what the handle has written. A retry helps.
    #[error("what the handle has written is being discarded")]
    Discarding,
    /// The epoch cannot be used for this. A retry cannot help.
    #[error("epoch {epoch} is out of range: {low} to {high} would do")]
    OutOfRange {
        /// The epoch asked for.
        epoch: Epoch,
        /// The lowest that would do.
        low: Epoch,
        /// The highest that would do.
        high: Epoch,
    },
}

impl ContainerEpochs {
    /// The epochs of a container as its records tell after a restart. Handles that hold something are interrupted.
    pub fn load(
        state: ContainerHce,
        handles: impl IntoIterator<Item = (Uuid, HandleEpochs)>,
        snapshots: impl IntoIterator<Item = Epoch>,
    ) -> Self {
        let mut epochs = Self { state, snapshots: snapshots.into_iter().collect(), ..Self::default() };
        for (handle, mut record) in handles {
            record.flushed = record.hce;
            record.interrupted = record.lhe.is_some();
            epochs.replace(handle, Some(record));
        }
        epochs
    }

    /// The record of the container itself.
    pub fn record(&self) -> ContainerHce {
        self.state
    }

    /// The record of a handle.
    pub fn handle(&self, handle: Uuid) -> Result<&HandleEpochs, EpochError> {
        self.handles.get(&handle).ok_or(EpochError::BadHandle)
    }

    /// The open handles.
    pub fn handles(&self) -> impl Iterator<Item = (Uuid, &HandleEpochs)> {
        self.handles.iter().map(|(handle, record)| (*handle, record))
    }

    /// Highest committed epoch of the container.
    pub fn hce(&self) -> Epoch {
        self.state.hce
    }

    /// Lowest referenced epoch of the container: the least of its handles, or the HCE if nobody has it open.
    pub fn lre(&self) -> Epoch {
        self.references.first().map_or(self.state.hce, |(lre, _)| *lre)
    }

    /// The container's snapshots, oldest first.
    pub fn snapshots(&self) -> impl Iterator<Item = Epoch> {
        self.snapshots.iter().copied()
    }

    /// The container's snapshots after `after`, oldest first; all of them without it.
    pub fn snapshots_after(&self, after: Option<Epoch>) -> impl Iterator<Item = Epoch> {
        self.snapshots.range((after.map_or(Unbounded, Excluded), Unbounded)).copied()
    }

    /// What `handle` sees.
    pub fn query(&self, handle: Uuid) -> Result<EpochState, EpochError> {
        let record = self.handle(handle)?;
        Ok(EpochState {
            hce: record.hce,
            lhe: record.lhe.unwrap_or(Epoch::MAX),
            lre: record.lre,
            container_hce: self.hce(),
            container_lre: self.lre(),
            interrupted: record.interrupted,
        })
    }

    /// Everything of `handle` that is not committed.
    pub fn uncommitted(&self, handle: Uuid) -> Result<EpochRange, EpochError> {
        Ok(EpochRange { low: self.handle(handle)?.hce.next(), high: Epoch::MAX })
    }

    /// Remembers a handle, so that a change to it can be taken back if it cannot be stored.
    pub fn before(&self, handle: Uuid) -> Before {
        Before { handle, epochs: self.handles.get(&handle).copied(), state: self.state }
    }

    /// Takes back what happened to one handle since `before`.
    pub fn restore(&mut self, before: Before) {
        self.replace(before.handle, before.epochs);
        self.state = before.state;
    }

    /// Opens a handle. Opening it again changes nothing.
    pub fn open(&mut self, handle: Uuid, cookie: Cookie) {
        if !self.handles.contains_key(&handle) {
            let hce = self.state.hce;
            let record = HandleEpochs {
                cookie,
                hce,
                lhe: None,
                lre: hce,
                flushed: hce,
                rewrites: 0,
                interrupted: false,
                discarding: false,
            };
            self.replace(handle, Some(record));
        }
    }

    /// Closes a handle, after everything [`uncommitted`](Self::uncommitted) of it was discarded. Closing one that is not
    /// open changes nothing.
    pub fn close(&mut self, handle: Uuid) {
        self.replace(handle, None);
        self.advance();
    }

    /// What a [`hold`](Self::hold) of `epoch` will give up and must be discarded before.
    pub fn given_up_by_hold(&self, handle: Uuid, epoch: Epoch) -> Result<Option<EpochRange>, EpochError> {
        let record = self.undisturbed(handle)?;
        let held_from = match record.lhe {
            Some(lhe) => lhe,
            None => return Ok(None),
        };
        let range = match self.lhe_after_hold(record, epoch)? {
            Some(lhe) if lhe > held_from => EpochRange { low: held_from, high: Epoch(lhe.0 - 1) },
            Some(_) => return Ok(None),
            None => EpochRange { low: held_from, high: Epoch::MAX },
        };
        Ok(Some(range))
    }

    /// Holds `epoch` and all above, as far as they are not committed: LHE = max(epoch, HCE + 1). Returns the LHE;
    /// [`Epoch::MAX`] asks for holding nothing and is returned for it.
    pub fn hold(&mut self, handle: Uuid, epoch: Epoch) -> Result<Epoch, EpochError> {
        let mut record = *self.undisturbed(handle)?;
        record.lhe = self.lhe_after_hold(&record, epoch)?;
        if record.lhe.is_none() {
            record.interrupted = false;
        }
        self.replace(handle, Some(record));
        self.advance();
        Ok(record.lhe.unwrap_or(Epoch::MAX))
    }

    /// Begins a flush up to `epoch`; what it returns is wanted when the flush has ended.
    pub fn begin_flush(&self, handle: Uuid, epoch: Epoch) -> Result<FlushBegun, EpochError> {
        let record = self.undisturbed(handle)?;
        // What is committed is flushed, also if a restart has interrupted what came after.
        if record.interrupted && epoch > record.hce {
            return Err(EpochError::Interrupted);
        }
        Ok(FlushBegun { epoch, rewrites: record.rewrites })
    }

    /// Notes that every write of `handle` from before the flush began is durable on all targets. A write to a flushed epoch
    /// that came meanwhile may have missed it: then another flush is needed before a commit.
    pub fn flushed(&mut self, handle: Uuid, begun: FlushBegun) -> Result<(), EpochError> {
        let FlushBegun { epoch, rewrites } = self.begin_flush(handle, begun.epoch)?;
        if let Some(record) = self.handles.get_mut(&handle)
            && rewrites == begun.rewrites
        {
            record.flushed = record.flushed.max(epoch);
        }
        Ok(())
    }

    /// Notes, before it is made, that `handle` writes at an epoch that it has flushed before.
    pub fn rewritten(&mut self, handle: Uuid, epoch: Epoch) -> Result<(), EpochError> {
        let record = self.handles.get_mut(&handle).ok_or(EpochError::BadHandle)?;
        if epoch <= record.hce {
            return Err(EpochError::Committed { epoch, next: record.lhe.unwrap_or(record.hce.next()) });
        }
        record.flushed = record.flushed.min(Epoch(epoch.0 - 1));
        record.rewrites += 1;
        Ok(())
    }

    /// Whether [`commit`](Self::commit) would succeed.
    pub fn may_commit(&self, handle: Uuid, epoch: Epoch) -> Result<(), EpochError> {
        let record = self.handle(handle)?;
        if epoch <= record.hce {
            return Ok(());
        }
        self.undisturbed(handle)?;
        if epoch > EPOCH_LAST {
            let low = record.lhe.unwrap_or(record.hce.next());
            return Err(EpochError::OutOfRange { epoch, low, high: EPOCH_LAST });
        }
        match record.lhe {
            Some(lhe) if lhe <= epoch => {}
            lhe => return Err(EpochError::NotHeld { epoch, lhe: lhe.unwrap_or(Epoch::MAX) }),
        }
        if record.interrupted {
            return Err(EpochError::Interrupted);
        }
        if record.flushed < epoch {
            return Err(EpochError::NotFlushed { epoch });
        }
        Ok(())
    }

    /// Commits everything that `handle` wrote up to `epoch`: needs LHE ≤ epoch, and flushed data. The handle's HCE becomes
    /// `epoch` and its LHE the one after; the container's HCE follows as far as other handles' holds allow. Committing what
    /// is committed changes nothing.
    pub fn commit(&mut self, handle: Uuid, epoch: Epoch) -> Result<(), EpochError> {
        self.may_commit(handle, epoch)?;
        let mut record = *self.handle(handle)?;
        if epoch > record.hce {
            record.hce = epoch;
            record.lhe = Some(epoch.next());
            self.state.claimed = self.state.claimed.max(epoch);
            self.replace(handle, Some(record));
            self.advance();
        }
        Ok(())
    }

    /// Begins a discard of what `handle` wrote in `range`, and returns the part of it that may be discarded: nothing that
    /// it has committed. It ends with [`discarded`](Self::discarded) or [`discard_failed`](Self::discard_failed).
    pub fn begin_discard(&mut self, handle: Uuid, range: EpochRange) -> Result<EpochRange, EpochError> {
        let mut record = *self.undisturbed(handle)?;
        let range = EpochRange { low: range.low.max(record.hce.next()), high: range.high };
        // Nor does a flush count that is under way.
        record.flushed = record.flushed.min(Epoch(range.low.0 - 1));
        record.rewrites += 1;
        record.discarding = true;
        self.replace(handle, Some(record));
        Ok(range)
    }

    /// Notes that the writes of `handle` in `range` are gone from all targets.
    pub fn discarded(&mut self, handle: Uuid, range: EpochRange) -> Result<(), EpochError> {
        let record = self.handles.get_mut(&handle).ok_or(EpochError::BadHandle)?;
        record.discarding = false;
        if range.low <= record.hce.next() && range.high >= EPOCH_LAST {
            record.interrupted = false;
        }
        Ok(())
    }

    /// Notes that a discard has failed: its writes may be gone from some targets.
    pub fn discard_failed(&mut self, handle: Uuid) {
        if let Some(record) = self.handles.get_mut(&handle) {
            record.discarding = false;
            record.interrupted = true;
        }
    }

    /// The record of a handle of which nothing is being discarded.
    fn undisturbed(&self, handle: Uuid) -> Result<&HandleEpochs, EpochError> {
        match self.handle(handle)? {
            record if record.discarding => Err(EpochError::Discarding),
            record => Ok(record),
        }
    }

    /// Moves the handle's LRE forward to `epoch`, at most to the container's HCE, never back. Returns it.
    pub fn slip(&mut self, handle: Uuid, epoch: Epoch) -> Result<Epoch, EpochError> {
        let mut record = *self.handle(handle)?;
        record.lre = record.lre.max(epoch.min(self.state.hce));
        self.replace(handle, Some(record));
        Ok(record.lre)
    }

    /// Keeps `epoch` readable for good. Taking a snapshot again changes nothing.
    pub fn snapshot_create(&mut self, epoch: Epoch) -> Result<(), EpochError> {
        let (low, high) = (self.lre(), self.hce());
        if self.snapshots.contains(&epoch) {
            return Ok(());
        }
        if epoch < low || epoch > high {
            return Err(EpochError::OutOfRange { epoch, low, high });
        }
        self.snapshots.insert(epoch);
        Ok(())
    }

    /// Gives up a snapshot. Returns whether there was one.
    pub fn snapshot_destroy(&mut self, epoch: Epoch) -> bool {
        self.snapshots.remove(&epoch)
    }

    fn lhe_after_hold(&self, record: &HandleEpochs, epoch: Epoch) -> Result<Option<Epoch>, EpochError> {
        if epoch == Epoch::MAX {
            return Ok(None);
        }
        // A handle may have committed more than the container, while another handle holds a lower epoch.
        let low = self.state.hce.max(record.hce).next();
        let lhe = epoch.max(low);
        if lhe > EPOCH_LAST {
            return Err(EpochError::OutOfRange { epoch, low, high: EPOCH_LAST });
        }
        Ok(Some(lhe))
    }

    /// HCE := min( highest epoch that anybody committed, min(LHEs) − 1 ), never down.
    fn advance(&mut self) {
        let below_holds = self.holds.first().map_or(Epoch::MAX, |(lhe, _)| Epoch(lhe.0 - 1));
        self.state.hce = self.state.hce.max(self.state.claimed.min(below_holds));
    }

    fn replace(&mut self, handle: Uuid, record: Option<HandleEpochs>) {
        if let Some(old) = self.handles.remove(&handle) {
            self.references.remove(&(old.lre, handle));
            if let Some(lhe) = old.lhe {
                self.holds.remove(&(lhe, handle));
            }
        }
        if let Some(new) = record {
            self.references.insert((new.lre, handle));
            if let Some(lhe) = new.lhe {
                self.holds.insert((lhe, handle));
            }
            self.handles.insert(handle, new);
        }
    }
}
