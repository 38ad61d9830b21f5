//! Where an array ends, found in slices.
//!
//! # Invariants
//!
//! * From [`EndSearch::before`] on nothing is visible; it comes down with every window that was looked at whole.
//! * A window of a single byte is always looked at whole: what holds one byte is little, one block of each level. So a search ends.
//! * The windows that a search takes are bounded by the extents, not by the bytes of the array: where there is little, the next one
//!   is wider, and one with too much becomes narrower. What a long punch covers is passed by at once if little in it is newer: so is
//!   all that is above the end of a file that was cut.

use std::ops::Range;

use daos_umem::Heap;

use super::{
    Scratch,
    resolve::{Limit, resolve_at_most},
};
use crate::{
    ARRAY_BYTES_MAX, Error, memory,
    records::{ArrayHead, Extent, Extents, PUNCHED},
    tree,
};

/// Extents after which a call ends.
const LOOKED_AT_MAX: usize = 4096;
/// What a window may have: extents that may be visible, and some 0.8 ms of extents to pass by, more than one leaf or two of each
/// of 64 levels, which no narrower window would have less of.
const WINDOW: Limit = Limit { looked_at: 8192, candidates: 1024 };
/// What there may be above a punch that is passed by.
const PASSED_BY: Limit = Limit { looked_at: 2048, candidates: 256 };
/// What a window costs by itself, a descent for each level, in extents.
const WINDOW_COST: usize = 16;
/// Bytes of the first window.
const WINDOW_BYTES: u64 = 4096;

/// How far a search for the end of an array has come; at first, the [default](Default).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndSearch {
    /// From here on nothing is visible.
    before: u64,
    /// Bytes that are looked at next.
    window: u64,
    /// Between this place and `before`, if it is before it, a punch covers all ..
    covered_from: u64,
    /// .. in this epoch: only newer extents can be visible there.
    covered_in: u64,
}

impl Default for EndSearch {
    fn default() -> Self {
        Self { before: u64::MAX, window: WINDOW_BYTES, covered_from: u64::MAX, covered_in: 0 }
    }
}

impl EndSearch {
    /// The search in a form to be kept with the keys of an anchor.
    pub(crate) fn to_bytes(self) -> Vec<u8> {
        [self.before, self.window, self.covered_from, self.covered_in].map(u64::to_le_bytes).concat()
    }

    /// The search that these bytes are; from the beginning if they are none.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        let (numbers, rest) = bytes.as_chunks();
        match numbers {
            &[before, window, covered_from, covered_in] if rest.is_empty() => Self {
                before: u64::from_le_bytes(before),
                window: u64::from_le_bytes(window).max(1),
                covered_from: u64::from_le_bytes(covered_from),
                covered_in: u64::from_le_bytes(covered_in),
            },
            _ => Self::default(),
        }
    }

    /// Whether a punch covers what comes next.
    fn is_covered(&self) -> bool {
        self.covered_from < self.before
    }

    /// The next window, and the epoch below which nothing in it is visible.
    fn next(&self, floor: u64) -> (Range<u64>, u64) {
        let start = self.before.saturating_sub(self.window);
        if self.is_covered() {
            (start.max(self.covered_from)..self.before, floor.max(self.covered_in))
        } else {
            (start..self.before, floor)
        }
    }
}

/// What a window that was looked at whole has.
enum Content {
    /// Data that ends here.
    Data(u64),
    /// None; its first bytes are punched, from a place on and in an epoch.
    Punch(u64, u64),
    /// None.
    Nothing,
}

/// The end of the last byte of data that is visible at an epoch, if nothing below `floor` is; 0 if there is none. `None`: as many
/// extents were looked at as fit into a slice of time; go on with the same search. `looked_at` grows by the extents.
pub(crate) fn highest_end(
    heap: &Heap,
    head: &ArrayHead,
    (floor, epoch): (u64, u64),
    search: &mut EndSearch,
    scratch: &mut Scratch,
    looked_at: &mut usize,
) -> Result<Option<u64>, Error> {
    let mut look = |limit: Limit, range: Range<u64>, floor: u64, looked_at: &mut usize| {
        let whole = resolve_at_most(limit, heap, Some(head), range, (floor, epoch), scratch)?;
        *looked_at += scratch.looked_at + WINDOW_COST;
        let few = scratch.candidates.len() < WINDOW.candidates / 4;
        if whole { Ok(Some((content(heap, scratch)?, few))) } else { Ok::<_, Error>(None) }
    };
    let most = *looked_at + LOOKED_AT_MAX;
    search.before = search.before.min(tree::summary(heap, Extents, head.extents)?.end);
    while search.before > 0 {
        if *looked_at >= most {
            return Ok(None);
        }
        let (range, floor) = search.next(floor);
        let limit = if search.window == 1 { Limit::NONE } else { WINDOW };
        let Some((found, few)) = look(limit, range.clone(), floor, looked_at)? else {
            search.window = (search.window / 16).max(1);
            continue;
        };
        search.before = range.start;
        match found {
            Content::Data(end) => return Ok(Some(end)),
            Content::Punch(start, epoch)
                if range.start - start >= search.window
                    && (!search.is_covered() || start < search.covered_from) =>
            {
                match look(PASSED_BY, start..range.start, floor.max(epoch), looked_at)? {
                    Some((Content::Data(end), _)) => return Ok(Some(end)),
                    Some(_) => search.before = start,
                    None => (search.covered_from, search.covered_in) = (start, epoch),
                }
            }
            // By what is in it, not by what had to be passed by: that does not become less in a narrow one.
            _ if few => search.window = search.window.saturating_mul(4),
            _ => {}
        }
    }
    Ok(Some(0))
}

/// What the last window has that was looked at whole.
fn content(heap: &Heap, scratch: &Scratch) -> Result<Content, Error> {
    let mut first = Content::Nothing;
    for segment in scratch.segments.iter().rev() {
        first = Content::Nothing;
        if segment.extent == 0 {
            continue;
        }
        let extent: &Extent = memory::read(heap, segment.extent)?;
        if extent.flags & PUNCHED == 0 {
            let is_sound = segment.end <= ARRAY_BYTES_MAX;
            return if is_sound {
                Ok(Content::Data(segment.end))
            } else {
                Err(super::corrupt(segment.extent))
            };
        }
        if extent.start < segment.start {
            first = Content::Punch(extent.start, extent.epoch);
        }
    }
    Ok(first)
}
