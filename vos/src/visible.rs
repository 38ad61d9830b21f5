//! Whether anything is visible below the entries of a listing, one slice at a time.
//!
//! # Invariants
//!
//! * A call looks at [`WALKED_MAX`] entries, keys and extents, and where the last is an array at most eight times as many more: what
//!   is punched at an epoch may be there in any number, below one entry too. Where it stops in the midst of an entry, the next call
//!   goes on.
//! * Each call looks at one entry, key or window of an array at least, so that a listing ends.

use std::ops::ControlFlow;

use daos_types::{Epoch, ObjectId, ObjectType};
use daos_umem::Heap;

use crate::{
    Anchor, Error,
    extents::{self, EndSearch, Holder, Scratch},
    fetched::Position,
    keys::{self, dkey_punches, punched_at},
    memory,
    read::View,
    records::{ArrayHead, KeyRecord, Keys, Kind, ObjectRecord, PUNCHED, Version, Versions, key_verified},
    tree::{self, Bound, Probe},
};

/// Most entries, keys and extents that one call looks at, visible or not.
pub(crate) const WALKED_MAX: usize = 2048;

/// What is known of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// Something below it is visible.
    Visible,
    /// Nothing is.
    Invisible,
    /// The call is over, and there is more to look at.
    Unfinished,
}

/// What is looked at below the entries of a listing, in one call.
#[derive(Default)]
pub(crate) struct Walk {
    walked: usize,
    /// Where to go on below the next entry; empty for its beginning. As in [`Position::Within`].
    resume: Vec<Vec<u8>>,
    /// Where it has stopped below an entry, the innermost key first.
    stopped: Vec<Vec<u8>>,
}

/// One call of a listing.
pub(crate) struct Course {
    pub walk: Walk,
    count: usize,
    /// The last entry that was dealt with, in this call or before.
    last: Option<Vec<u8>>,
    /// The entry that the call before has stopped in.
    within: Option<Vec<u8>>,
    unfinished: Option<Vec<u8>>,
}

impl Course {
    /// The way on from an anchor, and the entry that it names; `None` if it is at the end.
    pub fn from(anchor: &Anchor) -> Option<(Self, Option<Vec<u8>>)> {
        let mut course = Self { walk: Walk::default(), count: 0, last: None, within: None, unfinished: None };
        match &anchor.0 {
            Position::End => return None,
            Position::Start => {}
            Position::After(key) => course.last = Some(key.clone()),
            Position::Within { before, path } => {
                let (entry, below) = path.split_first()?;
                course.last = before.clone();
                course.within = Some(entry.clone());
                course.walk.resume = below.to_vec();
            }
        }
        let start = course.within.clone().or_else(|| course.last.clone());
        Some((course, start))
    }

    /// Where the scan begins, `probe` being that of the entry that the anchor names.
    pub fn bound<'p, 'k>(&self, probe: Option<&'p Probe<'k>>) -> Bound<'p, 'k> {
        match probe {
            None => Bound::First,
            Some(probe) if self.within.is_some() => Bound::From(probe),
            Some(probe) => Bound::After(probe),
        }
    }

    /// Whether the call has given, or looked at, as much as it may.
    pub fn is_over(&self, limit: usize) -> bool {
        self.count == limit || self.walk.walked >= WALKED_MAX
    }

    /// An entry is looked at: from the place where the call before has stopped, if it is that one.
    pub fn enter(&mut self, entry: &[u8]) {
        if self.within.take().is_some_and(|within| within != entry) {
            self.walk.resume.clear();
        }
    }

    /// An entry has been looked at.
    pub fn leave(&mut self, entry: &[u8], seen: Seen) -> ControlFlow<()> {
        self.walk.resume.clear();
        if seen == Seen::Unfinished {
            self.unfinished = Some(entry.to_vec());
            return ControlFlow::Break(());
        }
        self.count += usize::from(seen == Seen::Visible);
        let last = self.last.get_or_insert_default();
        last.clear();
        last.extend_from_slice(entry);
        ControlFlow::Continue(())
    }

    /// Leaves in `anchor` where the next call goes on.
    pub fn end(self, flow: ControlFlow<()>, anchor: &mut Anchor) {
        anchor.0 = match (flow, self.unfinished, self.last) {
            (ControlFlow::Continue(()), ..) => Position::End,
            (_, Some(entry), before) => {
                let path = std::iter::once(entry).chain(self.walk.stopped.into_iter().rev()).collect();
                Position::Within { before, path }
            }
            (_, None, Some(last)) => Position::After(last),
            (_, None, None) => return,
        };
    }
}

impl View<'_> {
    pub(crate) fn object_is_visible(
        &self,
        object: u64,
        id: ObjectId,
        epoch: Epoch,
        scratch: &mut Scratch,
        walk: &mut Walk,
    ) -> Result<Seen, Error> {
        walk.walked += 1;
        let record: &ObjectRecord = memory::read(self.heap, object)?;
        let hidden = punched_at(self.heap, record.punches, epoch)?;
        if id.object_type() == ObjectType::Array {
            return array_is_visible(self.heap, Holder::Object(object), (hidden, epoch.0), scratch, walk);
        }
        let class = Keys { order: id.dkey_order(), seed: self.seed };
        self.any_is_visible((class, record.root), id, hidden, epoch, scratch, walk)
    }

    /// Whether something below a key of object `id` is visible; `hidden` is the newest punch above it.
    pub(crate) fn key_is_visible(
        &self,
        key: u64,
        id: ObjectId,
        hidden: u64,
        epoch: Epoch,
        scratch: &mut Scratch,
        walk: &mut Walk,
    ) -> Result<Seen, Error> {
        walk.walked += 1;
        let record: &KeyRecord = memory::read(self.heap, key)?;
        match record.kind() {
            Kind::Key | Kind::Single => {
                let Some(place) = tree::floor(self.heap, Versions, record.root, epoch.0.into())? else {
                    return Ok(Seen::Invisible);
                };
                let version: &Version = memory::read(self.heap, place)?;
                Ok(seen(version.epoch >= hidden && version.flags & PUNCHED == 0))
            }
            Kind::Array => array_is_visible(self.heap, Holder::Akey(key), (hidden, epoch.0), scratch, walk),
            Kind::Dkey => {
                let hidden = hidden.max(punched_at(self.heap, dkey_punches(self.heap, key)?, epoch)?);
                let akeys: u64 = *memory::read(self.heap, keys::akeys_place(self.heap, key)?)?;
                let class = Keys { order: id.akey_order(), seed: self.seed };
                self.any_is_visible((class, akeys), id, hidden, epoch, scratch, walk)
            }
        }
    }

    /// Whether a key of a tree is visible, from the place on where the walk goes on.
    fn any_is_visible(
        &self,
        (class, root): (Keys, u64),
        id: ObjectId,
        hidden: u64,
        epoch: Epoch,
        scratch: &mut Scratch,
        walk: &mut Walk,
    ) -> Result<Seen, Error> {
        let mut path = std::mem::take(&mut walk.resume).into_iter();
        let start = path.next();
        walk.resume = path.collect();
        let probe = start.as_ref().map(|key| class.of(key));
        let mut within = start.as_ref().filter(|_| !walk.resume.is_empty());
        let bound = match (&probe, within) {
            (None, _) => Bound::First,
            (Some(probe), None) => Bound::After(probe),
            (Some(probe), Some(_)) => Bound::From(probe),
        };
        let (mut last, mut found) = (None, Seen::Invisible);
        let _ = tree::scan(self.heap, class, root, bound, &mut |key| {
            if let Some(last) = last
                && walk.walked >= WALKED_MAX
            {
                found = Seen::Unfinished;
                walk.stopped.push(key_verified(self.heap, last)?.to_vec());
                return Ok(ControlFlow::Break(()));
            }
            if let Some(within) = within.take()
                && within != key_verified(self.heap, key)?
            {
                walk.resume.clear();
            }
            found = self.key_is_visible(key, id, hidden, epoch, scratch, walk)?;
            walk.resume.clear();
            if found == Seen::Unfinished {
                walk.stopped.push(key_verified(self.heap, key)?.to_vec());
            }
            last = Some(key);
            Ok(if found == Seen::Invisible { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        })?;
        Ok(found)
    }
}

fn seen(visible: bool) -> Seen {
    if visible { Seen::Visible } else { Seen::Invisible }
}

fn array_is_visible(
    heap: &Heap,
    holder: Holder,
    epochs: (u64, u64),
    scratch: &mut Scratch,
    walk: &mut Walk,
) -> Result<Seen, Error> {
    let place: u64 = *memory::read(heap, holder.head_place())?;
    if place == 0 {
        return Ok(Seen::Invisible);
    }
    let head: &ArrayHead = memory::read(heap, place)?;
    let resume = walk.resume.pop();
    let mut search = resume.map_or_else(EndSearch::default, |bytes| EndSearch::from_bytes(&bytes));
    Ok(match extents::highest_end(heap, head, epochs, &mut search, scratch, &mut walk.walked)? {
        Some(end) => seen(end > 0),
        None => {
            walk.stopped.push(search.to_bytes());
            Seen::Unfinished
        }
    })
}
