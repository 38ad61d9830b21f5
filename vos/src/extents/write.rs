//! Writing and removing extents.

use std::{mem::offset_of, ops::Range};

use daos_types::{Cookie, Epoch, Writer, WriterKind};
use zerocopy::IntoBytes;

use super::{
    Holder, at_epoch, block_of, check_key, corrupt, data::check_inline, get, key_of, level_of, owner_of,
};
use crate::{
    Checksums, Conflict, Error,
    editor::Editor,
    groups::Entry,
    memory,
    records::{
        AGED, ArrayHead, DETACHED, DETACHED_BYTES_MIN, EXTENT_BYTES, Extent, Extents, PUNCHED, REBUILD,
        STORED, VIEW, writer_flags,
    },
    tree::{self, Path},
};

/// What a new extent holds.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Source<'a> {
    Punched,
    Inline(&'a [u8], Checksums<'a>),
    /// Position on the block tier.
    Stored(u64, Checksums<'a>),
}

/// An extent to be written.
#[derive(Clone, Debug)]
pub(crate) struct NewExtent<'a> {
    pub range: Range<u64>,
    pub epoch: Epoch,
    pub writer: Writer,
    pub source: Source<'a>,
}

impl NewExtent<'_> {
    /// Checks the checksums that the caller gave.
    fn check(&self) -> Result<(), Error> {
        match &self.source {
            Source::Punched => Ok(()),
            Source::Inline(bytes, checksums) => check_inline(&self.range, checksums, Some(bytes)),
            Source::Stored(_, checksums) => check_inline(&self.range, checksums, None),
        }
    }

    /// Whether the extent at `place` is known to hold the same; as for single values, equal checksums of what is stored on the
    /// block tier tell a repetition only.
    fn is_that_of(&self, editor: &Editor<'_, '_>, place: u64, conflict: Conflict) -> Result<bool, Error> {
        let heap = editor.heap();
        let extent: &Extent = editor.read(place)?;
        if (extent.start, extent.end) != (self.range.start, self.range.end) {
            return Ok(false);
        }
        Ok(match self.source {
            Source::Punched => extent.flags & PUNCHED != 0,
            Source::Inline(..) | Source::Stored(..) if extent.flags & (PUNCHED | VIEW) != 0 => false,
            Source::Inline(_, checksums) | Source::Stored(_, checksums) => {
                super::data::recorded_checksums(heap, place)?.is_some_and(|(chunk_bytes, chunks)| {
                    (chunk_bytes, chunks.as_slice()) == (checksums.chunk_bytes, checksums.chunks)
                }) && match (self.source, extent.flags & STORED) {
                    (Source::Inline(bytes, _), 0) => matches!(
                        super::locate(heap, place, self.range.clone())?,
                        super::ExtentSource::Inline(stored) if stored == bytes
                    ),
                    _ => conflict == Conflict::Refuse,
                }
            }
        })
    }
}

/// Writes an extent. Says whether its place on the block tier, if it has one, is used now.
pub(crate) fn insert(
    editor: &mut Editor<'_, '_>,
    holder: Holder,
    new: &NewExtent<'_>,
    conflict: Conflict,
) -> Result<bool, Error> {
    let mut head_place: u64 = *editor.read(holder.head_place())?;
    if head_place == 0 {
        let head = ArrayHead { extents: 0, levels: 0, newest: 0, notes: 0 };
        head_place = memory::allocate_with(editor.tx, &[head.as_bytes()])?;
        editor.write(holder.head_place(), &head_place)?;
    }
    let head: ArrayHead = *editor.read(head_place)?;
    let block = block_of(new.range.start, new.range.end);
    let mut overlapping = Vec::new();
    // What has the epoch in the block that the extent belongs to overlaps it: both cross the block's middle.
    let probe = key_of(block, new.epoch.0);
    let mut path = Path::new();
    path.lead_to::<Extents>(editor.heap(), head.extents, &probe)?;
    new.check()?;
    if let Some(place) = tree::get_at(editor.heap(), Extents, head.extents, &path, &probe)? {
        check_key(editor.heap(), place, &probe)?;
        overlapping.push(place);
    }
    let others = ArrayHead { levels: head.levels & !(1 << level_of(block)), ..head };
    at_epoch(editor.heap(), &others, &new.range, new.epoch.0, &mut |place| {
        overlapping.push(place);
        Ok(())
    })?;
    if overlapping.is_empty() {
        let owner = write_owner(editor, new, 1, 0)?;
        editor.count_record(0, stored_bytes(new.range.end - new.range.start, &new.source));
        widen_head(editor, head_place, 1 << level_of(block), new.epoch.0)?;
        link_at(editor, holder, head_place, owner, Some(&path))?;
        return Ok(true);
    }
    insert_among(editor, holder, head_place, new, conflict, &overlapping)
}

/// As [`insert`], where extents of the epoch overlap the new one.
fn insert_among(
    editor: &mut Editor<'_, '_>,
    holder: Holder,
    head_place: u64,
    new: &NewExtent<'_>,
    conflict: Conflict,
    overlapping: &[u64],
) -> Result<bool, Error> {
    // Where something stays that counts more than the new extent.
    let mut kept: Vec<Range<u64>> = Vec::new();
    let mut replaced = Vec::new();
    for &place in overlapping {
        let old: Extent = *editor.read(place)?;
        let refused = Error::EpochConflict { epoch: new.epoch, holder: Cookie(old.cookie) };
        let (old_rebuild, rebuild) = (old.flags & REBUILD != 0, new.writer.kind == WriterKind::Rebuild);
        if old.cookie != new.writer.cookie.0 {
            return Err(refused);
        }
        match (old_rebuild, rebuild) {
            (false, true) => kept.push(old.start..old.end),
            (true, false) => replaced.push(place),
            _ if new.is_that_of(editor, place, conflict)? => return Ok(false),
            _ if conflict == Conflict::LastWins => replaced.push(place),
            _ => return Err(refused),
        }
    }
    let pieces = without(&new.range, kept);
    if pieces.is_empty() {
        return Ok(false);
    }
    for place in replaced {
        cut(editor, holder, head_place, place, &new.range)?;
    }
    let owner = write_owner(editor, new, pieces.len() as u32, 0)?;
    editor.count_record(0, stored_bytes(new.range.end - new.range.start, &new.source));
    let levels =
        pieces.iter().fold(0, |levels, piece| levels | 1 << level_of(block_of(piece.start, piece.end)));
    let newest = new.epoch.0;
    widen_head(editor, head_place, levels, newest)?;
    if pieces.len() == 1 && pieces[0] == new.range {
        return link(editor, holder, head_place, owner).map(|()| true);
    }
    let header: Extent = *editor.read(owner)?;
    for piece in pieces {
        add_view(editor, holder, head_place, &header, owner, piece)?;
    }
    if header.flags & PUNCHED != 0 {
        // Its pieces are punches of their own.
        memory::free(editor.tx, owner)?;
    }
    Ok(true)
}

fn stored_bytes(length: u64, source: &Source<'_>) -> i64 {
    if matches!(source, Source::Punched) { 0 } else { length as i64 }
}

/// `range` without the ranges in `taken`, which do not overlap each other.
fn without(range: &Range<u64>, mut taken: Vec<Range<u64>>) -> Vec<Range<u64>> {
    taken.sort_unstable_by_key(|taken| taken.start);
    let mut pieces = Vec::new();
    let mut position = range.start;
    for taken in taken {
        if taken.start > position {
            pieces.push(position..taken.start);
        }
        position = position.max(taken.end);
    }
    if position < range.end {
        pieces.push(position..range.end);
    }
    pieces
}

pub(super) fn widen_head(
    editor: &mut Editor<'_, '_>,
    head_place: u64,
    levels: u64,
    newest: u64,
) -> Result<(), Error> {
    let head: ArrayHead = *editor.read(head_place)?;
    if head.levels | levels != head.levels {
        editor.write(head_place + offset_of!(ArrayHead, levels) as u64, &(head.levels | levels))?;
    }
    if newest > head.newest {
        editor.write(head_place + offset_of!(ArrayHead, newest) as u64, &newest)?;
    }
    Ok(())
}

/// Lays the extent out in the arena, with these flags besides those that follow from it.
pub(super) fn write_owner(
    editor: &mut Editor<'_, '_>,
    new: &NewExtent<'_>,
    references: u32,
    more_flags: u32,
) -> Result<u64, Error> {
    let (flags, chunk_bytes) = match new.source {
        Source::Punched => (PUNCHED, 0),
        Source::Inline(data, checksums) if data.len() >= DETACHED_BYTES_MIN => {
            (DETACHED, checksums.chunk_bytes)
        }
        Source::Inline(_, checksums) => (0, checksums.chunk_bytes),
        Source::Stored(_, checksums) => (STORED, checksums.chunk_bytes),
    };
    let header = Extent {
        start: new.range.start,
        end: new.range.end,
        epoch: new.epoch.0,
        cookie: new.writer.cookie.0,
        map_version: new.writer.map_version,
        flags: flags | writer_flags(new.writer) | more_flags,
        references,
        chunk_bytes,
    };
    let mut scratch = std::mem::take(&mut editor.cache.scratch);
    scratch.clear();
    scratch.extend_from_slice(header.as_bytes());
    let mut bytes: &[u8] = &[];
    match new.source {
        Source::Punched => {}
        Source::Inline(data, checksums) => {
            checksums.chunks.iter().for_each(|chunk| scratch.extend_from_slice(&chunk.0.to_le_bytes()));
            scratch.resize(scratch.len().next_multiple_of(8), 0);
            if flags & DETACHED != 0 {
                let block = memory::allocate_with(editor.tx, &[data])?;
                scratch.extend_from_slice(&block.to_le_bytes());
            } else {
                bytes = data;
            }
        }
        Source::Stored(position, checksums) => {
            scratch.extend_from_slice(&position.to_le_bytes());
            checksums.chunks.iter().for_each(|chunk| scratch.extend_from_slice(&chunk.0.to_le_bytes()));
        }
    }
    let place = memory::allocate_with(editor.tx, &[&scratch, bytes]);
    editor.cache.scratch = scratch;
    place
}

/// Puts an extent into the tree and into its group.
pub(super) fn link(
    editor: &mut Editor<'_, '_>,
    holder: Holder,
    head_place: u64,
    place: u64,
) -> Result<(), Error> {
    link_at(editor, holder, head_place, place, None)
}

/// As [`link`], where the way to the extent's place in the tree may be known already.
fn link_at(
    editor: &mut Editor<'_, '_>,
    holder: Holder,
    head_place: u64,
    place: u64,
    path: Option<&Path>,
) -> Result<(), Error> {
    let extent: Extent = *editor.read(place)?;
    let block = block_of(extent.start, extent.end);
    let probe = key_of(block, extent.epoch);
    let root_place = head_place + offset_of!(ArrayHead, extents) as u64;
    match path {
        Some(path) => tree::insert_at(editor.tx, Extents, root_place, path, &probe, place)?,
        None => tree::insert(editor.tx, Extents, root_place, &probe, place)?,
    }
    editor.count_record(1, 0);
    if extent.flags & AGED != 0 {
        return Ok(());
    }
    let entry = match holder {
        Holder::Akey(key) => Entry::AkeyExtent(key, block),
        Holder::Object(object) => Entry::ObjectExtent(object, block),
    };
    let notes = editor.read::<ArrayHead>(head_place)?.notes + 1;
    editor.write(head_place + offset_of!(ArrayHead, notes) as u64, &notes)?;
    entry.note(editor, Epoch(extent.epoch), Cookie(extent.cookie))
}

/// Adds an extent that shows `piece` of the data of the extent at `owner`, whose references count it already. A punch
/// has no data: its piece is a punch of its own, and nothing refers to the owner.
pub(super) fn add_view(
    editor: &mut Editor<'_, '_>,
    holder: Holder,
    head_place: u64,
    header: &Extent,
    owner: u64,
    piece: Range<u64>,
) -> Result<(), Error> {
    let mut view = *header;
    (view.start, view.end, view.references) = (piece.start, piece.end, 0);
    let place = if header.flags & PUNCHED != 0 {
        view.references = 1;
        memory::allocate_with(editor.tx, &[view.as_bytes()])?
    } else {
        view.flags |= VIEW;
        memory::allocate_with(editor.tx, &[view.as_bytes(), &owner.to_le_bytes()])?
    };
    let level = level_of(block_of(piece.start, piece.end));
    widen_head(editor, head_place, 1 << level, header.epoch)?;
    link(editor, holder, head_place, place)
}

/// Takes `range` away from the extent at `place`.
fn cut(
    editor: &mut Editor<'_, '_>,
    holder: Holder,
    head_place: u64,
    place: u64,
    range: &Range<u64>,
) -> Result<(), Error> {
    let old: Extent = *editor.read(place)?;
    let rest = without(&(old.start..old.end), vec![range.clone()]);
    let owner = owner_of(editor.heap(), place)?;
    if old.flags & PUNCHED == 0 {
        // Counted before the old extent lets go of its reference, so that the data stays.
        add_references(editor, owner, rest.len() as i32)?;
    }
    let header = Extent { flags: old.flags & !VIEW, ..old };
    unlink(editor, head_place, place)?;
    for piece in rest {
        add_view(editor, holder, head_place, &header, owner, piece)?;
    }
    Ok(())
}

fn add_references(editor: &mut Editor<'_, '_>, owner: u64, change: i32) -> Result<u32, Error> {
    let references = editor.read::<Extent>(owner)?.references.wrapping_add_signed(change);
    editor.write(owner + offset_of!(Extent, references) as u64, &references)?;
    Ok(references)
}

/// Takes the extent at `place` out of the tree, and gives its data back if nothing else shows it.
fn unlink(editor: &mut Editor<'_, '_>, head_place: u64, place: u64) -> Result<(), Error> {
    unlink_with(editor, head_place, place, true)
}

/// As [`unlink`], but what it has on the block tier stays in use: another record is about to name it.
pub(super) fn unlink_keeping_blocks(
    editor: &mut Editor<'_, '_>,
    head_place: u64,
    place: u64,
) -> Result<(), Error> {
    unlink_with(editor, head_place, place, false)
}

/// The extent that has the data of the one at `place`, with its place.
pub(super) fn owner_at(heap: &daos_umem::Heap, place: u64) -> Result<(u64, Extent), Error> {
    let owner = owner_of(heap, place)?;
    Ok((owner, *memory::read(heap, owner)?))
}

fn unlink_with(
    editor: &mut Editor<'_, '_>,
    head_place: u64,
    place: u64,
    give_back_blocks: bool,
) -> Result<(), Error> {
    let extent: Extent = *editor.read(place)?;
    let owner = owner_of(editor.heap(), place)?;
    let probe = key_of(block_of(extent.start, extent.end), extent.epoch);
    let removed =
        tree::remove(editor.tx, Extents, head_place + offset_of!(ArrayHead, extents) as u64, &probe)?;
    if removed != Some(place) {
        // Freed, it would still be in the tree.
        return Err(corrupt(place));
    }
    editor.count_record(-1, 0);
    if owner != place {
        memory::free(editor.tx, place)?;
    }
    if add_references(editor, owner, -1)? == 0 {
        let record: Extent = *editor.read(owner)?;
        let length = record.end - record.start;
        if record.flags & STORED != 0 && give_back_blocks {
            let position: u64 = *editor.read(owner + EXTENT_BYTES)?;
            editor.freed_blocks.push((position, length));
        }
        if record.flags & PUNCHED == 0 {
            editor.count_record(0, -(length as i64));
        }
        if let Some(block) = super::data::detached_block(editor.heap(), owner)? {
            memory::free(editor.tx, block)?;
        }
        memory::free(editor.tx, owner)?;
    }
    Ok(())
}

/// One entry of a group that named the holder's array has been consumed.
pub(crate) fn forget_note(editor: &mut Editor<'_, '_>, holder: Holder) -> Result<(), Error> {
    let head_place: u64 = *editor.read(holder.head_place())?;
    let corrupt = Error::Corrupt { place: "array that an entry names", position: holder.head_place() };
    if head_place == 0 {
        return Err(corrupt);
    }
    let notes = editor.read::<ArrayHead>(head_place)?.notes.checked_sub(1).ok_or(corrupt)?;
    editor.write(head_place + offset_of!(ArrayHead, notes) as u64, &notes)?;
    free_head_if_done(editor, holder, head_place)
}

/// Frees the head of an array that is empty and that no entry names.
fn free_head_if_done(editor: &mut Editor<'_, '_>, holder: Holder, head_place: u64) -> Result<(), Error> {
    let head = editor.read::<ArrayHead>(head_place)?;
    if head.extents == 0 && head.notes == 0 {
        memory::free(editor.tx, head_place)?;
        editor.write(holder.head_place(), &0u64)?;
    }
    Ok(())
}

/// Frees the head of an empty array whatever names it: its container is being destroyed.
pub(crate) fn abandon_head(editor: &mut Editor<'_, '_>, holder: Holder) -> Result<(), Error> {
    let head_place: u64 = *editor.read(holder.head_place())?;
    if head_place != 0 && editor.read::<ArrayHead>(head_place)?.extents == 0 {
        memory::free(editor.tx, head_place)?;
        editor.write(holder.head_place(), &0u64)?;
    }
    Ok(())
}

/// Removes the extent at (block, epoch) if it is there and `wanted`. The holder stays, even if it is empty then; its array
/// head does not, unless an entry still names it.
pub(crate) fn remove(
    editor: &mut Editor<'_, '_>,
    holder: Holder,
    block: u64,
    epoch: Epoch,
    wanted: impl FnOnce(&Extent) -> bool,
) -> Result<bool, Error> {
    let head_place: u64 = *editor.read(holder.head_place())?;
    if head_place == 0 {
        return Ok(false);
    }
    let head: ArrayHead = *editor.read(head_place)?;
    let probe = key_of(block, epoch.0);
    let Some(place) = get(editor.heap(), head.extents, &probe)? else { return Ok(false) };
    if !wanted(editor.read(place)?) {
        return Ok(false);
    }
    unlink(editor, head_place, place)?;
    free_head_if_done(editor, holder, head_place)?;
    Ok(true)
}
