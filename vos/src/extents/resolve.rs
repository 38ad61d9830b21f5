//! Which extent is visible where.

use std::{collections::BinaryHeap, ops::ControlFlow, ops::Range};

use daos_umem::Heap;

use super::{each_level, level_of};
use crate::{
    Error, memory,
    records::{ArrayHead, Extent, Extents},
    tree::{self, Summary},
};

/// A piece of an answer: bytes of the array, and the extent that is visible there (0: none).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub start: u64,
    pub end: u64,
    pub extent: u64,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    start: u64,
    end: u64,
    epoch: u64,
    extent: u64,
}

/// What a descent to the next block costs, in extents that are looked at.
const RESTART_COST: usize = 4;

/// Buffers of [`resolve`], kept so that a read allocates nothing.
#[derive(Default)]
pub(crate) struct Scratch {
    pub(super) candidates: Vec<Candidate>,
    /// Extents that were looked at for them.
    pub(super) looked_at: usize,
    /// Candidates that have begun: (epoch, end, extent), the newest on top.
    open: BinaryHeap<(u64, u64, u64)>,
    /// The answer: in order, without gaps, covering the range exactly.
    pub segments: Vec<Segment>,
}

/// Finds what is visible in `range` at `epoch` among extents of epochs ≥ `floor`; the answer is in `scratch.segments`.
pub(crate) fn resolve(
    heap: &Heap,
    head: Option<&ArrayHead>,
    range: Range<u64>,
    epochs: (u64, u64),
    scratch: &mut Scratch,
) -> Result<(), Error> {
    resolve_at_most(Limit::NONE, heap, head, range, epochs, scratch).map(drop)
}

/// How much there may be in a range that is resolved.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limit {
    /// Extents that are looked at.
    pub looked_at: usize,
    /// Of these, such as may be visible.
    pub candidates: usize,
}

impl Limit {
    pub const NONE: Self = Self { looked_at: usize::MAX, candidates: usize::MAX };
}

/// As [`resolve`], but gives up, and says no, where there is more than the limit.
pub(super) fn resolve_at_most(
    limit: Limit,
    heap: &Heap,
    head: Option<&ArrayHead>,
    range: Range<u64>,
    epochs: (u64, u64),
    scratch: &mut Scratch,
) -> Result<bool, Error> {
    scratch.candidates.clear();
    scratch.looked_at = 0;
    scratch.segments.clear();
    if range.is_empty() {
        return Ok(true);
    }
    if let Some(head) = head {
        collect(limit, heap, head, &range, epochs, scratch)?;
        if scratch.looked_at > limit.looked_at || scratch.candidates.len() > limit.candidates {
            return Ok(false);
        }
    }
    paint(range, scratch);
    Ok(true)
}

/// Collects the extents that are visible among those of their block, up to the limit and one more.
fn collect(
    limit: Limit,
    heap: &Heap,
    head: &ArrayHead,
    range: &Range<u64>,
    (floor, epoch): (u64, u64),
    scratch: &mut Scratch,
) -> Result<(), Error> {
    let Scratch { candidates, looked_at, .. } = scratch;
    // Nothing below the epoch of an extent that covers the whole range is visible.
    let mut floor = floor;
    each_level(head.levels, range, |low_block, high_block| {
        let low = u128::from(low_block) << 64;
        let mut high = u128::from(high_block) << 64 | u128::from(epoch);
        while *looked_at <= limit.looked_at && candidates.len() <= limit.candidates {
            // The block that is being looked at, and what its newer extents cover of the range. What they cover beyond it
            // does not count: an older one that sticks out there only must be passed by.
            let mut block = 0;
            let mut covered = 0..0;
            let state = std::cell::Cell::new((0u64, 0u64));
            let mut restart = None;
            let least = floor;
            let may = |summary: &Summary| {
                let (start, end) = state.get();
                summary.start < range.end
                    && summary.end > range.start
                    && summary.epoch >= least
                    && !(start <= summary.start.max(range.start) && summary.end.min(range.end) <= end)
            };
            let _ = tree::scan_back(heap, Extents, head.extents, (low, high), &may, &mut |place| {
                *looked_at += 1;
                if *looked_at > limit.looked_at || candidates.len() > limit.candidates {
                    return Ok(ControlFlow::Break(()));
                }
                let extent: &Extent = memory::read(heap, place)?;
                let here = super::block_of(extent.start, extent.end);
                if here != block {
                    block = here;
                    covered = 0..0;
                    state.set((0, 0));
                    if extent.epoch > epoch {
                        restart = Some((u128::from(here) << 64 | u128::from(epoch), place));
                        return Ok(ControlFlow::Break(()));
                    }
                } else if !covered.is_empty() && covers(&covered, here, range) {
                    restart = Some(((u128::from(here) << 64) - 1, place));
                    return Ok(ControlFlow::Break(()));
                }
                if extent.epoch < floor {
                    // All older ones of the block are below the floor as well.
                    restart = Some(((u128::from(here) << 64) - 1, place));
                    return Ok(ControlFlow::Break(()));
                }
                let (start, end) = (extent.start.max(range.start), extent.end.min(range.end));
                let hidden = covered.start <= start && end <= covered.end;
                if start < end && !hidden {
                    // All contain the middle of the block, and so does what they have in the range, or that lies on one
                    // side of it: there are no gaps.
                    covered = if covered.is_empty() {
                        start..end
                    } else {
                        covered.start.min(start)..covered.end.max(end)
                    };
                    state.set((covered.start, covered.end));
                    candidates.push(Candidate { start, end, epoch: extent.epoch, extent: place });
                    if start == range.start && end == range.end {
                        floor = floor.max(extent.epoch);
                    }
                }
                Ok(ControlFlow::Continue(()))
            })?;
            match restart {
                // The epoch bounds the first block only; others are looked at from their newest extent.
                Some((next, place)) if next >= high => return Err(super::corrupt(place)),
                Some((next, _)) if next >= low => {
                    *looked_at += RESTART_COST;
                    high = next;
                }
                _ => return Ok(()),
            }
        }
        Ok(())
    })
}

/// Whether `covered` leaves nothing of `range` open within `block`.
fn covers(covered: &Range<u64>, block: u64, range: &Range<u64>) -> bool {
    let level = level_of(block);
    let first = (block & !(1 << (63 - level))) << level;
    let last = first + ((1u64 << level) - 1);
    covered.start <= first.max(range.start) && covered.end > last.min(range.end - 1)
}

/// Sweeps over the candidates from left to right; at each place the newest that is open is visible.
fn paint(range: Range<u64>, scratch: &mut Scratch) {
    let Scratch { candidates, open, segments, .. } = scratch;
    candidates.sort_unstable_by_key(|candidate| candidate.start);
    open.clear();
    let (mut position, mut next) = (range.start, 0);
    while position < range.end {
        while let Some(candidate) = candidates.get(next).filter(|candidate| candidate.start <= position) {
            open.push((candidate.epoch, candidate.end, candidate.extent));
            next += 1;
        }
        while open.peek().is_some_and(|&(_, end, _)| end <= position) {
            open.pop();
        }
        let mut end = candidates.get(next).map_or(range.end, |candidate| candidate.start.min(range.end));
        let mut extent = 0;
        if let Some(&(_, stops, place)) = open.peek() {
            end = end.min(stops);
            extent = place;
        }
        match segments.last_mut() {
            Some(last) if last.extent == extent => last.end = end,
            _ => segments.push(Segment { start: position, end, extent }),
        }
        position = end;
    }
}
