//! Making what aggregation keeps of an array small: extents of which a part is hidden give that part back, and small
//! neighbours become one.
//!
//! # Invariants
//!
//! * Nothing is rewritten but bytes that were verified against their checksums just before; a checksum whose chunk is
//!   taken over whole is taken over too, so that damage in between is found by the next reader.
//! * What is visible at the end of the aggregated range, or later, or at a snapshot before it, is the same as before.
//! * Merging two extents costs a copy of both; it is done only if neither is more than twice the other, so that a byte
//!   is copied a number of times that is logarithmic in [`MERGED_BYTES_MAX`].

use std::{mem::offset_of, ops::Range};

use daos_types::{Checksum, Cookie, Epoch, Writer, WriterKind};

use super::{
    ExtentSource, Holder, Scratch,
    data::{CHUNK_BYTES, chunk_range, chunks_of},
    locate, owner_of, resolve,
    write::{NewExtent, Source, add_view, link, owner_at, unlink_keeping_blocks, widen_head, write_owner},
};
use crate::{
    Checksums, Error,
    editor::Editor,
    extents::{at_epoch, block_of, level_of},
    memory,
    records::{AGED, ArrayHead, EXTENT_BYTES, Extent, PUNCHED, REBUILD, STORED, VIEW},
};

/// Largest extent in the arena that merging makes. A power of two; small, since a merge is a part of one transaction.
pub(crate) const MERGED_BYTES_MAX: u64 = 16 << 10;
/// Largest extent on the block tier that merging makes (only its checksums are copied).
const MERGED_STORED_BYTES_MAX: u64 = 4 << 20;
/// Data that more extents show is left alone: looking for them takes time for each.
const VIEWS_MAX: u32 = 64;
/// What an extent in the arena costs beyond its bytes.
const RECORD_BYTES: u64 = 128;
const BLOCK: u64 = daos_xstream::BLOCK_BYTES as u64;

fn writer_of(extent: &Extent) -> Writer {
    let kind = if extent.flags & REBUILD == 0 { WriterKind::Application } else { WriterKind::Rebuild };
    Writer { cookie: Cookie(extent.cookie), map_version: extent.map_version, kind }
}

fn head_of(editor: &Editor<'_, '_>, holder: Holder) -> Result<(u64, ArrayHead), Error> {
    let place: u64 = *editor.read(holder.head_place())?;
    Ok((place, *editor.read(place)?))
}

/// Gives back what is not visible at `epoch` of the extent at `place`, if that saves anything. Returns the pieces of it
/// that are visible; `None` if it was left as it is.
pub(crate) fn trim(
    editor: &mut Editor<'_, '_>,
    holder: Holder,
    place: u64,
    epoch: u64,
    scratch: &mut Scratch,
) -> Result<Option<Vec<Range<u64>>>, Error> {
    let (head_place, head) = head_of(editor, holder)?;
    let extent: Extent = *editor.read(place)?;
    if extent.flags & PUNCHED != 0 {
        return Ok(None);
    }
    let whole = extent.start..extent.end;
    resolve(editor.heap(), Some(&head), whole.clone(), (0, epoch), scratch)?;
    let visible = scratch.segments.iter().filter(|segment| segment.extent == place);
    let pieces: Vec<Range<u64>> = visible.map(|segment| segment.start..segment.end).collect();
    if pieces.is_empty() {
        return Ok(None);
    }
    let owner_place = owner_of(editor.heap(), place)?;
    let owner: Extent = *editor.read(owner_place)?;
    let trimmed = if owner.flags & STORED != 0 {
        let shown = shown_of(editor, &head, (owner_place, &owner), epoch, scratch)?;
        let Some(Shown { views, pieces }) = shown else { return Ok(None) };
        let trimmed = trim_stored(editor, holder, head_place, (place, &views), &pieces)?;
        return Ok(trimmed.then_some(pieces));
    } else {
        let visible: u64 = pieces.iter().map(|piece| piece.end - piece.start).sum();
        // Its share of the bytes that go when it, and whatever else shows them, has been rewritten.
        let share = (owner.end - owner.start) / u64::from(owner.references.max(1));
        let cost = visible + pieces.len() as u64 * RECORD_BYTES;
        let saves =
            cost < share + RECORD_BYTES && (pieces.len() > 1 || pieces[0] != whole || owner_place != place);
        if saves {
            rewrite(editor, holder, head_place, place, &pieces)?;
        }
        saves
    };
    Ok(trimmed.then_some(pieces))
}

/// What is left of data on the block tier that several extents may show.
struct Shown {
    /// The extents.
    views: Vec<u64>,
    /// What is visible of them, in order.
    pieces: Vec<Range<u64>>,
}

/// What is shown at `epoch` of the data of `owner`; `None` as long as somebody still has to aggregate a part of it, who then
/// comes here too. Extents of one owner are of one epoch, so that all of them are in the range that is being aggregated.
fn shown_of(
    editor: &Editor<'_, '_>,
    head: &ArrayHead,
    (owner_place, owner): (u64, &Extent),
    epoch: u64,
    scratch: &mut Scratch,
) -> Result<Option<Shown>, Error> {
    let heap = editor.heap();
    let whole = owner.start..owner.end;
    let (mut views, mut all_aged) = (Vec::new(), true);
    if owner.references > VIEWS_MAX {
        return Ok(None);
    }
    at_epoch(heap, head, &whole, owner.epoch, &mut |place| {
        if owner_of(heap, place)? == owner_place {
            views.push(place);
            all_aged &= memory::read::<Extent>(heap, place)?.flags & AGED != 0;
        }
        Ok(())
    })?;
    if !all_aged || views.len() as u64 != u64::from(owner.references) {
        return Ok(None);
    }
    resolve(heap, Some(head), whole, (0, epoch), scratch)?;
    let visible = scratch.segments.iter().filter(|segment| views.contains(&segment.extent));
    let pieces = visible.map(|segment| segment.start..segment.end).collect();
    Ok(Some(Shown { views, pieces }))
}

/// Replaces the extent at `place`, whose bytes are in the arena, by copies of pieces of it.
fn rewrite(
    editor: &mut Editor<'_, '_>,
    holder: Holder,
    head_place: u64,
    place: u64,
    pieces: &[Range<u64>],
) -> Result<(), Error> {
    let extent: Extent = *editor.read(place)?;
    let mut copies = Vec::with_capacity(pieces.len());
    for piece in pieces {
        copies.push(copy_of(editor, place, piece)?);
    }
    unlink_keeping_blocks(editor, head_place, place)?;
    for (piece, (bytes, chunk_bytes, checksums)) in pieces.iter().zip(&copies) {
        let checksums = Checksums { chunk_bytes: *chunk_bytes, chunks: checksums };
        put(editor, holder, head_place, &extent, piece.clone(), bytes, checksums)?;
        editor.compacted_bytes += bytes.len() as u64;
    }
    Ok(())
}

/// The verified bytes of a piece of an extent in the arena, with their checksums.
fn copy_of(
    editor: &Editor<'_, '_>,
    place: u64,
    piece: &Range<u64>,
) -> Result<(Vec<u8>, u32, Vec<Checksum>), Error> {
    let heap = editor.heap();
    let ExtentSource::Inline(bytes) = locate(heap, place, piece.clone())? else {
        return Err(Error::Corrupt { place: "extent", position: place });
    };
    let owner_place = owner_of(heap, place)?;
    let owner: &Extent = memory::read(heap, owner_place)?;
    let whole = owner.start..owner.end;
    let recorded: &[u32] =
        memory::read_slice(heap, owner_place + EXTENT_BYTES, chunks_of(&whole, owner.chunk_bytes))?;
    let bytes = bytes.to_vec();
    let first = piece.start / u64::from(owner.chunk_bytes) - whole.start / u64::from(owner.chunk_bytes);
    let checksums = (0..chunks_of(piece, owner.chunk_bytes)).map(|index| {
        let chunk = chunk_range(piece, owner.chunk_bytes, index);
        if chunk == chunk_range(&whole, owner.chunk_bytes, first + index) {
            return Checksum(recorded[(first + index) as usize]);
        }
        let (from, to) = ((chunk.start - piece.start) as usize, (chunk.end - piece.start) as usize);
        Checksum(crc32c::crc32c(&bytes[from..to]))
    });
    let checksums = checksums.collect();
    Ok((bytes, owner.chunk_bytes, checksums))
}

/// Adds an aged extent with the stamp of `like`.
fn put(
    editor: &mut Editor<'_, '_>,
    holder: Holder,
    head_place: u64,
    like: &Extent,
    range: Range<u64>,
    bytes: &[u8],
    checksums: Checksums<'_>,
) -> Result<(), Error> {
    let source = Source::Inline(bytes, checksums);
    place_extent(editor, holder, head_place, like, range, source)
}

fn place_extent(
    editor: &mut Editor<'_, '_>,
    holder: Holder,
    head_place: u64,
    like: &Extent,
    range: Range<u64>,
    source: Source<'_>,
) -> Result<(), Error> {
    let length = (range.end - range.start) as i64;
    let level = level_of(block_of(range.start, range.end));
    let new = NewExtent { range, epoch: Epoch(like.epoch), writer: writer_of(like), source };
    let owner = write_owner(editor, &new, 1, AGED)?;
    editor.count_record(0, length);
    widen_head(editor, head_place, 1 << level, like.epoch)?;
    link(editor, holder, head_place, owner)
}

/// Cuts data on the block tier, which `place` and the others of `views` show, down to the whole chunks that the visible pieces
/// touch; says whether that frees any block. Nothing is read or written there.
fn trim_stored(
    editor: &mut Editor<'_, '_>,
    holder: Holder,
    head_place: u64,
    (place, views): (u64, &[u64]),
    pieces: &[Range<u64>],
) -> Result<bool, Error> {
    let extent: Extent = *editor.read(place)?;
    let owner_place = owner_of(editor.heap(), place)?;
    let owner: Extent = *editor.read(owner_place)?;
    let corrupt = Error::Corrupt { place: "extent", position: owner_place };
    let whole = owner.start..owner.end;
    if whole.is_empty()
        || !CHUNK_BYTES.contains(&owner.chunk_bytes)
        || extent.start < whole.start
        || extent.end > whole.end
    {
        return Err(corrupt);
    }
    let position: u64 = *editor.read(owner_place + EXTENT_BYTES)?;
    let chunk = u64::from(owner.chunk_bytes);
    let at = |offset: u64| position + (offset - whole.start);
    // What is kept, in order: a range that begins at a block, and the pieces in it.
    let mut kept: Vec<(Range<u64>, Vec<Range<u64>>)> = Vec::new();
    for piece in pieces {
        let mut start = whole.start.max(piece.start / chunk * chunk);
        while start > whole.start && !at(start).is_multiple_of(BLOCK) {
            start = whole.start.max((start - 1) / chunk * chunk);
        }
        let end = whole.end.min(piece.end.next_multiple_of(chunk));
        match kept.last_mut() {
            Some((last, within)) if at(start) < at(last.end).next_multiple_of(BLOCK) => {
                last.end = last.end.max(end);
                within.push(piece.clone());
            }
            _ => kept.push((start..end, vec![piece.clone()])),
        }
    }
    // The blocks between, before and after.
    let mut freed = Vec::new();
    let mut from = at(whole.start);
    for (range, _) in &kept {
        if at(range.start) > from {
            freed.push((from, at(range.start) - from));
        }
        from = at(range.end).next_multiple_of(BLOCK);
    }
    let end = at(whole.end).next_multiple_of(BLOCK);
    if end > from {
        freed.push((from, end - from));
    }
    if freed.is_empty() {
        return Ok(false);
    }
    let recorded: Vec<Checksum> = memory::read_slice::<u32>(
        editor.heap(),
        owner_place + EXTENT_BYTES + 8,
        chunks_of(&whole, owner.chunk_bytes),
    )?
    .iter()
    .map(|&checksum| Checksum(checksum))
    .collect();
    for &view in views {
        unlink_keeping_blocks(editor, head_place, view)?;
    }
    editor.freed_blocks.append(&mut freed);
    for (range, within) in kept {
        let first = (range.start / chunk - whole.start / chunk) as usize;
        let count = chunks_of(&range, owner.chunk_bytes) as usize;
        let checksums = Checksums { chunk_bytes: owner.chunk_bytes, chunks: &recorded[first..first + count] };
        let source = Source::Stored(at(range.start), checksums);
        editor.compacted_bytes += count as u64 * 4;
        if within.len() == 1 && within[0] == range {
            place_extent(editor, holder, head_place, &extent, range, source)?;
            continue;
        }
        editor.count_record(0, (range.end - range.start) as i64);
        let writer = writer_of(&extent);
        let new = NewExtent { range, epoch: Epoch(extent.epoch), writer, source };
        let owner = write_owner(editor, &new, within.len() as u32, AGED)?;
        let header: Extent = *editor.read(owner)?;
        for piece in within {
            add_view(editor, holder, head_place, &header, owner, piece)?;
        }
    }
    Ok(true)
}

/// Merges the extent that is visible at `offset` with its neighbours, as often as that goes. `epochs` is the range being
/// aggregated, `floor` the newest punch above the array at its end.
pub(crate) fn merge(
    editor: &mut Editor<'_, '_>,
    holder: Holder,
    mut offset: u64,
    epochs: (u64, u64),
    floor: u64,
    scratch: &mut Scratch,
) -> Result<(), Error> {
    loop {
        let (head_place, head) = head_of(editor, holder)?;
        let Some(place) = whole_at(editor, &head, offset, epochs, floor, scratch)? else { return Ok(()) };
        let extent: Extent = *editor.read(place)?;
        let left = match extent.start {
            0 => None,
            start => whole_at(editor, &head, start - 1, epochs, floor, scratch)?,
        };
        let right = match extent.end {
            crate::ARRAY_BYTES_MAX => None,
            end => whole_at(editor, &head, end, epochs, floor, scratch)?,
        };
        let pairs = [left.map(|left| (left, place)), right.map(|right| (place, right))];
        let mut merged = false;
        for (left, right) in pairs.into_iter().flatten() {
            if merge_two(editor, holder, head_place, left, right)? {
                merged = true;
                break;
            }
        }
        if !merged {
            return Ok(());
        }
        offset = extent.start;
    }
}

/// The extent that shows `offset`, if it was aggregated within `epochs` and all of it is visible at their end.
fn whole_at(
    editor: &Editor<'_, '_>,
    head: &ArrayHead,
    offset: u64,
    (low, high): (u64, u64),
    floor: u64,
    scratch: &mut Scratch,
) -> Result<Option<u64>, Error> {
    resolve(editor.heap(), Some(head), offset..offset + 1, (0, high), scratch)?;
    let place = scratch.segments.first().map_or(0, |segment| segment.extent);
    if place == 0 {
        return Ok(None);
    }
    let extent: Extent = *editor.read(place)?;
    if extent.flags & AGED == 0 || extent.flags & PUNCHED != 0 || extent.epoch < low.max(floor) {
        return Ok(None);
    }
    resolve(editor.heap(), Some(head), extent.start..extent.end, (0, high), scratch)?;
    Ok((scratch.segments.len() == 1 && scratch.segments[0].extent == place).then_some(place))
}

/// Makes one extent of two neighbours, if they are such that it is worth it. Says whether it did.
fn merge_two(
    editor: &mut Editor<'_, '_>,
    holder: Holder,
    head_place: u64,
    left_place: u64,
    right_place: u64,
) -> Result<bool, Error> {
    let (left, right): (Extent, Extent) = (*editor.read(left_place)?, *editor.read(right_place)?);
    let lengths = (left.end - left.start, right.end - right.start);
    let newest = if left.epoch >= right.epoch { left } else { right };
    let alike = left.end == right.start
        && left.flags & REBUILD == right.flags & REBUILD
        // A record of an epoch says who wrote it in that epoch.
        && (left.epoch != right.epoch || left.cookie == right.cookie)
        && lengths.0.max(lengths.1) <= 2 * lengths.0.min(lengths.1);
    let heap = editor.heap();
    let (left_owner, right_owner) = (owner_at(heap, left_place)?, owner_at(heap, right_place)?);
    if !alike
        || left_owner.1.chunk_bytes != right_owner.1.chunk_bytes
        || left_owner.1.flags & STORED != right_owner.1.flags & STORED
    {
        return Ok(false);
    }
    let range = left.start..right.end;
    let chunk_bytes = left_owner.1.chunk_bytes;
    if left_owner.1.flags & STORED != 0 {
        return merge_stored(editor, holder, head_place, (left_place, left), (right_place, right));
    }
    if lengths.0 + lengths.1 > MERGED_BYTES_MAX {
        return Ok(false);
    }
    let (mut bytes, _, mut checksums) = copy_of(editor, left_place, &(left.start..left.end))?;
    let (rest, _, others) = copy_of(editor, right_place, &(right.start..right.end))?;
    bytes.extend_from_slice(&rest);
    if left.end.is_multiple_of(u64::from(chunk_bytes)) {
        checksums.extend_from_slice(&others);
    } else {
        // The chunk that both are in.
        let index = checksums.len() - 1;
        let seam = chunk_range(&range, chunk_bytes, index as u64);
        let (from, to) = ((seam.start - range.start) as usize, (seam.end - range.start) as usize);
        checksums[index] = Checksum(crc32c::crc32c(&bytes[from..to]));
        checksums.extend_from_slice(&others[1..]);
    }
    unlink_keeping_blocks(editor, head_place, left_place)?;
    unlink_keeping_blocks(editor, head_place, right_place)?;
    editor.compacted_bytes += bytes.len() as u64;
    put(editor, holder, head_place, &newest, range, &bytes, Checksums { chunk_bytes, chunks: &checksums })?;
    Ok(true)
}

/// Two extents whose blocks follow each other on the block tier become one; no byte moves.
fn merge_stored(
    editor: &mut Editor<'_, '_>,
    holder: Holder,
    head_place: u64,
    (left_place, left): (u64, Extent),
    (right_place, right): (u64, Extent),
) -> Result<bool, Error> {
    if (left.flags | right.flags) & VIEW != 0 || left.references != 1 || right.references != 1 {
        return Ok(false);
    }
    let positions: (u64, u64) =
        (*editor.read(left_place + EXTENT_BYTES)?, *editor.read(right_place + EXTENT_BYTES)?);
    let length = left.end - left.start;
    let follows = positions.0 + length == positions.1
        && length.is_multiple_of(BLOCK)
        && left.end.is_multiple_of(u64::from(left.chunk_bytes))
        && right.end - left.start <= MERGED_STORED_BYTES_MAX;
    if !follows {
        return Ok(false);
    }
    let mut checksums = Vec::new();
    for (place, extent) in [(left_place, left), (right_place, right)] {
        let count = chunks_of(&(extent.start..extent.end), extent.chunk_bytes);
        let recorded: &[u32] = memory::read_slice(editor.heap(), place + EXTENT_BYTES + 8, count)?;
        checksums.extend(recorded.iter().map(|&checksum| Checksum(checksum)));
    }
    let newest = if left.epoch >= right.epoch { left } else { right };
    unlink_keeping_blocks(editor, head_place, left_place)?;
    unlink_keeping_blocks(editor, head_place, right_place)?;
    editor.compacted_bytes += checksums.len() as u64 * 4;
    let checksums = Checksums { chunk_bytes: left.chunk_bytes, chunks: &checksums };
    let source = Source::Stored(positions.0, checksums);
    place_extent(editor, holder, head_place, &newest, left.start..right.end, source)?;
    Ok(true)
}

/// Marks an extent as aggregated.
pub(crate) fn mark_aged(editor: &mut Editor<'_, '_>, place: u64) -> Result<(), Error> {
    let flags = editor.read::<Extent>(place)?.flags;
    if flags & AGED == 0 {
        editor.write(place + offset_of!(Extent, flags) as u64, &(flags | AGED))?;
    }
    Ok(())
}
