//! The sweep of an aggregation: a walk over all records of a container, for those that an earlier aggregation kept and
//! that this one need not.
//!
//! # Invariants
//!
//! * A slice looks at a bounded number of records and changes a bounded number. Where it stands is told by keys, not by
//!   places, so that what others change between two slices does not confuse it.
//! * What is below a punch is looked at before the punch; data of an array before its punched extents; older versions
//!   before newer ones. So when a punch is met, nothing is left that it hides within the range.

use std::{mem::offset_of, ops::ControlFlow};

use daos_types::{Epoch, EpochRange, KeyOrder, ObjectId, ObjectType};
use daos_umem::Heap;

use crate::{
    Error,
    editor::Editor,
    epochs::{SliceSize, age_extent, age_version},
    extents::{self, Holder, Scratch},
    keys::{self, dkey_punches, prune_key, prune_object, punched_at},
    memory,
    records::{
        AGED, ArrayHead, ContainerRecord, Extent, Extents, KeyRecord, Keys, Kind, ObjectRecord, Objects,
        PUNCHED, PunchRecord, Punches, Version, Versions, key_of, object_id, object_tail,
    },
    tree::{self, Bound, Probe},
};

/// Records that one slice looks at.
const SLICE_LOOKS: usize = 2048;

/// A record that no group lists and that may have to go.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Candidate {
    Version(u64, u64),
    Extent(Holder, u64, u64),
    DkeyPunch(u64, u64),
    ObjectPunch(u64, u64),
}

/// Where a sweep stands on one level: within this key, or after it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum At<K> {
    Within(K),
    After(K),
}

/// Where a sweep stands.
#[derive(Clone, Debug, Default)]
struct Cursor {
    object: Option<At<ObjectId>>,
    /// A key of a KV, or a dkey.
    dkey: Option<At<Vec<u8>>>,
    akey: Option<At<Vec<u8>>>,
    /// Versions: (0, epoch). Extents: (0 data or 1 punches, place in the tree). What comes after this is next.
    record: Option<(u8, u128)>,
}

/// A sweep that is under way.
#[derive(Clone, Debug)]
pub(crate) struct Sweep {
    range: EpochRange,
    cursor: Cursor,
}

impl Sweep {
    pub fn new(range: EpochRange) -> Self {
        Self { range, cursor: Cursor::default() }
    }

    /// The next up to `limit` records of a container, whatever they are, and where to go on, if there are more. All
    /// punches of one object or dkey count as one record.
    pub fn look(
        &self,
        heap: &Heap,
        seed: u64,
        objects: u64,
        limit: usize,
    ) -> Result<(Vec<Candidate>, Option<Self>), Error> {
        let (range, cursor, found) = (self.range, self.cursor.clone(), Vec::new());
        let mut walk = Walk { heap, seed, range, cursor, found, limit, looks: 0, all: true };
        let done = walk.objects(objects)?;
        let Walk { cursor, found, .. } = walk;
        Ok((found, (!done).then_some(Self { range, cursor })))
    }

    /// Does a slice; returns where the next one goes on, if there is more.
    pub fn slice(
        &self,
        editor: &mut Editor<'_, '_>,
        size: SliceSize,
        scratch: &mut Scratch,
    ) -> Result<Option<Self>, Error> {
        let objects: u64 = *editor.read(editor.container_field(offset_of!(ContainerRecord, objects)))?;
        let mut walk = Walk {
            heap: editor.heap(),
            seed: editor.seed,
            range: self.range,
            cursor: self.cursor.clone(),
            found: Vec::new(),
            limit: size.entries,
            looks: 0,
            all: false,
        };
        let done = walk.objects(objects)?;
        let Walk { cursor, found, .. } = walk;
        let mut gone = None;
        for candidate in found {
            settle(editor, candidate, (self.range, size), scratch, &mut gone)?;
        }
        Ok((!done).then_some(Self { range: self.range, cursor }))
    }
}

/// Deals with one candidate. `gone` is the key or object that went with its last record.
fn settle(
    editor: &mut Editor<'_, '_>,
    candidate: Candidate,
    (range, size): (EpochRange, SliceSize),
    scratch: &mut Scratch,
    gone: &mut Option<u64>,
) -> Result<(), Error> {
    let below = match candidate {
        Candidate::Version(key, _) => key,
        Candidate::Extent(Holder::Akey(key), ..) | Candidate::DkeyPunch(key, _) => key,
        Candidate::Extent(Holder::Object(object), ..) | Candidate::ObjectPunch(object, _) => object,
    };
    if *gone == Some(below) {
        return Ok(());
    }
    match candidate {
        Candidate::Version(key, epoch) => {
            age_version(editor, key, Epoch(epoch), range)?;
            if editor.read::<KeyRecord>(key)?.root == 0 {
                *gone = Some(key);
                prune_key(editor, key)?;
            }
        }
        Candidate::Extent(holder, block, epoch) => {
            age_extent(editor, (holder, block, Epoch(epoch)), (range, size), scratch)?;
            if *editor.read::<u64>(holder.head_place())? == 0 {
                *gone = Some(below);
                match holder {
                    Holder::Akey(key) => prune_key(editor, key)?,
                    Holder::Object(object) => prune_object(editor, object)?,
                }
            }
        }
        Candidate::DkeyPunch(dkey, epoch) => {
            let place = keys::dkey_punches_place(editor, dkey)?;
            remove_punch(editor, place, epoch)?;
            if *editor.read::<u64>(place)? == 0 {
                let empty = *editor.read::<u64>(keys::akeys_place(editor.heap(), dkey)?)? == 0;
                *gone = empty.then_some(dkey).or(*gone);
                prune_key(editor, dkey)?;
            }
        }
        Candidate::ObjectPunch(object, epoch) => {
            remove_punch(editor, object + offset_of!(ObjectRecord, punches) as u64, epoch)?;
            let record: ObjectRecord = *editor.read(object)?;
            if record.punches == 0 && record.root == 0 {
                *gone = Some(object);
                prune_object(editor, object)?;
            }
        }
    }
    Ok(())
}

fn remove_punch(editor: &mut Editor<'_, '_>, place: u64, epoch: u64) -> Result<(), Error> {
    if let Some(punch) = tree::remove(editor.tx, Punches, place, &Probe::number(epoch.into()))? {
        editor.count_record(-1, 0);
        memory::free(editor.tx, punch)?;
    }
    Ok(())
}

/// Looks for candidates. Its methods say whether they came to the end of what they walk.
struct Walk<'h> {
    heap: &'h Heap,
    seed: u64,
    range: EpochRange,
    cursor: Cursor,
    found: Vec<Candidate>,
    limit: usize,
    looks: usize,
    /// Every record is one.
    all: bool,
}

impl<'h> Walk<'h> {
    fn enough(&mut self) -> bool {
        self.looks += 1;
        self.found.len() >= self.limit || self.looks >= SLICE_LOOKS
    }

    fn is_aged(&self, epoch: u64, flags: u32) -> bool {
        self.all || (flags & AGED != 0 && self.range.contains(Epoch(epoch)))
    }

    fn objects(&mut self, root: u64) -> Result<bool, Error> {
        let at = self.cursor.object.clone();
        let id = match &at {
            Some(At::Within(id) | At::After(id)) => Some(*id),
            None => None,
        };
        let tail = id.map(object_tail);
        let probe = id.zip(tail.as_ref()).map(|(id, tail)| Objects::of(id, tail));
        let bound = match (&at, &probe) {
            (Some(At::Within(_)), Some(probe)) => Bound::From(probe),
            (Some(At::After(_)), Some(probe)) => Bound::After(probe),
            _ => Bound::First,
        };
        let flow = tree::scan(self.heap, Objects, root, bound, &mut |object| {
            let record: &ObjectRecord = memory::read(self.heap, object)?;
            let id = object_id(record, object)?;
            if self.cursor.object != Some(At::Within(id)) {
                self.cursor = Cursor { object: Some(At::Within(id)), ..Cursor::default() };
            }
            if record.newest >= self.range.low.0 && !self.object(object, record, id)? {
                return Ok(ControlFlow::Break(()));
            }
            self.cursor = Cursor { object: Some(At::After(id)), ..Cursor::default() };
            Ok(if self.enough() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        Ok(flow.is_continue())
    }

    fn object(&mut self, object: u64, record: &ObjectRecord, id: ObjectId) -> Result<bool, Error> {
        let hidden = punched_at(self.heap, record.punches, self.range.high)?;
        let ended = match id.object_type() {
            ObjectType::Array => self.array(Holder::Object(object))?,
            _ => self.keys(record.root, id.dkey_order(), id.akey_order(), hidden)?,
        };
        Ok(ended && self.punches(record.punches, |epoch| Candidate::ObjectPunch(object, epoch))?)
    }

    /// Walks the keys of a KV, or the dkeys of a document.
    fn keys(&mut self, root: u64, order: KeyOrder, below: KeyOrder, hidden: u64) -> Result<bool, Error> {
        let class = Keys { order, seed: self.seed };
        let at = self.cursor.dkey.clone();
        let probe = probe_of(class, &at);
        let flow = tree::scan(self.heap, class, root, bound_of(&at, &probe), &mut |key| {
            let bytes = key_of(self.heap, key)?;
            if !is_within(&self.cursor.dkey, bytes) {
                self.cursor.dkey = Some(At::Within(bytes.to_vec()));
                (self.cursor.akey, self.cursor.record) = (None, None);
            }
            let record: &KeyRecord = memory::read(self.heap, key)?;
            let ended = if record.kind() == Kind::Dkey {
                let punches = dkey_punches(self.heap, key)?;
                let hidden = hidden.max(punched_at(self.heap, punches, self.range.high)?);
                let akeys: u64 = *memory::read(self.heap, keys::akeys_place(self.heap, key)?)?;
                let ended = self.akeys(akeys, below, hidden)?;
                ended && self.punches(punches, |epoch| Candidate::DkeyPunch(key, epoch))?
            } else {
                self.versions(key, record.root, hidden)?
            };
            if !ended {
                return Ok(ControlFlow::Break(()));
            }
            self.cursor.dkey = Some(At::After(bytes.to_vec()));
            (self.cursor.akey, self.cursor.record) = (None, None);
            Ok(if self.enough() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        Ok(flow.is_continue())
    }

    fn akeys(&mut self, root: u64, order: KeyOrder, hidden: u64) -> Result<bool, Error> {
        let class = Keys { order, seed: self.seed };
        let at = self.cursor.akey.clone();
        let probe = probe_of(class, &at);
        let flow = tree::scan(self.heap, class, root, bound_of(&at, &probe), &mut |key| {
            let bytes = key_of(self.heap, key)?;
            if !is_within(&self.cursor.akey, bytes) {
                self.cursor.akey = Some(At::Within(bytes.to_vec()));
                self.cursor.record = None;
            }
            let record: &KeyRecord = memory::read(self.heap, key)?;
            let ended = match record.kind() {
                Kind::Array => self.array(Holder::Akey(key))?,
                _ => self.versions(key, record.root, hidden)?,
            };
            if !ended {
                return Ok(ControlFlow::Break(()));
            }
            self.cursor.akey = Some(At::After(bytes.to_vec()));
            self.cursor.record = None;
            Ok(if self.enough() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        Ok(flow.is_continue())
    }

    fn versions(&mut self, key: u64, root: u64, hidden: u64) -> Result<bool, Error> {
        let newest = match tree::floor(self.heap, Versions, root, self.range.high.0.into())? {
            None => return Ok(true),
            Some(place) => memory::read::<Version>(self.heap, place)?.epoch,
        };
        let from = self.cursor.record.map(|(_, epoch)| Probe::number(epoch));
        let bound = from.as_ref().map_or(Bound::First, Bound::After);
        let flow = tree::scan(self.heap, Versions, root, bound, &mut |place| {
            let version: &Version = memory::read(self.heap, place)?;
            if version.epoch > self.range.high.0 {
                return Ok(ControlFlow::Continue(()));
            }
            let needed = version.epoch == newest && version.epoch >= hidden && version.flags & PUNCHED == 0;
            if self.is_aged(version.epoch, version.flags) && (self.all || !needed) {
                self.found.push(Candidate::Version(key, version.epoch));
            }
            self.cursor.record = Some((0, version.epoch.into()));
            Ok(if self.enough() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        Ok(flow.is_continue())
    }

    fn array(&mut self, holder: Holder) -> Result<bool, Error> {
        let head: u64 = *memory::read(self.heap, holder.head_place())?;
        if head == 0 {
            return Ok(true);
        }
        let root = memory::read::<ArrayHead>(self.heap, head)?.extents;
        let first = self.cursor.record.map_or(0, |(pass, _)| pass);
        for pass in first..2 {
            let from = self.cursor.record.filter(|&(at, _)| at == pass).map(|(_, at)| Probe::number(at));
            let bound = from.as_ref().map_or(Bound::First, Bound::After);
            let flow = tree::scan(self.heap, Extents, root, bound, &mut |place| {
                let extent: &Extent = memory::read(self.heap, place)?;
                let block = extents::block_of(extent.start, extent.end);
                let punched = extent.flags & PUNCHED != 0;
                if self.is_aged(extent.epoch, extent.flags) && punched == (pass == 1) {
                    self.found.push(Candidate::Extent(holder, block, extent.epoch));
                }
                self.cursor.record = Some((pass, u128::from(block) << 64 | u128::from(extent.epoch)));
                Ok(if self.enough() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            })?;
            if flow.is_break() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Notes the punches that hide nothing any more, all that is older having been dealt with. Those that are left to the
    /// next slice are found again: the others are gone then.
    fn punches(&mut self, root: u64, candidate: impl Fn(u64) -> Candidate) -> Result<bool, Error> {
        if self.all {
            // One stands for all: they have no checksums of their own, but that of what they punch.
            if root != 0 {
                self.found.push(candidate(0));
            }
            return Ok(true);
        }
        let newest = punched_at(self.heap, root, self.range.high)?;
        let low = Probe::number(self.range.low.0.into());
        let mut ended = true;
        let _ = tree::scan(self.heap, Punches, root, Bound::From(&low), &mut |place| {
            let punch: &PunchRecord = memory::read(self.heap, place)?;
            if punch.epoch > self.range.high.0 {
                return Ok(ControlFlow::Break(()));
            }
            let obsolete = punch.epoch < newest || self.range.low.0 <= 1;
            if obsolete && self.is_aged(punch.epoch, punch.flags) {
                if self.found.len() >= self.limit {
                    ended = false;
                    return Ok(ControlFlow::Break(()));
                }
                self.found.push(candidate(punch.epoch));
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(ended)
    }
}

fn probe_of(class: Keys, at: &Option<At<Vec<u8>>>) -> Option<Probe<'_>> {
    match at {
        Some(At::Within(key) | At::After(key)) => Some(class.of(key)),
        None => None,
    }
}

fn bound_of<'p, 'k>(at: &Option<At<Vec<u8>>>, probe: &'p Option<Probe<'k>>) -> Bound<'p, 'k> {
    match (at, probe) {
        (Some(At::Within(_)), Some(probe)) => Bound::From(probe),
        (Some(At::After(_)), Some(probe)) => Bound::After(probe),
        _ => Bound::First,
    }
}

fn is_within(at: &Option<At<Vec<u8>>>, key: &[u8]) -> bool {
    matches!(at, Some(At::Within(within)) if within == key)
}
