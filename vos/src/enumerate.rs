//! Listing what is visible at an epoch, what was recorded, and what changed.

use std::{ops::ControlFlow, ops::Range};

use daos_types::{Cookie, Epoch, EpochRange, KeyOrder, ObjectId, ObjectType};
use daos_umem::Heap;

use crate::{
    Anchor, Change, Checksums, Error, RecordedExtent,
    extents::{self, Holder, Scratch},
    fetched::Position,
    groups::{self, Entry},
    keys::{self, dkey_punches, punched_at},
    memory,
    read::View,
    records::{
        ArrayHead, Extent, Extents, Group, KeyRecord, Keys, Kind, ObjectRecord, Objects, PUNCHED, Version,
        Versions, key_verified, object_id,
    },
    tree::{self, Bound, Probe},
};

/// Most entries that one call looks at, visible or not: what is punched at an epoch may be there in any number. A single entry
/// with more than that below it is looked at as a whole.
const WALKED_MAX: usize = 2048;

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
        let start = match &anchor.0 {
            Position::End => return Ok(()),
            Position::Start => None,
            Position::After(bytes) => Some(parse_object(bytes)?),
        };
        let tail = start.map(crate::records::object_tail);
        let probe = start.zip(tail.as_ref()).map(|(id, tail)| Objects::of(id, tail));
        let bound = probe.as_ref().map_or(Bound::First, Bound::After);
        let (mut count, mut walked) = (0, 0);
        let mut last = None;
        let flow = tree::scan(self.heap, Objects, self.objects, bound, &mut |object| {
            if count == limit || walked >= WALKED_MAX {
                return Ok(ControlFlow::Break(()));
            }
            let id = object_id(memory::read(self.heap, object)?, object)?;
            last = Some(id);
            if self.object_is_visible(object, id, epoch, scratch, &mut walked)? {
                visit(id);
                count += 1;
            }
            Ok(ControlFlow::Continue(()))
        })?;
        anchor.0 = match (flow, last) {
            (ControlFlow::Continue(()), _) => Position::End,
            (ControlFlow::Break(()), Some(id)) => Position::After(object_bytes(id)),
            (ControlFlow::Break(()), None) => return Ok(()),
        };
        Ok(())
    }

    fn object_is_visible(
        &self,
        object: u64,
        id: ObjectId,
        epoch: Epoch,
        scratch: &mut Scratch,
        walked: &mut usize,
    ) -> Result<bool, Error> {
        *walked += 1;
        let record: &ObjectRecord = memory::read(self.heap, object)?;
        let hidden = punched_at(self.heap, record.punches, epoch)?;
        if id.object_type() == ObjectType::Array {
            return array_is_visible(self.heap, Holder::Object(object), (hidden, epoch.0), scratch);
        }
        let class = Keys { order: id.dkey_order(), seed: self.seed };
        let flow = tree::scan(self.heap, class, record.root, Bound::First, &mut |key| {
            Ok(flow_until(self.key_is_visible(key, hidden, epoch, scratch, walked)?))
        })?;
        Ok(flow.is_break())
    }

    /// Whether something below a key is visible; `hidden` is the newest punch above it. Counts in `walked` what it looks at.
    fn key_is_visible(
        &self,
        key: u64,
        hidden: u64,
        epoch: Epoch,
        scratch: &mut Scratch,
        walked: &mut usize,
    ) -> Result<bool, Error> {
        *walked += 1;
        let record: &KeyRecord = memory::read(self.heap, key)?;
        match record.kind() {
            Kind::Key | Kind::Single => {
                let Some(place) = tree::floor(self.heap, Versions, record.root, epoch.0.into())? else {
                    return Ok(false);
                };
                let version: &Version = memory::read(self.heap, place)?;
                Ok(version.epoch >= hidden && version.flags & PUNCHED == 0)
            }
            Kind::Array => array_is_visible(self.heap, Holder::Akey(key), (hidden, epoch.0), scratch),
            Kind::Dkey => {
                let hidden = hidden.max(punched_at(self.heap, dkey_punches(self.heap, key)?, epoch)?);
                let akeys: u64 = *memory::read(self.heap, keys::akeys_place(self.heap, key)?)?;
                // The order matters to searches only; a scan from the first key needs none.
                let class = Keys { order: KeyOrder::Hashed, seed: self.seed };
                let flow = tree::scan(self.heap, class, akeys, Bound::First, &mut |akey| {
                    Ok(flow_until(self.key_is_visible(akey, hidden, epoch, scratch, walked)?))
                })?;
                Ok(flow.is_break())
            }
        }
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
        let start = match &anchor.0 {
            Position::End => return Ok(()),
            Position::Start => None,
            Position::After(key) => Some(class.of(key)),
        };
        let bound = start.as_ref().map_or(Bound::First, Bound::After);
        let (mut count, mut walked, mut last) = (0, 0, None);
        let flow = tree::scan(self.heap, class, root, bound, &mut |key| {
            if count == limit || walked >= WALKED_MAX {
                return Ok(ControlFlow::Break(()));
            }
            let bytes = key_verified(self.heap, key)?;
            last = Some(bytes);
            if self.key_is_visible(key, hidden, epoch, scratch, &mut walked)? {
                visit(bytes);
                count += 1;
            }
            Ok(ControlFlow::Continue(()))
        })?;
        if flow.is_continue() {
            anchor.0 = Position::End;
        } else if let Some(last) = last {
            anchor.0 = Position::After(last.to_vec());
        }
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

fn flow_until(found: bool) -> ControlFlow<()> {
    if found { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}

fn array_is_visible(
    heap: &Heap,
    holder: Holder,
    epochs: (u64, u64),
    scratch: &mut Scratch,
) -> Result<bool, Error> {
    let place: u64 = *memory::read(heap, holder.head_place())?;
    if place == 0 {
        return Ok(false);
    }
    let head: &ArrayHead = memory::read(heap, place)?;
    Ok(extents::highest_end(heap, head, epochs, scratch)? > 0)
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
