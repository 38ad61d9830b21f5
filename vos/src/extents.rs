//! Byte arrays: a tree of extents over (offset × epoch).
//!
//! # How extents are found
//!
//! A read asks, for each offset, for the extent of the greatest epoch ≤ *e* that covers it. Trimming older extents when a
//! newer one arrives would make that trivial for the newest epoch, but history must stay readable, and writes may come in
//! any order of epochs: a write below existing ones would have to be cut into as many pieces as they have edges. So
//! extents are kept as they were written, and found through an **implicit interval tree** (after Kriegel and others,
//! "Managing Intervals Efficiently in Object-Relational Databases", VLDB 2000):
//!
//! * The offsets form a binary trie. A **block** is an aligned range of 2^level bytes, a node of the trie, numbered
//!   as in a heap: the root is 1, the children of *n* are 2*n* and 2*n* + 1. An extent belongs to the smallest block that
//!   holds it; so it crosses the middle of its block (or is a single byte at level 0).
//! * One B+tree orders extents by (block, epoch). Blocks of a level that meet a range are neighbours in it; an array
//!   remembers which levels it uses, and a read looks at each of them from the largest.
//! * The extents of one block all contain its middle: together they cover one interval, which only grows as older ones
//!   are added. Going down in epoch, an extent within the interval covered so far is invisible. Inner nodes of the tree
//!   carry summaries (least start, greatest end, greatest epoch), so that whole subtrees of invisible extents, or of such
//!   that do not meet the range, are passed by: finding the next extent that sticks out costs a descent.
//! * What the levels give is painted newest first by a sweep.
//!
//! So a read costs O(levels in use × log n) plus, for each extent that is visible among those of its block, a descent;
//! nested, staggered and interleaved writes cost the same as others. A write costs one insertion, and a search for extents of
//! its own epoch. The test `cost` counts both.
//!
//! # Invariants
//!
//! * Extents of one epoch do not overlap. A write over an earlier one of its cookie and epoch cuts it: what remains
//!   becomes **views**, which refer to the data (with its checksums) of the extent that was written.
//! * (block, epoch) names one extent: two that cross the same middle would overlap.
//! * Data is never returned unless the checksums of all chunks that it touches were verified.

pub(crate) mod compact;
#[cfg(test)]
mod cost;
#[cfg(test)]
mod damaged;
mod data;
mod end;
mod resolve;
mod write;

use std::{
    mem::offset_of,
    ops::{ControlFlow, Range},
};

use daos_umem::Heap;

use crate::{
    Error, memory,
    records::{ArrayHead, Extent, Extents, KeyRecord, ObjectRecord},
    tree::{self, KeyClass, Probe},
};

pub(crate) use data::{
    ExtentSource, check_inline, detached_block, locate, owner_of, recorded_checksums, stored_position,
};
pub use end::EndSearch;
pub(crate) use end::highest_end;
pub(crate) use resolve::{Scratch, resolve};
pub(crate) use write::{NewExtent, Source, abandon_head, forget_note, insert, remove};

/// The smallest block that holds `start..end` (not empty, `end` ≤ 2^63), by its number. Of a damaged extent, some number.
#[inline]
pub(crate) fn block_of(start: u64, end: u64) -> u64 {
    const OFFSETS: u64 = crate::ARRAY_BYTES_MAX - 1;
    let (start, last) = (start & OFFSETS, end.wrapping_sub(1) & OFFSETS);
    let level = 64 - (start ^ last).leading_zeros();
    1 << (63 - level) | last >> level
}

/// The level of a block: the logarithm of its bytes.
#[inline]
pub(crate) fn level_of(block: u64) -> u32 {
    block.leading_zeros()
}

/// The key, in the tree of an array, of the extent that `block` has of `epoch`.
#[inline]
pub(crate) fn key_of(block: u64, epoch: u64) -> Probe<'static> {
    Probe::number(u128::from(block) << 64 | u128::from(epoch))
}

/// The extent that the tree at `root` has under this key. A record that says something else than its slot is damaged, and
/// must not be taken for what was looked for: it might be cut, or freed, for what it is not.
fn get(heap: &Heap, root: u64, probe: &Probe<'_>) -> Result<Option<u64>, Error> {
    let Some(place) = tree::get(heap, Extents, root, probe)? else { return Ok(None) };
    check_key(heap, place, probe)?;
    Ok(Some(place))
}

/// Refuses an extent whose record does not have the key of `probe`, under which it was found.
#[inline]
fn check_key(heap: &Heap, place: u64, probe: &Probe<'_>) -> Result<(), Error> {
    if Extents.probe(heap, place)?.prefix == probe.prefix { Ok(()) } else { Err(corrupt(place)) }
}

fn corrupt(place: u64) -> Error {
    Error::Corrupt { place: "extent", position: place }
}

/// What an array belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    /// The akey with this record.
    Akey(u64),
    /// The array object with this record.
    Object(u64),
}

impl Holder {
    /// Where the offset of its [`ArrayHead`] lies.
    pub fn head_place(self) -> u64 {
        match self {
            Holder::Akey(key) => key + offset_of!(KeyRecord, root) as u64,
            Holder::Object(object) => object + offset_of!(ObjectRecord, root) as u64,
        }
    }
}

/// Visits the extents of `epoch` that overlap `range`.
pub(crate) fn at_epoch(
    heap: &Heap,
    head: &ArrayHead,
    range: &Range<u64>,
    epoch: u64,
    visit: &mut dyn FnMut(u64) -> Result<(), Error>,
) -> Result<(), Error> {
    if head.newest < epoch {
        return Ok(());
    }
    // Within a block, at most one extent has the epoch. After a few others the search jumps over the rest of them, so that
    // a write costs the same wherever in the history of its range it belongs.
    const TRIES: u32 = 4;
    each_level(head.levels, range, |low, high| {
        if low == high {
            let Some(place) = get(heap, head.extents, &key_of(low, epoch))? else { return Ok(()) };
            let extent: &Extent = memory::read(heap, place)?;
            let overlaps = extent.start < range.end && extent.end > range.start;
            return if overlaps { visit(place) } else { Ok(()) };
        }
        let low = u128::from(low) << 64;
        let mut next = Some(u128::from(high) << 64 | u128::from(epoch));
        let may = |summary: &tree::Summary| {
            summary.start < range.end && summary.end > range.start && summary.epoch >= epoch
        };
        while let Some(high) = next.take().filter(|&high| high >= low) {
            let mut tries = 0;
            let _ = tree::scan_back(heap, Extents, head.extents, (low, high), &may, &mut |place| {
                let extent: &Extent = memory::read(heap, place)?;
                if extent.epoch == epoch {
                    if extent.start < range.end && extent.end > range.start {
                        visit(place)?;
                    }
                    return Ok(ControlFlow::Continue(()));
                }
                tries += 1;
                if tries < TRIES {
                    return Ok(ControlFlow::Continue(()));
                }
                let block = block_of(extent.start, extent.end);
                let block = if extent.epoch > epoch { block } else { block - 1 };
                let below = u128::from(block) << 64 | u128::from(epoch);
                if below >= high {
                    return Err(corrupt(place));
                }
                next = Some(below);
                Ok(ControlFlow::Break(()))
            })?;
        }
        Ok(())
    })
}

/// Calls `each` with the first and last block that meet `range` of every level in `levels`, from the largest blocks down.
fn each_level(
    levels: u64,
    range: &Range<u64>,
    mut each: impl FnMut(u64, u64) -> Result<(), Error>,
) -> Result<(), Error> {
    if range.is_empty() {
        return Ok(());
    }
    let mut rest = levels;
    while rest != 0 {
        let level = 63 - rest.leading_zeros();
        rest &= !(1 << level);
        let first = 1 << (63 - level);
        each(first | range.start >> level, first | (range.end - 1) >> level)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_the_smallest_that_holds_the_range() {
        for (range, level, number) in [
            (0..1, 0, 1 << 63),
            (5..6, 0, 1 << 63 | 5),
            (0..2, 1, 1 << 62),
            (1..3, 2, 1 << 61),
            (4096..8192, 12, 1 << 51 | 1),
            (4095..4097, 13, 1 << 50),
            (0..1 << 63, 63, 1),
        ] {
            let range: Range<u64> = range;
            let block = block_of(range.start, range.end);
            assert_eq!((level_of(block), block), (level, number), "{range:?}");
        }
    }

    /// The story of a fuzzer's input: an extent of which damage had left nothing stopped the walk that was to report it.
    #[test]
    fn a_damaged_extent_has_a_block() {
        const EDGES: [u64; 7] = [0, 1, 4095, 1 << 62, (1 << 63) - 1, 1 << 63, u64::MAX];
        for start in EDGES {
            for end in EDGES {
                let block = block_of(start, end);
                assert!(block > 0 && level_of(block) < 64, "{start}..{end}");
                if start < end && end <= 1 << 63 {
                    let (level, number) = (level_of(block), block & !(1 << (63 - level_of(block))));
                    let holds = |offset: u64| offset >> level == number;
                    assert!(holds(start) && holds(end - 1), "{start}..{end} in {block:#x}");
                }
            }
        }
    }
}
