//! Listing what is visible at an epoch, what was recorded, and what changed.

use std::{ops::ControlFlow, ops::Range};

use daos_types::{Cookie, Epoch, EpochRange, ObjectId, ObjectType};

use crate::{
    Anchor, Change, Checksums, Error, RecordedExtent,
    extents::{self, Scratch},
    fetched::Position,
    groups::{self, Entry},
    keys::{self, dkey_punches, punched_at},
    memory,
    read::View,
    records::{
        Extent, Extents, Group, KeyRecord, Keys, Kind, ObjectRecord, Objects, PUNCHED, key_verified,
        object_id,
    },
    tree::{self, Bound, Probe},
    visible::{Course, Seen, WALKED_MAX},
};

impl View<'_> {
    /// Lists objects with something visible at `epoch`. As all listings here: up to `limit`, and fewer where much is
    /// invisible; only the anchor tells the end.
    pub fn objects(
        &self,
        epoch: Epoch,
        anchor: &mut Anchor,
        limit: usize,
        scratch: &mut Scratch,
        visit: &mut dyn FnMut(ObjectId),
    ) -> Result<(), Error> {
        let Some((mut course, start)) = Course::from(anchor) else { return Ok(()) };
        let start = start.map(|start| parse_object(&start)).transpose()?;
        let tail = start.map(crate::records::object_tail);
        let probe = start.zip(tail.as_ref()).map(|(id, tail)| Objects::of(id, tail));
        let flow =
            tree::scan(self.heap, Objects, self.objects, course.bound(probe.as_ref()), &mut |object| {
                if course.is_over(limit) {
                    return Ok(ControlFlow::Break(()));
                }
                let id = object_id(memory::read(self.heap, object)?, object)?;
                let bytes = object_bytes(id);
                course.enter(&bytes);
                let seen = self.object_is_visible(object, id, epoch, scratch, &mut course.walk)?;
                if seen == Seen::Visible {
                    visit(id);
                }
                Ok(course.leave(&bytes, seen))
            })?;
        course.end(flow, anchor);
        Ok(())
    }

    /// Lists the keys of a KV, the dkeys of a document, or (with `dkey`) the akeys of a dkey with something visible at
    /// `epoch`.
    pub fn keys(
        &self,
        id: ObjectId,
        dkey: Option<&[u8]>,
        epoch: Epoch,
        anchor: &mut Anchor,
        limit: usize,
        scratch: &mut Scratch,
        visit: &mut dyn FnMut(&[u8]),
    ) -> Result<(), Error> {
        if id.object_type() == ObjectType::Array
            || (dkey.is_some() && id.object_type() != ObjectType::Document)
        {
            return Err(Error::WrongType("an object of this type has no such keys"));
        }
        let Some(object) = keys::find_object(self.heap, self.objects, id)? else {
            anchor.0 = Position::End;
            return Ok(());
        };
        let record: &ObjectRecord = memory::read(self.heap, object)?;
        let mut hidden = punched_at(self.heap, record.punches, epoch)?;
        let mut class = Keys { order: id.dkey_order(), seed: self.seed };
        let mut root = record.root;
        if let Some(dkey) = dkey {
            let Some(dkey) = tree::get(self.heap, class, root, &class.of(dkey))? else {
                anchor.0 = Position::End;
                return Ok(());
            };
            hidden = hidden.max(punched_at(self.heap, dkey_punches(self.heap, dkey)?, epoch)?);
            root = *memory::read(self.heap, keys::akeys_place(self.heap, dkey)?)?;
            class.order = id.akey_order();
        }
        let Some((mut course, start)) = Course::from(anchor) else { return Ok(()) };
        let probe = start.as_ref().map(|key| class.of(key));
        let flow = tree::scan(self.heap, class, root, course.bound(probe.as_ref()), &mut |key| {
            if course.is_over(limit) {
                return Ok(ControlFlow::Break(()));
            }
            let bytes = key_verified(self.heap, key)?;
            course.enter(bytes);
            let seen = self.key_is_visible(key, id, hidden, epoch, scratch, &mut course.walk)?;
            if seen == Seen::Visible {
                visit(bytes);
            }
            Ok(course.leave(bytes, seen))
        })?;
        course.end(flow, anchor);
        Ok(())
    }

    /// Lists the extents of an array that were recorded in `epochs` and meet `range`, ordered by the size of the aligned
    /// block around them, by offset, and by epoch.
    pub fn extents(
        &self,
        id: ObjectId,
        keys: Option<(&[u8], &[u8])>,
        (range, epochs): (Range<u64>, EpochRange),
        anchor: &mut Anchor,
        limit: usize,
        visit: &mut dyn FnMut(RecordedExtent<'_>),
    ) -> Result<(), Error> {
        let start = match &anchor.0 {
            Position::End => return Ok(()),
            Position::Start => None,
            Position::After(bytes) => Some(Probe::number(u128::from_be_bytes(
                bytes.as_slice().try_into().map_err(|_| Error::Invalid("a foreign anchor"))?,
            ))),
            Position::Within { .. } => return Err(Error::Invalid("a foreign anchor")),
        };
        let (Some(head), _) = self.array(id, keys, Epoch::MAX)? else {
            anchor.0 = Position::End;
            return Ok(());
        };
        let bound = start.as_ref().map_or(Bound::First, Bound::After);
        let (mut count, mut walked, mut last) = (0, 0, None);
        let flow = tree::scan(self.heap, Extents, head.extents, bound, &mut |place| {
            if count == limit || walked >= WALKED_MAX {
                return Ok(ControlFlow::Break(()));
            }
            walked += 1;
            let extent: &Extent = memory::read(self.heap, place)?;
            last = Some(
                u128::from(extents::block_of(extent.start, extent.end)) << 64 | u128::from(extent.epoch),
            );
            if epochs.contains(Epoch(extent.epoch)) && extent.start < range.end && extent.end > range.start {
                let recorded = extents::recorded_checksums(self.heap, place)?;
                visit(RecordedExtent {
                    range: extent.start..extent.end,
                    epoch: Epoch(extent.epoch),
                    punched: extent.flags & PUNCHED != 0,
                    checksums: recorded
                        .as_ref()
                        .map(|(chunk_bytes, chunks)| Checksums { chunk_bytes: *chunk_bytes, chunks }),
                });
                count += 1;
            }
            Ok(ControlFlow::Continue(()))
        })?;
        if flow.is_continue() {
            anchor.0 = Position::End;
        } else if let Some(last) = last {
            anchor.0 = Position::After(last.to_be_bytes().to_vec());
        }
        Ok(())
    }

    /// Lists what changed in `epochs`, by epoch; `by_epoch` is the root word of the groups by epoch. A record appears once
    /// for each change.
    pub fn changes(
        &self,
        by_epoch: u64,
        epochs: EpochRange,
        anchor: &mut Anchor,
        limit: usize,
        visit: &mut dyn FnMut(Change<'_>),
    ) -> Result<(), Error> {
        // An anchor is epoch, cookie, and how many entries of that group were given.
        let (mut from, mut skip) = match &anchor.0 {
            Position::End => return Ok(()),
            Position::Start => ((epochs.low, Cookie(0)), 0),
            Position::After(bytes) => {
                let word = |index: usize| -> Result<u64, Error> {
                    let bytes = bytes.get(index * 8..index * 8 + 8).and_then(|bytes| bytes.try_into().ok());
                    bytes.map(u64::from_be_bytes).ok_or(Error::Invalid("a foreign anchor"))
                };
                ((Epoch(word(0)?), Cookie(word(1)?)), word(2)?)
            }
            Position::Within { .. } => return Err(Error::Invalid("a foreign anchor")),
        };
        let mut count = 0;
        while let Some(group) = groups::next_by_epoch(self.heap, by_epoch, from, epochs)? {
            let record: &Group = memory::read(self.heap, group)?;
            if (Epoch(record.epoch), Cookie(record.cookie)) != from {
                skip = 0;
            }
            let mut index = 0;
            let mut full = false;
            groups::visit(self.heap, group, &mut |_, entry| {
                if index >= skip {
                    if count == limit {
                        full = true;
                        return Ok(false);
                    }
                    self.change(Epoch(record.epoch), entry, visit)?;
                    count += 1;
                }
                index += 1;
                Ok(true)
            })?;
            if full {
                let words = [record.epoch, record.cookie, index];
                anchor.0 = Position::After(words.iter().flat_map(|word| word.to_be_bytes()).collect());
                return Ok(());
            }
            skip = 0;
            from = match record.cookie.checked_add(1) {
                Some(cookie) => (Epoch(record.epoch), Cookie(cookie)),
                None => (Epoch(record.epoch).next(), Cookie(0)),
            };
        }
        anchor.0 = Position::End;
        Ok(())
    }

    fn change(&self, epoch: Epoch, entry: Entry, visit: &mut dyn FnMut(Change<'_>)) -> Result<(), Error> {
        let (object, dkey, akey) = match entry {
            Entry::Object(object) | Entry::ObjectExtent(object, _) => (object, None, None),
            Entry::Dkey(key) | Entry::Single(key) | Entry::AkeyExtent(key, _) => {
                let record: &KeyRecord = memory::read(self.heap, key)?;
                let object = keys::object_of_key(self.heap, key)?;
                let name = key_verified(self.heap, key)?;
                match record.kind() {
                    Kind::Key | Kind::Dkey => (object, Some(name), None),
                    Kind::Single | Kind::Array => {
                        (object, Some(key_verified(self.heap, record.parent)?), Some(name))
                    }
                }
            }
        };
        let object = object_id(memory::read(self.heap, object)?, object)?;
        visit(Change { epoch, object, dkey, akey });
        Ok(())
    }
}

fn object_bytes(id: ObjectId) -> Vec<u8> {
    let (high, middle, low) = id.to_parts();
    [high, middle, low].iter().flat_map(|word| word.to_be_bytes()).collect()
}

fn parse_object(bytes: &[u8]) -> Result<ObjectId, Error> {
    let foreign = || Error::Invalid("a foreign anchor");
    let word = |index: usize| -> Option<u64> {
        Some(u64::from_be_bytes(bytes.get(index * 8..index * 8 + 8)?.try_into().ok()?))
    };
    let (Some(high), Some(middle), Some(low)) = (word(0), word(1), word(2)) else { return Err(foreign()) };
    ObjectId::from_parts(high, middle, low).map_err(|_| foreign())
}
