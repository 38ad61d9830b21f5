//! Discard and aggregation, one slice at a time. A slice is one transaction.
//!
//! # Invariants
//!
//! * A discard is noted in the container (the [`PendingDiscard`] list) before its first slice, and the note goes with its
//!   last: a crash between slices leaves the note, and the discard is finished before the container is used again.
//! * Aggregation needs no note: it consumes the entries of the groups in its range one by one, and a slice that is lost
//!   is done again.
//! * After every slice, a read at an epoch outside `[low, high)` answers as before.
//! * What an earlier aggregation kept within the range, for a snapshot that is gone, is listed by no group: a sweep looks
//!   for it ([`crate::sweep`]). The ends of earlier ranges ([`Boundary`]) say whether there can be any; they go with the
//!   last step only, so that an aggregation that a crash cut short is swept again.

use std::{mem::offset_of, ops::ControlFlow, ops::Range};

use daos_types::{Cookie, Epoch, EpochRange, KeyOrder};
use zerocopy::IntoBytes;

use crate::{
    Error,
    editor::Editor,
    extents::{self, Holder, Scratch, compact},
    groups::{self, Entry},
    keys::{self, dkey_punches, prune_key, prune_object, punched_at},
    memory,
    records::{
        AGED, ArrayHead, Boundary, ContainerRecord, Extent, Extents, Group, KeyRecord, Keys, Kind,
        ObjectRecord, PUNCHED, PendingDiscard, PunchRecord, Punches, Version, Versions,
    },
    tree::{self, Bound, Probe},
    versions,
    write::remove_change,
};

/// Entries that one slice deals with.
const SLICE_ENTRIES: usize = 64;

/// Notes a discard. Says whether there is anything to discard.
pub(crate) fn begin_discard(
    editor: &mut Editor<'_, '_>,
    cookie: Cookie,
    range: EpochRange,
) -> Result<bool, Error> {
    let by_cookie: u64 = *editor.read(editor.container_field(offset_of!(ContainerRecord, by_cookie)))?;
    if groups::next_by_cookie(editor.heap(), by_cookie, cookie, range)?.is_none() {
        return Ok(false);
    }
    let place = editor.container_field(offset_of!(ContainerRecord, discards));
    let next: u64 = *editor.read(place)?;
    let note = PendingDiscard { next, cookie: cookie.0, low: range.low.0, high: range.high.0 };
    let note = memory::allocate_with(editor.tx, &[note.as_bytes()])?;
    editor.write(place, &note)?;
    Ok(true)
}

/// Does a slice of the discard that was noted last. Says whether there is more to do for any discard.
pub(crate) fn discard_slice(editor: &mut Editor<'_, '_>, size: SliceSize) -> Result<bool, Error> {
    let place = editor.container_field(offset_of!(ContainerRecord, discards));
    let note: u64 = *editor.read(place)?;
    if note == 0 {
        return Ok(false);
    }
    let PendingDiscard { next, cookie, low, high } = *editor.read(note)?;
    let range = EpochRange { low: Epoch(low), high: Epoch(high) };
    let by_cookie = editor.container_field(offset_of!(ContainerRecord, by_cookie));
    for _ in 0..size.entries {
        let root: u64 = *editor.read(by_cookie)?;
        let Some(group) = groups::next_by_cookie(editor.heap(), root, Cookie(cookie), range)? else {
            memory::free(editor.tx, note)?;
            editor.write(place, &next)?;
            return Ok(next != 0);
        };
        match groups::first(editor.heap(), group)? {
            None => groups::remove(editor, group)?,
            Some(entry) => {
                let epoch = Epoch(editor.read::<Group>(group)?.epoch);
                remove_change(editor, entry, epoch)?;
                groups::consume(editor, group)?;
            }
        }
    }
    Ok(true)
}

/// Notes that `range` is being aggregated: from now on there may be records that no group lists, on both sides of its
/// lower end.
pub(crate) fn begin_aggregation(editor: &mut Editor<'_, '_>, range: EpochRange) -> Result<(), Error> {
    if range.low.0 > 1 {
        add_boundary(editor, range.low.0 - 1)?;
    }
    add_boundary(editor, range.high.0)
}

fn add_boundary(editor: &mut Editor<'_, '_>, high: u64) -> Result<(), Error> {
    let place = editor.container_field(offset_of!(ContainerRecord, boundaries));
    let first: u64 = *editor.read(place)?;
    let mut at = first;
    while at != 0 {
        let boundary: Boundary = *editor.read(at)?;
        if boundary.high == high {
            return Ok(());
        }
        at = boundary.next;
    }
    let boundary = Boundary { next: first, high };
    let boundary = memory::allocate_with(editor.tx, &[boundary.as_bytes()])?;
    editor.write(place, &boundary)
}

/// Forgets boundaries inside `range`, all of which is aggregated into one now.
pub(crate) fn end_aggregation(editor: &mut Editor<'_, '_>, range: EpochRange) -> Result<(), Error> {
    let mut place = editor.container_field(offset_of!(ContainerRecord, boundaries));
    loop {
        let at: u64 = *editor.read(place)?;
        if at == 0 {
            return Ok(());
        }
        let boundary: Boundary = *editor.read(at)?;
        if range.low.0 <= boundary.high && boundary.high < range.high.0 {
            memory::free(editor.tx, at)?;
            editor.write(place, &boundary.next)?;
        } else {
            place = at + offset_of!(Boundary, next) as u64;
        }
    }
}

/// Whether there can be two records of one key or byte in `range` that no group lists, because earlier aggregations kept
/// both. One earlier end in the range is not enough for that: below it each key has one, which goes when the group of a
/// newer one is met.
pub(crate) fn needs_sweep(editor: &Editor<'_, '_>, range: EpochRange) -> Result<bool, Error> {
    let mut at: u64 = *editor.read(editor.container_field(offset_of!(ContainerRecord, boundaries)))?;
    let mut inside = 0;
    while at != 0 {
        let boundary: Boundary = *editor.read(at)?;
        if range.low.0 <= boundary.high && boundary.high <= range.high.0 {
            inside += 1;
        }
        at = boundary.next;
    }
    Ok(inside > 1)
}

/// How much one slice may do. It starts with much; a slice that log or arena cannot take is done again with less.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SliceSize {
    /// Entries dealt with.
    pub entries: usize,
    /// Whether extents are trimmed and merged, which may need space before it gives any.
    pub compact: bool,
}

impl SliceSize {
    pub const WHOLE: Self = Self { entries: SLICE_ENTRIES, compact: true };

    /// The next smaller one, if there is one, after `error`.
    pub fn smaller(self, error: &Error) -> Option<Self> {
        match error {
            Error::TooLarge if self.entries > 1 => Some(Self { entries: (self.entries / 8).max(1), ..self }),
            Error::TooLarge | Error::NoSpace(_) if self.compact => Some(Self { compact: false, ..self }),
            _ => None,
        }
    }
}

/// Bytes of trimming and merging after which a slice ends.
const SLICE_COMPACTED_BYTES: u64 = 8 << 10;

/// Does a slice of aggregation. Says whether there is more to do.
pub(crate) fn aggregate_slice(
    editor: &mut Editor<'_, '_>,
    range: EpochRange,
    size: SliceSize,
    scratch: &mut Scratch,
) -> Result<bool, Error> {
    let by_epoch = editor.container_field(offset_of!(ContainerRecord, by_epoch));
    for _ in 0..size.entries {
        if editor.compacted_bytes >= SLICE_COMPACTED_BYTES {
            break;
        }
        let root: u64 = *editor.read(by_epoch)?;
        let from = (range.low, Cookie(0));
        let Some(group) = groups::next_by_epoch(editor.heap(), root, from, range)? else { return Ok(false) };
        let Some(entry) = groups::first(editor.heap(), group)? else {
            groups::remove(editor, group)?;
            continue;
        };
        let epoch = Epoch(editor.read::<Group>(group)?.epoch);
        if !age(editor, entry, epoch, (range, size), scratch)? {
            // The entry was too much for one slice; it is met again.
            return Ok(true);
        }
        groups::consume(editor, group)?;
    }
    Ok(true)
}

/// Aggregates one change: drops it, or makes it one that no group lists. Says whether it is done with.
fn age(
    editor: &mut Editor<'_, '_>,
    entry: Entry,
    epoch: Epoch,
    (range, size): (EpochRange, SliceSize),
    scratch: &mut Scratch,
) -> Result<bool, Error> {
    match entry {
        Entry::Single(key) => {
            age_version(editor, key, epoch, range)?;
            prune_key(editor, key)?;
        }
        Entry::AkeyExtent(key, block) => {
            age_extent(editor, (Holder::Akey(key), block, epoch), (range, size), scratch)?;
            extents::forget_note(editor, Holder::Akey(key))?;
            prune_key(editor, key)?;
        }
        Entry::ObjectExtent(object, block) => {
            age_extent(editor, (Holder::Object(object), block, epoch), (range, size), scratch)?;
            extents::forget_note(editor, Holder::Object(object))?;
            prune_object(editor, object)?;
        }
        Entry::Dkey(dkey) => {
            let place = keys::dkey_punches_place(editor, dkey)?;
            if !age_punch(
                editor,
                (keys::object_of_key(editor.heap(), dkey)?, Some(dkey)),
                place,
                epoch,
                (range, size),
            )? {
                return Ok(false);
            }
            prune_key(editor, dkey)?;
        }
        Entry::Object(object) => {
            let place = object + offset_of!(ObjectRecord, punches) as u64;
            if !age_punch(editor, (object, None), place, epoch, (range, size))? {
                return Ok(false);
            }
            prune_object(editor, object)?;
        }
    }
    Ok(true)
}

/// The newest punch at or before `epoch` of what is above a key, or above the array of a holder.
fn punched_above(editor: &Editor<'_, '_>, holder: Holder, epoch: Epoch) -> Result<u64, Error> {
    let heap = editor.heap();
    let (object, dkey) = match holder {
        Holder::Object(object) => (object, None),
        Holder::Akey(key) => {
            let record: &KeyRecord = memory::read(heap, key)?;
            let dkey = if record.kind() == Kind::Key { None } else { Some(record.parent) };
            (keys::object_of_key(heap, key)?, dkey)
        }
    };
    let mut hidden = punched_at(heap, memory::read::<ObjectRecord>(heap, object)?.punches, epoch)?;
    if let Some(dkey) = dkey {
        hidden = hidden.max(punched_at(heap, dkey_punches(heap, dkey)?, epoch)?);
    }
    Ok(hidden)
}

pub(crate) fn age_version(
    editor: &mut Editor<'_, '_>,
    key: u64,
    epoch: Epoch,
    range: EpochRange,
) -> Result<(), Error> {
    let root_place = key + offset_of!(KeyRecord, root) as u64;
    let at = |editor: &Editor<'_, '_>, epoch: u64| -> Result<Option<(u64, Version)>, Error> {
        let place = tree::floor(editor.heap(), Versions, *editor.read(root_place)?, epoch.into())?;
        place.map(|place| Ok((place, *editor.read::<Version>(place)?))).transpose()
    };
    let newest = at(editor, range.high.0)?;
    if newest.is_some_and(|(_, version)| version.epoch > epoch.0)
        || punched_above(editor, Holder::Akey(key), range.high)? > epoch.0
    {
        versions::remove_if(editor, key, epoch, |_| true)?;
        return Ok(());
    }
    // What earlier aggregations kept in the range is hidden by this one.
    while let Some((_, older)) = at(editor, epoch.0 - 1)?
        && older.epoch >= range.low.0
        && older.flags & AGED != 0
    {
        versions::remove_if(editor, key, Epoch(older.epoch), |_| true)?;
    }
    let Some((place, version)) = at(editor, epoch.0)?.filter(|(_, version)| version.epoch == epoch.0) else {
        return Ok(());
    };
    if version.flags & PUNCHED != 0 && at(editor, epoch.0 - 1)?.is_none() {
        versions::remove_if(editor, key, epoch, |_| true)?;
        return Ok(());
    }
    if version.flags & AGED == 0 {
        editor.write(place + offset_of!(Version, flags) as u64, &(version.flags | AGED))?;
    }
    Ok(())
}

pub(crate) fn age_extent(
    editor: &mut Editor<'_, '_>,
    (holder, block, epoch): (Holder, u64, Epoch),
    (range, size): (EpochRange, SliceSize),
    scratch: &mut Scratch,
) -> Result<(), Error> {
    let head_place: u64 = *editor.read(holder.head_place())?;
    if head_place == 0 {
        return Ok(());
    }
    let head: ArrayHead = *editor.read(head_place)?;
    let probe = extents::key_of(block, epoch.0);
    let Some(place) = tree::get(editor.heap(), Extents, head.extents, &probe)? else { return Ok(()) };
    let extent: Extent = *editor.read(place)?;
    let floor = punched_above(editor, holder, range.high)?;
    if is_hidden(editor, floor, &head, place, range.high, scratch)? {
        extents::remove(editor, holder, block, epoch, |_| true)?;
        return Ok(());
    }
    // What earlier aggregations kept in the range may be hidden by this one, or a part of it.
    let whole = extent.start..extent.end;
    extents::resolve(editor.heap(), Some(&head), whole.clone(), (range.low.0, epoch.0 - 1), scratch)?;
    let mut older: Vec<u64> = scratch.segments.iter().map(|segment| segment.extent).collect();
    older.sort_unstable();
    older.dedup();
    for other in older.into_iter().filter(|&other| other != 0) {
        let record: Extent = *editor.read(other)?;
        if record.flags & AGED == 0 {
            continue;
        }
        let head: ArrayHead = *editor.read(head_place)?;
        if is_hidden(editor, floor, &head, other, range.high, scratch)? {
            let block = extents::block_of(record.start, record.end);
            extents::remove(editor, holder, block, Epoch(record.epoch), |_| true)?;
        } else if size.compact {
            compact::trim(editor, holder, other, range.high.0, scratch)?;
        }
    }
    if extent.flags & PUNCHED != 0 {
        // Punches below it hide what it would; only data makes it needed.
        let head: ArrayHead = *editor.read(head_place)?;
        extents::resolve(editor.heap(), Some(&head), whole, (0, epoch.0 - 1), scratch)?;
        let mut needed = false;
        for segment in scratch.segments.iter().filter(|segment| segment.extent != 0) {
            needed |= editor.read::<Extent>(segment.extent)?.flags & PUNCHED == 0;
        }
        if !needed {
            extents::remove(editor, holder, block, epoch, |_| true)?;
            return Ok(());
        }
    }
    compact::mark_aged(editor, place)?;
    if size.compact {
        let pieces = compact::trim(editor, holder, place, range.high.0, scratch)?;
        let starts =
            pieces.map_or_else(|| vec![extent.start], |pieces| pieces.iter().map(|p| p.start).collect());
        for start in starts {
            let epochs = (range.low.0, range.high.0);
            compact::merge(editor, holder, start, epochs, floor, scratch)?;
        }
    }
    Ok(())
}

/// Whether no byte of the extent at `place` is visible at `epoch`, at which `floor` is the newest punch above it.
fn is_hidden(
    editor: &Editor<'_, '_>,
    floor: u64,
    head: &ArrayHead,
    place: u64,
    epoch: Epoch,
    scratch: &mut Scratch,
) -> Result<bool, Error> {
    let extent: &Extent = editor.read(place)?;
    if floor > extent.epoch {
        return Ok(true);
    }
    let range = extent.start..extent.end;
    extents::resolve(editor.heap(), Some(head), range, (0, epoch.0), scratch)?;
    Ok(scratch.segments.iter().all(|segment| segment.extent != place))
}

fn age_punch(
    editor: &mut Editor<'_, '_>,
    below: (u64, Option<u64>),
    place: u64,
    epoch: Epoch,
    (range, size): (EpochRange, SliceSize),
) -> Result<bool, Error> {
    let root: u64 = *editor.read(place)?;
    let probe = Probe::number(epoch.0.into());
    let Some(punch) = tree::get(editor.heap(), Punches, root, &probe)? else { return Ok(true) };
    let mut obsolete = punched_at(editor.heap(), root, range.high)? > epoch.0;
    if !obsolete {
        let hidden = range.low.0..epoch.0;
        if sweep_below(editor, below, hidden, size.entries)? == size.entries {
            return Ok(false);
        }
        // Everything older is gone, so the punch hides nothing. Above a snapshot it may still.
        obsolete = range.low.0 <= 1;
    }
    if obsolete {
        tree::remove(editor.tx, Punches, place, &probe)?;
        editor.count_record(-1, 0);
        memory::free(editor.tx, punch)?;
    } else {
        let flags = editor.read::<PunchRecord>(punch)?.flags | AGED;
        editor.write(punch + offset_of!(PunchRecord, flags) as u64, &flags)?;
    }
    Ok(true)
}

/// Something that no group lists.
#[derive(Clone, Copy, Debug)]
enum Aged {
    Version(u64, u64),
    Extent(Holder, u64, u64),
}

struct Found {
    aged: Vec<Aged>,
    limit: usize,
}

/// Removes up to `limit` aged records with epochs in `epochs` below an object, or below one of its dkeys. Returns how
/// many it removed.
fn sweep_below(
    editor: &mut Editor<'_, '_>,
    (object, dkey): (u64, Option<u64>),
    epochs: Range<u64>,
    limit: usize,
) -> Result<usize, Error> {
    let mut found = Found { aged: Vec::new(), limit };
    match dkey {
        Some(dkey) => aged_below_key(editor, dkey, &epochs, &mut found)?,
        None => {
            let record: ObjectRecord = *editor.read(object)?;
            let id = crate::records::object_id(&record, object)?;
            if id.object_type() == daos_types::ObjectType::Array {
                aged_extents(editor, Holder::Object(object), &epochs, &mut found)?;
            } else {
                aged_below(editor, record.root, &epochs, &mut found)?;
            }
        }
    }
    for aged in &found.aged {
        match *aged {
            Aged::Version(key, epoch) => {
                versions::remove_if(editor, key, Epoch(epoch), |_| true)?;
                prune_key(editor, key)?;
            }
            Aged::Extent(holder, block, epoch) => {
                extents::remove(editor, holder, block, Epoch(epoch), |_| true)?;
                match holder {
                    Holder::Akey(key) => prune_key(editor, key)?,
                    Holder::Object(object) => prune_object(editor, object)?,
                }
            }
        }
    }
    Ok(found.aged.len())
}

/// Collects aged records below the keys of a tree.
fn aged_below(
    editor: &Editor<'_, '_>,
    root: u64,
    epochs: &Range<u64>,
    found: &mut Found,
) -> Result<(), Error> {
    let class = Keys { order: KeyOrder::Hashed, seed: editor.seed };
    let _ = tree::scan(editor.heap(), class, root, Bound::First, &mut |key| {
        aged_below_key(editor, key, epochs, found)?;
        Ok(enough(found))
    })?;
    Ok(())
}

fn aged_below_key(
    editor: &Editor<'_, '_>,
    key: u64,
    epochs: &Range<u64>,
    found: &mut Found,
) -> Result<(), Error> {
    let record: &KeyRecord = editor.read(key)?;
    match record.kind() {
        Kind::Dkey => {
            let akeys: u64 = *editor.read(keys::akeys_place(editor.heap(), key)?)?;
            aged_below(editor, akeys, epochs, found)
        }
        Kind::Array => aged_extents(editor, Holder::Akey(key), epochs, found),
        Kind::Key | Kind::Single => {
            let _ = tree::scan(editor.heap(), Versions, record.root, Bound::First, &mut |place| {
                let version: &Version = editor.read(place)?;
                if epochs.contains(&version.epoch) && version.flags & AGED != 0 {
                    found.aged.push(Aged::Version(key, version.epoch));
                }
                Ok(enough(found))
            })?;
            Ok(())
        }
    }
}

fn aged_extents(
    editor: &Editor<'_, '_>,
    holder: Holder,
    epochs: &Range<u64>,
    found: &mut Found,
) -> Result<(), Error> {
    let head_place: u64 = *editor.read(holder.head_place())?;
    if head_place == 0 {
        return Ok(());
    }
    let head: &ArrayHead = editor.read(head_place)?;
    let _ = tree::scan(editor.heap(), Extents, head.extents, Bound::First, &mut |place| {
        let extent: &Extent = editor.read(place)?;
        if epochs.contains(&extent.epoch) && extent.flags & AGED != 0 {
            let block = extents::block_of(extent.start, extent.end);
            found.aged.push(Aged::Extent(holder, block, extent.epoch));
        }
        Ok(enough(found))
    })?;
    Ok(())
}

fn enough(found: &Found) -> ControlFlow<()> {
    if found.aged.len() >= found.limit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}
