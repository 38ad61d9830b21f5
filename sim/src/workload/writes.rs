//! Transactions: hold, change, flush, commit or discard.

use daos_dsr::client::{Array, Document, DsrError, Kv};
use daos_types::{Epoch, EpochRange, ObjectType};
use daos_xstream::{IoBuffer, join_all};

use super::{Session, Trouble};
use crate::{
    model::{CommitKey, Cover, SnapshotModel, content},
    objects::{Part, RANGE_BYTES, RANGES},
    violation::Rule,
};

/// One change, decided but not made.
struct Deed {
    part: Part,
    cover: Cover,
    length: Option<usize>,
    /// To be acknowledged only when it survives any crash.
    durable: bool,
}

impl Session {
    /// A few transactions.
    pub async fn work(&self) -> Result<(), Trouble> {
        for _ in 0..=self.client.roll(3) {
            match self.transaction().await {
                Ok(()) => {}
                Err(Trouble::Undo | Trouble::Sick) => {
                    if self.client.roll(2) == 0 {
                        // What was durable must still be there.
                        match self.read_own(1 << 40).await {
                            Ok(()) | Err(Trouble::Undo | Trouble::Sick) => {}
                            Err(Trouble::Gone) => return Err(Trouble::Gone),
                        }
                    }
                    self.undo().await?;
                }
                Err(Trouble::Gone) => return Err(Trouble::Gone),
            }
        }
        if self.client.roll(4) == 0 {
            self.hold(Epoch::MAX).await?;
        }
        Ok(())
    }

    pub async fn hold(&self, epoch: Epoch) -> Result<u64, Trouble> {
        if epoch > Epoch::ZERO {
            let given_up = EpochRange { low: Epoch::ZERO, high: Epoch(epoch.0 - 1) };
            self.client.shared.model.borrow_mut().discard(self.key, given_up);
        }
        let held = self.control(format!("hold {epoch}"), self.handle.hold(epoch), |model, before, state| {
            model.held(self.key, before, state.lhe.0);
        });
        Ok(held.await?.lhe.0)
    }

    async fn transaction(&self) -> Result<(), Trouble> {
        let client = &self.client;
        let mut held = self.client.shared.model.borrow().handles[self.key].lhe;
        if held == u64::MAX || client.roll(4) == 0 {
            let above = if held == u64::MAX { 0 } else { held + client.roll(4) };
            held = self.hold(Epoch(above)).await?;
        }
        for _ in 0..=client.roll(4) {
            client.think().await;
            let epoch = held + client.roll(3);
            self.changes(epoch).await?;
            match client.roll(6) {
                0 => self.read_own(held + 3).await?,
                1 => self.read_committed().await?,
                _ => {}
            }
        }
        let target = held + client.roll(4);
        match client.roll(10) {
            0 => {
                let low = held + client.roll(3);
                self.discard(EpochRange { low: Epoch(low), high: Epoch(low + client.roll(3)) }).await?;
                self.read_own(held + 6).await
            }
            1 => self.undo().await,
            2 => Ok(()),
            _ => self.commit(target).await,
        }
    }

    /// A few changes at once, of different objects.
    pub async fn changes(&self, epoch: u64) -> Result<(), Trouble> {
        let mut parts = self.client.parts();
        let mut deeds = Vec::new();
        for _ in 0..=self.client.roll(3) {
            let part = parts.remove(self.client.roll(parts.len() as u64) as usize);
            deeds.push(self.decide(part));
        }
        let results = join_all(deeds.into_iter().map(|deed| self.change(epoch, deed))).await;
        results.into_iter().try_for_each(|result| result)
    }

    fn decide(&self, part: Part) -> Deed {
        let client = &self.client;
        let object_type = part.object.object_type();
        let durable = client.roll(5) == 0;
        if part.own && client.roll(25) == 0 {
            return Deed { part, cover: Cover::Object, length: None, durable };
        }
        let punch = client.roll(5) == 0;
        if object_type == ObjectType::Array {
            let start = RANGES[client.roll(2) as usize] + client.roll(RANGE_BYTES / 2);
            let longest = if client.roll(3) == 0 { RANGE_BYTES / 2 } else { 500 };
            let length = 1 + client.roll(longest);
            let cover = Cover::Extent(start..start + length);
            return Deed { part, cover, length: (!punch).then_some(length as usize), durable };
        }
        let first = client.roll(part.keys.len() as u64) as usize;
        let (dkey, _) = &part.keys[first];
        if object_type == ObjectType::Document && punch && client.roll(3) == 0 {
            let cover = Cover::Dkey(dkey.clone());
            return Deed { part, cover, length: None, durable };
        }
        let same_dkey = part.keys.iter().filter(|(other, _)| other == dkey);
        let count = 1 + client.roll(3) as usize;
        let keys: Vec<_> = same_dkey.skip(client.roll(2) as usize).take(count).cloned().collect();
        let length = match client.roll(20) {
            0 => 18_000 + client.roll(4_000),
            1..=3 => 1_000 + client.roll(4_000),
            _ => 8 + client.roll(100),
        };
        Deed { part, cover: Cover::Keys(keys), length: (!punch).then_some(length as usize), durable }
    }

    async fn change(&self, epoch: u64, deed: Deed) -> Result<(), Trouble> {
        let Deed { part, cover, length, durable } = deed;
        let (change, before) = {
            let mut model = self.client.shared.model.borrow_mut();
            let change = model.change(self.key, part.object, epoch, cover.clone(), length);
            (change, model.before(self.key))
        };
        self.client.log(|| {
            let object = part.object;
            let durable = if durable { ", durable" } else { "" };
            format!(
                "handle {} begins {change} of {object} at {epoch}: {cover:?} {length:?}{durable}",
                self.key
            )
        });
        let result = self.issue(Epoch(epoch), &part, &cover, length, (change, durable)).await;
        match result {
            Ok(()) => {
                self.client.log(|| format!("handle {} has done {change}", self.key));
                let mut model = self.client.shared.model.borrow_mut();
                model.changed(self.key, before, part.object, change, durable);
                Ok(())
            }
            Err(error) => Err(self.dsr_trouble(&format!("change {change} at epoch {epoch}"), &error)),
        }
    }

    async fn issue(
        &self,
        epoch: Epoch,
        part: &Part,
        cover: &Cover,
        length: Option<usize>,
        (change, durable): (u64, bool),
    ) -> Result<(), DsrError> {
        let (targets, object) = (if durable { &self.durable } else { &self.targets }, part.object);
        let value = length.map(|length| match cover {
            Cover::Extent(range) => content(change, range.start, length),
            _ => content(change, 0, length),
        });
        match object.object_type() {
            ObjectType::KeyValue => {
                let kv = Kv::open(targets, object)?;
                match (cover, &value) {
                    (Cover::Keys(keys), Some(value)) => {
                        let records: Vec<(&[u8], &[u8])> =
                            keys.iter().map(|(_, key)| (key.as_slice(), value.as_slice())).collect();
                        kv.put_all(epoch, &records).await
                    }
                    (Cover::Keys(keys), None) => {
                        let keys: Vec<&[u8]> = keys.iter().map(|(_, key)| key.as_slice()).collect();
                        kv.remove(epoch, &keys).await
                    }
                    _ => kv.punch(epoch).await,
                }
            }
            ObjectType::Array => {
                let array = Array::open(targets, object)?;
                match (cover, value) {
                    (Cover::Extent(range), Some(value)) => {
                        array.write(epoch, range.start, IoBuffer::copy_of(&value)).await.1
                    }
                    (Cover::Extent(range), None) => array.punch_range(epoch, range.start, range.end).await,
                    _ => array.punch(epoch).await,
                }
            }
            ObjectType::Document => {
                let document = Document::open(targets, object)?;
                match (cover, &value) {
                    (Cover::Keys(keys), Some(value)) => {
                        let records: Vec<(&[u8], &[u8])> =
                            keys.iter().map(|(_, key)| (key.as_slice(), value.as_slice())).collect();
                        document.update(epoch, &keys[0].0, &records).await
                    }
                    (Cover::Keys(keys), None) => {
                        let akeys: Vec<&[u8]> = keys.iter().map(|(_, key)| key.as_slice()).collect();
                        document.remove(epoch, &keys[0].0, &akeys).await
                    }
                    (Cover::Dkey(dkey), _) => document.remove_dkey(epoch, dkey).await,
                    _ => document.punch(epoch).await,
                }
            }
        }
    }

    /// Flushes what is to be committed. Nothing of it may be in doubt.
    pub async fn flush(&self, epoch: u64) -> Result<(), Trouble> {
        if self.client.shared.model.borrow().in_doubt(self.key) {
            return Err(Trouble::Undo);
        }
        let flushing = self.client.shared.model.borrow().flush(self.key, epoch);
        let flushed =
            self.control(format!("flush {epoch}"), self.handle.flush(Epoch(epoch)), |model, _, _| {
                model.flushed(self.key, &flushing);
            });
        flushed.await.map(drop)
    }

    async fn commit(&self, epoch: u64) -> Result<(), Trouble> {
        let client = &self.client;
        self.flush(epoch).await?;
        if client.roll(12) == 0 {
            return self.read_own(epoch + 3).await;
        }
        let commit = client.shared.model.borrow_mut().commit(&[(self.key, epoch)]);
        let done =
            self.control(format!("commit {epoch}"), self.handle.commit(Epoch(epoch)), |model, _, _| {
                model.committed(commit, true);
            });
        match done.await {
            Ok(state) if state.hce.0 < epoch => {
                let story = format!("handle {} committed {epoch}, and is told {state:?}", self.key);
                client.shared.model.borrow_mut().violate(Rule::Epochs, story);
            }
            Ok(_) => {}
            Err(Trouble::Gone) => return Err(Trouble::Gone),
            Err(Trouble::Sick) => {
                self.learn_fate(commit, epoch).await?;
                return Err(Trouble::Undo);
            }
            Err(Trouble::Undo) => {
                // The engine answered, and so says that it has not been done.
                client.shared.model.borrow_mut().committed(commit, false);
                return Err(Trouble::Undo);
            }
        }
        if client.roll(4) == 0 {
            let waited = self.control(format!("wait {epoch}"), self.handle.wait(Epoch(epoch)), |_, _, _| {});
            let state = waited.await?;
            if state.container_hce.0 < epoch {
                let story = format!("handle {} waited for {epoch}, and is told {state:?}", self.key);
                client.shared.model.borrow_mut().violate(Rule::Epochs, story);
            }
        }
        match client.roll(6) {
            0 => self.snapshot().await,
            1 => self.slip().await,
            2 | 3 => self.read_committed().await,
            _ => Ok(()),
        }
    }

    /// Asks what became of a commit that was neither acknowledged nor refused.
    pub async fn learn_fate(&self, commit: CommitKey, epoch: u64) -> Result<(), Trouble> {
        loop {
            self.client.recovery().await;
            let asked = self.control("query", self.handle.epoch_query(), |model, _, state| {
                model.committed(commit, state.hce.0 >= epoch);
            });
            match asked.await {
                Ok(_) => return Ok(()),
                Err(Trouble::Sick) => {}
                Err(trouble) => return Err(trouble),
            }
        }
    }

    async fn slip(&self) -> Result<(), Trouble> {
        let state = self.control("query", self.handle.epoch_query(), |_, _, _| {}).await?;
        let span = state.container_hce.0.saturating_sub(state.lre.0) + 1;
        let epoch = state.lre.0 + self.client.roll(span);
        let slipped = self.control(format!("slip {epoch}"), self.handle.slip(Epoch(epoch)), |_, _, _| {});
        slipped.await.map(drop)
    }

    /// Takes a snapshot, or gives one up; then looks at the list.
    async fn snapshot(&self) -> Result<(), Trouble> {
        let (client, container) = (&self.client, self.container);
        let state = self.control("query", self.handle.epoch_query(), |_, _, _| {}).await?;
        if state.container_hce.0 == 0 {
            return Ok(());
        }
        let known: Vec<u64> =
            client.shared.model.borrow().containers[container].snapshots.keys().copied().collect();
        let snapshot = |epoch: u64, change: &dyn Fn(&mut SnapshotModel)| {
            let mut model = client.shared.model.borrow_mut();
            change(model.containers[container].snapshots.entry(epoch).or_default());
        };
        if client.roll(3) == 0 && !known.is_empty() {
            let epoch = known[client.roll(known.len() as u64) as usize];
            snapshot(epoch, &|snapshot| snapshot.given_up = true);
            let destroyed = self.handle.snapshot_destroy(Epoch(epoch));
            self.control(format!("destroy snapshot {epoch}"), destroyed, |_, _, _| {}).await?;
        } else {
            let epoch = state.container_hce.0;
            snapshot(epoch, &|_| {});
            let taken = self.handle.snapshot_create(Epoch(epoch));
            self.control(format!("snapshot {epoch}"), taken, |_, _, _| {}).await?;
            snapshot(epoch, &|snapshot| snapshot.taken = true);
        }
        Ok(())
    }
}
