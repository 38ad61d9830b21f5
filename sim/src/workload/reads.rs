//! Reads, compared with the model.

use daos_dsr::client::{Anchor, Array, Document, DsrError, Kv, enumerate_objects};
use daos_types::{Epoch, ObjectType};
use daos_xstream::{IoBuffer, rpc::Status};

use super::{Client, Session, Trouble};
use crate::{
    model::{Place, check::View},
    objects::{Part, RANGE_BYTES, RANGES, parts},
    violation::Rule,
};

impl Session {
    /// What a reader does.
    pub async fn read_for_a_while(&self) -> Result<(), Trouble> {
        for _ in 0..=self.client.roll(4) {
            self.client.think().await;
            self.read_committed().await?;
        }
        Ok(())
    }

    /// Reads objects of any client at a committed epoch.
    pub async fn read_committed(&self) -> Result<(), Trouble> {
        let state = self.control("query", self.handle.epoch_query(), |_, _, _| {}).await?;
        let span = state.container_hce.0.saturating_sub(state.lre.0) + 1;
        let epoch = match self.client.roll(2) {
            0 => state.container_hce.0,
            _ => state.lre.0 + self.client.roll(span),
        };
        let slot = self.client.roll(self.client.shared.slots.len() as u64) as usize;
        let all = parts(slot);
        let part = &all[self.client.roll(all.len() as u64) as usize];
        self.read(part, epoch, View::Committed).await
    }

    /// Reads what this handle has written and not committed.
    pub async fn read_own(&self, epoch: u64) -> Result<(), Trouble> {
        for part in &self.client.parts() {
            if self.client.roll(2) == 0 {
                self.read(part, epoch, View::Own(self.key)).await?;
            }
        }
        Ok(())
    }

    /// Reads all of a part at an epoch.
    pub async fn read(&self, part: &Part, epoch: u64, view: View) -> Result<(), Trouble> {
        let before = self.client.shared.model.borrow().before(self.key);
        let reading = self.client.shared.begin_read(self.container, epoch);
        let epoch = reading.epoch;
        self.client.log(|| format!("handle {} reads {} at {epoch} ({view:?})", self.key, part.object));
        match self.try_read(part, epoch, view).await {
            Ok(()) => {
                self.client.shared.model.borrow_mut().succeeded(self.key, before);
                Ok(())
            }
            Err(error) if self.is_damage(&error) => {
                self.client.log(|| format!("handle {} reads damage: {error}", self.key));
                self.client.shared.model.borrow_mut().refused_reads += 1;
                Ok(())
            }
            Err(error) => Err(self.dsr_trouble(&format!("read at epoch {epoch}"), &error)),
        }
    }

    /// Whether an error says that media no longer hold what was written, when that may be so.
    fn is_damage(&self, error: &DsrError) -> bool {
        let statuses = [Status::BAD_CHECKSUM.0, Status::MEDIA_FAILED.0];
        let damaged = self.client.shared.model.borrow().damaged;
        damaged && matches!(error, DsrError::Target { status, .. } if statuses.contains(status))
    }

    async fn try_read(&self, part: &Part, epoch: u64, view: View) -> Result<(), DsrError> {
        let (targets, object, container) = (&self.targets, part.object, self.container);
        let model = &self.client.shared.model;
        let at = Epoch(epoch);
        match object.object_type() {
            ObjectType::KeyValue => {
                let kv = Kv::open(targets, object)?;
                for (dkey, key) in &part.keys {
                    let found = kv.get(at, key).await?;
                    model.borrow_mut().read_value(container, object, (dkey, key), epoch, view, &found);
                }
                if view == View::Committed {
                    let listed = list(async |anchor| kv.list(at, &anchor, 5).await).await?;
                    let known = all_keys(&self.client, part, b"");
                    model.borrow_mut().listed(container, object, b"", &known, epoch, &listed);
                }
            }
            ObjectType::Document => {
                let document = Document::open(targets, object)?;
                let mut dkeys: Vec<&Vec<u8>> = part.keys.iter().map(|(dkey, _)| dkey).collect();
                dkeys.dedup();
                for dkey in dkeys {
                    let akeys = all_keys(&self.client, part, dkey);
                    let asked: Vec<&[u8]> = akeys.iter().map(Vec::as_slice).collect();
                    let found = document.fetch(at, dkey, &asked).await?;
                    for (akey, found) in akeys.iter().zip(&found) {
                        model.borrow_mut().read_value(container, object, (dkey, akey), epoch, view, found);
                    }
                    if view == View::Committed {
                        let listed =
                            list(async |anchor| document.list_akeys(at, dkey, &anchor, 2).await).await?;
                        model.borrow_mut().listed(container, object, dkey, &akeys, epoch, &listed);
                    }
                }
            }
            ObjectType::Array => {
                let array = Array::open(targets, object)?;
                for start in RANGES {
                    let room = IoBuffer::zeroed(RANGE_BYTES as usize);
                    let (data, outcome) = array.read(at, start, room).await;
                    let extents = outcome?.extents;
                    let found = (data.as_slice(), extents.as_slice());
                    model.borrow_mut().read_range(container, object, start, epoch, view, found);
                }
                if view == View::Committed {
                    let size = array.size(at).await?;
                    model.borrow_mut().sized(container, object, epoch, size);
                }
            }
        }
        Ok(())
    }

    /// Lists the objects at an epoch, when nobody writes.
    pub async fn list_objects(&self, epoch: u64) -> Result<(), Trouble> {
        let reading = self.client.shared.begin_read(self.container, epoch);
        let epoch = reading.epoch;
        let listing =
            list(async |anchor| enumerate_objects(&self.targets, Epoch(epoch), &anchor, 3).await).await;
        let listed = listing.map_err(|error| self.dsr_trouble("list objects", &error))?;
        let mut model = self.client.shared.model.borrow_mut();
        model.comparisons += 1;
        let objects: Vec<_> = model.containers[self.container].objects.keys().copied().collect();
        for object in objects {
            let mut holds = Some(false);
            for part in
                (0..self.client.shared.slots.len()).flat_map(parts).filter(|part| part.object == object)
            {
                for (dkey, akey) in &part.keys {
                    let place = Place::Key(dkey, akey);
                    match model.holds(self.container, object, place, epoch) {
                        Some(true) => holds = Some(true),
                        Some(false) => {}
                        None => holds = holds.filter(|holds| *holds),
                    }
                }
            }
            let count = listed.iter().filter(|other| **other == object).count();
            let array = object.object_type() == ObjectType::Array;
            let wrong = count > 1 || (!array && holds.is_some_and(|holds| holds != (count == 1)));
            if wrong {
                let story = format!(
                    "container {} at epoch {epoch}: object {object} is listed {count} times, holds data: {holds:?}",
                    self.container
                );
                model.violate(Rule::Enumeration, story);
            }
        }
        Ok(())
    }
}

/// All keys that anybody may have written below a dkey of the part's object.
fn all_keys(client: &Client, part: &Part, dkey: &[u8]) -> Vec<Vec<u8>> {
    let everybody = (0..client.shared.slots.len()).flat_map(parts);
    let same_object = everybody.filter(|other| other.object == part.object);
    let keys = same_object.flat_map(|part| part.keys).filter(|(other, _)| other == dkey);
    keys.map(|(_, key)| key).collect()
}

/// All pages of a listing.
async fn list<T>(
    page: impl AsyncFn(Anchor) -> Result<daos_dsr::client::Page<T>, DsrError>,
) -> Result<Vec<T>, DsrError> {
    let (mut items, mut anchor) = (Vec::new(), Some(Anchor::default()));
    while let Some(from) = anchor {
        let found = page(from).await?;
        items.extend(found.items);
        anchor = found.next;
    }
    Ok(items)
}
